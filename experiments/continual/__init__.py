"""Continual learning: a stream of tasks with one optimizer, without task boundaries."""
