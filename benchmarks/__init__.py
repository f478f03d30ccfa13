"""Benchmarks: time and memory of SAL (``overhead``, ``growth``), and latency of SAFi (``governance``)."""
