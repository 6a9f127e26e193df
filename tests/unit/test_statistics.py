"""Intervals and comparisons."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from inril_ray.statistics import (
    BY_RULE,
    SCORE,
    detectable_difference,
    difference_of_episodes,
    episodes_estimate,
    interquartile_mean,
    mean_estimate,
    measure_of,
    one_measure,
    other_rates,
    paired_difference,
    pairs_needed,
    probability_of_improvement,
    rate,
    runs_estimate,
    score_text,
    spread_is_rounding,
    stratified_bootstrap,
    success_measure,
)
from inril_ray.types import InrilError


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


@pytest.mark.parametrize("value", [0.0, 0.351, 1.1])
def test_equal_scores_of_episodes_leave_open_what_was_not_seen(value):
    """With 2.5 % probability, none of N episodes is of a kind that makes up 1 - 0.025^(1/N) of all."""
    for n in (1, 2, 100):
        estimate = mean_estimate(np.full(n, value, np.float32))
        half = 1 - 0.025 ** (1 / n)
        assert estimate.value == pytest.approx(value)
        assert (estimate.low, estimate.high) == pytest.approx((value - half, value + half))
    rounded = mean_estimate(np.array([value, value + 1e-8]))
    assert rounded.high - rounded.low > 0.1, "a spread of rounding is none"


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


def test_a_rate_of_one_trial():
    z = 1.959963984540054
    assert rate(0, 1).high == pytest.approx(z * z / (1 + z * z))
    assert (rate(0, 1).low, rate(1, 1).high) == (0.0, 1.0)


def test_what_is_printed_beside_a_number():
    """The words of every plot, table and report; other modules take them from here."""
    assert dataclasses.asdict(measure_of({"success_rate": 0.5, "score": 0.5})) == {
        "word": "success", "name": "success rate", "unit": " %", "axis": "Success rate (%)",
        "axis_range": (0.0, 100.0), "points": "percentage points", "interval": "95 % Wilson interval",
        "rule": "held",
    }  # fmt: skip
    assert dataclasses.asdict(measure_of({"score": 0.5})) == {
        "word": "score", "name": "score", "unit": "", "axis": "Score (0: random policy, 100: expert)",
        "axis_range": None, "points": "points", "interval": "95 % Student-t interval", "rule": None,
    }  # fmt: skip


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_rates_are_refused(successes, trials):
    with pytest.raises(ValueError, match="not a proportion"):
        rate(successes, trials)


def test_interquartile_mean_drops_a_quarter_at_each_end():
    values = np.array([[100.0, 3.0, 4.0, 0.0], [-50.0, 5.0, 6.0, 1.0]])
    assert interquartile_mean(values) == pytest.approx((1 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([2.0])) == 2.0


def episodes(rate, number=200):
    """Outcomes of the episodes of a run, in which a share succeeded."""
    return (np.arange(number) < round(rate * number)).astype(float)


def spread(mean, deviation, number=50):
    """Scores of the episodes of a run, of a mean and a standard deviation."""
    x = np.linspace(-1.0, 1.0, number)
    return mean + deviation * x / x.std(ddof=1)


def width(estimate):
    return estimate.high - estimate.low


EQUAL_RUNS = [
    *(([episodes(p)] * n, BY_RULE["reached"]) for p in (0.0, 0.5, 0.995, 1.0) for n in (1, 2, 3)),
    *(([np.full(8, v)] * n, SCORE) for v in (0.0, 0.35) for n in (1, 3)),
    ([np.array([0.4])], SCORE),
    ([np.array([0.0])], BY_RULE["reached"]),
    ([spread(0.4, 0.1)] * 3, SCORE),
]


@pytest.mark.parametrize(("runs", "measure"), EQUAL_RUNS)
def test_equal_runs_leave_open_what_their_episodes_do(runs, measure):
    alone = episodes_estimate(runs, measure)
    assert width(alone) > 0
    found = [runs_estimate(runs, measure), stratified_bootstrap([runs], measure, num_samples=50)]
    differences = [
        difference_of_episodes(runs, runs, measure),
        stratified_bootstrap([runs], measure, paired=[runs], num_samples=50),
    ]
    if len(runs) > 1:
        differences.append(paired_difference(runs, runs, measure))
    for estimate in found:
        assert estimate.low <= estimate.value <= estimate.high
        assert width(estimate) >= width(alone) - 1e-12
    for estimate in differences:
        assert estimate.value == 0
        assert estimate.low < 0 < estimate.high
        assert width(estimate) >= width(alone)
    means = np.array([run.mean() for run in runs])
    assert width(probability_of_improvement(means, means)) > 0


def test_rates_of_runs_stay_between_0_and_1():
    all_failed, all_succeeded, mixed = [episodes(0.0)] * 3, [episodes(1.0)] * 3, [episodes(p) for p in (0.0, 0.1, 0.9)]
    for runs in (all_failed, all_succeeded, mixed):
        rule = BY_RULE["reached"]
        for estimate in (runs_estimate(runs, rule), stratified_bootstrap([runs], rule, num_samples=50)):
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert runs_estimate(all_failed, BY_RULE["reached"]).low == 0
    assert runs_estimate(all_succeeded, BY_RULE["reached"]).high == 1
    best = paired_difference(all_succeeded, all_failed, BY_RULE["reached"])
    assert (best.value, best.high) == (1.0, 1.0)
    assert 0.95 < best.low < 1.0
    assert paired_difference(mixed, all_failed, BY_RULE["reached"]).low >= -1


def test_a_mean_over_runs_by_hand():
    """Rates 0.4, 0.5, 0.6 of 200 episodes: the mean's squared error is 0.01/3, of which episodes explain 0.25/600."""
    found = runs_estimate([episodes(p) for p in (0.4, 0.5, 0.6)], BY_RULE["reached"])
    z, t = 1.959963984540054, 4.302652729911275
    worth = 600 / ((0.01 / 3) / (0.25 / 600)) * (z / t) ** 2
    half = z * math.sqrt(0.25 / worth + z * z / (4 * worth * worth)) / (1 + z * z / worth)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    one = runs_estimate([episodes(0.3)], BY_RULE["reached"])
    assert (one.low, one.high) == (rate(60, 200).low, rate(60, 200).high), "of one run the episodes are all there is"
    scores = runs_estimate([spread(m, 0.01) for m in (1.0, 2.0, 6.0)], SCORE)
    assert (scores.low, scores.high) == pytest.approx((3 - t * math.sqrt(7 / 3), 3 + t * math.sqrt(7 / 3)))
    alone = episodes_estimate([spread(m, 0.2) for m in (1.0, 2.0, 6.0)], SCORE)
    assert width(alone) == pytest.approx(2 * 1.9762 * 0.2 / math.sqrt(150), rel=1e-4), "t of 147 degrees of freedom"


