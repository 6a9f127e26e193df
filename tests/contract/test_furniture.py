"""Furniture on its simulator: kinematics, contact, threads, resets; nothing depends on the number of threads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.envs.base import EnvConfig, FurnitureOptions
from inril_ray.envs.furniture import kinematics, logic, robot
from inril_ray.envs.furniture.cpu import CpuPhysics
from inril_ray.envs.furniture.geometry import mujoco_quat
from inril_ray.envs.furniture.model import addresses, compile_model
from inril_ray.envs.furniture.spec import LEVELS, PITCH
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.registry import resolve
from inril_ray.rotations import matrix_of_quat, matrix_of_vector

pytestmark = pytest.mark.sim
EVERYWHERE = np.ones(1, bool)
HOLD = np.array([*robot.RESET_JOINTS, robot.FINGER_FORCE, robot.FINGER_FORCE])


def make(task: str = "one_leg_low", num_envs: int = 2, seed: int = 0, first_env: int = 0, **options: Any) -> Any:
    config = EnvConfig(furniture=FurnitureOptions(**options))
    return envs.make(f"furniture/{task}", num_envs=num_envs, seed=seed, first_env=first_env, config=config)


def still(env: Any) -> np.ndarray:
    """Actions that command the pose that the hand has."""
    return np.concatenate([env.obs[:, :9], -np.ones((env.num_envs, 1))], axis=1).astype(np.float32)


# -- the model --------------------------------------------------------------------------------------------------------
def test_kinematics_are_those_of_the_model() -> None:
    import mujoco

    model = compile_model(FURNITURE["peg_in_hole"])
    data = mujoco.MjData(model)
    joints = robot.RESET_JOINTS + np.random.default_rng(0).normal(0, 0.3, (5, 7))
    for row, pos, matrix, jacobian in zip(joints, *kinematics.forward(joints), strict=True):
        data.qpos[:7] = row
        mujoco.mj_forward(model, data)
        linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        site = model.site("ee").id
        mujoco.mj_jacSite(model, data, linear, angular, site)
        np.testing.assert_allclose(data.site_xpos[site], pos, atol=1e-12)
        np.testing.assert_allclose(data.site_xmat[site].reshape(3, 3), matrix, atol=1e-12)
        np.testing.assert_allclose(np.vstack([linear, angular])[:, :7], jacobian, atol=1e-12)


@pytest.mark.parametrize(("name", "nv"), [("one_leg", 41), ("lamp", 29), ("round_table", 31), ("peg_in_hole", 21)])
def test_parts_lie_still_where_they_start(name: str, nv: int) -> None:
    furniture = FURNITURE[name]
    physics = CpuPhysics(furniture, 1, 1)
    assert physics.model.nv == nv
    physics.qpos[0, list(physics.where.joints)] = robot.RESET_JOINTS
    physics.qpos[0, list(physics.where.fingers)] = furniture.gripper_width / 2
    physics.begin(EVERYWHERE)
    start = logic.part_poses(physics.qpos, physics.where)[0].copy()
    for _ in range(20):
        physics.step(HOLD[None], EVERYWHERE)
    moved = np.linalg.norm(logic.part_poses(physics.qpos, physics.where)[0] - start, axis=-1)
    assert moved.max() < 0.004
    assert np.abs(physics.qvel[0, 9:]).max() < 0.02
    np.testing.assert_allclose(physics.qpos[0, :7], robot.RESET_JOINTS, atol=1e-3)  # gravity is compensated
    physics.close()


def screwed(name: str, number: int, turned: float) -> tuple[CpuPhysics, Any]:
    """A physics where a screw is in its first hole, with so much left to turn."""
    furniture = FURNITURE[name]
    screw = furniture.screws[number]
    physics = CpuPhysics(furniture, 1, 1)
    at, index = physics.where.screws[number], furniture.parts_by_name
    physics.qpos[0, list(physics.where.joints)] = robot.RESET_JOINTS
    part = physics.where.parts_qpos[index[screw.part]]
    pos, quat = logic.part_poses(physics.qpos, physics.where)
    turn = matrix_of_quat(quat[0, index[screw.into]])
    pose, axis = screw.poses[0], np.asarray(screw.axis)
    place = pos[0, index[screw.into]] + turn @ (
        np.asarray(pose.pos) + logic.helix_height(turned) * (pose.matrix @ axis)
    )
    physics.qpos[0, part : part + 3] = place
    physics.qpos[0, part + 3 : part + 7] = mujoco_quat(turn @ pose.matrix @ matrix_of_vector(turned * axis))
    physics.qpos[0, at.hinge_qpos], physics.qpos[0, at.slide_qpos] = -turned, -logic.helix_height(turned)
    physics.active_equalities[0, [at.lock, at.welds[0]]] = False, True
    physics.begin(EVERYWHERE)
    return physics, screw


@pytest.mark.parametrize(("name", "number"), [("one_leg", 0), ("lamp", 0), ("round_table", 0)])
def test_a_screw_keeps_to_its_helix(name: str, number: int) -> None:
    """Turned by a torque about its axis, it advances by the pitch, to a quarter of a millimetre, and ends assembled."""
    import mujoco

    physics, screw = screwed(name, number, math.radians(300.0))
    furniture = FURNITURE[name]
    index, at = furniture.parts_by_name, physics.where.screws[number]
    data, model = physics._data[0], physics.model
    body = model.body(screw.part).id
    held, dofs = (where[index[screw.into]] for where in (physics.where.parts_qpos, physics.where.parts_qvel))
    mujoco.mj_step(model, data, nstep=120)  # both come to rest on the table
    clamped = data.qpos[held : held + 7].copy()
    errors = []
    turned, pos, quat = math.inf, None, None
    for _ in range(960):
        axis = data.body(screw.part).xmat.reshape(3, 3) @ np.asarray(screw.axis)
        turned = -data.qpos[at.hinge_qpos]
        spin = float(data.qvel[at.hinge_qvel])
        data.xfrc_applied[body, 3:] = -axis * (0.016 - 0.003 * max(spin, 0.0)) * (turned > 0.02)
        data.qpos[held : held + 7], data.qvel[dofs : dofs + 6] = clamped, 0.0  # in a vice
        mujoco.mj_step(model, data)
        physics.qpos[0] = data.qpos
        pos, quat = logic.part_poses(physics.qpos, physics.where)
        place, _ = logic.relative_pose(pos, quat, index[screw.into], index[screw.part])
        pose = screw.poses[0]
        height = (place[0] - pose.pos) @ (pose.matrix @ np.asarray(screw.axis))
        errors.append(height - PITCH * turned / (2 * math.pi))
    assert turned < math.radians(20.0), "it was not driven home"
    assert np.abs(errors[40:]).max() < 2.5e-4
    assert logic.assembled(pos, quat, furniture)[0, number]
    physics.close()


# -- episodes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", LEVELS)
def test_resets_vary_within_their_level(level: str) -> None:
    env = make(f"one_leg_{level}", 24)
    obs, _ = env.reset()
    joints, limits = env.physics.qpos[:, :7], LEVELS[level]
    spread = np.degrees(np.abs(joints - robot.RESET_JOINTS).max())
    assert 0.7 * limits.joints_deg < spread <= limits.joints_deg
    shift = np.abs(env.physics.obstacle - env.physics.obstacle_start).max(axis=0)
    assert (0.7 * limits.obstacle_m < shift[:2]).all()
    assert (shift[:2] <= limits.obstacle_m).all()
    assert shift[2] == 0
    poses = obs[:, 16:-7].reshape(24, 5, 7)
    assert np.abs(poses - poses[:1]).max() < 1e-5, "parts start at fixed poses"
    speed = np.linalg.norm(env.physics.qvel[:, env.where.parts_qvel[0] :][:, :2], axis=1)
    assert 0 < speed.min() < speed.max() <= min(limits.force_n * 25 / 120 / 0.151, limits.speed_m_s) + 1e-9
    env.close()


def test_pegs_are_scattered() -> None:
    env = make("peg_in_hole", 40)
    obs, _ = env.reset()
    poses = obs[:, 16:30].reshape(40, 2, 7)
    assert 0.008 < np.abs(poses[..., :2] - poses[..., :2].mean(axis=0)).max() < 0.0125
    env.close()


def test_results_do_not_depend_on_threads_or_on_how_environments_are_split() -> None:
    everyone, threaded = make(num_envs=4), make(num_envs=4, threads=3)
    second = make(num_envs=2, first_env=2)
    for env in (everyone, threaded, second):
        env.reset()
    rng = np.random.default_rng(0)
    for _ in range(4):
        action = still(everyone) + 0.05 * rng.normal(size=(4, 10)).astype(np.float32)
        one, two, part = everyone.step(action), threaded.step(action), second.step(action[2:])
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[0][2:], part[0])
    for env in (everyone, threaded, second):
        env.close()


def test_a_broken_simulation_ends_one_episode_only() -> None:
    env = make(num_envs=2)
    env.reset()
    env.physics.qpos[0, env.where.parts_qpos[2]] = np.nan
    env.physics.write(np.array([True, False]))
    obs, reward, _, truncated, info = env.step(still(env))
    assert info["nan_reset"].tolist() == [True, False]
    assert truncated.tolist() == [True, False]
    assert np.isfinite(obs).all()
    assert reward.tolist() == [0, 0]
    obs, *_ = env.step(still(env))
    assert np.isfinite(obs).all()
    env.close()


@pytest.mark.parametrize("solved", [False, True])
def test_a_part_that_is_thrown_away_ends_the_episode_as_a_failure(solved: bool) -> None:
    env = make(num_envs=2)
    env.reset()
    env.physics.qpos[0, env.where.parts_qpos[2]] = 2.5
    env.physics.write(np.array([True, False]))
    env.assembled[0] = solved
    _, _, terminated, truncated, info = env.step(still(env))
    assert not (info["nan_reset"] | truncated).any()
    assert terminated.tolist() == [not solved, False]
    assert info["success"].tolist() == [solved, False]
    assert np.abs(info.get("final_obs", env.obs)).max() <= 3.0
    env.close()


@pytest.mark.parametrize("task", ["lamp_med", "round_table_high"])
def test_no_push_is_faster_than_its_level(task: str) -> None:
    env = make(task, 40)
    env.reset()
    level = LEVELS[task.split("_")[-1]]
    speeds = np.array([np.linalg.norm(env.physics.qvel[:, at : at + 2], axis=1) for at in env.where.parts_qvel])
    spins = np.array([np.linalg.norm(env.physics.qvel[:, at + 3 : at + 6], axis=1) for at in env.where.parts_qvel])
    assert speeds.max() <= level.speed_m_s + 1e-9
    assert spins.max() <= level.spin_rad_s + 1e-9
    assert (speeds == speeds.max()).sum() == 1, "scaled, not cut: nothing piles up at the limit"
    env.close()


def test_perturbations_come_as_often_as_asked() -> None:
    quiet, shaken = make(num_envs=8), make(num_envs=8, perturbation=0.5)
    quiet.reset()
    shaken.reset()
    for _ in range(3):
        a, *_ = quiet.step(still(quiet))
        b, *_ = shaken.step(still(shaken))
    moved = np.abs(a - b)[:, 16:-7].reshape(8, 5, 7)[..., :3].max(axis=(0, 2))
    assert (moved > 1e-3).all()
    quiet.close()
    shaken.close()


def test_the_bulb_waits_for_the_hand() -> None:
    env = make("lamp_high", 4)
    obs, _ = env.reset()
    bulb = slice(16 + 7, 16 + 10)
    for _ in range(5):
        obs, *_ = env.step(still(env))
    np.testing.assert_allclose(obs[:, bulb], np.tile([-0.05, 0.235, -0.0244], (4, 1)), atol=1e-6)
    assert not env.released.any()
    near = logic.part_poses(env.physics.qpos, env.where)[0][:, 1]
    env.physics.qpos[:, :7] = robot.RESET_JOINTS
    for _ in range(40):  # bring the hand there without the simulator
        env.physics.qpos[:, :7] = kinematics.joint_targets(
            env.physics.qpos[:, :7], near + np.array([0.0, 0.0, 0.02]), np.tile(np.diag([1.0, -1.0, -1.0]), (4, 1, 1))
        )
    env._pin(np.ones(4, bool))
    assert env.released.all()
    env.close()


# -- experts ----------------------------------------------------------------------------------------------------------
def successes(task: str, num_envs: int, seed: int) -> tuple[np.ndarray, float]:
    """Run a scripted expert; return which episodes succeed, and the greatest slip of the held leg in metres."""
    env = make(task, num_envs, seed)
    cls = resolve(DEMONSTRATORS, f"furniture/{task}", "demonstrator")
    experts = [cls(np.random.default_rng([seed, i]), cls.Config()) for i in range(num_envs)]
    obs, active, solved = env.reset()[0], np.ones(num_envs, bool), np.zeros(num_envs, bool)
    grasp: dict[int, np.ndarray] = {}
    slip = 0.0
    for _ in range(env.task_spec.max_episode_steps):
        phases = [e.phase for e in experts]
        action = np.stack([e.act(o) for e, o in zip(experts, obs, strict=True)])
        outcome, _, broken = env.advance_guarded(action, active)
        assert not broken.any()
        obs = outcome.obs
        for i in np.flatnonzero(active):
            if phases[i] in ("lift_leg", "stand_leg") and experts[i].phase == phases[i]:
                hand, matrix, _ = kinematics.forward(env.physics.qpos[i : i + 1, :7])
                leg = logic.part_poses(env.physics.qpos, env.where)[0][i, 4]
                held = matrix[0].T @ (leg - hand[0])
                grasp.setdefault(i, held)
                slip = max(slip, float(np.abs(held - grasp[i])[1:].max()))
        solved |= outcome.success
        active &= ~outcome.success
        if not active.any():
            break
    env.close()
    return solved, slip


def test_the_peg_expert_inserts() -> None:
    assert successes("peg_in_hole", 8, 5)[0].mean() >= 0.9


@pytest.mark.slow
def test_the_leg_expert_assembles_and_the_grasp_holds() -> None:
    solved, slip = successes("one_leg_low", 10, 5)
    assert solved.mean() >= 0.9
    assert slip < 0.005, "a grasped leg must not slide between the fingers while it is stood up"


def test_addresses_cover_every_joint() -> None:
    for furniture in FURNITURE.values():
        model = compile_model(furniture)
        where = addresses(model, furniture)
        assert model.nq == 9 + 7 * len(furniture.parts) + 2 * len(furniture.screws)
        assert where.joints == tuple(range(7))
