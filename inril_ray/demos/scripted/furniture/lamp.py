"""The expert of lamp."""

from __future__ import annotations

import math

import numpy as np

from inril_ray.demos.scripted.furniture.expert import (
    CENTRE,
    CLOSE,
    OPEN,
    UP,
    Goal,
    flat,
    looking_down,
    with_yaw,
    wrapped,
    yaw_of,
)
from inril_ray.demos.scripted.furniture.screw import ScrewExpert
from inril_ray.envs.furniture.tasks.lamp import SCREWED
from inril_ray.types import FloatArray


class LampExpert(ScrewExpert):
    """Push the base into the corner of the obstacle, screw the bulb into it, put the hood over it.

    The bulb is held by its glass, the hood by its upper rim.
    """

    part = 1
    after = "over_hood"
    grip_height, clear_height, sides = 0.038, 0.05, 24
    above_middle = 0.0
    HALF, TUBE = 0.04235, 0.050
    GLASS = 0.038
    """From the bulb's origin to the middle of the glass, metres."""
    PIN = 0.026
    """The bulb is free when the hand was as near to its origin on each axis."""
    HOOD_TOP, HOOD_SIDES, HOOD_HOME, WALL = 0.05142, 12, 0.0883, 0.0285

    def begin(self) -> None:
        """Choose how slantingly the bulb is held."""
        self.along = self.GLASS
        self.steepness = math.radians(self.rng.uniform(0.0, 5.0))
        self.released = False
        self.hood_grip = self.rng.uniform(-0.002, 0.0)
        self.yaw = self.rng.uniform(-0.3, 0.3)

    def aim(self) -> Goal:
        """Return the home of the bulb."""
        return self.parts[0] + self.turns[0] @ np.asarray(SCREWED.pos), self.turns[0] @ SCREWED.matrix

    def bottom_grasp(self) -> tuple[FloatArray, FloatArray]:
        """Return where the base is held: by its tube, on the faces along its sides that look most to the robot."""
        sides = [sign * self.turns[0][:, c] for c in (0, 2) for sign in (1, -1)]
        return np.array([*self.parts[0][:2], self.TUBE]), flat(max(sides, key=lambda side: side[0]))

    def cornered(self) -> Goal:
        """Return the hand's goal with the base in the corner."""
        return np.array([*self.corner(self.HALF), self.TUBE]), looking_down(np.array([1.0, 0.0, 0.0]))

    # The bulb.
    def down_to_part(self) -> Goal:
        """Lower the open hand around the glass: it is pinned until the hand is near the neck, so go there first."""
        near = bool((np.abs(self.parts[1] - self.pos) < self.PIN).all())
        self.released |= near
        self.along = self.GLASS if self.released else self.GLASS - 0.014
        goal = super().down_to_part()
        if self.phase != "down_to_part" and not self.released:
            self.phase = "down_to_part"
        return goal

    def lift_part(self) -> Goal:
        """Lift it. It swings until it hangs upright from the fingers."""
        goal = super().lift_part()
        if self.phase == "carry_part":
            self.go("over")
        return goal

    def lined_up(self) -> FloatArray:
        """Return the bulb's rotation when the hand looks down."""
        return looking_down(self.turn[:, 1]) @ self.turn.T @ self.turns[1]

    # The hood.
    def rim(self, height: float) -> Goal:
        """Return the hand's goal above the wall of the hood, where fingers close on a face of it."""
        side = self.turns[2][:, 0]
        first = math.atan2(side[1], side[0]) - CENTRE
        yaws = (wrapped(first + 2 * math.pi * k / self.HOOD_SIDES) for k in range(self.HOOD_SIDES))
        turn = with_yaw(min(yaws, key=lambda yaw: abs(wrapped(yaw - self.yaw))))
        middle = self.parts[2] + self.WALL * turn[:, 1]
        return middle + (self.HOOD_TOP + self.hood_grip + height) * UP, turn

    def over_hood(self) -> Goal:
        """Move above the hood's rim, first of all upwards, out of the way of the lamp."""
        self.grip, goal = OPEN, self.rim(0.05)
        if self.pos[2] < goal[0][2] and float(np.linalg.norm(self.pos[:2] - goal[0][:2])) > 0.03:
            goal[0][:2] = self.pos[:2]
        if self.reached(goal, 0.004, 0.06, 80):
            self.go("down_to_hood")
        return goal

    def down_to_hood(self) -> Goal:
        """Lower the open hand around the wall."""
        goal = self.held = self.rim(0.0)
        self.yaw = yaw_of(goal[1])
        if self.reached(goal, 0.003, 0.05, 30):
            self.go("grasp_hood")
        return goal

    def grasp_hood(self) -> Goal:
        """Close on it."""
        return self.close_or_open(CLOSE, 5, "lift_hood")

    def lift_hood(self) -> Goal:
        """Lift it above the lamp."""
        goal = np.array([*self.held[0][:2], 0.29]), self.held[1]
        if self.reached(goal, 0.02, 0.2, 30):
            self.go("carry_hood" if self.parts[2][2] > 0.15 else "over_hood")
        return goal

    def _hood_at(self, height: float) -> Goal:
        home = self.parts[0] + (self.HOOD_HOME + height) * UP
        goal = home + self.pos - self.parts[2], self.held[1]
        if float(np.linalg.norm(self.pos - self.parts[2])) > 0.12:
            self.go("over_hood")
        return goal

    def carry_hood(self) -> Goal:
        """Hold it over the lamp."""
        goal = self._hood_at(0.11)
        if self.reached(goal, 0.004, 0.2, 50):
            self.go("lower_hood")
        return goal

    def lower_hood(self) -> Goal:
        """Let it down onto the glass."""
        goal = self._hood_at(-0.002)
        if self.parts[2][2] - self.parts[0][2] < self.HOOD_HOME + 0.004 or self.count > 25:
            self.held = self.pos.copy(), self.turn.copy()
            self.go("release_hood")
        return goal

    def release_hood(self) -> Goal:
        """Open the hand."""
        return self.close_or_open(OPEN, 5, "leave_hood")

    def leave_hood(self) -> Goal:
        """Rise."""
        goal = self.held[0] + 0.06 * UP, self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("over_hood")
        return goal
