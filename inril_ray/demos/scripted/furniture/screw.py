"""What the tasks with threads share: pushing, picking up, screwing in."""

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
    flat,
    looking_down,
    with_yaw,
    wrapped,
    yaw_of,
)
from inril_ray.envs.furniture.spec import CATCH_HEIGHT, PITCH
from inril_ray.rotations import matrix_of_vector
from inril_ray.types import FloatArray


class ScrewExpert(FurnitureExpert):
    """Pushes part 0 into the obstacle's corner, then stands a lying part into its hole and screws it home.

    It lets go of the part when the thread has caught, and turns it in strokes. Subclasses say where to hold what.
    """

    first = "over_bottom"
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
    pitch, catch, highest = PITCH, CATCH_HEIGHT, 0.0165
    """Of the thread, metres: advance for each turn; heights above its home at which a part first rests on it, and to
    which it may jump when the thread catches."""
    after = "finished"
    """Phase that follows when the part is home."""
    retry = "over_part"
    """Phase in which a part that did not stay in its hole is picked up again."""
    along = 0.0
    """Where the lying part is held, along the axis from its origin, metres."""
    above_middle = 0.002
    """How far above its axis the lying part is held, metres."""
    steepness = math.radians(55.0)
    """Between the vertical and the hand that picks up a lying part, radians."""
    side = 1.0
    """1 or -1: which of the two ways of closing on it is nearer to the middle of the hand's range."""
    lift = 0.11
    stand_at = np.array([0.53, 0.09, 0.15])
    """Where the part is stood up."""
    PRESS = 0.006
    """How far into the obstacle part 0 is pushed, metres."""

    # Part 0.
    @abstractmethod
    def bottom_grasp(self) -> tuple[FloatArray, FloatArray]:
        """Return the point [3] at which part 0 is held, and the horizontal direction [3] in which fingers close."""

    @abstractmethod
    def cornered(self) -> Goal:
        """Return the goal of the hand that holds part 0 in the corner of the obstacle."""

    def corner(self, half: float) -> FloatArray:
        """Return the place [2] of a part's centre when it is pressed into the corner at +y.

        Args:
            half: distance between the centre and the sides that touch the obstacle, metres.
        """
        return self.parts[-1][:2] + np.array([self.PRESS - 0.010 - half, self.PRESS + 0.165 - half])

    def over_bottom(self) -> Goal:
        """Move above part 0."""
        point, closing = self.bottom_grasp()
        goal = point + 0.07 * UP, looking_down(closing)
        self.grip = OPEN
        if self.reached(goal, 0.006, 0.08, 40):
            self.go("down_to_bottom")
        return goal

    def down_to_bottom(self) -> Goal:
        """Lower the open hand around it."""
        point, closing = self.bottom_grasp()
        goal = self.held = point, looking_down(closing)
        if self.reached(goal, 0.004, 0.08, 30):
            self.go("grasp_bottom")
        return goal

    def grasp_bottom(self) -> Goal:
        """Close on it."""
        return self.close_or_open(CLOSE, 5, "push_bottom")

    def push_bottom(self) -> Goal:
        """Push it against the front of the obstacle, then against its side, lest it is caught on the side's end."""
        goal = self.cornered()
        if goal[0][0] - self.pos[0] > 0.015:
            goal[0][1] -= 0.025
        if self.reached(goal, 0.002, 0.02, 45):
            self.held = self.pos.copy(), goal[1]
            self.go("release_bottom")
        return goal

    def release_bottom(self) -> Goal:
        """Open the hand."""
        return self.close_or_open(OPEN, 5, "leave_bottom")

    def leave_bottom(self) -> Goal:
        """Rise."""
        goal = self.held[0] + 0.09 * UP, self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("over_part")
        return goal

    # A lying part.
    def part_grasp(self) -> Goal:
        """Return the tilted grasp of the lying part."""
        along = flat(self.turns[self.part] @ self.axis)
        across = self.side * np.cross(UP, along)
        look = -math.cos(self.steepness) * UP - math.sin(self.steepness) * along
        point = self.parts[self.part] + self.along * along + self.above_middle * UP
        return point, np.stack([np.cross(across, look), across, look], axis=1)

    def _twist(self, side: float) -> float:
        self.side = side
        return angle(self.part_grasp()[1], with_yaw(0.0))

    def over_part(self) -> Goal:
        """Move to the part along the way the hand will look."""
        if self.count == 1:
            self.side = min((1.0, -1.0), key=self._twist)
        point, turn = self.part_grasp()
        goal = point - 0.07 * turn[:, 2], turn
        self.grip = OPEN
        if self.reached(goal, 0.006, 0.08, 60):
            self.go("down_to_part")
        return goal

    def down_to_part(self) -> Goal:
        """Lower the open hand around the part."""
        goal = self.held = self.part_grasp()
        if self.reached(goal, 0.004, 0.08, 30):
            self.go("grasp_part")
        return goal

    def grasp_part(self) -> Goal:
        """Close on the part."""
        goal = self.close_or_open(CLOSE, 5, "lift_part")
        self.lifted = self.held[0] + self.lift * UP
        return goal

    def lift_part(self) -> Goal:
        """Lift it."""
        goal = self.lifted, self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("carry_part" if self.parts[self.part][2] > 0.05 else self.retry)
        return goal

    def carry_part(self) -> Goal:
        """Carry it away from the robot: a hand that looks outwards nearby would bring the elbow over the shoulder.

        There the arm turns about itself, and redundancy is resolved step by step, so it would not turn back.
        """
        goal = self.stand_at, self.held[1]
        if self.reached(goal, 0.04, 0.3, 30):
            self.go("stand_part")
        return goal

    def stand_part(self) -> Goal:
        """Turn the hand so that the part stands upright."""
        tilt = math.pi / 2 - self.steepness
        look, closing = np.array([math.sin(tilt), 0.0, -math.cos(tilt)]), np.array([0.0, self.side, 0.0])
        goal = self.stand_at, np.stack([np.cross(closing, look), closing, look], axis=1)
        if self.reached(goal, 0.03, 0.12, 50):
            self.go("over")
        return goal

    # An upright part and its hole.
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
        """Tell whether the part stands in its hole, no higher than a thread that has caught can hold it."""
        return self.upright() and self.height() < self.highest

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

    def tilt(self) -> float:
        """Return the angle between the part and the hole, radians."""
        return math.acos(min(1.0, float((self.turns[self.part] @ self.axis) @ (self.aim()[1] @ self.axis))))

    def dropped(self) -> bool:
        """Tell whether the part is no longer in the hand."""
        return float(np.linalg.norm(self.parts[self.part] - self.pos)) > 0.08

    def over(self) -> Goal:
        """Hold the part above its hole."""
        pos, turn = self.aim()
        target = pos + (self.catch + 0.034) * (turn @ self.axis)
        straight = self.lined_up()
        goal = self.carried(target, straight)
        off = np.abs(target - self.parts[self.part])
        still = off.max() < 0.002 and angle(straight, self.turns[self.part]) < 0.03 and self.tilt() < 0.1
        if still or self.count > 45:
            self.go("lower")
        if self.dropped():
            self.go("recover")
        return goal

    def lower(self) -> Goal:
        """Lower it onto the thread."""
        pos, turn = self.aim()
        target = pos + (self.catch - 0.002) * (turn @ self.axis)
        seated = self.caught() and (self.height() < self.catch + 0.003 or self.count > 10)
        if (seated and self.count > 3) or self.count > 25:
            self.held = self.pos.copy(), self.turn.copy()
            self.go("let_go")
        return self.carried(target, self.lined_up())

    def let_go(self) -> Goal:
        """Open the hand."""
        return self.close_or_open(OPEN, 5, "back_off")

    def back_off(self) -> Goal:
        """Leave, first of all upwards: nearer to the robot, a hand that looks outwards is at the limit of the wrist."""
        goal = self.held[0] - 0.03 * self.held[1][:, 2] + 0.07 * UP, self.held[1]
        if self.reached(goal, 0.02, 0.2, 20):
            self.go("above" if self.caught() else self.retry)
        return goal

    def grip_point(self) -> FloatArray:
        """Return where the hand closes on the upright part."""
        return self.parts[self.part] + self.grip_height * UP

    def above(self) -> Goal:
        """Turn the hand to where the next stroke starts, above the part."""
        if self.count == 1:
            left = 2 * math.pi * max(self.height(), 0.0) / self.pitch
            start = min(self.stroke / 2, left / 2 + math.radians(20.0))
            self.start = min(self.grips(), key=lambda yaw: abs(yaw - start))
        yaw = yaw_of(self.turn)
        # Step by step, so that the hand does not take the short way through the joint's limit.
        goal = self.grip_point() + self.clear_height * UP, with_yaw(yaw + float(np.clip(self.start - yaw, -0.6, 0.6)))
        if float(np.abs(self.pos - goal[0]).max()) < 0.006 and abs(yaw - self.start) < 0.06:
            self.go("down")
        elif self.count > 50:
            self.go("unwind")
        return goal

    def unwind(self) -> Goal:
        """Turn back the other way round: with an elbow far out, the last joint is at its limit elsewhere."""
        yaw = yaw_of(self.turn)
        if (self.count > 5 and abs(wrapped(yaw - self.start)) < 0.06) or self.count > 40:
            self.go("down")
        back = float(np.clip(wrapped(self.start - yaw) % (2 * math.pi), 0.0, 0.6))
        return self.grip_point() + self.clear_height * UP, with_yaw(yaw + back)

    def grips(self) -> list[float]:
        """Return yaws at which the fingers would close on faces of the upright part."""
        side = self.turns[self.part] @ np.roll(self.axis, 1)
        first = math.atan2(side[1], side[0]) - CENTRE
        return [wrapped(first + 2 * math.pi * k / self.sides) for k in range(self.sides)]

    def down(self) -> Goal:
        """Lower the open hand around the part."""
        goal = self.grip_point(), with_yaw(self.start)
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
        """The part has fallen out: get out of its way, and pick it up again."""
        goal = np.array([self.pos[0], self.pos[1], 0.20]), with_yaw(0.0)
        self.grip = OPEN
        if self.reached(goal, 0.03, 0.3, 25):
            self.go(self.retry)
        return goal

    def finished(self) -> Goal:
        """Wait above."""
        return self.held[0] + 0.06 * UP, self.held[1]
