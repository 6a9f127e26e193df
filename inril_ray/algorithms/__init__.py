"""Reinforcement-learning algorithms behind one contract, :class:`inril_ray.algorithms.base.Algorithm`.

To add one: a module here with a ``Config`` and a subclass of ``Algorithm``, and one line in ``ALGORITHMS``. No
algorithm knows its simulator or the interleaving.
"""

from __future__ import annotations

ALGORITHMS: dict[str, str] = {
    "dppo": "inril_ray.algorithms.dppo:DPPO",
    "ppo": "inril_ray.algorithms.ppo:PPO",
}
"""Algorithm name to its class."""
