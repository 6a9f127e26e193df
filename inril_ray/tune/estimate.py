"""What a trial reserves, and what a whole sweep will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError
from scipy.optimize import nnls

from inril_ray.backend import LocalBackend
from inril_ray.config import merge
from inril_ray.distributed.cluster import cluster_address, start_ray
from inril_ray.distributed.demo_service import DemoService, fetch
from inril_ray.distributed.driver import START_TIMEOUT_S, explained
from inril_ray.distributed.placement import Bundle, asked_for, check_gpus, one_process
from inril_ray.experiment import ExperimentConfig, load_config, resolved, task_spec
from inril_ray.registry import resolve
from inril_ray.schedules import SCHEDULES
from inril_ray.sweep import SweepConfig, base_key, settings_of, trial_config
from inril_ray.threads import available_cpus
from inril_ray.types import InrilError

PROBE_S = 60.0


# -- resources --------------------------------------------------------------------------------------------------------
def placement(config: ExperimentConfig, local: bool) -> tune.PlacementGroupFactory:
    """Return what a trial reserves: its driver, its learner and its workers, those with GPUs that a run gives some."""
    return tune.PlacementGroupFactory(trial_bundles(config, local))


def trial_bundles(config: ExperimentConfig, local: bool) -> list[Bundle]:
    """Return what the processes of a trial ask for: its driver, its learner, its workers; or one for all."""
    if local:
        return [one_process(config, ray.cluster_resources().get("GPU", 0.0))]
    return [{"CPU": 1.0}, *asked_for(config)]


def bundle_cpus(config: ExperimentConfig, local: bool) -> int:
    """Return the CPUs of a trial."""
    return 1 if local else config.compute.num_workers + 2


def connect(config: ExperimentConfig, local: bool) -> None:
    """Join the cluster, or start one on this machine on which as many trials run at a time as it has cores.

    Raises:
        InrilError: the cluster can't hold a single trial: Tune would wait for it without an end.
    """
    needed = bundle_cpus(config, local)
    total = start_ray(needed * available_cpus())
    if total < needed:
        raise InrilError(f"A trial needs {needed} CPUs (driver, learner, workers), the cluster has {total:.0f}.")
    check_gpus(config, trial_bundles(config, local))


# -- estimate ---------------------------------------------------------------------------------------------------------
@ray.remote
class Probe:
    """A process that measures the parts of a run, each at a small size.

    Args:
        config: of a trial that clones for one epoch.
        demos: handle of its demonstrations.
    """

    def __init__(self, config: ExperimentConfig, demos: list[Any]) -> None:
        self._config, self._demos = config, demos

    def ready(self) -> None:
        """Build simulators and networks."""
        self._backend = LocalBackend(self._config, fetch(self._demos))

    def measure(self) -> dict[str, float]:
        """Return seconds and bytes of a whole iteration, its imitation apart, after about a third of ``PROBE_S``."""
        backend, config, start = self._backend, self._config, time.perf_counter()
        backend.pretrain()
        epoch_s = time.perf_counter() - start
        collector, whole = backend.worker.collector, config.rollout.num_decisions
        decisions, sizes = max(1, whole // 64), []
        rollouts_s, learning_s, imitations_s = [], [], []
        while True:
            collector.num_decisions, begun = decisions, time.perf_counter()
            rollout = collector.collect(backend.learner.version)
            collected = time.perf_counter()
            metrics = backend.learner.learn(rollout, fresh_start=config.rollout.reset_each)
            ended = time.perf_counter()
            sizes.append(decisions)
            rollouts_s.append(collected - begun)
            learning_s.append(ended - collected - metrics["il_s"])
            imitations_s.append(metrics["il_s"])
            # The next is at most twice as large. Three at least: the first also paid for what is done once.
            limit_s = PROBE_S / 3 if len(sizes) >= 3 else 0.8 * PROBE_S
            if len(sizes) > 1 and ended - start + 2 * (ended - begun) > limit_s:
                break
            decisions = min(2 * decisions, whole)
        return {
            "epoch_s": epoch_s,
            "rollout_s": at_size(whole, sizes, rollouts_s),
            "learn_s": at_size(whole, sizes, learning_s),
            "imitate_s": at_size(whole, sizes, imitations_s),
            "env_step_s": rollouts_s[-1] / rollout.env_steps,
            "fragment_bytes": whole / sizes[-1] * rollout.size_bytes(),
            "process_bytes": float(sum(backend.peak_memory_bytes().values())),
        }


def at_size(size: float, sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the seconds that something of a size takes, by a line through what smaller ones took.

    Part of an iteration does not grow with its rollout (diagnostics, imitation), so a share of it can't be scaled up.

    Args:
        size: whose time is asked for.
        sizes: that were measured; the first is left out, since it paid for what is done once.
        seconds: what each took.
    """
    x, y = np.asarray(sizes[1:], float), np.asarray(seconds[1:], float)
    # Relative errors count: the smallest take milliseconds, and none where nothing is done.
    terms, weights = np.stack([np.ones_like(x), x], axis=1), 1.0 / np.maximum(y, 1e-6)
    fixed, slope = nnls(terms * weights[:, None], y * weights)[0]
    return float(fixed + slope * size)


