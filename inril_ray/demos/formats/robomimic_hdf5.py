"""Robomimic HDF5: reader and writer.

Layout (robomimic 0.3): group ``data`` with attributes ``env_args`` (JSON) and ``total``; groups ``data/demo_i`` with
attributes ``num_samples`` and ``model_file`` and datasets ``actions``, ``states``, ``rewards``, ``dones``, ``obs/*``,
``next_obs/*``; ``mask/<filter>`` lists demo names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from inril_ray.demos.episodes import (
    DAMAGE,
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
    reading,
    recorded_source,
    wanted_keys,
)
from inril_ray.demos.hdf5 import content, open_hdf5, put, text, written
from inril_ray.demos.semantics import CHECKED, check_arrays
from inril_ray.types import FloatArray

ENV_ARGS = "data.attrs['env_args']"
ROBOSUITE_TYPE = 1
"""Robomimic's code for robosuite environments."""


class RobomimicHdf5:
    """Reader of robomimic's data sets.

    Robomimic marks the end of an episode (``dones``) where the task is solved or the recording stops; its tasks don't
    end by themselves. So no episode counts as terminated. An episode is a success if any reward is positive.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is an HDF5 file with a ``data`` group."""
        if not path.is_file():
            return False
        try:
            with h5py.File(path, "r") as file:
                return isinstance(file.get("data"), h5py.Group)
        except DAMAGE:
            return False

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata of a file."""
        with reading(path), open_hdf5(path) as file:
            return _info(path, file)

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes of a file in numerical order.

        Args:
            path: the file.
            expectation: what the task requires; None reads all one- and two-dimensional observations, in the
                alphabetical order of their keys.
            selection: a filter (``mask/NAME``) and image keys.

        Raises:
            DemoError: the file is not readable or does not fit, or its observations contradict the release of
                robosuite that it names; names file, episode and field.
        """
        with reading(path), open_hdf5(path) as file:
            info = _info(path, file)
            demos = file["data"]
            names = sorted(demos, key=_number)
            held_out = _mask(path, file, "valid", names) if "valid" in file.get("mask", ()) else set()
            if selection.filter is not None:
                chosen = _mask(path, file, selection.filter, names)
                names = [name for name in names if name in chosen]
            if not names:
                raise DemoError(path, "holds no episodes.", field="data")
            for name in names:
                with reading(path, name):
                    episode = _episode(path, name, demos[name], info, expectation, selection, name in held_out)
                yield episode


def _info(path: Path, file: Any) -> FileInfo:
    if "data" not in file or not isinstance(file["data"], h5py.Group):
        raise DemoError(path, "is missing; a robomimic file has this group.", field="data")
    attributes = file["data"].attrs
    if "env_args" not in attributes:
        raise DemoError(path, "is missing.", field=ENV_ARGS)
    try:
        env_args = json.loads(attributes["env_args"])
        env_name = str(env_args["env_name"])
        semantics, version = _semantics(env_args)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DemoError(path, f"is not robomimic's JSON ({error!r}).", field=ENV_ARGS) from None
    source = recorded_source(path, text(attributes.get(SOURCE_KEY)))
    warnings = (
        [f"robosuite {version} is older than 1.4; its rules are taken to be 1.4.1's."]
        if version and _release(version) < (1, 4)
        else []
    )
    masks = sorted(file["mask"]) if isinstance(file.get("mask"), h5py.Group) else []
    return FileInfo(
        format="robomimic_hdf5",
        env_name=env_name,
        semantics=semantics,
        source=str(source.get("kind", "unknown")),
        metadata={
            **({"env_version": version} if version else {}),
            **({"filters": masks} if masks else {}),
            "observations": _shapes(file["data"]),
            **({"made_by": source} if source else {}),
        },
        warnings=(*warnings, *_contradictions(path, file["data"], env_name, semantics)),
    )


def _contradictions(path: Path, demos: Any, env_name: str, semantics: str) -> list[str]:
    """Return how the first episode contradicts the rules that the file states: a warning until a task needs them."""
    observed = {key: d for key, d in _first_observations(demos).items() if key in CHECKED and d.ndim == 2}
    try:
        arrays = {key: content(path, d, episode=None, field=f"obs/{key}") for key, d in observed.items()}
        check_arrays(path, "", env_name, semantics, arrays)
    except DemoError as error:
        return [f"obs/object of the first episode {error.reason}"]
    return []


def _shapes(demos: Any) -> dict[str, list[int]]:
    """Return the shapes of one step of the observations, as the first episode has them."""
    return {key: list(d.shape[1:]) for key, d in _first_observations(demos).items()}


def _first_observations(demos: Any) -> dict[str, Any]:
    first = demos[min(demos, key=_number)] if len(demos) else None
    observed = first.get("obs") if isinstance(first, h5py.Group) else None
    found = observed.items() if isinstance(observed, h5py.Group) else ()
    return {key: d for key, d in found if isinstance(d, h5py.Dataset)}


def _semantics(env_args: Mapping[str, Any]) -> tuple[str, str]:
    """Return the rules of the release of robosuite that recorded, and its version; both empty for other simulators."""
    if env_args.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        return "", ""
    version = env_args.get("env_version")
    if version is None:
        # The parts of a composite controller came with robosuite 1.5, and so did the name of the version.
        controller = (env_args.get("env_kwargs") or {}).get("controller_configs") or {}
        version = "1.5" if "body_parts" in controller else "1.4.1"
    release = _release(str(version))
    if release > (1, 5):
        raise ValueError(f"env_version {version}: the rules of robosuite after 1.5 are not known here")
    return ("v15" if release == (1, 5) else "v141"), str(version)


