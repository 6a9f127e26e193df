"""The environment contract, over every task and backend, and over the stand-in of the other tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from inril_ray import envs
from inril_ray.backend import deal
from inril_ray.demos import DEMONSTRATORS
from inril_ray.envs.base import COUNTERS, PURPOSES, EnvConfig, SimVectorEnv
from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.registry import resolve
from inril_ray.types import InrilError
from tests.fakes import FAKE_TASK_NAME, register_fake_task

ELSEWHERE = {
    "mimicgen": "needs an installation of the user's; test_mimicgen.py runs these tasks on a stand-in",
    "furniture": "on the default backend only: test_furniture_warp.py has the other",
    "robomimic/can": "on the default backend only: its other backends are the code of Lift's",
    "robomimic/square": "on the default backend only: its other backends are the code of Lift's",
}
"""Tasks that are not run here on every backend, and why."""
CASES = [
    (task, backend)
    for task in envs.TASKS
    if not task.startswith("mimicgen/") and not task.endswith(("_med", "_high"))  # numbers of the same code
    for backend in (
        envs.entry(task).backends[:1]
        if task in ELSEWHERE or task.startswith("furniture/")
        else envs.entry(task).backends
    )
]
CASES += [(FAKE_TASK_NAME, "fast")]
PARAMS = [
    # Two arms on the other backends: minutes. test_robomimic_conformance.py holds all three against each other.
    pytest.param(case, marks=pytest.mark.drill if case[0] == "robomimic/transport" and case[1] != "fast" else [])
    for case in CASES
]
LIMIT = 4
Make = Callable[..., SimVectorEnv]

pytestmark = [
    pytest.mark.sim,
    # Invalid escape sequences in robosuite's and robomimic's sources; a SyntaxWarning from Python 3.12 on.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


# Of the module, so that a case's tests run one after the other, and its environments are closed before the next's.
@pytest.fixture(scope="module", params=PARAMS, ids=["-".join(c) for c in CASES])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        register_fake_task(monkeypatch)
        yield request.param


@pytest.fixture(scope="module")
def pool(case: tuple[str, str]) -> Iterator[dict[tuple[Any, ...], list[SimVectorEnv]]]:
    """Environments of a case made so far, by how they were made: to make them takes longer than the tests."""
    made: dict[tuple[Any, ...], list[SimVectorEnv]] = {}
    yield made
    for environments in made.values():
        for env in environments:
            env.close()


@pytest.fixture
def make(case: tuple[str, str], pool: dict[tuple[Any, ...], list[SimVectorEnv]]) -> Make:
    task, backend = case
    used: Counter[tuple[Any, ...]] = Counter()

    def build(
        num_envs: int = 2, *, seed: int = 0, purpose: str = "train", first_env: int = 0, **options: Any
    ) -> SimVectorEnv:
        config = EnvConfig(**{"backend": backend, "max_episode_steps": LIMIT, **options})
        key = (task, config, num_envs, seed, purpose, first_env)
        ready = pool.setdefault(key, [])
        if used[key] == len(ready):
            ready.append(
                envs.make(task, num_envs=num_envs, seed=seed, config=config, purpose=purpose, first_env=first_env)
            )
        env = ready[used[key]]
        used[key] += 1
        env.episode[:] = -1  # as it was made
        env.autoreset = AutoresetMode.SAME_STEP
        return env

    return build


def actions_for(env: SimVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    spec = env.task_spec
    shape = (steps, env.num_envs, spec.action_dim)
    return np.random.default_rng(seed).uniform(spec.action_low, spec.action_high, shape).astype(np.float32)


def run(env: SimVectorEnv, actions: np.ndarray) -> list[np.ndarray]:
    """Everything that stepping returns, one after the other."""
    found: list[np.ndarray] = []
    for action in actions:
        *arrays, info = env.step(action)
        found += [*arrays, *(info[k] for k in sorted(info))]
    return found


def assert_same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_spaces_and_types(make: Make, case: tuple[str, str]) -> None:
    env = make(3)
    spec = env.task_spec
    assert isinstance(env, VectorEnv)
    assert spec.task == case[0]
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.num_envs == 3
    assert env.single_observation_space.shape == (spec.obs_dim,)
    assert env.single_action_space.shape == (spec.action_dim,)
    obs, info = env.reset()
    assert info == {}
    assert env.observation_space.contains(obs)
    assert np.isfinite(obs).all()
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs)
    assert (reward.shape, reward.dtype) == ((3,), np.float32)
    for flags in (terminated, truncated, info["success"], info["nan_reset"]):
        assert (flags.shape, flags.dtype) == ((3,), bool)
    assert info["stage"].shape == (3,)
    assert np.issubdtype(info["stage"].dtype, np.integer)
    assert not info["nan_reset"].any()


def test_time_limit_truncates_and_restarts_in_the_same_step(make: Make) -> None:
    env, replay = make(), make()
    env.reset()
    replay.reset()
    replay.reset()
    last = None
    for step, action in enumerate(actions_for(env, LIMIT)):
        obs, _, terminated, truncated, info = env.step(action)
        assert not terminated.any()
        assert truncated.tolist() == [step == LIMIT - 1] * 2
        assert ("final_obs" in info) == (step == LIMIT - 1)
        last = obs if step == LIMIT - 2 else last
    assert info["_final_obs"].tolist() == [True, True]
    assert not np.array_equal(info["final_obs"], last), "the final observation is that after the last action"
    assert not np.array_equal(info["final_obs"], obs)
    np.testing.assert_array_equal(obs, replay.obs)
    assert env.elapsed.tolist() == [0, 0]


def test_finished_environments_rest_where_autoreset_is_off(make: Make) -> None:
    env, replay = make(), make()
    env.autoreset = AutoresetMode.DISABLED
    env.reset()
    replay.reset()
    replay.reset()
    actions = actions_for(env, LIMIT + 1)
    for action in actions[:LIMIT]:
        ended, *_ = env.step(action)
    obs, reward, _, truncated, _ = env.step(actions[LIMIT])
    assert truncated.tolist() == [True, True]
    assert reward.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(obs, ended)
    np.testing.assert_array_equal(env.reset()[0], replay.obs)


def test_environments_restart_one_by_one(make: Make) -> None:
    env, alone = make(2), make(2)
    env.reset()
    alone.reset()
    actions = actions_for(env, 6)
    for action in actions[:2]:
        env.step(action)
        alone.step(action)
    env.reset_envs(np.array([True, False]))
    for action in actions[2:4]:
        obs, *_, info = env.step(action)
        expected, *_ = alone.step(action)
    assert info["_final_obs"].tolist() == [False, True]
    np.testing.assert_array_equal(obs[1], expected[1])
    assert env.elapsed.tolist() == [2, 0]


def test_seed_determines_everything(make: Make) -> None:
    first, again, other = make(seed=5), make(seed=5), make(seed=6)
    start = first.reset()[0]
    np.testing.assert_array_equal(again.reset()[0], start)
    assert not np.array_equal(other.reset()[0], start)
    actions = actions_for(first, 2 * LIMIT + 1)
    expected = run(first, actions)
    assert_same(run(again, actions), expected)
    np.testing.assert_array_equal(first.reset(seed=5)[0], start)
    assert_same(run(first, actions), expected)


def test_initial_states_do_not_depend_on_the_number_of_workers(make: Make) -> None:
    whole = make(3)
    parts = [make(1), make(2, first_env=1)]
    actions = actions_for(whole, LIMIT + 2)
    np.testing.assert_array_equal(whole.reset()[0], np.concatenate([p.reset()[0] for p in parts]))
    for action in actions:
        got = [p.step(a)[:4] for p, a in zip(parts, (action[:1], action[1:]), strict=True)]
        for want, *pieces in zip(whole.step(action)[:4], *got, strict=True):
            np.testing.assert_array_equal(np.concatenate(pieces), want)


def test_initial_states_are_disjoint(make: Make) -> None:
    seen = []
    for purpose in PURPOSES:
        env = make(2, purpose=purpose)
        seen += [tuple(row) for _ in range(2) for row in env.reset()[0]]
    assert len(set(seen)) == len(PURPOSES) * 2 * 2


@pytest.mark.parametrize("done", [0, 2, LIMIT + 1])
def test_continuation_from_a_state_is_bit_identical(make: Make, case: tuple[str, str], done: int) -> None:
    """Robomimic's stock backend restores the counters only, which fix the initial states of later episodes."""
    env, other = make(), make()
    env.reset()
    actions = actions_for(env, done + LIMIT + 2)
    run(env, actions[:done])
    state = env.get_state()
    assert all(isinstance(v, np.ndarray) for v in state.values())
    if set(state) == set(COUNTERS):
        assert case[0].startswith("robomimic/") and case[1] == "stock"
        other.reset()
        other.set_state(state)
        for name in ("episode", "elapsed", "stage"):
            np.testing.assert_array_equal(getattr(other, name), getattr(env, name))
        np.testing.assert_array_equal(other.reset()[0], env.reset()[0])
        return
    expected = run(env, actions[done:])
    other.reset()
    run(other, actions_for(other, 3, seed=9))
    other.set_state(state)
    assert_same(run(other, actions[done:]), expected)
    env.set_state(state)
    assert_same(run(env, actions[done:]), expected)
    fresh = envs.make(case[0], num_envs=2, seed=0, config=EnvConfig(backend=case[1], max_episode_steps=LIMIT))
    fresh.set_state(state)
    assert_same(run(fresh, actions[done:]), expected)


