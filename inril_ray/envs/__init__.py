"""Simulators behind one contract.

To add one: a module here with a subclass of :class:`inril_ray.envs.base.SimVectorEnv` (two batched primitives,
``advance`` and ``reset_envs``) and one line for each task in ``TASKS``. The adapter imports its simulator inside its
constructor, so that configurations can be checked on a machine without it. The contract tests run over the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inril_ray.registry import resolve

if TYPE_CHECKING:
    from inril_ray.envs.base import EnvConfig, SimVectorEnv

TASKS: dict[str, str] = {
    "robomimic/lift": "inril_ray.envs.robomimic:make_lift",
}
"""Task name to a factory ``(EnvConfig, num_envs, seed, purpose, first_env) -> SimVectorEnv``."""


def make(
    task: str,
    *,
    num_envs: int,
    seed: int,
    config: EnvConfig | None = None,
    purpose: str = "train",
    first_env: int = 0,
) -> SimVectorEnv:
    """Make ``num_envs`` parallel environments of a task.

    Args:
        task: a name in ``TASKS``.
        num_envs: environments in the batch.
        seed: seed of the experiment.
        config: backend and episode options; the task's defaults if None.
        purpose: ``"train"``, ``"eval"`` or ``"demos"``. Each has initial states of its own, so that a policy is never
            evaluated on a state that it was trained on.
        first_env: index of the first environment among all of the experiment. Initial states depend on
            ``(seed, purpose, index, episode)`` only, so they don't change with the number of workers.

    Raises:
        InrilError: unknown task or backend, or the simulator is not installed.
    """
    from inril_ray.envs.base import EnvConfig

    factory = resolve(TASKS, task, "task")
    return factory(config or EnvConfig(), num_envs, seed, purpose, first_env)
