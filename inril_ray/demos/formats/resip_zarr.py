"""ResiP's zarr data sets: reader and writer.

Layout (Ankile et al. 2024, ``process_pickles.py``; zarr format 2 in a directory, format 3 is read, too): arrays of all
steps, ``robot_state`` [N, 16], ``parts_poses`` [N, 7P + 7], ``action/delta`` and ``action/pos`` [N, 10], ``reward``,
``skill``, ``augment_states`` [N], and in most ``color_image1`` and ``color_image2``; arrays of all episodes,
``episode_ends`` (the number of steps up to the end of each), ``task`` (``furniture`` in older ones), ``success`` and
``pickle_file``. Read are the absolute actions, ``action/pos``, as they are; the data sets hold no observation after the
last action.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inril_ray import rotations
from inril_ray.demos.causes import cause
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
    fixed_names,
    flags,
    no_filter,
    reading,
    recorded_source,
)
from inril_ray.demos.formats.furniture_pickle import (
    ACTION_WIDTH,
    FOREIGN,
    SOURCES,
    STATE_WIDTH,
    joined,
    turns_to,
)
from inril_ray.demos.interface import stated_name
from inril_ray.types import InrilError, Interface

MARKS = (".zgroup", ".zarray", "zarr.json")
"""Files that make a directory a zarr group or array."""
OBSERVED = ("robot_state", "parts_poses")
IMAGES = ("color_image1", "color_image2")
"""The camera on the wrist and the one in front."""
ENDS = "episode_ends"
NAMES = ("task", "furniture")
MAY_BE_ZERO = ("reward", "success")
"""Arrays of which zarr 3 leaves out chunks that hold nothing but zeros."""
CODECS = ("blosc", "bytes", "bz2", "crc32c", "gzip", "lz4", "lzma", "vlen-utf8", "zlib", "zstd")
"""Ways of packing numbers and names that are read. Not ``pickle``, which older numcodecs decode without asking."""
BLOSC_HEADER = 16
"""Bytes; the last four are the length of the whole chunk."""
CHUNK_STEPS = 1000


class ResipZarr:
    """Reader of ResiP's data sets.

    The tasks run to their time limit, so no episode counts as terminated. An episode is a success if ``success`` says
    so.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is a zarr directory."""
        return any((path / mark).is_file() for mark in MARKS)

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata."""
        with reading(path):
            group = _opened(path)
            attributes = dict(group.attrs)
            source = recorded_source(path, attributes.get(SOURCE_KEY))
            kind = SOURCES.get(str(attributes.get("demo_source")), "unknown")
            observed = [name for name in (*OBSERVED, *IMAGES) if name in group]
            return FileInfo(
                format="resip_zarr",
                env_name=_task(path, group, len(_ends(path, group)) - 1),
                semantics="",
                source=str(source.get("kind", kind)),
                metadata={
                    "observations": {name: list(_array(path, group, name).shape[1:]) for name in observed},
                    **({"made_by": source} if source else {}),
                },
                warnings=() if source else (FOREIGN,),
                stated=Interface(action_type="absolute", action_frame="base", rewards="sparse"),
            )

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes in order.

        Args:
            path: the directory.
            expectation: what the task requires; None reads ``robot_state`` and ``parts_poses`` as they are.
            selection: keys of pictures, such as ``color_image2``; no filters in this format.

        Raises:
            DemoError: the data set is not readable, contradicts itself or does not fit; names the array.
        """
        no_filter(path, dataclasses.replace(selection, images=()))
        fixed_names(path, selection)
        with reading(path):
            group = _opened(path)
            ends = _ends(path, group)
            episodes, length = len(ends) - 1, int(ends[-1])
            _task(path, group, episodes)

            def steps(name: str, width: int | None) -> Any:
                array = _array(path, group, name, length)
                return checked_array(path, _values(array), episode=None, field=name, length=length, width=width)

            parts = {
                "robot_state": steps("robot_state", STATE_WIDTH),
                "parts_poses": steps("parts_poses", _width(path, group, "parts_poses", length)),
            }
            obs = joined(path, None, parts, expectation)
            actions = checked_actions(path, steps("action/pos", ACTION_WIDTH), expectation, episode=None)
            rewards = steps("reward", None) if "reward" in group else None
            success = None
            if "success" in group:
                told = _values(_array(path, group, "success", episodes))
                success = flags(path, told, episode=None, field="success", length=episodes)
            pictures = {key: _pictures(path, group, key, length) for key in selection.images}
        for i, (start, end) in enumerate(pairwise(ends.tolist())):
            with reading(path, str(i)):
                images = {key: _values(array, slice(start, end)) for key, array in pictures.items()}
            yield Episode(
                name=str(i),
                obs=obs[start:end],
                actions=actions[start:end],
                keys=expectation.obs_keys if expectation else tuple((key, parts[key].shape[1]) for key in OBSERVED),
                rewards=None if rewards is None else rewards[start:end],
                terminated=False,
                success=None if success is None else bool(success[i]),
                images=images,
            )


def zarr_package() -> Any:
    """Import zarr.

    Raises:
        InrilError: it is not installed.
    """
    try:
        import zarr
    except ImportError:
        raise InrilError("ResiP's data sets need zarr: pip install 'inril-ray[furniture]'.") from None
    return zarr


def _opened(path: Path) -> Any:
    if not ResipZarr.recognises(path):
        raise DemoError(path, "is no zarr directory.")
    zarr = zarr_package()
    group = zarr.open(str(path), mode="r")
    if not isinstance(group, zarr.Group):
        raise DemoError(path, "is one zarr array; ResiP's data sets are groups of them.")
    return group


def _array(path: Path, group: Any, name: str, length: int | None = None) -> Any:
    """Return an array whose content is all there, unread.

    Raises:
        DemoError: it is missing, of another length, or lacks chunks: zarr reads zeros in their place.
    """
    if name not in group or not hasattr(group[name], "shape"):
        raise DemoError(path, "is missing.", field=name)
    array = group[name]
    if not array.ndim or (length is not None and array.shape[0] != length):
        what = "episodes" if name in (*NAMES, "success") else "steps"
        raise DemoError(path, f"has shape {array.shape}, there are {length} {what}.", field=name)
    lacking = array.nchunks - array.nchunks_initialized
    if lacking and not (group.metadata.zarr_format == 3 and name in MAY_BE_ZERO):
        raise DemoError(path, f"lacks {lacking} of {array.nchunks} chunks: the copy is not complete.", field=name)
    codecs = _codecs(array)
    if refused := sorted(codecs - set(CODECS)):
        raise DemoError(path, f"is packed by {', '.join(refused)}; read are {', '.join(CODECS)}.", field=name)
    if "blosc" in codecs:
        _chunks_are_whole(path, name)
    return array


def _codecs(array: Any) -> set[str]:
    """Return the names of the codecs that zarr decodes an array with, whichever of its files tells them."""
    told = array.metadata.to_dict()
    if told["zarr_format"] == 2:
        return {codec["id"] for codec in (told["compressor"], *(told["filters"] or ())) if codec}
    return {codec["name"] for codec in told["codecs"]}


def _chunks_are_whole(path: Path, name: str) -> None:
    """Hold the length of every Blosc chunk against its header: the decoder reads beyond the end of one that was cut.

    Raises:
        DemoError: a chunk has another length.
    """
    for chunk in (path / name).rglob("*"):
        if chunk.is_file() and not chunk.name.startswith(".") and chunk.name != "zarr.json":
            with chunk.open("rb") as file:
                told, found = int.from_bytes(file.read(BLOSC_HEADER)[-4:], "little"), chunk.stat().st_size
            if reason := cause(chunk):
                raise DemoError(path, f"chunk {chunk.name} {reason}", field=name)
            if found < BLOSC_HEADER or told != found:
                raise DemoError(path, f"chunk {chunk.name} has {found} bytes: damaged or truncated.", field=name)


def _values(array: Any, steps: Any = ...) -> np.ndarray:
    try:
        return np.asarray(array[steps])
    except SystemError as error:  # what the decoder of text raises on damaged lengths
        raise ValueError(str(error)) from None


def _width(path: Path, group: Any, name: str, length: int) -> int:
    shape = _array(path, group, name, length).shape
    return shape[1] if len(shape) == 2 else 0


def _ends(path: Path, group: Any) -> npt.NDArray[np.int64]:
    """Return 0, then the number of steps up to the end of each episode."""
    ends = _values(_array(path, group, ENDS))
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or not len(ends):
        raise DemoError(path, f"is {ends.dtype} {ends.shape}; whole numbers, one an episode, are needed.", field=ENDS)
    bounds = np.append(0, ends.astype(np.int64))
    bad = np.diff(bounds) < 1
    if bad.any():
        raise DemoError(path, f"does not increase at episode {int(np.argmax(bad))}.", field=ENDS)
    steps = _array(path, group, "robot_state").shape[0]
    if bounds[-1] != steps:
        raise DemoError(path, f"ends at {bounds[-1]}, there are {steps} steps.", field=ENDS)
    return bounds


def _task(path: Path, group: Any, episodes: int) -> str:
    """Return the name of the task, the same of all episodes; empty where the data set does not say."""
    field = next((name for name in NAMES if name in group), None)
    if field is None:
        return ""
    names = sorted({str(name) for name in np.ravel(_values(_array(path, group, field, episodes)))})
    if len(names) > 1:
        raise DemoError(path, f"names several tasks ({', '.join(names[:5])}); one is read.", field=field)
    return stated_name(names[0]) or ""


def _pictures(path: Path, group: Any, key: str, length: int) -> Any:
    if key not in group:
        found = ", ".join(name for name in IMAGES if name in group) or "none"
        raise DemoError(path, f"is missing; images found: {found}.", field=key)
    array = _array(path, group, key, length)
    if array.dtype != np.uint8 or array.ndim != 4:
        message = f"is {array.dtype} {array.shape}; images are uint8 ({length}, height, width, channels)."
        raise DemoError(path, message, field=key)
    return array


def write(path: Path, episodes: Sequence[RecordedEpisode], *, task: str, source: Mapping[str, Any]) -> None:
    """Write a data set that ResiP's own code reads. The directory appears under its name only when it is complete.

    Args:
        path: directory to make; it must not exist.
        episodes: what was recorded: observations are 16 numbers of robot state, then poses, without padding; actions
            [L, 10] are absolute poses. Their last observation is lost: the layout has no place for it.
        task: name of the task, such as ``one_leg``.
        source: who acted and how; ``kind`` is required.

    Raises:
        DemoError: the path exists.
        InrilError: zarr is not installed.
    """
    if path.exists():
        raise DemoError(path, "exists; a zarr data set is written to a new directory.")
    zarr = zarr_package()
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.create_group(str(partial), zarr_format=2, attributes=_attributes(episodes, source))
        for name, values in _arrays(episodes, task).items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=str if values.dtype == object else values.dtype,
                chunks=(min(CHUNK_STEPS, len(values)), *values.shape[1:]),
                config={"write_empty_chunks": True},  # as zarr 2 does: a chunk that is not there is a lost one
            )
            array[...] = values
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _attributes(episodes: Sequence[RecordedEpisode], source: Mapping[str, Any]) -> dict[str, Any]:
    lengths = [len(e.actions) for e in episodes]
    words = {ours: theirs for theirs, ours in SOURCES.items()}
    return {
        "rotation_mode": "rot_6d",
        "chunksize": CHUNK_STEPS,
        "n_episodes": len(lengths),
        "n_timesteps": sum(lengths),
        "mean_episode_length": round(sum(lengths) / len(lengths)),
        "calculated_pos_action_from_delta": False,
        "demo_source": words.get(source["kind"], source["kind"]),
        SOURCE_KEY: json.dumps(dict(source), sort_keys=True),
    }


def _arrays(episodes: Sequence[RecordedEpisode], task: str) -> dict[str, np.ndarray]:
    obs = np.concatenate([e.obs for e in episodes]).astype(np.float32)
    actions = np.concatenate([e.actions for e in episodes]).astype(np.float32)
    states = obs[:, :STATE_WIDTH]
    steps = np.subtract(actions[:, :3], states[:, :3], dtype=np.float64)
    turns = rotations.six_of_matrix(turns_to(states, actions))
    nothing = np.zeros(len(obs), np.float32)
    known = [e.success for e in episodes if e.success is not None]
    success = {"success": np.array([s.any() for s in known], np.uint8)} if len(known) == len(episodes) else {}
    return {
        "robot_state": states,
        "parts_poses": obs[:, STATE_WIDTH:],
        "action/delta": np.concatenate([steps, turns, actions[:, 9:]], axis=1, dtype=np.float32),
        "action/pos": actions,
        "reward": np.concatenate([e.rewards for e in episodes]).astype(np.float32),
        "skill": nothing,
        "augment_states": nothing,
        ENDS: np.cumsum([len(e.actions) for e in episodes]).astype(np.uint32),
        "task": np.array([task] * len(episodes), object),
        **success,
        "pickle_file": np.array([f"{i:05}.pkl" for i in range(len(episodes))], object),
    }
