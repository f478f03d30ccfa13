"""The faculties, one file each, and their calls of models: self-consistency, fences, structured output."""
