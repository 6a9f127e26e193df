"""Forward and inverse kinematics of the arm in batches, for numpy arrays and torch tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from inril_ray.envs.furniture.robot import EE_OFFSET, LINKS
from inril_ray.rotations import matrix_of_quat, rotation_vector

LINK_POS = np.array([link.pos for link in LINKS])
LINK_MATRIX = np.stack([matrix_of_quat(np.array([*link.quat[1:], link.quat[0]])) for link in LINKS])
REGULARIZATION = 1e-8
"""Added to J J^T: the least-norm solution stays finite where the arm is stretched."""


def forward(joints: Any) -> tuple[Any, Any, Any]:
    """Return the pose of the point between the finger tips and its Jacobian.

    Args:
        joints: [B, 7] radians.

    Returns:
        positions [B, 3], rotation matrices [B, 3, 3], Jacobians [B, 6, 7] (linear above angular), base frame.
    """
    xp = array_namespace(joints)
    like = {"dtype": joints.dtype, **_device(joints)}
    offsets, turns = constant(LINK_POS, joints), constant(LINK_MATRIX, joints)
    batch = joints.shape[0]
    matrix = xp.broadcast_to(xp.eye(3, **like), (batch, 3, 3))
    pos = xp.zeros((batch, 3), **like)
    cos, sin = xp.cos(joints), xp.sin(joints)
    anchors, axes = [], []
    for i in range(7):
        pos = pos + matrix @ offsets[i]
        matrix = matrix @ turns[i]
        anchors.append(pos)
        axes.append(matrix[:, :, 2])
        x, y = matrix[:, :, 0], matrix[:, :, 1]
        c, s = cos[:, i, None], sin[:, i, None]
        matrix = xp.stack([c * x + s * y, c * y - s * x, matrix[:, :, 2]], axis=-1)
    pos = pos + matrix @ offsets[7]
    matrix = matrix @ turns[7]
    pos = pos + EE_OFFSET * matrix[:, :, 2]
    axis, lever = xp.stack(axes, axis=1), pos[:, None] - xp.stack(anchors, axis=1)
    jacobian = xp.concat([xp.linalg.cross(axis, lever, axis=-1), axis], axis=-1)
    return pos, matrix, xp.matrix_transpose(jacobian)


def joint_targets(joints: Any, pos: Any, matrix: Any) -> Any:
    """Return joint angles [B, 7] one least-norm step towards poses: FurnitureBench's ``diffik`` controller.

    Args:
        joints: [B, 7] now.
        pos: [B, 3] wanted.
        matrix: [B, 3, 3] wanted.
    """
    xp = array_namespace(joints)
    now, turned, jacobian = forward(joints)
    error = xp.concat([pos - now, rotation_vector(matrix @ xp.matrix_transpose(turned))], axis=-1)
    square = jacobian @ xp.matrix_transpose(jacobian)
    square = square + REGULARIZATION * xp.eye(6, dtype=joints.dtype, **_device(joints))
    return joints + (xp.matrix_transpose(jacobian) @ xp.linalg.solve(square, error[..., None]))[..., 0]


def constant(value: np.ndarray, like: Any) -> Any:
    """Return an array as one of the kind, precision and device of another."""
    if isinstance(like, np.ndarray):
        return value.astype(like.dtype)
    return _on_device(value.tobytes(), value.shape, like.dtype, like.device)


@lru_cache
def _on_device(doubles: bytes, shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
    """Copy a constant to a device once: a copy from the host waits for everything that the device has to do."""
    import torch

    return torch.asarray(np.frombuffer(doubles).reshape(shape), dtype=dtype, device=device, copy=True)


def _device(array: Any) -> dict[str, Any]:
    return {} if isinstance(array, np.ndarray) else {"device": array.device}
