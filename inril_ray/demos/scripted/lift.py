"""A scripted Lift demonstrator of adjustable quality."""

from __future__ import annotations

import numpy as np

from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.demos.scripted.arm import UP, ArmStyle, ArmStyleConfig
from inril_ray.types import FloatArray

APPROACH, DESCEND, GRASP, RAISE = range(4)


class LiftDemonstrator(Demonstrator):
    """Hover over the cube, descend, grasp, raise; start again when the cube slipped.

    Args:
        rng: random stream of the episode.
        config: quality.
    """

    Config = ArmStyleConfig

    def __init__(self, rng: np.random.Generator, config: ArmStyleConfig) -> None:
        self._style = ArmStyle(rng, config)
        self._phase, self._count = APPROACH, 0
        self._lift_from = np.zeros(3)

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [7] for an observation [19] in DPPO's order."""
        hand, cube = obs[0:3].astype(np.float64), obs[9:12].astype(np.float64)
        style = self._style
        aim = cube + style.aim
        above, at = aim + UP * style.hover_m, aim - UP * 0.004
        if self._phase == APPROACH and np.hypot(*(above - hand)[:2]) < 0.012 and abs(above[2] - hand[2]) < 0.03:
            self._phase = DESCEND
        if self._phase == DESCEND and np.linalg.norm(at - hand) < 0.012:
            self._phase, self._count = GRASP, 0
        if self._phase == GRASP:
            self._count += 1
            if self._count > 3 + style.pause:
                self._phase, self._lift_from = RAISE, hand
        if self._phase == RAISE and np.linalg.norm(cube - hand) > 0.06:
            self._phase = APPROACH
        goal = {APPROACH: above, DESCEND: at, GRASP: at, RAISE: self._lift_from + UP * 0.12}[self._phase]
        return style.action(goal - hand, 1.0 if self._phase in (GRASP, RAISE) else -1.0)
