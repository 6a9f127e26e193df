"""What all tests share."""

from __future__ import annotations

import os

# As `inril_ray.envs.rendering.import_mujoco` does it: which test first imports MuJoCo, by itself or through a
# simulator, depends on how the files are shared out.
if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")
