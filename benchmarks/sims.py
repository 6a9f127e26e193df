"""All simulators against their references, and the memory of 50 Lift environments: one run, one table."""

from __future__ import annotations

import multiprocessing
import statistics
import warnings
from typing import Any

from benchmarks import gym_sims, robomimic_sims
from benchmarks.result import write
from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS

GOALS = {
    "robomimic/lift": (6.0, 10.0),
    "robomimic/can": (5.0, 7.0),
    "robomimic/square": (5.0, 7.0),
    "robomimic/transport": (3.5, 4.0),
}
"""Task to the goals of ``fast`` and ``kernel``."""
MEMORY_GOAL_MB = 400


def main() -> None:
    """Measure, print a table, write the result."""
    warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)  # v4 is meant
    rows: list[tuple[str, str, float, float, float, float]] = []
    for task, goals in GOALS.items():
        for kind in robomimic_sims.ACTIONS:
            if kind == "scripted" and task not in DEMONSTRATORS:
                continue
            rates = robomimic_sims.measure(task, kind)
            for backend, goal in zip(("fast", "kernel"), goals, strict=True):
                own, other = statistics.median(rates[backend]), statistics.median(rates["stock"])
                ratio = robomimic_sims.against_stock(rates, backend)
                rows.append((f"{task} {kind}", backend, own, other, ratio, goal))
    for task in gym_sims.TASKS:
        own, other = gym_sims.measure(task)
        entry = envs.entry(task.name)
        rows.append((task.name, entry.backends[0], own, other, own / other, gym_sims.goal(task)))
    scaling = {}
    for task in GOALS:
        # In turns, because other users of the machine come and go.
        pairs = [(robomimic_sims.rates_together(task, n) for n in (1, 2)) for _ in range(3)]
        scaling[task] = round(statistics.median(sum(two) / one[0] for one, two in pairs), 2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(memory_of_lift)
    print(
        f"{'task, actions':28s} {'backend':8s} {'env-steps/CPU s':>16s} {'reference':>10s} {'ratio':>6s} {'goal':>5s}"
    )
    for task, backend, own, other, ratio, goal in rows:
        print(f"{task:28s} {backend:8s} {own:16.0f} {other:10.0f} {ratio:6.2f} {goal:5.1f}")
    print(f"two processes of kernel to one, on the clock: {scaling}")
    print(f"50 Lift environments: {memory}, goal under {MEMORY_GOAL_MB} MB")
    figures: dict[str, Any] = {"memory_mb": memory, "two_processes_to_one": scaling}
    for task, backend, own, other, ratio, goal in rows:
        rate = {"env_steps_per_cpu_s": round(own), "reference_env_steps_per_cpu_s": round(other)}
        figures[f"{task} {backend}"] = {**rate, "ratio": round(ratio, 2), "goal": goal}
    write(
        "simulators",
        figures,
        reference="stock robosuite 1.5.2 with lite_physics; gymnasium's SyncVectorEnv; a loop over gym.make",
        ratio=round(min(row[4] / row[5] for row in rows), 2),
        goal="ratio of the worst row to its goal: at least 1",
    )


def memory_of_lift() -> dict[str, int]:
    """Return the resident megabytes of a process before and after making 50 Lift environments and stepping them."""
    import psutil

    from inril_ray.envs.robomimic.tasks import import_robosuite

    import_robosuite()

    def resident() -> int:
        return round(psutil.Process().memory_info().rss / 1e6)

    before = resident()
    env = envs.make("robomimic/lift", num_envs=50, seed=0)
    env.reset()
    for _ in range(5):
        env.step(env.action_space.sample())
    return {"packages": before, "with_50_environments": resident(), "environments": resident() - before}


if __name__ == "__main__":
    main()
