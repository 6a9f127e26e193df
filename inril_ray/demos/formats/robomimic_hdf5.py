"""Robomimic HDF5: reader and writer.

Layout (robomimic 0.3): group ``data`` with attributes ``env_args`` (JSON) and ``total``; groups ``data/demo_i`` with
attributes ``num_samples`` and ``model_file`` and datasets ``actions``, ``states``, ``rewards``, ``dones``, ``obs/*``,
``next_obs/*``; ``mask/<filter>`` lists demo names.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inril_ray.demos.episodes import DemoError, Episode, Expectation, FileInfo, checked_array
from inril_ray.types import FloatArray

DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What h5py raises on damaged files."""
SOURCE_ATTRIBUTE = "inril_source"
"""Our attribute on ``data``: JSON with ``kind`` (scripted, planner, rl) and how the file was made."""


class RobomimicHdf5:
    """Reader of robomimic's low-dimensional data sets."""

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a file is HDF5 with a ``data`` group that has ``env_args``."""
        try:
            with h5py.File(path, "r") as file:
                return isinstance(file.get("data"), h5py.Group)
        except DAMAGE:
            return False

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata of a file."""
        with _reading(path), _open(path) as file:
            return _info(path, file)

    @staticmethod
    def read(path: Path, expectation: Expectation | None) -> Iterator[Episode]:
        """Yield the episodes of a file in numerical order.

        Args:
            path: the file.
            expectation: what the task requires; None reads all one- and two-dimensional observations, in the
                alphabetical order of their keys.

        Raises:
            DemoError: the file is not readable or does not fit; names file, episode and field.
        """
        with _reading(path), _open(path) as file:
            info = _info(path, file)
            if expectation and expectation.env_name not in (None, info.env_name):
                raise DemoError(
                    path,
                    f"was recorded in environment {info.env_name!r}, the task needs {expectation.env_name!r}.",
                    field="data.attrs['env_args']",
                )
            held_out = _mask(path, file, "valid")
            demos = file["data"]
            names = sorted(demos, key=_number)
            if not names:
                raise DemoError(path, "holds no episodes.", field="data")
            unknown = held_out - set(names)
            if unknown:
                raise DemoError(path, f"names episodes that are not there: {sorted(unknown)}.", field="mask/valid")
            for name in names:
                with _reading(path, name):
                    episode = _episode(path, name, demos[name], expectation, name in held_out)
                yield episode


