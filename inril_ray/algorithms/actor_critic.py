"""What soft actor-critics share: a squashed Gaussian that climbs its critics, with entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.base import AlgorithmContext, Losses, UnitFloat
from inril_ray.algorithms.off_policy import OffPolicyAlgorithm, OffPolicyConfig, critic_stats
from inril_ray.config import config
from inril_ray.losses.value import ensemble_loss, td_target
from inril_ray.policies.base import Policy
from inril_ray.policies.tanh_gaussian import TanhGaussianPolicy
from inril_ray.replay import Transitions


@config
class SoftConfig(OffPolicyConfig):
    """Settings of soft actor-critics."""

    actor_lr: PositiveFloat = 3e-4
    critic_lr: PositiveFloat = 3e-4
    temperature_lr: PositiveFloat = 3e-4
    batch_size: PositiveInt = 256
    replay_ratio: PositiveFloat = 256
    """At 256, one update for each new transition."""
    buffer_size: PositiveInt = 100_000
    discount: UnitFloat = 0.99
    critic_num_hidden: PositiveInt = 2
    init_temperature: PositiveFloat = 1.0
    entropy_share: Annotated[float, Field(ge=0)] = 1.0
    """Entropy that is aimed at, as minus so many times the dimensions of a chunk."""
    entropy_backup: bool = True
    """Values count the entropy to come."""


class Temperature(nn.Module):
    """alpha = exp(log_alpha)."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(initial).log())

    def forward(self) -> Tensor:
        """Return alpha."""
        return self.log_alpha.exp()


class SoftActorCritic(OffPolicyAlgorithm):
    """Subclasses say which of the critics count."""

    policies = ("tanh_gaussian",)
    activation: ClassVar[str] = "relu"
    config: SoftConfig

    def __init__(self, config: SoftConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        self.temperature = self.add_module(
            "temperature", Temperature(config.init_temperature), lr=config.temperature_lr
        )
        self.target_entropy = -config.entropy_share * self.chunk_shape[0] * self.chunk_shape[1]

    def target_value(self, q: Tensor, minibatch: Transitions) -> Tensor:
        """Return the value [N] that targets use of the averaged critics' values [E, N]."""
        return q.min(dim=0).values

    def actor_value(self, q: Tensor) -> Tensor:
        """Return the value [N] that the actor climbs."""
        return q.min(dim=0).values

    def bootstrap(self, policy: TanhGaussianPolicy, minibatch: Transitions) -> Tensor:
        """Return the value [N] of the next observations."""
        noise = minibatch.noise(2, *minibatch.actions.shape)
        following, log_prob = policy.sample_scored(minibatch.next_obs, noise)
        q = self.target_critics(policy.normalizer.obs(minibatch.next_obs), following)
        value = self.target_value(q, minibatch)
        return value - self.temperature() * log_prob if self.config.entropy_backup else value

    def update_critics(self, policy: TanhGaussianPolicy, minibatch: Transitions) -> Mapping[str, Tensor]:
        """Step the critics towards the soft value of what the policy does next."""
        b = minibatch
        with torch.no_grad():
            target = td_target(b.rewards, b.terminated, self.bootstrap(policy, b), self.config.discount)
        q = self.critics(policy.normalizer.obs(b.obs), b.actions)
        loss = ensemble_loss(q, target)
        extra, stats = self.regularization(policy, b, q)
        self.step("critics", loss + extra)
        self.follow("target_critics")
        return {**critic_stats(q, target, loss), **stats}

    def regularization(
        self, policy: TanhGaussianPolicy, minibatch: Transitions, q: Tensor
    ) -> tuple[Tensor | float, Mapping[str, Tensor]]:
        """Return a further loss of the critics and what is logged of it."""
        return 0.0, {}

    def loss(self, policy: Policy, minibatch: Transitions) -> Losses:
        """Return alpha log pi - Q on fresh samples."""
        assert isinstance(policy, TanhGaussianPolicy)
        chunk, log_prob = policy.sample_scored(minibatch.obs, minibatch.noise(3, *minibatch.actions.shape))
        value = self.actor_value(self.critics(policy.normalizer.obs(minibatch.obs), chunk))
        loss = (self.temperature().detach() * log_prob - value).mean()
        stats = {"policy_loss": loss.detach(), "q_policy": value.detach().mean(), "entropy": -log_prob.detach().mean()}
        return Losses(policy=loss, stats=stats)

    def after_actor_step(self, policy: Policy, losses: Losses) -> None:
        """Raise the temperature where the entropy is below its aim, and lower it where it is above."""
        self.step("temperature", self.temperature() * (losses.stats["entropy"] - self.target_entropy))
