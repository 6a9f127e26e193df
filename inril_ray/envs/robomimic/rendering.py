"""Headless pictures of a robosuite model."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from inril_ray.envs.rendering import ModelRenderer, import_mujoco


def agentview(model: Any, width: int, height: int) -> ModelRenderer:
    """Return what draws a model from its ``agentview`` camera: visual shapes, no collision shapes, no sites.

    Args:
        model: robosuite's model, compiled.
        width: pixels.
        height: pixels.

    Raises:
        InrilError: no OpenGL library for headless rendering can be loaded.
    """
    options = import_mujoco().MjvOption()
    options.geomgroup[0] = 0  # collision shapes
    options.geomgroup[1] = 1  # visual shapes
    options.sitegroup[:] = 0
    return ModelRenderer(model, width, height, "agentview", options)


def package_versions() -> dict[str, str]:
    """Return the versions of the simulator's packages."""
    return {name: version(name) for name in ("robosuite", "mujoco")}
