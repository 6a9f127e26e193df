"""Measure how the two gradients relate: rho, cosine, norms, conflict rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inril_ray.gradient_separation.base import Gramian, gramian_of
from inril_ray.interleaving_theory import RelationEstimate, estimate_relation
from inril_ray.types import FloatArray


class GradientRelation:
    """Statistics over pairs of gradients taken near one point of parameter space.

    ``rho`` follows the paper's sign, rho = -cos(g_IL, g_RL) of the *expected* gradients: positive is opposing.
    Minibatch noise inflates the norms, so they are corrected by the variance between pairs; the inner product needs no
    correction, since the two gradients of a pair come from different batches.

    All gradients are kept, without a copy, until the object goes: a standard error needs every product of two.
    """

    def __init__(self) -> None:
        self._rl: list[Sequence[Tensor]] = []
        self._il: list[Sequence[Tensor]] = []
        self._grams: list[Gramian] = []
        self._estimate: RelationEstimate | None = None

    def add(self, rl: Sequence[Tensor], il: Sequence[Tensor]) -> Gramian:
        """Take in a pair of gradients over the same parameters; pairs that are not finite are not counted."""
        gramian = gramian_of(list(zip(rl, il, strict=True)))
        if math.isfinite(gramian.rl) and math.isfinite(gramian.il):
            self._rl.append(rl)
            self._il.append(il)
            self._grams.append(gramian)
            self._estimate = None
        return gramian

    def estimate(self) -> RelationEstimate | None:
        """Return unbiased estimates of what the pairs have in common.

        None below two pairs, and where the losses share no parameters.
        """
        if self._estimate is None and len(self._grams) > 1 and self._rl[0]:
            self._estimate = estimate_relation(self._gram())
        return self._estimate

    def _gram(self) -> FloatArray:
        """Inner products [2B, 2B] of all gradients, those of RL first, accumulated in float64."""
        rows = [*self._rl, *self._il]
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0][0].device)
        for parts in zip(*rows, strict=True):
            matrix = torch.stack([g.detach().flatten() for g in parts]).double()
            total += matrix @ matrix.T
        return total.cpu().numpy()

    def metrics(self) -> dict[str, float]:
        """Return the diagnostics; empty before the first pair. ``rho`` is left out where noise hides a gradient."""
        n = len(self._grams)
        if n == 0:
            return {}
        estimate = self.estimate()
        result = {
            "grad_cosine": sum(g.cosine for g in self._grams) / n,
            "conflict_rate": sum(g.conflict for g in self._grams) / n,
            "grad_norm_rl": math.sqrt(sum(g.rl for g in self._grams) / n),
            "grad_norm_il": math.sqrt(sum(g.il for g in self._grams) / n),
            "grad_inner": self._grams[0].inner if estimate is None else estimate.inner,
        }
        if estimate is not None:
            optional = {"rho": estimate.rho, "rho_se": estimate.rho_se}
            result |= {name: value for name, value in optional.items() if value is not None}
        return result
