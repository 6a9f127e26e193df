"""FurnitureBench pickles and ResiP's zarr: files in the published layouts, our own, malformed and malicious ones."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from inril_ray.cli import main
from inril_ray.demos.episodes import DemoError, Expectation, RecordedEpisode, Selection
from inril_ray.demos.formats import furniture_pickle, resip_zarr
from inril_ray.demos.formats.furniture_pickle import FurniturePickle
from inril_ray.demos.formats.lerobot import LeRobot
from inril_ray.demos.formats.resip_zarr import ResipZarr
from inril_ray.demos.formats.restricted_pickle import SafeUnpickler
from inril_ray.demos.store import convert, load, recognise
from inril_ray.envs.furniture.spec import OBSTACLE_QUAT
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.types import EnvSpec, InrilError
from inril_ray.words import counted
from tests.unit import test_demos_lerobot

zarr = pytest.importorskip("zarr")

PARTS = 42
EXPECTATION = Expectation(
    env_name="one_leg", obs_keys=(("robot_state", 16), ("parts_poses", PARTS)), action_dim=10, semantics=""
)
SOURCE = {"kind": "scripted", "seed": 3}
FIELDS = (("ee_pos", 3), ("ee_quat", 4), ("ee_pos_vel", 3), ("ee_ori_vel", 3), ("gripper_width", 1))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def turns(rng: np.random.Generator, size: int, angle: float) -> Rotation:
    axes = rng.normal(size=(size, 3))
    return Rotation.from_rotvec(angle * axes / np.linalg.norm(axes, axis=1, keepdims=True))


def six(rotation: Rotation) -> np.ndarray:
    return rotation.as_matrix()[:, :2].reshape(-1, 6)


def raw_states(length: int, seed: int = 0) -> np.ndarray:
    r = rng(seed)
    return np.concatenate(
        [r.uniform(-0.5, 0.5, (length, 3)), Rotation.random(length, r).as_quat(), r.normal(size=(length, 7))], axis=1
    ).astype(np.float32)


def as_dicts(states: np.ndarray) -> list[dict[str, Any]]:
    ends = np.cumsum([w for _, w in FIELDS])
    told = [{f: row[e - w : e] for (f, w), e in zip(FIELDS, ends, strict=True)} for row in states]
    return [{**row, "joint_positions": np.zeros(7, np.float32)} for row in told]


def recording(length: int = 6, extra: int = 1, seed: int = 0, angle: float = 0.2, **changes: Any) -> dict[str, Any]:
    """A file as the simulator's collector makes it."""
    r, n = rng(seed + 1), length + extra
    states = as_dicts(raw_states(n, seed))
    actions = np.concatenate(
        [r.uniform(-0.02, 0.02, (length, 3)), turns(r, length, angle).as_quat(), r.choice([-0.7, 0.9], (length, 1))],
        axis=1,
    ).astype(np.float32)
    data = {
        "observations": [
            {
                "color_image1": np.full((4, 5, 3), t, np.uint8),
                "color_image2": np.full((2, 3, 3), 50 + t, np.uint8),
                "robot_state": states[t],
                "parts_poses": signed(r.normal(size=(1, PARTS)))[0].astype(np.float32),
            }
            for t in range(n)
        ],
        "actions": list(actions),
        "rewards": [0.0] * (length - 1) + [np.float32(1.0)],
        "skills": [0] * length,
        "success": True,
        "furniture": "one_leg",
        "error": False,
        "error_description": "",
    }
    return {key: value for key, value in {**data, **changes}.items() if value is not ...}


def signed(poses: np.ndarray) -> np.ndarray:
    """Poses with quaternions on the side that the task's observations have them on."""
    return furniture_pickle.with_signs_of_the_task(poses, "one_leg")


