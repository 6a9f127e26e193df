"""Intervals and comparisons."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from inril_ray.statistics import (
    interquartile_mean,
    mean_estimate,
    measure_of,
    probability_of_improvement,
    rate,
    score_text,
    stratified_bootstrap,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 3), (96, 200), (199, 200)])
def test_wilson_interval(successes, trials):
    z, p = 1.959963984540054, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    result = rate(successes, trials)
    assert result.low == pytest.approx(max(0.0, centre - half), abs=1e-12)
    assert result.high == pytest.approx(min(1.0, centre + half), abs=1e-12)
    assert result.value == p


def test_mean_estimate_is_students_t():
    estimate = mean_estimate(np.array([1.0, 2.0, 6.0]))
    half = 4.302652729911275 * math.sqrt(7.0 / 3)  # t at 0.975 with 2 degrees of freedom; variance 7
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))


def test_mean_estimate_of_one_value_has_no_width():
    estimate = mean_estimate(np.array([0.4], np.float32))
    assert estimate.low == estimate.value == estimate.high == pytest.approx(0.4)


def test_results_in_words():
    score = {"score": 0.35149, "score_low": -0.302, "score_high": 0.40, "eval_return": 1129.7}
    assert score_text(score) == "score 35.1 [-30.2, 40.0] (return 1130)"
    assert score_text({**score, "success_rate": 0.35149}) == "success 35.1 % [-30.2, 40.0]"


def test_a_rate_of_one_trial():
    z = 1.959963984540054
    assert rate(0, 1).high == pytest.approx(z * z / (1 + z * z))
    assert (rate(0, 1).low, rate(1, 1).high) == (0.0, 1.0)


def test_what_is_printed_beside_a_number():
    """The words of every plot, table and report; other modules take them from here."""
    assert dataclasses.asdict(measure_of({"success_rate": 0.5, "score": 0.5})) == {
        "word": "success", "name": "success rate", "unit": " %", "axis": "Success rate (%)",
        "axis_range": (0.0, 100.0), "points": "percentage points", "interval": "95 % Wilson interval",
    }  # fmt: skip
    assert dataclasses.asdict(measure_of({"score": 0.5})) == {
        "word": "score", "name": "score", "unit": "", "axis": "Score (0: random policy, 100: expert)",
        "axis_range": None, "points": "points", "interval": "95 % Student-t interval",
    }  # fmt: skip


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_rates_are_refused(successes, trials):
    with pytest.raises(ValueError, match="not a proportion"):
        rate(successes, trials)


def test_interquartile_mean_drops_a_quarter_at_each_end():
    values = np.array([[100.0, 3.0, 4.0, 0.0], [-50.0, 5.0, 6.0, 1.0]])
    assert interquartile_mean(values) == pytest.approx((1 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([2.0])) == 2.0


def test_bootstrap_interval_covers_the_true_mean_at_its_rate():
    rng, hits = np.random.default_rng(0), 0
    for i in range(100):
        estimate = stratified_bootstrap([rng.normal(1.0, 1.0, 30)], num_samples=300, seed=i)
        assert estimate.low <= estimate.value <= estimate.high
        hits += estimate.low <= 1.0 <= estimate.high
    assert 84 <= hits <= 100


def test_bootstrap_draws_within_each_task():
    # With one seed in each task there is nothing to draw: an interval of no width. Pooled draws would have one.
    estimate = stratified_bootstrap([np.array([0.0]), np.array([10.0])], num_samples=200)
    assert (estimate.value, estimate.low, estimate.high) == (5.0, 5.0, 5.0)


def test_paired_bootstrap_draws_both_at_the_same_seeds():
    control = np.array([0.0, 10.0, 20.0, 40.0])
    estimate = stratified_bootstrap([control + 3.0], paired=[control], num_samples=500)
    assert estimate.value == pytest.approx(3.0)
    assert estimate.low == pytest.approx(3.0)
    assert estimate.high == pytest.approx(3.0)
    worse = stratified_bootstrap([control - 3.0], paired=[control], num_samples=500)
    assert worse.high < 0


def test_bootstrap_is_reproducible():
    scores = [np.arange(5.0), np.arange(7.0)]
    first, again, other = (stratified_bootstrap(scores, seed=seed, num_samples=200) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_probability_of_improvement_counts_pairs_and_half_of_ties():
    treatment, control = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    # wins: 1 > 0; 2 > 0; 3 > 0, 3 > 2; ties: 2 = 2.
    assert probability_of_improvement(treatment, control, num_samples=100).value == pytest.approx(4.5 / 9)
    assert probability_of_improvement(control + 10, treatment, num_samples=100).value == 1.0
    assert probability_of_improvement(treatment, control + 10, num_samples=100).value == 0.0
    same = probability_of_improvement(control, control, num_samples=400)
    assert same.value == 0.5
    assert same.low < 0.5 < same.high


BIG = 2.0**25
"""From here on float32 has no odd numbers: sums of such scores must be in float64."""


def test_statistics_are_computed_in_float64():
    values = np.array([BIG, BIG + 4, BIG + 8, BIG + 8], np.float32)
    assert mean_estimate(values).value == BIG + 5
    assert interquartile_mean(values) == BIG + 6
    estimate = stratified_bootstrap([values[:2], values[2:]], num_samples=100)
    assert estimate.value == BIG + 6
    # The larger one of two draws from the first task and one of the second are left: 4 and 8, or 0 and 8.
    assert (estimate.low, estimate.high) == (BIG + 4, BIG + 6)
    # In float32 BIG + 1 is BIG: a tie.
    assert probability_of_improvement(np.array([BIG + 1]), np.array([BIG], np.float32), num_samples=1).value == 1.0
    half = mean_estimate(values[:2])
    # Student's t with one degree of freedom, times s / sqrt 2.
    assert half.high - half.value == pytest.approx(12.706204736174694 * 2.0)


def resamples(seed: int, count: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """What the documented generator draws, one array [count, size] after the other."""
    rng = np.random.default_rng(seed)
    return [rng.integers(size, size=(count, size)) for size in sizes]


def percentiles(samples: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 %, linear between order statistics, without numpy's own."""
    ordered, ends = np.sort(samples), []
    for share in (0.025, 0.975):
        at = share * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        ends.append(float(ordered[low] + (at - low) * (ordered[high] - ordered[low])))
    return ends[0], ends[1]


