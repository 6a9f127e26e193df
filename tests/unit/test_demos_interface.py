"""What a file states about its actions is held against the task, and so are the actions themselves, in every format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from inril_ray import envs
from inril_ray.cli import main
from inril_ray.demos.episodes import DemoError, Expectation
from inril_ray.demos.formats import resip_zarr, robomimic_hdf5
from inril_ray.demos.gymnasium_spec import interface, warnings
from inril_ray.demos.interface import MAX_SHARE_OUTSIDE, check_interface, not_stated, outside, statements
from inril_ray.demos.store import convert, load
from inril_ray.envs.base import EnvConfig
from inril_ray.types import UNSTATED, Interface
from tests.unit import test_demos_d4rl, test_demos_furniture, test_demos_lerobot, test_demos_minari
from tests.unit.test_demos_robomimic import EXPECTATION, write_file

PATH = Path("demos")
TASKS = [task for task in envs.TASKS if task.startswith("robomimic/")]


def expected(task: str) -> Interface:
    return Expectation.of(envs.spec(task, EnvConfig())).interface


def published(**controller: Any) -> dict[str, Any]:
    """The ``env_args`` of robomimic's public data sets of v1.4.1."""
    settings = {
        "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "damping": 1, "impedance_mode": "fixed",
        "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
        "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
    }  # fmt: skip
    kwargs = {"robots": ["Panda"], "control_freq": 20, "reward_shaping": False, "use_object_obs": True}
    kwargs["controller_configs"] = {**settings, **controller}
    return {"env_name": "Fake", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}


# -- robomimic --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", TASKS)
def test_our_own_recordings_state_what_the_task_expects(task: str) -> None:
    stated = robomimic_hdf5.interface(envs.entry(task).env_args("1.5.2"))
    assert stated == expected(task)
    check_interface(PATH, stated, expected(task))


def test_published_recordings_state_it_too() -> None:
    stated = robomimic_hdf5.interface(published())
    assert stated == expected("robomimic/lift")
    assert robomimic_hdf5.interface({**published(), "type": 2}) == UNSTATED
    two = published()
    two["env_kwargs"] |= {
        "robots": ["Panda", "Panda"],
        "controller_configs": [published()["env_kwargs"]["controller_configs"]] * 2,
    }
    check_interface(PATH, robomimic_hdf5.interface(two), expected("robomimic/transport"))


def old(**controller: Any) -> dict[str, Any]:
    return published(**controller)