@contextlib.contextmanager
def _reading(path: Path, episode: str | None = None) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into our error: a truncated file is found out only where it ends."""
    try:
        yield
    except DAMAGE as error:
        raise DemoError(path, f"is damaged or truncated ({error}).", episode=episode) from None


def _open(path: Path) -> Any:
    if not path.is_file():
        raise DemoError(path, "does not exist.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DemoError(path, f"is not a complete HDF5 file ({error}).") from None


def _info(path: Path, file: Any) -> FileInfo:
    if "data" not in file or not isinstance(file["data"], h5py.Group):
        raise DemoError(path, "is missing; a robomimic file has this group.", field="data")
    attributes = file["data"].attrs
    if "env_args" not in attributes:
        raise DemoError(path, "is missing.", field="data.attrs['env_args']")
    try:
        env_args = json.loads(attributes["env_args"])
        env_name = env_args["env_name"]
        version = str(env_args.get("env_version", "1.4.1"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DemoError(path, f"is not robomimic's JSON ({error!r}).", field="data.attrs['env_args']") from None
    warnings = []
    semantics = "v15" if version.startswith("1.5") else "v141"
    if semantics == "v141":
        warnings.append(
            f"recorded with robosuite {version}: the gripper and the zero rotation act differently from 1.5."
        )
    try:
        source = json.loads(attributes.get(SOURCE_ATTRIBUTE, "{}"))
    except (ValueError, TypeError):
        raise DemoError(path, "is not JSON.", field=f"data.attrs['{SOURCE_ATTRIBUTE}']") from None
    kind = source.get("kind", "unknown") if isinstance(source, dict) else "unknown"
    return FileInfo(
        format="robomimic_hdf5",
        env_name=str(env_name),
        semantics=semantics,
        source=str(kind),
        metadata={"env_version": version, **({"made_by": source} if source else {})},
        warnings=tuple(warnings),
    )


def _mask(path: Path, file: Any, name: str) -> set[str]:
    if "mask" not in file or name not in file["mask"]:
        return set()
    values = file["mask"][name][()]
    try:
        return {v.decode() if isinstance(v, bytes) else str(v) for v in values}
    except (UnicodeDecodeError, TypeError):
        raise DemoError(path, "is not a list of episode names.", field=f"mask/{name}") from None


def _number(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return (int(digits), name) if digits.isdigit() else (-1, name)


def _episode(path: Path, name: str, group: Any, expectation: Expectation | None, held_out: bool) -> Episode:
    if not isinstance(group, h5py.Group) or not isinstance(group.get("obs", group), h5py.Group):
        raise DemoError(path, "is not a group, or its observations are not.", episode=name)
    for required in ("actions", "obs"):
        if required not in group:
            raise DemoError(path, "is missing.", episode=name, field=required)
    actions_data: Any = group["actions"]
    observed: Any = group["obs"]
    action_dim = expectation.action_dim if expectation else actions_data.shape[-1]
    actions = checked_array(path, actions_data[()], episode=name, field="actions", width=action_dim)
    length = len(actions)
    stated = group.attrs.get("num_samples")
    if stated is not None and int(stated) != length:
        raise DemoError(path, f"says {stated}, but there are {length} actions.", episode=name, field="num_samples")
    if "rewards" in group:
        rewards_data: Any = group["rewards"]
        rewards = checked_array(path, rewards_data[()], episode=name, field="rewards", length=length)
    else:
        rewards = np.zeros(length, np.float32)
    keys = expectation.obs_keys if expectation else tuple((k, None) for k in sorted(observed))
    parts = []
    for key, width in keys:
        if key not in observed:
            found = ", ".join(sorted(observed)) or "none"
            raise DemoError(path, f"is missing; found: {found}.", episode=name, field=f"obs/{key}")
        data = observed[key]
        if width is None:
            if len(data.shape) != 2:
                continue  # images, when no task says which keys are wanted
            width = data.shape[1]
        parts.append(checked_array(path, data[()], episode=name, field=f"obs/{key}", length=length, width=width))
    if not parts:
        raise DemoError(path, "holds no low-dimensional observation.", episode=name, field="obs")
    return Episode(name=name, obs=np.concatenate(parts, axis=1), actions=actions, rewards=rewards, held_out=held_out)


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """One episode as the simulator produced it, L steps."""

    obs: FloatArray
    """[L, O]"""
    next_obs: FloatArray
    """[L, O]"""
    actions: FloatArray
    """[L, A]"""
    rewards: FloatArray
    """[L]"""
    states: FloatArray
    """[L, S] flat simulator state before each step."""
    model_xml: str


def write(
    path: Path,
    episodes: Sequence[RecordedEpisode],
    *,
    env_args: str,
    obs_keys: tuple[tuple[str, int], ...],
    source: Mapping[str, Any],
    num_held_out: int,
) -> None:
    """Write a robomimic HDF5 file that robomimic's own readers accept.

    The file appears under its name only when it is complete. The last ``num_held_out`` episodes become the ``valid``
    mask. Timestamps are left out, so the same episodes give the same bytes.

    Args:
        path: where to.
        episodes: what was recorded.
        env_args: robomimic's JSON description of the environment.
        obs_keys: order and width of the parts of the observation.
        source: who acted and how; ``kind`` is required.
        num_held_out: episodes kept out of training.
    """
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with h5py.File(partial, "w", track_order=False) as file:
            data = file.create_group("data")
            for i, episode in enumerate(episodes):
                _write_episode(data.create_group(f"demo_{i}"), episode, obs_keys)
            data.attrs["total"] = sum(len(e.actions) for e in episodes)
            data.attrs["env_args"] = env_args
            data.attrs[SOURCE_ATTRIBUTE] = json.dumps(dict(source), sort_keys=True)
            names = np.array([f"demo_{i}".encode() for i in range(len(episodes))])
            mask = file.create_group("mask")
            split = len(names) - num_held_out
            mask["train"], mask["valid"] = names[:split], names[split:]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_episode(group: Any, episode: RecordedEpisode, obs_keys: tuple[tuple[str, int], ...]) -> None:
    def put(name: str, array: Any) -> None:
        group.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)

    put("actions", episode.actions)
    put("states", episode.states)
    put("rewards", episode.rewards)
    dones = np.zeros(len(episode.actions), np.int64)
    dones[-1] = 1
    put("dones", dones)
    for prefix, array in (("obs", episode.obs), ("next_obs", episode.next_obs)):
        start = 0
        for key, width in obs_keys:
            put(f"{prefix}/{key}", array[:, start : start + width])
            start += width
    group.attrs["num_samples"] = len(episode.actions)
    group.attrs["model_file"] = episode.model_xml
