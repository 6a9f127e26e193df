"""Presets against what their sources use: every difference stands in docs/methods.md, and nothing else does."""

from __future__ import annotations

import itertools
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from inril_ray.config import flat, to_dict
from inril_ray.envs import TASKS
from inril_ray.experiment import load_config
from tests.source_values import SOURCES

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the rows below a table's heading."""
    below = PAGE[PAGE.index(heading) :].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), below)
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


DEVIATIONS = table("| preset | key | source | here | why |")
Difference = tuple[str, str, Any, Any]


@cache
def differences() -> list[Difference]:
    """Return preset, key, the source's value and ours, where they differ."""
    found: list[Difference] = []
    for name, values in SOURCES.items():
        algorithm, task, *policy = name.split()
        layer = {"task": task, "algorithm": algorithm, **({"policy": policy[0]} if policy else {})}
        ours = flat(to_dict(load_config([layer])))
        assert values.keys() <= ours.keys(), f"{name}: {values.keys() - ours.keys()} are no keys"
        found += [(name, key, value, ours[key]) for key, value in values.items() if ours[key] != value]
    return found


def covers(row: list[str], difference: Difference) -> bool:
    pattern, key, source, here, _ = row
    name, *rest = difference
    algorithm_and_task = " ".join(name.split()[:2])
    return [key, yaml.safe_load(source), yaml.safe_load(here)] == rest and fnmatchcase(algorithm_and_task, pattern)


@pytest.mark.parametrize("difference", differences(), ids=lambda d: f"{d[0]} {d[1]}")
def test_every_difference_is_on_the_page(difference: Difference) -> None:
    assert any(covers(row, difference) for row in DEVIATIONS)


@pytest.mark.parametrize("row", DEVIATIONS, ids=lambda row: f"{row[0]} {row[1]}")
def test_every_difference_on_the_page_is_one_and_has_a_reason(row: list[str]) -> None:
    assert any(covers(row, difference) for difference in differences())
    assert len(row[4]) > len("likewise") or row[4] == "likewise"


def test_all_algorithms_and_the_tasks_of_the_sources_are_compared() -> None:
    compared = {tuple(name.split()[:2]) for name in SOURCES}
    assert {algorithm for algorithm, _ in compared} == {
        "awr", "cal_ql", "dipo", "dppo", "dql", "ibrl", "idql", "ppo", "qsm", "residual_ppo", "rlpd", "rwr", "sac",
    }  # fmt: skip
    assert {task for a, task in compared if a == "dppo"} >= {t for t in TASKS if t.startswith(("robomimic", "gym"))}


@pytest.mark.parametrize("row", table("| task | iterations | decisions |"), ids=lambda row: row[0])
def test_the_page_counts_steps_as_the_presets_make_them(row: list[str]) -> None:
    task, *numbers = row
    config = load_config([{"task": task}])
    decisions = config.num_iterations * config.rollout.num_envs * config.rollout.num_decisions
    chunk = config.actor.action_horizon
    expected = [config.num_iterations, decisions, decisions * chunk, config.num_iterations // chunk]
    assert [int(n) for n in numbers] == expected


def test_the_figures_of_the_paper_count_decisions() -> None:
    """1000 iterations of 40 environments and 500 decisions are 2e7 decisions, of which 900 train."""
    config = load_config([{"task": "gym/hopper"}])
    assert config.rollout.num_envs * config.rollout.num_decisions * config.num_iterations == 0.9 * 2e7


@pytest.mark.parametrize("task", TASKS)
def test_each_policy_samples_by_the_rule_of_its_source(task: str) -> None:
    for policy, rule in (("residual_mlp", "predicted"), ("residual_unet", "predicted")):
        layer = {"task": task, "algorithm": "residual_ppo", "policy": policy}
        base = load_config([layer]).actor.base
        assert (base.ddim_noise, base.ddim_steps) == (rule, 4)
        changed = load_config([{**layer, "actor": {"base": {"min_sampling_std": 0.3}}}]).actor.base
        assert to_dict(changed) == {**to_dict(base), "min_sampling_std": 0.3}, "the other keys keep their values"
    for policy in ("diffusion_mlp", "diffusion_unet"):
        assert load_config([{"task": task, "policy": policy}]).actor.ddim_noise == "recomputed"


def test_group_norms_have_the_epsilon_of_their_source() -> None:
    for task in TASKS:
        eps = load_config([{"task": task, "policy": "diffusion_unet"}]).actor.group_norm_eps
        assert eps == (1e-4 if re.match("furniture/", task) else 1e-5)
