"""What a recording states about its actions, held against a task: equal shapes may ask for different motions."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray.demos.episodes import DemoError
from inril_ray.types import FloatArray, Interface

LABELS = {
    "robots": "robots",
    "controller": "controller",
    "action_type": "kind of actions",
    "action_frame": "frame of actions",
    "action_scale": "scale of actions",
    "stiffness": "stiffness",
    "damping": "damping ratio",
    "interpolation": "interpolation",
    "control_hz": "control frequency",
    "action_low": "least action",
    "action_high": "greatest action",
    "rewards": "kind of rewards",
    "changed_by": "wrappers and options",
}
"""Field of an interface to what it is called in messages."""
UNITS = {"control_hz": " Hz"}
SAME_ROBOT = {"franka": "panda", "panda": "panda"}
"""Part of a robot's name to the one name that is compared."""
CLOSE = 0.01
"""Relative difference of numbers that count as equal."""
ROUNDING = 1e-3
"""Part of half the range by which an action may leave it without being counted: rounding on the way."""
MAX_SHARE_OUTSIDE = 0.05
"""Share of steps whose actions may be out of range. Simulators clip them, so a few are harmless; many are of another
controller or in other units."""


PLACEHOLDERS = ("", "unknown", "none", "null", "nan", "n/a", "na", "unspecified", "undefined", "?", "-")
"""What is written where a name has to be and nobody knows it."""


def stated_name(value: Any) -> str | None:
    """Return a name that a file states, None where it is a placeholder for one."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in PLACEHOLDERS else text


def stated_names(values: Any) -> tuple[str, ...] | None:
    """Return the names in a list, or a single one, None where one of them is a placeholder or there are none."""
    listed = values if isinstance(values, list | tuple) else [values]
    names = [name for name in map(stated_name, listed) if name is not None]
    return tuple(names) if names and len(names) == len(listed) else None


def stated_frequency(value: Any) -> float | None:
    """Return a frequency in Hz that a file states, None where it is none: not there, a placeholder, or not positive.

    Raises:
        ValueError: it is something else than a number.
    """
    if value is None or (isinstance(value, str) and stated_name(value) is None):
        return None
    try:
        hz = float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{value!r:.60} is no number of Hz") from None
    return hz if 0.0 < hz < np.inf else None


def check_interface(path: Path, stated: Interface, expected: Interface) -> None:
    """Compare what a file states with what a task expects; what either leaves open is not compared.

    Rewards are not compared here: other ones only matter to who learns from them.

    Raises:
        DemoError: they differ; names the field and both values.
    """
    for name, label in LABELS.items():
        own, wanted = getattr(stated, name), getattr(expected, name)
        if name != "rewards" and own is not None and wanted is not None and not _equal(name, own, wanted):
            raise DemoError(
                path,
                f"states {label} {_text(name, own)}, the task has {_text(name, wanted)}: the same numbers would mean "
                "something else. Convert or record it again; where the file is wrong about itself, correct it there.",
                field=name,
            )


def outside(path: Path, actions: FloatArray, bounds: Interface, whose: str) -> tuple[str, ...]:
    """Count the steps with actions out of range.

    Args:
        path: file, for the message.
        actions: [S, A] of all episodes.
        bounds: range of each number; nothing is counted where it is not stated.
        whose: of whom the range is, for the message.

    Returns:
        A warning if there are any.

    Raises:
        DemoError: they are more than ``MAX_SHARE_OUTSIDE`` of all.
    """
    if bounds.action_low is None or bounds.action_high is None:
        return ()
    low, high = (np.broadcast_to(np.array(b, np.float64), actions.shape[1]) for b in _fitting(bounds, actions.shape[1]))
    slack = ROUNDING * np.where(np.isfinite(high - low), (high - low) / 2, 0.0)
    out = (actions < low - slack) | (actions > high + slack)
    count = int(out.any(axis=1).sum())
    if not count:
        return ()
    worst = float(actions[out][np.argmax(np.abs(actions[out]))])
    told = (
        f"{count} of {len(actions)} steps ({100 * count / len(actions):.2g} %) have actions out of {whose} range, "
        f"{_text('action_low', low)} to {_text('action_high', high)}, as far as {worst:.3g}"
    )
    if count > MAX_SHARE_OUTSIDE * len(actions):
        raise DemoError(
            path,
            f"{told}; up to {100 * MAX_SHARE_OUTSIDE:g} % are taken, because simulators clip them. They may be of "
            "another controller or in other units; where they were clipped in the recording, clip them in the file.",
            field="actions",
        )
    return (f"{told}; they are kept, and the simulator clips them.",)


def statements(stated: Interface) -> list[str]:
    """Return what is stated, in words."""
    values = [(f.name, getattr(stated, f.name)) for f in fields(stated)]
    return [f"{LABELS[name]} {_text(name, value)}" for name, value in values if value is not None]


def not_stated(stated: Interface, expected: Interface | None) -> list[str]:
    """Return what is not stated, of all that there is or of what a task expects."""
    names = [f.name for f in fields(stated) if getattr(stated, f.name) is None]
    return [LABELS[name] for name in names if expected is None or getattr(expected, name) is not None]


def _fitting(bounds: Interface, width: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = bounds.action_low or (), bounds.action_high or ()
    return (low, high) if len(low) in (1, width) and len(high) in (1, width) else ((-np.inf,), (np.inf,))


def _equal(name: str, own: Any, wanted: Any) -> bool:
    if name == "robots":
        return {_robot(r) for r in own} == {_robot(r) for r in wanted}
    if name == "changed_by" or isinstance(own, str):
        return own == wanted
    a, b = np.atleast_1d(own), np.atleast_1d(wanted)
    return (len(a) == len(b) or 1 in (len(a), len(b))) and bool(np.isclose(a, b, rtol=CLOSE, atol=1e-9).all())


def _robot(name: str) -> str:
    return next((same for part, same in SAME_ROBOT.items() if part in name.lower()), name.lower())


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, tuple | np.ndarray) else (value,)
    texts = [v if isinstance(v, str) else f"{v:.4g}" for v in values]
    if name != "robots" and len(set(texts)) == 1:
        texts = texts[:1]
    return (", ".join(texts) or "none") + UNITS.get(name, "")
