"""Demonstrations as one Arrow file: a row for each step, everything else in the schema's metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from inril_ray.demos.arrays import IMAGES, DemoArrays, DemoInfo
from inril_ray.demos.causes import beginning
from inril_ray.demos.columns import matrix
from inril_ray.demos.episodes import DAMAGE, DemoError
from inril_ray.words import reason

FORMAT_VERSION = 3
"""2 held unknown rewards and ends as 0."""
METADATA_KEY = b"inril_demos"
FLAG = TypeAdapter(bool)
INFO = TypeAdapter(DemoInfo)
METADATA = {
    "warnings": TypeAdapter(list[str]),
    "observations": TypeAdapter(dict[str, Any]),
    "score_range": TypeAdapter(tuple[float, float]),
}
"""They check the types of what a file states. Other metadata are only printed."""


def is_arrow(path: Path) -> bool:
    """Tell whether a file is an Arrow file."""
    return path.is_file() and beginning(path).startswith(b"ARROW1")


def write_arrow(arrays: DemoArrays, target: Path) -> None:
    """Write one Arrow IPC file: a row for each step, everything else in the schema's metadata."""
    columns = {
        "obs": _fixed_size(arrays.obs),
        "actions": _fixed_size(arrays.actions),
        "rewards": pa.array(arrays.rewards, from_pandas=True),  # NaN, which is unknown, becomes null
        **{IMAGES + key: _fixed_size(pictures) for key, pictures in arrays.images.items()},
    }
    known = np.isfinite(arrays.final_obs).all(axis=1)
    header = {
        "format_version": FORMAT_VERSION,
        "episode_starts": arrays.episode_starts.tolist(),
        "held_out": arrays.held_out.tolist(),
        "final_obs": [row.tolist() if k else None for row, k in zip(arrays.final_obs, known, strict=True)],
        "terminated": _known(arrays.terminated),
        "success": _known(arrays.success),
        "image_shapes": {key: pictures.shape[1:] for key, pictures in arrays.images.items()},
        "info": dataclasses.asdict(arrays.info),
    }
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(header, sort_keys=True)})
    partial = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _fixed_size(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), int(np.prod(array.shape[1:])))


def _known(flags: np.ndarray) -> list[bool | None]:
    return [None if flag < 0 else bool(flag) for flag in flags]


def _flags(known: list[bool | None]) -> np.ndarray:
    """Return 1, 0, or -1 for what is unknown [E]."""
    return np.array([-1 if flag is None else FLAG.validate_python(flag) for flag in known], np.int8)


def _rewards(column: pa.ChunkedArray) -> np.ndarray:
    """Return rewards [S], a view of the map unless some are null: those become NaN."""
    return matrix(column.fill_null(np.nan) if column.null_count else column)


def read_arrow(path: Path) -> DemoArrays:
    """Memory-map a file that :func:`write_arrow` wrote; the arrays of steps are read-only views of the map.

    Raises:
        DemoError: not such a file, another version, or damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        header = json.loads((table.schema.metadata or {})[METADATA_KEY])
        version = header["format_version"]
        if version != FORMAT_VERSION:
            message = f"has format version {version}, this release reads {FORMAT_VERSION}. Convert again."
            raise DemoError(path, message)
        info = header["info"]
        info["obs_keys"] = tuple((k, w) for k, w in info["obs_keys"])
        obs = matrix(table["obs"])
        unknown = [np.nan] * obs.shape[1]
        arrays = DemoArrays(
            obs=obs,
            actions=matrix(table["actions"]),
            rewards=_rewards(table["rewards"]),
            episode_starts=np.array(header["episode_starts"], np.int64),
            held_out=np.array(header["held_out"], bool),
            final_obs=np.array([unknown if row is None else row for row in header["final_obs"]], np.float32),
            terminated=_flags(header["terminated"]),
            success=_flags(header["success"]),
            images={key: matrix(table[IMAGES + key]).reshape(-1, *s) for key, s in header["image_shapes"].items()},
            info=INFO.validate_python(info),
        )
        for name in METADATA.keys() & arrays.info.metadata.keys():
            METADATA[name].validate_python(arrays.info.metadata[name])
        if arrays.episode_starts.ndim != 1 or arrays.held_out.ndim != 1:
            raise ValueError("episode_starts and held_out must be lists")
    except DAMAGE as error:
        raise DemoError(path, f"is not a complete demonstration store ({reason(error)}).") from None
    starts, episodes = arrays.episode_starts, len(arrays.held_out)
    fits = len(starts) == episodes + 1 and starts[0] == 0 and starts[-1] == len(arrays.obs)
    if not fits or (np.diff(starts) < 1).any():
        raise DemoError(path, "disagrees with the number of steps.", field="episode_starts")
    for name, shape in (("final_obs", (episodes, obs.shape[1])), ("terminated", (episodes,)), ("success", (episodes,))):
        if getattr(arrays, name).shape != shape:
            raise DemoError(path, "disagrees with the number of episodes.", field=name)
    return arrays
