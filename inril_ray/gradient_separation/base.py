"""From two losses to one gradient, by closed forms of three scalars."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

ZERO_RATIO = 1e-30
"""A squared norm this small against the other one counts as zero."""


@dataclass(frozen=True, kw_only=True)
class Gramian:
    """Squared norms and inner product of the reinforcement and the imitation gradient, float64."""

    rl: float
    """|g_RL|^2"""
    il: float
    """|g_IL|^2"""
    inner: float
    """<g_RL, g_IL>"""

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the gradients; 0 where one of them vanishes."""
        scale = math.sqrt(self.rl) * math.sqrt(self.il)
        return max(-1.0, min(1.0, self.inner / scale)) if scale > 0 else 0.0

    @property
    def conflict(self) -> bool:
        """The gradients oppose each other."""
        return self.inner < 0

    @property
    def rl_vanishes(self) -> bool:
        """The reinforcement gradient is zero, exactly or against the other."""
        return self.rl <= ZERO_RATIO * max(self.rl, self.il)

    @property
    def il_vanishes(self) -> bool:
        """The imitation gradient is zero, exactly or against the other."""
        return self.il <= ZERO_RATIO * max(self.rl, self.il)


@dataclass(frozen=True, kw_only=True)
class SeparationReport:
    """What one separated step did."""

    gramian: Gramian
    weights: tuple[float, float]
    """Of (g_RL, g_IL) in the combined gradient."""
    dropped: tuple[str, ...] = ()
    """Objectives whose gradient was not finite and was left out."""

    @property
    def inner_after(self) -> tuple[float, float]:
        """Inner products of the combined gradient with g_RL and g_IL: not negative means that neither is harmed."""
        (w, v), g = self.weights, self.gramian
        return w * g.rl + v * g.inner, w * g.inner + v * g.il


class Separation(ABC):
    """One method. Stateless; the update loop calls :meth:`backward`."""

    optimizer: ClassVar[Literal["il", "rl"]] = "il"
    """Whose optimiser takes the combined step: one of its own for imitation, or that of RL."""

    @abstractmethod
    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL) for a finite Gramian."""

    def backward(self, rl_loss: Tensor, il_loss: Tensor, parameters: Sequence[nn.Parameter]) -> SeparationReport:
        """Write the combined gradient of two losses into ``.grad``.

        Parameters that only one loss reaches keep that gradient, with weight 1, and stay out of the Gramian.

        Args:
            rl_loss: scalar.
            il_loss: scalar.
            parameters: the shared parameters.
        """
        rl = torch.autograd.grad(rl_loss, parameters, allow_unused=True)
        il = torch.autograd.grad(il_loss, parameters, allow_unused=True)
        shared = [(g, h) for g, h in zip(rl, il, strict=True) if g is not None and h is not None]
        gramian = gramian_of(shared)
        weights, dropped = self.safe_weights(gramian)
        for parameter, g, h in zip(parameters, rl, il, strict=True):
            if g is None or h is None:
                parameter.grad = g if h is None else h
            else:
                parameter.grad = combine(g, h, weights)
        return SeparationReport(gramian=gramian, weights=weights, dropped=dropped)

    def safe_weights(self, gramian: Gramian) -> tuple[tuple[float, float], tuple[str, ...]]:
        """Return the weights, with an objective whose gradient is not finite left out and the other kept whole."""
        bad_rl, bad_il = not math.isfinite(gramian.rl), not math.isfinite(gramian.il)
        if bad_rl or bad_il:
            dropped = tuple(name for name, bad in (("rl", bad_rl), ("il", bad_il)) if bad)
            return (0.0 if bad_rl else 1.0, 0.0 if bad_il else 1.0), dropped
        return self.weights(gramian), ()


def gramian_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> Gramian:
    """Accumulate the Gramian over parameter tensors in float64."""
    if not pairs:
        return Gramian(rl=0.0, il=0.0, inner=0.0)
    sums = torch.zeros(3, dtype=torch.float64, device=pairs[0][0].device)
    for g, h in pairs:
        g, h = g.detach().flatten().double(), h.detach().flatten().double()
        sums += torch.stack([g @ g, h @ h, g @ h])
    rl, il, inner = sums.tolist()
    return Gramian(rl=rl, il=il, inner=inner)


def combine(g: Tensor, h: Tensor, weights: tuple[float, float]) -> Tensor:
    """Return ``weights[0] g + weights[1] h`` in the memory of ``g``. A weight of 0 keeps NaN out."""
    w, v = weights
    result = g.mul_(w) if w else g.zero_()
    return result.add_(h, alpha=v) if v else result


def projection_weights(gramian: Gramian) -> tuple[float, float]:
    """Return the weights of g_RL and g_IL in the sum of both, each projected off the other where they conflict.

    Source: Yu et al. 2020 (PCGrad), algorithm 1, which for two objectives is order-free. Multiplied by the preference
    ½ it is the exact UPGrad of Quinton and Rey 2024 (see the tests for the quadratic program).
    """
    against = min(gramian.inner, 0.0)
    if against == 0.0 or gramian.rl_vanishes or gramian.il_vanishes:
        return 1.0, 1.0
    return 1.0 - against / gramian.rl, 1.0 - against / gramian.il
