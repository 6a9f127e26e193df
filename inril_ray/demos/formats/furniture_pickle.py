"""FurnitureBench's raw recordings: reader and writer.

Layout (Heo et al. 2023, ``data_collector.py``): one pickle an episode, ``.pkl`` or ``.pkl.xz``, at 10 Hz, in any depth
of directories. Each is a dictionary with ``observations``, T or T+1 dictionaries of ``robot_state`` (a dictionary of
``STATE_FIELDS``, or a vector), ``parts_poses`` and pictures; ``actions`` [T, 8], the change of position in metres, the
change of orientation as a quaternion (x, y, z, w) that is multiplied from the right, and the gripper; ``rewards`` [T];
``skills`` [T]; ``success``; ``furniture`` (``task`` in later files); ``error``; ``error_description``.

What is read is what the tasks take: 16 numbers of robot state and 10 of an absolute pose, as ResiP's converter makes
them (Ankile et al. 2024, ``process_pickles.py``). Differs: its limit on rotations is on the root of the sum of squares
over all steps of an episode, which shrinks every rotation of a long one; here each step has its own limit. Left open by
the layout, and read as that converter does: ``partial_success`` is a success.

A pickle is a program. Files are read by an interpreter that knows arrays, numbers and containers only, so nothing that
a file brings along is run; see :mod:`inril_ray.demos.formats.restricted_pickle`.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from inril_ray import rotations
from inril_ray.demos.causes import cause
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
    fixed_names,
    no_filter,
    reading,
    recorded_source,
)
from inril_ray.demos.formats.restricted_pickle import SafeUnpickler
from inril_ray.demos.interface import stated_name
from inril_ray.envs.furniture.spec import OBSTACLE_QUAT
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.types import FloatArray, Interface

SUFFIXES = (".pkl", ".pkl.xz")
STATE_FIELDS = (("ee_pos", 3), ("ee_quat", 4), ("ee_pos_vel", 3), ("ee_ori_vel", 3), ("gripper_width", 1))
"""Fields of ``robot_state`` and their widths: metres, (x, y, z, w), m/s, rad/s, metres; in the frame of the base."""
QUAT_WIDTH, STATE_WIDTH = 14, 16
"""Numbers of a robot state with its orientation as a quaternion, and as the first two rows of the matrix."""
POSE_WIDTH = 7
DELTA_WIDTH = 8
RECORDED_HZ = 10.0
"""Of every recording in this layout."""
ACTION_WIDTH = 10
"""Position 3, first two rows of the orientation 6, gripper 1."""
MAX_DELTA_M, MAX_DELTA_RAD = 0.025, 0.35
"""Limits of one step: on each axis of the position, on the angle of the rotation."""
PADDING = "padding"
"""Zeros that a task may ask for, to be as wide as in the papers; no file holds them."""
UNIT_TOLERANCE = 0.01
"""How far a quaternion's length may be off 1: more is no rounding, but another quantity."""
SOURCES = {"teleop": "human", "scripted": "scripted", "rollout": "rl"}
"""ResiP's word for who acted, a directory's name above the files, to ours."""
FOREIGN = (
    "not recorded in this simulator: contacts of another one, or of a real robot, may not replay here; "
    "it is data to imitate."
)


