"""How often the scripted experts of the furniture tasks succeed, and how far resets move parts."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.furniture import SEED, experts_of
from benchmarks.result import write
from inril_ray import envs
from inril_ray.envs.furniture import logic
from inril_ray.statistics import rate

TASKS = (
    *(f"furniture/{name}_{level}" for name in ("one_leg", "lamp", "round_table") for level in ("low", "med", "high")),
    "furniture/mug_rack",
    "furniture/peg_in_hole",
)
SETTLE = 15
"""Control steps after which pushed parts lie still."""


def success(task: str, episodes: int) -> dict[str, Any]:
    """Return how many of so many episodes an expert completes, and after how many control steps."""
    env: Any = envs.make(task, num_envs=episodes, seed=SEED)
    experts, active, lengths = experts_of(task, episodes), np.ones(episodes, bool), []
    obs, start, steps, broken = env.reset_envs(active), time.process_time(), 0, 0
    for step in range(env.task_spec.max_episode_steps):
        actions = np.zeros((episodes, 10), np.float32)
        for i in np.flatnonzero(active):
            actions[i] = experts[i].act(obs[i])
        outcome, _, blown = env.advance_guarded(actions, active.copy())
        steps += int(active.sum())
        done = active & outcome.success
        lengths += [step + 1] * int(done.sum())
        broken += int((active & blown).sum())
        active &= ~(outcome.success | outcome.terminated | blown)
        obs = outcome.obs
        if not active.any():
            break
    env.close()
    successes = rate(len(lengths), episodes)
    return {
        "successes": len(lengths),
        "episodes": episodes,
        "rate_low": round(successes.low, 3),
        "rate_high": round(successes.high, 3),
        "median_steps": statistics.median(lengths) if lengths else None,
        "longest": max(lengths, default=None),
        "blown_up": broken,
        "cpu_ms_per_env_step_with_expert": round(1e3 * (time.process_time() - start) / steps, 2),
    }


def displacements(task: str, episodes: int) -> dict[str, Any]:
    """Return how far parts are from where they are put, when they have come to rest: median and greatest.

    The hand holds still meanwhile. Parts that fall over or are pushed by others count as they are.
    """
    env: Any = envs.make(task, num_envs=episodes, seed=SEED)
    everywhere = np.ones(episodes, bool)
    obs = env.reset_envs(everywhere)
    hold = np.concatenate([obs[:, :9], np.full((episodes, 1), -1.0)], axis=1).astype(np.float32)
    for _ in range(SETTLE):
        env.advance_guarded(hold, everywhere)
    pos, _ = logic.part_poses(env.physics.qpos, env.where)
    rows = {}
    for k, part in enumerate(env.furniture.parts):
        moved = 1e3 * np.linalg.norm((pos[:, k] - part.start[0])[:, :2], axis=1)
        rows[part.name] = {"median_mm": round(float(np.median(moved)), 1), "greatest_mm": round(float(moved.max()), 1)}
    env.close()
    return rows


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for task in arguments.tasks:
        figures[task] = {
            **success(task, arguments.episodes),
            "moved_by_reset": displacements(task, arguments.episodes),
        }
        print(task, figures[task], flush=True)
    easiest = [f["successes"] / f["episodes"] for name, f in figures.items() if not name.endswith(("med", "high"))]
    write(
        "experts",
        figures,
        reference="none: rates of success",
        ratio=None,
        goal=f"at least 90 % of episodes at low randomness; lowest {min(easiest):.0%}" if easiest else "",
    )


if __name__ == "__main__":
    main()
