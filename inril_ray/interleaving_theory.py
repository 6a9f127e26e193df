"""What IN-RIL's theory says of a run, from measured gradients: rho, the gain by imitation, double descent.

The theory is of plain gradient steps on expected losses. Where gradients are separated or clipped, or Adam steps, its
quantities describe the gradients that went in, not the change that came out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.signal import savgol_filter

from inril_ray.types import FloatArray

MIN_PAIRS_SE = 3
"""Pairs from which a jackknife knows the variance of a noise-corrected norm."""
SMOOTHING_WINDOW = 11
"""Iterations that one Savitzky–Golay polynomial spans; the paper doesn't give its window."""
SMOOTHING_ORDER = 3
DOUBLE_DESCENT_RISE = 0.02


@dataclass(frozen=True, kw_only=True)
class RelationEstimate:
    """Unbiased estimates from B pairs of minibatch gradients near one point of parameter space."""

    inner: float
    """<g_IL, g_RL> of the expected gradients"""
    norm_sq_rl: float
    """|g_RL|^2, corrected for noise. Not floored, so that averages stay unbiased: below 0 where noise hides it."""
    norm_sq_il: float
    """|g_IL|^2, likewise"""
    variance_rl: float
    """Trace of the covariance of g_RL over minibatches"""
    variance_il: float
    """Trace of the covariance of g_IL over minibatches of the imitation batch size"""
    covariance: FloatArray | None
    """[3, 3] of the errors of (inner, norm_sq_rl, norm_sq_il), by the jackknife over pairs; None below three pairs."""

    @property
    def rho(self) -> float | None:
        """-cos(g_IL, g_RL); None where noise hides a gradient."""
        return rho_of(self.inner, self.norm_sq_rl, self.norm_sq_il)

    @property
    def rho_se(self) -> float | None:
        """Standard error of :attr:`rho`."""
        return rho_se_of(self.inner, self.norm_sq_rl, self.norm_sq_il, self.covariance)


def estimate_relation(gram: FloatArray) -> RelationEstimate:
    """Estimate the relation of two expected gradients from inner products of their minibatch gradients.

    Args:
        gram: [2B, 2B], B >= 2: B minibatch gradients of RL, then the B of IL that they are paired with, all drawn
            independently of each other.

    The jackknife is chosen because it covers and is never negative. Where noise dominates it is up to 1.7 times too
    wide at B = 4; the unbiased alternative came out negative too often, and too narrow at the first estimates. It knows
    the choice of minibatches only, not how gradients vary from rollout to rollout.
    """
    b = len(gram) // 2
    rl, il = gram[:b, :b], gram[b:, b:]
    inner, norm_sq_rl, norm_sq_il = _moments(gram)
    covariance = None
    if b >= MIN_PAIRS_SE:
        kept = [np.delete(np.arange(2 * b), [i, b + i]) for i in range(b)]
        values = np.array([_moments(gram[np.ix_(k, k)]) for k in kept])
        errors = values - values.mean(axis=0)
        covariance = (b - 1) / b * errors.T @ errors
    return RelationEstimate(
        inner=inner,
        norm_sq_rl=norm_sq_rl,
        norm_sq_il=norm_sq_il,
        variance_rl=max(0.0, float(np.trace(rl)) / b - norm_sq_rl),
        variance_il=max(0.0, float(np.trace(il)) / b - norm_sq_il),
        covariance=covariance,
    )


def _moments(gram: FloatArray) -> tuple[float, float, float]:
    """Return the unbiased inner product and squared norms: products of *different* minibatches only."""
    b = len(gram) // 2

    def norm_sq(block: FloatArray) -> float:
        return float(block.sum() - np.trace(block)) / (b * (b - 1))

    return float(gram[:b, b:].mean()), norm_sq(gram[:b, :b]), norm_sq(gram[b:, b:])


