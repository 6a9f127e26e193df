"""The model on one GPU: mujoco_warp steps all environments at once, in single precision.

State lives on the device, shared between Warp and torch without copies, so what happens between control steps
(``logic.py``) runs there too. Actions come in and observations go out once per control step.

Single precision, and contacts that are numbered in the order in which threads find them: on a GPU the same seed gives
the same statistics, not the same numbers. On Warp's CPU device, which tests use, results repeat bit for bit.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import torch

from inril_ray.envs.furniture.model import OBSTACLE_POS, addresses, compile_model
from inril_ray.envs.furniture.spec import CONTROL_HZ, Furniture
from inril_ray.envs.rendering import import_mujoco
from inril_ray.types import FloatArray, InrilError

RELEASES = {"mujoco-warp": "3.8.1", "warp-lang": "1.12.1", "mujoco": "3.8.1"}
"""The only ones that work together here."""
REASON = "mujoco-warp 3.8.1 breaks with newer warp-lang, and mujoco must be the same release as mujoco-warp"
EDGE_TEST = (
    "if c3 < separation * (1.0 - 1e-12):",
    "if c3 < separation - 1e-6 * (s_sum_3[0] + s_sum_3[1] + s_sum_3[2]):",
)
"""A line of mujoco_warp's ``box_box``, and what it has to be: some 25 times the rounding of a sum of sizes."""
CONTACTS, CONSTRAINTS = 96, 384
"""That there is memory for in each environment. Scripted episodes of one_leg need at most 52 contacts and pairs that
may touch, as a mean over environments, and 286 rows."""


def require_gpu() -> None:
    """Refuse to simulate where it would crawl.

    Raises:
        InrilError: this process has no GPU.
    """
    if not torch.cuda.is_available():
        raise InrilError(
            "env.backend = 'warp' simulates on a GPU, and this process has none. Take env.backend=cpu; for a test of "
            "few steps, env.furniture.warp_device=cpu."
        )


def import_warp() -> tuple[Any, Any]:
    """Import warp and mujoco_warp.

    Raises:
        InrilError: one is missing, or is a release that does not work.
    """
    for package, wanted in RELEASES.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise InrilError(
                f"env.backend = 'warp' needs {package}, which is not installed: pip install 'inril-ray[furniture]'"
            ) from None
        if found != wanted:
            raise InrilError(
                f"env.backend = 'warp' needs {package} {wanted}, found {found}: {REASON}. "
                "Install it with: pip install 'inril-ray[furniture]'"
            )
    import_mujoco()
    import warp

    warp.config.quiet = True
    import mujoco_warp

    _prefer_faces()
    return warp, mujoco_warp


@cache
def _prefer_faces() -> None:
    """Correct mujoco_warp's search for contacts of two boxes, before its kernels are compiled.

    It looks for the axis along which the boxes overlap least among the normals of their faces and the products of their
    edges. For boxes that lie flat on each other both give the same axis, and face normals must win: contacts are found
    from faces then. The release gives them an advantage of 1e-12, which is nothing in single precision. So now and then
    edges win, and with them come contacts that are centimetres deep and fling what is held.
    Found by its authors as well, after this release (github.com/google-deepmind/mujoco_warp/pull/1597).
    """
    from mujoco_warp._src.collision_primitive_core import box_box  # pyright: ignore[reportMissingImports]

    before, after = EDGE_TEST
    source = box_box.adj.source
    if source.count(before) != 1:
        raise InrilError(f"mujoco_warp's box_box is not that of release {RELEASES['mujoco-warp']}: install it again.")
    box_box.adj = type(box_box.adj)(box_box.func, source=source.replace(before, after))


