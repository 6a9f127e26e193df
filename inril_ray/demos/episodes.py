"""What every demonstration format is turned into, and the checks that all share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from inril_ray.types import EnvSpec, FloatArray, InrilError


class DemoError(InrilError):
    """A demonstration file that can't be used. Names file, episode and field."""

    def __init__(self, path: Path, message: str, *, episode: str | None = None, field: str | None = None) -> None:
        self.path, self.episode, self.field = path, episode, field
        where = "".join([f", episode {episode}" if episode else "", f", field {field}" if field else ""])
        super().__init__(f"Demonstration file {path}{where}: {message}")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the task that the demonstrations are for requires of them."""

    env_name: str | None
    """Name of the recorded environment; None accepts any."""
    obs_keys: tuple[tuple[str, int], ...]
    action_dim: int
    semantics: str = ""
    """Rules that the simulator follows; empty accepts any."""

    @staticmethod
    def of(spec: EnvSpec) -> Expectation:
        """Return what a task expects."""
        return Expectation(
            env_name=spec.recorded_as, obs_keys=spec.obs_keys, action_dim=spec.action_dim, semantics=spec.semantics
        )


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration of L steps."""

    name: str
    obs: FloatArray
    """[L, O]"""
    actions: FloatArray
    """[L, A]"""
    rewards: FloatArray
    """[L]"""
    held_out: bool = False
    """Kept out of training; the imitation probe is measured on it."""


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a file says about itself."""

    format: str
    env_name: str
    semantics: str
    """Rules under which it was recorded, such as ``v15`` for robosuite 1.5."""
    source: str
    """Who acted: ``human``, ``scripted``, ``planner``, ``rl`` or ``unknown``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Format(Protocol):
    """Reader of one file format."""

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a file looks like this format."""
        ...

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata of a file."""
        ...

    @staticmethod
    def read(path: Path, expectation: Expectation | None) -> Iterator[Episode]:
        """Yield the episodes, checked; with no expectation, whatever observations the file holds."""
        ...


def checked_array(
    path: Path, value: Any, *, episode: str, field: str, length: int | None = None, width: int | None = None
) -> FloatArray:
    """Return a float32 array after checking type, length, width and finiteness.

    Args:
        path: file, for the message.
        value: array-like.
        episode: name, for the message.
        field: name, for the message.
        length: rows required.
        width: columns required; None for a vector.

    Raises:
        DemoError: the first check that fails.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DemoError(path, f"holds {array.dtype}, not numbers.", episode=episode, field=field)
    expected = 1 if width is None else 2
    if array.ndim != expected:
        raise DemoError(path, f"has shape {array.shape}, {expected} axes are needed.", episode=episode, field=field)
    if width is not None and array.shape[1] != width:
        raise DemoError(path, f"has width {array.shape[1]}, the task needs {width}.", episode=episode, field=field)
    if length is not None and len(array) != length:
        raise DemoError(path, f"has {len(array)} steps, the episode has {length}.", episode=episode, field=field)
    if len(array) == 0:
        raise DemoError(path, "is empty.", episode=episode, field=field)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if bad.any():
        raise DemoError(path, f"is not finite at step {int(np.argmax(bad))}.", episode=episode, field=field)
    return array
