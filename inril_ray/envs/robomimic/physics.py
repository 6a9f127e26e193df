"""Physics and controller of a batch of environments, stepped through MuJoCo's Python bindings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from inril_ray.envs.robomimic.scenes import Poses
from inril_ray.envs.robomimic.semantics import Rules
from inril_ray.envs.robomimic.tasks import OSC_KP, OSC_OUTPUT, SUBSTEPS
from inril_ray.types import BoolArray, FloatArray, InrilError

FINGER_STEP = 0.2
"""Change of the gripper command, of a range of 2, in one control step (robosuite's PandaGripper in release 1.5)."""
FINGER_RAMP = 0.01
"""The same in one physics step (release 1.4)."""


class Arms:
    """Where the R arms and grippers are in the model's arrays; equal in the full and in the slim model.

    Args:
        env: a robosuite environment, after its first reset.
    """

    def __init__(self, env: Any) -> None:
        robots, model = env.robots, env.sim.model
        parts = [robot.part_controllers["right"] for robot in robots]
        self.rest = np.array([robot.init_qpos for robot in robots], np.float64)
        """[R, 7] joint angles that episodes begin at, before noise."""
        self.open = np.array([robot.gripper["right"].init_qpos for robot in robots], np.float64)
        """[R, 2]"""
        self.sites = [part.ref_name for part in parts]
        self.hands = [robot.robot_model.eef_name["right"] for robot in robots]
        self.dofs = np.array([part.qvel_index for part in parts], np.int64)
        self.qadr = np.array([part.qpos_index for part in parts], np.int64)
        self.actuators = np.array([r._ref_actuators_indexes_dict["right"] for r in robots], np.int64)
        self.fingers = np.array([r._ref_actuators_indexes_dict["right_gripper"] for r in robots], np.int64)
        self.finger_qadr = np.array([r._ref_gripper_joint_pos_indexes["right"] for r in robots], np.int64)
        limits = np.array(model.actuator_ctrlrange)
        self.low, self.high = limits[self.actuators, 0], limits[self.actuators, 1]
        """[R, 7] torque limits."""
        self.finger_mid = limits[self.fingers].mean(axis=-1)
        self.finger_half = np.ptp(limits[self.fingers], axis=-1) / 2

    @property
    def num(self) -> int:
        """R."""
        return len(self.sites)


class Physics:
    """One ``MjData`` for each of B environments.

    Args:
        mujoco: the module, passed in because this file loads no simulator at import.
        models: slim models, one for each environment; they may be one and the same.
        arms: where the arms are.
        rules: of which release.
        frames: bodies that are observed.
        contacts: pairs of groups of geoms that are observed.
    """

    def __init__(
        self,
        mujoco: Any,
        models: list[Any],
        arms: Arms,
        rules: Rules,
        frames: tuple[str, ...],
        contacts: tuple[tuple[list[str], list[str]], ...],
    ) -> None:
        from inril_ray.envs.robomimic.osc import goal_rotation, osc_torques

        self._goal_rotation, self._osc_torques = goal_rotation, osc_torques
        self.mujoco, self.models, self.arms, self.rules = mujoco, models, arms, rules
        model, kinds = models[0], mujoco.mjtObj
        self.data = [mujoco.MjData(m) for m in models]
        self.sites = np.array([mujoco.mj_name2id(model, kinds.mjOBJ_SITE, s) for s in arms.sites], np.int64)
        self._hands = [mujoco.mj_name2id(model, kinds.mjOBJ_BODY, name) for name in arms.hands]
        self._frames = [mujoco.mj_name2id(model, kinds.mjOBJ_BODY, name) for name in frames]
        groups = [[[mujoco.mj_name2id(model, kinds.mjOBJ_GEOM, g) for g in group] for group in c] for c in contacts]
        self._num_contacts = len(contacts)
        self._contact_of = np.full((model.ngeom, model.ngeom), -1)
        """[G, G] which of the contacts it is when two geoms touch, or -1."""
        for k, (first, second) in enumerate(groups):
            self._contact_of[np.ix_(first, second)] = self._contact_of[np.ix_(second, first)] = k
        missing = [*self.sites, *self._hands, *self._frames, *(i for pair in groups for group in pair for i in group)]
        if min(missing) < 0:
            raise InrilError("The slim model lacks a site, body or geom that robosuite's has.")
        self.inertia_index = np.stack([inertia_index(model, dofs) for dofs in arms.dofs])
        num = len(models)
        self.rest = np.zeros((num, arms.num, 7))
        """[B, R, 7] joint angles that the null space is drawn to."""
        self.command = np.zeros((num, arms.num, 2))
        """[B, R, 2] gripper commands in [-1, 1]."""
        self.goal_rot = np.zeros((num, arms.num, 3, 3))
        self.first_inertia = np.zeros((num, model.nM))
        self.is_first = np.zeros(num, bool)
        """[B] the next physics step uses ``first_inertia``."""
        self.jac = np.zeros((2, 3, model.nv))
        # Every access to a field makes a new view of the same memory, at a cost that counts 25 times a step.
        self._views = [
            (
                d.ctrl, d.qpos, d.qvel, d.qfrc_bias, d.qM,
                [(d.site_xpos[s], d.site_xmat[s].reshape(3, 3)) for s in self.sites],
            )
            for d in self.data
        ]  # fmt: skip
        self._poses = [(d.site_xpos, d.xpos, d.xquat, d.qpos) for d in self.data]

    def begin(self, index: int, noise: FloatArray, placed: dict[str, FloatArray]) -> None:
        """Start an episode the way a soft robosuite reset does.

        Args:
            index: environment.
            noise: [R, 7] added to the initial joint angles.
            placed: free joint to pose.
        """
        mujoco, model, data, arms = self.mujoco, self.models[index], self.data[index], self.arms
        mujoco.mj_resetData(model, data)
        self.rest[index] = arms.rest + noise
        data.qpos[arms.qadr] = self.rest[index]
        # Robosuite builds its controller here, before it opens the gripper, and the first control sub-step still uses
        # the inertia of this moment. Visible (3e-7 m), so it is kept.
        mujoco.mj_forward(model, data)
        self.first_inertia[index], self.is_first[index] = data.qM, True
        self.goal_rot[index] = data.site_xmat[self.sites].reshape(-1, 3, 3)
        data.qpos[arms.finger_qadr] = arms.open
        for joint, pose in placed.items():
            address = model.joint(joint).qposadr[0]
            data.qpos[address : address + 7] = pose
        self.command[index] = 0.0
        mujoco.mj_forward(model, data)

    def step(self, actions: FloatArray, active: BoolArray) -> None:
        """Execute one control step of 50 ms where ``active`` [B].

        Args:
            actions: [B, 7 R] in [-1, 1]: for each arm translation, rotation, gripper.
            active: [B].
        """
        commands = actions.reshape(len(actions), self.arms.num, 7)
        for i in np.flatnonzero(active).tolist():
            self._step_one(i, commands[i])

    def _step_one(self, i: int, action: FloatArray) -> None:
        mujoco, model, data, arms = self.mujoco, self.models[i], self.data[i], self.arms
        step1, step2, jac_site, torques = mujoco.mj_step1, mujoco.mj_step2, mujoco.mj_jacSite, self._osc_torques
        ctrl, qpos, qvel, bias, inertia, sites = self._views[i]
        jac_pos, jac_rot = self.jac
        ramp, rest = self.rules.gripper_ramps, self.rest[i]
        steps = np.array([-1.0, 1.0]) * (FINGER_RAMP if ramp else FINGER_STEP) * np.sign(action[:, 6:7])
        goals: list[tuple[FloatArray, FloatArray]] = []
        for substep in range(SUBSTEPS):
            step1(model, data)
            if substep == 0:
                for arm, (pos, rot) in enumerate(sites):
                    delta = action[arm, :6] * OSC_OUTPUT
                    if delta[3:].any() or not self.rules.zero_rotation_holds_goal:
                        self.goal_rot[i, arm] = self._goal_rotation(delta[3:], rot)
                    goals.append((pos + delta[:3], self.goal_rot[i, arm]))
            if ramp or substep == 0:
                self.command[i] = np.clip(self.command[i] + steps, -1.0, 1.0)
                ctrl[arms.fingers] = arms.finger_mid + arms.finger_half * self.command[i]
            mass = self.first_inertia[i] if self.is_first[i] else inertia
            for arm, (pos, rot) in enumerate(sites):
                jac_site(model, data, jac_pos, jac_rot, self.sites[arm])
                torques(
                    mass,
                    self.inertia_index[arm],
                    jac_pos,
                    jac_rot,
                    pos,
                    rot,
                    goals[arm][0],
                    goals[arm][1],
                    qpos,
                    qvel,
                    rest[arm],
                    bias,
                    arms.dofs[arm],
                    arms.qadr[arm],
                    OSC_KP,
                    arms.low[arm],
                    arms.high[arm],
                    arms.actuators[arm],
                    ctrl,
                )
            self.is_first[i] = False
            step2(model, data)

    def observe(self) -> tuple[Poses, FloatArray]:
        """Return the poses that the scene is observed through, and the finger positions [B, R, 2]."""
        num, arms = len(self.data), self.arms
        hand_pos, hand_quat = np.empty((num, arms.num, 3)), np.empty((num, arms.num, 4))
        pos, quat = np.empty((num, len(self._frames), 3)), np.empty((num, len(self._frames), 4))
        fingers = np.empty((num, arms.num, 2))
        touching = np.zeros((num, self._num_contacts), bool)
        for i, (site_xpos, xpos, xquat, qpos) in enumerate(self._poses):
            hand_pos[i], hand_quat[i] = site_xpos[self.sites], xquat[self._hands]
            pos[i], quat[i] = xpos[self._frames], xquat[self._frames]
            fingers[i] = qpos[arms.finger_qadr]
            if self._num_contacts and self.data[i].ncon:
                pairs = self.data[i].contact.geom
                found = self._contact_of[pairs[:, 0], pairs[:, 1]]
                touching[i, found[found >= 0]] = True
        order = [1, 2, 3, 0]
        poses = Poses(
            hand_pos=hand_pos, hand_quat=hand_quat[..., order], pos=pos, quat=quat[..., order], touching=touching
        )
        return poses, fingers

    def get_state(self) -> FloatArray:
        """Return everything that the continuation depends on, a row for each environment."""
        rows = []
        for i, (model, data) in enumerate(zip(self.models, self.data, strict=True)):
            physics = np.zeros(self.mujoco.mj_stateSize(model, self._state_kind))
            self.mujoco.mj_getState(model, data, physics, self._state_kind)
            rows.append(np.concatenate([physics, *(a.ravel() for a in self._own(i)), [self.is_first[i]]]))
        return np.stack(rows)

    def set_state(self, state: FloatArray) -> None:
        """Put back what :meth:`get_state` returned."""
        for i, (model, data, row) in enumerate(zip(self.models, self.data, state, strict=True)):
            start = self.mujoco.mj_stateSize(model, self._state_kind)
            self.mujoco.mj_setState(model, data, row[:start], self._state_kind)
            for array in self._own(i):
                array[...] = row[start : start + array.size].reshape(array.shape)
                start += array.size
            self.is_first[i] = bool(row[-1])

    @property
    def _state_kind(self) -> Any:
        return self.mujoco.mjtState.mjSTATE_INTEGRATION

    def _own(self, i: int) -> tuple[FloatArray, ...]:
        # Observations read poses that lag the state by one sub-step, so they are part of it.
        data = self.data[i]
        controller = (self.rest[i], self.command[i], self.goal_rot[i], self.first_inertia[i])
        return (*controller, data.xpos, data.xquat, data.site_xpos)


def inertia_index(model: Any, dofs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where the joint-space inertia between ``dofs`` [n] is in MuJoCo's sparse ``qM``, as [n, n].

    Source: MuJoCo's documentation of ``mjModel.dof_Madr``: an entry for a joint is followed by those of its ancestors.
    """
    place = {int(dof): i for i, dof in enumerate(dofs)}
    index = np.zeros((len(dofs), len(dofs)), np.int64)
    for dof, i in place.items():
        ancestor, address = dof, int(model.dof_Madr[dof])
        while ancestor >= 0:
            if ancestor in place:
                index[i, place[ancestor]] = index[place[ancestor], i] = address
            ancestor, address = int(model.dof_parentid[ancestor]), address + 1
    return index
