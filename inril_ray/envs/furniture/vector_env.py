"""A batch of assembly environments behind the contract of all tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome, Task
from inril_ray.envs.furniture import logic, robot
from inril_ray.envs.furniture.geometry import euler
from inril_ray.envs.furniture.spec import CONTROL_HZ, IMPULSE_S, LEVELS, Furniture
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.rotations import matrix_of_quat, quat_of_matrix
from inril_ray.types import BoolArray, EnvSpec, FloatArray

PADDED_OBS = 44
"""Width that the paper's table states for tasks of two parts, whose observations have 37 numbers."""
REACH = 2.0
"""A part further from the base than this has been lost, metres."""
PIN_DISTANCE = 0.03


@dataclass(frozen=True, kw_only=True)
class FurnitureTask(Task):
    """A task at one level of randomness."""

    furniture: str
    level: str
    backends: tuple[str, ...] = ("cpu",)

    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return dimensions and horizon; loads no simulator."""
        furniture = FURNITURE[self.furniture]
        poses = 7 * (len(furniture.parts) + 1)
        keys = [("robot_state", 16), ("parts_poses", poses)]
        if config.furniture.pad_obs and 16 + poses < PADDED_OBS:
            keys.append(("padding", PADDED_OBS - 16 - poses))
        return EnvSpec(
            task=self.name,
            obs_dim=sum(width for _, width in keys),
            action_dim=10,
            max_episode_steps=config.max_episode_steps or furniture.max_episode_steps,
            control_hz=CONTROL_HZ,
            obs_keys=tuple(keys),
            recorded_as=furniture.name,
            num_stages=len(furniture.pairs),
        )

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments."""
        self.chosen_backend(config)
        self.chosen_semantics(config)
        return FurnitureEnv(self, config, num_envs, seed, purpose, first_env)


