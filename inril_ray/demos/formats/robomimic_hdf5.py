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
    missing,
    other_names,
    reading,
    recorded_source,
    wanted_keys,
)
from inril_ray.demos.hdf5 import content, open_hdf5, put, text, top, written
from inril_ray.demos.interface import stated_frequency, stated_name, stated_names
from inril_ray.types import UNSTATED, FloatArray, Interface
from inril_ray.words import reason

ENV_ARGS = "data.attrs['env_args']"
ROBOSUITE_TYPE = 1
"""Robomimic's code for robosuite environments."""
POSE_CONTROLLER = "OSC"
"""Beginning of the names of controllers whose actions are poses in a frame."""
LIMITS = ("input_min", "input_max", "output_min", "output_max")
"""Range of a controller's actions, and what they are mapped to."""


class RobomimicHdf5:
    """Reader of robomimic's data sets.

    Robomimic marks the end of an episode (``dones``) where the task is solved or the recording stops; its tasks don't
    end by themselves. So no episode counts as terminated. Nor is success stated: sparse rewards tell it.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is an HDF5 file with a ``data`` group."""
        return any(found == ("data", True) for found in top(path))

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
            selection: a filter (``mask/NAME``), image keys, and other names of observations, such as ``robot/hand`` for
                one in a group.

        Raises:
            DemoError: the file is not readable or does not fit; names file, episode and field.
            InrilError: a name is given for a key that is not looked for.
        """
        selection = other_names(selection, expectation, prefix="obs/")
        with reading(path), open_hdf5(path) as file:
            _info(path, file)
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
                    episode = _episode(path, name, demos[name], expectation, selection, name in held_out)
                yield episode


def _info(path: Path, file: Any) -> FileInfo:
    if "data" not in file or not isinstance(file["data"], h5py.Group):
        raise DemoError(path, "is missing; a robomimic file has this group.", field="data")
    attributes = file["data"].attrs
    if "env_args" not in attributes:
        raise DemoError(path, "is missing.", field=ENV_ARGS)
    try:
        env_args = json.loads(attributes["env_args"])
        env_name = stated_name(env_args["env_name"]) or ""
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DemoError(path, f"is not robomimic's JSON ({reason(error)}).", field=ENV_ARGS) from None
    try:
        semantics, version = _semantics(env_args)
        stated = interface(env_args)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DemoError(path, f"holds a value that can't be read: {reason(error)}.", field=ENV_ARGS) from None
    source = recorded_source(path, text(attributes.get(SOURCE_KEY)))
    release, warnings = _release(version) if version else (1, 5), ()
    if release < (1, 4):
        warnings = (f"robosuite {version} is older than 1.4; its rules are taken to be 1.4.1's.",)
    elif release > (1, 5):
        warnings = (f"robosuite {version} is newer than 1.5; its rules are not known here.",)
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
        warnings=warnings,
        stated=stated,
        pays_success=stated.rewards == "sparse",
    )


def _shapes(demos: Any) -> dict[str, list[int]]:
    """Return the shapes of one step of the observations, as the first episode has them."""
    first = demos[min(demos, key=_number)] if len(demos) else None
    observed: Any = first.get("obs") if isinstance(first, h5py.Group) else None
    return {key: list(observed[key].shape[1:]) for key in _arrays(observed)} if observed is not None else {}


def _arrays(group: Any) -> list[str]:
    """Return the names of all data sets in a group, ``group/name`` for those in groups within it."""
    names: list[str] = []
    if isinstance(group, h5py.Group):
        group.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return sorted(names)


def _semantics(env_args: Mapping[str, Any]) -> tuple[str, str]:
    """Return the rules of the release of robosuite that recorded, and its version; both empty for other simulators."""
    if env_args.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        return "", ""
    version = stated_name(env_args.get("env_version"))
    if version is None:
        # The parts of a composite controller came with robosuite 1.5, and so did the name of the version.
        controller = (env_args.get("env_kwargs") or {}).get("controller_configs") or {}
        version = "1.5" if "body_parts" in controller else "1.4.1"
    release = _release(version)
    if release > (1, 5):
        return f"robosuite {version}", version
    return ("v15" if release == (1, 5) else "v141"), version


def interface(env_args: Mapping[str, Any]) -> Interface:
    """Return what robomimic's ``env_args`` state about actions and rewards; nothing for other simulators.

    Where a controller leaves out its reference frame, that of the release is meant: the base from robosuite 1.5 on,
    the world before.
    """
    kwargs = env_args.get("env_kwargs") or {}
    if env_args.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        return UNSTATED
    shaping = kwargs.get("reward_shaping")
    arms = [_arm(arm) for arm in _controllers(kwargs.get("controller_configs"))]
    # Arms that differ from each other differ from the task's: the last of the differing ones shows it.
    merged = {name: value for arm in sorted(arms, key=lambda arm: arm == arms[0], reverse=True) for name, value in arm}
    return Interface(
        robots=stated_names(kwargs.get("robots")),
        control_hz=stated_frequency(kwargs.get("control_freq")),
        rewards=None if shaping is None else "dense" if shaping else "sparse",
        changed_by=(),  # robomimic makes the environment again from these arguments alone
        **merged,
    )


def _controllers(configs: Any) -> list[tuple[Mapping[str, Any], bool]]:
    """Return the controllers of all arms, each with True if it is a part of a composite one (robosuite 1.5)."""
    found = []
    for config in configs if isinstance(configs, list) else [configs or {}]:
        parts = config.get("body_parts")
        if parts is None:
            found += [(config, False)] if "type" in config else []
        else:
            arms = {**parts, **(parts.get("arms") or {})}
            found += [(arms[side], True) for side in ("right", "left") if side in arms]
    return found


def _arm(controller: tuple[Mapping[str, Any], bool]) -> tuple[tuple[str, Any], ...]:
    """Return the fields of an interface that the controller of one arm states."""
    config, composite = controller
    kind, model = stated_name(config.get("input_type")), stated_name(config["type"])
    if kind is None and config.get("control_delta") is not None:
        kind = "delta" if config["control_delta"] else "absolute"
    fields: dict[str, Any] = {"controller": model, "action_type": kind}
    if (model or "").startswith(POSE_CONTROLLER):
        frame = "base" if composite else "world"
        fields["action_frame"] = stated_name(config["input_ref_frame"]) if "input_ref_frame" in config else frame
    if "interpolation" in config:
        fields["interpolation"] = str(config["interpolation"] or "none")
    for name, key in (("stiffness", "kp"), ("damping", "damping_ratio"), ("damping", "damping")):
        if config.get(key) is not None and name not in fields:
            fields[name] = _numbers(config[key])
    limits = [_numbers(config[key]) for key in LIMITS if config.get(key) is not None]
    if len(limits) == len(LIMITS):
        low, high, least, greatest = (np.array(limit) for limit in limits)
        fields |= {"action_low": _numbers(low), "action_high": _numbers(high)}
        if kind != "absolute" and (high != low).all():
            fields["action_scale"] = _numbers((greatest - least) / (high - low))
    return tuple((name, value) for name, value in fields.items() if value is not None)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in np.atleast_1d(np.asarray(value, np.float64)))


def _release(version: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise ValueError(f"env_version {version!r} is no version such as 1.4.1")
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
    wanted = wanted_keys(_arrays(observed), expectation)
    lacking = {key: f"obs/{selection.name(key)}" for key, _ in wanted if selection.name(key) not in observed}
    if lacking:
        raise missing(path, lacking, ", ".join(_arrays(observed)) or "none", episode=name)
    for key, width in wanted:
        own = selection.name(key)
        field = f"obs/{own}"
        raw = content(path, observed[own], episode=name, field=field)
        if width is None:
            if raw.ndim != 2:
                continue  # images, when no task says which keys are wanted
            width = raw.shape[1]
        parts[own] = checked_array(path, raw, episode=name, field=field, length=length, width=width)
    if not parts:
        raise DemoError(path, "holds no low-dimensional observation.", episode=name, field="obs")
    widths = [part.shape[1] for part in parts.values()]
    return Episode(
        name=name,
        obs=np.concatenate(list(parts.values()), axis=1),
        actions=actions,
        keys=expectation.obs_keys if expectation else tuple(zip(parts, widths, strict=True)),
        rewards=rewards,
        final_obs=_final_obs(path, name, group, parts),
        terminated=False,
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
        found = ", ".join(k for k in _arrays(observed) if len(observed[k].shape) == 4) or "none"
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
