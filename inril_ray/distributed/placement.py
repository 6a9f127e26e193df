"""What the processes of a run ask Ray for, and whether a cluster can give it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from inril_ray import envs
from inril_ray.experiment import ExperimentConfig
from inril_ray.types import InrilError

Bundle = dict[str, float]
"""Resource to how much of it a process asks for: a CPU, and a GPU or a share of one."""

SHARED = 0.5
"""Share of a GPU for each process where simulators need one: learner and one worker take one together."""


def bundles(config: ExperimentConfig, cluster_gpus: float) -> list[Bundle]:
    """Return what the learner asks for, then what each rollout worker does.

    Args:
        config: of the run.
        cluster_gpus: in all; with none, a learner that may do without asks for none.

    Raises:
        InrilError: the simulators need a GPU and the workers are given none.
    """
    compute, simulates = config.compute, envs.entry(config.task).needs_gpu(config.env)
    share = compute.worker_gpu
    if share is None or (compute.device == "cpu" and not simulates):
        share = SHARED if simulates else 0.0  # with compute.device = cpu nobody would use it
    if simulates and not share:
        raise InrilError(
            f"compute.worker_gpu = 0: with env.backend = {config.env.backend!r} each worker simulates on a GPU. Leave "
            "it out, or give the share of one that each worker takes."
        )
    learns = compute.device == "cuda" or (compute.device == "auto" and cluster_gpus > 0)
    return [_bundle((share or 1.0) if learns else 0.0), *[_bundle(share)] * compute.num_workers]


def one_process(config: ExperimentConfig, cluster_gpus: float) -> Bundle:
    """Return what a whole run in one process asks for: a GPU where its parts do, or the configured share of one."""
    needs_gpu = any("GPU" in bundle for bundle in bundles(config, cluster_gpus))
    return _bundle((config.compute.worker_gpu or 1.0) if needs_gpu else 0.0)


def _bundle(gpu: float) -> Bundle:
    return {"CPU": 1.0, **({"GPU": gpu} if gpu else {})}


def asked_for(config: ExperimentConfig) -> list[Bundle]:
    """Return what the learner and the workers of a run ask this cluster for."""
    return bundles(config, ray.cluster_resources().get("GPU", 0.0))


def check_gpus(config: ExperimentConfig, asked: Sequence[Bundle]) -> None:
    """Refuse what this cluster can never give: Ray would wait for it without an end.

    Args:
        config: of the run.
        asked: what its processes ask for.

    Raises:
        InrilError: it has no GPU, or the processes find no room on the nodes with GPUs.
    """
    wrong = problem(asked, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if wrong is None:
        return
    compute = config.compute
    reason = f"compute.device = {compute.device!r}"
    if envs.entry(config.task).needs_gpu(config.env):
        reason = f"env.backend = {config.env.backend!r} simulates on a GPU"
    elif compute.worker_gpu:
        reason = f"compute.worker_gpu = {compute.worker_gpu:g}"
    raise InrilError(f"{reason}: {wrong}.")


def problem(asked: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Return why a cluster can never give what is asked for, or None.

    A process with a share of a GPU also needs a CPU of the same node. All shares are alike.

    Args:
        asked: what each process asks for.
        nodes: the resources of each.
    """
    shares = [bundle["GPU"] for bundle in asked if "GPU" in bundle]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if shares and not gpus:
        return "the cluster has no GPU"
    if shares:
        on_each = math.floor(1.0 / max(shares) + 1e-9)
        room = sum(int(min(node.get("CPU", 0.0), on_each * int(node.get("GPU", 0.0)))) for node in nodes)
        if room < len(shares):
            return (
                f"learner and workers ask {len(shares)} times for {max(shares):g} of a GPU and a CPU beside it; the "
                f"nodes with GPUs ({_listed(n for n in nodes if n.get('GPU'))}) have room for {room}. Lower "
                "compute.num_workers or compute.worker_gpu, give these nodes more CPUs, or take compute.device=cpu"
            )
    return None


def _listed(nodes: Any) -> str:
    return "; ".join(f"{node.get('CPU', 0.0):g} CPUs, {node['GPU']:g} GPUs" for node in nodes)
