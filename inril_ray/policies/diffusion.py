"""Diffusion policy: DDPM over action chunks, of which the last F denoising steps are fine-tuned."""

from __future__ import annotations

import copy
import math
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.losses.imitation import gaussian_log_prob, noise_prediction_loss
from inril_ray.policies.base import Action, Normalizer, Policy, Timesteps
from inril_ray.policies.networks import Activation, DiffusionMLP
from inril_ray.types import EnvSpec, NormalizerStats

LOG_PROB_RANGE = (-5.0, 2.0)
EVAL_MIN_STD = 1e-3


@config
class DiffusionConfig:
    """Sizes and noise of a diffusion policy. Defaults are DPPO's for Robomimic Lift."""

    prediction_horizon: PositiveInt = 4
    """H, actions that a chunk predicts."""
    action_horizon: PositiveInt = 4
    """Actions of the chunk that are executed."""
    denoising_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """K."""
    finetuned_steps: PositiveInt = 10
    """F, the last denoising steps, which fine-tuning trains; a frozen copy makes the others."""
    hidden_dim: PositiveInt = 512
    num_hidden: PositiveInt = 3
    step_embedding_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 16
    activation: Activation = "mish"
    clip_denoised: Annotated[float, Field(gt=0)] = 1.0
    """Bound of the predicted clean action, normalised units."""
    noise_limit: Annotated[float, Field(gt=0)] = 3.0
    """Sampled noise is clipped to so many standard deviations."""
    min_sampling_std: Annotated[float, Field(gt=0)] = 0.1
    """Floor of the exploration noise of every denoising step while training, normalised units."""
    min_log_prob_std: Annotated[float, Field(gt=0)] = 0.1
    """Floor of the standard deviation in the log-probability."""

    def __post_init__(self) -> None:
        if self.action_horizon > self.prediction_horizon:
            raise ValueError(
                f"action_horizon {self.action_horizon} exceeds prediction_horizon {self.prediction_horizon}"
            )
        if self.finetuned_steps > self.denoising_steps:
            raise ValueError(f"finetuned_steps {self.finetuned_steps} exceeds denoising_steps {self.denoising_steps}")


def cosine_betas(num_steps: int, offset: float = 0.008) -> Tensor:
    """Return the noise variances β [K] of the cosine schedule, float64.

    Source: Nichol and Dhariwal 2021, eq. 17; equals diffusers' ``squaredcos_cap_v2``.
    """

    def level(i: int) -> float:
        return math.cos((i / num_steps + offset) / (1 + offset) * math.pi / 2) ** 2

    betas = [min(1 - level(i + 1) / level(i), 0.999) for i in range(num_steps)]
    return torch.tensor(betas, dtype=torch.float64)


