"""Minari data sets: reader of all layouts, writer of the HDF5 layout.

Layout (Minari 0.5): a directory with ``data/metadata.json`` (sizes, spaces and ``env_spec`` as JSON strings) beside
either ``main_data.hdf5``, with groups ``episode_i`` that hold ``observations`` [L+1], ``actions`` [L], ``rewards``,
``terminations``, ``truncations`` and ``infos``; or directories ``i/`` of Arrow or Parquet files, in which every column
has L+1 rows and all but observations and infos are padded. Observations are one array or a group for a dictionary.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inril_ray.demos import gymnasium_spec
from inril_ray.demos.columns import matrix
from inril_ray.demos.episodes import (
    EVERYTHING,
    SOURCE_KEY,
    DemoError,
    Episode,
    Expectation,
    FileInfo,
    RecordedEpisode,
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
from inril_ray.demos.hdf5 import content, open_hdf5
from inril_ray.demos.interface import stated_name
from inril_ray.types import FloatArray

METADATA = "metadata.json"
HDF5_FILE = "main_data.hdf5"
LAYOUTS = ("hdf5", "arrow", "parquet")
SUCCESS = ("success", "is_success")
"""Names that environments give to success in ``infos``."""
PREFIX = "observations/"
FLAT = ""
"""Key of an observation that is one array."""
VERSION = "0.5.4"
"""Release of Minari whose layout is written."""

Raw = dict[str, Any]
"""One episode as found: ``observations`` (key to [L+1, W]), ``actions``, ``rewards``, ``terminations``, ``infos``."""


class Minari:
    """Reader of Minari's data sets.

    An episode is terminated if its last ``terminations`` is set, and a success if ``infos`` say so of its end: in goal
    tasks an object that passes by its goal is no success.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is a data set's directory, or the ``data`` directory in it."""
        directory = _directory(path)
        if directory is None:
            return (path / "data" / HDF5_FILE).is_file()
        if (directory / HDF5_FILE).is_file():
            return True
        try:
            return "total_episodes" in json.loads((directory / METADATA).read_text())
        except ValueError:
            return True  # reading it says what is wrong
        except OSError:
            return False

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata."""
        with reading(path):
            return _info(path, _metadata(path))

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes in order.

        Args:
            path: the directory.
            expectation: what the task requires; None reads all vectors of the observation, in alphabetical order.
            selection: no filters and no images from this format; other names of observations.

        Raises:
            DemoError: the data set is not readable, contradicts its metadata or does not fit.
            InrilError: a name is given for a key that is not looked for.
        """
        no_filter(path, selection)
        with reading(path):
            metadata = _metadata(path)
            directory = _directory(path)
            assert directory is not None
            keys = _keys(path, metadata, expectation, selection)
            source = _hdf5 if metadata["data_format"] == "hdf5" else _tables
            steps = 0
            for i, raw in enumerate(source(path, directory, metadata, [key for key, _ in keys])):
                with reading(path, str(i)):
                    episode = _episode(path, str(i), raw, keys, expectation)
                steps += len(episode.actions)
                yield episode
        if steps != metadata["total_steps"]:
            raise DemoError(path, f"says {metadata['total_steps']}, there are {steps}.", field="total_steps")


def _directory(path: Path) -> Path | None:
    return next((d for d in (path / "data", path) if (d / METADATA).is_file()), None)


# -- metadata ---------------------------------------------------------------------------------------------------------
def _metadata(path: Path) -> dict[str, Any]:
    directory = _directory(path)
    if directory is None:
        raise DemoError(path, "is missing.", field=METADATA)
    metadata = json_file(directory / METADATA)
    if not isinstance(metadata, dict):
        raise DemoError(path, "is not a JSON object.", field=METADATA)
    metadata.setdefault("data_format", "hdf5")
    for name, least in (("total_episodes", 1), ("total_steps", 1)):
        if not isinstance(metadata.get(name), int) or metadata[name] < least:
            raise DemoError(path, f"is {metadata.get(name)!r}; a positive number is needed.", field=name)
    if metadata["data_format"] not in LAYOUTS:
        raise DemoError(path, f"is {metadata['data_format']!r}; known: {', '.join(LAYOUTS)}.", field="data_format")
    return metadata


