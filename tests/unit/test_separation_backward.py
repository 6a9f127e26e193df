"""From losses to ``.grad``: several tensors, shards, shared memory, one-sided parameters, reports."""

from __future__ import annotations

import math

import pytest
import torch

from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.gradient_separation.base import combine, gramian_of
from inril_ray.gradient_separation.naive import Naive
from inril_ray.gradient_separation.network import Network
from inril_ray.gradient_separation.pcgrad import PCGrad
from inril_ray.gradient_separation.upgrad import UPGrad
from inril_ray.registry import resolve
from inril_ray.types import InrilError
from tests.unit.test_gradient_separation import COMBINING, F64, G1, G2, aggregate, run_backward


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


# -- network separation, one-sided parameters, shards -----------------------------------------------------------------
def test_network_separation_leaves_what_imitation_does_not_reach():
    base, residual = (torch.nn.Parameter(torch.zeros(2, dtype=F64)) for _ in range(2))
    residual.grad = torch.ones(2, dtype=F64)  # of an earlier step
    report = Network().backward((residual * G1).sum(), (base * G2).sum(), [base, residual])
    assert torch.equal(base.grad, G2)
    assert residual.grad is None
    assert (report.weights, report.dropped, report.stalled) == ((0.0, 1.0), (), False)


def test_network_separation_refuses_shared_parameters():
    with pytest.raises(
        InrilError, match="train different parameters .algorithm residual_ppo.*one of: cagrad, dualp"
    ) as e:
        run_backward(Network(), G1, G2)
    assert "network" not in str(e.value).split("Choose")[1]


def test_naive_does_not_reinforce_what_imitation_does_not_reach():
    shared, only_rl, only_il = (torch.nn.Parameter(torch.zeros(2, dtype=F64)) for _ in range(3))
    rl = (shared * G1).sum() + (only_rl * 7.0).sum()
    Naive().backward(rl, (shared * G2).sum() + (only_il * -5.0).sum(), [shared, only_rl, only_il])
    assert torch.equal(shared.grad, G2)
    assert only_rl.grad is None
    assert only_il.grad.tolist() == [-5.0, -5.0]


def test_naive_without_a_finite_imitation_gradient_steps_along_nothing():
    x = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    report = Naive().backward((x * G1).sum(), (x * math.nan).sum(), [x])
    assert (report.weights, report.dropped, report.took) == ((0.0, 0.0), ("il",), (False, False))
    assert torch.equal(x.grad, torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("name", SEPARATIONS)
def test_a_merged_step_has_both_gradients_unless_one_is_in_the_way(name: str) -> None:
    """Gradients of one length that don't conflict: whoever merges them leaves neither out."""
    method = resolve(SEPARATIONS, name, "separation")().merged()
    if name == "network":
        assert method.alone == (0.0, 1.0), "there is no parameter that both reach, and merging is refused"
        return
    _, report = run_backward(method, G1, 0.6 * G1 + 0.8 * torch.tensor([-G1[1], G1[0]], dtype=F64))
    assert report.took == (True, True)
    assert method.alone == (1.0, 1.0)


def test_a_dropped_objective_is_dropped_everywhere():
    shared, only_rl, only_il = (torch.nn.Parameter(torch.zeros(2, dtype=F64)) for _ in range(3))
    rl = (shared * math.nan).sum() + (only_rl * math.nan).sum()
    report = UPGrad().backward(rl, (shared * G2).sum() + only_il.sum(), [shared, only_rl, only_il])
    assert report.dropped == ("rl",)
    assert torch.equal(shared.grad, G2)
    assert only_rl.grad is None
    assert only_il.grad.tolist() == [1.0, 1.0]


@COMBINING
def test_sharded_equals_flat(method):
    """Each process holds a slice and knows of the others what the sum of Gramians tells."""
    g, h = torch.randn(2, 10, generator=torch.Generator().manual_seed(1), dtype=F64)
    h = h - g
    flat, report = run_backward(method, g, h)
    shards = [slice(0, 3), slice(3, 4), slice(4, 10)]
    nothing = gramian_of([])
    parts = []
    for s in shards:
        x = torch.nn.Parameter(torch.zeros_like(g[s]))
        others = sum((gramian_of([(g[o], h[o])]) for o in shards if o != s), nothing)
        shard = method.backward((x * g[s]).sum(), (x * h[s]).sum(), [x], lambda own, others=others: own + others)
        assert shard.gramian.inner == pytest.approx(report.gramian.inner, rel=1e-12)
        assert shard.weights == pytest.approx(report.weights, rel=1e-12)
        parts.append(x.grad)
    torch.testing.assert_close(torch.cat(parts), flat, rtol=1e-12, atol=1e-14)


def test_a_shard_without_shared_parameters_takes_part_in_the_sum():
    x = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    elsewhere = gramian_of([(G1, G2)])
    report = UPGrad().backward((x * G1).sum(), torch.zeros((), requires_grad=True) * 1.0, [x], lambda q: q + elsewhere)
    assert report.gramian == elsewhere
    assert report.weights == UPGrad().weights(elsewhere)
    assert torch.equal(x.grad, G1)


@COMBINING
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_in_place_equals_out_of_place(method, dtype):
    g, h = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    h = h - 2 * g
    w, v = method.weights(gramian_of([(g, h)]))
    memory, kept = g.clone(), h.clone()
    result = combine(memory, h, (w, v))
    assert result.data_ptr() == memory.data_ptr()
    assert torch.equal(h, kept)
    torch.testing.assert_close(result, w * g + v * h)


def test_gradients_that_share_memory_are_combined_once_each():
    """Autograd gives both terms of a sum one tensor, and sums over elements an expanded scalar."""
    p, q, r = (torch.nn.Parameter(torch.zeros(2, dtype=F64)) for _ in range(3))
    rl, il = ((p + q) * G1).sum() + r.sum(), ((p + q) * G2).sum() - 2 * r.sum()
    report = PCGrad().backward(rl, il, [p, q, r])
    w, v = report.weights
    assert w != 1.0
    torch.testing.assert_close(p.grad, w * G1 + v * G2)
    torch.testing.assert_close(q.grad, p.grad)
    torch.testing.assert_close(r.grad, torch.full((2,), w - 2 * v, dtype=F64))
    norm = torch.nn.utils.clip_grad_norm_([p, q, r], 1e-3)
    assert float(torch.stack([x.grad for x in (p, q, r)]).norm()) == pytest.approx(1e-3, rel=1e-2)
    assert norm > 1e-3


@COMBINING
def test_unit_rows_give_both_gradients_one_say(method):
    """For ablations: the result depends on the direction of g_IL alone and scales with g_RL."""
    normalising = type(method)(row_normalise=True)
    d = run_backward(normalising, G1, G2)[0]
    torch.testing.assert_close(run_backward(normalising, G1, 1e-3 * G2)[0], d)
    torch.testing.assert_close(run_backward(normalising, 5.0 * G1, 1e3 * G2)[0], 5.0 * d)
    torch.testing.assert_close(d, aggregate(method, G1, G2 / G2.norm()))
    assert run_backward(normalising, 0 * G1, 0 * G2)[0].abs().max() == 0