def dump(path: Path, data: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wb") if path.suffix == ".xz" else path.open("wb") as file:
        pickle.dump(data, file, protocol)
    return path


def recorded(length: int, seed: int, success: bool = True) -> RecordedEpisode:
    """Absolute actions within the limits of a step."""
    r = rng(seed)
    raw = raw_states(length + 1, seed)
    hand = Rotation.from_quat(raw[:, 3:7])
    obs = np.concatenate([raw[:, :3], six(hand), raw[:, 7:], signed(r.normal(size=(length + 1, PARTS)))], axis=1)
    obs = obs.astype(np.float32)
    goal = hand[:-1] * turns(r, length, 0.3)
    position = obs[:-1, :3] + r.uniform(-0.02, 0.02, (length, 3))
    actions = np.concatenate([position, six(goal), r.choice([-1, 1], (length, 1))], axis=1).astype(np.float32)
    return RecordedEpisode(
        obs=obs[:-1],
        next_obs=obs[1:],
        actions=actions,
        rewards=np.eye(length, dtype=np.float32)[-1] * success,
        success=(np.arange(length) == length - 1) & success,
    )


EPISODES = [recorded(5, 0), recorded(7, 1, success=False), recorded(4, 2)]


# -- pickles: values --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("suffix", ["pkl", "pkl.xz"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_values_are_those_of_independent_arithmetic(tmp_path: Path, extra: int, suffix: str, protocol: int) -> None:
    data = recording(extra=extra)
    path = dump(tmp_path / f"a.{suffix}", data, protocol)
    assert recognise(path) is FurniturePickle
    (episode,) = FurniturePickle.read(path, EXPECTATION)
    states = raw_states(6 + extra)
    hand = Rotation.from_quat(states[:, 3:7])
    poses = np.stack([o["parts_poses"] for o in data["observations"]])
    obs = np.concatenate([states[:, :3], six(hand), states[:, 7:], poses], axis=1)
    np.testing.assert_allclose(episode.obs, obs[:6], atol=1e-6)
    if extra:
        assert episode.final_obs is not None
        np.testing.assert_allclose(episode.final_obs, obs[6], atol=1e-6)
    else:
        assert episode.final_obs is None
    deltas = np.stack(data["actions"])
    goal = hand[:6] * Rotation.from_quat(deltas[:, 3:7])
    want = np.concatenate([states[:6, :3] + deltas[:, :3], six(goal), np.sign(deltas[:, 7:])], axis=1)
    np.testing.assert_allclose(episode.actions, want, atol=1e-6)
    assert episode.actions.dtype == episode.obs.dtype == np.float32
    assert episode.rewards.tolist() == [0, 0, 0, 0, 0, 1]
    assert episode.success is True
    assert not episode.terminated
    assert not episode.images


def test_deltas_are_limited_step_by_step(tmp_path: Path) -> None:
    data = recording(4)
    deltas = np.stack(data["actions"]).astype(np.float64)
    axis = np.array([0.6, 0.0, 0.8])
    deltas[0, :3] = [0.1, -0.03, 0.01]
    angles = np.array([1.2, 0.35, 0.1, 3.0])
    deltas[:, 3:7] = Rotation.from_rotvec(angles[:, None] * axis).as_quat()
    deltas[1, 3:7] *= -1  # the same rotation
    deltas[:, 7] = [0.2, 0.0, -3.0, -1e-4]
    (episode,) = FurniturePickle.read(dump(tmp_path / "a.pkl", {**data, "actions": deltas}), EXPECTATION)
    states = raw_states(5)[:4]
    moved = episode.actions[:, :3] - states[:, :3]
    np.testing.assert_allclose(moved[0], [0.025, -0.025, 0.01], atol=1e-6)
    np.testing.assert_allclose(moved[1:], deltas[1:, :3], atol=1e-6)
    limited = Rotation.from_rotvec(np.minimum(angles, 0.35)[:, None] * axis)
    want = six(Rotation.from_quat(states[:, 3:7]) * limited)
    np.testing.assert_allclose(episode.actions[:, 3:9], want, atol=1e-6)
    assert episode.actions[:, 9].tolist() == [1, 0, -1, -1]


def test_states_as_dictionaries_and_vectors_are_the_same(tmp_path: Path) -> None:
    states = raw_states(7)
    rows = six(Rotation.from_quat(states[:, 3:7]))
    sixteen = np.concatenate([states[:, :3], rows, states[:, 7:]], axis=1).astype(np.float32)
    scalar_width = [{**d, "gripper_width": np.asarray(d["gripper_width"][0])} for d in as_dicts(states)]
    found = []
    for i, values in enumerate((as_dicts(states), scalar_width, list(states), list(sixteen))):
        data = recording()
        for observation, value in zip(data["observations"], values, strict=True):
            observation["robot_state"] = value
        (episode,) = FurniturePickle.read(dump(tmp_path / f"{i}.pkl", data), EXPECTATION)
        found.append(episode)
    for other in found[1:]:
        np.testing.assert_allclose(other.obs, found[0].obs, atol=1e-6)
        np.testing.assert_allclose(other.actions, found[0].actions, atol=1e-6)
    np.testing.assert_array_equal(found[3].obs[:, :16], sixteen[:6])


def test_a_directory_is_read_in_order(tmp_path: Path) -> None:
    for name, length in (("b/x/2.pkl.xz", 3), ("a/1.pkl", 5), ("c.pkl", 4)):
        dump(tmp_path / "set" / name, recording(length, seed=length))
    dump(tmp_path / "set" / ".partial" / "d.pkl", {})
    (tmp_path / "set" / "a" / "video.mp4").write_bytes(b"")
    episodes = list(FurniturePickle.read(tmp_path / "set", None))
    assert [e.name for e in episodes] == ["a/1.pkl", "b/x/2.pkl.xz", "c.pkl"]
    assert [len(e.actions) for e in episodes] == [5, 3, 4]
    assert episodes[0].obs.shape == (5, 58)


def test_pictures_are_kept_if_asked_for(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.pkl", recording())
    arrays = load(path, EXPECTATION, Selection(images=("color_image2", "color_image1")))
    assert arrays.images["color_image1"].shape == (6, 4, 5, 3)
    assert arrays.images["color_image2"][:, 0, 0, 0].tolist() == [50, 51, 52, 53, 54, 55]
    with pytest.raises(DemoError, match="is missing at step 0; found: color_image1"):
        load(path, EXPECTATION, Selection(images=("color_image3",)))
    with pytest.raises(DemoError, match=r"is float32 \(42,\); pictures are uint8"):
        load(path, EXPECTATION, Selection(images=("parts_poses",)))
    with pytest.raises(DemoError, match="has no filters"):
        load(path, EXPECTATION, Selection(filter="train"))


@pytest.mark.parametrize(
    ("value", "success"),
    [(True, 1), (False, 0), (np.bool_(True), 1), (np.array([0]), 0), ("partial_success", 1), (None, -1), (..., -1)],
)
def test_success_is_what_the_file_says(tmp_path: Path, value: Any, success: int) -> None:
    assert load(dump(tmp_path / "a.pkl", recording(success=value)), EXPECTATION).success.tolist() == [success]


def test_what_the_file_says_about_itself(tmp_path: Path) -> None:
    path = dump(tmp_path / "teleop" / "low" / "a.pkl", recording(furniture=..., task="one_leg"))
    info = FurniturePickle.inspect(path)
    assert (info.env_name, info.source, info.semantics) == ("one_leg", "human", "")
    assert info.metadata["observations"] == {
        "color_image1": [4, 5, 3],
        "color_image2": [2, 3, 3],
        "robot_state": [21],
        "parts_poses": [PARTS],
    }
    assert "not recorded in this simulator" in info.warnings[0]
    assert FurniturePickle.inspect(dump(tmp_path / "a.pkl", recording())).source == "unknown"
    other = Expectation(env_name="lamp", obs_keys=EXPECTATION.obs_keys, action_dim=10)
    with pytest.raises(DemoError, match="'one_leg', the task needs 'lamp'"):
        load(path, other)


def test_optional_parts_may_be_missing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {key: ... for key in ("rewards", "skills", "error", "error_description", "furniture")}
    arrays = load(dump(tmp_path / "a.pkl", recording(**changes)), EXPECTATION)
    assert np.isnan(arrays.rewards).all()
    assert any("one_leg was assumed" in w for w in arrays.info.metadata["warnings"])


# -- pickles: safety --------------------------------------------------------------------------------------------------
class Evil:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "ran"
    evil = {
        "posix.system": Evil(os.system, f"touch {target}"),
        "eval": Evil(eval, f"open({str(target)!r}, 'w')"),
        "os.mkdir|posix.mkdir": Evil(os.mkdir, str(target)),
        "getattr": Evil(getattr, "", "join"),
    }
    for i, (asked, part) in enumerate(evil.items()):
        path = dump(tmp_path / f"{i}.pkl", recording(skills=part), protocol)
        with pytest.raises(DemoError, match=f"it asks for .*({asked})"):
            load(path, EXPECTATION)
        with pytest.raises(DemoError, match="it asks for"):
            FurniturePickle.inspect(path)
        assert FurniturePickle.recognises(path)  # by its name: the content is not looked at
    assert not target.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (OrderedDict, "asks for collections.OrderedDict|callable|dict"),
        (np.array([[1], None], object), "an array of 'O8'"),
        (np.zeros(2, [("a", "O"), ("b", "f4")]), r"an array of 'V12'"),
        (np.zeros(2, np.complex64), "an array of 'c8'"),
        (np.float32, "asks for numpy.float32"),
        (np.ma.zeros(2), "asks for numpy.ma"),
        (Path("x"), "asks for pathlib"),
        (print, "asks for builtins.print"),
        (lzma.LZMAFile, "asks for lzma"),
    ],
)
def test_only_plain_data_is_read(tmp_path: Path, value: Any, message: str) -> None:
    path = dump(tmp_path / "a.pkl", recording(skills=value))
    if value is OrderedDict:  # a name that is never called is a value that is not used
        load(path, EXPECTATION)
        return
    with pytest.raises(DemoError, match=message) as caught:
        load(path, EXPECTATION)
    assert caught.value.episode == "a.pkl"


