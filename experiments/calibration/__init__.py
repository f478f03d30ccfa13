"""How far judges can be trusted: Will and Conscience on PyRIT's human labels, beside the judges published with them."""
