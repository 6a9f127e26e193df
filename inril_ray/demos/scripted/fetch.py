"""Scripted Fetch demonstrators, sub-optimal by design: how often they succeed is a parameter.

The experiments on imperfect demonstrations that these tasks are used in (CAIR) take a way-point controller with
Gaussian noise and a fixed probability of failing. Observations are the task's 31 numbers: hand 0:3, object 3:6, …,
desired goal 28:31, metres; an action moves the hand by up to 5 cm.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from pydantic import NonNegativeFloat

from inril_ray.config import config
from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.demos.scripted.arm import UP
from inril_ray.types import FloatArray, InrilError

GAIN = 10.0
"""Action per metre of error."""
APPROACH, LOWER, GRASP, MOVE, BACK = range(5)


@config
class FetchStyleConfig:
    """How a demonstrator behaves."""

    success_rate: float | None = None
    """Share of episodes that succeed, in expectation; None tries its best in all. An episode that is to fail goes for a
    wrong goal."""
    noise: NonNegativeFloat = 0.05
    """Standard deviation of the Gaussian action noise, relative to the action range of 1."""


class FetchDemonstrator(Demonstrator):
    """Base: noise, and episodes that go wrong on purpose.

    Args:
        rng: random stream of the episode.
        config: quality.

    Raises:
        InrilError: a success rate that the controller does not reach.
    """

    Config = FetchStyleConfig
    keeps_failures = True
    best: ClassVar[float]
    """Success rate at its best with the default noise, measured on 300 episodes of 50 steps."""

    def __init__(self, rng: np.random.Generator, config: FetchStyleConfig) -> None:
        rate = self.best if config.success_rate is None else config.success_rate
        if not 0.0 <= rate <= self.best:
            raise InrilError(f"success_rate = {rate}: {type(self).__name__} reaches at most {self.best}.")
        self._rng, self._noise = rng, config.noise
        self._phase, self._count = APPROACH, 0
        angle = rng.uniform(0.0, 2 * np.pi)
        wrong = np.array([np.cos(angle), np.sin(angle), 0.0]) * rng.uniform(0.10, 0.15)
        self._error = wrong if rng.random() >= rate / self.best else np.zeros(3)

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [4] for an observation [31]."""
        hand, thing, goal = (obs[i : i + 3].astype(np.float64) for i in (0, 3, 28))
        action = self._steer(hand, thing, goal + self._error)
        action[:3] += self._noise * self._rng.normal(size=3)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    @abstractmethod
    def _steer(self, hand: FloatArray, thing: FloatArray, goal: FloatArray) -> FloatArray:
        """Return the action [4] without noise."""


class PickAndPlaceDemonstrator(FetchDemonstrator):
    """Hover over the block, lower, grasp, carry it to the goal; start again when it slipped."""

    best = 0.99

    def _steer(self, hand: FloatArray, thing: FloatArray, goal: FloatArray) -> FloatArray:
        above, at = thing + UP * 0.07, thing - UP * 0.002
        if self._phase == APPROACH and np.linalg.norm(above - hand) < 0.02:
            self._phase = LOWER
        elif self._phase == LOWER and np.linalg.norm(at - hand) < 0.012:
            self._phase, self._count = GRASP, 0
        elif self._phase == GRASP:
            self._count += 1
            if self._count > 3:
                self._phase = MOVE
        elif self._phase == MOVE and np.linalg.norm(hand - thing) > 0.06:
            self._phase = APPROACH
        move = {APPROACH: above - hand, LOWER: at - hand, GRASP: np.zeros(3), MOVE: goal - thing}[self._phase]
        return np.append(GAIN * move, 1.0 if self._phase < GRASP else -1.0)


