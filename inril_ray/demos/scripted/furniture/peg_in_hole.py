"""The expert of peg_in_hole."""

from __future__ import annotations

import math

import numpy as np

from inril_ray.demos.scripted.furniture.expert import (
    CENTRE,
    CLOSE,
    OPEN,
    UP,
    FurnitureExpert,
    Goal,
    angle,
    with_yaw,
    wrapped,
)


class PegInHoleExpert(FurnitureExpert):
    """Grasp the peg from above, hold it over the hole until it is still, and lower it."""

    first = "over_peg"

    def begin(self) -> None:
        """Choose how high the peg is held."""
        self.grasp_height = 0.036 + self.rng.uniform(-1, 1) * self.config.grasp_m
        self.yaw: float | None = None
        self.steady = 0

    def _over(self, height: float) -> Goal:
        if self.yaw is None:  # one of the two ways to close on the thin side, the nearer one to the joint's middle
            side = self.turns[0][:, 0]
            yaws = [wrapped(math.atan2(s * side[1], s * side[0]) - CENTRE) for s in (1, -1)]
            self.yaw = min(yaws, key=abs)
        return np.array([*self.parts[0][:2], self.grasp_height + height]), with_yaw(self.yaw)

    def over_peg(self) -> Goal:
        """Move above the peg."""
        self.grip, goal = OPEN, self._over(0.06)
        if self.reached(goal, 0.003, 0.04, 45):
            self.go("down_to_peg")
        return goal

    def down_to_peg(self) -> Goal:
        """Lower the open hand around it."""
        goal = self.held = self._over(0.0)
        if self.reached(goal, 0.003, 0.04, 45):
            self.go("grasp_peg")
        return goal

    def grasp_peg(self) -> Goal:
        """Close on it."""
        goal = self.close_or_open(CLOSE, 5, "lift_peg")
        if self.phase == "lift_peg":
            self.held = self.pos + 0.05 * UP, self.turn.copy()
        return goal

    def lift_peg(self) -> Goal:
        """Lift it."""
        if self.count > 8:
            self.go("align" if self.parts[0][2] > 0.02 else self.first)
            self.yaw = None
        return self.held

    def _carried(self, height: float) -> Goal:
        move = self.turns[1] @ self.turns[0].T
        target = np.array([*self.parts[1][:2], height])
        return target + move @ (self.pos - self.parts[0]), move @ self.turn

    def align(self) -> Goal:
        """Hold it over the hole until position and angle have settled within the clearance."""
        off = float(np.abs(self.parts[0][:2] - self.parts[1][:2]).max())
        ok = off < 0.0006 and angle(self.turns[0], self.turns[1]) < 0.012
        self.steady = self.steady + 1 if ok else 0
        if self.steady > 2 or self.count > 60:
            self.go("insert")
        return self._carried(0.030)

    def insert(self) -> Goal:
        """Lower it; lift it again after a while without success."""
        if self.count > 50:
            self.go("align" if self.parts[0][2] > 0.003 else "stay")
        return self._carried(max(self.parts[0][2] - 0.006, -0.001))

    def stay(self) -> Goal:
        """Hold still."""
        return self.pos, self.turn