def rho_of(inner: float, norm_sq_rl: float, norm_sq_il: float) -> float | None:
    """Return -cos(g_IL, g_RL) in [-1, 1]; None where a squared norm is not positive."""
    if not (norm_sq_rl > 0 and norm_sq_il > 0):
        return None
    return max(-1.0, min(1.0, -inner / math.sqrt(norm_sq_rl) / math.sqrt(norm_sq_il)))


def rho_se_of(inner: float, norm_sq_rl: float, norm_sq_il: float, covariance: FloatArray | None) -> float | None:
    """Return the standard error of rho by the delta method, at most 1: rho ± 2 is all there is.

    Args:
        inner: <g_IL, g_RL>.
        norm_sq_rl: |g_RL|^2.
        norm_sq_il: |g_IL|^2.
        covariance: [3, 3] of the three.
    """
    if covariance is None or not (norm_sq_rl > 0 and norm_sq_il > 0):
        return None
    scale = math.sqrt(norm_sq_rl) * math.sqrt(norm_sq_il)
    slope = np.array([-1 / scale, inner / scale / (2 * norm_sq_rl), inner / scale / (2 * norm_sq_il)])
    return min(1.0, math.sqrt(max(0.0, float(slope @ covariance @ slope))))


class SmoothedRelation:
    """Exponential moving averages of :class:`RelationEstimate`, bias-corrected.

    Ratios are taken of averages, not averaged: that of one estimate is biased, and has no value where noise hides a
    gradient in it.

    Args:
        ema: share of the old average that an update keeps, in [0, 1).
    """

    _NAMES = ("inner", "norm_sq_rl", "norm_sq_il", "variance_rl", "variance_il")

    def __init__(self, ema: float = 0.9) -> None:
        self.ema = ema
        self._weight = 0.0
        self._sums: dict[str, float] = dict.fromkeys(self._NAMES, 0.0)
        self._covariance: FloatArray | None = np.zeros((3, 3))

    def add(self, estimate: RelationEstimate | None) -> None:
        """Take in an iteration's estimate; None, and one that is not finite, changes nothing."""
        if estimate is None or not all(math.isfinite(getattr(estimate, name)) for name in self._NAMES):
            return
        old, new = self.ema, 1.0 - self.ema
        self._weight = old * self._weight + new
        for name in self._NAMES:
            self._sums[name] = old * self._sums[name] + new * getattr(estimate, name)
        if self._covariance is not None and estimate.covariance is not None:
            self._covariance = old**2 * self._covariance + new**2 * estimate.covariance
        else:
            self._covariance = None

    @property
    def empty(self) -> bool:
        """Nothing was taken in yet."""
        return self._weight == 0.0

    def _mean(self, name: str) -> float:
        return 0.0 if self.empty else self._sums[name] / self._weight

    @property
    def inner(self) -> float:
        """<g_IL, g_RL>."""
        return self._mean("inner")

    @property
    def norm_sq_rl(self) -> float:
        """|g_RL|^2, floored at 0."""
        return max(0.0, self._mean("norm_sq_rl"))

    @property
    def norm_sq_il(self) -> float:
        """|g_IL|^2, floored at 0."""
        return max(0.0, self._mean("norm_sq_il"))

    @property
    def variance_rl(self) -> float:
        """Trace of the covariance of g_RL over minibatches."""
        return self._mean("variance_rl")

    @property
    def variance_il(self) -> float:
        """Trace of the covariance of g_IL over imitation batches: sigma_I^2 / N."""
        return self._mean("variance_il")

    @property
    def rho(self) -> float | None:
        """-cos(g_IL, g_RL), positive is opposing; None before the first estimate and where noise hides a gradient."""
        return rho_of(self.inner, self.norm_sq_rl, self.norm_sq_il)

    @property
    def rho_se(self) -> float | None:
        """Standard error of :attr:`rho`, of choosing minibatches; None without rho or with fewer than three pairs."""
        if self.empty or self._covariance is None:
            return None
        return rho_se_of(self.inner, self.norm_sq_rl, self.norm_sq_il, self._covariance / self._weight**2)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, plain data."""
        covariance = None if self._covariance is None else self._covariance.tolist()
        return {"weight": self._weight, "sums": dict(self._sums), "covariance": covariance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._weight = float(state["weight"])
        self._sums = {name: float(state["sums"][name]) for name in self._NAMES}
        covariance = state["covariance"]
        self._covariance = None if covariance is None else np.array(covariance, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class IterationContext:
    """What one finished iteration did, as the theory counts it."""

    iterations_done: int
    """Including this one."""
    reinforced: bool
    imitated: bool
    rl_steps: int
    """S_R: gradient steps of an RL iteration."""
    il_steps: int
    """S_I: gradient steps of an imitation iteration."""
    rl_lr: float
    """eta_R"""
    il_lr: float
    """eta_I"""
    rl_batch_size: int
    il_batch_size: int
    """N: samples of one imitation gradient."""


class InterleavingTheory:
    """Follows a run and measures what IN-RIL's theorems are about.

    Args:
        ema: of :class:`SmoothedRelation`.
        c_il: c_I = eta_I L_I: what stands for the smoothness L_I = c_I / eta_I of the imitation loss.
        smoothness_rl: L_R of beta's denominator. 1 where L_0 - L* is in units of the RL loss, as here: the learning
            rates that went into the gains have taken the smoothness with them.
    """

    def __init__(self, ema: float = 0.9, *, c_il: float = 0.1, smoothness_rl: float = 1.0) -> None:
        self.relation = SmoothedRelation(ema)
        self.c_il, self.smoothness_rl = c_il, smoothness_rl
        self.delta = 0.0
        """Delta_IL-RL so far, in units of the RL loss: what imitation took off it. Source: IN-RIL theorem 4, with the
        noise subtracted: the paper's proof adds it, its statement doesn't, and subtracting claims less."""
        self.rl_gain = 0.0
        """What the RL steps took off the RL loss, to first order."""
        self.reinforced = self.imitated = 0
        self._probe: list[float] = []
        self._batch_sizes = (0, 0)

    def observe(self, estimate: RelationEstimate | None, context: IterationContext, probe_loss: float) -> None:
        """Take in one iteration.

        Args:
            estimate: of this iteration's gradients; None where nothing could be measured.
            context: what it did.
            probe_loss: imitation loss on held-out demonstrations at its end.
        """
        if estimate is not None:
            # For one sample, since minibatches of RL differ in size between iterations with imitation and without.
            estimate = replace(estimate, variance_rl=estimate.variance_rl * context.rl_batch_size)
        self.relation.add(estimate)
        self.reinforced += context.reinforced
        self.imitated += context.imitated
        self._batch_sizes = (context.rl_batch_size, context.il_batch_size)
        if context.reinforced:  # between measurements, by the moving average
            norm_sq = estimate.norm_sq_rl if estimate is not None else self.relation.norm_sq_rl
            self.rl_gain += context.rl_steps * context.rl_lr * (norm_sq if math.isfinite(norm_sq) else 0.0)
        # At a rate of 0, where a decayed rate of RL is imitation's too, nothing is gained.
        if estimate is not None and math.isfinite(estimate.inner) and context.imitated and context.il_lr > 0:
            smoothness_il = self.c_il / context.il_lr
            self.delta += context.il_steps * imitation_gain(
                estimate.inner, estimate.variance_il, lr=context.il_lr, smoothness_il=smoothness_il
            )
        if math.isfinite(probe_loss):
            self._probe.append(float(probe_loss))

    def beta(self, gap: float | None = None) -> float | None:
        """Return beta = Delta / (L_R (L_0 - L*)); None where the gap is not positive, or one kind of update is missing.

        Imitation is efficient where this exceeds :attr:`il_share`. Source: IN-RIL theorem 4.

        Args:
            gap: L_0 - L*, how far the RL loss could fall, in its units. By default what all updates so far took off it,
                by the same first-order account as Delta: beta then is imitation's share of the progress, to compare
                with its share of the iterations.
        """
        if not (self.reinforced and self.imitated):
            return None
        gap = self.rl_gain + self.delta if gap is None else gap
        return self.delta / (self.smoothness_rl * gap) if gap > 0 else None

    @property
    def il_share(self) -> float:
        """1 / (1 + m): imitation's share of the iterations so far."""
        return self.imitated / max(1, self.imitated + self.reinforced)

    def metrics(self) -> dict[str, float]:
        """Return what is defined by now, by the names of :data:`inril_ray.metrics.METRICS`."""
        relation, result = self.relation, {"double_descent": float(double_descent(self._probe))}
        rho, rho_se, beta = relation.rho, relation.rho_se, self.beta()
        optional = {"rho_ema": rho, "rho_ema_se": rho_se, "beta_il_rl": beta}
        result |= {name: value for name, value in optional.items() if value is not None}
        if self.imitated:
            result |= {"delta_il_rl": self.delta, "il_share": self.il_share}
        _, il_batch = self._batch_sizes
        if relation.norm_sq_rl > 0:
            result["noise_scale_rl"] = noise_scale(relation.variance_rl, relation.norm_sq_rl, 1)
        if relation.norm_sq_il > 0:
            result["noise_scale_il"] = noise_scale(relation.variance_il, relation.norm_sq_il, il_batch)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state, plain data."""
        return {
            "relation": self.relation.state_dict(),
            "delta": self.delta,
            "rl_gain": self.rl_gain,
            "reinforced": self.reinforced,
            "imitated": self.imitated,
            "probe": list(self._probe),
            "batch_sizes": list(self._batch_sizes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.relation.load_state_dict(state["relation"])
        self.delta, self.rl_gain = float(state["delta"]), float(state["rl_gain"])
        self.reinforced, self.imitated = int(state["reinforced"]), int(state["imitated"])
        self._probe = [float(x) for x in state["probe"]]
        rl_batch, il_batch = state["batch_sizes"]
        self._batch_sizes = (int(rl_batch), int(il_batch))


def imitation_gain(inner: float, variance: float, *, lr: float, smoothness_il: float) -> float:
    """Return the summand of Delta_IL-RL: what one imitation step takes off the RL loss, less the cost of its noise.

    Args:
        inner: <g_IL, g_RL> = -rho |g_IL| |g_RL|.
        variance: sigma_I^2 / N, of one imitation batch.
        lr: eta_I.
        smoothness_il: L_I.
    """
    return lr * inner - 0.5 * lr**2 * smoothness_il * variance


def noise_scale(variance: float, norm_sq: float, batch_size: int) -> float:
    """Return the batch size, in samples, at which noise and gradient are equally large.

    Source: McCandlish et al. 2018, the "simple" noise scale, tr(Sigma) / |g|^2 with Sigma of single samples.

    Args:
        variance: trace of the covariance of gradients of ``batch_size`` samples.
        norm_sq: |g|^2, positive.
        batch_size: samples.
    """
    return batch_size * variance / norm_sq


def double_descent(losses: Sequence[float], rise: float = DOUBLE_DESCENT_RISE) -> bool:
    """Tell whether a smoothed loss rose by more than a share ``rise`` above its start and then fell below the start.

    Source: IN-RIL figure 6 for the smoothing (Savitzky–Golay). Too short a curve, below 5 values, has not.
    """
    window = min(SMOOTHING_WINDOW, len(losses) - (len(losses) + 1) % 2)
    if window <= SMOOTHING_ORDER:
        return False
    smooth: FloatArray = np.asarray(savgol_filter(np.asarray(losses), window, SMOOTHING_ORDER), dtype=np.float64)
    risen = np.flatnonzero(smooth > smooth[0] + rise * abs(smooth[0]))
    return len(risen) > 0 and bool((smooth[risen[0] :] < smooth[0]).any())
