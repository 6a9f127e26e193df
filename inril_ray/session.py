"""A run in progress: what is counted, timed, judged and saved around the backend."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from inril_ray import checkpoint, health
from inril_ray.backend import Backend
from inril_ray.config import fingerprint
from inril_ray.demos.store import DemoArrays
from inril_ray.evaluate import episode_scores, evaluation_metrics
from inril_ray.experiment import ExperimentConfig, critics_choose, resolved, task_spec
from inril_ray.guard import AUDIT_LOG, CollapseGuard
from inril_ray.media import choose_episode, write_before_and_after
from inril_ray.metrics import Tracker, checked
from inril_ray.run_dir import provenance, read_pretrained, versions, write_json
from inril_ray.statistics import measure_of, score_text
from inril_ray.tracking.jsonl import drop_after, read_metrics
from inril_ray.types import EpisodeStats, InrilError
from inril_ray.words import counted, duration, reason

STOPPED = 75
"""Exit status of a run that SIGTERM stopped (EX_TEMPFAIL of sysexits.h): the same command goes on."""
SAVED = (
    "iteration",
    "env_steps",
    "counters",
    "base",
    "untrained",
    "best",
    "cloning",
    "phase_s",
    "collapsed",
    "discarded_env_steps",
    "health",
    "stopped_by_guard",
)
"""What a checkpoint holds of a session, beside the backend and the guard."""
FOREIGN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a state of another program or run raises where it is put back."""
SCORES = ("score", "score_low", "score_high")
BEST = "best"
"""Directory of the checkpoint that the guard goes back to."""
BEST_KEPT = 2
"""States in it: the one before stands in for a damaged one."""
DISCARDED = "discarded.jsonl"
"""The metrics of iterations that were rolled back."""


