"""What counts as a success is the task's to say, or the configuration's, and the same in every comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from inril_ray import checkpoint, envs
from inril_ray.backend import LocalBackend
from inril_ray.envs.base import EnvConfig
from inril_ray.experiment import load_config
from inril_ray.run import run
from inril_ray.statistics import RULES, one_measure, other_rates
from inril_ray.types import InrilError, SuccessRule
from tests.fakes import fake_demos, register_fake_task
from tests.unit.test_base_policy import config_of

WITH_SUCCESS = [name for name in envs.TASKS if not name.startswith("gym/")]


@pytest.mark.parametrize("task", WITH_SUCCESS)
def test_the_configuration_reaches_the_task(task: str) -> None:
    own = envs.spec(task, EnvConfig()).success
    assert own == ("final" if task.startswith("fetch/") else "reached")
    for rule in get_args(SuccessRule):
        assert envs.spec(task, EnvConfig(success=rule)).success == rule


@pytest.mark.parametrize("task", WITH_SUCCESS)
def test_an_episode_that_ends_at_success_is_judged_by_that_alone(task: str) -> None:
    assert envs.spec(task, EnvConfig(terminate_on_success=True, success="reached")).success == "reached"
    for rule in ("held", "final"):
        with pytest.raises(InrilError, match=f"env.success = '{rule}' looks at what follows a success"):
            envs.spec(task, EnvConfig(terminate_on_success=True, success=rule))
    assert envs.spec(task, EnvConfig(terminate_on_success=True)).success == "reached", "Fetch's, too"


def test_a_configuration_is_refused_before_anything_runs() -> None:
    ends = {"env": {"terminate_on_success": True, "success": "held"}}
    with pytest.raises(InrilError, match="env.success = 'held' looks at what follows"):
        load_config([{"task": "robomimic/lift"}, ends])
    with pytest.raises(InrilError, match="env.success = 'held': gym/hopper has no success, its score is a return"):
        load_config([{"task": "gym/hopper", "env": {"success": "held"}}])
    with pytest.raises(InrilError, match="env.success"):
        load_config([{"task": "robomimic/lift", "env": {"success": "any"}}])


def test_every_rule_has_words() -> None:
    assert set(RULES) == set(get_args(SuccessRule))


def outcome(score: float, **others: float) -> dict[str, float]:
    rates = {f"success_rate_{rule}": rate for rule, rate in others.items()}
    return {"score": score, "score_low": score - 0.1, "score_high": score + 0.1, "success_rate": score, **rates}


def test_rates_by_other_rules_are_told_where_they_differ_by_more_than_the_interval() -> None:
    assert other_rates([outcome(0.5, held=0.45, final=0.6)]) == {}
    assert other_rates([outcome(0.5, held=0.35, final=0.6)]) == {"held": 0.35}
    assert other_rates([outcome(0.5, held=0.5, final=0.3), outcome(0.5, held=0.4, final=0.5)]) == {"final": 0.4}
    assert other_rates([{"score": 1.0, "score_low": 0.9, "score_high": 1.1}]) == {}


def test_evaluations_by_different_rules_have_no_measure_in_common() -> None:
    reached, held = outcome(0.5, held=0.4, final=0.4), outcome(0.5, reached=0.6, final=0.4)
    assert one_measure([reached, reached]).rule == "reached"
    assert one_measure([held, outcome(0.5)]).rule == "held", "older releases knew only this rule"
    with pytest.raises(InrilError, match=r"different rules \(held and reached\); they can't be compared"):
        one_measure([reached, held])


@pytest.mark.parametrize("rule", get_args(SuccessRule))
def test_a_run_is_judged_by_one_rule_throughout(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = register_fake_task(monkeypatch)
    config = config_of("ppo", task, env={"success": rule}, evaluation={"every": 1, "num_episodes": 6})
    summary = run(config, tmp_path, LocalBackend, demos=fake_demos(), say=lambda _: None)
    for found in (summary["base"], summary["final"], summary["best"]):
        assert one_measure([found]).rule == rule
        assert found["score"] == found["success_rate"] == sum(found["outcomes"]) / len(found["outcomes"])


def test_a_run_that_counted_by_another_rule_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a release that knew one rule only."""
    config = config_of("ppo", register_fake_task(monkeypatch))
    options: dict[str, Any] = {"demos": fake_demos(), "say": lambda _: None}
    run(config, tmp_path, LocalBackend, **options)
    saved, _ = checkpoint.read_latest(tmp_path / "checkpoints")
    for name in ("success_rate_held", "success_rate_final"):
        saved["session"]["base"].pop(name)
    saved["session"]["base"]["success_rate_any"] = 0.5
    checkpoint.write(tmp_path / "checkpoints", 2, saved, keep=1)
    with pytest.raises(
        InrilError, match="counts success by the rule 'held' so far.*would go on by 'reached': start it"
    ):
        run(config, tmp_path, LocalBackend, resume=True, **options)
