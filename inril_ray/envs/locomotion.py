"""Gym's MuJoCo locomotion tasks: Hopper, Walker2d and HalfCheetah."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome, Task
from inril_ray.envs.rendering import ModelRenderer, import_mujoco
from inril_ray.envs.stock import StockEnv, camera_of, plain_env
from inril_ray.types import BoolArray, EnvSpec, FloatArray, Interface

ANY = (-np.inf, np.inf)


@dataclass(frozen=True, kw_only=True)
class LocomotionTask(Task):
    """One task, with dense reward and no notion of success.

    The rules are those of gymnasium's ``v4`` or ``v5`` environments. Observations, actions and initial states agree.
    ``v5`` differs in two things. Walker2d's right foot has friction 1.9, as its left foot has, where ``v4`` has 0.9.
    Hopper and Walker2d earn the reward for being healthy in healthy states only, where ``v4`` pays it in the last,
    unhealthy step of an episode, too. D4RL's data follow ``v4``'s rules.
    """

    backends: tuple[str, ...] = ("fast", "stock")
    semantics: tuple[str, ...] = ("v4", "v5")
    env_name: str
    """Name in gymnasium's registry, without the version."""
    obs_dim: int
    action_dim: int
    control_hz: float
    score_range: tuple[float, float]
    """Returns of a random and of an expert policy, from D4RL (Fu et al., 2020)."""
    velocity_limit: float = np.inf
    """Velocities are observed up to here."""
    normal_velocities: bool = False
    """Initial velocities are normal instead of uniform."""

    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return the task's dimensions and horizon under a configuration."""
        return EnvSpec(
            task=self.name,
            obs_dim=self.obs_dim,
            action_dim=self.action_dim,
            max_episode_steps=config.max_episode_steps or 1000,
            control_hz=self.control_hz,
            obs_keys=(("observation", self.obs_dim),),
            recorded_as=self.env_name,
            semantics=self.chosen_semantics(config),
            score_range=self.score_range,
            interface=Interface(rewards="dense", changed_by=()),
        )

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments; see :func:`inril_ray.envs.make`."""
        if self.chosen_backend(config) == "stock":
            return StockEnv(self.spec(config), self.env_id(config), num_envs, seed, purpose, first_env)
        return LocomotionEnv(self, config, num_envs, seed, purpose, first_env)

    def env_id(self, config: EnvConfig) -> str:
        """Return the name in gymnasium's registry."""
        return f"{self.env_name}-{self.chosen_semantics(config)}"


HOPPER = LocomotionTask(
    name="gym/hopper",
    env_name="Hopper",
    obs_dim=11,
    action_dim=3,
    control_hz=125.0,
    score_range=(-20.272305, 3234.3),
    velocity_limit=10.0,
)
"""Hop forward on one leg."""
WALKER2D = LocomotionTask(
    name="gym/walker2d",
    env_name="Walker2d",
    obs_dim=17,
    action_dim=6,
    control_hz=125.0,
    score_range=(1.629008, 4592.3),
    velocity_limit=10.0,
)
"""Walk forward on two legs."""
HALFCHEETAH = LocomotionTask(
    name="gym/halfcheetah",
    env_name="HalfCheetah",
    obs_dim=17,
    action_dim=6,
    control_hz=20.0,
    score_range=(-280.178953, 12135.0),
    normal_velocities=True,
)
"""Run forward; no state ends the episode."""


