"""Hang a mug by its handle on one of the four pegs of a rack.

The original's mug is a scan that was never released, so mug and rack are of our own: a cup of 74 mm inner diameter and
90 mm height, a post with four pegs that rise by 20 degrees. Masses are such that the pushes at the beginning move both
by as much as they move other furniture, 3 cm at most; the rack's foot is of denser material, so that the rack slides
before it topples.

The poses that count were found by letting mugs settle on each peg, handle anywhere between the two horizontals
(``tests/unit/test_furniture_mug.py`` hangs others). The original has 25 recorded ones around its four pegs. Here mugs
settle so alike that one pose for each peg and each side of the opening covers them: all of 1200 from fresh starts.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from inril_ray.envs.furniture.geometry import PALE, Shape, block, capsule, ring
from inril_ray.envs.furniture.spec import Furniture, Pair, Part, Pose

CLAY, RISE = (0.75, 0.35, 0.30, 1.0), math.radians(20)
POST, PEG_LENGTH, PEG_RADIUS = 0.010, 0.075, 0.005
PEGS = tuple((i * math.pi / 2, 0.175 if i % 2 == 0 else 0.235) for i in range(4))
"""Direction and height of each peg's foot, rack frame."""
HANDLE = ((0.041, 0.030), (0.060, 0.028), (0.070, 0.010), (0.070, -0.010), (0.060, -0.028), (0.041, -0.030))
"""(x, y) of the handle's corners, mug frame: its axis is y, its opening at +y."""


def _peg(angle: float, height: float) -> tuple[Shape, Shape]:
    out = np.array([math.cos(angle), math.sin(angle), 0.0])
    start = out * POST + np.array([0.0, 0.0, height])
    end = start + PEG_LENGTH * (math.cos(RISE) * out + math.sin(RISE) * np.array([0.0, 0.0, 1.0]))
    knob = Shape(kind="sphere", size=(0.007,), pos=tuple(end), color=PALE)
    return capsule(tuple(start), tuple(end), PEG_RADIUS, color=PALE), knob


RACK = Part(
    name="rack",
    shapes=(
        block((-0.07, 0.07), (-0.07, 0.07), (0.0, 0.012), color=PALE),
        block((-POST, POST), (-POST, POST), (0.012, 0.28), color=PALE),
        *(shape for peg in PEGS for shape in _peg(*peg)),
    ),
    mass=0.60,
    inertia=(4.6e-3, 4.6e-3, 1.5e-3),
    centre=(0.0, 0.0, 0.05),
    start=(np.array([0.40, -0.175, 0.0]), np.eye(3)),
    force=50.0,
    torque=150.0,
)
MUG = Part(
    name="mug",
    shapes=(
        *ring((0.037, 0.037), 0.004, (-0.045, 0.045), 12, color=CLAY),
        block((-0.0265, 0.0265), (-0.045, -0.039), (-0.0265, 0.0265), color=CLAY),
        *(capsule((*a, 0.0), (*b, 0.0), 0.005, condim=4, color=CLAY) for a, b in pairwise(HANDLE)),
    ),
    mass=0.120,
    inertia=(1.7e-4, 1.8e-4, 2.0e-4),
    centre=(0.004, -0.006, 0.0),
    # Upright: its y axis is the vertical.
    start=(np.array([0.40, 0.175, 0.045]), np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])),
    force=20.0,
    torque=30.0,
)
REST = Pose(pos=(0.0521, 0.0067, -0.0485), euler=(2.570, -1.117, -2.618))
"""Of a mug that hangs on peg 0 with its opening at +y, from the rack's axis at the height of the peg's foot: the middle
of where mugs settled. They slide down the peg to the post and swing until they are still, within 4 mm and 17 degrees;
about one in a thousand gets stuck elsewhere."""


def _hung(angle: float, height: float, mirrored: bool) -> Pose:
    """Return the rest on any peg; mirrored, the opening is on the other side, and the mug's z axis turns around too."""
    (x, y, z), (a, b, c) = REST.pos, REST.euler
    if mirrored:
        y, a, c = -y, math.pi - a, -c
    turned = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
    return Pose(pos=(*turned, z + height), euler=(a, b, c + angle))


HUNG = tuple(_hung(*peg, mirrored) for peg in PEGS for mirrored in (False, True))
"""Of the mug in the rack's frame."""

MUG_RACK = Furniture(
    name="mug_rack",
    parts=(RACK, MUG),
    pairs=(Pair(first="rack", second="mug", poses=HUNG),),
    max_episode_steps=400,
    gripper_width=0.07,
)
