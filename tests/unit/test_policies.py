"""Policies: the denoising chain of both samplers, log-probabilities, losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from inril_ray.config import build
from inril_ray.policies import POLICIES
from inril_ray.policies.base import Normalizer
from inril_ray.policies.denoising import DenoisingSchedule, cosine_betas
from inril_ray.policies.diffusion import DiffusionConfig, DiffusionPolicy, DiffusionUNetConfig
from inril_ray.registry import resolve
from inril_ray.types import InrilError, NormalizerStats
from tests.fakes import fake_spec, tiny_policy, unit_stats

BOTH = pytest.mark.parametrize("kind", ["diffusion_mlp", "gaussian_mlp"])
EVERY_DIFFUSION = pytest.mark.parametrize(
    ("network", "sampler"), [("mlp", "ddpm"), ("mlp", "ddim"), ("unet", "ddpm"), ("unet", "ddim")]
)


def diffusion(network: str, sampler: str, **settings) -> DiffusionPolicy:
    """A tiny diffusion policy that is being fine-tuned. DDIM executes levels 0, 2 and 4 of 7."""
    cls = resolve(POLICIES, f"diffusion_{network}", "policy")
    values = {"prediction_horizon": 4, "action_horizon": 2, "denoising_steps": 7, "finetuned_steps": 2}
    values |= {"ddim_steps": {"ddpm": None, "ddim": 3}[sampler], "step_embedding_dim": 4}
    values |= {"mlp": {"hidden_dim": 8}, "unet": {"widths": (8, 16), "num_groups": 4, "kernel_size": 3}}[network]
    torch.manual_seed(0)
    policy = cls(build(cls.Config, {**values, **settings}), fake_spec(), unit_stats())
    policy.begin_finetuning()
    # Fine-tuned weights differ from the cloned ones.
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def random_inputs(policy, n: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=generator) * 3 - 1, torch.randn(n, *policy.noise_shape, generator=generator)


def flattened(action, obs):
    """Every scored step of an action as the arguments of ``log_prob``."""
    n, f = action.log_probs.shape
    step = torch.arange(f).repeat(n)
    rows = torch.arange(n).repeat_interleave(f)
    return obs[rows], action.chain[rows, step], action.chain[rows, step + 1], step


# -- normaliser -------------------------------------------------------------------------------------------------------
def test_normalizer_maps_the_range_to_plus_minus_one_and_does_not_clip():
    normalizer = Normalizer(unit_stats())
    ends = torch.tensor([[-1.0] * 3, [0.5] * 3, [2.0] * 3, [5.0] * 3])
    torch.testing.assert_close(normalizer.obs(ends)[:, 0], torch.tensor([-1.0, 0.0, 1.0, 3.0]), rtol=0, atol=3e-6)
    actions = torch.linspace(-3, 3, 10).reshape(5, 2)
    torch.testing.assert_close(normalizer.unnormalize_action(normalizer.action(actions)), actions)


def test_normalizer_by_hand_and_in_float32():
    """DPPO adds 1e-6 to the range: a range as small as that maps its upper end to the middle."""
    low, high = np.array([0.0, 2.0]), np.array([1e-6, 4.0])
    stats = NormalizerStats(obs_low=low, obs_high=high, action_low=low, action_high=high)
    normalizer = Normalizer(stats)
    assert {buffer.dtype for buffer in normalizer.buffers()} == {torch.float32}
    values, expected = torch.tensor([[1e-6, 3.0]]), [pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-5)]
    assert normalizer.obs(values)[0].tolist() == expected
    assert normalizer.action(values)[0].tolist() == expected
    units = normalizer.unnormalize_action(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
    assert units[:, 0].tolist() == pytest.approx([2e-6, 0.0])
    assert units[:, 1].tolist() == pytest.approx([4.0, 3.0], abs=1e-5)


def test_the_ranges_are_saved_with_the_weights():
    policy, other = tiny_policy(), tiny_policy(seed=5, stats=None)
    other.normalizer.obs_low.fill_(-9.0)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.normalizer.obs_low, policy.normalizer.obs_low)


# -- acting and scoring -----------------------------------------------------------------------------------------------
@BOTH
def test_shapes_of_an_action(kind):
    policy = tiny_policy(kind)
    obs, noise = random_inputs(policy)
    action = policy.act(obs, noise, deterministic=False)
    assert action.chunk.shape == (9, policy.horizon, 2)
    assert action.chain.shape == (9, policy.num_scored_steps + 1, policy.horizon, 2)
    assert action.log_probs.shape == (9, policy.num_scored_steps)
    torch.testing.assert_close(action.chunk, policy.normalizer.unnormalize_action(action.chain[:, -1]))


@BOTH
def test_ratio_is_one_on_unchanged_parameters_however_samples_are_batched(kind):
    policy = tiny_policy(kind)
    obs, noise = random_inputs(policy)
    action = policy.act(obs, noise, deterministic=False)
    acted = action.log_probs.flatten()
    inputs = flattened(action, obs)
    order = torch.randperm(len(acted), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(policy.log_prob(*inputs), acted, rtol=0, atol=1e-5)
    shuffled = policy.log_prob(*(x[order] for x in inputs))
    torch.testing.assert_close(shuffled, acted[order], rtol=0, atol=1e-5)
    one_by_one = torch.cat([policy.log_prob(*(x[i : i + 1] for x in inputs)) for i in range(len(acted))])
    torch.testing.assert_close(one_by_one, acted, rtol=0, atol=1e-5)
    policy.eval()
    torch.testing.assert_close(policy.log_prob(*inputs), acted, rtol=0, atol=1e-5)


@BOTH
def test_acting_does_not_depend_on_the_batch(kind):
    policy = tiny_policy(kind)
    obs, noise = random_inputs(policy)
    whole = policy.act(obs, noise, deterministic=False)
    parts = [policy.act(obs[i : i + 3], noise[i : i + 3], deterministic=False) for i in (0, 3, 6)]
    torch.testing.assert_close(torch.cat([p.chunk for p in parts]), whole.chunk, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([p.log_probs for p in parts]), whole.log_probs, rtol=0, atol=1e-5)


def test_diffusion_log_prob_equals_torch_normal_over_executed_actions():
    policy = tiny_policy().double()
    obs, noise = random_inputs(policy)
    action = policy.act(obs.double(), noise.double(), deterministic=False)
    inputs = flattened(action, obs.double())
    obs_rows, before, after, step = inputs
    betas = cosine_betas(6)
    alpha_bar = torch.cumprod(1 - betas, 0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    t = 2 - step
    b, a, p = (v[t][:, None, None] for v in (betas, alpha_bar, previous))
    predicted = policy.actor(before, t, policy.normalizer.obs(obs_rows))
    clean = ((before - (1 - a).sqrt() * predicted) / a.sqrt()).clamp(-1, 1)
    mean = (b * p.sqrt() * clean + (1 - p) * (1 - b).sqrt() * before) / (1 - a)
    std = (b * (1 - p) / (1 - a)).sqrt().clamp_min(0.1)
    entries = Normal(mean, std).log_prob(after).clamp(-5, 2)[:, :2]
    actual = policy.log_prob(*inputs)
    torch.testing.assert_close(actual, entries.mean(dim=(1, 2)), rtol=0, atol=2e-5)
    torch.testing.assert_close(actual * 2 * 2, entries.sum(dim=(1, 2)), rtol=0, atol=1e-4)


@EVERY_DIFFUSION
def test_ratio_is_exactly_one_on_unchanged_parameters(network, sampler):
    policy = diffusion(network, sampler)
    obs, noise = random_inputs(policy)
    action = policy.act(obs, noise, deterministic=False)
    assert action.chain.shape == (9, 3, 4, 2)
    for step in range(2):
        scored = policy.log_prob(obs, action.chain[:, step], action.chain[:, step + 1], torch.full((9,), step))
        assert scored.requires_grad
        assert torch.equal((scored - action.log_probs[:, step]).exp(), torch.ones(9))
    torch.testing.assert_close(policy.log_prob(*flattened(action, obs)), action.log_probs.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_ddim_log_prob_equals_torch_normal_over_executed_actions(network):
    policy = diffusion(network, "ddim").double()
    obs, noise = random_inputs(policy)
    action = policy.act(obs.double(), noise.double(), deterministic=False)
    obs_rows, before, after, step = flattened(action, obs.double())
    every = torch.cumprod(1 - cosine_betas(7), 0)
    alpha_bar = every[[0, 2, 4]]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    rank = 1 - step
    a, p = (v[rank][:, None, None] for v in (alpha_bar, previous))
    predicted = policy.actor(before, 2 * rank, policy.normalizer.obs(obs_rows))
    clean = ((before - (1 - a).sqrt() * predicted) / a.sqrt()).clamp(-1, 1)
    again = (before - a.sqrt() * clean) / (1 - a).sqrt()
    sigma = ((1 - p) / (1 - a) * (1 - a / p)).sqrt().clamp_min(1e-10)
    mean = p.sqrt() * clean + (1 - p - sigma**2).clamp_min(0).sqrt() * again
    entries = Normal(mean, sigma.clamp_min(0.1)).log_prob(after).clamp(-5, 2)[:, :2]
    actual = policy.log_prob(obs_rows, before, after, step)
    torch.testing.assert_close(actual, entries.mean(dim=(1, 2)), rtol=0, atol=2e-5)
    torch.testing.assert_close(actual, action.log_probs.flatten(), rtol=0, atol=1e-12)


@EVERY_DIFFUSION
@pytest.mark.parametrize("deterministic", [False, True])
def test_denoise_is_what_act_does_with_a_gradient(network, sampler, deterministic):
    policy = diffusion(network, sampler)
    obs, noise = random_inputs(policy)
    chunk = policy.denoise(policy.normalizer.obs(obs), noise, deterministic=deterministic)
    assert torch.equal(chunk, policy.act(obs, noise, deterministic=deterministic).chain[:, -1])
    policy.base.requires_grad_(True)
    policy.denoise(policy.normalizer.obs(obs), noise, deterministic=deterministic).square().mean().backward()
    grads = [p.grad for p in policy.trainable()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert all(g.any() for g in grads)
    assert all(p.grad is None for p in policy.base.parameters())


@EVERY_DIFFUSION
def test_gradient_of_denoise_passes_through_every_step(network, sampler):
    # Finite differences see every path; a detached step would be missing from the gradient. No clipping: no kinks.
    steps = 3 if sampler == "ddim" else 7
    policy = diffusion(network, sampler, finetuned_steps=steps, clip_denoised=1e6).double()
    obs, noise = (x.double() for x in random_inputs(policy))
    obs, direction = policy.normalizer.obs(obs), [torch.randn_like(p) for p in policy.trainable()]

    def loss():
        return policy.denoise(obs, noise, deterministic=False).square().mean()

    grads = torch.autograd.grad(loss(), policy.trainable())
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True)).item()
    values, size = [], 1e-6
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(policy.trainable(), direction, strict=True):
                p.add_(d, alpha=sign * size)
            values.append(loss().item())
    assert slope != 0
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(slope, rel=1e-4)


def test_evaluation_with_ddim_reaches_the_chunk_that_the_networks_point_to():
    policy = diffusion("mlp", "ddim")
    obs, noise = random_inputs(policy)
    clean = torch.linspace(-0.9, 0.9, 8).reshape(1, 4, 2)

    def true_noise(chunk, t, obs):
        level = policy.schedule.sqrt_alpha_bar[t][:, None, None]
        return (chunk - level * clean) / policy.schedule.sqrt_one_minus[t][:, None, None]

    policy.base.forward = policy.actor.forward = true_noise
    chunk = policy.denoise(policy.normalizer.obs(obs), noise, deterministic=True)
    torch.testing.assert_close(chunk, clean.expand(9, 4, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "unet"])
@pytest.mark.parametrize("rule", ["recomputed", "predicted"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_chain_of_ddim_is_the_written_one_where_actions_are_clipped(network, rule, deterministic):
    policy = diffusion(network, "ddim", ddim_noise=rule, min_sampling_std=0.1).double()
    obs, noise = (2.0 * x.double() for x in random_inputs(policy))
    seen, alpha_bar = policy.normalizer.obs(obs), np.cumprod(1 - cosine_betas(7).numpy())[[0, 2, 4]]
    x, clipped = noise[:, 0].numpy(), []
    for i, rank in enumerate((2, 1, 0)):
        now, after = alpha_bar[rank], alpha_bar[rank - 1] if rank else 1.0
        predictor = policy.actor if rank < 2 else policy.base  # two of three steps are fine-tuned
        eps = predictor(torch.from_numpy(x), torch.full((9,), 2 * rank), seen).detach().numpy()
        clean = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
        clipped.append((abs(clean) > 1).mean())
        clean = clean.clip(-1, 1)
        sigma = 0.0 if deterministic else np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        left = eps if rule == "predicted" else (x - np.sqrt(now) * clean) / np.sqrt(1 - now)
        x = np.sqrt(after) * clean + np.sqrt(max(1 - after - sigma**2, 0.0)) * left
        x = x + (0.0 if deterministic else max(sigma, 0.1)) * noise[:, i + 1].numpy().clip(-3, 3)
    assert max(clipped) > 0.2
    chain = policy.act(obs, noise, deterministic=deterministic).chain
    np.testing.assert_allclose(chain[:, -1].numpy(), x, atol=1e-6)


def test_ddim_adds_noise_in_training_with_a_floor_and_none_in_evaluation():
    policy = diffusion("mlp", "ddim", min_sampling_std=0.04)
    obs, noise = random_inputs(policy)
    noise = noise.clamp(-1, 1)
    for index, std in ((-1, 0.04), (-2, max(0.04, float(DenoisingSchedule(7, 3).std[1])))):
        other = noise.clone()
        other[:, index] += 1.0
        a, b = (policy.act(obs, x, deterministic=False).chain[:, index] for x in (noise, other))
        torch.testing.assert_close(b - a, torch.full_like(a, std), rtol=0, atol=1e-5)
        a, b = (policy.act(obs, x, deterministic=True).chunk for x in (noise, other))
        assert torch.equal(a, b)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_frozen_network_makes_the_early_steps_of_a_u_net(sampler):
    policy = diffusion("unet", sampler)
    obs, noise = random_inputs(policy)
    before = policy.act(obs, noise, deterministic=False)
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.add_(0.1)
    after = policy.act(obs, noise, deterministic=False)
    assert torch.equal(before.chain[:, 0], after.chain[:, 0])
    assert not torch.equal(before.chain[:, 1], after.chain[:, 1])


def test_diffusion_log_prob_ignores_actions_that_are_not_executed():
    policy = tiny_policy()
    obs, noise = random_inputs(policy)
    inputs = list(flattened(policy.act(obs, noise, deterministic=False), obs))
    score = policy.log_prob(*inputs)
    inputs[2] = inputs[2].clone()
    inputs[2][:, 2:] += 0.3
    assert torch.equal(policy.log_prob(*inputs), score)
    inputs[2][:, 1] += 0.3
    assert not torch.equal(policy.log_prob(*inputs), score)


def test_frozen_network_makes_the_early_steps_and_actor_the_scored_ones():
    policy = tiny_policy()
    obs, noise = random_inputs(policy)
    before = policy.act(obs, noise, deterministic=False)
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.add_(0.1)
    after = policy.act(obs, noise, deterministic=False)
    assert torch.equal(before.chain[:, 0], after.chain[:, 0])
    assert not torch.equal(before.chain[:, 1], after.chain[:, 1])
    with torch.no_grad():
        for p in policy.base.parameters():
            p.add_(0.1)
    assert not torch.equal(policy.act(obs, noise, deterministic=False).chain[:, 0], after.chain[:, 0])


def test_training_noise_has_a_floor_in_every_step_and_evaluation_none_in_the_last():
    policy = tiny_policy()
    obs, noise = random_inputs(policy)
    noise = noise.clamp(-1, 1)
    other = noise.clone()
    other[:, -1] += 1.0
    a, b = (policy.act(obs, x, deterministic=False).chain[:, -1] for x in (noise, other))
    torch.testing.assert_close(b - a, torch.full_like(a, 0.1), rtol=0, atol=1e-5)
    a, b = (policy.act(obs, x, deterministic=True) for x in (noise, other))
    assert torch.equal(a.chunk, b.chunk)
    other[:, -2] += 0.5
    assert not torch.equal(policy.act(obs, other, deterministic=True).chunk, a.chunk)


def test_evaluation_noise_is_the_chain_s_own():
    policy = tiny_policy(min_sampling_std=0.5)
    obs, noise = random_inputs(policy)
    noise = noise.clamp(-1, 1)
    other = noise.clone()
    other[:, -2] += 0.5
    a, b = (policy.act(obs, x, deterministic=True).chain[:, -2] for x in (noise, other))
    std = DenoisingSchedule(6).std[1]
    torch.testing.assert_close(b - a, torch.full_like(a, 0.5 * float(std)), rtol=0, atol=1e-5)


@BOTH
def test_sampling_noise_is_clipped(kind):
    policy = tiny_policy(kind)
    obs, _ = random_inputs(policy)
    loud, louder = (torch.full((9, *policy.noise_shape), x) for x in (3.0, 100.0))
    assert torch.equal(
        policy.act(obs, loud, deterministic=False).chunk, policy.act(obs, louder, deterministic=False).chunk
    )


@BOTH
def test_log_prob_is_bounded(kind):
    policy = tiny_policy(kind)
    obs = torch.zeros(1, 3)
    far, zero = torch.full((1, policy.horizon, 2), 100.0), torch.zeros(1, policy.horizon, 2)
    step = torch.tensor([policy.num_scored_steps - 1])
    assert policy.log_prob(obs, zero, far, step).item() == -5.0


def test_begin_finetuning_copies_and_freezes():
    policy = tiny_policy(finetuning=False)
    with torch.no_grad():
        for p in policy.base.parameters():
            p.add_(1.0)
    policy.begin_finetuning()
    for a, b in zip(policy.actor.parameters(), policy.base.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
        assert a.requires_grad
        assert not b.requires_grad
    assert [id(p) for p in policy.trainable()] == [id(p) for p in policy.actor.parameters()]


# -- imitation --------------------------------------------------------------------------------------------------------
def test_il_loss_trains_the_executed_levels_or_all():
    policy, seen = tiny_policy(), []
    generator = torch.Generator().manual_seed(0)
    n = 600
    actions, noise = torch.zeros(n, 3, 2), torch.randn(n, 3, 2, generator=generator)
    uniform = torch.linspace(0, 1, n)  # includes 1.0, to which a float32 draw may round
    forward = policy.actor.forward
    policy.actor.forward = lambda chunk, t, obs: (seen.append(t), forward(chunk, t, obs))[1]
    policy.il_loss(torch.zeros(n, 3), actions, noise, uniform, "finetuned")
    policy.il_loss(torch.zeros(n, 3), actions, noise, uniform, "all")
    finetuned, everything = (np.bincount(t.numpy()) for t in seen)
    assert len(finetuned) == 3
    assert len(everything) == 6
    np.testing.assert_allclose(finetuned, 200, atol=2)
    np.testing.assert_allclose(everything, 100, atol=2)


def test_il_and_bc_loss_reach_different_networks():
    policy = tiny_policy(finetuning=False)
    inputs = (torch.zeros(4, 3), torch.zeros(4, 3, 2), torch.randn(4, 3, 2), torch.rand(4))
    policy.il_loss(*inputs, "finetuned").backward()
    assert all(p.grad is None for p in policy.base.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.actor.parameters())
    policy.zero_grad()
    policy.bc_loss(*inputs).backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.actor.parameters())
    assert any(p.grad.any() for p in policy.base.parameters())


def test_il_loss_is_the_error_of_the_predicted_noise():
    policy = tiny_policy()
    generator = torch.Generator().manual_seed(0)
    obs, actions = torch.rand(5, 3, generator=generator), torch.rand(5, 3, 2, generator=generator)
    noise, uniform = torch.randn(5, 3, 2, generator=generator), torch.tensor([0.0, 0.34, 0.5, 0.67, 0.99])
    t = torch.tensor([0, 1, 1, 2, 2])
    alpha_bar = torch.cumprod(1 - cosine_betas(6), 0).float()[t][:, None, None]
    scaled = 2 * (actions + 0.5) / 1.5 - 1
    noisy = alpha_bar.sqrt() * scaled + (1 - alpha_bar).sqrt() * noise
    predicted = policy.actor(noisy, t, 2 * (obs + 1) / 3 - 1)
    expected = ((predicted - noise) ** 2).sum() / (5 * 3 * 2)
    torch.testing.assert_close(policy.il_loss(obs, actions, noise, uniform, "finetuned"), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_il_loss_with_ddim_trains_the_levels_that_actor_executes(network):
    policy, seen = diffusion(network, "ddim"), []
    n = 420
    forward = policy.actor.forward
    policy.actor.forward = lambda chunk, t, obs: (seen.append(t), forward(chunk, t, obs))[1]
    inputs = (torch.zeros(n, 3), torch.zeros(n, 4, 2), torch.zeros(n, 4, 2), torch.linspace(0, 1, n))
    policy.il_loss(*inputs, "finetuned")
    policy.il_loss(*inputs, "all")
    finetuned, everything = (np.bincount(t.numpy()) for t in seen)
    np.testing.assert_allclose(finetuned, [210, 0, 210], atol=1)
    np.testing.assert_allclose(everything, [60] * 7, atol=2)


# -- Gaussian ---------------------------------------------------------------------------------------------------------
def test_gaussian_log_prob_and_loss_equal_torch_normal():
    policy = tiny_policy("gaussian_mlp").double()
    obs, noise = random_inputs(policy)
    obs = obs.double()
    action = policy.act(obs, noise.double(), deterministic=False)
    mean = policy.actor(policy.normalizer.obs(obs)).tanh().view(9, 3, 2)
    normal = Normal(mean, torch.full((2,), 0.1, dtype=torch.float64))
    sampled = action.chain[:, 1]
    torch.testing.assert_close(
        action.log_probs[:, 0], normal.log_prob(sampled).clamp(-5, 2).mean(dim=(1, 2)), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(sampled, mean + 0.1 * noise.double().clamp(-3, 3), rtol=0, atol=1e-6)
    actions = torch.rand(9, 3, 2, dtype=torch.float64)
    expected = -normal.log_prob(policy.normalizer.action(actions)).mean()
    loss = policy.il_loss(obs, actions, actions, torch.rand(9), "all")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("log_std", "expected"), [(math.log(5.0), 0.2), (math.log(0.05), 0.05), (math.log(1e-6), 0.01)]
)
def test_gaussian_std_stays_within_its_bounds(log_std, expected):
    policy = tiny_policy("gaussian_mlp")
    with torch.no_grad():
        policy.log_std.fill_(log_std)
    obs, _ = random_inputs(policy)
    one, zero = torch.ones(9, *policy.noise_shape), torch.zeros(9, *policy.noise_shape)
    spread = (
        policy.act(obs, one, deterministic=False).chain[:, 1] - policy.act(obs, zero, deterministic=False).chain[:, 1]
    )
    torch.testing.assert_close(spread, torch.full_like(spread, expected), rtol=1e-4, atol=1e-6)


def test_gaussian_evaluation_is_nearly_the_mean():
    policy = tiny_policy("gaussian_mlp")
    obs, noise = random_inputs(policy)
    mean = policy.actor(policy.normalizer.obs(obs)).tanh().view(9, 3, 2)
    sampled = policy.act(obs, noise, deterministic=True).chain[:, 1]
    assert 0 < (sampled - mean).abs().max() <= 3.1e-4


def test_imitation_does_not_train_the_std_but_reinforcement_does():
    policy = tiny_policy("gaussian_mlp")
    obs, noise = random_inputs(policy)
    policy.il_loss(obs, torch.zeros(9, 3, 2), noise, torch.zeros(9), "all").backward()
    assert policy.log_std.grad is None
    assert any(p.grad.any() for p in policy.actor.parameters())
    inputs = flattened(policy.act(obs, noise, deterministic=False), obs)
    policy.log_prob(*inputs).sum().backward()
    assert policy.log_std.grad.any()
    assert len(policy.trainable()) == len(list(policy.actor.parameters())) + 1
    assert any(p is policy.log_std for p in policy.trainable())


# -- settings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_horizon": 5, "prediction_horizon": 4}, "action_horizon 5 exceeds prediction_horizon 4"),
        ({"denoising_steps": 5, "finetuned_steps": 6}, "finetuned_steps 6 exceeds denoising_steps 5"),
        ({"step_embedding_dim": 7}, "step_embedding_dim"),
        ({"denoising_steps": 10, "ddim_steps": 11}, "ddim_steps 11 exceeds denoising_steps 10"),
        ({"denoising_steps": 100, "ddim_steps": 5, "finetuned_steps": 6}, "finetuned_steps 6 exceeds ddim_steps 5"),
        ({"obs_encoder_dims": (512, 0)}, "obs_encoder_dims"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(InrilError, match=message):
        build(DiffusionConfig, settings, "actor")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_horizon": 18}, "prediction_horizon = 18: a U-Net of 3 levels needs a multiple of 4"),
        ({"widths": (64, 100)}, r"widths = \(64, 100\): each must be a multiple of num_groups = 8"),
        ({"kernel_size": 4}, "kernel_size = 4: only odd kernels"),
        ({"widths": ()}, "at least one level"),
        ({"finetuned_steps": 6}, "finetuned_steps 6 exceeds ddim_steps 5"),
        ({"film": "wide"}, "film"),
    ],
)
def test_impossible_sizes_of_a_u_net_are_refused(settings, message):
    with pytest.raises(InrilError, match=message):
        build(DiffusionUNetConfig, settings, "actor")


@pytest.mark.parametrize("steps", [1, 6])
def test_every_denoising_step_can_be_finetuned(steps):
    policy = tiny_policy(denoising_steps=steps, finetuned_steps=steps)
    assert isinstance(policy, DiffusionPolicy)
    obs, noise = random_inputs(policy)
    noise[0] = 5.0
    action = policy.act(obs, noise, deterministic=False)
    torch.testing.assert_close(action.chain[:, 0], noise[:, 0], msg="what a chunk starts from is not clipped")
    again = policy.act(obs, torch.cat([noise[:, :1], noise[:, 1:].clamp(-3, 3)], dim=1), deterministic=False)
    torch.testing.assert_close(again.chunk, action.chunk, msg="the noise of steps is")
    torch.testing.assert_close(policy.log_prob(*flattened(action, obs)), action.log_probs.flatten(), rtol=0, atol=1e-5)
    assert fake_spec().action_dim == action.chunk.shape[-1]


@pytest.mark.parametrize("kind", ["diffusion_mlp", "diffusion_unet", "gaussian_mlp", "tanh_gaussian"])
def test_normalised_observations_are_clipped_where_asked(kind: str) -> None:
    far = torch.full((2, 3), 1e4)
    assert float(tiny_policy(kind, obs_limit=5.0).normalizer.obs(far).max()) == 5.0
    assert float(tiny_policy(kind).normalizer.obs(far).max()) > 1e3