def _info(path: Path, metadata: Mapping[str, Any]) -> FileInfo:
    env_spec = _json(path, metadata, "env_spec")
    env_id = stated_name(env_spec.get("id")) or ""
    name, version = re.fullmatch(r"(?:.*/)?(.*?)(?:-(v\d+))?", env_id, re.DOTALL).groups()  # type: ignore[union-attr]
    action_space = _json(path, metadata, "action_space")
    try:
        stated = gymnasium_spec.interface(env_spec, action_space)
    except (ValueError, TypeError):
        bounds = f"{action_space.get('low')!r:.60} and {action_space.get('high')!r:.60}"
        raise DemoError(path, f"has the bounds {bounds}; lists of numbers are needed.", field="action_space") from None
    source = metadata.get(SOURCE_KEY)
    source = source if isinstance(source, dict) else {}
    dataset = str(metadata.get("dataset_id", ""))
    kind = "human" if re.search(r"\bhuman\b", dataset) else "unknown"
    told = ("dataset_id", "algorithm_name", "code_permalink", "minari_version")
    return FileInfo(
        format="minari",
        env_name=name,
        semantics=version or "",
        source=str(source.get("kind", kind)),
        metadata={
            "layout": metadata["data_format"],
            "observations": _shapes(path, metadata),
            **{key: metadata[key] for key in told if isinstance(metadata.get(key), str)},
            **({"made_by": source} if source else {}),
        },
        warnings=gymnasium_spec.warnings(env_spec),
        stated=stated,
    )


