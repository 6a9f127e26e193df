"""The furniture tasks on one GPU: env-steps per second of 1024 environments, alone and in a rollout worker. Needs CUDA.

Held against IN-RIL's 5,556 env-steps per second of one_leg on Isaac Gym (its figure, for 1024 environments with
learning, on another machine). Environments begin in states from all over scripted episodes, and go on with their
actions: hands that hold something cost more than hands that move about.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.furniture import SEED, experts_of
from benchmarks.result import write
from inril_ray import envs
from inril_ray.experiment import WorkerParts, load_config
from inril_ray.threads import torch_threads
from inril_ray.types import Rollout

TASK = "furniture/one_leg_low"
PAPER = 5556
EPISODES, SEGMENTS, STEPS = 8, 16, 20
"""Scripted episodes, parts of each that environments begin in, and control steps of a part."""


class Segments:
    """Places in scripted episodes to begin from, and the actions from there."""

    def __init__(self, num_envs: int) -> None:
        env: Any = envs.make(TASK, num_envs=EPISODES, seed=SEED)
        experts = experts_of(TASK, EPISODES)
        everywhere = np.ones(EPISODES, bool)
        obs, actions, starts = env.reset_envs(everywhere), [], []
        for step in range(SEGMENTS * STEPS):
            if step % STEPS == 0:
                starts.append({name: value.copy() for name, value in state_of(env).items()})
            actions.append(np.stack([expert.act(row) for expert, row in zip(experts, obs, strict=True)]))
            obs = env.advance_guarded(actions[-1], everywhere)[0].obs
        env.close()
        pick = np.random.default_rng(SEED).integers(0, SEGMENTS * EPISODES, num_envs)
        self.state = {name: np.concatenate([s[name] for s in starts])[pick] for name in starts[0]}
        by_segment = np.stack(actions).reshape(SEGMENTS, STEPS, EPISODES, -1)
        self.actions = by_segment.transpose(1, 0, 2, 3).reshape(STEPS, SEGMENTS * EPISODES, -1)[:, pick]

    def begin(self, env: Any) -> None:
        """Put all environments to where their segments begin."""
        for name, target in state_of(env).items():
            target[:] = env.physics.array(self.state[name])
        env.physics.begin(env.physics.array(np.ones(env.num_envs, bool)))
        env.elapsed[:] = 0


def state_of(env: Any) -> dict[str, Any]:
    """Return the arrays that say where environments are, which are their memory."""
    physics = env.physics
    return {
        "qpos": physics.qpos, "qvel": physics.qvel, "equalities": physics.active_equalities,
        "obstacle": physics.obstacle, "opens": env.opens, "holes": env.holes, "assembled": env.assembled,
    }  # fmt: skip


def env_steps_per_second(env: Any, segments: Segments, step: Callable[[int], Any], rounds: int) -> float:
    """Return the rate of ``step``, called with the number of a control step in the segments."""
    seconds = 0.0
    for turn in range(rounds + 1):
        segments.begin(env)
        start = time.perf_counter()
        for k in range(STEPS):
            step(k)
        seconds += (time.perf_counter() - start) * (turn > 0)  # the first round warms up
    return rounds * STEPS * env.num_envs / seconds


def measure(worker: WorkerParts, rounds: int) -> tuple[dict[str, float], Rollout]:
    """Return the rates of the simulation, the environment and the worker, and a rollout of the last."""
    env: Any = worker.collector.env.env
    everywhere, segments = np.ones(env.num_envs, bool), Segments(env.num_envs)
    env.reset()
    physics = env.physics
    on = physics.array(everywhere)
    arms = physics.array(segments.state["qpos"])[:, :7]
    hold = torch.cat([arms, torch.full((len(on), 2), -13.0, device=on.device)], 1)
    rates = {
        "simulation": env_steps_per_second(env, segments, lambda _: physics.step(hold, on), rounds),
        "environment": env_steps_per_second(
            env, segments, lambda k: env.advance_guarded(segments.actions[k], everywhere), rounds
        ),
    }
    worker.collector.collect(0)  # warms up
    start = time.perf_counter()
    rollout = worker.collector.collect(0)
    return rates | {"with_policy": rollout.env_steps / (time.perf_counter() - start)}, rollout


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decisions", type=int, default=100, help="control steps with the policy")
    parser.add_argument("--cpu", action="store_true", help="run on CPU cores, to try this program out; writes nothing")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu:
        sys.exit("This benchmark needs a GPU with CUDA, and there is none here. `make bench-furniture` needs none.")
    config = load_config(
        [
            {"task": TASK, "algorithm": "residual_ppo", "env": {"backend": "warp"}, "seed": SEED},
            {"rollout": {"num_envs": arguments.envs, "num_decisions": arguments.decisions, "reset_each": False}},
            {"env": {"furniture": {"warp_device": "cpu"}}, "compute": {"device": "cpu"}} if arguments.cpu else {},
        ]
    )
    with torch_threads(1):  # as `inril train` does in the process of a worker
        worker = WorkerParts(config, 0, 1)
        rates, rollout = measure(worker, arguments.rounds)
    figures: dict[str, Any] = {f"env_steps_per_s_{name}": round(rate) for name, rate in rates.items()}
    figures |= {"environments": arguments.envs, "policy": config.policy, "acts_on": worker.device.type}
    figures |= worker.collector.env.env.versions()
    figures |= {f"with_policy_{name}_s": round(seconds, 2) for name, seconds in rollout.timings_s.items()}
    if arguments.cpu:
        print(figures)
        return
    write(
        "furniture_gpu",
        figures,
        reference=f"{PAPER} env-steps/s with learning, IN-RIL on Isaac Gym; not measured here",
        ratio=round(rates["with_policy"] / PAPER, 2),
        goal="ratio at least 1",
    )


if __name__ == "__main__":
    main()
