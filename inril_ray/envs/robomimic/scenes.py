"""What differs between the Robomimic tasks: their random parts, initial poses, object observations and success.

Initial poses come from robosuite's own samplers, so the draws and their order are robosuite's. Observations and success
are computed for the whole batch. Source: robosuite 1.5.2 ``environments/manipulation/``; 1.4.1 for its rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from inril_ray.envs.robomimic.semantics import Rules
from inril_ray.types import BoolArray, FloatArray

AWAY = (10.0, 10.0, 10.0, 1.0, 0.0, 0.0, 0.0)
"""Where robosuite puts the objects that a task does not use."""


@dataclass(frozen=True, kw_only=True)
class Poses:
    """What the scene looks like in B environments with R arms. Quaternions are (x, y, z, w)."""

    hand_pos: FloatArray
    """[B, R, 3] grip sites, metres."""
    hand_quat: FloatArray
    """[B, R, 4] hand bodies."""
    pos: FloatArray
    """[B, F, 3] the scene's ``frames``, metres."""
    quat: FloatArray
    """[B, F, 4]"""
    touching: BoolArray
    """[B, C] whether each of the scene's ``contacts`` holds."""


class Scene(ABC):
    """Base of the scenes. ``env`` is a robosuite environment of the task, after its first reset."""

    frames: tuple[str, ...] = ()
    """Bodies whose pose is observed or decides on success."""
    contacts: tuple[tuple[list[str], list[str]], ...] = ()
    """Pairs of groups of geoms: whether any of the first touches any of the second."""
    unused: tuple[str, ...] = ()
    """Bodies of objects that the task puts away."""

    def __init__(self, env: Any, rules: Rules) -> None:
        self._sampler = env.placement_initializer
        self._rng = env.rng
        self._rules = rules

    def draw(self, rng: np.random.Generator) -> Any | None:
        """Return the object that robosuite draws at random when it builds a model, or None if it draws none."""
        return None

    def place(self, thing: Any | None) -> dict[str, FloatArray]:
        """Sample initial poses with robosuite's generator: free joint to [x, y, z, qw, qx, qy, qz].

        Args:
            thing: the environment's own object, from :meth:`draw`.
        """
        return {
            item.joints[0]: np.concatenate([pos, quat])
            for pos, quat, item in self._sampler.sample().values()
            if "visual" not in item.name.lower()
        }

    def begin(self, poses: Poses, mask: BoolArray) -> None:  # noqa: B027 - most remember nothing
        """Forget what is remembered of earlier steps in the environments of ``mask`` [B]."""

    @abstractmethod
    def observe(self, poses: Poses) -> FloatArray:
        """Return the ``object`` part of the observation, [B, K]."""

    @abstractmethod
    def success(self, poses: Poses) -> BoolArray:
        """Return whether the task is solved, [B]."""

    def get_state(self) -> FloatArray:
        """Return what is remembered of earlier steps, [B, M]."""
        return np.zeros((0, 0))

    def set_state(self, state: FloatArray) -> None:  # noqa: B027 - see begin
        """Put back what :meth:`get_state` returned."""


class LiftScene(Scene):
    """A cube whose size robosuite draws when it builds a model."""

    frames = ("cube_main",)
    RISE_M = 0.04

    def __init__(self, env: Any, rules: Rules) -> None:
        super().__init__(env, rules)
        self._cube = env.cube
        self._height = float(env.model.mujoco_arena.table_offset[2]) + self.RISE_M

    def draw(self, rng: np.random.Generator) -> Any:
        """Return a cube with half-sizes between 20 and 22 mm."""
        from robosuite.models.objects import BoxObject

        return BoxObject(
            name="cube", size_min=[0.020] * 3, size_max=[0.022] * 3, material=deepcopy(self._cube.material), rng=rng
        )

    def place(self, thing: Any | None) -> dict[str, FloatArray]:
        """Sample the pose of the cube on the table."""
        self._sampler.mujoco_objects = [thing]
        return super().place(thing)

    def observe(self, poses: Poses) -> FloatArray:
        """Return position, orientation, and the vector between hand and cube."""
        pos = poses.pos[:, 0]
        offset = pos - poses.hand_pos[:, 0]
        if self._rules.offset_points_to_hand:
            offset = -offset
        return np.concatenate([pos, poses.quat[:, 0], offset], axis=1)

    def success(self, poses: Poses) -> BoolArray:
        """Return whether the cube is 4 cm above the table."""
        return poses.pos[:, 0, 2] > self._height


