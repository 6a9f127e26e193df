"""Separation of two gradients: fixed vectors, properties, oracles, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qpsolvers import solve_qp
from torchjd.aggregation import PCGrad as JDPCGrad
from torchjd.aggregation import UPGrad as JDUPGrad
from torchjd.aggregation import UPGradWeighting

from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.gradient_separation.base import Gramian, combine, gramian_of
from inril_ray.gradient_separation.naive import Naive
from inril_ray.gradient_separation.pcgrad import PCGrad
from inril_ray.gradient_separation.upgrad import UPGrad
from inril_ray.registry import resolve

F64 = torch.float64
G1, G2 = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-1.0, 0.2], dtype=F64)
PROJECTING = pytest.mark.parametrize("method", [UPGrad(), PCGrad()], ids=["upgrad", "pcgrad"])
PROPERTY = settings(deadline=None, max_examples=150)


def aggregate(method, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return combine(g.clone(), h, method.weights(gramian_of([(g, h)])))


def run_backward(method, g: torch.Tensor, h: torch.Tensor, x: torch.Tensor | None = None):
    """Run the whole path on losses that are linear in the parameter, whose gradients are ``g`` and ``h``."""
    x = torch.nn.Parameter(torch.zeros_like(g)) if x is None else x
    report = method.backward((x * g).sum(), (x * h).sum(), [x])
    return x.grad, report


@st.composite
def gradient_pairs(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of up to six dimensions, of either sign of the inner product and of norms up to 1e3 apart."""
    dim = draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    g, h = rng.normal(size=(2, dim))
    h = h + draw(st.sampled_from([-3.0, -0.5, 0.0, 0.5])) * g
    h = h * 10.0 ** draw(st.floats(-3, 3))
    return torch.tensor(g), torch.tensor(h)


def scale_of(*tensors: torch.Tensor) -> float:
    return max(float(t.norm()) for t in tensors)


# -- fixed vectors ----------------------------------------------------------------------------------------------------
def test_upgrad_fixed_vectors():
    expected = torch.tensor([0.0192308, 0.1961538], dtype=F64)
    torch.testing.assert_close(aggregate(UPGrad(), G1, G2), expected, rtol=0, atol=5e-8)


def test_pcgrad_fixed_vectors():
    expected = torch.tensor([0.0384615, 0.3923077], dtype=F64)
    torch.testing.assert_close(aggregate(PCGrad(), G1, G2), expected, rtol=0, atol=5e-8)


def test_naive_is_the_imitation_gradient_stepped_by_the_optimiser_of_rl():
    grad, report = run_backward(Naive(), G1, G2)
    assert torch.equal(grad, G2)
    assert report.weights == (0.0, 1.0)
    assert (Naive.optimizer, UPGrad.optimizer, PCGrad.optimizer) == ("rl", "il", "il")


def test_the_table_names_every_method():
    assert {name: resolve(SEPARATIONS, name, "separation") for name in SEPARATIONS} == {
        "naive": Naive,
        "pcgrad": PCGrad,
        "upgrad": UPGrad,
    }


# -- properties -------------------------------------------------------------------------------------------------------
@PROJECTING
@given(pair=gradient_pairs())
@PROPERTY
def test_neither_objective_is_harmed(method, pair):
    g, h = pair
    d = aggregate(method, g, h)
    for objective in (g, h):
        assert d @ objective >= -1e-9 * d.norm() * objective.norm()


@given(pair=gradient_pairs())
@PROPERTY
def test_without_conflict_upgrad_is_the_mean_and_pcgrad_the_sum(pair):
    g, h = pair
    h = h if g @ h >= 0 else -h
    assert torch.equal(aggregate(PCGrad(), g, h), g + h)
    torch.testing.assert_close(aggregate(UPGrad(), g, h), (g + h) / 2, rtol=1e-15, atol=0)


