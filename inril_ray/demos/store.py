"""The store that learners sample demonstrations from, and the conversion of files of any format to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inril_ray import __version__
from inril_ray.demos.arrays import DemoArrays, DemoInfo
from inril_ray.demos.arrow_file import is_arrow, read_arrow, write_arrow
from inril_ray.demos.causes import cause
from inril_ray.demos.episodes import EVERYTHING, DemoError, Episode, Expectation, FileInfo, Selection
from inril_ray.demos.interface import outside
from inril_ray.demos.recognition import recognise
from inril_ray.demos.rewards import task_rewards, task_successes
from inril_ray.demos.semantics import check_episodes, check_task
from inril_ray.types import DemoBatch, FloatArray, InrilError, NormalizerStats

CONSTANT = 1e-6
"""A column of observations with a smaller range does not change."""


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
def convert(path: Path, target: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> DemoArrays:
    """Convert a demonstration file to one Arrow file, which appears only when it is complete.

    Raises:
        DemoError: the file can't be used, or ``target`` is a file of something else; nothing is changed.
    """
    if target.exists() and not is_arrow(target):
        raise DemoError(target, "exists and is not a converted data set; choose another name.")
    arrays = read_source(path, expectation, selection)
    write_arrow(arrays, target)
    return arrays


def read_source(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> DemoArrays:
    """Read demonstrations of any known format, and hold them against a task whatever the format.

    Args:
        path: file or directory.
        expectation: what the task requires; None reads what is there, and what contradicts itself is a warning.
        selection: which episodes and images, and what is called otherwise in the file.

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
    warnings = check_task(path, info, expectation) if expectation else ()
    episodes = list(reader.read(path, expectation, selection))
    _check_shapes(path, episodes, selection)
    rewards, told = task_rewards(episodes, info.stated, expectation)
    successes = task_successes(episodes, rewards, info.pays_success, expectation)
    episodes = [dataclasses.replace(e, success=s) for e, s in zip(episodes, successes, strict=True)]
    warnings += check_episodes(path, info, episodes, expectation) + told
    actions = np.concatenate([e.actions for e in episodes])
    if expectation:
        warnings += outside(path, actions, expectation.interface, "the task's")
    else:
        try:
            warnings += outside(path, actions, info.stated, "the stated")
        except DemoError as error:
            warnings += (error.reason,)
    return _arrays(path, dataclasses.replace(info, warnings=info.warnings + warnings), episodes, rewards, selection)


def load(path: Path, expectation: Expectation | None = None, selection: Selection = EVERYTHING) -> DemoArrays:
    """Load demonstrations: our Arrow file by memory map, any other format by reading it.

    Args:
        path: file or directory.
        expectation: what the task requires; None takes what is there.
        selection: which episodes and images; not for Arrow files, which hold what was selected in the conversion.

    Raises:
        DemoError: they can't be used, or an Arrow file's content is not that of its hash.
    """
    if reason := cause(path):
        raise DemoError(path, reason)
    if not is_arrow(path):
        return read_source(path, expectation, selection)
    if selection != EVERYTHING:
        raise DemoError(path, "is a converted store; filters, images and names are chosen when it is converted.")
    arrays = read_arrow(path)
    if arrays.hash_content() != arrays.info.content_hash:
        raise DemoError(path, "differs from its hash: it was damaged or changed. Convert again.", field="content")
    return _fitting(path, arrays, expectation) if expectation else arrays


def _fitting(path: Path, arrays: DemoArrays, expectation: Expectation) -> DemoArrays:
    """Return the content of an Arrow file, with its warnings, after holding it against a task.

    Raises:
        DemoError: it does not fit.
    """
    own = arrays.info
    recorded = FileInfo(
        format=own.format, env_name=own.env_name, semantics=own.semantics, source=own.source, stated=own.stated
    )
    warnings = check_task(path, recorded, expectation)
    if arrays.actions.shape[1] != expectation.action_dim:
        raise DemoError(
            path, f"has width {arrays.actions.shape[1]}, the task needs {expectation.action_dim}.", field="actions"
        )
    if own.obs_keys != expectation.obs_keys:
        raise DemoError(path, f"holds {own.obs_keys}, the task needs {expectation.obs_keys}.", field="obs_keys")
    known = arrays.rewards[~np.isnan(arrays.rewards)]
    if expectation.reward_values is not None and not np.isin(known, expectation.reward_values).all():
        raise DemoError(path, "are not in the units of the task; convert the original for it.", field="rewards")
    warnings += outside(path, arrays.actions, expectation.interface, "the task's")
    old = own.metadata.get("warnings", [])
    if not set(warnings) - set(old):
        return arrays
    metadata = {**own.metadata, "warnings": [*old, *(w for w in warnings if w not in old)]}
    return dataclasses.replace(arrays, info=dataclasses.replace(own, metadata=metadata))


def _check_shapes(path: Path, episodes: list[Episode], selection: Selection) -> None:
    for name, arrays in (("obs", [e.obs for e in episodes]), ("actions", [e.actions for e in episodes])):
        widths = {a.shape[1] for a in arrays}
        if len(widths) > 1:
            raise DemoError(path, f"differs in width between episodes: {sorted(widths)}.", field=name)
    for key in selection.images:
        shapes = {e.images[key].shape[1:] for e in episodes}
        if len(shapes) > 1:
            raise DemoError(path, f"differs in shape between episodes: {sorted(shapes)}.", field=key)
    if all(e.held_out for e in episodes):
        raise DemoError(path, "holds out every episode, none is left to train on.", field="mask/valid")


def _arrays(
    path: Path,
    info: FileInfo,
    episodes: list[Episode],
    rewards: list[FloatArray | None],
    selection: Selection,
) -> DemoArrays:
    unknown = np.full(episodes[0].obs.shape[1], np.nan, np.float32)
    chosen = {"filter": selection.filter} if selection.filter else {}
    warnings = {"warnings": list(info.warnings)} if info.warnings else {}
    lengths = [len(e.actions) for e in episodes]
    known = [np.full(n, np.nan, np.float32) if r is None else r for r, n in zip(rewards, lengths, strict=True)]
    arrays = DemoArrays(
        obs=np.concatenate([e.obs for e in episodes]),
        actions=np.concatenate([e.actions for e in episodes]),
        rewards=np.concatenate(known),
        episode_starts=np.cumsum([0, *lengths]),
        held_out=np.array([e.held_out for e in episodes]),
        final_obs=np.stack([unknown if e.final_obs is None else e.final_obs for e in episodes]),
        terminated=np.array([-1 if e.terminated is None else int(e.terminated) for e in episodes], np.int8),
        success=np.array([-1 if e.success is None else int(e.success) for e in episodes], np.int8),
        images={key: np.concatenate([e.images[key] for e in episodes]) for key in selection.images},
        info=DemoInfo(
            source_file=path.name,
            format=info.format,
            env_name=info.env_name,
            semantics=info.semantics,
            source=info.source,
            obs_keys=episodes[0].keys,
            content_hash="",
            metadata={**info.metadata, **chosen, **warnings, "converted_by": f"inril_ray {__version__}"},
            stated=info.stated,
        ),
    )
    return dataclasses.replace(arrays, info=dataclasses.replace(arrays.info, content_hash=arrays.hash_content()))
