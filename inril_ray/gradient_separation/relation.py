"""Measure how the two gradients relate: rho, cosine, norms, conflict rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inril_ray.gradient_separation.base import Gramian, gramian_of


class GradientRelation:
    """Statistics over pairs of gradients taken near one point of parameter space.

    ``rho`` follows the paper's sign, rho = -cos(g_IL, g_RL) of the *expected* gradients: positive is opposing.
    Minibatch noise inflates the norms, so they are corrected by the variance between pairs; the inner product needs no
    correction, since the two gradients of a pair come from different batches.
    """

    def __init__(self) -> None:
        self._sum_rl: list[Tensor] = []
        self._sum_il: list[Tensor] = []
        self._grams: list[Gramian] = []

    def add(self, rl: Sequence[Tensor], il: Sequence[Tensor]) -> Gramian:
        """Take in a pair of gradients over the same parameters; pairs that are not finite are not counted."""
        gramian = gramian_of(list(zip(rl, il, strict=True)))
        if math.isfinite(gramian.rl) and math.isfinite(gramian.il):
            if not self._grams:
                self._sum_rl = [torch.zeros_like(g) for g in rl]
                self._sum_il = [torch.zeros_like(g) for g in il]
            for total, g in zip([*self._sum_rl, *self._sum_il], [*rl, *il], strict=True):
                total += g
            self._grams.append(gramian)
        return gramian

    def metrics(self) -> dict[str, float]:
        """Return the diagnostics; empty before the first pair. ``rho`` is left out where noise hides a gradient."""
        n = len(self._grams)
        if n == 0:
            return {}
        total = gramian_of(list(zip(self._sum_rl, self._sum_il, strict=True)))
        mean_rl, mean_il = (sum(getattr(g, k) for g in self._grams) / n for k in ("rl", "il"))
        result = {
            "grad_cosine": sum(g.cosine for g in self._grams) / n,
            "conflict_rate": sum(g.conflict for g in self._grams) / n,
            "grad_norm_rl": math.sqrt(mean_rl),
            "grad_norm_il": math.sqrt(mean_il),
            "grad_inner": total.inner / n**2,
        }
        if n > 1:
            # E|mean|^2 = |g|^2 + s^2 / n and mean of |g_i|^2 = |g|^2 + s^2 (n-1)/n + s^2/n.
            norms = []
            for squared_mean, mean_squared in ((total.rl / n**2, mean_rl), (total.il / n**2, mean_il)):
                variance = (mean_squared - squared_mean) * n / (n - 1)
                norms.append(squared_mean - variance / n)
            if min(norms) > 0:
                rho = -result["grad_inner"] / math.sqrt(norms[0] * norms[1])
                result["rho"] = max(-1.0, min(1.0, rho))
        return result
