"""Demonstrations as one Arrow file, and the store that learners sample from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from inril_ray import __version__
from inril_ray.demos import FORMATS
from inril_ray.demos.columns import matrix
from inril_ray.demos.episodes import DAMAGE, EVERYTHING, DemoError, Episode, Expectation, FileInfo, Selection
from inril_ray.demos.semantics import check_task
from inril_ray.registry import resolve
from inril_ray.types import DemoBatch, FloatArray, InrilError, NormalizerStats

FORMAT_VERSION = 2
METADATA_KEY = b"inril_demos"
CONSTANT = 1e-6
"""A column of observations with a smaller range does not change."""
IMAGES = "images/"
"""Prefix of the columns that hold images."""


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


INFO = TypeAdapter(DemoInfo)
METADATA = {
    "warnings": TypeAdapter(list[str]),
    "observations": TypeAdapter(dict[str, Any]),
    "score_range": TypeAdapter(tuple[float, float]),
}
"""They check the types of what a file states. Other metadata are only printed."""


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
    final_obs: FloatArray = None  # type: ignore[assignment]
    """[E, O] observation after the last action; a row of NaN where it is unknown (the default)."""
    terminated: npt.NDArray[np.bool_] = None  # type: ignore[assignment]
    """[E] the task ended the episode (default: none)."""
    success: npt.NDArray[np.int8] = None  # type: ignore[assignment]
    """[E] 1, 0, or -1 where it is unknown (the default)."""
    images: Mapping[str, npt.NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    """Key to pictures [S, height, width, channels]."""

    def __post_init__(self) -> None:
        episodes = len(self.held_out)
        unknown = {
            "final_obs": lambda: np.full((episodes, self.obs.shape[1]), np.nan, np.float32),
            "terminated": lambda: np.zeros(episodes, bool),
            "success": lambda: np.full(episodes, -1, np.int8),
        }
        for name, make in unknown.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, make())

    def size_bytes(self) -> int:
        """Bytes in arrays."""
        fields = [getattr(self, f.name) for f in dataclasses.fields(self)]
        return sum(v.nbytes for v in [*fields, *self.images.values()] if isinstance(v, np.ndarray))

    def hash_content(self) -> str:
        """Return the SHA-256 of the arrays, with their names, types and shapes."""
        digest = hashlib.sha256()
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named.update({IMAGES + key: self.images[key] for key in sorted(self.images)})
        for name, value in named.items():
            if isinstance(value, np.ndarray):
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).reshape(-1).data)
        return digest.hexdigest()


class DemoStore:
    """Samples windows of demonstrations without copying the data.

    The arrays may be read-only views of a memory-mapped file or of Ray's object store, shared by every process of a
    node; sampling copies the rows of a minibatch only.

    Args:
        arrays: the demonstrations.
        prediction_horizon: actions in a window; none crosses an episode.
        pad_ends: windows start at every step, and repeat the last action beyond the end of the episode, as ResiP's do;
            else they start at 0 … L-H, as DPPO's do.

    Raises:
        InrilError: no training episode is as long as a window.
    """

    def __init__(self, arrays: DemoArrays, prediction_horizon: int, *, pad_ends: bool = False) -> None:
        self.arrays, self.info, self.prediction_horizon = arrays, arrays.info, prediction_horizon
        self._pad_ends = pad_ends
        self._train = self._window_starts(~arrays.held_out)
        self._probe = self._window_starts(arrays.held_out)
        if len(self._train) == 0:
            raise InrilError(
                f"No training demonstration in {arrays.info.source_file} is as long as a window of "
                f"prediction_horizon = {prediction_horizon} steps."
            )

    def _window_starts(self, episodes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        starts, ends = self.arrays.episode_starts[:-1], self.arrays.episode_starts[1:]
        beyond = 0 if self._pad_ends else self.prediction_horizon - 1
        ranges = [np.arange(s, e - beyond) for s, e in zip(starts[episodes], ends[episodes], strict=True)]
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
        if self._pad_ends:
            ends = self.arrays.episode_starts
            steps = np.minimum(steps, ends[np.searchsorted(ends, starts, side="right"), None] - 1)
        return DemoBatch(
            obs=np.take(self.arrays.obs, starts, axis=0),
            actions=np.take(self.arrays.actions, steps, axis=0),
            images={key: np.take(pictures, starts, axis=0) for key, pictures in self.arrays.images.items()},
        )

    def normalizer_stats(self) -> NormalizerStats:
        """Return the per-dimension range of all observations and actions.

        A column of the observations that never changes counts as a range of 2 around it: by its own, any rounding would
        become an enormous number. Source: ResiP.
        """
        obs, actions = self.arrays.obs, self.arrays.actions
        low, high = obs.min(axis=0), obs.max(axis=0)
        constant = (high - low < CONSTANT).astype(obs.dtype)
        return NormalizerStats(
            obs_low=low - constant,
            obs_high=high + constant,
            action_low=actions.min(axis=0),
            action_high=actions.max(axis=0),
        )


# -- files ------------------------------------------------------------------------------------------------------------
def recognise(path: Path) -> Any:
    """Return the reader for a file or a directory.

    Raises:
        DemoError: it does not exist or no format recognises it.
    """
    if not path.exists():
        raise DemoError(path, "does not exist.")
    for name in FORMATS:
        reader = resolve(FORMATS, name, "demonstration format")
        if reader.recognises(path):
            return reader
    raise DemoError(path, f"is none of the known formats ({', '.join(FORMATS)}), or it is damaged.")


def convert(path: Path, target: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> DemoArrays:
    """Convert a demonstration file to one Arrow file, which appears only when it is complete.

    Raises:
        DemoError: the file can't be used, or ``target`` is a file of something else; nothing is changed.
    """
    if target.exists() and not (target.is_file() and _is_arrow(target)):
        raise DemoError(target, "exists and is not a converted data set; choose another name.")
    arrays = read_source(path, expectation, selection)
    write_arrow(arrays, target)
    return arrays


def read_source(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> DemoArrays:
    """Read demonstrations of any known format.

    Args:
        path: file or directory.
        expectation: what the task requires; None reads what is there.
        selection: which episodes and images.

    Raises:
        DemoError: they can't be used; names file, episode and field.
    """
    reader = recognise(path)
    info: FileInfo = reader.inspect(path)
    if expectation and expectation.recorded_semantics is not None:
        stated = f"taken to follow the rules {expectation.recorded_semantics}, as asked; the file says " + (
            info.semantics or "nothing"
        )
        info = dataclasses.replace(
            info, semantics=expectation.recorded_semantics, warnings=(*info.warnings, f"{stated}.")
        )
    if expectation:
        info = dataclasses.replace(info, warnings=info.warnings + check_task(path, info, expectation))
    episodes = list(reader.read(path, expectation, selection))
    obs_keys = expectation.obs_keys if expectation else (("obs", episodes[0].obs.shape[1]),)
    return _arrays(path, info, episodes, obs_keys, selection)


def load(path: Path, expectation: Expectation | None = None, selection: Selection = EVERYTHING) -> DemoArrays:
    """Load demonstrations: our Arrow file by memory map, any other format by reading it.

    Args:
        path: file or directory.
        expectation: what the task requires; None takes what is there.
        selection: which episodes and images; not for Arrow files, which hold what was selected in the conversion.

    Raises:
        DemoError: they can't be used, or an Arrow file's content is not that of its hash.
    """
    if not path.is_file() or not _is_arrow(path):
        return read_source(path, expectation, selection)
    if selection != EVERYTHING:
        raise DemoError(path, "is a converted store; filters and images are chosen when it is converted.")
    arrays = read_arrow(path)
    if arrays.hash_content() != arrays.info.content_hash:
        raise DemoError(path, "differs from its hash: it was damaged or changed. Convert again.", field="content")
    if expectation:
        recorded = FileInfo(
            format=arrays.info.format,
            env_name=arrays.info.env_name,
            semantics=arrays.info.semantics,
            source=arrays.info.source,
        )
        warnings = check_task(path, recorded, expectation)
        if arrays.actions.shape[1] != expectation.action_dim:
            raise DemoError(
                path, f"has width {arrays.actions.shape[1]}, the task needs {expectation.action_dim}.", field="actions"
            )
        if arrays.info.obs_keys != expectation.obs_keys:
            raise DemoError(
                path, f"holds {arrays.info.obs_keys}, the task needs {expectation.obs_keys}.", field="obs_keys"
            )
        old = arrays.info.metadata.get("warnings", [])
        if set(warnings) - set(old):
            metadata = {**arrays.info.metadata, "warnings": [*old, *(w for w in warnings if w not in old)]}
            arrays = dataclasses.replace(arrays, info=dataclasses.replace(arrays.info, metadata=metadata))
    return arrays


def _is_arrow(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"


def _arrays(
    path: Path,
    info: FileInfo,
    episodes: list[Episode],
    obs_keys: tuple[tuple[str, int], ...],
    selection: Selection,
) -> DemoArrays:
    for name, arrays in (("obs", [e.obs for e in episodes]), ("actions", [e.actions for e in episodes])):
        widths = {a.shape[1] for a in arrays}
        if len(widths) > 1:
            raise DemoError(path, f"differs in width between episodes: {sorted(widths)}.", field=name)
    for key in selection.images:
        shapes = {e.images[key].shape[1:] for e in episodes}
        if len(shapes) > 1:
            raise DemoError(path, f"differs in shape between episodes: {sorted(shapes)}.", field=key)
    held_out = np.array([e.held_out for e in episodes])
    if held_out.all():
        raise DemoError(path, "holds out every episode, none is left to train on.", field="mask/valid")
    unknown = np.full(episodes[0].obs.shape[1], np.nan, np.float32)
    chosen = {"filter": selection.filter} if selection.filter else {}
    warnings = {"warnings": list(info.warnings)} if info.warnings else {}
    arrays = DemoArrays(
        obs=np.concatenate([e.obs for e in episodes]),
        actions=np.concatenate([e.actions for e in episodes]),
        rewards=np.concatenate([e.rewards for e in episodes]),
        episode_starts=np.cumsum([0, *(len(e.actions) for e in episodes)]),
        held_out=held_out,
        final_obs=np.stack([unknown if e.final_obs is None else e.final_obs for e in episodes]),
        terminated=np.array([e.terminated for e in episodes]),
        success=np.array([-1 if e.success is None else int(e.success) for e in episodes], np.int8),
        images={key: np.concatenate([e.images[key] for e in episodes]) for key in selection.images},
        info=DemoInfo(
            source_file=path.name,
            format=info.format,
            env_name=info.env_name,
            semantics=info.semantics,
            source=info.source,
            obs_keys=obs_keys,
            content_hash="",
            metadata={**info.metadata, **chosen, **warnings, "converted_by": f"inril_ray {__version__}"},
        ),
    )
    return dataclasses.replace(arrays, info=dataclasses.replace(arrays.info, content_hash=arrays.hash_content()))


def write_arrow(arrays: DemoArrays, target: Path) -> None:
    """Write one Arrow IPC file: a row for each step, everything else in the schema's metadata."""
    columns = {
        "obs": _fixed_size(arrays.obs),
        "actions": _fixed_size(arrays.actions),
        "rewards": pa.array(arrays.rewards),
        **{IMAGES + key: _fixed_size(pictures) for key, pictures in arrays.images.items()},
    }
    known = np.isfinite(arrays.final_obs).all(axis=1)
    header = {
        "format_version": FORMAT_VERSION,
        "episode_starts": arrays.episode_starts.tolist(),
        "held_out": arrays.held_out.tolist(),
        "final_obs": [row.tolist() if k else None for row, k in zip(arrays.final_obs, known, strict=True)],
        "terminated": arrays.terminated.tolist(),
        "success": arrays.success.tolist(),
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
            rewards=matrix(table["rewards"]),
            episode_starts=np.array(header["episode_starts"], np.int64),
            held_out=np.array(header["held_out"], bool),
            final_obs=np.array([unknown if row is None else row for row in header["final_obs"]], np.float32),
            terminated=np.array(header["terminated"], bool),
            success=np.array(header["success"], np.int8),
            images={key: matrix(table[IMAGES + key]).reshape(-1, *s) for key, s in header["image_shapes"].items()},
            info=INFO.validate_python(info),
        )
        for name in METADATA.keys() & arrays.info.metadata.keys():
            METADATA[name].validate_python(arrays.info.metadata[name])
        if arrays.episode_starts.ndim != 1 or arrays.held_out.ndim != 1:
            raise ValueError("episode_starts and held_out must be lists")
    except DAMAGE as error:
        raise DemoError(path, f"is not a complete demonstration store ({error!r}).") from None
    starts, episodes = arrays.episode_starts, len(arrays.held_out)
    fits = len(starts) == episodes + 1 and starts[0] == 0 and starts[-1] == len(arrays.obs)
    if not fits or (np.diff(starts) < 1).any():
        raise DemoError(path, "disagrees with the number of steps.", field="episode_starts")
    for name, shape in (("final_obs", (episodes, obs.shape[1])), ("terminated", (episodes,)), ("success", (episodes,))):
        if getattr(arrays, name).shape != shape:
            raise DemoError(path, "disagrees with the number of episodes.", field=name)
    return arrays
