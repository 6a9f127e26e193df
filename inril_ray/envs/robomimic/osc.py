"""Operational-space control, compiled: the arithmetic of robosuite 1.5.2's OSC_POSE controller.

Source: Khatib 1987; robosuite 1.5.2 ``controllers/parts/arm/osc.py`` and ``utils/control_utils.py``. Differs: the
inverses are taken by Cholesky factorisation instead of LAPACK's ``inv`` and ``pinv`` (the matrices are symmetric and
positive definite), which agrees to rounding and is several times faster for matrices of this size.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

NULLSPACE_KP = 10.0


@njit(cache=True, error_model="numpy")
def _cholesky(a, n):  # noqa: ANN001, ANN202
    """Factor the leading n x n block of ``a`` in place (lower triangle)."""
    for j in range(n):
        pivot = a[j, j]
        for k in range(j):
            pivot -= a[j, k] * a[j, k]
        pivot = math.sqrt(pivot)
        a[j, j] = pivot
        for i in range(j + 1, n):
            t = a[i, j]
            for k in range(j):
                t -= a[i, k] * a[j, k]
            a[i, j] = t / pivot


@njit(cache=True, error_model="numpy")
def _solve(lower, n, b, x):  # noqa: ANN001, ANN202
    """Solve ``lower lower^T x = b``."""
    for i in range(n):
        t = b[i]
        for k in range(i):
            t -= lower[i, k] * x[k]
        x[i] = t / lower[i, i]
    for i in range(n - 1, -1, -1):
        t = x[i]
        for k in range(i + 1, n):
            t -= lower[k, i] * x[k]
        x[i] = t / lower[i, i]


@njit(cache=True, error_model="numpy")
def goal_rotation(rotvec, current):  # noqa: ANN001, ANN201
    """Rotate ``current`` [3, 3] by the axis-angle vector ``rotvec`` [3], with the reference's float32 rounding.

    Robosuite passes the quaternion of the requested rotation through float32; leaving that out would be visible in
    the trajectories.
    """
    angle = math.sqrt(rotvec[0] ** 2 + rotvec[1] ** 2 + rotvec[2] ** 2)
    q = np.zeros(4)
    if angle == 0.0:
        q[0] = 1.0
    else:
        s = math.sin(angle / 2.0)
        q[0] = math.cos(angle / 2.0)
        for k in range(3):
            q[1 + k] = (rotvec[k] / angle) * s
    f = q.astype(np.float32)
    f *= math.sqrt(2.0 / np.dot(f, f))
    p = np.outer(f, f)
    r = np.empty((3, 3))
    r[0, 0] = 1.0 - p[2, 2] - p[3, 3]
    r[0, 1] = p[1, 2] - p[3, 0]
    r[0, 2] = p[1, 3] + p[2, 0]
    r[1, 0] = p[1, 2] + p[3, 0]
    r[1, 1] = 1.0 - p[1, 1] - p[3, 3]
    r[1, 2] = p[2, 3] - p[1, 0]
    r[2, 0] = p[1, 3] - p[2, 0]
    r[2, 1] = p[2, 3] + p[1, 0]
    r[2, 2] = 1.0 - p[1, 1] - p[2, 2]
    return np.dot(r, current)


@njit(cache=True, error_model="numpy")
def osc_torques(  # noqa: ANN201
    inertia,  # noqa: ANN001
    inertia_index,  # noqa: ANN001
    jac_pos,  # noqa: ANN001
    jac_rot,  # noqa: ANN001
    pos,  # noqa: ANN001
    rot,  # noqa: ANN001
    goal_pos,  # noqa: ANN001
    goal_rot,  # noqa: ANN001
    qpos,  # noqa: ANN001
    qvel,  # noqa: ANN001
    rest,  # noqa: ANN001
    bias,  # noqa: ANN001
    dofs,  # noqa: ANN001
    qadr,  # noqa: ANN001
    kp,  # noqa: ANN001
    low,  # noqa: ANN001
    high,  # noqa: ANN001
    actuators,  # noqa: ANN001
    ctrl,  # noqa: ANN001
):
    """Write the clipped joint torques of one arm into ``ctrl``.

    Args:
        inertia: MuJoCo's sparse joint-space inertia ``qM`` of the whole model.
        inertia_index: [n, n] where the entries of the arm are in it.
        jac_pos: [3, nv] translational Jacobian of the end effector.
        jac_rot: [3, nv] rotational Jacobian.
        pos: [3] end-effector position, metres.
        rot: [3, 3] end-effector rotation.
        goal_pos: [3] goal, metres.
        goal_rot: [3, 3] goal.
        qpos: [nq] positions of the whole model.
        qvel: [nv] velocities of the whole model.
        rest: [n] joint positions that the null space is drawn to, radians.
        bias: [nv] gravity and Coriolis forces.
        dofs: [n] velocity indices of the arm.
        qadr: [n] position indices of the arm.
        kp: stiffness; damping is critical.
        low: [n] torque limits.
        high: [n] torque limits.
        actuators: [n] indices into ``ctrl``.
        ctrl: [nu] written in place.
    """
    n = dofs.shape[0]
    kd = 2.0 * math.sqrt(kp)
    jac = np.empty((6, n))
    mass = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            mass[i, j] = inertia[inertia_index[i, j]]
    vel = np.zeros(6)
    for r in range(3):
        for c in range(jac_pos.shape[1]):
            vel[r] += jac_pos[r, c] * qvel[c]
            vel[3 + r] += jac_rot[r, c] * qvel[c]
        for j in range(n):
            jac[r, j] = jac_pos[r, dofs[j]]
            jac[3 + r, j] = jac_rot[r, dofs[j]]
    error = np.zeros(3)
    for k in range(3):
        error[0] += rot[1, k] * goal_rot[2, k] - rot[2, k] * goal_rot[1, k]
        error[1] += rot[2, k] * goal_rot[0, k] - rot[0, k] * goal_rot[2, k]
        error[2] += rot[0, k] * goal_rot[1, k] - rot[1, k] * goal_rot[0, k]
    force = np.empty(6)
    for r in range(3):
        force[r] = kp * (goal_pos[r] - pos[r]) - kd * vel[r]
        force[3 + r] = kp * 0.5 * error[r] - kd * vel[3 + r]
    # With M = L L^T and Y = L^-1 J^T: J M^-1 J^T = Y^T Y.
    lower = mass.copy()
    _cholesky(lower, n)
    y = np.empty((n, 6))
    for c in range(6):
        for i in range(n):
            t = jac[c, i]
            for k in range(i):
                t -= lower[i, k] * y[k, c]
            y[i, c] = t / lower[i, i]
    full = np.zeros((6, 6))
    for a in range(6):
        for b in range(a + 1):
            t = 0.0
            for i in range(n):
                t += y[i, a] * y[i, b]
            full[a, b] = t
            full[b, a] = t
    linear, angular = full[:3, :3].copy(), full[3:, 3:].copy()
    _cholesky(linear, 3)
    _cholesky(angular, 3)
    _cholesky(full, 6)
    wrench = np.empty(6)
    _solve(linear, 3, force[:3], wrench[:3])
    _solve(angular, 3, force[3:], wrench[3:])
    kv = 2.0 * math.sqrt(NULLSPACE_KP)
    accel = np.empty(n)
    for j in range(n):
        accel[j] = NULLSPACE_KP * (rest[j] - qpos[qadr[j]]) - kv * qvel[dofs[j]]
    projected = np.zeros(6)
    for r in range(6):
        for j in range(n):
            projected[r] += jac[r, j] * accel[j]
    null = np.empty(6)
    _solve(full, 6, projected, null)
    for j in range(n):
        t = bias[dofs[j]]
        for r in range(6):
            t += jac[r, j] * (wrench[r] - null[r])
        for i in range(n):
            t += mass[j, i] * accel[i]
        ctrl[actuators[j]] = min(max(t, low[j]), high[j])
