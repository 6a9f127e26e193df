"""Scripted experts of the furniture tasks, one module each over ``expert.py`` and ``screw.py``."""
