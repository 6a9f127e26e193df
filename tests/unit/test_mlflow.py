"""A tracking server that fails must not end a run of forty hours, and must not take it down at the start in silence."""

from __future__ import annotations

import contextlib
import json
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from inril_ray.demos.store import DemoInfo
from inril_ray.metrics import Ended
from inril_ray.tracking import mlflow
from inril_ray.tracking.base import TrackerContext
from inril_ray.types import InrilError

ROOT = Path(__file__).resolve().parents[2]


def context(tmp_path: Path, uri: str | None = None, **about: Any) -> TrackerContext:
    run_dir = tmp_path / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    return TrackerContext(
        run_dir=run_dir,
        name="run",
        config={"seed": 0},
        num_iterations=3,
        mlflow_uri=uri,
        mlflow_experiment="inril",
        **about,
    )


def rho(tracker: mlflow.MlflowTracker) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker._client.get_metric_history(tracker._run_id, "grad/rho")]


def info(tracker: mlflow.MlflowTracker) -> Any:
    return tracker._client.get_run(tracker._run_id).info


def test_a_run_has_a_name_tags_its_data_set_and_grouped_metrics(tmp_path: Path) -> None:
    about: dict[str, Any] = {"format": "fake", "env_name": "Reach", "semantics": "", "source": "scripted"}
    demos = DemoInfo(source_file="fake.hdf5", content_hash="0123456789abcdef" * 4, obs_keys=(), metadata={}, **about)
    tags = {"task": "fake/reach", "algorithm": "dppo", "demos": "fake.hdf5", "commit": "1a2b"}
    tracker = mlflow.MlflowTracker(context(tmp_path, tags=tags, demos=demos))
    tracker.log({"score": 0.5, "rho": 0.1, "value_loss": 2.0, "rl_s": 3.0}, 7)
    run = tracker._client.get_run(tracker._run_id)
    assert run.info.run_name == "run"
    assert tags.items() < run.data.tags.items()
    assert run.data.tags["mlflow.source.git.commit"] == "1a2b"
    assert run.data.metrics == {"eval/score": 0.5, "grad/rho": 0.1, "train/value_loss": 2.0, "time/rl_s": 3.0}
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("fake.hdf5", demos.content_hash[:36])
    assert json.loads(used.dataset.source) == {"uri": "fake.hdf5"}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    again = mlflow.MlflowTracker(context(tmp_path, tags={**tags, "commit": "3c4d"}))
    assert again._client.get_run(again._run_id).data.tags["commit"] == "3c4d", "of the code that goes on"


@pytest.mark.parametrize(
    ("ended", "status"), [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED"), (None, "RUNNING")]
)
def test_a_run_says_how_it_ended_and_is_running_when_it_goes_on(
    tmp_path: Path, ended: Ended | None, status: str
) -> None:
    """None: it was killed, so nobody could say so."""
    first = mlflow.MlflowTracker(context(tmp_path))
    if ended is not None:
        first.close(ended)
    assert info(first).status == status
    again = mlflow.MlflowTracker(context(tmp_path))
    assert (info(again).run_id, info(again).status) == (info(first).run_id, "RUNNING")
    again.close("finished")
    assert info(again).status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "RUNNING"), (InrilError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(75), "KILLED")],
)
def test_the_run_of_a_sweep_says_how_it_ended(tmp_path: Path, error: BaseException | None, status: str) -> None:
    tracking = SimpleNamespace(trackers=("mlflow",), mlflow_uri=None, mlflow_experiment="inril")
    with contextlib.suppress(type(error) if error else ()):
        with mlflow.parent_of(tmp_path / "sweep", tracking, {"seeds": [0]}, {"task": "fake/reach"}) as parent:
            assert parent is not None
            if error is not None:
                raise error
    run = parent._client.get_run(parent._run_id)
    assert run.info.status == status
    assert run.data.tags["task"] == "fake/reach"


def test_a_sweep_marks_the_trials_that_could_not(tmp_path: Path) -> None:
    parent = mlflow.MlflowParent(tmp_path / "sweep", None, "inril", {}, {})
    trials = [mlflow.MlflowTracker(context(tmp_path / "sweep" / str(i), parent=tmp_path / "sweep")) for i in range(2)]
    parent.finish(
        {"eval/score m 1": 0.5}, (), {t._run_dir: e for t, e in zip(trials, ("stopped", "failed"), strict=True)}
    )
    assert [info(trial).status for trial in trials] == ["KILLED", "FAILED"]
    run = parent._client.get_run(parent._run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"eval/score m 1": 0.5})


@pytest.mark.parametrize("name", ["".join(sorted({*map(chr, range(32, 127))} - {"/"})), "%41%2e%2e é 中"])
def test_a_store_and_its_artifacts_are_beside_the_run_whatever_its_path_is(tmp_path: Path, name: str) -> None:
    assert set(name) >= set(string.punctuation) - {"/"} or "%41" in name
    tracker = mlflow.MlflowTracker(context(tmp_path / name))
    (tmp_path / name / "run" / "summary.json").write_text("{}")
    tracker.log({"rho": 0.1}, 1)
    tracker.close()
    assert rho(tracker) == [(1, 0.1)]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["mlartifacts", "mlflow.db", "run"]
    assert [f.path for f in tracker._client.list_artifacts(tracker._run_id)] == ["summary.json"]
    parent = mlflow.MlflowParent(tmp_path / name / "sweep", None, "inril", {}, {})
    (tmp_path / name / "sweep" / "winner").mkdir()
    (tmp_path / name / "sweep" / "winner" / "README.md").write_text("a policy")
    parent.finish({}, ("winner",))
    assert parent.register("model", "winner", {}) == "model version 1"
    copy = parent._client.download_artifacts(parent._run_id, "winner/README.md", str(tmp_path))
    assert Path(copy).read_text() == "a policy"


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
    assert sorted(rho(tracker)) == [(step, pytest.approx(step / 10)) for step in range(1, 7)]


