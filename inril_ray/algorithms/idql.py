"""IDQL: imitate the replay, let critics choose among samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.base import AlgorithmContext, Losses, UnitFloat
from inril_ray.algorithms.off_policy import Choosing, OffPolicyAlgorithm, OffPolicyConfig, critic_stats, unscored
from inril_ray.config import config
from inril_ray.losses.value import ensemble_loss, expectile_loss, td_target
from inril_ray.policies.base import Action, Policy
from inril_ray.policies.networks import ResidualDepth, ValueNetwork
from inril_ray.replay import Transitions
from inril_ray.types import EnvSpec


@config
class IDQLConfig(OffPolicyConfig):
    """Settings of IDQL. Defaults are those of DPPO's comparison on Robomimic."""

    actor_lr: Annotated[float, Field(gt=0)] = 1e-5
    polyak: UnitFloat = 0.001
    critic_num_hidden: ResidualDepth = 3
    expectile: UnitFloat = 0.8
    """Of the action values that the state value regresses to."""
    num_samples: PositiveInt = 10
    """Chunks that the critics choose from."""
    exploration_expectile: UnitFloat = 0.7
    """While training, samples better than the state value have this weight in the draw, the others the rest."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 4


class BestOfSamples(Choosing):
    """Draws M chunks and takes the one that critics value most; while training, a good one by chance.

    Args:
        policy: draws.
        critics: action values.
        value: state value.
        config: how many, and how they are drawn.
    """

    def __init__(self, policy: Policy, critics: nn.Module, value: nn.Module, config: IDQLConfig) -> None:
        super().__init__(policy)
        self.critics, self.value, self.config = critics, value, config
        self.noise_shape = (config.num_samples * math.prod(policy.noise_shape) + 1,)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Choose chunks; see :meth:`Policy.act`. The samples are those of training, or of evaluation, themselves."""
        batch, num = len(obs), self.config.num_samples
        own = noise[:, :-1].reshape(batch * num, *self.policy.noise_shape)
        repeated = obs.repeat_interleave(num, dim=0)
        proposals = self.policy.act(repeated, own, deterministic=deterministic).chain[:, -1]
        normalized = self.normalizer.obs(repeated)
        q = self.critics(normalized, proposals).min(dim=0).values.view(batch, num)
        if deterministic:
            chosen = q.argmax(dim=1)
        else:
            better = q > self.value(self.normalizer.obs(obs))[:, None]
            weight = torch.where(better, self.config.exploration_expectile, 1.0 - self.config.exploration_expectile)
            chosen = draw_index(weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12), noise[:, -1])
        chunk = proposals.view(batch, num, *proposals.shape[1:])[torch.arange(batch, device=obs.device), chosen]
        return unscored(chunk, self.policy)


def draw_index(probability: Tensor, noise: Tensor) -> Tensor:
    """Return indices [B] drawn with probabilities [B, M] by standard normal numbers [B]."""
    quantile = 0.5 * (1.0 + torch.erf(noise / math.sqrt(2.0)))
    below = probability.cumsum(dim=1) < quantile[:, None]
    return below.sum(dim=1).clamp_max(probability.shape[1] - 1)


class IDQL(OffPolicyAlgorithm):
    """Implicit Q-learning with a diffusion policy that clones the replay. Source: Hansen-Estruch et al. 2023; DPPO.

    The reinforcement gradient is that of cloning one's own experience, as in DPPO's code. That code overwrites the
    first observation after each time limit with the last one before it; this one doesn't.
    """

    Config = IDQLConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: IDQLConfig

    def __init__(self, config: IDQLConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        network = ValueNetwork(context.spec.obs_dim, config.critic_hidden_dim, config.critic_num_hidden)
        self.value = self.add_module("value", network)
        self._acting = BestOfSamples(context.policy, self.target_critics, self.value, config)

    @staticmethod
    def behaviour(config: Any, policy: Policy, spec: EnvSpec) -> Policy:
        """Return a policy that chooses among samples."""
        critics = IDQL.new_critics(config, policy, spec)
        value = ValueNetwork(spec.obs_dim, config.critic_hidden_dim, config.critic_num_hidden)
        return BestOfSamples(policy, critics, value, config)

    @property
    def acting(self) -> Policy:
        """The policy with the critics that choose."""
        return self._acting

    def update_critics(self, policy: Policy, minibatch: Transitions) -> Mapping[str, Tensor]:
        """Step state value, action values and their average, in this order."""
        b, cfg = minibatch, self.config
        obs, next_obs = policy.normalizer.obs(b.obs), policy.normalizer.obs(b.next_obs)
        with torch.no_grad():
            best = self.target_critics(obs, b.actions).min(dim=0).values
        value_loss = expectile_loss(best - self.value(obs), cfg.expectile)
        self.step("value", value_loss)
        with torch.no_grad():
            target = td_target(b.rewards, b.terminated, self.value(next_obs), cfg.discount)
        q = self.critics(obs, b.actions)
        loss = ensemble_loss(q, target)
        self.step("critics", loss)
        self.follow("target_critics")
        return {**critic_stats(q, target, loss), "expectile_loss": value_loss.detach()}

    def loss(self, policy: Policy, minibatch: Transitions) -> Losses:
        """Return the loss of cloning the replay."""
        loss = self.imitate_replay(policy, minibatch)
        return Losses(policy=loss, stats={"policy_loss": loss.detach()})

    def advantage_loss(self, policy: Policy, minibatch: Transitions) -> Tensor:
        """Return the same loss with the expectile's weights: what is better than the state value counts more.

        Source: Hansen-Estruch et al. 2023, whose actor may be trained so.
        """
        b, share = minibatch, self.config.expectile
        obs = policy.normalizer.obs(b.obs)
        with torch.no_grad():
            better = self.target_critics(obs, b.actions).min(dim=0).values > self.value(obs)
        return self.imitate_replay(policy, b, torch.where(better, share, 1.0 - share))
