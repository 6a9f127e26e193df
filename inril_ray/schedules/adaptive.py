"""IN-RIL with a ratio that follows how the gradients relate."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from inril_ray.config import config
from inril_ray.interleaving_theory import IterationContext, SmoothedRelation
from inril_ray.schedules.base import Iteration, Schedule
from inril_ray.types import InrilError

MAX_CHANGE = 2
"""Factor by which m may grow or shrink in one cycle."""


@config
class AdaptiveConfig:
    """Settings of the adaptive ratio."""

    rule: Literal["break_even", "paper_sqrt"] = "break_even"
    """``break_even``: as many RL iterations as make good what one imitation iteration may cost, more of them the more
    the gradients oppose. ``paper_sqrt``: the paper's closed form, which falls with opposition."""
    c_il: NonNegativeFloat = 0.1
    """c_I = eta_I L_I, learning rate times smoothness of the imitation loss."""
    smoothness_ratio: PositiveFloat = 1.0
    """r = L_R / L_I"""
    min_every: PositiveInt = 1
    max_every: PositiveInt = 50
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the old average that a new estimate of the relation keeps."""


class AdaptiveSchedule(Schedule):
    """After every m(t) RL iterations, one imitation iteration.

    m starts from the constant one and is decided anew at each imitation iteration, for the cycle that follows: a rule,
    rounded, within bounds, and at most twice or half the old m. It stays where the relation is not known: before the
    first estimate, where noise hides a gradient, and where losses share no parameters.
    Source: IN-RIL appendix E. Differs: rule ``break_even``, which does what the paper's text says of its formula;
    the limit of a change.

    Args:
        every: m of the first cycle.
        settings: the rule and its bounds.

    Raises:
        InrilError: bounds that exclude each other or ``every``.
    """

    Config = AdaptiveConfig

    def __init__(self, every: int, settings: AdaptiveConfig | None = None) -> None:
        settings = settings or AdaptiveConfig()
        low, high = settings.min_every, settings.max_every
        if low > high:
            raise InrilError(f"Configuration adaptive.min_every = {low}: must not exceed adaptive.max_every = {high}.")
        if not low <= every <= high:
            raise InrilError(
                f"Configuration interleave.every = {every}: the adaptive schedule starts there and keeps to "
                f"adaptive.min_every = {low} ... adaptive.max_every = {high}."
            )
        super().__init__(every)
        self.settings = settings
        self._cycle_start = 0
        self._target: float | None = None

    @classmethod
    def from_config(cls, interleave: Any) -> Self:
        """Make one from the ``interleave`` section of a configuration, which has an ``adaptive`` one."""
        return cls(interleave.every, interleave.adaptive)

    def next(self, iterations_done: int) -> Iteration:
        """Return what the next iteration does: counted from the last imitation iteration."""
        return Iteration(rl=True, il=(iterations_done + 1 - self._cycle_start) % self.every == 0)

    def observe(self, relation: SmoothedRelation, context: IterationContext) -> None:
        """After an imitation iteration, begin a new cycle and decide its m."""
        if not context.imitated:
            return
        self._cycle_start = context.iterations_done
        self._target = self._rule(relation, context)
        if self._target is not None:
            self.every = limited(self._target, self.every, self.settings)

    def _rule(self, relation: SmoothedRelation, context: IterationContext) -> float | None:
        rho, cfg = relation.rho, self.settings
        if rho is None or context.rl_steps == 0 or context.rl_lr == 0:
            return None
        norm_il, norm_rl = math.sqrt(relation.norm_sq_il), math.sqrt(relation.norm_sq_rl)
        if cfg.rule == "paper_sqrt":
            kappa = 0.5 * context.il_lr * cfg.smoothness_ratio * relation.variance_il
            return paper_sqrt(rho, norm_il, norm_rl, kappa)
        return break_even(rho, norm_il, norm_rl, relation.variance_il, context, cfg)

    def decision(self) -> dict[str, float]:
        """Return m, and what the rule asked for at the last decision."""
        target = self._target
        asked = {} if target is None or math.isinf(target) else {"interleave_target": target}
        return super().decision() | asked

    def state_dict(self) -> dict[str, Any]:
        """Return m and where the cycle began."""
        target = "inf" if self._target == math.inf else self._target
        return {"every": self.every, "cycle_start": self._cycle_start, "target": target}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.every, self._cycle_start = int(state["every"]), int(state["cycle_start"])
        self._target = None if state["target"] is None else float(state["target"])


def break_even(
    rho: float, norm_il: float, norm_rl: float, variance_il: float, context: IterationContext, settings: AdaptiveConfig
) -> float:
    """Return the m at which RL makes good what one imitation iteration costs the RL loss, 0 where it costs nothing.

    With L_R smoothness, c = learning rate x L and r = L_R / L_I, the descent lemma bounds the cost of an imitation step
    by eta_I rho |g_I| |g_R| + L_R/2 eta_I^2 (|g_I|^2 + sigma_I^2 / N) and the gain of an RL step from below by
    (1 - c_R/2) eta_R |g_R|^2; both are equalities for a quadratic RL loss.

    Source: IN-RIL appendix E, the equation above its closed form. Differs: c_R = r c_I eta_R / eta_I is at most 1. What
    the configured r and c_I say beyond it would be that RL's own learning rate does not descend.

    Args:
        rho: -cos(g_IL, g_RL).
        norm_il: |g_IL|.
        norm_rl: |g_RL|, positive.
        variance_il: sigma_I^2 / N, of one imitation batch.
        context: gradient steps and learning rates.
        settings: c_I and r.
    """
    smoothness = settings.smoothness_ratio * settings.c_il  # L_R eta_I
    cost = max(0.0, rho * norm_il * norm_rl + 0.5 * smoothness * (norm_il**2 + variance_il))
    c_rl = min(1.0, smoothness * context.rl_lr / context.il_lr)
    gain = (1.0 - 0.5 * c_rl) * norm_rl**2
    return context.il_steps * context.il_lr * cost / (context.rl_steps * context.rl_lr * gain)


def paper_sqrt(rho: float, norm_il: float, norm_rl: float, kappa: float) -> float:
    """Return the paper's m, 1 where the gradients don't oppose, infinity where its denominator is not positive.

    Source: IN-RIL appendix E. Differs: the two guards, without which the root is not real.

    Args:
        rho: -cos(g_IL, g_RL).
        norm_il: |g_IL|.
        norm_rl: |g_RL|.
        kappa: noise term, in units of a squared norm.
    """
    if rho <= 0:
        return 1.0
    denominator = rho * norm_il * norm_rl - kappa
    return max(1.0, norm_rl / math.sqrt(denominator)) if denominator > 0 else math.inf


def limited(target: float, every: int, settings: AdaptiveConfig) -> int:
    """Return the integer m nearest to what a rule asks for that bounds and the old m allow."""
    low = max(settings.min_every, math.ceil(every / MAX_CHANGE))
    high = min(settings.max_every, every * MAX_CHANGE)
    return low if target <= low else high if target >= high else round(target)
