"""The policy contract, and the normaliser that every policy carries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from inril_ray.types import EnvSpec, NormalizerStats

RANGE_EPS = 1e-6
Timesteps = Literal["finetuned", "all"]


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a policy did for one decision in every environment."""

    chunk: Tensor
    """[B, H, A] in the units of the environment."""
    chain: Tensor
    """[B, F+1, H, A] normalised; see :class:`inril_ray.types.Rollout`."""
    log_probs: Tensor
    """[B, F] mean over the executed steps and action dimensions."""


class Normalizer(nn.Module):
    """Maps observations and actions to [-1, 1] by the range of the demonstrations.

    Source: DPPO's 2 (x - min) / (max - min + 1e-6) - 1. The ranges are saved with the policy, and loading weights
    brings the ranges that they were trained with.

    Args:
        stats: range of the demonstrations.
        limit: normalised observations are clipped to it; None clips nothing.
    """

    obs_low: Tensor
    obs_high: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, stats: NormalizerStats, limit: float | None = None) -> None:
        super().__init__()
        self._limit = limit
        for name in ("obs_low", "obs_high", "action_low", "action_high"):
            self.register_buffer(name, torch.as_tensor(getattr(stats, name), dtype=torch.float32).clone())

    def obs(self, obs: Tensor) -> Tensor:
        """Normalise observations [..., O]."""
        scaled = 2.0 * (obs - self.obs_low) / (self.obs_high - self.obs_low + RANGE_EPS) - 1.0
        return scaled if self._limit is None else scaled.clamp(-self._limit, self._limit)

    def action(self, action: Tensor) -> Tensor:
        """Normalise actions [..., A]."""
        return 2.0 * (action - self.action_low) / (self.action_high - self.action_low + RANGE_EPS) - 1.0

    def unnormalize_action(self, action: Tensor) -> Tensor:
        """Return actions [..., A] in the units of the environment."""
        return (action + 1.0) / 2.0 * (self.action_high - self.action_low + RANGE_EPS) + self.action_low


class Policy(nn.Module):
    """Acts in chunks, scores what it did, and imitates.

    A decision is made in F scored steps (the fine-tuned denoising steps; one for a Gaussian policy). Samples for
    policy gradients are (decision, step) pairs.
    """

    normalizer: Normalizer
    horizon: int
    """H, actions in a chunk."""
    action_horizon: int
    """Actions of a chunk that are executed and scored."""
    num_scored_steps: int
    """F."""
    noise_shape: tuple[int, ...]
    """Shape of the standard normal noise that one decision consumes."""
    imitates_apart: ClassVar[bool] = False
    """Imitation changes other parameters than reinforcement."""
    pads_demos: ClassVar[bool] = False
    """Imitation sees windows up to the end of a demonstration; see :class:`inril_ray.demos.store.DemoStore`."""
    plan: Any = None
    """Makes the base actions of a residual policy; None for all others."""
    plan_shapes: Mapping[str, Any] = {}
    """What goes with ``plan``; see :class:`inril_ray.envs.base_actions.BaseActions`."""

    @property
    def alone(self) -> Policy:
        """The policy without a say of critics: itself, unless critics choose between what it proposes.

        It takes noise of the same shape and makes the same first proposal of it, so that both can be compared pair by
        pair.
        """
        return self

    @abstractmethod
    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Choose action chunks.

        Args:
            obs: [B, O] in the units of the environment.
            noise: [B, *noise_shape] standard normal.
            deterministic: evaluation mode: as little noise as the method allows.
        """

    @abstractmethod
    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Return the log-probability [N] of scored steps, mean over executed actions and their dimensions.

        Args:
            obs: [N, O].
            before: [N, H, A] normalised chunk that entered the step.
            after: [N, H, A] the chunk that left it.
            step: [N] index of the scored step, 0 is the noisiest.
        """

    @abstractmethod
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
        """Return the imitation loss of windows of demonstrations.

        Args:
            obs: [N, O].
            actions: [N, H, A] in the units of the environment.
            noise: [N, H, A] standard normal.
            uniform: [N] in [0, 1), picks denoising steps.
            timesteps: which denoising steps to train.
            weight: [N] of each window; equal by default.
        """

    @abstractmethod
    def bc_loss(self, obs: Tensor, actions: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return the loss of behaviour cloning, on :meth:`pretrained`. Arguments as in :meth:`il_loss`."""

    @abstractmethod
    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that fine-tuning changes, in a fixed order."""

    def imitated(self) -> list[nn.Parameter]:
        """Return the parameters that imitation changes: as a rule, those that reinforcement does."""
        return self.trainable()

    def decision_spec(self, spec: EnvSpec) -> EnvSpec:
        """Return the task as the decisions of reinforcement see it."""
        return spec

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return normalised chunks [N, H, A], sampled as in training, with gradient.

        Args:
            obs: [N, O] in the units of the environment.
            noise: [N, *noise_shape] standard normal.
        """
        raise TypeError(f"{type(self).__name__} can't be differentiated through its samples.")

    @abstractmethod
    def pretrained(self) -> nn.Module:
        """Return the network that behaviour cloning trains."""

    @abstractmethod
    def begin_finetuning(self) -> None:
        """Make the cloned network the starting point of fine-tuning."""
