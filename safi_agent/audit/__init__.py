"""The async branch: what happens to a turn after its answer has left."""
