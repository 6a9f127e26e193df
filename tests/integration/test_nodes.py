"""A cluster of several nodes on this machine: placement, and nodes that leave in the middle of a run.

No object is small enough to travel with a message here (``max_direct_call_object_size``), so a node takes everything
with it that its processes returned. The GPU is a number that Ray is told: the learner finds none and uses the CPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication import authentication_token_setup as authentication
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inril_ray.backend import LocalBackend
from inril_ray.distributed.demo_service import DemoService, fetch
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import load_config, load_demos, resolved
from inril_ray.run import run
from inril_ray.run_dir import read_config
from inril_ray.types import InrilError
from tests.integration.comparison import differences, measured, state
from tests.integration.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.slow]
CONFIG = load_config([TINY, {"compute": {"num_workers": 2, "device": "auto"}, "checkpoint": {"every": 1}}])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as home:
        for name, value in {
            "RAY_TMPDIR": home,  # short, because sockets lie there; own, so that nobody's ray.init() ends up here
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
            "RAY_worker_niceness": "0",
        }.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        authentication.enable_token_auth_by_default()  # what ray.init() does for a local cluster, and Cluster does not
        authentication.ensure_token_if_auth_enabled()
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": {"max_direct_call_object_size": 0}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1, num_gpus=1)
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        ray.shutdown()  # of a module before
        ray.init(address=cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def node_of(actor: Any) -> str:
    return ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"]


def seen_gpus(actor: Any) -> str | None:
    return ray.get(actor.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES")))


def remove(cluster: Cluster, node_id: str) -> None:
    cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == node_id))


def backend_with_policy(service: DemoService, kind: Callable[..., RayBackend] = RayBackend) -> RayBackend:
    backend = kind(CONFIG, service.handle)
    backend.pretrain()
    return backend


@pytest.mark.drill
def test_a_worker_with_a_share_of_a_gpu_sees_it(cluster: Cluster) -> None:
    shared = load_config([resolved(CONFIG), {"compute": {"num_workers": 1, "worker_gpu": 0.5}}])
    with pytest.raises(InrilError, match=r"worker_gpu = 0.5: .* GPUs \(1 CPUs, 1 GPUs\) have room for 1"):
        RayBackend(shared, load_demos(shared))
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    backend = RayBackend(shared, load_demos(shared))
    try:
        assert [seen_gpus(actor) for actor in (backend.learner, *backend.workers)] == ["0", "0"]
    finally:
        backend.close()
        cluster.remove_node(node)


@pytest.mark.drill
def test_nodes_of_rollout_workers_may_leave(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """One leaves with a fragment that has arrived but is not fetched yet, one with the fragments that are collected."""
    service = DemoService(load_demos(CONFIG))
    calm = backend_with_policy(service)
    try:
        expected = [calm.iterate() for _ in range(3)]
        gpu = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU"))
        assert node_of(calm.learner) == gpu
        assert len({gpu, *(node_of(worker) for worker in calm.workers)}) == 3
        assert [seen_gpus(actor) for actor in (calm.learner, *calm.workers)] == ["0", "", ""]
    finally:
        calm.close()

    class Struck(RayBackend):
        leaves: str | None = None

        def _land(self) -> list[Any]:
            fragments = super()._land()
            if self.leaves:
                remove(cluster, self.leaves)
                self.leaves = None
            return fragments

    struck = backend_with_policy(service, Struck)
    try:
        got = [struck.iterate()]
        struck.leaves = node_of(struck.workers[1])
        copy = ray.remote(lambda handle: fetch(handle).info.content_hash)
        there = copy.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(struck.leaves, soft=False))
        assert ray.get(there.remote(service.handle)) == service.content_hash
        got.append(struck.iterate())
        assert "collected again" in capsys.readouterr().out
        assert got[1]["worker_restarts"] == 1.0

        cluster.add_node(num_cpus=2)
        struck._launch(0)
        struck._launch(1)
        remove(cluster, node_of(struck.workers[0]))
        got.append(struck.iterate())
        assert got[2]["worker_restarts"] >= 2.0
        assert ray.get(copy.options(num_cpus=0).remote(service.handle)) == service.content_hash
    finally:
        struck.close()
    for row, wanted in zip(got, expected, strict=True):
        for name in ("grad_norm_rl", "policy_loss", "value_loss", "env_steps", "il_updates"):
            assert row[name] == wanted[name]


@pytest.mark.drill
def test_the_loss_of_the_learners_node_ends_the_run_which_goes_on_exactly(cluster: Cluster, tmp_path: Path) -> None:
    one = load_config([resolved(CONFIG), {"compute": {"num_workers": 1}}])
    run(one, tmp_path / "whole", LocalBackend)

    class Struck(RayBackend):
        def iterate(self) -> dict[str, float]:
            if self._refs.version == 2:
                remove(cluster, node_of(self.learner))
            return super().iterate()

    with pytest.raises(InrilError, match="The learner died: .*goes on from its last checkpoint"):
        run(one, tmp_path / "parts", Struck)
    cluster.add_node(num_cpus=1, num_gpus=1)
    run(read_config(tmp_path / "parts"), tmp_path / "parts", RayBackend, resume=True)
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert differences(state(tmp_path / "parts", 4), state(tmp_path / "whole", 4)) == []