def num_imitations(config: ExperimentConfig) -> int:
    """Return how many iterations of a run imitate; an adaptive schedule is taken as it begins."""
    schedule = resolve(SCHEDULES, config.schedule, "schedule").from_config(config.interleave)
    return sum(schedule.next(i).il for i in range(config.num_iterations))


def probed(config: ExperimentConfig) -> ExperimentConfig:
    """Return what the probe runs: one epoch of cloning, and imitation after every iteration where the run has any."""
    changes: dict[str, Any] = {"pretrain": {"num_epochs": 1}, "pretrained": None}
    if config.schedule in ("fixed", "adaptive") and config.interleave.phase != "merged":
        changes |= {"schedule": "fixed", "interleave": {"every": 1}}
    return load_config([merge(resolved(config), changes)])


def estimated(sweep: SweepConfig, config: ExperimentConfig, demos: DemoService, local: bool) -> dict[str, Any]:
    """Measure one trial at a small size for at most a minute, and tell what the whole sweep will take.

    Early stopping and failures are not foreseen: with ``asha`` the estimate is an upper limit.

    Raises:
        InrilError: the probe failed, or not even a small part of one trial came to an end.
    """
    gpus = placement(config, True).required_resources.get("GPU", 0.0)
    each = [trial_config(sweep, setting, sweep.seeds.search[0]) for setting in settings_of(sweep)] or [config]
    shown = max(each, key=num_imitations)  # a setting without imitation would not show what that takes
    probe: Any = Probe.options(num_cpus=1, num_gpus=gpus).remote(probed(shown), demos.handle)
    try:
        ray.get(probe.ready.remote(), timeout=START_TIMEOUT_S)
        found: dict[str, float] = ray.get(probe.measure.remote(), timeout=PROBE_S)
    except GetTimeoutError:
        raise InrilError(
            f"The probe, one epoch of cloning and a sixty-fourth of a rollout, did not end within {PROBE_S:.0f} s; "
            "shorten a trial first."
        ) from None
    except RayError as error:
        raise explained(error, "probe") from None
    finally:
        ray.kill(probe)
    settings = len(settings_of(sweep)) + (sweep.num_samples if sweep.method in ("optuna", "pbt") else 0)
    repeats = 1 if sweep.method == "pbt" else len(sweep.seeds.search)
    trials = settings * repeats + 2 * len(sweep.seeds.confirm)
    evaluation = config.evaluation
    rounds = config.num_iterations // evaluation.every if evaluation.every else 0
    episodes = 2 * evaluation.final_episodes + rounds * evaluation.num_episodes
    horizon = task_spec(config).max_episode_steps
    rollouts_s = config.num_iterations * found["rollout_s"] + episodes * horizon * found["env_step_s"]
    imitations = float(np.mean([num_imitations(trial) for trial in each]))
    learning_s = config.num_iterations * found["learn_s"] + imitations * found["imitate_s"]
    cloning_s = (
        len({base_key(sweep, s) for s in settings_of(sweep)} or {0}) * config.pretrain.num_epochs * found["epoch_s"]
    )
    workers = 1 if local else config.compute.num_workers
    cores = ray.cluster_resources().get("CPU", 1.0) if cluster_address() else float(available_cpus())
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1.0)) // bundle_cpus(config, local))
    trial_gpus = placement(config, local).required_resources.get("GPU", 0.0)
    if trial_gpus:
        at_once = max(1, min(at_once, int(ray.cluster_resources()["GPU"] / trial_gpus + 1e-9)))
    busy_s = trials * (rollouts_s + learning_s)
    wall_s = cloning_s + max(-(-trials // at_once) * (rollouts_s / workers + learning_s), busy_s / cores)
    processes = 1 if local else config.compute.num_workers + 2
    return {
        "trials": trials,
        "at_once": min(at_once, trials),
        "trial_minutes": (rollouts_s / workers + learning_s) / 60,
        "cpu_hours": (busy_s + cloning_s) / 3600,
        "gpu_hours": wall_s * min(at_once, trials) * trial_gpus / 3600,
        "wall_hours": wall_s / 3600,
        "memory_bytes": min(at_once, trials) * processes * found["process_bytes"],
        "object_store_bytes": demos.size_bytes + min(at_once, trials) * 2 * found["fragment_bytes"],
    }


def estimate_lines(estimate: Mapping[str, Any]) -> list[str]:
    """Return the estimate in words."""
    gpu = f", {estimate['gpu_hours']:.1f} GPU-hours" if estimate["gpu_hours"] else ""
    return [
        f"Estimate: {estimate['trials']} trials of {estimate['trial_minutes']:.1f} minutes, {estimate['at_once']} at a "
        f"time: {estimate['wall_hours']:.2f} hours, {estimate['cpu_hours']:.1f} CPU-hours{gpu}; "
        f"{estimate['memory_bytes'] / 2**30:.1f} GiB of memory, {estimate['object_store_bytes'] / 2**20:.0f} MiB of "
        "object store."
    ]
