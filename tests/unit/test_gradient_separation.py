"""Separation of two gradients: fixed vectors, properties, oracles, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qpsolvers import solve_qp
from scipy.optimize import minimize_scalar
from torchjd import aggregation as jd

from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.gradient_separation.base import Gramian, Separation, combine, gramian_of
from inril_ray.gradient_separation.cagrad import CAGrad, conflict_averse_weights
from inril_ray.gradient_separation.dualproj import DualProj, dual_cone_weights
from inril_ray.gradient_separation.mgda import MGDA
from inril_ray.gradient_separation.naive import Naive
from inril_ray.gradient_separation.network import Network
from inril_ray.gradient_separation.pcgrad import PCGrad
from inril_ray.gradient_separation.project_il import ProjectIL
from inril_ray.gradient_separation.upgrad import UPGrad
from inril_ray.interleave import InterleaveConfig
from inril_ray.registry import resolve

F64 = torch.float64
G1, G2 = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-1.0, 0.2], dtype=F64)


def over(*methods: type[Separation]):
    return pytest.mark.parametrize("method", [m() for m in methods], ids=[m.__name__.lower() for m in methods])


PROJECTING = over(UPGrad, PCGrad)
HARMLESS = over(UPGrad, PCGrad, DualProj, MGDA)
SYMMETRIC = over(UPGrad, PCGrad, DualProj, MGDA, CAGrad)
COMBINING = over(UPGrad, PCGrad, DualProj, MGDA, CAGrad, ProjectIL)
EVERY = over(UPGrad, PCGrad, DualProj, MGDA, CAGrad, ProjectIL, Naive, Network)
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
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (UPGrad(), [0.0192308, 0.1961538]),
        (PCGrad(), [0.0384615, 0.3923077]),
        (DualProj(), [0.0, 0.1]),  # the mean harms neither
        (MGDA(), [0.0099010, 0.0990099]),  # the point of the segment between both that is nearest to 0
        (CAGrad(), [0.0147767, 0.1477666]),  # (y / 10, y), good for both alike, at 0.05 from the mean (0, 0.1)
        (ProjectIL(), [1.0, 0.2]),
    ],
    ids=lambda x: type(x).__name__.lower(),
)
def test_fixed_vectors(method, expected):
    torch.testing.assert_close(aggregate(method, G1, G2), torch.tensor(expected, dtype=F64), rtol=0, atol=5e-8)


def test_projecting_imitation_only_is_not_symmetric():
    expected = torch.tensor([-1.0, 0.2], dtype=F64) + torch.tensor([0.0384615, 0.1923077], dtype=F64)
    torch.testing.assert_close(aggregate(ProjectIL(), G2, G1), expected, rtol=0, atol=5e-8)


def test_naive_is_the_imitation_gradient_stepped_by_the_optimiser_of_rl():
    grad, report = run_backward(Naive(), G1, G2)
    assert torch.equal(grad, G2)
    assert report.weights == (0.0, 1.0)
    assert {name for name in SEPARATIONS if resolve(SEPARATIONS, name, "separation").optimizer == "rl"} == {"naive"}


@pytest.mark.parametrize("name", [n for n in SEPARATIONS if n != "network"])
def test_the_configuration_reaches_the_method(name: str) -> None:
    cls = resolve(SEPARATIONS, name, "separation")
    gramian = Gramian(rl=4.0, il=1.0, inner=-0.5)
    own = cls.from_config(InterleaveConfig(row_normalise=True, cagrad_radius=0.2))
    assert own.row_normalise
    assert not cls.from_config(InterleaveConfig()).row_normalise
    if name == "cagrad":
        assert own.weights(gramian) == conflict_averse_weights(gramian, radius=0.2)
        assert own.weights(gramian) != cls().weights(gramian)


def test_the_table_names_every_method():
    assert {name: resolve(SEPARATIONS, name, "separation") for name in SEPARATIONS} == {
        "cagrad": CAGrad,
        "dualproj": DualProj,
        "mgda": MGDA,
        "naive": Naive,
        "network": Network,
        "pcgrad": PCGrad,
        "project_il": ProjectIL,
        "upgrad": UPGrad,
    }


# -- properties -------------------------------------------------------------------------------------------------------
@HARMLESS
@given(pair=gradient_pairs())
@PROPERTY
def test_neither_objective_is_harmed(method, pair):
    g, h = pair
    d = aggregate(method, g, h)
    for objective in (g, h):
        assert d @ objective >= -1e-9 * d.norm() * objective.norm()


@given(pair=gradient_pairs())
@PROPERTY
def test_reinforcement_is_not_harmed_where_imitation_is_projected(pair):
    g, h = pair
    d = aggregate(ProjectIL(), g, h)
    assert d @ g >= (1 - 1e-9) * (g @ g)
    assert ProjectIL().weights(gramian_of([pair]))[1] == 1.0


def test_conflict_averse_steps_may_harm_an_objective():
    gramian = gramian_of([(G1, G2)])
    for share, inner in ((0.9, -0.388), (0.5, 0.0148)):
        d = combine(G1.clone(), G2, conflict_averse_weights(gramian, share))
        assert float(d @ G2) == pytest.approx(inner, abs=5e-4)
    nearly_opposed = torch.tensor([-0.5, 1e-3], dtype=F64)
    assert aggregate(CAGrad(), G1, nearly_opposed) @ nearly_opposed < -0.05


@given(pair=gradient_pairs())
@PROPERTY
def test_without_conflict_nothing_is_projected(pair):
    g, h = pair
    h = h if g @ h >= 0 else -h
    assert torch.equal(aggregate(PCGrad(), g, h), g + h)
    assert torch.equal(aggregate(ProjectIL(), g, h), g + h)
    for method in (UPGrad(), DualProj()):
        torch.testing.assert_close(aggregate(method, g, h), (g + h) / 2, rtol=1e-15, atol=0)


@given(pair=gradient_pairs())
@PROPERTY
def test_upgrad_is_half_of_pcgrad(pair):
    torch.testing.assert_close(2 * aggregate(UPGrad(), *pair), aggregate(PCGrad(), *pair), rtol=1e-12, atol=0)


@COMBINING
@given(pair=gradient_pairs(), exponent=st.integers(-12, 12))
@PROPERTY
def test_positive_homogeneity(method, pair, exponent):
    g, h = pair
    s = 10.0**exponent
    torch.testing.assert_close(
        aggregate(method, s * g, s * h) / s, aggregate(method, g, h), rtol=1e-9, atol=1e-12 * scale_of(g, h)
    )


@COMBINING
def test_homogeneity_at_the_scales_where_normalised_gramians_fail(method):
    for scale in (1e-2, 7e-3, 1e-6, 1e-12, 1e-140):
        torch.testing.assert_close(aggregate(method, scale * G1, scale * G2) / scale, aggregate(method, G1, G2))


@PROJECTING
@given(pair=gradient_pairs(), scales=st.tuples(*[st.floats(0.01, 100.0)] * 4))
@PROPERTY
def test_linear_under_scaling(method, pair, scales):
    g, h = pair
    a, b, c, d = scales
    whole = aggregate(method, (a + c) * g, (b + d) * h)
    parts = aggregate(method, a * g, b * h) + aggregate(method, c * g, d * h)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-11 * scale_of((a + c) * g, (b + d) * h))


@over(DualProj, MGDA, CAGrad)
def test_not_linear_under_scaling(method):
    def gap(m: Separation) -> float:
        whole = aggregate(m, 4 * G1, 4 * G2)
        parts = aggregate(m, 3 * G1, G2) + aggregate(m, G1, 3 * G2)
        return float((whole - parts).norm() / whole.norm())

    assert gap(method) > 0.05
    assert gap(UPGrad()) < 1e-14


@given(pair=gradient_pairs())
@PROPERTY
def test_projecting_on_the_dual_cone_again_changes_nothing(pair):
    gramian = gramian_of([pair])
    once = DualProj().weights(gramian)
    assert dual_cone_weights(gramian, once) == pytest.approx(once, rel=1e-9)


@COMBINING
@given(pair=gradient_pairs())
@PROPERTY
def test_the_result_is_in_the_span_of_the_gradients(method, pair):
    g, h = pair
    d = aggregate(method, g, h)
    basis, _ = torch.linalg.qr(torch.stack([g / g.norm(), h / h.norm()], dim=1))
    assert (d - basis @ (basis.T @ d)).norm() <= 1e-10 * scale_of(g, h)


@SYMMETRIC
@given(pair=gradient_pairs())
@PROPERTY
def test_swapping_objectives_changes_nothing(method, pair):
    g, h = pair
    torch.testing.assert_close(aggregate(method, g, h), aggregate(method, h, g), rtol=1e-9, atol=1e-11 * scale_of(g, h))
    gramian = gramian_of([(g, h)])
    swapped = Gramian(rl=gramian.il, il=gramian.rl, inner=gramian.inner)
    assert method.weights(gramian) == pytest.approx(method.weights(swapped)[::-1], rel=1e-9, abs=1e-12)


@COMBINING
@given(pair=gradient_pairs())
@PROPERTY
def test_permuting_the_dimensions_permutes_the_result(method, pair):
    g, h = pair
    order = torch.arange(len(g)).flip(0)
    torch.testing.assert_close(
        aggregate(method, g[order], h[order]), aggregate(method, g, h)[order], rtol=1e-9, atol=1e-12 * scale_of(g, h)
    )


# -- oracles ----------------------------------------------------------------------------------------------------------
def jd_projecting(aggregator: type, weighting: type) -> jd.Aggregator:
    # The projector's class is found through an instance: TorchJD does not export it.
    return aggregator(projector=type(weighting().projector)(norm_eps=0.0, reg_eps=1e-13))


@pytest.mark.parametrize(
    ("method", "oracle"),
    [
        (UPGrad(), jd_projecting(jd.UPGrad, jd.UPGradWeighting)),
        (DualProj(), jd_projecting(jd.DualProj, jd.DualProjWeighting)),
    ],
    ids=["upgrad", "dualproj"],
)
@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=100)
def test_projecting_methods_equal_torchjd(method, oracle, pair):
    g, h = pair
    assume(1e-2 < g.norm() / h.norm() < 1e2)
    torch.testing.assert_close(aggregate(method, g, h), oracle(torch.stack([g, h])), rtol=0, atol=1e-6 * scale_of(g, h))


@pytest.mark.parametrize(
    ("method", "oracle"), [(PCGrad(), jd.PCGrad()), (MGDA(), jd.MGDA(epsilon=1e-14))], ids=["pcgrad", "mgda"]
)
@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=100)
def test_closed_forms_equal_torchjd(method, oracle, pair):
    expected = oracle(torch.stack(pair))
    torch.testing.assert_close(aggregate(method, *pair), expected, rtol=1e-9, atol=1e-12 * scale_of(*pair))


@pytest.mark.parametrize(
    ("method", "starts"), [(UPGrad(), 0.5 * np.eye(2)), (DualProj(), np.full((1, 2), 0.5))], ids=["upgrad", "dualproj"]
)
@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=100)
def test_projecting_methods_solve_their_quadratic_program(method, starts, pair):
    """Each start, ½ g_i or the mean, is projected on the dual cone: minimise v'Gv over v >= u; solutions are added."""
    g, h = pair
    h = h * (g.norm() / h.norm())  # the solver needs a conditioned program; scaling has tests of its own
    jacobian = torch.stack([g, h]).numpy()
    gram = jacobian @ jacobian.T
    gram = gram / np.trace(gram) + 1e-13 * np.eye(2)
    weights = sum(solve_qp(gram, np.zeros(2), -np.eye(2), -u, solver="quadprog") for u in starts)
    actual = aggregate(method, g, h).numpy()
    np.testing.assert_allclose(actual, weights @ jacobian, rtol=0, atol=1e-6 * scale_of(g, h))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.2])
