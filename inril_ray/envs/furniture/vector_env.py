"""A batch of assembly environments behind the contract of all tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome, Task
from inril_ray.envs.furniture import logic, robot
from inril_ray.envs.furniture.geometry import euler
from inril_ray.envs.furniture.spec import CONTROL_HZ, IMPULSE_S, LEVELS, Furniture
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.rotations import matrix_of_quat, quat_of_matrix
from inril_ray.types import BoolArray, EnvSpec, FloatArray, Interface

PADDED_OBS = 44
"""Width that the paper's table states for tasks of two parts, whose observations have 37 numbers."""
REACH = 2.0
"""A part further from the base than this ends the episode as a failure, metres."""
RAW_LIMIT = 3.0
"""Observations are clipped to it, as in the reference."""
PIN_DISTANCE = 0.03


@dataclass(frozen=True, kw_only=True)
class FurnitureTask(Task):
    """A task at one level of randomness."""

    furniture: str
    level: str
    backends: tuple[str, ...] = ("cpu", "warp")

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
            success=self.chosen_success(config),
            interface=Interface(robots=("Panda",), action_type="absolute", action_frame="base", rewards="sparse"),
            reward_values=(0.0, 1.0),
        )

    def needs_gpu(self, config: EnvConfig) -> bool:
        """Tell whether ``warp`` is chosen, and not for the CPU."""
        return self.chosen_backend(config) == "warp" and config.furniture.warp_device == "cuda"

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments."""
        self.chosen_semantics(config)
        return FurnitureEnv(self, config, num_envs, seed, purpose, first_env)

    def physics(self, config: EnvConfig, num_envs: int) -> Any:
        """Return the simulation of the chosen backend; loads the simulator."""
        furniture, options = FURNITURE[self.furniture], config.furniture
        if self.chosen_backend(config) == "warp":
            from inril_ray.envs.furniture.warp import WarpPhysics

            memory = {"contacts": options.contacts, "constraints": options.constraints}
            return WarpPhysics(furniture, num_envs, options.warp_device, **memory)
        from inril_ray.envs.furniture.cpu import CpuPhysics

        return CpuPhysics(furniture, num_envs, options.threads)


class FurnitureEnv(SimVectorEnv):
    """Assembles furniture with a Panda.

    Actions [B, 10]: position of the point between the finger tips and the first two rows of its rotation, base frame,
    absolute; gripper, above 0 closes. Observations: see :func:`inril_ray.envs.furniture.logic.observe`. Reward 1 for a
    control step that assembles a pair for the first time; success when all pairs have been. A part that is thrown off
    the table ends the episode.

    What happens between control steps is computed where the simulation is, in its arrays: numpy for ``cpu``, torch on
    the device for ``warp``. There, observations, rewards and flags are all that goes to the host.

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
        self.furniture: Furniture = FURNITURE[task.furniture]
        self.level, self.options = LEVELS[task.level], config.furniture
        self.terminate_on_success = config.terminate_on_success
        self.physics = physics = task.physics(config, num_envs)
        self.where = physics.where
        self.opens = physics.array(np.ones(num_envs, bool))
        """[B] the gripper opens."""
        self.assembled = physics.array(np.zeros((num_envs, len(self.furniture.pairs)), bool))
        """[B, pairs] have been assembled in this episode."""
        self.holes = physics.array(np.full((num_envs, len(self.furniture.screws)), -1, np.int64))
        """[B, screws] index of the hole that the thread is in, -1 for none."""
        self.released = physics.array(np.zeros(num_envs, bool))
        """[B] the pinned part is free."""

    # -- episodes -----------------------------------------------------------------------------------------------------
    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        physics, where, furniture = self.physics, self.where, self.furniture
        chosen = np.flatnonzero(mask)
        qpos, qvel = np.tile(physics.model.qpos0, (len(chosen), 1)), np.zeros((len(chosen), physics.model.nv))
        obstacle = np.tile(physics.obstacle_start, (len(chosen), 1))
        for row, i in enumerate(chosen):
            rng = self.episode_rng(i)
            spread = math.radians(self.level.joints_deg)
            qpos[row, list(where.joints)] = robot.RESET_JOINTS + rng.uniform(-spread, spread, 7)
            qpos[row, list(where.fingers)] = furniture.gripper_width / 2
            obstacle[row, :2] += rng.uniform(-self.level.obstacle_m, self.level.obstacle_m, 2)
            for part, at in zip(furniture.parts, where.parts_qpos, strict=True):
                pos, turn = part.start[0].copy(), part.start[1]
                pos[:2] += rng.uniform(-furniture.scatter_m, furniture.scatter_m, 2)
                limit = math.radians(furniture.scatter_deg)
                turn = euler(0.0, 0.0, rng.uniform(-limit, limit)) @ turn
                qpos[row, at : at + 3] = pos
                qpos[row, at + 3 : at + 7] = np.roll(quat_of_matrix(turn), 1)
            self._push(qpos[row], qvel[row], rng, range(len(furniture.parts)))
        begun = physics.array(mask)
        physics.qpos[begun], physics.qvel[begun] = physics.array(qpos), physics.array(qvel)
        physics.obstacle[begun] = physics.array(obstacle)
        physics.active_equalities[begun] = physics.array(physics.model.eq_active0.astype(bool))
        physics.begin(begun)
        self.opens[begun], self.released[begun] = True, furniture.pinned is None
        self.assembled[begun], self.holes[begun] = False, -1
        return physics.numpy(self._observe())

    def _push(self, qpos: FloatArray, qvel: FloatArray, rng: np.random.Generator, parts: Any) -> None:
        """Give parts the velocity that a random horizontal force and a torque about the vertical leave them with.

        Args:
            qpos: [nq] of one environment.
            qvel: [nv] is written.
            rng: of the episode.
            parts: indices.
        """
        level = self.level
        for k in parts:
            part, at = self.furniture.parts[k], self.where.parts_qvel[k]
            strength, twist = rng.uniform(0.0, 1.0), rng.uniform(-1.0, 1.0)
            angle = rng.uniform(0.0, 2 * math.pi)
            quat = qpos[self.where.parts_qpos[k] + 3 :][:4]
            matrix = matrix_of_quat(np.roll(quat, -1))
            about_vertical = float(matrix[2] ** 2 @ np.asarray(part.inertia))
            fastest = min(IMPULSE_S * level.force_n * part.force / part.mass, level.speed_m_s)
            most_spin = min(IMPULSE_S * level.torque_nm * part.torque / about_vertical, level.spin_rad_s)
            qvel[at : at + 2] += strength * fastest * np.array([math.cos(angle), math.sin(angle)])
            # The angular velocity of a free joint is in the part's own frame.
            qvel[at + 3 : at + 6] += matrix[2] * twist * most_spin

    # -- steps --------------------------------------------------------------------------------------------------------
    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step; see :meth:`SimVectorEnv.advance`."""
        physics = self.physics
        xp = array_namespace(physics.qpos)
        actions, on = physics.array(np.clip(actions, -1.0, 1.0)), physics.array(active)
        self.opens = xp.where(on, logic.gripper_opens(actions[:, 9], self.opens), self.opens)
        controls = logic.controls(actions, physics.qpos, self.opens, self.where, robot.FINGER_FORCE)
        physics.step(controls, on)
        broken, far = self._broken_and_far()
        physics.write(self._turn_screws(on & ~broken) | self._pin(on) | self._perturb(active))
        pos, quat = logic.part_poses(physics.qpos, self.where)
        now = logic.assembled(pos, quat, self.furniture) & on[:, None]
        new = xp.any(now & ~self.assembled, axis=1)
        self.assembled = self.assembled | now
        success = physics.numpy(xp.all(self.assembled, axis=1))
        obs = physics.numpy(self._observe())
        obs[physics.numpy(broken)] = np.nan  # the guard of the base class ends these episodes
        return StepOutcome(
            obs=obs,
            reward=physics.numpy(new).astype(np.float32),
            terminated=(success & self.terminate_on_success) | (physics.numpy(far) & ~success),
            success=success,
            stage=physics.numpy(self.assembled).sum(axis=1),
        )

    def _observe(self) -> Any:
        """Return observations [B, O], single precision, where the simulation is."""
        physics = self.physics
        xp = array_namespace(physics.qpos)
        obs = logic.observe(physics.qpos, physics.qvel, physics.obstacle, self.where, self.furniture)
        padding = xp.zeros_like(obs[:, : self.task_spec.obs_dim - obs.shape[1]])
        return xp.astype(xp.clip(xp.concat([obs, padding], axis=1), -RAW_LIMIT, RAW_LIMIT), xp.float32)

    def _broken_and_far(self) -> tuple[Any, Any]:
        """Return where the simulation is not finite, and where a part is out of all reach, [B] each."""
        qpos, qvel = self.physics.qpos, self.physics.qvel
        xp = array_namespace(qpos)
        far = xp.max(xp.abs(logic.part_poses(qpos, self.where)[0]), axis=(1, 2)) > REACH
        broken = ~xp.all(xp.isfinite(qpos), axis=1) | ~xp.all(xp.isfinite(qvel), axis=1)
        return broken, far & ~broken

    def _turn_screws(self, active: Any) -> Any:
        """Let threads catch, and come out; return where anything changed, [B]."""
        physics, changed = self.physics, active & False
        for k, (screw, at) in enumerate(zip(self.furniture.screws, self.where.screws, strict=True)):
            pos, quat = logic.part_poses(physics.qpos, self.where)
            turned = -physics.qpos[:, at.hinge_qpos]
            caught, left, lost = logic.thread_events(pos, quat, turned, self.holes[:, k], self.furniture, screw)
            loose, event = caught < 0, active & ((caught >= 0) | lost)
            _assign(self.holes, k, event, caught)
            _assign(physics.active_equalities, at.lock, event, loose)
            for hole, weld in enumerate(at.welds):
                _assign(physics.active_equalities, weld, event, caught == hole)
            _assign(physics.qpos, at.hinge_qpos, event, -left)
            _assign(physics.qpos, at.slide_qpos, event, -logic.helix_height(left))
            _assign(physics.qpos, [at.hinge_qpos, at.slide_qpos], event & loose, 0.0)
            _assign(physics.qvel, [at.hinge_qvel, at.slide_qvel], event, 0.0)
            changed = changed | event
        return changed

    def _pin(self, active: Any) -> Any:
        """Hold the pinned part where it was until the hand is near it, in the first half of an episode."""
        if self.furniture.pinned is None:
            return active & False
        physics, k = self.physics, self.furniture.parts_by_name[self.furniture.pinned]
        xp = array_namespace(physics.qpos)
        at, vel = self.where.parts_qpos[k], self.where.parts_qvel[k]
        hand = logic.kinematics.forward(physics.qpos[:, self.where.joints[0] : self.where.joints[-1] + 1])[0]
        near = xp.all(xp.abs(physics.qpos[:, at : at + 3] - hand) < PIN_DISTANCE, axis=1)
        late = physics.array(2 * self.elapsed >= self.task_spec.max_episode_steps)
        self.released = self.released | (active & (near | late))
        held = active & ~self.released
        pos, turn = self.furniture.parts[k].start
        home = logic.constant(np.array([*pos, *np.roll(quat_of_matrix(turn), 1)]), physics.qpos)
        _assign(physics.qpos, slice(at, at + 7), held, home)
        _assign(physics.qvel, slice(vel, vel + 6), held, 0.0)
        return held

    def _perturb(self, active: BoolArray) -> Any:
        """Push parts now and then, where that is asked for."""
        physics, changed = self.physics, np.zeros(self.num_envs, bool)
        if self.options.perturbation > 0:
            qpos, qvel = physics.numpy(physics.qpos), physics.numpy(physics.qvel)
            for i in np.flatnonzero(active):
                rng = np.random.default_rng([*self._entropy(i), int(self.elapsed[i])])
                hit = np.flatnonzero(rng.random(len(self.furniture.parts)) < self.options.perturbation)
                self._push(qpos[i], qvel[i], rng, hit)
                changed[i] = len(hit) > 0
            physics.qvel[:] = physics.array(qvel)
        return physics.array(changed)

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
            **{name: self.physics.numpy(value).copy() for name, value in own.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned."""
        super().set_state(state)
        self.physics.set_state(state["physics"])
        self.obs[:] = state["obs"]
        for name in ("opens", "assembled", "holes", "released"):
            getattr(self, name)[:] = self.physics.array(state[name])

    @cached_property
    def _renderers(self) -> dict[tuple[int, int], Any]:
        return {}

    def render_env(self, index: int, width: int = 320, height: int = 240) -> Any:
        """Return a picture [height, width, 3] of one environment."""
        from inril_ray.envs.furniture.assets import meshes
        from inril_ray.envs.furniture.model import build
        from inril_ray.envs.rendering import ModelRenderer

        size = width, height
        if size not in self._renderers:
            model = build(self.furniture, meshes()).compile() if self.options.meshes else self.physics.model
            self._renderers[size] = ModelRenderer(model, width, height, "front")
        physics = self.physics
        qpos, obstacle = physics.numpy(physics.qpos[index]), physics.numpy(physics.obstacle[index : index + 1])
        return self._renderers[size].render(qpos, obstacle)

    def versions(self) -> dict[str, str]:
        """Return the releases of the simulator's packages."""
        return self.physics.versions()

    def close(self, **kwargs: Any) -> None:
        """End the simulation."""
        if hasattr(self, "physics"):  # gymnasium also closes what could not be made
            self.physics.close()
        for renderer in self._renderers.values():
            renderer.close()


def _assign(array: Any, columns: Any, mask: Any, value: Any) -> None:
    """Write columns of the rows of ``mask``, without asking the device which those are."""
    xp = array_namespace(array)
    before = array[:, columns]
    rows = mask if before.ndim == 1 else mask[:, None]
    array[:, columns] = xp.where(rows, value, before)


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
