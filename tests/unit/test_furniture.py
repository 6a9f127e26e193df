"""Furniture without a simulator: task data, shapes, observations, assembly, threads, the gripper."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from inril_ray import envs
from inril_ray.envs.base import EnvConfig, FurnitureOptions
from inril_ray.envs.furniture import kinematics, logic, robot
from inril_ray.envs.furniture.geometry import block, capsule, euler, prism, ring, shaft
from inril_ray.envs.furniture.model import Addresses, ScrewAddress
from inril_ray.envs.furniture.spec import PITCH, TAG_MATRIX, TAG_POS, Furniture, Screw, in_tag_frame
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.rotations import matrix_of_quat
from inril_ray.types import InrilError

NAMES = [name for name in envs.TASKS if name.startswith("furniture/")]
TOP = FURNITURE["one_leg"]


# -- the table of tasks -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "obs_dim", "horizon", "stages"),
    [
        ("one_leg_low", 58, 700, 1), ("lamp_med", 44, 1000, 2), ("round_table_high", 44, 1000, 2),
        ("mug_rack", 37, 400, 1), ("peg_in_hole", 37, 200, 1),
    ],
)  # fmt: skip
def test_dimensions_are_those_of_the_paper(name: str, obs_dim: int, horizon: int, stages: int) -> None:
    spec = envs.spec(f"furniture/{name}", EnvConfig())
    assert (spec.obs_dim, spec.action_dim, spec.control_hz) == (obs_dim, 10, 10.0)
    assert (spec.max_episode_steps, spec.num_stages) == (horizon, stages)


def test_warp_needs_a_gpu_unless_it_is_told_to_crawl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    task, crawling = envs.entry("furniture/one_leg_low"), FurnitureOptions(warp_device="cpu")
    assert task.needs_gpu(EnvConfig(backend="warp"))
    assert not task.needs_gpu(EnvConfig(backend="warp", furniture=crawling))
    assert not any(envs.entry(name).needs_gpu(EnvConfig()) for name in envs.TASKS)
    with pytest.raises(
        InrilError, match="this process has none. Take env.backend=cpu; .* env.furniture.warp_device=cpu"
    ):
        envs.make(task.name, num_envs=1, seed=0, config=EnvConfig(backend="warp"))


def test_observations_of_two_parts_can_be_padded_to_44() -> None:
    options = FurnitureOptions(pad_obs=True)
    for name in NAMES:
        plain, padded = (envs.spec(name, EnvConfig(furniture=o)) for o in (FurnitureOptions(), options))
        assert padded.obs_dim == max(plain.obs_dim, 44)
        assert sum(width for _, width in padded.obs_keys) == padded.obs_dim


@pytest.mark.parametrize("furniture", FURNITURE.values(), ids=list(FURNITURE))
def test_task_data_is_consistent(furniture: Furniture) -> None:
    names = furniture.parts_by_name
    assert len(names) == len(furniture.parts)
    for pair in furniture.pairs:
        assert {pair.first, pair.second} <= names.keys()
        assert pair.poses
    for screw in furniture.screws:
        assert {screw.part, screw.into} <= names.keys()
        assert np.linalg.norm(screw.axis) == pytest.approx(1.0)
    for part in furniture.parts:
        low, middle, high = sorted(part.inertia)
        assert low > 0
        assert low + middle >= high, "no rigid body has such moments"


def test_the_tag_frame_is_that_of_the_specification() -> None:
    np.testing.assert_allclose(TAG_MATRIX, Rotation.from_euler("ZX", [90, 180], degrees=True).as_matrix(), atol=1e-15)
    pos, turn = in_tag_frame((0.1, 0.2, -0.3), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(pos, TAG_POS + np.array([0.2, 0.1, 0.3]), atol=1e-12)
    np.testing.assert_allclose(TAG_MATRIX.T @ turn, Rotation.from_euler("xyz", [0.1, 0.2, 0.3]).as_matrix(), atol=1e-12)


# -- shapes -----------------------------------------------------------------------------------------------------------
def corners(shape) -> np.ndarray:
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3), axis=-1).reshape(-1, 3)
    w, x, y, z = shape.quat
    return shape.pos + (signs * shape.size) @ matrix_of_quat(np.array([x, y, z, w])).T


def test_a_block_is_what_its_bounds_say() -> None:
    points = corners(block((0.0, 1.0), (-2.0, 2.0), (3.0, 4.0)))
    assert points.min(axis=0).tolist() == [0.0, -2.0, 3.0]
    assert points.max(axis=0).tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("axis", ["y", "z"])
def test_a_ring_leaves_its_bore_free(axis) -> None:
    radius, sides = 0.0125, 8
    shapes = ring((radius, radius), 0.004, (0.01, 0.03), sides, axis=axis)
    along = "xyz".index(axis)
    points = np.concatenate([corners(s) for s in shapes])
    across = np.delete(points, along, axis=1)
    assert points[:, along].min() == pytest.approx(0.01)
    assert points[:, along].max() == pytest.approx(0.03)
    assert np.linalg.norm(across, axis=1).min() >= radius - 1e-12
    for s in shapes:  # a side's middle is at the radius
        inner = np.asarray(s.pos) * np.array([i != along for i in range(3)])
        assert np.linalg.norm(inner) - s.size[0] == pytest.approx(radius)


def test_a_cone_widens_along_its_axis() -> None:
    points = np.concatenate([corners(s) for s in ring((0.02, 0.04), 0.004, (-0.05, 0.05), 12)])
    radius = np.hypot(points[:, 0], points[:, 2])
    assert radius[points[:, 1] > 0].min() > radius[points[:, 1] < 0].min() + 0.015


def test_a_prism_and_a_shaft_have_their_size() -> None:
    points = np.concatenate([corners(s) for s in prism(0.02, (0.0, 0.01), 4)])
    assert np.abs(points[:, [0, 2]]).max() == pytest.approx(0.02, rel=0.09)
    pole = shaft(-0.05, -0.02, 0.011)
    radius, half = pole.size
    assert pole.pos[1] - half - radius == pytest.approx(-0.05)
    assert pole.pos[1] + half == pytest.approx(-0.02)
    slanted = capsule((0, 0, 0), (0.1, 0.2, 0.2), 0.01)
    w, x, y, z = slanted.quat
    np.testing.assert_allclose(matrix_of_quat(np.array([x, y, z, w]))[:, 2], np.array([1, 2, 2]) / 3, atol=1e-12)


# -- kinematics -------------------------------------------------------------------------------------------------------
def test_the_jacobian_is_the_derivative() -> None:
    rng = np.random.default_rng(0)
    joints = robot.RESET_JOINTS + rng.normal(0, 0.2, (4, 7))
    pos, matrix, jacobian = kinematics.forward(joints)
    for i in range(7):
        step = np.zeros(7)
        step[i] = 1e-6
        above, below = kinematics.forward(joints + step), kinematics.forward(joints - step)
        np.testing.assert_allclose((above[0] - below[0]) / 2e-6, jacobian[:, :3, i], atol=1e-8)
        spin = (above[1] - below[1]) / 2e-6 @ matrix.transpose(0, 2, 1)
        found = np.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], axis=1)
        np.testing.assert_allclose(found, jacobian[:, 3:, i], atol=1e-8)
    for ours, theirs in zip(kinematics.forward(joints), kinematics.forward(torch.from_numpy(joints)), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)
    assert np.isfinite(pos).all()


def test_joint_targets_are_a_least_norm_newton_step() -> None:
    rng = np.random.default_rng(1)
    joints = robot.RESET_JOINTS + rng.normal(0, 0.1, (3, 7))
    pos, matrix, jacobian = kinematics.forward(joints)
    turn = Rotation.from_rotvec(rng.normal(0, 1e-3, (3, 3))).as_matrix()
    shift = rng.normal(0, 1e-3, (3, 3))
    found = kinematics.joint_targets(joints, pos + shift, turn @ matrix) - joints
    error = np.concatenate([shift, Rotation.from_matrix(turn).as_rotvec()], axis=1)
    expected = np.stack([np.linalg.pinv(j) @ e for j, e in zip(jacobian, error, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    reached = kinematics.forward(joints + found)[0]
    np.testing.assert_allclose(reached, pos + shift, atol=1e-5)


# -- what happens between steps ---------------------------------------------------------------------------------------
def addresses(parts: int) -> Addresses:
    free = range(9, 9 + 7 * parts, 7)
    screw = ScrewAddress(slide_qpos=0, hinge_qpos=0, slide_qvel=0, hinge_qvel=0, lock=0, welds=())
    return Addresses(
        joints=tuple(range(7)), fingers=(7, 8), joint_dofs=tuple(range(7)), parts_qpos=tuple(free),
        parts_qvel=tuple(range(9, 9 + 6 * parts, 6)), screws=(screw,),
    )  # fmt: skip


def test_observations_follow_the_layout() -> None:
    rng = np.random.default_rng(2)
    parts = Rotation.random(10, random_state=3)
    where = addresses(5)
    qpos = np.concatenate([np.tile(robot.RESET_JOINTS, (2, 1)), np.full((2, 2), 0.02), np.zeros((2, 35))], axis=1)
    places = rng.normal(size=(2, 5, 3))
    quats = parts.as_quat().reshape(2, 5, 4)
    for k, at in enumerate(where.parts_qpos):
        qpos[:, at : at + 3], qpos[:, at + 3 : at + 7] = places[:, k], np.roll(quats[:, k], 1, axis=1)
    qvel, obstacle = rng.normal(size=(2, 39)), rng.normal(size=(2, 3))
    obs = logic.observe(qpos, qvel, obstacle, where, TOP)
    pos, matrix, jacobian = kinematics.forward(qpos[:, :7])
    np.testing.assert_allclose(obs[:, :3], pos)
    np.testing.assert_allclose(obs[:, 3:9], np.concatenate([matrix[:, 0], matrix[:, 1]], axis=1))
    np.testing.assert_allclose(obs[:, 9:15], np.einsum("bij,bj->bi", jacobian, qvel[:, :7]))
    np.testing.assert_allclose(obs[:, 15], 0.04)
    seen = obs[:, 16:].reshape(2, 6, 7)
    np.testing.assert_allclose(seen[:, :5, :3], (places - TAG_POS) @ TAG_MATRIX, atol=1e-12)
    np.testing.assert_allclose(seen[:, 5, :3], (obstacle - TAG_POS) @ TAG_MATRIX, atol=1e-12)
    expected = TAG_MATRIX.T @ parts.as_matrix().reshape(2, 5, 3, 3)
    np.testing.assert_allclose(matrix_of_quat(seen[:, :5, 3:]), expected, atol=1e-12)
    np.testing.assert_allclose(np.abs(seen[:, 5, 3:]), [[math.sqrt(0.5), math.sqrt(0.5), 0, 0]] * 2, atol=1e-12)
    starts = np.stack([Rotation.from_matrix(TAG_MATRIX.T @ part.start[1]).as_quat() for part in TOP.parts])
    # The two quaternions of an orientation are told apart by the start, where w may be 0.
    assert (
        np.sum(seen[:, :5, 3:] * starts * np.sign(np.sum(starts * TOP.start_quats, axis=1))[:, None], axis=-1) >= 0
    ).all()
    same = logic.observe(*(torch.from_numpy(x) for x in (qpos, qvel, obstacle)), where, TOP)
    np.testing.assert_allclose(obs, same.numpy(), atol=1e-12)


def placed(relative: np.ndarray, turn: np.ndarray, parts: int = 5, part: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Poses where one part has a pose relative to part 0, which is turned and moved itself."""
    base = Rotation.from_euler("xyz", [0.3, -0.5, 1.1])
    pos = np.tile([0.5, 0.1, 0.02], (1, parts, 1))
    quat = np.tile(base.as_quat(), (1, parts, 1))
    pos[0, part] += base.apply(relative)
    quat[0, part] = (base * Rotation.from_matrix(turn)).as_quat()
    return pos, quat


