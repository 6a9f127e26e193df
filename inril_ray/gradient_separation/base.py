"""From two losses to one gradient, by closed forms of three scalars."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

ZERO_RATIO = 1e-30
"""A squared norm this small against the other one counts as zero."""
OPPOSED_MARGIN = 5e-15
"""Gradients count as exactly opposed where 1 + cosine is this small, an angle of 1e-7: opposed float32 gradients of two
million parameters come out at 1e-15 by rounding, and Adam would make a whole step of such a remainder."""
CHUNK = 16384
"""Elements that are widened to float64 at once on a CPU: they stay in its cache, and short sums round less."""


@dataclass(frozen=True, kw_only=True)
class Gramian:
    """Squared norms and inner product of the reinforcement and the imitation gradient, float64."""

    rl: float
    """|g_RL|^2"""
    il: float
    """|g_IL|^2"""
    inner: float
    """<g_RL, g_IL>"""

    def __add__(self, other: Gramian) -> Gramian:
        """Return the Gramian over the parameters of both: of shards, as an all-reduce of three scalars adds them."""
        return Gramian(rl=self.rl + other.rl, il=self.il + other.il, inner=self.inner + other.inner)

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
    def opposed(self) -> bool:
        """The gradients point in exactly opposite directions, up to rounding."""
        return not (self.rl_vanishes or self.il_vanishes) and 1.0 + self.cosine <= OPPOSED_MARGIN

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
    def stalled(self) -> bool:
        """Nothing is left to step along, though both gradients are finite."""
        return self.weights == (0.0, 0.0) and not self.dropped

    @property
    def took(self) -> tuple[bool, bool]:
        """Whether the gradients of RL and of IL are part of the combined one: what may be counted as a step of each."""
        return self.weights[0] != 0.0, self.weights[1] != 0.0

    @property
    def inner_after(self) -> tuple[float, float]:
        """Inner products of the combined gradient with g_RL and g_IL: not negative means that neither is harmed."""
        (w, v), g = self.weights, self.gramian
        return w * g.rl + v * g.inner, w * g.inner + v * g.il


class Separation(ABC):
    """One method. Stateless; the update loop calls :meth:`backward`, or :meth:`merge` where it has the gradients.

    Args:
        row_normalise: weigh unit gradients and give the result the scale of the reinforcement gradient, so that the
            larger one doesn't dominate. For ablations: no paper that is reproduced here does so.
    """

    optimizer: ClassVar[Literal["il", "rl"]] = "il"
    """Whose optimiser takes the combined step: one of its own for imitation, or that of RL."""
    alone: ClassVar[tuple[float, float]] = (1.0, 1.0)
    """What is kept, 1, or left out, 0, of the (RL, IL) gradient where it is the only one: of parameters that the other
    loss does not reach, and where the other one is dropped. A parameter without a gradient is not stepped, not even by
    weight decay."""

    def __init__(self, *, row_normalise: bool = False) -> None:
        self.row_normalise = row_normalise

    @classmethod
    def from_config(cls, interleave: Any) -> Self:
        """Make one from the ``interleave`` section of a configuration."""
        return cls(row_normalise=interleave.row_normalise)

    @abstractmethod
    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL) for a finite Gramian."""

    def merged(self) -> Separation:
        """Return what combines both gradients where one step is reinforcement and imitation (``phase = merged``).

        It is the same method, unless that one leaves a gradient out: in a merged step nothing else would apply it.
        """
        return self

    def backward(
        self,
        rl_loss: Tensor,
        il_loss: Tensor,
        parameters: Sequence[nn.Parameter],
        reduce: Callable[[Gramian], Gramian] | None = None,
    ) -> SeparationReport:
        """Write the combined gradient of two losses into ``.grad``; see :meth:`merge`.

        Args:
            rl_loss: scalar.
            il_loss: scalar.
            parameters: the shared parameters, or this process's shard of them.
            reduce: adds up the Gramians of all shards, where the parameters are sharded.
        """
        rl = torch.autograd.grad(rl_loss, parameters, allow_unused=True)
        il = torch.autograd.grad(il_loss, parameters, allow_unused=True)
        return self.merge(rl, il, parameters, reduce)

    def merge(
        self,
        rl: Sequence[Tensor | None],
        il: Sequence[Tensor | None],
        parameters: Sequence[nn.Parameter],
        reduce: Callable[[Gramian], Gramian] | None = None,
    ) -> SeparationReport:
        """Write the combination of two gradients into ``.grad``. Their memory is used for it.

        Parameters that only one loss reaches stay out of the Gramian and are treated as :attr:`alone` says; those of an
        objective that is dropped get no gradient.

        Args:
            rl: reinforcement gradient of each parameter; None where it is not reached.
            il: imitation gradient, likewise.
            parameters: the shared parameters, or this process's shard of them.
            reduce: adds up the Gramians of all shards, where the parameters are sharded.
        """
        shared = [(g, h) for g, h in zip(rl, il, strict=True) if g is not None and h is not None]
        gramian = gramian_of(shared)
        if reduce is not None:
            gramian = reduce(gramian)
        disjoint = not shared and gramian.rl == gramian.il == 0
        weights, dropped = (self.alone, ()) if disjoint else self.safe_weights(gramian)
        keeps_rl, keeps_il = (kept and name not in dropped for name, kept in zip(("rl", "il"), self.alone, strict=True))
        rl, il = writable(rl, il)
        for parameter, g, h in zip(parameters, rl, il, strict=True):
            if g is not None and h is not None:
                parameter.grad = combine(g, h, weights)
            elif g is not None:
                parameter.grad = g if keeps_rl else None
            else:
                parameter.grad = h if keeps_il else None
        return SeparationReport(gramian=gramian, weights=weights, dropped=dropped)

    def safe_weights(self, gramian: Gramian) -> tuple[tuple[float, float], tuple[str, ...]]:
        """Return the weights. An objective whose gradient is not finite is left out; the other one then is alone."""
        bad_rl, bad_il = not math.isfinite(gramian.rl), not math.isfinite(gramian.il)
        if bad_rl or bad_il:
            dropped = tuple(name for name, bad in (("rl", bad_rl), ("il", bad_il)) if bad)
            return (0.0 if bad_rl else self.alone[0], 0.0 if bad_il else self.alone[1]), dropped
        if self.row_normalise and not (gramian.rl_vanishes or gramian.il_vanishes):
            w, v = self.weights(Gramian(rl=1.0, il=1.0, inner=gramian.cosine))
            return (w, v * math.sqrt(gramian.rl) / math.sqrt(gramian.il)), ()
        return self.weights(gramian), ()