def test_the_difference_of_rates_is_newcombes():
    """Newcombe 1998, table II, comparison (a): 56/70 and 48/80, method 10: 0.0524 to 0.3339."""
    found = difference_of_episodes([episodes(56 / 70, 70)], [episodes(48 / 80, 80)], BY_RULE["reached"])
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    none = difference_of_episodes([episodes(0.0, 10)], [episodes(0.0, 20)], BY_RULE["reached"])
    assert (none.low, none.high) == pytest.approx((-0.1611, 0.2775), abs=5e-5), "comparison (g)"


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng, n: np.full(n, 0.5), 0.5),
        (lambda rng, n: np.full(n, 0.98), 0.98),
        (lambda rng, n: rng.beta(12, 12, n), 0.5),
        (lambda rng, n: rng.beta(31.5, 3.5, n), 0.9),
    ],
)
@pytest.mark.parametrize("num_runs", [2, 3, 5])
def test_intervals_of_means_over_runs_cover(draw, mean, num_runs):
    rng, hits, trials = np.random.default_rng(num_runs), 0, 300
    for _ in range(trials):
        successes = rng.binomial(50, draw(rng, num_runs))
        found = runs_estimate([episodes(s / 50, 50) for s in successes], BY_RULE["reached"])
        hits += found.low <= mean <= found.high
    assert hits >= 0.92 * trials


def test_bootstrap_interval_covers_the_true_mean_at_its_rate():
    rng, hits = np.random.default_rng(0), 0
    for i in range(100):
        runs = [spread(m, 0.1, 4) for m in rng.normal(1.0, 1.0, 30)]
        estimate = stratified_bootstrap([runs], SCORE, num_samples=300, seed=i)
        assert estimate.low <= estimate.value <= estimate.high
        hits += estimate.low <= 1.0 <= estimate.high
    assert 84 <= hits <= 100


