"""Action chunking, the one wrapper for all simulators."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from inril_ray.envs.base import SimVectorEnv
from inril_ray.types import BoolArray, EpisodeStats, FloatArray


@dataclass(frozen=True, kw_only=True)
class ChunkOutcome:
    """What executing one action chunk did in every environment."""

    obs: FloatArray
    """[B, O] where the next decision is made: after the reset where an episode ended."""
    next_obs: FloatArray
    """[B, O] at the end of the chunk: the final observation where an episode ended."""
    reward: FloatArray
    """[B] sum over the executed steps."""
    terminated: BoolArray
    truncated: BoolArray
    valid: BoolArray
    """[B] False where the NaN guard broke the chunk off."""
    executed: npt.NDArray[np.int64]
    """[B] control steps executed."""


class ChunkedEnv:
    """Executes chunks of actions, stops inside a chunk when the episode ends, and keeps episode statistics.

    Args:
        env: the simulators.
        action_horizon: actions of each chunk that are executed.
    """

    def __init__(self, env: SimVectorEnv, action_horizon: int) -> None:
        self.env, self.action_horizon = env, action_horizon
        self.num_envs, self.spec = env.num_envs, env.task_spec
        self._returns = np.zeros(env.num_envs)
        self._reached, self._held = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, bool)
        """[B] what the running episode has achieved so far."""
        self._finished: list[dict[str, Any]] = []
        self.nan_resets = 0

    def reset(self) -> FloatArray:
        """Start a new episode everywhere, dropping unfinished ones from the statistics; return obs [B, O]."""
        obs, _ = self.env.reset()
        self._clear(np.ones(self.num_envs, bool))
        return obs

    def step(self, chunks: FloatArray) -> ChunkOutcome:
        """Execute ``chunks`` [B, H, A], of which the first ``action_horizon`` actions are used."""
        env, horizon = self.env, self.action_horizon
        active = np.ones(self.num_envs, bool)
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated, broken = (np.zeros(self.num_envs, bool) for _ in range(3))
        executed, succeeded = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, np.int64)
        final = np.zeros(self.num_envs, bool)
        for t in range(horizon):
            outcome, over_time, not_finite = env.advance_guarded(chunks[:, t], active)
            executed += active
            reward += outcome.reward
            succeeded += outcome.success
            final = np.where(active, outcome.success, final)
            self._reached |= outcome.success
            self._held |= outcome.terminated & outcome.success
            terminated |= outcome.terminated
            truncated |= over_time | not_finite
            broken |= not_finite
            active &= ~(outcome.terminated | over_time | not_finite)
            if not active.any():
                break
        self._returns += reward
        self._held |= succeeded >= horizon
        next_obs = env.obs.copy()
        over = terminated | truncated
        self.nan_resets += int(broken.sum())
        for i in np.flatnonzero(over & ~broken).tolist():
            achieved = {"reached": self._reached[i], "held": self._held[i], "final": final[i]}
            counts = {"envs": env.first_env + i, "returns": self._returns[i], "lengths": env.elapsed[i]}
            self._finished.append({**counts, **achieved, "success": achieved[self.spec.success]})
        obs = next_obs
        if over.any():
            obs = env.reset_envs(over)
            self._clear(over)
        return ChunkOutcome(
            obs=obs,
            next_obs=next_obs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            valid=~broken,
            executed=executed,
        )

    def _clear(self, mask: BoolArray) -> None:
        self._returns[mask] = 0.0
        self._reached[mask] = self._held[mask] = False

    def pop_episodes(self) -> EpisodeStats:
        """Return the episodes that ended since the last call."""
        rows, self._finished = self._finished, []
        kinds = {"envs": np.int64, "returns": np.float32, "lengths": np.int64}
        names = (f.name for f in fields(EpisodeStats))
        return EpisodeStats(**{n: np.array([row[n] for row in rows], kinds.get(n, bool)) for n in names})

    def get_state(self) -> dict[str, Any]:
        """Return the state of the simulators and of the unfinished episodes."""
        return {
            "env": self.env.get_state(),
            "returns": self._returns.copy(),
            "reached": self._reached.copy(),
            "held": self._held.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned."""
        self.env.set_state(state["env"])
        self._returns[:], self._reached[:], self._held[:] = state["returns"], state["reached"], state["held"]
