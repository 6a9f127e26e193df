"""The long run: Lift from its cloned policy to 95 %, three seeds, with curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.result import FOLDER, write
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import load_config
from inril_ray.presets import shipped_config
from inril_ray.report import write_run_report
from inril_ray.run import run
from inril_ray.run_dir import read_config
from inril_ray.statistics import score_text
from inril_ray.tracking.jsonl import read_metrics

SEEDS = (0, 1, 2)
RUNS = Path("runs/bench-learning")


def finished(seed: int) -> dict[str, Any]:
    """Run a seed, or go on with it, or read its summary."""
    out = RUNS / f"seed{seed}"
    if not (out / "summary.json").is_file():
        resume = any((out / "checkpoints").glob("iteration_*"))
        config = read_config(out) if resume else load_config([shipped_config("learning"), {"seed": seed}])
        run(config, out, RayBackend, resume=resume)
        write_run_report(out)
    return json.loads((out / "summary.json").read_text())


def curve(seed: int) -> list[dict[str, float]]:
    """Return the evaluations of a run."""
    keys = ("env_steps", "score", "score_low", "score_high", "eval_episodes")
    return [{k: r[k] for k in keys} for r in read_metrics(RUNS / f"seed{seed}") if "score" in r]


def main() -> None:
    """Run every seed and write success before and after, with curves."""
    summaries = {seed: finished(seed) for seed in SEEDS}
    final = {seed: s["final"] for seed, s in summaries.items()}
    base = {seed: s["base"] for seed, s in summaries.items()}

    def text(outcome: dict[str, Any]) -> str:
        return f"{score_text(outcome)}, {outcome['eval_episodes']:.0f} episodes"

    write(
        "learning_lift",
        {
            "base": {f"seed{s}": text(o) for s, o in base.items()},
            "final": {f"seed{s}": text(o) for s, o in final.items()},
            "env_steps": summaries[SEEDS[0]]["env_steps"],
            "seconds": {f"seed{s}": round(sum(v["seconds_by_phase"].values())) for s, v in summaries.items()},
            "demonstrations": summaries[SEEDS[0]]["demos"],
            "curves": {f"seed{s}": curve(s) for s in SEEDS},
        },
        reference="the cloned policy of each seed, evaluated on the same episodes",
        ratio=round(sum(o["score"] for o in final.values()) / sum(o["score"] for o in base.values()), 3),
        goal="at least 95 % in every seed, from 30-70 %",
    )
    print(f"Results in {FOLDER}, reports in {RUNS}.")


if __name__ == "__main__":
    main()
