"""The expert of round_table."""

from __future__ import annotations

import math

import numpy as np

from inril_ray.demos.scripted.furniture.expert import CLOSE, OPEN, UP, Goal, angle, looking_down, with_yaw, wrapped
from inril_ray.demos.scripted.furniture.screw import ScrewExpert
from inril_ray.envs.furniture.tasks.round_table import FOOT_IN_LEG, LEG_IN_TOP
from inril_ray.types import FloatArray


class RoundTableExpert(ScrewExpert):
    """Push the top into the corner of the obstacle; screw the leg into it, then the foot into the leg.

    The foot is a cross: fingers hold it in two opposite inner corners.
    """

    part = 1
    after = "over_foot"
    above_middle = 0.005
    stand_at = np.array([0.53, 0.06, 0.17])
    HALF, RIM, RIM_HEIGHT = 0.098, 0.0955, 0.017

    def begin(self) -> None:
        """Choose where the leg is held, and how steeply."""
        self.along = 0.024 + self.rng.uniform(-1, 1) * self.config.grasp_m
        self.steepness = math.radians(self.rng.uniform(53.0, 57.0))
        self.grip_height, self.clear_height, self.sides = 0.030, 0.05, 8

    def aim(self) -> Goal:
        """Return the home of the leg in the top, or of the foot in the leg."""
        into, pose = (0, LEG_IN_TOP) if self.part == 1 else (1, FOOT_IN_LEG)
        return self.parts[into] + self.turns[into] @ np.asarray(pose.pos), self.turns[into] @ pose.matrix

    def bottom_grasp(self) -> tuple[FloatArray, FloatArray]:
        """Return where the top is held: by the rim, on the side of the robot."""
        x, y = self.parts[0][:2]
        return np.array([x - self.RIM, y, self.RIM_HEIGHT]), np.array([1.0, 0.0, 0.0])

    def cornered(self) -> Goal:
        """Return the hand's goal with the top in the corner."""
        x, y = self.corner(self.HALF)
        return np.array([x - self.RIM, y, self.RIM_HEIGHT]), looking_down(np.array([1.0, 0.0, 0.0]))

    # The foot.
    def grips(self) -> list[float]:
        """Return yaws at which fingers would close on faces of the leg, or in the inner corners of the foot."""
        turned = 0.0 if self.part == 1 else math.pi / 4
        return [wrapped(yaw + turned) for yaw in super().grips()]

    def foot_grasp(self, height: float) -> Goal:
        """Return the hand's goal along the axis of the foot, which may lean on two of its arms."""
        turn = self.turns[2] @ self.in_foot
        return self.parts[2] - (self.grip_height + height) * turn[:, 2], turn

    def over_foot(self) -> Goal:
        """Move above the foot."""
        if self.count == 1:
            self.part, self.axis, self.retry, self.after = 2, UP, "over_foot", "finished"
            self.grip_height, self.clear_height, self.sides = 0.003, 0.035, 4
            ways = [looking_down(np.array([x, y, 0.0])) for x in (1.0, -1.0) for y in (1.0, -1.0)]
            self.in_foot = min(ways, key=lambda way: angle(self.turns[2] @ way, with_yaw(0.0)))
        self.grip, goal = OPEN, self.foot_grasp(0.06)
        if self.reached(goal, 0.002, 0.03, 60):
            self.go("down_to_foot")
        return goal

    def down_to_foot(self) -> Goal:
        """Lower the fingers into its inner corners."""
        goal = self.held = self.foot_grasp(0.0)
        if self.reached(goal, 0.003, 0.04, 30):
            self.go("grasp_foot")
        return goal

    def grasp_foot(self) -> Goal:
        """Close on it."""
        return self.close_or_open(CLOSE, 5, "lift_foot")

    def lift_foot(self) -> Goal:
        """Lift it over everything else."""
        goal = np.array([*self.held[0][:2], 0.20]), self.held[1]
        if self.reached(goal, 0.02, 0.2, 25):
            self.go("over" if self.parts[2][2] > 0.10 else "over_foot")
        return goal