class FurniturePickle:
    """Reader of FurnitureBench's recordings.

    The tasks run to their time limit, so no episode counts as terminated. An episode is a success if its file says so.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Tell whether a path is a pickle by its name, or a directory with one somewhere in it."""
        try:
            return next(_files(path), None) is not None
        except OSError:
            return False

    @staticmethod
    def inspect(path: Path) -> FileInfo:
        """Read the metadata, from the first file."""
        file, name = _named(path)[0]
        with reading(path, name):
            data = _load(path, file, name)
            source = recorded_source(path, data.get(SOURCE_KEY))
            first = _observations(path, name, data)[0]
            found = (SOURCES[part] for part in reversed(file.resolve().parts) if part in SOURCES)
            return FileInfo(
                format="furniture_pickle",
                env_name=_furniture(path, name, data),
                semantics="",
                source=str(source.get("kind", next(found, "unknown"))),
                metadata={
                    "observations": {str(key): _shape(value) for key, value in first.items()},
                    **({"made_by": source} if source else {}),
                },
                warnings=() if source else (FOREIGN,),
                stated=Interface(control_hz=RECORDED_HZ, action_type="absolute", action_frame="base", rewards="sparse"),
            )

    @staticmethod
    def read(path: Path, expectation: Expectation | None, selection: Selection = EVERYTHING) -> Iterator[Episode]:
        """Yield the episodes in the order of their files' names.

        Args:
            path: a file or a directory.
            expectation: what the task requires; None reads ``robot_state`` and ``parts_poses`` as they are.
            selection: keys of pictures, such as ``color_image2``; no filters in this format.

        Raises:
            DemoError: a file is not readable, does not fit, or is of another task than the first; names the file.
        """
        no_filter(path, dataclasses.replace(selection, images=()))
        fixed_names(path, selection)
        furniture = None
        for file, name in _named(path):
            with reading(path, name):
                data = _load(path, file, name)
                own = _furniture(path, name, data)
                furniture = own if furniture is None else furniture
                if own != furniture:
                    raise DemoError(
                        path, f"is {own!r}, the first file is of {furniture!r}.", episode=name, field="task"
                    )
                episode = _episode(path, name, data, expectation, selection)
            yield episode


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield from [path] if path.name.endswith(SUFFIXES) else []
    elif path.is_dir():
        for file in path.rglob("*.pkl*"):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.name.endswith(SUFFIXES) and not hidden and file.is_file():
                yield file


def _named(path: Path) -> list[tuple[Path, str]]:
    """Return files with the names of their episodes, at least one."""
    with reading(path):
        files = sorted(_files(path))
    if not files:
        raise DemoError(path, f"is no file that ends in {' or '.join(SUFFIXES)}, nor a directory with one.")
    return [(file, file.name if file == path else str(file.relative_to(path))) for file in files]


def _load(path: Path, file: Path, name: str) -> dict[str, Any]:
    try:
        with _opened(file) as stream:
            data = SafeUnpickler(stream).load()
            if stream.read(1):  # also makes xz compare its checksum
                raise pickle.UnpicklingError("it goes on after its end")
    except (*DAMAGE, EOFError, pickle.UnpicklingError, lzma.LZMAError) as error:
        reason = str(error).strip() or type(error).__name__
        raise DemoError(path, cause(file) or f"can't be unpickled: {reason}.", episode=name) from None
    if not isinstance(data, dict):
        raise DemoError(path, f"holds a {type(data).__name__}, not a dictionary.", episode=name)
    return data


def _opened(file: Path) -> IO[bytes]:
    return lzma.open(file) if file.suffix == ".xz" else file.open("rb")


# -- episodes ---------------------------------------------------------------------------------------------------------
def _episode(
    path: Path, name: str, data: Mapping[str, Any], expectation: Expectation | None, selection: Selection
) -> Episode:
    observations = _observations(path, name, data)
    deltas = _rows(path, name, _required(path, name, data, "actions"), "actions", DELTA_WIDTH)
    length = len(deltas)
    if len(observations) not in (length, length + 1):
        message = f"has {len(observations)} steps for {length} actions; {length} or {length + 1} are needed."
        raise DemoError(path, message, episode=name, field="observations")
    states = _states(path, name, _values(path, name, observations, "robot_state"))
    poses = _rows(path, name, _values(path, name, observations, "parts_poses"), "parts_poses")
    obs = joined(path, name, {"robot_state": states, "parts_poses": poses}, expectation)
    actions = _absolute(path, name, states[:length], deltas)
    rewards = None
    if data.get("rewards") is not None:
        rewards = checked_array(path, np.ravel(data["rewards"]), episode=name, field="rewards", length=length)
    return Episode(
        name=name,
        obs=obs[:length],
        actions=checked_actions(path, actions, expectation, episode=name),
        keys=expectation.obs_keys if expectation else (("robot_state", STATE_WIDTH), ("parts_poses", poses.shape[1])),
        rewards=rewards,
        final_obs=obs[length] if len(obs) > length else None,
        terminated=False,
        success=_success(path, name, data.get("success")),
        images={key: _pictures(path, name, observations[:length], key) for key in selection.images},
    )


