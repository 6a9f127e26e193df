"""What the console says where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from inril_ray.tracking.base import TrackerContext
from inril_ray.tracking.console import ConsoleTracker

SCORE = {"score": 0.351, "score_low": 0.302, "score_high": 0.4, "eval_return": 1130.0}
SPEED = {"iteration": 1.0, "env_steps_per_s": 500.0, "train_return": 812.3}


@pytest.mark.parametrize(
    ("evaluated", "trained", "expected"),
    [
        (SCORE, {}, "score 35.1 [30.2, 40.0] (return 1130) | train return 812 | 500 env-steps/s"),
        (
            SCORE | {"success_rate": 0.351},
            {"train_success_rate": 0.25},
            "success 35.1 % [30.2, 40.0] | train 25 % | 500 env-steps/s",
        ),
        ({}, {}, "not evaluated | train return 812 | 500 env-steps/s"),
    ],
)
def test_a_line_says_where_the_run_stands(
    evaluated: dict[str, float], trained: dict[str, float], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = TrackerContext(
        run_dir=Path("run"), name="run", config={}, num_iterations=2, mlflow_uri=None, mlflow_experiment="inril"
    )
    tracker = ConsoleTracker(context)
    tracker.log({"iteration": 0.0, **evaluated}, 0)
    tracker.log({**SPEED, **trained}, 40)
    tracker.close()
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"iteration 1/2 | 40 env steps | {expected} | ")
