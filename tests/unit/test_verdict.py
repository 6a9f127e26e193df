"""The verdict: what is compared, and the words for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inril_ray import checkpoint
from inril_ray import verdict as verdicts
from inril_ray.experiment import resolved
from inril_ray.run_dir import write_json
from inril_ray.statistics import BY_RULE, SCORE, detectable_difference, pairs_needed
from inril_ray.types import InrilError
from inril_ray.verdict import compare, judge, result_lines, verdict

PATHS = {arm: [f"{arm}_seed{s}" for s in range(3)] for arm in ("rl_only", "inril", "bc_reg")}


def episodes(score: float, number: int = 200) -> np.ndarray:
    """Outcomes of the episodes of a run, in which a share succeeded."""
    return (np.arange(number) < round(score * number)).astype(float)


def runs(*scores: float) -> list[np.ndarray]:
    return [episodes(score) for score in scores]


def summaries(scores: dict[str, list[float]], *, has_success: bool) -> dict[str, list[dict[str, Any]]]:
    def outcome(score: float) -> dict[str, Any]:
        found = {"score": score, "score_low": score, "score_high": score, "eval_episodes": 200.0, "eval_return": 7.0}
        outcomes = episodes(score) if has_success else score + np.linspace(-0.02, 0.02, 200)
        rates = {"success_rate": score, "success_rate_held": score - 0.1, "success_rate_final": score}
        return found | (rates if has_success else {}) | {"outcomes": outcomes.tolist()}

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
            "IN-RIL helps: its success rate differs from RL only's by +40.3 percentage points [+35.6, +44.8] (95 %, "
            "Student's t) over 3 paired seeds.",
        ),
        (
            False,
            "IN-RIL helps: its score differs from RL only's by +40.3 points [+38.9, +41.8] (95 %, Student's t) over 3 "
            "paired seeds.",
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
    unit, ends = (" %", "[46.0, 54.0]") if has_success else ("", "[49.9, 50.1]")
    others = "; held 40.0 %" if has_success else ""
    assert lines[0] == f"RL only  interquartile mean 50.0{unit} {ends}  (seeds: 50.0, 50.0, 50.0{others})"
    assert ("a success if the task is solved after any of its control steps" in "".join(lines)) == has_success


@pytest.mark.parametrize("measure", [BY_RULE["reached"], SCORE])
def test_a_side_is_taken_only_if_both_intervals_exclude_zero(measure: Any) -> None:
    control = runs(0.5, 0.5, 0.5)
    assert judge(runs(0.3, 0.29, 0.28), control, "A", "B", measure)["verdict"] == "hurts"
    unsure = judge(runs(0.6, 0.7, 0.9), control, "A", "B", measure)
    assert unsure["difference"]["low"] > 0 > unsure["t_interval"]["low"]
    assert unsure["verdict"] == "can't tell yet"


def test_the_sentence_shows_the_wider_interval_and_what_the_study_could_have_found() -> None:
    found = judge(runs(0.6, 0.7, 0.9), runs(0.5, 0.5, 0.5), "A", "B", BY_RULE["reached"])
    t, deviation = found["t_interval"], np.std([0.1, 0.2, 0.4], ddof=1)
    assert found["wider"] == "Student's t"
    assert t["high"] - t["low"] > found["difference"]["high"] - found["difference"]["low"]
    assert found["power"]["detectable"] == pytest.approx(detectable_difference(deviation, 3))
    assert found["power"]["seeds"] == pairs_needed(deviation, 0.05)
    assert found["sentence"] == (
        f"Can't tell yet: A differs from B by +23.3 percentage points [{100 * t['low']:+.1f}, {100 * t['high']:+.1f}] "
        f"(95 %, Student's t) over 3 paired seeds. With 200 episodes a run, such a study finds a true difference of "
        f"{100 * found['power']['detectable']:.1f} percentage points in four cases of five; 5 would take about "
        f"{found['power']['seeds']} seeds."
    )


def test_the_sentence_shows_the_bootstraps_interval_where_that_is_wider() -> None:
    """Two kinds of seeds, five of each: the mean of the middle half jumps from one to the other."""
    found = judge(runs(*[0.5] * 10), runs(*[0.1] * 5, *[0.9] * 5), "A", "B", BY_RULE["reached"])
    low, high = (100 * found["difference"][end] for end in ("low", "high"))
    assert found["wider"] == "bootstrap"
    assert high - low > 100 * (found["t_interval"]["high"] - found["t_interval"]["low"])
    assert f"[{low:+.1f}, {high:+.1f}] (95 %, bootstrap) over 10 paired seeds" in found["sentence"]


def test_equal_arms_are_told_what_their_episodes_could_have_shown() -> None:
    """No run succeeded: nothing was seen between the seeds, but 600 episodes don't show a difference of nothing."""
    found = judge(runs(0.0, 0.0, 0.0), runs(0.0, 0.0, 0.0), "A", "B", BY_RULE["reached"])
    assert found["verdict"] == "can't tell yet"
    for name in ("difference", "t_interval"):
        assert found[name]["low"] < -0.005 < 0.005 < found[name]["high"]
    assert found["probability_of_improvement"]["value"] == 0.5
    assert 0.0 < found["power"]["detectable"] < 0.05
    assert "would take" not in found["sentence"], "it would have found less than 5 points"


