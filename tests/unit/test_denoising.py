"""Noise schedule: published numbers, and the coefficients of both samplers against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inril_ray.policies.denoising import DenoisingSchedule, cosine_betas


def test_cosine_betas():
    betas = cosine_betas(20)
    np.testing.assert_allclose(betas[:3], [0.00799272, 0.0200750, 0.0322539], rtol=2e-6)
    np.testing.assert_allclose(betas[18:], [0.748476, 0.999], rtol=1e-6)
    assert torch.cumprod(1 - betas, 0)[-1].item() == pytest.approx(6.0596e-6, rel=1e-4)
    assert cosine_betas(100)[0].item() == pytest.approx(0.000631282, rel=1e-5)


def test_posterior_coefficients_of_twenty_steps():
    schedule = DenoisingSchedule(20)
    expected = [0, 0.0758, 0.1232, 0.1617, 0.1952, 0.2257, 0.2546, 0.2827, 0.3107, 0.3392, 0.3690]
    np.testing.assert_allclose(schedule.std[:11], expected, atol=5.1e-5)
    at = [0, 5, 10, 19]
    np.testing.assert_allclose(schedule.clean_coef[at], [1, 0.306464, 0.189019, 0.0777664], rtol=1e-5)
    np.testing.assert_allclose(schedule.chunk_coef[at], [0, 0.692011, 0.796193, 0.0314313], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("t", [1, 4, 12, 18])
def test_posterior_is_the_product_of_two_gaussians(t):
    betas = cosine_betas(20).numpy()
    alpha_bar = np.cumprod(1 - betas)
    clean, noisy = 0.6, -0.35
    grid = np.linspace(-6, 6, 40_001)
    log_density = -((noisy - np.sqrt(1 - betas[t]) * grid) ** 2) / (2 * betas[t])
    log_density -= (grid - np.sqrt(alpha_bar[t - 1]) * clean) ** 2 / (2 * (1 - alpha_bar[t - 1]))
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    mean = (weights * grid).sum()
    std = np.sqrt((weights * (grid - mean) ** 2).sum())
    schedule = DenoisingSchedule(20)
    noise = (noisy - np.sqrt(alpha_bar[t]) * clean) / np.sqrt(1 - alpha_bar[t])
    chunk, predicted = torch.full((1, 1, 1), noisy), torch.full((1, 1, 1), float(noise))
    actual = schedule.posterior_mean(chunk, predicted, torch.tensor([t]), clip=10.0)
    assert actual.item() == pytest.approx(mean, abs=1e-5)
    assert schedule.std[t].item() == pytest.approx(std, rel=1e-5)


def test_add_noise_and_clipping_of_the_predicted_action():
    schedule = DenoisingSchedule(20)
    alpha_bar = torch.cumprod(1 - cosine_betas(20), 0)
    clean, noise, t = torch.full((1, 1, 1), 0.7), torch.full((1, 1, 1), -1.3), torch.tensor([7])
    noisy = schedule.add_noise(clean, noise, t)
    assert noisy.item() == pytest.approx(float(0.7 * alpha_bar[7].sqrt() - 1.3 * (1 - alpha_bar[7]).sqrt()), rel=1e-5)
    # With the true noise the last step returns the clean chunk, clipped.
    t0 = torch.tensor([0])
    noisy = schedule.add_noise(clean, noise, t0)
    assert schedule.posterior_mean(noisy, noise, t0, clip=1.0).item() == pytest.approx(0.7, abs=1e-6)
    assert schedule.posterior_mean(noisy, noise, t0, clip=0.5).item() == pytest.approx(0.5, abs=1e-6)


def test_ddim_levels_and_deviations_of_five_of_a_hundred():
    schedule = DenoisingSchedule(100, 5)
    assert schedule.levels.tolist() == [0, 20, 40, 60, 80]
    alpha_bar = schedule.sqrt_alpha_bar[schedule.levels] ** 2
    np.testing.assert_allclose(alpha_bar, [0.999369, 0.889103, 0.632516, 0.326115, 0.0851462], rtol=2e-6)
    np.testing.assert_allclose(schedule.std, [0, 0.0250616, 0.295109, 0.513967, 0.737755], rtol=2e-6, atol=1.1e-10)
    assert not schedule.eval_std.any()


@pytest.mark.parametrize(("num_steps", "ddim_steps", "expected"), [(100, 4, [0, 25, 50, 75]), (7, 3, [0, 2, 4])])
def test_ddim_levels_are_multiples_from_zero(num_steps, ddim_steps, expected):
    assert DenoisingSchedule(num_steps, ddim_steps).levels.tolist() == expected


def test_ddim_in_all_steps_with_full_noise_is_ddpm():
    ddim, ddpm = DenoisingSchedule(20, 20), DenoisingSchedule(20)
    assert torch.equal(ddim.levels, ddpm.levels)
    for name in ("clean_coef", "chunk_coef", "std"):
        torch.testing.assert_close(getattr(ddim, name), getattr(ddpm, name), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["recomputed", "predicted"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("noise", [0.4, 30.0])  # the second makes clipping bite
def test_ddim_mean_is_the_written_formula(rule, deterministic, noise):
    schedule, eta = DenoisingSchedule(100, 5, rule), 1.0 - deterministic
    every_alpha_bar = np.cumprod(1 - cosine_betas(100).numpy())
    for j in range(5):
        alpha_bar = every_alpha_bar[20 * j]
        previous = every_alpha_bar[20 * (j - 1)] if j else 1.0
        x = 0.3
        clean = np.clip((x - np.sqrt(1 - alpha_bar) * noise) / np.sqrt(alpha_bar), -1, 1)
        left = noise if rule == "predicted" else (x - np.sqrt(alpha_bar) * clean) / np.sqrt(1 - alpha_bar)
        sigma = max(eta * np.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)), 1e-10)
        expected = np.sqrt(previous) * clean + np.sqrt(max(1 - previous - sigma**2, 0)) * left
        chunk, predicted = torch.full((1, 1, 1), x), torch.full((1, 1, 1), noise)
        mean = schedule.posterior_mean(chunk, predicted, torch.tensor([j]), 1.0, deterministic=deterministic)
        assert mean.item() == pytest.approx(expected, abs=1e-6 * max(1.0, noise))


@pytest.mark.parametrize(("rule", "expected"), [("predicted", 0.692), ("recomputed", 1.572)])
def test_the_rules_of_ddim_part_where_the_clean_action_is_clipped(rule, expected):
    """At level 75 of 100, from 1.5 without predicted noise, the clean action is clipped to 1."""
    schedule, one = DenoisingSchedule(100, 4, rule), torch.ones(1, 1, 1)
    mean = schedule.posterior_mean(1.5 * one, 0.0 * one, torch.tensor([3]), 1.0, deterministic=True)
    assert mean.item() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("rule", ["recomputed", "predicted"])
def test_ddim_without_noise_recovers_the_clean_chunk_from_the_true_noise(rule):
    schedule, generator = DenoisingSchedule(100, 5, rule), torch.Generator().manual_seed(0)
    clean = torch.rand(6, 4, 2, generator=generator) * 1.8 - 0.9
    noise = torch.randn(6, 4, 2, generator=generator)
    chunk = schedule.add_noise(clean, noise, torch.full((6,), 80))
    for rank in reversed(range(5)):
        j = torch.full((6,), rank)
        torch.testing.assert_close(chunk, schedule.add_noise(clean, noise, schedule.levels[j]), rtol=0, atol=5e-6)
        chunk = schedule.posterior_mean(chunk, noise, j, 1.0, deterministic=True)
    torch.testing.assert_close(chunk, clean, rtol=0, atol=5e-6)
