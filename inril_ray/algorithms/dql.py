"""Diffusion Q-learning: imitate the replay, and climb the critics through the whole denoising chain."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from inril_ray.algorithms.base import Losses
from inril_ray.algorithms.off_policy import OffPolicyAlgorithm, OffPolicyConfig
from inril_ray.config import config
from inril_ray.policies.base import Policy
from inril_ray.replay import Transitions


@config
class DQLConfig(OffPolicyConfig):
    """Settings of diffusion Q-learning. Defaults are those of DPPO's comparison on Robomimic."""

    actor_lr: Annotated[float, Field(gt=0)] = 1e-5
    replay_ratio: PositiveFloat = 16
    buffer_size: PositiveInt = 20_000
    q_weight: NonNegativeFloat = 1.0
    """Weight of the critics' term against that of imitation."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 4
    compat_own_actions: bool = False
    """Imitate fresh samples of the policy itself, as DPPO's code does, and not the actions of the replay."""


class DQL(OffPolicyAlgorithm):
    """Source: Wang et al. 2023 (Diffusion-QL). Targets come from the policy itself, as in DPPO's comparison."""

    Config = DQLConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: DQLConfig

    def loss(self, policy: Policy, minibatch: Transitions) -> Losses:
        """Return imitation minus the normalised value of fresh samples."""
        b = minibatch
        chunk = policy.sample(b.obs, b.noise(3, len(b.obs), *policy.noise_shape))
        imitated = b
        if self.config.compat_own_actions:
            imitated = Transitions(**{**vars(b), "actions": chunk.detach()})
        imitation = self.imitate_replay(policy, imitated)
        q = self.critics(policy.normalizer.obs(b.obs), chunk)
        one = int(torch.randint(len(q), (1,), generator=b.generator(4)))
        other = (one + 1) % len(q)
        term = -q[one].mean() / q[other].detach().abs().mean().clamp_min(1e-8)
        loss = imitation + self.config.q_weight * term
        stats = {"policy_loss": loss.detach(), "q_policy": q.detach().mean()}
        return Losses(policy=loss, stats=stats)
