"""Action chunks: where they stop, what they sum, what counts as success."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from inril_ray.envs.base import SimVectorEnv, StepOutcome
from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.types import EnvSpec, EpisodeStats, SuccessRule
from tests.fakes import FakeEnv

SPEC = EnvSpec(
    task="fake/script",
    obs_dim=2,
    action_dim=1,
    max_episode_steps=100,
    control_hz=20.0,
    obs_keys=(("env", 1), ("steps", 1)),
)


class ScriptEnv(SimVectorEnv):
    """Does what a table says. The observation is [index, control steps executed in the running episode]."""

    def __init__(self, num_envs: int, limit: int = 100, **faults: set[tuple[int, int]]) -> None:
        spec = EnvSpec(**{**vars(SPEC), "max_episode_steps": limit})
        super().__init__(spec, num_envs, seed=0, purpose="train", first_env=10)
        self.faults: dict[str, set[tuple[int, int]]] = faults
        """``success``, ``terminate``, ``nan_obs``, ``nan_reward``: sets of (environment, step of its whole life)."""
        self.life = np.zeros(num_envs, np.int64)
        self.calls: list[tuple[list[float], list[bool]]] = []

    def _at(self, name: str) -> np.ndarray:
        table = self.faults.get(name, set())
        return np.array([(i, int(self.life[i])) in table for i in range(self.num_envs)])

    def _begin_episodes(self, mask: np.ndarray) -> np.ndarray:
        return np.stack([np.arange(self.num_envs), np.zeros(self.num_envs)], axis=1)

    def advance(self, actions: np.ndarray, active: np.ndarray) -> StepOutcome:
        self.calls.append((actions[:, 0].tolist(), active.tolist()))
        success, terminate = self._at("success") & active, self._at("terminate") & active
        obs = np.stack([np.arange(self.num_envs), self.elapsed + 1], axis=1).astype(np.float32)
        reward = 10.0 ** (np.arange(self.num_envs)) + self.life.astype(np.float32)
        obs[self._at("nan_obs") & active, 1] = np.nan
        reward[self._at("nan_reward") & active] = np.inf
        self.life += active
        return StepOutcome(
            obs=obs, reward=reward, terminated=terminate, success=success, stage=success.astype(np.int64)
        )


def chunks(env: ScriptEnv, length: int = 4) -> np.ndarray:
    """Actions that number the steps of the chunk."""
    return np.tile(np.arange(length, dtype=np.float32)[None, :, None], (env.num_envs, 1, 1))


def test_a_chunk_executes_its_first_actions_in_order() -> None:
    env = ScriptEnv(2)
    chunked = ChunkedEnv(env, 3)
    chunked.reset()
    outcome = chunked.step(chunks(env, 5))
    assert [actions for actions, _ in env.calls] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert outcome.executed.tolist() == [3, 3]
    assert outcome.reward.tolist() == [3 + 0 + 1 + 2, 30 + 0 + 1 + 2]
    assert outcome.obs.tolist() == [[0, 3], [1, 3]]
    np.testing.assert_array_equal(outcome.next_obs, outcome.obs)
    assert not (outcome.terminated | outcome.truncated).any()
    assert outcome.valid.all()
    assert len(chunked.pop_episodes().envs) == 0


def test_the_end_of_an_episode_stops_its_chunk_and_no_other() -> None:
    env = ScriptEnv(3, terminate={(1, 1)}, success={(1, 1)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    outcome = chunked.step(chunks(env))
    assert [active for _, active in env.calls] == [[True] * 3, [True] * 3, [True, False, True], [True, False, True]]
    assert outcome.executed.tolist() == [4, 2, 4]
    assert outcome.reward.tolist() == [4 + 6, 20 + 1, 400 + 6]
    assert outcome.terminated.tolist() == [False, True, False]
    assert not outcome.truncated.any()
    assert outcome.next_obs.tolist() == [[0, 4], [1, 2], [2, 4]], "the final observation, not that of the next episode"
    assert outcome.obs.tolist() == [[0, 4], [1, 0], [2, 4]]
    assert env.elapsed.tolist() == [4, 0, 4]
    episodes = chunked.pop_episodes()
    assert episodes.envs.tolist() == [11], "the index among all environments"
    assert episodes.lengths.tolist() == [2]
    assert episodes.returns.tolist() == [21.0]


def test_a_chunk_in_which_every_episode_ends_stops() -> None:
    env = ScriptEnv(2, terminate={(0, 0), (1, 1)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    assert chunked.step(chunks(env)).executed.tolist() == [1, 2]
    assert len(env.calls) == 2


def test_the_time_limit_cuts_a_chunk() -> None:
    env = ScriptEnv(1, limit=6)
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    assert not chunked.step(chunks(env)).truncated[0]
    outcome = chunked.step(chunks(env))
    assert outcome.truncated.tolist() == [True]
    assert outcome.terminated.tolist() == [False]
    assert outcome.valid.tolist() == [True]
    assert outcome.executed.tolist() == [2]
    assert outcome.next_obs.tolist() == [[0, 6]]
    episodes = chunked.pop_episodes()
    assert episodes.lengths.tolist() == [6]
    assert episodes.returns.tolist() == [6 + sum(range(6))]
    assert len(chunked.pop_episodes().envs) == 0, "an episode is reported once"


@pytest.mark.parametrize(
    ("steps", "held", "reached"),
    [
        ([], False, False),
        ([2], False, True),
        ([0, 1, 2], False, True),
        ([2, 3, 4, 5], False, True),  # four in a row, but across two chunks
        ([4, 5, 6, 7], True, True),
        ([0, 1, 2, 3], True, True),
    ],
)
def test_success_is_held_through_one_whole_chunk(steps: list[int], held: bool, reached: bool) -> None:
    env = ScriptEnv(2, limit=12, success={(0, s) for s in steps})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    for _ in range(3):
        chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.held.tolist() == [held, False]
    assert episodes.reached.tolist() == [reached, False]


@pytest.mark.parametrize("rule", ["reached", "held", "final"])
def test_success_goes_by_the_rule_of_the_task(rule: SuccessRule) -> None:
    """Of four episodes one is solved in passing, one throughout a chunk, one at its end only, and one never."""
    solved = {(0, 2), *((1, s) for s in range(4, 8)), (2, 11)}
    env = ScriptEnv(4, limit=12, success=solved)
    env.task_spec = dataclasses.replace(env.task_spec, success=rule)
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    for _ in range(3):
        chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.reached.tolist() == [True, True, True, False]
    assert episodes.held.tolist() == [False, True, False, False]
    assert episodes.final.tolist() == [False, False, True, False]
    assert episodes.success.tolist() == getattr(episodes, rule).tolist()


def passing_through(horizon: int, *, ends: bool) -> EpisodeStats:
    """Episodes of points that fly through the goal, or stop there, at one speed or another."""
    env = FakeEnv(64, max_episode_steps=12, terminate_on_success=ends)
    chunked = ChunkedEnv(env, horizon)
    obs = chunked.reset()
    found: dict[int, EpisodeStats] = {}
    direction = -obs[:, :2] / np.linalg.norm(obs[:, :2], axis=1, keepdims=True)
    speed = np.linspace(0.1, 1.0, 64)[:, None]
    stops = np.arange(64)[:, None] % 2 == 0
    for _ in range(12):
        here = env.position.copy()
        actions = []
        for _ in range(horizon):  # an open loop of the whole chunk, whatever its length
            step = np.where(stops & (np.linalg.norm(here, axis=1, keepdims=True) < 0.2), 0.0, speed * direction)
            here = here + 0.25 * step
            actions.append(step)
        chunked.step(np.stack(actions, axis=1).astype(np.float32))
        ended = chunked.pop_episodes()
        for k, index in enumerate(ended.envs):
            found.setdefault(int(index), ended.rows([k]))
    return EpisodeStats.concatenate([found[i] for i in range(64)])


def test_the_rate_depends_neither_on_the_chunk_nor_on_whether_success_ends_the_episode() -> None:
    """The same motion, cut into chunks of other lengths: that of the old rule, `held`, is another one each time."""
    ways = [(horizon, ends) for horizon in (1, 2, 3, 4, 6) for ends in (False, True)]
    stats = {way: passing_through(way[0], ends=way[1]) for way in ways}
    rates = {way: s.success.mean() for way, s in stats.items()}
    assert 0.2 < rates[1, False] < 0.9, "all alike: shows nothing"
    for way in ways:
        np.testing.assert_array_equal(stats[way].success, stats[1, False].success, err_msg=str(way))
        if not way[1]:
            np.testing.assert_array_equal(stats[way].final, stats[1, False].final, err_msg=str(way))
    held = [stats[horizon, False].held.mean() for horizon in (1, 2, 3, 4, 6)]
    assert held[0] == rates[1, False]
    assert held[0] > held[-1] + 0.2
    assert all(stats[horizon, True].held.mean() == rates[1, False] for horizon in (1, 2, 3, 4, 6))


def test_success_that_ends_the_episode_counts_at_once() -> None:
    env = ScriptEnv(2, success={(0, 1)}, terminate={(0, 1), (1, 1)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.held.tolist() == [True, False], "ending without success (a fall) is none"
    assert episodes.reached.tolist() == [True, False]


def test_success_does_not_leak_into_the_next_episode() -> None:
    env = ScriptEnv(1, limit=4, success={(0, s) for s in range(4)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    chunked.step(chunks(env))
    chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.held.tolist() == [True, False]
    assert episodes.reached.tolist() == [True, False]
    assert episodes.returns.tolist() == [4 + 6, 4 + 22]


def test_success_needs_the_whole_chunk_even_where_the_time_limit_cuts_it() -> None:
    env = ScriptEnv(1, limit=2, success={(0, 0), (0, 1)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    chunked.step(chunks(env))
    assert chunked.pop_episodes().held.tolist() == [False]


@pytest.mark.parametrize("fault", ["nan_obs", "nan_reward"])
def test_nan_guard_drops_the_sample_and_counts_it(fault: str) -> None:
    env, healthy = ScriptEnv(3, **{fault: {(1, 5)}}), ScriptEnv(3)
    chunked, reference = ChunkedEnv(env, 4), ChunkedEnv(healthy, 4)
    chunked.reset()
    reference.reset()
    chunked.step(chunks(env))
    reference.step(chunks(healthy))
    outcome, expected = chunked.step(chunks(env)), reference.step(chunks(healthy))
    others = [0, 2]
    assert outcome.valid.tolist() == [True, False, True]
    assert outcome.truncated.tolist() == [False, True, False]
    assert not outcome.terminated.any()
    assert outcome.executed.tolist() == [4, 2, 4]
    assert chunked.nan_resets == 1
    assert np.isfinite(outcome.reward).all()
    assert outcome.next_obs[1].tolist() == [1, 5], "the last finite observation"
    assert outcome.obs[1].tolist() == [1, 0]
    for name in ("obs", "next_obs", "reward", "executed"):
        np.testing.assert_array_equal(getattr(outcome, name)[others], getattr(expected, name)[others])
    assert len(chunked.pop_episodes().envs) == 0, "a broken episode is not an outcome"
    assert env.episode.tolist() == [0, 1, 0]


def test_the_episode_after_a_broken_one_counts_from_zero() -> None:
    env = ScriptEnv(1, limit=4, nan_obs={(0, 1)}, success={(0, 0)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    chunked.step(chunks(env))
    chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.lengths.tolist() == [4]
    assert episodes.returns.tolist() == [4 + 2 + 3 + 4 + 5]
    assert episodes.reached.tolist() == [False]


def test_the_end_of_an_episode_leaves_the_statistics_of_others_alone() -> None:
    env = ScriptEnv(3, limit=8, terminate={(1, 0)}, success={(0, s) for s in range(4)} | {(2, 1)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    chunked.step(chunks(env))
    assert chunked.get_state()["returns"].tolist() == [4 + 6, 0, 400 + 6]
    assert chunked.get_state()["held"].tolist() == [True, False, False]
    assert chunked.get_state()["reached"].tolist() == [True, False, True]
    assert chunked.pop_episodes().envs.tolist() == [11]
    chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.envs.tolist() == [10, 12]
    assert episodes.returns.tolist() == [8 + 28, 800 + 28]
    assert episodes.held.tolist() == [True, False]
    assert episodes.reached.tolist() == [True, True]


def test_nan_resets_add_up() -> None:
    env = ScriptEnv(2, nan_obs={(0, 1), (1, 1), (0, 3)})
    chunked = ChunkedEnv(env, 2)
    chunked.reset()
    counts = []
    for _ in range(3):
        chunked.step(chunks(env))
        counts.append(chunked.nan_resets)
    assert counts == [2, 3, 3]


def test_arrays_have_their_types_with_episodes_and_without() -> None:
    env = ScriptEnv(2, terminate={(0, 1)})
    chunked = ChunkedEnv(env, 2)
    chunked.reset()
    outcome = chunked.step(chunks(env))
    assert {name: array.dtype for name, array in vars(outcome).items()} == {
        **dict.fromkeys(("obs", "next_obs", "reward"), np.float32),
        **dict.fromkeys(("terminated", "truncated", "valid"), bool),
        "executed": np.int64,
    }
    for count in (1, 0):
        episodes = chunked.pop_episodes()
        assert len(episodes.envs) == count
        assert {name: array.dtype for name, array in vars(episodes).items()} == {
            "envs": np.int64, "lengths": np.int64, "returns": np.float32,
            **dict.fromkeys(("success", "reached", "held", "final"), bool),
        }  # fmt: skip


def test_a_state_holds_what_an_unfinished_episode_has_reached() -> None:
    script = {"success": {(0, 0), (0, 1)}, "limit": 4}
    first, second = (ChunkedEnv(ScriptEnv(1, **script), 2) for _ in range(2))  # type: ignore[arg-type]
    first.reset()
    second.reset()
    first.step(chunks(first.env))  # type: ignore[arg-type]
    second.set_state(first.get_state())
    second.env.life[:] = first.env.life  # type: ignore[attr-defined]
    second.step(chunks(second.env))  # type: ignore[arg-type]
    episodes = second.pop_episodes()
    assert (episodes.held.tolist(), episodes.reached.tolist()) == ([True], [True])
    assert episodes.returns.tolist() == [4 + 6]


def test_reset_drops_unfinished_episodes() -> None:
    env = ScriptEnv(1, limit=8, success={(0, s) for s in range(4)})
    chunked = ChunkedEnv(env, 4)
    chunked.reset()
    chunked.step(chunks(env))
    chunked.reset()
    for _ in range(2):
        chunked.step(chunks(env))
    episodes = chunked.pop_episodes()
    assert episodes.success.tolist() == [False]
    assert episodes.returns.tolist() == [8 + sum(range(4, 12))]


def test_executed_steps_add_up_to_the_lengths_of_the_episodes() -> None:
    env = FakeEnv(4, max_episode_steps=9, terminate_on_success=True)
    chunked = ChunkedEnv(env, 4)
    obs = chunked.reset()
    rng = np.random.default_rng(0)
    executed, lengths, returns, rewards = 0, 0, 0.0, 0.0
    for _ in range(30):
        toward = np.clip(-obs[:, None, :2] + rng.normal(size=(4, 4, 2)) * 0.5, -1, 1)
        outcome = chunked.step(toward.astype(np.float32))
        obs = outcome.obs
        executed += int(outcome.executed.sum())
        rewards += float(outcome.reward.sum())
        episodes = chunked.pop_episodes()
        lengths += int(episodes.lengths.sum())
        returns += float(episodes.returns.sum())
        assert (episodes.held <= episodes.reached).all()
    unfinished = chunked.get_state()
    assert executed == lengths + int(env.elapsed.sum())
    assert rewards == pytest.approx(returns + unfinished["returns"].sum())
    assert returns > 0, "nothing succeeded: the test shows nothing"


def test_state_round_trip_keeps_unfinished_statistics() -> None:
    def continued(chunked: ChunkedEnv) -> list[Any]:
        rng = np.random.default_rng(1)
        found = []
        for _ in range(6):
            outcome = chunked.step(rng.uniform(-1, 1, (3, 2, 2)).astype(np.float32))
            episodes = chunked.pop_episodes()
            found += [outcome.obs, outcome.reward, outcome.executed, *vars(episodes).values()]
        return found

    first = ChunkedEnv(FakeEnv(3, radius=0.8, max_episode_steps=7), 2)
    first.reset()
    first.step(np.zeros((3, 2, 2), np.float32))
    state = first.get_state()
    second = ChunkedEnv(FakeEnv(3, radius=0.8, max_episode_steps=7), 2)
    second.set_state(state)
    expected = continued(first)
    assert state["returns"].any(), "nothing to carry over: the test shows nothing"
    for got, want in zip(continued(second), expected, strict=True):
        np.testing.assert_array_equal(got, want)
