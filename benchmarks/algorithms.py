"""Does every algorithm learn? Each fine-tunes its own cloned policy, in minutes, far below the benchmark's size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.result import write
from inril_ray.backend import LocalBackend
from inril_ray.config import merge, read_yaml
from inril_ray.experiment import load_config
from inril_ray.record import record
from inril_ray.run import run
from inril_ray.run_dir import read_config
from inril_ray.statistics import score_text
from inril_ray.tracking.jsonl import read_metrics

RUNS = Path("runs/bench-algorithms")
SEEDS = (0, 1)
PUSH_DEMOS, CHEETAH_DEMOS = RUNS / "push_half", RUNS / "cheetah.hdf5"
"""Sixty scripted episodes of Fetch Push, made to succeed in about half of them; twenty of a partly trained policy."""


def settings() -> dict[str, dict[str, Any]]:
    """Return algorithm to its settings on top of its preset."""
    table = read_yaml(Path(__file__).with_name("algorithms.yaml"))
    tasks = table.pop("tasks")
    return {name: merge(tasks[own.pop("like")], own) for name, own in table.items()}


def finished(algorithm: str, layer: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run a seed, or go on with it, or read its summary."""
    out = RUNS / algorithm / f"seed{seed}"
    if not (out / "summary.json").is_file():
        resume = any((out / "checkpoints").glob("iteration_*"))
        config = read_config(out) if resume else load_config([layer, {"algorithm": algorithm, "seed": seed}])
        run(config, out, LocalBackend, resume=resume)
    return json.loads((out / "summary.json").read_text())


def row(algorithm: str, seed: int, summary: dict[str, Any]) -> dict[str, Any]:
    """Return what a run shows."""
    curve = [[int(r["env_steps"]), r["score"]] for r in read_metrics(RUNS / algorithm / f"seed{seed}") if "score" in r]
    return {
        "task": summary["task"],
        "base": score_text(summary["base"]),
        "final": score_text(summary["final"]),
        "best": score_text(summary["best"]),
        "env_steps": summary["env_steps"],
        "seconds": round(sum(summary["seconds_by_phase"].values())),
        "curve": curve,
    }


def main() -> None:
    """Run every algorithm with every seed and write the scores before and after."""
    if not PUSH_DEMOS.exists():
        record("fetch/push", PUSH_DEMOS, num_demos=60, seed=3, quality={"success_rate": 0.5})
    if not CHEETAH_DEMOS.exists():
        record("gym/halfcheetah", CHEETAH_DEMOS, num_demos=20, seed=3, quality={"target_return": 1200.0})
    figures, rising = {}, 0
    for algorithm, layer in settings().items():
        for seed in SEEDS:
            summary = finished(algorithm, layer, seed)
            figures[f"{algorithm} seed{seed}"] = row(algorithm, seed, summary)
            rising += summary["final"]["score"] > summary["base"]["score"]
    write(
        "algorithms",
        figures,
        reference="the cloned policy of each run, on the same 200 episodes",
        ratio=round(rising / len(figures), 3),
        goal="every run ends above its cloned policy (ratio: share of runs that do)",
    )


if __name__ == "__main__":
    main()
