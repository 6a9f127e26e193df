"""Residual policy: a small Gaussian that corrects every action of a cloned, chunked policy."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.losses.imitation import gaussian_log_prob
from inril_ray.policies.base import Action, Normalizer, Policy, Timesteps
from inril_ray.policies.denoising import DDIMNoise
from inril_ray.policies.diffusion import (
    DenoisingConfig,
    DiffusionConfig,
    DiffusionPolicy,
    DiffusionUNetConfig,
    DiffusionUNetPolicy,
    EmbeddingDim,
)
from inril_ray.policies.gaussian import DeterministicPolicy, GaussianConfig
from inril_ray.policies.networks import Activation, ResidualActor
from inril_ray.policies.unet import Film
from inril_ray.types import EnvSpec, FloatArray, NormalizerStats


@config
class ResidualSettings:
    """Sizes and noise of the correction. Defaults are ResiP's."""

    hidden_dims: tuple[PositiveInt, ...] = (256, 256)
    scale: Annotated[float, Field(gt=0)] = 0.1
    """Share of the correction that is executed, normalised units."""
    log_std: float = -1.0
    """Of the correction before it is scaled; not trained."""
    input_limit: Annotated[float, Field(gt=0)] = 3.0
    """Normalised observations are clipped to it."""

    base: DenoisingConfig | GaussianConfig

    @property
    def prediction_horizon(self) -> int:
        """Actions that a chunk of the base predicts."""
        return self.base.prediction_horizon


@config
class ResidualDiffusionSettings(ResidualSettings):
    """Those of a correction of a diffusion policy."""

    warm_start: bool = True
    """A plan begins from what is left of the last one, zeros behind it and in a new episode, noised to the level of the
    second step; otherwise from noise alone."""

    base: DenoisingConfig


# The defaults of a base are those of a class of its own: a section that sets some of its keys keeps the others.
@config
class BaseMLPConfig(DiffusionConfig):
    """A diffusion MLP that plans for a correction. Sizes suit Robomimic, sampling is ResiP's."""

    prediction_horizon: PositiveInt = 8
    ddim_steps: PositiveInt | None = 4
    ddim_noise: DDIMNoise = "predicted"
    finetuned_steps: PositiveInt = 4


@config
class BaseUNetConfig(DiffusionUNetConfig):
    """ResiP's U-Net."""

    prediction_horizon: PositiveInt = 32
    ddim_steps: PositiveInt | None = 4
    ddim_noise: DDIMNoise = "predicted"
    finetuned_steps: PositiveInt = 4
    widths: tuple[PositiveInt, ...] = (256, 512, 1024)
    step_embedding_dim: EmbeddingDim = 256
    group_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    film: Film = "shallow"


@config
class BaseDeterministicConfig(GaussianConfig):
    """ResiP's MLP, without its dropout."""

    prediction_horizon: PositiveInt = 8
    hidden_dim: PositiveInt = 1024
    num_hidden: PositiveInt = 11
    activation: Activation = "relu"


@config
class ResidualMLPConfig(ResidualDiffusionSettings):
    """A correction of a diffusion MLP."""

    base: BaseMLPConfig = BaseMLPConfig()


@config
class ResidualUNetConfig(ResidualDiffusionSettings):
    """A correction of a diffusion U-Net."""

    base: BaseUNetConfig = BaseUNetConfig()


@config
class ResidualGaussianConfig(ResidualSettings):
    """A correction of a deterministic MLP."""

    base: BaseDeterministicConfig = BaseDeterministicConfig()


class ResidualNormalizer(Normalizer):
    """Normalises the observation and leaves the base action behind it as it is.

    Args:
        stats: range of the demonstrations.
        obs_dim: width of the observation.
        limit: clip of the normalised observation.
    """

    def __init__(self, stats: NormalizerStats, obs_dim: int, limit: float) -> None:
        super().__init__(stats, limit)
        self._obs_dim = obs_dim

    def obs(self, obs: Tensor) -> Tensor:
        """Normalise [..., O + A]."""
        seen, base = obs[..., : self._obs_dim], obs[..., self._obs_dim :]
        return torch.cat([super().obs(seen), base], dim=-1)