class PushDemonstrator(FetchDemonstrator):
    """Go behind the block, seen from the goal, lower, push; go around again when it drifts off to a side."""

    best = 0.86

    def _steer(self, hand: FloatArray, thing: FloatArray, goal: FloatArray) -> FloatArray:
        way, distance = _along(thing, goal)
        behind = thing - 0.085 * way
        side = (hand - thing) - ((hand - thing) @ way) * way
        side[2] = 0.0
        ahead = (hand - thing) @ way
        if distance < 0.015:
            return np.array([0.0, 0.0, 0.0, -1.0])
        above = np.array([behind[0], behind[1], thing[2] + 0.06])
        if self._phase == APPROACH and np.hypot(*(above - hand)[:2]) < 0.02:
            self._phase = LOWER
        elif self._phase == LOWER and abs(hand[2] - thing[2]) < 0.015:
            self._phase = MOVE
        elif self._phase == MOVE and (np.linalg.norm(side) > 0.03 or ahead > 0.02):
            self._phase = BACK
        elif self._phase == BACK and hand[2] > thing[2] + 0.05:
            self._phase = APPROACH
        if self._phase == MOVE:
            action = np.clip(GAIN * (thing + 0.02 * way - hand), -1.0, 1.0) * min(1.0, 0.25 + 6.0 * distance)
            action -= GAIN * side
            action[2] = GAIN * (thing[2] - hand[2])
        elif self._phase == BACK:
            action = np.array([*(-0.3 * way[:2]), 1.0])
        else:
            action = GAIN * ((above if self._phase == APPROACH else np.array([*behind[:2], thing[2]])) - hand)
        return np.append(action, -1.0)


class SlideDemonstrator(FetchDemonstrator):
    """Go behind the puck, lower, push until it is fast enough to slide to the goal. It has one try only."""

    best = 0.42
    DECELERATION = 0.87
    """Of a sliding puck, metres per second squared, measured."""
    CONTROL_S = 0.04

    def __init__(self, rng: np.random.Generator, config: FetchStyleConfig) -> None:
        super().__init__(rng, config)
        self._start, self._way = np.zeros(3), np.zeros(3)
        self._velocity = np.zeros(3)

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [4] for an observation [31]."""
        # Metres per control step, of the puck relative to the hand and of the hand.
        self._velocity = (obs[14:17] + obs[20:23]).astype(np.float64) / self.CONTROL_S
        return super().act(obs)

    def _steer(self, hand: FloatArray, thing: FloatArray, goal: FloatArray) -> FloatArray:
        way, distance = _along(thing, goal)
        behind = thing - 0.12 * way
        above, at = behind + UP * 0.06, behind + UP * 0.012
        if self._phase == APPROACH and np.hypot(*(above - hand)[:2]) < 0.015:
            self._phase = LOWER
        elif self._phase == LOWER and abs(at[2] - hand[2]) < 0.01 and np.hypot(*(at - hand)[:2]) < 0.012:
            self._phase, self._count = MOVE, 0
            self._start, self._way = thing, way
        elif self._phase == MOVE:
            self._count += 1
            speed = self._velocity @ self._way
            if speed**2 > 2 * self.DECELERATION * (goal - thing) @ self._way or self._count > 15:
                self._phase = BACK
        if self._phase == APPROACH:
            # The hand begins low and close to the puck: up first, or it knocks it away.
            low = hand[2] < above[2] - 0.02
            action = GAIN * (np.array([hand[0], hand[1], above[2]] if low else above) - hand)
        elif self._phase == LOWER:
            action = GAIN * (at - hand)
        elif self._phase == MOVE:
            offset = hand - self._start
            side = offset - (offset @ self._way) * self._way
            action = self._way * min(1.0, 0.3 + 1.2 * distance) - GAIN * side
            action[2] = GAIN * (self._start[2] + 0.012 - hand[2])
        else:
            action = np.array([*(-0.5 * self._way[:2]), 0.3])
        return np.append(action, -1.0)


def _along(thing: FloatArray, goal: FloatArray) -> tuple[FloatArray, float]:
    """Return the horizontal unit vector [3] from a thing to its goal, and the distance."""
    way = goal - thing
    way[2] = 0.0
    distance = float(np.linalg.norm(way))
    return way / max(distance, 1e-6), distance
