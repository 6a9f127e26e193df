"""Fetch and Adroit against gymnasium-robotics' own environments."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from inril_ray import envs
from inril_ray.envs.base import EnvConfig
from inril_ray.envs.robotics import HAMMER, PICK_AND_PLACE, PUSH, SLIDE, RoboticsTask, import_robotics
from inril_ray.types import InrilError

FETCH = (PUSH, PICK_AND_PLACE, SLIDE)
TASKS = (*FETCH, HAMMER)
EVERYWHERE = np.ones(2, bool)

every_task = pytest.mark.parametrize("task", TASKS, ids=[t.name for t in TASKS])
pytestmark = pytest.mark.sim


def make(task: RoboticsTask, num_envs: int = 2, **options: Any) -> Any:
    return envs.make(task.name, num_envs=num_envs, seed=4, config=EnvConfig(**options))


def actions_for(task: RoboticsTask, steps: int) -> np.ndarray:
    return np.random.default_rng(8).uniform(-1, 1, (steps, 2, task.action_dim)).astype(np.float32)


def flat(task: RoboticsTask, observed: Any) -> np.ndarray:
    return np.concatenate([observed[k] for k, _ in task.obs_keys]) if isinstance(observed, dict) else observed


def solve(task: RoboticsTask, env: Any) -> None:
    """Put the simulation into the solved state by hand."""
    if task is HAMMER:
        env.data.joint("nail_dir").qpos[:] = 0.09
    else:
        env.goal[:] = env._get_obs()["achieved_goal"]


def lay_hammer_on_nail(env: Any) -> None:
    """Put the head of the hammer to the nail."""
    way = env.data.site_xpos[env.target_obj_site_id] - env.data.geom("head").xpos
    for name in ("OBJTx", "OBJTy", "OBJTz"):
        joint = env.data.joint(name)
        joint.qpos[:] += joint.xaxis @ way


@every_task
def test_identical_to_the_simulators_own_environment(task: RoboticsTask) -> None:
    env = make(task)
    env.reset_envs(EVERYWHERE)
    references = [gym.make(task.env_id, max_episode_steps=1000, disable_env_checker=True) for _ in range(2)]
    for i, reference in enumerate(references):
        reference.unwrapped.np_random = env.episode_rng(i)
        np.testing.assert_array_equal(env.obs[i], flat(task, reference.reset()[0]).astype(np.float32))
    for action in actions_for(task, 60):
        outcome = env.advance(action, EVERYWHERE)
        for i, reference in enumerate(references):
            observed, reward, terminated, _, info = reference.step(action[i])
            np.testing.assert_array_equal(outcome.obs[i], flat(task, observed))
            assert (outcome.reward[i], outcome.terminated[i]) == (float(info[task.success_key]), terminated)
            assert outcome.reward[i] == (reward == 10.0 if task is HAMMER else reward + 1)


@every_task
def test_reward_is_one_exactly_when_solved(task: RoboticsTask) -> None:
    going, ending = make(task), make(task, terminate_on_success=True)
    rest = np.zeros((2, task.action_dim), np.float32)
    for env in (going, ending):
        env.reset()
        solve(task, env.envs[1])
        _, reward, terminated, truncated, info = env.step(rest)
        assert (reward.tolist(), info["success"].tolist(), info["stage"].tolist()) == ([0, 1], [False, True], [0, 1])
        assert terminated.tolist() == [False, env is ending]
        assert not truncated.any()


@every_task
def test_lengths_are_the_benchmarks_or_chosen(task: RoboticsTask) -> None:
    assert envs.spec(task.name, EnvConfig()).max_episode_steps == (200 if task is HAMMER else 50)
    assert envs.spec(task.name, EnvConfig(max_episode_steps=4000)).max_episode_steps == 4000
    env = make(task, max_episode_steps=55)
    env.reset()
    ends = [env.step(action)[3].tolist() for action in actions_for(task, 55)]
    assert ends == [[False, False]] * 54 + [[True, True]]


@every_task
def test_spec_is_the_simulators(task: RoboticsTask) -> None:
    spec, env = envs.spec(task.name, EnvConfig()), make(task).envs[0]
    assert spec.control_hz == pytest.approx(1 / env.dt)
    np.testing.assert_array_equal(env.action_space.low, np.full(spec.action_dim, spec.action_low))
    np.testing.assert_array_equal(env.action_space.high, np.full(spec.action_dim, spec.action_high))
    assert env.spec is None, "no wrappers of gymnasium"
    assert make(task).versions() == {"gymnasium": gym.__version__, "gymnasium-robotics": "1.4.2", "mujoco": "3.8.1"}


@every_task
def test_a_reset_leaves_nothing_of_the_episode_before(task: RoboticsTask) -> None:
    """A trajectory depends on (seed, purpose, environment, episode) only."""
    used, fresh = make(task), make(task)
    used.reset()
    for action in actions_for(task, 20):
        used.step(action)
    fresh.episode[:] = 0
    np.testing.assert_array_equal(used.reset()[0], fresh.reset()[0])
    for action in actions_for(task, 20):
        np.testing.assert_array_equal(used.step(action)[0], fresh.step(action)[0])


@every_task
def test_continuation_from_a_state_is_bit_identical(task: RoboticsTask) -> None:
    """Also in an environment that was never reset, and across the end of an episode."""
    env, other = make(task, max_episode_steps=20), make(task, max_episode_steps=20)
    env.reset()
    actions = actions_for(task, 40)
    for action in actions[:15]:
        env.step(action)
    state = env.get_state()
    for target in (other, env):
        target.set_state(state)
    for action in actions[15:]:
        for a, b in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)


@every_task
def test_pictures_leave_the_simulation_alone(task: RoboticsTask) -> None:
    env, undisturbed = make(task), make(task)
    env.reset()
    undisturbed.reset()
    for action in actions_for(task, 3):
        picture = env.render_env(1, 64, 48)
        assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
        assert picture.std() > 5
        np.testing.assert_array_equal(env.step(action)[0], undisturbed.step(action)[0])
    env.close()


@pytest.mark.parametrize("task", FETCH, ids=[t.name for t in FETCH])
def test_pictures_show_the_goal(task: RoboticsTask) -> None:
    env = make(task, 1)
    env.reset()
    before = env.render_env(0, 160, 120).astype(int)
    env.envs[0].goal[2] += 0.3
    assert (np.abs(env.render_env(0, 160, 120) - before).max(axis=2) > 50).sum() > 3
    env.close()


def test_hammer_predicts_what_stepping_observes() -> None:
    env, undisturbed = make(HAMMER, max_episode_steps=100), make(HAMMER, max_episode_steps=100)
    for each in (env, undisturbed):
        each.reset()
        for action in actions_for(HAMMER, 30):
            each.step(action)
        lay_hammer_on_nail(each.envs[1])
    plans = np.random.default_rng(2).uniform(-1.2, 1.2, (3, 12, HAMMER.action_dim))
    predicted = env.predict(1, plans)
    assert (predicted.shape, predicted.dtype) == ((3, 12, 46), np.float64)
    start = env.get_state()
    for name, value in undisturbed.get_state().items():
        np.testing.assert_array_equal(start[name], value)
    for plan, expected in zip(plans, predicted, strict=True):
        env.set_state(start)
        for action, want in zip(plan, expected, strict=True):
            outcome = env.advance(np.stack([action, action]).astype(np.float32), np.array([False, True]))
            np.testing.assert_array_equal(outcome.obs[1], want)
    assert np.abs(predicted[0] - predicted[1]).max() > 0.01, "the plans lead elsewhere"
    assert (predicted[..., -1] > 0).any(), "the hammer hits the nail"


def test_a_missing_or_other_release_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import_robotics()
    advice = r"pip install 'inril-ray\[robotics\]'"
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["gymnasium_robotics"], "__version__", "1.5.0")
        with pytest.raises(InrilError, match=rf"1\.4\.2, found 1\.5\.0.*{advice}"):
            make(PUSH)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(InrilError, match=rf"need gymnasium-robotics 1\.4\.2 .*{advice}"):
        make(HAMMER)
