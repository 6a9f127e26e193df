"""LeRobot data sets, version 3: reader.

Layout (LeRobotDataset v3.0): a directory with ``meta/info.json`` (sizes, ``features``, ``fps``, ``splits``),
``meta/stats.json``, ``meta/tasks.parquet``, ``meta/episodes/chunk-XXX/file-YYY.parquet`` (a row for each episode, with
its length and its data file) and ``data/chunk-XXX/file-YYY.parquet`` (a row for each step, many episodes to a file).
Cameras are videos, or pictures in the data files; they are not decoded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from inril_ray.demos.columns import matrix
from inril_ray.demos.episodes import (
    DAMAGE,
    EVERYTHING,
    DemoError,
    Episode,
    Expectation,
    FileInfo,
    Selection,
    checked_actions,
    checked_array,
    flags,
    no_filter,
    reading,
    wanted_keys,
)
from inril_ray.types import FloatArray

INFO = Path("meta") / "info.json"
STATS = Path("meta") / "stats.json"
TASKS = Path("meta") / "tasks.parquet"
# Its files are read by absolute paths: Arrow takes a relative `http:x/…` for a URL.
DATA_FILE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CAMERAS = ("image", "video")
STATE = "observation.state"
TOLERANCE = 1e-3
"""How far extremes of the data may lie from those in ``stats.json``, relative to their size."""


class LeRobot:
    """Reader of LeRobot's data sets.

    These keep no observation after the last action, and ``next.done`` does not tell an end from a time limit: so no
    final observation is known and no episode counts as terminated. An episode is a success if ``next.success`` is set
    at any step. Episodes outside of the split ``train`` are held out.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is a directory with LeRobot's ``meta/info.json``."""
        try:
            return "codebase_version" in json.loads((path / INFO).read_text())
        except DAMAGE:
            return False

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata."""
        with reading(path):
            info = _metadata(path)
            cameras = [f"{key} ({f['dtype']})" for key, f in info["features"].items() if f["dtype"] in CAMERAS]
            robot = info.get("robot_type")
            return FileInfo(
                format="lerobot",
                env_name="",
                semantics="",
                source="unknown",
                metadata={
                    "codebase_version": info["codebase_version"],
                    "fps": info.get("fps"),
                    **({"robot_type": str(robot)} if robot else {}),
                    "tasks": _tasks(path),
                    "observations": {
                        key: f.get("shape", []) for key, f in info["features"].items() if key.startswith("observation")
                    },
                    **({"cameras": cameras} if cameras else {}),
                },
                warnings=("cameras are not decoded: " + ", ".join(cameras) + ".",) if cameras else (),
            )

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes in order.

        Args:
            path: the directory.
            expectation: what the task requires. A key ``k`` of the task is the feature ``observation.k``, or ``k``; a
                task with a single key may also be served by ``observation.state``. None reads all vectors of the
                observation, in alphabetical order.
            selection: no filters and no images from this format.

        Raises:
            DemoError: the data set is not readable, contradicts its metadata or does not fit.
        """
        no_filter(path, selection, images="of LeRobot data sets are videos, which are not decoded")
        with reading(path):
            info = _metadata(path)
            columns = _columns(path, info["features"], expectation)
            rows = _episodes(path, info)
            held_out = _held_out(path, info)
            extremes = Extremes(path)
            for place, group in _by_file(rows):
                table = _steps(path, DATA_FILE.format(**place), [name for name, _ in columns], info["features"])
                owner = matrix(table["episode_index"])
                for row in group:
                    name = str(row["episode_index"])
                    with reading(path, name):
                        part = _own_steps(path, name, table, owner, row)
                        episode = _episode(path, name, part, columns, expectation, bool(held_out[int(name)]))
                    extremes.add(episode.actions)
                    yield episode
            extremes.check()


