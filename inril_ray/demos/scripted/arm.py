"""What the scripted demonstrators of robot arms share: a style drawn for each episode, and a hand that is steered."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat
from scipy.spatial.transform import Rotation

from inril_ray.config import config
from inril_ray.types import FloatArray

UP = np.array([0.0, 0.0, 1.0])
DOWN = Rotation.from_euler("x", np.pi)
"""A hand that points down; its fingers open along its y axis."""
GAIN = 14.0
"""Action per metre of error; the controller saturates at 1."""
TURN_GAIN = 4.0
"""Action per radian of error."""
MAX_TURN = 0.3
"""Of the action range: a turning hand loses what it holds."""


@config
class ArmStyleConfig:
    """How a demonstrator behaves. Worse settings give sub-optimal, more varied demonstrations."""

    noise: NonNegativeFloat = 0.15
    """Standard deviation of the correlated action noise, relative to the action range of 1."""
    aim_error_m: NonNegativeFloat = 0.004
    """Standard deviation of the place on the object that each episode aims at."""
    min_speed: Annotated[float, Field(gt=0, le=1)] = 0.55
    """Slowest of the speeds that episodes draw, relative to the fastest."""


class ArmStyle:
    """Speed, noise, hover height, aim and pause of one episode, so that demonstrations differ as those of people do.

    Args:
        rng: random stream of the episode.
        config: quality.
    """

    def __init__(self, rng: np.random.Generator, config: ArmStyleConfig) -> None:
        self._rng = rng
        self.speed = rng.uniform(config.min_speed, 1.0)
        self._noise = config.noise * rng.uniform(0.3, 1.3)
        self.aim = np.append(rng.normal(size=2) * config.aim_error_m, 0.0)
        """[3] offset from the object, metres."""
        self.hover_m = rng.uniform(0.05, 0.10)
        self.pause = int(rng.integers(2, 6))
        """Control steps for which a closing hand waits."""
        self._drift = np.zeros(6)

    def action(self, move: FloatArray, grip: float, turn: FloatArray | None = None, speed: float = 1.0) -> FloatArray:
        """Return an action [7].

        Args:
            move: [3] where to, seen from the hand, metres.
            grip: 1 closes, -1 opens.
            turn: [3] rotation vector to be made, radians; None leaves the orientation alone.
            speed: relative to the speed of the episode.
        """
        wanted, limit = GAIN * move, self.speed * speed
        length = np.linalg.norm(wanted)
        if length > limit:
            wanted = wanted * (limit / length)
        self._drift = 0.8 * self._drift + 0.6 * self._noise * self._rng.normal(size=6)
        rotation = 0.15 * self._drift[3:]
        if turn is not None:
            rotation = rotation + np.clip(TURN_GAIN * turn, -MAX_TURN, MAX_TURN)
        return np.clip(np.concatenate([wanted + self._drift[:3], rotation, [grip]]), -1.0, 1.0).astype(np.float32)
