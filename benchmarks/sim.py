"""Fast against stock Lift: env-steps per CPU second on the same scripted episodes, in one run."""

from __future__ import annotations

import statistics
import time

import numpy as np

from benchmarks.result import write
from inril_ray import envs
from inril_ray.demos.scripted.arm import ArmStyleConfig
from inril_ray.demos.scripted.lift import LiftDemonstrator
from inril_ray.envs.base import EnvConfig

STEPS, ROUNDS, FAST_ENVS = 100, 5, 10


def record_actions(seed: int, num_envs: int) -> np.ndarray:
    """Return actions [T, B, 7] of scripted episodes."""
    env = envs.make("robomimic/lift", num_envs=num_envs, seed=seed)
    obs, _ = env.reset()
    actors = [LiftDemonstrator(np.random.default_rng([seed, i]), ArmStyleConfig()) for i in range(num_envs)]
    rows = []
    for _ in range(STEPS):
        rows.append(np.stack([actor.act(o) for actor, o in zip(actors, obs, strict=True)]))
        obs = env.step(rows[-1])[0]
    return np.stack(rows)


def steps_per_cpu_second(backend: str, num_envs: int, seed: int, actions: np.ndarray) -> float:
    """Step a fresh batch through the actions; resets are not counted."""
    config = EnvConfig(backend=backend)  # type: ignore[arg-type]
    env = envs.make("robomimic/lift", num_envs=num_envs, seed=seed, config=config)
    env.reset()
    start = time.process_time()
    for row in actions:
        env.step(row[:num_envs])
    return len(actions) * num_envs / (time.process_time() - start)


def main() -> None:
    """Measure in alternation, so that both see the same machine."""
    pairs = []
    for seed in range(ROUNDS + 1):
        actions = record_actions(seed, FAST_ENVS)
        pair = (steps_per_cpu_second("fast", FAST_ENVS, seed, actions), steps_per_cpu_second("stock", 1, seed, actions))
        if seed:  # the first round compiles and warms caches
            pairs.append(pair)
    ratios = [f / s for f, s in pairs]
    write(
        "lift_fast_vs_stock",
        {
            "fast_env_steps_per_cpu_s": round(statistics.median(f for f, _ in pairs), 1),
            "stock_env_steps_per_cpu_s": round(statistics.median(s for _, s in pairs), 1),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "rounds": ROUNDS,
        },
        reference="stock robosuite 1.5.2 with lite_physics, same scripted actions, same run",
        ratio=round(statistics.median(ratios), 2),
        goal="at least 6",
    )


if __name__ == "__main__":
    main()
