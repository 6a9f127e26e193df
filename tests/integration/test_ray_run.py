"""Runs on a local Ray cluster, one for the module: equality with the local mode, faults, versions."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from inril_ray import envs, progress
from inril_ray.backend import LocalBackend
from inril_ray.distributed import driver
from inril_ray.distributed.board import Board
from inril_ray.distributed.cluster import _silence
from inril_ray.distributed.demo_service import DemoService, fetch
from inril_ray.distributed.driver import RayBackend, connect
from inril_ray.distributed.weights import WeightRefs, flatten, unflatten
from inril_ray.distributed.workers import LearnerShell, RolloutWorker, RolloutWorkerShell
from inril_ray.envs.base import COUNTERS
from inril_ray.experiment import build_policy, load_config, load_demos, policy_weights, resolved, task_spec
from inril_ray.progress import steps, told_to
from inril_ray.run import run
from inril_ray.run_dir import read_config
from inril_ray.types import EpisodeStats, InrilError
from tests.fakes import FAKE_TASK_NAME, register_fake_task
from tests.integration.comparison import differences, measured, state
from tests.integration.conftest import TINY
from tests.integration.test_matrix import config_of
from tests.update_golden import assert_golden_run, metrics_of_run

pytestmark = [pytest.mark.ray, pytest.mark.sim]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    own = signal.signal(signal.SIGTERM, before := lambda *_: None)
    connect(load_config([TINY, {"compute": {"num_workers": 2}}]))
    assert signal.getsignal(signal.SIGTERM) is before, "Ray leaves a run its handler"
    signal.signal(signal.SIGTERM, own)
    yield
    ray.shutdown()


def config_with(**compute: Any) -> Any:
    return load_config([TINY, {"compute": compute}])


def test_one_synchronous_worker_equals_local_bit_for_bit(tmp_path: Path) -> None:
    run(config_with(), tmp_path / "local", LocalBackend)
    run(config_with(), tmp_path / "ray", RayBackend)
    assert measured(tmp_path / "local") == measured(tmp_path / "ray")
    assert differences(state(tmp_path / "local", 4), state(tmp_path / "ray", 4)) == []


class _Reaching:
    """A shell whose process knows the fake task."""

    def start(self, *args: Any) -> None:
        envs.TASKS[FAKE_TASK_NAME] = "tests.fakes:FAKE_TASK"
        super().start(*args)  # type: ignore[misc]


class ReachingWorker(_Reaching, RolloutWorkerShell): ...


class ReachingLearner(_Reaching, LearnerShell): ...


def test_a_run_on_ray_has_the_golden_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that :mod:`tests.unit.test_golden` holds the same run in one process to."""
    register_fake_task(monkeypatch)
    monkeypatch.setattr(driver, "RolloutWorker", ray.remote(ReachingWorker))
    monkeypatch.setattr(driver, "LearnerActor", ray.remote(ReachingLearner))
    assert_golden_run(metrics_of_run(RayBackend))


def interrupted(version: int, base: Any = RayBackend) -> Any:
    class Interrupted(base):
        done = 0

        def iterate(self) -> dict[str, float]:
            if self.done == version:
                raise KeyboardInterrupt
            self.done += 1
            return super().iterate()

    return Interrupted


