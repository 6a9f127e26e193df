"""D4RL HDF5: reader and writer.

Layout (Fu et al., 2020): flat arrays of all steps, ``observations`` [S, O], ``actions`` [S, A], ``rewards`` [S],
``terminals`` [S], and in most files ``timeouts`` [S] and ``next_observations`` [S, O]. An episode ends at a terminal
or a timeout. The files hold no dependable name of the environment; it is in the name of the file, such as
``hopper_medium-v2.hdf5``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
from inril_ray.demos.hdf5 import content, open_hdf5, put, text, top, written

REQUIRED = ("observations", "actions", "terminals")
ENV_NAMES = {"hopper": "Hopper", "walker2d": "Walker2d", "halfcheetah": "HalfCheetah"}
"""Beginning of the file's name to the name of the environment."""
SCORE_RANGES = {
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "HalfCheetah": (-280.178953, 12135.0),
}
"""Returns of a random and of an expert policy: normalised scores 0 and 100 (Fu et al., 2020)."""
OUR_ENV = "inril_env"
"""Attribute of the files that we write: JSON with ``env_name`` and ``semantics``."""


class D4rlHdf5:
    """Reader of D4RL's data sets. An episode is terminated if it ends at a terminal; success is not known."""

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is an HDF5 file with observations and actions at its top, as D4RL's are."""
        return {"observations", "actions"} <= {name for name, _ in top(path)}

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata of a file, and where its episodes end."""
        with reading(path), open_hdf5(path) as file:
            return _info(path, file)

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes in the order of the file.

        Args:
            path: the file.
            expectation: what the task requires. The observation is flat, so the task must have a single key.
            selection: no filters and no images in this format.

        Raises:
            DemoError: the file is not readable or does not fit; names file and field.
        """
        no_filter(path, selection)
        fixed_names(path, selection)
        with reading(path), open_hdf5(path) as file:
            terminals, bounds = _bounds(path, file)
            length = len(terminals)

            def array(name: str, width: int | None) -> Any:
                raw = content(path, file[name], episode=None, field=name)
                return checked_array(path, raw, episode=None, field=name, length=length, width=width)

            raw = content(path, file["actions"], episode=None, field="actions")
            actions = checked_actions(path, raw, expectation, episode=None)
            if len(actions) != length:
                raise DemoError(path, f"has {len(actions)} steps, there are {length}.", field="actions")
            obs = array("observations", _width(path, file, expectation))
            rewards = array("rewards", None) if "rewards" in file else None
            following = array("next_observations", obs.shape[1]) if "next_observations" in file else None
        for i, (start, end) in enumerate(pairwise(bounds.tolist())):
            yield Episode(
                name=str(i),
                obs=obs[start:end],
                actions=actions[start:end],
                keys=expectation.obs_keys if expectation else (("observation", obs.shape[1]),),
                rewards=None if rewards is None else rewards[start:end],
                final_obs=None if following is None else following[end - 1],
                terminated=bool(terminals[end - 1]),
            )


def _width(path: Path, file: Any, expectation: Expectation | None) -> int:
    if expectation is None:
        shape = np.shape(file["observations"])
        return shape[-1] if len(shape) == 2 else 0
    if len(expectation.obs_keys) != 1:
        keys = ", ".join(key for key, _ in expectation.obs_keys)
        raise DemoError(path, f"is one flat array, the task needs {keys} apart.", field="observations")
    return expectation.obs_keys[0][1]


def _bounds(path: Path, file: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return terminals [S] and the first step of each episode followed by S."""

    def ends(name: str, length: int | None = None) -> npt.NDArray[np.bool_]:
        raw = content(path, file[name], episode=None, field=name)
        return flags(path, raw, episode=None, field=name, length=length)

    for name in REQUIRED:
        if name not in file:
            raise DemoError(path, "is missing.", field=name)
    terminals = ends("terminals")
    over = terminals.copy()
    if "timeouts" in file:
        over |= ends("timeouts", len(terminals))
    over[-1] = True  # what the recording cut off is an episode, too
    return terminals, np.append(0, np.flatnonzero(over) + 1)


def _info(path: Path, file: Any) -> FileInfo:
    terminals, _ = _bounds(path, file)
    warnings = []
    if "timeouts" not in file:
        warnings.append("no `timeouts`: episodes that hit the time limit run into the next one.")
    ended = terminals[-1] or ("timeouts" in file and bool(file["timeouts"][-1]))
    if not ended:
        warnings.append("the last episode is cut off by the end of the recording; it is kept as truncated.")
    source = recorded_source(path, text(file.attrs.get(SOURCE_KEY)))
    env_name, semantics = _environment(path, file)
    made_by_policy = "rl" if env_name in ENV_NAMES.values() else "unknown"  # all of D4RL's locomotion data are
    metadata: dict[str, Any] = {"made_by": source} if source else {}
    if env_name in SCORE_RANGES:
        metadata["score_range"] = list(SCORE_RANGES[env_name])
    return FileInfo(
        format="d4rl_hdf5",
        env_name=env_name,
        semantics=semantics,
        source=str(source.get("kind", made_by_policy)),
        metadata=metadata,
        warnings=tuple(warnings),
    )


def _environment(path: Path, file: Any) -> tuple[str, str]:
    ours = recorded_source(path, text(file.attrs.get(OUR_ENV)))
    if ours:
        return str(ours.get("env_name", "")), str(ours.get("semantics", ""))
    found = re.match(r"([a-z0-9]+)[-_].*?(v\d+)?$", path.stem.lower())
    if found is None or found[1] not in ENV_NAMES:
        return "", ""
    return ENV_NAMES[found[1]], found[2] or ""


def write(
    path: Path,
    episodes: Sequence[RecordedEpisode],
    *,
    env_name: str,
    semantics: str,
    source: Mapping[str, Any],
) -> None:
    """Write a D4RL HDF5 file, which appears under its name only when it is complete.

    Args:
        path: where to.
        episodes: what was recorded; each ends at a terminal if it terminated, else at a timeout.
        env_name: name of the environment, without the version.
        semantics: rules that it followed, such as ``v4``.
        source: who acted and how; ``kind`` is required.
    """
    terminals, timeouts = [], []
    for episode in episodes:
        last = np.arange(len(episode.actions)) == len(episode.actions) - 1
        terminals.append(last & episode.terminated)
        timeouts.append(last & (not episode.terminated))
    with written(path) as file:
        for name, arrays in (
            ("observations", [e.obs for e in episodes]),
            ("actions", [e.actions for e in episodes]),
            ("rewards", [e.rewards for e in episodes]),
            ("next_observations", [e.next_obs for e in episodes]),
        ):
            put(file, name, np.concatenate(arrays).astype(np.float32))
        put(file, "terminals", np.concatenate(terminals))
        put(file, "timeouts", np.concatenate(timeouts))
        file.attrs[OUR_ENV] = json.dumps({"env_name": env_name, "semantics": semantics}, sort_keys=True)
        file.attrs[SOURCE_KEY] = json.dumps(dict(source), sort_keys=True)
