"""Notices that a run collapses, with a stated rate of false alarms.

Evaluations decide. Each is held against the best before it by simultaneous confidence bounds, so the rate of false
alarms is that of the whole run, however often one looks and whichever evaluation was the best. Between evaluations the
imitation loss on held-out demonstrations and the divergence from the cloned policy are watched by one-sided cumulative
sums (Page, Biometrika 1954); their alarm does not act, it asks for an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from scipy import optimize, stats

from inril_ray.config import config
from inril_ray.statistics import spread_is_rounding, unseen_share

AUDIT_LOG = "guard.jsonl"
"""Every decision of the guard in a run, in its directory."""
SLACK = 0.5
"""Standard deviations above the limit that a cumulative sum lets pass: it is most sensitive to twice as much."""
NOISE_FLOOR = 0.01
"""Least noise, as a share of the limit, that is believed."""


@config
class GuardConfig:
    """What is called a collapse, and what follows."""

    action: Literal["none", "warn", "rollback", "stop"] = "warn"
    """``rollback``: go on from the best evaluated state with smaller steps; ``stop``: end the run, its best is kept."""
    false_alarm: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.01
    """Greatest probability that a run whose policy never gets worse is ever said to have collapsed; and that an early
    warning is ever given while its measure stays at its limit."""
    tolerance: NonNegativeFloat = 0.1
    """Loss of score that is not called a collapse; 0.1 is ten percentage points of success."""
    il_loss_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """Early warning: imitation loss on held-out demonstrations above this multiple of its first values; not watched
    where that is a log-likelihood with values below 0."""
    kl_limit: PositiveFloat | None = None
    """Early warning: divergence from the cloned policy (``kl_base``) above this; None does not measure it, which takes
    a copy of the policy."""
    warmup: Annotated[int, Field(ge=3)] = 5
    """First values of a measure, from which its noise is estimated."""
    step_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """What each roll-back multiplies the policy's learning rates by."""
    max_rollbacks: NonNegativeInt = 3
    """After so many the next collapse ends the run."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Confidence bounds of a score."""

    low: float
    high: float


