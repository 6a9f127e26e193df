"""What every demonstration format is turned into, and the checks that all share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inril_ray import envs
from inril_ray.demos.causes import cause, explained
from inril_ray.types import UNSTATED, BoolArray, EnvSpec, FloatArray, InrilError, Interface, SuccessRule

DAMAGE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SystemError,
    pa.ArrowException,
)
"""What h5py, pyarrow and json raise on damaged files; SystemError where HDF5 fails while h5py lets go of its lock."""
SOURCE_KEY = "inril_source"
"""Where the files that we write say who acted: JSON with ``kind`` (scripted, planner, rl) and how they were made."""


class DemoError(InrilError):
    """A demonstration file that can't be used. Names file, episode and field."""

    def __init__(self, path: Path, message: str, *, episode: str | None = None, field: str | None = None) -> None:
        self.path, self.reason, self.episode, self.field = path, message, episode, field
        where = "".join([f", episode {episode}" if episode else "", f", field {field}" if field else ""])
        super().__init__(f"Demonstration file {path}{where}: {message}")


def _not_told(_: FloatArray) -> BoolArray | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the task that the demonstrations are for requires of them."""

    env_name: str | None
    """Name of the recorded environment; None accepts any."""
    obs_keys: tuple[tuple[str, int], ...]
    action_dim: int
    semantics: str = ""
    """Rules that the simulator follows; empty accepts any."""
    recorded_semantics: str | None = None
    """Rules that the recording follows, from somebody who knows better than the file; its numbers are not checked."""
    interface: Interface = UNSTATED
    """What actions and rewards mean; what is None is not compared."""
    reward_values: tuple[float, ...] | None = None
    """What a control step can pay; None where that is any number."""
    pays_success: bool = False
    """A control step pays 1 if it ends solved, else 0."""
    success: SuccessRule = "reached"
    """What counts as a success. ``held`` is judged as ``reached``: recordings have no chunks."""
    solved: Callable[[FloatArray], BoolArray | None] = _not_told
    """Tells in which of N observations [N, O] the task is solved; None where they don't tell."""

    @staticmethod
    def of(spec: EnvSpec, recorded_semantics: str | None = None) -> Expectation:
        """Return what a task expects."""
        return Expectation(
            env_name=spec.recorded_as,
            obs_keys=spec.obs_keys,
            action_dim=spec.action_dim,
            semantics=spec.semantics,
            recorded_semantics=recorded_semantics,
            interface=replace(
                spec.interface,
                control_hz=spec.control_hz,
                action_low=(spec.action_low,),
                action_high=(spec.action_high,),
            ),
            reward_values=spec.reward_values,
            pays_success=spec.pays_success,
            success=spec.success,
            solved=envs.entry(spec.task).solved if spec.task in envs.TASKS else _not_told,
        )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a file is wanted."""

    filter: str | None = None
    """Name of a list of episodes in the file (robomimic's ``mask/NAME``), such as ``20_percent``; None takes all."""
    images: tuple[str, ...] = ()
    """Keys of the image observations to keep."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Key that is looked for, such as ``action``, to the name that it has in the file."""

    def name(self, key: str) -> str:
        """Return the name in the file of a key."""
        return self.names.get(key, key)


EVERYTHING = Selection()


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration of L steps."""

    name: str
    obs: FloatArray
    """[L, O]"""
    actions: FloatArray
    """[L, A]"""
    keys: tuple[tuple[str, int], ...]
    """Order and width of the parts of the observation."""
    rewards: FloatArray | None = None
    """[L] in the units of the file; None where it does not hold them."""
    final_obs: FloatArray | None = None
    """[O] observation after the last action; None where the file does not hold it."""
    terminated: bool | None = None
    """The task ended the episode, not a time limit or the end of the recording; None where the file does not say."""
    success: bool | None = None
    """None where the file does not say."""
    solved: BoolArray | None = None
    """[L] the task is solved after each step; None where the file does not say."""
    held_out: bool = False
    """Kept out of training; the imitation probe is measured on it."""
    images: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Key to pictures [L, height, width, channels]: those that were asked for."""


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """One episode as the simulator produced it, L steps: what the writers take."""

    obs: FloatArray
    """[L, O]"""
    next_obs: FloatArray
    """[L, O]"""
    actions: FloatArray
    """[L, A]"""
    rewards: FloatArray
    """[L]"""
    terminated: bool = False
    """The task ended the episode, not a time limit."""
    success: npt.NDArray[np.bool_] | None = None
    """[L] the task is solved after each step; None for tasks without a notion of success."""
    states: FloatArray | None = None
    """[L, S] flat simulator state before each step."""
    model_xml: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a file says about itself."""

    format: str
    env_name: str
    """Empty where the file does not say."""
    semantics: str
    """Rules under which it was recorded, such as ``v15`` for robosuite 1.5; empty where the file does not say."""
    source: str
    """Who acted: ``human``, ``scripted``, ``planner``, ``rl`` or ``unknown``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stated: Interface = UNSTATED
    """What actions and rewards mean."""
    pays_success: bool = False
    """By what the file states, a step pays 1 if it ends solved, else 0."""


class Format(Protocol):
    """Reader of one file format. A path is a file or, for some formats, a directory."""

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path looks like this format."""
        ...

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata."""
        ...

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes, checked; with no expectation, whatever observations the file holds."""
        ...


@contextlib.contextmanager
def reading(path: Path, episode: str | None = None) -> Iterator[None]:
    """Turn what is raised on a damaged file into our error: a truncated file is found out only where it ends."""
    try:
        yield
    except DAMAGE as error:
        raise DemoError(path, explained(path, error), episode=episode) from None


def json_file(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DemoError: it can't be read, or it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DemoError(path, cause(path) or f"is not JSON ({error}).") from None
    except DAMAGE as error:
        raise DemoError(path, explained(path, error)) from None


def checked_array(
    path: Path, value: Any, *, episode: str | None, field: str, length: int | None = None, width: int | None = None
) -> FloatArray:
    """Return a float32 array after checking type, length, width and finiteness.

    Args:
        path: file, for the message.
        value: array-like.
        episode: name, for the message; None for an array of all episodes.
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
        whole = "the episode has" if episode else "there are"
        raise DemoError(path, f"has {len(array)} steps, {whole} {length}.", episode=episode, field=field)
    if array.size == 0:
        raise DemoError(path, "is empty.", episode=episode, field=field)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if bad.any():
        raise DemoError(path, f"is not finite at step {int(np.argmax(bad))}.", episode=episode, field=field)
    return array


def checked_actions(path: Path, value: Any, expectation: Expectation | None, *, episode: str | None) -> FloatArray:
    """Return actions [L, A] after checking them against a task, if there is one."""
    array = np.asarray(value)
    found = array.shape[1] if array.ndim == 2 else 0
    width = expectation.action_dim if expectation else found
    return checked_array(path, array, episode=episode, field="actions", width=width)


def flags(path: Path, value: Any, *, episode: str | None, field: str, length: int | None = None) -> npt.NDArray:
    """Return truth values [L] that a file holds as booleans or as 0 and 1."""
    array = checked_array(path, value, episode=episode, field=field, length=length)
    if not np.isin(array, (0.0, 1.0)).all():
        raise DemoError(path, "holds other values than 0 and 1.", episode=episode, field=field)
    return array.astype(bool)


def no_filter(path: Path, selection: Selection, *, images: str = "are read from robomimic files only") -> None:
    """Refuse a selection in a format that has no lists of episodes, and whose images are not read.

    Args:
        path: file, for the message.
        selection: what was asked for.
        images: why there are no images.
    """
    if selection.filter is not None:
        raise DemoError(path, f"has no filters, {selection.filter!r} was asked for; only robomimic files have them.")
    if selection.images:
        raise DemoError(path, f"images {images}; {', '.join(selection.images)} can't be converted.")


def fixed_names(path: Path, selection: Selection) -> None:
    """Refuse other names of keys in a format whose arrays have the same names in every file."""
    if selection.names:
        raise DemoError(path, f"has the names of its format; {', '.join(selection.names)} can't be named otherwise.")


def recorded_source(path: Path, text: str | bytes | None) -> dict[str, Any]:
    """Return what a file that we wrote says about who acted; empty for files of others.

    Raises:
        DemoError: it is not JSON.
    """
    if text is None:
        return {}
    try:
        source = json.loads(text)
    except (ValueError, TypeError):
        raise DemoError(path, "is not JSON.", field=SOURCE_KEY) from None
    return source if isinstance(source, dict) else {}


def wanted_keys(available: Sequence[str], expectation: Expectation | None) -> tuple[tuple[str, int | None], ...]:
    """Return keys and widths of the observation: those of the task, or all in alphabetical order."""
    return expectation.obs_keys if expectation else tuple((key, None) for key in sorted(available))


def missing(path: Path, fields: Mapping[str, str], found: str, *, episode: str | None = None) -> DemoError:
    """Return the error of keys that are not in a file, with the advice for one that has other names.

    Args:
        path: file, for the message.
        fields: key that is looked for, such as ``object``, to where it was looked for, such as ``obs/object``.
        found: what is there instead.
        episode: name, for the message.
    """
    them, are = ("it", "is") if len(fields) == 1 else ("them", "are")
    advice = " ".join(f"--key {key}=NAME" for key in fields)
    message = f"{are} missing; found: {found}. Where the file calls {them} otherwise, name {them} with {advice}"
    message += " (`inril demos inspect` and `convert` take that)."
    return DemoError(path, message, episode=episode, field=", ".join(fields.values()))


def other_names(
    selection: Selection, expectation: Expectation | None, *, prefix: str, others: Sequence[str] = ()
) -> Selection:
    """Return a selection whose names belong to keys that are looked for.

    Args:
        selection: as it was asked for.
        expectation: whose keys are looked for.
        prefix: of the format's names of observations, such as ``observation.``; a key may be given with it.
        others: what is looked for beside observations.

    Raises:
        InrilError: a key that is not looked for, or one that comes twice.
    """
    keys = (*(key for key, _ in expectation.obs_keys), *others) if expectation else others
    names: dict[str, str] = {}
    for given, name in selection.names.items():
        key = given if given in keys else given.removeprefix(prefix)
        if key not in keys:
            choices = f"what is: {', '.join(keys)}" if keys else "the names of the file are taken as they are"
            hint = "" if expectation else "; --task gives the keys of a task"
            raise InrilError(f"--key {given}={name}: nothing of that name is looked for, {choices}{hint}.")
        if key in names:
            raise InrilError(f"--key {given}={name}: {key} is named twice, as {names[key]} and as {name}.")
        names[key] = name
    return replace(selection, names=names)
