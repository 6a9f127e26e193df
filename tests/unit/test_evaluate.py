"""Evaluation: the same episodes each time, in order, whatever the workers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.evaluate import Evaluator, episode_scores, evaluation_metrics
from inril_ray.progress import told_to
from inril_ray.rollout import decision_env
from inril_ray.statistics import measure_of, rate
from inril_ray.types import EpisodeStats, InrilError, SuccessRule
from tests.fakes import TINY_POLICY, FakeEnv, fake_spec, tiny_policy

FIELDS = ("envs", "returns", "lengths", "success", "reached", "held", "final")
POLICY = {"prediction_horizon": 2}


def evaluator(
    envs: range, total: int, policy: Any = None, *, seed: int = 0, terminate_on_success: bool = False
) -> Evaluator:
    env = FakeEnv(
        len(envs),
        seed=seed,
        purpose="eval",
        first_env=envs.start,
        terminate_on_success=terminate_on_success,
        radius=0.6,
    )
    return Evaluator(ChunkedEnv(env, 2) if policy is None else decision_env(env, policy), seed, total)


def policy(kind: str = "diffusion_mlp") -> object:
    return tiny_policy(kind, **(POLICY if kind == "gaussian_mlp" else {}))


def rows(stats: EpisodeStats) -> list[tuple]:
    return list(zip(*(getattr(stats, name).tolist() for name in FIELDS), strict=True))


def assert_same(got: EpisodeStats, want: EpisodeStats) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


@pytest.mark.parametrize("kind", TINY_POLICY)
@pytest.mark.parametrize("num_episodes", [1, 4, 10])
def test_every_evaluation_runs_the_same_episodes(kind: str, num_episodes: int) -> None:
    chosen = policy(kind)
    evaluate = evaluator(range(4), 4, chosen)
    first = evaluate.evaluate(chosen, num_episodes)
    assert_same(evaluate.evaluate(chosen, num_episodes), first)
    assert_same(evaluator(range(4), 4, chosen).evaluate(chosen, num_episodes), first)
    assert first.envs.tolist() == [e % 4 for e in range(num_episodes)]
    assert first.lengths.tolist() == [10] * num_episodes
    assert len({row[1:] for row in rows(first)}) > 1 or num_episodes < 10, "all episodes are alike: shows nothing"


def test_more_episodes_begin_with_the_same_ones() -> None:
    evaluate = evaluator(range(4), 4)
    many = evaluate.evaluate(policy(), 11)
    few = evaluate.evaluate(policy(), 6)
    assert rows(many)[:6] == rows(few)


def test_successive_rounds_are_new_episodes() -> None:
    """Initial states of the rounds are those of episodes 0, 1, 2 … of each environment."""
    evaluate = evaluator(range(3), 3)
    sim = evaluate.env.env
    starts: list[np.ndarray] = []
    original = evaluate.env.reset

    def reset() -> np.ndarray:
        obs = original()
        starts.append(obs)
        return obs

    evaluate.env.reset = reset
    evaluate.evaluate(policy(), 9)
    expected = FakeEnv(3, purpose="eval")
    np.testing.assert_array_equal(np.stack(starts), np.stack([expected.reset()[0] for _ in range(3)]))
    assert sim.purpose == "eval"


@pytest.mark.parametrize("split", [(2, 3), (1, 1, 3), (4, 1)])
@pytest.mark.parametrize("num_episodes", [3, 5, 13])
def test_the_split_into_workers_does_not_matter(split: tuple[int, ...], num_episodes: int) -> None:
    chosen = policy()
    whole = evaluator(range(5), 5).evaluate(chosen, num_episodes)
    starts = np.cumsum([0, *split])
    parts = [
        evaluator(range(a, b), 5).evaluate(chosen, num_episodes) for a, b in zip(starts[:-1], starts[1:], strict=True)
    ]
    assert sum(len(p.envs) for p in parts) == num_episodes
    for part, a, b in zip(parts, starts[:-1], starts[1:], strict=True):
        mine = (whole.envs >= a) & (whole.envs < b)
        assert part.envs.tolist() == whole.envs[mine].tolist()
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[mine], err_msg=name)


def test_the_noise_of_a_round_does_not_depend_on_how_long_the_others_took() -> None:
    """A worker whose environments finish early draws less noise in a round; the next round must not show it."""
    chosen = policy()

    def first_noise(envs: range) -> tuple[EpisodeStats, np.ndarray]:
        evaluate, drawn, starting = evaluator(envs, 5, terminate_on_success=True), [], [False]
        reset, act = evaluate.env.reset, chosen.act

        def marked_reset() -> np.ndarray:
            starting[0] = True
            return reset()

        def recording(obs: object, noise: torch.Tensor, *, deterministic: bool) -> object:
            if starting[0]:
                drawn.append(noise.numpy().copy())
                starting[0] = False
            return act(obs, noise, deterministic=deterministic)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate.env, "reset", marked_reset)
            patch.setattr(chosen, "act", recording)
            return evaluate.evaluate(chosen, 20), np.stack(drawn)

    whole, noise = first_noise(range(5))
    assert noise.shape[:2] == (4, 5)
    lengths = whole.lengths.reshape(4, 5)
    early = np.argwhere(lengths[:3] < lengths[:3].max(axis=1, keepdims=True))
    assert len(early), "no environment was done before the others: the test shows nothing"
    for env in sorted({int(e) for _, e in early}):
        alone, noise_alone = first_noise(range(env, env + 1))
        np.testing.assert_array_equal(noise_alone[:, 0], noise[:, env])
        np.testing.assert_array_equal(alone.lengths, lengths[:, env])
    assert len(np.unique(noise.reshape(20, -1), axis=0)) == 20, "every episode has noise of its own"


def test_a_worker_without_a_share_has_no_episodes() -> None:
    stats = evaluator(range(3, 5), 5).evaluate(policy(), 3)
    assert all(len(getattr(stats, name)) == 0 for name in FIELDS)
    whole = evaluator(range(3), 5).evaluate(policy(), 3)
    assert_same(EpisodeStats.concatenate([whole, stats]), whole)


def test_other_seeds_are_other_episodes() -> None:
    chosen = policy()
    assert rows(evaluator(range(4), 4).evaluate(chosen, 8)) != rows(evaluator(range(4), 4, seed=1).evaluate(chosen, 8))


def test_an_episode_that_ends_early_is_counted_once() -> None:
    stats = evaluator(range(4), 4, terminate_on_success=True).evaluate(policy(), 8)
    assert stats.envs.tolist() == [0, 1, 2, 3] * 2
    assert stats.lengths.min() < 10, "no episode ended early: the test shows nothing"
    assert (stats.success == stats.held).all()


def test_an_environment_that_breaks_once_delivers_its_next_episode() -> None:
    evaluate, healthy = evaluator(range(3), 3), evaluator(range(3), 3)
    evaluate.env.env.nan_obs_at = {(1, 0, 4)}
    stats, want = evaluate.evaluate(policy(), 3), healthy.evaluate(policy(), 3)
    assert stats.envs.tolist() == [0, 1, 2]
    assert [rows(stats)[i] for i in (0, 2)] == [rows(want)[i] for i in (0, 2)]
    assert evaluate.env.nan_resets == 1


def test_an_environment_that_always_breaks_is_an_error() -> None:
    evaluate = evaluator(range(3), 3)
    evaluate.env.env.nan_obs_at = {(2, episode, 1) for episode in range(100)}
    with pytest.raises(InrilError, match=r"environments \[2\] never finished"):
        evaluate.evaluate(policy(), 3)


STATS = EpisodeStats(
    envs=np.arange(4),
    returns=np.array([1.0, 0.0, 3.0, 0.0], np.float32),
    lengths=np.full(4, 10),
    success=np.array([True, False, True, False]),
    reached=np.array([True, False, True, False]),
    held=np.array([True, False, False, False]),
    final=np.array([False, False, False, False]),
)


def test_metrics_count_and_bound() -> None:
    metrics = evaluation_metrics(STATS, fake_spec())
    interval = rate(2, 4)
    assert metrics == {
        "score": 0.5,
        "score_low": interval.low,
        "score_high": interval.high,
        "success_rate": 0.5,
        "success_rate_low": interval.low,
        "success_rate_high": interval.high,
        "success_rate_held": 0.25,
        "success_rate_final": 0.0,
        "eval_episodes": 4.0,
        "eval_return": 1.0,
    }
    assert metrics["success_rate_low"] < 0.5 < metrics["success_rate_high"]
    assert episode_scores(STATS, fake_spec()).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("rule", ["reached", "held", "final"])
def test_the_rule_of_a_rate_is_the_one_that_has_no_rate_of_its_own(rule: SuccessRule) -> None:
    spec = dataclasses.replace(fake_spec(), success=rule)
    metrics = evaluation_metrics(STATS, spec)
    assert measure_of(metrics).rule == rule
    assert rule in measure_of(metrics).definition


def test_metrics_of_a_task_without_success() -> None:
    spec = dataclasses.replace(fake_spec(), score_range=(-1.0, 3.0))
    assert episode_scores(STATS, spec).tolist() == [0.5, 0.25, 1.0, 0.25]
    metrics = evaluation_metrics(STATS, spec)
    # t at 0.975 with 3 degrees of freedom; the standard deviation of the four scores is sqrt(0.125).
    half = 3.182446305284263 * math.sqrt(0.125) / 2
    assert metrics == pytest.approx(
        {"score": 0.5, "score_low": 0.5 - half, "score_high": 0.5 + half, "eval_episodes": 4.0, "eval_return": 1.0}
    )


def test_one_episode_without_success_says_almost_nothing() -> None:
    spec = dataclasses.replace(fake_spec(), score_range=(-1.0, 3.0))
    metrics = evaluation_metrics(evaluator(range(1), 1).evaluate(policy(), 1), spec)
    assert metrics["score"] == pytest.approx((metrics["eval_return"] + 1) / 4)
    ends = metrics["score_low"] - metrics["score"], metrics["score_high"] - metrics["score"]
    assert ends == pytest.approx((-0.975, 0.975))


def test_a_long_evaluation_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inril_ray.progress.EVERY_S", 0.0)
    told: list[tuple[str, int, int]] = []
    with told_to(lambda *state: told.append(state)):
        evaluator(range(4), 4).evaluate(policy(), 10)
    assert told == [("evaluation, rounds", done, 3) for done in range(4)]
