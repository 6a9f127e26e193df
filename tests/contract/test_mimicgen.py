"""The MimicGen adapter on a stand-in: a package of that name, written for robosuite 1.4 as NVIDIA's is.

NVIDIA's own cannot be part of the tests (its licence forbids it, and it is in no package registry), so what is shown
here is that environments written against the old names work, not that NVIDIA's do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from inril_ray import envs
from inril_ray.envs.base import EnvConfig, SimVectorEnv
from inril_ray.envs.mimicgen import ARM, OLD_MODULE
from inril_ray.types import InrilError

pytestmark = [
    pytest.mark.sim,
    # Invalid escape sequences in robosuite's sources; a SyntaxWarning from Python 3.12 on.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

INIT = """
__version__ = "1.0.1"
for module in ("coffee", "nut_assembly", "hammer_cleanup"):
    try:
        __import__(f"mimicgen.envs.robosuite.{module}")
    except ImportError as error:
        print("WARNING: not imported:", error)
"""

BASE = """
import numpy as np
import robosuite.utils.transform_utils as T
from robosuite.environments.manipulation.single_arm_env import SingleArmEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import BoxObject, HammerObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.observables import Observable, sensor
from robosuite.utils.placement_samplers import SequentialCompositeSampler, UniformRandomSampler

TABLE = np.array((0.0, 0.0, 0.8))


class Table(SingleArmEnv):
    objects, bodies = (), ()

    def __init__(
        self, robots, controller_configs=None, use_camera_obs=True, use_object_obs=True, reward_shaping=False,
        has_renderer=False, has_offscreen_renderer=True, control_freq=20, ignore_done=False, hard_reset=True,
    ):
        super().__init__(
            robots=robots, controller_configs=controller_configs, mount_types="default", gripper_types="default",
            initialization_noise="default", use_camera_obs=use_camera_obs, has_renderer=has_renderer,
            has_offscreen_renderer=has_offscreen_renderer, control_freq=control_freq, ignore_done=ignore_done,
            hard_reset=hard_reset,
        )

    def edit_model_xml(self, xml):
        raise AssertionError("robosuite 1.4 edits recorded models only")

    def reward(self, action=None):
        return float(self._check_success())

    def _load_model(self):
        super()._load_model()
        model = self.robots[0].robot_model
        model.set_base_xpos(model.base_xpos_offset["table"](0.8))
        arena = TableArena(table_offset=TABLE)
        arena.set_origin([0, 0, 0])
        self.things = self.build()
        self.placement_initializer = SequentialCompositeSampler(name="all")
        for side, thing in zip((-0.15, 0.15), self.things):
            self.placement_initializer.append_sampler(UniformRandomSampler(
                name=thing.name, mujoco_objects=thing, x_range=(-0.05, 0.05), y_range=(side - 0.05, side + 0.05),
                rotation=(0.0, 1.0), ensure_object_boundary_in_range=False, reference_pos=TABLE, z_offset=0.001,
            ))
        self.model = ManipulationTask(
            mujoco_arena=arena, mujoco_robots=[r.robot_model for r in self.robots], mujoco_objects=self.things
        )

    def _reset_internal(self):
        super()._reset_internal()
        for pos, quat, thing in self.placement_initializer.sample().values():
            self.sim.data.set_joint_qpos(thing.joints[0], np.concatenate([pos, quat]))

    def pose_sensors(self, name, body):
        number, hand = self.sim.model.body_name2id(body), self.robots[0].robot_model.naming_prefix

        @sensor(modality="object")
        def pos(cache):
            return np.array(self.sim.data.body_xpos[number])

        @sensor(modality="object")
        def quat(cache):
            return T.convert_quat(self.sim.data.body_xquat[number], to="xyzw")

        @sensor(modality="object")
        def rel_pos(cache):
            return cache[f"{name}_pos"] - cache[f"{hand}eef_pos"] if f"{name}_pos" in cache else np.zeros(3)

        @sensor(modality="object")
        def rel_quat(cache):
            return cache[f"{name}_quat"] if f"{name}_quat" in cache else np.zeros(4)

        parts = ("pos", "quat", f"to_{hand}eef_pos", f"to_{hand}eef_quat")
        return {f"{name}_{part}": s for part, s in zip(parts, (pos, quat, rel_pos, rel_quat))}

    def _setup_observables(self):
        observables = super()._setup_observables()
        for name, s in {k: v for name, body in self.bodies for k, v in self.pose_sensors(name, body).items()}.items():
            observables[name] = Observable(name=name, sensor=s, sampling_rate=self.control_freq)
        return observables
"""

COFFEE = """
from mimicgen.envs.robosuite.table import *


class Coffee_D0(Table):
    bodies = (("pod", "pod_main"), ("machine", "machine_main"), ("holder", "machine_main"), ("lid", "table"))

    def build(self):
        return [BoxObject(name=n, size_min=[0.02] * 3, size_max=[0.03] * 3) for n in ("pod", "machine")]

    def _setup_observables(self):
        observables = super()._setup_observables()

        @sensor(modality="object")
        def hinge_angle(cache):
            site = self.sim.model.site_name2id(self.robots[0].controller.eef_name)
            return np.array([self.sim.data.site_xpos[site][2]])

        observables["hinge_angle"] = Observable("hinge_angle", hinge_angle, sampling_rate=self.control_freq)
        return observables

    def _check_success(self):
        return self.sim.data.get_body_xpos("pod_main")[2] > 1.0


