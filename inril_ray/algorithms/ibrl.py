"""IBRL: the cloned policy and the one that learns propose, critics choose, in acting and in targets."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.base import AlgorithmContext, Losses, UnitFloat
from inril_ray.algorithms.off_policy import Choosing, OffPolicyAlgorithm, OffPolicyConfig, critic_stats, unscored
from inril_ray.config import config
from inril_ray.losses.value import ensemble_loss, td_target
from inril_ray.policies.base import Action, Policy
from inril_ray.replay import Transitions
from inril_ray.types import EnvSpec


@config
class IBRLConfig(OffPolicyConfig):
    """Settings of IBRL. Defaults are those of DPPO's comparison on Robomimic."""

    batch_size: PositiveInt = 256
    replay_ratio: PositiveFloat = 512
    """At 512, two critic updates for each new transition."""
    buffer_size: PositiveInt = 50_000
    critic_lr: PositiveFloat = 1e-4
    polyak: UnitFloat = 0.01
    num_critics: PositiveInt = 5
    critic_layer_norm: bool = True
    num_target_critics: Annotated[int, Field(ge=1)] = 2
    critic_steps: PositiveInt = 3
    """Steps of the critics for each of the actor."""
    choice: Literal["greedy", "soft"] = "soft"
    """Take the better proposal, or draw by softmax(beta x value) while training."""
    beta: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        if self.num_target_critics > self.num_critics:
            raise ValueError(f"num_target_critics {self.num_target_critics} exceeds num_critics {self.num_critics}")


class BetterOfTwo(Choosing):
    """Takes the proposal that critics value more.

    Args:
        policy: learns.
        cloned: the frozen base.
        critics: action values.
        config: how one is chosen.
    """

    def __init__(self, policy: Policy, cloned: Policy, critics: nn.Module, config: IBRLConfig) -> None:
        super().__init__(policy)
        self.cloned, self.critics, self.config = cloned, critics, config
        self.noise_shape = (2 * math.prod(policy.noise_shape) + 1,)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Choose chunks; see :meth:`Policy.act`."""
        own = noise[:, :-1].reshape(len(obs), 2, *self.policy.noise_shape)
        proposals = torch.stack(
            [p.act(obs, own[:, i], deterministic=deterministic).chain[:, -1] for i, p in enumerate(self._two())]
        )
        normalized = self.normalizer.obs(obs)
        q = torch.stack([self.critics(normalized, chunk).min(dim=0).values for chunk in proposals])
        first = q[0] > q[1]
        if self.config.choice == "soft" and not deterministic:
            quantile = 0.5 * (1.0 + torch.erf(noise[:, -1] / 2**0.5))
            first = quantile < torch.sigmoid(self.config.beta * (q[0] - q[1]))
        return unscored(torch.where(first[:, None, None], proposals[0], proposals[1]), self.policy)

    def _two(self) -> tuple[Policy, Policy]:
        return self.policy, self.cloned

    def trainable(self) -> list[nn.Parameter]:
        """Return all parameters: the cloned policy is not known to workers before it is published either."""
        return list(self.parameters())


class IBRL(OffPolicyAlgorithm):
    """Source: Hu et al. 2023.

    Critics are initialised independently and those that are trained choose; DPPO's code acts on critics that are never
    trained. Its dropout is left out: a draw from a global stream could not be resumed exactly.
    """

    Config = IBRLConfig
    policies = ("gaussian_mlp",)
    activation = "relu"
    config: IBRLConfig
    mixes_demos = True

    def __init__(self, config: IBRLConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        self.cloned: Policy = self.add_copy("cloned", context.policy)
        self.target_policy: Policy = self.add_copy("target_policy", context.policy)
        self._acting = BetterOfTwo(context.policy, self.cloned, self.critics, config)

    def begin(self, policy: Policy) -> None:
        """Keep the cloned policy."""
        super().begin(policy)
        self.cloned.load_state_dict(policy.state_dict())
        self.target_policy.load_state_dict(policy.state_dict())

    @staticmethod
    def behaviour(config: Any, policy: Policy, spec: EnvSpec) -> Policy:
        """Return what chooses between a policy and its clone."""
        critics = IBRL.new_critics(config, policy, spec)
        return BetterOfTwo(policy, copy.deepcopy(policy), critics, config)

    @property
    def acting(self) -> Policy:
        """The choice between both policies."""
        return self._acting

    def update_critics(self, policy: Policy, minibatch: Transitions) -> Mapping[str, Tensor]:
        """Step the critics towards the better of what both policies would do next."""
        b, cfg = minibatch, self.config
        obs, next_obs = policy.normalizer.obs(b.obs), policy.normalizer.obs(b.next_obs)
        with torch.no_grad():
            chosen = torch.randperm(cfg.num_critics, generator=b.generator(5))[: cfg.num_target_critics]
            options = []
            for stream, actor in ((2, self.target_policy), (6, self.cloned)):
                chunk = actor.sample(b.next_obs, b.noise(stream, len(obs), *policy.noise_shape))
                options.append(self.target_critics(next_obs, chunk)[chosen.to(obs.device)].min(dim=0).values)
            target = td_target(b.rewards, b.terminated, torch.maximum(*options), cfg.discount)
        q = self.critics(obs, b.actions)
        loss = ensemble_loss(q, target)
        self.step("critics", loss)
        self.follow("target_critics")
        return critic_stats(q, target, loss)

    def loss(self, policy: Policy, minibatch: Transitions) -> Losses:
        """Return minus the least value of fresh samples."""
        chunk = policy.sample(minibatch.obs, minibatch.noise(3, len(minibatch.obs), *policy.noise_shape))
        value = self.critics(policy.normalizer.obs(minibatch.obs), chunk).min(dim=0).values
        loss = -value.mean()
        return Losses(policy=loss, stats={"policy_loss": loss.detach(), "q_policy": value.detach().mean()})

    def after_actor_step(self, policy: Policy, losses: Losses) -> None:
        """Average the policy of the targets with the trained one."""
        self.follow("target_policy", source=policy)
