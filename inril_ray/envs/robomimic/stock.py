"""Robosuite's own environments behind our contract: the reference that the fast backend is held against."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome
from inril_ray.envs.rendering import ModelRenderer
from inril_ray.envs.robomimic.rendering import agentview, package_versions
from inril_ray.envs.robomimic.tasks import RobomimicTask, make_robosuite
from inril_ray.types import BoolArray, FloatArray


class StockRobomimicEnv(SimVectorEnv):
    """One robosuite environment for each member of the batch, stepped one after the other.

    Robosuite cannot restore the middle of an episode exactly (its controllers keep state of their own), so
    ``get_state`` covers the counters only: resuming is exact where rollouts begin with a reset.
    """

    def __init__(
        self, task: RobomimicTask, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int
    ) -> None:
        # First: gymnasium closes an environment whose construction failed.
        self._renderers: dict[tuple[int, int, int], ModelRenderer] = {}
        self.envs: list[Any] = []
        super().__init__(task.spec(config), num_envs, seed, purpose, first_env)
        self.task, self._terminate_on_success = task, config.terminate_on_success
        for index in range(num_envs):
            self.envs.append(self._make(index))

    def _make(self, index: int) -> Any:
        return make_robosuite(self.task, self.env_rng(index))

    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        obs = np.zeros_like(self.obs)
        for i in np.flatnonzero(mask):
            # Robosuite's samplers hold a reference to this generator, so its state is replaced, not the generator.
            self.envs[i].rng.bit_generator.state = self.episode_rng(i).bit_generator.state
            obs[i] = self._flatten(self.envs[i].reset())
        return obs

    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step in the environments where ``active``."""
        obs = self.obs.copy()
        reward = np.zeros(self.num_envs, np.float32)
        success = np.zeros(self.num_envs, bool)
        for i in np.flatnonzero(active):
            action = np.clip(actions[i].astype(np.float64), self.task_spec.action_low, self.task_spec.action_high)
            observed, reward[i], _, _ = self.envs[i].step(action)
            obs[i] = self._flatten(observed)
            success[i] = self.envs[i]._check_success()
        return StepOutcome(
            obs=obs,
            reward=reward,
            terminated=success & self._terminate_on_success,
            success=success,
            stage=np.maximum(self.stage, success),
        )

    def _flatten(self, observed: dict[str, FloatArray]) -> FloatArray:
        # robomimic's name for the concatenated object observation differs from robosuite's.
        parts = [observed["object-state" if key == "object" else key] for key, _ in self.task.obs_keys]
        return np.concatenate([np.atleast_1d(p) for p in parts])

    def render_env(self, index: int, width: int = 320, height: int = 240) -> np.ndarray:
        """Return a picture [height, width, 3] of one environment."""
        env = self.envs[index]
        key = (index, width, height)
        if key not in self._renderers:
            self._renderers[key] = agentview(env.sim.model._model, width, height)
        return self._renderers[key].render(np.array(env.sim.data.qpos))

    def versions(self) -> dict[str, str]:
        """Return the versions of robosuite and MuJoCo."""
        return package_versions()

    def close_extras(self, **kwargs: object) -> None:
        """Free the simulators."""
        for closable in (*self._renderers.values(), *self.envs):
            closable.close()
        self._renderers.clear()
        self.envs.clear()
        gc.collect()  # robosuite's objects refer to each other, and to the simulator: 65 MB of each environment
