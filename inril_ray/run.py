"""A run from demonstrations to summary, in one process or through a cluster.

:func:`run` pre-trains, evaluates, iterates, checkpoints and evaluates again. It talks to a :class:`Backend`;
:class:`LocalBackend` is one process without Ray, ``distributed.driver.RayBackend`` is the same on a cluster.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from inril_ray import __version__, checkpoint
from inril_ray.config import fingerprint
from inril_ray.demos.store import DemoArrays
from inril_ray.evaluate import episode_scores, evaluation_metrics
from inril_ray.experiment import (
    ExperimentConfig,
    WorkerParts,
    build_learner,
    load_config,
    load_demos,
    policy_weights,
    resolved,
    task_spec,
)
from inril_ray.media import choose_episode, write_before_and_after
from inril_ray.metrics import Tracker, checked
from inril_ray.pretrain import pretrain
from inril_ray.registry import resolve
from inril_ray.statistics import score_text
from inril_ray.threads import available_cpus, torch_threads
from inril_ray.tracking import TRACKERS
from inril_ray.tracking.base import TrackerContext
from inril_ray.tracking.jsonl import drop_after
from inril_ray.types import EpisodeStats, InrilError, Rollout

STOPPED = 75
"""Exit status of a run that SIGTERM stopped (EX_TEMPFAIL of sysexits.h): the same command goes on."""


class Backend(Protocol):
    """Where the parts of a run live."""

    def pretrain(self) -> dict[str, float]:
        """Clone the demonstrations."""
        ...

    def iterate(self) -> dict[str, float]:
        """Collect, learn, publish; return metrics."""
        ...

    def evaluate(self, num_episodes: int) -> EpisodeStats:
        """Evaluate the current policy; episodes come in a fixed order."""
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
        """Put back what :meth:`state_dict` returned, from a checkpoint."""
        ...

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Start from a cloned policy."""
        ...

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak resident memory of each process."""
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

    def evaluate(self, num_episodes: int) -> EpisodeStats:
        """Evaluate the current policy."""
        with torch_threads(1):
            return self.worker.evaluate(num_episodes)

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
        check_worker_count(state["workers"], 1)
        self.learner.load_state_dict(state["learner"])
        self.worker.collector.load_state_dict(state["workers"][0])
        self._publish(everything=True)

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Start from a cloned policy."""
        checkpoint.load_module(self.learner.policy, dict(state))
        self.learner.begin()
        self._publish(everything=True)

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak resident memory of this process."""
        return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def trackers(self, run: str) -> list[Tracker]:
        """Return none."""
        return []

    def close(self) -> None:
        """Nothing to free."""


def check_worker_count(states: list[Any], num_workers: int) -> None:
    """Refuse a checkpoint of another number of workers, whose environments can't be dealt out again."""
    if len(states) != num_workers:
        raise InrilError(f"The checkpoint is of {len(states)} rollout workers, this run has {num_workers}.")