def _required(path: Path, name: str, data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        found = ", ".join(sorted(map(str, data))) or "nothing"
        raise DemoError(path, f"is missing; found: {found}.", episode=name, field=key)
    return data[key]


def _observations(path: Path, name: str, data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    observations = _required(path, name, data, "observations")
    if not isinstance(observations, list | tuple) or not all(isinstance(o, dict) for o in observations):
        raise DemoError(path, "is not a list of dictionaries.", episode=name, field="observations")
    if not observations:
        raise DemoError(path, "is empty.", episode=name, field="observations")
    return observations


def _furniture(path: Path, name: str, data: Mapping[str, Any]) -> str:
    """Return the name of the task; empty where the file does not say."""
    field = next((key for key in ("furniture", "task") if data.get(key) is not None), "task")
    value = data.get(field, "")
    if not isinstance(value, str):
        raise DemoError(path, f"is {value!r:.60}, not a name.", episode=name, field=field)
    return stated_name(value) or ""


def _success(path: Path, name: str, value: Any) -> bool | None:
    if value is None or (isinstance(value, str) and value == "partial_success"):
        return None if value is None else True
    if np.size(value) != 1 or np.ravel(value)[0] not in (0, 1):
        message = f"is {value!r:.60}; True, False and 'partial_success' are known."
        raise DemoError(path, message, episode=name, field="success")
    return bool(np.ravel(value)[0])


def _values(path: Path, name: str, observations: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    for step, observation in enumerate(observations):
        if key not in observation:
            found = ", ".join(sorted(map(str, observation))) or "nothing"
            raise DemoError(path, f"is missing at step {step}; found: {found}.", episode=name, field=key)
    return [observation[key] for observation in observations]


def _rows(path: Path, name: str, values: Any, field: str, width: int | None = None) -> FloatArray:
    """Return [N, W] of N vectors, or numbers, after checking them."""
    rows = [np.ravel(np.asarray(value)) for value in values]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise DemoError(path, f"differs in width between steps: {widths}.", episode=name, field=field)
    if width is not None and widths != [width]:
        message = f"has width {widths[0]}, {width} is read." if widths else "is empty."
        raise DemoError(path, message, episode=name, field=field)
    return checked_array(path, np.stack(rows), episode=name, field=field, width=widths[0])


def _states(path: Path, name: str, values: list[Any]) -> FloatArray:
    """Return robot states [N, 16] of dictionaries, of vectors with a quaternion [14], or of vectors [16]."""
    if all(isinstance(value, dict) for value in values):
        missing = [field for field, _ in STATE_FIELDS if any(field not in value for value in values)]
        if missing:
            raise DemoError(path, f"lacks {', '.join(missing)}.", episode=name, field="robot_state")
        fields = [
            _rows(path, name, [value[field] for value in values], f"robot_state/{field}", width)
            for field, width in STATE_FIELDS
        ]
        states = np.concatenate(fields, axis=1)
    else:
        states = _rows(path, name, values, "robot_state")
    if states.shape[1] == STATE_WIDTH:
        return states
    if states.shape[1] != QUAT_WIDTH:
        message = f"has width {states.shape[1]}; {QUAT_WIDTH} (with a quaternion) and {STATE_WIDTH} are read."
        raise DemoError(path, message, episode=name, field="robot_state")
    matrix = rotations.matrix_of_quat(_unit(path, name, states[:, 3:7], "robot_state/ee_quat"))
    return np.concatenate([states[:, :3], rotations.six_of_matrix(matrix), states[:, 7:]], axis=1, dtype=np.float32)


def _unit(path: Path, name: str, quats: FloatArray, field: str) -> npt.NDArray[np.float64]:
    """Return quaternions [N, 4] at length 1, in double precision."""
    exact = quats.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    bad = np.abs(lengths[:, 0] - 1) > UNIT_TOLERANCE
    if bad.any():
        step = int(np.argmax(bad))
        message = f"is no unit quaternion at step {step}: its length is {lengths[step, 0]:.3g}."
        raise DemoError(path, message, episode=name, field=field)
    return exact / lengths


def _absolute(path: Path, name: str, states: FloatArray, deltas: FloatArray) -> FloatArray:
    """Return absolute poses [L, 10] of changes [L, 8] within the limits of a step, from robot states [L, 16]."""
    turn = rotations.matrix_of_quat(_unit(path, name, deltas[:, 3:7], "actions"))
    vector = rotations.rotation_vector(turn)
    angle = np.linalg.norm(vector, axis=1, keepdims=True)
    turn = rotations.matrix_of_vector(vector * (MAX_DELTA_RAD / np.maximum(angle, MAX_DELTA_RAD)))
    position = states[:, :3] + np.clip(deltas[:, :3].astype(np.float64), -MAX_DELTA_M, MAX_DELTA_M)
    orientation = rotations.six_of_matrix(rotations.matrix_of_6d(states[:, 3:9].astype(np.float64)) @ turn)
    return np.concatenate([position, orientation, np.sign(deltas[:, 7:])], axis=1, dtype=np.float32)


def _pictures(path: Path, name: str, observations: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.uint8]:
    pictures = [np.asarray(value) for value in _values(path, name, observations, key)]
    kinds = sorted({f"{p.dtype} {p.shape}" for p in pictures})
    if len(kinds) > 1 or pictures[0].dtype != np.uint8 or pictures[0].ndim != 3:
        message = f"is {' and '.join(kinds)}; pictures are uint8 (height, width, channels), all alike."
        raise DemoError(path, message, episode=name, field=key)
    return np.stack(pictures)


def _shape(value: Any) -> list[int]:
    """Return the shape of one observation; a dictionary's is the number of its numbers."""
    return [sum(np.size(v) for v in value.values())] if isinstance(value, dict) else list(np.shape(value))


def joined(
    path: Path, name: str | None, parts: Mapping[str, FloatArray], expectation: Expectation | None
) -> FloatArray:
    """Return the observation [N, O]: what a task asks for, or all parts in their order.

    Args:
        path: file, for the message.
        name: episode, for the message; None for an array of all episodes.
        parts: key to [N, width]; ``parts_poses`` holds 7 numbers for each part, then 7 for the front obstacle.
        expectation: what the task requires.

    Raises:
        DemoError: a part is missing or of another width.
    """
    poses = parts["parts_poses"].shape[1]
    if poses % POSE_WIDTH:
        message = f"has width {poses}; poses have {POSE_WIDTH} numbers each."
        raise DemoError(path, message, episode=name, field="parts_poses")
    wanted = expectation.obs_keys if expectation else [(key, part.shape[1]) for key, part in parts.items()]
    for key, width in wanted:
        if key == PADDING:
            parts = {**parts, key: np.zeros((len(parts["robot_state"]), width), np.float32)}
        if key not in parts:
            raise DemoError(path, f"is missing; found: {', '.join(parts)}.", episode=name, field=key)
        if key == "parts_poses" and expectation and expectation.env_name in FURNITURE:
            parts = {**parts, key: with_signs_of_the_task(parts[key], expectation.env_name)}
        found = parts[key].shape[1]
        if found != width:
            obstacle = key == "parts_poses" and found == width - POSE_WIDTH
            why = f"; the {POSE_WIDTH} numbers of the obstacle's pose are not in it" if obstacle else ""
            raise DemoError(path, f"has width {found}, the task needs {width}{why}.", episode=name, field=key)
    return np.concatenate([parts[key] for key, _ in wanted], axis=1)


def with_signs_of_the_task(poses: FloatArray, furniture: str) -> FloatArray:
    """Return poses [N, 7 P + 7] whose quaternions have the signs that the task's observations have.

    A quaternion and its negative are the same orientation; what a file holds depends on who recorded it.

    Args:
        poses: [N, W]; of another width than the task's they are returned as they are.
        furniture: name of the task.
    """
    starts = FURNITURE[furniture].start_quats
    if poses.shape[1] != POSE_WIDTH * (len(starts) + 1):
        return poses
    parts = poses[:, :-POSE_WIDTH].reshape(len(poses), len(starts), POSE_WIDTH).copy()
    turned = (parts[..., 3:] * starts).sum(axis=-1) < 0
    parts[turned, 3:] *= -1
    front = poses[:, -POSE_WIDTH:].copy()
    front[front[:, 3:] @ OBSTACLE_QUAT < 0, 3:] *= -1
    return np.concatenate([parts.reshape(len(poses), -1), front], axis=1).astype(poses.dtype)


# -- writer -----------------------------------------------------------------------------------------------------------
def turns_to(states: FloatArray, actions: FloatArray) -> npt.NDArray[np.float64]:
    """Return rotation matrices [L, 3, 3] that turn the hand of robot states [L, 16] to absolute actions [L, 10]."""
    hand, goal = (rotations.matrix_of_6d(np.asarray(a, np.float64)[:, 3:9]) for a in (states, actions))
    return np.swapaxes(hand, 1, 2) @ goal


def write(path: Path, episodes: Sequence[RecordedEpisode], *, furniture: str, source: Mapping[str, Any]) -> None:
    """Write a directory of pickles, one an episode, which appears under its name only when it is complete.

    Reading them gives the actions back as far as they are within the limits of a step, and the sign of the gripper.

    Args:
        path: directory to make; it must not exist.
        episodes: what was recorded: observations are 16 numbers of robot state, then poses, without padding; actions
            [L, 10] are absolute poses.
        furniture: name of the task, such as ``one_leg``.
        source: who acted and how; ``kind`` is required.

    Raises:
        DemoError: the path exists.
    """
    if path.exists():
        raise DemoError(path, "exists; recordings are written to a new directory.")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for i, episode in enumerate(episodes):
            told = {"furniture": furniture, "task": furniture, SOURCE_KEY: json.dumps(dict(source), sort_keys=True)}
            with (partial / f"{i:05}.pkl").open("wb") as file:
                pickle.dump({**_recording(episode), **told}, file, protocol=4)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _recording(episode: RecordedEpisode) -> dict[str, Any]:
    obs = np.concatenate([episode.obs, episode.next_obs[-1:]]).astype(np.float32)
    quats = rotations.quat_of_matrix(rotations.matrix_of_6d(obs[:, 3:9].astype(np.float64)))
    raw = np.concatenate([obs[:, :3], quats, obs[:, 9:STATE_WIDTH]], axis=1, dtype=np.float32)
    ends = np.cumsum([width for _, width in STATE_FIELDS])[:-1]
    fields = dict(zip([field for field, _ in STATE_FIELDS], np.split(raw, ends, axis=1), strict=True))
    length, states = len(episode.actions), obs[:-1, :STATE_WIDTH]
    turns = rotations.quat_of_matrix(turns_to(states, episode.actions))
    steps = np.subtract(episode.actions[:, :3], states[:, :3], dtype=np.float64)
    return {
        "observations": [
            {
                "robot_state": {field: values[t].copy() for field, values in fields.items()},
                "parts_poses": obs[t, STATE_WIDTH:].copy(),
            }
            for t in range(length + 1)
        ],
        "actions": np.concatenate([steps, turns, episode.actions[:, 9:]], axis=1, dtype=np.float32),
        "rewards": episode.rewards.astype(np.float32),
        "skills": np.zeros(length, np.float32),
        "success": None if episode.success is None else bool(episode.success.any()),
        "error": False,
        "error_description": "",
    }