class OneObjectScene(Scene):
    """Can and Square: one object among others that are put away, also seen from the hand."""

    used = ""
    REACH = 0.6
    """Robosuite counts an object only once the hand has let go: ``1 - tanh(10 d)`` below this."""

    def __init__(self, env: Any, rules: Rules) -> None:
        super().__init__(env, rules)
        items = [item for item in env.model.mujoco_objects if "visual" not in item.name.lower()]
        self.unused = tuple(item.root_body for item in items if item.name != self.used)
        self._last_pos = np.zeros((0, 3))
        self._last_quat = np.zeros((0, 4))
        self._fresh = np.zeros(0, bool)

    def place(self, thing: Any | None) -> dict[str, FloatArray]:
        """Sample poses for all objects, then put away those that the task does not use."""
        placed = super().place(thing)
        return {joint: pose if joint.startswith(self.used + "_") else np.array(AWAY) for joint, pose in placed.items()}

    def begin(self, poses: Poses, mask: BoolArray) -> None:
        """Mark new episodes: robosuite 1.5 has no earlier pose to go by then, and shows zeros."""
        if len(self._fresh) == 0:
            self._last_pos, self._last_quat = poses.pos[:, 0].copy(), poses.quat[:, 0].copy()
            self._fresh = np.zeros(len(mask), bool)
        self._fresh[mask] = True

    def observe(self, poses: Poses) -> FloatArray:
        """Return the pose, and the pose seen from the hand, in the order of the rules."""
        pos, quat = poses.pos[:, 0], poses.quat[:, 0]
        lag = self._rules.relative_pose_lags
        seen_pos, seen_quat = (self._last_pos, self._last_quat) if lag else (pos, quat)
        relative = relative_pose(poses.hand_pos[:, 0], poses.hand_quat[:, 0], seen_pos, seen_quat)
        if lag:
            relative[self._fresh] = 0.0
        self._fresh[:] = False
        self._last_pos, self._last_quat = pos.copy(), quat.copy()
        absolute = np.concatenate([pos, quat], axis=1)
        parts = (absolute, relative) if self._rules.absolute_pose_first else (relative, absolute)
        return np.concatenate(parts, axis=1)

    def _released(self, poses: Poses) -> BoolArray:
        distance = np.linalg.norm(poses.hand_pos[:, 0] - poses.pos[:, 0], axis=1)
        return 1 - np.tanh(10.0 * distance) < self.REACH

    def get_state(self) -> FloatArray:
        """Return the last pose of the object in every environment."""
        return np.concatenate([self._last_pos, self._last_quat], axis=1)

    def set_state(self, state: FloatArray) -> None:
        """Put back what :meth:`get_state` returned."""
        self._last_pos, self._last_quat = state[:, :3].copy(), state[:, 3:].copy()
        self._fresh = np.zeros(len(state), bool)


class CanScene(OneObjectScene):
    """A can, to be put into its bin."""

    frames = ("Can_main",)
    used = "Can"
    BIN = 3

    def __init__(self, env: Any, rules: Rules) -> None:
        super().__init__(env, rules)
        center, half = np.array(env.target_bin_placements[self.BIN]), np.array(env.bin_size[:2]) / 4
        self.target = center
        """[3] centre of the can's bin, metres."""
        self._low, self._high = np.append(center[:2] - half, center[2]), np.append(center[:2] + half, center[2] + 0.1)

    def success(self, poses: Poses) -> BoolArray:
        """Return whether the can is in its bin and let go."""
        pos = poses.pos[:, 0]
        return self._released(poses) & ((self._low < pos) & (pos < self._high)).all(axis=1)


class SquareScene(OneObjectScene):
    """A square nut, to be put on the square peg."""

    frames = ("SquareNut_main", "peg1")
    used = "SquareNut"

    def __init__(self, env: Any, rules: Rules) -> None:
        super().__init__(env, rules)
        self._height = float(env.table_offset[2]) + 0.05

    def success(self, poses: Poses) -> BoolArray:
        """Return whether the nut is around the peg and let go."""
        nut, peg = poses.pos[:, 0], poses.pos[:, 1]
        around = (np.abs(nut[:, :2] - peg[:, :2]) < 0.03).all(axis=1)
        return self._released(poses) & around & (nut[:, 2] < self._height)


