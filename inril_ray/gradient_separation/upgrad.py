"""UPGrad: both gradients projected on the dual cone, then averaged."""

from __future__ import annotations

from inril_ray.gradient_separation.base import Gramian, Separation, projection_weights


class UPGrad(Separation):
    """½ (g_RL projected off g_IL) + ½ (g_IL projected off g_RL), projecting only where they conflict.

    The result has a non-negative inner product with both. Source: Quinton and Rey 2024; IN-RIL section 3.1.
    """

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        rl, il = projection_weights(gramian)
        return 0.5 * rl, 0.5 * il
