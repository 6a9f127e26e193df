"""Rewards of demonstrations are in the task's units or unknown, from the file to who learns from them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch

from inril_ray import envs
from inril_ray.cli import main
from inril_ray.demos.episodes import DemoError, Episode, Expectation
from inril_ray.demos.rewards import task_rewards, task_successes
from inril_ray.demos.store import convert, load, read_arrow
from inril_ray.demos.summary import summary_lines
from inril_ray.envs.base import EnvConfig
from inril_ray.experiment import load_config, load_demos
from inril_ray.replay import DemoTransitions
from inril_ray.types import UNSTATED, InrilError, Interface
from tests.fakes import fake_demos, tiny_algorithm
from tests.unit import test_demos_minari
from tests.unit.test_demos_robomimic import EXPECTATION, LENGTHS, recorded, write_file

BUNDLED = Path(__file__).parents[2] / "inril_ray" / "data" / "lift_scripted.hdf5"
SUCCESS = Expectation(
    env_name=None,
    obs_keys=(("x", 1),),
    action_dim=1,
    interface=Interface(rewards="sparse"),
    reward_values=(0.0, 1.0),
    pays_success=True,
)
PARTS = dataclasses.replace(SUCCESS, reward_values=(0.0, 0.5, 1.0), pays_success=False)
DENSE = dataclasses.replace(SUCCESS, reward_values=None, pays_success=False, interface=Interface(rewards="dense"))
ABOVE = dataclasses.replace(SUCCESS, solved=lambda obs: obs[:, 0] > 2.5)


def episode(rewards: list[float] | None, solved: list[bool] | None = None, final: float | None = 3.0) -> Episode:
    return Episode(
        name="0",
        obs=np.arange(3, dtype=np.float32)[:, None],
        actions=np.zeros((3, 1), np.float32),
        keys=(("x", 1),),
        rewards=None if rewards is None else np.array(rewards, np.float32),
        final_obs=None if final is None else np.array([final], np.float32),
        solved=None if solved is None else np.array(solved),
    )


CASES: dict[str, tuple[Episode, Interface, Expectation, list[float] | None, str]] = {
    # name: (as read, what the file states, the task, its rewards, part of the warning)
    "as_they_are": (episode([0, 0, 1]), UNSTATED, SUCCESS, [0, 0, 1], ""),
    "none": (episode(None), UNSTATED, SUCCESS, None, ""),
    "penalties": (episode([-1, -1, 0]), UNSTATED, SUCCESS, [0, 0, 1], "from -1 to 0, the task pays 0 or 1: 1 was"),
    "penalties_of_another_task": (episode([-1, -1, 0]), UNSTATED, PARTS, None, "count as unknown"),
    "nothing_but_penalties": (episode([-1, -1, -1]), UNSTATED, SUCCESS, [0, 0, 0], "1 was added"),
    "shaped": (episode([0.1, 0.7, 1]), UNSTATED, SUCCESS, None, "from 0.1 to 1, the task pays 0 or 1.*unknown"),
    "shaped_as_stated": (episode([0, 0, 1]), Interface(rewards="dense"), SUCCESS, None, r"\(dense\).*unknown"),
    "larger": (episode([0, 0, 10]), Interface(rewards="sparse"), SUCCESS, None, "from 0 to 10.*unknown"),
    "flags": (episode([-0.1, -0.1, 10], [False, True, True]), UNSTATED, SUCCESS, [0, 1, 1], "success that the file"),
    "flags_alone": (episode(None, [False, True, True]), UNSTATED, SUCCESS, [0, 1, 1], "no rewards of its own.*success"),
    "flags_that_agree": (episode([0, 1, 1], [False, True, True]), UNSTATED, SUCCESS, [0, 1, 1], ""),
    "flags_of_another_task": (episode(None, [False, True, True]), UNSTATED, PARTS, None, ""),
    "parts": (episode([0, 0.5, 1]), Interface(rewards="sparse"), PARTS, [0, 0.5, 1], ""),
    "formula": (episode([0.3, -2, 7]), UNSTATED, DENSE, [0.3, -2, 7], ""),
    "other_formula": (episode([0.3, -2, 7]), Interface(rewards="with w=1"), DENSE, None, "by its own formula.*unknown"),
    "rule": (episode(None), UNSTATED, ABOVE, [0, 0, 1], "no rewards of its own.*by the task's rule of success"),
    "rule_over_shaped": (episode([-3, -2, -1.5]), UNSTATED, ABOVE, [0, 0, 1], "by the task's rule"),
    "rule_without_an_end": (episode(None, final=None), UNSTATED, ABOVE, None, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_units(name: str) -> None:
    read, stated, task, want, message = CASES[name]
    (rewards,), warnings = task_rewards([read], stated, task)
    if want is None:
        assert rewards is None
    else:
        assert rewards is not None
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(rewards, np.array(want, np.float32))
    assert len(warnings) == bool(message)
    if message:
        assert re.search(message, warnings[0])


def test_units_are_those_of_the_whole_set() -> None:
    """-1 in one episode tells that 0 in another is a success."""
    rewards, _ = task_rewards([episode([0, 0, 0]), episode([-1, -1, 0])], UNSTATED, SUCCESS)
    assert [r.tolist() for r in rewards if r is not None] == [[1, 1, 1], [0, 0, 1]]
    rewards, warnings = task_rewards([episode(None), episode([0, 0, 1])], UNSTATED, SUCCESS)
    assert rewards[0] is None
    assert rewards[1] is not None
    assert warnings == ()


@pytest.mark.parametrize("task", [t for t in envs.TASKS if not t.startswith("furniture/") or t.endswith("low")])
def test_what_tasks_pay_fits_together(task: str) -> None:
    spec = envs.spec(task, EnvConfig())
    assert spec.interface.rewards == ("dense" if spec.reward_values is None else "sparse")
    assert spec.pays_success <= (spec.reward_values == (0.0, 1.0))
    solved = Expectation.of(spec).solved(np.zeros((4, spec.obs_dim), np.float32))
    assert (solved is not None) == (task == "robomimic/lift" or task.startswith("fetch/"))


def test_the_rules_of_fetch_and_lift_by_hand() -> None:
    push = Expectation.of(envs.spec("fetch/push", EnvConfig())).solved
    obs = np.zeros((3, 31), np.float32)
    obs[:, -3:] = [[0.03, 0.03, 0.0], [0.03, 0.03, 0.03], [0.0, 0.0, 0.049]]
    assert push(obs).tolist() == [True, False, True]  # 4.2, 5.2 and 4.9 cm
    lift = Expectation.of(envs.spec("robomimic/lift", EnvConfig())).solved
    obs = np.zeros((2, 19), np.float32)
    obs[:, 11] = [0.839, 0.841]
    assert lift(obs).tolist() == [False, True]


# -- files ------------------------------------------------------------------------------------------------------------
def without_rewards(path: Path, *episodes: int) -> Path:
    write_file(path)
    with h5py.File(path, "r+") as file:
        for i in episodes:
            del file[f"data/demo_{i}/rewards"]
    return path


def test_unknown_rewards_are_null_in_the_store(tmp_path: Path) -> None:
    path = without_rewards(tmp_path / "demos.hdf5", 0, 2)
    converted = convert(path, tmp_path / "demos.arrow", PAID)
    column = pa.ipc.open_file(pa.memory_map(str(tmp_path / "demos.arrow"))).read_all()["rewards"]
    assert column.null_count == LENGTHS[0] + LENGTHS[2]
    arrays = load(tmp_path / "demos.arrow", PAID)
    np.testing.assert_array_equal(arrays.rewards, converted.rewards)
    assert arrays.unknown_rewards.tolist() == [True, False, True, False]
    assert arrays.success.tolist() == [-1, 1, -1, 1]
    header = json.loads(pa.ipc.open_file(pa.memory_map(str(tmp_path / "demos.arrow"))).schema.metadata[b"inril_demos"])
    assert header["success"] == [None, True, None, True]
    assert header["terminated"] == [False] * 4


def test_inspect_tells_what_is_not_known(tmp_path: Path) -> None:
    def returns(*episodes: int) -> str:
        arrays = load(without_rewards(tmp_path / f"{len(episodes)}.hdf5", *episodes), EXPECTATION)
        return next(line[14:] for line in summary_lines(tmp_path, arrays) if line.startswith("returns"))

    assert returns() == "1.00 to 1.00, mean 1.00"
    assert returns(1) == "1.00 to 1.00, mean 1.00; not known of 1 of 4 episodes"
    assert returns(0, 1, 2, 3) == "not known"
    ends = [line for line in summary_lines(tmp_path, fake_demos()) if line.startswith("ends")]
    assert ends == ["ends          5 not stated; final observation known of 0"]


def test_shaped_rewards_of_robomimic_tell_no_success(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5", [dataclasses.replace(e, rewards=e.rewards + 0.3) for e in recorded()])
    with h5py.File(path, "r+") as file:
        args = {"env_name": "Fake", "env_version": "1.5.2", "type": 1, "env_kwargs": {"reward_shaping": True}}
        file["data"].attrs["env_args"] = json.dumps(args)
    task = dataclasses.replace(EXPECTATION, reward_values=(0.0, 1.0), interface=Interface(rewards="sparse"))
    arrays = load(path, task)
    assert arrays.success.tolist() == [-1] * 4
    assert np.isnan(arrays.rewards).all()
    assert "(dense), the task pays 0 or 1: they are not in its units" in arrays.info.metadata["warnings"][0]


PAID = dataclasses.replace(EXPECTATION, reward_values=(0.0, 1.0), pays_success=True)
ROBOSUITE = {"env_name": "Fake", "env_version": "1.5.2", "type": 1}
SPARSE = {**ROBOSUITE, "env_kwargs": {"reward_shaping": False}}
UNITS: dict[str, tuple[Expectation | None, dict[str, Any], float, float, list[int]]] = {
    # name: (the task, what the file states, factor and summand of its rewards, successes; the second one fails)
    "plain": (PAID, ROBOSUITE, 1.0, 0.0, [1, 0, 1, 1]),
    "penalties": (PAID, ROBOSUITE, 1.0, -1.0, [1, 0, 1, 1]),
    "halves": (PAID, ROBOSUITE, 0.5, 0.0, [-1] * 4),
    "doubles": (PAID, SPARSE, 2.0, 0.0, [-1] * 4),
    "of_a_task_that_pays_by_a_formula": (EXPECTATION, SPARSE, 1.0, 0.0, [-1] * 4),
    "no_task": (None, SPARSE, 1.0, 0.0, [1, 0, 1, 1]),
    "no_task_and_penalties": (None, SPARSE, 1.0, -1.0, [-1] * 4),
    "no_task_and_halves": (None, SPARSE, 0.5, 0.0, [-1] * 4),
    "no_task_and_nothing_stated": (None, ROBOSUITE, 1.0, 0.0, [-1] * 4),
}


@pytest.mark.parametrize("name", UNITS)
def test_success_is_told_by_rewards_in_known_units_only(tmp_path: Path, name: str) -> None:
    task, stated, factor, summand, successes = UNITS[name]
    plain = recorded()
    plain[1].rewards[:] = 0
    path = write_file(
        tmp_path / "x.hdf5", [dataclasses.replace(e, rewards=factor * e.rewards + summand) for e in plain]
    )
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(stated)
    assert load(path, task).success.tolist() == successes


def test_the_task_says_which_step_shows_its_success() -> None:
    """Where the last one does, an object that passes by its goal is none, whatever the file's reader makes of flags."""
    read = [dataclasses.replace(episode(None, [False, True, False]), success=True), episode([0, 0, 1]), episode(None)]

    def successes(task: Expectation) -> list[bool | None]:
        return task_successes(read, task_rewards(read, UNSTATED, task)[0], False, task)

    assert successes(SUCCESS) == [True, True, None]
    assert successes(dataclasses.replace(SUCCESS, success="final")) == [False, True, None]
    assert successes(PARTS) == [True, None, None], "the file's own word"
    assert Expectation.of(envs.spec("fetch/push", EnvConfig())).success == "final"


