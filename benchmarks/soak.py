"""A run of hours on Ray, watched from outside: memory, file handles, threads and disk must not grow.

The run makes many short iterations, with imitation, diagnostics, evaluations, checkpoints and every tracker, until
SIGTERM ends it as a scheduler would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from scipy import stats

from benchmarks.result import write
from inril_ray.session import STOPPED
from inril_ray.tracking.jsonl import read_metrics

CONFIG: dict[str, Any] = {
    "num_iterations": 1_000_000,
    "env": {"max_episode_steps": 50},
    "actor": {"hidden_dim": 64},
    "pretrain": {"num_epochs": 20},
    "rl": {"minibatch_size": 500, "num_epochs": 2, "critic_hidden_dim": 64},
    "interleave": {"every": 5, "il_steps": 5, "relation_every": 1},
    "rollout": {"num_envs": 20, "num_decisions": 10},
    "evaluation": {"every": 20, "num_episodes": 20, "num_envs": 20},
    "checkpoint": {"every": 10},
    "compute": {"num_workers": 1, "mode": "pipelined", "device": "cpu"},
    "video": False,
}
INTERVAL_S = 30.0
WARM_UP = 0.15
"""Part of the time that is not counted: imports, first evaluations, caches and Ray's own buffers."""


def role(process: psutil.Process) -> str:
    """Name a process by what it does: actors by their class, Ray's daemons by their program."""
    command = " ".join(process.cmdline())
    actor = re.match(r"ray::(\w+)", command)
    if actor:
        return actor.group(1)
    for name in ("raylet", "gcs_server", "inril_ray.cli"):
        if name in command.split(" --")[0]:
            return name
    return "others"


def memory(pid: int) -> dict[str, float]:
    """Return what a process has written itself, and what only it has, MB.

    The second changes with other programs: pages of a library are a process's own as soon as nobody else has it open.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    written = kib["Private_Dirty"] + kib.get("Swap", 0)
    return {"written_mb": written * 1024 / 1e6, "uss_mb": (kib["Private_Dirty"] + kib["Private_Clean"]) * 1024 / 1e6}


def sample(root: int) -> dict[str, dict[str, float]]:
    """Return memory (MB), handles and threads of a process and its descendants, by role."""
    found: dict[str, dict[str, float]] = {}
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            row = found.setdefault(role(process), {})
            values = {**memory(process.pid), "processes": 1.0}
            values |= {"handles": float(process.num_fds()), "threads": float(process.num_threads())}
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
        for name, value in values.items():
            row[name] = row.get(name, 0.0) + value
    total = {name: sum(row.get(name, 0.0) for row in found.values()) for name in next(iter(found.values()))}
    return {**found, "sum": total}


def slope(hours: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Return the mean and the growth per hour (Theil and Sen's, with its 95 % interval)."""
    fit = stats.theilslopes(values, hours)
    low, high = round(float(fit[2]), 3), round(float(fit[3]), 3)
    return {"mean": round(float(values.mean()), 1), "per_hour": round(float(fit[0]), 3), "low": low, "high": high}


def files(folder: Path) -> float:
    """Return the size of everything in a folder, MB."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # checkpoints come and go
                total += os.stat(os.path.join(place, name)).st_size
    return total / 1e6


def main() -> None:
    """Run, watch, stop, and write the slopes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0)
    hours: float = parser.parse_args().hours
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "soak.yaml").write_text(yaml.safe_dump({"task": "robomimic/lift", **CONFIG}))
        command = [sys.executable, "-m", "inril_ray.cli", "train", "--config", str(folder / "soak.yaml")]
        out, start, rows = folder / "run", time.monotonic(), []
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, "--out", str(out)], stdout=log, stderr=log)
        try:
            while time.monotonic() - start < 3600 * hours:
                time.sleep(INTERVAL_S)
                if process.poll() is not None:
                    said = (folder / "log").read_text()[-3000:]
                    raise SystemExit(f"The run ended by itself ({process.returncode}):\n{said}")
                since = (time.monotonic() - start) / 3600
                rows.append({"hours": since, "disk_mb": files(out), "by_role": sample(process.pid)})
                print(json.dumps(rows[-1]), flush=True)
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=600)
        finally:
            process.kill()
        records = read_metrics(out)
    if status != STOPPED:
        raise SystemExit(f"SIGTERM ended the run with {status}, not {STOPPED}.")
    counted = [row for row in rows if row["hours"] > WARM_UP * hours]
    times = np.array([row["hours"] for row in counted])
    figures: dict[str, Any] = {"hours": hours, "samples": len(counted), "iterations": int(records[-1]["iteration"])}
    figures["disk_mb"] = slope(times, np.array([row["disk_mb"] for row in counted]))
    for kind in counted[-1]["by_role"]:
        series = [row["by_role"].get(kind, {}) for row in counted]
        figures[kind] = {
            measure: slope(times, np.array([values.get(measure, 0.0) for values in series]))
            for measure in ("written_mb", "uss_mb", "handles", "threads")
        }
    write(
        "soak",
        figures,
        reference="the same processes after the first part of the run; growth per hour is Theil and Sen's slope with "
        "its 95 % interval; written: memory that a process filled itself, uss: with pages of libraries that nobody "
        "else has open",
        ratio=None,
        goal="no growth of memory, handles and threads",
    )


if __name__ == "__main__":
    main()