@pytest.mark.parametrize("hole", range(4))
@pytest.mark.parametrize(
    ("shift", "turn_deg", "ok"),
    [
        ((0, 0, 0), (0, 0, 0), True), ((0.0049, -0.0049, 0.0049), (0, 0, 0), True), ((0.0051, 0, 0), (0, 0, 0), False),
        ((0, 0, 0), (0, 19.5, 0), True), ((0, 0, 0), (0, 20.5, 0), False), ((0, 0, 0), (0, 90, 0), False),
    ],
)  # fmt: skip
def test_assembled_is_5_mm_and_20_degrees(hole: int, shift, turn_deg, ok: bool) -> None:
    at = np.array(TOP.pairs[0].poses[hole].pos) + shift
    pos, quat = placed(at, Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix())
    assert logic.assembled(pos, quat, TOP).tolist() == [[ok]]
    assert logic.assembled(torch.from_numpy(pos), torch.from_numpy(quat), TOP).tolist() == [[ok]]


def test_the_hood_may_stand_in_any_direction() -> None:
    lamp = FURNITURE["lamp"]
    pos, quat = placed(np.array([0.0, -0.0883, 0.0]), euler(0.0, 2.0, 0.0), parts=3, part=2)
    assert logic.assembled(pos, quat, lamp)[0].tolist() == [False, True]


