"""What the console says, with a terminal and without."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console, Group

from inril_ray.progress import steps, tell
from inril_ray.tracking import console
from inril_ray.tracking.base import TrackerContext
from inril_ray.tracking.console import Bars, ConsoleTracker, phases_shown
from inril_ray.tracking.jsonl import last_evaluation

SCORE = {"score": 0.351, "score_low": 0.302, "score_high": 0.4, "eval_return": 1130.0}
SPEED = {"iteration": 1.0, "env_steps_per_s": 500.0, "train_return": 812.3}


CONTEXT = TrackerContext(
    run_dir=Path("run"), name="run", config={}, num_iterations=81, mlflow_uri=None, mlflow_experiment="inril"
)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bars:
    """Return the bars of a process whose terminal is as wide as the test says."""
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=request.param))
    monkeypatch.setattr(console, "bars", lambda: bars)
    return bars


def shown(bars: Bars) -> list[str]:
    """Return the lines of the bars as they stand."""
    page = Console(file=io.StringIO(), width=bars.console.width)
    page.print(Group(*bars.get_renderables()))
    return page.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("terminal", "second"),
    [
        (80, "success 100.0 % [98.1, 100.0] at iteration 70 | train 100 % | 12345 env-steps/s"),
        (110, "success 100.0 % [98.1, 100.0] at iteration 70 | train 100 % | 12345 env-steps/s | rho +0.12"),
    ],
    indirect=["terminal"],
)
def test_the_bar_takes_two_lines(terminal: Bars, second: str) -> None:
    tracker = ConsoleTracker(CONTEXT)
    measured = {"score": 1.0, "score_low": 0.981, "score_high": 1.0, "success_rate": 1.0, "eval_return": 80.0}
    trained = {"train_success_rate": 1.0, "env_steps_per_s": 12345.0, "rho": 0.12}
    tracker.log({"iteration": 70.0, **measured, **trained}, 0)
    assert "at iteration" not in shown(terminal)[1], "measured just now"
    tracker.log({"iteration": 71.0, **trained}, 0)
    lines = shown(terminal)
    tracker.close()
    assert lines[0].startswith("iterations") and "71/81" in lines[0] and "left" in lines[0]
    assert lines[1:] == [second]
    assert max(map(len, lines)) <= terminal.console.width


@pytest.mark.parametrize("terminal", [80], indirect=True)
def test_a_phase_has_a_bar_while_it_lasts(terminal: Bars) -> None:
    with phases_shown():
        for epoch in steps(range(3000), "cloning, epochs", 3000):
            if epoch == 0:
                (line,) = shown(terminal)
                assert line.startswith("cloning, epochs") and "0/3000" in line and len(line) <= 80
        assert terminal.tasks == [] and not terminal.live.is_started


@pytest.mark.parametrize("terminal", [80], indirect=True)
def test_the_terminal_is_let_go_when_a_phase_fails(terminal: Bars) -> None:
    tracker = ConsoleTracker(CONTEXT)
    tracker.log({"iteration": 1.0}, 0)
    with pytest.raises(KeyboardInterrupt), phases_shown():
        tell("offline updates", 3, 10_000)
        assert len(shown(terminal)) == 3
        raise KeyboardInterrupt
    assert terminal.tasks == [] and not terminal.live.is_started


def test_a_run_that_goes_on_knows_its_last_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"iteration": 0.0, **SCORE},
        {"iteration": 3.0, **SCORE, "score": 0.4},
        SPEED,
        {"iteration": 9.0, **SCORE},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": 0, **r}) + "\n" for r in records))
    assert last_evaluation(tmp_path, 5)["score"] == 0.4 and last_evaluation(tmp_path / "none", 5) == {}
    tracker = ConsoleTracker(dataclasses.replace(CONTEXT, evaluated=last_evaluation(tmp_path, 5)))
    tracker.log({"iteration": 6.0}, 40)
    assert capsys.readouterr().out == (
        "iteration 6/81 | 40 env steps | score 40.0 [30.2, 40.0] (return 1130) at iteration 3\n"
    )


def test_the_time_left_is_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter((0.0, 0.0, 0.0, 900.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    tracker = ConsoleTracker(CONTEXT)
    tracker.log({"iteration": 0.0}, 0)
    tracker.log({"iteration": 1.0}, 1)
    assert capsys.readouterr().out.splitlines()[1] == "iteration 1/81 | 1 env step | not evaluated | 20.0 h left"


def test_a_long_phase_prints_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    with phases_shown():
        tell("cloning, epochs", 10, 3000)
        tell("cloning, epochs", 3000, 3000)
        monkeypatch.setattr(console, "PLAIN_EVERY_S", 60.0)
        tell("offline updates", 10, 3000)
    tell("cloning, epochs", 1, 3000)  # nobody listens
    assert capsys.readouterr().out == "cloning, epochs: 10/3000 after 0 s\n"


@pytest.mark.parametrize(
    ("evaluated", "trained", "expected"),
    [
        (SCORE, {}, "score 35.1 [30.2, 40.0] (return 1130) at iteration 0 | train return 812 | 500 env-steps/s"),
        (
            SCORE | {"success_rate": 0.351},
            {"train_success_rate": 0.25},
            "success 35.1 % [30.2, 40.0] at iteration 0 | train 25 % | 500 env-steps/s",
        ),
        ({}, {}, "not evaluated | train return 812 | 500 env-steps/s"),
    ],
)
def test_a_line_says_where_the_run_stands(
    evaluated: dict[str, float], trained: dict[str, float], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = ConsoleTracker(dataclasses.replace(CONTEXT, num_iterations=2))
    tracker.log({"iteration": 0.0, **evaluated}, 0)
    tracker.log({**SPEED, **trained}, 40)
    tracker.close()
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"iteration 1/2 | 40 env steps | {expected} | ")
