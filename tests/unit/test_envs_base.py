"""The bookkeeping that every simulator inherits: spaces, autoreset, the NaN guard, random streams, state."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from inril_ray import envs
from inril_ray.envs.base import PURPOSES, EnvConfig
from inril_ray.types import InrilError
from tests.fakes import FAKE_TASK, FakeEnv, register_fake_task


def still(env: FakeEnv) -> np.ndarray:
    return np.zeros((env.num_envs, env.task_spec.action_dim), np.float32)


def everywhere(env: FakeEnv) -> np.ndarray:
    return np.ones(env.num_envs, bool)


def test_spaces_come_from_the_spec() -> None:
    env = FakeEnv(3)
    assert env.single_observation_space.shape == (3,)
    assert env.observation_space.shape == (3, 3)
    assert env.action_space.shape == (3, 2)
    assert env.single_action_space.low.tolist() == [-1.0, -1.0]
    assert env.single_action_space.high.tolist() == [1.0, 1.0]
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, info = env.reset()
    assert env.observation_space.contains(obs)
    assert info == {}


@pytest.mark.parametrize("num_envs", [0, -1])
def test_no_environments_is_an_error(num_envs: int) -> None:
    with pytest.raises(InrilError, match=f"num_envs = {num_envs}"):
        FakeEnv(num_envs)


def test_unknown_purpose_is_an_error() -> None:
    with pytest.raises(InrilError, match="'test'.*train, eval, demos"):
        FakeEnv(purpose="test")


def test_time_limit_truncates_and_restarts_in_the_same_step() -> None:
    env = FakeEnv(2, max_episode_steps=3, radius=0.0)
    first, _ = env.reset()
    for step in range(3):
        obs, _, terminated, truncated, info = env.step(still(env))
        assert not terminated.any()
        assert truncated.tolist() == [step == 2] * 2
        assert ("final_obs" in info) == (step == 2)
    assert info["_final_obs"].tolist() == [True, True]
    np.testing.assert_array_equal(info["final_obs"][:, :2], first[:, :2])
    assert info["final_obs"][:, 2].tolist() == [1.0, 1.0]
    assert obs[:, 2].tolist() == [0.0, 0.0]
    assert not np.array_equal(obs[:, :2], first[:, :2])
    assert env.episode.tolist() == [1, 1]
    assert env.elapsed.tolist() == [0, 0]


def test_only_the_environments_that_ended_restart() -> None:
    env = FakeEnv(3, max_episode_steps=4, radius=0.0)
    env.reset()
    env.step(still(env))
    env.reset_envs(np.array([False, True, False]))
    for _ in range(2):
        env.step(still(env))
    before = env.obs.copy()
    obs, _, _, truncated, info = env.step(still(env))
    assert truncated.tolist() == [True, False, True]
    assert info["_final_obs"].tolist() == [True, False, True]
    np.testing.assert_array_equal(obs[1, :2], before[1, :2])
    assert env.elapsed.tolist() == [0, 3, 0]
    assert env.episode.tolist() == [1, 1, 1]


def test_next_step_starts_anew_in_the_step_after_the_end() -> None:
    env, same = FakeEnv(2, max_episode_steps=2, radius=0.0), FakeEnv(2, max_episode_steps=2, radius=0.0)
    env.autoreset = AutoresetMode.NEXT_STEP
    env.reset()
    same.reset()
    push = np.full((2, 2), 0.5, np.float32)
    for _ in range(2):
        obs, _, _, truncated, info = env.step(push)
        restarted, *_, ended = same.step(push)
    assert truncated.all()
    assert "final_obs" not in info
    np.testing.assert_array_equal(obs, ended["final_obs"])
    env.reset_envs(np.array([False, True]))
    obs, reward, terminated, truncated, _ = env.step(push)
    np.testing.assert_array_equal(obs[0], restarted[0], "the action is ignored")
    assert not (terminated | truncated).any()
    assert reward[0] == 0
    assert env.elapsed.tolist() == [0, 1]


def test_disabled_rests_until_the_reset() -> None:
    env = FakeEnv(3, max_episode_steps=2, radius=0.0)
    env.autoreset = AutoresetMode.DISABLED
    env.reset()
    env.step(still(env))
    env.reset(options={"reset_mask": np.array([False, False, True])})
    push = np.full((3, 2), 0.5, np.float32)
    ended, *_, info = env.step(push)
    assert "final_obs" not in info
    obs, reward, _, truncated, _ = env.step(push)
    assert truncated.tolist() == [True, True, True]
    np.testing.assert_array_equal(obs[:2], ended[:2])
    assert reward[:2].tolist() == [0.0, 0.0]
    state = env.get_state()
    other = FakeEnv(3, max_episode_steps=2, radius=0.0)
    other.set_state(state)
    assert other.truncated.tolist() == [True, True, True]
    _, _ = env.reset()
    assert not env.truncated.any()
    assert env.step(push)[3].tolist() == [False, False, False]


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), [True, False]])
def test_a_reset_mask_that_does_not_fit_is_an_error(mask: object) -> None:
    env = FakeEnv(2)
    with pytest.raises(InrilError, match=r"reset_mask.*2 booleans"):
        env.reset(options={"reset_mask": mask})


def test_the_mode_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = register_fake_task(monkeypatch)
    assert envs.make(name, num_envs=1, seed=0).autoreset is AutoresetMode.SAME_STEP
    assert envs.make(name, num_envs=1, seed=0, autoreset="Disabled").autoreset is AutoresetMode.DISABLED
    with pytest.raises(InrilError, match=r"autoreset = 'lockstep'.*NextStep, SameStep, Disabled"):
        envs.make(name, num_envs=1, seed=0, autoreset="lockstep")


def test_termination_is_not_truncation() -> None:
    env = FakeEnv(2, max_episode_steps=1, terminate_on_success=True)
    env.reset()
    env.position[:] = [[0.0, 0.0], [0.9, 0.9]]
    _, reward, terminated, truncated, info = env.step(still(env))
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True], "a termination at the time limit is a termination only"
    assert info["success"].tolist() == [True, False]
    assert info["stage"].tolist() == [1, 0]
    assert reward.tolist() == [1.0, 0.0]
    assert info["nan_reset"].tolist() == [False, False]


def test_success_does_not_end_an_episode_by_itself() -> None:
    env = FakeEnv(1)
    env.reset()
    env.position[:] = 0.0
    _, _, terminated, truncated, info = env.step(still(env))
    assert info["success"][0]
    assert not terminated[0]
    assert not truncated[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("where", ["obs", "reward"])
def test_nan_guard_resets_that_environment_only(monkeypatch: pytest.MonkeyPatch, where: str, value: float) -> None:
    env, healthy = FakeEnv(3, radius=0.0), FakeEnv(3, radius=0.0)
    start, _ = env.reset()
    healthy.reset()
    original = env.advance

    def broken(actions: np.ndarray, active: np.ndarray) -> object:
        outcome = original(actions, active)
        wide = getattr(outcome, where).astype(np.float64)  # 1e300 is finite here, and not in what policies see
        wide[1] = value
        return dataclasses.replace(outcome, **{where: wide})

    monkeypatch.setattr(env, "advance", broken)
    push = np.full((3, 2), 0.5, np.float32)
    obs, reward, terminated, truncated, info = env.step(push)
    expected, *_ = healthy.step(push)
    assert info["nan_reset"].tolist() == [False, True, False]
    assert truncated.tolist() == [False, True, False]
    assert not terminated.any()
    assert reward.tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(info["final_obs"][1], start[1])
    np.testing.assert_array_equal(obs[[0, 2]], expected[[0, 2]])
    assert np.isfinite(obs).all()
    assert env.episode.tolist() == [0, 1, 0]


def test_nan_guard_takes_back_success_and_termination(monkeypatch: pytest.MonkeyPatch) -> None:
    env = FakeEnv(1, terminate_on_success=True)
    env.reset()
    env.position[:] = 0.0
    env.nan_obs_at = {(0, 0, 0)}
    outcome, truncated, broken = env.advance_guarded(still(env), everywhere(env))
    assert broken[0]
    assert not truncated[0]
    assert not outcome.success[0]
    assert not outcome.terminated[0]
    assert outcome.stage[0] == 0


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("obs", np.zeros((2, 4), np.float32)),
        ("obs", np.zeros((2, 3), complex)),
        ("obs", [[0.0] * 3] * 2),
        ("reward", np.zeros((2, 1), np.float32)),
        ("reward", np.array([None, 0.0])),
        ("reward", np.float32(0.0)),
        ("terminated", np.zeros(2, np.int64)),
        ("success", np.zeros(2, np.float32)),
        ("stage", np.zeros(2, np.float32)),
        ("stage", np.zeros(1, np.int64)),
    ],
)
def test_what_a_simulator_must_not_return_is_named(monkeypatch: pytest.MonkeyPatch, field: str, wrong: Any) -> None:
    """NumPy would broadcast a column of rewards to a matrix, and take the inverse of 0 for true."""
    env = FakeEnv(2)
    env.reset()
    original = env.advance
    monkeypatch.setattr(env, "advance", lambda *a: dataclasses.replace(original(*a), **{field: wrong}))
    with pytest.raises(InrilError, match=rf"FakeEnv.advance returned {field} as .*is needed"):
        env.step(still(env))


def test_an_episode_that_does_not_begin_with_numbers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    env, healthy = FakeEnv(3), FakeEnv(3)
    original, bad = env._begin_episodes, {(1, 0), (1, 1)}

    def begin(mask: np.ndarray) -> np.ndarray:
        obs = original(mask)
        for i, episode in bad:
            if env.episode[i] == episode:
                obs[i, 0] = np.nan
        return obs

    monkeypatch.setattr(env, "_begin_episodes", begin)
    obs, _ = env.reset()
    expected, _ = healthy.reset()
    np.testing.assert_array_equal(obs[[0, 2]], expected[[0, 2]])
    assert np.isfinite(obs).all()
    assert env.episode.tolist() == [0, 2, 0]
    bad |= {(1, 3), (1, 4), (1, 5)}
    with pytest.raises(InrilError, match=r"FakeEnv: the first observations of 3 episodes .*environments \[1\]"):
        env.reset()
    monkeypatch.setattr(env, "_begin_episodes", lambda mask: np.zeros((3, 2)))
    with pytest.raises(InrilError, match=r"_begin_episodes returned observations as float64 \[3, 2\]"):
        env.reset()


def test_actions_that_are_not_numbers_do_not_reach_the_simulator() -> None:
    env, reference = FakeEnv(1), FakeEnv(1)
    env.reset()
    reference.reset()
    obs, *_ = env.step(np.array([[np.nan, np.inf]], np.float32))
    expected, *_ = reference.step(np.array([[0.0, 1.0]], np.float32))
    np.testing.assert_array_equal(obs, expected)


def test_inactive_environments_stand_still() -> None:
    env = FakeEnv(2)
    env.reset()
    before = env.obs.copy()
    outcome, truncated, broken = env.advance_guarded(np.ones((2, 2), np.float32), np.array([True, False]))
    np.testing.assert_array_equal(outcome.obs[1], before[1])
    assert not np.array_equal(outcome.obs[0], before[0])
    assert env.elapsed.tolist() == [1, 0]
    assert not truncated.any()
    assert not broken.any()


def test_same_seed_same_initial_states_and_another_seed_others() -> None:
    a, b, c = FakeEnv(4, seed=3), FakeEnv(4, seed=3), FakeEnv(4, seed=4)
    for _ in range(3):
        obs = a.reset()[0]
        np.testing.assert_array_equal(obs, b.reset()[0])
        assert not np.array_equal(obs, c.reset()[0])


def test_reset_with_a_seed_begins_anew() -> None:
    env = FakeEnv(2, seed=1)
    first, second = env.reset()[0], env.reset()[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(env.reset(seed=1)[0], first)
    np.testing.assert_array_equal(env.reset()[0], second)


def test_initial_states_do_not_depend_on_the_split_into_workers() -> None:
    whole = FakeEnv(5, seed=7)
    parts = [FakeEnv(2, seed=7), FakeEnv(3, seed=7, first_env=2)]
    for _ in range(3):
        np.testing.assert_array_equal(whole.reset()[0], np.concatenate([p.reset()[0] for p in parts]))


def test_initial_states_of_purposes_environments_and_episodes_are_all_different() -> None:
    seen = []
    for purpose in PURPOSES:
        env = FakeEnv(4, seed=0, purpose=purpose)
        seen += [tuple(row) for _ in range(3) for row in env.reset()[0]]
    assert len(set(seen)) == len(PURPOSES) * 4 * 3


def test_what_is_fixed_for_life_has_a_stream_of_its_own() -> None:
    env = FakeEnv(2)
    env.reset()
    of_env, of_episode = env.env_rng(0).random(), env.episode_rng(0).random()
    assert of_env != of_episode
    env.reset()
    assert env.env_rng(0).random() == of_env
    assert env.episode_rng(0).random() != of_episode
    assert env.env_rng(1).random() != of_env


def test_state_round_trip_in_the_middle_of_an_episode() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (20, 3, 2)).astype(np.float32)
    env = FakeEnv(3, max_episode_steps=7)
    env.reset()
    for action in actions[:5]:
        env.step(action)
    state = env.get_state()
    expected = [env.step(action) for action in actions[5:]]
    other = FakeEnv(3, max_episode_steps=7)
    other.set_state(state)
    for action, wanted in zip(actions[5:], expected, strict=True):
        for got, want in zip(other.step(action)[:4], wanted[:4], strict=True):
            np.testing.assert_array_equal(got, want)


def test_state_is_a_copy() -> None:
    env = FakeEnv(1)
    env.reset()
    state = env.get_state()
    env.step(still(env))
    assert state["elapsed"].tolist() == [0]


def test_state_of_another_number_of_environments_is_an_error() -> None:
    with pytest.raises(InrilError, match="for 3 environments, not 2"):
        FakeEnv(2).set_state(FakeEnv(3).get_state())


def test_an_environment_without_pictures_says_so() -> None:
    with pytest.raises(InrilError, match="FakeEnv cannot render"):
        FakeEnv(1).render_env(0)


def test_unknown_task_lists_the_choices() -> None:
    with pytest.raises(InrilError, match="Unknown task 'robomimic/lif'.*Did you mean 'robomimic/lift'"):
        envs.make("robomimic/lif", num_envs=1, seed=0)
    with pytest.raises(InrilError, match="robomimic/lift"):
        envs.spec("nothing", EnvConfig())


def test_make_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    name = register_fake_task(monkeypatch)
    config = EnvConfig(max_episode_steps=17, terminate_on_success=True)
    env = envs.make(name, num_envs=3, seed=5, config=config, purpose="eval", first_env=2)
    assert isinstance(env, FakeEnv)
    assert (env.num_envs, env.base_seed, env.purpose, env.first_env) == (3, 5, "eval", 2)
    assert env.terminate_on_success
    assert env.task_spec == envs.spec(name, config) == FAKE_TASK.spec(config)
    assert env.task_spec.max_episode_steps == 17
