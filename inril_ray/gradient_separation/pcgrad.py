"""PCGrad: the sum of both gradients, each projected off the other where they conflict."""

from __future__ import annotations

from inril_ray.gradient_separation.base import Gramian, Separation, projection_weights


class PCGrad(Separation):
    """Twice UPGrad for two objectives. Source: Yu et al. 2020, algorithm 1."""

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        return projection_weights(gramian)
