"""What runs leave behind, read without trust in its being complete."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inril_ray.statistics import score_text
from inril_ray.tracking.jsonl import FILE, read_lines, read_metrics
from inril_ray.types import InrilError
from inril_ray.words import reason

Points = list[tuple[float, float]]
"""(environment steps, value)."""


def read_tree(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return a JSON object and, where it is missing or damaged, an empty one and a sentence that says so."""
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, f"{path.name} is missing."
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path.name} is damaged ({reason(error)})."
    return (tree, None) if isinstance(tree, dict) else ({}, f"{path.name} is damaged: it holds no object.")


@contextlib.contextmanager
def made_of(path: Path) -> Iterator[None]:
    """Say of a file that it is not one of ours where a report can't be made of what it holds.

    Raises:
        InrilError: in place of what reading the tree raised.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InrilError(f"{path} was not written by this program ({reason(error)}).") from error


def read_records(run_dir: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the metric records of a run and, where there are none, a sentence that says so."""
    try:
        records = [r for r in read_metrics(run_dir) if isinstance(r, dict)]
    except (OSError, ValueError) as error:
        return [], f"{FILE} is damaged ({reason(error)})."
    return records, None if records else f"{FILE} is missing or empty."


def read_decisions(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a guard's log that can be read."""
    try:
        return read_lines(path)
    except (OSError, ValueError):
        return []


def at(tree: Any, *keys: str) -> Any:
    """Return what lies under ``keys`` in nested mappings, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as it is and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Return a finite number as float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def points(records: Iterable[Mapping[str, Any]], name: str, scale: float = 1.0) -> Points:
    """Return a metric against environment steps, where it was recorded."""
    found = []
    for record in records:
        steps, value = number(record.get("env_steps")), number(record.get(name))
        if steps is not None and value is not None:
            found.append((steps, scale * value))
    return found


def count(value: Any, plural: str = "") -> str:
    """Return a whole number with thin spaces between thousands, and its noun, which is given as of several."""
    found = number(value)
    if found is None:
        return "not recorded"
    text = f"{round(found):,}".replace(",", "\u202f")
    return f"{text} {plural.removesuffix('s') if round(found) == 1 else plural}".rstrip()


def percent(value: Any, unit: str = " %") -> str:
    """Return a share in per cent; a score is written like one, without a unit."""
    found = number(value)
    return "not recorded" if found is None else f"{100 * found:.1f}{unit}".replace(" ", "\u00a0")


def interval(low: Any, high: Any, scale: float = 100.0, digits: int = 1, sign: str = "") -> str:
    """Return an interval in brackets."""
    ends = number(low), number(high)
    if ends[0] is None or ends[1] is None:
        return "[no interval]"
    return f"[{scale * ends[0]:{sign}.{digits}f}, {scale * ends[1]:{sign}.{digits}f}]".replace("-", "−")


def result_text(outcome: Any) -> str:
    """Return e.g. ``success 48.0 % [41.2, 54.9]``."""
    if None in [number(at(outcome, name)) for name in ("score", "score_low", "score_high", "eval_return")]:
        return "not recorded"
    return score_text(outcome).replace("-", "−").replace(" %", "\u00a0%")


def source_label(demos: Any) -> str:
    """Return who made the demonstrations, in words that go beside a number."""
    source = at(demos, "source")
    return f"{source} demonstrations" if source else "demonstrations of unrecorded origin"
