"""Intervals and comparisons, and the words for them. Every result that the library prints comes with an interval.

No interval has zero width, whatever the data. A rate has Wilson's, which keeps a width at 0 and at 1. A mean over runs
is never surer than the episodes behind it allow, however equal the runs came out. Equal returns of all episodes say
what equal outcomes say of a rate: no episode of another kind was among them, see :func:`mean_estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from inril_ray.types import FloatArray, InrilError, SuccessRule

Z = float(stats.norm.ppf(0.975))
POWER = 0.8
"""Probability with which a design finds the difference that is called detectable."""
EQUAL = 1e-6
"""Values whose spread is a smaller share of their size, or of 1, differ by rounding only."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Rate(Estimate):
    """A proportion with its 95 % Wilson interval."""

    successes: int
    trials: int


def rate(successes: int, trials: int) -> Rate:
    """Return a proportion with its 95 % Wilson interval.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion.")
    return Rate(successes=successes, trials=trials, **vars(wilson(successes / trials, trials)))


def wilson(share: float, trials: float) -> Estimate:
    """Return a proportion with its 95 % Wilson interval.

    Args:
        share: of the trials that succeeded, in [0, 1].
        trials: their number, or the number of independent ones that they are worth.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001 on its coverage.
    """
    shrunk = Z * Z / trials
    centre = (share + shrunk / 2) / (1 + shrunk)
    half = Z / (1 + shrunk) * math.sqrt(share * (1 - share) / trials + shrunk / (4 * trials))
    # The ends touch 0 and 1 exactly where the share does.
    low, high = max(0.0, centre - half) * (share > 0), min(1.0, centre + half)
    return Estimate(value=share, low=low, high=1.0 if share == 1 else high)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What the runs of a task are compared by, in words."""

    word: str
    name: str
    unit: str
    """Follows a value times 100."""
    axis: str
    """Label of an axis of values times 100."""
    axis_range: tuple[float, float] | None
    """Ends of that axis; None where values have no bounds."""
    points: str
    """Unit of a difference times 100."""
    interval: str
    """Of the mean over evaluation episodes."""
    rule: SuccessRule | None
    """What counts as a success; None where runs are compared by return."""

    @property
    def definition(self) -> str:
        """Sentence that names the rule; empty where there is none."""
        return f"An episode is a success if {RULES[self.rule]} (`env.success={self.rule}`)." if self.rule else ""


RULES: dict[SuccessRule, str] = {
    "reached": "the task is solved after any of its control steps",
    "held": "the task is solved throughout one whole executed chunk of actions",
    "final": "the task is solved after its last control step",
}
"""Rules of success, in words."""


def success_measure(rule: SuccessRule) -> Measure:
    """Return the success rate by a rule."""
    return Measure(
        word="success",
        name="success rate",
        unit=" %",
        axis="Success rate (%)",
        axis_range=(0.0, 100.0),
        points="percentage points",
        interval="95 % Wilson interval",
        rule=rule,
    )


BY_RULE: dict[SuccessRule, Measure] = {rule: success_measure(rule) for rule in RULES}
SCORE = Measure(
    word="score",
    name="score",
    unit="",
    axis="Score (0: random policy, 100: expert)",
    axis_range=None,
    points="points",
    interval="95 % Student-t interval",
    rule=None,
)


def measure_of(outcome: Mapping[str, Any]) -> Measure:
    """Return what the metrics of an evaluation measure; tasks without success have a score only.

    The rule of success is the one whose rate has no name of its own. Up to release 0.1 it was always ``held``.
    """
    if "success_rate" not in outcome:
        return SCORE
    own: list[SuccessRule] = [rule for rule in RULES if f"success_rate_{rule}" not in outcome]
    return BY_RULE[own[0] if len(own) == 1 else "held"]


def one_measure(outcomes: Iterable[Mapping[str, Any]]) -> Measure:
    """Return what all these evaluations measure.

    Raises:
        InrilError: they go by different rules, as those of an older release and a newer one do.
    """
    found = {measure_of(outcome).rule: measure_of(outcome) for outcome in outcomes}
    if len(found) != 1:
        rules = " and ".join(sorted(str(rule) for rule in found))
        raise InrilError(
            f"The runs count success by different rules ({rules}); they can't be compared. Runs of a release that had "
            "no env.success count by 'held': start them anew in another --out."
        )
    return next(iter(found.values()))


