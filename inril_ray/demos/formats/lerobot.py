"""LeRobot data sets, version 3: reader.

Layout (LeRobotDataset v3.0): a directory with ``meta/info.json`` (sizes, ``features``, ``fps``, ``splits``),
``meta/stats.json``, ``meta/tasks.parquet``, ``meta/episodes/chunk-XXX/file-YYY.parquet`` (a row for each episode, with
its length and its data file) and ``data/chunk-XXX/file-YYY.parquet`` (a row for each step, many episodes to a file).
Cameras are videos, or pictures in the data files; they are not decoded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from inril_ray.demos.columns import matrix
from inril_ray.demos.episodes import (
    EVERYTHING,
    DemoError,
    Episode,
    Expectation,
    FileInfo,
    Selection,
    checked_actions,
    checked_array,
    flags,
    json_file,
    missing,
    no_filter,
    other_names,
    reading,
    wanted_keys,
)
from inril_ray.demos.interface import stated_frequency, stated_names
from inril_ray.types import FloatArray, Interface

INFO = Path("meta") / "info.json"
STATS = Path("meta") / "stats.json"
TASKS = Path("meta") / "tasks.parquet"
# Its files are read by absolute paths: Arrow takes a relative `http:x/…` for a URL.
DATA_FILE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES = "chunk-*/file-*.parquet"
ACTION, REWARD, SUCCESS = "action", "next.reward", "next.success"
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that tell where a step belongs."""
CAMERAS = ("image", "video")
PREFIX = "observation."
STATE = "observation.state"
TOLERANCE = 1e-3
"""How far extremes of the data may lie from those in ``stats.json``, relative to their size."""


class LeRobot:
    """Reader of LeRobot's data sets.

    These keep no observation after the last action, and ``next.done`` does not tell an end from a time limit: so no
    final observation is known, nor whether the task ended an episode. An episode is a success if ``next.success`` is
    set at any step. Episodes outside of the split ``train`` are held out.

    Where the steps of an episode are is told by ``episode_index`` in the data files. What ``meta/episodes`` says about
    it is not read: converters leave it stale, and LeRobot itself does not go by it when it loads a set from disk.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is a directory with LeRobot's ``meta/info.json``."""
        return (path / INFO).is_file()

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata."""
        with reading(path):
            info = _metadata(path)
            cameras = [f"{key} ({f['dtype']})" for key, f in info["features"].items() if f["dtype"] in CAMERAS]
            robots = stated_names(info.get("robot_type"))
            try:
                control_hz = stated_frequency(info.get("fps"))
            except ValueError as error:
                raise DemoError(path, f"{error}.", field="fps") from None
            return FileInfo(
                format="lerobot",
                env_name="",
                semantics="",
                source="unknown",
                metadata={
                    "codebase_version": info["codebase_version"],
                    "fps": info.get("fps"),
                    **({"robot_type": ", ".join(robots)} if robots else {}),
                    "tasks": _tasks(path),
                    "observations": {
                        key: f.get("shape", []) for key, f in info["features"].items() if key.startswith("observation")
                    },
                    **({"cameras": cameras} if cameras else {}),
                },
                warnings=("cameras are not decoded: " + ", ".join(cameras) + ".",) if cameras else (),
                stated=Interface(
                    control_hz=control_hz,
                    robots=robots,
                ),
            )

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes in order.

        Args:
            path: the directory.
            expectation: what the task requires. A key ``k`` of the task is the feature ``observation.k``, or ``k``; a
                task with a single key may also be served by ``observation.state``. None reads all vectors of the
                observation, in alphabetical order.
            selection: no filters and no images from this format; other names of features.

        Raises:
            DemoError: the data set is not readable, contradicts its metadata or does not fit.
            InrilError: a name is given for a key that is not looked for.
        """
        no_filter(path, selection, images="of LeRobot data sets are videos, which are not decoded")
        selection = other_names(selection, expectation, prefix=PREFIX, others=(ACTION, REWARD, SUCCESS))
        with reading(path):
            info = _metadata(path)
            columns = _columns(path, info["features"], expectation, selection)
            names = {key: selection.name(key) for key in (ACTION, REWARD, SUCCESS)}
            lengths, held_out = _lengths(path, info), _held_out(path, info)
            extremes = Extremes(path, names[ACTION])
            for file, own in _by_file(path, len(lengths)):
                table = _steps(file, [name for name, _ in columns], names, info["features"])
                owner = matrix(table["episode_index"])
                for number in own:
                    name = str(number)
                    with reading(path, name):
                        part = _own_steps(path, name, table, owner, number, lengths[number])
                        episode = _episode(path, name, part, columns, names, expectation, bool(held_out[number]))
                    extremes.add(episode.actions)
                    yield episode
            extremes.check()


