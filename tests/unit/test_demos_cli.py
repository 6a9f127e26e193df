"""What ``inril demos inspect`` and ``convert`` print, for each format."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from inril_ray import envs
from inril_ray.cli import main
from inril_ray.demos.episodes import Expectation
from inril_ray.demos.formats import d4rl_hdf5
from inril_ray.demos.store import load
from inril_ray.demos.summary import summary_lines
from inril_ray.envs.base import EnvConfig
from tests.unit import test_demos_d4rl, test_demos_lerobot, test_demos_minari

BUNDLED = Path(__file__).parents[2] / "inril_ray" / "data" / "lift_scripted.hdf5"


def printed(capsys: pytest.CaptureFixture[str], *command: object) -> dict[str, str]:
    """Run a command that succeeds; return its lines by their first words."""
    assert main(["demos", *map(str, command)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert all(line[13] == " " and line[14] != " " for line in lines), "the columns are not aligned"
    return {"": first} | {line[:13].strip(): line[14:] for line in lines}


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main(["demos", *map(str, command)]) == 1
    return capsys.readouterr().err


def test_inspect_the_bundled_file(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "inspect", BUNDLED, "--task", "robomimic/lift")
    arrays = load(BUNDLED)
    episodes = len(arrays.held_out)
    assert lines[""] == f"{BUNDLED}: robomimic_hdf5"
    assert lines["environment"] == "Lift"
    assert lines["semantics"] == "v15 (robosuite 1.5)"
    assert lines["source"] == "scripted"
    assert lines["episodes"] == f"{episodes} ({arrays.held_out.sum()} held out)"
    assert lines["observation"].startswith("19 numbers: robot0_eef_pos 3, ")
    assert lines["success"] == f"{episodes} of {episodes} episodes"
    assert lines["filters"] == "train, valid"
    assert re.fullmatch("SHA-256 [0-9a-f]{64}", lines["content"])
    assert "warning" not in lines
    train = printed(capsys, "inspect", BUNDLED, "--filter", "train")
    assert train["episodes"] == f"{episodes - arrays.held_out.sum()} (0 held out)"
    assert train["filter"] == "train"


def test_inspect_d4rl(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = test_demos_d4rl.flat_file(tmp_path / "hopper_medium-v2.hdf5", (100, 300), cut=1)
    with h5py.File(path, "r+") as file:
        file["rewards"][:] = 2.0
    lines = printed(capsys, "inspect", path)
    low, high = d4rl_hdf5.SCORE_RANGES["Hopper"]
    score = 100 * (np.mean([200.0, 598.0]) - low) / (high - low)
    assert lines["score"].startswith(f"mean {score:.1f} ")
    assert lines["returns"] == "200.00 to 598.00, mean 399.00"
    assert lines["success"] == "not stated"
    assert lines["ends"] == "1 terminated, 1 cut off; final observation known of 0"
    assert "cut off by the end of the recording" in lines["warning"]


def test_inspect_minari_and_lerobot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    test_demos_minari.unpack(tmp_path)
    lines = printed(capsys, "inspect", tmp_path / "arrow" / "goal")
    assert lines[""].endswith(": minari")
    assert lines["in the file"] == "achieved_goal 1, desired_goal 1, observation 2"
    assert lines["success"] == "1 of 3 episodes"
    assert lines["dataset id"] == "goal/human-v0"
    lines = printed(capsys, "inspect", test_demos_lerobot.write_set(tmp_path / "set"))
    assert lines["environment"] == "not stated"
    assert lines["tasks"] == "reach the goal"
    assert "observation.images.front 48x64x3" in lines["in the file"]
    assert "cameras are not decoded: observation.images.front (video)" in lines["warning"]


def test_convert(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "lift.arrow"
    assert main(["demos", "convert", str(BUNDLED), str(target), "--task", "robomimic/lift", "--filter", "train"]) == 0
    assert str(target) in capsys.readouterr().out
    lines = printed(capsys, "inspect", target, "--task", "robomimic/lift")
    assert lines["filter"] == "train"
    assert "is a converted store" in refused(capsys, "inspect", target, "--filter", "train")
    assert "the task needs 'PickPlaceCan'" in refused(capsys, "inspect", target, "--task", "robomimic/can")


def test_convert_with_other_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, target = tmp_path / "lift.hdf5", tmp_path / "lift.arrow"
    path.write_bytes(BUNDLED.read_bytes())
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo.move("obs/object", "obs/object-state")
            demo.move("next_obs/object", "next_obs/object-state")
    command = ["convert", path, target, "--task", "robomimic/lift"]
    assert "--key object=NAME" in refused(capsys, *command)
    for wrong in (["--key", "object"], ["--key", "object=a", "--key", "object=b"], ["--key", "=x"]):
        assert "give each key once, as KEY=NAME" in refused(capsys, *command, *wrong)
    assert main(["demos", *map(str, command), "--key", "object=object-state"]) == 0
    capsys.readouterr()
    assert load(target).hash_content() == load(BUNDLED, lift()).hash_content()
    told = printed(capsys, "inspect", path, "--task", "robomimic/lift", "--key", "object=object-state")
    assert "not stated" not in told
    assert told["states"].startswith("robots Panda; controller OSC_POSE; kind of actions delta; frame of actions world")


def lift() -> Expectation:
    return Expectation.of(envs.spec("robomimic/lift", EnvConfig()))


def test_convert_tells_what_is_wrong_and_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "lift.arrow"
    error = refused(capsys, "convert", BUNDLED, target, "--task", "robomimic/lift", "--images", "agentview_image")
    assert "field obs/agentview_image: is missing; images found: none" in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_release_needs_the_task_to_follow_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, target = tmp_path / "old.hdf5", tmp_path / "old.arrow"
    path.write_bytes(BUNDLED.read_bytes())
    with h5py.File(path, "r+") as file:
        env_args = file["data"].attrs["env_args"]
        file["data"].attrs["env_args"] = env_args.replace('"env_version": "1.5.2"', '"env_version": "1.4.1"')
        for demo in file["data"].values():
            demo["obs/object"][:, 7:] *= -1.0
    command = ["convert", path, target, "--task", "robomimic/lift"]
    assert "Pass --set env.semantics=v141" in refused(capsys, *command)
    assert main(["demos", *map(str, command), "--set", "env.semantics=v141"]) == 0
    capsys.readouterr()
    assert printed(capsys, "inspect", target)["semantics"] == "v141 (robosuite 1.4.1)"
    assert "only env." in refused(capsys, *command, "--set", "seed=3")
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs/object"][:, 7:] *= -1.0
    error = refused(capsys, *command, "--set", "env.semantics=v141")
    assert "episode demo_0" in error
    assert "direction of the offset between hand and cube" in error


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    # name: (command, part of its one sentence)
    "key": (("inspect", BUNDLED, "--task", "robomimic/lift", "--key", "objct=foo"), "what is: robot0_eef_pos, robot0"),
    "key_without_a_task": (("inspect", BUNDLED, "--key", "object=object"), "--task gives the keys of a task"),
    "key_twice": (
        ("inspect", BUNDLED, "--task", "robomimic/lift", "--key", "object=a", "--key", "obs/object=b"),
        "--key obs/object=b: object is named twice, as a and as b.",
    ),
    "set_without_a_task": (("inspect", BUNDLED, "--set", "env.semantics=v15"), "name it with --task"),
    "set_of_nothing": (("inspect", BUNDLED, "--set", "env.nonsense=1"), "'env.nonsense'. Keys here: "),
    "set_a_section": (("inspect", BUNDLED, "--set", "env=3"), "--set env=3: a key is missing, such as env.semantics."),
    "make_a_section": (
        ("make", "robomimic/lift", "--out", "x.hdf5", "--set", "env=3"),
        "--set env=3: a key is missing, such as env.semantics.",
    ),
    "no_episodes": (("make", "robomimic/lift", "--out", "x.hdf5", "--num", 0), "(--num) = 0: must be at least 1."),
    "rules": (
        ("convert", BUNDLED, "x.arrow", "--task", "robomimic/lift", "--semantics", "v99"),
        "inril: --semantics v99: robomimic/lift is recorded by the rules v15 or v141.",
    ),
    "rules_of_another_time": (
        ("convert", BUNDLED, "x.arrow", "--task", "gym/hopper", "--semantics", "v3"),
        "gym/hopper is recorded by the rules v4 or v5 or v2.",
    ),
    "no_rules": (
        ("convert", BUNDLED, "x.arrow", "--task", "fetch/push", "--semantics", "v4"),
        "has no rules to choose",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_would_be_ignored_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command, message = MISTAKES[name]
    error = refused(capsys, *command)
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_names_that_nothing_looks_for_are_refused_in_every_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lerobot, goal = test_demos_lerobot.write_set(tmp_path / "set"), test_demos_minari.unpack(tmp_path) / "hdf5"
    error = refused(capsys, "inspect", lerobot, "--key", "actoin=a")
    assert "--key actoin=a: nothing of that name is looked for, what is: action, next.reward, next.success;" in error
    assert "the names of the file are taken as they are" in refused(capsys, "inspect", goal / "goal", "--key", "a=b")
    assert "is one array without names; a can't be named" in refused(capsys, "inspect", goal / "flat", "--key", "a=b")


def test_a_set_without_observations_leaves_no_line_of_them() -> None:
    arrays = load(BUNDLED)
    bare = dataclasses.replace(arrays, info=dataclasses.replace(arrays.info, metadata={"observations": {}}))
    assert not any(line.startswith("in the file") for line in summary_lines(BUNDLED, bare))
