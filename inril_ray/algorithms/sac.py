"""SAC on action chunks."""

from __future__ import annotations

from inril_ray.algorithms.actor_critic import SoftActorCritic, SoftConfig


class SAC(SoftActorCritic):
    """Twin critics, the smaller one counts; the entropy aimed at is minus the dimensions of a chunk.

    Source: Haarnoja et al. 2018.
    """

    Config = SoftConfig
