"""Memory of a sweep of four trials at a time against four single runs at a time, on the same large demonstrations."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.result import write
from inril_ray import envs
from inril_ray.demos.store import DemoArrays, DemoInfo, write_arrow
from inril_ray.envs.base import EnvConfig

TASK, TRIALS, LENGTH = "gym/hopper", 4, 1000
BASE = {
    "task": TASK,
    "num_iterations": 8,
    "pretrain": {"num_epochs": 0},
    "actor": {"hidden_dim": 64},
    "rl": {"num_epochs": 1, "minibatch_size": 500},
    "rollout": {"num_envs": 10, "num_decisions": 50},
    "evaluation": {"every": 0, "final_episodes": 10, "num_envs": 10},
    "tracking": {"trackers": ["jsonl"]},
    "compute": {"device": "cpu"},
    "video": False,
}


def demonstrations(path: Path, megabytes: int) -> None:
    """Write random demonstrations of a size."""
    spec, rng = envs.spec(TASK, EnvConfig()), np.random.default_rng(0)
    steps = int(megabytes * 1e6 / (4 * (spec.obs_dim + spec.action_dim + 1))) // LENGTH * LENGTH
    info = DemoInfo(
        source_file="random",
        format="random",
        env_name="Hopper",
        semantics=spec.semantics,
        source="scripted",
        obs_keys=spec.obs_keys,
        content_hash="",
        metadata={},
    )
    arrays = DemoArrays(
        obs=rng.standard_normal((steps, spec.obs_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (steps, spec.action_dim)).astype(np.float32),
        rewards=np.zeros(steps, np.float32),
        episode_starts=np.arange(0, steps + 1, LENGTH),
        held_out=np.arange(steps // LENGTH) < 5,
        info=info,
    )
    write_arrow(dataclasses.replace(arrays, info=dataclasses.replace(info, content_hash=arrays.hash_content())), path)


def resident(processes: list[subprocess.Popen[bytes]]) -> int:
    """Return the memory of processes and all their descendants; what several share counts once."""
    total = 0
    for root in processes:
        try:
            tree = [psutil.Process(root.pid), *psutil.Process(root.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in tree:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return total


def peak(commands: list[list[str]]) -> dict[str, float]:
    """Run commands at the same time; return the greatest memory that was seen and the seconds."""
    start, most = time.perf_counter(), 0
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    while any(process.poll() is None for process in running):
        most = max(most, resident(running))
        time.sleep(0.2)
    if any(process.returncode for process in running):
        raise SystemExit(f"A command failed: {[process.returncode for process in running]}")
    return {"peak_pss_mb": round(most / 1e6), "seconds": round(time.perf_counter() - start)}


def sweep(folder: Path) -> None:
    """Run the sweep in this process, on a cluster that holds four trials at once."""
    from inril_ray.distributed.cluster import start_ray
    from inril_ray.sweep import read_sweep
    from inril_ray.tune import run_sweep

    start_ray(TRIALS)
    run_sweep(read_sweep(folder / "sweep.yaml"), folder / "sweep", local=True)


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--sweep", type=Path, help="what the benchmark starts itself with")
    arguments = parser.parse_args()
    if arguments.sweep:
        sweep(arguments.sweep)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demonstrations(folder / "demos.arrow", arguments.megabytes)
        base = {**BASE, "demos": str(folder / "demos.arrow")}
        every = list(range(1, TRIALS + 1))
        plan: dict[str, Any] = {"name": "memory", "base": base, "space": {"interleave.every": every}}
        (folder / "sweep.yaml").write_text(yaml.safe_dump({**plan, "seeds": {"search": [0], "confirm": []}}))
        (folder / "base.yaml").write_text(yaml.safe_dump(base))
        command = [sys.executable, "-m", "inril_ray.cli", "train", "--config", str(folder / "base.yaml"), "--local"]
        singles = [[*command, "--set", f"interleave.every={m}", "--out", str(folder / f"run{m}")] for m in every]
        figures = {
            "demonstrations_mb": arguments.megabytes,
            "sweep": peak([[sys.executable, "-m", "benchmarks.sweep_memory", "--sweep", str(folder)]]),
            "single_runs": peak(singles),
        }
        states = json.loads((folder / "sweep" / "sweep.json").read_text())["settings"]
        assert [row["finished"] for row in states] == [1] * TRIALS
    write(
        "sweep_memory",
        figures,
        reference="the same four configurations as single `inril train --local` at the same time; greatest sum of "
        "proportional set sizes over all processes, Ray's own and the object store included",
        ratio=round(figures["sweep"]["peak_pss_mb"] / figures["single_runs"]["peak_pss_mb"], 3),
        goal="shown",
    )


if __name__ == "__main__":
    main()