# -- metadata ---------------------------------------------------------------------------------------------------------
def _metadata(path: Path) -> dict[str, Any]:
    info = json.loads((path / INFO).read_text())
    version = str(info["codebase_version"])
    if not version.startswith("v3."):
        raise DemoError(
            path, f"is {version!r}; v3 is read. LeRobot's own script converts v2.1.", field="codebase_version"
        )
    for name in ("total_episodes", "total_frames"):
        if not isinstance(info.get(name), int) or info[name] < 1:
            raise DemoError(path, f"is {info.get(name)!r}; a positive number is needed.", field=name)
    if info.get("data_path", DATA_FILE) != DATA_FILE:
        raise DemoError(path, f"is {info['data_path']!r}; {DATA_FILE!r} is read.", field="data_path")
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(f, dict) and "dtype" in f for f in features.values()):
        raise DemoError(path, "is not a list of features.", field="features")
    return info


def _tasks(path: Path) -> list[str]:
    """Return the descriptions of the tasks in words."""
    if not (path / TASKS).is_file():
        return []
    table = pq.read_table((path / TASKS).absolute(), use_threads=False)
    texts = [c for c in table.columns if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
    return [str(value) for value in texts[0].to_pylist()] if texts else []


def _held_out(path: Path, info: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return [E]: True for episodes outside of the range ``train``, which is written ``first:end``."""
    held_out = np.zeros(info["total_episodes"], bool)
    train = (info.get("splits") or {}).get("train")
    if train is not None:
        try:
            first, end = (int(x) for x in train.split(":"))
        except (ValueError, AttributeError):
            raise DemoError(path, f"is {train!r}, not 'first:end'.", field="splits.train") from None
        held_out[:] = True
        held_out[first:end] = False
    return held_out


def _columns(path: Path, features: Mapping[str, Any], expectation: Expectation | None) -> list[tuple[str, int | None]]:
    """Return the features that make up the observation, and their widths."""
    vectors = [
        key
        for key, f in features.items()
        if key.startswith("observation.") and f["dtype"] not in CAMERAS and f["dtype"] != "string"
    ]
    if "action" not in features:
        raise DemoError(path, "is missing.", field="action")
    if expectation is None:
        if not vectors:
            raise DemoError(path, "holds no vector.", field="observation")
        return list(wanted_keys(vectors, None))
    found = []
    for key, width in expectation.obs_keys:
        names = [f"observation.{key}", key, *([STATE] if len(expectation.obs_keys) == 1 else [])]
        name = next((n for n in names if n in features), None)
        if name is None:
            raise DemoError(path, f"is missing; found: {', '.join(vectors) or 'none'}.", field=names[0])
        if features[name]["dtype"] in CAMERAS:
            raise DemoError(path, f"is a camera ({features[name]['dtype']}), which is not decoded.", field=name)
        found.append((name, width))
    return found


def _episodes(path: Path, info: Mapping[str, Any]) -> list[dict[str, int]]:
    """Return a row for each episode: index, length, first step and data file."""
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    names += ["data/chunk_index", "data/file_index"]
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    rows: list[dict[str, int]] = []
    for file in files:
        with reading(file):
            rows += pq.read_table(file.absolute(), columns=names, use_threads=False).to_pylist()
    rows.sort(key=lambda r: r["episode_index"])
    total = info["total_episodes"]
    if len(rows) != total or [r["episode_index"] for r in rows] != list(range(len(rows))):
        raise DemoError(path, f"says {total}, meta/episodes lists {len(rows)}.", field="total_episodes")
    steps = 0
    for row in rows:
        start, end = row["dataset_from_index"], row["dataset_to_index"]
        if (start, end) != (steps, steps + row["length"]) or row["length"] < 1:
            message = f"is from {start} to {end} with length {row['length']}; the episodes before end at {steps}."
            raise DemoError(path, message, episode=str(row["episode_index"]), field="dataset_from_index")
        steps = end
    if steps != info["total_frames"]:
        raise DemoError(path, f"says {info['total_frames']}, meta/episodes counts {steps}.", field="total_frames")
    return rows


def _by_file(rows: Sequence[dict[str, int]]) -> Iterator[tuple[dict[str, int], list[dict[str, int]]]]:
    """Group the episodes by data file, so that each file is read once."""
    groups: dict[tuple[int, int], list[dict[str, int]]] = {}
    for row in rows:
        groups.setdefault((row["data/chunk_index"], row["data/file_index"]), []).append(row)
    for (chunk, file), group in groups.items():
        yield {"chunk_index": chunk, "file_index": file}, group


# -- steps ------------------------------------------------------------------------------------------------------------
def _steps(path: Path, name: str, columns: Sequence[str], features: Mapping[str, Any]) -> pa.Table:
    if not (path / name).is_file():
        raise DemoError(path, "is missing; meta/episodes names it.", field=name)
    optional = [c for c in ("next.reward", "next.success") if c in features]
    wanted = [*columns, "action", "episode_index", "frame_index", *optional]
    with reading(path / name), pq.ParquetFile((path / name).absolute()) as file:
        missing = [c for c in wanted if c not in file.schema_arrow.names]
        if missing:
            raise DemoError(path, f"lacks the columns {', '.join(missing)}.", field=name)
        return file.read(columns=wanted, use_threads=False)


def _own_steps(path: Path, name: str, table: pa.Table, owner: np.ndarray, row: Mapping[str, int]) -> pa.Table:
    steps, length = np.flatnonzero(owner == row["episode_index"]), row["length"]
    if len(steps) != length or steps[-1] - steps[0] != length - 1:
        message = f"says {length}, the data file has {len(steps)} steps of it."
        raise DemoError(path, message, episode=name, field="length")
    part = table.slice(int(steps[0]), length)
    if not np.array_equal(matrix(part["frame_index"]), np.arange(length)):
        raise DemoError(path, "does not count from 0.", episode=name, field="frame_index")
    return part


def _episode(
    path: Path,
    name: str,
    part: pa.Table,
    columns: Sequence[tuple[str, int | None]],
    expectation: Expectation | None,
    held_out: bool,
) -> Episode:
    length = len(part)

    def values(key: str, width: int | None) -> FloatArray:
        array = matrix(part[key])
        array = array[:, None] if array.ndim == 1 else array  # LeRobot writes vectors of one number as numbers
        width = array.shape[1] if width is None else width
        return checked_array(path, array, episode=name, field=key, length=length, width=width)

    actions = matrix(part["action"])
    actions = actions[:, None] if actions.ndim == 1 else actions
    has = part.column_names
    return Episode(
        name=name,
        obs=np.concatenate([values(key, width) for key, width in columns], axis=1),
        actions=checked_actions(path, actions, expectation, episode=name),
        rewards=values("next.reward", 1)[:, 0] if "next.reward" in has else np.zeros(length, np.float32),
        success=bool(flags(path, matrix(part["next.success"]), episode=name, field="next.success").any())
        if "next.success" in has
        else None,
        held_out=held_out,
    )


class Extremes:
    """Compares the actions with the extremes in ``stats.json``: another data set's statistics show here.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._low: FloatArray | None = None
        self._high: FloatArray | None = None

    def add(self, actions: FloatArray) -> None:
        """Take in actions [L, A]."""
        low, high = actions.min(axis=0), actions.max(axis=0)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def check(self) -> None:
        """Raise a DemoError if the statistics, where there are any, are not those of the actions."""
        if not (self._path / STATS).is_file():
            return
        stated = json.loads((self._path / STATS).read_text()).get("action", {})
        for key, found in (("min", self._low), ("max", self._high)):
            if key not in stated or found is None:
                continue
            told = np.asarray(stated[key], np.float64)
            if told.shape != found.shape or not np.allclose(told, found, rtol=TOLERANCE, atol=TOLERANCE):
                raise DemoError(
                    self._path, f"says {told.tolist()}, the data have {found.tolist()}.", field=f"stats action {key}"
                )
