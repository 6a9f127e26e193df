"""Kills parts of a small run at random moments and tells what was lost: the promises of docs/reliability.md, tried out.

Every drill is a run of the same tiny experiment as an undisturbed one, whose result it must equal bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from inril_ray import checkpoint
from inril_ray.backend import LocalBackend
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import ExperimentConfig, load_config, resolved
from inril_ray.run import run
from inril_ray.run_dir import has_checkpoint, write_json
from inril_ray.tracking.jsonl import read_metrics
from inril_ray.types import InrilError

TINY: dict[str, Any] = {
    "num_iterations": 6,
    "env": {"max_episode_steps": 20},
    "actor": {"hidden_dim": 16},
    "pretrain": {"num_epochs": 2},
    "rl": {"minibatch_size": 50, "num_epochs": 2, "critic_hidden_dim": 16},
    "interleave": {"every": 2, "il_steps": 3, "relation_every": 1},
    "rollout": {"num_envs": 4, "num_decisions": 5},
    "evaluation": {"every": 2, "num_episodes": 4, "final_episodes": 4, "num_envs": 4},
    "checkpoint": {"every": 1},
    "guard": {"action": "none"},
    "tracking": {"trackers": ["jsonl"]},
    "compute": {"num_workers": 2, "device": "cpu", "rollout_timeout_s": 20.0},
    "video": False,
}
ATTEMPTS = 3
"""Starts of a run before a drill counts as failed."""


@dataclass(frozen=True, kw_only=True)
class Report:
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
    left_behind: list[str]
    """Temporary files, and processes that should have ended."""
    message: str
    """What the run said when it ended early."""

    @property
    def passed(self) -> bool:
        """Nothing but repeated work was lost."""
        return self.equal and not self.left_behind


class Striker(threading.Thread):
    """Sends a signal to processes at a moment that they know nothing of.

    Args:
        pids: of the processes.
        number: of the signal.
        delay_s: after the start of the thread.
    """

    def __init__(self, pids: Sequence[int], number: signal.Signals, delay_s: float) -> None:
        super().__init__(daemon=True)
        self._pids, self._number, self._delay_s = pids, number, delay_s
        self.struck = False

    def run(self) -> None:
        """Wait, then strike."""
        time.sleep(self._delay_s)
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, self._number)
                self.struck = True


ACTORS: dict[str, tuple[Callable[[RayBackend], list[Any]], signal.Signals]] = {
    "worker": (lambda backend: backend.workers[:1], signal.SIGKILL),
    "all workers": (lambda backend: backend.workers, signal.SIGKILL),
    "hanging worker": (lambda backend: backend.workers[-1:], signal.SIGSTOP),
    "learner": (lambda backend: [backend.learner], signal.SIGKILL),
}
"""Faults of a run on Ray: which actors get which signal."""
FAULTS = (*ACTORS, "driver", "damaged checkpoint", "missing file")


def chaos(
    config: ExperimentConfig, directory: Path, faults: Sequence[str], repetitions: int, seed: int, say: Any = print
) -> list[Report]:
    """Run every drill, and print a line for each.

    Args:
        config: of the experiment; one worker and two differ in nothing but speed here.
        directory: new; for the runs.
        faults: of ``FAULTS``.
        repetitions: of each.
        seed: of the moments.
        say: prints a line.

    Raises:
        InrilError: an unknown fault, or the undisturbed run fails.
    """
    unknown = set(faults) - set(FAULTS)
    if unknown or not faults:
        raise InrilError(
            f"--faults {', '.join(map(repr, sorted(unknown))) or '(none)'}: choose of {', '.join(FAULTS)}."
        )
    if repetitions < 1:
        raise InrilError(f"--repetitions {repetitions}: at least 1 is needed.")
    if directory.exists() and any(directory.iterdir()):
        raise InrilError(f"--out {directory}: choose a new directory.")
    references: dict[str, Path] = {}
    for name, backend in (("ray", RayBackend), ("local", LocalBackend)):
        if name == "local" or set(faults) & ACTORS.keys():
            say(f"--- the undisturbed run ({name})")
            references[name] = directory / f"undisturbed-{name}"
            run(config, references[name], backend, say=lambda _: None)
    reports = []
    for fault in faults:
        for k in range(repetitions):
            path = directory / f"{fault.replace(' ', '-')}-{k}"
            rng = random.Random(f"{seed} {fault} {k}")
            on_ray = fault in ACTORS
            drill, whole = (_on_ray, references["ray"]) if on_ray else (_in_a_process, references["local"])
            report = drill(fault, seed + k, config, path, whole, rng)
            reports.append(report)
            say(line(report))
    write_json(directory / "chaos.json", [vars(report) for report in reports])
    return reports


def line(report: Report) -> str:
    """Return a report in words."""
    what = "nothing happened to it in time" if not report.struck else "equal to the undisturbed run"
    if not report.equal:
        what = "DIFFERENT from the undisturbed run"
    left = f"; LEFT BEHIND: {', '.join(report.left_behind)}" if report.left_behind else ""
    return (
        f"{'passed' if report.passed else 'FAILED'}  {report.fault}, seed {report.seed}: {what}; started again "
        f"{report.restarts} times, {report.replaced} workers replaced, {report.repeated} iterations made twice{left}"
    )


def _on_ray(fault: str, seed: int, config: ExperimentConfig, path: Path, whole: Path, rng: random.Random) -> Report:
    """Strike at the actors of a run from a thread of this process."""
    chosen, number = ACTORS[fault]
    strikers: list[Striker] = []
    iterations: list[int] = []
    moment = rng.randrange(config.num_iterations)

    class Struck(RayBackend):
        def iterate(self) -> dict[str, float]:
            if not strikers and len(iterations) == moment:
                pids.update(ray.get([actor.ready.remote() for actor in (self.learner, *self.workers)]))
                targets = ray.get([actor.ready.remote() for actor in chosen(self)])
                strikers.append(Striker(targets, number, rng.uniform(0.0, 0.3)))
                strikers[0].start()
            metrics = super().iterate()
            iterations.append(int(metrics["iteration"]))
            return metrics

    message, restarts = "", 0
    pids: set[int] = set()
    for attempt in range(ATTEMPTS):
        try:
            run(config, path, Struck, resume=has_checkpoint(path), say=lambda _: None)
            break
        except InrilError as error:
            message, restarts = str(error), attempt + 1
    records = read_metrics(path)
    return Report(
        fault=fault,
        seed=seed,
        struck=bool(strikers and strikers[0].struck),
        restarts=restarts,
        replaced=int(max((r.get("worker_restarts", 0.0) for r in records), default=0.0)),
        repeated=len(iterations) - len(set(iterations)),
        equal=_same(path, whole, config.num_iterations),
        left_behind=[*_left(path), *(f"process {pid}" for pid in _alive(pids))],
        message=message,
    )


def _in_a_process(
    fault: str, seed: int, config: ExperimentConfig, path: Path, whole: Path, rng: random.Random
) -> Report:
    """Kill the whole process of a run; then damage what it left, if that is the drill; then start it again."""
    path.mkdir(parents=True)
    plan = path.with_suffix(".json")
    write_json(plan, resolved(config))
    command = [sys.executable, "-m", "inril_ray.chaos", str(plan), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    moment = rng.randrange(config.num_iterations)
    aimed = max(moment, 1 if fault != "driver" else 0)  # what is damaged must not be all that there is
    while process.poll() is None and max(checkpoint.complete(path / "checkpoints"), default=-1) < aimed:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.3))
    struck = process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True) if struck else []
    process.kill()
    process.wait()
    before = [r["iteration"] for r in read_metrics(path)]
    found = checkpoint.complete(path / "checkpoints")
    if fault != "driver":
        struck = len(found) > 1
    if fault != "driver" and struck:
        newest = checkpoint.newest(path / "checkpoints")
        victim = rng.choice(sorted(newest.iterdir()))
        if fault == "missing file":
            victim.unlink()
        else:
            content = bytearray(victim.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
    message, restarts, reached = "", 0, max(found, default=0)
    for attempt in range(ATTEMPTS):
        restarts = attempt + 1
        again = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if again.returncode == 0:
            break
        message = again.stderr.strip().splitlines()[-1] if again.stderr.strip() else f"status {again.returncode}"
    orphans = [f"process {pid}" for pid in _alive({child.pid for child in children})]
    return Report(
        fault=fault,
        seed=seed,
        struck=struck,
        restarts=restarts,
        replaced=0,
        repeated=int(max(0, max(before, default=0) - reached)),
        equal=_same(path, whole, config.num_iterations),
        left_behind=[*_left(path), *orphans],
        message=message,
    )


def _same(path: Path, whole: Path, iteration: int) -> bool:
    """Compare the last checkpoints, and the metrics but for times."""
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


def _alive(pids: set[int]) -> list[int]:
    """Return the processes that have not ended after a while."""
    deadline = time.monotonic() + 10.0
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _left(path: Path) -> list[str]:
    return [str(p.relative_to(path)) for p in path.rglob("*") if p.name.endswith(".partial")]


def main() -> None:
    """Run the plan of a drill; go on with it if it was struck before."""
    plan, path = Path(sys.argv[1]), Path(sys.argv[2])
    config = load_config([json.loads(plan.read_text())])
    try:
        run(config, path, LocalBackend, resume=has_checkpoint(path))
    except InrilError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
