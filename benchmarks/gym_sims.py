"""Gym, Fetch and Adroit against gymnasium's own loops: env-steps per CPU second on the same actions, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from inril_ray import envs
from inril_ray.envs.base import EnvConfig, SimVectorEnv
from inril_ray.envs.locomotion import HALFCHEETAH, HOPPER, WALKER2D, LocomotionTask
from inril_ray.envs.robotics import HAMMER, PICK_AND_PLACE, PUSH, SLIDE, RoboticsTask

GYM_ENVS, ROBOTICS_ENVS = 40, 20
BLOCKS, BLOCK_STEPS = 24, 25
"""Ours and the reference step in turns of a block, so that both see the same machine."""


class GymnasiumLoop:
    """What one would write with gymnasium alone: step each environment, reset it when its episode ends.

    It begins its episodes in the states of ours, so both simulate the same trajectories.
    """

    def __init__(self, task: RoboticsTask, twin: SimVectorEnv) -> None:
        self.envs = [gym.make(task.env_id) for _ in range(twin.num_envs)]
        self.twin = twin
        for i in range(twin.num_envs):
            self.restart(i)

    def restart(self, i: int) -> None:
        """Reset one environment."""
        self.envs[i].unwrapped.np_random = self.twin.episode_rng(i)
        self.envs[i].reset()

    def step(self, actions: np.ndarray) -> None:
        """Step all environments."""
        for i, env in enumerate(self.envs):
            _, _, terminated, truncated, _ = env.step(actions[i])
            if terminated or truncated:
                self.restart(i)


def sync_vector(task: LocomotionTask, num_envs: int, semantics: str) -> gym.vector.VectorEnv:
    """Make what gymnasium offers for a batch in one process."""
    env = gym.vector.SyncVectorEnv([lambda: gym.make(f"{task.env_name}-{semantics}")] * num_envs)
    env.reset(seed=0)
    return env


def cpu_seconds(step: Callable[[np.ndarray], Any], actions: np.ndarray) -> float:
    """Return what stepping through actions [T, B, A] takes, resets included."""
    start = time.process_time()
    for row in actions:
        step(row)
    return time.process_time() - start


def measure(task: LocomotionTask | RoboticsTask) -> tuple[float, float]:
    """Return env-steps per CPU second of ours and of the reference, on the same actions."""
    num_envs = GYM_ENVS if isinstance(task, LocomotionTask) else ROBOTICS_ENVS
    env = envs.make(task.name, num_envs=num_envs, seed=0, config=EnvConfig())
    env.reset()
    if isinstance(task, LocomotionTask):
        reference: Any = sync_vector(task, num_envs, env.task_spec.semantics)
    else:
        reference = GymnasiumLoop(task, env)
    shape = (BLOCKS + 1, BLOCK_STEPS, num_envs, task.action_dim)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    spent = np.array([[cpu_seconds(env.step, block), cpu_seconds(reference.step, block)] for block in actions])
    env.close()
    # The first block warms caches. Medians, because a neighbour on the machine can spoil a block.
    own, other = num_envs * BLOCK_STEPS / np.median(spent[1:], axis=0)
    return own, other


TASKS = (HOPPER, WALKER2D, HALFCHEETAH, PUSH, PICK_AND_PLACE, SLIDE, HAMMER)


def goal(task: LocomotionTask | RoboticsTask) -> float:
    """Return the ratio that was asked for."""
    return 1.3 if isinstance(task, LocomotionTask) else 0.9
