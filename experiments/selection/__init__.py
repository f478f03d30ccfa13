"""Selection: which of a network's many answers to one picture stands for all, and how many agree."""
