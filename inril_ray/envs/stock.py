"""Environments of gymnasium's registry behind our contract, one object for each member of the batch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from inril_ray.envs.base import SimVectorEnv, StepOutcome
from inril_ray.envs.rendering import ModelRenderer, import_mujoco
from inril_ray.types import BoolArray, EnvSpec, FloatArray


def plain_env(env_id: str) -> Any:
    """Make a registered environment without gymnasium's wrappers: time limits and checks are our base class's."""
    import_mujoco()  # first: it settles which OpenGL platform MuJoCo will use
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    entry: Any = gymnasium.spec(env_id)
    return load_env_creator(entry.entry_point)(**entry.kwargs)


def camera_of(env: Any) -> Any:
    """Return the camera that an environment's authors chose: the model's ``track``, or else a free one."""
    mujoco = import_mujoco()
    if mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        return "track"
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(env.model, camera)
    for name, value in env.mujoco_renderer.default_cam_config.items():
        setattr(camera, name, value)
    return camera


class StockEnv(SimVectorEnv):
    """Gymnasium's MuJoCo environments, stepped one after the other.

    ``get_state`` holds all that later steps depend on, so a continuation is bit-identical.

    Args:
        spec: dimensions and horizon of the task.
        env_id: name in gymnasium's registry.
        num_envs: environments in the batch.
        seed: seed of the experiment.
        purpose: one of ``PURPOSES``.
        first_env: index of environment 0 among all of the experiment.
        success_key: name of the success flag in the simulator's ``info``. The reward is then that flag, 1 or 0. None
            keeps the simulator's reward and reports no success.
        terminate_on_success: end an episode at the first success.
    """

    packages = ("gymnasium", "mujoco")

    def __init__(
        self,
        spec: EnvSpec,
        env_id: str,
        num_envs: int,
        seed: int,
        purpose: str,
        first_env: int,
        *,
        success_key: str | None = None,
        terminate_on_success: bool = False,
    ) -> None:
        # First: gymnasium closes an environment whose construction failed.
        self._renderers: dict[tuple[int, int, int], ModelRenderer] = {}
        super().__init__(spec, num_envs, seed, purpose, first_env)
        self.env_id = env_id
        self._success_key, self._terminate_on_success = success_key, terminate_on_success
        self._mujoco = import_mujoco()
        self.envs: list[Any] = []
        for _ in range(num_envs):
            self.envs.append(self._make_env(env_id))
        self._camera = camera_of(self.envs[0])
        self._state_kind = int(self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._state_size = self._mujoco.mj_stateSize(self.envs[0].model, self._state_kind)

    def _make_env(self, env_id: str) -> Any:
        return plain_env(env_id)

    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        obs = np.zeros(self.obs.shape)
        for i in np.flatnonzero(mask):
            self.envs[i].np_random = self.episode_rng(i)
            obs[i] = self._flatten(self.envs[i].reset()[0])
        return obs

    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step in the environments where ``active``."""
        clipped = np.clip(actions, self.task_spec.action_low, self.task_spec.action_high)
        obs = self.obs.astype(np.float64)
        reward = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, bool)
        success = np.zeros(self.num_envs, bool)
        for i in np.flatnonzero(active):
            observed, reward[i], terminated[i], _, info = self.envs[i].step(clipped[i])
            obs[i] = self._flatten(observed)
            if self._success_key:
                success[i] = info[self._success_key]
        return StepOutcome(
            obs=obs,
            reward=success.astype(np.float64) if self._success_key else reward,
            terminated=terminated | (success & self._terminate_on_success),
            success=success,
            stage=np.maximum(self.stage, success),
        )

    def _flatten(self, observed: Any) -> FloatArray:
        if isinstance(observed, dict):
            return np.concatenate([observed[key] for key, _ in self.task_spec.obs_keys])
        return observed

    def _beyond_physics(self, env: Any) -> tuple[np.ndarray, ...]:
        """Return the arrays (not copies) that a later step reads and that are not in MuJoCo's integration state."""
        return ()

    def get_state(self) -> dict[str, Any]:
        """Return counters and the complete state of every simulator."""
        rows = []
        for env in self.envs:
            physics = np.empty(self._state_size)
            self._mujoco.mj_getState(env.model, env.data, physics, self._state_kind)
            rows.append(np.concatenate([physics, *(a.ravel() for a in self._beyond_physics(env))]))
        return {**super().get_state(), "simulation": np.stack(rows), "obs": self.obs.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned; the continuation is bit-identical."""
        super().set_state(state)
        for env, row in zip(self.envs, state["simulation"], strict=True):
            self._mujoco.mj_setState(env.model, env.data, row[: self._state_size], self._state_kind)
            at = self._state_size
            for array in self._beyond_physics(env):
                array[...] = row[at : at + array.size].reshape(array.shape)
                at += array.size
        self.obs[:] = state["obs"]

    def render_env(self, index: int, width: int = 320, height: int = 240) -> np.ndarray:
        """Return a picture [height, width, 3] of one environment."""
        key = (index, width, height)
        if key not in self._renderers:
            self._renderers[key] = ModelRenderer(self.envs[index].model, width, height, self._camera)
        return self._renderers[key].render(self.envs[index].data.qpos)

    def versions(self) -> dict[str, str]:
        """Return the versions of the simulator's packages."""
        return {name: version(name) for name in self.packages}

    def close_extras(self, **kwargs: object) -> None:
        """Free the renderers, which OpenGL no longer allows when the process ends."""
        for renderer in self._renderers.values():
            renderer.close()
