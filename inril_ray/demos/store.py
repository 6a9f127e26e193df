"""Demonstrations as one Arrow file, and the store that learners sample from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inril_ray.demos import FORMATS
from inril_ray.demos.episodes import DemoError, Episode, Expectation, FileInfo
from inril_ray.registry import resolve
from inril_ray.types import DemoBatch, FloatArray, InrilError, NormalizerStats

FORMAT_VERSION = 1
METADATA_KEY = b"inril_demos"


@dataclass(frozen=True, kw_only=True)
class DemoInfo:
    """What is known about a set of demonstrations."""

    source_file: str
    """Name of the file that it was converted from."""
    format: str
    env_name: str
    semantics: str
    source: str
    """Who acted: ``human``, ``scripted``, ``planner``, ``rl`` or ``unknown``."""
    obs_keys: tuple[tuple[str, int], ...]
    content_hash: str
    """SHA-256 of the arrays: two stores with equal hashes hold equal demonstrations."""
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DemoArrays:
    """Everything in a store as plain arrays, S steps in E episodes: what is put into Ray's object store."""

    obs: FloatArray
    """[S, O]"""
    actions: FloatArray
    """[S, A]"""
    rewards: FloatArray
    """[S]"""
    episode_starts: npt.NDArray[np.int64]
    """[E + 1] first step of each episode, and S."""
    held_out: npt.NDArray[np.bool_]
    """[E] kept out of training."""
    info: DemoInfo

    def size_bytes(self) -> int:
        """Bytes in arrays."""
        return sum(v.nbytes for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), np.ndarray))