class ResidualPolicy(Policy):
    """Executes base action + scale x correction; only the correction is reinforced, only the base imitates.

    It decides at every control step, on the observation followed by the base's action, which
    :class:`inril_ray.envs.base_actions.BaseActions` supplies.

    Args:
        config: sizes and noise.
        spec: the task.
        stats: range of the demonstrations.

    Source: Ankile et al. 2024 (ResiP). The log-probability is summed over the dimensions of the action.
    """

    Config: type[ResidualSettings]
    Base: Any
    """Class of the base."""
    imitates_apart = True
    pads_demos = True

    def __init__(self, config: ResidualSettings, spec: EnvSpec, stats: NormalizerStats) -> None:
        super().__init__()
        self.config = config
        self.horizon = self.action_horizon = self.num_scored_steps = 1
        self.noise_shape = (1, spec.action_dim)
        self._action_dim = spec.action_dim
        self.normalizer = ResidualNormalizer(stats, spec.obs_dim, config.input_limit)
        self.base = self.Base(config.base, spec, stats)
        self.correction = ResidualActor(spec.obs_dim + spec.action_dim, spec.action_dim, config.hidden_dims)

    def decision_spec(self, spec: EnvSpec) -> EnvSpec:
        """Return the task with observations that end with the base's action."""
        return dataclasses.replace(spec, obs_dim=spec.obs_dim + spec.action_dim)

    def begin_finetuning(self) -> None:
        """Make the cloned network the base that plans."""
        self.base.begin_finetuning()

    def trainable(self) -> list[nn.Parameter]:
        """Return the correction's parameters."""
        return list(self.correction.parameters())

    def imitated(self) -> list[nn.Parameter]:
        """Return the base's parameters."""
        return self.base.trainable()

    def pretrained(self) -> nn.Module:
        """Return the base's network."""
        return self.base.pretrained()

    # -- the base -----------------------------------------------------------------------------------------------------
    @property
    def plan_shapes(self) -> dict[str, Any]:
        """Shapes of what :meth:`plan` takes and gives, and how many actions of a plan are used."""
        return {
            "noise_shape": self.base.noise_shape,
            "chunk_shape": (self.base.horizon, self._action_dim),
            "replan_every": self.base.action_horizon,
        }

    @torch.no_grad()
    def plan(self, obs: FloatArray, noise: FloatArray, former: FloatArray) -> FloatArray:
        """Return the base's chunks [n, H, A], normalised, sampled as in evaluation.

        Args:
            obs: [n, O].
            noise: [n, *noise_shape] standard normal.
            former: [n, H, A] what is left of the last plans, in their first places; zeros where there is nothing.
        """
        device = self.normalizer.obs_low.device
        normalized = self.base.normalizer.obs(torch.from_numpy(obs).to(device))
        limit = self.config.input_limit
        return self._chunks(normalized.clamp(-limit, limit), noise, former).cpu().numpy()

    @abstractmethod
    def _chunks(self, obs: Tensor, noise: FloatArray, former: FloatArray) -> Tensor:
        """Return the base's chunks [n, H, A], normalised, for normalised observations; see :meth:`plan`."""

    # -- the correction -----------------------------------------------------------------------------------------------
    def _std(self, like: Tensor) -> Tensor:
        return torch.full_like(like, self.config.log_std).exp()

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Correct the base's actions; see :meth:`Policy.act`. Observations are [B, O + A]."""
        mean = self.correction(self.normalizer.obs(obs))
        delta = mean if deterministic else mean + self._std(mean) * noise[:, 0]
        base = obs[:, -self._action_dim :]
        executed = self.normalizer.unnormalize_action(base + self.config.scale * delta)
        return Action(
            chunk=executed[:, None],
            chain=torch.stack([torch.zeros_like(delta), delta], dim=1)[:, :, None],
            log_probs=gaussian_log_prob(delta, mean, self._std(mean)).sum(dim=1)[:, None],
        )

    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Return the log-probability [N] of corrections ``after`` [N, 1, A], summed; see :meth:`Policy.log_prob`."""
        mean = self.correction(self.normalizer.obs(obs))
        return gaussian_log_prob(after[:, 0], mean, self._std(mean)).sum(dim=1)

    # -- imitation ----------------------------------------------------------------------------------------------------
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
        """Return the base's noise-prediction error, over all levels; see :meth:`Policy.il_loss`."""
        return self.base.il_loss(obs, actions, noise, uniform, "all", weight=weight)

    def bc_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return the base's loss of pre-training."""
        return self.base.bc_loss(obs, actions, noise, uniform)

    def correction_il_loss(self, obs: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """Return how far the mean correction is from what would make the base's first action the demonstrated one.

        Args:
            obs: [N, O].
            actions: [N, H, A] in the units of the environment.
            noise: [N, *noise_shape] standard normal, of the base.

        Source: IN-RIL figure 7, where the networks are not separated.
        """
        former = np.zeros((len(obs), *self.plan_shapes["chunk_shape"]), np.float32)
        plan = self.plan(obs.cpu().numpy(), noise.cpu().numpy(), former)
        base = torch.from_numpy(plan[:, 0]).to(obs.device)
        missing = (self.normalizer.action(actions[:, 0]) - base) / self.config.scale
        return (self.correction(self.normalizer.obs(torch.cat([obs, base], dim=1))) - missing).square().mean()


class ResidualDiffusionPolicy(ResidualPolicy):
    """A correction of a diffusion MLP; see :class:`ResidualPolicy`."""

    Config = ResidualMLPConfig
    Base = DiffusionPolicy
    config: ResidualDiffusionSettings
    base: DiffusionPolicy

    def _chunks(self, obs: Tensor, noise: FloatArray, former: FloatArray) -> Tensor:
        start = torch.tensor(noise, device=obs.device)  # a copy: its first part is replaced
        if self.config.warm_start:
            schedule = self.base.schedule
            level = schedule.levels[max(0, self.config.base.executed_steps - 2)]
            left = torch.from_numpy(np.ascontiguousarray(former)).to(obs.device)
            start[:, 0] = schedule.add_noise(left, start[:, 0], level.repeat(len(left)))
        return self.base.denoise(obs, start, deterministic=True)


class ResidualGaussianPolicy(ResidualPolicy):
    """A correction of a deterministic MLP; see :class:`ResidualPolicy`."""

    Config = ResidualGaussianConfig
    Base = DeterministicPolicy
    base: DeterministicPolicy

    def _chunks(self, obs: Tensor, noise: FloatArray, former: FloatArray) -> Tensor:
        return self.base.mean(obs)


class ResidualUNetPolicy(ResidualDiffusionPolicy):
    """A correction of a diffusion U-Net; see :class:`ResidualPolicy`."""

    Config = ResidualUNetConfig
    Base = DiffusionUNetPolicy
