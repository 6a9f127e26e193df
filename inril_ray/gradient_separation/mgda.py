"""MGDA: the shortest vector between both gradients."""

from __future__ import annotations

from inril_ray.gradient_separation.base import Gramian, Separation


class MGDA(Separation):
    """The convex combination of least norm. It is 0 wherever a gradient is 0, and close to the shorter one otherwise.

    The result has a non-negative inner product with both. Source: Désidéri 2012; Sener and Koltun 2018, algorithm 1.
    """

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        if gramian.rl_vanishes or gramian.il_vanishes or gramian.opposed:
            return 0.0, 0.0
        distance = gramian.rl + gramian.il - 2 * gramian.inner  # |g_RL - g_IL|^2
        if distance <= 0:  # equal gradients: every combination is the same
            return 0.5, 0.5
        rl = (gramian.il - gramian.inner) / distance
        il = (gramian.rl - gramian.inner) / distance  # not 1 - rl, which loses digits where rl is close to 1
        return min(max(rl, 0.0), 1.0), min(max(il, 0.0), 1.0)