@given(pair=gradient_pairs())
@PROPERTY
def test_upgrad_is_half_of_pcgrad(pair):
    torch.testing.assert_close(2 * aggregate(UPGrad(), *pair), aggregate(PCGrad(), *pair), rtol=1e-12, atol=0)


@PROJECTING
@given(pair=gradient_pairs(), exponent=st.integers(-12, 12))
@PROPERTY
def test_positive_homogeneity(method, pair, exponent):
    g, h = pair
    s = 10.0**exponent
    torch.testing.assert_close(
        aggregate(method, s * g, s * h) / s, aggregate(method, g, h), rtol=1e-9, atol=1e-12 * scale_of(g, h)
    )


def test_homogeneity_at_the_scales_where_normalised_gramians_fail():
    for scale in (1e-2, 7e-3, 1e-6, 1e-12):
        torch.testing.assert_close(aggregate(UPGrad(), scale * G1, scale * G2) / scale, aggregate(UPGrad(), G1, G2))


@PROJECTING
@given(pair=gradient_pairs(), scales=st.tuples(*[st.floats(0.01, 100.0)] * 4))
@PROPERTY
def test_linear_under_scaling(method, pair, scales):
    g, h = pair
    a, b, c, d = scales
    whole = aggregate(method, (a + c) * g, (b + d) * h)
    parts = aggregate(method, a * g, b * h) + aggregate(method, c * g, d * h)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-11 * scale_of((a + c) * g, (b + d) * h))


@PROJECTING
@given(pair=gradient_pairs())
@PROPERTY
def test_the_result_is_in_the_span_of_the_gradients(method, pair):
    g, h = pair
    d = aggregate(method, g, h)
    basis, _ = torch.linalg.qr(torch.stack([g / g.norm(), h / h.norm()], dim=1))
    assert (d - basis @ (basis.T @ d)).norm() <= 1e-10 * scale_of(g, h)


@PROJECTING
@given(pair=gradient_pairs())
@PROPERTY
def test_swapping_objectives_changes_nothing(method, pair):
    g, h = pair
    torch.testing.assert_close(
        aggregate(method, g, h), aggregate(method, h, g), rtol=1e-12, atol=1e-13 * scale_of(g, h)
    )
    gramian = gramian_of([(g, h)])
    swapped = Gramian(rl=gramian.il, il=gramian.rl, inner=gramian.inner)
    assert method.weights(gramian) == method.weights(swapped)[::-1]


@PROJECTING
@given(pair=gradient_pairs())
@PROPERTY
def test_permuting_the_dimensions_permutes_the_result(method, pair):
    g, h = pair
    order = torch.arange(len(g)).flip(0)
    torch.testing.assert_close(
        aggregate(method, g[order], h[order]), aggregate(method, g, h)[order], rtol=1e-9, atol=1e-12 * scale_of(g, h)
    )


# -- oracles ----------------------------------------------------------------------------------------------------------
def jd_upgrad() -> JDUPGrad:
    # The projector's class is found through an instance: TorchJD does not export it.
    projector = type(UPGradWeighting().projector)(norm_eps=0.0, reg_eps=1e-13)
    return JDUPGrad(projector=projector)


@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=100)
def test_upgrad_equals_torchjd(pair):
    g, h = pair
    assume(1e-2 < g.norm() / h.norm() < 1e2)
    expected = jd_upgrad()(torch.stack([g, h]))
    torch.testing.assert_close(aggregate(UPGrad(), g, h), expected, rtol=0, atol=1e-6 * scale_of(g, h))


@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=100)
def test_pcgrad_equals_torchjd(pair):
    g, h = pair
    expected = JDPCGrad()(torch.stack([g, h]))
    torch.testing.assert_close(aggregate(PCGrad(), g, h), expected, rtol=1e-10, atol=1e-12 * scale_of(g, h))