def test_environments_that_are_dealt_out_anew_go_on_bit_for_bit(make: Make, case: tuple[str, str]) -> None:
    """As in a run that goes on with another number of workers: two become one, one becomes two."""
    whole, parts = make(3), [make(2), make(1, first_env=2)]
    actions = actions_for(whole, LIMIT + 4)

    def step(members: list[SimVectorEnv], rows: np.ndarray) -> list[np.ndarray]:
        found = [[env.step(row[env.first_env :][: env.num_envs])[:4] for env in members] for row in rows]
        return [np.concatenate(arrays) for outcomes in found for arrays in zip(*outcomes, strict=True)]

    for env in (whole, *parts):
        env.reset()
    step(parts, actions[:2])
    step([whole], actions[:2])
    (joined,), split = deal([env.get_state() for env in parts], 3, 1), deal([whole.get_state()], 3, 2)
    if set(joined) == set(COUNTERS):
        expected = [whole.reset()[0]]
        whole.set_state(joined)
        assert_same([whole.reset()[0]], expected)
        return
    expected = step([whole], actions[2:])
    whole.set_state(joined)
    assert_same(step([whole], actions[2:]), expected)
    for env, state in zip(parts, split, strict=True):
        env.set_state(state)
    assert_same(step(parts, actions[2:]), expected)


