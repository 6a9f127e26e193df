"""Where the parts of a run live: in this process, or, in :mod:`inril_ray.distributed`, on a cluster."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from inril_ray.checkpoint import load_module
from inril_ray.demos.store import DemoArrays
from inril_ray.experiment import ExperimentConfig, WorkerParts, build_learner, policy_weights, share
from inril_ray.metrics import Tracker
from inril_ray.pretrain import pretrain
from inril_ray.threads import torch_threads
from inril_ray.types import EpisodeStats, Rollout


class Backend(Protocol):
    """Where the parts of a run live."""

    def pretrain(self) -> dict[str, float]:
        """Clone the demonstrations."""
        ...

    def iterate(self) -> dict[str, float]:
        """Collect, learn, publish; return metrics."""
        ...

    def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
        """Evaluate what acts, or the policy alone where critics have a say in that; episodes come in a fixed order."""
        ...

    def policy_state(self) -> dict[str, Any]:
        """Return all weights of the policy."""
        ...

    def acting_state(self) -> dict[str, Any]:
        """Return all weights of what acts: the policy, and critics where they have a say."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: learner and workers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, from a checkpoint of any number of workers."""
        ...

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Start from a cloned policy."""
        ...

    def scale_steps(self, scale: float) -> None:
        """Multiply the policy's learning rates, from now on."""
        ...

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak resident memory of each process."""
        ...

    def replay_memory(self, rows: int) -> tuple[int, int] | None:
        """See :meth:`inril_ray.algorithms.base.Algorithm.replay_memory`."""
        ...

    def trackers(self, run: str) -> list[Tracker]:
        """Return the trackers of where the backend lives, for a run of this name."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LocalBackend:
    """Everything in this process, without Ray: the numbers of one synchronous worker.

    Args:
        config: of the run.
        demos: demonstrations.
    """

    def __init__(self, config: ExperimentConfig, demos: DemoArrays) -> None:
        self.config = config
        self.learner = build_learner(config, demos)
        with torch_threads(1):
            self.worker = WorkerParts(config, 0, 1)

    def _publish(self, *, everything: bool) -> None:
        self.worker.load_weights(policy_weights(self.learner.algorithm.acting, everything=everything))

    def pretrain(self) -> dict[str, float]:
        """Clone the demonstrations."""
        with torch_threads(self.config.compute.learner_threads):
            result = pretrain(
                self.learner.policy,
                self.learner.demos,
                self.config.pretrain,
                seed=self.config.seed,
                device=self.learner.device,
            )
            self.learner.begin(cloned=self.config.pretrain.num_epochs > 0)
        self._publish(everything=True)
        return result

    def iterate(self) -> dict[str, float]:
        """Collect, learn, publish; return metrics."""
        start = time.perf_counter()
        with torch_threads(1):
            rollout: Rollout = self.worker.collector.collect(self.learner.version)
        waited = time.perf_counter() - start
        with torch_threads(self.config.compute.learner_threads):
            metrics = self.learner.learn(rollout, fresh_start=self.config.rollout.reset_each)
        self._publish(everything=False)
        return metrics | {"rollout_s": waited, "worker_restarts": 0.0}

    def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
        """Evaluate what acts, or the policy alone."""
        with torch_threads(1):
            return self.worker.evaluate(num_episodes, alone=alone)

    def policy_state(self) -> dict[str, Any]:
        """Return all weights of the policy."""
        return dict(self.learner.policy.state_dict())

    def acting_state(self) -> dict[str, Any]:
        """Return all weights of what acts."""
        return dict(self.learner.algorithm.acting.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return {"learner": self.learner.state_dict(), "workers": [self.worker.collector.state_dict()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        (envs,) = deal(state["workers"], self.config.rollout.num_envs, 1)
        self.learner.load_state_dict(state["learner"])
        self.worker.collector.load_state_dict(envs)
        self._publish(everything=True)

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Start from a cloned policy."""
        load_module(self.learner.policy, dict(state))
        self.learner.begin()
        self._publish(everything=True)

    def scale_steps(self, scale: float) -> None:
        """Multiply the policy's learning rates."""
        self.learner.scale_steps(scale)

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak resident memory of this process."""
        return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def replay_memory(self, rows: int) -> tuple[int, int] | None:
        """See :meth:`Backend.replay_memory`."""
        return self.learner.algorithm.replay_memory(rows)

    def trackers(self, run: str) -> list[Tracker]:
        """Return none."""
        return []

    def close(self) -> None:
        """Nothing to free."""


def deal(states: list[Any], num_envs: int, num_workers: int) -> list[Any]:
    """Deal out the environments of a checkpoint to the workers that there are now, however many there were.

    Args:
        states: of the workers that wrote it, in their order: trees whose leaves have a row for each environment.
        num_envs: of all workers together.
        num_workers: now.

    Raises:
        ValueError: the states are not of so many environments, or don't fit together.
    """
    whole = _joined(states, num_envs)
    return [_rows(whole, share(num_envs, worker, num_workers)) for worker in range(num_workers)]


def _joined(parts: list[Any], num_envs: int) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        if any(part.keys() != first.keys() for part in parts):
            raise ValueError("the workers' states have different keys")
        return {key: _joined([part[key] for part in parts], num_envs) for key in first}
    if first is None and all(part is None for part in parts):  # before the first rollout
        return None
    whole = [row for part in parts for row in part] if isinstance(first, list) else np.concatenate(parts)
    if len(whole) not in (0, num_envs):
        raise ValueError(f"a state is of {len(whole)} environments, the run has {num_envs}")
    return whole


def _rows(tree: Any, envs: range) -> Any:
    if isinstance(tree, dict):
        return {key: _rows(value, envs) for key, value in tree.items()}
    return None if tree is None else tree[envs.start : envs.stop]
