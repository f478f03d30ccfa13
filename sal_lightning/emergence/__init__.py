"""The emergence field: coherence, novelty and resonance of a network's activations, and what is built on them."""
