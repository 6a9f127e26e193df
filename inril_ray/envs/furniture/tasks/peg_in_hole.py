"""Peg in hole: a rectangular peg of 16 x 10 x 50 mm into a block whose hole leaves 0.11 and 0.08 mm on each side.

Sizes: Narang et al. 2022 (Factory), the tight rectangular peg.
"""

from __future__ import annotations

import numpy as np

from inril_ray.envs.furniture.geometry import block
from inril_ray.envs.furniture.spec import Furniture, Pair, Part, Pose

BLUE, AMBER = (0.20, 0.45, 0.85, 1.0), (0.92, 0.62, 0.22, 1.0)
X, Y, LENGTH, CHAMFER = 0.008, 0.005, 0.050, 0.0005
HOLE_X, HOLE_Y, EDGE, HEIGHT = 0.00811, 0.00508, 0.0125, 0.009
PEG_MASS, BLOCK_MASS = 0.0040, 0.0021

PEG = Part(
    name="peg",
    shapes=(
        block((-X, X), (-Y, Y), (0.001, LENGTH), condim=4, color=BLUE),
        block((-X + CHAMFER, X - CHAMFER), (-Y + CHAMFER, Y - CHAMFER), (0.0, 0.002), color=BLUE),
    ),
    mass=PEG_MASS,
    inertia=(
        PEG_MASS / 12 * (0.010**2 + LENGTH**2),
        PEG_MASS / 12 * (0.016**2 + LENGTH**2),
        PEG_MASS / 12 * (0.016**2 + 0.010**2),
    ),
    centre=(0.0, 0.0, LENGTH / 2),
    start=(np.array([0.4, -0.05, 0.0]), np.eye(3)),
    force=0.001,
    torque=0.001,
)
HOLE = Part(
    name="hole",
    shapes=(
        block((HOLE_X, EDGE), (-EDGE, EDGE), (0.0, HEIGHT), color=AMBER),
        block((-EDGE, -HOLE_X), (-EDGE, EDGE), (0.0, HEIGHT), color=AMBER),
        block((-HOLE_X, HOLE_X), (HOLE_Y, EDGE), (0.0, HEIGHT), color=AMBER),
        block((-HOLE_X, HOLE_X), (-EDGE, -HOLE_Y), (0.0, HEIGHT), color=AMBER),
    ),
    mass=BLOCK_MASS,
    inertia=(
        BLOCK_MASS / 12 * (0.025**2 + HEIGHT**2),
        BLOCK_MASS / 12 * (0.025**2 + HEIGHT**2),
        BLOCK_MASS / 12 * 2 * 0.025**2,
    ),
    centre=(0.0, 0.0, HEIGHT / 2),
    start=(np.array([0.4, 0.05, 0.0]), np.eye(3)),
    force=0.001,
    torque=0.001,
)

PEG_IN_HOLE = Furniture(
    name="peg_in_hole",
    parts=(PEG, HOLE),
    # Flush with the bottom of the block: at least 4 of its 9 mm are in.
    pairs=(Pair(first="peg", second="hole", poses=(Pose(pos=(0.0, 0.0, 0.0)),)),),
    max_episode_steps=200,  # as ResiP's code has it; IN-RIL's table says 400
    gripper_width=0.07,
    part_friction=0.25,
    physics_hz=300.0,  # parts of a few grams: at 240 some simulations blow up under random actions
    impedance=(0.95, 0.99, 0.0005, 0.5, 2.0),
    scatter_m=0.01,
    scatter_deg=45.0,
)
