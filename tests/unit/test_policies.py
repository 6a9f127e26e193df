"""Policies: the denoising chain, log-probabilities, parameter counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from inril_ray.config import build
from inril_ray.policies.base import Normalizer
from inril_ray.policies.diffusion import DenoisingSchedule, DiffusionConfig, DiffusionPolicy, cosine_betas
from inril_ray.policies.networks import DiffusionMLP, ResidualMLP, StepEmbedding, ValueNetwork
from inril_ray.types import InrilError
from tests.fakes import fake_spec, tiny_policy, unit_stats

BOTH = pytest.mark.parametrize("kind", ["diffusion_mlp", "gaussian_mlp"])


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random_inputs(policy, n: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=generator) * 3 - 1, torch.randn(n, *policy.noise_shape, generator=generator)


def flattened(action, obs):
    """Every scored step of an action as the arguments of ``log_prob``."""
    n, f = action.log_probs.shape
    step = torch.arange(f).repeat(n)
    rows = torch.arange(n).repeat_interleave(f)
    return obs[rows], action.chain[rows, step], action.chain[rows, step + 1], step


# -- networks ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("obs_dim", "horizon", "action_dim", "hidden", "embedding", "expected"),
    [
        pytest.param(11, 4, 3, 512, 16, 553_020, id="hopper"),
        pytest.param(17, 4, 6, 512, 16, 568_392, id="walker"),
        pytest.param(19, 4, 7, 512, 16, 573_516, id="lift"),
        pytest.param(23, 4, 7, 512, 16, 575_564, id="can_t4"),
        pytest.param(23, 1, 7, 512, 16, 554_039, id="can_t1"),
        pytest.param(59, 8, 14, 1024, 32, 2_427_088, id="transport"),
    ],
)
def test_parameters_of_the_actor(obs_dim, horizon, action_dim, hidden, embedding, expected):
    network = DiffusionMLP(
        obs_dim, horizon, action_dim,
        hidden_dim=hidden, num_hidden=3, step_embedding_dim=embedding, activation="mish",
    )  # fmt: skip
    assert count(network) == expected


@pytest.mark.parametrize(
    ("obs_dim", "hidden", "expected"), [(11, 256, 134_913), (23, 256, 137_985), (58, 512, 556_033)]
)
def test_parameters_of_the_critic(obs_dim, hidden, expected):
    assert count(ValueNetwork(obs_dim, hidden)) == expected


def test_step_embedding_is_sines_and_cosines():
    embedding = StepEmbedding(8)
    embedding.layers = torch.nn.Identity()
    frequencies = np.exp(-np.log(1e4) * np.arange(4) / 3)
    steps = np.array([0, 3, 19])
    expected = np.concatenate([np.sin(steps[:, None] * frequencies), np.cos(steps[:, None] * frequencies)], axis=1)
    np.testing.assert_allclose(embedding(torch.tensor(steps)).numpy(), expected, atol=1e-5)


def test_residual_mlp_is_the_written_formula():
    torch.manual_seed(0)
    network, x = ResidualMLP(3, 4, 5, 2, "relu"), torch.randn(6, 3)
    first, *blocks, last = network.layers
    h = first(x)
    for block in blocks:
        h = h + block.second(torch.relu(block.first(torch.relu(h))))
    assert len(blocks) == 2
    torch.testing.assert_close(network(x), last(h))


def test_residual_mlp_refuses_an_even_number_of_hidden_layers():
    with pytest.raises(ValueError, match="num_hidden = 4"):
        ResidualMLP(3, 8, 4, 2, "mish")


def test_the_critic_returns_one_number_per_observation():
    assert ValueNetwork(3, 8)(torch.zeros(5, 3)).shape == (5,)


# -- normaliser -------------------------------------------------------------------------------------------------------
def test_normalizer_maps_the_range_to_plus_minus_one_and_does_not_clip():
    normalizer = Normalizer(unit_stats())
    ends = torch.tensor([[-1.0] * 3, [0.5] * 3, [2.0] * 3, [5.0] * 3])
    torch.testing.assert_close(normalizer.obs(ends)[:, 0], torch.tensor([-1.0, 0.0, 1.0, 3.0]), rtol=0, atol=3e-6)
    actions = torch.linspace(-3, 3, 10).reshape(5, 2)
    torch.testing.assert_close(normalizer.unnormalize_action(normalizer.action(actions)), actions)


def test_the_ranges_are_saved_with_the_weights():
    policy, other = tiny_policy(), tiny_policy(seed=5, stats=None)
    other.normalizer.obs_low.fill_(-9.0)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.normalizer.obs_low, policy.normalizer.obs_low)


# -- noise schedule ---------------------------------------------------------------------------------------------------
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
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(InrilError, match=message):
        build(DiffusionConfig, settings, "actor")


@pytest.mark.parametrize("steps", [1, 6])
def test_every_denoising_step_can_be_finetuned(steps):
    policy = tiny_policy(denoising_steps=steps, finetuned_steps=steps)
    assert isinstance(policy, DiffusionPolicy)
    obs, noise = random_inputs(policy)
    action = policy.act(obs, noise, deterministic=False)
    torch.testing.assert_close(action.chain[:, 0], noise[:, 0].clamp(-3, 3))
    torch.testing.assert_close(policy.log_prob(*flattened(action, obs)), action.log_probs.flatten(), rtol=0, atol=1e-5)
    assert fake_spec().action_dim == action.chunk.shape[-1]
