"""Measure how well a policy does, on initial states that training never sees."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from inril_ray.config import config
from inril_ray.envs.base import PURPOSES
from inril_ray.envs.base_actions import BaseActions
from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.policies.base import Policy
from inril_ray.progress import steps
from inril_ray.rollout import ActionNoise
from inril_ray.statistics import mean_estimate, rate
from inril_ray.types import EnvSpec, EpisodeStats, InrilError, SuccessRule


@config
class EvaluationConfig:
    """When and how policies are measured."""

    every: NonNegativeInt = 10
    """Iterations between evaluations; 0 evaluates only at the start and the end."""
    num_episodes: PositiveInt = 100
    """Episodes of each evaluation on the way."""
    final_episodes: PositiveInt = 200
    """Episodes of the first and the last evaluation."""
    num_envs: PositiveInt = 50
    """Environments; episode e runs in environment e mod ``num_envs``, whatever the number of workers."""


class Evaluator:
    """Runs the same evaluation episodes each time it is asked, so that evaluations are paired.

    Args:
        env: environments made for the purpose ``"eval"``.
        seed: of the experiment.
        total_envs: evaluation environments of all workers together.
        device: where inference runs.
    """

    def __init__(
        self, env: ChunkedEnv | BaseActions, seed: int, total_envs: int, device: torch.device | str = "cpu"
    ) -> None:
        self.env, self.seed, self.total_envs = env, seed, total_envs
        self.device = torch.device(device)

    def evaluate(self, policy: Policy, num_episodes: int) -> EpisodeStats:
        """Run this worker's share of the first ``num_episodes`` evaluation episodes.

        Args:
            policy: acts deterministically.
            num_episodes: of all workers together.
        """
        sim = self.env.env
        sim.episode[:] = -1
        envs = range(sim.first_env, sim.first_env + sim.num_envs)
        limit = math.ceil(self.env.spec.max_episode_steps / self.env.action_horizon)
        parts = []
        rounds = range(0, num_episodes, self.total_envs)
        for first in steps(rounds, "evaluation, rounds", len(rounds)):
            wanted = np.array([i for i in envs if first + i < num_episodes])
            if len(wanted) == 0:
                continue
            # New streams for each round: how long the last one took must not matter to this one.
            episodes = range(first + envs.start, first + envs.stop)
            noise = ActionNoise(self.seed, PURPOSES.index("eval"), episodes, policy.noise_shape)
            obs = self.env.reset()
            self.env.pop_episodes()
            found: dict[int, EpisodeStats] = {}
            # An environment that the NaN guard resets delivers no episode for the broken one, hence the factor 2.
            for _ in range(2 * limit):
                action = policy.act(
                    torch.from_numpy(obs).to(self.device), noise.draw().to(self.device), deterministic=True
                )
                obs = self.env.step(action.chunk.cpu().numpy()).obs
                ended = self.env.pop_episodes()
                for k, index in enumerate(ended.envs):
                    found.setdefault(int(index), ended.rows([k]))
                if all(i in found for i in wanted):
                    break
            missing = [int(i) for i in wanted if int(i) not in found]
            if missing:
                raise InrilError(f"Evaluation environments {missing} never finished an episode.")
            # Environments restarted in the meantime; the next round must begin with the same episode for all.
            sim.episode[:] = first // self.total_envs
            parts.append(EpisodeStats.concatenate([found[int(i)] for i in wanted]))
        return EpisodeStats.concatenate(parts) if parts else self.env.pop_episodes().rows([])


def episode_scores(episodes: EpisodeStats, spec: EnvSpec) -> np.ndarray:
    """Return [E] what each episode counts: 0 or 1 for success by the task's rule, or its return on the task's scale."""
    if spec.score_range is None:
        return episodes.success.astype(np.int64)
    worst, best = spec.score_range
    return (episodes.returns.astype(np.float64) - worst) / (best - worst)


def evaluation_metrics(episodes: EpisodeStats, spec: EnvSpec) -> dict[str, float]:
    """Return the score with its interval, the mean return and, where the task has success, its rate by every rule.

    ``success_rate``, which is the score, goes by the rule of the task; those by other rules have the rule in their
    name, so that the one that has none there is that of the task.
    """
    scores = episode_scores(episodes, spec)
    counted = spec.score_range is None
    found = rate(int(scores.sum()), len(scores)) if counted else mean_estimate(scores)
    ends = {"": found.value, "_low": found.low, "_high": found.high}
    metrics = {f"score{end}": value for end, value in ends.items()}
    if counted:
        metrics |= {f"success_rate{end}": value for end, value in ends.items()}
        others = (rule for rule in get_args(SuccessRule) if rule != spec.success)
        metrics |= {f"success_rate_{rule}": float(getattr(episodes, rule).mean()) for rule in others}
    return metrics | {"eval_episodes": float(len(scores)), "eval_return": float(episodes.returns.mean())}
