"""Gaussian policy over action chunks."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.losses.imitation import gaussian_log_prob
from inril_ray.policies.base import Action, Normalizer, Policy, Timesteps
from inril_ray.policies.networks import Activation, ResidualDepth, ResidualMLP
from inril_ray.types import EnvSpec, NormalizerStats

LOG_PROB_RANGE = (-5.0, 2.0)
EVAL_STD = 1e-4


@config
class GaussianConfig:
    """Sizes and noise of a Gaussian policy. Defaults are DPPO's Gaussian baseline."""

    prediction_horizon: PositiveInt = 4
    """H, actions in a chunk; all are executed."""
    hidden_dim: PositiveInt = 512
    num_hidden: ResidualDepth = 3
    activation: Activation = "mish"
    init_std: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation at the start, normalised units."""
    min_std: Annotated[float, Field(gt=0)] = 0.01
    max_std: Annotated[float, Field(gt=0)] = 0.2
    noise_limit: Annotated[float, Field(gt=0)] = 3.0
    """Sampled noise is clipped to so many standard deviations."""
    obs_limit: Annotated[float, Field(gt=0)] | None = None
    """Normalised observations are clipped to it; None clips nothing."""


class GaussianPolicy(Policy):
    """Mean tanh(MLP(obs)), one learnable standard deviation for each action dimension.

    Args:
        config: sizes and noise.
        spec: the task.
        stats: range of the demonstrations.

    Source: DPPO's Gaussian baseline (Ren et al. 2024).
    """

    Config = GaussianConfig

    def __init__(self, config: GaussianConfig, spec: EnvSpec, stats: NormalizerStats) -> None:
        super().__init__()
        self.config = config
        self.horizon = self.action_horizon = config.prediction_horizon
        self.num_scored_steps = 1
        self.noise_shape = (config.prediction_horizon, spec.action_dim)
        self.normalizer = Normalizer(stats, config.obs_limit)
        self.actor = self.network(spec.obs_dim, config.prediction_horizon * spec.action_dim)
        self.log_std = nn.Parameter(torch.full((spec.action_dim,), config.init_std).log())

    def network(self, obs_dim: int, out_dim: int) -> nn.Module:
        """Make the MLP."""
        cfg = self.config
        return ResidualMLP(obs_dim, cfg.hidden_dim, cfg.num_hidden, out_dim, cfg.activation)

    def begin_finetuning(self) -> None:
        """Nothing to do: the cloned network is the one that is fine-tuned."""

    def trainable(self) -> list[nn.Parameter]:
        """Return the network and the standard deviations."""
        return [*self.actor.parameters(), self.log_std]

    def pretrained(self) -> nn.Module:
        """Return the network; the standard deviations are not cloned."""
        return self.actor

    def mean(self, obs: Tensor) -> Tensor:
        """Return the mean chunks [N, H, A], normalised, for normalised observations [N, O]."""
        return self.actor(obs).tanh().view(len(obs), *self.noise_shape)

    def _mean(self, obs: Tensor) -> Tensor:
        return self.mean(self.normalizer.obs(obs))

    def _std(self) -> Tensor:
        return self.log_std.exp().clamp(self.config.min_std, self.config.max_std)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Sample chunks; see :meth:`Policy.act`."""
        mean = self._mean(obs)
        std = torch.full_like(self.log_std, EVAL_STD) if deterministic else self._std()
        chunk = mean + std * noise.clamp(-self.config.noise_limit, self.config.noise_limit)
        return Action(
            chunk=self.normalizer.unnormalize_action(chunk),
            chain=torch.stack([torch.zeros_like(chunk), chunk], dim=1),
            log_probs=self._score(chunk, mean)[:, None],
        )

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return normalised chunks with gradient; see :meth:`Policy.sample`."""
        return self._mean(obs) + self._std() * noise.clamp(-self.config.noise_limit, self.config.noise_limit)

    def _score(self, chunk: Tensor, mean: Tensor) -> Tensor:
        return gaussian_log_prob(chunk, mean, self._std()).clamp(*LOG_PROB_RANGE).mean(dim=(1, 2))

    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Return the log-probability [N] of sampled chunks; see :meth:`Policy.log_prob`."""
        return self._score(after, self._mean(obs))

    def il_loss(
        self,
        obs: Tensor,
        actions: Tensor,
        noise: Tensor,
        uniform: Tensor,
        timesteps: Timesteps,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the negative log-likelihood, mean over dimensions. The standard deviations get no gradient from it.

        Source: IN-RIL eq. 1.
        """
        mean, std = self._mean(obs), self._std().detach()
        each = -gaussian_log_prob(self.normalizer.action(actions), mean, std)
        return each.mean() if weight is None else (weight * each.mean(dim=(1, 2))).mean()

    def bc_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return the loss of pre-training, the same as that of imitation."""
        return self.il_loss(obs, actions, noise, uniform, "all")


class DeterministicPolicy(GaussianPolicy):
    """The mean alone, an MLP that is linear at its end and is cloned by squared error: ResiP's base without diffusion.

    Source: Ankile et al. 2024 (ResiP). Differs: no dropout.
    """

    def network(self, obs_dim: int, out_dim: int) -> nn.Module:
        """Make the MLP, whose blocks activate the sum."""
        cfg = self.config
        return ResidualMLP(obs_dim, cfg.hidden_dim, cfg.num_hidden, out_dim, cfg.activation, post_activation=True)

    def mean(self, obs: Tensor) -> Tensor:
        """Return chunks [N, H, A], normalised, for normalised observations [N, O]."""
        return self.actor(obs).view(len(obs), *self.noise_shape)

    def il_loss(
        self,
        obs: Tensor,
        actions: Tensor,
        noise: Tensor,
        uniform: Tensor,
        timesteps: Timesteps,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the squared error, mean over dimensions."""
        each = (self._mean(obs) - self.normalizer.action(actions)).square()
        return each.mean() if weight is None else (weight * each.mean(dim=(1, 2))).mean()
