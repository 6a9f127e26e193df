"""Q-score matching: the predicted noise is regressed to minus the slope of the critics."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveFloat

from inril_ray.algorithms.base import Losses
from inril_ray.algorithms.off_policy import OffPolicyAlgorithm, OffPolicyConfig
from inril_ray.config import config
from inril_ray.policies.diffusion import DiffusionPolicy
from inril_ray.replay import Transitions


@config
class QSMConfig(OffPolicyConfig):
    """Settings of Q-score matching. Defaults are those of DPPO's comparison on Robomimic."""

    actor_lr: Annotated[float, Field(gt=0)] = 1e-5
    replay_ratio: PositiveFloat = 16
    slope: PositiveFloat = 10.0
    """c: the score that is matched is c times the gradient of the critics."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 4


class QSM(OffPolicyAlgorithm):
    """Source: Psenka et al. 2024."""

    Config = QSMConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: QSMConfig

    def loss(self, policy: DiffusionPolicy, minibatch: Transitions) -> Losses:
        """Return the squared distance between minus the predicted noise and c times the critics' slope."""
        b, obs = minibatch, policy.normalizer.obs(minibatch.obs)
        levels = (b.uniform(1, len(b.obs)) * policy.config.denoising_steps).long()
        noisy = policy.schedule.add_noise(b.actions, b.noise(0, *b.actions.shape), levels)
        with torch.enable_grad():
            probe = noisy.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.critics(obs, probe).mean(dim=0).sum(), probe)
        predicted = policy.actor(noisy, levels, obs)
        loss = (-predicted - self.config.slope * slope).square().mean()
        return Losses(policy=loss, stats={"policy_loss": loss.detach(), "q_slope": slope.norm(dim=(1, 2)).mean()})
