"""The driver's deadlines, with workers that are only pretended: what is late, and what only looks so."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from inril_ray.distributed import driver
from inril_ray.distributed.driver import Flight, RayBackend
from inril_ray.distributed.workers import FragmentMeta
from inril_ray.experiment import load_config


@pytest.mark.parametrize("silent", [(), (1,), (0, 2)])
def test_what_arrived_while_the_learner_worked_is_not_late(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[int, ...]
) -> None:
    """All deadlines are over. Workers that have answered are not replaced, silent ones are, and answer then."""
    backend, replaced = object.__new__(RayBackend), []
    answered = {f"meta{i}" for i in range(3) if i not in silent}

    def wait(refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        ready = [ref for ref in refs if ref in answered][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(ref: str, timeout: float) -> Any:
        meta = {"worker": int(ref[-1]), "policy_version": 1, "env_steps": 1, "size_bytes": 1, "finished_at": 0.0}
        return FragmentMeta(**meta) if ref.startswith("meta") else ref

    def replace(index: int, reason: str) -> None:
        replaced.append(index)
        answered.add(f"meta{index}")

    def launch(index: int) -> None:
        deadline = time.monotonic() + 600.0
        backend._flights[index] = Flight(f"fragment{index}", f"meta{index}", f"state{index}", deadline)

    fake = SimpleNamespace(wait=wait, get=get, cluster_resources=dict)
    monkeypatch.setattr(driver, "ray", fake)
    monkeypatch.setattr(backend, "_replace", replace, raising=False)
    monkeypatch.setattr(backend, "_launch", launch, raising=False)
    backend.config = load_config([{"task": "robomimic/lift", "compute": {"num_workers": 3, "mode": "pipelined"}}])
    backend.workers, backend._states, backend._refs = [0, 1, 2], [None] * 3, SimpleNamespace(version=1)
    over = time.monotonic() - 1.0
    backend._flights = {i: Flight(f"fragment{i}", f"meta{i}", f"state{i}", over) for i in range(3)}
    assert backend._land() == ["fragment0", "fragment1", "fragment2"]
    assert replaced == list(silent)
    assert backend._states == ["state0", "state1", "state2"]


def test_a_long_evaluation_has_the_time_that_it_needs() -> None:
    """A rollout of 300 decisions has 600 s; 20 rounds of 50 decisions have that of 1000, and of a rollout in flight."""
    backend = object.__new__(RayBackend)
    layer = {"task": "robomimic/lift", "env": {"max_episode_steps": 200}}
    sizes = {"rollout": {"num_decisions": 300}, "evaluation": {"num_envs": 10, "num_episodes": 10}}
    backend.config = load_config([layer, sizes])
    assert backend.config.actor.action_horizon == 4
    assert backend._evaluation_timeout_s(200) == pytest.approx(600.0 * (1 + 1000 / 300))
    assert backend._evaluation_timeout_s(10) == 1200.0