def test_a_run_without_outcomes_by_episode_is_refused_with_a_reason() -> None:
    old = summaries({"rl_only": [0.1, 0.2, 0.3], "inril": [0.1, 0.2, 0.3]}, has_success=True)
    del old["inril"][1]["final"]["outcomes"]
    with pytest.raises(InrilError, match=r"no outcomes by episode.*another --out"):
        compare(old, PATHS, range(3))


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


def test_it_says_which_run_goes_on_and_how_long_the_rest_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    demos = SimpleNamespace(info=SimpleNamespace(source="scripted", source_file="f", content_hash="h"))
    monkeypatch.setattr(verdicts, "load_demos", lambda _: demos)
    clock = iter(range(0, 100_000, 600))  # each run takes ten minutes
    monkeypatch.setattr(verdicts.time, "monotonic", lambda: next(clock))
    made = summaries({"rl_only": [0.5], "inril": [0.9]}, has_success=True)

    def run_one(config: Any, path: Path, resume: bool) -> dict[str, Any]:
        path.mkdir()
        write_json(path / "config.json", {"config": resolved(config)})
        summary = made["rl_only" if config.schedule == "rl_only" else "inril"][0] | {"seconds_by_phase": {"rl": 60.0}}
        write_json(path / "summary.json", summary)
        return summary

    layers = [{"task": "robomimic/lift"}]
    verdict(layers, tmp_path, seeds=(0, 1, 2), run_one=run_one, say=said.append)
    runs_said = [line.removeprefix("--- run ") for line in said if line.startswith("--- run ")]
    assert runs_said[:3] == [
        "1 of 6: RL only, seed 0",
        "2 of 6: IN-RIL, seed 0; about 50 min to go",
        "3 of 6: RL only, seed 1; about 40 min to go",
    ]
    shutil.rmtree(tmp_path / "inril_seed2")
    said.clear()
    verdict(layers, tmp_path, seeds=(0, 1, 2), run_one=run_one, say=said.append)
    assert said[-1] == "--- run 6 of 6: IN-RIL, seed 2; about 60 s to go", "kept runs tell how long they took"


def test_seeds_that_are_none_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="seed = -3"):
        verdict([{"task": "robomimic/lift"}], tmp_path, seeds=(1, 2, -3), run_one=refuse)
    assert not list(tmp_path.iterdir())


def test_where_no_side_is_taken_the_interval_that_is_shown_holds_zero() -> None:
    """Here the wider one, Student's, ends just above 0, and the bootstrap's below it."""
    found = judge(runs(0.54, 0.52, 0.54, 0.54, 0.52, 0.58), runs(*[0.5] * 6), "A", "B", BY_RULE["reached"])
    shown = found["difference"] if found["wider"] == "bootstrap" else found["t_interval"]
    other = found["t_interval"] if found["wider"] == "bootstrap" else found["difference"]
    assert found["verdict"] == "can't tell yet"
    assert shown["low"] <= 0 < other["low"]
    assert f"[{100 * shown['low']:+.1f}, {100 * shown['high']:+.1f}]" in found["sentence"]