@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=100)
def test_upgrad_solves_its_quadratic_program(pair):
    """Each ½ g_i is projected on the dual cone: minimise v'Gv over v >= ½ e_i; the solutions are added."""
    g, h = pair
    h = h * (g.norm() / h.norm())  # the solver needs a conditioned program; scaling has tests of its own
    jacobian = torch.stack([g, h]).numpy()
    gram = jacobian @ jacobian.T
    gram = gram / np.trace(gram) + 1e-13 * np.eye(2)
    weights = sum(solve_qp(gram, np.zeros(2), -np.eye(2), -0.5 * e, solver="quadprog") for e in np.eye(2))
    actual = aggregate(UPGrad(), g, h).numpy()
    np.testing.assert_allclose(actual, weights @ jacobian, rtol=0, atol=1e-6 * scale_of(g, h))


def test_pcgrad_is_its_algorithm():
    rng = np.random.default_rng(0)
    for _ in range(50):
        g, h = rng.normal(size=(2, 4))
        total = np.zeros(4)
        for own, other in ((g, h), (h, g)):
            total += own - min(own @ other, 0.0) / (other @ other) * other
        np.testing.assert_allclose(aggregate(PCGrad(), torch.tensor(g), torch.tensor(h)).numpy(), total, rtol=1e-10)


# -- edge cases -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "share"), [(UPGrad(), 0.5), (PCGrad(), 1.0)], ids=["upgrad", "pcgrad"])
@pytest.mark.parametrize("tiny", [0.0, 1e-200])
def test_a_vanishing_gradient_leaves_the_other(method, share, tiny):
    zero = torch.tensor([-tiny, 0.0], dtype=F64)
    torch.testing.assert_close(run_backward(method, G1, zero)[0], share * G1)
    torch.testing.assert_close(run_backward(method, zero, G1)[0], share * G1)
    assert run_backward(method, 0 * G1, 0 * G1)[0].abs().max() == 0