def test_the_gripper_has_a_dead_band() -> None:
    opens = logic.gripper_opens(np.array([-1.0, 0.01, -0.01, 0.5, 0.0]), np.array([False, True, False, True, False]))
    assert opens.tolist() == [True, True, False, False, False]


SCREWS = [(f, s) for f in FURNITURE.values() for s in f.screws]


def events(furniture: Furniture, screw: Screw, height: float, turned: float, *, off=0.0, tilt=0.0, hole=-1, left=0.0):
    """Thread events for a screw that stands over its last hole."""
    pose, axis = screw.poses[-1], np.asarray(screw.axis)
    side = np.roll(axis, 1)
    turn = pose.matrix @ Rotation.from_rotvec(tilt * side).as_matrix() @ Rotation.from_rotvec(turned * axis).as_matrix()
    at = np.asarray(pose.pos) + pose.matrix @ (height * axis + off * side)
    index, parts = furniture.parts_by_name, len(furniture.parts)
    base = Rotation.from_euler("xyz", [0.3, -0.5, 1.1])
    pos, quat = np.zeros((1, parts, 3)), np.tile(base.as_quat(), (1, parts, 1))
    pos[0, index[screw.part]] = base.apply(at)
    quat[0, index[screw.part]] = (base * Rotation.from_matrix(turn)).as_quat()
    caught, to_go, lost = logic.thread_events(pos, quat, np.array([left]), np.array([hole]), furniture, screw)
    return int(caught[0]), float(to_go[0]), bool(lost[0])