class FurnitureEnv(SimVectorEnv):
    """Assembles furniture with a Panda.

    Actions [B, 10]: position of the point between the finger tips and the first two rows of its rotation, base frame,
    absolute; gripper, above 0 closes. Observations: see :func:`inril_ray.envs.furniture.logic.observe`. Reward 1 for a
    control step that assembles a pair for the first time; success when all pairs have been.

    Args:
        task: with its level.
        config: options.
        num_envs: B.
        seed: seed of the experiment.
        purpose: one of ``PURPOSES``.
        first_env: index of environment 0 among all of the experiment.
    """

    def __init__(
        self, task: FurnitureTask, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int
    ) -> None:
        super().__init__(task.spec(config), num_envs, seed, purpose, first_env)
        from inril_ray.envs.furniture.cpu import CpuPhysics  # loads the simulator

        self.furniture: Furniture = FURNITURE[task.furniture]
        self.level, self.options = LEVELS[task.level], config.furniture
        self.terminate_on_success = config.terminate_on_success
        self.physics = CpuPhysics(self.furniture, num_envs, config.furniture.threads)
        self.where = self.physics.where
        self.opens = np.ones(num_envs, bool)
        """[B] the gripper opens."""
        self.assembled = np.zeros((num_envs, len(self.furniture.pairs)), bool)
        """[B, pairs] have been assembled in this episode."""
        self.holes = np.full((num_envs, len(self.furniture.screws)), -1, np.int64)
        """[B, screws] index of the hole that the thread is in, -1 for none."""
        self.released = np.zeros(num_envs, bool)
        """[B] the pinned part is free."""

    # -- episodes -----------------------------------------------------------------------------------------------------
    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        physics, where, furniture = self.physics, self.where, self.furniture
        for i in np.flatnonzero(mask):
            rng = self.episode_rng(i)
            qpos, qvel = physics.model.qpos0.copy(), np.zeros(physics.model.nv)
            spread = math.radians(self.level.joints_deg)
            qpos[list(where.joints)] = robot.RESET_JOINTS + rng.uniform(-spread, spread, 7)
            qpos[list(where.fingers)] = furniture.gripper_width / 2
            shift = rng.uniform(-self.level.obstacle_m, self.level.obstacle_m, 2)
            physics.obstacle[i] = physics.obstacle_start + np.array([*shift, 0.0])
            for k, part in enumerate(furniture.parts):
                at = where.parts_qpos[k]
                pos, turn = part.start[0].copy(), part.start[1]
                pos[:2] += rng.uniform(-furniture.scatter_m, furniture.scatter_m, 2)
                limit = math.radians(furniture.scatter_deg)
                turn = euler(0.0, 0.0, rng.uniform(-limit, limit)) @ turn
                qpos[at : at + 3] = pos
                qpos[at + 3 : at + 7] = np.roll(quat_of_matrix(turn), 1)
            physics.qpos[i], physics.qvel[i] = qpos, qvel
            self._push(i, rng, range(len(furniture.parts)))
        physics.active_equalities[mask] = physics.model.eq_active0.astype(bool)
        physics.begin(mask)
        self.opens[mask], self.released[mask] = True, furniture.pinned is None
        self.assembled[mask], self.holes[mask] = False, -1
        return self._observe()

    def _push(self, i: int, rng: np.random.Generator, parts: Any) -> None:
        """Give parts the velocity that a random horizontal force and a torque about the vertical leave them with."""
        for k in parts:
            part, at = self.furniture.parts[k], self.where.parts_qvel[k]
            force = rng.uniform(0.0, self.level.force_n) * part.force
            angle = rng.uniform(0.0, 2 * math.pi)
            torque = rng.uniform(-self.level.torque_nm, self.level.torque_nm) * part.torque
            quat = self.physics.qpos[i, self.where.parts_qpos[k] + 3 :][:4]
            matrix = matrix_of_quat(np.roll(quat, -1))
            about_vertical = float(matrix[2] ** 2 @ np.asarray(part.inertia))
            speed = IMPULSE_S * force / part.mass
            self.physics.qvel[i, at : at + 2] += speed * np.array([math.cos(angle), math.sin(angle)])
            # The angular velocity of a free joint is in the part's own frame.
            self.physics.qvel[i, at + 3 : at + 6] += matrix[2] * IMPULSE_S * torque / about_vertical

    # -- steps --------------------------------------------------------------------------------------------------------
    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step; see :meth:`SimVectorEnv.advance`."""
        physics = self.physics
        actions = np.clip(actions.astype(np.float64), -1.0, 1.0)
        opens = logic.gripper_opens(actions[:, 9], self.opens)
        self.opens = np.where(active, opens, self.opens)
        controls = logic.controls(actions, physics.qpos, self.opens, self.where, robot.FINGER_FORCE)
        physics.step(controls, active)
        lost = self._lost()
        changed = self._turn_screws(active & ~lost) | self._pin(active) | self._perturb(active)
        if changed.any():
            physics.write(changed)
        pos, quat = logic.part_poses(physics.qpos, self.where)
        now = logic.assembled(pos, quat, self.furniture) & active[:, None]
        new = (now & ~self.assembled).any(axis=1)
        self.assembled |= now
        success = self.assembled.all(axis=1)
        obs = self._observe()
        obs[lost] = np.nan  # the guard of the base class ends these episodes
        return StepOutcome(
            obs=obs,
            reward=new.astype(np.float32),
            terminated=success & self.terminate_on_success,
            success=success,
            stage=self.assembled.sum(axis=1),
        )

    def _observe(self) -> FloatArray:
        physics = self.physics
        obs = logic.observe(physics.qpos, physics.qvel, physics.obstacle, self.where).astype(np.float32)
        return np.pad(obs, ((0, 0), (0, self.task_spec.obs_dim - obs.shape[1])))

    def _lost(self) -> BoolArray:
        """Return where the simulation is broken or a part has left the table's surroundings, [B]."""
        qpos = self.physics.qpos
        far = np.abs(np.stack([qpos[:, a : a + 3] for a in self.where.parts_qpos], axis=1)).max(axis=(1, 2)) > REACH
        return ~np.isfinite(qpos).all(axis=1) | ~np.isfinite(self.physics.qvel).all(axis=1) | far

    def _turn_screws(self, active: BoolArray) -> BoolArray:
        """Let threads catch, and come out; return where anything changed, [B]."""
        physics, changed = self.physics, np.zeros(self.num_envs, bool)
        for k, (screw, at) in enumerate(zip(self.furniture.screws, self.where.screws, strict=True)):
            pos, quat = logic.part_poses(physics.qpos, self.where)
            turned = -physics.qpos[:, at.hinge_qpos]
            caught, left, lost = logic.thread_events(pos, quat, turned, self.holes[:, k], self.furniture, screw)
            for i in np.flatnonzero(active & ((caught >= 0) | lost)):
                hole = int(caught[i])
                self.holes[i, k] = hole
                physics.active_equalities[i, [at.lock, *at.welds]] = [
                    hole < 0,
                    *(w == hole for w in range(len(at.welds))),
                ]
                physics.qpos[i, at.hinge_qpos] = 0.0 if hole < 0 else -left[i]
                physics.qpos[i, at.slide_qpos] = 0.0 if hole < 0 else -logic.helix_height(left[i])
                physics.qvel[i, [at.hinge_qvel, at.slide_qvel]] = 0.0
                changed[i] = True
        return changed

    def _pin(self, active: BoolArray) -> BoolArray:
        """Hold the pinned part where it was until the hand is near it, in the first half of an episode."""
        if self.furniture.pinned is None:
            return np.zeros(self.num_envs, bool)
        k = self.furniture.parts_by_name[self.furniture.pinned]
        at, vel = self.where.parts_qpos[k], self.where.parts_qvel[k]
        joints = self.physics.qpos[:, self.where.joints[0] : self.where.joints[-1] + 1]
        hand = logic.kinematics.forward(joints)[0]
        near = (np.abs(self.physics.qpos[:, at : at + 3] - hand) < PIN_DISTANCE).all(axis=1)
        self.released |= active & (near | (2 * self.elapsed >= self.task_spec.max_episode_steps))
        held = active & ~self.released
        pos, turn = self.furniture.parts[k].start
        self.physics.qpos[held, at : at + 7] = [*pos, *np.roll(quat_of_matrix(turn), 1)]
        self.physics.qvel[held, vel : vel + 6] = 0.0
        return held

    def _perturb(self, active: BoolArray) -> BoolArray:
        """Push parts now and then, where that is asked for."""
        changed = np.zeros(self.num_envs, bool)
        if self.options.perturbation > 0:
            for i in np.flatnonzero(active):
                rng = np.random.default_rng([*self._entropy(i), int(self.elapsed[i])])
                hit = np.flatnonzero(rng.random(len(self.furniture.parts)) < self.options.perturbation)
                self._push(i, rng, hit)
                changed[i] = len(hit) > 0
        return changed

    def _entropy(self, i: int) -> list[int]:
        """Return what fixes the random numbers of an environment's episode."""
        return [int(v) for v in self.episode_rng(i).integers(0, 2**31, 4)]

    # -- state and pictures -------------------------------------------------------------------------------------------
    def get_state(self) -> dict[str, Any]:
        """Return everything that later steps depend on."""
        own = {"opens": self.opens, "assembled": self.assembled, "holes": self.holes, "released": self.released}
        return {
            **super().get_state(),
            "physics": self.physics.get_state(),
            "obs": self.obs.copy(),
            **{name: value.copy() for name, value in own.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned."""
        super().set_state(state)
        self.physics.set_state(state["physics"])
        for name in ("opens", "assembled", "holes", "released", "obs"):
            getattr(self, name)[:] = state[name]

    @cached_property
    def _renderers(self) -> dict[tuple[int, int], Any]:
        return {}

    def render_env(self, index: int, width: int = 320, height: int = 240) -> Any:
        """Return a picture [height, width, 3] of one environment."""
        from inril_ray.envs.rendering import ModelRenderer

        size = width, height
        if size not in self._renderers:
            self._renderers[size] = ModelRenderer(self.physics.model, width, height, "front")
        return self._renderers[size].render(self.physics.qpos[index], self.physics.obstacle[index : index + 1])

    def versions(self) -> dict[str, str]:
        """Return MuJoCo's version."""
        from inril_ray.envs.rendering import import_mujoco

        return {"mujoco": import_mujoco().__version__}

    def close(self, **kwargs: Any) -> None:
        """End the threads."""
        self.physics.close()
        for renderer in self._renderers.values():
            renderer.close()


def _task(furniture: str, level: str, suffix: str) -> FurnitureTask:
    return FurnitureTask(name=f"furniture/{furniture}{suffix}", furniture=furniture, level=level)


ONE_LEG_LOW, ONE_LEG_MED, ONE_LEG_HIGH = (_task("one_leg", level, f"_{level}") for level in LEVELS)
"""Screw one leg into the tray of a square table."""
LAMP_LOW, LAMP_MED, LAMP_HIGH = (_task("lamp", level, f"_{level}") for level in LEVELS)
"""Screw a bulb into a lamp's base and put the hood over it."""
ROUND_TABLE_LOW, ROUND_TABLE_MED, ROUND_TABLE_HIGH = (_task("round_table", level, f"_{level}") for level in LEVELS)
"""Screw a leg into a round table's top and the foot into the leg."""
MUG_RACK = _task("mug_rack", "low", "")
"""Hang a mug on a rack."""
PEG_IN_HOLE = _task("peg_in_hole", "low", "")
"""Insert a rectangular peg with a clearance of a tenth of a millimetre."""
