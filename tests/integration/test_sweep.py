"""Sweeps on a local Ray cluster: searched, confirmed, interrupted, failing; nothing is run twice."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from inril_ray.config import build
from inril_ray.demos.store import write_arrow
from inril_ray.distributed.cluster import start_ray
from inril_ray.report import write_sweep_report
from inril_ray.sweep import SweepConfig, result_lines
from inril_ray.tracking.jsonl import read_metrics
from inril_ray.tune import run_sweep, search
from inril_ray.types import InrilError
from tests.fakes import fake_demos

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BASE = {
    "task": "gym/hopper",
    "env": {"max_episode_steps": 10},
    "num_iterations": 4,
    "actor": {"hidden_dim": 16},
    "pretrain": {"num_epochs": 3},
    "rl": {"minibatch_size": 50, "num_epochs": 2, "critic_hidden_dim": 16},
    "interleave": {"il_steps": 3, "relation_every": 1},
    "rollout": {"num_envs": 4, "num_decisions": 5},
    "evaluation": {"every": 2, "num_episodes": 4, "final_episodes": 8, "num_envs": 4},
    "checkpoint": {"every": 2},
    "tracking": {"trackers": ["jsonl"]},
    "compute": {"device": "cpu"},
    "video": False,
}
RL_ONLY = {"schedule": "rl_only"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray(3)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("demos") / "demos.arrow"
    rng, arrays = np.random.default_rng(0), fake_demos()
    obs, actions = (rng.uniform(-1.0, 1.0, (len(arrays.obs), width)).astype(np.float32) for width in (11, 3))
    arrays = replace(arrays, obs=obs, actions=actions, final_obs=np.full((5, 11), np.nan, np.float32))
    info = replace(
        arrays.info,
        content_hash=arrays.hash_content(),
        env_name="Hopper",
        semantics="v4",
        obs_keys=(("observation", 11),),
    )
    write_arrow(replace(arrays, info=info), path)
    return str(path)


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the estimate, which takes a process of its own."""
    figures = ("trial_minutes", "cpu_hours", "gpu_hours", "wall_hours", "memory_bytes", "object_store_bytes")
    estimate = {**dict.fromkeys(figures, 0.0), "trials": 0, "at_once": 1}
    monkeypatch.setattr(search, "estimated", lambda *_: estimate)


def sweep_of(demos: str, *, trackers: tuple[str, ...] = ("jsonl",), **values: Any) -> SweepConfig:
    base = {**BASE, "demos": demos, "tracking": {"trackers": list(trackers)}}
    return build(SweepConfig, {"name": "tiny", "base": base, "seeds": {"search": [0, 1], "confirm": []}, **values})


def times(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in sorted(directory.glob("*/*/summary.json"))}


