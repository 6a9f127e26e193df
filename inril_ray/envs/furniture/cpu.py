"""The model on CPU cores: one ``MjData`` for every environment, stepped by threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inril_ray.envs.furniture.model import OBSTACLE_POS, addresses, compile_model
from inril_ray.envs.furniture.spec import CONTROL_HZ, Furniture
from inril_ray.envs.rendering import import_mujoco
from inril_ray.types import BoolArray, FloatArray, InrilError

CHUNKS_PER_THREAD = 4
"""Environments differ in contacts, so threads take several shares each."""


class CpuPhysics:
    """Persistent simulation states. Results do not depend on the number of threads, bit for bit.

    Args:
        furniture: the task.
        num_envs: B.
        threads: that step environments.
    """

    def __init__(self, furniture: Furniture, num_envs: int, threads: int) -> None:
        self._mujoco = import_mujoco()
        self.model = compile_model(furniture)
        self.where = addresses(self.model, furniture)
        self._data = [self._mujoco.MjData(self.model) for _ in range(num_envs)]
        self._substeps = round(furniture.physics_hz / CONTROL_HZ)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._threads = threads
        model = self.model
        self.qpos = np.tile(model.qpos0, (num_envs, 1))
        """[B, nq] after the last step; written by :meth:`write`."""
        self.qvel = np.zeros((num_envs, model.nv))
        self.active_equalities = np.tile(model.eq_active0.astype(bool), (num_envs, 1))
        """[B, neq]"""
        self.obstacle_start = OBSTACLE_POS
        self.obstacle = np.tile(OBSTACLE_POS, (num_envs, 1))
        """[B, 3] position of the obstacle's front."""
        self._state_kind = int(self._mujoco.mjtState.mjSTATE_INTEGRATION)

    def array(self, value: Any) -> Any:
        """Return an array as this backend computes with it: floats in double precision."""
        return value.astype(np.float64) if np.issubdtype(value.dtype, np.floating) else value

    def numpy(self, value: Any) -> Any:
        """Return one of this backend's arrays as a numpy array."""
        return value

    def begin(self, mask: BoolArray) -> None:
        """Forget everything about the environments of ``mask`` and start them from the arrays."""
        for i in np.flatnonzero(mask):
            self._mujoco.mj_resetData(self.model, self._data[i])
        self.write(mask)

    def write(self, mask: BoolArray) -> None:
        """Bring the arrays into the simulation, for the environments of ``mask``."""
        for i in np.flatnonzero(mask):
            data = self._data[i]
            data.qpos[:], data.qvel[:] = self.qpos[i], self.qvel[i]
            data.eq_active[:], data.mocap_pos[0] = self.active_equalities[i], self.obstacle[i]

    def step(self, controls: FloatArray, active: BoolArray) -> None:
        """Execute one control step in the environments where ``active``.

        Args:
            controls: [B, 9] inputs of the actuators, held.
            active: [B].

        Raises:
            InrilError: MuJoCo ran out of memory for contacts or constraints and would have dropped some.
        """
        chosen = np.flatnonzero(active)
        if self._pool is None:
            self._work(chosen, controls)
        else:
            shares = np.array_split(chosen, min(len(chosen), self._threads * CHUNKS_PER_THREAD) or 1)
            list(self._pool.map(lambda share: self._work(share, controls), shares))

    def _work(self, chosen: Any, controls: FloatArray) -> None:
        mujoco, model = self._mujoco, self.model
        kind = mujoco.mjtWarning
        full = int(kind.mjWARN_CONTACTFULL), int(kind.mjWARN_CNSTRFULL)
        bad = int(kind.mjWARN_BADQPOS), int(kind.mjWARN_BADQVEL), int(kind.mjWARN_BADQACC)
        for i in chosen:
            data = self._data[i]
            data.ctrl[:] = controls[i]
            mujoco.mj_step(model, data, nstep=self._substeps)
            self.qpos[i], self.qvel[i] = data.qpos, data.qvel
            if any(data.warning[w].number for w in bad):
                self.qpos[i] = np.nan  # MuJoCo has put it back to its model's start by itself
            if any(data.warning[w].number for w in full):
                raise InrilError(
                    f"MuJoCo ran out of memory for the contacts of environment {i}; its results are wrong."
                )

    def get_state(self) -> FloatArray:
        """Return everything that the next step depends on, [B, S]."""
        mujoco, model = self._mujoco, self.model
        state = np.empty((len(self._data), mujoco.mj_stateSize(model, self._state_kind)))
        for row, data in zip(state, self._data, strict=True):
            mujoco.mj_getState(model, data, row, self._state_kind)
        return state

    def set_state(self, state: FloatArray) -> None:
        """Put back what :meth:`get_state` returned."""
        for i, (row, data) in enumerate(zip(state, self._data, strict=True)):
            self._mujoco.mj_setState(self.model, data, row, self._state_kind)
            self.qpos[i], self.qvel[i] = data.qpos, data.qvel
            self.active_equalities[i], self.obstacle[i] = data.eq_active, data.mocap_pos[0]

    def versions(self) -> dict[str, str]:
        """Return MuJoCo's release, for the records."""
        return {"mujoco": self._mujoco.__version__}

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