def new(**part: Any) -> dict[str, Any]:
    args = envs.entry("robomimic/lift").env_args("1.5.2")
    right = args["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    right |= part
    args["env_kwargs"]["controller_configs"]["body_parts"]["right"] = {k: v for k, v in right.items() if v is not ...}
    return {**args, "env_name": "Fake"}


def kwargs(**changes: Any) -> dict[str, Any]:
    args = published()
    args["env_kwargs"] |= changes
    return args


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "absolute": (new(input_type="absolute"), "action_type", "kind of actions absolute, the task has delta"),
    "absolute_1.4": (old(control_delta=False), "action_type", "absolute, the task has delta"),
    "base": (new(input_ref_frame="base"), "action_frame", "frame of actions base, the task has world"),
    "base_by_default": (new(input_ref_frame=...), "action_frame", "frame of actions base, the task has world"),
    "scale": (old(output_max=[0.1] * 6, output_min=[-0.1] * 6), "action_scale", "scale of actions 0.1, the task has"),
    "scale_a_number": (old(output_max=0.05, output_min=-0.05), "action_scale", "scale of actions 0.05, the"),
    "range": (old(input_max=2, input_min=-2), "action_scale", "0.025, 0.025"),
    "stiffness": (old(kp=300), "stiffness", "stiffness 300, the task has 150"),
    "damping": (new(damping_ratio=2), "damping", "damping ratio 2, the task has 1"),
    "interpolation": (old(interpolation="linear"), "interpolation", "interpolation linear, the task has none"),
    "controller": (old(type="JOINT_VELOCITY"), "controller", "controller JOINT_VELOCITY, the task has OSC_POSE"),
    "frequency": (kwargs(control_freq=10), "control_hz", "control frequency 10 Hz, the task has 20 Hz"),
    "robots": (kwargs(robots="Sawyer"), "robots", "robots Sawyer, the task has Panda"),
    "second_arm": (
        kwargs(controller_configs=[old()["env_kwargs"]["controller_configs"], {"type": "IK_POSE"}]),
        "controller",
        "IK_POSE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_another_controller_is_refused(tmp_path: Path, name: str) -> None:
    args, field, message = CONTRADICTIONS[name]
    path = write_file(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(args)
    convert(path, tmp_path / "any.arrow", EXPECTATION)
    lift = dataclasses.replace(EXPECTATION, interface=expected("robomimic/lift"))
    for use in (lambda: convert(path, tmp_path / "out.arrow", lift), lambda: load(tmp_path / "any.arrow", lift)):
        with pytest.raises(DemoError, match=message) as caught:
            use()
        assert caught.value.field == field
    assert not (tmp_path / "out.arrow").exists()


# -- all formats ------------------------------------------------------------------------------------------------------
def with_action_space(path: Path, low: float, high: float) -> Path:
    told = json.loads((path / "data" / "metadata.json").read_text())
    told["action_space"] = json.dumps(
        {"type": "Box", "dtype": "float32", "shape": [2], "low": [low] * 2, "high": [high] * 2}
    )
    (path / "data" / "metadata.json").write_text(json.dumps(told))
    return path


STATED: dict[str, tuple[Callable[[Path], Path], Expectation, Interface, str]] = {
    # name: (file, its task, what the task expects, part of the message)
    "fps": (test_demos_lerobot.write_set, test_demos_lerobot.EXPECTATION, Interface(control_hz=20.0), "10 Hz.*20 Hz"),
    "robot": (test_demos_lerobot.write_set, test_demos_lerobot.EXPECTATION, Interface(robots=("UR5e",)), "panda.*UR5e"),
    "space": (
        lambda p: with_action_space(test_demos_minari.write_set(p, test_demos_minari.FLAT, "Hopper-v5"), -2, 2),
        test_demos_minari.FLAT,
        expected("gym/hopper"),
        "least action -2, the task has -1",
    ),
    "pickle": (
        lambda p: test_demos_furniture.dump(p.with_suffix(".pkl"), test_demos_furniture.recording()),
        test_demos_furniture.EXPECTATION,
        Interface(control_hz=20.0),
        "10 Hz.*20 Hz",
    ),
}  # fmt: skip


def minari_of(env_spec: str | None, path: Path) -> Path:
    test_demos_minari.write_set(path, test_demos_minari.FLAT, "Hopper-v5")
    told = json.loads((path / "data" / "metadata.json").read_text())
    (path / "data" / "metadata.json").write_text(json.dumps({**told, "env_spec": env_spec}))
    return path


def zarr_of(task: str, path: Path) -> Path:
    resip_zarr.write(path, test_demos_furniture.EPISODES, task=task, source={"kind": "human"})
    return path


PLACEHOLDERS: dict[str, Callable[[Path], Path]] = {
    "pickle": lambda p: test_demos_furniture.dump(
        p.with_suffix(".pkl"), test_demos_furniture.recording(furniture="Unknown")
    ),
    "zarr": partial(zarr_of, "unknown"),
    "minari_null": partial(minari_of, None),
    "minari": partial(minari_of, '{"id": "unknown"}'),
}


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_placeholder_names_no_environment(tmp_path: Path, name: str) -> None:
    assert load(PLACEHOLDERS[name](tmp_path / "set")).info.env_name == ""


def test_bounds_in_words_are_told_from_damage(tmp_path: Path) -> None:
    path = test_demos_minari.write_set(tmp_path / "set", test_demos_minari.FLAT, "Hopper-v5")
    with_action_space(path, "low", "high")  # type: ignore[arg-type]
    with pytest.raises(DemoError, match=r"has the bounds \['low', 'low'\] and .*; lists of numbers") as caught:
        load(path, test_demos_minari.FLAT)
    assert caught.value.field == "action_space"


@pytest.mark.parametrize("name", STATED)
def test_what_any_format_states_is_compared(tmp_path: Path, name: str) -> None:
    write, task, interface, message = STATED[name]
    path = write(tmp_path / "set")
    load(path, task)
    with pytest.raises(DemoError, match=message):
        load(path, dataclasses.replace(task, interface=interface))


@pytest.mark.parametrize(
    ("spec", "changed_by", "rewards", "warned"),
    [
        ({}, (), None, False),
        ({"kwargs": {"render_mode": "rgb_array", "reward_type": "dense"}}, (), "dense", False),
        ({"kwargs": {"reward_type": "sparse"}}, (), "sparse", False),
        ({"id": "AdroitHandHammerSparse-v1"}, (), "sparse", False),
        ({"kwargs": {"frame_skip": 8}}, ("frame_skip=8",), None, False),
        (
            {"kwargs": {"exclude_current_positions_from_observation": False}},
            ("exclude_current_positions_from_observation=False",),
            None,
            False,
        ),
        ({"kwargs": {"ctrl_cost_weight": 0.5}}, (), "with ctrl_cost_weight=0.5", False),
        ({"additional_wrappers": [{"name": "RescaleAction"}]}, ("RescaleAction",), None, False),
        ({"additional_wrappers": [{"name": "NormalizeReward"}]}, (), "with NormalizeReward", False),
        ({"additional_wrappers": [{"name": "TimeLimit"}, {"name": "Mine"}]}, (), None, True),
    ],
)
def test_options_and_wrappers_of_gymnasium(
    spec: dict[str, Any], changed_by: tuple[str, ...], rewards: str | None, warned: bool
) -> None:
    spec = {"id": "FetchPush-v4", **spec}
    stated = interface(spec, {})
    assert (stated.changed_by, stated.rewards) == (changed_by, rewards)
    assert bool(warnings(spec)) is warned
    if changed_by:
        with pytest.raises(DemoError, match=f"wrappers and options {changed_by[0]}, the task has none"):
            check_interface(PATH, stated, expected("fetch/push"))
    else:
        check_interface(PATH, stated, expected("fetch/push"))


def test_what_is_stated_otherwise_but_equal_is_accepted() -> None:
    lift = expected("robomimic/lift")
    check_interface(PATH, UNSTATED, lift)
    check_interface(PATH, lift, UNSTATED)
    check_interface(PATH, Interface(robots=("franka_emika",), control_hz=20.1, action_low=(-1.0,) * 7), lift)
    check_interface(PATH, Interface(rewards="dense"), lift)  # matters to who learns from rewards only
    with pytest.raises(DemoError, match="scale of actions 1, the task has 0.05, 0.05, 0.05, 0.5"):
        check_interface(PATH, Interface(action_scale=(1.0, 1.0)), lift)


def test_what_is_not_stated_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = test_demos_minari.write_set(tmp_path / "set", test_demos_minari.FLAT, "Hopper-v5")
    assert main(["demos", "inspect", str(path)]) == 0
    lines = {line[:13].strip(): line[14:] for line in capsys.readouterr().out.splitlines()}
    assert lines["states"] == "least action -1; greatest action 1; wrappers and options none"
    assert lines["not stated"].startswith("robots, controller, kind of actions, frame of actions, scale of actions")
    assert not_stated(UNSTATED, expected("gym/hopper")) == [
        "control frequency", "least action", "greatest action", "kind of rewards", "wrappers and options",
    ]  # fmt: skip
    assert statements(UNSTATED) == []


# -- actions ----------------------------------------------------------------------------------------------------------
INF = float("inf")
BOUNDS = Interface(action_low=(-1.0,), action_high=(1.0,))
FORMATS: dict[str, tuple[Callable[[Path], Path], Expectation]] = {
    "robomimic": (write_file, EXPECTATION),
    "d4rl": (test_demos_d4rl.write_file, test_demos_d4rl.EXPECTATION),
    "lerobot": (test_demos_lerobot.write_set, test_demos_lerobot.EXPECTATION),
    "minari": (
        lambda p: with_action_space(test_demos_minari.write_set(p, test_demos_minari.FLAT, "Hopper-v5"), -INF, INF),
        test_demos_minari.FLAT,
    ),
    "pickle": (
        lambda p: test_demos_furniture.dump(p.with_suffix(".pkl"), test_demos_furniture.recording()),
        test_demos_furniture.EXPECTATION,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_many_actions_out_of_range_are_refused_in_every_format(tmp_path: Path, name: str) -> None:
    write, task = FORMATS[name]
    path = write(tmp_path / "set")
    span = float(np.abs(load(path, task).actions).max())
    wide = Interface(action_low=(-span,), action_high=(span,))
    narrow = Interface(action_low=(-span / 4,), action_high=(span / 4,))
    stored = tmp_path / "demos.arrow"
    assert not any("out of" in w for w in convert(path, stored, task).info.metadata.get("warnings", ()))
    load(stored, dataclasses.replace(task, interface=wide))
    for source in (path, stored):
        with pytest.raises(DemoError, match="steps .* have actions out of the task's range") as caught:
            load(source, dataclasses.replace(task, interface=narrow))
        assert caught.value.field == "actions"


def test_actions_are_counted_by_steps() -> None:
    actions = np.zeros((200, 3), np.float32)
    actions[:, 0] = 1.0005  # rounded on the way
    assert outside(PATH, actions, BOUNDS, "the task's") == ()
    actions[7] = [0.0, -3.1, 1.79]
    told = "1 of 200 steps (0.5 %) have actions out of the task's range, -1 to 1, as far as -3.1"
    assert outside(PATH, actions, BOUNDS, "the task's") == (f"{told}; they are kept, and the simulator clips them.",)
    most = int(MAX_SHARE_OUTSIDE * len(actions))
    actions[:most, 1] = 1.1
    assert outside(PATH, actions, BOUNDS, "the task's")[0].startswith(f"{most} of 200 steps (5 %)")
    actions[most, 1] = -1.1
    with pytest.raises(DemoError, match=r"11 of 200 steps \(5\.5 %\).* up to 5 % are taken"):
        outside(PATH, actions, BOUNDS, "the task's")


def test_each_number_of_an_action_has_its_bounds() -> None:
    actions = np.array([[0.0, 5.0]] * 100 + [[0.5, 0.0]], np.float32)
    bounds = Interface(action_low=(-0.1, -np.inf), action_high=(0.1, np.inf))
    assert "1 of 101 steps" in outside(PATH, actions, bounds, "the stated")[0]
    assert outside(PATH, actions, UNSTATED, "the stated") == ()


def test_a_set_that_leaves_the_range_that_it_states_itself_is_told(tmp_path: Path) -> None:
    path = test_demos_minari.write_set(tmp_path / "set", test_demos_minari.FLAT, "Hopper-v5")
    narrow = load(with_action_space(path, -0.1, 0.1)).info.metadata["warnings"]
    assert "have actions out of the stated range, -0.1 to 0.1" in narrow[-1]


def test_inspect_and_convert_tell_the_actions_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundled = Path(__file__).parents[2] / "inril_ray" / "data" / "lift_scripted.hdf5"
    path, target = tmp_path / "lift.hdf5", tmp_path / "lift.arrow"
    path.write_bytes(bundled.read_bytes())
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][3, 2] = 1.79
    told = "warning: 1 of "
    assert main(["demos", "convert", str(path), str(target), "--task", "robomimic/lift"]) == 0
    assert told in capsys.readouterr().out
    for source in (path, target):
        assert main(["demos", "inspect", str(source), "--task", "robomimic/lift"]) == 0
        assert "have actions out of the task's range, -1 to 1, as far as 1.79" in capsys.readouterr().out
