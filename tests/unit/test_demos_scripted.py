"""The scripted Lift demonstrator, without a simulator, and what ``record`` refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inril_ray.config import build
from inril_ray.demos.scripted.arm import ArmStyleConfig
from inril_ray.demos.scripted.lift import LiftDemonstrator
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


@pytest.mark.parametrize("held_out", [-1, 3, 4])
def test_record_refuses_to_hold_out_everything(tmp_path: Path, held_out: int) -> None:
    with pytest.raises(InrilError, match=f"held_out = {held_out}.*num_demos = 3"):
        record("robomimic/lift", tmp_path / "x.hdf5", num_demos=3, seed=0, held_out=held_out)
    assert list(tmp_path.iterdir()) == []


def test_record_needs_a_demonstrator(tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="Unknown demonstrator.*robomimic/lift"):
        record("robomimic/lifd", tmp_path / "x.hdf5", num_demos=3, seed=0)