SAVING_SHARE = 0.02
"""Of the time, that checkpoints take at most where ``checkpoint.every`` is not set."""


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
        """Outcome of the cloned policy, acting alone."""
        self.untrained: dict[str, Any] = {}
        """Outcome of what acts before the first iteration, where critics have a say in it."""
        self.best: dict[str, Any] = {}
        self.cloning: dict[str, float] = {}
        self.phase_s: dict[str, float] = {}
        self.discarded_env_steps = 0
        self.health: list[str] = []
        self.stopped_by_guard, self._saved_at = False, -1
        self._save_cost_s, self._saved_when = 0.0, time.perf_counter()
        """The guard has ended the run; the iteration of the newest checkpoint."""
        self._saved_s: float | None = None
        """Seconds of the last checkpoint, until they are logged."""
        self._first = health.FirstIterations()
        every, last = config.evaluation.every, config.num_iterations
        self.guard = CollapseGuard(config.guard, last, 2 + ((last - 1) // every if every else 0))
        self.collapsed = False

    def _spend(self, phase: str, since: float) -> float:
        seconds = time.perf_counter() - since
        self.phase_s[phase] = self.phase_s.get(phase, 0.0) + seconds
        return seconds

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put back a checkpoint.

        Raises:
            InrilError: it is not one of this run.
        """
        found = self.health
        try:
            self._restore(saved)
        except FOREIGN as error:
            raise InrilError(
                f"The checkpoint in {self.run_dir} was not written by this program, or not for this run, or "
                f"with other versions of its packages ({reason(error)})."
            ) from error
        self.health += [text for text in found if text not in self.health]
        self.say(f"Resumed at iteration {self.iteration}, {self.env_steps} env steps.")

    def begin(self) -> None:
        """Clone and evaluate the base policy and save the first checkpoint."""
        self._cut_logs({})  # of a start that was cut short
        replay = self.backend.replay_memory(self.config.num_iterations * self.config.rollout.num_decisions)
        self.check(health.replay(*replay) if replay else [])
        start = time.perf_counter()
        if self.config.pretrained is not None:
            self.backend.load_policy(read_pretrained(Path(self.config.pretrained)))
            self.say(f"Starts from the cloned policy of {self.config.pretrained}.")
        else:
            self.say(f"Cloning the demonstrations, {counted(self.config.pretrain.num_epochs, 'epochs')} …")
            self.cloning = self.backend.pretrain()
            self.check(health.cloning(self.cloning))
        self._spend("pretrain", start)
        checkpoint.write(self.run_dir / "pretrained", 0, {"policy": self.backend.policy_state()}, keep=1)
        start = time.perf_counter()
        episodes = self.config.evaluation.final_episodes
        self.base = self._outcome(self.backend.evaluate(episodes, alone=True))
        self.best = {"iteration": 0, **self.base}
        self.say(f"Base policy: {_text(self.base)}.")
        if critics_choose(self.config):
            self.untrained = self._outcome(self.backend.evaluate(episodes))
            self.say(f"With critics choosing that have learned nothing yet: {_text(self.untrained)}.")
        self._spend("evaluation", start)
        self.check(health.base_policy(self.base, self.spec))
        self._judge(self.base)
        size = sum(file.stat().st_size for file in self.save().iterdir())
        self.check(health.checkpoints(size, replay[0] if replay else 0, self._copies(), self.run_dir))

    def _restore(self, saved: Mapping[str, Any]) -> None:
        session = saved["session"]
        counted, counts = measure_of(session["base"]).rule, self.spec.score_range is None and self.spec.success
        if counted and counted != counts:
            raise InrilError(
                f"The run in {self.run_dir} counts success by the rule {counted!r} so far, as releases without "
                f"env.success did, and would go on by {counts!r}: start it anew in another --out."
            )
        self.backend.load_state_dict(saved["backend"])
        for name in SAVED:
            fresh = getattr(self, name)
            value = session.get(name, fresh)
            if type(value) is not type(fresh):
                raise TypeError(f"{name} is of type {type(value).__name__}")
            setattr(self, name, value)
        for outcome in (self.base, self.best):
            if not isinstance(outcome["score"], float):
                raise TypeError(f"a score is of type {type(outcome['score']).__name__}")
        if not all(isinstance(text, str) for text in self.health):
            raise TypeError("health holds something else than sentences")
        if not all(isinstance(number, float | int) for number in (*self.phase_s.values(), *self.counters.values())):
            raise TypeError("phase_s or counters hold something else than numbers")
        if "first" in session:
            self._first.load_state_dict(session["first"])
        if "guard" in session:
            self.guard.load_state_dict(session["guard"])
        if "log_bytes" in session:
            self._cut_logs(session["log_bytes"])
        self._forget_best_of_another_history()
        self._saved_at = self.iteration

    def log_base(self) -> None:
        """Log the base policy as iteration 0."""
        chosen = {f"untrained_{name}": self.untrained[name] for name in SCORES if self.untrained}
        self._log({"iteration": 0.0, "env_steps": 0.0, **_metrics(self.base), **chosen})

    def iterate(self, stop: StopRequest) -> None:
        """Run the remaining iterations.

        Raises:
            SystemExit: it was asked to stop; the state is saved.
        """
        every, last, started = self.config.evaluation.every, self.config.num_iterations, self.iteration
        while self.iteration < last:
            if self.collapsed and not self._recover():
                break
            start, steps_before = time.perf_counter(), self.env_steps
            metrics = self.backend.iterate()
            if self._saved_s is not None:
                metrics["checkpoint_s"], self._saved_s = self._saved_s, None
            if self.spec.score_range is not None:  # the task has no success
                metrics.pop("train_success_rate", None)
            self.iteration, self.env_steps = int(metrics["iteration"]), int(metrics["env_steps"])
            metrics["env_steps_per_s"] = (self.env_steps - steps_before) / (time.perf_counter() - start)
            self.counters = {name: int(metrics[name]) for name in ("rl_updates", "il_updates", "il_iterations")}
            for phase in ("rollout_s", "rl_s", "il_s", "diagnostics_s"):
                name = phase.removesuffix("_s")
                self.phase_s[name] = self.phase_s.get(name, 0.0) + metrics.get(phase, 0.0)
            self.check(self._first.observe(metrics))
            if started + 2 == self.iteration < last:  # the first one also paid for what is done once
                left = (time.perf_counter() - start) * (last - self.iteration)
                more = counted(last - self.iteration, "iterations")
                self.say(f"About {duration(left)} to go for {more}, without evaluations.")
            warnings = [] if self.config.guard.action == "none" else self.guard.warnings(metrics)
            for text in warnings:
                self._audit("early warning", f"{text} It is evaluated.")
            if ((every and self.iteration % every == 0) or warnings) and self.iteration < last:
                start = time.perf_counter()
                outcome = self._outcome(self.backend.evaluate(self.config.evaluation.num_episodes))
                metrics |= _metrics(outcome) | {"eval_s": self._spend("evaluation", start)}
                if outcome["score"] > self.best["score"]:
                    self.best = {"iteration": self.iteration, **outcome}
                self._judge(outcome)
            stopping = stop.received
            self._log(metrics)  # first, so that whatever a checkpoint holds is on record
            if stopping or (self.iteration < last and self._save_is_due()):
                start = time.perf_counter()
                self.save()
                self._saved_s = self._save_cost_s = self._spend("checkpoint", start)
                self._saved_when = time.perf_counter()
            if stopping:
                raise SystemExit(STOPPED)
        if stop.received:
            self.save()
            raise SystemExit(STOPPED)
        stop.saves = False

    def _save_is_due(self) -> bool:
        every = self.config.checkpoint.every
        if every is not None:
            return self.iteration % every == 0
        return SAVING_SHARE * (time.perf_counter() - self._saved_when) >= self._save_cost_s

    # -- guard --------------------------------------------------------------------------------------------------------
    def _judge(self, outcome: Mapping[str, Any]) -> None:
        """Let the guard look at an evaluation; keep the state if it is the one to come back to."""
        config = self.config.guard
        if config.action == "none":
            return
        judgement = self.guard.judge(outcome["score"], outcome["outcomes"], self.iteration)
        self.collapsed = judgement.collapsed
        if judgement.collapsed:
            self._audit("collapse", f"The policy has collapsed: {judgement.text}.")
        elif judgement.best and config.action != "warn":
            checkpoint.write(self.run_dir / BEST, self.iteration, self._tree(), BEST_KEPT)
            self._audit("kept", f"The state of iteration {self.iteration} is kept: {judgement.text}.")

    def _recover(self) -> bool:
        """Do what is configured after a collapse; return whether the run goes on."""
        config = self.config.guard
        if config.action == "warn":
            self.collapsed = False
            return True
        if self.stopped_by_guard:
            return False
        if config.action == "stop" or self.guard.rollbacks >= config.max_rollbacks:
            why = "" if config.action == "stop" else f" after {counted(self.guard.rollbacks, 'roll-backs')}"
            return self._end(f"The run ends here{why}. `inril eval {self.run_dir} --policy best` has its best state.")
        try:
            saved, damaged = checkpoint.read_latest(self.run_dir / BEST)
        except InrilError as error:
            return self._end(f"The run ends here: there is no state to go back to. {error}")
        for warning in damaged:
            self._audit("passed over", warning)
        try:
            self.guard.rollbacks += 1
            self.guard.rewind(saved["session"]["guard"])
            scale = config.step_factor**self.guard.rollbacks
            self.backend.load_state_dict(saved["backend"])
            self.backend.scale_steps(scale)
            lost = self.env_steps - saved["session"]["env_steps"]
            self.discarded_env_steps += lost
            for name in ("iteration", "env_steps", "counters", "best", "collapsed"):  # time is spent, and findings stay
                setattr(self, name, saved["session"][name])
        except FOREIGN as error:
            raise InrilError(
                f"The state to go back to, in {self.run_dir / BEST}, was not written by this program, or not for this "
                f"run ({reason(error)})."
            ) from error
        self._append(DISCARDED, [r for r in read_metrics(self.run_dir) if r.get("iteration", 0) > self.iteration])
        self._audit(
            "rolled back",
            f"Back to iteration {self.iteration}, {lost} env steps are discarded; the policy's learning rates are "
            f"{scale:g} of the configured ones.",
        )
        self.save()
        drop_after(self.run_dir, self.iteration)  # last: a run that is killed before drops them when it goes on
        return True

    def _end(self, text: str) -> bool:
        self._audit("stopped", text)
        self.stopped_by_guard = True
        return False

    def _forget_best_of_another_history(self) -> None:
        """Remove kept states that the guard does not know: the run goes on from before them, and need not repeat."""
        known = self.guard.best_iteration
        for iteration in checkpoint.complete(self.run_dir / BEST):
            if known is None or iteration > known:
                shutil.rmtree(self.run_dir / BEST / f"iteration_{iteration:06d}")

    def _audit(self, event: str, text: str) -> None:
        self.say(f"Guard, iteration {self.iteration}: {text}")
        entry = {"time": time.time(), "iteration": self.iteration, "env_steps": self.env_steps, "event": event}
        self._append(AUDIT_LOG, [{**entry, "text": text}])

    def _append(self, name: str, entries: Sequence[Mapping[str, Any]]) -> None:
        with (self.run_dir / name).open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())  # before a checkpoint counts on it

    def check(self, findings: list[str]) -> None:
        """Say and note what a check found."""
        for finding in findings:
            if finding not in self.health:
                self.health.append(finding)
            self.say(f"Check: {finding}")

    def finish(self, demos: DemoArrays) -> dict[str, Any]:
        """Save the last policy, evaluate it and write the summary."""
        if self._saved_at != self.iteration:
            self.save()  # first, so that a stop during the evaluation costs no iteration
        start = time.perf_counter()
        final = self._outcome(self.backend.evaluate(self.config.evaluation.final_episodes))
        self._spend("evaluation", start)
        if final["score"] > self.best["score"]:
            self.best = {"iteration": self.iteration, **final}
        if not self.collapsed:
            self._judge(final)
            if self.collapsed and self.config.guard.action != "warn":
                self._audit("ended", f"There is nothing left to go on with: `inril eval {self.run_dir} --policy best`.")
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
            **({"untrained": self.untrained} if self.untrained else {}),
            "final": final,
            "best": self.best,
            "cloning": self.cloning,
            "iterations": self.iteration,
            "env_steps": self.env_steps,
            "counters": self.counters,
            "guard": {
                "collapsed": self.collapsed,
                "rollbacks": self.guard.rollbacks,
                "discarded_env_steps": self.discarded_env_steps,
            },
            "health": self.health,
            "seconds_by_phase": {k: round(v, 2) for k, v in self.phase_s.items()},
            "peak_memory_bytes": {**memory, "sum": sum(memory.values())},
            **provenance(),
        }
        write_json(self.run_dir / "summary.json", summary)
        self._film(final)
        self.say(f"Base policy:  {_text(self.base)}")
        self.say(f"Final policy: {_text(final)}")
        return summary

    def _film(self, final: Mapping[str, Any]) -> None:
        if self.config.video:
            episode = choose_episode(self.base["outcomes"], final["outcomes"], self.config.evaluation.num_envs)
            base, now = functools.partial(read_pretrained, self.run_dir), self.backend.acting_state()
            self.say(write_before_and_after(self.run_dir, self.config, base, now, episode))

    def save(self) -> Path:
        """Write a checkpoint; return its directory."""
        keep = self.config.checkpoint.keep
        path = checkpoint.write(self.run_dir / "checkpoints", self.iteration, self._tree(), keep)
        self._saved_at = self.iteration
        return path

    def _copies(self) -> int:
        """Return how many checkpoints are on the disk at most: those kept, those to go back to, one being written."""
        best = BEST_KEPT if self.config.guard.action in ("rollback", "stop") else 0
        return self.config.checkpoint.keep + best + 1

    def _tree(self) -> dict[str, Any]:
        session = {name: getattr(self, name) for name in SAVED} | {"guard": self.guard.state_dict()}
        session |= {"first": self._first.state_dict(), "config": resolved(self.config), "versions": versions()}
        paths = (self.run_dir / name for name in (AUDIT_LOG, DISCARDED))
        session["log_bytes"] = {path.name: path.stat().st_size for path in paths if path.is_file()}
        return {"backend": self.backend.state_dict(), "session": session}

    def _cut_logs(self, log_bytes: Mapping[str, int]) -> None:
        """Forget entries that are later than a checkpoint, which the run will make again."""
        for name in (AUDIT_LOG, DISCARDED):
            path = self.run_dir / name
            if path.is_file() and path.stat().st_size > log_bytes.get(name, 0):
                os.truncate(path, log_bytes.get(name, 0))

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
    return f"{score_text(outcome)}, {counted(outcome['eval_episodes'], 'episodes')}"
