"""What happens between control steps, in batches and without a simulator: observations, assembly, threads, the gripper.

Functions of arrays (numpy or torch) that change nothing they are given. B environments, P parts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from inril_ray.envs.furniture import kinematics
from inril_ray.envs.furniture.kinematics import constant
from inril_ray.envs.furniture.model import Addresses
from inril_ray.envs.furniture.spec import CATCH_HEIGHT, PITCH, TAG_MATRIX, TAG_POS, Furniture, Screw
from inril_ray.rotations import matrix_of_6d, matrix_of_quat, multiply_quats, quat_of_matrix, six_of_matrix

POSITION_TOLERANCE, ROTATION_COSINE = 0.005, 0.94
"""Assembled: each coordinate within 5 mm, each axis within about 20 degrees."""
GRIPPER_DEADBAND = 0.019
CATCH_RADIUS, CATCH_TILT, CATCH_BELOW, CATCH_ABOVE = 0.0025, math.radians(7.0), 0.004, 0.0025
"""A thread catches within these distances of the ledge, metres and radians."""
FIRST_TURN = math.radians(230.0)
"""What is left to turn when a thread catches is this or up to a turn more: there the ridges of the meshes overlap."""
LOST_TURN, LOST_RADIUS, LOST_TILT = math.radians(640.0), 0.010, math.radians(30.0)
"""Beyond these a screw has come out."""


def part_poses(qpos: Any, where: Addresses) -> tuple[Any, Any]:
    """Return positions [B, P, 3] and quaternions (x, y, z, w) [B, P, 4] of all parts, base frame."""
    xp = array_namespace(qpos)
    pos = xp.stack([qpos[:, a : a + 3] for a in where.parts_qpos], axis=1)
    quat = xp.stack([xp.roll(qpos[:, a + 3 : a + 7], -1, axis=-1) for a in where.parts_qpos], axis=1)
    return pos, quat


def observe(qpos: Any, qvel: Any, obstacle: Any, where: Addresses, furniture: Furniture) -> Any:
    """Return observations [B, 16 + 7 P + 7].

    End effector in the base frame: position, first two rows of its rotation, linear and angular velocity; opening of
    the gripper; then position and quaternion (x, y, z, w) of every part and of the obstacle's front, in the tag frame.

    Args:
        qpos: [B, nq].
        qvel: [B, nv].
        obstacle: [B, 3] position of the obstacle's front, base frame.
        where: addresses.
        furniture: the task.
    """
    xp = array_namespace(qpos)
    joints, dofs = list(where.joints), list(where.joint_dofs)
    pos, matrix, jacobian = kinematics.forward(qpos[:, joints[0] : joints[-1] + 1])
    twist = (jacobian @ qvel[:, dofs[0] : dofs[-1] + 1, None])[..., 0]
    width = sum(qpos[:, f : f + 1] for f in where.fingers)
    things, quats = part_poses(qpos, where)
    things = xp.concat([things, obstacle[:, None]], axis=1)
    to_tag = constant(TAG_MATRIX.T, qpos)
    things = (things - constant(TAG_POS, qpos)) @ to_tag.T
    turn = quat_of_matrix(to_tag)
    quats = multiply_quats(xp.broadcast_to(turn, quats.shape), quats)
    # Of the two quaternions of an orientation, the one nearer to that of the start. Parts that lie or stand there have
    # w near 0, where a rule on its sign would turn all four numbers around at random.
    near = xp.sum(quats * constant(furniture.start_quats, qpos), axis=-1, keepdims=True)
    quats = xp.where(near < 0, -quats, quats)
    quats = xp.concat([quats, xp.broadcast_to(turn, (*quats.shape[:1], 1, 4))], axis=1)
    poses = xp.reshape(xp.concat([things, quats], axis=-1), (qpos.shape[0], -1))
    return xp.concat([pos, six_of_matrix(matrix), twist, width, poses], axis=-1)


def relative_pose(pos: Any, quat: Any, first: int, second: int) -> tuple[Any, Any]:
    """Return position [B, 3] and rotation [B, 3, 3] of one part in the frame of another."""
    xp = array_namespace(pos)
    inverse = xp.matrix_transpose(matrix_of_quat(quat[:, first]))
    return (inverse @ (pos[:, second] - pos[:, first])[..., None])[..., 0], inverse @ matrix_of_quat(quat[:, second])


def assembled(pos: Any, quat: Any, furniture: Furniture) -> Any:
    """Return which pairs are in one of their relative poses, [B, pairs].

    Args:
        pos: [B, P, 3].
        quat: [B, P, 4].
        furniture: the task.
    """
    xp = array_namespace(pos)
    index, found = furniture.parts_by_name, []
    for pair in furniture.pairs:
        at, turned = relative_pose(pos, quat, index[pair.first], index[pair.second])
        places = constant(np.array([p.pos for p in pair.poses]), pos)
        ok = xp.all(xp.abs(at[:, None] - places) <= POSITION_TOLERANCE, axis=-1)
        if not pair.position_only:
            wanted = constant(np.stack([p.matrix for p in pair.poses]), pos)
            ok = ok & xp.all(xp.sum(turned[:, None] * wanted, axis=-2) >= ROTATION_COSINE, axis=-1)
        found.append(xp.any(ok, axis=-1))
    return xp.stack(found, axis=-1)


def gripper_opens(command: Any, opens: Any) -> Any:
    """Return whether each gripper opens: a command beyond the dead band decides, others change nothing.

    Args:
        command: [B] above 0 closes.
        opens: [B] what it did before.
    """
    xp = array_namespace(command)
    return xp.where(xp.abs(command) > GRIPPER_DEADBAND, command < 0, opens)


def controls(action: Any, qpos: Any, opens: Any, where: Addresses, finger_force: float) -> Any:
    """Return the actuators' inputs [B, 9]: joint targets that hold for the control step, and finger forces.

    Args:
        action: [B, 10] position, first two rows of the rotation (neither unit nor orthogonal), gripper.
        qpos: [B, nq].
        opens: [B] from :func:`gripper_opens`.
        where: addresses.
        finger_force: N.
    """
    xp = array_namespace(action)
    joints = qpos[:, where.joints[0] : where.joints[-1] + 1]
    target = kinematics.joint_targets(joints, action[:, :3], matrix_of_6d(action[:, 3:9]))
    force = xp.where(opens, finger_force + 0 * action[:, 9], -finger_force + 0 * action[:, 9])
    return xp.concat([target, xp.stack([force, force], axis=-1)], axis=-1)


def thread_events(pos: Any, quat: Any, turned: Any, hole: Any, furniture: Furniture, screw: Screw) -> Any:
    """Decide where a thread catches and where it is lost.

    Args:
        pos: [B, P, 3] parts.
        quat: [B, P, 4].
        turned: [B] what is left to turn where the thread has caught, radians.
        hole: [B] index of the hole that the thread is in, -1 for none.
        furniture: the task.
        screw: which screw.

    Returns:
        caught [B] index of the hole, -1 where nothing catches now; left to turn [B] there; lost [B].
    """
    xp = array_namespace(pos)
    index = furniture.parts_by_name
    at, matrix = relative_pose(pos, quat, index[screw.into], index[screw.part])
    axis = constant(np.asarray(screw.axis), pos)
    places = constant(np.array([p.pos for p in screw.poses]), pos)
    wanted = constant(np.stack([p.matrix for p in screw.poses]), pos)
    outwards = wanted @ axis  # [holes, 3]
    offset = at[:, None] - places
    height = xp.sum(offset * outwards, axis=-1)
    radius = xp.linalg.vector_norm(offset - height[..., None] * outwards, axis=-1)
    cosine = xp.sum((matrix @ axis)[:, None] * outwards, axis=-1)
    # The turn about the axis that is left, in (-pi, pi]: of the rotation from the final pose, in the part's frame.
    relative = xp.matrix_transpose(wanted) @ matrix[:, None]
    skew = xp.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        axis=-1,
    )
    along = xp.sum((relative @ axis) * axis, axis=-1)
    trace = relative[..., 0, 0] + relative[..., 1, 1] + relative[..., 2, 2]
    yaw = xp.atan2(xp.sum(skew * axis, axis=-1), trace - along)
    left = yaw + 2 * math.pi * xp.ceil((FIRST_TURN - yaw) / (2 * math.pi))
    near = (radius < CATCH_RADIUS) & (cosine > math.cos(CATCH_TILT))
    near = near & (height > CATCH_HEIGHT - CATCH_BELOW) & (height < CATCH_HEIGHT + CATCH_ABOVE)
    best = xp.argmin(radius, axis=-1)
    pick = best[:, None] == _arange(len(screw.poses), pos)
    catches = xp.any(near & pick, axis=-1) & (hole < 0)
    caught = xp.where(catches, best, -1 + 0 * best)
    own = xp.where(hole < 0, 0 * hole, hole)[:, None] == _arange(len(screw.poses), pos)
    own_radius = xp.sum(xp.where(own, radius, 0 * radius), axis=-1)
    own_cosine = xp.sum(xp.where(own, cosine, 0 * cosine), axis=-1)
    out = (turned > LOST_TURN) | (own_radius > LOST_RADIUS) | (own_cosine < math.cos(LOST_TILT))
    return caught, xp.sum(xp.where(pick, left, 0 * left), axis=-1), (hole >= 0) & out


def helix_height(turned: float) -> float:
    """Return metres above the final place of a screw that is so far from done, radians."""
    return PITCH * turned / (2 * math.pi)


def _arange(count: int, like: Any) -> Any:
    xp = array_namespace(like)
    return np.arange(count) if isinstance(like, np.ndarray) else xp.arange(count, device=like.device)
