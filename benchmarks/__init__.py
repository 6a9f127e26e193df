"""Benchmarks: ``make bench`` and ``make bench-learning``. Each writes ``benchmarks/results/<name>.json``."""
