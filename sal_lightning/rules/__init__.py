"""Rules at three grains: directions of a layer's input, single weights, whole tensors."""
