"""RLPD: soft actor-critic with an ensemble, half of every batch from demonstrations."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.actor_critic import SoftActorCritic, SoftConfig
from inril_ray.algorithms.base import AlgorithmContext
from inril_ray.config import config
from inril_ray.replay import Transitions


@config
class RLPDConfig(SoftConfig):
    """Settings of RLPD. Defaults are those of its paper, with fewer updates for each transition."""

    num_critics: PositiveInt = 10
    critic_layer_norm: bool = True
    replay_ratio: PositiveFloat = 1024
    """At 1024, four critic updates for each new transition; the paper's 20 are 5120."""
    num_target_critics: Annotated[int, Field(ge=1)] = 2
    """Critics drawn by chance whose least value targets use."""
    critic_steps: PositiveInt = 4
    """Steps of the critics for each of the actor."""
    entropy_share: Annotated[float, Field(ge=0)] = 0.5

    def __post_init__(self) -> None:
        if self.num_target_critics > self.num_critics:
            raise ValueError(f"num_target_critics {self.num_target_critics} exceeds num_critics {self.num_critics}")


class RLPD(SoftActorCritic):
    """Source: Ball et al. 2023. It starts from the cloned policy, so there are no random steps at first.

    The critics are initialised independently; in DPPO's code they are copies that stay equal for ever.
    """

    Config = RLPDConfig
    config: RLPDConfig
    mixes_demos = True

    def __init__(self, config: RLPDConfig, context: AlgorithmContext) -> None:
        super().__init__(config, context)
        for layer in self.critics.modules():
            if isinstance(layer, nn.Linear):
                # Drawn on the CPU, so that it is the same wherever the critics live.
                layer.weight.data.copy_(nn.init.xavier_uniform_(torch.empty(layer.weight.shape)))
                nn.init.zeros_(layer.bias)
        self.target_critics.load_state_dict(self.critics.state_dict())

    def target_value(self, q: Tensor, minibatch: Transitions) -> Tensor:
        """Return the least value of a few critics drawn by chance."""
        chosen = torch.randperm(len(q), generator=minibatch.generator(5))[: self.config.num_target_critics]
        return q[chosen.to(q.device)].min(dim=0).values

    def actor_value(self, q: Tensor) -> Tensor:
        """Return the mean of all critics."""
        return q.mean(dim=0)
