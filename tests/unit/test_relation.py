"""The measured relation of the two gradients."""

from __future__ import annotations

import math

import pytest
import torch

from inril_ray.gradient_separation.relation import GradientRelation


def filled(pairs) -> GradientRelation:
    relation = GradientRelation()
    for rl, il in pairs:
        relation.add([torch.tensor(rl)], [torch.tensor(il)])
    return relation


def noisy_rhos(true_rl, true_il, noise: float, pairs: int, repetitions: int, seed: int = 0):
    """Draw the estimate and the mean cosine of minibatch pairs many times."""
    generator = torch.Generator().manual_seed(seed)
    estimates, naive = [], []
    for _ in range(repetitions):
        relation = GradientRelation()
        draws = noise * torch.randn(pairs, 2, len(true_rl), generator=generator)
        for a, b in draws:
            relation.add([true_rl + a], [true_il + b])
        metrics = relation.metrics()
        naive.append(-metrics["grad_cosine"])
        if "rho" in metrics:
            estimates.append(metrics["rho"])
    return torch.tensor(estimates), torch.tensor(naive)


def test_nothing_before_the_first_pair_and_no_rho_from_one():
    assert GradientRelation().metrics() == {}
    metrics = filled([([1.0, 0.0], [-1.0, 0.2])]).metrics()
    assert "rho" not in metrics
    assert metrics["conflict_rate"] == 1.0
    assert metrics["grad_inner"] == pytest.approx(-1.0)
    assert metrics["grad_cosine"] == pytest.approx(-1 / math.sqrt(1.04))
    assert metrics["grad_norm_rl"] == pytest.approx(1.0)
    assert metrics["grad_norm_il"] == pytest.approx(math.sqrt(1.04))


def test_rho_has_the_sign_of_opposition():
    opposed = filled([([1.0, 0.0], [-2.0, 0.0])] * 3).metrics()
    agreeing = filled([([1.0, 0.0], [2.0, 0.0])] * 3).metrics()
    across = filled([([1.0, 0.0], [0.0, 2.0])] * 3).metrics()
    assert opposed["rho"] == pytest.approx(1.0)
    assert agreeing["rho"] == pytest.approx(-1.0)
    assert across["rho"] == pytest.approx(0.0)
    assert (opposed["conflict_rate"], agreeing["conflict_rate"]) == (1.0, 0.0)


def test_metrics_of_two_hand_made_pairs():
    metrics = filled([([3.0, 0.0], [1.0, 1.0]), ([1.0, 0.0], [-1.0, 1.0])]).metrics()
    # means (2, 0) and (0, 1); |mean|^2 4 and 1; mean squares 5 and 2; variances 2 and 2.
    assert metrics["grad_inner"] == pytest.approx(0.0)
    assert metrics["grad_norm_rl"] == pytest.approx(math.sqrt(5.0))
    assert metrics["grad_norm_il"] == pytest.approx(math.sqrt(2.0))
    assert metrics["conflict_rate"] == 0.5
    assert "rho" not in metrics  # 1 - 2/2 = 0: noise hides the imitation gradient
    metrics = filled([([3.0, 0.0], [1.0, 3.0]), ([1.0, 0.0], [1.0, 1.0])]).metrics()
    # means (2, 0) and (1, 2); |mean|^2 4 and 5; variances 2 and 2; corrected 3 and 4; inner 2.
    assert metrics["rho"] == pytest.approx(-2.0 / math.sqrt(12.0))


def test_rho_is_unbiased_where_the_mean_cosine_of_pairs_is_not():
    generator = torch.Generator().manual_seed(5)
    rl = torch.randn(40, generator=generator)
    il = -0.8 * rl + 0.6 * torch.randn(40, generator=generator)
    truth = -float(rl @ il / (rl.norm() * il.norm()))
    assert truth > 0.6
    estimates, naive = noisy_rhos(rl, il, noise=1.0, pairs=16, repetitions=300)
    assert len(estimates) == 300
    standard_error = float(estimates.std()) / math.sqrt(300)
    assert abs(float(estimates.mean()) - truth) < 4 * standard_error + 0.005
    assert abs(float(naive.mean()) - truth) > 0.15


def test_rho_of_orthogonal_gradients_is_centred_on_zero():
    rl, il = torch.zeros(30), torch.zeros(30)
    rl[:15], il[15:] = 1.0, 1.0
    estimates, _ = noisy_rhos(rl, il, noise=1.0, pairs=8, repetitions=200, seed=1)
    assert abs(float(estimates.mean())) < 4 * float(estimates.std()) / math.sqrt(len(estimates))


def test_pairs_that_are_not_finite_are_not_counted():
    good = [([1.0, 0.0], [-1.0, 0.2])] * 2
    bad = [([math.nan, 0.0], [1.0, 0.0]), ([1.0, 0.0], [math.inf, 0.0])]
    assert filled([bad[0], good[0], bad[1], good[1]]).metrics() == filled(good).metrics()
    assert filled(bad).metrics() == {}


def test_gradients_of_the_caller_are_left_alone():
    rl, il = [torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)]
    relation = GradientRelation()
    relation.add(rl, il)
    relation.add(rl, il)
    assert all(torch.equal(g, torch.ones_like(g)) for g in [*rl, *il])
    assert relation.metrics()["rho"] == pytest.approx(-1.0)
