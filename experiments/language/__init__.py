"""A language model meets a second domain: what is kept of the first against what is learned of the second."""
