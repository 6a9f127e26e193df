"""One module per file format; see :mod:`inril_ray.demos`."""