def test_a_sweep_chooses_a_setting_confirms_it_and_runs_nothing_twice(tmp_path: Path, demos: str) -> None:
    from mlflow.tracking import MlflowClient

    seeds = {"search": [0, 1], "confirm": [10, 11]}
    grid = {"interleave.every": [1]}
    sweep = sweep_of(demos, trackers=("jsonl", "mlflow"), space=grid, arms=[RL_ONLY], seeds=seeds)
    out, said = tmp_path / "runs" / "sweep", []
    result = run_sweep(sweep, out, local=True, say=said.append)
    assert [row["finished"] for row in result["settings"]] == [2, 2]
    assert sorted(result["confirmation"]["scores"][result["chosen"]]) == ["10", "11"]
    assert result["demo_store"]["copies_per_node"] == 1
    assert result["control"] is not None
    assert "Estimate: 8 trials" in said[0]
    assert len(list((out / "bases").iterdir())) == 1, "all settings start from one cloned policy"
    assert (out / "chosen" / "policy.safetensors").is_file()
    assert "At the 2 seeds of the search: " in "\n".join(result_lines(result))
    assert write_sweep_report(out).is_file()

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parent = (out / "mlflow_run_id").read_text()
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent]
    assert len(nested) == len(times(out))
    assert all(r.info.status == "FINISHED" for r in runs)
    names = {r.info.run_name for r in nested}
    assert names > {"m = 1, seed 0", "m = 1, seed 1", "RL only, seed 0", "RL only, seed 1", "RL only, seed 10"}
    assert all(r.data.tags["task"] == "gym/hopper" for r in runs), "of the sweep as well"
    version = client.search_model_versions("name='inril-tiny'")
    assert [v.run_id for v in version] == [parent]
    assert (tmp_path / "runs" / "mlartifacts").is_dir()

    before = times(out)
    again = run_sweep(sweep, out, local=True)
    assert times(out) == before
    figures = ("estimate", "machine", "versions", "commit")
    assert {k: v for k, v in again.items() if k not in figures} == {k: v for k, v in result.items() if k not in figures}
    with pytest.raises(InrilError, match="another sweep"):
        run_sweep(sweep_of(demos, space={"interleave.every": [1]}), out, local=True)


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[str]:
    """A real `mlflow server`, as a lab runs it: its own database, artifacts through the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path / "server"
    place.mkdir()
    store = ["--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--artifacts-destination", str(place / "artifacts")]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (place / "log").open("w") as log:
        command = [sys.executable, "-m", "mlflow", "server", *store, *address]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=place)
    try:
        deadline = time.monotonic() + 120.0
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None and time.monotonic() < deadline, (place / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_a_tracking_server_holds_the_whole_sweep(tmp_path: Path, demos: str, tracking_server: str) -> None:
    from mlflow.tracking import MlflowClient

    tracking = {"trackers": ["jsonl", "mlflow"], "mlflow_uri": tracking_server, "mlflow_experiment": "lab"}
    base = {**BASE, "demos": demos, "tracking": tracking}
    seeds = {"search": [0], "confirm": []}
    sweep = build(
        SweepConfig,
        {"name": "served", "base": base, "seeds": seeds, "space": {"interleave.every": [1]}, "arms": [RL_ONLY]},
    )
    out = tmp_path / "runs" / "sweep"
    run_sweep(sweep, out, local=True)
    assert not (tmp_path / "runs" / "mlflow.db").exists(), "nothing goes to a local store"

    client = MlflowClient(tracking_server)
    experiment = client.get_experiment_by_name("lab")
    assert experiment is not None and experiment.artifact_location.startswith("mlflow-artifacts:/")
    parent = client.get_run((out / "mlflow_run_id").read_text())
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics.keys() == {"eval/score m 1", "eval/score RL only"}
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {"plan.json", "sweep.json", "chosen"}
    nested = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(nested) == 3, "the cloned policy's and one for each setting"
    for path in (out / "trials").iterdir():
        run = client.get_run((path / "mlflow_run_id").read_text())
        values = json.loads((path / "config.json").read_text())["config"]
        assert run.info.status == "FINISHED"
        assert run.data.params["schedule"] == values["schedule"]
        assert run.data.params["interleave.every"] == str(values["interleave"]["every"])
        records = [r for r in read_metrics(path) if "value_loss" in r]
        logged = client.get_metric_history(run.info.run_id, "train/value_loss")
        assert [(m.step, m.value) for m in logged] == [
            (r["env_steps"], pytest.approx(r["value_loss"])) for r in records
        ]
        copy = client.download_artifacts(run.info.run_id, "summary.json", str(tmp_path))
        assert Path(copy).read_bytes() == (path / "summary.json").read_bytes()
    (version,) = client.search_model_versions("name='inril-served'")
    assert version.run_id == parent.info.run_id
    weights = client.download_artifacts(parent.info.run_id, "chosen/policy.safetensors", str(tmp_path))
    assert Path(weights).read_bytes() == (out / "chosen" / "policy.safetensors").read_bytes()


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_an_interrupted_sweep_goes_on(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(demos, space={"interleave.every": [1, 2]})
    whole = run_sweep(sweep, tmp_path, local=True)
    trials = sorted((tmp_path / "trials").iterdir())
    before = times(tmp_path)
    # As a power cut leaves it: one run without its end, one that had only begun, Tune's records gone.
    (trials[0] / "summary.json").unlink()
    shutil.rmtree(trials[1])
    shutil.rmtree(tmp_path / "tune")
    result = run_sweep(sweep, tmp_path, local=True)
    assert [r["mean"] for r in result["settings"]] == [r["mean"] for r in whole["settings"]], "resumed exactly"
    after = times(tmp_path)
    assert [name for name in before if after[name] == before[name]] == [
        n for n in before if n.split("/")[1] not in (trials[0].name, trials[1].name)
    ]


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_a_trial_that_fails_is_retried_reported_and_left_out(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(demos, space={"interleave.every": [1]}, arms=[{"compute.device": "cuda"}], retries=1)
    result = run_sweep(sweep, tmp_path, local=True)
    rows = {row["label"]: row for row in result["settings"]}
    assert rows["m = 1"]["finished"] == 2
    assert rows["device = cuda"]["finished"] == 0
    assert (result["chosen"], result["winner"]) == (rows["m = 1"]["key"], None)
    assert [f["label"] for f in result["failed"]] == ["device = cuda"] * 2
    assert "no GPU is available" in result["failed"][0]["error"]


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_trials_that_the_memory_monitor_kills_are_retried_and_the_others_go_on(
    tmp_path: Path, demos: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It kills the first setting's trial once and the second one's always: Ray then raises OutOfMemoryError."""
    get, killed = ray.get, []

    def killing(refs: Any, **options: Any) -> Any:
        found = get(refs, **options)
        for result in found if isinstance(found, list) else [found]:
            point = result.get("config", {}).get("point") if isinstance(result, dict) else None
            if point is not None and "score" in result and (point == 1 or (point == 0 and 0 not in killed)):
                killed.append(point)
                raise ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
        return found

    monkeypatch.setattr(ray, "get", killing)
    seeds = {"search": [0], "confirm": [10]}
    sweep = sweep_of(demos, space={"interleave.every": [1, 2]}, arms=[RL_ONLY], seeds=seeds, retries=1)
    result = run_sweep(sweep, tmp_path, local=True)
    assert sorted(killed) == [0, 1, 1]
    assert {row["label"]: row["finished"] for row in result["settings"]} == {"m = 1": 1, "m = 2": 0, "RL only": 1}
    (failure,) = result["failed"]
    assert (failure["label"], failure["seed"]) == ("m = 2", 0)
    assert failure["error"].startswith("The trial's process was killed, since its node ran out of memory")
    assert write_sweep_report(tmp_path).is_file()
    printed = "".join(capfd.readouterr())
    assert "m = 2, seed 0: tried again, 1 of 1 times. The trial's process was killed, since" in printed
    assert not [line for line in printed.splitlines() if line.startswith("Traceback")]


