"""One leg of a square table: push the tray into the corner of the obstacle, screw in a leg.

Sizes from the meshes of furniture-bench 0.1 (MIT): an open tray with a rim of 7 mm, a floor of 6.3 mm and four tubes of
12.5 mm bore; legs whose thread has a crest radius of 12.2 mm.
"""

from __future__ import annotations

from math import pi

from inril_ray.envs.furniture.geometry import PALE, STEEL, WOOD, block, ring, shaft
from inril_ray.envs.furniture.spec import Furniture, Pair, Part, Pose, Screw, in_tag_frame

HALF, RIM = 0.08125, 0.0744
BOTTOM, FLOOR, TOP = -0.015625, -0.009375, 0.015625
HOLES = tuple(Pose(pos=(x, 0.046875, z)) for z in (-0.05625, 0.05625) for x in (-0.05625, 0.05625))
TOP_MASS, LEG_MASS = 0.151, 0.0231

TABLE_TOP = Part(
    name="square_table_top",
    shapes=(
        block((-HALF, HALF), (BOTTOM, FLOOR), (-HALF, HALF), color=PALE),
        block((RIM, HALF), (FLOOR, TOP), (-HALF, HALF), color=PALE),
        block((-HALF, -RIM), (FLOOR, TOP), (-HALF, HALF), color=PALE),
        block((-RIM, RIM), (FLOOR, TOP), (RIM, HALF), color=PALE),
        block((-RIM, RIM), (FLOOR, TOP), (-HALF, -RIM), color=PALE),
        *(
            shape
            for hole in HOLES
            for shape in ring((0.0125, 0.0125), 0.00375, (FLOOR, TOP), 8, centre=(hole.pos[0], hole.pos[2]))
        ),
    ),
    mass=TOP_MASS,
    # A slab of 16.25 x 3.1 x 16.25 cm.
    inertia=(
        TOP_MASS / 12 * (0.1625**2 + 0.03125**2),
        TOP_MASS / 12 * 2 * 0.1625**2,
        TOP_MASS / 12 * (0.1625**2 + 0.03125**2),
    ),
    centre=(0.0, -0.006, 0.0),
    start=in_tag_frame((0.0, 0.24, -0.015625), (-pi / 2, 0.0, pi)),
    force=25.0,
    torque=70.0,
    mesh="square_table/square_table_top.obj",
)


def _leg(number: int, x: float) -> Part:
    color = WOOD if number == 4 else STEEL
    return Part(
        name=f"square_table_leg{number}",
        shapes=(
            block((-0.015, 0.015), (-0.03125, 0.03125), (-0.015, 0.015), condim=4, color=color),
            shaft(-0.05625, -0.03125, 0.0115, color=color),
        ),
        mass=LEG_MASS,
        inertia=(
            0.8 * LEG_MASS / 12 * (0.0875**2 + 0.03**2),
            0.9 * LEG_MASS / 12 * 2 * 0.03**2,
            0.8 * LEG_MASS / 12 * (0.0875**2 + 0.03**2),
        ),
        centre=(0.0, -0.007, 0.0),
        start=in_tag_frame((x, 0.07, -0.015), (0.0, -pi / 2, 0.0)),
        mesh="square_table/square_table_leg.obj",
    )


ONE_LEG = Furniture(
    name="one_leg",
    parts=(TABLE_TOP, *(_leg(i + 1, x) for i, x in enumerate((-0.20, -0.12, 0.12, 0.20)))),
    pairs=(Pair(first="square_table_top", second="square_table_leg4", poses=HOLES),),
    screws=(Screw(part="square_table_leg4", into="square_table_top", axis=(0.0, 1.0, 0.0), tip=0.05625, poses=HOLES),),
    max_episode_steps=700,
)
