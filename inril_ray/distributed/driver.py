"""The driver: placement, the loop across processes, deadlines and replacements.

It never touches tensors. Fragments go from worker to learner by reference; the driver resolves only their descriptions.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError
from ray.util import get_current_placement_group

from inril_ray import health
from inril_ray.backend import deal
from inril_ray.demos.store import DemoArrays
from inril_ray.distributed.board import Board
from inril_ray.distributed.cluster import start_ray
from inril_ray.distributed.demo_service import DemoService
from inril_ray.distributed.gauges import GaugeTracker
from inril_ray.distributed.placement import asked_for, check_gpus
from inril_ray.distributed.weights import WeightRefs
from inril_ray.distributed.workers import FragmentMeta, LearnerActor, RolloutWorker
from inril_ray.experiment import ExperimentConfig, task_spec
from inril_ray.metrics import Tracker
from inril_ray.progress import tell
from inril_ray.types import EpisodeStats, InrilError

START_TIMEOUT_S = 300.0
LEARNER_TIMEOUT_S, PRETRAIN_TIMEOUT_S = 3600.0, 7 * 24 * 3600.0
STARTING = "starting processes"
STORE_SHARE = 0.5
"""Share of the object store that fragments may fill."""


def connect(config: ExperimentConfig) -> None:
    """Join the cluster that this process belongs to, or start a local one.

    Raises:
        InrilError: the cluster has too few CPUs for the workers and the learner, or the run too few environments; gives
            both numbers. Or it has no room for those that need a GPU, or Ray failed.
    """
    for name, envs in (("rollout", config.rollout.num_envs), ("evaluation", config.evaluation.num_envs)):
        if envs < config.compute.num_workers:
            raise InrilError(
                f"compute.num_workers = {config.compute.num_workers}: each needs an environment, and {name}.num_envs "
                f"is {envs}."
            )
    needed = config.compute.num_workers + 1
    total = start_ray(needed)
    if total < needed:
        raise InrilError(
            f"compute.num_workers = {config.compute.num_workers}: workers and learner need {needed} CPUs, "
            f"the cluster has {total:.0f}. Lower it: a run goes on with any number of workers."
        )
    check_gpus(config, asked_for(config))


class LostError(InrilError):
    """An argument of a call was lost with the node that held it; the call did not begin."""


class FailedError(InrilError):
    """An actor raised something that nobody put into words; the message has its traceback from the second line on."""


@dataclass
class Flight:
    """A call in flight on a worker."""

    fragment: Any
    meta: Any
    state: Any
    deadline: float


class RayBackend:
    """The parts of a run on a Ray cluster; see :class:`inril_ray.backend.Backend`.

    Args:
        config: of the run.
        demos: demonstrations, or the handle of a service that holds them for several runs.
    """

    def __init__(self, config: ExperimentConfig, demos: DemoArrays | list[Any]) -> None:
        self.config = config
        connect(config)
        self._own_demos = None if isinstance(demos, list) else DemoService(demos)
        handle = demos if self._own_demos is None else self._own_demos.handle
        self.restarts = 0
        self._restarts_of = [0] * config.compute.num_workers
        asked = asked_for(config)
        self._worker_gpu = asked[1].get("GPU", 0.0)
        if not get_current_placement_group():  # in a trial of a sweep all of it is reserved
            for finding in health.waiting(asked, ray.available_resources(), START_TIMEOUT_S):
                print(f"Check: {finding}", flush=True)
        self.learner = LearnerActor.options(num_cpus=1, num_gpus=asked[0].get("GPU", 0.0)).remote()
        # Values, not references: what a worker returned stays on its node and would be lost with it.
        self._states: list[Any] = [None] * config.compute.num_workers
        self.workers: list[Any] = [None] * config.compute.num_workers
        self._board = Board(uuid.uuid4().hex)
        starting = [
            self.learner.start.remote(config, handle, self._board),
            *map(self._spawn, range(config.compute.num_workers)),
        ]
        self._flights: dict[int, Flight] = {}
        self._finished_at: list[float] = []
        self._learned_at: float | None = None
        self._generation = 0
        self._refs: Any = None
        for done, (ref, (_, who)) in enumerate(zip(starting, self._actors(), strict=True)):
            self._get(self._started(ref, who, (STARTING, done, len(starting))), START_TIMEOUT_S, who)
        tell(STARTING, len(starting), len(starting))
        for i, worker in enumerate(self.workers):
            self._states[i] = self._get(worker.state_dict.remote(), START_TIMEOUT_S, f"rollout worker {i}")

    # -- processes ----------------------------------------------------------------------------------------------------
    def _spawn(self, index: int) -> Any:
        """Start a worker that takes over the last known state; return the reference of its start."""
        # Spread, so that simulators share no cores before they must, and a node that leaves takes few of them. In a
        # trial of a sweep its placement group decides.
        strategy = {} if get_current_placement_group() else {"scheduling_strategy": "SPREAD"}
        self.workers[index] = RolloutWorker.options(num_cpus=1, num_gpus=self._worker_gpu, **strategy).remote()
        return self.workers[index].start.remote(
            self.config, index, self.config.compute.num_workers, self._states[index]
        )

    def _get(self, ref: Any, timeout_s: float, who: str) -> Any:
        """Wait for an answer.

        Raises:
            InrilError: it died, raised, or did not answer in time; names it.
        """
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            raise InrilError(
                f"The {who} did not answer within {timeout_s:.0f} s: it hangs, or has too much to do between two "
                "answers. Started again, the run goes on from its last checkpoint."
            ) from None
        except RayError as error:
            raise explained(error, who) from None

    def _actors(self) -> list[tuple[Any, str]]:
        return [(self.learner, "learner"), *((w, f"rollout worker {i}") for i, w in enumerate(self.workers))]

    def _learning(self, ref: Any, timeout_s: float) -> Any:
        """Wait for something that takes the learner long, and pass on what it tells; return the answer.

        Raises:
            InrilError: see :meth:`_get`.
        """
        end, phase = time.monotonic() + timeout_s, ""
        while time.monotonic() < end and not ray.wait([ref], timeout=1.0)[0]:
            if told := self._board.read():
                phase, *_ = told
                tell(*told)
        tell(phase, 1, 1)
        return self._get(ref, max(0.0, end - time.monotonic()), "learner")

    def _started(self, ref: Any, who: str, phase: tuple[str, int, int] | None = None) -> Any:
        """Wait until an actor has been placed and built, or has failed; return the reference of its start.

        Args:
            ref: that reference.
            who: names the actor.
            phase: which this is part of.

        Raises:
            InrilError: it was not within ``START_TIMEOUT_S``; says what the cluster has free.
        """
        end, placed = time.monotonic() + START_TIMEOUT_S, []
        while not placed and time.monotonic() < end:
            placed, _ = ray.wait([ref], timeout=1.0)
            if phase and not placed:
                tell(*phase)
        if not placed:
            free = ray.available_resources()
            raise InrilError(
                f"The {who} did not start within {START_TIMEOUT_S:.0f} s; the cluster has {free.get('CPU', 0.0):.0f} "
                f"free CPUs and {free.get('GPU', 0.0):g} free GPUs, and each process needs a CPU"
                f"{f' and a worker {self._worker_gpu:g} of a GPU' if self._worker_gpu else ''}. With these to spare, "
                "its simulator or its imports hang."
            )
        return ref

    def _retire(self, index: int, reason: str) -> None:
        self.restarts += 1
        self._restarts_of[index] += 1
        limit = self.config.compute.max_worker_restarts
        if self._restarts_of[index] > limit:
            raise InrilError(f"Rollout worker {index} failed {limit + 1} times, the last time so: {reason}")
        print(f"Rollout worker {index} is replaced: {reason}", flush=True)
        ray.kill(self.workers[index], no_restart=True)

    def _replace(self, index: int, reason: str) -> None:
        """Put a new worker in the place of one that died, hangs or raised; it takes over the last known state."""
        # Workers also fail when the learner's node is gone, with the weights that they fetch from it.
        self._get(self.learner.ready.remote(), START_TIMEOUT_S, "learner")
        while True:
            self._retire(index, reason)
            try:  # Its deadline must not run while it starts.
                started = self._started(self._spawn(index), f"replacement of rollout worker {index}")
                ray.get(started, timeout=START_TIMEOUT_S)
                return
            except RayError as error:  # it was put on a node that is leaving as well, or is full
                reason = _first_line(error)

    # -- one iteration ------------------------------------------------------------------------------------------------
    def _launch(self, index: int) -> None:
        fragment, meta, state = self.workers[index].collect.options(num_returns=3).remote(self._refs)
        deadline = time.monotonic() + self.config.compute.rollout_timeout_s
        self._flights[index] = Flight(fragment, meta, state, deadline)

    def _land(self) -> list[Any]:
        """Wait for every worker's fragment, replacing workers that fail; return references in worker order."""
        fragments: dict[int, Any] = {}
        self._finished_at = [0.0] * len(self.workers)
        while len(fragments) < len(self.workers):
            waiting = {f.meta: i for i, f in self._flights.items() if i not in fragments}
            done, rest = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            # All that have finished, since deadlines are looked at next: while the learner worked they may have passed.
            done += ray.wait(rest, num_returns=len(rest), timeout=0.0)[0] if rest else []
            for ref in done:
                index = waiting[ref]
                try:
                    flight = self._flights[index]
                    timeout_s = self.config.compute.rollout_timeout_s
                    meta: FragmentMeta = ray.get(ref, timeout=timeout_s)
                    self._states[index] = ray.get(flight.state, timeout=timeout_s)
                except RayError as error:  # it died, raised, or what it had was lost
                    self._replace(index, _first_line(error))
                    self._launch(index)
                    continue
                self._check_store(meta)
                fragments[index] = flight.fragment
                self._finished_at[index] = meta.finished_at
                lag = self._refs.version - meta.policy_version
                if lag > self.config.compute.max_policy_lag:
                    print(f"A rollout of worker {index} is dropped: its weights are {lag} updates old.", flush=True)
                    del fragments[index]
                    self._launch(index)
            now = time.monotonic()
            for index, flight in list(self._flights.items()):
                if index not in fragments and now > flight.deadline:
                    limit_s = self.config.compute.rollout_timeout_s
                    self._replace(index, f"silent for longer than compute.rollout_timeout_s = {limit_s:g}")
                    self._launch(index)
        self._flights.clear()
        return [fragments[i] for i in range(len(self.workers))]

    def _check_store(self, meta: FragmentMeta) -> None:
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        needed = 2 * len(self.workers) * meta.size_bytes
        if store and needed > STORE_SHARE * store:
            raise InrilError(
                f"Rollouts need {needed / 2**20:.0f} MiB of the object store: {len(self.workers)} workers, two "
                f"fragments of {meta.size_bytes / 2**20:.0f} MiB each; half of it is "
                f"{STORE_SHARE * store / 2**20:.0f} MiB. Lower rollout.num_envs or "
                "rollout.num_decisions, or start Ray with a larger object store."
            )

    def _collect(self) -> None:
        """Bring a fragment of every worker to the learner; again from the start if a node left with one of them."""
        before, lost = list(self._states), 0
        while True:
            for index in range(len(self.workers)):
                if index not in self._flights:
                    self._launch(index)
            try:
                # The learner fetches its arguments before the method begins, so a failure leaves it as it was.
                return self._get(self.learner.take.remote(*self._land()), LEARNER_TIMEOUT_S, "learner")
            except LostError as error:
                lost += 1
                if lost > self.config.compute.max_worker_restarts:
                    raise InrilError(
                        f"Rollouts were lost {lost} times on their way to the learner. See to it that the nodes of the "
                        f"cluster reach each other (Ray's object manager). The last time: {error}"
                    ) from None
                print(f"A round of rollouts is collected again. {error}", flush=True)
            self._states = list(before)
            for index in range(len(self.workers)):
                self._rewind(index)

    def _rewind(self, index: int) -> None:
        """Take a worker back to the state that the driver holds, in a new process if the old one is gone.

        Raises:
            InrilError: neither the worker nor its successor can take that state.
        """
        try:
            # It may be collecting still.
            timeout_s = START_TIMEOUT_S + self.config.compute.rollout_timeout_s
            ray.get(self.workers[index].load_state_dict.remote(self._states[index]), timeout=timeout_s)
        except RayTaskError as error:  # of its simulator, or of the state: then its successor can't take it either
            self._retire(index, _first_line(error))
            who = f"rollout worker {index}"
            self._get(self._started(self._spawn(index), who), START_TIMEOUT_S, who)
        except RayError as error:
            self._replace(index, _first_line(error))

    def iterate(self) -> dict[str, float]:
        """Collect, learn, publish; in pipelined mode the next fragments are collected while the learner works."""
        start = time.perf_counter()
        self._collect()
        collected = time.perf_counter()
        age = max(0.0, time.time() - min(self._finished_at))
        learning = self.learner.learn.remote()
        if self.config.compute.mode == "pipelined":
            for index in range(len(self.workers)):
                self._launch(index)
        metrics = self._learning(learning, LEARNER_TIMEOUT_S)
        idle_since, self._learned_at = self._learned_at or start, time.perf_counter()
        self._publish(everything=False)
        return metrics | {
            "rollout_s": collected - start,
            "queue_age_s": age,
            "learner_idle_share": (collected - idle_since) / (self._learned_at - idle_since),
            "worker_restarts": float(self.restarts),
        }

    def _publish(self, *, everything: bool) -> None:
        # The vectors are return values, which the driver owns: they stay while it holds the references. The previous
        # version's are let go here; calls in flight keep theirs.
        version = self._get(self.learner.version.remote(), LEARNER_TIMEOUT_S, "learner")
        if everything:
            self._generation += 1
        old = self._refs.everything if self._refs else []
        self._refs = WeightRefs(
            version=version,
            generation=self._generation,
            everything=[self.learner.weights.remote(True)] if everything else old,
            trainable=[self.learner.weights.remote(False)],
        )

    # -- the rest of the contract -------------------------------------------------------------------------------------
    def pretrain(self) -> dict[str, float]:
        """Clone the demonstrations."""
        result = self._learning(self.learner.pretrain.remote(), PRETRAIN_TIMEOUT_S)
        self._publish(everything=True)
        return result

    def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
        """Evaluate what acts, or the policy alone, on all workers; a worker that fails is replaced and asked again."""
        timeout_s = self._evaluation_timeout_s(num_episodes)
        calls = [worker.evaluate.remote(self._refs, num_episodes, alone) for worker in self.workers]
        parts = []
        for index, call in enumerate(calls):
            while True:
                try:
                    parts.append(ray.get(call, timeout=timeout_s))
                    break
                except RayError as error:
                    self._replace(index, _first_line(error))
                    self._flights.pop(index, None)
                    call = self.workers[index].evaluate.remote(self._refs, num_episodes, alone)
        return _in_order(parts, self.config.evaluation.num_envs)

    def _evaluation_timeout_s(self, num_episodes: int) -> float:
        """Return the time that a worker has for its share: that of a rollout as long, and of one in flight."""
        config = self.config
        horizon = getattr(config.actor, "action_horizon", config.actor.prediction_horizon)
        rounds = math.ceil(num_episodes / config.evaluation.num_envs)
        decisions = rounds * math.ceil(task_spec(config).max_episode_steps / horizon)
        return config.compute.rollout_timeout_s * (1.0 + max(1.0, decisions / config.rollout.num_decisions))

    def policy_state(self) -> dict[str, Any]:
        """Return all weights of the policy."""
        return self._get(self.learner.policy_state.remote(), LEARNER_TIMEOUT_S, "learner")

    def acting_state(self) -> dict[str, Any]:
        """Return all weights of what acts."""
        return self._get(self.learner.acting_state.remote(), LEARNER_TIMEOUT_S, "learner")

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Start from a cloned policy."""
        self._get(self.learner.load_policy.remote(dict(state)), LEARNER_TIMEOUT_S, "learner")
        self._publish(everything=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state. Fragments in flight are not part of it: a resumed run collects them again."""
        learner = self._get(self.learner.state_dict.remote(), LEARNER_TIMEOUT_S, "learner")
        return {"learner": learner, "workers": list(self._states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        states = deal(state["workers"], self.config.rollout.num_envs, len(self.workers))
        self._flights.clear()  # what workers still collect is not waited for; their states are put back after it
        try:
            self._get(self.learner.load_state_dict.remote(state["learner"]), LEARNER_TIMEOUT_S, "learner")
            for index in range(len(self.workers)):
                self._states[index] = states[index]
                self._rewind(index)
        except FailedError as error:  # as in one process: the state is not one of this run
            raise ValueError(str(error).splitlines()[0]) from None
        self._publish(everything=True)

    def scale_steps(self, scale: float) -> None:
        """Multiply the policy's learning rates."""
        self._get(self.learner.scale_steps.remote(scale), LEARNER_TIMEOUT_S, "learner")

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak resident memory of each process."""
        names = {"learner": self.learner, **{f"worker_{i}": w for i, w in enumerate(self.workers)}}
        return {n: self._get(actor.peak_memory_bytes.remote(), START_TIMEOUT_S, n) for n, actor in names.items()}

    def replay_memory(self, rows: int) -> tuple[int, int] | None:
        """See :meth:`inril_ray.backend.Backend.replay_memory`; of the learner's node."""
        return self._get(self.learner.replay_memory.remote(rows), LEARNER_TIMEOUT_S, "learner")

    def trackers(self, run: str) -> list[Tracker]:
        """Return what the cluster's own dashboards are fed by."""
        return [GaugeTracker(run, self.config.task)]

    def close(self) -> None:
        """End the actors; the cluster stays."""
        for actor, _ in self._actors():
            ray.kill(actor, no_restart=True)
        with contextlib.suppress(Exception):  # the cluster may be gone
            self._board.clear()


def _in_order(parts: list[EpisodeStats], num_envs: int) -> EpisodeStats:
    """Interleave the workers' episodes by round, so that their order does not depend on the number of workers."""
    joined = EpisodeStats.concatenate(parts)
    seen: dict[int, int] = {}
    keys = []
    for env in joined.envs:
        keys.append(seen.get(int(env), 0) * num_envs + int(env))
        seen[int(env)] = seen.get(int(env), 0) + 1
    return joined.rows(np.argsort(keys))


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"


def explained(error: RayError, who: str) -> InrilError:
    """Return what became of a call to an actor in words; ``who`` names the actor."""
    return _cause(error, who) if isinstance(error, RayTaskError) else _death(error, who)


def _death(error: RayError, who: str) -> InrilError:
    room = ", with fewer compute.num_workers if memory is short" if isinstance(error, OutOfMemoryError) else ""
    return InrilError(
        f"The {who} died: {_first_line(error).rstrip('.')}. Start the run again{room}; it goes on from its last "
        "checkpoint."
    )


def _cause(error: RayTaskError, who: str) -> InrilError:
    """Return what an actor raised: our own errors as they are, others with the name of the process."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, torch.OutOfMemoryError):
        return InrilError(
            f"The {who} ran out of the GPU's memory, which Ray's shares do not divide: {_first_line(error)} Raise "
            "compute.worker_gpu, so that fewer processes share a GPU, or lower what they hold there (rollout.num_envs, "
            "rl.accumulate or the minibatch)."
        )
    if isinstance(cause, ObjectLostError):
        return LostError(f"What the {who} was given was on a node that left: {_first_line(error)}")
    return cause if isinstance(cause, InrilError) else FailedError(f"The {who} failed: {_first_line(error)}\n{error}")
