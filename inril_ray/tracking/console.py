"""A progress bar with success rate, speed and time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inril_ray.tracking.base import TrackerContext


class ConsoleTracker:
    """Prints where a run stands."""

    def __init__(self, context: TrackerContext) -> None:
        self._console = Console()
        self._total = context.num_iterations
        self._start = time.monotonic()
        self._first: int | None = None
        self._success = "success –"
        self._progress: Progress | None = None
        if self._console.is_terminal:
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
        """Show the newest success rate, speed and time left."""
        iteration = int(metrics.get("iteration", 0))
        if "success_rate" in metrics:
            low, high = metrics["success_rate_low"], metrics["success_rate_high"]
            self._success = f"success {100 * metrics['success_rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        note = self._success
        if "env_steps_per_s" in metrics:
            note += f" | train {100 * metrics.get('train_success_rate', 0.0):.0f} %"
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

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
