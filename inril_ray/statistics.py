"""Intervals and comparisons. Every rate that the library prints comes with one of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from inril_ray.types import FloatArray


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

    def __str__(self) -> str:
        """Return e.g. ``48.0 % [41.2, 54.9], 200 episodes``."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}], {self.trials} episodes"


def rate(successes: int, trials: int) -> Rate:
    """Return a proportion with its 95 % Wilson interval.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion.")
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Rate(successes=successes, trials=trials, low=float(interval.low), high=float(interval.high))


def interquartile_mean(values: FloatArray) -> float:
    """Return the mean of the middle half of all values, whatever their shape.

    Source: Agarwal et al. 2021 (rliable), section 4.3.
    """
    return float(stats.trim_mean(np.asarray(values, np.float64).ravel(), 0.25))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with a bootstrap interval."""

    value: float
    low: float
    high: float


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
