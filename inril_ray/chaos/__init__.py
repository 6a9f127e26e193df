"""Kills parts of a small run at random moments and tells what was lost: the promises of docs/reliability.md, tried out.

Every drill is a run of the same tiny experiment as an undisturbed one, whose result it must equal bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inril_ray.backend import LocalBackend
from inril_ray.chaos import actors, processes
from inril_ray.chaos.result import Drill, line
from inril_ray.distributed.cluster import cluster_address
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import ExperimentConfig
from inril_ray.presets import check_faults
from inril_ray.run import run
from inril_ray.run_dir import write_json
from inril_ray.types import InrilError

TINY: dict[str, Any] = {
    "num_iterations": 6,
    "env": {"max_episode_steps": 20},
    "actor": {"hidden_dim": 16},
    "pretrain": {"num_epochs": 2},
    "rl": {"minibatch_size": 50, "num_epochs": 2, "critic_hidden_dim": 16},
    "interleave": {"every": 2, "il_steps": 3, "relation_every": 1},
    "rollout": {"num_envs": 4, "num_decisions": 5},
    "evaluation": {"every": 2, "num_episodes": 4, "final_episodes": 4, "num_envs": 4},
    "checkpoint": {"every": 1},
    "guard": {"action": "none"},
    "tracking": {"trackers": ["jsonl"]},
    "compute": {"num_workers": 2, "device": "cpu", "rollout_timeout_s": 20.0},
    "video": False,
}
MISSES = 3
"""Attempts at a drill whose fault comes too late, after the end of the run."""
FAULTS = (*actors.FAULTS, *processes.FAULTS)


def chaos(
    config: ExperimentConfig, directory: Path, faults: Sequence[str], repetitions: int, seed: int, say: Any = print
) -> list[Drill]:
    """Run every drill, and print a line for each.

    Args:
        config: of the experiment; one worker and two differ in nothing but speed here.
        directory: new; for the runs.
        faults: of ``FAULTS``.
        repetitions: of each.
        seed: of the moments.
        say: prints a line.

    Raises:
        InrilError: an unknown fault, or the undisturbed run fails.
    """
    check_faults(faults)
    if repetitions < 1:
        raise InrilError(f"--repetitions {repetitions}: at least 1 is needed.")
    if directory.exists() and any(directory.iterdir()):
        raise InrilError(f"--out {directory}: choose a new directory.")
    if cluster_address():
        raise InrilError("RAY_ADDRESS is set: drills kill processes, and do so on a cluster of their own only.")
    undisturbed: dict[bool, Path] = {}
    for on_ray in sorted({_on_ray(fault) for fault in faults}):
        name = "ray" if on_ray else "local"
        say(f"--- the undisturbed run ({name})")
        undisturbed[on_ray] = directory / f"undisturbed-{name}"
        run(config, undisturbed[on_ray], RayBackend if on_ray else LocalBackend, say=lambda _: None)
    drills = []
    for k in range(repetitions):
        for fault in faults:
            rng = random.Random(f"{seed} {fault} {k}")
            drill = actors.drill if fault in actors.FAULTS else processes.drill
            for attempt in range(MISSES):
                path = directory / f"{fault.replace(' ', '-')}-{k}-{attempt}"
                found = drill(fault, seed + k, config, path, undisturbed[_on_ray(fault)], rng)
                if found.struck:
                    break
            drills.append(found)
            say(line(drills[-1]))
            write_json(directory / "chaos.json", [vars(each) for each in drills])
    return drills


def _on_ray(fault: str) -> bool:
    return fault in actors.FAULTS or fault in processes.ON_RAY
