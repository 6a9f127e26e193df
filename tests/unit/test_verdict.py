"""The verdict: what is compared, and the words for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inril_ray import checkpoint
from inril_ray.experiment import resolved
from inril_ray.run_dir import write_json
from inril_ray.statistics import BY_RULE, SCORE
from inril_ray.types import InrilError
from inril_ray.verdict import compare, judge, result_lines, verdict

PATHS = {arm: [f"{arm}_seed{s}" for s in range(3)] for arm in ("rl_only", "inril", "bc_reg")}


def summaries(scores: dict[str, list[float]], *, has_success: bool) -> dict[str, list[dict[str, Any]]]:
    def outcome(score: float) -> dict[str, float]:
        found = {"score": score, "score_low": score, "score_high": score, "eval_episodes": 4.0, "eval_return": 7.0}
        return found | (
            {"success_rate": score, "success_rate_held": score - 0.1, "success_rate_final": score}
            if has_success
            else {}
        )

    return {
        arm: [
            {
                "iterations": 2,
                "env_steps": 100 + round(100 * score),  # episodes that end early cut chunks short
                "base": outcome(0.1),
                "final": outcome(score),
                "counters": {"rl_updates": 1, "il_updates": 0},
                "seconds_by_phase": {"rl": 1.0},
            }
            for score in values
        ]
        for arm, values in scores.items()
    }


@pytest.mark.parametrize(
    ("has_success", "expected"),
    [
        (
            True,
            "IN-RIL helps: its success rate differs from RL only's by +40.3 percentage points [+40.0, +41.0] over 3 "
            "paired seeds.",
        ),
        (
            False,
            "IN-RIL helps: its score differs from RL only's by +40.3 points [+40.0, +41.0] over 3 paired seeds.",
        ),
    ],
)
def test_the_final_scores_are_compared(has_success: bool, expected: str) -> None:
    scores = {"rl_only": [0.5, 0.5, 0.5], "inril": [0.9, 0.9, 0.91]}
    result = compare(summaries(scores, has_success=has_success), PATHS, range(3))
    assert result["arms"]["inril"]["scores"] == scores["inril"]
    assert result["arms"]["inril"]["env_steps"] == [190, 190, 191]
    lines = result_lines(result)
    assert lines[-1] == expected
    unit = " %" if has_success else ""
    others = "; held 40.0 %" if has_success else ""
    assert lines[0] == f"RL only  interquartile mean 50.0{unit} [50.0, 50.0]  (seeds: 50.0, 50.0, 50.0{others})"
    assert ("a success if the task is solved after any of its control steps" in "".join(lines)) == has_success


@pytest.mark.parametrize("measure", [BY_RULE["reached"], SCORE])
def test_a_side_is_taken_only_if_both_intervals_exclude_zero(measure: Any) -> None:
    control = np.array([0.5, 0.5, 0.5])
    assert judge(control - np.array([0.2, 0.21, 0.22]), control, "A", "B", measure)["verdict"] == "hurts"
    unsure = judge(control + np.array([0.01, 0.2, 0.4]), control, "A", "B", measure)
    assert unsure["difference"]["low"] > 0 > unsure["t_interval"]["low"]
    assert unsure["verdict"] == "can't tell yet"
    assert unsure["sentence"].startswith("Can't tell yet: A differs from B by ")
    assert "more paired seeds would tell" in unsure["sentence"]


def test_runs_of_unequal_length_are_not_compared() -> None:
    runs = summaries({"rl_only": [0.1, 0.2, 0.3], "inril": [0.1, 0.2, 0.3]}, has_success=False)
    runs["inril"][1]["iterations"] = 1
    with pytest.raises(InrilError, match=r"differ in iterations \(\[1, 2\]\)"):
        compare(runs, PATHS, range(3))


def test_runs_that_count_success_by_different_rules_are_not_compared() -> None:
    runs = summaries({"rl_only": [0.1, 0.2, 0.3], "inril": [0.1, 0.2, 0.3]}, has_success=True)
    older = runs["inril"][1]["final"]
    for name in ("success_rate_held", "success_rate_final"):
        older.pop(name)
    older["success_rate_any"] = 0.9
    with pytest.raises(InrilError, match="success by different rules .held and reached.; they can't be compared"):
        compare(runs, PATHS, range(3))


def test_every_arm_is_compared_with_rl_only() -> None:
    scores = {"rl_only": [0.2, 0.3, 0.2], "inril": [0.8, 0.9, 0.9], "bc_reg": [0.3, 0.1, 0.2]}
    result = compare(summaries(scores, has_success=True), PATHS, range(3))
    assert {arm: c["verdict"] for arm, c in result["comparisons"].items()} == {
        "inril": "helps", "bc_reg": "can't tell yet",
    }  # fmt: skip
    assert any(line.startswith("BC-Reg") for line in result_lines(result))


def refuse(*_: Any) -> dict[str, Any]:
    raise AssertionError("nothing may run")


@pytest.mark.parametrize(
    ("changes", "arms", "message"),
    [
        ({}, ("inril",), "rl_only and at least one"),
        ({}, ("rl_only", "magic"), "rl_only and at least one"),
        ({"algorithm": "residual_ppo"}, ("rl_only", "inril", "bc_reg"), "bc_reg"),
        ({"schedule": "bc_reg"}, ("rl_only", "inril"), "an arm of its own"),
    ],
)
def test_arms_that_make_no_sense_are_refused_before_anything_runs(
    changes: dict[str, Any], arms: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InrilError, match=message):
        verdict([{"task": "robomimic/lift"}, changes], tmp_path, seeds=(0, 1, 2), run_one=refuse, arms=arms)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_cut_short_goes_on_with_its_own_configuration_only(tmp_path: Path) -> None:
    resumed = []

    def cut_short(config: Any, path: Path, resume: bool) -> dict[str, Any]:
        resumed.append(resume)
        checkpoint.write(path / "checkpoints", 0, {}, keep=1)
        write_json(path / "config.json", {"config": resolved(config)})
        raise KeyboardInterrupt

    layers = [{"task": "robomimic/lift"}]
    for changes in ({}, {"compute": {"num_workers": 4}}):
        with pytest.raises(KeyboardInterrupt):
            verdict([*layers, changes], tmp_path, seeds=(0, 1, 2), run_one=cut_short)
    assert resumed == [False, True]
    with pytest.raises(InrilError, match=r"another rl\.actor_lr\."):
        verdict([*layers, {"rl": {"actor_lr": 0.1}}], tmp_path, seeds=(0, 1, 2), run_one=refuse)


def test_seeds_that_are_none_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="seed = -3"):
        verdict([{"task": "robomimic/lift"}], tmp_path, seeds=(1, 2, -3), run_one=refuse)
    assert not list(tmp_path.iterdir())
