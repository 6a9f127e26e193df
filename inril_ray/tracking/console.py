"""A progress bar with score, speed and time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inril_ray.metrics import Ended
from inril_ray.statistics import score_text
from inril_ray.tracking.base import TrackerContext


class ConsoleTracker:
    """Prints where a run stands."""

    def __init__(self, context: TrackerContext) -> None:
        self._console = Console()
        self._total = context.num_iterations
        self._start = time.monotonic()
        self._first: int | None = None
        self._score = "not evaluated"
        self._progress: Progress | None = None

    def _begin(self) -> None:
        """Show the bar, when training begins: what comes before prints lines of its own."""
        if self._console.is_terminal and self._progress is None:
            progress = self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = progress.add_task("iterations", total=self._total, note="")
            progress.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show the newest score, speed and time left."""
        self._begin()
        iteration = int(metrics.get("iteration", 0))
        if "score" in metrics:
            self._score = score_text(metrics)
        note = self._score
        if "train_success_rate" in metrics:
            note += f" | train {100 * metrics['train_success_rate']:.0f} %"
        elif "train_return" in metrics:
            note += f" | train return {metrics['train_return']:.0f}"
        if "env_steps_per_s" in metrics:
            note += f" | {metrics['env_steps_per_s']:.0f} env-steps/s"
        if "rho" in metrics:
            note += f" | rho {metrics['rho']:+.2f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=iteration, note=note)
            return
        if self._first is None:
            self._first, self._start = iteration, time.monotonic()
        elapsed, done = time.monotonic() - self._start, iteration - self._first
        left = f" | {elapsed / done * (self._total - iteration):.0f} s left" if done > 0 else ""
        print(f"iteration {iteration}/{self._total} | {step} env steps | {note}{left}", flush=True)

    def close(self, ended: Ended = "finished") -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