# -- metadata ---------------------------------------------------------------------------------------------------------
def _metadata(path: Path) -> dict[str, Any]:
    info = json_file(path / INFO)
    if not isinstance(info, dict):
        raise DemoError(path, f"{INFO} is not a JSON object.")
    version = str(info.get("codebase_version"))
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


def _columns(
    path: Path, features: Mapping[str, Any], expectation: Expectation | None, selection: Selection
) -> list[tuple[str, int | None]]:
    """Return the features that make up the observation, and their widths."""
    vectors = [
        key
        for key, f in features.items()
        if key.startswith(PREFIX) and f["dtype"] not in CAMERAS and f["dtype"] != "string"
    ]
    # Rewards and successes may be missing, but not under a name that was given.
    needed = [key for key in (ACTION, REWARD, SUCCESS) if key == ACTION or key in selection.names]
    lacking = {key: selection.name(key) for key in needed if selection.name(key) not in features}
    found, keys = [], expectation.obs_keys if expectation else ()
    for key, width in keys:
        names = [f"{PREFIX}{key}", key, *([STATE] if len(keys) == 1 else [])]
        names = [selection.names[key]] if key in selection.names else names
        name = next((n for n in names if n in features), None)
        if name is None:
            lacking[key] = names[-1] if len(keys) == 1 else names[0]
        elif features[name]["dtype"] in CAMERAS:
            raise DemoError(path, f"is a camera ({features[name]['dtype']}), which is not decoded.", field=name)
        else:
            found.append((name, width))
    if lacking:
        raise missing(path, lacking, _found(features))
    if expectation is None:
        if not vectors:
            message = f"holds no vector whose name begins so; found: {_found(features)}."
            raise DemoError(path, message, field=PREFIX)
        return list(wanted_keys(vectors, None))
    return found


def _found(features: Mapping[str, Any]) -> str:
    return ", ".join(key for key in features if key not in BOOKKEEPING) or "none"


def _lengths(path: Path, info: Mapping[str, Any]) -> list[int]:
    """Return the steps of each episode."""
    rows: list[dict[str, int]] = []
    for file in sorted((path / "meta" / "episodes").glob(FILES)):
        with reading(file):
            rows += pq.read_table(file.absolute(), columns=["episode_index", "length"], use_threads=False).to_pylist()
    rows.sort(key=lambda r: r["episode_index"])
    total, frames = info["total_episodes"], info["total_frames"]
    if len(rows) != total or [r["episode_index"] for r in rows] != list(range(len(rows))):
        raise DemoError(path, f"says {total}, meta/episodes lists {len(rows)}.", field="total_episodes")
    short = next((row for row in rows if row["length"] < 1), None)
    if short:
        episode = str(short["episode_index"])
        raise DemoError(path, f"is {short['length']}; a positive number is needed.", episode=episode, field="length")
    steps = sum(row["length"] for row in rows)
    if steps != frames:
        raise DemoError(path, f"says {frames}, meta/episodes counts {steps}.", field="total_frames")
    return [row["length"] for row in rows]


