"""Checks at the start of a run: plain sentences on what will not go well, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from inril_ray.statistics import rate
from inril_ray.types import EnvSpec
from inril_ray.words import counted

LITTLE_MEMORY = 2**30
"""Bytes of free memory below which a run is likely to be killed."""
OUT_OF_RANGE = 0.2
"""Share of observed values outside the range of the demonstrations from which the normaliser does not fit the task."""
SLOW_ACTING_S = 60.0
"""Seconds of one rollout in the policy from which a GPU for the workers is recommended, where simulators take less."""
REWARD_PATIENCE = 3
"""Iterations in which episodes ended, all without a reward, after which it is said."""
RARE = 0.1
"""Success rate below which reinforcement hardly sees a reward. Advice needs as many failures as tell that it is below:
35 episodes, of which none succeeded, by Wilson's interval."""


def machine(run_dir: Path) -> list[str]:
    """Look at the memory and the disk that are free."""
    found = []
    memory = psutil.virtual_memory().available
    if memory < LITTLE_MEMORY:
        found.append(
            f"Only {_mib(memory)} MiB of memory are free. Close other programs, or lower rollout.num_envs and "
            "evaluation.num_envs."
        )
    disk = shutil.disk_usage(run_dir).free
    if disk < LITTLE_MEMORY:
        found.append(f"Only {_mib(disk)} MiB of disk are free at {run_dir}. Make room, or choose another --out.")
    return found


def waiting(asked: Sequence[Mapping[str, float]], free: Mapping[str, float], limit_s: float) -> list[str]:
    """Look whether what a run asks a cluster for is free, or whether others have it now.

    Args:
        asked: for each process, resource to how much of it.
        free: what the cluster has free.
        limit_s: time that the run waits.
    """
    found = []
    for resource in ("CPU", "GPU"):
        needed, there = sum(one.get(resource, 0.0) for one in asked), free.get(resource, 0.0)
        if needed > there + 1e-9:
            found.append(
                f"The run asks for {needed:g} {resource}s, of which {there:g} are free: it waits at most {limit_s:.0f} "
                "s for others to end."
            )
    return found


def versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the packages that a run was started with to those that it goes on with.

    Args:
        before: name to version.
        now: the same, today.
    """
    changed = [f"{name} {before[name]} -> {now.get(name)}" for name in before if before[name] != now.get(name)]
    if not changed:
        return []
    return [
        f"The run was started with other versions: {', '.join(changed)}. If it goes on with these, then "
        "not exactly as it would have; install the former ones for that."
    ]


def replay(size_bytes: int, free_bytes: int) -> list[str]:
    """Look whether the replay will fit, and a copy of it, which every checkpoint makes.

    Args:
        size_bytes: that it will grow to in this run.
        free_bytes: where it lives.
    """
    if 2 * size_bytes <= free_bytes:
        return []
    return [
        f"The replay will grow to {_mib(size_bytes)} MiB, and each checkpoint copies it; {_mib(free_bytes)} MiB of "
        "memory are free there. Lower rl.buffer_size or rollout.num_envs."
    ]


def checkpoints(size_bytes: int, replay_bytes: int, copies: int, run_dir: Path) -> list[str]:
    """Look whether as many checkpoints as will be on the disk together fit on it.

    Args:
        size_bytes: of the first one, when the replay is empty, and the optimisers may not have any moments.
        replay_bytes: that the replay will grow to in this run.
        copies: checkpoints that are kept or being written.
        run_dir: where they are written.
    """
    each, free = size_bytes + replay_bytes, shutil.disk_usage(run_dir).free
    if copies * each <= free:
        return []
    growth, less = (
        (f", {_mib(replay_bytes)} of it the filled replay", " or rl.buffer_size") if replay_bytes else ("", "")
    )
    return [
        f"Checkpoints will need at least {_mib(copies * each)} MiB ({copies} of {_mib(each)}{growth}), {_mib(free)} "
        f"are free at {run_dir}. Make room, or lower checkpoint.keep{less}."
    ]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.{0 if size_bytes >= 2**23 else 1}f}"


def cloning(outcome: Mapping[str, float]) -> list[str]:
    """Look whether every step of the cloning could be taken."""
    dropped = outcome.get("bc_dropped_steps", 0.0)
    if not dropped:
        return []
    return [
        f"{dropped:.0f} steps of the cloning had gradients that were not finite, and were left out. Lower pretrain.lr, "
        "or look at the demonstrations (inril demos inspect)."
    ]


def base_policy(outcome: Mapping[str, Any], spec: EnvSpec) -> list[str]:
    """Look whether the cloned policy ever succeeds: with a reward for success only, nothing else can be reinforced."""
    reached = outcome.get("success_rate_reached", outcome.get("success_rate", 0.0))
    if spec.score_range is not None or reached > 0.0 or not _tell(outcome["eval_episodes"]):
        return []
    return [
        f"The cloned policy reached success in none of {counted(outcome['eval_episodes'], 'episodes')}: reinforcement "
        "will hardly see a reward. Clone longer (pretrain.num_epochs), give it more demonstrations, or check that they "
        "are of this task (inril demos inspect)."
    ]


def _tell(episodes: float) -> bool:
    """Return whether so many failures, without a success, show that success is rare."""
    return episodes >= 1 and rate(0, round(episodes)).high <= RARE


class FirstIterations:
    """Looks at what the first iterations say; each finding is told once."""

    _SAVED = ("_rewarded", "_told", "_seen", "_ended", "_episodes")

    def __init__(self) -> None:
        self._rewarded, self._told, self._seen, self._ended, self._episodes = False, False, 0, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {name: getattr(self, name) for name in self._SAVED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        for name in self._SAVED:
            setattr(self, name, state.get(name, 0.0) if name == "_episodes" else state[name])

    def observe(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in the metrics of an iteration."""
        found = []
        self._seen += 1
        self._ended += metrics.get("train_episodes", 0.0) > 0.0
        self._episodes += metrics.get("train_episodes", 0.0)
        self._rewarded |= any(metrics.get(name, 0.0) != 0.0 for name in ("train_return", "train_success_rate"))
        if self._seen == 1 and metrics.get("obs_out_of_range", 0.0) > OUT_OF_RANGE:
            found.append(
                f"{100 * metrics['obs_out_of_range']:.0f} % of the observed values are outside the range of the "
                "demonstrations, which normalises them: either these are of another version of the task, or too few."
            )
        acting_s, simulation_s = (metrics.get(name, 0.0) for name in ("inference_s", "simulation_s"))
        if self._seen == 1 and acting_s > max(SLOW_ACTING_S, simulation_s):
            found.append(
                f"Workers spent {acting_s:.0f} s of the first rollout in the policy and {simulation_s:.0f} s in the "
                "simulator. On a GPU they act faster: where there is one, compute.worker_gpu gives each a share of it."
            )
        enough = self._ended >= REWARD_PATIENCE and _tell(self._episodes)
        if enough and not (self._rewarded or self._told):
            self._told = True
            found.append(
                f"No reward has been seen in {counted(self._episodes, 'episodes')}, so reinforcement learns nothing: "
                "clone longer, explore more, or collect longer rollouts (rollout.num_envs, rollout.num_decisions)."
            )
        return found
