"""MimicGen's tasks (Mandlekar et al., CoRL 2023) from an installation of NVIDIA's code that the user brings along.

NVIDIA's licence is non-commercial, so nothing of it is part of this project; and the package called ``mimicgen`` on
PyPI is another one, so what is found is looked at on disk before it is imported.

MimicGen 1.0 is written for robosuite 1.4, this project simulates robosuite 1.5.2. While MimicGen is imported, the base
class of its environments is lent to it under the old name, and passes on what was renamed. Put right, so that
observations equal those of the published data sets (all recorded with 1.4.1): the controller acts in the world's frame,
and Nut Assembly, whose observation is robosuite's, has the old order and fresh relative poses. Other tasks observe
through MimicGen's own code, whose order does not depend on robosuite.

Known differences from the published data sets that remain, both rules of robosuite 1.5: the fingers close by steps and
not by a ramp (up to 3 mm while they move), and an action without any rotation takes the present orientation as its
goal. Published data are accepted all the same; ``versions`` says what simulates.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv
from inril_ray.envs.robomimic.scenes import Scene
from inril_ray.envs.robomimic.stock import StockRobomimicEnv
from inril_ray.envs.robomimic.tasks import RobomimicTask, import_robosuite, quiet
from inril_ray.types import InrilError
from inril_ray.words import reason

ARM = "right"
"""What robosuite 1.5 calls the arm of a robot that has one."""
OLD_MODULE = "robosuite.environments.manipulation.single_arm_env"
INSTALL_MIMICGEN = (
    "Install NVIDIA's (non-commercial licence; the package of that name on PyPI is unrelated): "
    "git clone https://github.com/NVlabs/mimicgen && pip install --no-deps -e ./mimicgen"
)
INSTALL_TASK_ZOO = (
    "Hammer Cleanup takes its scene from it: git clone https://github.com/ARISE-Initiative/robosuite-task-zoo && "
    "pip install --no-deps -e ./robosuite-task-zoo"
)


@dataclass(frozen=True, kw_only=True)
class MimicgenTask(RobomimicTask):
    """One task at one level of difficulty: D0 is that of the human demonstrations, D1 and D2 start from wider ranges.

    The robot, its controller and the sparse reward are those of Robomimic; Nut Assembly pays half for each nut.
    """

    backends: tuple[str, ...] = ("stock",)
    semantics: tuple[str, ...] = ()
    scene: type[Scene] = Scene  # used by fast backends only

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments; see :func:`inril_ray.envs.make`.

        Raises:
            InrilError: MimicGen, or what else the task needs, is not installed; the message says how to.
        """
        self.chosen_backend(config)
        return MimicgenEnv(self, config, num_envs, seed, purpose, first_env)


def _task(
    name: str, env_name: str, object_dim: int, max_episode_steps: int, reward_values: tuple[float, ...] = (0.0, 1.0)
) -> MimicgenTask:
    arm = (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2))
    return MimicgenTask(
        name=f"mimicgen/{name}",
        env_name=env_name,
        obs_keys=(*arm, ("object", object_dim)),
        max_episode_steps=max_episode_steps,
        reward_values=reward_values,
    )


COFFEE = _task("coffee", "Coffee_D0", 57, 400)
"""Put a pod into a coffee machine and close its lid. Poses of pod, machine, holder and lid; angle of the lid."""
COFFEE_D1 = _task("coffee_d1", "Coffee_D1", 57, 400)
COFFEE_D2 = _task("coffee_d2", "Coffee_D2", 57, 400)
THREADING = _task("threading", "Threading_D0", 28, 400)
"""Put a needle through the ring of a tripod. Poses of both."""
THREADING_D1 = _task("threading_d1", "Threading_D1", 28, 400)
THREADING_D2 = _task("threading_d2", "Threading_D2", 28, 400)
NUT_ASSEMBLY = _task("nut_assembly", "NutAssembly_D0", 28, 500, (0.0, 0.5, 1.0))
"""Put a square and a round nut on their pegs. Poses of both."""
MUG_CLEANUP = _task("mug_cleanup", "MugCleanup_D0", 29, 500)
"""Put a mug into a drawer. Poses of both; how far the drawer is open."""
MUG_CLEANUP_D1 = _task("mug_cleanup_d1", "MugCleanup_D1", 29, 500)
HAMMER_CLEANUP = _task("hammer_cleanup", "HammerCleanup_D0", 28, 500)
"""Put a hammer into a drawer. Poses of both."""
HAMMER_CLEANUP_D1 = _task("hammer_cleanup_d1", "HammerCleanup_D1", 28, 500)


class MimicgenEnv(StockRobomimicEnv):
    """One of MimicGen's environments for each member of the batch.

    Resets are soft, as in the Robomimic tasks. In these tasks that leaves out one thing: the hammer's handle, whose
    length is drawn when the model is built, stays the same over the life of an environment.
    """

    task: MimicgenTask

    @cached_property
    def _env_class(self) -> Any:
        return _env_class(self.task)

    def _make(self, index: int) -> Any:
        return _make(self._env_class, self.task, self.env_rng(index))

    def versions(self) -> dict[str, str]:
        """Return the versions of MimicGen, robosuite and MuJoCo."""
        found = getattr(sys.modules["mimicgen"], "__version__", "unknown")
        return {"mimicgen": f"{found}, on the rules of robosuite 1.5", **super().versions()}