def unpickled(text: bytes) -> Any:
    return SafeUnpickler(io.BytesIO(text)).load()


ATTACKS: dict[str, tuple[bytes, str]] = {
    # A type that says that it holds no objects: numpy would take the bytes for addresses.
    "lying_dtype": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbS'AAAAAAAA'\ntR.",
        "an array of 'O8'",
    ),
    "changed_constructor": (b"cnumpy\ndtype\n(dS'_make'\nI1\nsb.", "changes a constructor"),
    "changed_slots": (b"cnumpy\ndtype\n(N(dS'_make'\nI1\nstb.", "changes a constructor"),
    "dotted_name": (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "asks for numpy.dtype.__init__"),
    "new_object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "must be a type|__new__"),
    "short_array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1000000000\nI8\ntcnumpy\ndtype\n(S'f8'\ntRI00\n\x8e\x00\x00\x00\x00\x00\x00\x00\x00tb.",
        "in 0 bytes",
    ),
    "array_of_a_list": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\ntcnumpy\ndtype\n(S'i1'\ntRI00\n(I7\nltb.",
        "not made of bytes",
    ),
    "extension": (b"\x80\x02\x82\x01.", "unregistered extension|extension code"),
    "persistent": (b"Psomething\n.", "persistent"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_below_the_names_fail(name: str) -> None:
    text, message = ATTACKS[name]
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError, AttributeError), match=message):
        unpickled(text)


