"""A tracking server that fails must not end a run of forty hours, and must not take it down at the start in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from inril_ray.tracking import mlflow
from inril_ray.tracking.base import TrackerContext
from inril_ray.types import InrilError


def context(tmp_path: Path, uri: str | None = None) -> TrackerContext:
    run_dir = tmp_path / "run"
    run_dir.mkdir(exist_ok=True)
    return TrackerContext(
        run_dir=run_dir,
        name="run",
        config={"seed": 0},
        num_iterations=3,
        mlflow_uri=uri,
        mlflow_experiment="inril",
        parent=None,
    )


def points(tracker: mlflow.MlflowTracker, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker._client.get_metric_history(tracker._run_id, name)]


def test_what_a_server_did_not_take_is_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow, "BATCH", 3)
    tracker = mlflow.MlflowTracker(context(tmp_path))
    tracker.log({"rho": 0.1}, 1)
    send, calls = tracker._client.log_batch, []

    def down(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise MlflowException("API request failed.\nConnection refused")

    monkeypatch.setattr(tracker._client, "log_batch", down)
    for step in range(2, 6):
        tracker.log({"rho": step / 10, "env_steps": float(step)}, step)
    assert len(calls) == 1, "a server that is down is not asked in every iteration"
    said = capsys.readouterr().out
    assert said.count("MLflow does not take metrics") == 1 and "API request failed." in said
    monkeypatch.setattr(tracker._client, "log_batch", send)
    tracker._again_at = 0.0
    tracker.log({"rho": 0.6}, 6)
    assert "takes metrics again" in capsys.readouterr().out
    assert sorted(points(tracker, "rho")) == [(step, pytest.approx(step / 10)) for step in range(1, 7)]
    tracker.close()
    assert tracker._client.get_run(tracker._run_id).info.status == "KILLED"


def test_a_server_that_stays_away_leaves_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = mlflow.MlflowTracker(context(tmp_path))

    def down(*_: Any, **__: Any) -> None:
        raise MlflowException("gone")

    monkeypatch.setattr(tracker._client, "log_batch", down)
    tracker.log({"rho": 0.1, "env_steps": 1.0}, 1)
    tracker.close()
    assert "is not complete: 2 metrics were not taken." in capsys.readouterr().out


def test_a_server_that_is_not_there_at_the_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InrilError, match=r"tracking.mlflow_uri = 'http://127.0.0.1:9': .*Start the server"):
        mlflow.MlflowTracker(context(tmp_path, "http://127.0.0.1:9"))
