"""A scripted Lift demonstrator of adjustable quality."""

from __future__ import annotations

import numpy as np

from inril_ray.config import config
from inril_ray.types import FloatArray

APPROACH, DESCEND, GRASP, RAISE = range(4)
UP = np.array([0.0, 0.0, 1.0])
GAIN = 14.0
"""Action per metre of error; the controller saturates at 1."""


@config
class LiftDemonstratorConfig:
    """How the demonstrator behaves. Worse settings give sub-optimal, more varied demonstrations."""

    noise: float = 0.15
    """Standard deviation of the correlated action noise, relative to the action range of 1."""
    aim_error_m: float = 0.004
    """Standard deviation of the place on the cube that each episode aims at."""
    min_speed: float = 0.55
    """Slowest of the speeds that episodes draw, relative to the fastest."""


class LiftDemonstrator:
    """Hover over the cube, descend, grasp, raise; start again when the cube slipped.

    Speed, noise, hover height, aim and pause are drawn for each episode, so that demonstrations differ as those of
    people do.

    Args:
        rng: random stream of the episode.
        config: quality.
    """

    Config = LiftDemonstratorConfig

    def __init__(self, rng: np.random.Generator, config: LiftDemonstratorConfig) -> None:
        self._rng = rng
        self._phase, self._count = APPROACH, 0
        self._speed = rng.uniform(config.min_speed, 1.0)
        self._noise = config.noise * rng.uniform(0.3, 1.3)
        self._aim = np.append(rng.normal(size=2) * config.aim_error_m, 0.0)
        self._hover_m = rng.uniform(0.05, 0.10)
        self._pause = int(rng.integers(2, 6))
        self._drift = np.zeros(6)
        self._lift_from = np.zeros(3)

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [7] for an observation [19] in DPPO's order."""
        hand, cube = obs[0:3].astype(np.float64), obs[9:12].astype(np.float64)
        aim = cube + self._aim
        grip = -1.0
        above, at = aim + UP * self._hover_m, aim - UP * 0.004
        if self._phase == APPROACH and np.hypot(*(above - hand)[:2]) < 0.012 and abs(above[2] - hand[2]) < 0.03:
            self._phase = DESCEND
        if self._phase == DESCEND and np.linalg.norm(at - hand) < 0.012:
            self._phase, self._count = GRASP, 0
        if self._phase == GRASP:
            self._count += 1
            if self._count > 3 + self._pause:
                self._phase, self._lift_from = RAISE, hand
        if self._phase == RAISE and np.linalg.norm(cube - hand) > 0.06:
            self._phase = APPROACH
        goal = {APPROACH: above, DESCEND: at, GRASP: at, RAISE: self._lift_from + UP * 0.12}[self._phase]
        if self._phase in (GRASP, RAISE):
            grip = 1.0
        move = GAIN * (goal - hand)
        length = np.linalg.norm(move)
        if length > self._speed:
            move *= self._speed / length
        self._drift = 0.8 * self._drift + 0.6 * self._noise * self._rng.normal(size=6)
        action = np.concatenate([move + self._drift[:3], 0.15 * self._drift[3:], [grip]])
        return np.clip(action, -1.0, 1.0).astype(np.float32)
