"""IN-RIL's theory, measured: averages of rho with their error, the gain by imitation, double descent."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from inril_ray.interleaving_theory import (
    InterleavingTheory,
    IterationContext,
    RelationEstimate,
    SmoothedRelation,
    double_descent,
    estimate_relation,
    imitation_gain,
    noise_scale,
    rho_of,
    rho_se_of,
)
from inril_ray.metrics import METRICS
from inril_ray.schedules.adaptive import AdaptiveConfig


def estimate(inner=-0.5, norm_sq_rl=4.0, norm_sq_il=1.0, variance_rl=0.0, variance_il=0.0, covariance=None):
    return RelationEstimate(
        inner=inner,
        norm_sq_rl=norm_sq_rl,
        norm_sq_il=norm_sq_il,
        variance_rl=variance_rl,
        variance_il=variance_il,
        covariance=covariance,
    )


def context(done=1, *, reinforced=True, imitated=True, steps=1, rl_lr=0.01, il_lr=0.01):
    return IterationContext(
        iterations_done=done,
        reinforced=reinforced,
        imitated=imitated,
        rl_steps=steps,
        il_steps=steps,
        rl_lr=rl_lr,
        il_lr=il_lr,
        rl_batch_size=500,
        il_batch_size=256,
    )


def gaussian_gradients(rho: float, relative_noise: float, *, seed: int, pairs: int = 4, dims: int = 50):
    """Yield Gram matrices of gradients with |g_RL| = 2, |g_IL| = 1 and noise of ``relative_noise`` times the norm."""
    rng = np.random.default_rng(seed)
    rl, il = np.zeros(dims), np.zeros(dims)
    rl[0], il[0], il[1] = 2.0, -rho, math.sqrt(1 - rho**2)
    while True:
        noise = relative_noise / math.sqrt(dims) * rng.standard_normal((2, pairs, dims))
        rows = np.concatenate([rl + 2 * noise[0], il + noise[1]])
        yield rows @ rows.T


# -- averages -------------------------------------------------------------------------------------------------------
def test_averages_are_bias_corrected():
    smoothed = SmoothedRelation(ema=0.9)
    assert smoothed.empty
    assert smoothed.rho is None
    assert smoothed.rho_se is None
    smoothed.add(estimate(inner=-1.0, norm_sq_rl=4.0, norm_sq_il=1.0, variance_il=3.0))
    assert (smoothed.inner, smoothed.norm_sq_rl, smoothed.variance_il) == pytest.approx((-1.0, 4.0, 3.0))
    assert smoothed.rho == pytest.approx(0.5)
    smoothed.add(estimate(inner=1.0, norm_sq_rl=8.0, norm_sq_il=1.0))
    # weights 0.09 and 0.1 of 0.19
    assert smoothed.inner == pytest.approx(0.01 / 0.19)
    assert smoothed.norm_sq_rl == pytest.approx(1.16 / 0.19)
    assert smoothed.rho == pytest.approx(-0.01 / math.sqrt(1.16 * 0.19))


def test_defaults_are_those_of_the_configuration():
    assert SmoothedRelation().ema == InterleavingTheory().relation.ema == AdaptiveConfig().ema == 0.9
    assert InterleavingTheory().c_il == AdaptiveConfig().c_il == 0.1


@pytest.mark.parametrize("pairs", [2, 3, 5])
def test_an_estimate_by_hand(pairs):
    """Of gradients in the plane: means of products of different minibatches, and what leaving one pair out changes."""
    rng = np.random.default_rng(pairs)
    rl, il = 0.3 * rng.normal(size=(2, pairs, 2)) + np.array([[[1.0, 0.0]], [[-0.5, 0.5]]])

    def moments(g: np.ndarray, h: np.ndarray) -> np.ndarray:
        different = [(i, j) for i in range(len(g)) for j in range(len(g)) if i != j]
        return np.array([g.mean(0) @ h.mean(0), *(np.mean([x[i] @ x[j] for i, j in different]) for x in (g, h))])

    rows = np.concatenate([rl, il])
    found, expected = estimate_relation(rows @ rows.T), moments(rl, il)
    assert (found.inner, found.norm_sq_rl, found.norm_sq_il) == pytest.approx(expected)
    # The unbiased variance of minibatches, summed over dimensions.
    assert found.variance_rl == pytest.approx(rl.var(axis=0, ddof=1).sum())
    assert found.variance_il == pytest.approx(il.var(axis=0, ddof=1).sum())
    assert max(found.variance_rl, found.variance_il) < 1.0
    if pairs < 3:
        assert found.covariance is None
        return
    left_out = np.array([moments(np.delete(rl, i, axis=0), np.delete(il, i, axis=0)) for i in range(pairs)])
    np.testing.assert_allclose(found.covariance, (pairs - 1) * np.cov(left_out.T, ddof=0), rtol=1e-9)
    assert found.rho_se == rho_se_of(found.inner, found.norm_sq_rl, found.norm_sq_il, found.covariance) < 1.0


def test_rho_stays_within_one_and_needs_both_norms():
    assert (rho_of(-3.0, 1.0, 1.0), rho_of(3.0, 1.0, 1.0)) == (1.0, -1.0)
    covariance = 1e-4 * np.eye(3)
    assert rho_se_of(0.1, 0.25, 0.25, covariance) == pytest.approx(
        math.sqrt(1e-4 * (16.0 + 2 * (0.1 / 0.25 / 0.5) ** 2))
    )
    assert rho_se_of(0.1, 0.25, 0.0, covariance) is None
    assert rho_se_of(0.1, -0.25, 0.25, covariance) is None
    assert rho_of(0.1, 0.25, 0.0) is None


def test_a_relation_without_an_error_survives_json():
    first, second = SmoothedRelation(), SmoothedRelation()
    first.add(estimate(covariance=None))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.rho_se is None
    assert second.state_dict() == first.state_dict()


def test_what_can_t_be_measured_is_no_gain():
    theory = InterleavingTheory()
    theory.observe(estimate(inner=math.nan, norm_sq_rl=math.inf), context(rl_lr=0.5), 1.0)
    assert (theory.rl_gain, theory.delta) == (0.0, 0.0)
    assert theory.il_share == 0.5
    alone = InterleavingTheory()
    assert alone.il_share == 0.0
    alone.observe(estimate(), context(reinforced=False), 1.0)
    assert alone.il_share == 1.0


def test_a_noise_scale_needs_a_gradient_of_whatever_size():
    for small, hidden in ((0.25, -1.0), (-1.0, 0.25)):
        theory = InterleavingTheory()
        pair = estimate(norm_sq_rl=small, norm_sq_il=hidden, variance_rl=0.5, variance_il=0.5)
        theory.observe(pair, context(), 1.0)  # 500 and 256 samples
        found = {name: value for name, value in theory.metrics().items() if name.startswith("noise_scale")}
        sizes = {"noise_scale_rl": 500 * 0.5 / 0.25} if small > 0 else {"noise_scale_il": 256 * 0.5 / 0.25}
        assert found == pytest.approx(sizes)


def test_norms_are_floored_after_averaging_not_before():
    smoothed = SmoothedRelation(ema=0.5)
    smoothed.add(estimate(norm_sq_il=-1.0))
    assert smoothed.norm_sq_il == 0.0
    assert smoothed.rho is None
    smoothed.add(estimate(norm_sq_il=2.0))
    assert smoothed.norm_sq_il == pytest.approx((-0.25 + 1.0) / 0.75)


def test_what_is_missing_or_not_finite_changes_nothing():
    smoothed = SmoothedRelation()
    smoothed.add(estimate())
    before = smoothed.state_dict()
    smoothed.add(None)
    smoothed.add(estimate(inner=math.nan))
    smoothed.add(estimate(variance_il=math.inf))
    assert smoothed.state_dict() == before


def test_the_error_of_an_average_shrinks_as_its_weights_say():
    covariance = np.diag([0.04, 0.0, 0.0])
    smoothed = SmoothedRelation(ema=0.9)
    for count in range(1, 200):
        smoothed.add(estimate(covariance=covariance))
        weights = 0.9 ** np.arange(count)
        expected = 0.2 / 2.0 * math.sqrt((weights**2).sum()) / weights.sum()  # |g_RL| |g_IL| = 2
        assert smoothed.rho_se == pytest.approx(expected)
    assert expected == pytest.approx(0.1 * math.sqrt(0.1 / 1.9), rel=1e-6)
    smoothed.add(estimate(covariance=None))
    assert smoothed.rho_se is None


def test_standard_error_is_the_slope_of_rho_times_the_covariance():
    point, root = np.array([-1.2, 4.0, 1.5]), np.array([[0.02, 0.0, 0.0], [0.01, 0.03, 0.0], [-0.02, 0.0, 0.04]])
    step = 1e-6 * np.eye(3)
    slope = np.array([(rho_of(*(point + h)) - rho_of(*(point - h))) / 2e-6 for h in step])
    expected = np.linalg.norm(root.T @ slope)
    assert rho_se_of(*point, root @ root.T) == pytest.approx(expected, rel=1e-6)
    assert rho_se_of(*point, 1e6 * root @ root.T) == 1.0
    assert rho_se_of(-1.2, 0.0, 1.5, root @ root.T) is None


@pytest.mark.parametrize(("rho", "relative_noise"), [(-0.3, 0.5), (0.5, 1.5), (0.9, 1.5), (0.5, 4.0)])
def test_average_and_two_standard_errors_cover_the_true_rho(rho, relative_noise):
    errors, widths = [], []
    draws = gaussian_gradients(rho, relative_noise, seed=7)
    for _ in range(200):
        smoothed = SmoothedRelation(ema=0.9)
        for _ in range(25):
            smoothed.add(estimate_relation(next(draws)))
        if smoothed.rho is not None:
            errors.append(smoothed.rho - rho)
            widths.append(smoothed.rho_se)
    errors, widths = np.array(errors), np.array(widths)
    assert len(errors) >= 190
    assert (np.abs(errors) <= 2 * widths).mean() >= 0.95
    # Not by being absurdly wide: the jackknife is conservative where noise dominates, by less than a factor 2.5.
    assert np.median(widths) < 2.5 * errors.std()


def test_norms_that_are_not_corrected_miss_the_true_rho():
    draws, corrected, naive = gaussian_gradients(0.9, 1.5, seed=8), [], []
    for _ in range(300):
        gram = next(draws)
        e = estimate_relation(gram)
        corrected.append(e.rho if e.rho is not None else 0.0)
        means = gram[:4, :4].mean(), gram[4:, 4:].mean()
        naive.append(-e.inner / math.sqrt(means[0] * means[1]))
    assert np.mean(corrected) == pytest.approx(0.9, abs=0.05)
    assert np.mean(naive) < 0.65  # 0.9 / (1 + 1.5^2 / 4) = 0.58


def test_smoothed_state_survives_json():
    draws = gaussian_gradients(0.5, 1.0, seed=9)
    grams = [next(draws) for _ in range(6)]
    whole, first, second = SmoothedRelation(), SmoothedRelation(), SmoothedRelation()
    for i, gram in enumerate(grams):
        whole.add(estimate_relation(gram))
        (first if i < 3 else second).add(estimate_relation(gram))
        if i == 2:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == whole.state_dict()
    assert second.rho_se == whole.rho_se


def test_noise_scale_of_known_gaussian_gradients():
    # Samples with noise of trace 900 around |g|^2 = 4: 225 samples make it as large as the gradient.
    assert noise_scale(900.0 / 50, 4.0, 50) == pytest.approx(225.0)
    theory, draws = InterleavingTheory(0.99), gaussian_gradients(0.2, 3.0, seed=10)
    for done in range(400):
        theory.observe(estimate_relation(next(draws)), context(done), 1.0)
    metrics = theory.metrics()
    assert metrics["noise_scale_rl"] == pytest.approx(9 * 500, rel=0.15)
    assert metrics["noise_scale_il"] == pytest.approx(9 * 256, rel=0.15)


# -- Delta and beta on quadratics -----------------------------------------------------------------------------------
def test_delta_of_imitation_alone_is_the_closed_form_and_nearly_the_loss_that_was_taken_off():
    # L_RL = |x - a|^2 / 2 and L_IL = |x - b|^2 / 2: x_k - b = q^k (x_0 - b) with q = 1 - lr.
    lr, steps, noise = 0.02, 60, 0.3
    a, b, x = np.array([1.0, 0.0, 0.5]), np.array([0.0, 1.0, 0.5]), np.array([-2.0, 1.5, 1.0])
    d, e, q, start = x - b, b - a, 1 - lr, x
    theory = InterleavingTheory(c_il=lr)  # L_I = 1
    squares = 0.0
    for k in range(steps):
        rl, il = x - a, x - b
        squares += il @ il
        pair = estimate(rl @ il, rl @ rl, il @ il, variance_il=noise**2)
        theory.observe(pair, context(k + 1, reinforced=False, il_lr=lr), 1.0)
        x = x - lr * il
    closed = lr * (1 - q ** (2 * steps)) / (1 - q**2) * (d @ d) + (1 - q**steps) * (d @ e)
    closed -= steps * 0.5 * lr**2 * noise**2
    assert theory.delta == pytest.approx(closed, rel=1e-12)
    removed = ((start - a) @ (start - a) - (x - a) @ (x - a)) / 2
    # Exactly, for these losses: what is missing is the second order of the noiseless step, and noise was only counted.
    assert removed == pytest.approx(closed + steps * 0.5 * lr**2 * noise**2 - 0.5 * lr**2 * squares, rel=1e-12)
    assert removed == pytest.approx(theory.delta, rel=0.02)
    assert theory.beta() is None  # no reinforcement to compare with


def test_the_noise_term_is_what_noisy_steps_cost_in_expectation():
    rng, lr, std = np.random.default_rng(11), 0.1, 0.5
    x, a, b = np.array([2.0, 0.0]), np.array([0.0, 0.0]), np.array([1.0, 1.0])
    il, rl = x - b, x - a
    after = x - lr * (il + std * rng.standard_normal((400_000, 2)))
    removed = (x - a) @ (x - a) / 2 - ((after - a) ** 2).sum(axis=1).mean() / 2
    gain = imitation_gain(il @ rl, 2 * std**2, lr=lr, smoothness_il=1.0)
    assert removed == pytest.approx(gain - 0.5 * lr**2 * (il @ il), abs=5e-4)  # the noise term is 1.25e-3


def quadratic_run(m: int, b: np.ndarray, *, lr: float, iterations: int, scale: float = 1.0):
    """Descend |x|^2 / 2 with an imitation step on scale |x - b|^2 / 2 after every m; return theory and loss taken off.

    The loss is given as the total and imitation's part.
    """
    x, theory, total, by_il = np.array([1.0, 1.0]), InterleavingTheory(c_il=lr), 0.0, 0.0
    for done in range(1, iterations + 1):
        il = scale * (x - b)
        pair = estimate(x @ il, x @ x, il @ il)
        theory.observe(pair, context(done, imitated=done % m == 0, rl_lr=lr, il_lr=lr), 1.0)
        after_rl = x - lr * x
        after = after_rl - lr * scale * (after_rl - b) if done % m == 0 else after_rl
        by_il += (after_rl @ after_rl - after @ after) / 2
        total += (x @ x - after @ after) / 2
        x = after
    return theory, total, by_il


@pytest.mark.parametrize("m", [1, 4, 10])
def test_imitation_as_good_as_reinforcement_breaks_even(m):
    theory, total, by_il = quadratic_run(m, np.zeros(2), lr=1e-4, iterations=400)
    assert theory.il_share == pytest.approx(1 / (1 + m))
    assert theory.beta() == pytest.approx(1 / (1 + m), rel=0.01)
    assert theory.delta == pytest.approx(by_il, rel=1e-3)
    assert theory.rl_gain + theory.delta == pytest.approx(total, rel=1e-3)


def test_beta_is_imitations_share_of_the_loss_taken_off():
    better, total, by_il = quadratic_run(5, np.zeros(2), lr=1e-4, iterations=500, scale=3.0)
    assert better.beta() == pytest.approx(by_il / total, rel=2e-3)
    assert better.beta() > better.il_share
    worse, total, by_il = quadratic_run(5, np.array([2.0, 2.0]), lr=1e-4, iterations=500)
    assert worse.beta() == pytest.approx(by_il / total, rel=5e-3)
    assert worse.beta() < 0
    assert worse.delta < 0


def test_beta_takes_the_gap_and_the_smoothness_from_who_knows_them():
    theory, _, _ = quadratic_run(5, np.zeros(2), lr=1e-4, iterations=500)
    assert theory.beta(gap=1.0) == pytest.approx(theory.delta)  # L_0 - L* = |(1, 1)|^2 / 2
    theory.smoothness_rl = 4.0
    assert theory.beta(gap=1.0) == pytest.approx(theory.delta / 4)
    assert theory.beta(gap=0.0) is None


def test_reinforcement_alone_is_measured_without_a_delta():
    theory = InterleavingTheory()
    theory.observe(estimate(), context(1, imitated=False), 1.0)
    theory.observe(None, context(2, imitated=False), math.nan)
    metrics = theory.metrics()
    assert metrics["rho_ema"] == pytest.approx(0.25)
    assert not {"delta_il_rl", "beta_il_rl", "il_share"} & set(metrics)


def test_theory_state_survives_json_and_its_metrics_are_in_the_table():
    draws = gaussian_gradients(0.5, 1.0, seed=12)
    grams, probe = [next(draws) for _ in range(30)], np.linspace(1, 0.5, 30) + 0.3 * np.sin(np.arange(30) / 5)
    whole, halves = InterleavingTheory(), (InterleavingTheory(), InterleavingTheory())
    for i, gram in enumerate(grams):
        if i == 15:
            halves[1].load_state_dict(json.loads(json.dumps(halves[0].state_dict())))
        for theory in (whole, halves[i >= 15]):
            theory.observe(estimate_relation(gram), context(i + 1, imitated=i % 4 == 3), probe[i])
    assert halves[1].state_dict() == whole.state_dict()
    assert halves[1].metrics() == whole.metrics()
    resumed = InterleavingTheory()
    resumed.load_state_dict(whole.state_dict())
    assert resumed.metrics() == whole.metrics(), "before anything else is observed"
    assert set(whole.metrics()) == {
        *("rho_ema", "rho_ema_se", "noise_scale_rl", "noise_scale_il", "delta_il_rl", "beta_il_rl", "il_share"),
        "double_descent",
    }
    assert set(whole.metrics()) <= set(METRICS)


# -- double descent -------------------------------------------------------------------------------------------------
T = np.arange(60)
HUMP = np.sin(np.pi * np.clip(T / 30, 0, 1)) - np.clip((T - 30) / 30, 0, 1)
"""Rises to 1 above its start, returns after 30 iterations and falls to 1 below it."""


@pytest.mark.parametrize(
    ("curve", "flagged"),
    [
        (2 + 0.3 * HUMP, True),
        (2 + 0.03 * HUMP, False),  # rises by 1.5 % only
        (2 + 0.05 * HUMP, True),
        (-2 + 0.3 * HUMP, True),  # a negative log-likelihood may be negative
        (np.exp(-T / 20), False),
        (2 + T / 60, False),
        (2 + 0.3 * HUMP[:28], False),  # has not fallen below its start yet
        (2 - 0.3 * HUMP, False),  # falls first
        (np.full(60, 2.0), False),
        (2 + 0.3 * HUMP[:4], False),
        ([], False),
    ],
)
def test_double_descent(curve, flagged):
    assert double_descent(list(curve)) is flagged


def smoothed_by_hand(losses: np.ndarray) -> list[float]:
    """Cubics over eleven iterations, or the greatest odd number of fewer; the ends are those of the outer windows."""
    window = min(11, len(losses) - 1 + len(losses) % 2)
    result = []
    for i in range(len(losses)):
        first = min(max(i - window // 2, 0), len(losses) - window)
        x = np.arange(first, first + window) - i
        result.append(float(np.polyval(np.polyfit(x, losses[first : first + window], 3), 0)))
    return result


@pytest.mark.parametrize("length", [5, 6, 7, 10, 11, 12, 25])
def test_double_descent_by_hand(length):
    """Thresholds halfway between the smoothed values, so that one more value counts as a rise at each."""
    rng, flagged = np.random.default_rng(length), []
    for _ in range(30):
        losses = rng.choice([-1.0, 1.0]) * 2.0 + rng.normal(size=length)
        smooth = smoothed_by_hand(losses)
        heights = sorted(x for x in smooth if x > smooth[0])
        for low, high in zip([smooth[0], *heights], [*heights, heights[-1] + 1.0] if heights else [], strict=False):
            limit, first = (low + high) / 2, None
            for i, value in enumerate(smooth):
                if value > limit:
                    first = i
                    break
            expected = first is not None and any(value < smooth[0] for value in smooth[first:])
            assert double_descent(list(losses), (limit - smooth[0]) / abs(smooth[0])) is expected
            flagged.append(expected)
    assert {True, False} == set(flagged)


def test_the_gain_of_an_imitation_step_by_hand():
    assert imitation_gain(2.0, 3.0, lr=0.1, smoothness_il=4.0) == pytest.approx(0.1 * 2.0 - 0.5 * 0.01 * 4.0 * 3.0)


def test_double_descent_looks_through_noise():
    noise = np.random.default_rng(13).normal(size=60)
    assert double_descent(list(2 + 0.3 * HUMP + 0.04 * noise))
    spikes = np.full(60, 2.0)
    spikes[1::10], spikes[5::10] = 2.05, 1.95  # alone they would count: 2.5 % above, then below
    assert not double_descent(list(spikes))


def test_reinforcement_counts_in_iterations_that_were_not_measured() -> None:
    theory = InterleavingTheory(0.9, c_il=0.1)
    estimate = RelationEstimate(
        inner=-0.1, norm_sq_rl=4.0, norm_sq_il=1.0, variance_rl=0.0, variance_il=0.0, covariance=None
    )
    context = IterationContext(
        iterations_done=1, reinforced=True, imitated=False, rl_steps=10, il_steps=5, rl_lr=0.01, il_lr=0.01,
        rl_batch_size=8, il_batch_size=8,
    )  # fmt: skip
    theory.observe(None, context, 1.0)
    assert theory.rl_gain == 0.0  # nothing is known yet
    theory.observe(estimate, context, 1.0)
    theory.observe(None, context, 1.0)
    assert theory.rl_gain == pytest.approx(2 * 10 * 0.01 * 4.0)
