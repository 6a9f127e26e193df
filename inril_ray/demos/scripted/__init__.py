"""Scripted demonstrators: they see observations only and know no simulator; see :mod:`inril_ray.demos`."""
