"""Selection of one of a network's many predictions for an image, with a measure of agreement."""
