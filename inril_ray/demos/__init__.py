"""Demonstrations: readers for the field's formats, one Arrow file, one store that is sampled.

To add a format: a module in ``formats/`` with ``read(path, expectation, selection) ->
Iterator[Episode]``, ``inspect(path) -> FileInfo`` and ``recognises(path)``, and one line in ``FORMATS``. To add a
scripted demonstrator: a class in ``scripted/`` and one line in ``DEMONSTRATORS``.
"""

from __future__ import annotations

FORMATS: dict[str, str] = {
    "robomimic_hdf5": "inril_ray.demos.formats.robomimic_hdf5:RobomimicHdf5",
    "d4rl_hdf5": "inril_ray.demos.formats.d4rl_hdf5:D4rlHdf5",
    "minari": "inril_ray.demos.formats.minari:Minari",
    "lerobot": "inril_ray.demos.formats.lerobot:LeRobot",
    "resip_zarr": "inril_ray.demos.formats.resip_zarr:ResipZarr",
    # Last, because any directory with a pickle in it looks like one of these.
    "furniture_pickle": "inril_ray.demos.formats.furniture_pickle:FurniturePickle",
}
"""Format name to a class with the interface of :class:`inril_ray.demos.episodes.Format`."""

DEMONSTRATORS: dict[str, str] = {
    "gym/halfcheetah": "inril_ray.medium:MediumPolicy",
    "gym/hopper": "inril_ray.medium:MediumPolicy",
    "gym/walker2d": "inril_ray.medium:MediumPolicy",
    "robomimic/lift": "inril_ray.demos.scripted.lift:LiftDemonstrator",
    "adroit/hammer": "inril_ray.demos.planners.hammer:HammerPlanner",
    "fetch/pick_and_place": "inril_ray.demos.scripted.fetch:PickAndPlaceDemonstrator",
    "fetch/push": "inril_ray.demos.scripted.fetch:PushDemonstrator",
    "fetch/slide": "inril_ray.demos.scripted.fetch:SlideDemonstrator",
    "robomimic/can": "inril_ray.demos.scripted.can:CanDemonstrator",
    "robomimic/square": "inril_ray.demos.scripted.square:SquareDemonstrator",
    "robomimic/transport": "inril_ray.demos.scripted.transport:TransportDemonstrator",
    **{
        f"furniture/{name}_{level}": f"inril_ray.demos.scripted.furniture.{name}:{expert}"
        for name, expert in (("one_leg", "OneLegExpert"), ("lamp", "LampExpert"), ("round_table", "RoundTableExpert"))
        for level in ("low", "med", "high")
    },
    "furniture/mug_rack": "inril_ray.demos.scripted.furniture.mug_rack:MugRackExpert",
    "furniture/peg_in_hole": "inril_ray.demos.scripted.furniture.peg_in_hole:PegInHoleExpert",
}
"""Task to its :class:`inril_ray.demos.demonstrator.Demonstrator`."""