@PROJECTING
@pytest.mark.parametrize("factor", [1.0, 3.0, 0.25])
def test_exactly_opposed_gradients_cancel(method, factor):
    grad, report = run_backward(method, G2, -factor * G2)
    assert grad.abs().max() <= 1e-15
    assert report.gramian.cosine == pytest.approx(-1.0)
    assert report.inner_after == pytest.approx((0.0, 0.0), abs=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", [UPGrad(), PCGrad(), Naive()], ids=["upgrad", "pcgrad", "naive"])
def test_a_gradient_that_is_not_finite_is_dropped_and_the_other_kept_whole(method, bad):
    broken = torch.tensor([bad, 1.0], dtype=F64)
    grad, report = run_backward(method, broken, G2)
    assert torch.equal(grad, G2)
    assert report.dropped == ("rl",)
    grad, report = run_backward(method, G1, broken)
    assert torch.equal(grad, G1)
    assert report.dropped == ("il",)
    grad, report = run_backward(method, broken, broken)
    assert grad.abs().max() == 0
    assert report.dropped == ("rl", "il")


# -- tensors and reports ----------------------------------------------------------------------------------------------
def test_several_tensors_are_treated_as_one_flat_gradient():
    rng = torch.Generator().manual_seed(0)
    g, h = torch.randn(2, 12, generator=rng, dtype=F64)
    h = h - 2 * g
    x, y = torch.nn.Parameter(torch.zeros(2, 3, dtype=F64)), torch.nn.Parameter(torch.zeros(6, dtype=F64))

    def loss(v: torch.Tensor) -> torch.Tensor:
        return (x.flatten() * v[:6]).sum() + (y * v[6:]).sum()

    report = UPGrad().backward(loss(g), loss(h), [x, y])
    torch.testing.assert_close(torch.cat([x.grad.flatten(), y.grad]), aggregate(UPGrad(), g, h))
    assert report.gramian.rl == pytest.approx(float(g @ g))
    assert report.gramian.il == pytest.approx(float(h @ h))
    assert report.gramian.inner == pytest.approx(float(g @ h))


def test_parameters_that_one_loss_reaches_keep_its_gradient_and_stay_out_of_the_gramian():
    shared, only_rl, only_il, unused = (torch.nn.Parameter(torch.zeros(2, dtype=F64)) for _ in range(4))
    rl = (shared * G1).sum() + (only_rl * 7.0).sum()
    il = (shared * G2).sum() + (only_il * -5.0).sum()
    report = UPGrad().backward(rl, il, [shared, only_rl, only_il, unused])
    torch.testing.assert_close(shared.grad, aggregate(UPGrad(), G1, G2))
    assert only_rl.grad.tolist() == [7.0, 7.0]
    assert only_il.grad.tolist() == [-5.0, -5.0]
    assert unused.grad is None
    assert report.gramian.rl == pytest.approx(1.0)


def test_backward_replaces_old_gradients():
    x = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    x.grad = torch.full((2,), 99.0, dtype=F64)
    torch.testing.assert_close(run_backward(PCGrad(), G1, G2, x)[0], aggregate(PCGrad(), G1, G2))


def test_the_gramian_is_accumulated_in_float64():
    g = torch.full((4096,), 1e-25)  # the square, 1e-50, is zero in float32
    gramian = gramian_of([(g, -g)])
    assert gramian.rl == pytest.approx(4096 * 1e-50, rel=1e-5)
    assert gramian.inner == pytest.approx(-4096 * 1e-50, rel=1e-5)
    assert gramian_of([]).rl == 0.0


def test_inner_products_of_the_report_are_those_of_the_result():
    for method in (UPGrad(), PCGrad(), Naive()):
        grad, report = run_backward(method, G1, G2)
        assert report.inner_after == pytest.approx((float(grad @ G1), float(grad @ G2)), abs=1e-14)
    assert run_backward(Naive(), G1, G2)[1].inner_after[0] < 0


def test_conflict_and_cosine():
    gramian = gramian_of([(G1, G2)])
    assert gramian.conflict
    assert gramian.cosine == pytest.approx(-1 / math.sqrt(1.04))
    assert not gramian_of([(G1, -G2)]).conflict
    assert gramian_of([(G1, 0 * G2)]).cosine == 0.0


# -- descent ----------------------------------------------------------------------------------------------------------
def quadratic_pair():
    rng = np.random.default_rng(3)
    halves = []
    for centre in ([2.0, 0.0, 1.0], [-1.0, 1.0, 0.0]):
        root = rng.normal(size=(3, 3))
        hessian = torch.tensor(root @ root.T + np.eye(3))
        halves.append((hessian, torch.tensor(centre, dtype=F64)))
    return halves


def quadratic_loss(x: torch.Tensor, half) -> torch.Tensor:
    hessian, centre = half
    return 0.5 * (x - centre) @ hessian @ (x - centre)


@PROJECTING
def test_descent_on_two_quadratics_ends_pareto_stationary_and_harms_neither(method):
    first, second = quadratic_pair()
    x = torch.nn.Parameter(torch.tensor([4.0, -3.0, 2.0], dtype=F64))
    rate, previous = 0.02, None
    for _ in range(4000):
        losses = quadratic_loss(x, first), quadratic_loss(x, second)
        values = [v.item() for v in losses]
        if previous:
            bound = 50 * rate**2 * float(x.grad @ x.grad) + 1e-12
            assert all(v <= p + bound for v, p in zip(values, previous, strict=True))
        previous = values
        method.backward(*losses, [x])
        with torch.no_grad():
            x -= rate * x.grad
    g, h = (half[0] @ (x.detach() - half[1]) for half in (first, second))
    mix = float(((h - g) @ h) / ((g - h) @ (g - h)))
    assert 0.01 < mix < 0.99
    assert (mix * g + (1 - mix) * h).norm() < 1e-6
    assert min(g.norm(), h.norm()) > 0.1
