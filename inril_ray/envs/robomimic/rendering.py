"""Headless pictures of a robosuite model, drawn from its generalised coordinates."""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from typing import Any

import numpy as np

from inril_ray.types import FloatArray, InrilError


class Renderer:
    """Draws a model from its ``agentview`` camera.

    Args:
        xml: robosuite's model.
        width: pixels.
        height: pixels.

    Raises:
        InrilError: no OpenGL library for headless rendering can be loaded.
    """

    def __init__(self, xml: str, width: int, height: int) -> None:
        # Mesa's software renderer and Triton each bring an LLVM of their own. Loaded in this order both work; Triton
        # loaded second (by the first optimiser of a later run) ends the process with a segmentation fault.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import mujoco as module

        mujoco: Any = module  # a C extension without type information
        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_string(xml)
        self._data = mujoco.MjData(self._model)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._options.geomgroup[1] = 1  # visual shapes
        self._options.sitegroup[:] = 0
        try:
            self._renderer = mujoco.Renderer(self._model, height, width)
        except Exception as error:  # what is raised depends on the OpenGL platform
            raise InrilError(
                f"Cannot render: no OpenGL library for headless use could be loaded ({error}). On Debian and Ubuntu: "
                "apt-get install libegl1 libgl1-mesa-dri, or set MUJOCO_GL=osmesa after installing libosmesa6."
            ) from None

    def render(self, qpos: FloatArray) -> np.ndarray:
        """Return a picture [height, width, 3] of the model in configuration ``qpos``."""
        self._data.qpos[:] = qpos
        self._mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera="agentview", scene_option=self._options)
        return self._renderer.render().copy()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def package_versions() -> dict[str, str]:
    """Return the versions of the simulator's packages."""
    return {name: version(name) for name in ("robosuite", "mujoco")}
