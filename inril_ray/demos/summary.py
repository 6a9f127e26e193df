"""What ``inril demos inspect`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray.demos.arrays import DemoArrays
from inril_ray.demos.interface import not_stated, statements
from inril_ray.demos.semantics import RELEASES
from inril_ray.types import Interface


def summary_lines(path: Path, arrays: DemoArrays, expected: Interface | None = None) -> list[str]:
    """Describe demonstrations, a line for each property.

    Args:
        path: where they are.
        arrays: the demonstrations.
        expected: what a task expects of actions and rewards, so that what matters to it is told where it is not stated.
    """
    properties = _properties(arrays, expected)
    return [f"{path}: {arrays.info.format}"] + [f"{name:<13} {value}" for name, value in properties]


def _properties(arrays: DemoArrays, expected: Interface | None) -> Iterator[tuple[str, str]]:
    info, metadata = arrays.info, arrays.info.metadata
    lengths = np.diff(arrays.episode_starts)
    paid = ~arrays.unknown_rewards
    returns = np.add.reduceat(arrays.rewards.astype(np.float64), arrays.episode_starts[:-1])[paid]
    yield "environment", info.env_name or "not stated"
    release = f" ({RELEASES[info.semantics][0]})" if info.semantics in RELEASES else ""
    yield "semantics", f"{info.semantics}{release}" if info.semantics else "not stated"
    yield "source", info.source
    yield "episodes", f"{len(lengths)} ({int(arrays.held_out.sum())} held out)"
    yield "steps", f"{len(arrays.obs)}; length {lengths.min()} to {lengths.max()}, median {np.median(lengths):.0f}"
    yield "observation", _widths(arrays)
    low, high = arrays.actions.min(), arrays.actions.max()
    yield "action", f"{arrays.actions.shape[1]} numbers from {low:.3g} to {high:.3g}"
    for key, pictures in arrays.images.items():
        yield "images", f"{key} {_shape(pictures.shape[1:])}"
    lacking = f"; not known of {int((~paid).sum())} of {len(paid)} episodes" if not paid.all() else ""
    if paid.any():
        yield "returns", f"{returns.min():.2f} to {returns.max():.2f}, mean {returns.mean():.2f}{lacking}"
    else:
        yield "returns", "not known"
    worst, best = metadata.get("score_range", (0.0, 0.0))
    if worst < best and paid.any():
        score = 100.0 * (returns.mean() - worst) / (best - worst)
        yield "score", f"mean {score:.1f} (D4RL: 0 is a random policy, 100 an expert)"
    known = arrays.success >= 0
    if known.any():
        yield "success", f"{int((arrays.success == 1).sum())} of {int(known.sum())} episodes"
    else:
        yield "success", "not stated"
    ended, cut, unclear = (int((arrays.terminated == flag).sum()) for flag in (1, 0, -1))
    final = int(np.isfinite(arrays.final_obs).all(axis=1).sum())
    how = [f"{ended} terminated, {cut} cut off"] * (ended + cut > 0) + [f"{unclear} not stated"] * (unclear > 0)
    yield "ends", f"{', '.join(how)}; final observation known of {final}"
    if said := statements(info.stated):
        yield "states", "; ".join(said)
    if unsaid := not_stated(info.stated, expected):
        yield "not stated", ", ".join(unsaid)
    for name in ("filter", "filters", "tasks", "robot_type", "dataset_id", "made_by"):
        if metadata.get(name):
            yield name.replace("_", " "), _plain(metadata[name])
    if metadata.get("observations"):
        yield "in the file", ", ".join(f"{key} {_shape(shape)}" for key, shape in metadata["observations"].items())
    yield "content", f"SHA-256 {info.content_hash}"
    for warning in metadata.get("warnings", ()):
        yield "warning", warning


def _widths(arrays: DemoArrays) -> str:
    keys = arrays.info.obs_keys
    parts = f": {', '.join(f'{key} {width}' for key, width in keys)}" if len(keys) > 1 else ""
    return f"{arrays.obs.shape[1]} numbers{parts}"


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "scalar" if isinstance(shape, list | tuple) else str(shape)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(v)}" for key, v in value.items())
    return ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)
