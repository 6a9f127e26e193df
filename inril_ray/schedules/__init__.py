"""Which updates an iteration makes.

To add one: a module here with a ``Schedule`` and one line in ``SCHEDULES``.
"""

from __future__ import annotations

SCHEDULES: dict[str, str] = {
    "adaptive": "inril_ray.schedules.adaptive:AdaptiveSchedule",
    "bc_reg": "inril_ray.schedules.bc_reg:BCRegularizedSchedule",
    "fixed": "inril_ray.schedules.fixed:FixedSchedule",
    "il_only": "inril_ray.schedules.il_only:ILOnlySchedule",
    "rl_only": "inril_ray.schedules.rl_only:RLOnlySchedule",
}
"""Schedule name to its class."""