def test_state_of_another_number_of_environments_is_refused(make: Make) -> None:
    with pytest.raises(InrilError, match="for 3 environments, not 2"):
        make(2).set_state(make(3).get_state())


def test_actions_out_of_range_are_clipped(make: Make) -> None:
    env, reference = make(), make()
    env.reset()
    reference.reset()
    action = actions_for(env, 1)[0]
    action = np.where(action > 0, env.task_spec.action_high, env.task_spec.action_low).astype(np.float32)
    assert_same(run(env, action[None] * 7), run(reference, action[None]))


def test_inactive_environments_stand_still(make: Make) -> None:
    env, reference = make(), make()
    env.reset()
    reference.reset()
    actions = actions_for(env, 3)
    before = env.obs.copy()
    outcome, _, _ = env.advance_guarded(actions[0], np.array([True, False]))
    np.testing.assert_array_equal(outcome.obs[1], before[1])
    env.advance_guarded(actions[1], np.array([True, False]))
    got, _, _ = env.advance_guarded(actions[2], np.array([True, True]))
    want, _, _ = reference.advance_guarded(actions[2], np.array([True, True]))
    np.testing.assert_array_equal(got.obs[1], want.obs[1])
    assert env.elapsed.tolist() == [3, 1]


def test_chunks_are_cut_at_the_time_limit(make: Make) -> None:
    env, plain = ChunkedEnv(make(), 3), make()
    env.reset()
    plain.reset()
    actions = actions_for(plain, 6)
    chunks = actions.transpose(1, 0, 2)
    env.step(chunks[:, :3])
    outcome = env.step(chunks[:, 3:])
    assert outcome.executed.tolist() == [1, 1]
    for action in actions[:4]:
        obs, *_, info = plain.step(action)
    np.testing.assert_array_equal(outcome.next_obs, info["final_obs"])
    np.testing.assert_array_equal(outcome.obs, obs)
    assert env.pop_episodes().lengths.tolist() == [4, 4]


