"""How the imitation gradient is kept from fighting the reinforcement gradient.

To add a method: a module here with a class that has ``weights`` (see :class:`inril_ray.gradient_separation.base.Separation`)
and one line in ``SEPARATIONS``.
"""

from __future__ import annotations

SEPARATIONS: dict[str, str] = {
    "naive": "inril_ray.gradient_separation.naive:Naive",
    "pcgrad": "inril_ray.gradient_separation.pcgrad:PCGrad",
    "upgrad": "inril_ray.gradient_separation.upgrad:UPGrad",
}
"""Separation name to its class."""
