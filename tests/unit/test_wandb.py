"""W&B is imported only where it is chosen. Most tests put a module in its place; one runs the real package, offline."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inril_ray.tracking import wandb
from inril_ray.tracking.base import TrackerContext
from inril_ray.types import InrilError
from tests.fakes import StandInWandb, fake_demos


def context(tmp_path: Path, **settings: Any) -> TrackerContext:
    run_dir = tmp_path / "sweep" / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {"config": {"seed": 0, "interleave": {"every": 2}}, "num_iterations": 3, **settings}
    return TrackerContext(run_dir=run_dir, name="m = 2, seed 0", mlflow_uri=None, mlflow_experiment="lab", **values)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandInWandb:
    module = StandInWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_has_a_name_tags_configuration_and_grouped_metrics(tmp_path: Path, stand_in: StandInWandb) -> None:
    demos, tags = fake_demos().info, {"task": "fake/reach", "algorithm": "dppo", "demos": "a" * 99}
    about = context(tmp_path, tags=tags, demos=demos, parent=tmp_path / "sweep")
    tracker = wandb.WandbTracker(about)
    tracker.log({"score": 0.5, "rho": -0.1, "rl_s": 2.0, "env_steps": 100.0}, 100)
    tracker.close("finished")
    (run,) = stand_in.runs
    assert (run.given["project"], run.given["group"], run.given["name"]) == ("lab", "sweep", "m = 2, seed 0")
    assert run.given["config"] == {"seed": 0, "interleave": {"every": 2}, "demos_hash": demos.content_hash}
    assert run.given["tags"] == ["task: fake/reach", "algorithm: dppo", ("demos: " + "a" * 99)[:64]]
    assert run.given["dir"] == about.run_dir
    assert run.logged == [{"eval/score": 0.5, "grad/rho": -0.1, "time/rl_s": 2.0, "train/env_steps": 100}]
    assert run.axes == {"*": "train/env_steps"}


@pytest.mark.parametrize(("ended", "code"), [("finished", 0), ("failed", 1), ("stopped", 255)])
def test_a_run_says_how_it_ended_and_goes_on_under_its_id(
    tmp_path: Path, stand_in: StandInWandb, ended: Any, code: int
) -> None:
    wandb.WandbTracker(context(tmp_path)).close(ended)
    wandb.WandbTracker(context(tmp_path)).close("finished")
    first, second = stand_in.runs
    assert [run.exit_code for run in (first, second)] == [code, 0]
    assert first.given["id"] == second.given["id"] == (tmp_path / "sweep" / "run" / "wandb_run_id").read_text()
    assert second.given["resume"] == "allow"


def test_the_project_may_come_from_the_environment(
    tmp_path: Path, stand_in: StandInWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    wandb.WandbTracker(context(tmp_path))
    assert stand_in.runs[0].given["project"] == "mine"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InrilError, match=r"wandb is not installed\. Install it \(pip install 'inril-ray\[wandb\]'\)"):
        wandb.WandbTracker(context(tmp_path))


def test_a_server_that_refuses_is_a_sentence_and_leaves_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(InrilError, match=r"does not begin a run: No API key configured\. Log in .*WANDB_MODE=offline"):
        wandb.WandbTracker(context(tmp_path))
    assert not (tmp_path / "sweep" / "run" / "wandb_run_id").exists()


def test_a_process_of_wandb_that_dies_does_not_end_the_run(
    tmp_path: Path, stand_in: StandInWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = wandb.WandbTracker(context(tmp_path))
    stand_in.runs[0].gone = True
    for step in range(3):
        tracker.log({"score": 0.5}, step)
    tracker.close("finished")
    said = capsys.readouterr().out
    assert said.count("does not take metrics, the run goes on without it: The service process is gone.") == 1
    assert said.count("is not complete: The service process is gone.") == 1


def test_the_real_package_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for ended in ("stopped", "finished"):
        tracker = wandb.WandbTracker(context(tmp_path, tags={"task": "fake/reach"}, demos=fake_demos().info))
        tracker.log({"score": 0.5, "env_steps": 100.0}, 100)
        tracker.close(ended)  # type: ignore[arg-type]
    run_id = (tmp_path / "sweep" / "run" / "wandb_run_id").read_text()
    parts = sorted((tmp_path / "sweep" / "run").glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert 1 <= len(parts) <= 2, "both parts under one id; within one second they share a directory"
    assert b"eval/score" in b"".join(part.read_bytes() for part in parts)
