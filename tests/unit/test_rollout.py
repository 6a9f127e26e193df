"""Exploration noise and the collection of rollouts: shapes, bookkeeping, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from inril_ray.policies.base import Policy
from inril_ray.rollout import ActionNoise, RolloutCollector, decision_env
from inril_ray.types import Rollout
from tests.fakes import TINY_POLICY, FakeEnv, fake_spec, tiny_policy

ARRAYS = ("obs", "chains", "log_probs", "rewards", "terminated", "truncated", "valid", "next_obs", "last_obs")


def collector(
    policy: Policy,
    envs: range = range(4),
    *,
    num_decisions: int = 6,
    reset_each: bool = False,
    seed: int = 0,
    terminate_on_success: bool = False,
) -> RolloutCollector:
    env = FakeEnv(len(envs), seed=seed, first_env=envs.start, terminate_on_success=terminate_on_success)
    return RolloutCollector(
        decision_env(env, policy),
        policy,
        ActionNoise(seed, 0, envs, policy.noise_shape),
        num_decisions=num_decisions,
        reset_each=reset_each,
    )


def assert_same(got: Rollout, want: Rollout) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    for name, value in vars(want.episodes).items():
        np.testing.assert_array_equal(getattr(got.episodes, name), value, err_msg=name)
    assert (got.env_steps, got.policy_version, got.nan_resets) == (want.env_steps, want.policy_version, want.nan_resets)


# -- noise ------------------------------------------------------------------------------------------------------------
def test_noise_does_not_depend_on_the_split() -> None:
    whole = ActionNoise(3, 0, range(5), (2, 3))
    parts = [ActionNoise(3, 0, [0, 1], (2, 3)), ActionNoise(3, 0, range(2, 5), (2, 3))]
    for _ in range(3):
        torch.testing.assert_close(whole.draw(), torch.cat([p.draw() for p in parts]), rtol=0, atol=0)


def test_noise_is_fresh_for_every_draw_environment_purpose_and_seed() -> None:
    noise = ActionNoise(0, 0, range(3), (4,))
    rows = torch.cat([noise.draw(), noise.draw()])
    rows = torch.cat([rows, ActionNoise(0, 1, range(3), (4,)).draw(), ActionNoise(1, 0, range(3), (4,)).draw()])
    assert rows.dtype == torch.float32
    assert len(torch.unique(rows, dim=0)) == 12


def test_noise_is_standard_normal() -> None:
    values = ActionNoise(0, 0, range(4), (5000,)).draw()
    assert abs(float(values.mean())) < 0.03
    assert abs(float(values.std()) - 1.0) < 0.02


@pytest.mark.parametrize("drawn", [0, 1, 3])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_noise_goes_on_from_its_state_as_plain_data(drawn: int, shape: tuple[int, ...]) -> None:
    noise, other = ActionNoise(7, 0, range(3), shape), ActionNoise(8, 1, range(3), shape)
    for _ in range(drawn):
        noise.draw()
    state = json.loads(json.dumps(noise.state_dict()))
    expected = [noise.draw() for _ in range(4)]
    other.load_state_dict(state)
    torch.testing.assert_close([other.draw() for _ in range(4)], expected, rtol=0, atol=0)


def test_noise_of_another_number_of_environments_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ActionNoise(0, 0, range(2), (1,)).load_state_dict(ActionNoise(0, 0, range(3), (1,)).state_dict())


# -- rollouts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TINY_POLICY)
def test_shapes_are_those_of_the_contract(kind: str) -> None:
    policy = tiny_policy(kind)
    rollout = collector(policy).collect(5)
    t, b, f, h = 6, 4, policy.num_scored_steps, policy.horizon
    shapes = {
        "obs": (t, b, policy.decision_spec(fake_spec()).obs_dim),
        "chains": (t, b, f + 1, h, 2),
        "log_probs": (t, b, f),
        "rewards": (t, b),
        "terminated": (t, b),
        "truncated": (t, b),
        "valid": (t, b),
        "next_obs": (t, b, policy.decision_spec(fake_spec()).obs_dim),
        "last_obs": (b, policy.decision_spec(fake_spec()).obs_dim),
    }
    for name, shape in shapes.items():
        array = getattr(rollout, name)
        assert array.shape == shape, name
        assert array.dtype == (bool if name in ("terminated", "truncated", "valid") else np.float32), name
        assert np.isfinite(array).all(), name
    assert rollout.policy_version == 5
    assert set(rollout.timings_s) == {"simulation", "inference"}
    assert rollout.size_bytes() == sum(getattr(rollout, name).nbytes for name in ARRAYS)


def test_observations_continue_where_the_chunk_before_ended() -> None:
    rollout = collector(tiny_policy()).collect(0)
    over = rollout.terminated | rollout.truncated
    assert over.any(), "no episode ended: the test shows less"
    assert not over.all()
    going = ~over[:-1]
    np.testing.assert_array_equal(rollout.obs[1:][going], rollout.next_obs[:-1][going])
    assert (rollout.obs[1:][~going][:, 2] == 0.0).all(), "after the end comes the first observation of an episode"
    assert (rollout.next_obs[rollout.truncated][:, 2] == 1.0).all(), "and before it the final one of the old"


def test_fragments_continue_or_start_anew() -> None:
    going, anew = collector(tiny_policy(), num_decisions=3), collector(tiny_policy(), num_decisions=3, reset_each=True)
    first, second = going.collect(0), going.collect(0)
    np.testing.assert_array_equal(second.obs[0], first.next_obs[-1])
    first, second = anew.collect(0), anew.collect(0)
    assert (second.obs[0, :, 2] == 0.0).all()
    assert not np.array_equal(second.obs[0], first.obs[0])


def test_counted_steps_are_those_executed() -> None:
    run = collector(tiny_policy(), num_decisions=20, terminate_on_success=True)
    rollout = run.collect(0)
    sim = run.env.env
    assert rollout.terminated.any()
    assert rollout.env_steps == int(rollout.episodes.lengths.sum() + sim.elapsed.sum())
    assert rollout.env_steps < 20 * 4 * 2
    assert len(rollout.episodes.envs) == int((rollout.terminated | rollout.truncated).sum())
    assert rollout.episodes.success.sum() == rollout.terminated.sum()


@pytest.mark.parametrize("kind", TINY_POLICY)
@pytest.mark.parametrize("reset_each", [False, True])
def test_rollouts_go_on_from_their_state(kind: str, reset_each: bool) -> None:
    first = collector(tiny_policy(kind), reset_each=reset_each)
    first.collect(0)
    state = first.state_dict()
    expected = [first.collect(1), first.collect(2)]
    second = collector(tiny_policy(kind), reset_each=reset_each)
    second.load_state_dict(state)
    for version, want in enumerate(expected, start=1):
        assert_same(second.collect(version), want)


def test_state_before_the_first_rollout() -> None:
    first, second = collector(tiny_policy()), collector(tiny_policy(), seed=0)
    second.load_state_dict(first.state_dict())
    assert_same(second.collect(0), first.collect(0))


def test_a_rollout_does_not_depend_on_the_number_of_workers() -> None:
    policy = tiny_policy()
    whole = collector(policy, range(6))
    parts = [collector(policy, range(0, 2)), collector(policy, range(2, 6))]
    for version in range(2):
        want = whole.collect(version)
        joined = Rollout.concatenate([p.collect(version) for p in parts])
        for name in ARRAYS:
            # A product of another number of rows may be rounded differently.
            np.testing.assert_allclose(getattr(joined, name), getattr(want, name), rtol=0, atol=1e-4, err_msg=name)
        assert joined.env_steps == want.env_steps
        assert sorted(joined.episodes.envs) == sorted(want.episodes.envs)


def test_joined_rollouts_keep_the_oldest_version_and_the_slowest_time() -> None:
    policy = tiny_policy()
    parts = [collector(policy, range(0, 2)).collect(4), collector(policy, range(2, 5)).collect(3)]
    parts[0] = dataclasses.replace(parts[0], timings_s={"simulation": 2.0, "inference": 1.0}, nan_resets=2)
    parts[1] = dataclasses.replace(parts[1], timings_s={"simulation": 1.0, "inference": 3.0}, nan_resets=1)
    joined = Rollout.concatenate(parts)
    assert joined.policy_version == 3
    assert joined.timings_s == {"simulation": 2.0, "inference": 3.0}
    assert joined.nan_resets == 3
    assert joined.env_steps == parts[0].env_steps + parts[1].env_steps
    np.testing.assert_array_equal(joined.obs[:, :2], parts[0].obs)
    np.testing.assert_array_equal(joined.obs[:, 2:], parts[1].obs)
    np.testing.assert_array_equal(joined.episodes.envs, [*parts[0].episodes.envs, *parts[1].episodes.envs])
    assert Rollout.concatenate(parts[:1]) is parts[0]


def test_a_broken_environment_is_marked_and_counted_in_its_fragment_only() -> None:
    run, healthy = collector(tiny_policy()), collector(tiny_policy())
    sim = run.env.env
    assert isinstance(sim, FakeEnv)
    sim.nan_obs_at = {(2, 0, 3)}
    first, want = run.collect(0), healthy.collect(0)
    assert first.nan_resets == 1
    assert np.argwhere(~first.valid).tolist() == [[1, 2]]
    assert first.truncated[1, 2]
    assert np.isfinite(first.next_obs).all()
    others = [0, 1, 3]
    np.testing.assert_array_equal(first.rewards[:, others], want.rewards[:, others])
    np.testing.assert_allclose(first.obs[:, others], want.obs[:, others], rtol=0, atol=1e-6)
    assert run.collect(1).nan_resets == 0
    assert run.env.nan_resets == 1
