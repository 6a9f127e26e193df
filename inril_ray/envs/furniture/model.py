"""One MuJoCo model of a task: robot, table, obstacle, parts, and a helix for every screw.

A screw part carries a light "nut" that can slide and turn along its axis. A fixed tendon between both joints, held at
zero length, makes them a helix of the thread's pitch. Loose, the nut is locked to its part. When the thread catches,
the nut is welded to the hole instead, and turning the part drives it in. A pad on the nut rests on a ledge in the hole
that nothing else touches: the first ridge. Everything that changes while running is in ``qpos``, ``qvel`` and
``eq_active``, which mujoco_warp has for every world as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray.envs.furniture import robot
from inril_ray.envs.furniture.geometry import Shape, mujoco_quat
from inril_ray.envs.furniture.spec import CATCH_HEIGHT, PITCH, Furniture, Part, Screw
from inril_ray.envs.rendering import import_mujoco

PARTS, ROBOT, THREAD = 1, 2, 4
"""Bits of what collides: parts with everything, the robot with parts and table, threads among themselves."""
OBSTACLE_POS = np.array([0.6815, 0.0, 0.015])
OBSTACLE = (
    ((0.0, 0.0, 0.0), (0.010, 0.175, 0.015)),
    ((-0.075, -0.175, 0.0), (0.085, 0.010, 0.015)),
    ((-0.075, 0.175, 0.0), (0.085, 0.010, 0.015)),
)
"""Centres and half edges of its front and sides."""
FINGER_FRICTION, TABLE_FRICTION = 0.575, 0.125
"""PhysX takes the mean of two materials, MuJoCo the greater one: fingers have what they have with parts, the table
what it has with parts, and priority."""
NUT_MASS = 0.002
HIDDEN = 4
"""A group of shapes that is not drawn."""


@dataclass(frozen=True, kw_only=True)
class ScrewAddress:
    """Where a screw lives in the model's arrays."""

    slide_qpos: int
    hinge_qpos: int
    slide_qvel: int
    hinge_qvel: int
    lock: int
    """Index of the equality that holds the loose nut."""
    welds: tuple[int, ...]
    """Of those that hold the nut in each hole."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where everything lives in the model's arrays."""

    joints: tuple[int, ...]
    """``qpos`` of the seven joints."""
    fingers: tuple[int, ...]
    joint_dofs: tuple[int, ...]
    parts_qpos: tuple[int, ...]
    """First ``qpos`` of each part's free joint."""
    parts_qvel: tuple[int, ...]
    screws: tuple[ScrewAddress, ...]


def build(furniture: Furniture, meshes: Path | None = None) -> Any:
    """Return the ``MjSpec`` of a task.

    Args:
        furniture: the task.
        meshes: directory of :mod:`inril_ray.envs.furniture.assets`, to draw parts with; collisions stay the same.
    """
    mujoco = import_mujoco()
    spec = mujoco.MjSpec()
    spec.modelname = furniture.name
    spec.compiler.degree = False
    option = spec.option
    option.timestep = 1.0 / furniture.physics_hz
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.iterations = option.ls_iterations = 20
    # mujoco_warp finds only some of the contacts of two boxes with it, and MuJoCo more than it; without, they agree.
    option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    contact = {"solref": [2.0 / furniture.physics_hz, 1.0], "solimp": list(furniture.impedance)}
    _add_robot(spec, furniture, contact)
    _add_table(spec, contact)
    for part in furniture.parts:
        body = spec.worldbody.add_body(name=part.name, pos=part.start[0], quat=mujoco_quat(part.start[1]))
        body.add_freejoint(name=part.name)
        _set_inertia(body, part.mass, part.centre, part.inertia)
        for i, shape in enumerate(part.shapes):
            friction = [furniture.part_friction, 0.005, 0.0001]
            _add_shape(body, f"{part.name}_{i}", shape, PARTS, PARTS | ROBOT, friction=friction, **contact)
        if meshes is not None and part.mesh is not None:
            _draw_with_mesh(spec, body, part, meshes / part.mesh)
    for screw in furniture.screws:
        _add_screw(spec, furniture, screw, contact)
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.35] * 3, [0.45] * 3
    sky = mujoco.mjtTexture.mjTEXTURE_SKYBOX, mujoco.mjtBuiltin.mjBUILTIN_GRADIENT
    spec.add_texture(
        name="sky", type=sky[0], builtin=sky[1], rgb1=[0.80, 0.84, 0.88], rgb2=[0.55, 0.60, 0.66], width=64, height=384
    )
    spec.worldbody.add_light(
        pos=[0.5, 0.3, 2.0],
        dir=[0, 0, -1],
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        castshadow=True,
        diffuse=[0.4] * 3,
    )
    spec.worldbody.add_camera(name="front", pos=[1.15, 0.32, 0.55], xyaxes=[-0.42, 0.91, 0, -0.46, -0.21, 0.86])
    return spec


def compile_model(furniture: Furniture) -> Any:
    """Return the compiled ``MjModel``."""
    return build(furniture).compile()


