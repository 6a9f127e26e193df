"""The tasks, as data."""

from __future__ import annotations

from inril_ray.envs.furniture.tasks.lamp import LAMP
from inril_ray.envs.furniture.tasks.mug_rack import MUG_RACK
from inril_ray.envs.furniture.tasks.one_leg import ONE_LEG
from inril_ray.envs.furniture.tasks.peg_in_hole import PEG_IN_HOLE
from inril_ray.envs.furniture.tasks.round_table import ROUND_TABLE

FURNITURE = {f.name: f for f in (ONE_LEG, LAMP, ROUND_TABLE, MUG_RACK, PEG_IN_HOLE)}
"""Name to task."""
