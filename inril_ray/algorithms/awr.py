"""Advantage-weighted regression: imitate the replay, good decisions more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from inril_ray.algorithms.base import AlgorithmContext, Experience, Losses, UnitFloat, Update
from inril_ray.algorithms.off_policy import OffPolicyAlgorithm, OffPolicyConfig
from inril_ray.config import config
from inril_ray.losses.policy_gradient import exponential_weights
from inril_ray.losses.returns import gae
from inril_ray.losses.value import value_loss
from inril_ray.policies.base import Policy
from inril_ray.policies.networks import ResidualDepth, ValueNetwork
from inril_ray.replay import Transitions
from inril_ray.types import Rollout


@config
class AWRConfig(OffPolicyConfig):
    """Settings of advantage-weighted regression. Defaults are those of DPPO's comparison on Robomimic."""

    actor_lr: Annotated[float, Field(gt=0)] = 1e-5
    replay_ratio: PositiveFloat = 64
    buffer_size: PositiveInt = 3000
    num_critics: Annotated[int, Field(ge=0, le=0)] = 0
    """No action values."""
    critic_num_hidden: ResidualDepth = 3
    critic_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Steps of the critic for each of the actor."""
    td_lambda: UnitFloat = 0.95
    td_step: UnitFloat = 0.95
    """Share of a temporal difference that a target moves by."""
    temperature: NonNegativeFloat = 10.0
    """Of the weights, exp(temperature x normalised advantage)."""
    max_weight: PositiveFloat = 100.0
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 1
    compat_targets: bool = False
    """The targets of DPPO's code: discount 0.99 whatever is configured, no cut at time limits, a last row that
    bootstraps from its own value, and a critic that sees the first transitions of each array only."""


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Transitions with what the value network, or the weights, are regressed on."""

    batch: Transitions
    number: Tensor
    """[N] target of the value, or advantage."""

    @property
    def obs(self) -> Tensor:
        """Observations [N, O]."""
        return self.batch.obs


class AWR(OffPolicyAlgorithm):
    """Source: Peng et al. 2019, with a diffusion policy as in DPPO's comparison."""

    Config = AWRConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: AWRConfig

    def __init__(self, config: AWRConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        network = ValueNetwork(context.spec.obs_dim, config.critic_hidden_dim, config.critic_num_hidden)
        self.value = self.add_module("value", network)
        self._advantages: Tensor | None = None
        self._order: tuple[Tensor, Tensor, dict[int, Tensor]] | None = None
        """Place in the ring and validity of each transition, oldest first; number of rows to the valid ones in them."""

    def prepare(self, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> Experience:
        """Put a rollout into the replay; see :meth:`Algorithm.prepare`."""
        self._advantages = self._order = None
        return super().prepare(rollout, policy, fresh_start=fresh_start)

    def updates(self, num_updates: int, generator: torch.Generator) -> Iterator[Update]:
        """Yield the steps of the critic, then, with advantages of what it has learned, those of the actor."""
        targets, _ = self.targets_and_advantages()
        rows = self.visible_rows(len(targets))
        for _ in range(max(1, int(num_updates * self.config.critic_share))):
            yield Update(minibatch=self._take(targets, generator, rows), actor=False)
        self._advantages = None
        for _ in range(num_updates):
            yield Update(minibatch=self.draw(generator), critic=False)

    def draw(self, generator: torch.Generator, limit: int | None = None) -> Weighted:
        """Draw a minibatch of the actor, of at most so many transitions."""
        if self._advantages is None:
            self._advantages = self.targets_and_advantages()[1]
        return self._take(self._advantages, generator, len(self._advantages), limit)

    def visible_rows(self, num: int) -> int:
        """Return how many of the transitions the critic learns from: all, or those that DPPO's indices reach."""
        return self.replay.num_rows if self.config.compat_targets else num

    def _take(self, numbers: Tensor, generator: torch.Generator, rows: int, limit: int | None = None) -> Weighted:
        size = min(self.config.batch_size, limit or self.config.batch_size)
        if self._order is None:
            self._order = self.replay.places_in_order(), self.replay.in_order("valid")["valid"].flatten(), {}
        places, valid, choices = self._order
        if rows not in choices:
            choices[rows] = valid[:rows].nonzero()[:, 0]
        drawn = torch.randint(len(choices[rows]), (size,), generator=generator).to(self.device)
        at = choices[rows][drawn]
        return Weighted(batch=self.replay.take(places[at], generator), number=numbers[at])

    @torch.no_grad()
    def targets_and_advantages(self) -> tuple[Tensor, Tensor]:
        """Return the value targets and the advantages of the whole replay, both [rows * B], oldest row first."""
        cfg, normalizer = self.config, self._policy.normalizer
        rows = self.replay.in_order()

        def values(obs: Tensor) -> np.ndarray:
            return self.value(normalizer.obs(obs.flatten(0, 1))).view(obs.shape[:2]).double().cpu().numpy()

        own, following = values(rows["obs"]), values(rows["next_obs"])
        rewards, terminated, cut = (rows[k].cpu().numpy() for k in ("rewards", "terminated", "cut"))
        terminated, cut = terminated.astype(bool), cut.astype(bool)
        if cfg.compat_targets:
            following = np.concatenate([own[1:], own[-1:]])
            cut = np.zeros_like(cut)
        advantages = gae(
            rewards, own, following, terminated, cut & ~terminated,
            discount=0.99 if cfg.compat_targets else cfg.discount, gae_lambda=cfg.td_lambda,
        )  # fmt: skip
        targets = own + cfg.td_step * advantages
        return tuple(torch.from_numpy(a.astype(np.float32)).to(self.device).flatten() for a in (targets, advantages))  # type: ignore[return-value]

    def update_critics(self, policy: Policy, minibatch: Weighted) -> Mapping[str, Tensor]:
        """Step the value network towards its targets."""
        loss = 2.0 * value_loss(self.value(policy.normalizer.obs(minibatch.batch.obs)), minibatch.number)
        self.step("value", loss)
        return {"value_loss": loss.detach()}

    def loss(self, policy: Policy, minibatch: Weighted) -> Losses:
        """Return the weighted loss of cloning the replay."""
        weight = exponential_weights(minibatch.number, self.config.temperature, self.config.max_weight)
        loss = self.imitate_replay(policy, minibatch.batch, weight)
        return Losses(policy=loss, stats={"policy_loss": loss.detach(), "imitation_weight": weight.mean()})
