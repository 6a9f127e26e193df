"""Reward-weighted regression: imitate one's own episodes, good ones more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.base import Algorithm, AlgorithmConfig, AlgorithmContext, Experience, Losses, Update
from inril_ray.algorithms.off_policy import needs_whole_chain
from inril_ray.config import config
from inril_ray.losses.returns import returns_to_go
from inril_ray.policies.base import Policy
from inril_ray.types import Rollout


@config
class RWRConfig(AlgorithmConfig):
    """Settings of reward-weighted regression. Defaults are those of DPPO's comparison on Robomimic."""

    actor_lr: Annotated[float, Field(gt=0)] = 1e-5
    weight_decay: NonNegativeFloat = 1e-6
    num_epochs: PositiveInt = 16
    batch_size: PositiveInt = 1000
    temperature: NonNegativeFloat = 10.0
    """Of the weights, exp(temperature x normalised return)."""
    max_weight: PositiveFloat = 100.0


@dataclass(frozen=True, kw_only=True)
class WeightedChunks:
    """N decisions and how much they count."""

    obs: Tensor
    """[N, O]"""
    actions: Tensor
    """[N, H, A] normalised."""
    weight: Tensor
    """[N]"""
    seed: int


@dataclass(frozen=True, kw_only=True)
class FinishedEpisodes(Experience):
    """The decisions of the episodes that a rollout finished; all of them, with weight 0, where it finished none."""

    obs: Tensor
    actions: Tensor
    weight: Tensor
    size: int
    num_epochs: int
    finished: bool
    stats: dict[str, float]

    @property
    def batch_size(self) -> int:
        """Decisions in a minibatch."""
        return self.size

    @property
    def nominal_updates(self) -> int:
        """Minibatches times epochs."""
        return self.num_epochs * max(1, len(self.obs) // self.batch_size)

    def updates(self, generator: torch.Generator) -> Iterator[Update]:
        """Yield the minibatches of all passes; nothing where no episode was finished."""
        if not self.finished:
            return
        for _ in range(self.num_epochs):
            order = torch.randperm(len(self.obs), generator=generator)
            for start in range(0, max(1, len(order) // self.batch_size) * self.batch_size, self.batch_size):
                yield Update(minibatch=self._take(order[start : start + self.batch_size], generator))

    def sample(self, generator: torch.Generator, limit: int | None = None) -> WeightedChunks:
        """Draw a minibatch with replacement."""
        size = min(self.batch_size, limit or self.batch_size)
        return self._take(torch.randint(len(self.obs), (size,), generator=generator), generator)

    def _take(self, index: Tensor, generator: torch.Generator) -> WeightedChunks:
        seed = int(torch.randint(2**40, (1,), generator=generator))
        index = index.to(self.obs.device)
        return WeightedChunks(obs=self.obs[index], actions=self.actions[index], weight=self.weight[index], seed=seed)


class RWR(Algorithm):
    """Source: Peters and Schaal 2007, with a diffusion policy as in DPPO's comparison.

    An iteration in which no episode ends changes nothing; DPPO's code uses stale data there.
    """

    Config = RWRConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: RWRConfig

    @staticmethod
    def problem(config: Any, actor: Any) -> str | None:  # noqa: ARG004 - see Algorithm
        """See :meth:`Algorithm.problem`."""
        return needs_whole_chain(actor)

    def __init__(self, config: RWRConfig, context: AlgorithmContext) -> None:
        self.config, self.device, self._policy = config, context.device, context.policy
        self.num_iterations = context.num_iterations

    @property
    def acting(self) -> Policy:
        """The policy."""
        return self._policy

    def modules(self) -> dict[str, nn.Module]:
        """There are no critics."""
        return {}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """There are no critics."""
        return {}

    def prepare(self, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> Experience:
        """Weight the decisions of finished episodes by their discounted returns to go."""
        cfg = self.config
        returns, finished = returns_to_go(rollout.rewards, rollout.terminated | rollout.truncated, cfg.discount)
        used = finished & rollout.valid & np.isfinite(returns)
        some = bool(used.any())
        chosen = used if some else rollout.valid
        weight = np.zeros(int(chosen.sum()), np.float32)
        if some:
            x = returns[used]
            scaled = cfg.temperature * (x - x.mean()) / (x.std() + 1e-3)
            weight = np.minimum(np.exp(np.minimum(scaled, 80.0)), cfg.max_weight).astype(np.float32)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(array, np.float32, order="C")).to(self.device)

        return FinishedEpisodes(
            obs=tensor(rollout.obs[chosen]),
            actions=tensor(rollout.chains[:, :, -1][chosen]),
            weight=tensor(weight),
            size=min(cfg.batch_size, int(chosen.sum())),
            num_epochs=cfg.num_epochs,
            finished=some,
            stats={"dropped_samples": float((~rollout.valid).sum()), "finished_decisions": float(used.sum())},
        )

    def loss(self, policy: Policy, minibatch: WeightedChunks) -> Losses:
        """Return the weighted loss of cloning one's own chunks."""
        b = minibatch
        generator = torch.Generator().manual_seed(b.seed)
        noise = torch.randn(b.actions.shape, generator=generator).to(self.device)
        uniform = torch.rand(len(b.obs), generator=generator).to(self.device)
        actions = policy.normalizer.unnormalize_action(b.actions)
        loss = policy.il_loss(b.obs, actions, noise, uniform, "all", weight=b.weight)
        return Losses(policy=loss, stats={"policy_loss": loss.detach(), "imitation_weight": b.weight.mean()})
