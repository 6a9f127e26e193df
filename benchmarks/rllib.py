"""RLlib's PPO against ours on the same environments, and what the plug-in costs inside RLlib."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.result import write
from inril_ray import envs
from inril_ray.backend import LocalBackend
from inril_ray.demos.store import DemoArrays, DemoInfo
from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome, Task
from inril_ray.experiment import load_config
from inril_ray.rllib import with_interleaving, with_task
from inril_ray.threads import available_cpus
from inril_ray.types import BoolArray, EnvSpec, FloatArray

SYNTHETIC = "bench/synthetic"
HIDDEN, LAYERS = 192, 3
"""As much arithmetic as RLlib's own 2 x 256; ours have an odd number of layers."""
CYCLE = 10
"""m, and the iterations that are timed together in the second part."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One workload: environments, steps of each, epochs and minibatch."""

    task: str
    gym_id: str | None
    """Gymnasium's environment of the same kind, which users of RLlib have."""
    num_envs: int
    num_steps: int
    num_epochs: int
    minibatch: int
    goal: float

    @property
    def batch(self) -> int:
        """Environment steps of an iteration."""
        return self.num_envs * self.num_steps


SIZES = (
    Size(task=SYNTHETIC, gym_id=None, num_envs=1024, num_steps=32, num_epochs=2, minibatch=8192, goal=2.5),
    Size(task="gym/hopper", gym_id="Hopper-v4", num_envs=40, num_steps=50, num_epochs=5, minibatch=500, goal=1.5),
)


