"""Sweeps on Ray Tune: :mod:`inril_ray.sweep` plans, :mod:`inril_ray.tune.search` runs."""

import inril_ray.distributed  # noqa: F401 - first: what Ray is told before it is imported
from inril_ray.tune.search import run_sweep

__all__ = ["run_sweep"]
