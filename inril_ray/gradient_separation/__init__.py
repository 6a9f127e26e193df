"""How the imitation gradient is kept from fighting the reinforcement gradient.

To add a method: a module here with a subclass of :class:`inril_ray.gradient_separation.base.Separation` that gives
``weights``, and one line in ``SEPARATIONS``.
"""

from __future__ import annotations

SEPARATIONS: dict[str, str] = {
    "naive": "inril_ray.gradient_separation.naive:Naive",
    "pcgrad": "inril_ray.gradient_separation.pcgrad:PCGrad",
    "upgrad": "inril_ray.gradient_separation.upgrad:UPGrad",
}
"""Separation name to its class."""
