"""The fast backend: robosuite's own compiled model, stepped without robosuite's Python.

Three quarters of a stock control step is controller code in Python, most of the rest collision detection. Here the
controller is compiled (``osc.py``), visual shapes are dropped from the model (they take part in nothing but memory),
and observations and rewards are computed for the whole batch at once. Trajectories equal stock robosuite to rounding.
"""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome
from inril_ray.envs.robomimic.rendering import Renderer, package_versions
from inril_ray.envs.robomimic.tasks import OSC_KP, OSC_OUTPUT, SUBSTEPS, RobomimicTask, import_robosuite, make_robosuite
from inril_ray.types import BoolArray, FloatArray, InrilError

ARENA_MEMORY = "4M"
"""Upper bound of MuJoCo's scratch memory for one environment; the most that was used is 0.06 MB."""
TABLE_HEIGHT_M = 0.8
LIFT_SUCCESS_M = 0.04
FINGER_SPEED = 0.2
"""Change of the gripper command in one control step, of a range of 2 (robosuite's PandaGripper)."""


class FastRobomimicEnv(SimVectorEnv):
    """A batch of environments over one robosuite task, one ``MjModel`` and ``MjData`` each.

    Every environment has a model of its own, because robosuite draws the size of Lift's cube when it builds a model.
    """

    def __init__(
        self, task: RobomimicTask, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int
    ) -> None:
        self._renderers: dict[int, Renderer] = {}  # first: gymnasium closes an environment whose construction failed
        super().__init__(task.spec(config), num_envs, seed, purpose, first_env)
        import_robosuite()  # first: it settles which OpenGL platform MuJoCo will use
        import mujoco as module

        mujoco: Any = module  # a C extension without type information
        self.task, self._terminate_on_success = task, config.terminate_on_success
        self._mujoco = mujoco
        template = make_robosuite(task, self.env_rng(0))
        self._template_xml = template.model.get_xml()
        self._cube_sizes = np.stack([draw_cube_size(self.env_rng(i)) for i in range(num_envs)])
        self._layout = ArmLayout.of(template)
        self.cells = [
            Cell(mujoco, slim(lift_xml(self._template_xml, size)), template.sim.model._model, self._layout)
            for size in self._cube_sizes
        ]
        model = self.cells[0].model
        self._cube = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "cube_main")
        self._cube_qadr = int(model.jnt_qposadr[model.body_jntadr[self._cube]])
        template.close()

    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        for i in np.flatnonzero(mask):
            # The draws and their order are robosuite's: joint noise, then x, y and yaw of the cube.
            rng = self.episode_rng(i)
            noise = rng.standard_normal(7) * 0.02
            x, y = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)
            yaw = rng.uniform(0.0, 2 * np.pi)
            height = 0.01 + TABLE_HEIGHT_M + self._cube_sizes[i, 2]
            pose = np.array([x, y, height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
            self.cells[i].begin(noise, self._cube_qadr, pose)
        return self._observe()

    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step in the environments where ``active``."""
        clipped = np.clip(actions.astype(np.float64), self.task_spec.action_low, self.task_spec.action_high)
        for i in np.flatnonzero(active):
            self.cells[i].step(clipped[i])
        obs = self._observe()
        heights = np.array([cell.data.xpos[self._cube, 2] for cell in self.cells])
        success = active & (heights > TABLE_HEIGHT_M + LIFT_SUCCESS_M)
        return StepOutcome(
            obs=obs,
            reward=success.astype(np.float32),
            terminated=success & self._terminate_on_success,
            success=success,
            stage=np.maximum(self.stage, success),
        )

    def _observe(self) -> FloatArray:
        layout, cube = self._layout, self._cube
        obs = np.empty((self.num_envs, self.task_spec.obs_dim))
        for row, cell in zip(obs, self.cells, strict=True):
            data = cell.data
            row[0:3] = cell.site_pos
            row[3:6], row[6] = data.xquat[layout.hand, 1:], data.xquat[layout.hand, 0]
            row[7:9] = data.qpos[layout.finger_qadr]
            row[9:12] = data.xpos[cube]
            row[12:15], row[15] = data.xquat[cube, 1:], data.xquat[cube, 0]
        obs[:, 16:19] = obs[:, 9:12] - obs[:, 0:3]
        return obs

    def get_state(self) -> dict[str, Any]:
        """Return counters and the complete physics and controller state of every environment."""
        states = [cell.get_state() for cell in self.cells]
        return {**super().get_state(), "cells": np.stack(states), "obs": self.obs.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned; the continuation is bit-identical."""
        super().set_state(state)
        for cell, row in zip(self.cells, state["cells"], strict=True):
            cell.set_state(row)
        self.obs[:] = state["obs"]

    def sim_state(self, index: int) -> FloatArray:
        """Return robomimic's flat state of one environment: time, positions, velocities."""
        data = self.cells[index].data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def model_xml(self, index: int) -> str:
        """Return the MJCF model of one environment, as robosuite would build it."""
        return lift_xml(self._template_xml, self._cube_sizes[index])

    def env_args(self) -> str:
        """Return robomimic's ``env_args`` as JSON."""
        return json.dumps(self.task.env_args(package_versions()["robosuite"]), indent=4)

    def render_env(self, index: int, width: int = 320, height: int = 240) -> np.ndarray:
        """Return a picture [height, width, 3] of one environment."""
        if index not in self._renderers:
            self._renderers[index] = Renderer(self.model_xml(index), width, height)
        return self._renderers[index].render(self.cells[index].data.qpos)

    def close_extras(self, **kwargs: object) -> None:
        """Free the renderers, which OpenGL no longer allows when the process ends."""
        for renderer in self._renderers.values():
            renderer.close()

    def versions(self) -> dict[str, str]:
        """Return the versions of robosuite and MuJoCo."""
        return package_versions()


class ArmLayout:
    """Where the arm and the gripper are in the model's arrays; equal in the full and in the slim model."""

    def __init__(self, arm_init: FloatArray, finger_init: FloatArray, names: dict[str, Any]) -> None:
        self.arm_init, self.finger_init, self.names = arm_init, finger_init, names
        self.hand = -1
        self.finger_qadr = np.zeros(0, np.int64)

    @staticmethod
    def of(env: Any) -> ArmLayout:
        """Read the layout from a robosuite environment with one arm."""
        robot = env.robots[0]
        controller = robot.part_controllers["right"]
        layout = ArmLayout(
            np.array(robot.init_qpos),
            np.array(robot.gripper["right"].init_qpos),
            {
                "site": controller.ref_name,
                "dofs": np.array(controller.qvel_index, np.int64),
                "qadr": np.array(controller.qpos_index, np.int64),
                "arm": np.array(robot._ref_actuators_indexes_dict["right"], np.int64),
                "fingers": np.array(robot._ref_actuators_indexes_dict["right_gripper"], np.int64),
            },
        )
        layout.hand = env.sim.model.body_name2id(robot.robot_model.eef_name["right"])
        layout.finger_qadr = np.array(robot._ref_gripper_joint_pos_indexes["right"], np.int64)
        return layout


class Cell:
    """Physics and controller of one environment.

    Args:
        mujoco: the module, passed in because this file loads no simulator at import.
        xml: slim model.
        reference: robosuite's compiled model, for the run-time edits that robosuite makes after compiling.
        layout: where the arm is.
    """

    def __init__(self, mujoco: Any, xml: str, reference: Any, layout: ArmLayout) -> None:
        self.mujoco, self.layout = mujoco, layout
        model = self.model = mujoco.MjModel.from_xml_string(xml)
        cube = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "cube_main")
        others = np.arange(model.nbody) != cube  # its size, and with it its mass, is drawn for each environment
        if model.nbody != reference.nbody or not np.array_equal(model.body_mass[others], reference.body_mass[others]):
            raise InrilError("The slim model differs from robosuite's in its bodies or their masses.")
        model.body_pos[:], model.body_quat[:] = reference.body_pos, reference.body_quat
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        data = self.data = mujoco.MjData(model)
        names = layout.names
        self.site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, names["site"])
        self.site_pos, self.site_rot = data.site_xpos[self.site], data.site_xmat[self.site].reshape(3, 3)
        self.dofs, self.qadr, self.arm, self.fingers = (names[k] for k in ("dofs", "qadr", "arm", "fingers"))
        self._inertia_index = inertia_index(model, self.dofs)
        limits = model.actuator_ctrlrange
        self.low, self.high = limits[self.arm, 0].copy(), limits[self.arm, 1].copy()
        self.finger_mid, self.finger_half = limits[self.fingers].mean(axis=1), np.ptp(limits[self.fingers], axis=1) / 2
        self.rest = np.zeros(7)
        self.finger_command = np.zeros(2)
        self.first_inertia: FloatArray | None = None
        self._jac_pos, self._jac_rot = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._output = np.array(OSC_OUTPUT)
        from inril_ray.envs.robomimic.osc import goal_rotation, osc_torques

        self._goal_rotation, self._osc_torques = goal_rotation, osc_torques

    def begin(self, arm_noise: FloatArray, object_qadr: int, object_pose: FloatArray) -> None:
        """Start an episode the way a soft robosuite reset does."""
        mujoco, model, data = self.mujoco, self.model, self.data
        mujoco.mj_resetData(model, data)
        self.rest = self.layout.arm_init + arm_noise
        data.qpos[self.qadr] = self.rest
        # Robosuite builds its controller here, before it opens the gripper, and the first control sub-step still uses
        # the inertia of this moment. Visible (3e-7 m), so it is kept.
        mujoco.mj_forward(model, data)
        self.first_inertia = data.qM.copy()
        data.qpos[self.layout.finger_qadr] = self.layout.finger_init
        data.qpos[object_qadr : object_qadr + 7] = object_pose
        self.finger_command[:] = 0.0
        mujoco.mj_forward(model, data)

    def step(self, action: FloatArray) -> None:
        """Execute one control step of 50 ms. ``action`` [7] in [-1, 1]: translation, rotation, gripper."""
        mujoco, model, data, ctrl = self.mujoco, self.model, self.data, self.data.ctrl
        step1, step2, jac_site = mujoco.mj_step1, mujoco.mj_step2, mujoco.mj_jacSite
        # Every access makes a new view of the same memory, at a cost that counts 25 times a step.
        torques, qpos, qvel, bias, inertia = self._osc_torques, data.qpos, data.qvel, data.qfrc_bias, data.qM
        jac_pos, jac_rot, site = self._jac_pos, self._jac_rot, self.site
        step1(model, data)
        delta = action[:6] * self._output
        goal_pos, goal_rot = self.site_pos + delta[:3], self._goal_rotation(delta[3:], self.site_rot)
        closing = np.array([-1.0, 1.0]) * FINGER_SPEED * np.sign(action[6])
        self.finger_command = np.clip(self.finger_command + closing, -1.0, 1.0)
        ctrl[self.fingers] = self.finger_mid + self.finger_half * self.finger_command
        for substep in range(SUBSTEPS):
            if substep:
                step1(model, data)
            jac_site(model, data, jac_pos, jac_rot, site)
            torques(
                inertia if self.first_inertia is None else self.first_inertia,
                self._inertia_index,
                jac_pos,
                jac_rot,
                self.site_pos,
                self.site_rot,
                goal_pos,
                goal_rot,
                qpos,
                qvel,
                self.rest,
                bias,
                self.dofs,
                self.qadr,
                OSC_KP,
                self.low,
                self.high,
                self.arm,
                ctrl,
            )
            self.first_inertia = None
            step2(model, data)

    def get_state(self) -> FloatArray:
        """Return everything that the continuation depends on, as one vector."""
        kind = self.mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.zeros(self.mujoco.mj_stateSize(self.model, kind))
        self.mujoco.mj_getState(self.model, self.data, physics, kind)
        # Observations read poses that lag the state by one sub-step, so they are part of it.
        lagging = np.concatenate([a.ravel() for a in (self.data.xpos, self.data.xquat, self.data.site_xpos)])
        first = np.full(self.model.nM, np.nan) if self.first_inertia is None else self.first_inertia
        return np.concatenate([physics, self.rest, self.finger_command, first, lagging])

    def set_state(self, state: FloatArray) -> None:
        """Put back what :meth:`get_state` returned."""
        kind = self.mujoco.mjtState.mjSTATE_INTEGRATION
        size = self.mujoco.mj_stateSize(self.model, kind)
        physics, rest, command, first, lagging = np.split(state, np.cumsum([size, 7, 2, self.model.nM]))
        self.mujoco.mj_setState(self.model, self.data, physics, kind)
        self.rest, self.finger_command = rest.copy(), command.copy()
        self.first_inertia = None if np.isnan(first).any() else first.copy()
        start = 0
        for array in (self.data.xpos, self.data.xquat, self.data.site_xpos):
            array[:] = lagging[start : start + array.size].reshape(array.shape)
            start += array.size


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