def _json(path: Path, metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a JSON string in the metadata holds; empty if there is none."""
    if metadata.get(name) is None:
        return {}
    try:
        value = json.loads(metadata[name])
    except (ValueError, TypeError):
        value = None
    if not isinstance(value, dict):
        raise DemoError(path, "is not a JSON object in a string.", field=name)
    return value


def _shapes(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes of one step of the observations, as the space states them."""
    space = _json(path, metadata, "observation_space")
    inner = space.get("subspaces")
    spaces = _flat(inner) if isinstance(inner, dict) else {"observation": space}
    return {key: s.get("shape", []) for key, s in spaces.items() if isinstance(s, dict)}


def _keys(
    path: Path, metadata: Mapping[str, Any], expectation: Expectation | None, selection: Selection
) -> list[tuple[str, int]]:
    """Return keys and widths to read, after comparing the stated spaces with the task."""
    space = _json(path, metadata, "observation_space")
    if space.get("type") == "Box":
        if expectation and len(expectation.obs_keys) > 1:
            keys = ", ".join(key for key, _ in expectation.obs_keys)
            raise DemoError(path, f"is one array, the task needs {keys} apart.", field="observation_space")
        if selection.names:
            names = ", ".join(selection.names)
            raise DemoError(path, f"is one array without names; {names} can't be named.", field="observation_space")
        spaces, wanted = {FLAT: space}, [(FLAT, width) for _, width in expectation.obs_keys] if expectation else None
    elif space.get("type") == "Dict" and isinstance(space.get("subspaces"), dict):
        spaces, selection = _flat(space["subspaces"]), other_names(selection, expectation, prefix=PREFIX)
        wanted = [(selection.name(key), width) for key, width in expectation.obs_keys] if expectation else None
    else:
        raise DemoError(path, f"is {space.get('type')!r}; Box and Dict are read.", field="observation_space")
    vectors = {
        key: int(s["shape"][0])
        for key, s in spaces.items()
        if isinstance(s, dict) and s.get("type") == "Box" and len(s["shape"]) == 1
    }
    if not vectors:
        raise DemoError(path, "holds no vector.", field="observation_space")
    if wanted is None:
        return [(key, vectors[key]) for key, _ in wanted_keys(list(vectors), None)]
    keys = [key for key, _ in expectation.obs_keys] if expectation else []
    lacking = {key: PREFIX + own for key, (own, _) in zip(keys, wanted, strict=True) if own not in vectors}
    if lacking:
        raise missing(path, lacking, ", ".join(vectors))
    for key, width in wanted:
        if vectors[key] != width:
            field = f"observations/{key}".rstrip("/")
            raise DemoError(path, f"has width {vectors[key]}, the task needs {width}.", field=field)
    return wanted


def _flat(spaces: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the spaces of a dictionary by their names, ``group/name`` for those in dictionaries within it."""
    flat: dict[str, Any] = {}
    for key, space in spaces.items():
        inner = space.get("subspaces") if isinstance(space, dict) else None
        flat |= _flat(inner, f"{above}{key}/") if isinstance(inner, dict) else {above + key: space}
    return flat


# -- episodes ---------------------------------------------------------------------------------------------------------
def _hdf5(path: Path, directory: Path, metadata: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Raw]:
    file_path = directory / HDF5_FILE
    with open_hdf5(file_path) as file:
        if len(file) != metadata["total_episodes"]:
            raise DemoError(path, f"says {metadata['total_episodes']}, there are {len(file)}.", field="total_episodes")
        for i in range(len(file)):
            name = f"episode_{i}"
            with reading(path, str(i)):
                if not isinstance(file.get(name), h5py.Group):
                    raise DemoError(path, "is missing.", episode=str(i), field=name)
                group = file[name]

                def values(field: str, group: Any = group, i: int = i) -> np.ndarray:
                    if field not in group:
                        raise DemoError(path, "is missing.", episode=str(i), field=field)
                    return content(file_path, group[field], episode=str(i), field=field)

                infos = group.get("infos")
                told = [k for k in SUCCESS if isinstance(infos, h5py.Group) and k in infos]
                raw = {
                    "observations": {key: values(f"observations/{key}".rstrip("/")) for key in keys},
                    **{name: values(name) for name in ("actions", "rewards", "terminations")},
                    "success": values(f"infos/{told[0]}") if told else None,
                    "total_steps": group.attrs.get("total_steps"),
                }
            yield raw


def _tables(path: Path, directory: Path, metadata: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Raw]:
    numbers = sorted(int(d.name) for d in directory.iterdir() if d.is_dir() and d.name.isdigit())
    if len(numbers) != metadata["total_episodes"] or numbers != list(range(len(numbers))):
        raise DemoError(
            path, f"says {metadata['total_episodes']}, the directories are {numbers[:20]}.", field="total_episodes"
        )
    for i in numbers:
        with reading(path, str(i)):
            own = json_file(directory / str(i) / METADATA)
            files = sorted((directory / str(i)).glob(f"*.{metadata['data_format']}"))
            if len(files) != 1:
                raise DemoError(path, f"has {len(files)} data files, one is needed.", episode=str(i))
            with reading(files[0], str(i)):
                table = _table(files[0], metadata["data_format"])
            observed = table["observations"].combine_chunks()
            raw: Raw = {
                "observations": {key: matrix(_field(observed, key)) for key in keys},
                **{name: matrix(table[name])[:-1] for name in ("actions", "rewards", "terminations")},
                "success": None,
                "total_steps": own["total_steps"],
            }
            if "infos" in table.column_names:
                infos = table["infos"].combine_chunks()
                told = [k for k in SUCCESS if infos.type.get_field_index(k) >= 0]
                if told:
                    raw["success"] = matrix(infos.field(told[0]))
        yield raw


def _field(column: pa.Array, key: str) -> pa.Array:
    for name in key.split("/") if key else ():
        column = column.field(name)
    return column


def _table(file: Path, layout: str) -> pa.Table:
    if layout == "parquet":
        return pq.read_table(file.absolute(), use_threads=False)  # Arrow takes `http:x/…` for a URL
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    table.validate(full=True)
    return table


def _episode(
    path: Path, name: str, raw: Raw, keys: Sequence[tuple[str, int]], expectation: Expectation | None
) -> Episode:
    actions = checked_actions(path, raw["actions"], expectation, episode=name)
    length = len(actions)
    if raw["total_steps"] is not None and int(raw["total_steps"]) != length:
        message = f"says {raw['total_steps']}, but there are {length} actions."
        raise DemoError(path, message, episode=name, field="total_steps")
    parts = []
    for key, width in keys:
        field = f"observations/{key}".rstrip("/")
        parts.append(
            checked_array(path, raw["observations"][key], episode=name, field=field, length=length + 1, width=width)
        )
    obs = np.concatenate(parts, axis=1)
    told = raw["success"]
    if told is not None:  # of every observation, the first included; or after every action
        told = flags(path, np.ravel(told), episode=name, field="infos/success")
    terminations = flags(path, raw["terminations"], episode=name, field="terminations", length=length)
    return Episode(
        name=name,
        obs=obs[:-1],
        actions=actions,
        keys=expectation.obs_keys if expectation else tuple((key or "observation", width) for key, width in keys),
        rewards=checked_array(path, raw["rewards"], episode=name, field="rewards", length=length),
        final_obs=obs[-1],
        terminated=bool(terminations[-1]),
        success=None if told is None else bool(told[-1]),
        solved=None if told is None or len(told) < length else told[-length:],
    )


# -- writer -----------------------------------------------------------------------------------------------------------
def write(
    path: Path,
    episodes: Sequence[RecordedEpisode],
    *,
    env_spec: str,
    obs_keys: tuple[tuple[str, int], ...],
    action_range: tuple[float, float],
    source: Mapping[str, Any],
    dataset_id: str,
) -> None:
    """Write a data set that Minari loads. The directory appears under its name only when it is complete.

    Args:
        path: directory to make; it must not exist.
        episodes: what was recorded.
        env_spec: gymnasium's JSON description of the environment, from which Minari makes it again.
        obs_keys: order and width of the parts of the observation; with one part it is written as one array.
        action_range: least and greatest action.
        source: who acted and how; ``kind`` is required.
        dataset_id: Minari's name for it, such as ``gym/hopper-v0``.

    Raises:
        DemoError: the directory exists.
    """
    if path.exists():
        raise DemoError(path, "exists; a Minari data set is written to a new directory.")
    data = path.with_name(f".{path.name}.partial") / "data"
    shutil.rmtree(data.parent, ignore_errors=True)
    try:
        data.mkdir(parents=True)
        with h5py.File(data / HDF5_FILE, "w", track_order=False) as file:
            for i, episode in enumerate(episodes):
                _write_episode(file.create_group(f"episode_{i}"), i, episode, obs_keys)
        width = episodes[0].actions.shape[1]
        boxes = {key: _box(size, -math.inf, math.inf) for key, size in obs_keys}
        space = next(iter(boxes.values())) if len(boxes) == 1 else {"type": "Dict", "subspaces": boxes}
        size = round((data / HDF5_FILE).stat().st_size / 1e6, 1)
        metadata = {
            "total_episodes": len(episodes),
            "total_steps": sum(len(e.actions) for e in episodes),
            "data_format": "hdf5",
            "observation_space": json.dumps(space),
            "action_space": json.dumps(_box(width, *action_range)),
            "env_spec": env_spec,
            "dataset_id": dataset_id,
            "dataset_size": size,
            "minari_version": VERSION,
            SOURCE_KEY: dict(source),
        }
        (data / METADATA).write_text(json.dumps(metadata, sort_keys=True))
        os.replace(data.parent, path)
    finally:
        shutil.rmtree(data.parent, ignore_errors=True)


def _box(size: int, low: float, high: float) -> dict[str, Any]:
    return {"type": "Box", "dtype": "float32", "shape": [size], "low": [low] * size, "high": [high] * size}


def _write_episode(group: Any, number: int, episode: RecordedEpisode, obs_keys: tuple[tuple[str, int], ...]) -> None:
    length = len(episode.actions)
    last = np.arange(length) == length - 1
    obs: FloatArray = np.concatenate([episode.obs, episode.next_obs[-1:]]).astype(np.float32)
    start = 0
    for key, width in obs_keys:
        name = "observations" if len(obs_keys) == 1 else f"observations/{key}"
        group[name] = obs[:, start : start + width]
        start += width
    group["actions"] = episode.actions.astype(np.float32)
    group["rewards"] = episode.rewards.astype(np.float64)
    group["terminations"] = last & episode.terminated
    group["truncations"] = last & (not episode.terminated)
    if episode.success is not None:
        group["infos/success"] = np.append(False, episode.success)  # nothing is solved at the start
    group.attrs["id"] = number
    group.attrs["total_steps"] = length
