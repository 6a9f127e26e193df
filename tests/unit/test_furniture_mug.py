"""The mug and its rack in MuJoCo: how they stand, which mugs count as hung, and the expert."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.demos.scripted.furniture.mug_rack import MugRackExpert
from inril_ray.envs.base import EnvConfig, FurnitureOptions
from inril_ray.envs.furniture import logic
from inril_ray.envs.furniture.tasks.mug_rack import HUNG, MUG, MUG_RACK, PEGS, POST, RACK, RISE
from inril_ray.envs.furniture.vector_env import FurnitureEnv
from inril_ray.rotations import matrix_of_quat, matrix_of_vector, quat_of_matrix
from inril_ray.types import BoolArray, FloatArray

pytestmark = pytest.mark.sim
UP = np.array([0.0, 0.0, 1.0])


def make(num_envs: int, seed: int) -> FurnitureEnv:
    config = EnvConfig(furniture=FurnitureOptions(threads=1))
    env = envs.make("furniture/mug_rack", num_envs=num_envs, seed=seed, purpose="demos", config=config)
    assert isinstance(env, FurnitureEnv)
    env.reset_envs(np.ones(num_envs, bool))
    return env


def start_on_peg(rng: np.random.Generator, peg: int) -> tuple[FloatArray, FloatArray]:
    """Return position [3] and rotation [3, 3] in the rack's frame of a mug whose handle is around a peg."""
    direction, height = PEGS[peg]
    out = np.array([math.cos(direction), math.sin(direction), 0.0])
    axis = math.cos(RISE) * out + math.sin(RISE) * UP
    above = math.cos(RISE) * UP - math.sin(RISE) * out
    swing = math.radians(rng.uniform(-80.0, 80.0))  # of the handle from the vertical
    x, z = math.cos(swing) * above + math.sin(swing) * np.cross(axis, above), rng.choice([-1, 1]) * axis
    turn = matrix_of_vector(rng.normal(0.0, 0.07, 3)) @ np.stack([x, np.cross(z, x), z], axis=1)
    at = POST * out + height * UP + rng.uniform(0.045, 0.070) * axis
    return at - turn @ np.array([rng.uniform(0.051, 0.056), rng.uniform(-0.013, 0.013), 0.0]), turn


def place(env: FurnitureEnv, i: int, pos: FloatArray, turn: FloatArray) -> None:
    """Put a mug at a pose in the frame of the rack, which is put where it starts; both at rest."""
    physics, where = env.physics, env.where
    home = RACK.start[0]
    rack, mug = where.parts_qpos
    physics.qpos[i, rack : rack + 7] = [*home, 1.0, 0.0, 0.0, 0.0]
    physics.qpos[i, mug : mug + 7] = [*(home + pos), *np.roll(quat_of_matrix(turn), 1)]
    physics.qvel[i] = 0.0


def settle(env: FurnitureEnv, steps: int) -> BoolArray:
    """Let everything move while the arm stays where it is; return which mugs count as hung then, [B]."""
    everywhere = np.ones(env.num_envs, bool)
    env.physics.begin(everywhere)
    controls = np.zeros((env.num_envs, 9))
    controls[:, :7] = env.physics.qpos[:, list(env.where.joints)]
    for _ in range(steps):
        env.physics.step(controls, everywhere)
    return counted(env)


def counted(env: FurnitureEnv) -> BoolArray:
    """Return which mugs count as hung now, [B]."""
    return logic.assembled(*logic.part_poses(env.physics.qpos, env.where), MUG_RACK)[:, 0]


def test_both_stand_where_the_pushes_leave_them() -> None:
    env = make(16, seed=0)
    assert not settle(env, 20).any()
    pos, quat = logic.part_poses(env.physics.qpos, env.where)
    for k, (part, upwards) in enumerate(((RACK, 2), (MUG, 1))):
        from_start = np.linalg.norm((pos[:, k] - part.start[0])[:, :2], axis=1)
        assert from_start.max() < 0.05 and from_start.std() > 0.001
        np.testing.assert_allclose(pos[:, k, 2], part.start[0][2], atol=0.001)
        assert (matrix_of_quat(quat[:, k])[:, 2, upwards] > 0.999).all()
    env.close()


def test_mugs_that_settle_on_any_peg_count_and_stay() -> None:
    env, rng = make(40, seed=1), np.random.default_rng(7)
    for i in range(env.num_envs):
        place(env, i, *start_on_peg(rng, i % len(PEGS)))
    hung = settle(env, 50)
    assert hung.sum() >= 39
    rack = env.physics.qpos[:, env.where.parts_qpos[0] :][:, :3]
    assert np.abs(rack - RACK.start[0]).max() < 0.01
    mug = env.where.parts_qvel[1]
    assert np.abs(env.physics.qvel[hung, mug : mug + 3]).max() < 0.002
    env.close()


def test_every_reference_is_a_pose_that_a_mug_keeps() -> None:
    env = make(len(HUNG), seed=2)
    for i, pose in enumerate(HUNG):
        place(env, i, np.array(pose.pos), pose.matrix)
    assert counted(env).all()
    assert settle(env, 30).all()
    env.close()


def test_mugs_beside_the_rack_do_not_count() -> None:
    env, rng = make(40, seed=3), np.random.default_rng(8)
    for i in range(env.num_envs):  # in the air in front of a knob, as a hand would hold it there
        pos, turn = start_on_peg(rng, i % len(PEGS))
        direction = PEGS[i % len(PEGS)][0]
        place(env, i, pos + 0.06 * np.array([math.cos(direction), math.sin(direction), 0.0]), turn)
    assert not counted(env).any()
    assert not settle(env, 20).any()  # and after they have dropped
    mug = env.where.parts_qpos[1]
    assert (env.physics.qpos[:, mug + 2] < 0.1).all()
    env.close()


def test_the_references_are_where_the_handle_is_around_a_peg() -> None:
    for i, pose in enumerate(HUNG):
        direction, height = PEGS[i // 2]
        out = np.array([math.cos(direction), math.sin(direction), 0.0])
        foot = POST * out + height * UP
        axis = math.cos(RISE) * out + math.sin(RISE) * UP
        start, along = pose.matrix.T @ (foot - pose.pos), pose.matrix.T @ axis
        reached = -start[2] / along[2]
        x, y, _ = start + reached * along
        assert 0.02 < reached < 0.075
        assert 0.041 < x < 0.070 and abs(y) < 0.030


def test_the_expert_hangs_it() -> None:
    assert DEMONSTRATORS["furniture/mug_rack"].endswith("mug_rack:MugRackExpert")
    env = make(8, seed=4)
    experts = [MugRackExpert(np.random.default_rng([4, i]), MugRackExpert.Config()) for i in range(8)]
    obs, active = env.obs, np.ones(8, bool)
    for _ in range(env.task_spec.max_episode_steps):
        actions = np.stack([expert.act(row) for expert, row in zip(experts, obs, strict=True)])
        outcome, _, broken = env.advance_guarded(actions, active)
        obs, active = outcome.obs, active & ~outcome.success & ~broken
        if not active.any():
            break
    assert env.assembled[:, 0].sum() >= 6
    env.close()
