"""Cal-QL: conservative critics that are not more pessimistic than what has been achieved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inril_ray.algorithms.actor_critic import SoftActorCritic, SoftConfig
from inril_ray.algorithms.base import AlgorithmContext, Experience, Update
from inril_ray.config import config
from inril_ray.losses.returns import returns_to_go
from inril_ray.policies.base import Policy
from inril_ray.policies.tanh_gaussian import TanhGaussianPolicy
from inril_ray.progress import steps
from inril_ray.replay import Transitions
from inril_ray.types import Rollout

NO_FLOOR = -1e9


@config
class CalQLConfig(SoftConfig):
    """Settings of Cal-QL. Defaults are those of DPPO's comparison, with a shorter offline phase."""

    actor_lr: PositiveFloat = 1e-4
    critic_layer_norm: bool = True
    entropy_backup: bool = False
    conservatism: NonNegativeFloat = 5.0
    """Weight of the conservative term."""
    num_actions: PositiveInt = 10
    """Actions drawn from each source for that term, and for the target."""
    offline_updates: NonNegativeInt = 10_000
    """Steps on the demonstrations alone, made before the first iteration's own."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 0


class CalQL(SoftActorCritic):
    """Source: Nakamoto et al. 2023.

    Differs from DPPO's code, which states the density of uniform actions as 0.5^d instead of d log 0.5, values actions
    of the next observation there instead of here, and draws one action of the policy.
    """

    Config = CalQLConfig
    config: CalQLConfig
    mixes_demos = True

    def __init__(self, config: CalQLConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        self.offline_done = 0

    def prepare(self, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> Experience:
        """Put a rollout into the replay with the returns that followed."""
        over = rollout.terminated | rollout.truncated
        returns, finished = returns_to_go(rollout.rewards, over, self.config.discount)
        # What an unfinished episode will have achieved is not known: no floor.
        return self.experience(rollout, note=np.where(finished, returns * self.config.reward_scale, NO_FLOOR))

    def updates(self, num_updates: int, generator: torch.Generator) -> Iterator[Update]:
        """Yield what is left of the offline phase, then the iteration's updates."""
        assert self.demos is not None
        wanted = self.config.offline_updates
        for done in steps(range(self.offline_done, wanted), "offline updates", wanted - self.offline_done):
            self.offline_done = done + 1
            yield Update(minibatch=self.demos.sample(self.config.batch_size, generator))
        yield from super().updates(num_updates, generator)

    def bootstrap(self, policy: TanhGaussianPolicy, minibatch: Transitions) -> Tensor:
        """Return the greatest value of several actions of the policy."""
        num, size = self.config.num_actions, len(minibatch.obs)
        repeated = minibatch.next_obs.repeat_interleave(num, dim=0)
        following, _ = policy.sample_scored(repeated, minibatch.noise(2, size * num, *self.chunk_shape))
        q = self.target_critics(policy.normalizer.obs(repeated), following).min(dim=0).values
        return q.view(size, num).max(dim=1).values

    def regularization(
        self, policy: TanhGaussianPolicy, minibatch: Transitions, q: Tensor
    ) -> tuple[Tensor | float, Mapping[str, Tensor]]:
        """Return the conservative term: soft maximum over actions of all sources, minus the value of the data."""
        b, num, size = minibatch, self.config.num_actions, len(minibatch.obs)
        dims = self.chunk_shape[0] * self.chunk_shape[1]
        obs = policy.normalizer.obs(b.obs).repeat_interleave(num, dim=0)
        floor = b.note.repeat_interleave(num)
        sources = []
        uniform = 2.0 * b.uniform(6, size * num, *self.chunk_shape) - 1.0
        sources.append(self.critics(obs, uniform) - dims * math.log(0.5))
        for stream, where in ((7, b.obs), (3, b.next_obs)):
            with torch.no_grad():
                chunk, log_prob = policy.sample_scored(
                    where.repeat_interleave(num, dim=0), b.noise(stream, size * num, *self.chunk_shape)
                )
            sources.append(torch.maximum(self.critics(obs, chunk), floor) - log_prob)
        values = torch.cat([s.view(len(q), size, num) for s in sources], dim=2)
        gap = (torch.logsumexp(values, dim=2) - q).mean(dim=1).sum()
        return self.config.conservatism * gap, {"conservative_gap": gap.detach()}

    def state_dict(self) -> dict[str, object]:
        """Return the replay and how far the offline phase is."""
        return {**super().state_dict(), "offline_done": self.offline_done}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Put back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.offline_done = int(state["offline_done"])  # type: ignore[call-overload]
