"""Simulators behind one contract.

To add one: a module here with a subclass of :class:`inril_ray.envs.base.SimVectorEnv`, which gives two batched
primitives, ``advance`` and ``_begin_episodes``; and one line for each task in ``TASKS``, pointing to a
:class:`inril_ray.envs.base.Task`, which gives the spec of the task and makes it. The adapter imports its simulator
inside its constructor, so configurations can be checked on a machine without it.
The contract tests run over the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inril_ray.registry import resolve
from inril_ray.types import InrilError

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode

    from inril_ray.envs.base import EnvConfig, SimVectorEnv, Task
    from inril_ray.types import EnvSpec

TASKS: dict[str, str] = {
    "robomimic/lift": "inril_ray.envs.robomimic.tasks:LIFT",
    "robomimic/can": "inril_ray.envs.robomimic.tasks:CAN",
    "robomimic/square": "inril_ray.envs.robomimic.tasks:SQUARE",
    "robomimic/transport": "inril_ray.envs.robomimic.tasks:TRANSPORT",
    "gym/halfcheetah": "inril_ray.envs.locomotion:HALFCHEETAH",
    "gym/hopper": "inril_ray.envs.locomotion:HOPPER",
    "gym/walker2d": "inril_ray.envs.locomotion:WALKER2D",
    "fetch/pick_and_place": "inril_ray.envs.robotics:PICK_AND_PLACE",
    "fetch/push": "inril_ray.envs.robotics:PUSH",
    "fetch/slide": "inril_ray.envs.robotics:SLIDE",
    "adroit/hammer": "inril_ray.envs.robotics:HAMMER",
    **{
        f"furniture/{name}_{level}": f"inril_ray.envs.furniture.vector_env:{name.upper()}_{level.upper()}"
        for name in ("one_leg", "lamp", "round_table")
        for level in ("low", "med", "high")
    },
    "furniture/mug_rack": "inril_ray.envs.furniture.vector_env:MUG_RACK",
    "furniture/peg_in_hole": "inril_ray.envs.furniture.vector_env:PEG_IN_HOLE",
    "mimicgen/coffee": "inril_ray.envs.mimicgen:COFFEE",
    "mimicgen/coffee_d1": "inril_ray.envs.mimicgen:COFFEE_D1",
    "mimicgen/coffee_d2": "inril_ray.envs.mimicgen:COFFEE_D2",
    "mimicgen/threading": "inril_ray.envs.mimicgen:THREADING",
    "mimicgen/threading_d1": "inril_ray.envs.mimicgen:THREADING_D1",
    "mimicgen/threading_d2": "inril_ray.envs.mimicgen:THREADING_D2",
    "mimicgen/nut_assembly": "inril_ray.envs.mimicgen:NUT_ASSEMBLY",
    "mimicgen/mug_cleanup": "inril_ray.envs.mimicgen:MUG_CLEANUP",
    "mimicgen/mug_cleanup_d1": "inril_ray.envs.mimicgen:MUG_CLEANUP_D1",
    "mimicgen/hammer_cleanup": "inril_ray.envs.mimicgen:HAMMER_CLEANUP",
    "mimicgen/hammer_cleanup_d1": "inril_ray.envs.mimicgen:HAMMER_CLEANUP_D1",
}
"""Task name to a :class:`inril_ray.envs.base.Task`."""


def entry(task: str) -> Task:
    """Return the entry of the task table.

    Raises:
        InrilError: unknown task.
    """
    return resolve(TASKS, task, "task")


def spec(task: str, config: EnvConfig) -> EnvSpec:
    """Return a task's dimensions and horizon without loading its simulator.

    Raises:
        InrilError: unknown task.
    """
    return entry(task).spec(config)


def make(
    task: str,
    *,
    num_envs: int,
    seed: int,
    config: EnvConfig | None = None,
    purpose: str = "train",
    first_env: int = 0,
    autoreset: AutoresetMode | str = "SameStep",
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
        autoreset: gymnasium's mode: ``SameStep``, ``NextStep`` or ``Disabled``, in which finished environments rest.

    Raises:
        InrilError: unknown task, backend or mode, or the simulator is not installed.
    """
    from gymnasium.vector import AutoresetMode

    from inril_ray.envs.base import EnvConfig

    modes = [mode.value for mode in AutoresetMode]
    if str(getattr(autoreset, "value", autoreset)) not in modes:
        raise InrilError(f"autoreset = {autoreset!r}: choose one of {', '.join(modes)}.")
    env = entry(task).make(config or EnvConfig(), num_envs, seed, purpose, first_env)
    env.autoreset = AutoresetMode(autoreset)
    return env