def exported(run_name: str) -> dict[str, tuple[dict[str, str], float]]:
    """Return our gauges of one run as this node's Prometheus endpoint gives them.

    Ray goes on exporting what the module's earlier runs set last, in an order of its own.
    """
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text, found = "", {}
    with contextlib.suppress(OSError):  # it may not answer yet
        text = urllib.request.urlopen(address, timeout=10).read().decode()
    for line in text.splitlines():
        if match := re.fullmatch(r"ray_inril_(\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels["run"] == run_name:
                found[match[1]] = labels, float(match[3])
    return found


def agree(got: dict[str, tuple[dict[str, str], float]], expected: dict[str, float]) -> bool:
    shown = {"rho", "conflict_rate", "interleave_every", "learner_idle_share", "queue_age_s", "score", "env_steps"}
    return set(got) >= shown and all(value == pytest.approx(expected[name]) for name, (_, value) in got.items())


def test_ray_exports_live_metrics(tmp_path: Path) -> None:
    """The figures of ``cluster/grafana.json`` come out of Ray, as the run's own records have them."""
    config = load_config([TINY, {"compute": {"num_workers": 2, "mode": "pipelined"}}])
    backend = RayBackend(config, load_demos(config))
    try:
        backend.pretrain()
        tracker = backend.trackers("lift-1")[0]
        for _ in range(2):
            metrics = backend.iterate()
            tracker.log({**metrics, "score": 0.5}, int(metrics["env_steps"]))
        assert 0.0 < metrics["learner_idle_share"] < 1.0
        # One process learns while the others collect: in the second iteration their fragments were waiting.
        assert 0.0 <= metrics["queue_age_s"] < 30.0
        expected = {**metrics, "score": 0.5}
        deadline = time.monotonic() + 60.0
        while not agree(got := exported("lift-1"), expected):
            assert time.monotonic() < deadline, got
            time.sleep(1.0)
    finally:
        backend.close()
    assert {labels["task"] for labels, _ in got.values()} == {"robomimic/lift"}


def test_a_collapse_is_rolled_back_while_the_workers_collect(tmp_path: Path) -> None:
    """Pipelined: fragments of the collapsed policy are in flight when the state goes back; none of them is learned."""
    evaluation = {"every": 2, "num_episodes": 60, "final_episodes": 60}
    guarded = {"num_iterations": 5, "evaluation": evaluation, "guard": {"action": "rollback"}}
    config = load_config([TINY, {"compute": {"num_workers": 2, "mode": "pipelined"}}, guarded])

    class Scripted(RayBackend):
        scale = 1.0

        def scale_steps(self, scale: float) -> None:
            self.scale = scale
            super().scale_steps(scale)

        def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
            rate = 0.1 if self._refs.version >= 4 and self.scale == 1.0 else 0.8
            success = np.arange(num_episodes) < rate * num_episodes
            columns = {
                "returns": success.astype(np.float64),
                **dict.fromkeys(("success", "reached", "held", "final"), success),
            }
            envs, lengths = np.arange(num_episodes), np.full(num_episodes, 20)
            return EpisodeStats(envs=envs, lengths=lengths, **columns)

    summary = run(config, tmp_path, Scripted)
    assert summary["guard"] == {"collapsed": False, "rollbacks": 1, "discarded_env_steps": 4 * 80}
    records = measured(tmp_path)
    assert [r["iteration"] for r in records] == [0, 1, 2, 3, 4, 5, 5]
    assert [r["policy_lag"] for r in records[1:6]] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert records[5]["worker_restarts"] == 0.0
    assert state(tmp_path, 5)["learner"]["step_scale"] == 0.5


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = config_with(num_workers=2)
    run(config, tmp_path / "whole", RayBackend)

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", interrupted(3))
    run(read_config(tmp_path / "parts"), tmp_path / "parts", RayBackend, resume=True)
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert differences(state(tmp_path / "parts", 4), state(tmp_path / "whole", 4)) == []


def test_it_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    """From one process to two workers and back, in the middle of episodes; sums of other batches round differently."""
    lasting = {"rollout": {"reset_each": False, "num_decisions": 3}, "checkpoint": {"every": 1}}
    one, two = (load_config([TINY, lasting, {"compute": {"num_workers": n}}]) for n in (1, 2))
    run(one, tmp_path / "whole", LocalBackend)

    with pytest.raises(KeyboardInterrupt):
        run(one, tmp_path / "parts", interrupted(1, LocalBackend))
    with pytest.raises(KeyboardInterrupt):
        run(two, tmp_path / "parts", interrupted(2), resume=True)
    assert len(state(tmp_path / "parts", 3)["workers"]) == 2
    with pytest.raises(InrilError, match=r"num_workers = 5: each needs an environment, and rollout.num_envs is 4\."):
        run(load_config([resolved(two), {"compute": {"num_workers": 5}}]), tmp_path / "parts", RayBackend, resume=True)
    assert read_config(tmp_path / "parts") == two
    run(one, tmp_path / "parts", LocalBackend, resume=True)

    for got, wanted in zip(measured(tmp_path / "parts"), measured(tmp_path / "whole"), strict=True):
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    got, wanted = (state(tmp_path / name, 4)["workers"][0] for name in ("parts", "whole"))
    assert differences(got["noise"], wanted["noise"]) == []
    assert (wanted["env"]["env"]["elapsed"] > 0).all()
    for name in COUNTERS:
        np.testing.assert_array_equal(got["env"]["env"][name], wanted["env"]["env"][name])
    np.testing.assert_allclose(got["env"]["env"]["physics"], wanted["env"]["env"]["physics"], rtol=1e-3, atol=1e-4)


def test_a_pipelined_run_goes_on_with_new_fragments(tmp_path: Path) -> None:
    """Those in flight at the checkpoint are collected again, with its weights; nothing else is lost or done twice."""
    layers = [TINY, {"compute": {"num_workers": 2, "mode": "pipelined"}, "checkpoint": {"every": 1}}]

    with pytest.raises(KeyboardInterrupt):
        run(load_config(layers), tmp_path, interrupted(2))
    summary = run(read_config(tmp_path), tmp_path, RayBackend, resume=True)
    records = [r for r in measured(tmp_path) if "policy_lag" in r]
    assert [r["iteration"] for r in records] == [1, 2, 3, 4]
    assert [r["policy_lag"] for r in records] == [0.0, 1.0, 0.0, 1.0]
    assert [r["env_steps"] for r in records] == [80 * i for i in range(1, 5)]
    assert summary["iterations"] == 4


@pytest.mark.parametrize(
    "algorithm", ["idql", *(pytest.param(name, marks=pytest.mark.drill) for name in ("residual_ppo", "rlpd"))]
)
def test_replays_critics_and_plans_equal_local_and_survive_a_stop(tmp_path: Path, algorithm: str) -> None:
    """Critics that choose, base actions that are planned, demonstrations in the replay."""
    quick = {"num_iterations": 3, "checkpoint": {"every": 1}, "tracking": {"trackers": ["jsonl"]}, "video": False}
    evaluation = {"evaluation": {"every": 2, "num_episodes": 2, "final_episodes": 2}}
    config = load_config([resolved(config_of("robomimic/lift", algorithm)), quick, evaluation])
    run(config, tmp_path / "local", LocalBackend)

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "ray", interrupted(2))
    run(read_config(tmp_path / "ray"), tmp_path / "ray", RayBackend, resume=True)
    assert measured(tmp_path / "local") == measured(tmp_path / "ray")
    assert differences(state(tmp_path / "local", 3), state(tmp_path / "ray", 3)) == []


