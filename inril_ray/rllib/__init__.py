"""IN-RIL inside RLlib: interleaved imitation for algorithms of the new API stack.

:func:`with_interleaving` gives an ``AlgorithmConfig`` demonstrations, a schedule and a separation; the algorithm stays
RLlib's. :func:`with_task` gives it one of our batched simulators. See ``docs/rllib.md``.
"""

from __future__ import annotations

from inril_ray.rllib.interleaving import with_interleaving
from inril_ray.rllib.learner import InterleavingLearner
from inril_ray.rllib.tasks import with_task

__all__ = ["InterleavingLearner", "with_interleaving", "with_task"]
