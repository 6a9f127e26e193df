"""`inril chaos` tells the truth: what equals the undisturbed run, and what does not."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from inril_ray import chaos, checkpoint
from inril_ray.backend import LocalBackend
from inril_ray.chaos import processes, result
from inril_ray.cli import main
from inril_ray.experiment import load_config
from inril_ray.run import run
from inril_ray.types import InrilError

pytestmark = pytest.mark.sim
CONFIG = load_config([chaos.TINY, {"task": "robomimic/lift"}])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chaos") / "whole"
    run(CONFIG, path, LocalBackend, say=lambda _: None)
    return path


def drill(**values: Any) -> result.Drill:
    good = {"restarts": 1, "replaced": 0, "repeated": 0, "equal": True, "problems": [], "message": ""}
    return result.Drill(**{"fault": "driver", "seed": 0, "struck": True, **good, **values})


def test_a_difference_is_a_difference(tmp_path: Path, whole: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert result.same(other, whole, 6)
    records = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text("\n".join(records[:-1]))
    assert not result.same(other, whole, 6), "a metric is missing"
    shutil.copy(whole / "metrics.jsonl", other)
    tree = checkpoint.read(other / "checkpoints" / "iteration_000006")
    weights = tree["backend"]["learner"]["modules"]["policy"]
    name = max(weights, key=lambda n: weights[n].size)
    weights[name].ravel()[0] += 1e-7
    checkpoint.write(other / "checkpoints", 6, tree, keep=2)
    assert not result.same(other, whole, 6), "one weight differs"
    shutil.rmtree(other / "checkpoints" / "iteration_000006")
    assert not result.same(other, whole, 6), "there is no checkpoint"


def test_what_is_left_behind_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".iteration_000003.partial").mkdir()
    assert result.temporary_files(tmp_path) == ["checkpoints/.iteration_000003.partial"]
    bad = drill(problems=["process 7"])
    assert not bad.passed and "PROBLEMS: process 7" in result.line(bad)
    assert "DIFFERENT" in result.line(drill(equal=False)) and result.line(drill(equal=False)).startswith("FAILED")
    assert result.line(drill()).startswith("passed")
    assert "nothing happened" in result.line(drill(struck=False)) and not drill(struck=False).passed


def test_a_run_that_is_interrupted_in_its_last_evaluation_has_one_end(tmp_path: Path, whole: Path) -> None:
    class Interrupted(LocalBackend):
        def peak_memory_bytes(self) -> dict[str, int]:
            raise KeyboardInterrupt  # after the last evaluation was logged, before the summary

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tmp_path, Interrupted, say=lambda _: None)
    run(CONFIG, tmp_path, LocalBackend, resume=True, say=lambda _: None)
    assert result.same(tmp_path, whole, 6)


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_full_disk_ends_the_run_with_a_sentence_and_it_goes_on_exactly(tmp_path: Path, whole: Path) -> None:
    drilled = processes.drill("full disk", 0, CONFIG, tmp_path / "run", whole, random.Random(0))
    assert drilled.passed and drilled.struck and drilled.restarts == 1
    assert drilled.message.startswith("Cannot write checkpoint") and "File too large" in drilled.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A real disk of a given size, in memory; asked again, it becomes larger."""
    place, mounted = tmp_path / "disk", False
    place.mkdir()

    def resize(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"a disk can't be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.drill
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", ["300k", "1120k", "1200k", "1280k", "1440k", "1600k"])
def test_a_disk_that_is_full_at_any_moment_costs_nothing(
    small_disk: Callable[[str], Path], tmp_path: Path, whole: Path, size: str
) -> None:
    """With every tracker and pictures: the smaller the disk, the earlier; MLflow's empty store alone has 960 kB."""
    own = {"tracking": {"trackers": ["console", "jsonl", "tensorboard", "mlflow"]}, "video": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**chaos.TINY, "task": "robomimic/lift", **own}))
    out = small_disk(size) / "run"
    command = [sys.executable, "-m", "inril_ray.cli", "train", "--local", "--config", tmp_path / "config.yaml"]
    first = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert first.returncode == 1
    assert "Traceback" not in first.stderr and first.stderr.splitlines()[-1].startswith("inril: "), first.stderr
    assert "No space left on device" in first.stderr or "disk is full" in first.stderr, first.stderr
    assert not list(out.parent.rglob("*.partial*"))
    small_disk("8m")
    second = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert result.same(out, whole, 6)
    assert (out / "report.html").is_file()


def test_processes_that_stay_are_told() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        seen = [psutil.Process(process.pid)]
        assert result.orphans(seen, within_s=0.1) == [f"process {process.pid}"]
        process.communicate(b"\n")
    assert result.orphans(seen, within_s=0.1) == []


def test_what_can_not_be_done_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(InrilError, match="RAY_ADDRESS"):
        patch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
        chaos.chaos(CONFIG, tmp_path / "new", ["worker"], 1, 0)
    with pytest.raises(InrilError, match="'flood'"):
        chaos.chaos(CONFIG, tmp_path / "new", ["worker", "flood"], 1, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InrilError, match="new directory"):
        chaos.chaos(CONFIG, tmp_path, ["driver"], 1, 0)


@pytest.mark.drill
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_fault_is_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "--repetitions", "1", "--out", str(tmp_path)]) == 0
    assert f"All {len(chaos.FAULTS)} drills passed" in capsys.readouterr().out
    reports = json.loads((tmp_path / "chaos.json").read_text())
    assert [r["fault"] for r in reports] == list(chaos.FAULTS)
    assert all(r["struck"] for r in reports)
