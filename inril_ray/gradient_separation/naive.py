"""Naive interleaving: the imitation gradient as it is, and in a merged step the sum of both."""

from __future__ import annotations

from typing import ClassVar, Literal

from inril_ray.gradient_separation.base import Gramian, Separation


class Naive(Separation):
    """The imitation gradient alone, stepped by the optimiser of RL. Source: IN-RIL figure 7.

    The reinforcement gradient is computed all the same, for the diagnostics; parameters that imitation doesn't reach
    are left alone. Merged with reinforcement into one step, it is the plain sum.
    """

    optimizer: ClassVar[Literal["il", "rl"]] = "rl"
    alone: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        return 0.0, 1.0

    def merged(self) -> Separation:
        """Return the plain sum: alone, the imitation gradient would replace that of RL."""
        return Sum(row_normalise=self.row_normalise)


class Sum(Separation):
    """g_RL + g_IL, whether they conflict or not: what a step along both losses added up is."""

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Return the weights of (g_RL, g_IL)."""
        return 1.0, 1.0
