"""Fine-tuning of a pretrained language model: what it learns of a new text, and what it loses of what it knew."""