def addresses(model: Any, furniture: Furniture) -> Addresses:
    """Find everything in a compiled model."""

    def qpos(name: str) -> int:
        return int(model.joint(name).qposadr[0])

    def qvel(name: str) -> int:
        return int(model.joint(name).dofadr[0])

    names = [f"joint{i + 1}" for i in range(7)]
    return Addresses(
        joints=tuple(map(qpos, names)),
        fingers=(qpos("finger_joint1"), qpos("finger_joint2")),
        joint_dofs=tuple(map(qvel, names)),
        parts_qpos=tuple(qpos(p.name) for p in furniture.parts),
        parts_qvel=tuple(qvel(p.name) for p in furniture.parts),
        screws=tuple(
            ScrewAddress(
                slide_qpos=qpos(f"{s.part}_slide"),
                hinge_qpos=qpos(f"{s.part}_hinge"),
                slide_qvel=qvel(f"{s.part}_slide"),
                hinge_qvel=qvel(f"{s.part}_hinge"),
                lock=model.equality(f"{s.part}_lock").id,
                welds=tuple(model.equality(f"{s.part}_weld{i}").id for i in range(len(s.poses))),
            )
            for s in furniture.screws
        ),
    )


def _add_shape(body: Any, name: str, shape: Shape, contype: int, conaffinity: int, **contact: Any) -> None:
    mujoco = import_mujoco()
    kinds = {
        "box": mujoco.mjtGeom.mjGEOM_BOX,
        "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
        "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    }
    body.add_geom(
        name=name,
        type=kinds[shape.kind],
        size=[*shape.size, 0.0, 0.0][:3],
        pos=list(shape.pos),
        quat=list(shape.quat),
        condim=shape.condim,
        rgba=list(shape.color),
        contype=contype,
        conaffinity=conaffinity,
        mass=0.0,
        **contact,
    )


def _draw_with_mesh(spec: Any, body: Any, part: Part, file: Path) -> None:
    mujoco = import_mujoco()
    for geom in body.geoms:
        geom.group = HIDDEN
    if file.stem not in [mesh.name for mesh in spec.meshes]:
        spec.add_mesh(name=file.stem, file=str(file))
    body.add_geom(
        name=f"{part.name}_mesh", type=mujoco.mjtGeom.mjGEOM_MESH, meshname=file.stem, contype=0, conaffinity=0,
        mass=0.0, group=2, rgba=list(part.shapes[0].color),
    )  # fmt: skip


def _set_inertia(body: Any, mass: float, centre: Any, inertia: Any, quat: Any = (1.0, 0.0, 0.0, 0.0)) -> None:
    body.mass, body.ipos, body.iquat, body.inertia = mass, list(centre), list(quat), list(inertia)
    body.explicitinertial = True


def _add_robot(spec: Any, furniture: Furniture, contact: dict[str, Any]) -> None:
    mujoco = import_mujoco()
    friction = [FINGER_FRICTION, 0.005, 0.0001]
    body = spec.worldbody
    for i, link in enumerate(robot.LINKS):
        body = body.add_body(name=link.name, pos=list(link.pos), quat=list(link.quat), gravcomp=1.0)
        _set_inertia(body, link.mass, link.centre, link.inertia, link.inertia_quat)
        if link.limits is not None:
            name = f"joint{i + 1}"
            body.add_joint(
                name=name, type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 0, 1], range=list(link.limits),
                limited=True, armature=robot.ARMATURE, damping=[0.003, 0, 0],
            )  # fmt: skip
            actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            actuator.set_to_position(kp=robot.STIFFNESS, kv=robot.DAMPING)  # no force range: see robot.py
        for k, shape in enumerate(link.shapes):
            _add_shape(body, f"{link.name}_{k}", shape, ROBOT, PARTS, friction=friction, **contact)
    hand = body
    hand.add_site(name="ee", pos=[0, 0, robot.EE_OFFSET], size=[0.004] * 3, group=4)
    for number, side in ((1, 1.0), (2, -1.0)):
        finger = hand.add_body(name=f"finger{number}", pos=list(robot.FINGER_POS), gravcomp=1.0)
        x, y, z = robot.FINGER_CENTRE
        _set_inertia(finger, robot.FINGER_MASS, (x, side * y, z), robot.FINGER_INERTIA)
        finger.add_joint(
            name=f"finger_joint{number}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, side, 0],
            range=[0, furniture.gripper_width / 2], limited=True, armature=0.1, damping=[60.0, 0, 0],
            frictionloss=0.5, solref_limit=contact["solref"],
        )  # fmt: skip
        for k, shape in enumerate(robot.FINGER_SHAPES):
            x, y, z = shape.pos
            w, a, b, c = shape.quat
            mirrored = Shape(
                kind=shape.kind, size=shape.size, pos=(x, side * y, z), quat=(w, side * a, b, side * c),
                condim=shape.condim, color=shape.color,
            )  # fmt: skip
            _add_shape(finger, f"finger{number}_{k}", mirrored, ROBOT, PARTS, friction=friction, **contact)
        motor = spec.add_actuator(
            name=f"finger{number}", target=f"finger_joint{number}", trntype=mujoco.mjtTrn.mjTRN_JOINT
        )
        motor.set_to_motor()
        motor.ctrlrange, motor.ctrllimited = [-robot.FINGER_FORCE, robot.FINGER_FORCE], True
    _add_joint_equality(spec, "fingers", "finger_joint1", "finger_joint2", 1.0, contact["solref"])


