"""The Gym tasks against gymnasium's own environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from inril_ray import envs
from inril_ray.envs.base import EnvConfig
from inril_ray.envs.locomotion import HALFCHEETAH, HOPPER, WALKER2D, LocomotionEnv, LocomotionTask
from inril_ray.types import InrilError

TASKS = (HOPPER, WALKER2D, HALFCHEETAH)
CASES = [(task, semantics) for task in TASKS for semantics in task.semantics]
IDS = [f"{task.env_name}-{semantics}" for task, semantics in CASES]
EVERYWHERE = np.ones(3, bool)

pytestmark = [
    pytest.mark.sim,
    # Asking gymnasium for v4, which is meant.
    pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning"),
]


def make(task: LocomotionTask, num_envs: int = 3, **options: Any) -> Any:
    return envs.make(task.name, num_envs=num_envs, seed=4, config=EnvConfig(**options))


def own(task: LocomotionTask, semantics: str) -> Any:
    return gym.make(f"{task.env_name}-{semantics}").unwrapped


def actions_for(task: LocomotionTask, steps: int, num_envs: int = 3) -> np.ndarray:
    return np.random.default_rng(8).uniform(-1, 1, (steps, num_envs, task.action_dim)).astype(np.float32)


@pytest.mark.parametrize(("task", "semantics"), CASES, ids=IDS)
def test_bit_identical_to_gymnasium(task: LocomotionTask, semantics: str) -> None:
    """120 steps and the resets between them: states, observations and rewards in float64, and terminations."""
    fast = make(task, semantics=semantics)
    assert isinstance(fast, LocomotionEnv)
    references = [own(task, semantics) for _ in range(3)]
    fast.reset_envs(EVERYWHERE)

    def restart(i: int) -> None:
        references[i].np_random = fast.episode_rng(i)
        np.testing.assert_array_equal(fast.obs[i], references[i].reset()[0].astype(np.float32))

    for i in range(3):
        restart(i)
    ended = 0
    for action in actions_for(task, 120):
        outcome = fast.advance(action, EVERYWHERE)
        over = []
        for i, reference in enumerate(references):
            obs, reward, terminated, _, _ = reference.step(action[i])
            np.testing.assert_array_equal(fast.physics[i, 1:], reference.state_vector())
            np.testing.assert_array_equal(fast.warm_start[i], reference.data.qacc_warmstart)
            np.testing.assert_array_equal(outcome.obs[i], obs)
            assert outcome.reward[i] == reward
            over.append(terminated)
        np.testing.assert_array_equal(outcome.terminated, over)
        if any(over):
            ended += sum(over)
            fast.reset_envs(np.array(over))
            for i in np.flatnonzero(over):
                restart(i)
    assert (ended > 3) == (task is not HALFCHEETAH)


@pytest.mark.parametrize(("task", "semantics"), CASES, ids=IDS)
def test_health_is_judged_as_gymnasium_does(task: LocomotionTask, semantics: str) -> None:
    """From states far and near the bounds, most of which no episode would reach."""
    rng = np.random.default_rng(5)
    fast, reference = make(task, semantics=semantics, num_envs=200), own(task, semantics)
    everywhere = np.ones(200, bool)
    fast.reset_envs(everywhere)
    pos = reference.init_qpos + rng.uniform(-0.4, 0.4, (200, reference.model.nq))
    vel = rng.uniform(-1, 1, (200, reference.model.nv)) * rng.choice([1.0, 30.0, 150.0], (200, 1))
    fast.physics[:, 1:] = np.concatenate([pos, vel], axis=1)
    action = np.zeros((200, task.action_dim), np.float32)
    outcome = fast.advance(action, everywhere)
    for i in range(200):
        reference.reset()
        reference.set_state(pos[i], vel[i])
        reference.data.qacc_warmstart[:] = 0
        _, reward, terminated, _, _ = reference.step(action[i])
        assert (outcome.reward[i], outcome.terminated[i]) == (reward, terminated)
    if task is not HALFCHEETAH:
        assert 20 < outcome.terminated.sum() < 180


@pytest.mark.parametrize(("task", "semantics"), CASES, ids=IDS)
def test_backends_agree(task: LocomotionTask, semantics: str) -> None:
    fast, stock = (make(task, semantics=semantics, backend=b, max_episode_steps=60) for b in ("fast", "stock"))
    np.testing.assert_array_equal(fast.reset()[0], stock.reset()[0])
    for action in actions_for(task, 100):
        *got, got_info = fast.step(action)
        *want, want_info = stock.step(action)
        assert sorted(got_info) == sorted(want_info)
        for a, b in zip([*got, *got_info.values()], [*want, *want_info.values()], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("task", TASKS, ids=[t.env_name for t in TASKS])
def test_stock_continues_exactly_from_a_state(task: LocomotionTask) -> None:
    env, other = make(task, backend="stock"), make(task, backend="stock")
    env.reset()
    actions = actions_for(task, 40)
    for action in actions[:20]:
        env.step(action)
    other.set_state(env.get_state())
    for action in actions[20:]:
        for a, b in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("task", "semantics"), CASES, ids=IDS)
def test_spec_is_the_simulators(task: LocomotionTask, semantics: str) -> None:
    spec = envs.spec(task.name, EnvConfig(semantics=semantics))
    env = own(task, semantics)
    assert env.observation_space.shape == (spec.obs_dim,)
    np.testing.assert_array_equal(env.action_space.low, np.full(spec.action_dim, spec.action_low))
    np.testing.assert_array_equal(env.action_space.high, np.full(spec.action_dim, spec.action_high))
    assert spec.control_hz == pytest.approx(1 / env.dt)
    assert spec.max_episode_steps == gym.spec(f"{task.env_name}-{semantics}").max_episode_steps == 1000
    assert (spec.recorded_as, spec.semantics) == (task.env_name, semantics)
    assert envs.spec(task.name, EnvConfig(max_episode_steps=7)).max_episode_steps == 7


def test_v5_pays_for_health_only_in_healthy_states() -> None:
    rewards = []
    for semantics in ("v4", "v5"):
        env = make(HOPPER, 1, semantics=semantics)
        env.reset_envs(np.ones(1, bool))
        outcome = None
        while outcome is None or not outcome.terminated[0]:
            outcome = env.advance(np.ones((1, 3), np.float32), np.ones(1, bool))
        rewards.append(outcome.reward[0])
    assert rewards[0] - rewards[1] == pytest.approx(1.0)


def test_v5_differs_in_the_friction_of_walkers_right_foot() -> None:
    old, new = (own(WALKER2D, v).model for v in ("v4", "v5"))
    right, left = (old.geom(name).id for name in ("foot_geom", "foot_left_geom"))
    assert old.geom_friction[[right, left], 0].tolist() == [0.9, 1.9]
    assert new.geom_friction[[right, left], 0].tolist() == [1.9, 1.9]
    new.geom_friction[right] = old.geom_friction[right]
    np.testing.assert_array_equal(new.geom_friction, old.geom_friction)


def test_terminating_on_success_changes_nothing() -> None:
    env = make(HALFCHEETAH, terminate_on_success=True)
    env.reset()
    for action in actions_for(HALFCHEETAH, 30):
        _, _, terminated, truncated, info = env.step(action)
        assert not (terminated | truncated | info["success"]).any()


def test_unknown_semantics_are_refused() -> None:
    with pytest.raises(InrilError, match=r"env.semantics = 'v3': gym/hopper has v4, v5\."):
        make(HOPPER, semantics="v3")


@pytest.mark.parametrize("backend", HOPPER.backends)
def test_pictures_leave_the_simulation_alone(backend: str) -> None:
    env, undisturbed = make(HOPPER, backend=backend), make(HOPPER, backend=backend)
    env.reset()
    undisturbed.reset()
    for action in actions_for(HOPPER, 3):
        picture = env.render_env(1, 500, 60)
        assert (picture.shape, picture.dtype) == ((60, 500, 3), np.uint8)
        assert picture.std() > 5
        np.testing.assert_array_equal(env.step(action)[0], undisturbed.step(action)[0])
    env.close()
