"""The expert of one_leg."""

from __future__ import annotations

import math

import numpy as np

from inril_ray.demos.scripted.furniture.expert import Goal, flat, looking_down
from inril_ray.demos.scripted.furniture.screw import ScrewExpert
from inril_ray.types import FloatArray


class OneLegExpert(ScrewExpert):
    """Push the tray into the corner of the obstacle; pick up the leg, stand it into a hole, screw it in."""

    part = 4
    HALF, RIM, RIM_HEIGHT = 0.08125, 0.0778, 0.020
    HOLES = np.array([(x, 0.046875, z) for x in (-0.05625, 0.05625) for z in (-0.05625, 0.05625)])

    def begin(self) -> None:
        """Choose where the leg is held, and how steeply."""
        self.along = 0.004 + self.rng.uniform(-1, 1) * self.config.grasp_m
        self.steepness = math.radians(self.rng.uniform(50.0, 57.0))
        self.hole: FloatArray | None = None

    def aim(self) -> Goal:
        """Return the home of the leg: in the hole that is deepest in the corner when it is chosen."""
        pos, turn = self.parts[0], self.turns[0]
        if self.hole is None or self.phase.endswith("_bottom") or self.phase == "over_part":
            self.hole = max(self.HOLES, key=lambda h: float((pos + turn @ h)[:2].sum()))
        return pos + turn @ self.hole, turn

    def bottom_grasp(self) -> tuple[FloatArray, FloatArray]:
        """Return where the tray is held: by the rim of the side that is nearest to the robot."""
        sides = [sign * self.turns[0][:, c] for c in (0, 2) for sign in (1, -1)]
        out = flat(min(sides, key=lambda side: side[0]))
        return np.array([*(self.parts[0] + self.RIM * out)[:2], self.RIM_HEIGHT]), -out

    def cornered(self) -> Goal:
        """Return the hand's goal with the tray in the corner."""
        x, y = self.corner(self.HALF)
        return np.array([x - self.RIM, y, self.RIM_HEIGHT]), looking_down(np.array([1.0, 0.0, 0.0]))
