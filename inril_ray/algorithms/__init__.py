"""Reinforcement-learning algorithms behind one contract, :class:`inril_ray.algorithms.base.Algorithm`.

To add one: a module here with a ``Config`` and a subclass of ``Algorithm``, and one line in ``ALGORITHMS``. No
algorithm knows its simulator or the interleaving.
"""

from __future__ import annotations

ALGORITHMS: dict[str, str] = {
    "awr": "inril_ray.algorithms.awr:AWR",
    "cal_ql": "inril_ray.algorithms.cal_ql:CalQL",
    "dipo": "inril_ray.algorithms.dipo:DIPO",
    "dppo": "inril_ray.algorithms.dppo:DPPO",
    "dql": "inril_ray.algorithms.dql:DQL",
    "ibrl": "inril_ray.algorithms.ibrl:IBRL",
    "idql": "inril_ray.algorithms.idql:IDQL",
    "ppo": "inril_ray.algorithms.ppo:PPO",
    "qsm": "inril_ray.algorithms.qsm:QSM",
    "residual_ppo": "inril_ray.algorithms.residual_ppo:ResidualPPO",
    "rlpd": "inril_ray.algorithms.rlpd:RLPD",
    "rwr": "inril_ray.algorithms.rwr:RWR",
    "sac": "inril_ray.algorithms.sac:SAC",
}
"""Algorithm name to its class."""