def test_success_pays_is_reported_and_ends_only_where_asked(make: Make, case: tuple[str, str]) -> None:
    """A scripted demonstrator (the stand-in: straight to the origin) solves the task."""
    task, _ = case
    furniture = task.startswith("furniture/")  # long, and pays for each pair once
    limit = 800 if furniture or task.endswith("transport") else 400
    going, ending = make(max_episode_steps=limit), make(max_episode_steps=limit, terminate_on_success=True)
    if task.startswith("gym/"):
        pytest.skip("these tasks are scored by return and have no success")
    if task == "adroit/hammer":
        pytest.skip("a planner needs ten seconds for it; test_recording.py has it drive the nail in")
    if task in DEMONSTRATORS:
        cls = resolve(DEMONSTRATORS, task, "demonstrator")
        style = cls.Config() if furniture else cls.Config(noise=0.05)
        actors = [cls(np.random.default_rng(i), style) for i in range(2)]
    elif task == FAKE_TASK_NAME:
        actors = []
    else:
        pytest.skip(f"{task} has no scripted demonstrator that could reach success")
    obs, active = going.reset()[0], np.ones(2, bool)
    ending.reset()
    reached, stage = np.zeros(2, bool), np.zeros(2, np.int64)
    for _ in range(limit - 1):
        action = np.stack([a.act(o) for a, o in zip(actors, obs, strict=True)]) if actors else -4 * obs[:, :2]
        obs, reward, terminated, truncated, info = going.step(action)
        assert not (terminated | truncated).any()
        np.testing.assert_array_equal(reward > 0, info["stage"] > stage if furniture else info["success"])
        assert np.isin(reward, going.task_spec.reward_values or ()).all(), (
            "demonstrations' rewards are compared with it"
        )
        told = envs.entry(task).solved(obs)
        if told is not None:
            np.testing.assert_array_equal(told, info["success"])
        stage = info["stage"].copy()
        reached |= info["success"]
        assert (info["stage"] >= info["success"]).all()
        outcome, over_time, broken = ending.advance_guarded(action, active)
        assert not (over_time | broken).any()
        np.testing.assert_array_equal(outcome.terminated, active & info["success"])
        active &= ~outcome.terminated
        if not active.any():
            break
    assert reached.all()
    assert going.task_spec.pays_success is not furniture
    ending.reset_envs(np.ones(2, bool))
    assert ending.stage.tolist() == [0, 0]


def test_no_environments_is_an_error(make: Make) -> None:
    with pytest.raises(InrilError, match="num_envs = 0") as caught:
        make(0)
    unfinished = caught.traceback[-1].frame.f_locals["self"]
    try:
        unfinished.close()  # which gymnasium's __del__ does, too
    finally:
        unfinished.closed = True