def test_an_index_of_the_memo_takes_no_memory() -> None:
    """C's unpickler makes a list as long as the index is great; here under a limit that it would hit."""
    code = (
        "import io, resource, sys\n"
        "from inril_ray.demos.formats.restricted_pickle import SafeUnpickler\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))\n"
        "print(SafeUnpickler(io.BytesIO(b'K\\x07r\\xff\\xff\\xff\\xff.')).load())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_what_numpy_writes_is_read(protocol: int) -> None:
    values = {
        "big": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flags": np.array([True, False]),
        "text": np.array(["a", "bc"]),
        "empty": np.zeros((0, 3), np.int16),
        "none": np.array(1.5),
        "scalar": np.float64(0.25),
        "truth": np.bool_(True),
    }
    plain = {"set": {1, 2}, "frozen": frozenset("a"), "bytes": b"\xff", "ordered": OrderedDict(a=1), "big": 2**80}
    found = unpickled(pickle.dumps([values, plain], protocol))
    for key, value in values.items():
        assert np.asarray(found[0][key]).dtype in (value.dtype, value.dtype.newbyteorder())
        np.testing.assert_array_equal(np.asarray(found[0][key]), value)
    assert found[1] == plain


def test_modules_of_numpy_2_are_known(tmp_path: Path) -> None:
    for protocol in (2, 5):
        text = pickle.dumps(recording(), protocol)
        assert text.count(b"numpy.core") >= 1
        for module in (b"multiarray", b"numeric"):  # a name's length is written before it from protocol 4 on
            old, new = b"numpy.core." + module, b"numpy._core." + module
            text = text.replace(bytes([0x8C, len(old)]) + old, bytes([0x8C, len(new)]) + new)
            text = text.replace(b"c" + old + b"\n", b"c" + new + b"\n")
        assert b"numpy.core" not in text
        text = text if protocol == 2 else unframed(text)
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(text)
        assert load(path, EXPECTATION).obs.shape == (6, 58)


def unframed(text: bytes) -> bytes:
    """Leave out the frame, whose length is another one now: a frame is 0x95 and eight bytes after the protocol."""
    assert text[2] == 0x95
    assert text.count(b"\x95", 2, 12) == 1
    return text[:2] + text[11:]


# -- pickles: malformed -----------------------------------------------------------------------------------------------
def observed(key: str, change: Callable[[Any], Any], steps: Any = slice(None)) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        for observation in data["observations"][steps]:
            value = change(observation.pop(key))
            if value is not ...:
                observation[key] = value

    return apply


def state(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return observed(
        "robot_state", lambda s: {k: v for k, v in {**s, **changes}.items() if not (isinstance(v, type(...)))}
    )


def change(key: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        data[key] = value(data[key])
        if data[key] is ...:
            del data[key]

    return apply


def stacked(values: Any, column: int, value: float) -> np.ndarray:
    array = np.stack(values)
    array[2, column] = value
    return array


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], None], str | None, str]] = {
    # name: (change, field, part of the message)
    "no_actions": (change("actions", lambda _: ...), "actions", "is missing; found: error"),
    "no_observations": (change("observations", lambda _: ...), "observations", "is missing"),
    "observations_empty": (change("observations", lambda _: []), "observations", "is empty"),
    "observations_an_array": (change("observations", lambda _: np.zeros(3)), "observations", "list of dictionaries"),
    "too_many_observations": (change("observations", lambda o: [*o, o[-1]]), "observations", "8 steps for 6 actions"),
    "too_few_observations": (change("observations", lambda o: o[:5]), "observations", "6 or 7 are needed"),
    "actions_empty": (change("actions", lambda _: []), "actions", "is empty"),
    "actions_of_7": (change("actions", lambda a: [x[:7] for x in a]), "actions", "has width 7, 8 is read"),
    "actions_ragged": (change("actions", lambda a: [*a[:5], a[5][:3]]), "actions", r"differs in width.*\[3, 8\]"),
    "actions_text": (change("actions", lambda a: [["x"] * 8 for _ in a]), "actions", "not numbers"),
    "actions_a_number": (change("actions", lambda _: 5), None, "damaged"),
    "actions_nan": (change("actions", lambda a: stacked(a, 0, np.nan)), "actions", "not finite at step 2"),
    "no_rotation": (change("actions", lambda a: np.stack(a) * 0.5), "actions", "no unit quaternion at step 0"),
    "no_state": (observed("robot_state", lambda _: ..., slice(3, 4)), "robot_state", "is missing at step 3"),
    "state_of_15": (observed("robot_state", lambda _: np.zeros(15)), "robot_state", "has width 15; 14"),
    "states_mixed": (observed("robot_state", lambda _: np.zeros(14), slice(2)), None, "robot_state.*width|object"),
    "no_velocities": (state(ee_pos_vel=..., ee_ori_vel=...), "robot_state", "lacks ee_pos_vel, ee_ori_vel"),
    "quat_of_3": (state(ee_quat=np.zeros(3)), "robot_state/ee_quat", "has width 3, 4 is read"),
    "quat_zero": (state(ee_quat=np.zeros(4)), "robot_state/ee_quat", "its length is 0"),
    "state_infinite": (state(ee_pos=np.full(3, np.inf)), "robot_state/ee_pos", "not finite at step 0"),
    "no_obstacle": (observed("parts_poses", lambda p: p[:35]), "parts_poses", "35, the task needs 42; the 7 numbers"),
    "other_furniture": (observed("parts_poses", lambda p: p[:21]), "parts_poses", "has width 21, the task needs 42"),
    "cut_poses": (observed("parts_poses", lambda p: p[:40]), "parts_poses", "has width 40; poses have 7 numbers"),
    "no_poses": (observed("parts_poses", lambda _: ...), "parts_poses", "is missing at step 0; found: color_image1"),
    "rewards_short": (change("rewards", lambda r: r[:-1]), "rewards", "has 5 steps, the episode has 6"),
    "success_odd": (change("success", lambda _: 2), "success", "is 2; True, False and 'partial_success'"),
    "success_text": (change("success", lambda _: "yes"), "success", "is 'yes'; True"),
    "furniture_odd": (change("furniture", lambda _: 3), "furniture", "is 3, not a name"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pickle_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    apply, field, message = MALFORMED[name]
    data, out = recording(), tmp_path / "out"
    apply(data)
    path = dump(tmp_path / "set" / "a.pkl", data).parent
    out.mkdir()
    with pytest.raises(DemoError, match=message) as caught:
        convert(path, out / "demos.arrow", EXPECTATION)
    assert str(path) in str(caught.value)
    assert caught.value.episode == "a.pkl"
    if field:
        assert caught.value.field == field
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("suffix", ["pkl", "pkl.xz"])
def test_truncated_and_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = dump(tmp_path / f"a.{suffix}", recording())
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DemoError, match="can't be unpickled" if size else "is empty: 0 bytes"):
            load(path, EXPECTATION)
    r = rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(r.integers(len(whole)))] = int(r.integers(256))
        path.write_bytes(damaged)
        try:
            load(path, EXPECTATION)
        except DemoError as error:
            assert str(path) in str(error)
    if suffix == "pkl":
        path.write_bytes(whole + b"x")
        with pytest.raises(DemoError, match="goes on after its end"):
            load(path, EXPECTATION)
    path.write_bytes(lzma.compress(b"not a pickle") if suffix == "pkl.xz" else pickle.dumps([1]))
    with pytest.raises(DemoError, match="can't be unpickled|holds a list, not a dictionary"):
        load(path, EXPECTATION)


