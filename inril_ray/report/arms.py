"""What reports of several runs share: groups of runs, their curves, where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray.report.charts import Series
from inril_ray.report.records import Points, at, count, number, points, read_records
from inril_ray.statistics import mean_estimate

Curve = dict[float, tuple[float, float]]
"""Iteration to (environment steps, value)."""
COLORS = ("s2", "s1", "s3", "s0")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, with its runs."""

    key: str
    label: str
    values: dict[str, Any]
    color: str
    records: list[list[dict[str, Any]]]
    """Metric records of each run that left any."""

    def numbers(self, name: str) -> list[float]:
        """Return the numbers of one value, by seed."""
        values = self.values.get(name)
        return [v for x in values if (v := number(x)) is not None] if isinstance(values, list) else []

    def curves(self, metric: str, scale: float = 1.0) -> list[Curve]:
        """Return a metric of every run that recorded it; of a repeated iteration the last value counts."""
        found: list[Curve] = []
        for records in self.records:
            curve = {number(r.get("iteration")): p for r in records for p in points([r], metric, scale)}
            found.append({iteration: p for iteration, p in curve.items() if iteration is not None})
        return [curve for curve in found if curve]


def read_arms(directory: Path, arms: dict[str, Any]) -> tuple[list[Arm], list[str]]:
    """Return the arms with the records of their runs, and sentences about runs that left none."""
    found, missing = [], []
    for (key, values), color in zip(arms.items(), COLORS * len(arms), strict=False):
        values = values if isinstance(values, dict) else {}
        records = []
        for name in values.get("runs") or []:
            place = directory / str(name)
            read, problem = read_records(place) if _inside(directory, place) else ([], "it lies elsewhere.")
            if problem:
                missing.append(f"Run {name} is not in the curves: {problem}")
            else:
                records.append(read)
        label = str(values.get("label") or key)
        found.append(Arm(key=key, label=label, values=values, color=color, records=records))
    return found, missing


def _inside(directory: Path, place: Path) -> bool:
    try:
        return place.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError):  # of links that lead to themselves
        return False


def arm_series(
    arms: Sequence[Arm], metric: str, scale: float = 1.0, limits: tuple[float, float] | None = None
) -> list[Series]:
    """Return the runs of every arm as thin lines below their means as bold ones.

    Args:
        arms: in the order of the legend.
        metric: that is drawn.
        scale: that it is multiplied by.
        limits: ends of its range; where they are given, means have the band of their 95 % interval over runs.
    """
    runs, means = [], []
    for i, arm in enumerate(arms):
        curves = arm.curves(metric, scale)
        runs.extend(
            Series(
                label=arm.label,
                points=list(curve.values()),
                color=arm.color,
                look="thin",
                marked=False,
                in_legend=False,
            )
            for curve in curves
        )
        look = "bold dashed" if i == 0 else "bold"
        means.append(
            Series(
                label=f"{arm.label}, mean",
                points=mean_curve(curves),
                band=mean_band(curves, limits) if limits else [],
                color=arm.color,
                look=look,
                marked=False,
            )
        )
    return runs + means


def mean_curve(curves: Sequence[Curve]) -> Points:
    """Return the mean of curves, of steps and of values, at the iterations that all of them have."""
    return [(sum(steps) / len(steps), sum(values) / len(values)) for steps, values in _shared(curves)]


def mean_band(curves: Sequence[Curve], limits: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Return (steps, low, high) of the interval of the mean of two curves or more by Student's t, within limits."""
    if len(curves) < 2:
        return []
    found = [(sum(steps) / len(steps), mean_estimate(np.array(values))) for steps, values in _shared(curves)]
    return [(x, max(limits[0], mean.low), min(limits[1], mean.high)) for x, mean in found]


def _shared(curves: Sequence[Curve]) -> list[list[tuple[float, ...]]]:
    """Return the steps and the values of all curves at each iteration that all of them have."""
    shared = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    return [list(zip(*(c[iteration] for c in curves), strict=True)) for iteration in shared]


def hundred(value: Any) -> float | None:
    """Return a share in per cent, None where there is none."""
    found = number(value)
    return None if found is None else 100 * found


def spread(values: Sequence[float]) -> str:
    """Return one number, or the two ends of several."""
    if not values:
        return "not recorded"
    low, high = count(min(values)), count(max(values))
    return low if low == high else f"{low} to {high}"


def origin(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return demonstrations, commit, machine and versions as rows of a table."""
    demos = result.get("demos") or {}
    return [
        ("Demonstrations", f"{at(demos, 'source')}, {at(demos, 'file')} ({str(at(demos, 'hash'))[:12]})"),
        ("Commit", result.get("commit")),
        *((name, "none" if value is None else value) for name, value in (result.get("machine") or {}).items()),
        *(result.get("versions") or {}).items(),
    ]
