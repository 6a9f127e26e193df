"""What the scripted experts of all furniture tasks share.

An expert sees what a policy sees, and its commands are clipped like those of the published demonstrations, to 2.5 cm
and 0.35 rad from where the hand is. It runs through phases, each of which ends when its goal is reached or after a
time, and begins again where that shows that something went wrong. Strokes, grasps and speeds differ between episodes.

Frames are that of the robot's base, metres. Hand: z points out of it, the fingers close along y.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from inril_ray.config import config
from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.envs.furniture.spec import TAG_MATRIX, TAG_POS
from inril_ray.rotations import matrix_of_6d, matrix_of_quat, matrix_of_vector, rotation_vector, six_of_matrix
from inril_ray.types import FloatArray

UP = np.array([0.0, 0.0, 1.0])
MAX_SHIFT, MAX_TURN = 0.025, 0.35
OPEN, CLOSE = -1.0, 1.0
CENTRE = math.radians(53.0)
"""Yaw of a hand that looks down while the last joint is in the middle of its range."""


@config
class FurnitureStyleConfig:
    """How an expert behaves."""

    noise_m: NonNegativeFloat = 0.001
    """Standard deviation of Gaussian noise on commanded positions, metres."""
    grasp_m: NonNegativeFloat = 0.003
    """Greatest deviation of a grasp along a part, metres."""
    speed: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.0)
    """Range of the share of the greatest step that an episode uses."""
    stroke_deg: tuple[PositiveFloat, PositiveFloat] = (185.0, 225.0)
    """Range of the turns of the hand in a screwing stroke, degrees."""


Goal = tuple[FloatArray, FloatArray]
"""Position [3] and rotation [3, 3] of the hand."""


class FurnitureExpert(Demonstrator):
    """Base: reads observations, clips commands, keeps phases.

    A phase is a method of that name that returns the goal of this control step, and calls :meth:`go` when it is over.

    Args:
        rng: random stream of the episode.
        config: style.
    """

    Config = FurnitureStyleConfig
    first: str
    """Name of the first phase."""

    def __init__(self, rng: np.random.Generator, config: FurnitureStyleConfig) -> None:
        self.rng, self.config = rng, config
        self.phase, self.count, self.grip = self.first, 0, OPEN
        self.speed = rng.uniform(*config.speed)
        self.stroke = math.radians(rng.uniform(*config.stroke_deg))
        self.held: Goal = (np.zeros(3), np.eye(3))
        """The goal of a phase that stays where it began."""
        self.begin()

    def begin(self) -> None:
        """Choose what varies between episodes."""

    def go(self, phase: str) -> None:
        """Enter a phase with the next control step."""
        self.phase, self.count = phase, 0

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [10] for an observation."""
        state, poses = obs[:16].astype(np.float64), obs[16:].astype(np.float64)
        poses = poses[: len(poses) // 7 * 7].reshape(-1, 7)
        self.pos, self.turn, self.width = state[:3], matrix_of_6d(state[3:9]), state[15]
        self.parts = TAG_POS + poses[:, :3] @ TAG_MATRIX.T
        self.turns = TAG_MATRIX @ matrix_of_quat(poses[:, 3:])
        self.count += 1
        pos, turn = getattr(self, self.phase)()
        pos, turn = self._clipped(pos + self.config.noise_m * self.rng.normal(size=3), turn)
        return np.concatenate([pos, six_of_matrix(turn), [self.grip]]).clip(-1.0, 1.0).astype(np.float32)

    def _clipped(self, pos: FloatArray, turn: FloatArray) -> Goal:
        shift, limit = pos - self.pos, self.speed * MAX_SHIFT
        shift = shift / max(1.0, float(np.abs(shift).max()) / limit)
        vector = rotation_vector(turn @ self.turn.T)
        vector = vector / max(1.0, float(np.linalg.norm(vector)) / (self.speed * MAX_TURN))
        return self.pos + shift, matrix_of_vector(vector) @ self.turn

    def reached(self, goal: Goal, metres: float, radians: float, patience: int) -> bool:
        """Tell whether the hand is at a goal, or has tried for long enough."""
        near = float(np.abs(self.pos - goal[0]).max()) < metres and angle(self.turn, goal[1]) < radians
        return near or self.count > patience

    def close_or_open(self, grip: float, steps: int, then: str) -> Goal:
        """Hold the hand still while the fingers move."""
        self.grip = grip
        if self.count > steps:
            self.go(then)
        return self.held


def unit(vector: FloatArray) -> FloatArray:
    """Return a vector at length 1."""
    return vector / np.linalg.norm(vector)


def flat(vector: FloatArray) -> FloatArray:
    """Return the direction of a vector in the horizontal plane."""
    return unit(np.array([vector[0], vector[1], 0.0]))


def looking_down(closing: FloatArray) -> FloatArray:
    """Return the rotation of a hand that looks down and closes along a horizontal direction."""
    y = flat(closing)
    return np.stack([np.cross(y, -UP), y, -UP], axis=1)


def with_yaw(yaw: float) -> FloatArray:
    """Return the rotation of a hand that looks down, by its yaw from ``CENTRE``."""
    return looking_down(np.array([math.sin(CENTRE + yaw), -math.cos(CENTRE + yaw), 0.0]))


def wrapped(radians: float) -> float:
    """Return an angle in [-pi, pi)."""
    return (radians + math.pi) % (2 * math.pi) - math.pi


def angle(first: FloatArray, second: FloatArray) -> float:
    """Return the angle between two rotations, radians."""
    return math.acos(min(1.0, max(-1.0, (float(np.trace(first.T @ second)) - 1.0) / 2.0)))


def yaw_of(turn: FloatArray) -> float:
    """Return a hand's yaw from ``CENTRE``."""
    return wrapped(math.atan2(turn[1, 0], turn[0, 0]) - CENTRE)
