"""A scripted Can demonstrator of adjustable quality."""

from __future__ import annotations

import numpy as np

from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.demos.scripted.arm import UP, ArmStyle, ArmStyleConfig
from inril_ray.types import FloatArray

APPROACH, DESCEND, GRASP, RAISE, CARRY, LOWER, RELEASE, LEAVE = range(8)
TARGET = np.array([0.1975, 0.4025, 0.8])
"""Centre of the can's place in the bins, metres (robosuite's arena)."""
TRAVEL_HEIGHT_M = 1.08
"""Above the walls of the bins, with a can in the hand."""


class CanDemonstrator(Demonstrator):
    """Grasp the can from above, carry it over the wall, put it down in its place; start again when it slipped.

    Args:
        rng: random stream of the episode.
        config: quality.
    """

    Config = ArmStyleConfig
    reads = ("v15",)

    def __init__(self, rng: np.random.Generator, config: ArmStyleConfig) -> None:
        self._style = ArmStyle(rng, config)
        self._phase, self._count = APPROACH, 0

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [7] for an observation [23] in the order of robosuite 1.5."""
        hand, can = obs[0:3].astype(np.float64), obs[16:19].astype(np.float64)
        style = self._style
        aim = can + style.aim
        above, at = aim + UP * (style.hover_m + 0.06), aim + UP * 0.012
        over = np.array([TARGET[0], TARGET[1], TRAVEL_HEIGHT_M])
        if self._phase == APPROACH and np.hypot(*(above - hand)[:2]) < 0.012 and abs(above[2] - hand[2]) < 0.04:
            self._phase = DESCEND
        if self._phase == DESCEND and np.linalg.norm(at - hand) < 0.014:
            self._phase, self._count = GRASP, 0
        if self._phase == GRASP:
            self._count += 1
            if self._count > 4 + style.pause:
                self._phase = RAISE
        if self._phase == RAISE and hand[2] > TRAVEL_HEIGHT_M - 0.04:
            self._phase = CARRY
        if self._phase == CARRY and np.hypot(*(over - hand)[:2]) < 0.02:
            self._phase = LOWER
        if self._phase == LOWER and hand[2] < 0.93:
            self._phase, self._count = RELEASE, 0
        if self._phase == RELEASE:
            self._count += 1
            if self._count > 5:
                self._phase = LEAVE
        if self._phase in (RAISE, CARRY) and np.linalg.norm(can - hand) > 0.1:
            self._phase = APPROACH
        goal = {
            APPROACH: above,
            DESCEND: at,
            GRASP: at,
            RAISE: np.array([hand[0], hand[1], TRAVEL_HEIGHT_M]),
            CARRY: over,
            LOWER: np.array([TARGET[0], TARGET[1], 0.90]),
            RELEASE: hand,
            LEAVE: np.array([TARGET[0], TARGET[1], 1.15]),
        }[self._phase]
        return style.action(goal - hand, 1.0 if self._phase in (GRASP, RAISE, CARRY, LOWER) else -1.0)