@pytest.mark.parametrize("radius", [0.1, 0.5, 0.99])
@given(pair=gradient_pairs())
@settings(deadline=None, max_examples=60)
def test_cagrad_solves_its_dual_without_a_gap(share, radius, pair):
    g, h = pair[0], pair[1] * (pair[0].norm() / pair[1].norm()) ** 0.7
    gramian, mean = gramian_of([(g, h)]), share * g + (1 - share) * h
    reach = radius * float(mean.norm())

    def dual(x: float) -> float:
        mix = x * g + (1 - x) * h
        return float(mix @ mean) + reach * float(mix.norm())

    d = combine(g.clone(), h, conflict_averse_weights(gramian, share, radius))
    assert (d - mean).norm() <= reach * (1 + 1e-9) + 1e-13 * scale_of(g, h)
    found = minimize_scalar(dual, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-10}).fun
    least = min(found, dual(0.0), dual(1.0))
    scale = scale_of(g, h) ** 2
    assert min(float(d @ g), float(d @ h)) == pytest.approx(least, rel=0, abs=1e-9 * scale)


def test_pcgrad_is_its_algorithm():
    rng = np.random.default_rng(0)
    for _ in range(50):
        g, h = rng.normal(size=(2, 4))
        total = np.zeros(4)
        for own, other in ((g, h), (h, g)):
            total += own - min(own @ other, 0.0) / (other @ other) * other
        np.testing.assert_allclose(aggregate(PCGrad(), torch.tensor(g), torch.tensor(h)).numpy(), total, rtol=1e-10)