def _add_joint_equality(
    spec: Any, name: str, first: str, second: str | None, slope: float, solref: list[float]
) -> None:
    mujoco = import_mujoco()
    names = {"name1": first} if second is None else {"name1": first, "name2": second}
    equality = spec.add_equality(
        name=name, type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT, solref=solref, **names
    )
    equality.data[:5] = [0.0, slope, 0.0, 0.0, 0.0]


def _add_table(spec: Any, contact: dict[str, Any]) -> None:
    mujoco = import_mujoco()
    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0.65, 0.4, 0.05], pos=[0.4, 0, 0], priority=1,
        friction=[TABLE_FRICTION, 0.005, 0.0001], contype=PARTS, conaffinity=PARTS | ROBOT,
        rgba=[0.25, 0.25, 0.28, 1], **contact,
    )  # fmt: skip
    obstacle = spec.worldbody.add_body(name="obstacle", pos=OBSTACLE_POS, mocap=True)
    for i, (pos, half) in enumerate(OBSTACLE):
        shape = Shape(kind="box", size=half, pos=pos, color=(0.9, 0.9, 0.9, 1.0))
        friction = [FINGER_FRICTION, 0.005, 0.0001]
        _add_shape(obstacle, f"obstacle_{i}", shape, PARTS, PARTS | ROBOT, friction=friction, **contact)


def _add_screw(spec: Any, furniture: Furniture, screw: Screw, contact: dict[str, Any]) -> None:
    mujoco = import_mujoco()
    axis = np.asarray(screw.axis)
    step = 1.0 / furniture.physics_hz
    stiff = {"solref": [2.1 * step, 1.0], "solimp": [0.99, 0.999, 0.001, 0.5, 2.0]}
    body = spec.body(screw.part)
    nut = body.add_body(name=f"{screw.part}_nut")
    _set_inertia(nut, NUT_MASS, (0.0, 0.0, 0.0), (2e-6, 2e-6, 2e-6))
    slide, hinge = f"{screw.part}_slide", f"{screw.part}_hinge"
    nut.add_joint(name=slide, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=list(axis), damping=[0.05, 0, 0], armature=0.001)
    nut.add_joint(
        name=hinge, type=mujoco.mjtJoint.mjJNT_HINGE, axis=list(axis), damping=[1e-4, 0, 0], armature=1e-5,
        frictionloss=0.01, solref_friction=stiff["solref"], solimp_friction=[0.99, 0.99, 0.001, 0.5, 2.0],
    )  # fmt: skip
    flat = 0.001 + 0.006 * (1.0 - np.abs(axis))  # half edges of a pad across the axis
    thread = {"friction": [furniture.part_friction, 0.005, 0.0001], "group": HIDDEN, **contact}
    pad = Shape(kind="box", size=tuple(flat), pos=tuple(-(screw.tip - 0.001) * axis))
    _add_shape(nut, f"{screw.part}_pad", pad, THREAD, THREAD, **thread)
    _add_joint_equality(spec, f"{screw.part}_lock", hinge, None, 0.0, contact["solref"])
    # A tendon, because a row of a joint equality is regularised by the hinge's huge inverse inertia, and slips.
    tendon = spec.add_tendon(name=f"{screw.part}_helix")
    tendon.wrap_joint(slide, 1.0)
    tendon.wrap_joint(hinge, -PITCH / (2 * math.pi))
    helix = spec.add_equality(
        name=f"{screw.part}_helix", type=mujoco.mjtEq.mjEQ_TENDON, objtype=mujoco.mjtObj.mjOBJ_TENDON,
        name1=f"{screw.part}_helix", **stiff,
    )  # fmt: skip
    helix.data[:5] = 0.0
    hole_body = spec.body(screw.into)
    for i, pose in enumerate(screw.poses):
        outwards = pose.matrix @ axis
        ledge = np.asarray(pose.pos) + (CATCH_HEIGHT - screw.tip - 0.001) * outwards
        wide = 0.001 * np.abs(outwards) + 0.012 * (1.0 - np.abs(outwards))
        shape = Shape(kind="box", size=tuple(wide), pos=tuple(ledge), color=(0.2, 0.6, 0.9, 0.4))
        _add_shape(hole_body, f"{screw.part}_ledge{i}", shape, THREAD, THREAD, **thread)
        weld = spec.add_equality(
            name=f"{screw.part}_weld{i}", type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY,
            name1=screw.into, name2=f"{screw.part}_nut", active=False,
            solref=[max(0.01, 2.1 * step), 1.0], solimp=[0.98, 0.99, 0.001, 0.5, 2.0],
        )  # fmt: skip
        weld.data[0:3] = 0.0
        weld.data[3:6] = pose.pos
        weld.data[6:10] = mujoco_quat(pose.matrix)
        weld.data[10] = 1.0
