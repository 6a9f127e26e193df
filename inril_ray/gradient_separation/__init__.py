"""How the imitation gradient is kept from fighting the reinforcement gradient.

To add a method: a module here with a subclass of :class:`inril_ray.gradient_separation.base.Separation` that gives
``weights``, and one line in ``SEPARATIONS``.
"""

from __future__ import annotations

SEPARATIONS: dict[str, str] = {
    "cagrad": "inril_ray.gradient_separation.cagrad:CAGrad",
    "dualproj": "inril_ray.gradient_separation.dualproj:DualProj",
    "mgda": "inril_ray.gradient_separation.mgda:MGDA",
    "naive": "inril_ray.gradient_separation.naive:Naive",
    "network": "inril_ray.gradient_separation.network:Network",
    "pcgrad": "inril_ray.gradient_separation.pcgrad:PCGrad",
    "project_il": "inril_ray.gradient_separation.project_il:ProjectIL",
    "upgrad": "inril_ray.gradient_separation.upgrad:UPGrad",
}
"""Separation name to its class."""
