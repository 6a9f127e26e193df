"""What a drill found, and how that is found out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from inril_ray import checkpoint
from inril_ray.tracking.jsonl import read_metrics
from inril_ray.types import InrilError
from inril_ray.words import counted

ATTEMPTS = 3
"""Starts of a run before a drill counts as failed."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """What a drill found."""

    fault: str
    seed: int
    struck: bool
    """The fault happened before the run ended."""
    restarts: int
    """Times that the run had to be started again."""
    replaced: int
    """Rollout workers that were replaced."""
    repeated: int
    """Iterations that were made twice."""
    equal: bool
    """The result equals that of the undisturbed run, bit for bit."""
    problems: list[str]
    """Temporary files and processes that were left, tracebacks, hangs, more than one iteration lost."""
    message: str
    """What the run said when it ended early."""
    memory_mb: float | None = None
    """The most that all its processes had for themselves, shared memory left out; None: not measured."""

    @property
    def passed(self) -> bool:
        """It was struck, and nothing but an iteration's work was lost."""
        return self.struck and self.equal and not self.problems


def line(drill: Drill) -> str:
    """Return a drill's result in words."""
    what = "equal to the undisturbed run" if drill.struck else "nothing happened to it in time"
    if not drill.equal:
        what = "DIFFERENT from the undisturbed run"
    found = f"; PROBLEMS: {', '.join(drill.problems)}" if drill.problems else ""
    counts = (
        f"started again {counted(drill.restarts, 'times')}, {counted(drill.replaced, 'workers')} replaced, "
        f"{counted(drill.repeated, 'iterations')} made twice"
    )
    said = f"; it said: {drill.message.splitlines()[0]}" if drill.message else ""
    return f"{'passed' if drill.passed else 'FAILED'}  {drill.fault}, seed {drill.seed}: {what}; {counts}{found}{said}"


def same(path: Path, whole: Path, iteration: int) -> bool:
    """Compare the last checkpoints of two runs, and their metrics but for times."""
    try:
        mine, other = (checkpoint.read(p / "checkpoints" / f"iteration_{iteration:06d}") for p in (path, whole))
    except InrilError:
        return False
    return _equal(mine["backend"], other["backend"]) and _measures(path) == _measures(whole)


def _measures(path: Path) -> list[dict[str, float]]:
    times = ("learner_idle_share", "worker_restarts", "env_steps_per_s")
    return [{k: v for k, v in r.items() if not k.endswith("_s") and k not in times} for r in read_metrics(path)]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def orphans(processes: Iterable[psutil.Process], within_s: float = 120.0) -> list[str]:
    """Return those of the processes that have not ended after a while: Ray's take time to notice."""
    deadline = time.monotonic() + within_s
    while (alive := [p for p in processes if _alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"process {p.pid}" for p in alive]


def temporary_files(path: Path) -> list[str]:
    """Return what was begun and not finished in the directory of a run."""
    return [str(p.relative_to(path)) for p in path.rglob("*") if ".partial" in p.name]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