@pytest.mark.usefixtures("no_probe")
def test_a_trial_is_workers_and_a_learner_in_a_placement_group(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(demos, space={"interleave.every": [2]}, seeds={"search": [0], "confirm": []})
    result = run_sweep(sweep, tmp_path, local=False)
    assert result["settings"][0]["finished"] == 1
    summary = json.loads((tmp_path / result["settings"][0]["trials"][0]["run"] / "summary.json").read_text())
    assert {"learner", "worker_0"} < summary["peak_memory_bytes"].keys()


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_asha_stops_the_weak_early(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(
        demos,
        space={"rl.actor_lr": [1e-5, 1e-4, 1e-3]},
        early_stopping="asha",
        seeds={"search": [0], "confirm": []},
    )
    result = run_sweep(sweep, tmp_path, local=True)
    states = [t["state"] for row in result["settings"] for t in row["trials"]]
    assert set(states) <= {"finished", "stopped"}
    assert "finished" in states
    assert len(states) == 3


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_optuna_proposes_settings_which_all_seeds_repeat(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(
        demos, method="optuna", space={"rl.actor_lr": {"low": 1e-5, "high": 1e-3, "log": True}}, num_samples=2
    )
    result = run_sweep(sweep, tmp_path, local=True)
    assert len(result["settings"]) == 2
    for row in result["settings"]:
        assert sorted(t["seed"] for t in row["trials"]) == [0, 1]
        assert 1e-5 <= row["overrides"]["rl.actor_lr"] <= 1e-3


@pytest.mark.drill
@pytest.mark.usefixtures("no_probe")
def test_a_population_goes_on_from_its_strong_members(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(
        demos,
        method="pbt",
        space={"rl.actor_lr": [1e-5, 1e-3], "interleave.every": [1, 2]},
        num_samples=4,
        seeds={"search": [0], "confirm": []},
    )
    result = run_sweep(sweep, tmp_path, local=True)
    trials = [t for row in result["settings"] for t in row["trials"]]
    assert len(trials) == 4
    # One that is told to go on from another in its last report may be left without an end of its own.
    done = [t for t in trials if t["state"] == "finished"]
    assert done and not result["failed"]
    assert json.loads((tmp_path / done[0]["run"] / "summary.json").read_text())["iterations"] == 4
    assert len(list((tmp_path / "trials").glob("member*-life1"))) > 0, "somebody has taken over a checkpoint"


def test_a_sweep_that_would_take_too_long_is_refused(tmp_path: Path, demos: str) -> None:
    sweep = sweep_of(demos, space={"interleave.every": [1]})
    with pytest.raises(InrilError, match=r"--max-hours 1e-06: the estimate is \d"):
        run_sweep(sweep, tmp_path, local=True, max_hours=1e-6)
    assert not (tmp_path / "trials").exists()
