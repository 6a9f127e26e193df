"""The furniture tasks on CPU cores: CPU time of an env-step in scripted episodes, of a reset, and memory.

The reference is what one would write without batches: a loop in Python over single environments, each with a batch of
one, on the same model and the same actions. Both take turns in every round, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.result import write
from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.registry import resolve

TASKS = {"furniture/one_leg_low": 320, "furniture/peg_in_hole": 80}
"""Task to the control steps of its scripted episodes that are replayed."""
BLOCK = 10
SEED = 0


def experts_of(task: str, num_envs: int) -> list[Any]:
    """Return an expert for each environment."""
    demonstrator = resolve(DEMONSTRATORS, task, "demonstrator")
    return [demonstrator(np.random.default_rng([SEED, i]), demonstrator.Config()) for i in range(num_envs)]


def scripted_actions(task: str, num_envs: int, steps: int) -> np.ndarray:
    """Return the actions [T, B, A] of scripted episodes."""
    env = envs.make(task, num_envs=num_envs, seed=SEED)
    experts = experts_of(task, num_envs)
    everywhere = np.ones(num_envs, bool)
    obs, actions = env.reset_envs(everywhere), []
    for _ in range(steps):
        actions.append(np.stack([expert.act(row) for expert, row in zip(experts, obs, strict=True)]))
        obs = env.advance_guarded(actions[-1], everywhere)[0].obs
    env.close()
    return np.stack(actions)


def cpu_milliseconds(task: str, num_envs: int, steps: int) -> tuple[list[float], list[float]]:
    """Return CPU milliseconds of an env-step, ours and in the loop, a value for each round."""
    actions = scripted_actions(task, num_envs, steps)
    batch = envs.make(task, num_envs=num_envs, seed=SEED)
    loop = [envs.make(task, num_envs=1, seed=SEED, first_env=i) for i in range(num_envs)]
    for env in (batch, *loop):
        env.reset_envs(np.ones(env.num_envs, bool))
    ours, reference = [], []
    for start in range(0, steps, BLOCK):
        block = actions[start : start + BLOCK]
        marks = [time.process_time()]
        for row in block:
            batch.advance_guarded(row, np.ones(num_envs, bool))
        marks.append(time.process_time())
        for row in block:
            for i, env in enumerate(loop):
                env.advance_guarded(row[i : i + 1], np.ones(1, bool))
        marks.append(time.process_time())
        for values, seconds in zip((ours, reference), np.diff(marks), strict=True):
            values.append(1e3 * seconds / (len(block) * num_envs))
    np.testing.assert_array_equal(batch.obs, np.concatenate([env.obs for env in loop]))
    for env in (batch, *loop):
        env.close()
    return ours, reference


def memory_and_resets(num_envs: int) -> dict[str, float]:
    """Return megabytes of so many environments of one_leg, and the cost of resetting each."""
    import psutil

    from inril_ray.envs.rendering import import_mujoco

    import_mujoco()
    before = psutil.Process().memory_info().rss
    env = envs.make("furniture/one_leg_low", num_envs=num_envs, seed=SEED)
    start = time.process_time()
    env.reset()
    reset = time.process_time() - start
    env.step(np.zeros(env.action_space.shape or (), np.float32))
    return {
        "environments": num_envs,
        "memory_mb": round((psutil.Process().memory_info().rss - before) / 1e6),
        "reset_cpu_ms_per_environment": round(1e3 * reset / num_envs, 3),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", type=int, default=64, help="environments that are timed")
    parser.add_argument("--memory-envs", type=int, default=1024, help="environments whose memory is measured")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"environments": arguments.envs}
    ratios = []
    for task, steps in TASKS.items():
        ours, reference = cpu_milliseconds(task, arguments.envs, steps)
        ratios.append(statistics.median(b / a for a, b in zip(ours, reference, strict=True)))
        figures[task] = {
            "cpu_ms_per_env_step": round(statistics.mean(ours), 3),
            "reference_cpu_ms_per_env_step": round(statistics.mean(reference), 3),
            "ratio": round(ratios[-1], 2),
        }
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures["one_leg"] = pool.apply(memory_and_resets, (arguments.memory_envs,))
    write(
        "furniture",
        figures,
        reference="a loop in Python over single environments on the same model, same actions, same process",
        ratio=round(min(ratios), 2),
        goal="one_leg at most 1.6 CPU milliseconds per env-step; 1024 environments in under 1 GB",
    )


if __name__ == "__main__":
    main()
