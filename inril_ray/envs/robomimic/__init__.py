"""The Robomimic tasks on robosuite 1.5: stock simulator as reference, batched stepper as default."""

from __future__ import annotations

from dataclasses import dataclass

from inril_ray.envs.base import EnvConfig, SimVectorEnv
from inril_ray.envs.robomimic import tasks
from inril_ray.types import EnvSpec


@dataclass(frozen=True)
class RobomimicSuiteTask:
    """Entry of the task table."""

    definition: tasks.RobomimicTask

    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return the task's dimensions and horizon; loads no simulator."""
        return self.definition.spec(config)

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments; see :func:`inril_ray.envs.make`."""
        if config.backend == "stock":
            from inril_ray.envs.robomimic.stock import StockRobomimicEnv as Backend
        else:
            from inril_ray.envs.robomimic.fast import FastRobomimicEnv as Backend
        return Backend(self.definition, config, num_envs, seed, purpose, first_env)


LIFT = RobomimicSuiteTask(tasks.LIFT)
"""Lift a cube 4 cm above the table."""
