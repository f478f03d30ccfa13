"""The three grains at which stability is kept: directions of a layer's input, single weights, whole tensors."""
