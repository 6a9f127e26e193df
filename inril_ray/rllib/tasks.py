"""Our batched simulators as environments of RLlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune import register_env

from inril_ray import envs
from inril_ray.config import build, to_dict
from inril_ray.demos.episodes import Expectation
from inril_ray.envs.base import EnvConfig, SimVectorEnv, Task
from inril_ray.rllib.settings import KEY
from inril_ray.types import InrilError

PREFIX = "inril_ray/"
PURPOSE = "purpose"
"""Key of RLlib's ``env_config`` beside those of :class:`EnvConfig`."""


def with_task(config: AlgorithmConfig, task: str, env: EnvConfig | Mapping[str, Any] | None = None) -> AlgorithmConfig:
    """Let an algorithm act in one of our tasks: each of its runners steps one batch of environments.

    ``config.env_runners(num_envs_per_env_runner=…)`` sets the size of the batch. Evaluation runners get initial states
    of their own. Comes before :func:`inril_ray.rllib.with_interleaving`, which holds demonstrations against the task.

    Args:
        config: changed in place.
        task: a name in ``inril_ray.envs.TASKS``.
        env: options of the environments; the task's defaults if None.

    Raises:
        InrilError: unknown task or option, or the algorithm interleaves already; ``config`` is unchanged.
    """
    if KEY in config.learner_config_dict:
        raise InrilError("with_task comes before with_interleaving, which holds demonstrations against the task.")
    options = env if isinstance(env, EnvConfig) else build(EnvConfig, env or {}, "env")
    entry = envs.entry(task)
    entry.spec(options)
    register_env(PREFIX + task, lambda context: _make(entry, context))
    values = to_dict(options)
    config.environment(PREFIX + task, env_config=values)
    config.env_runners(gym_env_vectorize_mode="vector_entry_point")
    return config.evaluation(evaluation_config={"env_config": {**values, PURPOSE: "eval"}})


def _make(task: Task, context: Mapping[str, Any]) -> SimVectorEnv:
    if "num_envs" not in context:
        raise InrilError(
            f"Environment {PREFIX}{task.name} is a batch: gym_env_vectorize_mode = 'vector_entry_point' is needed, as "
            "with_task sets it."
        )
    values = dict(context)
    num_envs, purpose = int(values.pop("num_envs")), values.pop(PURPOSE, "train")
    # Runners seed the first reset where the algorithm has a seed. Where it has none, each is to differ from the others.
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    env = task.make(build(EnvConfig, values, "env_config"), num_envs, seed, purpose, 0)
    # RLlib's runner records transitions as gymnasium's NEXT_STEP gives them, and doesn't check.
    env.autoreset = AutoresetMode.NEXT_STEP
    return env


def expectation_of(config: AlgorithmConfig) -> Expectation | None:
    """Return what the task of an algorithm requires of demonstrations; None for an environment that is not ours."""
    if not isinstance(config.env, str) or not config.env.startswith(PREFIX):
        return None
    values = {name: value for name, value in config.env_config.items() if name != PURPOSE}
    return Expectation.of(envs.spec(config.env.removeprefix(PREFIX), build(EnvConfig, values, "env_config")))