class StopRequest:
    """SIGTERM, as schedulers send it before they take a machine away: the iteration ends, and its state is saved.

    A second SIGTERM, or one while :attr:`saves` is off, raises ``SystemExit(STOPPED)`` at once. Outside the main
    thread, where Python has no signal handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received = False
        self.saves = False
        """Whether the loop will look at :attr:`received` and save. Before and after it, a checkpoint adds nothing."""

    def __enter__(self) -> StopRequest:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, _signum: int, _frame: FrameType | None) -> None:
        if self.received or not self.saves:
            raise SystemExit(STOPPED)
        self.received = True


def continues(config: ExperimentConfig, run_dir: Path) -> bool:
    """Return whether a directory holds a run of this configuration to go on with.

    Raises:
        InrilError: it holds a run of another configuration; names the keys that differ.
    """
    if not has_checkpoint(run_dir):
        return False
    there, wanted = resolved(read_config(run_dir)), resolved(config)
    differing = [key for key in wanted if wanted[key] != there.get(key)]
    if differing:
        raise InrilError(
            f"{run_dir} already holds a run with another {', '.join(differing)}. "
            f"Go on with it by --resume {run_dir}, or choose another --out."
        )
    return True


def run(
    config: ExperimentConfig,
    run_dir: Path,
    make_backend: Callable[[ExperimentConfig, DemoArrays], Backend],
    *,
    resume: bool = False,
    demos: DemoArrays | None = None,
    parent: Path | None = None,
    trackers: Sequence[Tracker] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run an experiment from demonstrations to summary.

    Args:
        config: of the run.
        run_dir: where everything goes; must be new unless resuming.
        make_backend: makes the parts.
        resume: go on from the newest intact checkpoint in ``run_dir``.
        demos: where they are in memory already; otherwise they are loaded from the configured file.
        parent: directory of the sweep or verdict that the run is part of.
        trackers: further ones, beside those of the configuration.
        say: prints a line.

    Returns:
        what ``summary.json`` holds.

    Raises:
        InrilError: see the parts.
        SystemExit: SIGTERM stopped the run; see :class:`StopRequest`.
    """
    plain = resolved(config)
    if not resume and checkpoint.complete(run_dir / "checkpoints"):
        raise InrilError(
            f"{run_dir} already holds a run. Go on with it by --resume {run_dir}, or choose another --out."
        )
    demos = load_demos(config) if demos is None else demos
    saved, warnings = checkpoint.read_latest(run_dir / "checkpoints") if resume else (None, [])
    for warning in warnings:
        say(f"Passed over: {warning}")
    for warning in demos.info.metadata.get("warnings", ()):
        say(f"Demonstrations: {warning}")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        run_dir / "config.json",
        {"config": plain, "hash": fingerprint(plain), **provenance(), "demos": dataclasses.asdict(demos.info)},
    )
    backend = make_backend(config, demos)
    active: list[Tracker] = []
    session = Session(config, run_dir, backend, active, say)
    try:
        with StopRequest() as stop:  # after Ray, which sets a handler of its own
            session.start(saved)
            stop.saves = True
            if saved is not None:
                drop_after(run_dir, session.iteration)
            active += [*_trackers(config, run_dir, plain, parent), *backend.trackers(run_dir.name), *trackers]
            if saved is None:
                session.log_base()
            session.iterate(stop)
            return session.finish(demos)
    except SystemExit:
        say(f"Stopped by SIGTERM. The same command goes on with {run_dir}.")
        raise
    finally:
        for tracker in active:
            tracker.close()
        backend.close()


