"""The scripted Lift and Transport demonstrators, without a simulator, and what ``record`` refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from inril_ray.config import build
from inril_ray.demos.scripted.arm import ArmStyleConfig
from inril_ray.demos.scripted.lift import LiftDemonstrator
from inril_ray.demos.scripted.transport import FIRST, SECOND, TransportDemonstrator, View
from inril_ray.record import record
from inril_ray.types import InrilError


def kinematic_episode(seed: int, steps: int = 200, **quality: float) -> tuple[np.ndarray, np.ndarray, bool]:
    """A hand that goes where it is told by 5 cm a step at most, and a cube that a closed hand nearby carries."""
    rng = np.random.default_rng(seed)
    actor = LiftDemonstrator(rng, ArmStyleConfig(**quality))
    hand, cube = np.array([-0.1, 0.05, 1.0]), np.array([0.02, -0.01, 0.82])
    obs, actions, highest = [], [], 0.0
    for _ in range(steps):
        row = np.zeros(19, np.float32)
        row[0:3], row[9:12], row[16:19] = hand, cube, cube - hand
        action = actor.act(row)
        obs.append(row)
        actions.append(action)
        move = 0.03 * action[:3]
        if action[6] > 0 and np.linalg.norm(cube - hand) < 0.03:
            cube = cube + move
        hand = hand + move
        highest = max(highest, cube[2])
    return np.stack(obs), np.stack(actions), bool(highest > 0.86)


def test_it_approaches_grasps_and_raises() -> None:
    assert all(kinematic_episode(seed)[2] for seed in range(5))


def test_the_hand_closes_only_at_the_cube() -> None:
    obs, actions, _ = kinematic_episode(0)
    closed = actions[:, 6] > 0
    assert set(actions[:, 6]) == {-1.0, 1.0}
    assert not closed[0]
    first = int(np.argmax(closed))
    assert np.linalg.norm(obs[first, 9:12] - obs[first, 0:3]) < 0.04
    assert (np.linalg.norm(obs[:first, 9:12] - obs[:first, 0:3], axis=1) > 0.01).any()


def test_it_starts_again_when_the_cube_slipped() -> None:
    actor = LiftDemonstrator(np.random.default_rng(0), ArmStyleConfig(noise=0.0, aim_error_m=0.0))
    at = np.zeros(19, np.float32)
    at[0:3] = at[9:12] = [0.0, 0.0, 0.82]
    above = at.copy()
    above[2] += 0.07
    actor.act(above)
    while actor.act(at)[6] < 0:
        pass
    for _ in range(10):
        assert actor.act(at)[6] > 0
    lost = at.copy()
    lost[2] += 0.2
    assert actor.act(lost)[6] < 0


def test_actions_are_in_range_and_float32() -> None:
    _, actions, _ = kinematic_episode(1, noise=5.0)
    assert actions.dtype == np.float32
    assert actions.shape == (200, 7)
    assert np.abs(actions).max() == 1.0


def test_the_stream_alone_decides() -> None:
    first, again, other = (kinematic_episode(seed)[1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_quality_is_adjustable() -> None:
    quiet, loud = (kinematic_episode(2, noise=noise, steps=8)[1][:, 3:6] for noise in (0.0, 0.5))
    assert not quiet.any()
    assert loud.any()


def test_an_unknown_quality_setting_lists_the_choices() -> None:
    with pytest.raises(InrilError, match=r"quality\.nois'.*Did you mean 'noise'"):
        build(ArmStyleConfig, {"nois": 1}, "quality")


# -- Transport --------------------------------------------------------------------------------------------------------
BINS = {"start": np.array([0.2, -0.45]), "target": np.array([-0.2, 0.45]), "trash": np.array([0.2, 0.45])}


class Tables:
    """Two hands that go and turn where they are told, and three things that closed hands carry.

    Args:
        head: 1 or -1, the end of the handle at which the hammer's head is.
    """

    def __init__(self, head: int = 1) -> None:
        self.hands = [np.array([0.05, -0.35, 1.0]), np.array([-0.05, 0.35, 1.0])]
        self.turned = [Rotation.from_euler("z", yaw) * Rotation.from_euler("x", np.pi) for yaw in (1.4, -1.7)]
        self.openings = [0.08, 0.08]
        self.things = {name: np.append(BINS[at], z) for name, at, z in self.START}
        self.hammer_turned = Rotation.from_euler("zx", (0.3, -head * np.pi / 2))
        self.holders: dict[str, list[int]] = {name: [] for name in self.things}

    START = (("hammer", "start", 0.825), ("trash", "target", 0.83), ("lid", "start", 0.975))
    THICKNESS = {"hammer": 0.03, "trash": 0.04, "lid": 0.021}

    def obs(self) -> np.ndarray:
        rows = []
        for arm in (FIRST, SECOND):
            finger = self.openings[arm] / 2
            rows += [self.hands[arm], self.turned[arm].as_quat(), [finger, -finger]]
        for name, turned in (("hammer", self.hammer_turned), ("trash", None), ("lid", None)):
            rows += [self.things[name], [0.0, 0.0, 0.0, 1.0] if turned is None else turned.as_quat()]
        rows += [np.append(BINS["target"], 0.805), np.append(BINS["trash"], 0.805)]
        return np.concatenate([*rows, np.zeros(14)]).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        axis = self.hammer_turned.apply([0.0, 0.0, 1.0])
        for arm in (FIRST, SECOND):
            a = action[7 * arm : 7 * arm + 7]
            hand, closed = self.hands[arm], a[6] > 0
            reach = np.clip((hand - self.things["hammer"]) @ axis, -0.1, 0.1)
            near = {name: pos + (reach * axis if name == "hammer" else 0.0) for name, pos in self.things.items()}
            for name, at in near.items():
                if not closed:
                    self.holders[name] = [h for h in self.holders[name] if h != arm]
                elif np.linalg.norm(at - hand) < 0.025 and arm not in self.holders[name]:
                    self.holders[name].append(arm)
            held = [name for name in self.things if arm in self.holders[name]]
            least = max((self.THICKNESS[name] for name in held), default=0.0)
            self.openings[arm] = float(np.clip(self.openings[arm] + (-0.01 if closed else 0.01), least, 0.08))
            move, turn = 0.03 * a[:3], Rotation.from_rotvec(0.3 * a[3:6])
            # With two holders, the first leads.
            for name in (name for name in held if self.holders[name][0] == arm):
                self.things[name] = hand + turn.apply(self.things[name] - hand) + move
                if name == "hammer":
                    self.hammer_turned = turn * self.hammer_turned
            self.hands[arm], self.turned[arm] = hand + move, turn * self.turned[arm]
        for name, pos in self.things.items():
            if not self.holders[name]:
                pos[2] = max(0.83, pos[2] - 0.05) if name != "lid" or pos[0] < 0 else pos[2]

    def solved(self) -> bool:
        return all(
            np.abs(self.things[name][:2] - BINS[to]).max() < 0.15 and self.things[name][2] < 0.85
            for name, to in (("hammer", "target"), ("trash", "trash"))
        )


def transport(seed: int, **quality: float) -> TransportDemonstrator:
    return TransportDemonstrator(np.random.default_rng(seed), ArmStyleConfig(**quality))


@pytest.mark.parametrize("head", [-1, 1])
@pytest.mark.parametrize("seed", range(3))
def test_transport_is_solved_and_the_hammer_is_never_let_go_between_hands(seed: int, head: int) -> None:
    tables, actor, actions, lifted = Tables(head), transport(seed), [], False
    for _ in range(800):
        action = actor.act(tables.obs())
        actions.append(action)
        tables.step(action)
        lifted |= tables.things["hammer"][2] > 0.95
        if lifted and abs(tables.things["hammer"][1]) < 0.25:
            assert tables.holders["hammer"], "nobody holds the hammer between the tables"
        if tables.solved():
            break
    assert tables.solved()
    assert len(actions) > 150
    stacked = np.stack(actions)
    assert stacked.shape[1:] == (14,)
    assert stacked.dtype == np.float32
    assert np.abs(stacked).max() <= 1.0
    assert set(stacked[:, [6, 13]].ravel()) == {-1.0, 1.0}


def test_transport_differs_between_streams_only() -> None:
    first, again, other = (transport(seed).act(Tables().obs()) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rubbish_that_slips_is_grasped_again_but_not_out_of_its_bin() -> None:
    for where, reopens in (("target", True), ("trash", False)):
        tables, actor = Tables(), transport(0, noise=0.0)
        while tables.things["trash"][2] < 1.0:
            tables.step(actor.act(tables.obs()))
        tables.holders["trash"] = []
        tables.things["trash"] = np.append(BINS[where], 0.83)
        seconds = []
        for _ in range(60):
            action = actor.act(tables.obs())
            seconds.append(action[13])
            tables.step(action)
        assert seconds[1] == -1.0, "the hand opens"
        assert ((np.array(seconds) > 0).any() and SECOND in tables.holders["trash"]) == reopens


def test_the_observation_is_taken_apart_as_the_scene_puts_it_together() -> None:
    tables = Tables(head=-1)
    view = View(tables.obs())
    np.testing.assert_allclose(view.hammer, tables.things["hammer"], atol=1e-6)
    assert view.along[1] > 0 > (view.middle - view.hammer)[1], "the head is at the end away from the second arm"
    assert view.half(SECOND)[1] > view.half(FIRST)[1] + 0.1, "the hands would touch"
    np.testing.assert_allclose(view.openings, 0.08, atol=1e-6)
    assert not view.held_by(FIRST)
    tables.hands[FIRST], tables.openings[FIRST] = tables.things["hammer"].copy(), 0.03
    assert View(tables.obs()).held_by(FIRST)
    assert not View(tables.obs()).held_by(SECOND)
    tables.openings[FIRST] = 0.02
    assert not View(tables.obs()).held_by(FIRST), "the fingers are closed above the handle"


@pytest.mark.parametrize("held_out", [-1, 3, 4])
def test_record_refuses_to_hold_out_everything(tmp_path: Path, held_out: int) -> None:
    with pytest.raises(InrilError, match=f"held_out = {held_out}.*num_demos = 3"):
        record("robomimic/lift", tmp_path / "x.hdf5", num_demos=3, seed=0, held_out=held_out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_demos", [0, -3])
def test_record_refuses_no_episodes_by_their_own_name(tmp_path: Path, num_demos: int) -> None:
    with pytest.raises(InrilError, match=rf"^num_demos \(--num\) = {num_demos}: must be at least 1\.$"):
        record("robomimic/lift", tmp_path / "x.hdf5", num_demos=num_demos, seed=0, held_out=0)


def test_record_needs_a_demonstrator(tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="Unknown demonstrator.*robomimic/lift"):
        record("robomimic/lifd", tmp_path / "x.hdf5", num_demos=3, seed=0)