def score_text(outcome: Mapping[str, Any]) -> str:
    """Return e.g. ``success 58.0 % [54.0, 63.0]`` or ``score 35.1 [30.2, 40.0] (return 1130)``.

    Where another rule gives a rate outside the interval, both rules are named: ``success reached 74.0 % [67.5, 79.6]
    (held 31.0 %)``.

    Args:
        outcome: metrics of an evaluation; see :func:`inril_ray.evaluate.evaluation_metrics`.
    """
    measure = measure_of(outcome)
    value, low, high = (100 * outcome[name] for name in ("score", "score_low", "score_high"))
    text = f"{value:.1f}{measure.unit} [{low:.1f}, {high:.1f}]"
    if measure is SCORE:
        return f"{measure.word} {text} (return {outcome['eval_return']:.0f})"
    others = other_rates([outcome])
    return f"{measure.word} {measure.rule} {text} ({rates_text(others)})" if others else f"{measure.word} {text}"


def other_rates(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean rates of success by other rules than the task's, of those that say something else.

    That is, where in any of the evaluations the rate is outside the interval of the one by the task's rule.
    """
    found = {}
    for name in (f"success_rate_{rule}" for rule in RULES):
        told = [o for o in outcomes if name in o]
        if any(not o["score_low"] <= o[name] <= o["score_high"] for o in told):
            found[name.removeprefix("success_rate_")] = float(np.mean([o[name] for o in told]))
    return found


def rates_text(rates: Mapping[str, float]) -> str:
    """Return e.g. ``held 31.0 %, final 28.0 %``."""
    return ", ".join(f"{rule} {100 * rate:.1f} %" for rule, rate in rates.items())


def interquartile_mean(values: FloatArray) -> float:
    """Return the mean of the middle half of all values, whatever their shape.

    Source: Agarwal et al. 2021 (rliable), section 4.3.
    """
    return float(stats.trim_mean(np.asarray(values, np.float64).ravel(), 0.25))


def unseen_share(num_equal: int, level: float) -> float:
    """Return the largest share of other outcomes that ``num_equal`` equal ones leave possible.

    It is the upper bound of Clopper and Pearson (Biometrika 1934) for none of ``num_equal``: a larger share would have
    shown up with a probability of at least 1 - ``level``.
    """
    return 1.0 - level ** (1.0 / num_equal)


def spread_is_rounding(values: FloatArray) -> bool:
    """Tell whether values differ by rounding only; one value does."""
    return bool(np.ptp(values) <= EQUAL * max(1.0, float(np.abs(values).max())))


def mean_estimate(values: FloatArray) -> Estimate:
    """Return the mean of the scores of episodes [N] with its 95 % interval by Student's t.

    Equal values, and a single one, show no spread, but don't show that there is none: as many others as
    :func:`unseen_share` allows may exist. Each is taken to differ by at most 1, which on the scale of scores is the way
    from a random policy to an expert.
    """
    return episodes_estimate([values], SCORE)


def episodes_estimate(runs: Sequence[FloatArray], measure: Measure) -> Estimate:
    """Return the mean over runs with what the episodes alone leave open about it: these runs, evaluated without end.

    Successes have Wilson's interval over all episodes. Other scores have Student's, with the variance within runs
    pooled; see :func:`mean_estimate` for equal ones.

    Args:
        runs: for each run, [k] scores of its episodes.
        measure: what they are.
    """
    values = [np.asarray(run, np.float64) for run in runs]
    mean, episodes = float(np.mean([v.mean() for v in values])), sum(len(v) for v in values)
    if measure.rule:
        return wilson(mean, episodes)
    freedom = episodes - len(values)
    if all(spread_is_rounding(v) for v in values):
        half = unseen_share(episodes, 0.025)
    else:
        variance = sum(float(((v - v.mean()) ** 2).sum()) for v in values) / freedom
        error = math.sqrt(variance * sum(1 / len(v) for v in values)) / len(values)
        half = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(value=mean, low=mean - half, high=mean + half)


def runs_estimate(runs: Sequence[FloatArray], measure: Measure) -> Estimate:
    """Return the mean over runs (seeds) with its 95 % interval for further seeds.

    Successes: Wilson's interval for as many independent episodes as the runs are worth, by how much more the runs
    differ than their episodes explain (never less than not at all), and with Student's quantile for the number of runs.
    In simulations of 2 to 5 runs of 20 and 200 episodes it covers at least 94 %, unless the runs are very skewed (most
    of them equal, a few far away), where no interval that knows the runs only does. Other scores: Student's t, not
    narrower than :func:`episodes_estimate`. A single run has the interval of its episodes: nothing is known of other
    seeds.

    Args:
        runs: for each run, [k] scores of its episodes.
        measure: what they are.

    Source: Korn and Graubard 1998 (Survey Methodology 24) for the number of episodes and the quantile, with Wilson's
    interval in place of Clopper's and Pearson's.
    """
    alone = episodes_estimate(runs, measure)
    if len(runs) < 2:
        return alone
    means = np.array([np.mean(run) for run in runs], np.float64)
    error_sq, t = float(means.var(ddof=1)) / len(runs), float(stats.t.ppf(0.975, len(runs) - 1))
    if measure.rule:
        expected_sq = alone.value * (1 - alone.value) / sum(len(run) for run in runs)
        worth = sum(len(run) for run in runs) / max(1.0, error_sq / expected_sq if expected_sq > 0 else 1.0)
        return wilson(alone.value, worth * (Z / t) ** 2)
    half = t * math.sqrt(error_sq)
    return _hull(Estimate(value=alone.value, low=alone.value - half, high=alone.value + half), alone)


def difference_of_episodes(
    treatment: Sequence[FloatArray], control: Sequence[FloatArray], measure: Measure
) -> Estimate:
    """Return the difference of two means over runs with what the episodes alone leave open about it.

    Source: Newcombe 1998 (Statistics in Medicine 17), method 10, from the intervals of :func:`episodes_estimate`.
    """
    x, y = (episodes_estimate(runs, measure) for runs in (treatment, control))
    value = x.value - y.value
    below, above = math.hypot(x.value - x.low, y.high - y.value), math.hypot(x.high - x.value, y.value - y.low)
    return Estimate(value=value, low=value - below, high=value + above)


def paired_difference(treatment: Sequence[FloatArray], control: Sequence[FloatArray], measure: Measure) -> Estimate:
    """Return the mean difference of runs at equal seeds, at least two, with its 95 % interval by Student's t.

    The interval is never narrower than :func:`difference_of_episodes`.

    Args:
        treatment: for each seed, [k] scores of the episodes.
        control: likewise, at the same seeds.
        measure: what they are.
    """
    alone = difference_of_episodes(treatment, control, measure)
    differences = _means(treatment) - _means(control)
    half = float(stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1)) / math.sqrt(len(differences))
    found = _hull(Estimate(value=alone.value, low=alone.value - half, high=alone.value + half), alone)
    return _within(found, -1.0, 1.0) if measure.rule else found


def stratified_bootstrap(
    strata: Sequence[Sequence[FloatArray]],
    measure: Measure,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    paired: Sequence[Sequence[FloatArray]] | None = None,
) -> Estimate:
    """Return the interquartile mean over strata with a 95 % percentile interval.

    Runs (seeds) are drawn with replacement within each stratum (task), as rliable does. Runs that came out equal can't
    show by drawing what their episodes leave open; the interval is therefore never narrower than that.

    Args:
        strata: for each task and seed, [k] scores of the run's episodes.
        measure: what they are.
        num_samples: bootstrap resamples.
        seed: of the resampling.
        paired: subtracted from ``strata`` seed by seed: the estimate is then of the *difference* of the two
            interquartile means, with both drawn at the same seeds.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(s), size=(num_samples, len(s))) for s in strata]

    def drawn(tasks: Sequence[Sequence[FloatArray]]) -> tuple[float, FloatArray, list[FloatArray]]:
        means = [_means(runs) for runs in tasks]
        flat = np.concatenate([m[d] for m, d in zip(means, draws, strict=True)], axis=1)
        return interquartile_mean(np.concatenate(means)), stats.trim_mean(flat, 0.25, axis=1), [*_flat(tasks)]

    value, samples, runs = drawn(strata)
    alone = episodes_estimate(runs, measure)
    if paired is not None:
        other, others, other_runs = drawn(paired)
        value, samples = value - other, samples - others
        alone = difference_of_episodes(runs, other_runs, measure)
    low, high = np.percentile(samples, [2.5, 97.5])
    # Around the interquartile mean, which need not be the mean.
    moved = Estimate(value=value, low=value + alone.low - alone.value, high=value + alone.high - alone.value)
    found = _hull(Estimate(value=value, low=float(low), high=float(high)), moved)
    return _within(found, 0.0 if paired is None else -1.0, 1.0) if measure.rule else found


