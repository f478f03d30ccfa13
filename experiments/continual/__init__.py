"""Continual learning: one stream of tasks, one optimizer, and nobody who says where a task ends."""
