"""Intervals and comparisons, and the words for them. Every result that the library prints comes with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from inril_ray.types import FloatArray, InrilError, SuccessRule


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A proportion with its 95 % Wilson interval."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The proportion."""
        return self.successes / self.trials


def rate(successes: int, trials: int) -> Rate:
    """Return a proportion with its 95 % Wilson interval.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion.")
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Rate(successes=successes, trials=trials, low=float(interval.low), high=float(interval.high))


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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_estimate(values: FloatArray) -> Estimate:
    """Return the mean of values [N] with its 95 % interval by Student's t.

    One value says nothing about the spread: both ends then equal it.
    """
    x = np.asarray(values, np.float64)
    mean, half = float(x.mean()), 0.0
    if len(x) > 1:
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def stratified_bootstrap(
    strata: list[FloatArray], *, num_samples: int = 10_000, seed: int = 0, paired: list[FloatArray] | None = None
) -> Estimate:
    """Return the interquartile mean over strata with a 95 % percentile interval.

    Runs (seeds) are drawn with replacement within each stratum (task), as rliable does.

    Args:
        strata: for each task, [S] scores by seed.
        num_samples: bootstrap resamples.
        seed: of the resampling.
        paired: subtracted from ``strata`` seed by seed: the estimate is then of the *difference* of the two
            interquartile means, with both drawn at the same seeds.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(s), size=(num_samples, len(s))) for s in strata]

    def resampled(values: list[FloatArray]) -> FloatArray:
        flat = np.concatenate([np.asarray(v)[d] for v, d in zip(values, draws, strict=True)], axis=1)
        return stats.trim_mean(flat.astype(np.float64), 0.25, axis=1)

    value = interquartile_mean(np.concatenate([np.ravel(s) for s in strata]))
    samples = resampled(strata)
    if paired is not None:
        value -= interquartile_mean(np.concatenate([np.ravel(s) for s in paired]))
        samples = samples - resampled(paired)
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))


def probability_of_improvement(
    treatment: FloatArray, control: FloatArray, *, num_samples: int = 10_000, seed: int = 0
) -> Estimate:
    """Return P(a treatment run beats a control run), ties counting half, with a 95 % bootstrap interval.

    Args:
        treatment: [S] scores by seed.
        control: [S] scores at the same seeds.
        num_samples: bootstrap resamples of seeds.
        seed: of the resampling.

    Source: Agarwal et al. 2021, section 4.3 (the Mann-Whitney statistic).
    """
    x, y = np.asarray(treatment, np.float64), np.asarray(control, np.float64)
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    rng = np.random.default_rng(seed)
    i = rng.integers(len(x), size=(num_samples, len(x)))
    j = rng.integers(len(y), size=(num_samples, len(y)))
    samples = np.stack([wins[a][:, b].mean() for a, b in zip(i, j, strict=True)])
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(value=float(wins.mean()), low=float(low), high=float(high))