def test_a_store_of_other_units_is_refused(tmp_path: Path) -> None:
    halves = [dataclasses.replace(e, rewards=e.rewards / 2) for e in recorded()]
    convert(write_file(tmp_path / "demos.hdf5", halves), tmp_path / "demos.arrow", None)
    task = dataclasses.replace(EXPECTATION, reward_values=(0.0, 1.0))
    with pytest.raises(DemoError, match="not in the units of the task; convert the original") as caught:
        load(tmp_path / "demos.arrow", task)
    assert caught.value.field == "rewards"


def test_minari_pays_by_its_own_flags(tmp_path: Path) -> None:
    """Fetch's own rewards are -1 and 0; here they are random, and `infos` say when the goal is reached."""
    goal = dataclasses.replace(test_demos_minari.GOAL, reward_values=(0.0, 1.0), pays_success=True)
    path = test_demos_minari.write_set(tmp_path / "set", goal, "FetchPush-v4", True)
    arrays = load(path, goal)
    assert arrays.rewards.tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1]
    assert "computed from the success that the file states" in arrays.info.metadata["warnings"][0]


def test_lift_without_rewards_is_paid_by_the_height_of_the_cube(tmp_path: Path) -> None:
    path = tmp_path / "lift.hdf5"
    path.write_bytes(BUNDLED.read_bytes())
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["rewards"]
    task = Expectation.of(envs.spec("robomimic/lift", EnvConfig()))
    own = load(BUNDLED, task)
    assert own.rewards.sum() > 0
    np.testing.assert_array_equal(load(path, task).rewards, own.rewards)
    np.testing.assert_array_equal(load(path, task).success, own.success)
    assert (own.success == 1).all()


