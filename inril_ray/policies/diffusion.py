"""Diffusion policies over action chunks, of which the last F denoising steps are fine-tuned.

Two networks (MLP and U-Net) and two samplers (DDPM and DDIM): the network is chosen by the policy's name, the sampler
by ``ddim_steps``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.losses.imitation import gaussian_log_prob, noise_prediction_loss
from inril_ray.policies.base import Action, Normalizer, Policy, Timesteps
from inril_ray.policies.denoising import DDIMNoise, DenoisingSchedule, at
from inril_ray.policies.networks import Activation, DiffusionMLP, ResidualDepth
from inril_ray.policies.unet import Film, UNet1D, check_unet_sizes
from inril_ray.types import EnvSpec, NormalizerStats

LOG_PROB_RANGE = (-5.0, 2.0)
EmbeddingDim = Annotated[int, Field(ge=4, multiple_of=2)]


@config
class DenoisingConfig(ABC):
    """What every diffusion policy needs, whatever its network."""

    prediction_horizon: PositiveInt = 4
    """H, actions that a chunk predicts."""
    action_horizon: PositiveInt = 4
    """Actions of the chunk that are executed."""
    denoising_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """K, levels of noise in cloning; DDPM also samples in so many steps."""
    ddim_steps: PositiveInt | None = None
    """Sample with DDIM in so many steps; none for DDPM."""
    ddim_noise: DDIMNoise = "recomputed"
    """Noise that a step of DDIM leaves: recomputed from the clipped action as in DPPO, or as predicted, as in ResiP."""
    finetuned_steps: PositiveInt = 10
    """F, the last denoising steps, which fine-tuning trains; a frozen copy makes the others."""
    clip_denoised: Annotated[float, Field(gt=0)] = 1.0
    """Bound of the predicted clean action, normalised units."""
    noise_limit: Annotated[float, Field(gt=0)] = 3.0
    """The noise of a step is clipped to so many standard deviations; what a chunk starts from is not."""
    min_sampling_std: Annotated[float, Field(gt=0)] = 0.1
    """Floor of the exploration noise of every denoising step while training, normalised units."""
    min_log_prob_std: Annotated[float, Field(gt=0)] = 0.1
    """Floor of the standard deviation in the log-probability."""
    obs_limit: Annotated[float, Field(gt=0)] | None = None
    """Normalised observations are clipped to it; None clips nothing."""

    def __post_init__(self) -> None:
        if self.action_horizon > self.prediction_horizon:
            raise ValueError(
                f"action_horizon {self.action_horizon} exceeds prediction_horizon {self.prediction_horizon}"
            )
        if self.ddim_steps is not None and self.ddim_steps > self.denoising_steps:
            raise ValueError(f"ddim_steps {self.ddim_steps} exceeds denoising_steps {self.denoising_steps}")
        name = "denoising_steps" if self.ddim_steps is None else "ddim_steps"
        if self.finetuned_steps > self.executed_steps:
            raise ValueError(f"finetuned_steps {self.finetuned_steps} exceeds {name} {self.executed_steps}")

    @property
    def executed_steps(self) -> int:
        """Steps that sampling takes."""
        return self.ddim_steps or self.denoising_steps

    @abstractmethod
    def network(self, obs_dim: int, action_dim: int) -> nn.Module:
        """Make a network that predicts noise [N, H, A] from chunks [N, H, A], levels [N] and observations [N, O]."""


@config
class DiffusionConfig(DenoisingConfig):
    """Sizes and noise of a diffusion policy with an MLP. Defaults are DPPO's for Robomimic Lift."""

    hidden_dim: PositiveInt = 512
    num_hidden: ResidualDepth = 3
    step_embedding_dim: EmbeddingDim = 16
    activation: Activation = "mish"
    layer_norm: bool = False
    """Normalise in the residual blocks."""
    obs_encoder_dims: tuple[PositiveInt, ...] | None = None
    """Widths of an MLP that the observation passes first, its output last."""

    def network(self, obs_dim: int, action_dim: int) -> nn.Module:
        """Make the MLP."""
        return DiffusionMLP(
            obs_dim,
            self.prediction_horizon,
            action_dim,
            hidden_dim=self.hidden_dim,
            num_hidden=self.num_hidden,
            step_embedding_dim=self.step_embedding_dim,
            activation=self.activation,
            layer_norm=self.layer_norm,
            obs_encoder_dims=self.obs_encoder_dims,
        )


