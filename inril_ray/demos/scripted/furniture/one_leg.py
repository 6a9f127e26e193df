"""The expert of one_leg."""

from __future__ import annotations

import math

import numpy as np

from inril_ray.demos.scripted.furniture.expert import CLOSE, OPEN, UP, Goal, flat, looking_down
from inril_ray.demos.scripted.furniture.screw import ScrewExpert
from inril_ray.types import FloatArray


class OneLegExpert(ScrewExpert):
    """Push the tray into the corner of the obstacle; pick up the leg, stand it into a hole, screw it in."""

    first = "over_tray"
    part = 4
    HALF, RIM = 0.08125, 0.0778
    HOLES = np.array([(x, 0.046875, z) for x in (-0.05625, 0.05625) for z in (-0.05625, 0.05625)])

    def begin(self) -> None:
        """Choose where the leg is held, and how steeply."""
        self.along = 0.004 + self.rng.uniform(-1, 1) * self.config.grasp_m
        self.steepness = math.radians(self.rng.uniform(50.0, 57.0))
        self.hole: FloatArray | None = None

    def aim(self) -> Goal:
        """Return the home of the leg: in the hole that is deepest in the corner when it is chosen."""
        pos, turn = self.parts[0], self.turns[0]
        if self.hole is None or self.phase in ("over_tray", "release_tray", "over_leg"):
            self.hole = max(self.HOLES, key=lambda h: float((pos + turn @ h)[:2].sum()))
        return pos + turn @ self.hole, turn

    def _rim(self) -> FloatArray:
        """Return the outward direction of the side of the tray that is nearest to the robot."""
        sides = [sign * self.turns[0][:, c] for c in (0, 2) for sign in (1, -1)]
        return flat(min(sides, key=lambda side: side[0]))

    def over_tray(self) -> Goal:
        """Move above the near rim."""
        out = self._rim()
        goal = np.array([*(self.parts[0] + self.RIM * out)[:2], 0.09]), looking_down(-out)
        self.grip = OPEN
        if self.reached(goal, 0.006, 0.08, 40):
            self.go("down_to_tray")
        return goal

    def down_to_tray(self) -> Goal:
        """Lower the hand around the rim."""
        out = self._rim()
        goal = np.array([*(self.parts[0] + self.RIM * out)[:2], 0.020]), looking_down(-out)
        self.held = goal
        if self.reached(goal, 0.004, 0.08, 30):
            self.go("grasp_tray")
        return goal

    def grasp_tray(self) -> Goal:
        """Close on the rim."""
        return self.close_or_open(CLOSE, 5, "push_tray")

    def push_tray(self) -> Goal:
        """Push the tray against both faces of the obstacle's corner."""
        obstacle = self.parts[-1]
        corner = obstacle[:2] + np.array([-0.010 - self.HALF + 0.006, 0.165 - self.HALF + 0.006])
        goal = np.array([corner[0] - self.RIM, corner[1], 0.020]), looking_down(np.array([1.0, 0.0, 0.0]))
        if self.reached(goal, 0.002, 0.02, 45):
            self.held = self.pos.copy(), goal[1]
            self.go("release_tray")
        return goal

    def release_tray(self) -> Goal:
        """Open the hand."""
        return self.close_or_open(OPEN, 5, "leave_tray")

    def leave_tray(self) -> Goal:
        """Rise."""
        goal = self.held[0] + 0.09 * UP, self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("over_leg")
        return goal

    def _leg_grasp(self) -> Goal:
        """Return the tilted grasp of the lying leg."""
        along = flat(self.turns[4][:, 1])
        across = np.cross(UP, along)
        look = -math.cos(self.steepness) * UP - math.sin(self.steepness) * along
        return self.parts[4] + self.along * along, np.stack([np.cross(across, look), across, look], axis=1)

    def over_leg(self) -> Goal:
        """Move to the leg along the way the hand will look."""
        point, turn = self._leg_grasp()
        goal = point - 0.07 * turn[:, 2], turn
        if self.reached(goal, 0.006, 0.08, 60):
            self.go("down_to_leg")
        return goal

    def down_to_leg(self) -> Goal:
        """Lower the open hand around the leg."""
        point, turn = self._leg_grasp()
        goal = point + 0.002 * UP, turn
        self.held = goal
        if self.reached(goal, 0.004, 0.08, 30):
            self.go("grasp_leg")
        return goal

    def grasp_leg(self) -> Goal:
        """Close on the leg."""
        goal = self.close_or_open(CLOSE, 5, "lift_leg")
        self.lifted = self.held[0] + 0.11 * UP
        return goal

    def lift_leg(self) -> Goal:
        """Lift it."""
        goal = self.lifted, self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("stand_leg" if self.parts[4][2] > 0.05 else "over_leg")
        return goal

    def stand_leg(self) -> Goal:
        """Turn the hand so that the leg stands upright."""
        tilt = math.pi / 2 - self.steepness
        look, closing = np.array([math.sin(tilt), 0.0, -math.cos(tilt)]), np.array([0.0, 1.0, 0.0])
        goal = np.array([0.53, 0.09, 0.15]), np.stack([np.cross(closing, look), closing, look], axis=1)
        if self.reached(goal, 0.03, 0.12, 50):
            self.go("over")
        return goal

    def back_off(self) -> Goal:
        """Leave; a leg that did not stay in the hole is picked up again."""
        goal = super().back_off()
        if self.phase == self.first:
            self.go("over_leg")
        return goal

    def recover(self) -> Goal:
        """Pick the leg up again."""
        goal = super().recover()
        if self.phase == self.first:
            self.go("over_leg")
        return goal