# -- the installation -------------------------------------------------------------------------------------------------
def find_installation(package: str, file: str, advice: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Args:
        package: name to import.
        file: path inside the package that tells it from others of the same name.
        advice: what to do if it is missing.

    Raises:
        InrilError: there is no such package, or it is another one.
    """
    found = importlib.util.find_spec(package)
    if found is None:
        raise InrilError(f"{package} is not installed. {advice}")
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    for folder in folders:
        if (folder / file).is_file():
            return folder
    where = found.origin or ", ".join(map(str, folders))
    raise InrilError(f"The {package} at {where} is another package: it has no {file}. {advice}")


def _env_class(task: MimicgenTask) -> Any:
    """Import MimicGen and return the class of a task.

    Raises:
        InrilError: something is not installed, or cannot be imported.
    """
    folder = find_installation("mimicgen", "envs/robosuite/coffee.py", INSTALL_MIMICGEN)
    if task.env_name.startswith("HammerCleanup"):
        find_installation("robosuite_task_zoo", "environments/manipulation/hammer_place.py", INSTALL_TASK_ZOO)
    robosuite = import_robosuite()
    said = io.StringIO()  # MimicGen prints what it could not import, and goes on
    with quiet(), contextlib.redirect_stdout(said), _old_module():
        try:
            importlib.import_module("mimicgen")
        except Exception as error:  # whatever the code of others may raise
            raise InrilError(f"The MimicGen at {folder} cannot be imported: {reason(error)}.") from error
    registered = robosuite.environments.base.REGISTERED_ENVS
    if task.env_name not in registered:
        why = " ".join(said.getvalue().split()) or "without giving a reason"
        raise InrilError(f"The MimicGen at {folder} does not offer {task.env_name}: {why}.")
    return registered[task.env_name]


def _make(env_class: Any, task: MimicgenTask, rng: np.random.Generator) -> Any:
    """Make one environment, with every random draw from ``rng``."""
    kwargs = dict(task.env_args("")["env_kwargs"])
    del kwargs["lite_physics"]  # 1.4 did not have it; in 1.5 it is on by default
    with quiet(), _unseeded_draws_from(rng):
        env = env_class(hard_reset=False, **kwargs)
    _observe_as_recorded(env)
    width = len(env.observation_spec()["object-state"])
    if width != dict(task.obs_keys)["object"]:
        raise InrilError(
            f"{task.name}: the installed MimicGen observes {width} numbers of the objects, not "
            f"{dict(task.obs_keys)['object']} as MimicGen 1.0.1 does."
        )
    return env


def _observe_as_recorded(env: Any) -> None:
    """Give robosuite's nuts the order of 1.4: 1.5 has the pose in the hand first, and computes it from an old pose."""
    for nut in getattr(env, "nuts", ()):
        for part in ("pos", "quat", "to_robot0_eef_pos", "to_robot0_eef_quat"):
            env._observables.move_to_end(f"{nut.name}_{part}")


@contextlib.contextmanager
def _unseeded_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """Hand out ``rng`` wherever numpy is asked for a generator without a seed.

    Environments of robosuite 1.4 take no seed, nor do they hand one to their samplers and objects; in 1.5 each of these
    would make a generator of its own.
    """
    original = np.random.default_rng
    np.random.default_rng = lambda seed=None: rng if seed is None else original(seed)
    try:
        yield
    finally:
        np.random.default_rng = original


# -- robosuite 1.4's names --------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _old_module() -> Iterator[None]:
    """Offer robosuite 1.4's module of single-arm environments, for as long as something is imported."""
    module: Any = ModuleType(OLD_MODULE)
    module.SingleArmEnv = _single_arm_env()
    sys.modules[OLD_MODULE] = module
    try:
        yield
    finally:
        del sys.modules[OLD_MODULE]


def _single_arm_env() -> Any:
    """Return a base class that environments written for robosuite 1.4 can stand on."""
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv

    base: Any = ManipulationEnv

    class SingleArmEnv(base):
        def __init__(self, *args: Any, mount_types: Any = None, **kwargs: Any) -> None:
            if mount_types is not None:
                kwargs["base_types"] = mount_types
            kwargs["renderer"] = "mujoco"  # 1.4's default; that of 1.5 wants a display
            super().__init__(*args, **kwargs)

        def _load_model(self) -> None:
            # 1.5 edits every model that it builds. The editing is made for recorded models, whose assets lay elsewhere,
            # and goes by folder names: with robosuite installed below a folder called mimicgen it loses the assets.
            self._xml_processors = []
            super()._load_model()

        def _load_robots(self) -> None:
            super()._load_robots()
            for robot in self.robots:
                robot.__class__ = _old_robot(type(robot))

    return SingleArmEnv


def _old_robot(robot_class: Any) -> Any:
    """Return a robot that has what MimicGen reads from it where robosuite 1.4 had it."""

    class OldRobot(robot_class):
        @property
        def controller(self) -> SimpleNamespace:
            return SimpleNamespace(eef_name=self.gripper[ARM].important_sites["grip_site"])

        @property
        def ee_force(self) -> _Reading:
            return super().ee_force[ARM].view(_Reading)

        @property
        def ee_torque(self) -> _Reading:
            return super().ee_torque[ARM].view(_Reading)

    return OldRobot


class _Reading(np.ndarray):
    """A force or torque [3]: a vector to robosuite 1.4, a table by arm to 1.5."""

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self) if isinstance(key, str) and key == ARM else super().__getitem__(key)