def test_a_store_without_room_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own, whose files can't grow: SQLite's errors are logged with tracebacks by MLflow."""
    code = f"""
import resource
from pathlib import Path
from tests.unit.test_mlflow import context
from inril_ray.metrics import METRICS
from inril_ray.tracking.mlflow import MlflowTracker
tracker = MlflowTracker(context(Path({str(tmp_path)!r})))
size = (Path({str(tmp_path)!r}) / "mlflow.db").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for step in range(100):
    tracker.log(dict.fromkeys(METRICS, 0.1), step)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("MLflow does not take metrics") == 1, done.stdout


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


def test_a_run_that_goes_on_does_not_wait_for_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    about = context(tmp_path, "http://127.0.0.1:9")
    (about.run_dir / mlflow.ID_FILE).write_text("1234")
    tracker = mlflow.MlflowTracker(about)
    tracker.log({"rho": 0.1}, 1)
    assert len(tracker._waiting) == 1 and "does not take metrics" in capsys.readouterr().out


@pytest.mark.parametrize("left", [b"", b"0123456789abcdef0123456789abcdef", b"\xff\xfe\x00"])
def test_a_run_that_the_server_does_not_know_begins_anew(tmp_path: Path, left: bytes) -> None:
    """The file was cut short by a full disk or damaged, or the run was deleted."""
    about = context(tmp_path)
    (about.run_dir / mlflow.ID_FILE).write_bytes(left)
    tracker = mlflow.MlflowTracker(about)
    tracker.log({"rho": 0.1}, 1)
    assert mlflow.known_run(about.run_dir) == tracker._run_id != left.decode(errors="replace")
    assert rho(tracker) == [(1, 0.1)]


def test_artifacts_that_are_not_taken_do_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = mlflow.MlflowTracker(context(tmp_path))
    (tmp_path / "run" / "summary.json").write_text("{}")

    def refused(*_: Any) -> None:
        raise OSError("413 Request Entity Too Large")

    monkeypatch.setattr(tracker._client, "log_artifact", refused)
    tracker.close("finished")
    assert info(tracker).status == "FINISHED"
    assert "is not complete: 413 Request Entity Too Large." in capsys.readouterr().out


def test_the_run_of_a_sweep_survives_its_server_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = mlflow.MlflowParent(tmp_path / "sweep", None, "inril", {"seeds": [0]}, {})

    def down(*_: Any, **__: Any) -> None:
        raise MlflowException("gone")

    monkeypatch.setattr(parent._client, "log_metric", down)
    parent.finish({"iqm": 0.5}, ())
    assert "is not complete: gone." in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InrilError, match="does not answer"):
        mlflow.MlflowParent(tmp_path / "other", "http://127.0.0.1:9", "inril", {}, {})


def test_a_server_that_is_not_there_at_the_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InrilError, match=r"MLflow at http://127.0.0.1:9 does not answer: .*Start the server"):
        mlflow.MlflowTracker(context(tmp_path, "http://127.0.0.1:9"))


@pytest.mark.parametrize("name", mlflow.CREDENTIALS)
def test_credentials_go_to_their_own_server_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A configuration that somebody sent must not collect them."""
    monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for other in ("", "https://127.0.0.1:9", "http://127.0.0.1:90"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        with pytest.raises(
            InrilError, match=f"{name} would be sent there.*MLFLOW_TRACKING_URI=http://127.0.0.1:9 "
        ) as e:
            mlflow.MlflowTracker(context(tmp_path, "http://127.0.0.1:9/x"))
        assert "hunter2" not in str(e.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InrilError, match="does not answer"):  # now it was asked
        mlflow.MlflowTracker(context(tmp_path, "http://127.0.0.1:9/x"))
    mlflow.MlflowTracker(context(tmp_path))  # files need none


def test_a_store_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself can't go on with a store whose tables were not all made, as a kill or a full disk leaves it."""

    def full(partial: Path, content: bytes) -> None:
        partial.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InrilError, match=r"No space left on device\. Make room"):
        patch.setattr(Path, "write_bytes", full)
        mlflow.MlflowTracker(context(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    mlflow.MlflowTracker(context(tmp_path)).log({"rho": 0.1}, 1)


def test_a_store_that_another_run_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, other = mlflow._put_if_new, context(tmp_path)

    def slow(partial: Path, file: Path) -> None:
        content = partial.read_bytes()
        monkeypatch.setattr(mlflow, "_put_if_new", put)
        first.append(mlflow.MlflowTracker(other))
        partial.write_bytes(content)
        put(partial, file)

    first: list[mlflow.MlflowTracker] = []
    monkeypatch.setattr(mlflow, "_put_if_new", slow)
    mlflow.local_store(tmp_path)
    first[0].log({"rho": 0.1}, 1)
    again = mlflow.MlflowTracker(other)
    assert again._run_id == first[0]._run_id and rho(again) == [(1, 0.1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "run"]


def test_a_store_is_made_in_a_new_folder_and_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mlflow.os, "link", refused)
    parent = mlflow.MlflowParent(tmp_path / "new" / "verdict", None, "inril", {"seeds": [0]}, {})
    parent.finish({"iqm": 0.5}, ())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mlflow.db", "verdict"]


def test_a_store_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)))
    with pytest.raises(InrilError, match=r"mlflow\.db\S* does not answer: .*move it away"):
        mlflow.MlflowTracker(context(tmp_path))