class DemoStore:
    """Samples windows of demonstrations without copying the data.

    The arrays may be read-only views of a memory-mapped file or of Ray's object store, shared by every process of a
    node; sampling copies the rows of a minibatch only.

    Args:
        arrays: the demonstrations.
        prediction_horizon: actions in a window. Windows start at 0 … L-H of each episode; none crosses an episode
            and ends are not padded.

    Raises:
        InrilError: no training episode is as long as a window.
    """

    def __init__(self, arrays: DemoArrays, prediction_horizon: int) -> None:
        self.arrays, self.info, self.prediction_horizon = arrays, arrays.info, prediction_horizon
        self._train = self._window_starts(~arrays.held_out)
        self._probe = self._window_starts(arrays.held_out)
        if len(self._train) == 0:
            raise InrilError(
                f"No training demonstration in {arrays.info.source_file} is as long as a window of "
                f"prediction_horizon = {prediction_horizon} steps."
            )

    def _window_starts(self, episodes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        starts, ends = self.arrays.episode_starts[:-1], self.arrays.episode_starts[1:]
        ranges = [
            np.arange(s, e - self.prediction_horizon + 1) for s, e in zip(starts[episodes], ends[episodes], strict=True)
        ]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)

    @property
    def num_windows(self) -> int:
        """Training windows: one epoch."""
        return len(self._train)

    @property
    def num_probe_windows(self) -> int:
        """Held-out windows."""
        return len(self._probe)

    @property
    def num_episodes(self) -> int:
        """Episodes, held-out ones included."""
        return len(self.arrays.held_out)

    def sample(self, rng: np.random.Generator, batch_size: int) -> DemoBatch:
        """Draw windows of the training episodes with replacement."""
        return self.windows(rng.integers(self.num_windows, size=batch_size))

    def windows(self, indices: npt.NDArray[np.int64]) -> DemoBatch:
        """Return training windows by index, each in 0 … ``num_windows`` - 1."""
        return self._batch(self._train[indices])

    def probe(self, max_windows: int = 1024) -> DemoBatch:
        """Return evenly spread held-out windows, or training windows where nothing is held out."""
        starts = self._probe if len(self._probe) else self._train
        stride = max(1, -(-len(starts) // max_windows))
        return self._batch(starts[::stride])

    def _batch(self, starts: npt.NDArray[np.int64]) -> DemoBatch:
        # np.take beats fancy indexing on large shared arrays by a factor of up to two.
        steps = starts[:, None] + np.arange(self.prediction_horizon)
        return DemoBatch(
            obs=np.take(self.arrays.obs, starts, axis=0), actions=np.take(self.arrays.actions, steps, axis=0)
        )

    def normalizer_stats(self) -> NormalizerStats:
        """Return the per-dimension range of all observations and actions."""
        obs, actions = self.arrays.obs, self.arrays.actions
        return NormalizerStats(
            obs_low=obs.min(axis=0),
            obs_high=obs.max(axis=0),
            action_low=actions.min(axis=0),
            action_high=actions.max(axis=0),
        )


# -- files ------------------------------------------------------------------------------------------------------------
def recognise(path: Path) -> Any:
    """Return the reader for a file.

    Raises:
        DemoError: the file does not exist or no format recognises it.
    """
    if not path.is_file():
        raise DemoError(path, "is not a file." if path.exists() else "does not exist.")
    for name in FORMATS:
        reader = resolve(FORMATS, name, "demonstration format")
        if reader.recognises(path):
            return reader
    raise DemoError(path, f"is none of the known formats ({', '.join(FORMATS)}), or it is damaged.")


def convert(path: Path, target: Path, expectation: Expectation | None) -> DemoArrays:
    """Convert a demonstration file to one Arrow file, which appears only when it is complete.

    Raises:
        DemoError: the file can't be used; nothing is left at ``target``.
    """
    arrays = read_source(path, expectation)
    write_arrow(arrays, target)
    return arrays


def read_source(path: Path, expectation: Expectation | None) -> DemoArrays:
    """Read a demonstration file of any known format.

    Raises:
        DemoError: the file can't be used; names file, episode and field.
    """
    reader = recognise(path)
    info: FileInfo = reader.inspect(path)
    episodes = list(reader.read(path, expectation))
    obs_keys = expectation.obs_keys if expectation else (("obs", episodes[0].obs.shape[1]),)
    return _arrays(path, info, episodes, obs_keys)


def load(path: Path, expectation: Expectation | None = None) -> DemoArrays:
    """Load demonstrations: our Arrow file by memory map, any other format by reading it."""
    if not path.is_file():
        raise DemoError(path, "is not a file." if path.exists() else "does not exist.")
    with path.open("rb") as file:
        is_arrow = file.read(6) == b"ARROW1"
    if not is_arrow:
        return read_source(path, expectation)
    arrays = read_arrow(path)
    if expectation:
        if expectation.env_name not in (None, arrays.info.env_name):
            raise DemoError(
                path,
                f"holds demonstrations of {arrays.info.env_name!r}, the task needs {expectation.env_name!r}.",
                field="env_name",
            )
        if arrays.actions.shape[1] != expectation.action_dim:
            raise DemoError(
                path, f"has width {arrays.actions.shape[1]}, the task needs {expectation.action_dim}.", field="actions"
            )
        if arrays.info.obs_keys != expectation.obs_keys:
            raise DemoError(
                path, f"holds {arrays.info.obs_keys}, the task needs {expectation.obs_keys}.", field="obs_keys"
            )
    return arrays


def _arrays(
    path: Path, info: FileInfo, episodes: Iterable[Episode], obs_keys: tuple[tuple[str, int], ...]
) -> DemoArrays:
    episodes = list(episodes)
    widths = {e.obs.shape[1] for e in episodes}
    if len(widths) > 1:
        raise DemoError(path, f"differs in width between episodes: {sorted(widths)}.", field="obs")
    obs = np.concatenate([e.obs for e in episodes])
    actions = np.concatenate([e.actions for e in episodes])
    rewards = np.concatenate([e.rewards for e in episodes])
    starts = np.cumsum([0, *(len(e.actions) for e in episodes)])
    held_out = np.array([e.held_out for e in episodes])
    if held_out.all():
        raise DemoError(path, "holds out every episode, none is left to train on.", field="mask/valid")
    digest = hashlib.sha256()
    for array in (obs, actions, rewards, starts, held_out):
        digest.update(np.ascontiguousarray(array).tobytes())
    return DemoArrays(
        obs=obs,
        actions=actions,
        rewards=rewards,
        episode_starts=starts,
        held_out=held_out,
        info=DemoInfo(
            source_file=path.name,
            format=info.format,
            env_name=info.env_name,
            semantics=info.semantics,
            source=info.source,
            obs_keys=obs_keys,
            content_hash=digest.hexdigest(),
            metadata={**info.metadata, **({"warnings": list(info.warnings)} if info.warnings else {})},
        ),
    )


def write_arrow(arrays: DemoArrays, target: Path) -> None:
    """Write one Arrow IPC file: a row for each step, everything else in the schema's metadata."""
    columns = {
        "obs": _fixed_size(arrays.obs),
        "actions": _fixed_size(arrays.actions),
        "rewards": pa.array(arrays.rewards),
    }
    header = {
        "format_version": FORMAT_VERSION,
        "episode_starts": arrays.episode_starts.tolist(),
        "held_out": arrays.held_out.tolist(),
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


def _fixed_size(array: FloatArray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def read_arrow(path: Path) -> DemoArrays:
    """Memory-map a file that :func:`write_arrow` wrote; the arrays are read-only views of the map.

    Raises:
        DemoError: not such a file, another version, or damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        header = json.loads((table.schema.metadata or {})[METADATA_KEY])
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise DemoError(path, f"has format version {version}, this release reads {FORMAT_VERSION}.")
        info = header["info"]
        info["obs_keys"] = tuple((k, w) for k, w in info["obs_keys"])
        columns = {name: _view(table[name]) for name in ("obs", "actions", "rewards")}
        arrays = DemoArrays(
            **columns,
            episode_starts=np.array(header["episode_starts"], np.int64),
            held_out=np.array(header["held_out"], bool),
            info=DemoInfo(**info),
        )
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise DemoError(path, f"is not a complete demonstration store ({error!r}).") from None
    starts = arrays.episode_starts
    fits = len(starts) == len(arrays.held_out) + 1 and starts[0] == 0 and starts[-1] == len(arrays.obs)
    if not fits or (np.diff(starts) < 1).any():
        raise DemoError(path, "disagrees with the number of steps.", field="episode_starts")
    return arrays


def _view(column: pa.ChunkedArray) -> FloatArray:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.FixedSizeListArray):
        width = array.type.list_size
        return array.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
    return array.to_numpy(zero_copy_only=True)
