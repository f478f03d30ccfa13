"""Experiments: what the packages are measured with. Not part of the wheel."""
