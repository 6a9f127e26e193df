"""Residual PPO: reinforce the correction of a base policy, which imitation alone may change."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from inril_ray.algorithms.base import AlgorithmContext, UnitFloat
from inril_ray.algorithms.on_policy import OnPolicyAlgorithm, OnPolicyConfig
from inril_ray.config import config
from inril_ray.losses.returns import RunningMoments
from inril_ray.policies.networks import ResidualCritic
from inril_ray.types import Rollout

WHOLE = 2**31
"""A minibatch size that no rollout reaches."""


@config
class ResidualPPOConfig(OnPolicyConfig):
    """Settings of residual PPO. Defaults are ResiP's."""

    actor_lr: PositiveFloat = 3e-4
    actor_min_lr: NonNegativeFloat | None = 0.0
    lr_warmup_iterations: Annotated[int, Field(ge=0)] = 5
    critic_lr: PositiveFloat = 5e-3
    critic_min_lr: NonNegativeFloat | None = 0.0
    weight_decay: NonNegativeFloat = 1e-6
    adam_eps: PositiveFloat = 1e-5
    num_epochs: PositiveInt = 50
    minibatch_size: PositiveInt = WHOLE
    """The whole rollout."""
    accumulate: PositiveInt | None = 65_536
    clip_ratio: PositiveFloat = 0.2
    value_coef: NonNegativeFloat = 1.0
    target_kl: PositiveFloat | None = 0.1
    max_grad_norm: PositiveFloat | None = 1.0
    """Of actor and critic together."""
    gae_lambda: UnitFloat = 0.95
    reward_limit: PositiveFloat = 5.0
    """Rewards, divided by the deviation of all rewards so far, are clipped to it."""
    critic_hidden_dims: tuple[PositiveInt, ...] = (256, 256)


class ResidualPPO(OnPolicyAlgorithm):
    """Source: Ankile et al. 2024 (ResiP); IN-RIL's residual variant.

    An environment whose episode ends begins the next one at once; the reference code lets it idle until the rollout's
    end and learns from the idle steps.
    """

    Config = ResidualPPOConfig
    policies = ("residual_mlp", "residual_unet", "residual_gaussian")
    joint_clip = True
    first_rise = 0  # its first iteration trains the critic only, at a rate of 0 of the actor
    config: ResidualPPOConfig

    def __init__(self, config: ResidualPPOConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        self._rewards = RunningMoments()

    def make_critic(self, context: AlgorithmContext) -> nn.Module:
        """Return an untrained value network of ResiP's kind."""
        return ResidualCritic(context.spec.obs_dim, self.config.critic_hidden_dims)

    def step_weights(self, num_scored_steps: int) -> tuple[list[float], list[float]]:
        """Return equal weights and clip ratios."""
        return [1.0] * num_scored_steps, [self.config.clip_ratio] * num_scored_steps

    def scaled_rewards(self, rollout: Rollout, *, fresh_start: bool) -> np.ndarray:
        """Divide by the deviation of all rewards so far."""
        if not self.config.scale_rewards:
            return rollout.rewards
        self._rewards.update(rollout.rewards)
        limit = self.config.reward_limit
        return np.clip(rollout.rewards / self._rewards.std, -limit, limit)

    def state_dict(self) -> dict[str, object]:
        """Return the moments of the rewards."""
        return {**super().state_dict(), "rewards": self._rewards.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Put back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._rewards.load_state_dict(state["rewards"])  # type: ignore[arg-type]
