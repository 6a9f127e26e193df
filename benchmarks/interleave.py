"""What IN-RIL at m = 10 costs against RL alone: wall time per environment step, and the shares of its parts."""

from __future__ import annotations

import statistics
import time
from typing import Any

import ray

from benchmarks.result import write
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import load_config, load_demos
from inril_ray.presets import shipped_config

CYCLE, ROUNDS = 10, 2
MODES = {"pipelined": 1.03, "sync": 1.05}
"""Mode to the greatest ratio that is asked for."""
PARTS = ("il_s", "diagnostics_s", "rl_s", "rollout_s")
LAYERS = [
    shipped_config("demo"),
    {"pretrain": {"num_epochs": 20}, "compute": {"num_workers": 1, "device": "cpu"}, "rollout": {"num_envs": 50}},
]


def cycle(backend: RayBackend) -> tuple[float, dict[str, float]]:
    """Run ten iterations; return wall seconds for 1000 environment steps, and the seconds of the parts."""
    start, records = time.perf_counter(), [backend.iterate() for _ in range(CYCLE)]
    seconds = time.perf_counter() - start
    steps = CYCLE * (records[-1]["env_steps"] - records[-2]["env_steps"])
    return 1000.0 * seconds / steps, {part: sum(r[part] for r in records) for part in PARTS}


def measure(mode: str) -> dict[str, Any]:
    """Run a cycle of each schedule in turn, in one mode. One at a time: both would not fit on two cores."""
    times: dict[str, list[float]] = {"rl_only": [], "fixed": []}
    shares: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        for schedule, taken in times.items():
            config = load_config([*LAYERS, {"schedule": schedule, "compute": {"mode": mode}}])
            backend = RayBackend(config, load_demos(config))
            backend.pretrain()
            backend.iterate()  # starts the simulators; of the cycle that follows, the ninth imitates
            seconds, parts = cycle(backend)
            backend.close()
            taken.append(seconds)
            if schedule == "fixed":
                shares.append({part: parts[part] / sum(parts.values()) for part in PARTS})
    ratios = [a / b for a, b in zip(times["fixed"], times["rl_only"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "goal": MODES[mode],
        "seconds_per_1000_env_steps": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "il_share": round(statistics.median(s["il_s"] for s in shares), 4),
        "diagnostics_share": round(statistics.median(s["diagnostics_s"] for s in shares), 4),
    }


def main() -> None:
    """Measure both modes."""
    figures = {mode: measure(mode) for mode in MODES}
    ray.shutdown()
    write(
        "interleave_share",
        figures,
        reference="RL only, cycles of ten iterations in turn, wall time per environment step, one Ray worker",
        ratio=figures["pipelined"]["ratio"],
        goal="pipelined at most 1.03, sync at most 1.05; diagnostics below 0.01 of the time",
    )


if __name__ == "__main__":
    main()