def middle(values: np.ndarray) -> float:
    """Mean of what is left without a quarter of the values at each end, rounded down."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


@pytest.mark.parametrize("settings", [{}, {"seed": 3, "num_samples": 400}])
def test_bootstrap_by_hand(settings):
    strata = [np.array([0.1, 0.7, 0.4, 0.9, 0.3]), np.array([0.2, 0.8, 0.5])]
    paired = [np.array([0.2, 0.1, 0.4, 0.6, 0.3]), np.array([0.9, 0.1, 0.2])]
    draws = resamples(settings.get("seed", 0), settings.get("num_samples", 10_000), (5, 3))

    def resampled(scores: list[np.ndarray]) -> np.ndarray:
        return np.array(
            [
                middle(np.concatenate([s[d] for s, d in zip(scores, row, strict=True)]))
                for row in zip(*draws, strict=True)
            ]
        )

    alone = stratified_bootstrap(strata, **settings)
    assert alone.value == pytest.approx(middle(np.concatenate(strata)))
    assert (alone.low, alone.high) == pytest.approx(percentiles(resampled(strata)))
    difference = stratified_bootstrap(strata, paired=paired, **settings)
    assert difference.value == pytest.approx(middle(np.concatenate(strata)) - middle(np.concatenate(paired)))
    expected = percentiles(resampled(strata) - resampled(paired))
    assert (difference.low, difference.high) == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{}, {"seed": 3, "num_samples": 400}])
def test_probability_of_improvement_by_hand(settings):
    x, y = np.array([0.1, 0.7, 0.4, 0.9, 0.35, 0.6, 0.75]), np.array([0.2, 0.4, 0.8, 0.55, 0.3])
    i, j = resamples(settings.get("seed", 0), settings.get("num_samples", 10_000), (7, 5))
    first, second = x[i][:, :, None], y[j][:, None, :]
    samples = ((first > second) + 0.5 * (first == second)).mean(axis=(1, 2))
    estimate = probability_of_improvement(x, y, **settings)
    assert estimate.value == pytest.approx((0 + 4 + 2.5 + 5 + 2 + 4 + 4) / 35)
    assert (estimate.low, estimate.high) == pytest.approx(percentiles(samples))
