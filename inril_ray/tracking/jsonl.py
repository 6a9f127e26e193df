"""One JSON object a line: the record that reports are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inril_ray.tracking.base import TrackerContext

FILE = "metrics.jsonl"


class JsonlTracker:
    """Appends to ``metrics.jsonl`` in the run directory."""

    def __init__(self, context: TrackerContext) -> None:
        self._file = (context.run_dir / FILE).open("a")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line and flush it."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run; a last line that a crash cut short is left out."""
    path = run_dir / FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def drop_after(run_dir: Path, iteration: int) -> None:
    """Forget records later than ``iteration``, which a resumed run will make again."""
    records = [r for r in read_metrics(run_dir) if r.get("iteration", 0) <= iteration]
    partial = run_dir / f".{FILE}.partial"
    partial.write_text("".join(json.dumps(r) + "\n" for r in records))
    os.replace(partial, run_dir / FILE)
