"""Losses and returns against values that were worked out elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inril_ray.losses.imitation import gaussian_log_prob, noise_prediction_loss
from inril_ray.losses.policy_gradient import (
    clip_ratio_schedule,
    clipped_surrogate,
    denoising_discounts,
    normalized,
)
from inril_ray.losses.returns import RewardScaler, RunningMoments, gae
from inril_ray.losses.value import explained_variance, value_loss


# -- imitation --------------------------------------------------------------------------------------------------------
def test_noise_prediction_loss_is_the_mean_over_all_elements():
    predicted = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    noise = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]])
    assert noise_prediction_loss(predicted, noise).item() == pytest.approx((1 + 4 + 4 + 16) / 4)


def test_noise_prediction_loss_weighs_rows():
    error = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]], dtype=torch.float64)
    weight = torch.tensor([3.0, 0.5], dtype=torch.float64)
    # 3 (1 + 4) / 2 and 0.5 (9 + 16) / 2, mean of both
    assert noise_prediction_loss(error, torch.zeros_like(error), weight).item() == pytest.approx(6.875)


def test_noise_prediction_loss_refuses_to_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        noise_prediction_loss(torch.zeros(2, 3, 1), torch.zeros(2, 3, 2))


def test_gaussian_log_prob_equals_torch_normal_in_float64():
    generator = torch.Generator().manual_seed(0)
    value, mean = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    std = torch.rand(50, generator=generator, dtype=torch.float64) + 0.05
    expected = torch.distributions.Normal(mean, std).log_prob(value)
    torch.testing.assert_close(gaussian_log_prob(value, mean, std), expected, rtol=0, atol=1e-13)


# -- policy gradient --------------------------------------------------------------------------------------------------
def test_clip_schedule_of_ten_steps():
    expected = [0.001, 0.001187, 0.001447, 0.00181, 0.002317, 0.003025, 0.004013, 0.005391, 0.007315, 0.01]
    assert clip_ratio_schedule(0.01, 0.001, 10) == pytest.approx(expected, abs=6e-7)


def test_clip_schedule_of_one_step_is_the_clip_ratio():
    assert clip_ratio_schedule(0.01, 0.001, 1) == [0.01]


def test_denoising_discounts_end_at_one():
    weights = denoising_discounts(0.99, 10)
    assert weights[0] == pytest.approx(0.91352, abs=5e-6)
    assert weights[-2:] == [0.99, 1.0]
    assert weights == sorted(weights)


def test_surrogate_gradient_at_ratio_one_is_minus_advantage_times_score():
    """A policy of two parameters, N(a, exp(b)): autograd of the loss against finite differences of log densities."""
    rng = np.random.default_rng(0)
    actions, advantage, theta = rng.normal(size=40), rng.normal(size=40), np.array([0.3, -0.4])

    def log_density(a: float, b: float) -> np.ndarray:
        return -0.5 * ((actions - a) / math.exp(b)) ** 2 - b - 0.5 * math.log(2 * math.pi)

    h = 1e-6
    score = np.stack(
        [
            (log_density(theta[0] + h, theta[1]) - log_density(theta[0] - h, theta[1])) / (2 * h),
            (log_density(theta[0], theta[1] + h) - log_density(theta[0], theta[1] - h)) / (2 * h),
        ]
    )
    expected = -(advantage * score).mean(axis=1)

    parameters = torch.tensor(theta, requires_grad=True)
    log_prob = gaussian_log_prob(torch.tensor(actions), parameters[0], parameters[1].exp())
    loss, kl, fraction = clipped_surrogate(log_prob, log_prob.detach(), torch.tensor(advantage), 0.01)
    loss.backward()
    np.testing.assert_allclose(parameters.grad.numpy(), expected, rtol=1e-7)
    assert loss.item() == pytest.approx(-advantage.mean())
    assert kl.item() == 0.0
    assert fraction.item() == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected_loss", "has_gradient"),
    [
        (1.2, 1.0, -1.1, False),
        (1.2, -1.0, 1.2, True),
        (0.8, 1.0, -0.8, True),
        (0.8, -1.0, 0.9, False),
        (1.05, 1.0, -1.05, True),
    ],
)
def test_surrogate_is_the_pessimistic_of_clipped_and_unclipped(ratio, advantage, expected_loss, has_gradient):
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(1, dtype=torch.float64)
    loss, kl, fraction = clipped_surrogate(log_prob, old, torch.tensor([advantage], dtype=torch.float64), 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss)
    assert (log_prob.grad.item() != 0) == has_gradient
    assert kl.item() == pytest.approx(ratio - 1 - math.log(ratio))
    assert fraction.item() == float(abs(ratio - 1) > 0.1)


def test_surrogate_takes_a_clip_ratio_for_each_sample():
    log_prob = torch.full((2,), math.log(1.5))
    loss, _, fraction = clipped_surrogate(log_prob, torch.zeros(2), torch.ones(2), torch.tensor([0.1, 0.6]))
    assert loss.item() == pytest.approx(-(1.1 + 1.5) / 2)
    assert fraction.item() == 0.5


def test_surrogate_survives_a_huge_log_ratio():
    log_prob = torch.tensor([500.0, -500.0], requires_grad=True)
    loss, kl, _ = clipped_surrogate(log_prob, torch.zeros(2), torch.tensor([-1.0, 1.0]), 0.1)
    assert loss.isfinite()
    assert kl.isfinite()


def test_surrogate_limits_log_ratios_to_twenty_on_both_sides():
    for log_ratio, limited in ((25.0, 20.0), (-25.0, -20.0), (19.5, 19.5)):
        log_prob = torch.tensor([log_ratio], dtype=torch.float64)
        _, kl, _ = clipped_surrogate(log_prob, torch.zeros(1, dtype=torch.float64), torch.ones(1).double(), 0.1)
        assert kl.item() == pytest.approx(math.exp(limited) - 1 - limited, rel=1e-12)


def test_a_ratio_at_its_limit_is_not_clipped():
    _, _, fraction = clipped_surrogate(torch.zeros(3), torch.zeros(3), torch.ones(3), 0.0)
    assert fraction.item() == 0.0


def test_surrogate_refuses_to_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        clipped_surrogate(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), 0.1)


def test_normalized_advantages():
    x = np.random.default_rng(0).normal(3.0, 5.0, 200)
    y = normalized(torch.tensor(x)).numpy()
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(ddof=1), rtol=1e-6)
    assert normalized(torch.full((4,), 2.0)).abs().max() == 0
    tiny = torch.tensor([0.0, 2e-8], dtype=torch.float64)  # a deviation of sqrt 2 e-8, and 1e-8 on top
    assert normalized(tiny).tolist() == pytest.approx([-1 / (math.sqrt(2) + 1), 1 / (math.sqrt(2) + 1)])


# -- values -----------------------------------------------------------------------------------------------------------
def test_value_loss_is_half_the_squared_error():
    assert value_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])).item() == pytest.approx((1 + 9) / 4)
    with pytest.raises(ValueError, match="shapes differ"):
        value_loss(torch.zeros(4, 1), torch.zeros(4))


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(returns + 7, returns).item() == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), returns).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)
    assert explained_variance(0.5 * returns / 10, returns / 10).item() == pytest.approx(0.75)  # in any units
    assert explained_variance(torch.zeros(3), torch.ones(3)).isfinite()


# -- advantages -------------------------------------------------------------------------------------------------------
def test_gae_hand_example():
    rewards, values = np.array([[1.0], [0.0], [2.0]]), np.array([[0.5], [0.4], [0.3]])
    following, never = np.array([[0.4], [0.3], [0.2]]), np.zeros((3, 1), bool)
    advantages = gae(rewards, values, following, never, never, discount=0.9, gae_lambda=0.8)
    np.testing.assert_allclose(advantages[:, 0], [1.740992, 1.2236, 1.88], rtol=1e-12)
    deltas = gae(rewards, values, following, never, never, discount=0.9, gae_lambda=0.0)
    np.testing.assert_allclose(deltas[:, 0], [0.86, -0.13, 1.88], rtol=1e-12)


def episode_ends() -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["on", "on", "terminated", "truncated"]), min_size=1, max_size=12)


def sampled_inputs(ends: list[str], seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    rewards, values, final = rng.normal(size=(3, len(ends), 1))
    terminated = np.array([[e == "terminated"] for e in ends])
    truncated = np.array([[e == "truncated"] for e in ends])
    following = np.concatenate([values[1:], final[-1:]])
    next_values = np.where(terminated | truncated, final, following)
    return rewards, values, next_values, terminated, truncated


@given(ends=episode_ends(), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=150)
def test_gae_equals_the_sum_over_each_episode(ends, seed):
    rewards, values, next_values, terminated, truncated = sampled_inputs(ends, seed)
    discount, lam = 0.93, 0.8
    expected = []
    for t in range(len(ends)):
        total, weight = 0.0, 1.0
        for k in range(t, len(ends)):
            bootstrap = 0.0 if ends[k] == "terminated" else discount * next_values[k, 0]
            total += weight * (rewards[k, 0] + bootstrap - values[k, 0])
            weight *= discount * lam
            if ends[k] != "on":
                break
        expected.append(total)
    actual = gae(rewards, values, next_values, terminated, truncated, discount=discount, gae_lambda=lam)
    np.testing.assert_allclose(actual[:, 0], expected, rtol=1e-9, atol=1e-12)


def test_gae_never_mixes_environments_and_computes_in_float64():
    parts = [sampled_inputs(["on", "truncated", "on", "terminated", "on"], seed) for seed in (1, 2)]
    joined = [np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)]
    both = gae(*joined, discount=0.9, gae_lambda=0.7)
    for b, part in enumerate(parts):
        np.testing.assert_array_equal(both[:, b], gae(*part, discount=0.9, gae_lambda=0.7)[:, 0])
    narrow = [a.astype(np.float32) if a.dtype != bool else a for a in joined]
    assert gae(*narrow, discount=0.9, gae_lambda=0.7).dtype == np.float64


def test_gae_names_the_shapes_it_refuses():
    good, flag = np.zeros((3, 2)), np.zeros((3, 2), bool)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        gae(good, np.zeros((3, 1)), good, flag, flag, discount=0.9, gae_lambda=0.9)


# -- running moments --------------------------------------------------------------------------------------------------
def test_running_moments_equal_numpy_on_the_concatenated_stream():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5.0, 3.0, shape) for shape in ((7,), (4, 5), (0,), (1,), (300,))]
    moments = RunningMoments()
    for part in parts:
        moments.update(part)
    x = np.concatenate([p.ravel() for p in parts])
    # The prior count of 1e-4 acts as that much of an observation at 0.
    mean = x.sum() / (len(x) + 1e-4)
    m2 = ((x - mean) ** 2).sum() + 1e-4 * mean**2
    assert moments.count == pytest.approx(len(x) + 1e-4, rel=1e-14)
    assert moments.mean == pytest.approx(mean, rel=1e-12)
    assert moments.std == pytest.approx(math.sqrt(m2 / (len(x) + 1e-4 - 1)), rel=1e-12)
    assert moments.std == pytest.approx(x.std(ddof=1), rel=1e-4)
    assert abs(moments.std - x.std(ddof=0)) > abs(moments.std - x.std(ddof=1))


def test_running_moments_don_t_lose_digits_far_from_zero():
    x = 1e8 + np.random.default_rng(0).normal(size=500)
    whole, parts = RunningMoments(), RunningMoments()
    whole.count = parts.count = 0.0
    whole.update(x)
    for part in np.split(x, 50):
        parts.update(part)
    assert parts.std == pytest.approx(x.std(ddof=1), rel=1e-6)
    assert parts.std == pytest.approx(whole.std, rel=1e-6)


def test_running_moments_before_and_without_spread():
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(np.zeros(10))
    assert moments.std == 1.0


def test_running_moments_of_what_is_finite():
    moments = RunningMoments()
    moments.update(np.array([1.0, np.nan, 3.0, np.inf, -np.inf, 5.0]))
    assert moments.count == pytest.approx(3.0 + 1e-4, rel=1e-12)
    moments.update(np.array([np.nan]))
    assert moments.mean == pytest.approx(9.0 / (3.0 + 1e-4))


def test_running_moments_of_one_value_spread_from_the_prior_at_zero():
    moments = RunningMoments()
    moments.update(np.array([3.0], np.float32))
    assert moments.std == pytest.approx(3.0 / math.sqrt(1.0 + 1e-4))
    small = RunningMoments()
    small.update(np.array([0.1, 0.3, 0.2]))
    assert small.std == pytest.approx(0.1, rel=1e-3)


def test_running_moments_state_round_trip():
    a, b = RunningMoments(), RunningMoments()
    a.update(np.arange(9.0))
    b.load_state_dict(a.state_dict())
    a.update(np.ones(3))
    b.update(np.ones(3))
    assert a.state_dict() == b.state_dict()


# -- reward scaling ---------------------------------------------------------------------------------------------------
def scaled_by_hand(rewards: np.ndarray, over: np.ndarray, start: np.ndarray, discount: float) -> tuple:
    history, running = [], start.copy()
    for reward, ended in zip(rewards, over, strict=True):
        running = running * discount + reward
        history.extend(running)
        running = np.where(ended, 0.0, running)
    return np.array(history), running


def test_reward_scaler_divides_by_the_deviation_of_the_discounted_return():
    rng = np.random.default_rng(0)
    scaler = RewardScaler(3, discount=0.9)
    seen, running = np.zeros(0), np.zeros(3)
    for fresh in (True, False, True):
        rewards, over = rng.normal(size=(40, 3)), rng.random((40, 3)) < 0.2
        history, running = scaled_by_hand(rewards, over, np.zeros(3) if fresh else running, 0.9)
        seen = np.concatenate([seen, history])
        actual = scaler(rewards, over, fresh)
        np.testing.assert_allclose(actual, np.clip(rewards / seen.std(ddof=1), -10, 10), rtol=1e-3)


def test_reward_scaler_clips_and_keeps_the_sign():
    scaler = RewardScaler(1)
    rewards = np.full((500, 1), 1e-3)
    rewards[100], rewards[300] = 50.0, -50.0
    scaled = scaler(rewards, np.ones((500, 1), bool), True)
    assert scaled[100, 0] == 10.0
    assert scaled[300, 0] == -10.0
    assert scaled[0, 0] > 0


def test_a_reward_that_is_not_finite_counts_as_none_in_the_return():
    rewards = np.array([[1.0, 2.0, np.nan], [np.inf, -np.inf, 4.0], [3.0, 5.0, 6.0]])
    never, scaler = np.zeros((3, 3), bool), RewardScaler(3, discount=0.5)
    scaler(rewards, never, True)
    assert scaler.returns.tolist() == [0.25 + 3.0, 0.5 + 5.0, 2.0 + 6.0]
    history, _ = scaled_by_hand(np.where(np.isfinite(rewards), rewards, 0.0), never, np.zeros(3), 0.5)
    assert scaler.moments.std == pytest.approx(history.std(ddof=1), rel=1e-3)


def test_a_reward_scaler_starts_anew_with_other_environments():
    scaler = RewardScaler(2, discount=0.5)
    scaler(np.ones((1, 2)), np.zeros((1, 2), bool), True)
    scaler(np.ones((1, 3)), np.zeros((1, 3), bool), False)
    assert scaler.returns.tolist() == [1.0, 1.0, 1.0]


def test_reward_scaler_continues_the_return_across_rollouts_unless_reset():
    rewards, never = np.ones((5, 1)), np.zeros((5, 1), bool)
    on, fresh = RewardScaler(1), RewardScaler(1)
    for scaler, second in ((on, False), (fresh, True)):
        scaler(rewards, never, True)
        scaler(rewards, never, second)
    assert on.returns[0] == pytest.approx((1 - 0.99**10) / 0.01)
    assert fresh.returns[0] == pytest.approx((1 - 0.99**5) / 0.01)


def test_reward_scaler_state_round_trip():
    rng = np.random.default_rng(0)
    a, b = RewardScaler(2), RewardScaler(2)
    a(rng.normal(size=(9, 2)), rng.random((9, 2)) < 0.3, True)
    b.load_state_dict(a.state_dict())
    rewards, over = rng.normal(size=(9, 2)), rng.random((9, 2)) < 0.3
    np.testing.assert_array_equal(a(rewards, over, False), b(rewards, over, False))
