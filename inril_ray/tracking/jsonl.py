"""One JSON object a line: the record that reports are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inril_ray.checkpoint import replace_text
from inril_ray.metrics import Ended
from inril_ray.tracking.base import TrackerContext

FILE = "metrics.jsonl"
EVALUATED = {"score", "score_low", "score_high", "eval_return"}
"""What the record of an evaluation holds at least."""


class JsonlTracker:
    """Appends to ``metrics.jsonl`` in the run directory."""

    def __init__(self, context: TrackerContext) -> None:
        self._path = context.run_dir / FILE

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line, to the disk: a checkpoint must never be ahead of the record."""
        with self._path.open("a") as file:  # each time, because drop_after() puts another in its place
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self, ended: Ended = "finished") -> None:
        """Nothing is open."""


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run that can be read; see :func:`read_lines`."""
    return read_lines(run_dir / FILE)


def last_evaluation(run_dir: Path, iteration: int) -> dict[str, float]:
    """Return the newest record with a score up to an iteration, an empty one if there is none."""
    for record in reversed(read_metrics(run_dir)):
        whole = all(isinstance(value, int | float) for value in record.values())
        if whole and record.keys() >= EVALUATED and record.get("iteration", 0) <= iteration:
            return record
    return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, none if it is not there; lines that were cut short or damaged are left out."""
    if not path.is_file():
        return []
    return [record for record in map(_record, _lines(path)) if record is not None]


def damaged_lines(run_dir: Path) -> int:
    """Count the lines of a run's record that can't be read, but for the last, which a crash may have cut short."""
    path = run_dir / FILE
    return sum(_record(line) is None for line in _lines(path)[:-1]) if path.is_file() else 0


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").split("\n")


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("iteration", 0), int | float) else None


def drop_final(run_dir: Path, iteration: int) -> None:
    """Forget the evaluation of a run's end, which a run that was interrupted in it will make again."""
    every = read_metrics(run_dir)
    seen = [r.get("iteration") for r in every]
    kept = [r for i, r in enumerate(every) if seen[i] != iteration or i == seen.index(iteration)]
    _replace(run_dir, kept)


def drop_after(run_dir: Path, iteration: int) -> None:
    """Forget records later than ``iteration``, which a run that goes on from there will make again."""
    _replace(run_dir, [r for r in read_metrics(run_dir) if r.get("iteration", 0) <= iteration])


def _replace(run_dir: Path, records: list[dict[str, Any]]) -> None:
    replace_text(run_dir / FILE, "".join(json.dumps(r) + "\n" for r in records))
