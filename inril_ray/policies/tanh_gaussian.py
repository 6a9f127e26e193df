"""Squashed Gaussian policy over action chunks, whose spread depends on the observation."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.losses.imitation import gaussian_log_prob
from inril_ray.policies.base import Action, Normalizer, Policy, Timesteps
from inril_ray.policies.networks import ACTIVATIONS, Activation
from inril_ray.types import EnvSpec, NormalizerStats

LOG_VARIANCE = (-10.0, 4.0)
"""Bounds of the log-variance before squashing: standard deviations from 0.0067 to 7.389."""
SQUASH_EPS = 1e-6
EDGE = 1.0 - 1e-4
"""Actions are this far inside of the range before they are unsquashed."""


@config
class TanhGaussianConfig:
    """Sizes of a squashed Gaussian policy. Defaults are RLPD's."""

    prediction_horizon: PositiveInt = 1
    """H, actions in a chunk; all are executed."""
    hidden_dims: tuple[PositiveInt, ...] = (256, 256)
    activation: Activation = "relu"
    obs_limit: Annotated[float, Field(gt=0)] | None = None
    """Normalised observations are clipped to it; None clips nothing."""
    imitation_std: Annotated[float, Field(gt=0)] = 0.1
    """Spread that imitation ascribes to the demonstrations, normalised units: its loss is the negative log-likelihood
    of their actions around the squashed mean, and leaves the policy's own spread to RL."""


class TanhGaussianPolicy(Policy):
    """tanh(mean + std x noise), both from one MLP. Source: Haarnoja et al. 2018; Ball et al. 2023 (RLPD).

    Args:
        config: sizes.
        spec: the task.
        stats: range of the demonstrations.
    """

    Config = TanhGaussianConfig

    def __init__(self, config: TanhGaussianConfig, spec: EnvSpec, stats: NormalizerStats) -> None:
        super().__init__()
        self.config = config
        self.horizon = self.action_horizon = config.prediction_horizon
        self.num_scored_steps = 1
        self.noise_shape = (config.prediction_horizon, spec.action_dim)
        self.normalizer = Normalizer(stats, config.obs_limit)
        layers: list[nn.Module] = []
        width = spec.obs_dim
        for hidden in config.hidden_dims:
            layers += [nn.Linear(width, hidden), ACTIVATIONS[config.activation]()]
            width = hidden
        self.actor = nn.Sequential(*layers, nn.Linear(width, 2 * config.prediction_horizon * spec.action_dim))

    def begin_finetuning(self) -> None:
        """Nothing to do: the cloned network is the one that is fine-tuned."""

    def trainable(self) -> list[nn.Parameter]:
        """Return the network."""
        return list(self.actor.parameters())

    def pretrained(self) -> nn.Module:
        """Return the network."""
        return self.actor

    def _distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [N, H, A] before squashing."""
        mean, raw = self.actor(self.normalizer.obs(obs)).view(len(obs), 2, *self.noise_shape).unbind(dim=1)
        low, high = LOG_VARIANCE
        return mean, (0.5 * (low + 0.5 * (high - low) * (raw.tanh() + 1.0))).exp()

    def sample_scored(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised chunks [N, H, A] and their log-probabilities [N], summed; both with gradient.

        Args:
            obs: [N, O] in the units of the environment.
            noise: [N, H, A] standard normal.
        """
        mean, std = self._distribution(obs)
        chunk = (mean + std * noise).tanh()
        density = gaussian_log_prob(mean + std * noise, mean, std) - (1.0 - chunk.square() + SQUASH_EPS).log()
        return chunk, density.sum(dim=(1, 2))

    def density(self, obs: Tensor, chunk: Tensor) -> Tensor:
        """Return the elementwise log-density [N, H, A] of normalised chunks."""
        inside = chunk.clamp(-EDGE, EDGE)
        mean, std = self._distribution(obs)
        return gaussian_log_prob(inside.atanh(), mean, std) - (1.0 - inside.square() + SQUASH_EPS).log()

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return normalised chunks [N, H, A] with gradient; see :meth:`Policy.sample`."""
        return self.sample_scored(obs, noise)[0]

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Sample chunks, or take the squashed mean; see :meth:`Policy.act`."""
        mean, std = self._distribution(obs)
        chunk = (mean if deterministic else mean + std * noise).tanh()
        return Action(
            chunk=self.normalizer.unnormalize_action(chunk),
            chain=torch.stack([torch.zeros_like(chunk), chunk], dim=1),
            log_probs=self.density(obs, chunk).mean(dim=(1, 2))[:, None],
        )

    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Return the log-probability [N] of sampled chunks; see :meth:`Policy.log_prob`."""
        return self.density(obs, after).mean(dim=(1, 2))

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
        """Return the negative log-likelihood around the squashed mean; see :meth:`Policy.il_loss`."""
        mean, _ = self._distribution(obs)
        std = torch.full_like(mean, self.config.imitation_std)
        each = -gaussian_log_prob(self.normalizer.action(actions), mean.tanh(), std).mean(dim=(1, 2))
        return (each if weight is None else weight * each).mean()

    def bc_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return the loss of pre-training, the same as that of imitation."""
        return self.il_loss(obs, actions, noise, uniform, "all")