class Session:
    """A run in progress: what is counted, timed and saved around the backend."""

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        backend: Backend,
        trackers: list[Tracker],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.run_dir, self.backend, self.trackers, self.say = config, run_dir, backend, trackers, say
        self.spec = task_spec(config)
        self.iteration, self.env_steps = 0, 0
        self.counters: dict[str, int] = {}
        self.base: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.cloning: dict[str, float] = {}
        self.phase_s: dict[str, float] = {}

    def _spend(self, phase: str, since: float) -> float:
        seconds = time.perf_counter() - since
        self.phase_s[phase] = self.phase_s.get(phase, 0.0) + seconds
        return seconds

    def start(self, saved: dict[str, Any] | None) -> None:
        """Restore a checkpoint, or clone and evaluate the base policy and save the first one."""
        if saved is not None:
            self.backend.load_state_dict(saved["backend"])
            for name in ("iteration", "env_steps", "counters", "base", "best", "cloning", "phase_s"):
                setattr(self, name, saved["session"][name])
            self.say(f"Resumed at iteration {self.iteration}, {self.env_steps} env steps.")
            return
        start = time.perf_counter()
        if self.config.pretrained is not None:
            self.backend.load_policy(read_pretrained(Path(self.config.pretrained)))
            self.say(f"Starts from the cloned policy of {self.config.pretrained}.")
        else:
            self.say(f"Cloning the demonstrations, {self.config.pretrain.num_epochs} epochs …")
            self.cloning = self.backend.pretrain()
        self._spend("pretrain", start)
        checkpoint.write(self.run_dir / "pretrained", 0, {"policy": self.backend.policy_state()}, keep=1)
        start = time.perf_counter()
        self.base = self._outcome(self.backend.evaluate(self.config.evaluation.final_episodes))
        self._spend("evaluation", start)
        self.best = {"iteration": 0, **self.base}
        self.say(f"Base policy: {_text(self.base)}.")
        self.save()

    def log_base(self) -> None:
        """Log the base policy as iteration 0."""
        self._log({"iteration": 0.0, "env_steps": 0.0, **_metrics(self.base)})

    def iterate(self, stop: StopRequest) -> None:
        """Run the remaining iterations.

        Raises:
            SystemExit: it was asked to stop; the state is saved.
        """
        every, last = self.config.evaluation.every, self.config.num_iterations
        while self.iteration < last:
            start, steps_before = time.perf_counter(), self.env_steps
            metrics = self.backend.iterate()
            if self.spec.score_range is not None:  # the task has no success
                metrics.pop("train_success_rate", None)
            self.iteration, self.env_steps = int(metrics["iteration"]), int(metrics["env_steps"])
            metrics["env_steps_per_s"] = (self.env_steps - steps_before) / (time.perf_counter() - start)
            self.counters = {name: int(metrics[name]) for name in ("rl_updates", "il_updates", "il_iterations")}
            for phase in ("rollout_s", "rl_s", "il_s", "diagnostics_s"):
                name = phase.removesuffix("_s")
                self.phase_s[name] = self.phase_s.get(name, 0.0) + metrics.get(phase, 0.0)
            if every and self.iteration % every == 0 and self.iteration < last:
                start = time.perf_counter()
                outcome = self._outcome(self.backend.evaluate(self.config.evaluation.num_episodes))
                metrics |= _metrics(outcome) | {"eval_s": self._spend("evaluation", start)}
                if outcome["score"] > self.best["score"]:
                    self.best = {"iteration": self.iteration, **outcome}
            stopping = stop.received
            if stopping or (self.iteration % self.config.checkpoint.every == 0 and self.iteration < last):
                start = time.perf_counter()
                self.save()
                metrics["checkpoint_s"] = self._spend("checkpoint", start)
            self._log(metrics)
            if stopping:
                raise SystemExit(STOPPED)
        stop.saves = False

    def finish(self, demos: DemoArrays) -> dict[str, Any]:
        """Save the last policy, evaluate it and write the summary."""
        self.save()  # first, so that a stop during the evaluation costs no iteration
        start = time.perf_counter()
        final = self._outcome(self.backend.evaluate(self.config.evaluation.final_episodes))
        self._spend("evaluation", start)
        if final["score"] > self.best["score"]:
            self.best = {"iteration": self.iteration, **final}
        self._log({"iteration": float(self.iteration), "env_steps": float(self.env_steps), **_metrics(final)})
        memory = self.backend.peak_memory_bytes()
        memory.setdefault("driver", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        if "process" in memory:
            memory.pop("driver")
        summary = {
            "task": self.config.task,
            "algorithm": self.config.algorithm,
            "schedule": self.config.schedule,
            "separation": self.config.separation,
            "every": self.config.interleave.every,
            "seed": self.config.seed,
            "config_hash": fingerprint(resolved(self.config)),
            "demos": {"source": demos.info.source, "file": demos.info.source_file, "hash": demos.info.content_hash},
            "base": self.base,
            "final": final,
            "best": self.best,
            "cloning": self.cloning,
            "iterations": self.iteration,
            "env_steps": self.env_steps,
            "counters": self.counters,
            "seconds_by_phase": {k: round(v, 2) for k, v in self.phase_s.items()},
            "peak_memory_bytes": {**memory, "sum": sum(memory.values())},
            **provenance(),
        }
        self._film(final)
        write_json(self.run_dir / "summary.json", summary)
        self.say(f"Base policy:  {_text(self.base)}")
        self.say(f"Final policy: {_text(final)}")
        return summary

    def _film(self, final: Mapping[str, Any]) -> None:
        if self.config.video:
            episode = choose_episode(self.base["outcomes"], final["outcomes"], self.config.evaluation.num_envs)
            base, now = read_pretrained(self.run_dir), self.backend.acting_state()
            self.say(write_before_and_after(self.run_dir, self.config, base, now, episode))

    def save(self) -> None:
        """Write a checkpoint."""
        names = ("iteration", "env_steps", "counters", "base", "best", "cloning", "phase_s")
        tree = {"backend": self.backend.state_dict(), "session": {n: getattr(self, n) for n in names}}
        checkpoint.write(self.run_dir / "checkpoints", self.iteration, tree, self.config.checkpoint.keep)

    def _log(self, metrics: Mapping[str, float]) -> None:
        clean = checked(metrics)
        for tracker in self.trackers:
            tracker.log(clean, self.env_steps)

    def _outcome(self, episodes: EpisodeStats) -> dict[str, Any]:
        # Outcomes by episode make evaluations comparable pair by pair, and name the episode of the pictures.
        outcomes = episode_scores(episodes, self.spec).tolist()
        return {**evaluation_metrics(episodes, self.spec), "outcomes": outcomes}


def _metrics(outcome: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in outcome.items() if k != "outcomes"}


def _text(outcome: Mapping[str, Any]) -> str:
    return f"{score_text(outcome)}, {outcome['eval_episodes']:.0f} episodes"


def _trackers(config: ExperimentConfig, run_dir: Path, plain: Mapping[str, Any], parent: Path | None) -> list[Tracker]:
    context = TrackerContext(
        run_dir=run_dir,
        name=run_dir.name,
        config=plain,
        num_iterations=config.num_iterations,
        mlflow_uri=config.tracking.mlflow_uri,
        mlflow_experiment=config.tracking.mlflow_experiment,
        parent=parent,
    )
    return [resolve(TRACKERS, name, "tracker")(context) for name in config.tracking.trackers]


def has_checkpoint(run_dir: Path) -> bool:
    """Tell whether a run can go on."""
    return bool(checkpoint.complete(run_dir / "checkpoints"))


def finished(run_dir: Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, None of one that is not.

    Raises:
        InrilError: it is of another configuration.
    """
    file = run_dir / "summary.json"
    if not file.is_file():
        return None
    summary = json.loads(file.read_text())
    if summary["config_hash"] != fingerprint(resolved(config)):
        raise InrilError(f"{run_dir} holds a run of another configuration; choose another --out.")
    return summary


def read_pretrained(run_dir: Path) -> dict[str, Any]:
    """Return the weights of a run's cloned policy."""
    return checkpoint.read(run_dir / "pretrained" / "iteration_000000")["policy"]


def read_config(run_dir: Path) -> ExperimentConfig:
    """Return the configuration that a run was started with.

    Raises:
        InrilError: the directory holds no run, or its configuration is damaged.
    """
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InrilError(f"{run_dir} holds no readable run: {path.name} ({error!r}).") from None
    return load_config([values])


def provenance() -> dict[str, Any]:
    """Return versions, the commit of the source tree, and the machine."""
    packages = ("ray", "torch", "mujoco", "robosuite", "robomimic", "gymnasium", "numpy", "pyarrow", "mlflow")
    versions = {"inril_ray": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    source = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": versions,
        "commit": git.stdout.strip() or None,
        "machine": {"system": platform.platform(), "cpus": available_cpus(), "gpu": _gpu()},
    }


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears only when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