class DenoisingSchedule(nn.Module):
    """Coefficients of the DDPM chain.

    Args:
        num_steps: K.

    Source: Ho et al. 2020, eqs. 6 and 7. The posterior variance is floored at 1e-20, as in DPPO.
    """

    sqrt_alpha_bar: Tensor
    sqrt_one_minus: Tensor
    inverse_sqrt: Tensor
    noise_factor: Tensor
    clean_coef: Tensor
    chunk_coef: Tensor
    std: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        beta = cosine_betas(num_steps)
        alpha_bar = torch.cumprod(1 - beta, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        values = {
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus": (1 - alpha_bar).sqrt(),
            "inverse_sqrt": alpha_bar.rsqrt(),
            "noise_factor": (1 / alpha_bar - 1).sqrt(),
            "clean_coef": beta * previous.sqrt() / (1 - alpha_bar),
            "chunk_coef": (1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
            "std": (beta * (1 - previous) / (1 - alpha_bar)).clamp_min(1e-20).sqrt(),
        }
        for name, value in values.items():
            self.register_buffer(name, value.float(), persistent=False)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return noisy chunks [N, H, A] at levels t [N]."""
        return _at(self.sqrt_alpha_bar, t) * clean + _at(self.sqrt_one_minus, t) * noise

    def posterior_mean(self, chunk: Tensor, predicted_noise: Tensor, t: Tensor, clip: float) -> Tensor:
        """Return the mean [N, H, A] of the step from level t to t-1."""
        clean = _at(self.inverse_sqrt, t) * chunk - _at(self.noise_factor, t) * predicted_noise
        return _at(self.clean_coef, t) * clean.clamp(-clip, clip) + _at(self.chunk_coef, t) * chunk


def _at(values: Tensor, t: Tensor) -> Tensor:
    return values[t][:, None, None]


class DiffusionPolicy(Policy):
    """Two copies of one network: ``base``, cloned and frozen, makes the first K-F denoising steps, ``actor`` the rest.

    Args:
        config: sizes and noise.
        spec: the task.
        stats: range of the demonstrations.

    Source: Ren et al. 2024 (DPPO).
    """

    Config = DiffusionConfig

    def __init__(self, config: DiffusionConfig, spec: EnvSpec, stats: NormalizerStats) -> None:
        super().__init__()
        self.config = config
        self.horizon, self.action_horizon = config.prediction_horizon, config.action_horizon
        self.num_scored_steps = config.finetuned_steps
        self.noise_shape = (config.denoising_steps + 1, config.prediction_horizon, spec.action_dim)
        self.normalizer = Normalizer(stats)
        self.schedule = DenoisingSchedule(config.denoising_steps)
        self.base = DiffusionMLP(
            spec.obs_dim,
            config.prediction_horizon,
            spec.action_dim,
            hidden_dim=config.hidden_dim,
            num_hidden=config.num_hidden,
            step_embedding_dim=config.step_embedding_dim,
            activation=config.activation,
        )
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

        Training: every step's noise is at least ``min_sampling_std``, the last one's too. Evaluation: the chain's own
        noise, none in the last step.
        """
        cfg = self.config
        obs = self.normalizer.obs(obs)
        noise = noise.clamp(-cfg.noise_limit, cfg.noise_limit)
        chunk, chain, log_probs = noise[:, 0], [], []
        floor = EVAL_MIN_STD if deterministic else cfg.min_sampling_std
        for i, level in enumerate(reversed(range(cfg.denoising_steps))):
            t = torch.full((len(obs),), level, device=obs.device)
            scored = level < cfg.finetuned_steps
            predicted = (self.actor if scored else self.base)(chunk, t, obs)
            mean = self.schedule.posterior_mean(chunk, predicted, t, cfg.clip_denoised)
            std = _at(self.schedule.std, t).clamp_min(floor)
            after = mean if deterministic and level == 0 else mean + std * noise[:, i + 1]
            if scored:
                chain.append(chunk)
                log_probs.append(self._score(after, mean, t))
            chunk = after
        return Action(
            chunk=self.normalizer.unnormalize_action(chunk),
            chain=torch.stack([*chain, chunk], dim=1),
            log_probs=torch.stack(log_probs, dim=1),
        )

    def _score(self, after: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        std = _at(self.schedule.std, t).clamp_min(self.config.min_log_prob_std)
        density = gaussian_log_prob(after, mean, std).clamp(*LOG_PROB_RANGE)
        return density[:, : self.action_horizon].mean(dim=(1, 2))

    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Return the log-probability [N] of fine-tuned denoising steps; see :meth:`Policy.log_prob`."""
        t = self.config.finetuned_steps - 1 - step
        predicted = self.actor(before, t, self.normalizer.obs(obs))
        mean = self.schedule.posterior_mean(before, predicted, t, self.config.clip_denoised)
        return self._score(after, mean, t)

    def il_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor, timesteps: Timesteps) -> Tensor:
        """Return the noise-prediction error of ``actor``; see :meth:`Policy.il_loss`.

        By default only the levels that ``actor`` executes are trained.
        """
        return self._denoising_loss(self.actor, obs, actions, noise, uniform, timesteps)

    def bc_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return the noise-prediction error of ``base`` over all levels: the loss of pre-training."""
        return self._denoising_loss(self.base, obs, actions, noise, uniform, "all")

    def _denoising_loss(
        self, network: nn.Module, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor, timesteps: Timesteps
    ) -> Tensor:
        cfg = self.config
        levels = cfg.finetuned_steps if timesteps == "finetuned" else cfg.denoising_steps
        t = (uniform * levels).long().clamp_max(levels - 1)
        noisy = self.schedule.add_noise(self.normalizer.action(actions), noise, t)
        return noise_prediction_loss(network(noisy, t, self.normalizer.obs(obs)), noise)
