"""One rollout worker against two where the simulator dominates: whole iterations on Ray, in alternation."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import ray

from benchmarks.result import write
from inril_ray.distributed.driver import RayBackend, start_ray
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
    taken: dict[int, list[float]] = {workers: [] for workers in backends}
    shares = []
    for turn in range(rounds + 1):
        for workers, backend in backends.items():
            start = time.perf_counter()
            metrics = backend.iterate()
            if turn:
                taken[workers].append(time.perf_counter() - start)
                shares.append(metrics["simulation_s"] / taken[workers][-1])
    for backend in backends.values():
        backend.close()
    ray.shutdown()
    ratios = [one / two for one, two in zip(taken[1], taken[2], strict=True)]
    write(
        "worker_scaling",
        {
            "seconds_one_worker": round(statistics.median(taken[1]), 3),
            "seconds_two_workers": round(statistics.median(taken[2]), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "simulation_share": round(statistics.median(shares), 3),
            "cores": available_cpus(),
            "rounds": rounds,
        },
        reference="the same experiment with one worker; robosuite's own environments, wall time of whole iterations",
        ratio=round(statistics.median(ratios), 3),
        goal="at least 1.7",
    )


if __name__ == "__main__":
    main()
