"""One synchronous Ray worker against the local mode: iterations of the demo's size, in alternation."""

from __future__ import annotations

import statistics
import time
from typing import Any

import ray

from benchmarks.result import write
from inril_ray.backend import LocalBackend
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import load_config, load_demos
from inril_ray.presets import shipped_config

ROUNDS = 3
LAYERS = [
    shipped_config("demo"),
    {"pretrain": {"num_epochs": 20}, "compute": {"num_workers": 1, "device": "cpu"}, "rollout": {"num_envs": 50}},
]


def main() -> None:
    """Measure wall time of collect, learn and publish; the first round is not counted."""
    config = load_config(LAYERS)
    backends: dict[str, Any] = {
        "local": LocalBackend(config, load_demos(config)),
        "ray": RayBackend(config, load_demos(config)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in backends}
    for backend in backends.values():
        backend.pretrain()
    done = dict.fromkeys(backends, 0.0)
    for turn in range(ROUNDS + 1):
        for name, backend in backends.items():
            start = time.perf_counter()
            steps = backend.iterate()["env_steps"]
            if turn:
                speeds[name].append((steps - done[name]) / (time.perf_counter() - start))
            done[name] = steps
    for backend in backends.values():
        backend.close()
    ray.shutdown()
    ratios = [r / v for r, v in zip(speeds["ray"], speeds["local"], strict=True)]
    write(
        "ray_vs_local",
        {
            "ray_env_steps_per_s": round(statistics.median(speeds["ray"]), 1),
            "local_env_steps_per_s": round(statistics.median(speeds["local"]), 1),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "rounds": ROUNDS,
        },
        reference="the same experiment with --local, same run, wall time of whole iterations",
        ratio=round(statistics.median(ratios), 3),
        goal="at least 0.9",
    )


if __name__ == "__main__":
    main()