def _release(version: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise ValueError(f"env_version {version!r} is no version")
    return int(numbers[1]), int(numbers[2])


def _mask(path: Path, file: Any, name: str, episodes: Sequence[str]) -> set[str]:
    masks = file.get("mask", {})
    if name not in masks:
        raise DemoError(path, f"has no such filter; found: {', '.join(masks) or 'none'}.", field=f"mask/{name}")
    try:
        named = {v.decode() if isinstance(v, bytes) else str(v) for v in masks[name][()]}
    except (UnicodeDecodeError, TypeError):
        raise DemoError(path, "is not a list of episode names.", field=f"mask/{name}") from None
    unknown = named - set(episodes)
    if unknown:
        raise DemoError(path, f"names episodes that are not there: {sorted(unknown)}.", field=f"mask/{name}")
    return named


def _number(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return (int(digits), name) if digits.isdigit() else (-1, name)


def _episode(
    path: Path,
    name: str,
    group: Any,
    info: FileInfo,
    expectation: Expectation | None,
    selection: Selection,
    held_out: bool,
) -> Episode:
    if not isinstance(group, h5py.Group) or not isinstance(group.get("obs", group), h5py.Group):
        raise DemoError(path, "is not a group, or its observations are not.", episode=name)
    for required in ("actions", "obs"):
        if required not in group:
            raise DemoError(path, "is missing.", episode=name, field=required)
    observed: Any = group["obs"]
    raw = content(path, group["actions"], episode=name, field="actions")
    actions = checked_actions(path, raw, expectation, episode=name)
    length = len(actions)
    stated = group.attrs.get("num_samples")
    if stated is not None and int(stated) != length:
        raise DemoError(path, f"says {stated}, but there are {length} actions.", episode=name, field="num_samples")
    rewards = None
    if "rewards" in group:
        raw = content(path, group["rewards"], episode=name, field="rewards")
        rewards = checked_array(path, raw, episode=name, field="rewards", length=length)
    parts: dict[str, FloatArray] = {}
    for key, width in wanted_keys(list(observed), expectation):
        if key not in observed:
            found = ", ".join(sorted(observed)) or "none"
            raise DemoError(path, f"is missing; found: {found}.", episode=name, field=f"obs/{key}")
        if width is None:
            if len(observed[key].shape) != 2:
                continue  # images, when no task says which keys are wanted
            width = observed[key].shape[1]
        raw = content(path, observed[key], episode=name, field=f"obs/{key}")
        parts[key] = checked_array(path, raw, episode=name, field=f"obs/{key}", length=length, width=width)
    if not parts:
        raise DemoError(path, "holds no low-dimensional observation.", episode=name, field="obs")
    if expectation and expectation.recorded_semantics is None:
        check_arrays(path, name, info.env_name, info.semantics, parts)
    return Episode(
        name=name,
        obs=np.concatenate(list(parts.values()), axis=1),
        actions=actions,
        rewards=np.zeros(length, np.float32) if rewards is None else rewards,
        final_obs=_final_obs(path, name, group, parts),
        success=None if rewards is None else bool((rewards > 0).any()),
        held_out=held_out,
        images={key: _images(path, name, observed, key, length) for key in selection.images},
    )


def _final_obs(path: Path, name: str, group: Any, parts: Mapping[str, FloatArray]) -> FloatArray | None:
    following = group.get("next_obs")
    if not isinstance(following, h5py.Group) or not all(key in following for key in parts):
        return None
    last = []
    for key, part in parts.items():
        field = f"next_obs/{key}"
        raw = content(path, following[key], episode=name, field=field)
        last.append(checked_array(path, raw, episode=name, field=field, length=len(part), width=part.shape[1])[-1])
    return np.concatenate(last)


def _images(path: Path, name: str, observed: Any, key: str, length: int) -> npt.NDArray[np.uint8]:
    field = f"obs/{key}"
    if key not in observed:
        found = ", ".join(k for k in sorted(observed) if len(observed[k].shape) == 4) or "none"
        raise DemoError(path, f"is missing; images found: {found}.", episode=name, field=field)
    pictures = content(path, observed[key], episode=name, field=field)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != length:
        raise DemoError(
            path,
            f"is {pictures.dtype} {pictures.shape}; images are uint8 ({length}, height, width, channels).",
            episode=name,
            field=field,
        )
    return pictures


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
    with written(path) as file:
        data = file.create_group("data")
        for i, episode in enumerate(episodes):
            _write_episode(data.create_group(f"demo_{i}"), episode, obs_keys)
        data.attrs["total"] = sum(len(e.actions) for e in episodes)
        data.attrs["env_args"] = env_args
        data.attrs[SOURCE_KEY] = json.dumps(dict(source), sort_keys=True)
        names = np.array([f"demo_{i}".encode() for i in range(len(episodes))])
        mask = file.create_group("mask")
        split = len(names) - num_held_out
        mask["train"], mask["valid"] = names[:split], names[split:]


def _write_episode(group: Any, episode: RecordedEpisode, obs_keys: tuple[tuple[str, int], ...]) -> None:
    put(group, "actions", episode.actions)
    if episode.states is not None:
        put(group, "states", episode.states)
    put(group, "rewards", episode.rewards)
    dones = np.zeros(len(episode.actions), np.int64)
    dones[-1] = 1
    put(group, "dones", dones)
    for prefix, array in (("obs", episode.obs), ("next_obs", episode.next_obs)):
        start = 0
        for key, width in obs_keys:
            put(group, f"{prefix}/{key}", array[:, start : start + width])
            start += width
    group.attrs["num_samples"] = len(episode.actions)
    if episode.model_xml is not None:
        group.attrs["model_file"] = episode.model_xml
