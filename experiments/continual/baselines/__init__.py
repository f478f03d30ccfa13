"""Baseline methods, which receive the task boundaries as in their papers."""