def test_files_of_two_tasks_are_no_set(tmp_path: Path) -> None:
    dump(tmp_path / "set" / "a.pkl", recording())
    dump(tmp_path / "set" / "b.pkl", recording(furniture="lamp"))
    with pytest.raises(DemoError, match="is 'lamp', the first file is of 'one_leg'"):
        load(tmp_path / "set", EXPECTATION)


def test_other_paths(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    for path in (tmp_path / "empty", tmp_path / "a.txt", tmp_path / "gone"):
        assert not FurniturePickle.recognises(path)
        with pytest.raises(DemoError, match="no file that ends in .pkl"):
            FurniturePickle.inspect(path)
    # A pickle that lies about does not make another format's directory one of pickles.
    other = test_demos_lerobot.write_set(tmp_path / "lerobot")
    dump(other / "cache" / "a.pkl", recording())
    assert recognise(other) is LeRobot


# -- pickles: writer --------------------------------------------------------------------------------------------------
def test_what_is_written_as_pickles_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "set"
    furniture_pickle.write(path, EPISODES, furniture="one_leg", source=SOURCE)
    assert sorted(p.name for p in path.iterdir()) == ["00000.pkl", "00001.pkl", "00002.pkl"]
    assert [p.name for p in path.parent.iterdir()] == ["set"]
    arrays = load(path, EXPECTATION)
    np.testing.assert_allclose(arrays.obs, np.concatenate([e.obs for e in EPISODES]), atol=1e-6)
    np.testing.assert_allclose(arrays.actions, np.concatenate([e.actions for e in EPISODES]), atol=1e-6)
    np.testing.assert_allclose(arrays.final_obs, np.stack([e.next_obs[-1] for e in EPISODES]), atol=1e-6)
    np.testing.assert_array_equal(arrays.rewards, np.concatenate([e.rewards for e in EPISODES]))
    assert arrays.success.tolist() == [1, 0, 1]
    assert not arrays.terminated.any()
    assert (arrays.info.source, arrays.info.env_name) == ("scripted", "one_leg")
    assert arrays.info.metadata["made_by"] == SOURCE
    assert "warnings" not in arrays.info.metadata
    with (path / "00000.pkl").open("rb") as file:  # what other readers of the format find
        raw = pickle.load(file)
    assert len(raw["observations"]) == 6
    assert {k: v.shape for k, v in raw["observations"][0]["robot_state"].items()} == {f: (w,) for f, w in FIELDS}
    hand = Rotation.from_quat([o["robot_state"]["ee_quat"] for o in raw["observations"]])
    np.testing.assert_allclose(six(hand)[:-1], EPISODES[0].obs[:, 3:9], atol=1e-6)
    assert raw["actions"].shape == (5, 8)
    assert np.linalg.norm(Rotation.from_quat(raw["actions"][:, 3:7]).as_rotvec(), axis=1) == pytest.approx([0.3] * 5)
    assert raw["success"] is True
    furniture_pickle.write(tmp_path / "again", EPISODES, furniture="one_leg", source=SOURCE)
    for file in path.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(DemoError, match="exists"):
        furniture_pickle.write(path, EPISODES, furniture="one_leg", source=SOURCE)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    broken = [*EPISODES, None]
    with pytest.raises(AttributeError):
        furniture_pickle.write(tmp_path / "a", broken, furniture="one_leg", source=SOURCE)  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        resip_zarr.write(tmp_path / "b", broken, task="one_leg", source=SOURCE)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


# -- zarr -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "one_leg.zarr"
    resip_zarr.write(path, EPISODES, task="one_leg", source=SOURCE)
    return path


def test_what_is_written_as_zarr_is_read(good: Path) -> None:
    assert recognise(good) is ResipZarr
    arrays = load(good, EXPECTATION)
    np.testing.assert_array_equal(arrays.obs, np.concatenate([e.obs for e in EPISODES]))
    np.testing.assert_array_equal(arrays.actions, np.concatenate([e.actions for e in EPISODES]))
    np.testing.assert_array_equal(arrays.rewards, np.concatenate([e.rewards for e in EPISODES]))
    assert np.diff(arrays.episode_starts).tolist() == [5, 7, 4]
    assert arrays.success.tolist() == [1, 0, 1]
    assert np.isnan(arrays.final_obs).all()
    assert not arrays.terminated.any()
    assert (arrays.info.source, arrays.info.env_name) == ("scripted", "one_leg")
    assert arrays.info.metadata["made_by"] == SOURCE
    assert arrays.info.metadata["observations"] == {"parts_poses": [PARTS], "robot_state": [16]}
    assert "warnings" not in arrays.info.metadata


def test_the_layout_is_resips(good: Path) -> None:
    group = zarr.open_group(str(good), mode="r")
    assert json.loads((good / ".zgroup").read_text()) == {"zarr_format": 2}
    kinds = {name: (group[name].dtype.str, group[name].shape) for name in resip_zarr._arrays(EPISODES, "x")}
    assert kinds == {
        "robot_state": ("<f4", (16, 16)),
        "parts_poses": ("<f4", (16, PARTS)),
        "action/delta": ("<f4", (16, 10)),
        "action/pos": ("<f4", (16, 10)),
        "reward": ("<f4", (16,)),
        "skill": ("<f4", (16,)),
        "augment_states": ("<f4", (16,)),
        "episode_ends": ("<u4", (3,)),
        "task": ("|O", (3,)),
        "success": ("|u1", (3,)),
        "pickle_file": ("|O", (3,)),
    }
    assert group["episode_ends"][...].tolist() == [5, 12, 16]
    delta = group["action/delta"][...]
    obs, actions = (np.concatenate([getattr(e, k) for e in EPISODES]) for k in ("obs", "actions"))
    np.testing.assert_allclose(delta[:, :3], actions[:, :3] - obs[:, :3], atol=1e-6)
    rows = [np.concatenate([a, np.cross(a[:, :3], a[:, 3:])], axis=1) for a in (obs[:, 3:9], actions[:, 3:9])]
    hand, goal = (Rotation.from_matrix(r.reshape(-1, 3, 3)) for r in rows)
    np.testing.assert_allclose(delta[:, 3:9], six(hand.inv() * goal), atol=1e-6)
    attributes = dict(group.attrs)
    assert (attributes["rotation_mode"], attributes["n_episodes"], attributes["n_timesteps"]) == ("rot_6d", 3, 16)
    assert attributes["demo_source"] == "scripted"


def test_zeros_are_written(tmp_path: Path) -> None:
    resip_zarr.write(tmp_path / "z", [recorded(3, 0, success=False)], task="one_leg", source=SOURCE)
    assert (tmp_path / "z" / "reward" / "0").exists()
    arrays = load(tmp_path / "z", EXPECTATION)
    assert arrays.success.tolist() == [0]
    assert arrays.rewards.tolist() == [0, 0, 0]


def test_both_formats_hold_the_same(tmp_path: Path, good: Path) -> None:
    furniture_pickle.write(tmp_path / "set", EPISODES, furniture="one_leg", source=SOURCE)
    one, other = load(tmp_path / "set", EXPECTATION), load(good, EXPECTATION)
    np.testing.assert_allclose(one.actions, other.actions, atol=1e-6)
    np.testing.assert_allclose(one.obs, other.obs, atol=1e-6)


def test_padding_is_zeros_and_other_keys_are_missing(tmp_path: Path, good: Path) -> None:
    furniture_pickle.write(tmp_path / "set", EPISODES, furniture="one_leg", source=SOURCE)
    keys = (*EXPECTATION.obs_keys, ("padding", 7))
    for path in (good, tmp_path / "set"):
        arrays = load(path, dataclasses.replace(EXPECTATION, obs_keys=keys))
        assert arrays.obs.shape == (16, 65)
        assert not arrays.obs[:, 58:].any()
        np.testing.assert_array_equal(arrays.obs[:, :58], load(path, EXPECTATION).obs)
        with pytest.raises(DemoError, match="is missing; found: robot_state, parts_poses"):
            load(path, dataclasses.replace(EXPECTATION, obs_keys=(("object", 7),)))


def test_images_of_zarr_are_kept_if_asked_for(good: Path) -> None:
    pictures = np.arange(16 * 2 * 3 * 3, dtype=np.uint8).reshape(16, 2, 3, 3)
    edit(good).create_array("color_image1", data=pictures, chunks=(5, 2, 3, 3))
    arrays = load(good, EXPECTATION, Selection(images=("color_image1",)))
    np.testing.assert_array_equal(arrays.images["color_image1"], pictures)
    assert load(good, EXPECTATION).images == {}
    with pytest.raises(DemoError, match="is missing; images found: color_image1"):
        load(good, EXPECTATION, Selection(images=("color_image2",)))
    with pytest.raises(DemoError, match=r"is float32 \(16, 16\); images are uint8 \(16, height"):
        load(good, EXPECTATION, Selection(images=("robot_state",)))
    with pytest.raises(DemoError, match="has no filters"):
        load(good, EXPECTATION, Selection(filter="train"))
    (good / "color_image1" / "1.0.0.0").unlink()
    with pytest.raises(DemoError, match="lacks 1 of 4 chunks"):
        load(good, EXPECTATION, Selection(images=("color_image1",)))


def test_older_names_and_missing_extras(good: Path) -> None:
    group = edit(good)
    for name in ("task", "skill", "augment_states", "pickle_file", "reward", "success", "action/delta"):
        shutil.rmtree(good / name)
    replace(group, "furniture", np.array(["one_leg"] * 3))
    group.attrs["demo_source"] = "teleop"
    del group.attrs["inril_source"]
    arrays = load(good, EXPECTATION)
    assert (arrays.info.env_name, arrays.info.source) == ("one_leg", "human")
    assert arrays.success.tolist() == [-1] * 3
    assert np.isnan(arrays.rewards).all()
    assert "not recorded in this simulator" in arrays.info.metadata["warnings"][0]


def test_zarr_format_3_is_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text has no final specification in format 3
        group = zarr.create_group(str(tmp_path / "z"), zarr_format=3)
        for name, values in resip_zarr._arrays(EPISODES, "one_leg").items():
            values = np.zeros_like(values) if name == "reward" else values
            dtype = str if values.dtype == object else values.dtype
            group.create_array(name, shape=values.shape, dtype=dtype)[...] = values
        arrays = load(tmp_path / "z", EXPECTATION)
    assert not (tmp_path / "z" / "reward" / "c").exists()  # nothing but zeros
    np.testing.assert_array_equal(arrays.actions, np.concatenate([e.actions for e in EPISODES]))


def edit(path: Path) -> Any:
    return zarr.open_group(str(path), mode="r+")


def replace(group: Any, name: str, values: Any) -> None:
    if name in group:
        del group[name]
    if values is not None:
        values = np.asarray(values)
        dtype = str if values.dtype.kind == "U" else values.dtype
        array = group.create_array(name, shape=values.shape, dtype=dtype, config={"write_empty_chunks": True})
        array[...] = values.astype(object) if dtype is str else values


def array(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        group = edit(path)
        replace(group, name, make(np.asarray(group[name][...])))

    return apply


def with_value(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[index] = value
        return values

    return make


def chunk(name: str, content: bytes | None) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / name).unlink() if content is None else (path / name).write_bytes(content)

    return apply


DAMAGED: dict[str, tuple[Callable[[Path], Any], str | None, str]] = {
    # name: (change, field, part of the message)
    "no_states": (array("robot_state", lambda _: None), "robot_state", "is missing"),
    "no_poses": (array("parts_poses", lambda _: None), "parts_poses", "is missing"),
    "no_actions": (array("action/pos", lambda _: None), "action/pos", "is missing"),
    "no_ends": (array("episode_ends", lambda _: None), "episode_ends", "is missing"),
    "states_of_14": (array("robot_state", lambda a: a[:, :14]), "robot_state", "has width 14, the task needs 16"),
    "states_flat": (array("robot_state", lambda a: a[:, 0]), "robot_state", "2 axes are needed"),
    "states_nan": (array("robot_state", with_value((3, 0), np.nan)), "robot_state", "not finite at step 3"),
    "poses_inf": (array("parts_poses", with_value((5, 1), np.inf)), "parts_poses", "not finite at step 5"),
    "no_obstacle": (array("parts_poses", lambda a: a[:, :35]), "parts_poses", "the 7 numbers of the obstacle's pose"),
    "cut_poses": (array("parts_poses", lambda a: a[:, :41]), "parts_poses", "has width 41; poses have 7"),
    "actions_of_8": (array("action/pos", lambda a: a[:, :8]), "action/pos", "has width 8, the task needs 10"),
    "actions_short": (array("action/pos", lambda a: a[:-1]), "action/pos", r"has shape \(15, 10\), there are 16 steps"),
    "rewards_short": (array("reward", lambda a: a[:-1]), "reward", "there are 16 steps"),
    "rewards_nan": (array("reward", with_value(1, np.nan)), "reward", "not finite at step 1"),
    "success_odd": (array("success", with_value(0, 7)), "success", "other values than 0 and 1"),
    "success_short": (array("success", lambda a: a[:2]), "success", r"has shape \(2,\), there are 3 episodes"),
    "ends_fall": (array("episode_ends", lambda _: np.array([5, 4, 16], np.uint32)), "episode_ends", "at episode 1"),
    "ends_stay": (array("episode_ends", lambda _: np.array([0, 5, 16], np.uint32)), "episode_ends", "at episode 0"),
    "ends_early": (array("episode_ends", lambda _: np.array([5, 15])), "episode_ends", "ends at 15, there are 16"),
    "ends_broken": (array("episode_ends", lambda a: a + 0.5), "episode_ends", "is float64"),
    "ends_empty": (array("episode_ends", lambda a: a[:0]), "episode_ends", r"is uint32 \(0,\); whole numbers"),
    "two_tasks": (array("task", lambda _: ["one_leg", "lamp", "lamp"]), "task", "names several tasks.*lamp, one_leg"),
    "other_task": (array("task", lambda _: ["lamp"] * 3), "env_name", "'lamp', the task needs 'one_leg'"),
    "chunk_gone": (chunk("robot_state/0.0", None), "robot_state", "lacks 1 of 1 chunks: the copy is not complete"),
    "reward_chunk_gone": (chunk("reward/0", None), "reward", "lacks 1 of 1 chunks"),
    "task_chunk_gone": (chunk("task/0", None), "task", "lacks 1 of 1 chunks"),
    "chunk_cut": (chunk("action/pos/0.0", b"\x02\x01"), None, "damaged or truncated"),
    "chunk_empty": (chunk("parts_poses/0.0", b""), None, "chunk 0.0 is empty: 0 bytes"),
    "chunk_noise": (chunk("robot_state/0.0", bytes(range(256))), None, "damaged or truncated"),
    "metadata_cut": (chunk("robot_state/.zarray", b"{"), None, "damaged or truncated"),
    "group_cut": (chunk(".zgroup", b"{"), None, "damaged or truncated"),
    "group_gone": (chunk(".zgroup", None), None, "none of the known formats"),
    "source_broken": (lambda p: edit(p).attrs.update(inril_source="{"), "inril_source", "is not JSON"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_zarr_is_one_error_and_leaves_nothing(tmp_path: Path, good: Path, name: str) -> None:
    apply, field, message = DAMAGED[name]
    apply(good)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DemoError, match=message) as caught:
        convert(good, out / "demos.arrow", EXPECTATION)
    assert str(good) in str(caught.value)
    if field:
        assert caught.value.field == field
    assert list(out.iterdir()) == []


PICKLE = {"id": "pickle"}
TEXT = {"id": "vlen-utf8"}


@pytest.mark.parametrize("name", ["task", "episode_ends", "robot_state", "reward"])
@pytest.mark.parametrize(
    "packed",
    [
        {"compressor": PICKLE},
        {"compressor": None, "filters": [PICKLE]},
        {"compressor": None, "filters": [PICKLE], "dtype": "|O"},
        {"compressor": None, "filters": [TEXT, PICKLE], "dtype": "|O"},
        {"compressor": PICKLE, "filters": [TEXT], "dtype": "|O"},
    ],
    ids=["compressor", "filter", "objects", "text_then_pickle", "text_packed"],
)
@pytest.mark.parametrize("consolidated", [False, True])
def test_a_zarr_that_asks_for_pickle_does_not_run(
    tmp_path: Path, good: Path, name: str, packed: dict[str, Any], consolidated: bool
) -> None:
    """Zarr's registry of codecs has one that unpickles; ``consolidated``: only the copy of all metadata tells of it."""
    target = tmp_path / "ran"
    told = json.loads((good / name / ".zarray").read_text()) | packed
    shutil.copytree(good, tmp_path / "bad")
    if consolidated:
        zarr.consolidate_metadata(str(tmp_path / "bad"), zarr_format=2)
        whole = json.loads((tmp_path / "bad" / ".zmetadata").read_text())
        whole["metadata"][f"{name}/.zarray"] = told
        (tmp_path / "bad" / ".zmetadata").write_text(json.dumps(whole))
    else:
        (tmp_path / "bad" / name / ".zarray").write_text(json.dumps(told))
    for file in (tmp_path / "bad" / name).iterdir():
        if not file.name.startswith("."):
            file.write_bytes(pickle.dumps(Evil(os.system, f"touch {target}")))
    with pytest.raises(DemoError, match="is packed by pickle; read are blosc|damaged or truncated.*codec"):
        load(tmp_path / "bad", EXPECTATION)
    with contextlib.suppress(DemoError):  # it does not read every array
        ResipZarr.inspect(tmp_path / "bad")
    assert not target.exists()


def test_one_array_is_no_data_set(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "z"), data=np.zeros(3), zarr_format=2)
    with pytest.raises(DemoError, match="is one zarr array"):
        load(tmp_path / "z", EXPECTATION)


def test_without_zarr_it_says_what_to_install(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    for use in (lambda: load(good), lambda: resip_zarr.write(good / "x", EPISODES, task="a", source=SOURCE)):
        with pytest.raises(InrilError, match=r"pip install 'inril-ray\[furniture\]'"):
            use()


# -- both: command line -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["pickle", "zarr"])
def test_the_command_line_inspects_them(
    tmp_path: Path, good: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good
    if kind == "pickle":
        path = tmp_path / "set"
        furniture_pickle.write(path, EPISODES, furniture="one_leg", source=SOURCE)
    assert main(["demos", "inspect", str(path)]) in (0, None)
    told = capsys.readouterr().out
    assert "one_leg" in told
    assert "3 (0 held out)" in told
    assert "2 of 3 episodes" in told
    assert "58 numbers" in told
    assert "10 numbers" in told
    assert "kind scripted, seed 3" in told


@pytest.mark.parametrize("kind", ["pickle", "zarr"])
def test_the_command_line_converts_them(
    tmp_path: Path, good: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EnvSpec(
        task="furniture/one_leg",
        obs_dim=58,
        action_dim=10,
        max_episode_steps=700,
        control_hz=10.0,
        obs_keys=EXPECTATION.obs_keys,
        recorded_as="one_leg",
    )
    monkeypatch.setattr("inril_ray.envs.spec", lambda task, config: spec)
    path, lengths, key = good, [5, 7, 4], "color_image1"
    edit(good).create_array(key, data=np.ones((16, 2, 3, 3), np.uint8), chunks=(16, 2, 3, 3))
    if kind == "pickle":
        path, lengths = dump(tmp_path / "set" / "a.pkl", recording()).parent, [6]
    target = tmp_path / "demos.arrow"
    arguments = ["demos", "convert", str(path), str(target), "--task", spec.task, "--images", key]
    assert main(arguments) in (0, None)
    told = capsys.readouterr().out
    assert f"{counted(len(lengths), 'episodes')}, {sum(lengths)} steps" in told
    assert ("warning: not recorded in this simulator" in told) is (kind == "pickle")
    arrays = load(target, EXPECTATION)
    assert np.diff(arrays.episode_starts).tolist() == lengths
    assert arrays.images[key].shape[0] == sum(lengths)


# -- signs of quaternions ---------------------------------------------------------------------------------------------
def test_quaternions_get_the_signs_of_the_task() -> None:
    starts = FURNITURE["one_leg"].start_quats
    rng = np.random.default_rng(0)
    near = Rotation.from_quat(starts) * Rotation.from_rotvec(0.3 * rng.normal(size=(5, 3)))
    quats = near.as_quat() * np.sign((near.as_quat() * starts).sum(axis=1))[:, None]
    poses = np.concatenate([rng.normal(size=(5, 3)), quats], axis=1).ravel()
    whole = np.concatenate([poses, [0, 0, 0], OBSTACLE_QUAT])[None].astype(np.float32)
    flipped = whole.copy().reshape(1, 6, 7)
    flipped[:, [1, 3, 5], 3:] *= -1
    found = furniture_pickle.with_signs_of_the_task(flipped.reshape(1, 42), "one_leg")
    np.testing.assert_array_equal(found, whole)
    assert found.dtype == np.float32
    other = np.ones((2, 14), np.float32)
    assert furniture_pickle.with_signs_of_the_task(other, "one_leg") is other
