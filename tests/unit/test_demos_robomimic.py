"""Robomimic HDF5: what is written is read back, and every malformed file is one clear error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from inril_ray.demos.episodes import DemoError, Expectation, RecordedEpisode, Selection
from inril_ray.demos.formats.robomimic_hdf5 import RobomimicHdf5, write
from inril_ray.demos.store import convert, load, recognise
from inril_ray.types import Interface

OBS_KEYS = (("hand", 3), ("object", 2))
EXPECTATION = Expectation(env_name="Fake", obs_keys=OBS_KEYS, action_dim=2)
LENGTHS = (5, 7, 4, 6)
SOURCE = {"kind": "scripted", "seed": 3}


def recorded(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[RecordedEpisode]:
    rng = np.random.default_rng(seed)
    return [
        RecordedEpisode(
            obs=rng.normal(size=(n, 5)).astype(np.float32),
            next_obs=rng.normal(size=(n, 5)).astype(np.float32),
            actions=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            rewards=(np.arange(n) == n - 1).astype(np.float32),
            states=rng.normal(size=(n, 4)),
            model_xml="<mujoco/>",
        )
        for n in lengths
    ]


def write_file(
    path: Path, episodes: list[RecordedEpisode] | None = None, *, version: str = "1.5.2", num_held_out: int = 1
) -> Path:
    write(
        path,
        episodes or recorded(),
        env_args=json.dumps({"env_name": "Fake", "env_version": version, "type": 1, "env_kwargs": {}}),
        obs_keys=OBS_KEYS,
        source=SOURCE,
        num_held_out=num_held_out,
    )
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_file(tmp_path / "demos.hdf5")


def test_round_trip(good: Path) -> None:
    episodes = list(RobomimicHdf5.read(good, EXPECTATION))
    assert [e.name for e in episodes] == ["demo_0", "demo_1", "demo_2", "demo_3"]
    assert [e.held_out for e in episodes] == [False, False, False, True]
    for got, want in zip(episodes, recorded(), strict=True):
        for name in ("obs", "actions", "rewards"):
            array = getattr(got, name)
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, getattr(want, name))


def test_the_task_fixes_the_order_of_the_observation(good: Path) -> None:
    swapped = Expectation(env_name="Fake", obs_keys=OBS_KEYS[::-1], action_dim=2)
    got, want = next(RobomimicHdf5.read(good, swapped)).obs, recorded()[0].obs
    np.testing.assert_array_equal(got, np.concatenate([want[:, 3:], want[:, :3]], axis=1))


def test_without_an_expectation_low_dimensional_observations_come_in_alphabetical_order(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        for name, n in zip(sorted(file["data"]), LENGTHS, strict=True):
            file[f"data/{name}/obs/camera"] = np.zeros((n, 4, 4, 3), np.uint8)
            file[f"data/{name}/obs/a_scalar"] = np.zeros(n, np.float32)
    np.testing.assert_array_equal(next(RobomimicHdf5.read(good, None)).obs, recorded()[0].obs)


def test_episodes_come_in_numerical_order(tmp_path: Path) -> None:
    path = write_file(tmp_path / "many.hdf5", recorded((2,) * 12))
    assert [e.name for e in RobomimicHdf5.read(path, EXPECTATION)] == [f"demo_{i}" for i in range(12)]


def test_missing_rewards_are_unknown(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["data/demo_0/rewards"]
    assert next(RobomimicHdf5.read(good, EXPECTATION)).rewards is None
    arrays = load(good, EXPECTATION)
    assert np.isnan(arrays.rewards[:5]).all()
    assert np.isfinite(arrays.rewards[5:]).all()


def test_a_file_without_masks_holds_nothing_out(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["mask"]
    assert not any(e.held_out for e in RobomimicHdf5.read(good, EXPECTATION))


def test_layout_is_robomimics(good: Path) -> None:
    with h5py.File(good) as file:
        assert file["data"].attrs["total"] == sum(LENGTHS)
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Fake"
        assert [x.decode() for x in file["mask/train"][()]] == ["demo_0", "demo_1", "demo_2"]
        assert [x.decode() for x in file["mask/valid"][()]] == ["demo_3"]
        demo = file["data/demo_1"]
        assert demo.attrs["num_samples"] == 7
        assert demo.attrs["model_file"] == "<mujoco/>"
        assert demo["dones"][()].tolist() == [0] * 6 + [1]
        assert demo["states"].shape == (7, 4)
        np.testing.assert_array_equal(demo["next_obs/object"][()], recorded()[1].next_obs[:, 3:])


def test_the_same_episodes_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_file(tmp_path / "a.hdf5"), write_file(tmp_path / "b.hdf5")
    other = write_file(tmp_path / "c.hdf5", recorded(seed=1))
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write(
            tmp_path / "x.hdf5", recorded(), env_args="{}", obs_keys=OBS_KEYS, source={"kind": object()}, num_held_out=1
        )
    assert list(tmp_path.iterdir()) == []


def test_inspect_tells_semantics_and_source(good: Path) -> None:
    info = RobomimicHdf5.inspect(good)
    assert (info.format, info.env_name, info.semantics, info.source) == ("robomimic_hdf5", "Fake", "v15", "scripted")
    assert info.metadata["made_by"] == SOURCE
    assert info.warnings == ()


@pytest.mark.parametrize(
    ("env_args", "semantics", "version"),
    [
        ({"env_version": "1.4.1"}, "v141", "1.4.1"),
        ({"env_version": "1.2.0"}, "v141", "1.2.0"),
        ({"env_version": "1.5.0"}, "v15", "1.5.0"),
        ({}, "v141", "1.4.1"),
        ({"env_kwargs": {"controller_configs": {"type": "OSC_POSE"}}}, "v141", "1.4.1"),
        ({"env_kwargs": {"controller_configs": {"body_parts": {}}}}, "v15", "1.5"),
        ({"env_version": "1.5.2", "type": 2}, "", None),
    ],
)
def test_the_release_of_robosuite_gives_the_rules(
    good: Path, env_args: dict[str, Any], semantics: str, version: str | None
) -> None:
    with h5py.File(good, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Fake", "type": 1, **env_args})
    info = RobomimicHdf5.inspect(good)
    assert info.semantics == semantics
    assert info.metadata.get("env_version") == version
    assert bool(info.warnings) == (version == "1.2.0"), "older than what the rules were measured with"


UNKNOWN = {
    "env_name": "unknown",
    "env_version": "",
    "type": 1,
    "env_kwargs": {
        "robots": ["unknown"],
        "control_freq": 0,
        "controller_configs": {"type": "OSC_POSE", "input_type": "", "input_ref_frame": None, "kp": None},
    },
}


def test_placeholders_state_nothing(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(UNKNOWN)
    info = RobomimicHdf5.inspect(good)
    assert (info.env_name, info.semantics, info.metadata["env_version"]) == ("", "v141", "1.4.1")
    assert info.stated == Interface(controller="OSC_POSE", changed_by=())


def test_all_missing_keys_are_told_with_what_names_them(good: Path) -> None:
    three = dataclasses.replace(EXPECTATION, obs_keys=(("grip", 1), ("hand", 3), ("cube", 2)))
    with pytest.raises(
        DemoError, match="are missing; found: hand, object. .*--key grip=NAME --key cube=NAME"
    ) as caught:
        load(good, three)
    assert (caught.value.episode, caught.value.field) == ("demo_0", "obs/grip, obs/cube")
    arrays = load(good, EXPECTATION, Selection(names={"obs/object": "object"}))  # the key as robomimic would call it
    np.testing.assert_array_equal(arrays.obs, load(good, EXPECTATION).obs)


def test_a_task_with_other_rules_refuses_the_file(tmp_path: Path) -> None:
    old = write_file(tmp_path / "old.hdf5", version="1.4.1")
    load(old, dataclasses.replace(EXPECTATION, semantics="v141"))
    with pytest.raises(DemoError, match=r"robosuite 1\.4\.1 \(v141\).*simulates v15.*env\.semantics=v141") as caught:
        load(old, dataclasses.replace(EXPECTATION, semantics="v15"))
    assert caught.value.field == "semantics"
    for rule in ("ramp", "without rotation", "order of `object`", "age", "direction"):
        assert rule in str(caught.value)
    convert(old, tmp_path / "old.arrow", dataclasses.replace(EXPECTATION, semantics="v141"))
    with pytest.raises(DemoError, match="simulates v15"):
        load(tmp_path / "old.arrow", dataclasses.replace(EXPECTATION, semantics="v15"))


def test_ends(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["data/demo_3/next_obs"]
    episodes = list(RobomimicHdf5.read(good, EXPECTATION))
    assert not any(e.terminated for e in episodes)
    np.testing.assert_array_equal(episodes[0].final_obs, recorded()[0].next_obs[-1])
    assert episodes[3].final_obs is None


def test_who_acted_is_unknown_unless_the_file_says(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["data"].attrs["inril_source"]
    assert RobomimicHdf5.inspect(good).source == "unknown"


def test_recognises_by_content_not_by_name(good: Path, tmp_path: Path) -> None:
    assert recognise(good.rename(tmp_path / "renamed.bin")) is RobomimicHdf5
    foreign = tmp_path / "foreign.hdf5"
    with h5py.File(foreign, "w") as file:
        file["observations"] = np.zeros(3)
    assert not RobomimicHdf5.recognises(foreign)
    with pytest.raises(
        DemoError, match=r"none of the known formats \(robomimic_hdf5, d4rl_hdf5, minari, lerobot, resip_zarr"
    ):
        recognise(foreign)


# -- malformed files --------------------------------------------------------------------------------------------------
def replace(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


def attribute(group: str, name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[group].attrs[name]
        if value is not None:
            file[group].attrs[name] = value

    return change


def nan_at(name: str, step: int, value: float = np.nan) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][step] = value

    return change


def group_instead(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_group(name)

    return change


def impossible(name: str) -> Callable[[Any], None]:
    """Petabytes that were never written."""

    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, (10**12, 3), np.float64, chunks=(1000, 3))

    return change


def no_episodes(file: Any) -> None:
    del file["mask"]
    for name in list(file["data"]):
        del file["data"][name]


ENV_ARGS = "data.attrs['env_args']"
ZEROS = np.zeros
MALFORMED: dict[str, tuple[Callable[[Any], None], str | None, str | None, str]] = {
    # name: (change, episode, field, part of the message)
    "data_is_a_dataset": (replace("data", 1.0), None, None, "none of the known formats"),
    "no_data": (replace("data", None), None, None, "none of the known formats"),
    "no_env_args": (attribute("data", "env_args", None), None, ENV_ARGS, "is missing"),
    "env_args_not_json": (attribute("data", "env_args", "{'env_name': 1"), None, ENV_ARGS, "not robomimic's JSON"),
    "env_args_a_list": (attribute("data", "env_args", "[1]"), None, ENV_ARGS, "not robomimic's JSON"),
    "env_args_a_number": (attribute("data", "env_args", 3), None, ENV_ARGS, "not robomimic's JSON"),
    "env_args_without_name": (attribute("data", "env_args", "{}"), None, ENV_ARGS, "not robomimic's JSON"),
    "foreign_env_name": (
        attribute("data", "env_args", '{"env_name": "PickPlaceCan"}'),
        None,
        "env_name",
        "'PickPlaceCan', the task needs 'Fake'",
    ),
    "source_not_json": (attribute("data", "inril_source", "{"), None, "inril_source", "not JSON"),
    "version_not_a_number": (
        attribute("data", "env_args", '{"env_name": "Fake", "env_version": "new"}'),
        None,
        ENV_ARGS,
        "holds a value that can't be read: env_version 'new' is no version such as 1.4.1",
    ),
    "frequency_in_words": (
        attribute("data", "env_args", '{"env_name": "Fake", "env_kwargs": {"control_freq": "abc"}}'),
        None,
        ENV_ARGS,
        "holds a value that can't be read: 'abc' is no number of Hz",
    ),
    "version_of_the_future": (
        attribute("data", "env_args", '{"env_name": "Fake", "env_version": "1.6.0"}'),
        None,
        "semantics",
        r"follows the rules of robosuite 1\.6\.0, which are not known here; the task simulates v15.*--semantics v15",
    ),
    "actions_a_group": (group_instead("data/demo_1/actions"), "demo_1", "actions", "is not a data set"),
    "ragged_next_obs": (
        replace("data/demo_1/next_obs/object", np.zeros((6, 2))),
        "demo_1",
        "next_obs/object",
        "6 steps.*has 7",
    ),
    "impossible_size": (impossible("data/demo_1/obs/hand"), "demo_1", "obs/hand", "more than the file can hold"),
    "no_episodes": (no_episodes, None, "data", "holds no episodes"),
    "episode_a_dataset": (replace("data/demo_1", 1.0), "demo_1", None, "is not a group"),
    "no_actions": (replace("data/demo_1/actions", None), "demo_1", "actions", "is missing"),
    "no_obs": (replace("data/demo_1/obs", None), "demo_1", "obs", "is missing"),
    "obs_a_dataset": (replace("data/demo_1/obs", ZEROS((7, 5))), "demo_1", None, "is not a group"),
    "no_obs_key": (replace("data/demo_1/obs/object", None), "demo_1", "obs/object", "is missing; found: hand"),
    "ragged_obs": (replace("data/demo_1/obs/object", ZEROS((6, 2))), "demo_1", "obs/object", "6 steps.*has 7"),
    "ragged_rewards": (replace("data/demo_1/rewards", ZEROS(8)), "demo_1", "rewards", "8 steps.*has 7"),
    "empty_actions": (replace("data/demo_1/actions", ZEROS((0, 2))), "demo_1", "actions", "is empty"),
    "num_samples": (attribute("data/demo_1", "num_samples", 9), "demo_1", "num_samples", "says 9.*7 actions"),
    "num_samples_text": (attribute("data/demo_1", "num_samples", "seven"), "demo_1", None, "seven"),
    "nan_actions": (nan_at("data/demo_2/actions", 3), "demo_2", "actions", "not finite at step 3"),
    "infinite_obs": (nan_at("data/demo_2/obs/hand", 1, np.inf), "demo_2", "obs/hand", "not finite at step 1"),
    "nan_rewards": (nan_at("data/demo_2/rewards", 0), "demo_2", "rewards", "not finite at step 0"),
    "wide_actions": (replace("data/demo_1/actions", ZEROS((7, 3))), "demo_1", "actions", "width 3, the task needs 2"),
    "narrow_obs": (replace("data/demo_1/obs/hand", ZEROS((7, 2))), "demo_1", "obs/hand", "width 2, the task needs 3"),
    "flat_actions": (replace("data/demo_1/actions", ZEROS(7)), "demo_1", "actions", "2 axes are needed"),
    "scalar_actions": (replace("data/demo_1/actions", 1.0), "demo_1", "actions", "2 axes are needed"),
    "image_as_obs": (replace("data/demo_1/obs/hand", ZEROS((7, 3, 1))), "demo_1", "obs/hand", "2 axes are needed"),
    "text_actions": (
        replace("data/demo_1/actions", np.array([[b"left", b"up"]] * 7)),
        "demo_1",
        "actions",
        "not numbers",
    ),
    "text_rewards": (replace("data/demo_1/rewards", ["high"] * 7), "demo_1", "rewards", "not numbers"),
    "dangling_link": (replace("data/demo_1/actions", h5py.SoftLink("/nowhere")), "demo_1", None, "damaged"),
    "other_file_missing": (
        replace("data/demo_1", h5py.ExternalLink("gone.hdf5", "/x")),
        None,
        "data/demo_1",
        "another file",
    ),
    "mask_names_absent": (replace("mask/valid", [b"demo_9"]), None, "mask/valid", r"\['demo_9'\]"),
    "mask_a_number": (replace("mask/valid", 1.0), None, "mask/valid", "not a list of episode names"),
    "mask_not_text": (replace("mask/valid", np.array([b"\xff\xfe"])), None, "mask/valid", "not a list of episode"),
    "all_held_out": (
        replace("mask/valid", [f"demo_{i}".encode() for i in range(4)]),
        None,
        "mask/valid",
        "none is left to train on",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    change, episode, field, message = MALFORMED[name]
    path, out = write_file(tmp_path / "demos.hdf5"), tmp_path / "out"
    with h5py.File(path, "r+") as file:
        change(file)
    out.mkdir()
    with pytest.raises(DemoError, match=message) as caught:
        convert(path, out / "demos.arrow", dataclasses.replace(EXPECTATION, semantics="v15"))
    error = caught.value
    assert error.path == path
    if episode:
        assert error.episode == episode
        assert f"episode {episode}" in str(error)
    if field:
        assert error.field == field
        assert f"field {field}" in str(error)
    assert str(error).count("Demonstration file") == 1
    assert str(path) in str(error)
    assert error.__cause__ is None
    assert list(out.iterdir()) == []


def test_a_failed_conversion_keeps_the_older_file(tmp_path: Path) -> None:
    path, target = write_file(tmp_path / "demos.hdf5"), tmp_path / "demos.arrow"
    convert(path, target, EXPECTATION)
    before = target.read_bytes()
    with h5py.File(path, "r+") as file:
        file["data/demo_2/actions"][0] = np.nan
    with pytest.raises(DemoError):
        convert(path, target, EXPECTATION)
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.arrow", "demos.hdf5"]


def test_inspect_and_read_say_that_the_data_group_is_missing(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data"]
    for use in (RobomimicHdf5.inspect, lambda p: list(RobomimicHdf5.read(p, EXPECTATION))):
        with pytest.raises(DemoError, match="is missing") as caught:
            use(path)
        assert caught.value.field == "data"


def test_episodes_that_differ_in_width_are_an_error_without_an_expectation(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/object"]
    with pytest.raises(DemoError, match=r"differs in width between episodes: \[3, 5\]"):
        convert(path, tmp_path / "demos.arrow", None)
    assert not (tmp_path / "demos.arrow").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: 0 bytes"),
        (b"\x89HDF\r\n\x1a\n", "is damaged or truncated"),
        (b"not a demonstration", "is not an HDF5 file: it begins b'not a demonstrat'"),
        (b"\x00" * 4096, "is not an HDF5 file"),
    ],
)
def test_what_is_not_hdf5(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "demos.hdf5"
    path.write_bytes(content)
    for use in (lambda: convert(path, tmp_path / "o" / "t.arrow", EXPECTATION), lambda: load(path, EXPECTATION)):
        with pytest.raises(DemoError, match=message) as caught:
            use()
        assert caught.value.path == path
    with pytest.raises(DemoError, match=message):
        RobomimicHdf5.inspect(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder", "nothing"):
        path = tmp_path / name
        for use in (
            lambda p=path: convert(p, tmp_path / "t.arrow", EXPECTATION),
            lambda p=path: load(p),
            lambda p=path: RobomimicHdf5.inspect(p),
        ):
            with pytest.raises(DemoError, match="is an empty directory" if name == "folder" else "does not exist"):
                use()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path: Path) -> None:
    whole = write_file(tmp_path / "whole.hdf5").read_bytes()
    path, out = tmp_path / "cut.hdf5", tmp_path / "out"
    out.mkdir()
    for size in np.unique(np.concatenate([np.linspace(0, len(whole) - 1, 60), np.arange(8, 200, 24)]).astype(int)):
        path.write_bytes(whole[:size])
        with pytest.raises(DemoError) as caught:
            convert(path, out / "t.arrow", EXPECTATION)
        assert caught.value.path == path
        assert list(out.iterdir()) == [], f"cut at {size}"


# -- known defects ----------------------------------------------------------------------------------------------------
def test_scalar_actions_without_an_expectation(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        replace("data/demo_1/actions", 1.0)(file)
    with pytest.raises(DemoError) as caught:
        load(path)
    assert caught.value.episode == "demo_1"


def test_infinite_num_samples(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        attribute("data/demo_1", "num_samples", np.inf)(file)
    with pytest.raises(DemoError) as caught:
        load(path, EXPECTATION)
    assert caught.value.episode == "demo_1"


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_numbers_beyond_float32_are_not_finite(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        replace("data/demo_1/actions", np.full((7, 2), 1e300))(file)
    with pytest.raises(DemoError, match="not finite"):
        load(path, EXPECTATION)


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_complex_numbers_are_no_actions(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        replace("data/demo_1/actions", np.full((7, 2), 1j))(file)
    with pytest.raises(DemoError, match="not numbers"):
        load(path, EXPECTATION)
