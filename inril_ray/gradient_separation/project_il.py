"""Project IL only: the reinforcement gradient whole, the imitation gradient without what opposes it."""

from __future__ import annotations

from inril_ray.gradient_separation.base import Gramian, Separation


class ProjectIL(Separation):
    """g_RL plus g_IL, the latter projected off g_RL where they conflict.

    The step is never worse for reinforcement than that of g_RL alone, but may harm imitation. An asymmetric PCGrad.
    """

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        if gramian.opposed:
            return 1.0, 0.0
        if gramian.rl_vanishes or gramian.il_vanishes:
            return 1.0, 1.0
        return 1.0 - min(gramian.inner, 0.0) / gramian.rl, 1.0