# -- edge cases -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "share"),
    [(UPGrad(), 0.5), (PCGrad(), 1.0), (DualProj(), 0.5), (CAGrad(), 0.5), (MGDA(), 0.0), (ProjectIL(), 1.0)],
    ids=lambda x: type(x).__name__.lower(),
)
@pytest.mark.parametrize("tiny", [0.0, 1e-200, 1e-16])
def test_a_vanishing_gradient_leaves_the_other(method, share, tiny):
    zero = torch.tensor([-tiny, 0.0], dtype=F64)
    torch.testing.assert_close(run_backward(method, G1, zero)[0], share * G1)
    torch.testing.assert_close(run_backward(method, zero, G1)[0], share * G1)
    assert run_backward(method, 0 * G1, 0 * G1)[0].abs().max() == 0
    assert share > 0 or run_backward(method, G1, zero)[0].abs().max() == 0


@HARMLESS
@pytest.mark.parametrize("factor", [1.0, 3.0, 0.37])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_exactly_opposed_gradients_cancel_to_an_exact_zero(method, factor, dtype):
    g = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    grad, report = run_backward(method, g, -factor * g)
    assert grad.abs().max() == 0
    assert report.stalled
    assert report.inner_after == (0.0, 0.0)
    assert not run_backward(method, G1, G2)[1].stalled


