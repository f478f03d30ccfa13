"""What SAL costs: a step and its memory beside other methods (``overhead``), and how that grows (``growth``)."""
