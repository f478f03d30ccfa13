"""The faculties, one file each, and how they ask a model: several drafts, fences, one reply in JSON."""
