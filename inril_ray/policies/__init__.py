"""Policies behind one contract, :class:`inril_ray.policies.base.Policy`.

To add one: a module here with a ``Config`` and a subclass of ``Policy``, and one line in ``POLICIES``.
"""

from __future__ import annotations

POLICIES: dict[str, str] = {
    "diffusion_mlp": "inril_ray.policies.diffusion:DiffusionPolicy",
    "diffusion_unet": "inril_ray.policies.diffusion:DiffusionUNetPolicy",
    "gaussian_mlp": "inril_ray.policies.gaussian:GaussianPolicy",
    "residual_gaussian": "inril_ray.policies.residual:ResidualGaussianPolicy",
    "residual_mlp": "inril_ray.policies.residual:ResidualDiffusionPolicy",
    "residual_unet": "inril_ray.policies.residual:ResidualUNetPolicy",
    "tanh_gaussian": "inril_ray.policies.tanh_gaussian:TanhGaussianPolicy",
}
"""Policy name to its class."""
