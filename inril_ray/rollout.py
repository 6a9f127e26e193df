"""Collect fixed-length rollouts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inril_ray.envs.base import SimVectorEnv
from inril_ray.envs.base_actions import BaseActions
from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.policies.base import Policy
from inril_ray.types import Rollout


class ActionNoise:
    """Standard normal noise with one stream for each environment, so that it doesn't depend on how they are split.

    Args:
        seed: of the experiment.
        purpose: number that sets streams apart (training, evaluation).
        envs: indices of the environments among all.
        shape: of one environment's noise for one decision.
    """

    def __init__(self, seed: int, purpose: int, envs: Sequence[int], shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._streams = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, 1, int(i)))))
            for i in envs
        ]

    def draw(self) -> Tensor:
        """Return noise [B, *shape] for one decision."""
        return torch.from_numpy(np.stack([s.standard_normal(self._shape, dtype=np.float32) for s in self._streams]))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of every stream as plain data."""
        return [_plain(s.bit_generator.state) for s in self._streams]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Put back what :meth:`state_dict` returned."""
        for stream, state in zip(self._streams, states, strict=True):
            inner = {k: np.array(v, np.uint64) for k, v in state["state"].items()}
            stream.bit_generator.state = {**state, "state": inner, "buffer": np.array(state["buffer"], np.uint64)}


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _plain(v) for k, v in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def decision_env(env: SimVectorEnv, policy: Policy) -> ChunkedEnv | BaseActions:
    """Return environments that take a policy's decisions: chunks, or corrections of the base actions that it plans."""
    chunked = ChunkedEnv(env, policy.action_horizon)
    return chunked if policy.plan is None else BaseActions(chunked, policy.plan, **policy.plan_shapes)


class RolloutCollector:
    """Acts with a policy in a batch of environments and returns fragments of ``num_decisions`` chunk decisions.

    Args:
        env: the environments.
        policy: a private copy; weights are loaded into it from outside.
        noise: exploration noise.
        num_decisions: T.
        reset_each: start every rollout with a reset of all environments (DPPO's Robomimic setting).
        index: of the worker, for the records.
        device: where inference runs.
    """

    def __init__(
        self,
        env: ChunkedEnv | BaseActions,
        policy: Policy,
        noise: ActionNoise,
        *,
        num_decisions: int,
        reset_each: bool,
        index: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.env, self.policy, self.noise = env, policy, noise
        self.num_decisions, self.reset_each, self.index = num_decisions, reset_each, index
        self.device = torch.device(device)
        self._obs: np.ndarray | None = None

    def collect(self, policy_version: int) -> Rollout:
        """Collect one fragment with the weights that are loaded now."""
        rows: dict[str, list[np.ndarray]] = {}
        executed, simulation_s, inference_s = 0, 0.0, 0.0
        resets_before = self.env.nan_resets
        start = time.perf_counter()
        if self._obs is None or self.reset_each:
            self._obs = self.env.reset()
        simulation_s += time.perf_counter() - start
        for _ in range(self.num_decisions):
            start = time.perf_counter()
            obs = torch.from_numpy(self._obs).to(self.device)
            action = self.policy.act(obs, self.noise.draw().to(self.device), deterministic=False)
            chunk = action.chunk.cpu().numpy()
            middle = time.perf_counter()
            outcome = self.env.step(chunk)
            row = {
                "obs": self._obs,
                "chains": action.chain.cpu().numpy(),
                "log_probs": action.log_probs.cpu().numpy(),
                "rewards": outcome.reward,
                "terminated": outcome.terminated,
                "truncated": outcome.truncated,
                "valid": outcome.valid,
                "next_obs": outcome.next_obs,
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            self._obs = outcome.obs
            executed += int(outcome.executed.sum())
            inference_s += middle - start
            simulation_s += time.perf_counter() - middle
        return Rollout(
            **{name: np.stack(values) for name, values in rows.items()},  # type: ignore[arg-type]
            last_obs=self._obs.copy(),
            policy_version=policy_version,
            env_steps=executed,
            episodes=self.env.pop_episodes(),
            timings_s={"simulation": simulation_s, "inference": inference_s},
            nan_resets=self.env.nan_resets - resets_before,
            worker=self.index,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of noise and environments, as plain data and arrays."""
        return {
            "noise": self.noise.state_dict(),
            "env": self.env.get_state(),
            "obs": None if self._obs is None else self._obs.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        Raises:
            ValueError: the observations are not of these environments.
        """
        obs, shape = state["obs"], (self.env.num_envs, self.policy.decision_spec(self.env.spec).obs_dim)
        if obs is not None and np.shape(obs) != shape:
            raise ValueError(f"observations of shape {np.shape(obs)} instead of {shape}")
        self.noise.load_state_dict(state["noise"])
        self.env.set_state(state["env"])
        self._obs = None if obs is None else np.array(obs, np.float32)
