"""The driver's deadlines, with workers that are only pretended: what is late, and what only looks so."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from inril_ray.distributed import driver
from inril_ray.distributed.driver import Flight, RayBackend
from inril_ray.distributed.workers import FragmentMeta
from inril_ray.experiment import load_config
from inril_ray.types import InrilError


@pytest.mark.parametrize(
    ("silent", "error"),
    [
        ((), None),
        ((1,), None),
        ((0, 2), None),
        ((1,), exceptions.OutOfMemoryError("killed by the memory monitor")),
        ((0,), exceptions.ActorDiedError()),
        ((2,), exceptions.OutOfDiskError("no room to spill")),
    ],
)
def test_only_workers_that_are_silent_or_failed_are_replaced(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[int, ...], error: Exception | None
) -> None:
    """All deadlines are over: what arrived while the learner worked is not late. With an error, that is the answer."""
    backend, replaced = object.__new__(RayBackend), []
    answered = {f"meta{i}" for i in range(3) if i not in silent or error}

    def wait(refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        ready = [ref for ref in refs if ref in answered][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(ref: str, timeout: float) -> Any:
        if error and int(ref[-1]) in silent and int(ref[-1]) not in replaced:
            raise error
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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.NodeDiedError("It left."), "It left. Start the run again; it goes on from its last"),
        (
            exceptions.OutOfMemoryError("1.50GB used / 23.54GB limit"),
            "23.54GB limit. Start the run again, with fewer compute.num_workers if memory is short; it goes on from",
        ),
    ],
)
def test_the_death_of_the_learner_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: exceptions.RayError, expected: str
) -> None:
    def get(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(driver.ray, "get", get)
    with pytest.raises(InrilError, match=f"^The learner died: {type(error).__name__}: ") as caught:
        object.__new__(RayBackend)._get("ref", 1.0, "learner")
    assert expected in str(caught.value)


def test_a_state_that_a_worker_and_its_successor_can_not_take_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(*_: Any, **__: Any) -> Any:
        raise exceptions.RayTaskError("load_state_dict", "traceback", ValueError("of another MuJoCo"))

    backend = object.__new__(RayBackend)
    backend.config = load_config([{"task": "robomimic/lift"}])
    worker = SimpleNamespace(load_state_dict=SimpleNamespace(remote=lambda state: state))
    backend.workers, backend._states, backend.restarts, backend._restarts_of = [worker], [{}], 0, [0]
    monkeypatch.setattr(driver.ray, "get", get)
    monkeypatch.setattr(driver.ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(driver.ray, "kill", lambda *_, **__: None)
    monkeypatch.setattr(backend, "_spawn", lambda index: "start", raising=False)
    with pytest.raises(driver.FailedError, match="The rollout worker 0 failed: ValueError: of another MuJoCo"):
        backend._rewind(0)
    assert backend.restarts == 1


def test_rollouts_that_never_arrive_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, rounds = object.__new__(RayBackend), []

    def lost(*_: Any) -> Any:
        rounds.append(1)
        raise driver.LostError("blocked ports")

    layer = {"task": "robomimic/lift", "compute": {"num_workers": 2, "max_worker_restarts": 3}}
    backend.config, backend.workers = load_config([layer]), [0, 1]
    backend._states, backend._flights = [None, None], {0: None, 1: None}  # type: ignore[dict-item]
    backend.learner = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
    for name, value in {"_land": list, "_get": lost, "_rewind": lambda _: None}.items():
        monkeypatch.setattr(backend, name, value, raising=False)
    with pytest.raises(InrilError, match="lost 4 times on their way to the learner"):
        backend._collect()
    assert len(rounds) == 4


def test_a_long_evaluation_has_the_time_that_it_needs() -> None:
    """A rollout of 300 decisions has 600 s; 20 rounds of 50 decisions have that of 1000, and of a rollout in flight."""
    backend = object.__new__(RayBackend)
    layer = {"task": "robomimic/lift", "env": {"max_episode_steps": 200}}
    sizes = {"rollout": {"num_decisions": 300}, "evaluation": {"num_envs": 10, "num_episodes": 10}}
    backend.config = load_config([layer, sizes])
    assert backend.config.actor.action_horizon == 4
    assert backend._evaluation_timeout_s(200) == pytest.approx(600.0 * (1 + 1000 / 300))
    assert backend._evaluation_timeout_s(10) == 1200.0
