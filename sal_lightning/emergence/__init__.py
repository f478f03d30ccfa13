"""The emergence field: coherence, novelty and resonance of activations, and selection and cascades based on them."""
