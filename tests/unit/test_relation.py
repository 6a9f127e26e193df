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


def test_estimate_of_two_hand_made_pairs():
    estimate = filled([([3.0, 0.0], [1.0, 3.0]), ([1.0, 0.0], [1.0, 1.0])]).estimate()
    # means (2, 0) and (1, 2); products of different minibatches 3 and 4; mean squares 5 and 6.
    assert (estimate.inner, estimate.norm_sq_rl, estimate.norm_sq_il) == pytest.approx((2.0, 3.0, 4.0))
    assert (estimate.variance_rl, estimate.variance_il) == pytest.approx((2.0, 2.0))
    assert estimate.rho == pytest.approx(-2.0 / math.sqrt(12.0))
    assert estimate.covariance is None
    assert estimate.rho_se is None


def test_a_norm_that_noise_hides_stays_negative_in_the_estimate_and_gives_no_rho():
    estimate = filled([([3.0, 0.0], [1.0, 1.0]), ([1.0, 0.0], [-2.0, 1.0])]).estimate()
    assert estimate.norm_sq_il == pytest.approx(-1.0)
    assert estimate.rho is None
    assert estimate.rho_se is None


def test_no_estimate_of_one_pair_or_of_losses_that_share_no_parameters():
    assert filled([([1.0, 0.0], [-1.0, 0.2])]).estimate() is None
    apart = GradientRelation()
    for _ in range(3):
        apart.add([], [])
    assert apart.estimate() is None
    assert apart.metrics()["grad_inner"] == 0.0
    assert "rho" not in apart.metrics()


def test_estimate_adds_over_parameter_tensors_and_follows_new_pairs():
    generator = torch.Generator().manual_seed(2)
    draws = torch.randn(4, 2, 6, generator=generator)
    whole, split = GradientRelation(), GradientRelation()
    early = None
    for i, (rl, il) in enumerate(draws):
        whole.add([rl], [il])
        split.add([rl[:2].reshape(2, 1), rl[2:]], [il[:2].reshape(2, 1), il[2:]])
        if i == 2:
            early = split.estimate()
    a, b = whole.estimate(), split.estimate()
    assert (a.inner, a.norm_sq_rl, a.variance_il) == pytest.approx((b.inner, b.norm_sq_rl, b.variance_il))
    assert a.covariance == pytest.approx(b.covariance)
    assert early.inner != pytest.approx(b.inner)


def test_gaussian_gradients_of_known_norms_and_noise_are_recovered():
    generator = torch.Generator().manual_seed(3)
    rl, il = torch.zeros(25), torch.zeros(25)
    rl[0], il[0], il[1] = 2.0, -0.6, 0.8  # norms 2 and 1, inner -1.2, rho 0.6
    rows = []
    for _ in range(400):
        relation = GradientRelation()
        for a, b in torch.randn(4, 2, 25, generator=generator):
            relation.add([rl + 0.4 * a], [il + 0.2 * b])  # traces 25 * 0.16 = 4 and 25 * 0.04 = 1
        e = relation.estimate()
        rows.append([e.inner, e.norm_sq_rl, e.norm_sq_il, e.variance_rl, e.variance_il])
    values = torch.tensor(rows)
    errors = values.std(dim=0) / math.sqrt(len(rows))
    z = (values.mean(dim=0) - torch.tensor([-1.2, 4.0, 1.0, 4.0, 1.0])) / errors
    assert z.abs().max() < 4, z
    assert errors.max() < 0.06


def test_metrics_give_the_standard_error_from_three_pairs_on():
    generator = torch.Generator().manual_seed(4)
    pairs = [(torch.randn(5, generator=generator) + 2, torch.randn(5, generator=generator) + 2) for _ in range(3)]
    relation = GradientRelation()
    for count, (rl, il) in enumerate(pairs, 1):
        relation.add([rl], [il])
        assert ("rho_se" in relation.metrics()) == (count == 3)
    assert 0 < relation.metrics()["rho_se"] <= 1
    assert relation.metrics()["rho_se"] == relation.estimate().rho_se
