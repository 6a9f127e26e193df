"""The Franka Panda in numbers: links, inertias, limits, and a body of boxes and capsules.

Inertias: Gaz et al. 2019, as in the Panda description of franka_ros (Apache-2.0). Shapes were fitted to its meshes, but
for the fingers, which are boxes there too. Not taken from a URDF: importing one sets limits on the actuators' forces,
and a clamped actuator loses the implicit derivative of its damping, so the wrist chatters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inril_ray.envs.furniture.geometry import Shape, Vector, block, capsule

WHITE, DARK = (0.86, 0.86, 0.89, 1.0), (0.32, 0.32, 0.36, 1.0)
RESET_JOINTS = np.array([-0.02630888, 0.3758795, 0.12485036, -2.1383357, -0.09431414, 2.49649072, 0.01921718])
STIFFNESS, DAMPING = 1000.0, 200.0
"""Of the joint drives, N m / rad and N m s / rad. They are slow, and the demonstrations depend on it."""
ARMATURE = 1.0
"""kg m^2. MuJoCo finds contact forces without the implicit damping; with the reference's 0.01 every control step would
fling what is grasped. With 1.0 the arm is where it would be within 2 mrad at the end of a step."""
FINGER_FORCE = 13.0
EE_OFFSET = 0.103399
"""Metres from the hand to the point between the finger tips."""
HALF_TURN = 0.70710678118654752


@dataclass(frozen=True, kw_only=True)
class Link:
    """A body of the arm, at the end of a joint about its z axis."""

    name: str
    pos: Vector
    quat: tuple[float, float, float, float]
    """(w, x, y, z), in the parent's frame."""
    mass: float
    centre: Vector
    inertia: Vector
    """Principal moments, kg m^2."""
    inertia_quat: tuple[float, float, float, float]
    limits: tuple[float, float] | None = None
    """Of the joint, radians; None for the hand, which has none."""
    shapes: tuple[Shape, ...] = ()


DOWN, UP, LEVEL = (HALF_TURN, -HALF_TURN, 0.0, 0.0), (HALF_TURN, HALF_TURN, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
LINKS = (
    Link(
        name="link1", pos=(0, 0, 0.333), quat=LEVEL, limits=(-2.8973, 2.8973), mass=4.970684,
        centre=(0.003875, 0.002081, -0.04762), inertia=(0.707137, 0.703435, 0.008525),
        inertia_quat=(0.711549, 0.006344, -0.013112, 0.702485),
    ),
    Link(
        name="link2", pos=(0, 0, 0), quat=DOWN, limits=(-1.7628, 1.7628), mass=0.646926,
        centre=(-0.003141, -0.02872, 0.003495), inertia=(0.031033, 0.0283, 0.002734),
        inertia_quat=(-0.168175, 0.828366, -0.122878, 0.520027),
    ),
    Link(
        name="link3", pos=(0, -0.316, 0), quat=UP, limits=(-2.8973, 2.8973), mass=3.228604,
        centre=(0.027518, 0.039252, -0.066502), inertia=(0.041501, 0.041479, 0.001246),
        inertia_quat=(0.662769, -0.006783, 0.252053, 0.705096),
    ),
    Link(
        name="link4", pos=(0.0825, 0, 0), quat=UP, limits=(-3.0718, -0.0698), mass=3.587895,
        centre=(-0.05317, 0.104419, 0.027454), inertia=(0.03496, 0.028148, 0.01062),
        inertia_quat=(0.65058, 0.529822, -0.096203, 0.535518),
    ),
    Link(
        name="link5", pos=(-0.0825, 0.384, 0), quat=DOWN, limits=(-2.8973, 2.8973), mass=1.225946,
        centre=(-0.011953, 0.041065, -0.038437), inertia=(0.036763, 0.028853, 0.008034),
        inertia_quat=(0.987313, -0.012195, 0.071919, -0.141037),
        shapes=(capsule((0, 0, -0.205), (0, 0.07, -0.01), 0.055, color=WHITE),),
    ),
    Link(
        name="link6", pos=(0, 0, 0), quat=UP, limits=(-0.0175, 3.7525), mass=1.666555,
        centre=(0.060149, -0.014117, -0.010517), inertia=(0.005843, 0.00431, 0.001598),
        inertia_quat=(0.101075, 0.59332, 0.028723, 0.798079),
        shapes=(capsule((0, 0, 0), (0.085, 0.02, 0.005), 0.047, color=WHITE),),
    ),
    Link(
        name="link7", pos=(0.088, 0, 0), quat=UP, limits=(-2.8973, 2.8973), mass=0.735522,
        centre=(0.010517, -0.004252, 0.061597), inertia=(0.012734, 0.010105, 0.004518),
        inertia_quat=(0.992939, -0.076204, 0.07336, -0.053707),
        shapes=(
            block((-0.044, 0.044), (-0.044, 0.044), (0.052, 0.107), color=WHITE),
            block((0.025, 0.080), (0.025, 0.080), (0.060, 0.107), color=WHITE),
        ),
    ),
    Link(
        name="hand", pos=(0, 0, 0.107), quat=(0.92387953251128674, 0, 0, -0.38268343236508978), mass=0.70885,
        centre=(0.0, -0.000615, 0.02393), inertia=(0.002406, 0.002178, 0.000482),
        inertia_quat=(0.697945, 0.716151, -0.000242, 0.000085),
        shapes=(block((-0.0316, 0.0316), (-0.102, 0.102), (-0.024, 0.066), color=WHITE),),
    ),
)  # fmt: skip
FINGER_POS, FINGER_MASS, FINGER_CENTRE = (0.0, 0.0, 0.0584), 0.015135, (0.0, 0.0139, 0.0250)
FINGER_INERTIA = (5e-6, 5e-6, 1e-6)
_TILT = (0.96592582628906831, 0.25881904510252074, 0.0, 0.0)
FINGER_SHAPES = (
    Shape(kind="box", size=(0.011, 0.0075, 0.010), pos=(0, 0.0185, 0.011), condim=4, color=DARK),
    Shape(kind="box", size=(0.011, 0.0044, 0.0019), pos=(0, 0.0068, 0.0022), condim=4, color=DARK),
    Shape(kind="box", size=(0.00875, 0.0035, 0.01175), pos=(0, 0.0159, 0.02835), quat=_TILT, condim=4, color=DARK),
    Shape(kind="box", size=(0.00875, 0.0076, 0.00925), pos=(0, 0.00758, 0.04525), condim=4, color=DARK),
)
"""Of the finger on the +y side; the other one is its mirror image."""
