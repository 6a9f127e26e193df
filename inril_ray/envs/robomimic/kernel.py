"""The same physics in one compiled loop over the whole batch: MuJoCo's C functions called by address, no interpreter.

Faster than the bindings, since 25 physics steps with a controller in each cost no Python at all, and free of the
interpreter's lock. In exchange MuJoCo's errors are not caught here: a fatal one ends the process. The layout that this
rests on (what the bindings call an address, and MuJoCo's C functions) is checked against one release of MuJoCo; with
another, the bindings are used instead.
"""

from __future__ import annotations

import glob
import os
import warnings
from typing import Any

import mujoco
import numpy as np
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.extending import intrinsic

from inril_ray.envs.robomimic.osc import goal_rotation, osc_torques
from inril_ray.envs.robomimic.physics import FINGER_RAMP, FINGER_STEP, Physics
from inril_ray.envs.robomimic.tasks import OSC_KP, OSC_OUTPUT, SUBSTEPS
from inril_ray.types import BoolArray, FloatArray, InrilError

CHECKED_RELEASE = "3.8.1"
"""Release of MuJoCo that the addresses were checked against."""


def kernel_or_fallback() -> type[Physics]:
    """Return the compiled stepper, or with a warning the one on MuJoCo's bindings where this release is not known."""
    if mujoco.__version__ == CHECKED_RELEASE:
        return KernelPhysics
    warnings.warn(
        f"env.backend = 'kernel' was checked with MuJoCo {CHECKED_RELEASE}, found {mujoco.__version__}: "
        "using 'fast' instead, which gives the same results.",
        stacklevel=2,
    )
    return Physics


def _load_symbols() -> None:
    """Make MuJoCo's C functions known to the compiler by name, so that compiled code can be kept on disk."""
    import llvmlite.binding

    folder = os.path.dirname(mujoco.__file__)
    inside = glob.escape(folder)
    found = glob.glob(os.path.join(inside, "libmujoco*")) or glob.glob(os.path.join(inside, "mujoco.dll"))
    if not found:
        raise InrilError(f"env.backend = 'kernel': MuJoCo's library is not in {folder}. Use env.backend=fast.")
    llvmlite.binding.load_library_permanently(found[0])


if mujoco.__version__ == CHECKED_RELEASE:  # with another, nothing below is called
    _load_symbols()
_step1 = types.ExternalFunction("mj_step1", types.void(types.intp, types.intp))
_step2 = types.ExternalFunction("mj_step2", types.void(types.intp, types.intp))
_jac_site = types.ExternalFunction("mj_jacSite", types.void(types.intp, types.intp, types.intp, types.intp, types.intc))

MODEL, DATA, CTRL, QPOS, QVEL, BIAS, INERTIA, SITE_POS, SITE_ROT = range(9)
"""Columns of the table of addresses."""


@intrinsic
def _pointer(context, address):  # noqa: ANN001, ANN202, ARG001
    """Turn an integer into a pointer to doubles."""
    signature = types.CPointer(types.float64)(types.intp)

    def generate(target, builder, _, arguments):  # noqa: ANN001, ANN202
        return builder.inttoptr(arguments[0], target.get_value_type(types.CPointer(types.float64)))

    return signature, generate


@njit(nogil=True, cache=True, error_model="numpy")
def _vector(address, size):  # noqa: ANN001, ANN202
    """View MuJoCo's memory as an array [size]."""
    return carray(_pointer(address), (size,))  # pyright: ignore[reportCallIssue]


