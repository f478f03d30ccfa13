"""A language model on a second domain: forgetting of the first against learning of the second."""
