"""One rollout worker against two where the simulator dominates: whole iterations on Ray, in alternation.

Two cores do not do twice what one does: they share a cache, memory, perhaps more. So the same simulator also runs
alone, without Ray, in one process and in two, in every round: that is what can be had here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from multiprocessing import get_context
from typing import Any

import numpy as np
import ray

from benchmarks.result import write
from inril_ray import envs
from inril_ray.distributed.cluster import start_ray
from inril_ray.distributed.driver import RayBackend
from inril_ray.envs.base import EnvConfig
from inril_ray.experiment import load_config, load_demos
from inril_ray.threads import available_cpus

LAYERS = {
    "task": "robomimic/lift",
    "env": {"backend": "stock"},
    "pretrain": {"num_epochs": 1},
    "actor": {"hidden_dim": 64},
    "rl": {"num_epochs": 1, "minibatch_size": 500},
    "rollout": {"num_envs": 24, "num_decisions": 20},
    "interleave": {"every": 10, "il_steps": 1},
}


STEPS = 60
"""Control steps of all environments in one bare round."""


def simulate(num_envs: int, first_env: int, started: Any, orders: Any, done: Any) -> None:
    """Step environments with random actions whenever told to."""
    task, options = LAYERS["task"], EnvConfig(**LAYERS["env"])
    env = envs.make(task, num_envs=num_envs, seed=0, purpose="train", config=options, first_env=first_env)
    env.reset()
    rng = np.random.default_rng(0)
    started.put(True)
    while orders.get():
        for _ in range(STEPS):
            env.step(rng.uniform(-1.0, 1.0, (num_envs, env.task_spec.action_dim)).astype(np.float32))
        done.put(True)


class Bare:
    """The environments of a run, split over processes, and nothing else."""

    def __init__(self, workers: int) -> None:
        context, total = get_context("spawn"), LAYERS["rollout"]["num_envs"]
        self._started, self._done = context.Queue(), context.Queue()
        self._orders = [context.Queue() for _ in range(workers)]
        for i, orders in enumerate(self._orders):
            arguments = (total // workers, i * total // workers, self._started, orders, self._done)
            context.Process(target=simulate, args=arguments, daemon=True).start()
        for _ in self._orders:
            self._started.get()

    def round(self) -> float:
        """Return the seconds that all take."""
        start = time.perf_counter()
        for orders in self._orders:
            orders.put(True)
        for _ in self._orders:
            self._done.get()
        return time.perf_counter() - start

    def close(self) -> None:
        """End the processes."""
        for orders in self._orders:
            orders.put(False)


def main() -> None:
    """Measure wall time of collect, learn and publish; the first round is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    backends: dict[int, Any] = {}
    start_ray(5)  # for both, each of which has a learner as well
    for workers in (2, 1):
        config = load_config([LAYERS, {"compute": {"num_workers": workers, "device": "cpu"}}])
        backends[workers] = RayBackend(config, load_demos(config))
        backends[workers].pretrain()
    bare = {workers: Bare(workers) for workers in backends}
    taken: dict[int, list[float]] = {workers: [] for workers in backends}
    simulated: dict[int, list[float]] = {workers: [] for workers in backends}
    shares = []
    for turn in range(rounds + 1):
        for workers, backend in backends.items():
            start = time.perf_counter()
            metrics = backend.iterate()
            if turn:
                taken[workers].append(time.perf_counter() - start)
                shares.append(metrics["simulation_s"] / taken[workers][-1])
            seconds = bare[workers].round()
            if turn:
                simulated[workers].append(seconds)
    for workers, backend in backends.items():
        backend.close()
        bare[workers].close()
    ray.shutdown()
    ratios = [one / two for one, two in zip(taken[1], taken[2], strict=True)]
    limits = [one / two for one, two in zip(simulated[1], simulated[2], strict=True)]
    write(
        "worker_scaling",
        {
            "seconds_one_worker": round(statistics.median(taken[1]), 3),
            "seconds_two_workers": round(statistics.median(taken[2]), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "ratio_of_bare_simulators": round(statistics.median(limits), 3),
            "ratio_of_bare_simulators_min": round(min(limits), 3),
            "ratio_of_bare_simulators_max": round(max(limits), 3),
            "simulation_share": round(statistics.median(shares), 3),
            "cores": available_cpus(),
            "rounds": rounds,
        },
        reference="the same experiment with one worker; robosuite's own environments, wall time of whole iterations; "
        "bare: the same environments in one process and in two, without anything else",
        ratio=round(statistics.median(ratios), 3),
        goal="at least 1.7",
    )


if __name__ == "__main__":
    main()
