"""Network separation: imitation and reinforcement train different parameters."""

from __future__ import annotations

from typing import ClassVar

from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.gradient_separation.base import Gramian, Separation
from inril_ray.types import InrilError


class Network(Separation):
    """Imitation trains the base of a residual policy, reinforcement its residual: nothing is combined.

    An imitation step leaves the residual untouched. Source: IN-RIL, network separation.
    """

    alone: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def weights(self, gramian: Gramian) -> tuple[float, float]:
        """Refuse: this is asked only where both losses reach a parameter.

        Raises:
            InrilError: always.
        """
        others = ", ".join(name for name in sorted(SEPARATIONS) if name != "network")
        raise InrilError(
            "separation = 'network' needs a policy whose imitation and reinforcement train different parameters "
            f"(algorithm residual_ppo); here both losses reach the same ones. Choose one of: {others}."
        )
