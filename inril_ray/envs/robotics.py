"""Fetch and Adroit tasks of gymnasium-robotics, with the sparse 1/0 rewards of the CAIR experiments.

The simulators' own environments run at most of the speed of their physics, so there is no fast backend.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv, Task
from inril_ray.envs.rendering import import_mujoco
from inril_ray.envs.stock import StockEnv, plain_env
from inril_ray.types import BoolArray, EnvSpec, FloatArray, InrilError, Interface

VERSION = "1.4.2"


@dataclass(frozen=True, kw_only=True)
class RoboticsTask(Task):
    """What Fetch and Adroit have in common: reward 1 in every step that ends solved, else 0."""

    env_id: str
    """Name in gymnasium's registry."""
    env_name: str
    """Name without the version, as in published data."""
    obs_keys: tuple[tuple[str, int], ...]
    action_dim: int
    max_episode_steps: int
    control_hz: float
    success_key: str
    """Name of the success flag in the simulator's ``info``."""
    env_class: type[RoboticsEnv]
    reach: float | None = None
    """Metres between achieved and desired goal below which the task is solved, where both are observed."""

    def solved(self, obs: FloatArray) -> BoolArray | None:
        """Compare the goals; see :meth:`Task.solved`."""
        if self.reach is None:
            return None
        achieved, desired = obs[:, -6:-3].astype(np.float64), obs[:, -3:].astype(np.float64)
        return np.linalg.norm(achieved - desired, axis=1) < self.reach

    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return the task's dimensions and horizon under a configuration."""
        return EnvSpec(
            task=self.name,
            obs_dim=sum(width for _, width in self.obs_keys),
            action_dim=self.action_dim,
            max_episode_steps=config.max_episode_steps or self.max_episode_steps,
            control_hz=self.control_hz,
            obs_keys=self.obs_keys,
            recorded_as=self.env_name,
            semantics=self.chosen_semantics(config),
            success=self.chosen_success(config),
            interface=Interface(rewards="sparse", changed_by=()),
            reward_values=(0.0, 1.0),
            pays_success=True,
        )

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments; see :func:`inril_ray.envs.make`."""
        self.chosen_backend(config)
        import_robotics()
        return self.env_class(
            self.spec(config),
            self.env_id,
            num_envs,
            seed,
            purpose,
            first_env,
            success_key=self.success_key,
            terminate_on_success=config.terminate_on_success,
        )


class RoboticsEnv(StockEnv):
    """A batch of environments of gymnasium-robotics."""

    packages = ("gymnasium", "gymnasium-robotics", "mujoco")


class FetchEnv(RoboticsEnv):
    """A batch of Fetch environments over one model, which takes 9 MB."""

    def _make_env(self, env_id: str) -> Any:
        env = plain_env(env_id)
        env.goal = np.zeros(3)  # before the first reset it is empty, and no state could be put back
        if self.envs:
            env.mujoco_renderer = None  # it holds on to the model
            env.model = self.envs[0].model
            env.data = self._mujoco.MjData(env.model)
        return env

    def _beyond_physics(self, env: Any) -> tuple[np.ndarray, ...]:
        # An action moves the gripper relative to the pose that the last physics step started from.
        return env.goal, env.data.xpos, env.data.xquat

    def render_env(self, index: int, width: int = 320, height: int = 240) -> np.ndarray:
        """Return a picture [height, width, 3] of one environment, with its goal."""
        # The simulator's own way of showing the goal would also move the poses that the next action starts from.
        env = self.envs[index]
        mark = self._mujoco.mj_name2id(env.model, self._mujoco.mjtObj.mjOBJ_SITE, "target0")
        env.model.site_pos[mark] = env.goal - env.data.xpos[env.model.site_bodyid[mark]]
        return super().render_env(index, width, height)


class HammerEnv(RoboticsEnv):
    """A batch of Adroit hammer environments. Each has its own model, where the height of the board is."""

    @cached_property
    def _observer(self) -> Any:
        """An environment to observe predicted states with."""
        return plain_env(self.env_id)

    def _beyond_physics(self, env: Any) -> tuple[np.ndarray, ...]:
        return (env.model.body_pos[env.target_body_id],)

    def predict(self, index: int, actions: FloatArray) -> FloatArray:
        """Tell what action sequences would lead to from the current state of one environment, which stays as it is.

        Args:
            index: which environment.
            actions: [K, H, A] K sequences of H control steps.

        Returns:
            [K, H, O] observation after each control step, float64: what stepping would observe.
        """
        from mujoco import rollout

        mujoco, env = self._mujoco, self.envs[index]
        model, scratch, skip = env.model, self._observer.data, env.frame_skip
        kind = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)
        start = np.empty((1, mujoco.mj_stateSize(model, kind)))
        mujoco.mj_getState(model, env.data, start[0], kind)
        clipped = np.clip(np.asarray(actions, np.float32), self.task_spec.action_low, self.task_spec.action_high)
        simulated: Any = rollout.rollout(
            model,
            scratch,
            start,
            np.repeat(env.act_mean + clipped * env.act_rng, skip, axis=1),
            initial_warmstart=env.data.qacc_warmstart[None],
        )
        states, sensors = simulated
        # What is observed of bodies is where they were when the last physics step of the control step started; joints
        # are observed after it.
        before, after = states[:, skip - 2 :: skip], states[:, skip - 1 :: skip]
        felt = sensors[:, skip - 1 :: skip]
        pos, vel = slice(1, 1 + model.nq), slice(1 + model.nq, 1 + model.nq + model.nv)
        obs = np.empty((*actions.shape[:2], self.task_spec.obs_dim))
        for at in np.ndindex(*actions.shape[:2]):
            scratch.qpos[:] = before[at][pos]
            mujoco.mj_kinematics(model, scratch)
            scratch.qpos[:], scratch.qvel[:], scratch.sensordata[:] = after[at][pos], after[at][vel], felt[at]
            obs[at] = self._observer._get_obs()
        return obs


def import_robotics() -> None:
    """Import gymnasium-robotics, which registers its environments with gymnasium.

    Raises:
        InrilError: it is missing or is another release; the message says what to install.
    """
    advice = "Install it with: pip install 'inril-ray[robotics]'"
    import_mujoco()  # first: it settles which OpenGL platform MuJoCo will use
    try:
        # On import it prints a notice about the dense rewards of its Adroit tasks, which are not used here.
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            import gymnasium_robotics
    except ImportError as error:
        raise InrilError(f"The Fetch and Adroit tasks need gymnasium-robotics {VERSION} ({error}). {advice}") from None
    if gymnasium_robotics.__version__ != VERSION:
        raise InrilError(
            f"The Fetch and Adroit tasks need gymnasium-robotics {VERSION}, found {gymnasium_robotics.__version__}; "
            f"other releases register other versions of these tasks. {advice}"
        )


def _fetch(name: str, env_name: str) -> RoboticsTask:
    """Give a Fetch task of 50 control steps of 40 ms.

    CAIR's text says 1000 steps, its appendix and the benchmark 50; ``env.max_episode_steps`` chooses.
    """
    return RoboticsTask(
        name=f"fetch/{name}",
        env_id=f"{env_name}-v4",
        env_name=env_name,
        obs_keys=(("observation", 25), ("achieved_goal", 3), ("desired_goal", 3)),
        action_dim=4,
        max_episode_steps=50,
        control_hz=25.0,
        success_key="is_success",
        success="final",  # as in Plappert et al. 2018: an object that only passes by its goal is not there
        env_class=FetchEnv,
        reach=0.05,
    )


PUSH = _fetch("push", "FetchPush")
"""Push a box to within 5 cm of a place on the table, with the gripper closed."""
PICK_AND_PLACE = _fetch("pick_and_place", "FetchPickAndPlace")
"""Bring a box to within 5 cm of a place on or above the table."""
SLIDE = _fetch("slide", "FetchSlide")
"""Hit a puck so that it comes to rest within 5 cm of a place out of reach."""
HAMMER = RoboticsTask(
    name="adroit/hammer",
    env_id="AdroitHandHammerSparse-v1",
    env_name="AdroitHandHammer",
    obs_keys=(("observation", 46),),
    action_dim=26,
    max_episode_steps=200,
    control_hz=100.0,
    success_key="success",
    env_class=HammerEnv,
)
"""Take a hammer with a hand of 24 joints on a moving arm, and drive a nail to within 1 cm of the end of its way.

CAIR's episodes have 4000 control steps (``env.max_episode_steps``), the benchmark's 200.
"""
