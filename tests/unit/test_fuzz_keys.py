"""One key at a time, over its whole range: a value is refused in a sentence that names the key, or a run can begin."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from inril_ray.algorithms import ALGORITHMS
from inril_ray.config import fingerprint, flat, nested
from inril_ray.demos.store import DemoArrays
from inril_ray.experiment import build_learner, load_config, load_demos, resolved
from inril_ray.guard import CollapseGuard
from inril_ray.presets import check_request
from inril_ray.registry import resolve
from inril_ray.types import InrilError
from tests.fuzzing import FACTOR

NUMBERS = [-(2**70), -1, 0, 1, 2, 3, 5, 4097, 2**31, 2**32, 2**70]
REALS = [-1e300, -0.5, -0.0, 5e-324, 1e-9, 0.5, 1.0, 1.5, 1e300, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "x", "nan", "1e-3", "auto", "../..", "naïve ∂ 漢字", "\0", "\ud800", "a" * 5000]
OTHERS = [None, True, False, [], [1], [0, -1], ["x"], {}, {"x": 1}, {1: 2}, [[]]]
VALUES = [*NUMBERS, *REALS, *TEXTS, *OTHERS]
SHARE = 0.015
"""Of the cases, that `make test` tries."""
BUILT_UP_TO = 64
"""Sizes above it are accepted but not built here."""
SMALL = {
    "actor": {"hidden_dim": 8, "hidden_dims": [8], "widths": [8, 16], "num_groups": 4, "step_embedding_dim": 4},
    "rl": {"critic_hidden_dim": 8, "minibatch_size": 8, "batch_size": 8, "buffer_size": 64},
    "rollout": {"num_envs": 2, "num_decisions": 2},
    "evaluation": {"num_envs": 2},
    "interleave": {"il_steps": 1},
    "compute": {"device": "cpu"},
    "guard": {"kl_limit": None},
}


@functools.cache
def start(algorithm: str, policy: str) -> dict[str, Any]:
    """Return a small, complete configuration of an algorithm and a policy."""
    full = resolved(load_config([{"task": "robomimic/lift", "algorithm": algorithm, "policy": policy}]))
    for section, small in SMALL.items():
        there = full[section]
        for place in (there, there.get("base")):
            if isinstance(place, dict):
                place |= {key: value for key, value in small.items() if key in place}
    return resolved(load_config([full]))


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Return an algorithm with each policy that it trains, all of both."""
    return tuple((a, p) for a in ALGORITHMS for p in resolve(ALGORITHMS, a, "algorithm").policies)


@functools.cache
def demos() -> DemoArrays:
    return load_demos(load_config([{"task": "robomimic/lift"}]))


def cases() -> Iterator[tuple[str, str, str, Any]]:
    """Yield (algorithm, policy, key, value): shared keys once, those of an algorithm and of a policy once for each."""
    seen: set[tuple[str, str]] = set()
    for algorithm, policy in pairs():
        for key in flat(start(algorithm, policy)):
            section = key.split(".")[0]
            owner = {"rl": algorithm, "actor": policy}.get(section, "")
            if (owner, key) not in seen:
                seen.add((owner, key))
                yield from ((algorithm, policy, key, value) for value in VALUES)


def names(error: InrilError, key: str) -> bool:
    """Tell whether a message names a key: in full, by its last part as a word, or by what it is called in words."""
    last, words = key.split(".")[-1], {"demos": "Demonstration"}
    return (
        key in str(error)
        or re.search(rf"(?<!\w){last}(?!\w)", f"{error}") is not None
        or words.get(key, key) in f"{error}"
    )


def tried(algorithm: str, policy: str, key: str, value: Any, *, build: bool = True) -> str:
    """Return ``refused``, ``accepted`` or ``built``; anything but a sentence fails the test."""
    given = nested({key: value})
    try:
        check_request([start(algorithm, policy), given])
        config = load_config([start(algorithm, policy), given])
    except InrilError as error:
        assert names(error, key) and "Traceback" not in str(error), error
        return "refused"
    again = load_config([json.loads(json.dumps(resolved(config)))])
    assert fingerprint(resolved(again)) == fingerprint(resolved(config))
    sizes = [v for v in flat({"": value}).values() for v in (v if isinstance(v, list) else [v])]
    large = any(isinstance(v, int | float) and abs(v) > BUILT_UP_TO for v in sizes)
    if not build or large or key in ("task", "demos"):
        return "accepted"
    try:
        learner = build_learner(config, demos())
        CollapseGuard(config.guard, config.num_iterations, 3)
    except InrilError as error:
        assert names(error, key), error
        return "refused"
    learner.state_dict()
    return "built"


@pytest.mark.fuzz
def test_each_key_is_refused_by_name_or_a_learner_can_be_built() -> None:
    """Some values of every key, and some of what is accepted is built; all of them with ``make fuzz``."""
    chosen, found = random.Random(0), dict[str, int]()
    for number, case in enumerate(cases()):
        if FACTOR == 1 and chosen.random() > SHARE:
            continue
        try:
            outcome = tried(*case, build=FACTOR > 1 or number % 3 == 0)
        except Exception as error:
            raise AssertionError(f"{case[:3]} = {case[3]!r}: {error!r}") from error
        found[outcome] = found.get(outcome, 0) + 1
    assert found.keys() >= {"refused", "built"}, found