def _means(runs: Sequence[FloatArray]) -> FloatArray:
    return np.array([np.mean(run) for run in runs], np.float64)


def _flat(tasks: Sequence[Sequence[FloatArray]]) -> list[FloatArray]:
    return [run for runs in tasks for run in runs]


def _hull(estimate: Estimate, other: Estimate) -> Estimate:
    return Estimate(value=estimate.value, low=min(estimate.low, other.low), high=max(estimate.high, other.high))


def _within(estimate: Estimate, low: float, high: float) -> Estimate:
    return Estimate(value=estimate.value, low=max(estimate.low, low), high=min(estimate.high, high))


def probability_of_improvement(treatment: FloatArray, control: FloatArray) -> Estimate:
    """Return P(a treatment run beats a control run), ties counting half, with a 95 % score interval.

    Drawing the runs anew would find no spread where all of one side win. This interval keeps one, as Wilson's does: its
    ends are the probabilities from which the found one is 1.96 of *their* standard errors away.

    Args:
        treatment: [S] scores of runs.
        control: [R] scores of runs.

    Source: Agarwal et al. 2021, section 4.3 (the Mann-Whitney statistic); Newcombe 2006 (Statistics in Medicine 25),
    method 5, for the interval.
    """
    x, y = np.asarray(treatment, np.float64), np.asarray(control, np.float64)
    found = float(((x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])).mean())
    others, pairs = (len(x) + len(y)) / 2 - 1, len(x) * len(y)

    def excess(p: float) -> float:
        """Squared distance less the squared half-width, above 0 outside of the interval."""
        variance = p * (1 - p) * (1 + others * ((1 - p) / (2 - p) + p / (1 + p))) / pairs
        return (found - p) ** 2 - Z * Z * variance

    tiny = 1e-9
    low = 0.0 if found < tiny else optimize.brentq(excess, 0.0, min(found, 1 - tiny))
    high = 1.0 if found > 1 - tiny else optimize.brentq(excess, max(found, tiny), 1.0)
    return Estimate(value=found, low=float(low), high=float(high))  # type: ignore[arg-type]


def detectable_difference(deviation: float, num_pairs: int) -> float:
    """Return the true mean difference that a paired t-test at the 5 % level finds with 80 % probability.

    The smallest d for which P(T > t) = 0.8, where t is the 97.5 % quantile of Student's distribution with n - 1 degrees
    of freedom and T has the noncentral one with noncentrality d sqrt(n) / s.

    Args:
        deviation: s, standard deviation of the differences of pairs.
        num_pairs: n, at least 2.

    Source: Cohen 1988, chapter 2.
    """
    critical, freedom = float(stats.t.ppf(0.975, num_pairs - 1)), num_pairs - 1
    reach = optimize.brentq(lambda x: stats.nct.sf(critical, freedom, x) - POWER, 0.0, 4.0 * critical + 4.0)
    return float(reach) * deviation / math.sqrt(num_pairs)  # type: ignore[arg-type]


def pairs_needed(deviation: float, difference: float) -> int:
    """Return the fewest pairs whose :func:`detectable_difference` is at most ``difference``, which is above 0."""
    few, many = 1, 2
    while detectable_difference(deviation, many) > difference:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if detectable_difference(deviation, middle) <= difference else (middle, many)
    return many
