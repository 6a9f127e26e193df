"""A guarded run: a collapse that evaluations show is warned of, rolled back or ends the run; all of it is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inril_ray import checkpoint, session
from inril_ray.backend import LocalBackend
from inril_ray.experiment import load_config
from inril_ray.run import run
from inril_ray.types import EpisodeStats, InrilError
from tests.integration.comparison import differences, measured, state
from tests.integration.conftest import TINY

pytestmark = pytest.mark.sim


def config_with(**guard: Any) -> Any:
    evaluation = {"every": 1, "num_episodes": 60, "final_episodes": 60}
    return load_config(
        [TINY, {"num_iterations": 6, "evaluation": evaluation, "checkpoint": {"every": 1}, "guard": guard}]
    )


def episodes(rate: float, count: int) -> EpisodeStats:
    success = np.arange(count) < round(rate * count)
    columns = {"returns": success.astype(np.float64), **dict.fromkeys(("success", "reached", "held", "final"), success)}
    return EpisodeStats(envs=np.arange(count), lengths=np.full(count, 20), **columns)


class Scripted(LocalBackend):
    """Success is 80 %, but where large steps led beyond an iteration: as if they had destroyed the policy."""

    collapses_after = 4

    def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
        ruined = self.learner.version >= self.collapses_after and self.learner.step_scale > 0.3
        return episodes(0.1 if ruined else 0.8, num_episodes)


def audit(run_dir: Path) -> list[tuple[int, str]]:
    lines = (run_dir / "guard.jsonl").read_text().splitlines()
    return [(entry["iteration"], entry["event"]) for entry in map(json.loads, lines)]


def test_a_collapse_is_rolled_back_until_smaller_steps_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first roll-back halves the steps, which is not enough here; the second quarters them."""
    summary = run(config_with(action="rollback"), tmp_path, Scripted)
    assert audit(tmp_path) == [
        (0, "kept"),
        (4, "collapse"),
        (0, "rolled back"),
        (4, "collapse"),
        (0, "rolled back"),
    ]
    assert summary["guard"] == {"collapsed": False, "rollbacks": 2, "discarded_env_steps": 2 * 4 * 80}
    assert summary["iterations"] == 6
    assert [r["iteration"] for r in measured(tmp_path)] == [0, 1, 2, 3, 4, 5, 6, 6]
    gone = [json.loads(line)["iteration"] for line in (tmp_path / "discarded.jsonl").read_text().splitlines()]
    assert gone == [1, 2, 3, 4] * 2
    saved = state(tmp_path, 6)["learner"]
    assert saved["step_scale"] == 0.25
    assert saved["optimizers"]["il"]["param_groups"][0]["lr"] == pytest.approx(
        0.25 * load_config([TINY]).interleave.il_lr
    )
    assert "learning rates are 0.25 of the configured ones" in capsys.readouterr().out


def test_smaller_steps_are_what_is_stepped(tmp_path: Path) -> None:
    """After a roll-back the same iteration starts from the same weights and data and moves them less."""
    run(config_with(action="rollback"), tmp_path / "rolled", Scripted)
    run(config_with(action="none"), tmp_path / "plain", Scripted)

    def rates(name: str) -> list[float]:
        groups = state(tmp_path / name, 6)["learner"]["optimizers"]["actor"]["param_groups"]
        return [group["lr"] for group in groups]

    assert rates("rolled") == pytest.approx([0.25 * rate for rate in rates("plain")])
    assert not (tmp_path / "plain" / "guard.jsonl").exists()


def test_a_roll_back_that_is_interrupted_goes_on_the_same(tmp_path: Path) -> None:
    config = config_with(action="rollback")
    run(config, tmp_path / "whole", Scripted)

    class Interrupted(Scripted):
        calls = 0

        def iterate(self) -> dict[str, float]:
            type(self).calls += 1
            if type(self).calls == 7:  # in the third iteration after the first roll-back
                raise KeyboardInterrupt
            return super().iterate()

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", Interrupted)
    summary = run(config, tmp_path / "parts", Scripted, resume=True)
    assert summary["guard"]["rollbacks"] == 2
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert differences(state(tmp_path / "parts", 6), state(tmp_path / "whole", 6)) == []
    assert audit(tmp_path / "parts") == audit(tmp_path / "whole")


def test_a_run_that_was_stopped_is_on_record_once(tmp_path: Path) -> None:
    config = config_with(action="stop")

    class Interrupted(Scripted):
        def peak_memory_bytes(self) -> dict[str, int]:
            raise KeyboardInterrupt  # after the last evaluation, before the summary

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, Interrupted)
    before = audit(tmp_path)
    for _ in range(2):
        run(config, tmp_path, Scripted, resume=True)
    assert audit(tmp_path) == before
    assert [event for _, event in before].count("stopped") == 1


