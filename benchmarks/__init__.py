"""What SAL costs a step and in memory (``overhead``, ``growth``), and what SAFi adds to an answer (``governance``)."""