class LocomotionEnv(SimVectorEnv):
    """A batch of environments over one model and one ``MjData``, stepped by ``mujoco.rollout``.

    Bit-identical to gymnasium: model, reward weights and healthy ranges are read from gymnasium's environment, the
    random draws have its order, and the solver's warm start is carried from step to step. What is saved is the rest:
    gymnasium's bookkeeping for each environment, and contact forces (``mj_rnePostConstraint``) that no task observes.
    """

    def __init__(
        self, task: LocomotionTask, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int
    ) -> None:
        # First: gymnasium closes an environment whose construction failed.
        self._renderers: dict[tuple[int, int], ModelRenderer] = {}
        super().__init__(task.spec(config), num_envs, seed, purpose, first_env)
        mujoco = import_mujoco()
        from mujoco import rollout

        self.task = task
        self._reference = reference = plain_env(task.env_id(config))
        self._model, self._data = reference.model, reference.data
        # The robot is one kinematic tree, so its constraints are one island. Not looking for others saves a tenth.
        self._model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
        self._num_substeps: int = reference.frame_skip
        self._z_range = getattr(reference, "_healthy_z_range", ANY)
        self._angle_range = getattr(reference, "_healthy_angle_range", ANY)
        self._state_range = getattr(reference, "_healthy_state_range", ANY)
        self._healthy_reward: float = getattr(reference, "_healthy_reward", 0.0)
        self._pays_unhealthy = task.chosen_semantics(config) == "v4"
        num_pos, num_vel = self._model.nq, self._model.nv
        self._pos, self._vel = slice(1, 1 + num_pos), slice(1 + num_pos, 1 + num_pos + num_vel)
        self.physics = np.zeros((num_envs, 1 + num_pos + num_vel))
        """[B, 1 + nq + nv] time, positions, velocities."""
        self.warm_start = np.zeros((num_envs, num_vel))
        """[B, nv] accelerations from which the constraint solver starts."""
        self._rollout = rollout.Rollout(nthread=0)
        self._control_kind = int(mujoco.mjtState.mjSTATE_CTRL)
        self._control = np.zeros((num_envs, self._num_substeps, self._model.nu))
        self._states = np.zeros((num_envs, self._num_substeps, self.physics.shape[1]))
        self._sensors = np.zeros((num_envs, self._num_substeps, self._model.nsensordata))

    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        noise: float = self._reference._reset_noise_scale
        for i in np.flatnonzero(mask):
            rng = self.episode_rng(i)
            pos = rng.uniform(-noise, noise, self._model.nq)
            if self.task.normal_velocities:
                vel = noise * rng.standard_normal(self._model.nv)
            else:
                vel = rng.uniform(-noise, noise, self._model.nv)
            self.physics[i, 0] = 0.0
            self.physics[i, self._pos] = self._reference.init_qpos + pos
            self.physics[i, self._vel] = self._reference.init_qvel + vel
            self.warm_start[i] = 0.0
        return self._observe()

    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step in the environments where ``active``."""
        clipped = np.clip(actions.astype(np.float32), self.task_spec.action_low, self.task_spec.action_high)
        x_before = self.physics[:, 1].copy()
        self._simulate(clipped, active)
        velocity = (self.physics[:, 1] - x_before) / self._reference.dt
        # The cost is summed in float32, the type of the action, and weighed in float64, as gymnasium does.
        cost = self._reference._ctrl_cost_weight * np.square(clipped).sum(axis=1).astype(np.float64)
        healthy = self._healthy()
        pay = self._healthy_reward * (healthy | self._pays_unhealthy)
        return StepOutcome(
            obs=self._observe(),
            reward=self._reference._forward_reward_weight * velocity + pay - cost,
            terminated=~healthy,
            success=np.zeros(self.num_envs, bool),
            stage=self.stage,
        )

    def _simulate(self, actions: FloatArray, active: BoolArray) -> None:
        self._control[:] = actions[:, None]
        model, data, warm_start = [self._model], [self._data], self._data.qacc_warmstart
        # A rollout of several environments at once does not tell their warm starts apart when it returns, and costs as
        # much per environment as one of a single environment.
        for i in np.flatnonzero(active).tolist():
            one = slice(i, i + 1)
            self._rollout.rollout(
                model,
                data,
                self.physics[one],
                self._control[one],
                control_spec=self._control_kind,
                skip_checks=True,
                nstep=self._num_substeps,
                initial_warmstart=self.warm_start[one],
                state=self._states[one],
                sensordata=self._sensors[one],
            )
            self.warm_start[i] = warm_start
        self.physics[active] = self._states[active, -1]

    def _healthy(self) -> BoolArray:
        height, angle, rest = self.physics[:, 2], self.physics[:, 3], self.physics[:, 3:]
        return (
            _within(height, self._z_range)
            & _within(angle, self._angle_range)
            & _within(rest, self._state_range).all(axis=1)
        )

    def _observe(self) -> FloatArray:
        limit = self.task.velocity_limit
        # How far it got (the first position) is not observed.
        return np.concatenate(
            [self.physics[:, self._pos][:, 1:], self.physics[:, self._vel].clip(-limit, limit)], axis=1
        )

    def get_state(self) -> dict[str, Any]:
        """Return counters and the complete physics of every environment."""
        own = {"physics": self.physics.copy(), "warm_start": self.warm_start.copy(), "obs": self.obs.copy()}
        return {**super().get_state(), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned; the continuation is bit-identical."""
        super().set_state(state)
        self.physics[:], self.warm_start[:], self.obs[:] = state["physics"], state["warm_start"], state["obs"]

    def render_env(self, index: int, width: int = 320, height: int = 240) -> np.ndarray:
        """Return a picture [height, width, 3] of one environment."""
        key = (width, height)
        if key not in self._renderers:
            self._renderers[key] = ModelRenderer(self._model, width, height, camera_of(self._reference))
        return self._renderers[key].render(self.physics[index, self._pos])

    def versions(self) -> dict[str, str]:
        """Return the versions of gymnasium and MuJoCo."""
        return {name: version(name) for name in StockEnv.packages}

    def close_extras(self, **kwargs: object) -> None:
        """Free the renderers, which OpenGL no longer allows when the process ends."""
        for renderer in self._renderers.values():
            renderer.close()


def _within(values: FloatArray, bounds: tuple[float, float]) -> BoolArray:
    return (bounds[0] < values) & (values < bounds[1])
