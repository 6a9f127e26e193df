"""Exact resume: whatever the algorithm and the schedule, and wherever a run is struck, it ends as if it had not been.

Struck means that nothing is left but what is on the disk: between any two things that an iteration does, and while its
checkpoint is written.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inril_ray import checkpoint
from inril_ray.algorithms import ALGORITHMS
from inril_ray.backend import LocalBackend
from inril_ray.demos.store import write_arrow
from inril_ray.experiment import ExperimentConfig, load_config
from inril_ray.run import run
from inril_ray.schedules import SCHEDULES
from inril_ray.session import Session
from inril_ray.types import InrilError, Rollout
from tests.fakes import ACTOR_OF, POLICY_OF, TINY_POLICY, TINY_RL, fake_demos, register_fake_task
from tests.integration.comparison import differences, measured, state

LAST = 6
PAIRS = [
    (algorithm, schedule)
    for algorithm in ALGORITHMS
    for schedule in SCHEDULES
    if (algorithm, schedule) != ("residual_ppo", "bc_reg")  # refused: it would add losses of different parameters
]


class PowerCut(BaseException):
    """Nothing catches it."""


MOMENTS = ("collected", "learned", "evaluated", "logged", "saving", "saved")
"""What the struck iteration had just done, or was at. Every second one is evaluated and saved, the last as well."""
STRIKES = [(at, m) for at in range(LAST) for m in MOMENTS if at % 2 or m in ("collected", "learned", "logged")]


def config_of(algorithm: str, schedule: str, **layers: Any) -> ExperimentConfig:
    policy = POLICY_OF[algorithm]
    return load_config(
        [
            {
                "task": "fake/reach",
                "algorithm": algorithm,
                "policy": policy,
                "schedule": schedule,
                "separation": "network" if policy.startswith("residual") else "upgrad",
                "num_iterations": LAST,
                "actor": {**TINY_POLICY[policy], **ACTOR_OF.get(algorithm, {})},
                "rl": TINY_RL[algorithm],
                "pretrain": {"num_epochs": 2, "batch_size": 16},
                "interleave": {"every": 2, "il_steps": 2, "il_batch_size": 16, "relation_pairs": 2},
                "rollout": {"num_envs": 3, "num_decisions": 4, "reset_each": False},
                "evaluation": {"every": 2, "num_episodes": 2, "final_episodes": 2, "num_envs": 2},
                "checkpoint": {"every": 2},
                "tracking": {"trackers": ["jsonl"]},
                "compute": {"device": "cpu"},
                "video": False,
            },
            layers,
        ]
    )


def strike(monkeypatch: pytest.MonkeyPatch, at: int, moment: str) -> type[LocalBackend]:
    """Let the power go in an iteration; return the backend to run with."""

    class Struck(LocalBackend):
        def iterate(self) -> dict[str, float]:
            now = self.learner.version == at
            if now and moment == "collected":
                self.worker.collector.collect(self.learner.version)
                raise PowerCut
            metrics = super().iterate()
            if now and moment == "learned":
                raise PowerCut
            return metrics

    def after(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def struck(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if self.iteration == at + 1:
                raise PowerCut
            return result

        monkeypatch.setattr(owner, name, struck)

    if moment in ("evaluated", "logged", "saved"):
        after(Session, {"evaluated": "_outcome", "logged": "_log", "saved": "save"}[moment])
    if moment == "saving":

        def replace(source: Path, target: Path) -> None:
            if Path(target).name == f"iteration_{at + 1:06d}":
                raise PowerCut
            os.rename(source, target)

        monkeypatch.setattr(checkpoint.os, "replace", replace)
    return Struck


def next_actions(config: ExperimentConfig, saved: dict[str, Any]) -> np.ndarray:
    """Return what a run would do next."""
    backend = LocalBackend(config, fake_demos())
    backend.load_state_dict(saved)
    rollout: Rollout = backend.worker.collector.collect(backend.learner.version)
    return rollout.chains


def check(config: ExperimentConfig, path: Path, moments: list[tuple[int, str]]) -> None:
    """Hold runs that were struck once each against one that was not."""
    run(config, path / "whole", LocalBackend, demos=fake_demos(), say=lambda _: None)
    whole = state(path / "whole", LAST)
    acts = next_actions(config, whole)
    for at, moment in moments:
        out = path / f"{at}-{moment}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
            run(config, out, strike(patch, at, moment), demos=fake_demos(), say=lambda _: None)
        run(config, out, LocalBackend, demos=fake_demos(), resume=True, say=lambda _: None)
        struck = state(out, LAST)
        assert differences(struck, whole) == []
        assert measured(out) == measured(path / "whole")
        assert next_actions(config, struck).tobytes() == acts.tobytes()
        assert not [p for p in out.rglob("*") if p.name.endswith(".partial")]


@pytest.mark.parametrize(("algorithm", "schedule"), PAIRS)
def test_it_goes_on_exactly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algorithm: str, schedule: str) -> None:
    register_fake_task(monkeypatch)
    rng = random.Random(f"{algorithm} {schedule}")
    check(config_of(algorithm, schedule), tmp_path, [rng.choice(STRIKES)])


@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("algorithm", "schedule"), PAIRS)
def test_it_goes_on_exactly_from_every_iteration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algorithm: str, schedule: str
) -> None:
    register_fake_task(monkeypatch)
    check(config_of(algorithm, schedule), tmp_path, STRIKES)


def test_demonstrations_that_are_deleted_in_use_are_still_there_and_missed_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register_fake_task(monkeypatch)
    file = tmp_path / "demos.arrow"
    arrays = fake_demos()
    info = dataclasses.replace(arrays.info, content_hash=arrays.hash_content())
    write_arrow(dataclasses.replace(arrays, info=info), file)
    config = config_of("dppo", "fixed", demos=str(file))
    run(config, tmp_path / "whole", LocalBackend, say=lambda _: None)

    class Deleting(LocalBackend):
        def iterate(self) -> dict[str, float]:
            if self.learner.version == 1:
                file.unlink()
            metrics = super().iterate()
            if metrics["iteration"] == LAST - 1:
                raise PowerCut
            return metrics

    content = file.read_bytes()
    with pytest.raises(PowerCut):
        run(config, tmp_path / "struck", Deleting, say=lambda _: None)
    before = (tmp_path / "struck" / "config.json").read_bytes()
    with pytest.raises(InrilError, match=r"demos\.arrow: does not exist"):
        run(config, tmp_path / "struck", LocalBackend, resume=True, say=lambda _: None)
    assert (tmp_path / "struck" / "config.json").read_bytes() == before
    file.write_bytes(content)
    run(config, tmp_path / "struck", LocalBackend, resume=True, say=lambda _: None)
    assert differences(state(tmp_path / "struck", LAST), state(tmp_path / "whole", LAST)) == []
    assert measured(tmp_path / "struck") == measured(tmp_path / "whole")


def test_a_clock_that_jumps_changes_times_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As it does where machines are set by the network's time, back or forth."""
    register_fake_task(monkeypatch)
    config = config_of("dppo", "fixed")
    run(config, tmp_path / "whole", LocalBackend, demos=fake_demos(), say=lambda _: None)
    rng, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: max(0.0, now() + rng.choice([-1e9, -3600.0, 86400.0, 1e9])))
    run(config, tmp_path / "jumps", LocalBackend, demos=fake_demos(), say=lambda _: None)
    assert differences(state(tmp_path / "jumps", LAST), state(tmp_path / "whole", LAST)) == []
    assert measured(tmp_path / "jumps") == measured(tmp_path / "whole")


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
def test_every_seed_that_is_accepted_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    register_fake_task(monkeypatch)
    config = config_of("dppo", "fixed", seed=seed, num_iterations=2)
    summary = run(config, tmp_path, LocalBackend, demos=fake_demos(), say=lambda _: None)
    assert summary["seed"] == seed
