"""Sweeps on Ray Tune: :mod:`inril_ray.sweep` plans, :mod:`inril_ray.tune.search` runs."""

from inril_ray.tune.search import run_sweep

__all__ = ["run_sweep"]
