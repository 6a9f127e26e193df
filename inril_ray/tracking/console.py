"""Where a run stands: bars where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from inril_ray.metrics import Ended
from inril_ray.progress import told_to
from inril_ray.statistics import score_text
from inril_ray.tracking.base import TrackerContext
from inril_ray.words import counted, duration

PLAIN_EVERY_S = 10.0
"""Between two lines of a phase, where there is no terminal."""


class Bars(Progress):
    """The bars of this process: two lines for the iterations, one for a phase, none wider than the terminal.

    A terminal shows one set of bars at a time, so a phase within an iteration is a bar above that of the iterations.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(),
        )
        self._open: dict[str, tuple[TaskID, float]] = {}
        """Name of what goes on to its number here and when it was last printed."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield each bar, and what there is to say of it."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if parts := task.fields.get("parts"):
                yield Text(fitting(parts, self.console.width), no_wrap=True, overflow="ellipsis")

    def show(self, name: str, done: int, total: int, parts: Sequence[str] = ()) -> None:
        """Draw the bar of something that goes on.

        Args:
            name: of a phase, or ``iterations``.
            done: of ``total``.
            total: steps.
            parts: what is said below it, the most important first.
        """
        if name not in self._open:
            self._open[name] = self.add_task(name, total=total), time.monotonic()
        if self.console.is_terminal:
            self.start()
        self.update(self._number(name), completed=done, parts=list(parts))

    def phase(self, name: str, done: int, total: int) -> None:
        """Show how far a phase is, until it has come to its end; see :data:`inril_ray.progress.Listener`."""
        if done >= total:
            self.end(name)
            return
        self.show(name, done, total)
        number, printed = self._open[name]
        if not self.console.is_terminal and time.monotonic() - printed >= PLAIN_EVERY_S:
            self._open[name] = number, time.monotonic()
            task = self._task(name)
            left = f", {duration(task.time_remaining)} left" if task.time_remaining else ""
            print(f"{name}: {done}/{total} after {duration(task.elapsed or 0.0)}{left}", flush=True)

    def end(self, name: str, *, keep: bool = False) -> None:
        """Take a bar away, or leave it as it stands; lets go of the terminal with the last one."""
        if name not in self._open:
            return
        number, _ = self._open.pop(name)
        if not keep:
            self.remove_task(number)
        if not self._open:
            if self.live.is_started:
                self.stop()
            for task in self.tasks:
                self.remove_task(task.id)

    def end_all(self) -> None:
        """Take all bars away."""
        for name in list(self._open):
            self.end(name)

    def _number(self, name: str) -> TaskID:
        return self._open[name][0]

    def _task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.id == self._number(name))


def fitting(parts: Sequence[str], width: int) -> str:
    """Return the first of the parts in one line, with as many of the others as fit in the width."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 3 + len(part) <= width:
            line += f" | {part}"
    return line


@functools.cache
def bars() -> Bars:
    """Return the bars of this process."""
    return Bars()


@contextlib.contextmanager
def phases_shown() -> Iterator[None]:
    """Show the long phases of this process, and leave the terminal as it was."""
    mine = bars()
    with told_to(mine.phase):
        try:
            yield
        finally:
            mine.end_all()


class ConsoleTracker:
    """Prints where a run stands."""

    def __init__(self, context: TrackerContext) -> None:
        self._bars = bars()
        self._total = context.num_iterations
        self._start = time.monotonic()
        self._first: int | None = None
        self._score, self._scored_at = "not evaluated", 0
        self._scored(context.evaluated)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show the newest score, speed and time left."""
        iteration = int(metrics.get("iteration", 0))
        self._scored(metrics)
        parts = self._parts(metrics, iteration)
        if self._bars.console.is_terminal:  # from now on: what comes before training prints lines of its own
            self._bars.show("iterations", iteration, self._total, parts)
            return
        if self._first is None:
            self._first, self._start = iteration, time.monotonic()
        elapsed, done = time.monotonic() - self._start, iteration - self._first
        left = [f"{duration(elapsed / done * (self._total - iteration))} left"] if done > 0 else []
        print(
            " | ".join([f"iteration {iteration}/{self._total}", counted(step, "env steps"), *parts, *left]), flush=True
        )

    def _scored(self, metrics: Mapping[str, float]) -> None:
        if "score" in metrics:
            self._score, self._scored_at = score_text(metrics), int(metrics.get("iteration", 0))

    def _parts(self, metrics: Mapping[str, float], iteration: int) -> list[str]:
        stale = self._score != "not evaluated" and self._scored_at != iteration
        parts = [f"{self._score} at iteration {self._scored_at}" if stale else self._score]
        if "train_success_rate" in metrics:
            parts.append(f"train {100 * metrics['train_success_rate']:.0f} %")
        elif "train_return" in metrics:
            parts.append(f"train return {metrics['train_return']:.0f}")
        if "env_steps_per_s" in metrics:
            parts.append(f"{metrics['env_steps_per_s']:.0f} env-steps/s")
        if "rho" in metrics:
            parts.append(f"rho {metrics['rho']:+.2f}")
        return parts

    def close(self, ended: Ended = "finished") -> None:
        """Leave the bar as it stands."""
        self._bars.end("iterations", keep=True)