class TransportScene(Scene):
    """Two arms: a hammer from a lidded bin to another table, and rubbish out of the hammer's place."""

    def __init__(self, env: Any, rules: Rules) -> None:
        super().__init__(env, rules)
        group, model = env.transport, env.sim.model
        self._objects = group.objects
        self._bin_height = group.bin_size[2]
        geoms = (group.lid.handle_geoms[0], group.target_bin.base_geoms[0], group.trash_bin.base_geoms[0])
        ids = [model.geom_name2id(g) for g in geoms]
        bodies = tuple(model.body_id2name(model.geom_bodyid[i]) for i in ids)
        self.frames = (group.payload.root_body, group.trash.root_body, *bodies)
        self.contacts = (
            (group.target_bin.base_geoms, group.payload.contact_geoms),
            (group.trash_bin.base_geoms, group.trash.contact_geoms),
        )
        # Where the observed shapes sit on their bodies.
        self._offset = np.array([model._model.geom_pos[i] for i in ids])
        self._turn = np.array([model._model.geom_quat[i] for i in ids])[:, [1, 2, 3, 0]]

    def draw(self, rng: np.random.Generator) -> Any:
        """Return a hammer; the size of its head is random."""
        from robosuite.models.objects import HammerObject

        return HammerObject(
            name="payload",
            handle_radius=0.015,
            handle_length=0.20,
            handle_density=150.0,
            handle_friction=4.0,
            head_density_ratio=1.5,
            rng=rng,
        )

    def place(self, thing: Any | None) -> dict[str, FloatArray]:
        """Sample poses; lid, hammer and rubbish follow the bins that hold them."""
        assert thing is not None
        thing.rng = self._rng  # which way the hammer points is drawn by the hammer
        self._sampler.samplers["payloadObjectSampler"].mujoco_objects = [thing]
        sampled = {item.name: (np.array(pos), quat, item) for pos, quat, item in self._sampler.sample().values()}
        names = {key: item.name for key, item in self._objects.items()}
        start, target = sampled[names["start_bin"]][0], sampled[names["target_bin"]][0]
        followers = (
            ("lid", start, self._bin_height),
            ("payload", start, self._objects["start_bin"].wall_thickness),
            ("trash", target, self._objects["target_bin"].wall_thickness),
        )
        for key, holder, rise in followers:
            pos = sampled[names[key]][0]
            pos[:] = holder[0], holder[1], pos[2] + rise
        return {item.joints[0]: np.concatenate([pos, quat]) for pos, quat, item in sampled.values()}

    def observe(self, poses: Poses) -> FloatArray:
        """Return poses of the hammer, the rubbish and the lid's handle, the bins, and what the hands see of them."""
        payload, trash = poses.pos[:, 0], poses.pos[:, 1]
        shapes = poses.pos[:, 2:] + rotate(poses.quat[:, 2:], np.broadcast_to(self._offset, poses.pos[:, 2:].shape))
        handle, target_bin, trash_bin = shapes[:, 0], shapes[:, 1], shapes[:, 2]
        turn = np.broadcast_to(self._turn[0], poses.quat[:, 2].shape)
        things = np.concatenate(
            [
                payload,
                positive(poses.quat[:, 0]),
                trash,
                positive(poses.quat[:, 1]),
                handle,
                positive(multiply(poses.quat[:, 2], turn)),
                target_bin,
                trash_bin,
            ],
            axis=1,
        )
        first, second = poses.hand_pos[:, 0], poses.hand_pos[:, 1]
        seen = np.concatenate([payload - first, handle - first, payload - second, trash - second], axis=1)
        done = poses.touching.astype(np.float64)
        parts = (things, seen, done) if self._rules.absolute_pose_first else (things, done, seen)
        return np.concatenate(parts, axis=1)

    def success(self, poses: Poses) -> BoolArray:
        """Return whether the hammer is in its bin and the rubbish in the other."""
        return poses.touching.all(axis=1)


# -- quaternions (x, y, z, w), batched --------------------------------------------------------------------------------
def multiply(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the product of quaternions [..., 4]: first ``b``, then ``a``."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + np.cross(av, bv)
    return np.concatenate([vector, aw * bw - (av * bv).sum(axis=-1, keepdims=True)], axis=-1)


def rotate(q: FloatArray, v: FloatArray) -> FloatArray:
    """Rotate vectors [..., 3] by unit quaternions [..., 4]."""
    t = 2.0 * np.cross(q[..., :3], v)
    return v + q[..., 3:] * t + np.cross(q[..., :3], t)


def inverse(q: FloatArray) -> FloatArray:
    """Return the inverse of unit quaternions [..., 4]."""
    return q * np.array([-1.0, -1.0, -1.0, 1.0])


def positive(q: FloatArray) -> FloatArray:
    """Return the same rotations [..., 4] with w >= 0, robosuite's choice where it goes through a matrix."""
    return np.where(q[..., 3:] < 0, -q, q)


def relative_pose(hand_pos: FloatArray, hand_quat: FloatArray, pos: FloatArray, quat: FloatArray) -> FloatArray:
    """Return poses seen from the hand: position and quaternion, [B, 7]."""
    back = inverse(hand_quat)
    return np.concatenate([rotate(back, pos - hand_pos), positive(multiply(back, quat))], axis=1)