def test_bootstrap_draws_within_each_task():
    # With one seed in each task there is nothing to draw: what the episodes leave open remains. Pooled draws add more.
    tasks = [[spread(0.0, 0.1)], [spread(10.0, 0.1)]]
    estimate = stratified_bootstrap(tasks, SCORE, num_samples=200)
    alone = episodes_estimate([run for task in tasks for run in task], SCORE)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((5.0, alone.low, alone.high))


def test_paired_bootstrap_draws_both_at_the_same_seeds():
    control = [spread(m, 1e-3) for m in (0.0, 10.0, 20.0, 40.0)]
    better, worse = ([run + shift for run in control] for shift in (3.0, -3.0))
    estimate = stratified_bootstrap([better], SCORE, paired=[control], num_samples=500)
    assert estimate.value == pytest.approx(3.0)
    assert 2.99 < estimate.low < 3.0 < estimate.high < 3.01
    assert stratified_bootstrap([worse], SCORE, paired=[control], num_samples=500).high < 0


def test_bootstrap_is_reproducible():
    scores = [[spread(m, 0.1, 3) for m in range(5)], [spread(m, 0.1, 3) for m in range(7)]]
    first, again, other = (stratified_bootstrap(scores, SCORE, seed=seed, num_samples=200) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_probability_of_improvement_counts_pairs_and_half_of_ties():
    treatment, control = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    # wins: 1 > 0; 2 > 0; 3 > 0, 3 > 2; ties: 2 = 2.
    assert probability_of_improvement(treatment, control).value == pytest.approx(4.5 / 9)
    assert probability_of_improvement(control + 10, treatment).value == 1.0
    assert probability_of_improvement(treatment, control + 10).value == 0.0
    same = probability_of_improvement(control, control)
    assert same.value == 0.5
    assert same.low < 0.5 < same.high


@pytest.mark.parametrize(("num_x", "num_y"), [(1, 1), (3, 3), (3, 5)])
def test_the_interval_of_improvement_ends_where_the_found_one_is_two_standard_errors_away(num_x, num_y):
    rng = np.random.default_rng(0)
    for shift in (-9.0, 0.0, 1.0, 9.0):
        found = probability_of_improvement(rng.normal(shift, 1, num_x), rng.normal(0, 1, num_y))
        assert 0 <= found.low <= found.value <= found.high <= 1
        for end in {found.low, found.high} - {0.0, 1.0}:
            others = (num_x + num_y) / 2 - 1
            variance = end * (1 - end) * (1 + others * ((1 - end) / (2 - end) + end / (1 + end))) / (num_x * num_y)
            assert abs(found.value - end) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-4)
        assert width(found) > 0.1


def test_intervals_of_improvement_cover():
    rng = np.random.default_rng(0)
    for shift, true in ((0.0, 0.5), (1.0, 0.76025)):
        found = [probability_of_improvement(rng.normal(shift, 1, 5), rng.normal(0, 1, 5)) for _ in range(300)]
        assert sum(e.low <= true <= e.high for e in found) >= 0.92 * len(found)


@pytest.mark.parametrize("num_pairs", [3, 5, 20])
def test_a_detectable_difference_is_found_in_four_cases_of_five(num_pairs):
    difference = detectable_difference(2.0, num_pairs)
    x = np.random.default_rng(0).normal(difference, 2.0, (20_000, num_pairs))
    found = np.abs(x.mean(axis=1)) > stats.t.ppf(0.975, num_pairs - 1) * x.std(axis=1, ddof=1) / math.sqrt(num_pairs)
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(4.0, num_pairs) == pytest.approx(2 * difference)


@pytest.mark.parametrize("difference", [0.02, 0.3, 1.0, 50.0])
def test_pairs_needed_are_the_fewest(difference):
    pairs = pairs_needed(1.0, difference)
    assert detectable_difference(1.0, pairs) <= difference
    assert pairs == 2 or detectable_difference(1.0, pairs - 1) > difference


def test_pairs_needed_as_tables_have_them():
    """Cohen 1988, table 2.4.1: d = 0.5, power 0.8, two-sided 5 %, paired: 34 pairs."""
    assert pairs_needed(1.0, 0.5) == 34


BIG = 2.0**25
"""From here on float32 has no odd numbers: sums of such scores must be in float64."""


def test_statistics_are_computed_in_float64():
    values = np.array([BIG, BIG + 4, BIG + 8, BIG + 8], np.float32)
    assert mean_estimate(values).value == BIG + 5
    assert interquartile_mean(values) == BIG + 6
    # In float32 BIG + 1 is BIG: a tie.
    assert probability_of_improvement(np.array([BIG + 1]), np.array([BIG], np.float32)).value == 1.0