def backend_with_policy(**compute: Any) -> RayBackend:
    config = config_with(**compute)
    backend = RayBackend(config, load_demos(config))
    backend.pretrain()
    return backend


def test_killed_workers_are_replaced_and_repeat_their_fragments_exactly() -> None:
    """Killed between iterations and, later, in the middle of a fragment."""
    calm = backend_with_policy(num_workers=2)
    try:
        expected = [calm.iterate() for _ in range(3)]
    finally:
        calm.close()
    struck = backend_with_policy(num_workers=2)
    try:
        got = [struck.iterate()]
        os.kill(ray.get(struck.workers[1].ready.remote()), signal.SIGKILL)
        got.append(struck.iterate())
        pid = ray.get(struck.workers[0].ready.remote())
        struck._launch(0)
        os.kill(pid, signal.SIGKILL)
        got.append(struck.iterate())
    finally:
        struck.close()
    assert [row["worker_restarts"] for row in got] == [0.0, 1.0, 2.0]
    for row, wanted in zip(got, expected, strict=True):
        for name in ("grad_norm_rl", "policy_loss", "value_loss", "env_steps"):
            assert row[name] == wanted[name]


def test_silent_worker_is_replaced_and_older_or_stale_weights_and_forged_states_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = backend_with_policy(rollout_timeout_s=10.0, mode="pipelined", max_policy_lag=1)
    try:
        os.kill(ray.get(backend.workers[0].ready.remote()), signal.SIGSTOP)
        start = time.monotonic()
        assert backend.iterate()["worker_restarts"] >= 1.0  # its successor may be late on a busy machine
        assert time.monotonic() - start >= 10.0
        assert "silent for longer than compute.rollout_timeout_s = 10" in capsys.readouterr().out

        old = backend._refs
        backend.iterate()
        backend._land()
        backend.evaluate(2)
        call = backend.workers[0].collect.options(num_returns=3).remote(old)
        with pytest.raises(ray.exceptions.RayTaskError, match="was given the older 1"):
            ray.get(call[1])

        backend._launch(0)
        ray.get(backend._flights[0].meta)
        now = backend._refs
        backend._refs = WeightRefs(
            version=now.version + 2, generation=now.generation, everything=now.everything, trainable=now.trainable
        )
        backend._land()
        assert "2 updates old" in capsys.readouterr().out

        # Of a state that can't be put back one line is left, which the session makes a sentence of.
        tree, before = backend.state_dict(), backend.restarts
        wide = [{**tree["workers"][0], "obs": np.zeros((4, 99), np.float32)}]
        for forged in ({"learner": {"modules": 7}}, {"workers": wide}):
            with pytest.raises(ValueError, match=r"^The (learner|rollout worker 0) failed: [^\n]+$"):
                backend.load_state_dict({**tree, **forged})
        assert backend.restarts == before + 1, "a successor was tried, not ten of them"
    finally:
        backend.close()


