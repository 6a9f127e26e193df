"""Faults of the actors of a run on Ray, struck from a thread of the driver's process."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from inril_ray.chaos.result import ATTEMPTS, Drill, orphans, same, temporary_files
from inril_ray.distributed.driver import START_TIMEOUT_S, RayBackend
from inril_ray.experiment import ExperimentConfig
from inril_ray.run import run
from inril_ray.run_dir import has_checkpoint
from inril_ray.types import InrilError
from inril_ray.words import counted, reason

KILL = ((0.0, signal.SIGKILL),)
FAULTS: dict[str, tuple[Callable[[RayBackend], list[Any]], Sequence[tuple[float, signal.Signals]]]] = {
    "worker": (lambda backend: backend.workers[:1], KILL),
    "all workers": (lambda backend: backend.workers, KILL),
    "hanging worker": (lambda backend: backend.workers[-1:], [(0.0, signal.SIGSTOP)]),
    "slow worker": (lambda backend: backend.workers[-1:], [(0.0, signal.SIGSTOP), (3.0, signal.SIGCONT)]),
    "learner": (lambda backend: [backend.learner], KILL),
}
"""Which actors get which signals, and the seconds before each."""


class Striker(threading.Thread):
    """Sends signals to processes at a moment that they know nothing of.

    Args:
        targets: the processes.
        signals: seconds to wait, and the signal to send then.
        delay_s: after the start of the thread.
    """

    def __init__(
        self, targets: Sequence[psutil.Process], signals: Sequence[tuple[float, signal.Signals]], delay_s: float
    ) -> None:
        super().__init__(daemon=True)
        self._targets, self._signals, self._delay_s = targets, signals, delay_s
        self.struck = False

    def run(self) -> None:
        """Wait, then strike."""
        time.sleep(self._delay_s)
        for wait_s, number in self._signals:
            time.sleep(wait_s)
            for target in self._targets:
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                    target.send_signal(number)
                    self.struck = True


def drill(fault: str, seed: int, config: ExperimentConfig, path: Path, whole: Path, rng: random.Random) -> Drill:
    """Run with a fault, go on if that ended the run, and compare."""
    chosen, signals = FAULTS[fault]
    strikers: list[Striker] = []
    iterations: list[int] = []
    replaced: list[int] = []
    moment = rng.randrange(config.num_iterations)
    seen: set[psutil.Process] = set()

    class Struck(RayBackend):
        def iterate(self) -> dict[str, float]:
            if not strikers and len(iterations) == moment:
                seen.update(_processes([self.learner, *self.workers]))
                targets = _processes(chosen(self))
                strikers.append(Striker(targets, signals, rng.uniform(0.0, 0.3)))
                strikers[0].start()
            metrics = super().iterate()
            iterations.append(int(metrics["iteration"]))
            return metrics

        def close(self) -> None:
            replaced.append(self.restarts)  # the record has those of iterations only, not of evaluations
            super().close()

    message, restarts, problems = "", 0, []
    for attempt in range(ATTEMPTS):
        try:
            run(config, path, Struck, resume=has_checkpoint(path), say=lambda _: None)
            break
        except InrilError as error:
            message, restarts = str(error), attempt + 1
        except Exception as error:
            problems.append(f"{type(error).__name__}: {reason(error)}")
            restarts = attempt + 1
    for striker in strikers:
        striker.join()
    repeated = len(iterations) - len(set(iterations))
    if repeated > (config.checkpoint.every or 1):
        problems.append(f"{counted(repeated, 'iterations')} lost")
    return Drill(
        fault=fault,
        seed=seed,
        struck=bool(strikers and strikers[0].struck),
        restarts=restarts,
        replaced=sum(replaced),
        repeated=repeated,
        equal=same(path, whole, config.num_iterations),
        problems=[*problems, *orphans(seen), *temporary_files(path)],
        message=message,
    )


def _processes(actors: Sequence[Any]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in ray.get([actor.ready.remote() for actor in actors], timeout=START_TIMEOUT_S)]
