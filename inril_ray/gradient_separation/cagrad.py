"""CAGrad: the step near the mean that does most for the worse off objective."""

from __future__ import annotations

import math
from typing import Any, Self

from inril_ray.gradient_separation.base import Gramian, Separation

SHARE = 0.5
"""Weight of g_RL in the average that the step stays near."""
RADIUS = 0.5
"""c: how far the step may leave the average, as a share of the average's norm."""


class CAGrad(Separation):
    """The maximiser d of min_i <g_i, d> within c |g0| of the mean g0, by default c = ½, not rescaled.

    It ends where the mean of both losses is stationary, and does not promise that no objective is harmed: between
    nearly opposed gradients of different norms c = ½ is too short to leave the larger one's side.
    Source: Liu et al. 2021, algorithm 1.

    Args:
        row_normalise: see :class:`Separation`.
        radius: c.
    """

    def __init__(self, *, row_normalise: bool = False, radius: float = RADIUS) -> None:
        super().__init__(row_normalise=row_normalise)
        self.radius = radius

    @classmethod
    def from_config(cls, interleave: Any) -> Self:
        """Make one from the ``interleave`` section of a configuration."""
        return cls(row_normalise=interleave.row_normalise, radius=interleave.cagrad_radius)

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        return conflict_averse_weights(gramian, radius=self.radius)


def conflict_averse_weights(gramian: Gramian, share: float = SHARE, radius: float = RADIUS) -> tuple[float, float]:
    """Return the weights of g_RL and g_IL in CAGrad's step around their weighted average.

    The dual is solved in closed form: with g_x = x g_RL + (1 - x) g_IL, x in [0, 1] minimises
    F(x) = <g_x, g0> + c |g0| |g_x|, and d = g0 + c |g0| g_x / |g_x|.

    Args:
        gramian: finite.
        share: weight of g_RL in the average g0, in [0, 1].
        radius: c, not negative; below 1 the step keeps a positive inner product with g0.

    Source: Liu et al. 2021, algorithm 1. Differs: no rescaling by 1 + c or 1 + c^2; any share.
    """
    rest = 1.0 - share
    if gramian.rl_vanishes or gramian.il_vanishes:
        return share, rest
    if gramian.opposed:  # g_x is collinear with g0, and the step its shortest within reach
        kept = max(0.0, 1.0 - radius)
        return share * kept, rest * kept
    if gramian.il > gramian.rl:  # x is the larger one's weight: near 1 its complement would lose digits
        swapped = Gramian(rl=gramian.il, il=gramian.rl, inner=gramian.inner)
        il_weight, rl_weight = conflict_averse_weights(swapped, rest, radius)
        return rl_weight, il_weight
    # Scaled, so that no product under- or overflows; the weights don't depend on the scale.
    rl, il, inner = 1.0, gramian.il / gramian.rl, gramian.inner / gramian.rl
    reach = radius * math.sqrt(max(share**2 * rl + rest**2 * il + 2 * share * rest * inner, 0.0))
    along = share * (rl - inner) + rest * (inner - il)  # <g_RL - g_IL, g0>
    curvature, offset = rl + il - 2 * inner, inner - il  # |g_x|^2 = curvature x^2 + 2 offset x + il
    discriminant = reach**2 * curvature - along**2
    if discriminant <= 0:
        x = 0.0 if along > 0 else 1.0
    else:
        root = math.sqrt(max(rl * il - inner**2, 0.0) / discriminant)
        x = min(max(-(along * root + offset) / curvature, 0.0), 1.0)
    norm = math.sqrt(max(curvature * x**2 + 2 * offset * x + il, 0.0))
    push = reach / norm if norm > 0 else 0.0
    return share + push * x, rest + push * (1.0 - x)
