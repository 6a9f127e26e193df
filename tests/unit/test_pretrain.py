"""Behaviour cloning."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from inril_ray.demos.store import DemoStore
from inril_ray.pretrain import PretrainConfig, epoch_batches, imitation_inputs, learning_rate, pretrain
from inril_ray.types import DemoBatch
from tests.fakes import CPU, fake_demos, tiny_policy

HORIZON = 3


@pytest.fixture
def store() -> DemoStore:
    return DemoStore(fake_demos(), HORIZON)


def fresh_policy(store: DemoStore, kind: str = "diffusion_mlp"):
    return tiny_policy(kind, stats=store.normalizer_stats(), finetuning=False)


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def record_steps(monkeypatch, observe) -> None:
    """Call ``observe`` with the optimiser after each of its steps."""
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        step(self, *args, **kwargs)
        observe(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)


# -- learning rate ----------------------------------------------------------------------------------------------------
def test_learning_rate_of_robomimic():
    config = PretrainConfig()
    assert learning_rate(config, 0) == pytest.approx(1e-5)
    assert learning_rate(config, 50) == pytest.approx(5.5e-5)
    assert learning_rate(config, 100) == pytest.approx(1e-4)
    assert learning_rate(config, 100 + 2900 // 2) == pytest.approx(5.5e-5)
    assert learning_rate(config, 100 + 2900 // 3) == pytest.approx(
        1e-5 + 9e-5 * 0.5 * (1 + math.cos(math.pi * 966 / 2900))
    )
    assert learning_rate(config, 3000) == pytest.approx(1e-5)
    assert learning_rate(config, 5000) == pytest.approx(1e-5)


def test_learning_rate_without_warm_up_or_shorter_than_it():
    config = PretrainConfig(num_epochs=10, warmup_epochs=0, lr=1.0, min_lr=0.0)
    assert learning_rate(config, 0) == 1.0
    assert learning_rate(config, 5) == pytest.approx(0.5)
    config = PretrainConfig(num_epochs=5, warmup_epochs=10, lr=1.0, min_lr=0.0)
    assert [learning_rate(config, e) for e in range(5)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_optimiser_follows_the_learning_rate(store, monkeypatch):
    used = []
    record_steps(monkeypatch, lambda o: used.append((o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"])))
    config = PretrainConfig(num_epochs=6, warmup_epochs=2, batch_size=16, weight_decay=0.25)
    pretrain(fresh_policy(store), store, config, seed=0, device=CPU)
    assert used == [(learning_rate(config, e), 0.25) for e in range(6) for _ in range(2)]


@pytest.mark.parametrize("batches", [1, 2, 5, 8])
def test_an_epoch_may_have_a_number_of_batches(store, monkeypatch, batches):
    """32 windows in batches of 16: two make a pass, and each pass is a permutation of its own."""
    seen, rates, windows = [], [], store.windows
    monkeypatch.setattr(store, "windows", lambda index: seen.append(np.array(index)) or windows(index))
    record_steps(monkeypatch, lambda optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    config = PretrainConfig(num_epochs=3, warmup_epochs=2, batch_size=16, batches_per_epoch=batches)
    pretrain(fresh_policy(store), store, config, seed=0, device=CPU)
    assert rates == [learning_rate(config, epoch) for epoch in range(3) for _ in range(batches)]
    passes = [np.concatenate(seen[i : i + 2]) for i in range(0, batches - 1, 2)]
    assert all(sorted(p) == list(range(32)) for p in passes)
    assert len({tuple(p) for p in passes}) == len(passes)


def test_the_average_may_be_left_out_and_starts_with_dppo_s_twentieth_epoch(store, monkeypatch):
    seen = []
    policy = fresh_policy(store)
    record_steps(monkeypatch, lambda optimizer: seen.append(flat(policy.base)))
    config = PretrainConfig(num_epochs=3, batch_size=1000, lr=0.01, warmup_epochs=0, ema_decay=0.0, ema_every=1)
    pretrain(policy, store, config, seed=0, device=CPU)
    assert torch.equal(flat(policy.base), seen[-1])
    policy, seen = fresh_policy(store), []
    config = PretrainConfig(num_epochs=20, batch_size=1000, lr=0.01, warmup_epochs=0, ema_every=1)
    pretrain(policy, store, config, seed=0, device=CPU)
    expected = 0.995 * seen[18].double() + 0.005 * seen[19].double()  # DPPO counts epochs from 1 and copies below 20
    torch.testing.assert_close(flat(policy.base).double(), expected, rtol=0, atol=1e-7)


# -- averaged weights -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("every", "start"), [(1, 0), (2, 0), (1, 3), (3, 4)])
def test_the_start_of_fine_tuning_is_the_averaged_network(store, monkeypatch, every, start):
    """One batch an epoch; the weights after each are recorded and averaged by hand."""
    policy, seen = fresh_policy(store), []
    record_steps(monkeypatch, lambda optimizer: seen.append(flat(policy.base)))
    average = flat(policy.base).double()
    config = PretrainConfig(
        num_epochs=7, batch_size=1000, lr=0.01, warmup_epochs=0, ema_decay=0.7, ema_every=every, ema_start_epoch=start
    )
    pretrain(policy, store, config, seed=0, device=CPU)
    assert len(seen) == 7
    for epoch, weights in enumerate(seen):
        if epoch % every == 0:
            average = weights.double() if epoch < start else 0.7 * average + 0.3 * weights.double()
    torch.testing.assert_close(flat(policy.base).double(), average, rtol=0, atol=1e-6)
    assert not torch.allclose(flat(policy.base), seen[-1], rtol=0, atol=1e-6)
    policy.begin_finetuning()
    assert torch.equal(flat(policy.actor), flat(policy.base))
    assert not any(p.requires_grad for p in policy.base.parameters())


def test_training_steps_are_adamw_by_hand(store, monkeypatch):
    """Three full-batch steps with a decoupled decay, written out."""
    policy, seen = fresh_policy(store), []
    reference = copy.deepcopy(policy)
    config = PretrainConfig(num_epochs=3, batch_size=1000, lr=0.01, min_lr=0.01, warmup_epochs=0, weight_decay=0.1)
    record_steps(monkeypatch, lambda optimizer: seen.append(flat(policy.base)))
    pretrain(policy, store, config, seed=4, device=CPU)
    assert len(seen) == 3
    rng = np.random.default_rng(np.random.SeedSequence(4, spawn_key=(7,)))
    generator = torch.Generator().manual_seed(4)
    parameters = list(reference.base.parameters())
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    for t, weights in enumerate(seen, 1):
        (batch,) = epoch_batches(store, rng, 1000)
        grads = torch.autograd.grad(reference.bc_loss(*imitation_inputs(batch, generator, CPU)), parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, grads, first, second, strict=True):
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g**2)
                p.mul_(1 - 0.01 * 0.1)
                p.sub_(0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        torch.testing.assert_close(flat(reference.base), weights, rtol=0, atol=1e-5)


# -- the whole --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["diffusion_mlp", "gaussian_mlp"])
def test_cloning_lowers_the_loss_on_held_out_windows(store, kind):
    config = PretrainConfig(
        num_epochs=40, batch_size=16, lr=0.01, min_lr=1e-3, warmup_epochs=2, ema_every=1, ema_decay=0.9
    )
    untrained, trained = fresh_policy(store, kind), fresh_policy(store, kind)
    before = pretrain(untrained, store, PretrainConfig(num_epochs=0), seed=0, device=CPU)
    after = pretrain(trained, store, config, seed=0, device=CPU)
    assert set(before) == {"bc_loss", "bc_loss_held_out", "bc_dropped_steps"}
    assert after["bc_loss"] < before["bc_loss"]
    assert after["bc_loss_held_out"] < before["bc_loss_held_out"]


def test_no_epochs_leave_the_weights(store):
    policy = fresh_policy(store)
    before = flat(policy.base)
    pretrain(policy, store, PretrainConfig(num_epochs=0), seed=0, device=CPU)
    assert torch.equal(flat(policy.base), before)
    assert torch.equal(flat(policy.actor), before)


def test_without_held_out_episodes_there_is_no_held_out_loss():
    store = DemoStore(fake_demos(num_held_out=0), HORIZON)
    assert set(pretrain(fresh_policy(store), store, PretrainConfig(num_epochs=1), seed=0, device=CPU)) == {
        "bc_loss",
        "bc_dropped_steps",
    }


def test_the_seed_determines_the_result(store):
    results = []
    for seed in (0, 0, 1):
        policy = fresh_policy(store)
        torch.manual_seed(len(results))  # the global stream must not matter
        pretrain(policy, store, PretrainConfig(num_epochs=3, batch_size=8, warmup_epochs=0), seed=seed, device=CPU)
        results.append(flat(policy.base))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_an_epoch_visits_every_training_window_once(store):
    batches = list(epoch_batches(store, np.random.default_rng(0), 10))
    assert [len(b.obs) for b in batches] == [10, 10, 10, 2]
    starts = np.concatenate([b.obs for b in batches])
    expected = np.concatenate([store.arrays.obs[e * 10 : e * 10 + 8] for e in range(4)])
    assert {tuple(o) for o in starts} == {tuple(o) for o in expected}
    order = np.concatenate([b.obs for b in epoch_batches(store, np.random.default_rng(1), 10)])
    assert not np.array_equal(order, starts)


def test_imitation_inputs_are_standard_normal_and_uniform():
    batch = DemoBatch(obs=np.zeros((4000, 3), np.float32), actions=np.ones((4000, 3, 2), np.float32))
    obs, actions, noise, uniform = imitation_inputs(batch, torch.Generator().manual_seed(0), CPU)
    assert obs.shape == (4000, 3)
    assert actions.mean() == 1
    assert noise.shape == (4000, 3, 2)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert (uniform.min() >= 0) & (uniform.max() < 1)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
