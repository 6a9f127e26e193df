"""Screwing a part in, whatever it is."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np

from inril_ray.demos.scripted.furniture.expert import (
    CENTRE,
    CLOSE,
    MAX_TURN,
    OPEN,
    UP,
    FurnitureExpert,
    Goal,
    angle,
    with_yaw,
    wrapped,
    yaw_of,
)
from inril_ray.rotations import matrix_of_vector
from inril_ray.types import FloatArray


class ScrewExpert(FurnitureExpert):
    """Brings a part over its hole, lets go of it when the thread has caught, and turns it home in strokes.

    Subclasses pick the part up and enter ``over``.
    """

    part: int
    """Index of the part in the observation."""
    axis = np.array([0.0, 1.0, 0.0])
    """From the tip to the part, part frame."""
    grip_height = 0.011
    """Where the hand closes on the upright part, along the axis from the part's origin, metres."""
    clear_height = 0.075
    """How far above that the hand turns back for the next stroke."""
    sides = 4
    """Faces of the part that the fingers may close on."""
    pitch, catch = 0.00985, 0.011
    after = "finished"
    """Phase that follows when the part is home."""

    # What a subclass says of its parts.
    @abstractmethod
    def aim(self) -> Goal:
        """Return position [3] and rotation [3, 3] of the part when it is home, base frame."""

    def height(self) -> float:
        """Return how far the part is above its final place, along the hole's axis."""
        pos, turn = self.aim()
        return float((self.parts[self.part] - pos) @ (turn @ self.axis))

    def upright(self) -> bool:
        """Tell whether the part stands along the hole's axis, and over it."""
        pos, turn = self.aim()
        outwards = turn @ self.axis
        offset = self.parts[self.part] - pos
        offset = offset - (offset @ outwards) * outwards
        return float((self.turns[self.part] @ self.axis) @ outwards) > 0.97 and float(np.linalg.norm(offset)) < 0.006

    def caught(self) -> bool:
        """Tell whether the part stands in its hole, no higher than where the thread catches."""
        return self.upright() and self.height() < self.catch + 0.003

    def carried(self, pos: FloatArray, turn: FloatArray) -> Goal:
        """Return the hand's goal that brings the held part to a pose."""
        move = turn @ self.turns[self.part].T
        return pos + move @ (self.pos - self.parts[self.part]), move @ self.turn

    def lined_up(self) -> FloatArray:
        """Return the rotation of the part along the hole's axis that is nearest to what it has."""
        outwards = self.aim()[1] @ self.axis
        now = self.turns[self.part] @ self.axis
        cross, cosine = np.cross(now, outwards), float(now @ outwards)
        sine = float(np.linalg.norm(cross))
        turn = np.eye(3) if sine < 1e-9 else matrix_of_vector(cross / sine * math.atan2(sine, cosine))
        return turn @ self.turns[self.part]

    def over(self) -> Goal:
        """Hold the part above its hole."""
        pos, turn = self.aim()
        target = pos + (self.catch + 0.034) * (turn @ self.axis)
        straight = self.lined_up()
        goal = self.carried(target, straight)
        off = np.abs(target - self.parts[self.part])
        if (off.max() < 0.002 and angle(straight, self.turns[self.part]) < 0.03) or self.count > 45:
            self.go("lower")
        return goal

    def lower(self) -> Goal:
        """Lower it onto the thread."""
        pos, turn = self.aim()
        target = pos + (self.catch - 0.002) * (turn @ self.axis)
        if (self.caught() and self.count > 3) or self.count > 25:
            self.held = self.pos.copy(), self.turn.copy()
            self.go("let_go")
        return self.carried(target, self.lined_up())

    def let_go(self) -> Goal:
        """Open the hand."""
        return self.close_or_open(OPEN, 5, "back_off")

    def back_off(self) -> Goal:
        """Leave the way the hand looks."""
        goal = self.held[0] - 0.10 * self.held[1][:, 2], self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("above" if self.caught() else self.first)
        return goal

    def _grip_point(self) -> FloatArray:
        return self.parts[self.part] + self.grip_height * UP

    def above(self) -> Goal:
        """Turn the hand to where the next stroke starts, above the part."""
        if self.count == 1:
            left = 2 * math.pi * max(self.height(), 0.0) / self.pitch
            start = min(self.stroke / 2, left / 2 + math.radians(20.0))
            self.start = min(self._grips(), key=lambda yaw: abs(yaw - start))
        yaw = yaw_of(self.turn)
        # Step by step, so that the hand does not take the short way through the joint's limit.
        goal = self._grip_point() + self.clear_height * UP, with_yaw(yaw + float(np.clip(self.start - yaw, -0.6, 0.6)))
        if (float(np.abs(self.pos - goal[0]).max()) < 0.006 and abs(yaw - self.start) < 0.06) or self.count > 60:
            self.go("down")
        return goal

    def _grips(self) -> list[float]:
        """Return yaws at which the fingers would close on faces of the upright part."""
        side = self.turns[self.part] @ np.roll(self.axis, 1)
        first = math.atan2(side[1], side[0]) - CENTRE
        return [wrapped(first + 2 * math.pi * k / self.sides) for k in range(self.sides)]

    def down(self) -> Goal:
        """Lower the open hand around the part."""
        goal = self._grip_point(), with_yaw(self.start)
        if not self.upright():
            self.go("recover")
        elif self.reached(goal, 0.004, 0.05, 25):
            self.held = goal
            self.go("grasp_stroke")
        return goal

    def grasp_stroke(self) -> Goal:
        """Close the hand on the part."""
        goal = self.close_or_open(CLOSE, 4, "turn_home")
        self.above_part = self.pos[2] - self.parts[self.part][2] - 0.001
        return goal

    def turn_home(self) -> Goal:
        """Turn the part, following it down."""
        yaw, end = yaw_of(self.turn), self.start - self.stroke
        goal = self.parts[self.part] + self.above_part * UP, with_yaw(max(yaw - MAX_TURN, end - 0.09))
        home = self.height() < -0.0002
        if yaw < end or home or self.count > 35:
            self.held = self.pos.copy(), with_yaw(yaw)
            self.go("let_go_stroke")
        return goal

    def let_go_stroke(self) -> Goal:
        """Open the hand after a stroke."""
        return self.close_or_open(OPEN, 4, "rise")

    def rise(self) -> Goal:
        """Leave upwards, for the next stroke or for good."""
        goal = self.held[0] + 0.06 * UP, self.held[1]
        if self.reached(goal, 0.02, 0.2, 15):
            self.go(self.after if self.height() < 0.0003 and self.upright() else "above")
        return goal

    def recover(self) -> Goal:
        """The part has fallen out: get out of its way, and begin again."""
        goal = np.array([self.pos[0], self.pos[1], 0.20]), with_yaw(0.0)
        self.grip = OPEN
        if self.reached(goal, 0.03, 0.3, 25):
            self.go(self.first)
        return goal

    def finished(self) -> Goal:
        """Wait above."""
        return self.held[0] + 0.06 * UP, self.held[1]
