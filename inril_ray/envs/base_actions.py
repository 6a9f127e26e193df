"""What a residual policy decides on: each control step of a base policy's chunks, which it may correct."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from inril_ray.envs.base import PURPOSES
from inril_ray.envs.chunking import ChunkedEnv, ChunkOutcome
from inril_ray.types import EpisodeStats, FloatArray

Plan = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
"""(obs [n, O], noise [n, ...], what is left of the last chunks [n, H, A]) to normalised chunks [n, H, A]."""


class BaseActions:
    """Environments whose observations end with the base policy's action for this step, normalised.

    Every environment is planned for when its chunk is used up and when it begins an episode, not all at once. The noise
    of a plan depends on seed, environment, episode and count of the plan, so nothing but the plans has to be saved.

    Args:
        env: the environments, one action for each decision.
        plan: makes chunks.
        noise_shape: of one plan's noise.
        chunk_shape: (H, A).
        replan_every: actions of a chunk that are used.
    """

    action_horizon = 1

    def __init__(
        self,
        env: ChunkedEnv,
        plan: Plan,
        *,
        noise_shape: tuple[int, ...],
        chunk_shape: tuple[int, int],
        replan_every: int,
    ) -> None:
        self._chunked, self._plan = env, plan
        self._noise_shape, self._replan_every = noise_shape, replan_every
        self.env, self.spec, self.num_envs = env.env, env.spec, env.num_envs
        self._chunks = np.zeros((env.num_envs, *chunk_shape), np.float32)
        self._used = np.full(env.num_envs, replan_every, np.int64)
        """[B] actions of the present chunk that are used."""
        self._plans = np.zeros(env.num_envs, np.int64)
        """[B] plans made in this episode."""

    @property
    def nan_resets(self) -> int:
        """Environments that the NaN guard reset."""
        return self._chunked.nan_resets

    def pop_episodes(self) -> EpisodeStats:
        """Return the episodes that ended since the last call."""
        return self._chunked.pop_episodes()

    def reset(self) -> FloatArray:
        """Start a new episode everywhere; return observations with base actions [B, O + A]."""
        obs = self._chunked.reset()
        self._plans[:] = 0
        self._used[:] = self._replan_every
        return self._with_base(obs)

    def step(self, chunks: FloatArray) -> ChunkOutcome:
        """Execute one action [B, 1, A]; see :meth:`ChunkedEnv.step`.

        The final observation of an episode comes with the base action that would have followed in the chunk.
        """
        outcome = self._chunked.step(chunks)
        over = outcome.terminated | outcome.truncated
        self._used += 1
        following = self._chunks[np.arange(self.num_envs), np.minimum(self._used, self._chunks.shape[1] - 1)]
        final = np.concatenate([outcome.next_obs, following], axis=1)
        self._plans[over] = 0
        self._used[over] = self._replan_every
        obs = self._with_base(outcome.obs)
        return dataclasses.replace(outcome, obs=obs, next_obs=np.where(over[:, None], final, obs))

    def _with_base(self, obs: FloatArray) -> FloatArray:
        due = np.flatnonzero(self._used >= self._replan_every)
        if len(due):
            noise = np.stack([self._noise(int(i)) for i in due])
            self._chunks[due] = self._plan(obs[due], noise, self._left(due))
            self._used[due] = 0
            self._plans[due] += 1
        return np.concatenate([obs, self._chunks[np.arange(self.num_envs), self._used]], axis=1).astype(np.float32)

    def _left(self, due: npt.NDArray[np.int64]) -> FloatArray:
        """Return what is left of the last chunks [n, H, A], in its first places; zeros behind, and in new episodes.

        Source: ResiP, where zeros behind are all that is ever written there. Its buffer outlives an episode's end.
        """
        left = np.zeros_like(self._chunks[due])
        left[:, : left.shape[1] - self._replan_every] = self._chunks[due, self._replan_every :]
        left[self._plans[due] == 0] = 0.0
        return left

    def _noise(self, index: int) -> FloatArray:
        env = self.env
        key = (PURPOSES.index(env.purpose), 2, env.first_env + index, int(env.episode[index]), int(self._plans[index]))
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(env.base_seed, spawn_key=key)))
        return stream.standard_normal(self._noise_shape, dtype=np.float32)

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environments and the plans."""
        plans = {"chunks": self._chunks.copy(), "used": self._used.copy(), "plans": self._plans.copy()}
        return {"env": self._chunked.get_state(), **plans}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned."""
        self._chunked.set_state(state["env"])
        self._chunks[:], self._used[:], self._plans[:] = state["chunks"], state["used"], state["plans"]