@njit(nogil=True, cache=True, error_model="numpy")
def _step_batch(  # noqa: ANN202
    active,  # noqa: ANN001
    addresses,  # noqa: ANN001
    sizes,  # noqa: ANN001
    actions,  # noqa: ANN001
    output,  # noqa: ANN001
    ramps,  # noqa: ANN001
    holds,  # noqa: ANN001
    sites,  # noqa: ANN001
    dofs,  # noqa: ANN001
    qadr,  # noqa: ANN001
    actuators,  # noqa: ANN001
    fingers,  # noqa: ANN001
    low,  # noqa: ANN001
    high,  # noqa: ANN001
    finger_mid,  # noqa: ANN001
    finger_half,  # noqa: ANN001
    inertia_index,  # noqa: ANN001
    rest,  # noqa: ANN001
    command,  # noqa: ANN001
    goal_rot,  # noqa: ANN001
    first_inertia,  # noqa: ANN001
    is_first,  # noqa: ANN001
    jac,  # noqa: ANN001
    jac_address,  # noqa: ANN001
    kp,  # noqa: ANN001
    num_substeps,  # noqa: ANN001
    finger_step,  # noqa: ANN001
    finger_ramp,  # noqa: ANN001
):
    """Execute one control step in the environments of ``active``; see ``Physics._step_one``, line by line."""
    nq, nv, nu, nm, nsite = sizes
    num_arms = len(sites)
    goal_pos = np.empty((num_arms, 3))
    for i in active:
        model, data = addresses[i, MODEL], addresses[i, DATA]
        ctrl, qpos = _vector(addresses[i, CTRL], nu), _vector(addresses[i, QPOS], nq)
        qvel, bias = _vector(addresses[i, QVEL], nv), _vector(addresses[i, BIAS], nv)
        inertia = _vector(addresses[i, INERTIA], nm)
        site_pos = _vector(addresses[i, SITE_POS], nsite * 3).reshape((nsite, 3))
        site_rot = _vector(addresses[i, SITE_ROT], nsite * 9).reshape((nsite, 3, 3))
        for substep in range(num_substeps):
            _step1(model, data)
            for arm in range(num_arms):
                pos, rot, act = site_pos[sites[arm]], site_rot[sites[arm]], actions[i, arm]
                if substep == 0:
                    turn = act[3:6] * output[3:]
                    if turn[0] != 0.0 or turn[1] != 0.0 or turn[2] != 0.0 or not holds:
                        goal_rot[i, arm] = goal_rotation(turn, rot)
                    for k in range(3):
                        goal_pos[arm, k] = pos[k] + act[k] * output[k]
                if ramps or substep == 0:
                    size = (finger_ramp if ramps else finger_step) * np.sign(act[6])
                    for k in range(2):
                        moved = command[i, arm, k] + (size if k == 1 else -size)
                        command[i, arm, k] = min(max(moved, -1.0), 1.0)
                        ctrl[fingers[arm, k]] = finger_mid[arm, k] + finger_half[arm, k] * command[i, arm, k]
            for arm in range(num_arms):
                _jac_site(model, data, jac_address, jac_address + 24 * nv, sites[arm])
                osc_torques(
                    first_inertia[i] if is_first[i] else inertia,
                    inertia_index[arm],
                    jac[0],
                    jac[1],
                    site_pos[sites[arm]],
                    site_rot[sites[arm]],
                    goal_pos[arm],
                    goal_rot[i, arm],
                    qpos,
                    qvel,
                    rest[i, arm],
                    bias,
                    dofs[arm],
                    qadr[arm],
                    kp,
                    low[arm],
                    high[arm],
                    actuators[arm],
                    ctrl,
                )
            is_first[i] = False
            _step2(model, data)


class KernelPhysics(Physics):
    """:class:`Physics` with the step of the whole batch compiled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        rows = [
            [
                model._address, data._address,
                *(a.ctypes.data for a in (data.ctrl, data.qpos, data.qvel, data.qfrc_bias, data.qM)),
                data.site_xpos.ctypes.data, data.site_xmat.ctypes.data,
            ]
            for model, data in zip(self.models, self.data, strict=True)
        ]  # fmt: skip
        self._addresses = np.array(rows, np.int64)
        model = self.models[0]
        self._sizes = (model.nq, model.nv, model.nu, model.nM, model.nsite)

    def step(self, actions: FloatArray, active: BoolArray) -> None:
        """Execute one control step of 50 ms where ``active`` [B]; ``actions`` [B, 7 R] in [-1, 1]."""
        arms, rules = self.arms, self.rules
        _step_batch(
            np.flatnonzero(active),
            self._addresses,
            self._sizes,
            np.ascontiguousarray(actions, np.float64).reshape(len(actions), arms.num, 7),
            OSC_OUTPUT,
            rules.gripper_ramps,
            rules.zero_rotation_holds_goal,
            self.sites,
            arms.dofs,
            arms.qadr,
            arms.actuators,
            arms.fingers,
            arms.low,
            arms.high,
            arms.finger_mid,
            arms.finger_half,
            self.inertia_index,
            self.rest,
            self.command,
            self.goal_rot,
            self.first_inertia,
            self.is_first,
            self.jac,
            self.jac.ctypes.data,
            OSC_KP,
            SUBSTEPS,
            FINGER_STEP,
            FINGER_RAMP,
        )