def draw_cube_size(rng: np.random.Generator) -> FloatArray:
    """Draw the half-sizes [3] of Lift's cube in metres as robosuite does when it builds the model."""
    return np.array([rng.uniform(0.020, 0.022) for _ in range(3)])


def lift_xml(xml: str, size: FloatArray) -> str:
    """Return robosuite's Lift model with another size of cube."""
    root = ElementTree.fromstring(xml)
    text = " ".join(repr(float(s)) for s in size)
    for geom in root.iter("geom"):
        if geom.get("name") in ("cube_g0", "cube_g0_vis"):
            geom.set("size", text)
    return ElementTree.tostring(root, encoding="unicode")


def slim(xml: str) -> str:
    """Return a model without visual shapes and with a smaller arena; its physics are bit-identical.

    MuJoCo's own ``discardvisual`` would do, but only after it has read every visual mesh and texture for every
    environment, which costs most of the time and a gigabyte of memory at the peak.
    """
    root = ElementTree.fromstring(xml)
    for body in root.iter():
        for geom in body.findall("geom"):
            if geom.get("contype") == "0" and geom.get("conaffinity") == "0":
                body.remove(geom)
    used = {geom.get("mesh") for geom in root.iter("geom")}
    asset = root.find("asset")
    if asset is not None:
        for item in list(asset):
            if item.tag != "mesh" or item.get("name") not in used:
                asset.remove(item)
    for element in root.iter():
        element.attrib.pop("material", None)
    compiler = root.find("compiler")
    if compiler is None:
        compiler = ElementTree.SubElement(root, "compiler")
    compiler.set("discardvisual", "true")
    for size in root.findall("size"):
        root.remove(size)
    ElementTree.SubElement(root, "size").set("memory", ARENA_MEMORY)
    return ElementTree.tostring(root, encoding="unicode")