def gramian_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> Gramian:
    """Accumulate the Gramian over parameter tensors in float64."""
    if not pairs:
        return Gramian(rl=0.0, il=0.0, inner=0.0)
    sums = torch.zeros(3, dtype=torch.float64, device=pairs[0][0].device)
    for g, h in pairs:
        size = CHUNK if g.device.type == "cpu" else max(g.numel(), 1)
        for x, y in zip(g.detach().flatten().split(size), h.detach().flatten().split(size), strict=True):
            x, y = x.double(), y.double()
            sums += torch.stack([x @ x, y @ y, x @ y])
    rl, il, inner = sums.tolist()
    return Gramian(rl=rl, il=il, inner=inner)


def writable(
    rl: Sequence[Tensor | None], il: Sequence[Tensor | None]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return both gradients with memory of its own for every tensor.

    Autograd returns one tensor for both terms of a sum, and an expanded scalar for a sum over elements; writing to such
    a tensor in place would change another, or fail. Only those are copied.
    """
    users = Counter(g.untyped_storage().data_ptr() for g in (*rl, *il) if g is not None)

    def own(g: Tensor | None) -> Tensor | None:
        if g is None:
            return None
        storage = g.untyped_storage()
        copied = users[storage.data_ptr()] > 1 or storage.nbytes() < g.numel() * g.element_size()
        return g.clone(memory_format=torch.contiguous_format) if copied else g

    return [own(g) for g in rl], [own(h) for h in il]


def combine(g: Tensor, h: Tensor, weights: tuple[float, float]) -> Tensor:
    """Return ``weights[0] g + weights[1] h`` in the memory of ``g``. A weight of 0 keeps NaN out."""
    w, v = weights
    result = g.mul_(w) if w else g.zero_()
    return result.add_(h, alpha=v) if v else result


def projection_weights(gramian: Gramian) -> tuple[float, float]:
    """Return the weights of g_RL and g_IL in the sum of both, each projected off the other where they conflict.

    Exactly opposed gradients cancel: (0, 0), not what rounding leaves.
    Source: Yu et al. 2020 (PCGrad), algorithm 1, which for two objectives is order-free. Multiplied by the preference
    ½ it is the exact UPGrad of Quinton and Rey 2024 (see the tests for the quadratic program).
    """
    against = min(gramian.inner, 0.0)
    if against == 0.0 or gramian.rl_vanishes or gramian.il_vanishes:
        return 1.0, 1.0
    if gramian.opposed:
        return 0.0, 0.0
    return 1.0 - against / gramian.rl, 1.0 - against / gramian.il
