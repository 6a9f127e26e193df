"""Advantages and running moments."""

from __future__ import annotations

from typing import Any

import numpy as np

from inril_ray.types import BoolArray, FloatArray


def gae(
    rewards: FloatArray,
    values: FloatArray,
    next_values: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    *,
    discount: float,
    gae_lambda: float,
) -> FloatArray:
    """Estimate advantages with GAE, in float64.

    Terminated steps don't bootstrap; truncated steps bootstrap from the value of their final observation. Both cut
    the recursion, so nothing leaks from one episode into the one before it.

    Args:
        rewards: [T, B] sum over each executed chunk.
        values: [T, B] value of the observation at each decision.
        next_values: [T, B] value of the observation after the chunk; the final one where an episode ended.
        terminated: [T, B].
        truncated: [T, B].
        discount: per decision (chunk), in [0, 1].
        gae_lambda: in [0, 1].

    Returns:
        [T, B] advantages, float64.

    Raises:
        ValueError: shapes differ; the message lists them.

    Source: Schulman et al. 2016, eq. 16.
    """
    shapes = {a.shape for a in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"gae needs five [T, B] arrays of one shape, got {sorted(shapes)}.")
    rewards, values, next_values = (a.astype(np.float64) for a in (rewards, values, next_values))
    over = terminated | truncated
    # np.where, not a product: a value that is not finite must not leak through an episode's end.
    delta = rewards + discount * np.where(terminated, 0.0, next_values) - values
    advantages = np.zeros_like(delta)
    carried = np.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        carried = delta[t] + discount * gae_lambda * np.where(over[t], 0.0, carried)
        advantages[t] = carried
    return advantages


def returns_to_go(rewards: FloatArray, over: BoolArray, discount: float) -> tuple[FloatArray, BoolArray]:
    """Return discounted sums of rewards to the end of each episode, or of the arrays, and whether it ended there.

    Args:
        rewards: [T, B].
        over: [T, B] the episode ended at this step.
        discount: per step.

    Returns:
        [T, B] returns, float64, and [T, B] True where the episode of a step ends within the arrays.
    """
    returns, finished = np.zeros(rewards.shape), np.zeros(over.shape, bool)
    carried, ended = np.zeros(over.shape[1]), np.zeros(over.shape[1], bool)
    for t in reversed(range(len(over))):
        ended = ended | over[t]
        carried = rewards[t] + discount * np.where(over[t], 0.0, carried)
        returns[t], finished[t] = carried, ended
    return returns, finished


class RunningMoments:
    """Mean and variance of a stream, in float64.

    Source: Chan, Golub and LeVeque 1979. The variance divides by n - 1, as DPPO's does; the count starts at 1e-4.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 1e-4, 0.0, 0.0

    def update(self, values: FloatArray) -> None:
        """Take in the finite elements of an array."""
        x = np.asarray(values, np.float64).ravel()
        x = x[np.isfinite(x)]
        if len(x) == 0:
            return
        delta, total = x.mean() - self.mean, self.count + len(x)
        self.m2 += ((x - x.mean()) ** 2).sum() + delta**2 * self.count * len(x) / total
        self.mean += delta * len(x) / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation; 1 before there is anything to measure."""
        variance = self.m2 / (self.count - 1.0) if self.count > 1.0 else 0.0
        return float(np.sqrt(variance)) if variance > 0 else 1.0

    def state_dict(self) -> dict[str, float]:
        """Return the state."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.count, self.mean, self.m2 = state["count"], state["mean"], state["m2"]


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return, clipped to ±``limit``.

    Args:
        num_envs: environments; one return accumulator each.
        discount: of the accumulated return, per decision. DPPO uses 0.99 whatever the task's discount is.
        limit: clip of the scaled reward.
    """

    def __init__(self, num_envs: int, discount: float = 0.99, limit: float = 10.0) -> None:
        self.discount, self.limit = discount, limit
        self.moments = RunningMoments()
        self.returns = np.zeros(num_envs)

    def __call__(self, rewards: FloatArray, over: BoolArray, fresh_start: bool) -> FloatArray:
        """Scale rewards [T, B], updating the statistics first.

        Args:
            rewards: [T, B].
            over: [T, B] the episode ended at this step.
            fresh_start: every environment was reset before the first step.
        """
        if fresh_start or len(self.returns) != rewards.shape[1]:
            self.returns = np.zeros(rewards.shape[1])
        history = np.empty(rewards.shape)
        for t in range(len(rewards)):
            self.returns = self.returns * self.discount + np.nan_to_num(rewards[t], posinf=0.0, neginf=0.0)
            history[t] = self.returns
            self.returns = np.where(over[t], 0.0, self.returns)
        self.moments.update(history)
        return np.clip(rewards / self.moments.std, -self.limit, self.limit)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"moments": self.moments.state_dict(), "returns": self.returns.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.moments.load_state_dict(state["moments"])
        self.returns = np.array(state["returns"])
