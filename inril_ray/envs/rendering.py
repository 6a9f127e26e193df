"""Headless pictures of a MuJoCo model, drawn from its generalised coordinates."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from inril_ray.types import FloatArray, InrilError


def import_mujoco() -> Any:
    """Import MuJoCo, set up to draw without a display. To be called before anything else imports it."""
    # MuJoCo chooses its OpenGL platform when it is first imported. Without a display its default, GLFW, can't work; EGL
    # does, on GPUs and on Mesa's software driver alike.
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    import mujoco

    return mujoco  # a C extension without type information


class ModelRenderer:
    """Draws one model.

    Args:
        model: a compiled model. Its limit on the size of pictures is raised where needed; nothing else changes.
        width: pixels.
        height: pixels.
        camera: name of a camera of the model, or an ``MjvCamera``.
        options: ``MjvOption``: which groups of shapes and sites are drawn; MuJoCo's defaults if None.

    Raises:
        InrilError: no OpenGL library for headless rendering can be loaded.
    """

    def __init__(self, model: Any, width: int, height: int, camera: Any, options: Any = None) -> None:
        # Mesa's software renderer and Triton each bring an LLVM of their own. Loaded in this order both work; Triton
        # loaded second (by the first optimiser of a later run) ends the process with a segmentation fault.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401  # pyright: ignore[reportUnusedImport]
        self._mujoco = import_mujoco()
        self._model, self._camera, self._options = model, camera, options
        self._data = self._mujoco.MjData(model)
        limits = model.vis.global_
        limits.offwidth, limits.offheight = max(limits.offwidth, width), max(limits.offheight, height)
        try:
            self._renderer = self._mujoco.Renderer(model, height, width)
        except Exception as error:  # what is raised depends on the OpenGL platform
            raise InrilError(
                f"Cannot render: no OpenGL library for headless use could be loaded ({error}). On Debian and Ubuntu: "
                "apt-get install libegl1 libgl1-mesa-dri, or set MUJOCO_GL=osmesa after installing libosmesa6. If the "
                "program imports mujoco by itself, set MUJOCO_GL=egl."
            ) from None

    def render(self, qpos: FloatArray, mocap_pos: FloatArray | None = None) -> np.ndarray:
        """Return a picture [height, width, 3] of the model in configuration ``qpos``, with its mocap bodies [M, 3]."""
        self._data.qpos[:] = qpos
        if mocap_pos is not None:
            self._data.mocap_pos[:] = mocap_pos
        self._mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=self._camera, scene_option=self._options)
        return self._renderer.render().copy()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()