class Coffee_D1(Coffee_D0):
    bodies = Coffee_D0.bodies[:3]
"""

NUT_ASSEMBLY = """
from robosuite.environments.manipulation.nut_assembly import NutAssembly
from robosuite.environments.manipulation.single_arm_env import SingleArmEnv


class NutAssembly_D0(NutAssembly, SingleArmEnv):
    def __init__(self, **kwargs):
        NutAssembly.__init__(self, **kwargs)
"""

HAMMER_PLACE = """
from mimicgen.envs.robosuite.table import *


class HammerPlaceEnv(Table):
    bodies = (("hammer", "hammer_root"), ("CabinetObject", "cabinet_main"))

    def build(self):
        cabinet = BoxObject(name="cabinet", size=[0.03] * 3)
        return [HammerObject(name="hammer", handle_length=(0.045, 0.05), handle_radius=(0.012, 0.012)), cabinet]

    def _reset_internal(self):
        super()._reset_internal()
        self.bias, self.forces = np.zeros(3), []

    def _pre_action(self, action, policy_step=False):
        super()._pre_action(action, policy_step=policy_step)
        self.forces.append(np.hstack((self.robots[0].ee_force - self.bias, self.robots[0].ee_torque)))

    def _post_action(self, action):
        if np.linalg.norm(self.bias) == 0:
            self.bias = self.robots[0].ee_force
        return super()._post_action(action)

    def _check_success(self):
        return False
"""

HAMMER_CLEANUP = """
from robosuite_task_zoo.environments.manipulation.hammer_place import HammerPlaceEnv


class HammerCleanup_D0(HammerPlaceEnv):
    pass
