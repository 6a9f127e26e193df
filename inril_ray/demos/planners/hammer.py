"""A planner that hammers: no human data, no training, one CPU core.

Model-predictive path integral control (Williams et al., 2017): sample action sequences around the last plan, simulate
them, average them with weights that fall exponentially with their cost, execute the first actions, plan again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from scipy.spatial.transform import Rotation

from inril_ray.config import config
from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.types import FloatArray

NAIL, PALM, HAMMER, TURNED, NAIL_HEAD = 26, slice(33, 36), slice(36, 39), slice(39, 42), slice(42, 45)
"""Places in the observation: how far the nail is in (metres), palm, hammer and its orientation, head of the nail."""
HEAD = np.array([-0.2, 0.0, -0.04])
"""Head of the hammer seen from its body, metres."""
NAIL_WAY_M = 0.091
"""From the nail's first position to where it is to go."""


@config
class HammerPlannerConfig:
    """How much is planned. The defaults take some 15 seconds of one CPU core for an episode."""

    num_samples: PositiveInt = 48
    horizon: PositiveInt = 32
    """Control steps that are looked ahead."""
    replan_every: PositiveInt = 2
    """Control steps that are executed of each plan."""
    noise: PositiveFloat = 0.35
    """Standard deviation of the sampled actions, relative to the action range of 1."""
    temperature: PositiveFloat = 0.15
    """Of the weights, relative to the standard deviation of the costs."""
    smoothness: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Correlation of the sampled noise from step to step."""


class HammerPlanner(Demonstrator):
    """Plans for AdroitHandHammer.

    Args:
        rng: random stream of the episode.
        config: how much is planned.
        predict: tells what action sequences [K, H, 26] would lead to, as observations [K, H, 46].
    """

    Config = HammerPlannerConfig
    source = "planner"

    def __init__(
        self, rng: np.random.Generator, config: HammerPlannerConfig, predict: Callable[[FloatArray], FloatArray]
    ) -> None:
        self._rng, self._config, self._predict = rng, config, predict
        self._plan = np.zeros((config.horizon, 26))
        self._step = 0

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [26]; ``obs`` [46] is not needed, since the planner sees the simulator's state."""
        if self._step % self._config.replan_every == 0:
            self._plan = self._improve(self._plan)
        self._step += 1
        action = self._plan[0]
        self._plan = np.concatenate([self._plan[1:], self._plan[-1:]])
        return action.astype(np.float32)

    def _improve(self, plan: FloatArray) -> FloatArray:
        options = self._config
        noise = self._rng.normal(size=(options.num_samples, *plan.shape)) * options.noise
        for h in range(1, options.horizon):
            fresh = np.sqrt(1 - options.smoothness**2)
            noise[:, h] = options.smoothness * noise[:, h - 1] + fresh * noise[:, h]
        noise[0] = 0.0
        candidates = np.clip(plan + noise, -1.0, 1.0)
        total = np.nan_to_num(cost(self._predict(candidates)), nan=1e6)
        weights = np.exp(-(total - total.min()) / (options.temperature * (total.std() + 1e-6)))
        return np.tensordot(weights / weights.sum(), candidates, axes=1)


def cost(obs: FloatArray) -> FloatArray:
    """Return the cost [K] of predicted observations [K, H, 46]: hand to hammer, hammer to nail, nail to its goal."""
    palm, hammer, nail = obs[..., PALM], obs[..., HAMMER], obs[..., NAIL_HEAD]
    turned = Rotation.from_euler("XYZ", obs[..., TURNED].reshape(-1, 3))
    head = hammer + turned.apply(HEAD).reshape(hammer.shape)
    left = np.abs(NAIL_WAY_M - obs[..., NAIL])
    each = 2.0 * np.linalg.norm(palm - hammer, axis=-1) + 1.5 * np.linalg.norm(head - nail, axis=-1) + 20.0 * left
    each -= ((hammer[..., 2] > 0.04) & (head[..., 2] > 0.04)) + 5.0 * (left < 0.01)
    each += 3.0 * np.maximum(0.0, 0.05 - hammer[..., 2])
    late = np.where(np.arange(obs.shape[1]) < obs.shape[1] - 4, 1.0, 3.0)
    return (late * each).sum(axis=1)