def test_a_start_that_is_cut_short_leaves_no_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = config_with(action="rollback")

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.Session, "save", cut)
        run(config, tmp_path, Scripted)
    assert audit(tmp_path) == [(0, "kept")]
    run(config, tmp_path, Scripted)
    assert audit(tmp_path).count((0, "kept")) == 1


@pytest.mark.parametrize("where", ["drop_after", "save"])
def test_a_roll_back_that_is_cut_short_is_on_record_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    """Struck before the state that it leads to is saved, and after."""
    config = config_with(action="rollback")
    run(config, tmp_path / "whole", Scripted)

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "drop_after":
            patch.setattr(session, "drop_after", cut)
        else:
            save = session.Session.save
            patch.setattr(session.Session, "save", lambda s: cut() if s.guard.rollbacks else save(s))
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts", Scripted)
    run(config, tmp_path / "parts", Scripted, resume=True)
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert audit(tmp_path / "parts") == audit(tmp_path / "whole")
    discarded = [(tmp_path / name / "discarded.jsonl").read_text().splitlines() for name in ("parts", "whole")]
    assert [len(lines) for lines in discarded] == [len(discarded[1])] * 2


@pytest.mark.parametrize(
    ("guard", "rollbacks"), [({"action": "stop"}, 0), ({"action": "rollback", "max_rollbacks": 1}, 1)]
)
def test_a_run_that_can_not_be_saved_ends_and_keeps_its_best(tmp_path: Path, guard: Any, rollbacks: int) -> None:
    summary = run(config_with(**guard), tmp_path, Scripted)
    assert audit(tmp_path)[-2:] == [(4, "collapse"), (4, "stopped")]
    assert summary["iterations"] == 4
    assert summary["guard"]["collapsed"] is True
    assert summary["guard"]["rollbacks"] == rollbacks
    assert checkpoint.complete(tmp_path / "best") == [0]


@pytest.mark.parametrize("part", ["backend", "session"])
def test_a_forged_state_to_go_back_to_is_a_sentence(tmp_path: Path, part: str) -> None:
    class Forging(Scripted):
        def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
            if self.learner.version == self.collapses_after:
                tree = checkpoint.read_latest(tmp_path / "best")[0]
                tree[part] |= {"learner": {"modules": 7}} if part == "backend" else {"guard": {"rollbacks": "x"}}
                checkpoint.write(tmp_path / "best", 0, tree, keep=1)
            return super().evaluate(num_episodes)

    with pytest.raises(InrilError, match="The state to go back to, in .*best, was not written by this program"):
        run(config_with(action="rollback"), tmp_path, Forging)
    assert checkpoint.complete(tmp_path / "checkpoints")[-1] == 4


def test_a_warning_changes_nothing(tmp_path: Path) -> None:
    run(config_with(action="none"), tmp_path / "none", Scripted)
    summary = run(config_with(action="warn"), tmp_path / "warn", Scripted)
    assert audit(tmp_path / "warn") == [(4, "collapse"), (5, "collapse"), (6, "collapse")]
    assert not (tmp_path / "warn" / "best").exists()
    assert summary["guard"]["rollbacks"] == 0
    assert measured(tmp_path / "warn") == measured(tmp_path / "none")
    assert differences(state(tmp_path / "warn", 6), state(tmp_path / "none", 6)) == []


def test_an_early_warning_asks_for_an_evaluation(tmp_path: Path) -> None:
    """No evaluation is planned on the way; the divergence from the cloned policy, here of any size, asks for one."""
    evaluation = {"every": 0, "num_episodes": 60, "final_episodes": 60}
    guard = {"action": "stop", "kl_limit": 1e-6, "warmup": 3}
    config = load_config([TINY, {"num_iterations": 12, "evaluation": evaluation, "guard": guard}])
    summary = run(config, tmp_path, Scripted)
    assert [event for _, event in audit(tmp_path)] == ["kept", "early warning", "collapse", "stopped"]
    records = measured(tmp_path)
    assert 4 <= summary["iterations"] < 12
    assert [r["iteration"] for r in records if "score" in r][1] == summary["iterations"]
    divergence = [r["kl_base"] for r in records if "kl_base" in r]
    assert len(divergence) == summary["iterations"] and min(divergence) > -1e-4
    assert divergence[-1] > divergence[0]
