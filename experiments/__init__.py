"""Experiments that measure the packages; not part of the wheel."""
