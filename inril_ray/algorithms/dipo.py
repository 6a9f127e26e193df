"""DIPO: move the actions of the replay up the critics, then imitate them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from inril_ray.algorithms.base import AlgorithmContext, Losses, Update
from inril_ray.algorithms.off_policy import OffPolicyAlgorithm, OffPolicyConfig
from inril_ray.config import config
from inril_ray.policies.base import Policy
from inril_ray.replay import Transitions


@config
class DIPOConfig(OffPolicyConfig):
    """Settings of DIPO. Defaults are those of DPPO's comparison on Robomimic."""

    actor_lr: Annotated[float, Field(gt=0)] = 1e-5
    replay_ratio: PositiveFloat = 16
    buffer_size: PositiveInt = 20_000
    ascent_steps: PositiveInt = 10
    """Steps of actions up the critics."""
    ascent_lr: PositiveFloat = 1e-4
    ascent_clip: PositiveFloat = 0.1
    """Bound of an action's gradient, as a share of its dimensions."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 1
    compat_batch_clip: bool = False
    """Clip the gradient over the whole batch, as the reference code does; its steps then depend on the batch size."""


class DIPO(OffPolicyAlgorithm):
    """Source: Yang et al. 2023. Acts with an averaged copy of the policy."""

    Config = DIPOConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: DIPOConfig

    def __init__(self, config: DIPOConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        self.target_policy: Policy = self.add_copy("target_policy", context.policy)

    def begin(self, policy: Policy) -> None:
        """Begin with a copy of the cloned policy."""
        super().begin(policy)
        self.target_policy.load_state_dict(policy.state_dict())

    @property
    def acting(self) -> Policy:
        """The averaged policy."""
        return self.target_policy

    def updates(self, num_updates: int, generator: torch.Generator) -> Iterator[Update]:
        """Yield a step of the critics, then one of the actor on fresh actions that the critics have improved."""
        for _ in range(num_updates):
            yield Update(minibatch=self.draw(generator), actor=False)
            yield Update(minibatch=None, critic=False, make=lambda: self.improved(self.draw(generator)))

    def improved(self, batch: Transitions) -> Transitions:
        """Return transitions whose actions the critics value more, and put these into the replay."""
        cfg, obs = self.config, self._policy.normalizer.obs(batch.obs)
        actions = nn.Parameter(batch.actions.clone())
        limit = cfg.ascent_clip * actions[0].numel()
        optimizer = torch.optim.Adam([actions], lr=cfg.ascent_lr, eps=1e-5)
        for _ in range(cfg.ascent_steps):
            value = self.critics(obs, actions).min(dim=0).values.sum()
            (gradient,) = torch.autograd.grad(-value, actions)
            norm = gradient.norm() if cfg.compat_batch_clip else gradient.flatten(1).norm(dim=1)[:, None, None]
            actions.grad = torch.nan_to_num(gradient * (limit / norm.clamp_min(limit)))
            optimizer.step()
            actions.data.clamp_(-1.0, 1.0)
        better = actions.detach()
        self.replay.replace_actions(batch.index, better)
        return Transitions(**{**vars(batch), "actions": better})

    def target_actor(self, policy: Policy) -> Policy:
        """The averaged policy."""
        return self.target_policy

    def loss(self, policy: Policy, minibatch: Transitions) -> Losses:
        """Return the loss of cloning the replay, whose actions have been improved."""
        loss = self.imitate_replay(policy, minibatch)
        return Losses(policy=loss, stats={"policy_loss": loss.detach()})

    def after_actor_step(self, policy: Policy, losses: Losses) -> None:
        """Average the acting policy with the trained one."""
        self.follow("target_policy", source=policy)