def test_a_worker_that_keeps_failing_ends_the_run_with_its_name() -> None:
    backend = backend_with_policy(max_worker_restarts=0)
    try:
        os.kill(ray.get(backend.workers[0].ready.remote()), signal.SIGKILL)
        with pytest.raises(InrilError, match="Rollout worker 0 failed 1 times"):
            backend.iterate()
    finally:
        backend.close()


def test_a_dead_learner_is_named() -> None:
    backend = backend_with_policy()
    try:
        os.kill(ray.get(backend.learner.ready.remote()), signal.SIGKILL)
        with pytest.raises(InrilError, match="learner died"):
            backend.iterate()
    finally:
        backend.close()


def test_pipelined_mode_lags_by_one_and_evaluation_does_not_depend_on_the_number_of_workers() -> None:
    outcomes, lags = [], []
    for workers in (1, 2):
        backend = backend_with_policy(num_workers=workers, mode="pipelined")
        try:
            outcomes.append(backend.evaluate(6))
            lags = [backend.iterate()["policy_lag"] for _ in range(4)]
        finally:
            backend.close()
    assert lags == [0.0, 1.0, 1.0, 1.0]
    np.testing.assert_array_equal(outcomes[0].envs, outcomes[1].envs)
    np.testing.assert_allclose(outcomes[0].returns, outcomes[1].returns)


def test_workers_share_one_copy_of_the_demonstrations() -> None:
    demos = load_demos(config_with())
    service = DemoService(demos)
    first, second = fetch(service.handle), fetch(service.handle)
    assert not first.obs.flags.writeable
    assert np.shares_memory(first.obs, second.obs)
    assert first.info.content_hash == demos.info.content_hash


def test_weights_survive_flattening() -> None:
    config = config_with()
    policy = build_policy(config, task_spec(config))
    weights = policy_weights(policy, everything=True)
    back = unflatten(flatten(weights), weights)
    assert all((back[k] == v).all() for k, v in weights.items())
    with pytest.raises(InrilError, match="numbers, this policy has"):
        unflatten(np.zeros(3, np.float32), weights)


def test_a_cluster_answers_as_the_driver_knocks() -> None:
    assert _silence(ray.get_runtime_context().gcs_address) is None


def test_the_learner_tells_the_driver_how_far_a_long_phase_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote
    def work(board: Board) -> str:
        with told_to(board):
            for _ in steps(range(30), "cloning, epochs", 30):
                time.sleep(0.1)
        return "done"

    told: list[Any] = []
    backend = object.__new__(RayBackend)
    backend._board = Board("a test's")
    with told_to(lambda *what: told.append(what)):
        assert backend._learning(work.remote(backend._board), 60.0) == "done"
    assert ("cloning, epochs", 1, 1) == told[-1], "it ends"
    assert all(phase == "cloning, epochs" and 0 <= done <= 30 for phase, done, _ in told)
    assert len({done for _, done, _ in told[:-1]}) > 1
    backend._board.clear()
    assert backend._board.read() is None


def test_a_learner_tells_of_its_cloning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_listeners", [])
    told: list[Any] = []
    config = config_with()
    shell = LearnerShell()
    shell.start(config, DemoService(load_demos(config)).handle, lambda *what: told.append(what))  # type: ignore[arg-type]
    shell.pretrain()
    assert told[0] == ("cloning, epochs", 0, 5) and told[-1] == ("cloning, epochs", 5, 5)


def test_too_small_a_cluster_is_refused() -> None:
    with pytest.raises(InrilError, match="need 101 CPUs"):
        many = {name: {"num_envs": 100} for name in ("rollout", "evaluation")}
        connect(load_config([resolved(config_with(num_workers=100)), many]))


def test_why_a_process_could_not_be_built_is_told() -> None:
    config = load_config([{"task": "mimicgen/coffee"}])
    backend = object.__new__(RayBackend)
    worker = RolloutWorker.remote()
    try:
        with pytest.raises(InrilError, match="mimicgen") as caught:
            backend._get(worker.start.remote(config, 0, 1, None), 60.0, "rollout worker 0")
        assert "\n" not in str(caught.value), "what to install, not a traceback"
    finally:
        ray.kill(worker)


def test_more_workers_than_environments_to_evaluate_in_are_refused() -> None:
    with pytest.raises(
        InrilError, match=r"num_workers = 100: each needs an environment, and evaluation.num_envs is 4\."
    ):
        connect(load_config([resolved(config_with(num_workers=100)), {"rollout": {"num_envs": 100}}]))