@pytest.mark.parametrize(("furniture", "screw"), SCREWS, ids=[s.part for _, s in SCREWS])
def test_a_thread_catches_at_its_first_ridge(furniture: Furniture, screw: Screw) -> None:
    last = len(screw.poses) - 1
    for degrees in (-170.0, -100.0, 0.0, 60.0, 179.0):
        caught, left, lost = events(furniture, screw, 0.011, math.radians(degrees))
        assert caught == last
        assert not lost
        assert 230.0 <= math.degrees(left) < 590.0
        # Turning home by what is left ends in the pose that counts as assembled.
        assert (math.degrees(left) - degrees) % 360.0 == pytest.approx(0.0, abs=1e-6) or (
            math.degrees(left) - degrees
        ) % 360.0 == pytest.approx(360.0, abs=1e-6)
    for refused in (
        events(furniture, screw, 0.014, 0.0), events(furniture, screw, 0.0065, 0.0),
        events(furniture, screw, 0.011, 0.0, off=0.003), events(furniture, screw, 0.011, 0.0, tilt=math.radians(8)),
        events(furniture, screw, 0.011, 0.0, hole=last),
    ):  # fmt: skip
        assert refused[0] == -1


@pytest.mark.parametrize(("furniture", "screw"), SCREWS, ids=[s.part for _, s in SCREWS])
def test_a_screw_comes_out_when_it_is_turned_or_torn_out(furniture: Furniture, screw: Screw) -> None:
    hole = len(screw.poses) - 1
    assert not events(furniture, screw, 0.005, 0.0, hole=hole, left=math.radians(300))[2]
    assert events(furniture, screw, 0.018, 0.0, hole=hole, left=math.radians(641))[2]
    assert events(furniture, screw, 0.005, 0.0, hole=hole, off=0.011)[2]
    assert events(furniture, screw, 0.005, 0.0, hole=hole, tilt=math.radians(31))[2]
    assert not events(furniture, screw, 0.005, 0.0, hole=-1, off=0.011)[2]


def test_the_helix_has_the_measured_pitch() -> None:
    assert logic.helix_height(2 * math.pi) == pytest.approx(PITCH)
    assert dataclasses.asdict(TOP.screws[0])["tip"] == pytest.approx(0.05625)
