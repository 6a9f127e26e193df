"""A lamp: screw the bulb into the base, put the hood over it.

Sizes from the meshes of furniture-bench 0.1 (MIT). The base stands with its -y axis up.
"""

from __future__ import annotations

from math import pi

from inril_ray.envs.furniture.geometry import PALE, Shape, block, prism, ring, shaft
from inril_ray.envs.furniture.spec import Furniture, Pair, Part, Pose, Screw, in_tag_frame

GLASS, SHADE = (0.98, 0.95, 0.80, 1.0), (0.60, 0.78, 0.88, 1.0)
SCREWED = Pose(pos=(0.0, -0.0678, 0.0), euler=(0.0, 0.0, pi))

BASE = Part(
    name="lamp_base",
    shapes=(
        *ring((0.0125, 0.0125), 0.00375, (-0.0458, -0.0140), 8, color=PALE),
        block((-0.024, 0.024), (-0.0140, 0.0080), (-0.024, 0.024), color=PALE),
        block((-0.04235, 0.04235), (0.0080, 0.0172), (-0.04235, 0.04235), color=PALE),
    ),
    mass=0.0597,
    inertia=(5e-5, 5e-5, 5e-5),
    centre=(0.0, -0.001, 0.0),
    start=in_tag_frame((0.05, 0.14, -0.02), (pi / 2, 0.0, 0.0)),
    force=8.0,
    torque=16.0,
    mesh="lamp/lamp_base.obj",
)
BULB = Part(
    name="lamp_bulb",
    shapes=(
        Shape(kind="sphere", size=(0.02997,), pos=(0.0, 0.038, 0.0), condim=4, color=GLASS),
        block((-0.0175, 0.0175), (-0.020, 0.012), (-0.0175, 0.0175), condim=4, color=GLASS),
        *prism(0.0215, (-0.0212, -0.0170), 2, color=GLASS),
        shaft(-0.053, -0.022, 0.0115, color=GLASS),
    ),
    mass=0.0385,
    inertia=(3e-5, 3e-5, 3e-5),
    # Lying on glass and flange; the reference starts it 8 mm lower, inside of the table.
    start=in_tag_frame((-0.05, 0.235, -0.0244), (-8.5 * pi / 180, 0.0, 0.0)),
    force=15.0,
    torque=20.0,
    mesh="lamp/lamp_bulb.obj",
)
HOOD = Part(
    name="lamp_hood",
    shapes=ring((0.026, 0.03998), 0.004, (-0.05142, 0.04858), 12, color=SHADE),
    mass=0.060,
    inertia=(7e-5, 7e-5, 7e-5),
    centre=(0.0, 0.002, 0.0),
    start=in_tag_frame((-0.08, 0.13, -0.0486), (pi / 2, 0.0, 0.0)),
    force=30.0,
    torque=60.0,
    mesh="lamp/lamp_hood.obj",
)

LAMP = Furniture(
    name="lamp",
    parts=(BASE, BULB, HOOD),
    pairs=(
        Pair(first="lamp_base", second="lamp_bulb", poses=(SCREWED,)),
        Pair(first="lamp_base", second="lamp_hood", poses=(Pose(pos=(0.0, -0.0883, 0.0)),), position_only=True),
    ),
    screws=(Screw(part="lamp_bulb", into="lamp_base", axis=(0.0, 1.0, 0.0), tip=0.053, poses=(SCREWED,)),),
    max_episode_steps=1000,
    gripper_width=0.07,
    pinned="lamp_bulb",
)
