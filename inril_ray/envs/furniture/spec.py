"""What a task is made of: parts, screw joints, pairs to assemble, resets. Pure data; see ``tasks/``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inril_ray.envs.furniture.geometry import Shape, Vector, euler
from inril_ray.rotations import quat_of_matrix
from inril_ray.types import FloatArray

CONTROL_HZ = 10.0
PITCH = 0.00985
"""Metres of advance for each turn: the thread of all screwed parts, measured on their meshes."""
CATCH_HEIGHT = 0.011
"""Metres above its final place at which a shaft rests on the first ridge of the thread."""
TAG_POS = np.array([0.3015, 0.0, 0.0])
TAG_MATRIX = euler(math.pi, 0.0, math.pi / 2)
"""Frame in which parts are observed, in that of the robot's base."""
OBSTACLE_QUAT = quat_of_matrix(TAG_MATRIX.T)
"""Orientation (x, y, z, w) of the obstacle, tag frame."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """A position in metres and fixed-axis Euler angles in radians."""

    pos: Vector
    euler: Vector = (0.0, 0.0, 0.0)

    @property
    def matrix(self) -> FloatArray:
        """Rotation matrix [3, 3]."""
        return euler(*self.euler)


def in_tag_frame(pos: Vector, angles: Vector = (0.0, 0.0, 0.0)) -> tuple[FloatArray, FloatArray]:
    """Return position and rotation matrix in the base frame of a pose in the tag frame."""
    return TAG_POS + TAG_MATRIX @ np.asarray(pos), TAG_MATRIX @ euler(*angles)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A rigid body."""

    name: str
    shapes: tuple[Shape, ...]
    mass: float
    """kg"""
    inertia: Vector
    """Diagonal, kg m^2."""
    centre: Vector = (0.0, 0.0, 0.0)
    """Centre of mass."""
    start: tuple[FloatArray, FloatArray]
    """Position [3] and rotation matrix [3, 3] at the beginning of an episode, base frame."""
    force: float = 1.0
    """Factor of the level's random force (k)."""
    torque: float = 1.0
    """Factor of the level's random torque (k')."""
    mesh: str | None = None
    """File under the public assets' ``furniture/mesh``, for pictures."""


@dataclass(frozen=True, kw_only=True)
class Screw:
    """A part that is screwed into another one, right-handed.

    ``axis`` points from the tip of the shaft to the part, in the part's frame.
    """

    part: str
    into: str
    axis: Vector
    tip: float
    """Metres from the part's origin to the end of the shaft, against the axis."""
    poses: tuple[Pose, ...]
    """Of the part in the other one's frame when it is screwed in: one for each hole."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two parts that count as assembled near one of several relative poses."""

    first: str
    second: str
    poses: tuple[Pose, ...]
    """Of the second in the first's frame."""
    position_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Level:
    """How random the beginning of an episode is."""

    force_n: float
    """Greatest force of the impulse on a part, times its factor."""
    torque_nm: float
    """Greatest torque, times its factor."""
    obstacle_m: float
    """Greatest shift of the obstacle along x and y."""
    joints_deg: float
    """Greatest deviation of each joint of the arm."""
    speed_m_s: float
    """Forces on a part are scaled down where the greatest would make it faster than this,"""
    spin_rad_s: float
    """and torques where the greatest would make it turn faster."""


LEVELS = {
    "low": Level(force_n=0.2, torque_nm=0.007, obstacle_m=0.02, joints_deg=5.0, speed_m_s=0.35, spin_rad_s=10.0),
    "med": Level(force_n=0.5, torque_nm=0.010, obstacle_m=0.04, joints_deg=10.0, speed_m_s=0.45, spin_rad_s=12.0),
    "high": Level(force_n=0.75, torque_nm=0.015, obstacle_m=0.06, joints_deg=13.0, speed_m_s=0.55, spin_rad_s=15.0),
}
"""Source: the environment that ResiP and IN-RIL used, whose resets push parts that start at fixed poses. The limits of
speed are ours: without them light parts with large factors (the lamp's hood, the table's foot) slide for decimetres at
low and out of the arm's reach at med, which can't be meant."""
IMPULSE_S = 1.0 / 120.0
"""How long the pushes last. Not stated anywhere; this value gives the shifts of 1.5 cm and 15 degrees that are."""


@dataclass(frozen=True, kw_only=True)
class Furniture:
    """One assembly task without its level."""

    name: str
    parts: tuple[Part, ...]
    pairs: tuple[Pair, ...]
    screws: tuple[Screw, ...] = ()
    max_episode_steps: int
    gripper_width: float = 0.065
    """Greatest opening, metres."""
    part_friction: float = 0.15
    physics_hz: float = 240.0
    impedance: tuple[float, ...] = (0.9, 0.95, 0.001, 0.5, 2.0)
    """MuJoCo's solimp of all contacts."""
    scatter_m: float = 0.0
    """Greatest shift of each part along x and y at the beginning, beside the push."""
    scatter_deg: float = 0.0
    """Greatest turn of each part about the vertical."""
    pinned: str | None = None
    """A part that would roll away: held in place until the hand is near, in the first half of an episode."""

    @cached_property
    def start_quats(self) -> FloatArray:
        """Orientations (x, y, z, w) [P, 4] of the parts at the beginning of an episode, tag frame."""
        return np.stack([quat_of_matrix(TAG_MATRIX.T @ part.start[1]) for part in self.parts])

    @property
    def parts_by_name(self) -> dict[str, int]:
        """Index of each part."""
        return {part.name: i for i, part in enumerate(self.parts)}
