"""What processes ask Ray for, and clusters that can or can't give it. No cluster is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray import exceptions

from inril_ray.distributed import driver, placement, workers
from inril_ray.distributed.placement import bundles, check_gpus, one_process, problem
from inril_ray.experiment import ExperimentConfig, acting_device, load_config
from inril_ray.tune import estimate
from inril_ray.types import InrilError

CPU = {"CPU": 1.0}
WARP = {"task": "furniture/one_leg_low", "algorithm": "residual_ppo", "env": {"backend": "warp"}}
CRAWLING = {"env": {"furniture": {"warp_device": "cpu"}}}


def of(*layers: dict[str, Any], **compute: Any) -> ExperimentConfig:
    return load_config([{"task": "robomimic/lift"}, *layers, {"compute": compute}])


def gpu(share: float) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": share}


@pytest.mark.parametrize(
    ("config", "cluster_gpus", "expected"),
    [
        (of(num_workers=2), 0, [CPU, CPU, CPU]),
        (of(num_workers=2), 1, [gpu(1.0), CPU, CPU]),
        (of(num_workers=2, device="cpu"), 1, [CPU, CPU, CPU]),
        (of(num_workers=2, device="cpu", worker_gpu=0.25), 1, [CPU, CPU, CPU]),
        (of(num_workers=2, device="cuda"), 0, [gpu(1.0), CPU, CPU]),
        (of(num_workers=2, worker_gpu=0.25), 1, [gpu(0.25)] * 3),
        (of(num_workers=1, worker_gpu=1), 2, [gpu(1.0)] * 2),
        (of(num_workers=1, worker_gpu=0), 1, [gpu(1.0), CPU]),
        (of(WARP), 1, [gpu(0.5), gpu(0.5)]),
        (of(WARP), 0, [CPU, gpu(0.5)]),
        (of(WARP, num_workers=3, worker_gpu=0.25), 1, [gpu(0.25)] * 4),
        (of(WARP, device="cpu"), 1, [CPU, gpu(0.5)]),
        (of(WARP, CRAWLING), 0, [CPU, CPU]),
        (of(WARP, CRAWLING), 1, [gpu(1.0), CPU]),
    ],
)
def test_learner_and_workers_ask_for(
    config: ExperimentConfig, cluster_gpus: float, expected: list[dict[str, float]]
) -> None:
    assert bundles(config, cluster_gpus) == expected


def test_a_warp_worker_without_a_gpu_is_refused() -> None:
    with pytest.raises(
        InrilError, match="compute.worker_gpu = 0: with env.backend = 'warp' each worker simulates on a"
    ):
        bundles(of(WARP, worker_gpu=0), 1)


@pytest.mark.parametrize(
    ("config", "cluster_gpus", "expected"),
    [
        (of(), 0, CPU),
        (of(), 1, gpu(1.0)),
        (of(device="cpu"), 1, CPU),
        (of(worker_gpu=0.25), 1, gpu(0.25)),
        (of(WARP), 0, gpu(1.0)),
        (of(WARP, worker_gpu=0.5), 1, gpu(0.5)),
        (of(WARP, device="cpu"), 1, gpu(1.0)),
    ],
)
def test_a_trial_in_one_process_asks_for(
    config: ExperimentConfig, cluster_gpus: float, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one_process(config, cluster_gpus) == expected
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"GPU": cluster_gpus})
    assert estimate.placement(config, True).bundles == [expected]


def test_a_trial_on_ray_reserves_what_its_run_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert estimate.placement(of(WARP), False).bundles == [CPU, gpu(0.5), gpu(0.5)]
    assert estimate.placement(of(num_workers=2), False).bundles == [CPU, gpu(1.0), CPU, CPU]


NODES = [{"CPU": 16.0}, {"CPU": 2.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("asked", "nodes", "says"),
    [
        ([CPU, CPU], [{"CPU": 2.0}], None),
        ([gpu(1.0), CPU], NODES, None),
        ([gpu(0.5), gpu(0.5)], NODES, None),
        ([gpu(0.5), gpu(0.5), CPU], NODES, None),
        ([gpu(1 / 3)] * 3, [{"CPU": 3.0, "GPU": 1.0}], None),
        ([gpu(0.5), gpu(0.5)], [{"CPU": 16.0}], "the cluster has no GPU"),
        ([gpu(0.5)] * 3, NODES, "ask 3 times for 0.5 of a GPU"),
        ([gpu(0.6)] * 2, NODES, "ask 2 times for 0.6 of a GPU"),
        ([gpu(0.5)] * 2, [{"CPU": 16.0}, {"CPU": 1.0, "GPU": 1.0}], r"\(1 CPUs, 1 GPUs\) have room for 1"),
        ([gpu(1.0), CPU], [{"CPU": 16.0}, {"GPU": 1.0}], r"\(0 CPUs, 1 GPUs\) have room for 0"),
        ([gpu(0.5)] * 4, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 4.0}], "have room for 3"),
    ],
)
def test_what_a_cluster_can_never_give(
    asked: list[dict[str, float]], nodes: list[dict[str, float]], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = problem(asked, nodes)
    if says is None:
        assert found is None
        return
    monkeypatch.setattr(placement.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    with pytest.raises(InrilError, match=rf"^env.backend = 'warp' simulates on a GPU: .*{says}"):
        check_gpus(of(WARP), asked)
    with pytest.raises(InrilError, match=rf"^compute.worker_gpu = 0.5: .*{says}"):
        check_gpus(of(worker_gpu=0.5), asked)
    with pytest.raises(InrilError, match=rf"^compute.device = 'cuda': .*{says}"):
        check_gpus(of(device="cuda"), asked)


def test_nodes_that_have_left_give_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    with pytest.raises(InrilError, match="the cluster has no GPU"):
        check_gpus(of(WARP), [gpu(0.5), gpu(0.5)])


@pytest.mark.parametrize("connect", [driver.connect, lambda config: estimate.connect(config, local=False)])
def test_a_run_and_a_sweep_end_at_once_where_there_is_no_gpu(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (driver, estimate):
        monkeypatch.setattr(module, "start_ray", lambda *_: 64.0)
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.setattr(placement.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0}}])
    with pytest.raises(InrilError, match="env.backend = 'warp' simulates on a GPU: the cluster has no GPU"):
        connect(of(WARP))
    connect(of(WARP, CRAWLING))


@pytest.mark.parametrize(("given", "seen"), [([], ""), (["0"], "0,1")])
def test_a_process_that_was_given_no_gpu_sees_none(
    given: list[str], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": given})
    monkeypatch.setattr(workers.ray, "get_runtime_context", lambda: context)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    workers.hide_foreign_gpus()
    assert workers.os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize(
    ("compute", "there_is_one", "expected"),
    [
        ({}, False, "cpu"),
        ({}, True, "cuda"),
        ({"worker_gpu": 0.5}, True, "cuda"),
        ({"worker_gpu": 0}, True, "cpu"),
        ({"device": "cpu"}, True, "cpu"),
        ({"device": "cuda"}, False, "cpu"),
    ],
)
def test_a_worker_acts_on_the_gpu_that_its_process_has(
    compute: dict[str, Any], there_is_one: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert acting_device(of(**compute)).type == expected


def test_a_share_that_is_too_small_for_what_it_holds_is_a_sentence() -> None:
    error = exceptions.RayTaskError("learn", "traceback", torch.OutOfMemoryError("CUDA out of memory. Tried to …"))
    with pytest.raises(InrilError, match=r"The learner ran out of the GPU's memory, .*\n?.*Raise compute.worker_gpu"):
        raise driver.explained(error, "learner")