def test_exactly_opposed_gradients_leave_the_share_of_the_mean_that_cagrad_must_keep():
    """A step of 0 is out of reach for c < 1; with gradients of one norm the mean itself is 0."""
    assert run_backward(CAGrad(), G2, -1.0 * G2)[0].abs().max() == 0
    torch.testing.assert_close(run_backward(CAGrad(), G2, -3.0 * G2)[0], -0.5 * G2)
    assert conflict_averse_weights(gramian_of([(G2, -3.0 * G2)]), radius=1.5) == (0.0, 0.0)


def test_projecting_opposed_imitation_leaves_reinforcement():
    assert torch.equal(run_backward(ProjectIL(), G2, -3.0 * G2)[0], G2)


def test_equal_gradients_are_their_own_shortest_combination():
    assert MGDA().weights(gramian_of([(G2, G2)])) == (0.5, 0.5)
    torch.testing.assert_close(aggregate(CAGrad(), G2, G2), 1.5 * G2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@EVERY
def test_a_gradient_that_is_not_finite_is_dropped_and_the_other_kept_whole(method, bad):
    """Unless it is one that the method never applies: then nothing is left."""
    broken = torch.tensor([bad, 1.0], dtype=F64)
    grad, report = run_backward(method, broken, G2)
    assert torch.equal(grad, G2)
    assert report.dropped == ("rl",)
    grad, report = run_backward(method, G1, broken)
    assert torch.equal(grad, method.alone[0] * G1)
    assert report.dropped == ("il",)
    grad, report = run_backward(method, broken, broken)
    assert grad.abs().max() == 0
    assert report.dropped == ("rl", "il")


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


def descend(gradient, start: list[float]) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Descend both losses; return both gradients at the end and whether a step raised a loss by more than O(rate^2)."""
    halves = quadratic_pair()
    x = torch.nn.Parameter(torch.tensor(start, dtype=F64))
    rate, harmed = 0.02, False
    previous: list[float] = []
    for i in range(4000):
        losses = [quadratic_loss(x, half) for half in halves]
        values = [v.item() for v in losses]
        if previous:
            bound = 50 * rate**2 * float(x.grad @ x.grad) + 1e-12
            harmed |= any(v > p + bound for v, p in zip(values, previous, strict=True))
        previous = values
        gradient(i, *losses, x)
        with torch.no_grad():
            x -= rate * x.grad
    g, h = (hessian @ (x.detach() - centre) for hessian, centre in halves)
    return g, h, harmed


@pytest.mark.parametrize(
    ("method", "start"),
    [(UPGrad(), [4.0, -3.0, 2.0]), (PCGrad(), [4.0, -3.0, 2.0]), (DualProj(), [4.0, -3.0, 2.0]), (MGDA(), [1, 1, 1])],
    ids=["upgrad", "pcgrad", "dualproj", "mgda"],
)
def test_descent_on_two_quadratics_ends_pareto_stationary_and_harms_neither(method, start):
    g, h, harmed = descend(lambda _, first, second, x: method.backward(first, second, [x]), start)
    mix = float(((h - g) @ h) / ((g - h) @ (g - h)))
    assert 0.01 < mix < 0.99
    assert (mix * g + (1 - mix) * h).norm() < 1e-6
    assert min(g.norm(), h.norm()) > 0.1
    assert not harmed


def test_cagrad_descends_to_the_minimum_of_the_mean():
    g, h, _ = descend(lambda _, first, second, x: CAGrad().backward(first, second, [x]), [4.0, -3.0, 2.0])
    assert (g + h).norm() < 1e-6
    assert g.norm() > 0.1


def test_alternating_between_two_quadratics_harms_and_does_not_settle():
    def alternate(i, first, second, x):
        x.grad = torch.autograd.grad(second if i % 2 else first, x)[0]

    *_, harmed = descend(alternate, [4.0, -3.0, 2.0])
    assert harmed