def bounds(outcomes: Sequence[float], level: float) -> Bounds:
    """Return one-sided bounds of the mean, each missed with a probability of at most ``level``.

    Exact for successes and failures (Clopper and Pearson, Biometrika 1934), Student's t for other outcomes; equal ones
    show no spread, see :func:`inril_ray.statistics.mean_estimate`.

    Args:
        outcomes: of the episodes.
        level: of each bound.
    """
    values = np.asarray(outcomes, float)
    n = len(values)
    if np.isin(values, (0.0, 1.0)).all():
        k = int(values.sum())
        low = 0.0 if k == 0 else float(stats.beta.ppf(level, k, n - k + 1))
        high = 1.0 if k == n else float(stats.beta.ppf(1.0 - level, k + 1, n - k))
        return Bounds(low=low, high=high)
    if n < 2:
        return Bounds(low=-math.inf, high=math.inf)
    if spread_is_rounding(values):
        reach = unseen_share(n, level)
        return Bounds(low=float(values.mean()) - reach, high=float(values.mean()) + reach)
    reach = float(stats.t.ppf(1.0 - level, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Bounds(low=float(values.mean()) - reach, high=float(values.mean()) + reach)


def run_length(height: float) -> float:
    """Return the mean number of values until a cumulative sum of noise reaches a height (Siegmund 1985, eq. 2.48)."""
    reach = 2.0 * SLACK * (height + 1.166)
    return (math.exp(reach) - reach - 1.0) / (2.0 * SLACK**2)


def height_of(false_alarm: float, num_values: int) -> float:
    """Return the height that noise at the limit reaches within so many values with probability ``false_alarm``."""
    wanted = max(num_values, 1) / -math.log1p(-false_alarm)  # the waiting time is nearly exponential
    if wanted <= run_length(0.0):
        return 0.0
    return optimize.root_scalar(lambda h: run_length(h) - wanted, bracket=(0.0, 100.0)).root


class Watch:
    """One-sided cumulative sum of a noisy measure above a limit.

    Args:
        limit: that its mean should not exceed; relative to the mean of the first values if ``relative``.
        relative: see there.
        warmup: values from which the noise is estimated.
        height: of the sum that is an alarm, in standard deviations.
    """

    def __init__(self, limit: float, *, relative: bool, warmup: int, height: float) -> None:
        self.limit, self.relative, self.warmup, self.height = limit, relative, warmup, height
        self.first: list[float] = []
        self.sum = 0.0

    def observe(self, value: float) -> bool:
        """Take in a value; return whether it is an alarm, which starts the sum anew."""
        if len(self.first) < self.warmup:
            self.first.append(value)
            return False
        if self.relative and min(self.first) <= 0.0:  # a log-likelihood has no multiples
            return False
        self.sum = max(0.0, self.sum + (value / self._level() - 1.0) / self._noise() - SLACK)
        alarm = self.sum > self.height
        if alarm:
            self.sum = 0.0
        return alarm

    def _level(self) -> float:
        return self.limit * (float(np.mean(self.first)) if self.relative else 1.0)

    def _noise(self) -> float:
        # Of differences, which a trend hardly touches; the upper end of its interval, since few values tell little.
        changes = np.diff(self.first) / self._level()
        n = len(changes)
        estimate = math.sqrt(float(np.mean(changes**2)) / 2.0) * math.sqrt(n / stats.chi2.ppf(0.05, n))
        return max(estimate, NOISE_FLOOR)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What an evaluation says."""

    collapsed: bool
    best: bool
    """Its lower bound is the best so far: a state to come back to."""
    text: str


class CollapseGuard:
    """Watches one run; knows nothing of how it is trained.

    Args:
        config: what is called a collapse.
        num_iterations: of the run.
        num_evaluations: that are planned, the first and the last included.
    """

    def __init__(self, config: GuardConfig, num_iterations: int, num_evaluations: int) -> None:
        self.config = config
        self.rollbacks = 0
        # As many again may be asked for by early warnings, and a roll-back repeats some of both.
        self._looks_left = 2 * num_evaluations * (1 + config.max_rollbacks * (config.action == "rollback"))
        self._planned = num_evaluations
        self._asked = 0
        self._level = config.false_alarm / (2 * self._looks_left)
        self._best: Mapping[str, float] | None = None
        height = height_of(config.false_alarm, num_iterations)
        watch = {"warmup": config.warmup, "height": height}
        self._watches = {"il_probe_loss": Watch(config.il_loss_factor, relative=True, **watch)}
        if config.kl_limit is not None:
            self._watches["kl_base"] = Watch(config.kl_limit, relative=False, **watch)

    @property
    def best_iteration(self) -> int | None:
        """Iteration of the best evaluation, None before the first."""
        return None if self._best is None else int(self._best["iteration"])

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in an iteration; return early warnings, which ask for an evaluation. As many as planned ones at most."""
        found = []
        for name, watch in self._watches.items():
            if name in metrics and math.isfinite(metrics[name]) and watch.observe(metrics[name]):
                found.append(f"{name} is {metrics[name]:.3g} and has been above {watch._level():.3g}.")
        if not found or self._asked >= self._planned:
            return []
        self._asked += 1
        return found

    def judge(self, score: float, outcomes: Sequence[float], iteration: int) -> Judgement:
        """Take in an evaluation and hold it against the best before it."""
        found = bounds(outcomes, self._level)
        best, tolerance = self._best, self.config.tolerance
        collapsed = best is not None and found.high < best["low"] - tolerance
        text = f"score {100 * score:.1f}, at most {100 * found.high:.1f}"
        if best is not None:
            text += (
                f"; the best was {100 * best['score']:.1f} at iteration {best['iteration']:.0f}, "
                f"at least {100 * best['low']:.1f}"
            )
        improves = math.isfinite(found.low) and (best is None or found.low > best["low"])
        if improves:
            self._best = {"low": found.low, "score": score, "iteration": float(iteration)}
        return Judgement(collapsed=collapsed, best=improves, text=text)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""
        watches = {name: {"first": list(w.first), "sum": w.sum} for name, w in self._watches.items()}
        return {"rollbacks": self.rollbacks, "asked": self._asked, "best": self._best, "watches": watches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.rollbacks, self._asked, self._best = state["rollbacks"], state["asked"], state["best"]
        self.rewind(state)

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Forget what the watches have seen since a state: the iterations that are rolled back."""
        for name, saved in state["watches"].items():
            if name in self._watches:
                self._watches[name].first, self._watches[name].sum = list(saved["first"]), saved["sum"]
