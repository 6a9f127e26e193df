"""Demonstrations: readers for the field's formats, one Arrow file, one store that is sampled.

To add a format: a module in ``formats/`` with ``read(path, expectation) -> Iterator[Episode]``,
``inspect(path) -> FileInfo`` and one line in ``FORMATS``. To add a scripted demonstrator: a class in ``scripted/`` and
one line in ``DEMONSTRATORS``.
"""

from __future__ import annotations

FORMATS: dict[str, str] = {
    "robomimic_hdf5": "inril_ray.demos.formats.robomimic_hdf5:RobomimicHdf5",
}
"""Format name to a class with the interface of :class:`inril_ray.demos.episodes.Format`."""

DEMONSTRATORS: dict[str, str] = {
    "robomimic/lift": "inril_ray.demos.scripted.lift:LiftDemonstrator",
    "robomimic/can": "inril_ray.demos.scripted.can:CanDemonstrator",
    "robomimic/square": "inril_ray.demos.scripted.square:SquareDemonstrator",
}
"""Task to the scripted demonstrator for it."""