# -- algorithms -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ["rlpd", "cal_ql", "ibrl"])
def test_who_learns_from_rewards_refuses_unknown_ones(algorithm: str) -> None:
    demos = dataclasses.replace(fake_demos(), final_obs=np.zeros((5, 3), np.float32))
    tiny_algorithm(algorithm, demos=demos)
    rewards = demos.rewards.copy()
    rewards[45] = np.nan  # held out: nobody learns from it
    tiny_algorithm(algorithm, demos=dataclasses.replace(demos, rewards=rewards))
    rewards[15] = np.nan
    with pytest.raises(
        InrilError, match="those of 1 of 4 training episodes in fake.hdf5 are unknown, or not in the task"
    ):
        tiny_algorithm(algorithm, demos=dataclasses.replace(demos, rewards=rewards))
    tiny_algorithm("dppo", demos=dataclasses.replace(demos, rewards=rewards))


def test_a_run_refuses_them_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "can.hdf5"
    write_can(path)
    settings = {"task": "robomimic/can", "demos": str(path), "env": {"semantics": "v141"}}
    load_demos(load_config([settings]))
    with pytest.raises(InrilError, match=r"rlpd learns from the rewards .* 1 of 1 training episodes in can\.hdf5"):
        load_demos(load_config([{**settings, "algorithm": "rlpd"}]))
    command = ["train", "--local", "--task", "robomimic/can", "--algorithm", "rlpd", "--demos", str(path)]
    assert main([*command, "--set", "env.semantics=v141", "--out", str(tmp_path / "run")]) == 1
    assert "rlpd learns from the rewards of demonstrations" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def write_can(path: Path) -> None:
    """What robosuite 1.4.1 observed of Can, without rewards."""
    golden: Any = np.load(Path(__file__).parents[1] / "golden" / "robosuite_141.npz")
    obs = golden["can_obs"]
    with h5py.File(path, "w") as file:
        start = 0
        for key, width in envs.spec("robomimic/can", EnvConfig()).obs_keys:
            file[f"data/demo_0/obs/{key}"] = obs[:, start : start + width]
            start += width
        file["data/demo_0/actions"] = np.zeros((len(obs), 7))
        args = {"env_name": "PickPlaceCan", "env_version": "1.4.1", "type": 1}
        file["data"].attrs["env_args"] = json.dumps(args)


def test_an_end_that_is_not_known_is_not_learned_from() -> None:
    def transitions(terminated: list[int]) -> DemoTransitions:
        return DemoTransitions(
            obs=np.arange(8, dtype=np.float32)[:, None],
            actions=np.zeros((8, 1), np.float32),
            rewards=np.ones(8, np.float32),
            episode_starts=np.array([0, 4, 8]),
            final_obs=np.full((2, 1), 9.0, np.float32),
            terminated=np.array(terminated, np.int8),
            left_out=np.zeros(2, bool),
            horizon=2,
            normalize=lambda actions: actions,
            device=torch.device("cpu"),
        )

    assert len(transitions([0, 1])) == 6
    assert len(transitions([-1, 1])) == 5


def test_a_store_without_a_task_keeps_what_it_finds(tmp_path: Path) -> None:
    halves = [dataclasses.replace(e, rewards=e.rewards / 2) for e in recorded()]
    convert(write_file(tmp_path / "demos.hdf5", halves), tmp_path / "demos.arrow", None)
    assert read_arrow(tmp_path / "demos.arrow").rewards.max() == 0.5