"""

FILES = {
    "mimicgen/__init__.py": INIT,
    "mimicgen/envs/robosuite/table.py": BASE,
    "mimicgen/envs/robosuite/coffee.py": COFFEE,
    "mimicgen/envs/robosuite/nut_assembly.py": NUT_ASSEMBLY,
    "mimicgen/envs/robosuite/hammer_cleanup.py": HAMMER_CLEANUP,
    "robosuite_task_zoo/environments/manipulation/hammer_place.py": HAMMER_PLACE,
}
TASKS = ("mimicgen/coffee", "mimicgen/nut_assembly", "mimicgen/hammer_cleanup")
COFFEE_TASK = TASKS[0]


def forget() -> None:
    """Undo the import of the stand-in."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("mimicgen", "robosuite_task_zoo")]:
        del sys.modules[name]
    if "robosuite" in sys.modules:
        registered = sys.modules["robosuite"].environments.base.REGISTERED_ENVS
        for name in [n for n in registered if n.endswith(("_D0", "_D1"))]:
            del registered[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the stand-in, installed."""
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path
    forget()


def make(task: str, num_envs: int = 1, *, seed: int = 0, first_env: int = 0, **options: Any) -> Any:
    return envs.make(task, num_envs=num_envs, seed=seed, first_env=first_env, config=EnvConfig(**options))


def actions_for(env: SimVectorEnv, steps: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (steps, env.num_envs, 7)).astype(np.float32)


def run(env: SimVectorEnv, actions: np.ndarray) -> np.ndarray:
    return np.stack([env.reset()[0], *(env.step(action)[0] for action in actions)])


def part(env: SimVectorEnv, obs: np.ndarray, *path: int) -> np.ndarray:
    """The object part of observations; with a place and a width, some of it."""
    objects = obs[..., env.task_spec.obs_dim - env.task_spec.obs_keys[-1][1] :]
    return objects[..., path[0] : path[0] + path[1]] if path else objects


@pytest.mark.parametrize("task", TASKS)
def test_environments_for_robosuite_14_work(site: Path, task: str) -> None:
    default_rng = np.random.default_rng
    env = make(task, 2, max_episode_steps=4)
    assert OLD_MODULE not in sys.modules
    assert np.random.default_rng is default_rng
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)
    for step, action in enumerate(actions_for(env, 5)):
        obs, reward, _, truncated, info = env.step(action)
        assert env.observation_space.contains(obs)
        assert truncated.tolist() == [step == 3] * 2
        assert not info["success"].any()
        assert not info["nan_reset"].any()
        assert reward.tolist() == [0.0, 0.0]
    assert env.versions()["mimicgen"] == "1.0.1, on the rules of robosuite 1.5"
    env.close()


@pytest.mark.parametrize("task", TASKS)
def test_seed_determines_models_and_initial_states(site: Path, task: str) -> None:
    whole, first, second, other = make(task, 2), make(task), make(task, first_env=1), make(task, seed=1)
    for _ in range(2):  # the second episode follows a soft reset
        actions = actions_for(whole, 3)
        expected = run(whole, actions)
        parts = [run(first, actions[:, :1]), run(second, actions[:, 1:])]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)
        assert not np.isclose(part(other, run(other, actions[:, :1]))[0, 0, :2], part(whole, expected)[0, 0, :2]).any()
    sizes = [env.envs[0].sim.model._model.geom_size for env in (whole, first, other)]
    np.testing.assert_array_equal(sizes[0], sizes[1])
    draws_sizes = task != "mimicgen/nut_assembly"
    assert np.array_equal(sizes[0], sizes[2]) != draws_sizes
    for env in (whole, first, second, other):
        env.close()


def test_resets_are_soft_and_draw_new_states(site: Path) -> None:
    env = make("mimicgen/hammer_cleanup")
    model = env.envs[0].sim.model
    starts = [part(env, env.reset()[0], 0, 3) for _ in range(3)]
    assert len({tuple(start[0].tolist()) for start in starts}) == 3
    assert env.envs[0].sim.model is model
    env.close()


@pytest.mark.parametrize("ends", [False, True])
def test_success_is_the_environments_own(site: Path, ends: bool) -> None:
    env = make(COFFEE_TASK, 2, terminate_on_success=ends)
    env.reset()
    data = env.envs[1].sim.data
    data.set_joint_qpos("pod_joint0", np.array([0.0, 0.0, 1.5, 1.0, 0.0, 0.0, 0.0]))
    _, reward, terminated, _, info = env.step(np.zeros((2, 7), np.float32))
    assert info["success"].tolist() == [False, True]
    assert reward.tolist() == [0.0, 1.0]
    assert terminated.tolist() == [False, ends]
    env.close()


def test_actions_are_in_the_frame_of_the_world(site: Path) -> None:
    env = make(COFFEE_TASK)
    env.reset()
    assert env.envs[0].robots[0].composite_controller.get_controller(ARM).input_ref_frame == "world"
    env.close()


def test_names_that_moved_are_found_in_their_old_places(site: Path) -> None:
    env = make(COFFEE_TASK)
    obs, _ = env.reset()
    np.testing.assert_allclose(part(env, obs, 56, 1)[0, 0], obs[0, 2], atol=1e-6)  # height of the hand, twice
    robot = env.envs[0].robots[0]
    force = np.array(robot.ee_force)
    assert force.shape == (3,)
    np.testing.assert_array_equal(robot.ee_force[ARM], force)
    assert robot.ee_force[1] == force[1]
    env.close()


def test_nut_assembly_observes_as_recorded(site: Path) -> None:
    """Per nut: position, orientation, and the pose in the hand, computed from these very numbers."""
    env = make("mimicgen/nut_assembly", 2)
    history = run(env, actions_for(env, 4))
    nuts = part(env, history).reshape(*history.shape[:2], 2, 14)
    for row in range(len(history)):
        for i in range(2):
            hand = Rotation.from_quat(history[row, i, 3:7])
            for nut in nuts[row, i]:
                offset = hand.inv().apply(nut[:3] - history[row, i, :3])
                np.testing.assert_allclose(nut[7:10], offset, atol=1e-5)
                turn = hand.inv() * Rotation.from_quat(nut[3:7]) * Rotation.from_quat(nut[10:]).inv()
                assert turn.magnitude() < 1e-3
    assert (nuts[:, :, 0, 1] > 0).all(), "the square nut is on the left"
    assert (nuts[:, :, 1, 1] < 0).all(), "the round nut is on the right"
    env.close()


def test_nut_assembly_pays_half_for_each_nut(site: Path) -> None:
    env = make("mimicgen/nut_assembly")
    env.reset()
    sim = env.envs[0].sim
    rewards, successes = [], []
    for nut, peg in (("SquareNut", "peg1"), ("RoundNut", "peg2")):
        pos = sim.data.get_body_xpos(peg).copy()
        pos[2] = 0.83
        sim.data.set_joint_qpos(f"{nut}_joint0", np.concatenate([pos, [1, 0, 0, 0]]))
        _, reward, _, _, info = env.step(np.zeros((1, 7), np.float32))
        rewards.append(float(reward[0]))
        successes.append(bool(info["success"][0]))
    assert rewards == [0.5, 1.0]
    assert successes == [False, True]
    env.close()


def test_other_observations_are_refused(site: Path) -> None:
    with pytest.raises(InrilError, match=r"mimicgen/coffee_d1: .* observes 43 numbers of the objects, not 57"):
        make("mimicgen/coffee_d1")


def test_what_mimicgen_could_not_import_is_passed_on(site: Path) -> None:
    (site / "mimicgen/envs/robosuite/nut_assembly.py").write_text("import a_module_that_is_missing")
    with pytest.raises(InrilError, match=r"does not offer NutAssembly_D0: .*'a_module_that_is_missing'"):
        make("mimicgen/nut_assembly")


def test_failing_import_is_explained(site: Path) -> None:
    (site / "mimicgen/__init__.py").write_text("raise RuntimeError('too old')")
    with pytest.raises(InrilError, match=r"cannot be imported: too old\."):
        make(COFFEE_TASK)
    assert OLD_MODULE not in sys.modules
