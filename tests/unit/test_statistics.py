"""Intervals and comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inril_ray.statistics import (
    interquartile_mean,
    mean_estimate,
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
    near, far = {"success_rate_final": 0.351, "success_rate_held": 0.39}, {"success_rate_held": 0.41}
    assert score_text({**score, "success_rate": 0.35149, **near}) == "success 35.1 % [-30.2, 40.0]"
    assert score_text({**score, "success_rate": 0.35149, **near, **far}) == (
        "success reached 35.1 % [-30.2, 40.0] (held 41.0 %)"
    )
    passing = {"success_rate_reached": 0.8, "success_rate_held": 0.5}
    assert score_text({**score, "success_rate": 0.35149, **passing}) == (
        "success final 35.1 % [-30.2, 40.0] (reached 80.0 %, held 50.0 %)"
    )


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