class SyntheticEnv(SimVectorEnv):
    """A damped linear system that costs next to nothing: what is measured is everything but the simulator."""

    def __init__(self, spec: EnvSpec, num_envs: int, seed: int, purpose: str, first_env: int) -> None:
        super().__init__(spec, num_envs, seed, purpose, first_env)
        rng = np.random.default_rng(0)
        self._push = rng.normal(size=(spec.action_dim, spec.obs_dim)).astype(np.float32)
        self._state = np.zeros((num_envs, spec.obs_dim), np.float32)

    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        self._state[mask] = 0.1
        return self._state

    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Move all; every one is active, since they end together."""
        self._state = 0.9 * self._state + 0.01 * np.clip(actions, -1.0, 1.0) @ self._push
        none = np.zeros(self.num_envs, bool)
        reward = -np.square(self._state).sum(axis=1)
        return StepOutcome(obs=self._state, reward=reward, terminated=none, success=none, stage=none.astype(np.int64))


class SyntheticTask(Task):
    """Observations and actions as wide as those of a furniture task."""

    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return the dimensions."""
        return EnvSpec(
            task=SYNTHETIC,
            obs_dim=58,
            action_dim=10,
            max_episode_steps=config.max_episode_steps or 100,
            control_hz=10.0,
            obs_keys=(("state", 58),),
        )

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch."""
        return SyntheticEnv(self.spec(config), num_envs, seed, purpose, first_env)


TASK = SyntheticTask(name=SYNTHETIC, backends=("fast",))


def random_demos(task: str, steps: int = 5000) -> DemoArrays:
    """Return demonstrations of the right widths; nothing is to be learned from them."""
    spec, rng = envs.spec(task, EnvConfig()), np.random.default_rng(0)
    info = DemoInfo(
        source_file="random",
        format="random",
        env_name=task,
        semantics=spec.semantics,
        source="scripted",
        obs_keys=spec.obs_keys,
        content_hash="random",
        metadata={},
    )
    return DemoArrays(
        obs=rng.normal(size=(steps, spec.obs_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, spec.action_dim)).astype(np.float32),
        rewards=np.zeros(steps, np.float32),
        episode_starts=np.arange(0, steps + 1, steps // 10),
        held_out=np.arange(10) >= 8,
        info=info,
    )


def stock(size: Size, demos: DemoArrays | None = None, *, own_envs: bool = False) -> Any:
    """Make RLlib's PPO, everything in this process; with demonstrations it interleaves at m = 10.

    Args:
        size: workload.
        demos: what is imitated.
        own_envs: Gymnasium's environments, as RLlib makes them, instead of ours.
    """
    config = PPOConfig().environment(size.gym_id) if own_envs else with_task(PPOConfig(), size.task)
    config = config.debugging(seed=0)
    config = config.env_runners(num_env_runners=0, num_envs_per_env_runner=size.num_envs)
    model = DefaultModelConfig(fcnet_hiddens=[HIDDEN] * LAYERS, fcnet_activation="relu", vf_share_layers=False)
    config = config.rl_module(model_config=model)
    config = config.training(
        train_batch_size_per_learner=size.batch, minibatch_size=size.minibatch, num_epochs=size.num_epochs
    )
    if demos is not None:
        config = with_interleaving(config, demos=demos, interleave={"every": CYCLE})
    return config.build_algo()


def ours(size: Size) -> LocalBackend:
    """Make our PPO, everything in this process, one action for each decision, without imitation."""
    config = load_config(
        [
            {
                "task": size.task,
                "algorithm": "ppo",
                "schedule": "rl_only",
                "actor": {"prediction_horizon": 1, "hidden_dim": HIDDEN, "num_hidden": LAYERS, "activation": "relu"},
                "pretrain": {"num_epochs": 0},
                "rl": {
                    "minibatch_size": size.minibatch,
                    "num_epochs": size.num_epochs,
                    "critic_hidden_dim": HIDDEN,
                    "critic_num_hidden": LAYERS,
                    "critic_activation": "relu",
                    "critic_warmup_iterations": 0,
                    "target_kl": None,
                },
                "rollout": {"num_envs": size.num_envs, "num_decisions": size.num_steps, "reset_each": False},
                "compute": {"device": "cpu", "learner_threads": available_cpus()},
            }
        ]
    )
    backend = LocalBackend(config, random_demos(size.task))
    backend.pretrain()
    return backend


def alternate(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Time runs in turn; the first round is not counted. Returns wall and CPU seconds of this process."""
    taken = {name: {"wall": [], "cpu": []} for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            torch.set_num_threads(available_cpus())  # whatever the environment says, and the run before has left
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                taken[name]["wall"].append(time.perf_counter() - wall)
                taken[name]["cpu"].append(time.process_time() - cpu)
    return taken


def ratios(taken: dict[str, dict[str, list[float]]], slow: str, fast: str) -> dict[str, float]:
    """Return medians, least and greatest of how many times longer one takes than another, round by round."""
    result = {}
    for kind in ("wall", "cpu"):
        each = [a / b for a, b in zip(taken[slow][kind], taken[fast][kind], strict=True)]
        result |= {
            f"ratio_{kind}": round(statistics.median(each), 3),
            f"ratio_{kind}_min": round(min(each), 3),
            f"ratio_{kind}_max": round(max(each), 3),
        }
    return result


def throughput(size: Size, rounds: int) -> dict[str, Any]:
    """Measure whole iterations of both trainers."""
    algorithms = {"rllib_on_our_envs": stock(size)}
    if size.gym_id:
        algorithms["rllib"] = stock(size, own_envs=True)
    backend = ours(size)
    taken = alternate({**{n: a.train for n, a in algorithms.items()}, "ours": backend.iterate}, rounds)
    for algorithm in algorithms.values():
        algorithm.stop()
    backend.close()
    speeds = {f"{name}_env_steps_per_s": round(size.batch / statistics.median(t["wall"])) for name, t in taken.items()}
    against = {f"to_{name}": ratios(taken, name, "ours") for name in algorithms}
    return {**speeds, **against, "goal": size.goal, "rounds": rounds}


def overhead(size: Size, rounds: int) -> dict[str, Any]:
    """Measure whole cycles of m iterations of RLlib's PPO with and without the plug-in."""
    plain, interleaved = stock(size), stock(size, random_demos(size.task))
    imitating: list[float] = []

    def without() -> None:
        for _ in range(CYCLE):
            plain.train()

    def with_it() -> None:
        each = [interleaved.train()["learners"]["default_policy"] for _ in range(CYCLE)]
        imitating.append(sum(s for result in each if math.isfinite(s := float(result.get("il_s", math.nan)))))

    taken = alternate({"plain": without, "interleaved": with_it}, rounds)
    plain.stop()
    interleaved.stop()
    shares = [il / wall for il, wall in zip(imitating[1:], taken["plain"]["wall"], strict=True)]
    share = {"imitation_steps_to_plain_wall": round(statistics.median(shares), 3)}
    return {**ratios(taken, "interleaved", "plain"), **share, "goal": 1.05, "rounds": rounds}


def main() -> None:
    """Measure both parts on both workloads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=3)
    arguments = parser.parse_args()
    envs.TASKS[SYNTHETIC] = "benchmarks.rllib:TASK"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    figures = {
        size.task: {"throughput": throughput(size, arguments.rounds), "overhead": overhead(size, arguments.cycles)}
        for size in SIZES
    }
    ray.shutdown()
    write(
        "rllib",
        figures,
        reference="RLlib's PPO with the same networks (3 x 192) on our environments, and on Gymnasium's where "
        "there are such, same batch, epochs, minibatches, all in one process, in turn; ratios of wall and of CPU "
        "time, ours the denominator, PyTorch with as many threads as there are cores; overhead: cycles of m = 10 "
        "iterations with the plug-in over cycles without, of which imitation's own steps take the share beside it",
        ratio=figures[SYNTHETIC]["throughput"]["to_rllib_on_our_envs"]["ratio_wall"],
        goal="throughput at least 2.5 on the synthetic task and 1.5 on Hopper; overhead at most 1.05",
    )


if __name__ == "__main__":
    main()
