"""Shipped settings: one file for each algorithm (defaults, suites, tasks) and named configurations such as ``demo``."""
