"""DualProj: the mean, projected on the dual cone."""

from __future__ import annotations

from inril_ray.gradient_separation.base import Gramian, Separation


class DualProj(Separation):
    """The vector nearest to the mean that has a non-negative inner product with both gradients.

    Differs from UPGrad, which projects each gradient and then averages: here an objective that the mean would harm
    gains nothing. Source: Lopez-Paz and Ranzato 2017 (GEM), section 3, applied to the mean.
    """

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        return dual_cone_weights(gramian, (0.5, 0.5))


def dual_cone_weights(gramian: Gramian, start: tuple[float, float]) -> tuple[float, float]:
    """Return the weights of the projection on the dual cone of ``start[0] g_RL + start[1] g_IL``, both not negative.

    At most one constraint is active, so that raising one weight until its inner product is 0 solves the program.
    """
    rl, il = start
    if gramian.opposed:
        return 0.0, 0.0
    if gramian.rl_vanishes or gramian.il_vanishes:
        return start
    if rl * gramian.rl + il * gramian.inner < 0:
        rl = -il * gramian.inner / gramian.rl
    elif rl * gramian.inner + il * gramian.il < 0:
        il = -rl * gramian.inner / gramian.il
    return rl, il