def _by_file(path: Path, num_episodes: int) -> Iterator[tuple[Path, list[int]]]:
    """Return the data files and the episodes in each, in order of the episodes."""
    held: list[tuple[Path, list[int]]] = []
    for file in sorted((path / "data").glob(FILES)):
        with reading(file), pq.ParquetFile(file.absolute()) as opened:
            if "episode_index" not in opened.schema_arrow.names:
                raise DemoError(file, "is missing.", field="episode_index")
            owner = matrix(opened.read(columns=["episode_index"], use_threads=False)["episode_index"])
            held.append((file, [int(number) for number in np.unique(owner)]))
    places: dict[int, Path] = {}
    for file, numbers in held:
        for number in numbers:
            if number in places:
                message = f"is in {places[number].name} and in {file.name}; each is read from one file."
                raise DemoError(path, message, episode=str(number), field="episode_index")
            places[number] = file
    lacking = sorted(set(range(num_episodes)) - places.keys())
    if lacking:
        message = f"has no steps in any of the {len(held)} data files: is the copy complete?"
        raise DemoError(path, message, episode=str(lacking[0]), field="episode_index")
    unknown = sorted(places.keys() - set(range(num_episodes)))
    if unknown:
        raise DemoError(path, f"is in the data, not in meta/episodes: {unknown[:5]}.", field="episode_index")
    groups: dict[Path, list[int]] = {}
    for number in range(num_episodes):
        groups.setdefault(places[number], []).append(number)
    yield from groups.items()


# -- steps ------------------------------------------------------------------------------------------------------------
def _steps(file: Path, columns: Sequence[str], names: Mapping[str, str], features: Mapping[str, Any]) -> pa.Table:
    optional = [names[key] for key in (REWARD, SUCCESS) if names[key] in features]
    wanted = [*columns, names[ACTION], "episode_index", "frame_index", *optional]
    with reading(file), pq.ParquetFile(file.absolute()) as opened:
        missing = [c for c in wanted if c not in opened.schema_arrow.names]
        if missing:
            raise DemoError(file, f"lacks the columns {', '.join(missing)}, which meta/info.json names.")
        return opened.read(columns=wanted, use_threads=False)


def _own_steps(path: Path, name: str, table: pa.Table, owner: np.ndarray, number: int, length: int) -> pa.Table:
    steps = np.flatnonzero(owner == number)
    if len(steps) != length:
        message = f"says {length}, the data file has {len(steps)} steps of it."
        raise DemoError(path, message, episode=name, field="length")
    if steps[-1] - steps[0] != length - 1:
        raise DemoError(path, "is not in one piece.", episode=name, field="episode_index")
    part = table.slice(int(steps[0]), length)
    if not np.array_equal(matrix(part["frame_index"]), np.arange(length)):
        raise DemoError(path, "does not count from 0.", episode=name, field="frame_index")
    return part


def _episode(
    path: Path,
    name: str,
    part: pa.Table,
    columns: Sequence[tuple[str, int | None]],
    names: Mapping[str, str],
    expectation: Expectation | None,
    held_out: bool,
) -> Episode:
    length = len(part)

    def values(key: str, width: int | None) -> FloatArray:
        array = matrix(part[key])
        array = array[:, None] if array.ndim == 1 else array  # LeRobot writes vectors of one number as numbers
        width = array.shape[1] if width is None else width
        return checked_array(path, array, episode=name, field=key, length=length, width=width)

    actions = matrix(part[names[ACTION]])
    actions = actions[:, None] if actions.ndim == 1 else actions
    has = part.column_names
    solved = None
    if names[SUCCESS] in has:
        solved = flags(path, matrix(part[names[SUCCESS]]), episode=name, field=names[SUCCESS], length=length)
    parts = [values(key, width) for key, width in columns]
    own = tuple((key.removeprefix(PREFIX), p.shape[1]) for (key, _), p in zip(columns, parts, strict=True))
    return Episode(
        name=name,
        obs=np.concatenate(parts, axis=1),
        actions=checked_actions(path, actions, expectation, episode=name),
        keys=expectation.obs_keys if expectation else own,
        rewards=values(names[REWARD], 1)[:, 0] if names[REWARD] in has else None,
        success=None if solved is None else bool(solved.any()),
        solved=solved,
        held_out=held_out,
    )


class Extremes:
    """Compares the actions with the extremes in ``stats.json``: another data set's statistics show here.

    Args:
        path: the directory.
        name: that actions have in it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
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
        stated = json_file(self._path / STATS).get(self._name, {})
        for key, found in (("min", self._low), ("max", self._high)):
            if key not in stated or found is None:
                continue
            told = np.asarray(stated[key], np.float64)
            if told.shape != found.shape or not np.allclose(told, found, rtol=TOLERANCE, atol=TOLERANCE):
                raise DemoError(
                    self._path,
                    f"says {told.tolist()}, the data have {found.tolist()}.",
                    field=f"stats {self._name} {key}",
                )
