"""Each check speaks up where it should, says what to do, and is silent otherwise."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from inril_ray import envs, health
from inril_ray.envs.base import EnvConfig
from inril_ray.types import EnvSpec

Free = namedtuple("Free", "available")
Disk = namedtuple("Disk", "free")


@pytest.fixture
def spec() -> EnvSpec:
    return envs.spec("robomimic/lift", EnvConfig())


@pytest.mark.parametrize(
    ("memory_gib", "disk_gib", "says"),
    [(8, 50, []), (0.5, 50, ["512 MiB of memory"]), (8, 0.25, ["256 MiB of disk"]), (0.5, 0.25, ["memory", "disk"])],
)
def test_a_machine_that_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory_gib: float, disk_gib: float, says: list[str]
) -> None:
    monkeypatch.setattr(health.psutil, "virtual_memory", lambda: Free(int(memory_gib * 2**30)))
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: Disk(int(disk_gib * 2**30)))
    found = health.machine(tmp_path)
    assert len(found) == len(says)
    for sentence, part in zip(found, says, strict=True):
        assert part in sentence


def test_checkpoints_that_will_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: Disk(400 * 2**20))
    assert health.checkpoints(100 * 2**20, 0, 4, tmp_path) == []
    (found,) = health.checkpoints(100 * 2**20, 0, 5, tmp_path)
    assert "need at least 500 MiB (5 of 100), 400 are free" in found and found.endswith("or lower checkpoint.keep.")
    (found,) = health.checkpoints(100 * 2**20, 50 * 2**20, 4, tmp_path)
    assert "need at least 600 MiB (4 of 150, 50 of it the filled replay)" in found and "rl.buffer_size" in found


def test_a_replay_that_will_not_fit() -> None:
    assert health.replay(100 * 2**20, 200 * 2**20) == []
    (found,) = health.replay(100 * 2**20, 199 * 2**20)
    assert "grow to 100 MiB" in found and "199 MiB of memory are free" in found and "rl.buffer_size" in found


@pytest.mark.parametrize(
    ("asked", "free", "says"),
    [
        ([{"CPU": 1.0, "GPU": 0.5}] * 2, {"CPU": 2.0, "GPU": 1.0}, []),
        ([{"CPU": 1.0, "GPU": 0.5}] * 2, {"CPU": 2.0, "GPU": 0.5}, ["asks for 1 GPUs, of which 0.5 are free"]),
        ([{"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0}], {"CPU": 1.0}, ["2 CPUs, of which 1", "0.5 GPUs, of which 0 are"]),
    ],
)
def test_a_cluster_whose_gpus_others_have(
    asked: list[dict[str, float]], free: dict[str, float], says: list[str]
) -> None:
    found = health.waiting(asked, free, 300.0)
    assert len(found) == len(says)
    for sentence, part in zip(found, says, strict=True):
        assert part in sentence and sentence.endswith("it waits at most 300 s for others to end.")


@pytest.mark.parametrize(
    ("acting_s", "simulation_s", "told"), [(61.0, 60.0, True), (61.0, 62.0, False), (59.0, 1.0, False)]
)
def test_workers_that_spend_their_time_in_the_policy(acting_s: float, simulation_s: float, told: bool) -> None:
    first, metrics = health.FirstIterations(), {"inference_s": acting_s, "simulation_s": simulation_s}
    found = first.observe(metrics)
    assert found == [text for text in found if "61 s of the first rollout in the policy and 60 s" in text]
    assert len(found) == told
    assert first.observe(metrics) == []


def test_other_versions_than_the_run_was_started_with() -> None:
    before = {"torch": "2.14.0", "numpy": "1.26.4"}
    assert health.versions(before, dict(before)) == []
    (found,) = health.versions(before, {"torch": "2.15.0", "numpy": "1.26.4"})
    assert "torch 2.14.0 -> 2.15.0" in found and "numpy" not in found


def test_a_policy_that_never_succeeds(spec: EnvSpec) -> None:
    never = {"success_rate": 0.0, "eval_episodes": 100.0}
    (found,) = health.base_policy(never, spec)
    assert "none of 100 episodes" in found and "pretrain.num_epochs" in found
    assert health.base_policy({**never, "success_rate": 0.01}, spec) == []
    assert health.base_policy({**never, "success_rate_reached": 0.01}, spec) == [], "it was there, if only in passing"
    few = {"success_rate": 0.0, "eval_episodes": 34.0}
    assert health.base_policy(few, spec) == [], "34 failures don't show that success is rarer than one in ten"
    assert len(health.base_policy({**few, "eval_episodes": 35.0}, spec)) == 1
    assert health.base_policy({}, replace(spec, score_range=(0.0, 1.0))) == [], "a task without success"


def test_what_the_first_iterations_say() -> None:
    bad, good = health.FirstIterations(), health.FirstIterations()
    poor = {"train_episodes": 9.0, "train_return": 0.0, "train_success_rate": 0.0, "obs_out_of_range": 0.4}
    said = [bad.observe(poor) for _ in range(6)]
    assert [len(found) for found in said] == [1, 0, 0, 1, 0, 0]
    assert "40 % of the observed values" in said[0][0]
    assert "No reward has been seen in 36 episodes" in said[3][0]
    many = health.FirstIterations()
    assert [len(many.observe({**poor, "train_episodes": 50.0})) for _ in range(4)] == [1, 0, 1, 0], (
        "3 iterations at least"
    )
    of_before = {k: v for k, v in many.state_dict().items() if k != "_episodes"}
    health.FirstIterations().load_state_dict(of_before)  # of a checkpoint of 0.1
    assert good.observe({"obs_out_of_range": 0.01}) == []
    good.observe({"train_episodes": 1.0, "train_return": 0.1})
    assert all(good.observe(poor) == [] for _ in range(5)), "there was a reward once"
    long = health.FirstIterations()
    assert all(long.observe({"train_episodes": 0.0}) == [] for _ in range(9)), "no episode has ended yet"
