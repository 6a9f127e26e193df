"""Shapes of rigid parts: boxes, capsules and spheres, and what is made of many of them. Metres, part frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inril_ray.rotations import quat_of_matrix
from inril_ray.types import FloatArray

Vector = tuple[float, float, float]
Axis = Literal["y", "z"]
PALE, WOOD, STEEL = (0.93, 0.88, 0.78, 1.0), (0.90, 0.78, 0.60, 1.0), (0.72, 0.75, 0.80, 1.0)
STRAIGHT = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One collision primitive."""

    kind: Literal["box", "capsule", "sphere"]
    size: tuple[float, ...]
    """Half edges of a box; radius and half length (along z) of a capsule; radius of a sphere."""
    pos: Vector = (0.0, 0.0, 0.0)
    quat: tuple[float, float, float, float] = STRAIGHT
    """(w, x, y, z)"""
    condim: int = 3
    """4 where it is grasped: contacts that also resist turning about their normal."""
    color: tuple[float, float, float, float] = WOOD


def euler(x: float, y: float, z: float) -> FloatArray:
    """Return the matrix of rotations about fixed x, then y, then z, radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos((x, y, z)), np.sin((x, y, z))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x, np.float64)


def mujoco_quat(matrix: FloatArray) -> tuple[float, float, float, float]:
    """Return the quaternion (w, x, y, z) of a rotation matrix."""
    x, y, z, w = (float(v) for v in quat_of_matrix(np.asarray(matrix, np.float64)))
    return w, x, y, z


def block(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], *, condim: int = 3, color: tuple = WOOD
) -> Shape:
    """Return the box between bounds on each axis."""
    bounds = (x, y, z)
    return Shape(
        kind="box",
        size=tuple((high - low) / 2 for low, high in bounds),
        pos=tuple((low + high) / 2 for low, high in bounds),  # type: ignore[arg-type]
        condim=condim,
        color=color,
    )


def capsule(start: Vector, end: Vector, radius: float, *, condim: int = 3, color: tuple = WOOD) -> Shape:
    """Return the capsule around the segment between two points."""
    a, b = np.asarray(start), np.asarray(end)
    along = (b - a) / np.linalg.norm(b - a)
    helper = np.eye(3)[np.argmin(np.abs(along))]
    side = np.cross(helper, along)
    side /= np.linalg.norm(side)
    return Shape(
        kind="capsule",
        size=(radius, float(np.linalg.norm(b - a)) / 2),
        pos=tuple((a + b) / 2),
        quat=mujoco_quat(np.stack([side, np.cross(along, side), along], axis=1)),
        condim=condim,
        color=color,
    )


def shaft(tip: float, end: float, radius: float, axis: Axis = "y", **look: object) -> Shape:
    """Return a capsule on an axis whose surface begins at ``tip`` and whose centre line ends at ``end``."""
    at = (lambda h: (0.0, h, 0.0)) if axis == "y" else (lambda h: (0.0, 0.0, h))
    inset = math.copysign(radius, end - tip)
    return capsule(at(tip + inset), at(end), radius, **look)  # type: ignore[arg-type]


def ring(
    inner: tuple[float, float],
    thickness: float,
    span: tuple[float, float],
    sides: int,
    *,
    axis: Axis = "y",
    centre: tuple[float, float] = (0.0, 0.0),
    color: tuple = WOOD,
) -> tuple[Shape, ...]:
    """Return a wall of boxes around an axis, a pipe or a truncated cone.

    Args:
        inner: inner radius at both ends, to the middle of the sides.
        thickness: of the wall.
        span: both ends on the axis.
        sides: boxes.
        axis: which.
        centre: of the ring across the axis: (x, z) for "y", (x, -y) for "z".
        color: red, green, blue, opacity.
    """
    (r0, r1), (low, high) = inner, span
    slope, length = math.atan2(r1 - r0, high - low), math.hypot(r1 - r0, high - low)
    middle = (r0 + r1) / 2 + thickness / 2 / math.cos(slope)
    half_width = (max(r0, r1) + thickness) * math.tan(math.pi / sides)
    shapes = []
    for i in range(sides):
        angle = 2 * math.pi * i / sides
        outwards, up = np.array([math.cos(angle), 0, math.sin(angle)]), np.array([0.0, 1.0, 0.0])
        across = math.cos(slope) * outwards - math.sin(slope) * up
        along = math.sin(slope) * outwards + math.cos(slope) * up
        turn = np.stack([across, along, np.cross(across, along)], axis=1)
        pos = outwards * middle + np.array([centre[0], (low + high) / 2, centre[1]])
        if axis == "z":
            turn, pos = Y_TO_Z @ turn, Y_TO_Z @ pos
        size = (thickness / 2, length / 2, half_width)
        shapes.append(Shape(kind="box", size=size, pos=tuple(pos), quat=mujoco_quat(turn), color=color))
    return tuple(shapes)


def prism(
    apothem: float,
    span: tuple[float, float],
    boxes: int,
    *,
    axis: Axis = "y",
    condim: int = 3,
    color: tuple = WOOD,
) -> tuple[Shape, ...]:
    """Return a prism with 2 x ``boxes`` sides around an axis, of boxes that overlap.

    Args:
        apothem: from the axis to the middle of a side.
        span: both ends on the axis.
        boxes: number of them.
        axis: which.
        condim: see :class:`Shape`.
        color: red, green, blue, opacity.
    """
    shapes = []
    for i in range(boxes):
        turn, pos = euler(0.0, -math.pi * i / boxes, 0.0), np.array([0.0, sum(span) / 2, 0.0])
        if axis == "z":
            turn, pos = Y_TO_Z @ turn, Y_TO_Z @ pos
        size = (apothem, (span[1] - span[0]) / 2, apothem * math.tan(math.pi / (2 * boxes)))
        shapes.append(Shape(kind="box", size=size, pos=tuple(pos), quat=mujoco_quat(turn), condim=condim, color=color))
    return tuple(shapes)


Y_TO_Z = euler(math.pi / 2, 0.0, 0.0)
"""Turns the y axis to z."""
