"""Robomimic's backends: env-steps per CPU second on the same actions, random ones and those of scripted episodes.

A hand that holds an object costs more physics than one that moves about, and physics is the same for all backends.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any

import numpy as np

from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.envs.base import EnvConfig
from inril_ray.registry import resolve

STEPS, ROUNDS, NUM_ENVS = 100, 4, 10
TOGETHER_ROUNDS = 6
"""Passes over the actions by processes that run side by side."""
SEED = 0


def scripted_actions(task: str, num_envs: int) -> np.ndarray:
    """Return actions [T, B, A] of the first part of scripted episodes: reaching, grasping, carrying."""
    env = envs.make(task, num_envs=num_envs, seed=SEED, config=EnvConfig(backend="kernel"))
    obs, _ = env.reset()
    demonstrator = resolve(DEMONSTRATORS, task, "demonstrator")
    actors = [demonstrator(np.random.default_rng([SEED, i]), demonstrator.Config()) for i in range(num_envs)]
    rows = []
    for _ in range(STEPS):
        rows.append(np.stack([actor.act(o) for actor, o in zip(actors, obs, strict=True)]))
        obs = env.step(rows[-1])[0]
    return np.stack(rows)


def random_actions(task: str, num_envs: int) -> np.ndarray:
    """Return random actions [T, B, A] that drift."""
    shape = (STEPS, num_envs, envs.spec(task, EnvConfig()).action_dim)
    drift = np.random.default_rng(SEED).normal(size=shape).cumsum(axis=0)
    return 0.5 * np.clip(0.1 * drift, -1.0, 1.0).astype(np.float32)


ACTIONS = {"random": random_actions, "scripted": scripted_actions}


def measure(task: str, kind: str) -> dict[str, list[float]]:
    """Return env-steps per CPU second of every backend, a value for each round. Observations count, resets don't."""
    actions = ACTIONS[kind](task, NUM_ENVS)
    sizes = {"fast": NUM_ENVS, "kernel": NUM_ENVS, "stock": 1}
    made = {
        backend: envs.make(task, num_envs=size, seed=SEED, config=EnvConfig(backend=backend))  # type: ignore[arg-type]
        for backend, size in sizes.items()
    }
    rates: dict[str, list[float]] = {backend: [] for backend in made}
    for turn in range(ROUNDS + 1):
        for backend, env in made.items():
            env.reset(seed=SEED)
            start = time.process_time()
            for row in actions:
                env.step(row[: env.num_envs])
            spent = time.process_time() - start
            if turn:  # the first round compiles and warms caches
                rates[backend].append(STEPS * env.num_envs / spent)
    for env in made.values():
        env.close()
    return rates


def against_stock(rates: dict[str, list[float]], backend: str) -> float:
    """Return the median over rounds of a backend's rate to stock's."""
    return statistics.median(a / b for a, b in zip(rates[backend], rates["stock"], strict=True))


def rates_together(task: str, num_processes: int) -> list[float]:
    """Return env-steps per second on the clock of single-threaded processes that step at the same time."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(num_processes), context.Queue()
    processes = [context.Process(target=_one_of_several, args=(task, start, results)) for _ in range(num_processes)]
    for process in processes:
        process.start()
    rates = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return rates


def _one_of_several(task: str, start: Any, results: Any) -> None:
    actions = random_actions(task, NUM_ENVS)
    env = envs.make(task, num_envs=NUM_ENVS, seed=SEED, config=EnvConfig(backend="kernel"))
    env.reset()
    env.step(actions[0])
    start.wait()
    begin = time.perf_counter()
    for row in np.tile(actions, (TOGETHER_ROUNDS, 1, 1)):
        env.step(row)
    results.put(TOGETHER_ROUNDS * STEPS * NUM_ENVS / (time.perf_counter() - begin))
