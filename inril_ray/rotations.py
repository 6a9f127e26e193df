"""Rotations in batches, for numpy arrays and torch tensors alike.

Quaternions are (x, y, z, w) here, as FurnitureBench and its data sets have them; MuJoCo's are (w, x, y, z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

SMALL = 1e-6
"""Angles and half-turns that are this near get the series of their formula, radians."""


def matrix_of_quat(quat: Any) -> Any:
    """Return rotation matrices [..., 3, 3] of unit quaternions [..., 4]."""
    xp = array_namespace(quat)
    x, y, z, w = (quat[..., i] for i in range(4))
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return xp.reshape(xp.stack(rows, axis=-1), (*quat.shape[:-1], 3, 3))


def quat_of_matrix(matrix: Any) -> Any:
    """Return unit quaternions [..., 4] with w >= 0 of rotation matrices [..., 3, 3].

    Source: Shepperd 1978; of the four equivalent forms, the one that divides by the largest component.
    """
    xp = array_namespace(matrix)
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    # Four times the squares and products of the components: K = 4 q q^T, whose largest column is taken.
    off = {
        (0, 1): m[0][1] + m[1][0], (0, 2): m[0][2] + m[2][0], (1, 2): m[1][2] + m[2][1],
        (0, 3): m[2][1] - m[1][2], (1, 3): m[0][2] - m[2][0], (2, 3): m[1][0] - m[0][1],
    }  # fmt: skip
    diagonal = [1 + 2 * m[i][i] - trace for i in range(3)] + [1 + trace]
    columns = xp.stack(
        [xp.stack([diagonal[i] if i == j else off[min(i, j), max(i, j)] for i in range(4)], axis=-1) for j in range(4)],
        axis=-2,
    )
    best = xp.argmax(xp.stack(diagonal, axis=-1), axis=-1)
    choices = xp.arange(4) if isinstance(matrix, np.ndarray) else xp.arange(4, device=matrix.device)
    chosen = xp.astype(best[..., None] == choices, matrix.dtype)
    quat = xp.sum(columns * chosen[..., None], axis=-2)
    quat = quat / xp.linalg.vector_norm(quat, axis=-1, keepdims=True)
    return xp.where(quat[..., 3:] < 0, -quat, quat)


def matrix_of_6d(six: Any) -> Any:
    """Return rotation matrices [..., 3, 3] of two rows [..., 6] that need be neither unit nor orthogonal.

    Source: Zhou et al. 2019, with rows, as in FurnitureBench's data.
    """
    xp = array_namespace(six)
    first, second = six[..., :3], six[..., 3:]
    first = _unit(first)
    second = _unit(second - xp.sum(first * second, axis=-1, keepdims=True) * first)
    return xp.stack([first, second, xp.linalg.cross(first, second, axis=-1)], axis=-2)


def six_of_matrix(matrix: Any) -> Any:
    """Return the first two rows [..., 6] of rotation matrices [..., 3, 3]."""
    xp = array_namespace(matrix)
    return xp.reshape(matrix[..., :2, :], (*matrix.shape[:-2], 6))


def rotation_vector(matrix: Any) -> Any:
    """Return axis times angle [..., 3], at most pi long, of rotation matrices [..., 3, 3]."""
    xp = array_namespace(matrix)
    quat = quat_of_matrix(matrix)
    axis, w = quat[..., :3], quat[..., 3:]
    sine = xp.linalg.vector_norm(axis, axis=-1, keepdims=True)
    angle = 2 * xp.atan2(sine, w)
    scale = xp.where(sine > SMALL, angle / xp.where(sine > SMALL, sine, xp.ones_like(sine)), 2 * xp.ones_like(sine))
    return axis * scale


def matrix_of_vector(vector: Any) -> Any:
    """Return rotation matrices [..., 3, 3] of axis times angle [..., 3]."""
    xp = array_namespace(vector)
    angle = xp.linalg.vector_norm(vector, axis=-1, keepdims=True)
    small = angle < SMALL
    safe = xp.where(small, xp.ones_like(angle), angle)
    half = xp.where(small, 0.5 * xp.ones_like(angle), xp.sin(0.5 * safe) / safe)
    return matrix_of_quat(xp.concat([vector * half, xp.cos(0.5 * angle)], axis=-1))


def multiply_quats(first: Any, second: Any) -> Any:
    """Return the quaternions [..., 4] of ``second`` followed by ``first``."""
    xp = array_namespace(first, second)
    a, b, c, d = (first[..., i] for i in range(4))
    e, f, g, h = (second[..., i] for i in range(4))
    parts = [
        d * e + a * h + b * g - c * f,
        d * f - a * g + b * h + c * e,
        d * g + a * f - b * e + c * h,
        d * h - a * e - b * f - c * g,
    ]
    return xp.stack(parts, axis=-1)


def _unit(vector: Any) -> Any:
    """Return vectors at length 1; of length 0, they stay so, and what is made of them is no rotation but finite."""
    xp = array_namespace(vector)
    length = xp.linalg.vector_norm(vector, axis=-1, keepdims=True)
    return vector / xp.where(length > 0, length, xp.ones_like(length))
