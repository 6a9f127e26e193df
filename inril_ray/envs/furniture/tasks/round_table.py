"""A round table: screw the leg into the top, and the foot into the leg.

Sizes from the meshes of furniture-bench 0.1 (MIT). The foot is a cross that stands on its own thread at first.
"""

from __future__ import annotations

from math import pi

from inril_ray.envs.furniture.geometry import PALE, STEEL, WOOD, block, prism, ring, shaft
from inril_ray.envs.furniture.spec import Furniture, Pair, Part, Pose, Screw, in_tag_frame

LEG_IN_TOP = Pose(pos=(0.0, 0.0, 0.0444), euler=(pi / 2, 0.0, 185 * pi / 180))
FOOT_IN_LEG = Pose(pos=(0.0, 0.0531, 0.0), euler=(-pi / 2, pi / 2, 0.0))
TOP_MASS, LEG_MASS, FOOT_MASS = 0.1217, 0.0323, 0.044

TOP = Part(
    name="round_table_top",
    shapes=(
        *prism(0.098, (-0.00125, 0.0045), 4, axis="z", color=PALE),
        *ring((0.0930, 0.0930), 0.005, (0.0045, 0.0175), 16, axis="z", color=PALE),
        *ring((0.0125, 0.0125), 0.0085, (0.0045, 0.03125), 8, axis="z", color=PALE),
    ),
    mass=TOP_MASS,
    inertia=(TOP_MASS / 4 * 0.1**2, TOP_MASS / 4 * 0.1**2, TOP_MASS / 2 * 0.1**2),
    centre=(0.0, 0.0, 0.006),
    start=in_tag_frame((0.0, 0.205, -0.001), (0.0, pi, 0.0)),
    force=30.0,
    torque=60.0,
    mesh="round_table/round_table_top.obj",
)
LEG = Part(
    name="round_table_leg",
    shapes=(
        *prism(0.0204, (-0.01313, 0.0222), 4, condim=4, color=WOOD),
        *ring((0.0125, 0.0125), 0.0079, (0.0222, 0.05187), 8, color=WOOD),
        shaft(-0.03938, -0.01313, 0.0115, color=WOOD),
    ),
    mass=LEG_MASS,
    inertia=(LEG_MASS / 12 * (3 * 0.02**2 + 0.08**2), LEG_MASS / 2 * 0.019**2, LEG_MASS / 12 * (3 * 0.02**2 + 0.08**2)),
    centre=(0.0, 0.012, 0.0),
    start=in_tag_frame((0.13, 0.10, -0.0213)),
    force=4.0,
    torque=4.0,
    mesh="round_table/round_table_leg.obj",
)
FOOT = Part(
    name="round_table_base",
    shapes=(
        block((-0.065, 0.065), (-0.015, 0.015), (-0.00125, 0.01125), condim=4, color=STEEL),
        block((-0.015, 0.015), (-0.065, 0.065), (-0.00125, 0.01125), condim=4, color=STEEL),
        shaft(-0.02875, -0.00125, 0.0115, axis="z", color=STEEL),
        # The end of the thread is flat, and the part stands on it.
        block((-0.0075, 0.0075), (-0.0075, 0.0075), (-0.02875, -0.0240), color=STEEL),
    ),
    mass=FOOT_MASS,
    inertia=(FOOT_MASS / 12 * 0.1**2, FOOT_MASS / 12 * 0.1**2, FOOT_MASS / 6 * 0.1**2),
    centre=(0.0, 0.0, 0.0),
    start=in_tag_frame((-0.12, 0.12, -0.0288), (pi, 0.0, 0.0)),
    force=20.0,
    torque=10.0,
    mesh="round_table/round_table_base.obj",
)

ROUND_TABLE = Furniture(
    name="round_table",
    parts=(TOP, LEG, FOOT),
    pairs=(
        Pair(first="round_table_top", second="round_table_leg", poses=(LEG_IN_TOP,)),
        Pair(first="round_table_leg", second="round_table_base", poses=(FOOT_IN_LEG,)),
    ),
    screws=(
        Screw(part="round_table_leg", into="round_table_top", axis=(0.0, 1.0, 0.0), tip=0.03938, poses=(LEG_IN_TOP,)),
        Screw(part="round_table_base", into="round_table_leg", axis=(0.0, 0.0, 1.0), tip=0.02875, poses=(FOOT_IN_LEG,)),
    ),
    max_episode_steps=1000,
)
