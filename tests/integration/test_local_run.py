"""Whole runs in one process: contents, exact resume, every combination of schedule and separation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inril_ray import envs, health
from inril_ray.backend import LocalBackend
from inril_ray.demos.episodes import RecordedEpisode
from inril_ray.demos.formats.d4rl_hdf5 import write
from inril_ray.envs.base import EnvConfig
from inril_ray.experiment import load_config
from inril_ray.replay import Replay
from inril_ray.report import write_run_report
from inril_ray.run import run
from inril_ray.run_dir import read_config
from inril_ray.types import InrilError
from tests.integration.comparison import differences, measured, state
from tests.integration.conftest import TINY

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    odd = "".join(sorted({*map(chr, range(32, 127))} - {"/"}))  # a directory may be called anything
    out = tmp_path_factory.mktemp("local") / odd
    run(load_config([TINY]), out, LocalBackend)
    return out


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["env_steps"] == 4 * 4 * 20
    assert summary["base"]["eval_episodes"] == 6
    assert summary["final"]["success_rate_low"] <= summary["final"]["success_rate"]
    assert {"versions", "seconds_by_phase", "peak_memory_bytes", "demos"} <= summary.keys()
    assert summary["demos"]["source"] == "scripted"
    assert [r["iteration"] for r in measured(finished)] == [0, 1, 2, 3, 4, 4]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["iteration_000002", "iteration_000004"]


def test_what_a_filling_replay_needs_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Replay, "free_bytes", lambda _: 0)
    asked = []

    def noted(*sizes: Any) -> list[str]:
        asked.append(sizes)
        return checkpoints(*sizes)

    checkpoints = health.checkpoints
    monkeypatch.setattr(health, "checkpoints", noted)
    small = {"batch_size": 16, "replay_ratio": 1, "critic_hidden_dim": 16}
    guard, envs_50 = {"action": "rollback"}, TINY["rollout"] | {"num_envs": 50}
    config = {
        **TINY,
        "algorithm": "sac",
        "actor": {"hidden_dims": [16], "prediction_horizon": 4},
        "rl": small,
        "guard": guard,
        "rollout": envs_50,
    }
    summary = run(load_config([config]), tmp_path, LocalBackend, say=lambda _: None)
    (memory,) = (text for text in summary["health"] if text.startswith("The replay will grow"))
    assert memory.endswith("Lower rl.buffer_size or rollout.num_envs.")
    ((size, replay, copies, where),) = asked
    written = [sum(f.stat().st_size for f in path.iterdir()) for path in (tmp_path / "checkpoints").iterdir()]
    assert 0.9 < (size + replay) / max(written) <= 1.0, "the optimisers' moments are not there yet"
    assert replay > size and (copies, where) == (2 + 2 + 1, tmp_path)


def test_imitation_follows_every_second_iteration_and_diagnostics_every_one(finished: Path) -> None:
    records = measured(finished)[1:5]
    assert [r["il_updates"] for r in records] == [0, 3, 3, 6]
    for record in records:
        assert {"grad_cosine", "conflict_rate", "grad_norm_rl", "grad_norm_il", "il_probe_loss"} <= record.keys()


def test_resumed_equals_uninterrupted(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = load_config([TINY])

    class Interrupted(LocalBackend):
        def iterate(self) -> dict[str, float]:
            if self.learner.version == 3:
                raise KeyboardInterrupt
            return super().iterate()

    with pytest.raises(KeyboardInterrupt):
        run(config, out, Interrupted)
    assert [r["iteration"] for r in measured(out)] == [0, 1, 2, 3]
    run(read_config(out), out, LocalBackend, resume=True)
    assert measured(out) == measured(finished)
    assert differences(state(out, 4), state(finished, 4)) == []


def test_a_finished_run_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(InrilError, match="already holds a run"):
        run(load_config([TINY]), finished, LocalBackend)


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="No intact checkpoint"):
        run(load_config([TINY]), tmp_path / "nothing", LocalBackend, resume=True)


def test_resume_refuses_other_demonstrations(finished: Path, tmp_path: Path) -> None:
    from inril_ray.record import record

    record("robomimic/lift", tmp_path / "other.hdf5", num_demos=2, seed=5, held_out=1)
    config = load_config([TINY, {"demos": str(tmp_path / "other.hdf5"), "num_iterations": 5}])
    with pytest.raises(InrilError, match="demonstrations differ"):
        run(config, finished, LocalBackend, resume=True)


@pytest.mark.parametrize(
    ("schedule", "separation"),
    [("rl_only", "upgrad"), ("il_only", "upgrad"), ("fixed", "naive"), ("fixed", "pcgrad")],
)
def test_every_schedule_and_separation_runs(schedule: str, separation: str, tmp_path: Path) -> None:
    short = {"num_iterations": 2, "schedule": schedule, "separation": separation, "evaluation": {"final_episodes": 2}}
    summary = run(load_config([TINY, short]), tmp_path / "run", LocalBackend)
    last = measured(tmp_path / "run")[2]
    assert last["il_updates"] == (0 if schedule == "rl_only" else 3)
    assert (last["rl_updates"] == 0) == (schedule == "il_only")
    assert {"grad_cosine", "conflict_rate", "il_probe_loss"} <= last.keys()
    assert summary["schedule"] == schedule


def test_gaussian_ppo_runs(tmp_path: Path) -> None:
    layers = [TINY, {"algorithm": "ppo", "num_iterations": 2, "rl": {"minibatch_size": 10}}]
    assert run(load_config(layers), tmp_path / "run", LocalBackend)["algorithm"] == "ppo"


def test_stock_simulator_runs(tmp_path: Path) -> None:
    layers = [TINY, {"env": {"backend": "stock"}, "num_iterations": 1}]
    fast = run(load_config([TINY, {"num_iterations": 1}]), tmp_path / "fast", LocalBackend)
    stock = run(load_config(layers), tmp_path / "stock", LocalBackend)
    assert fast["env_steps"] == stock["env_steps"]
    a, b = measured(tmp_path / "fast")[1], measured(tmp_path / "stock")[1]
    assert a["grad_norm_rl"] == pytest.approx(b["grad_norm_rl"], rel=1e-2)


def test_a_task_without_success_is_run_by_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, rng = envs.spec("gym/hopper", EnvConfig()), np.random.default_rng(0)
    episodes = [
        RecordedEpisode(
            obs=rng.normal(size=(20, spec.obs_dim)),
            next_obs=rng.normal(size=(20, spec.obs_dim)),
            actions=rng.uniform(-1, 1, (20, spec.action_dim)),
            rewards=rng.normal(size=20),
        )
        for _ in range(3)
    ]
    write(tmp_path / "hopper.hdf5", episodes, env_name="Hopper", semantics=spec.semantics, source={"kind": "rl"})
    short = {"num_iterations": 2, "evaluation": {"every": 1}}
    short |= {"task": "gym/hopper", "demos": str(tmp_path / "hopper.hdf5")}
    summary = run(load_config([TINY, short]), tmp_path / "run", LocalBackend)
    outcomes = [summary["base"], *(r for r in measured(tmp_path / "run") if "score" in r), summary["final"]]
    assert len(outcomes) == 5
    worst, best = spec.score_range
    for outcome in outcomes:
        assert outcome["score"] == pytest.approx((outcome["eval_return"] - worst) / (best - worst))
        assert outcome["score_low"] < outcome["score"] < outcome["score_high"]
    assert summary["best"]["score"] == max(o["score"] for o in outcomes)
    assert len(summary["final"]["outcomes"]) == 6
    assert any("train_return" in r for r in measured(tmp_path / "run"))
    assert not [name for r in measured(tmp_path / "run") for name in r if "success" in name]
    assert "Final policy: score" in capsys.readouterr().out
    assert "Score in evaluation" in write_run_report(tmp_path / "run").read_text()
