"""The five faculties, one file each."""