def sure(*scores: float) -> list[np.ndarray]:
    """Runs so long that their episodes leave next to nothing open."""
    return [np.full(10_000, score) for score in scores]


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
    rng, count = np.random.default_rng(settings.get("seed", 0)), settings.get("num_samples", 10_000)
    draws = [rng.integers(size, size=(count, size)) for size in (5, 3)]

    def resampled(scores: list[np.ndarray]) -> np.ndarray:
        return np.array(
            [
                middle(np.concatenate([s[d] for s, d in zip(scores, row, strict=True)]))
                for row in zip(*draws, strict=True)
            ]
        )

    runs, others = ([sure(*scores) for scores in some] for some in (strata, paired))
    alone = stratified_bootstrap(runs, SCORE, **settings)
    assert alone.value == pytest.approx(middle(np.concatenate(strata)))
    assert (alone.low, alone.high) == pytest.approx(percentiles(resampled(strata)))
    difference = stratified_bootstrap(runs, SCORE, paired=others, **settings)
    assert difference.value == pytest.approx(middle(np.concatenate(strata)) - middle(np.concatenate(paired)))
    assert (difference.low, difference.high) == pytest.approx(percentiles(resampled(strata) - resampled(paired)))


# -- measures, and comparisons of runs, by hand -----------------------------------------------------------------------
def test_a_rate_keeps_its_counts():
    assert (rate(3, 10).successes, rate(3, 10).trials) == (3, 10)


def test_a_measure_of_success_names_its_rule():
    assert dataclasses.asdict(success_measure("final")) == {
        "word": "success", "name": "success rate", "unit": " %", "axis": "Success rate (%)",
        "axis_range": (0.0, 100.0), "points": "percentage points", "interval": "95 % Wilson interval",
        "rule": "final",
    }  # fmt: skip
    assert success_measure("held").definition == (
        "An episode is a success if the task is solved throughout one whole executed chunk of actions "
        "(`env.success=held`)."
    )
    assert SCORE.definition == ""


def test_what_several_evaluations_measure_is_one_thing():
    reached = {"success_rate": 0.5, "success_rate_held": 0.4, "success_rate_final": 0.3}
    held = {"success_rate": 0.5, "success_rate_reached": 0.6, "success_rate_final": 0.3}
    assert one_measure([reached, dict(reached)]) is BY_RULE["reached"]
    assert one_measure([held]) is BY_RULE["held"]
    with pytest.raises(InrilError, match=r"different rules \(held and reached\); they can't be compared"):
        one_measure([reached, held])


def test_other_rates_are_told_outside_the_interval_only():
    outcome = {"score_low": 0.2, "score_high": 0.4, "success_rate_held": 0.2, "success_rate_final": 0.4}
    assert other_rates([outcome]) == {}
    assert other_rates([outcome, {**outcome, "success_rate_held": 0.1}]) == {"held": pytest.approx(0.15)}


def test_rounding_is_a_millionth_of_the_values_or_of_1():
    assert spread_is_rounding(np.array([0.0, 1e-6]))
    assert not spread_is_rounding(np.array([0.0, 1.5e-6]))
    assert spread_is_rounding(np.array([100.0, 100.00005]))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_equal_runs_are_worth_their_episodes(share):
    """Two runs of 20: Wilson's interval of 40 episodes, with Student's quantile of one degree of freedom."""
    runs = [episodes(share, 20)] * 2
    z = 12.706204736174694
    shrunk = z * z / 40
    half = z / (1 + shrunk) * math.sqrt(share * (1 - share) / 40 + shrunk / 160)
    assert runs_estimate(runs, BY_RULE["reached"]).high == pytest.approx((share + shrunk / 2) / (1 + shrunk) + half)


def test_paired_difference_by_hand():
    found = paired_difference(sure(0.5, 0.7, 0.6), sure(0.4, 0.5, 0.7), SCORE)
    differences = [0.1, 0.2, -0.1]
    mean = sum(differences) / 3
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
    half = 4.302652729911275 * deviation / math.sqrt(3)  # Student's t with two degrees of freedom
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    swings = [episodes(share) for share in (1.0, 1.0, 0.0)], [episodes(share) for share in (0.0, 0.0, 1.0)]
    rates, scores = (paired_difference(*swings, measure) for measure in (BY_RULE["reached"], SCORE))
    assert (rates.low, rates.high) == (-1.0, 1.0)
    assert scores.low < -1.0 and scores.high > 1.0
