"""Ray actors: thin shells around the plain classes."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from inril_ray.distributed.board import Board
from inril_ray.distributed.demo_service import fetch
from inril_ray.distributed.weights import WeightRefs, flatten, unflatten
from inril_ray.experiment import ExperimentConfig, WorkerParts, build_learner, policy_weights
from inril_ray.progress import tell_from_now_on
from inril_ray.types import EpisodeStats, FloatArray, InrilError, Rollout


@dataclass(frozen=True, kw_only=True)
class FragmentMeta:
    """What the driver needs to know about a fragment without fetching it."""

    worker: int
    policy_version: int
    env_steps: int
    size_bytes: int
    finished_at: float
    """Seconds since the epoch, by the worker's clock."""


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hide_foreign_gpus() -> None:
    """Keep a process that Ray gave no GPU off those of its node, whatever the settings that the node was started with.

    Effective before CUDA is initialised.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class RolloutWorkerShell:
    """One single-threaded process with its share of the environments, which acts on a GPU where it was given one.

    ``start`` builds it, not ``__init__``: of what that raises Ray tells the driver no more than a traceback's text.
    """

    def start(self, config: ExperimentConfig, worker: int, num_workers: int, state: dict[str, Any] | None) -> None:
        """Build policy and environments.

        Args:
            config: of the run.
            worker: index.
            num_workers: workers in all.
            state: of a predecessor that died, or None.
        """
        hide_foreign_gpus()
        torch.set_num_threads(1)
        self.parts = WorkerParts(config, worker, num_workers)
        self._version, self._generation = -1, -1
        if state is not None:
            self.parts.collector.load_state_dict(state)

    def ready(self) -> int:
        """Return the process id."""
        return os.getpid()

    def _load(self, refs: WeightRefs) -> None:
        if (refs.generation, refs.version) < (self._generation, self._version):
            raise InrilError(
                f"Worker {self.parts.worker} holds version {self._version} and was given the older {refs.version}."
            )
        policy = self.parts.policy
        if refs.generation > self._generation:
            weights = unflatten(ray.get(refs.everything[0]), policy_weights(policy, everything=True))
            self.parts.load_weights(weights)
        if (refs.generation, refs.version) != (self._generation, self._version):
            weights = unflatten(ray.get(refs.trainable[0]), policy_weights(policy, everything=False))
            self.parts.load_weights(weights)
        self._generation, self._version = refs.generation, refs.version

    def collect(self, refs: WeightRefs) -> tuple[Rollout, FragmentMeta, dict[str, Any]]:
        """Collect a fragment with a version of the weights; return it, its description and this worker's state.

        Return values outlive the worker; objects that it put into the store would not.
        """
        self._load(refs)
        rollout = self.parts.collector.collect(refs.version)
        meta = FragmentMeta(
            worker=self.parts.worker,
            policy_version=rollout.policy_version,
            env_steps=rollout.env_steps,
            size_bytes=rollout.size_bytes(),
            finished_at=time.time(),
        )
        return rollout, meta, self.parts.collector.state_dict()

    def evaluate(self, refs: WeightRefs, num_episodes: int, alone: bool) -> EpisodeStats:
        """Run this worker's share of an evaluation, of what acts or of the policy alone."""
        self._load(refs)
        return self.parts.evaluate(num_episodes, alone=alone)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of noise and environments."""
        return self.parts.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.parts.collector.load_state_dict(state)

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of this process."""
        return peak_memory_bytes()


class LearnerShell:
    """The learner's process, on a GPU when it was given one; ``start`` builds it."""

    def start(self, config: ExperimentConfig, demos: list[Any], board: Board) -> None:
        """Build policy and algorithm.

        Args:
            config: of the run.
            demos: handle of the demonstration service.
            board: where long phases are told of.
        """
        hide_foreign_gpus()
        tell_from_now_on(board)
        torch.set_num_threads(config.compute.learner_threads)
        self.config = config
        self.learner = build_learner(config, fetch(demos))
        self._rollout: Rollout | None = None

    def ready(self) -> int:
        """Return the process id."""
        return os.getpid()

    def pretrain(self) -> dict[str, float]:
        """Clone the demonstrations."""
        from inril_ray.pretrain import pretrain

        learner, config = self.learner, self.config
        result = pretrain(learner.policy, learner.demos, config.pretrain, seed=config.seed, device=learner.device)
        learner.begin(cloned=config.pretrain.num_epochs > 0)
        return result

    def take(self, *fragments: Rollout) -> None:
        """Hold the fragments of all workers, given in their order; from then on the nodes that made them may leave."""
        self._rollout = Rollout.concatenate(list(fragments))

    def learn(self) -> dict[str, float]:
        """Learn from what was taken."""
        rollout, self._rollout = self._rollout, None
        if rollout is None:
            raise InrilError("The learner was asked to learn before it was given a rollout.")
        return self.learner.learn(rollout, fresh_start=self.config.rollout.reset_each)

    def scale_steps(self, scale: float) -> None:
        """Multiply the policy's learning rates."""
        self.learner.scale_steps(scale)

    def weights(self, everything: bool) -> FloatArray:
        """Return a slot of weights as one vector."""
        return flatten(policy_weights(self.learner.algorithm.acting, everything=everything))

    def version(self) -> int:
        """Return the version of the current weights."""
        return self.learner.version

    def policy_state(self) -> dict[str, Any]:
        """Return all weights of the policy, on the CPU."""
        return _numpy(dict(self.learner.policy.state_dict()))

    def acting_state(self) -> dict[str, Any]:
        """Return all weights of what acts, on the CPU."""
        return _numpy(dict(self.learner.algorithm.acting.state_dict()))

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Start from a cloned policy."""
        from inril_ray.checkpoint import load_module

        load_module(self.learner.policy, dict(state))
        self.learner.begin()

    def state_dict(self) -> dict[str, Any]:
        """Return the learner's state with numpy arrays, which Ray ships without copying."""
        return _numpy(self.learner.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.learner.load_state_dict(state)

    def replay_memory(self, rows: int) -> tuple[int, int] | None:
        """See :meth:`inril_ray.backend.Backend.replay_memory`."""
        return self.learner.algorithm.replay_memory(rows)

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of this process."""
        return peak_memory_bytes()


def _numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {k: _numpy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numpy(v) for v in value]
    return value


RolloutWorker = ray.remote(RolloutWorkerShell)
LearnerActor = ray.remote(LearnerShell)
