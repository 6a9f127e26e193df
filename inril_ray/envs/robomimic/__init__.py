"""The Robomimic tasks on robosuite 1.5: stock simulator as reference, batched stepper as default."""

from __future__ import annotations

from inril_ray.envs.base import EnvConfig, SimVectorEnv
from inril_ray.envs.robomimic.tasks import LIFT, RobomimicTask


def make_lift(config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
    """Make a batch of Lift environments: lift a cube 4 cm above the table. See :func:`inril_ray.envs.make`."""
    return _make(LIFT, config, num_envs, seed, purpose, first_env)


def _make(
    task: RobomimicTask, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int
) -> SimVectorEnv:
    if config.backend == "stock":
        from inril_ray.envs.robomimic.stock import StockRobomimicEnv as Backend
    else:
        from inril_ray.envs.robomimic.fast import FastRobomimicEnv as Backend
    return Backend(task, config, num_envs, seed, purpose, first_env)