@config
class DiffusionUNetConfig(DenoisingConfig):
    """Sizes and noise of a diffusion policy with a U-Net. Defaults are DPPO's for furniture."""

    prediction_horizon: PositiveInt = 16
    action_horizon: PositiveInt = 8
    denoising_steps: Annotated[int, Field(ge=1, le=1000)] = 100
    ddim_steps: PositiveInt | None = 5
    finetuned_steps: PositiveInt = 5
    min_sampling_std: Annotated[float, Field(gt=0)] = 0.04
    widths: tuple[PositiveInt, ...] = (64, 128, 256)
    """Channels of each level."""
    kernel_size: PositiveInt = 5
    num_groups: PositiveInt = 8
    """Groups of the group norms."""
    group_norm_eps: Annotated[float, Field(gt=0)] = 1e-4
    step_embedding_dim: EmbeddingDim = 16
    film: Film = "deep"
    """Encoder of the condition: DPPO's has three linear layers, ResiP's one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unet_sizes(self.prediction_horizon, self.widths, self.kernel_size, self.num_groups)

    def network(self, obs_dim: int, action_dim: int) -> nn.Module:
        """Make the U-Net."""
        return UNet1D(
            obs_dim,
            self.prediction_horizon,
            action_dim,
            widths=self.widths,
            kernel_size=self.kernel_size,
            num_groups=self.num_groups,
            group_norm_eps=self.group_norm_eps,
            step_embedding_dim=self.step_embedding_dim,
            film=self.film,
        )


class DiffusionPolicy(Policy):
    """Two copies of one network: ``base``, cloned and frozen, makes the first steps, ``actor`` the last F.

    Args:
        config: sizes and noise.
        spec: the task.
        stats: range of the demonstrations.

    Source: Ren et al. 2024 (DPPO).
    """

    Config: type[DenoisingConfig] = DiffusionConfig

    def __init__(self, config: DenoisingConfig, spec: EnvSpec, stats: NormalizerStats) -> None:
        super().__init__()
        self.config = config
        self.horizon, self.action_horizon = config.prediction_horizon, config.action_horizon
        self.num_scored_steps = config.finetuned_steps
        self.noise_shape = (config.executed_steps + 1, config.prediction_horizon, spec.action_dim)
        self.normalizer = Normalizer(stats, config.obs_limit)
        self.schedule = DenoisingSchedule(config.denoising_steps, config.ddim_steps, config.ddim_noise)
        self.base = config.network(spec.obs_dim, spec.action_dim)
        self.actor = copy.deepcopy(self.base)

    def begin_finetuning(self) -> None:
        """Copy the cloned network into ``actor`` and freeze ``base``."""
        self.actor.load_state_dict(self.base.state_dict())
        self.base.requires_grad_(False)

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of ``actor``."""
        return list(self.actor.parameters())

    def pretrained(self) -> nn.Module:
        """Return ``base``."""
        return self.base

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Denoise chunks from pure noise; see :meth:`Policy.act`.

        Training: every step's noise is at least ``min_sampling_std``, the last one's too. Evaluation with DDPM: the
        chain's own noise, none in the last step; with DDIM: none. Log-probabilities are those of training.
        """
        chain, log_probs, chunk = [], [], noise
        for rank, before, mean, chunk in self._steps(self.normalizer.obs(obs), noise, deterministic):
            if rank < self.num_scored_steps:
                chain.append(before)
                log_probs.append(self._score(chunk, mean, self._ranks(rank, chunk)))
        return Action(
            chunk=self.normalizer.unnormalize_action(chunk),
            chain=torch.stack([*chain, chunk], dim=1),
            log_probs=torch.stack(log_probs, dim=1),
        )

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return normalised chunks with gradient; see :meth:`Policy.sample`."""
        return self.denoise(self.normalizer.obs(obs), noise, deterministic=False)

    def denoise(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Tensor:
        """Sample as :meth:`act` does, but keep the gradient through every step that ``actor`` makes.

        Args:
            obs: [B, O] normalised.
            noise: [B, *noise_shape] standard normal.
            deterministic: evaluation mode.

        Returns:
            [B, H, A] normalised chunks. The steps of ``base`` come first and carry no gradient.
        """
        *_, (_, _, _, chunk) = self._steps(obs, noise, deterministic)
        return chunk

    def _steps(self, obs: Tensor, noise: Tensor, deterministic: bool) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield for each step its rank, the chunk before it, the mean that scores it, and the chunk after it."""
        cfg, schedule = self.config, self.schedule
        chunk, steps = noise[:, 0], noise[:, 1:].clamp(-cfg.noise_limit, cfg.noise_limit)
        for i, rank in enumerate(reversed(range(cfg.executed_steps))):
            j = self._ranks(rank, chunk)
            if rank < cfg.finetuned_steps:
                predicted = self.actor(chunk, schedule.levels[j], obs)
            else:
                with torch.no_grad():
                    predicted = self.base(chunk, schedule.levels[j], obs)
            mean = center = schedule.posterior_mean(chunk, predicted, j, cfg.clip_denoised)
            if deterministic:
                center = schedule.posterior_mean(chunk, predicted, j, cfg.clip_denoised, deterministic=True)
                std = at(schedule.eval_std, j)
            else:
                std = at(schedule.std, j).clamp_min(cfg.min_sampling_std)
            after = center + std * steps[:, i]
            yield rank, chunk, mean, after
            chunk = after

    @staticmethod
    def _ranks(rank: int, chunk: Tensor) -> Tensor:
        return torch.full((len(chunk),), rank, device=chunk.device)

    def _score(self, after: Tensor, mean: Tensor, j: Tensor) -> Tensor:
        std = at(self.schedule.std, j).clamp_min(self.config.min_log_prob_std)
        density = gaussian_log_prob(after, mean, std).clamp(*LOG_PROB_RANGE)
        return density[:, : self.action_horizon].mean(dim=(1, 2))

    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Return the log-probability [N] of fine-tuned denoising steps; see :meth:`Policy.log_prob`."""
        j = self.num_scored_steps - 1 - step
        predicted = self.actor(before, self.schedule.levels[j], self.normalizer.obs(obs))
        mean = self.schedule.posterior_mean(before, predicted, j, self.config.clip_denoised)
        return self._score(after, mean, j)

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
        """Return the noise-prediction error of ``actor``; see :meth:`Policy.il_loss`.

        By default only the levels that ``actor`` executes are trained: the last F, or with DDIM the last F of its own.
        """
        if timesteps == "finetuned":
            t = self.schedule.levels[_pick(uniform, self.num_scored_steps)]
        else:
            t = _pick(uniform, self.config.denoising_steps)
        return self._denoising_loss(self.actor, obs, actions, noise, t, weight)

    def bc_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return the noise-prediction error of ``base`` over all levels: the loss of pre-training."""
        return self._denoising_loss(self.base, obs, actions, noise, _pick(uniform, self.config.denoising_steps))

    def _denoising_loss(
        self,
        network: nn.Module,
        obs: Tensor,
        actions: Tensor,
        noise: Tensor,
        t: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        noisy = self.schedule.add_noise(self.normalizer.action(actions), noise, t)
        return noise_prediction_loss(network(noisy, t, self.normalizer.obs(obs)), noise, weight)


def _pick(uniform: Tensor, num: int) -> Tensor:
    return (uniform * num).long().clamp_max(num - 1)


class DiffusionUNetPolicy(DiffusionPolicy):
    """A diffusion policy whose two networks are U-Nets over the steps of the chunk; see :class:`DiffusionPolicy`."""

    Config = DiffusionUNetConfig