class WarpPhysics:
    """All environments on one device; the interface of :class:`inril_ray.envs.furniture.cpu.CpuPhysics` in torch.

    ``qpos``, ``qvel``, ``active_equalities`` and ``obstacle`` are the simulation's own memory.

    Args:
        furniture: the task.
        num_envs: B.
        device: ``cuda`` takes torch's GPU; ``cpu`` is for tests.
        contacts: that there is memory for, per environment; all environments share it. None takes ``CONTACTS``.
        constraints: rows of constraints that there is memory for, in each environment. None takes ``CONSTRAINTS``.

    Raises:
        InrilError: there is no GPU, or mujoco_warp or Warp is missing, or of another release.
    """

    def __init__(
        self,
        furniture: Furniture,
        num_envs: int,
        device: str = "cuda",
        contacts: int | None = None,
        constraints: int | None = None,
    ) -> None:
        if device == "cuda":
            require_gpu()
        self._warp, self._simulator = import_warp()
        warp = self._warp
        self.device = warp.get_device(f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device)
        self.model = compile_model(furniture)
        self.where = addresses(self.model, furniture)
        self._substeps = round(furniture.physics_hz / CONTROL_HZ)
        contacts, constraints = contacts or CONTACTS, constraints or CONSTRAINTS
        with warp.ScopedDevice(self.device):
            self._model = self._simulator.put_model(self.model)
            data = self._data = self._simulator.make_data(
                self.model,
                nworld=num_envs,
                nconmax=contacts,
                njmax=constraints,
                njmax_nnz=constraints * self.model.nv,  # as if all were dense: this buffer can't run out
            )
            self._used = warp.zeros(2, dtype=int)
            warp.synchronize_device()  # torch may work on another stream, here and below
        self.qpos: Any = warp.to_torch(data.qpos)
        """[B, nq]"""
        self.qvel: Any = warp.to_torch(data.qvel)
        """[B, nv]"""
        self.active_equalities: Any = warp.to_torch(data.eq_active)
        """[B, neq]"""
        self.obstacle_start = OBSTACLE_POS
        self.obstacle: Any = warp.to_torch(data.mocap_pos)[:, 0]
        """[B, 3] position of the obstacle's front."""
        self._controls: Any = warp.to_torch(data.ctrl)
        self._warm_start: Any = warp.to_torch(data.qacc_warmstart)
        self._forgotten = (self._controls, self._warm_start, warp.to_torch(data.time)[:, None])
        """What an episode begins without."""
        self._fields = (self.qpos, self.qvel, *self._forgotten, self.active_equalities, self.obstacle)
        """Everything that the next step depends on, each [B, columns]."""
        self._graph = self._captured() if self.device.is_cuda else None

    def _captured(self) -> Any:
        """Return all substeps of a control step as one CUDA graph."""
        warp, before = self._warp, self._state()
        with warp.ScopedDevice(self.device):
            # Where the driver has no loops in graphs, the solver makes all of its iterations.
            self._model.opt.graph_conditional = warp.is_conditional_graph_supported()
            warp.synchronize_device()
            self._simulate()  # kernels are compiled and loaded: older drivers can't do that during a capture
            with warp.ScopedCapture() as capture:
                self._simulate()
            warp.synchronize_device()
        self._restore(before)
        return capture.graph

    def _simulate(self) -> None:
        """Make the substeps of a control step, and record the memory that they use."""
        data = self._data
        counts = [data.nacon, data.ncollision, data.nefc, self._used]
        for _ in range(self._substeps):
            self._simulator.step(self._model, data)
            self._warp.launch(_record_use(), dim=data.nworld, inputs=counts)

    def array(self, value: Any) -> Any:
        """Return a numpy array as a tensor on the device; floats become single precision."""
        value = np.ascontiguousarray(value, np.float32 if np.issubdtype(value.dtype, np.floating) else None)
        return torch.from_numpy(value).to(self.qpos.device)

    def numpy(self, value: Any) -> Any:
        """Return a tensor of the device as a numpy array."""
        return value.cpu().numpy()

    def begin(self, mask: Any) -> None:
        """Forget everything about the environments of ``mask`` [B] but what the arrays say."""
        for field in self._forgotten:
            field[mask] = 0.0

    def write(self, mask: Any) -> None:
        """Do nothing: the arrays are the simulation's own."""

    def step(self, controls: Any, active: Any) -> None:
        """Execute one control step in the environments where ``active``; others are simulated too, and put back.

        Args:
            controls: [B, 9] inputs of the actuators, held.
            active: [B].

        Raises:
            InrilError: the memory for contacts or constraints was too small in some substep; mujoco_warp drops what
                does not fit and goes on.
        """
        warp, before = self._warp, self._state()
        self._controls[:] = controls
        used = warp.to_torch(self._used)
        used.zero_()
        if self._graph is None:
            with warp.ScopedDevice(self.device):
                self._simulate()
        else:
            # On torch's stream, so after what torch has written and before what it reads.
            warp.capture_launch(self._graph, stream=warp.stream_from_torch(self.qpos.device))
        self._restore(torch.where(active[:, None], self._state(), before))
        self._check(*used.tolist())

    def _check(self, contacts: int, constraints: int) -> None:
        """Refuse a control step that ran out of memory."""
        data = self._data
        if contacts > data.naconmax:
            held, needed = data.naconmax // data.nworld, -(-contacts // data.nworld)
            raise InrilError(
                f"mujoco_warp ran out of memory for contacts and dropped some: {data.nworld} environments share room "
                f"for {data.naconmax} and needed {contacts}. Set env.furniture.contacts = {held} to {needed} or more."
            )
        # A weld that would end exactly at the limit is dropped as well.
        if constraints >= data.njmax:
            raise InrilError(
                f"mujoco_warp ran out of memory for constraints and dropped some: an environment needed {constraints} "
                f"rows. Set env.furniture.constraints = {data.njmax} to {constraints + 1} or more."
            )

    def _state(self) -> Any:
        """Return a copy of all fields, [B, S]."""
        return torch.cat([field.to(torch.float32) for field in self._fields], dim=1)

    def _restore(self, state: Any) -> None:
        """Write all fields, [B, S]."""
        widths = [field.shape[1] for field in self._fields]
        for field, columns in zip(self._fields, state.split(widths, dim=1), strict=True):
            field.copy_(columns)

    def get_state(self) -> FloatArray:
        """Return everything that the next step depends on, [B, S]."""
        return self.numpy(self._state())

    def set_state(self, state: FloatArray) -> None:
        """Put back what :meth:`get_state` returned.

        Raises:
            InrilError: it is of another task, number of environments or backend.
        """
        shape = len(self.qpos), sum(field.shape[1] for field in self._fields)
        if state.shape != shape:
            raise InrilError(f"The state of the simulation has shape {state.shape}; here it has {shape}.")
        self._restore(self.array(state))

    def versions(self) -> dict[str, str]:
        """Return the releases of the packages and the device, for the records."""
        return {**{package: metadata.version(package) for package in RELEASES}, "warp device": self.device.name}

    def close(self) -> None:
        """Nothing to end."""


@cache
def _record_use() -> Any:
    """Return the kernel that raises ``used`` to the contacts of all environments and the most rows of one."""
    import warp as wp

    @wp.kernel(enable_backward=False)
    def record_use(
        contacts: wp.array(dtype=int),  # pyright: ignore[reportInvalidTypeForm]
        pairs: wp.array(dtype=int),  # pyright: ignore[reportInvalidTypeForm]
        constraints: wp.array(dtype=int),  # pyright: ignore[reportInvalidTypeForm]
        used: wp.array(dtype=int),  # pyright: ignore[reportInvalidTypeForm]
    ) -> None:
        world = wp.tid()
        if world == 0:
            # Pairs that may touch and contacts have buffers of the same size.
            wp.atomic_max(used, 0, wp.max(contacts[0], pairs[0]))
        wp.atomic_max(used, 1, constraints[world])

    return record_use
