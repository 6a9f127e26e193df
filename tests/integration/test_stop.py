"""SIGTERM in the middle of a run, and the same command once more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from inril_ray import checkpoint
from inril_ray.backend import LocalBackend
from inril_ray.cli import main
from inril_ray.config import flat
from inril_ray.experiment import load_config, load_demos, resolved
from inril_ray.run import run
from inril_ray.run_dir import INCIDENTAL, continues
from inril_ray.session import STOPPED
from inril_ray.tracking.mlflow import connect, known_run, local_store
from inril_ray.types import InrilError
from tests.integration.comparison import differences, measured, state
from tests.integration.conftest import TINY

pytestmark = pytest.mark.sim
CONFIG = load_config([TINY, {"checkpoint": {"every": 10}}])


def struck(version: int, signals: int = 1) -> type[LocalBackend]:
    class Struck(LocalBackend):
        def iterate(self) -> dict[str, float]:
            if self.learner.version == version:
                for _ in range(signals):
                    os.kill(os.getpid(), signal.SIGTERM)
            return super().iterate()

    return Struck


class Told:
    """A tracker that notes how the run ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def log(self, metrics: object, step: int) -> None:
        """Nothing is kept."""

    def close(self, ended: str = "finished") -> None:
        self.ended.append(ended)


def test_the_iteration_in_flight_ends_is_saved_and_the_rest_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    run(CONFIG, tmp_path / "whole", LocalBackend, trackers=[told])
    assert told.ended == ["finished"]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run(CONFIG, tmp_path / "parts", struck(version=2), trackers=[told])
    assert told.ended == ["finished", "stopped"]
    assert stop.value.code == STOPPED
    assert signal.getsignal(signal.SIGTERM) is before
    assert "The same command goes on" in capsys.readouterr().out
    assert checkpoint.complete(tmp_path / "parts" / "checkpoints") == [0, 3]
    assert [record["iteration"] for record in measured(tmp_path / "parts")] == [0, 1, 2, 3]
    assert continues(CONFIG, tmp_path / "parts")
    run(CONFIG, tmp_path / "parts", LocalBackend, resume=True)
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert differences(state(tmp_path / "parts", 4), state(tmp_path / "whole", 4)) == []


def test_a_stop_in_the_last_iteration_leaves_the_evaluation_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(CONFIG, tmp_path, struck(version=3))
    assert checkpoint.complete(tmp_path / "checkpoints") == [0, 4]
    assert not (tmp_path / "summary.json").exists()
    assert run(CONFIG, tmp_path, LocalBackend, resume=True)["iterations"] == 4


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (InrilError("The learner died."), "failed"),
        (MemoryError(), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(15), "stopped"),
    ],
)
def test_trackers_are_told_what_ended_a_run(tmp_path: Path, error: BaseException, ended: str) -> None:
    class Struck(LocalBackend):
        def pretrain(self) -> dict[str, float]:
            raise error

    told = Told()
    with pytest.raises(type(error)):
        run(CONFIG, tmp_path, Struck, trackers=[told])
    assert told.ended == [ended]


def test_a_backend_that_can_not_be_built_fails_in_the_trackers_too(tmp_path: Path) -> None:
    def starting(*_: object) -> LocalBackend:
        raise InrilError("The cluster has too few CPUs.")

    (tmp_path / "run").mkdir()
    config = load_config([TINY, {"tracking": {"trackers": ["mlflow"]}}])
    with pytest.raises(InrilError, match="too few CPUs"):
        run(config, tmp_path / "run", starting, name="m = 2, seed 0")
    tracked = connect(local_store(tmp_path)).get_run(known_run(tmp_path / "run"))
    assert (tracked.info.run_name, tracked.info.status) == ("m = 2, seed 0", "FAILED")
    assert {"task": "robomimic/lift", "algorithm": "dppo"}.items() < tracked.data.tags.items()
    (used,) = tracked.inputs.dataset_inputs
    assert tracked.data.tags["demos"] == used.dataset.name
    assert load_demos(config).info.content_hash.startswith(used.dataset.digest)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run(CONFIG, tmp_path, struck(version=2, signals=2))
    assert stop.value.code == STOPPED
    assert checkpoint.complete(tmp_path / "checkpoints") == [0]


def test_before_there_is_anything_to_save_it_ends_at_once_and_starts_over(tmp_path: Path) -> None:
    class Struck(LocalBackend):
        def pretrain(self) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it went on")

    with pytest.raises(SystemExit) as stop:
        run(CONFIG, tmp_path, Struck)
    assert stop.value.code == STOPPED
    assert (tmp_path / "config.json").exists()
    assert not continues(CONFIG, tmp_path)
    assert run(CONFIG, tmp_path, LocalBackend)["iterations"] == 4


@pytest.mark.parametrize("handler", ["ours", "of Ray"])
def test_while_the_processes_start_it_ends_at_once(tmp_path: Path, handler: str) -> None:
    def starting(*_: object) -> LocalBackend:
        if handler == "of Ray":  # it is there within `ray.init`
            raise SystemExit(15)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with pytest.raises(SystemExit) as stop:
        run(CONFIG, tmp_path, starting)
    assert stop.value.code == STOPPED


def test_a_stop_in_the_final_evaluation_costs_no_iteration(tmp_path: Path) -> None:
    class Struck(LocalBackend):
        def evaluate(self, num_episodes: int, *, alone: bool = False) -> None:  # type: ignore[override]
            if self.learner.version == CONFIG.num_iterations:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(num_episodes)

    with pytest.raises(SystemExit):
        run(CONFIG, tmp_path, Struck)
    assert checkpoint.complete(tmp_path / "checkpoints")[-1] == CONFIG.num_iterations


def test_the_same_command_goes_on_and_another_one_is_refused(
    tmp_path: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--config", str(tiny_file), "--local", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        run(load_config([yaml.safe_load(tiny_file.read_text())]), tmp_path / "run", struck(version=1))
    assert main(line) == 0
    assert "Resumed at iteration 2" in capsys.readouterr().out
    assert main([*line, "--seed", "3", "--set", "interleave.every=4"]) == 1
    assert "already holds a run with another seed, interleave.every" in capsys.readouterr().err
    with pytest.raises(InrilError, match="another num_iterations"):
        continues(load_config([TINY, {"num_iterations": 9}]), tmp_path / "run")
    room = {"threads": 2, "contacts": 9, "constraints": 9, "meshes": True}
    elsewhere = {"compute": {"num_workers": 3, "device": "auto"}, "tracking": {"trackers": []}}
    elsewhere |= {"checkpoint": {"keep": 1}, "video": True, "env": {**TINY["env"], "furniture": room}}
    assert continues(load_config([TINY, elsewhere]), tmp_path / "run")
    keys = [f"{key}." for key in flat(resolved(CONFIG))]
    assert all(any(key.startswith(f"{name}.") for key in keys) for name in INCIDENTAL)
    with pytest.raises(InrilError, match=r"another compute\.mode\."):
        continues(load_config([TINY, {"compute": {"mode": "pipelined"}}]), tmp_path / "run")
