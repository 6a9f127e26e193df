"""Residual policies: a planned base, a correction, and what each kind of learning may change."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from inril_ray.envs.base_actions import BaseActions
from inril_ray.policies import POLICIES
from inril_ray.policies.base import Normalizer
from inril_ray.policies.denoising import cosine_betas
from inril_ray.policies.residual import ResidualNormalizer
from inril_ray.registry import resolve
from inril_ray.rollout import decision_env
from tests.fakes import (
    FakeEnv,
    fake_spec,
    tiny_algorithm,
    tiny_collector,
    tiny_learner,
    tiny_policy,
    unit_stats,
)


@pytest.fixture
def policy():
    return tiny_policy("residual_mlp")


def played(policy, env, steps: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Observations and executed actions of the uncorrected base."""
    executed, seen = [], [env.reset()]
    for _ in range(steps):
        action = policy.act(torch.from_numpy(seen[-1]), torch.zeros(len(seen[-1]), 1, 2), deterministic=True)
        executed.append(action.chunk[:, 0].numpy())
        seen.append(env.step(action.chunk.numpy()).obs)
    return np.stack(seen), np.stack(executed)


# -- the policy -------------------------------------------------------------------------------------------------------
def test_without_training_it_is_its_base(policy):
    obs, executed = played(policy, decision_env(FakeEnv(3), policy))
    base = torch.from_numpy(obs[:-1, :, 3:])
    np.testing.assert_allclose(executed, policy.normalizer.unnormalize_action(base), atol=1e-6)


def test_evaluation_adds_a_tenth_of_the_mean_and_training_explores(policy):
    torch.nn.init.normal_(policy.correction.trunk.layers[-1].weight)
    obs, noise = torch.randn(6, 5), torch.randn(6, 1, 2)
    mean = policy.correction(policy.normalizer.obs(obs))
    assert mean.abs().min() > 0
    for deterministic, delta in ((True, mean), (False, mean + np.exp(-1.0) * noise[:, 0])):
        action = policy.act(obs, noise, deterministic=deterministic)
        torch.testing.assert_close(action.chunk[:, 0], policy.normalizer.unnormalize_action(obs[:, 3:] + 0.1 * delta))
        normal = torch.distributions.Normal(mean, np.exp(-1.0))
        torch.testing.assert_close(action.log_probs[:, 0], normal.log_prob(delta).sum(dim=1))


def test_observations_are_clipped_and_base_actions_are_not(policy):
    seen = policy.normalizer.obs(torch.tensor([[1e6, -1e6, 0.5, 7.0, -8.0]]))
    assert seen[0, :2].tolist() == [3.0, -3.0]
    assert seen[0, 3:].tolist() == [7.0, -8.0]


def written_chain(policy, chunk: np.ndarray, obs: np.ndarray) -> np.ndarray:
    """The steps of diffusers' DDIM without noise, from networks of float64."""
    cfg = policy.config.base
    alpha_bar = np.cumprod(1 - cosine_betas(cfg.denoising_steps).numpy())
    stride = cfg.denoising_steps // cfg.ddim_steps
    seen = torch.from_numpy(2 * (obs + 1.0) / (3.0 + 1e-6) - 1).clamp(-3, 3)
    for level in range((cfg.ddim_steps - 1) * stride, -1, -stride):
        now, after = alpha_bar[level], alpha_bar[level - stride] if level else 1.0
        step = torch.full((len(chunk),), level)
        noise = policy.base.actor(torch.from_numpy(chunk), step, seen).detach().numpy()
        clean = np.clip((chunk - np.sqrt(1 - now) * noise) / np.sqrt(now), -1, 1)
        chunk = np.sqrt(after) * clean + np.sqrt(1 - after) * noise
    return chunk


@pytest.mark.parametrize("name", ["residual_mlp", "residual_unet"])
@pytest.mark.parametrize("warm", [True, False])
def test_a_plan_is_resip_s_chain_from_the_last_plan_noised_to_the_second_level(name, warm):
    """Chunks of an untrained base are clipped nearly everywhere; the warm start is at level 1 of the ranks 2, 1, 0."""
    policy = tiny_policy(name, warm_start=warm).double()
    rng, base = np.random.default_rng(0), policy.config.base
    obs, former = rng.normal(size=(5, 3)), rng.uniform(-1, 1, (5, 4, 2))
    former[3:] = 0.0  # a new episode
    noise = rng.normal(size=(5, *policy.base.noise_shape))
    level = np.cumprod(1 - cosine_betas(base.denoising_steps).numpy())[base.denoising_steps // base.ddim_steps]
    start = np.sqrt(level) * former + np.sqrt(1 - level) * noise[:, 0] if warm else noise[:, 0]
    np.testing.assert_allclose(policy.plan(obs, noise, former), written_chain(policy, start, obs), atol=1e-6)


# -- base actions as part of the environment --------------------------------------------------------------------------
class Counting:
    """Plans that tell which one they are: environment's position, plan and place in the chunk."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []
        self.former: list[list[float]] = []

    def __call__(self, obs, noise, former):
        self.asked.append(obs[:, 2].tolist())
        self.former.append(former[0, :, 0].tolist())
        at = np.arange(4, dtype=np.float32)[None, :, None]
        return np.broadcast_to(100 * obs[:, None, 2:3] + at, (len(obs), 4, 2)).astype(np.float32)


def wrapped(num_envs: int = 2, limit: int = 5, replan_every: int = 2) -> tuple[BaseActions, Counting]:
    from inril_ray.envs.chunking import ChunkedEnv

    plan = Counting()
    env = ChunkedEnv(FakeEnv(num_envs, max_episode_steps=limit), 1)
    return BaseActions(env, plan, noise_shape=(2,), chunk_shape=(4, 2), replan_every=replan_every), plan


def test_chunks_are_used_up_to_their_action_horizon_and_dropped_at_ends():
    env, plan = wrapped()
    rows = [env.reset()]
    for _ in range(7):
        rows.append(env.step(np.zeros((2, 1, 2), np.float32)).obs)
    clock = [round(5 * float(r[0, 2])) for r in rows]
    assert clock == [0, 1, 2, 3, 4, 0, 1, 2], "an episode has five steps"
    assert [round(float(r[0, 3])) for r in rows] == [0, 1, 40, 41, 80, 0, 1, 40]
    assert len(plan.asked) == 5, "at the steps 0, 2 and 4 of the first episode and 0 and 2 of the next"


def test_a_plan_gets_what_is_left_of_the_last_one_and_zeros():
    env, plan = wrapped()
    env.reset()
    for _ in range(7):
        env.step(np.zeros((2, 1, 2), np.float32))
    left = [[round(x) for x in row] for row in plan.former]
    assert left == [[0, 0, 0, 0], [2, 3, 0, 0], [42, 43, 0, 0], [0, 0, 0, 0], [2, 3, 0, 0]]
    env, plan = wrapped(replan_every=4)
    env.reset()
    for _ in range(4):
        env.step(np.zeros((2, 1, 2), np.float32))
    assert plan.former == [[0, 0, 0, 0]] * 2, "nothing is left of a plan that is used up"


def test_what_is_left_is_saved():
    states = []
    for stop in (3, None):  # interrupted in the middle of a chunk, or not
        env, plan = wrapped()
        env.reset()
        for t in range(4):
            if t == stop:
                state, (env, plan) = env.get_state(), wrapped()
                env.set_state(state)
            env.step(np.zeros((2, 1, 2), np.float32))
        states.append(plan.former[-1])
    assert states[0] == states[1] != [0, 0, 0, 0]


def test_the_final_observation_comes_with_the_action_that_would_have_followed():
    env, _ = wrapped()
    env.reset()
    for _ in range(4):
        outcome = env.step(np.zeros((2, 1, 2), np.float32))
        np.testing.assert_array_equal(outcome.next_obs, outcome.obs)
    outcome = env.step(np.zeros((2, 1, 2), np.float32))
    assert outcome.truncated.all()
    assert outcome.next_obs[0, 2:4].tolist() == pytest.approx([1.0, 81.0])
    assert outcome.obs[0, 2:4].tolist() == [0.0, 0.0]


def test_plans_do_not_depend_on_how_environments_are_split(policy):
    whole = played(policy, decision_env(FakeEnv(4), policy))[0]
    parts = [played(policy, decision_env(FakeEnv(2, first_env=first), policy))[0] for first in (0, 2)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)


def test_collection_goes_on_from_its_state(policy):
    first = tiny_collector(policy, num_decisions=7)
    first.reset_each = False
    first.collect(0)
    other = tiny_collector(policy, num_decisions=7)
    other.reset_each = False
    state = first.state_dict()
    assert json.dumps(state["noise"])
    other.load_state_dict(state)
    a, b = first.collect(1), other.collect(1)
    for name in ("obs", "chains", "next_obs", "rewards"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# -- learning ---------------------------------------------------------------------------------------------------------
def rollout_of(policy, num_decisions: int = 12):
    rollout = tiny_collector(policy, num_decisions=num_decisions).collect(0)
    rewards = np.random.default_rng(0).normal(size=rollout.rewards.shape).astype(np.float32)
    return dataclasses.replace(rollout, rewards=rewards)


@pytest.mark.parametrize("accumulate", [1, 7, 20, 48])
def test_parts_of_a_rollout_add_up_to_the_whole(policy, accumulate):
    gradients = {}
    for size in (None, accumulate):
        algorithm = tiny_algorithm("residual_ppo", policy=policy, accumulate=size)
        batch = algorithm.prepare(rollout_of(policy), policy, fresh_start=True)
        (minibatch,) = batch.minibatches(torch.Generator().manual_seed(0))
        assert len(minibatch.step) == 48
        parts = algorithm.parts(minibatch)
        assert sum(share for _, share in parts) == pytest.approx(1.0)
        policy.zero_grad()
        algorithm.critic.zero_grad()
        for part, share in parts:
            losses = algorithm.loss(policy, part)
            (share * (losses.policy + losses.value)).backward()
        both = [*policy.trainable(), *algorithm.critic.parameters()]
        gradients[size] = torch.cat([p.grad.flatten() for p in both])
    torch.testing.assert_close(gradients[None], gradients[accumulate], rtol=1e-4, atol=1e-6)
    assert gradients[None].norm() > 0.01


def weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_reinforcement_leaves_the_base_alone_and_imitation_the_correction():
    learner = tiny_learner("residual_ppo", schedule="rl_only", rl={"lr_warmup_iterations": 0})
    learner.begin()
    base, correction = weights(learner.policy.base), weights(learner.policy.correction)
    row = learner.learn(rollout_of(learner.policy), fresh_start=True)
    assert torch.equal(weights(learner.policy.base), base)
    assert not torch.equal(weights(learner.policy.correction), correction)
    assert "rho" not in row
    learner = tiny_learner("residual_ppo", schedule="il_only", every=1, il_steps=3)
    learner.begin()
    base, correction = weights(learner.policy.base), weights(learner.policy.correction)
    row = learner.learn(rollout_of(learner.policy), fresh_start=True)
    assert row["il_updates"] == 3
    assert not torch.equal(weights(learner.policy.base), base)
    assert torch.equal(weights(learner.policy.correction), correction)


@pytest.mark.parametrize("name", ["residual_mlp", "residual_unet", "residual_gaussian"])
def test_how_far_imitation_moves_the_base_is_measured(name):
    row = {}
    for lr in (1e-12, 1e-3):
        learner = tiny_learner("residual_ppo", policy_name=name, every=1, il_steps=3, il_lr=lr, il_weight_decay=0.0)
        learner.begin()
        row[lr] = learner.learn(rollout_of(learner.policy), fresh_start=True)
    assert row[1e-12]["base_change"] < 1e-6 < 1e-3 < row[1e-3]["base_change"]
    assert "correction_il_loss" not in row[1e-3]


def test_naive_interleaving_trains_the_correction_by_imitation_too():
    losses = []
    for lr in (3e-2, 1e-9):
        learner = tiny_learner(
            "residual_ppo", separation="naive", every=1, il_steps=40, rl={"actor_lr": lr, "lr_warmup_iterations": 0}
        )
        learner.begin()
        learner.algorithm.trains_actor = lambda done: False  # only imitation moves the correction
        before = weights(learner.policy.correction)
        row = learner.learn(rollout_of(learner.policy), fresh_start=True)
        assert row["il_updates"] == 40
        losses.append(row["correction_il_loss"])
        moved = (weights(learner.policy.correction) - before).abs().max()
    assert moved < 1e-6
    assert losses[0] < 0.9 * losses[1]


def test_the_correction_imitates_what_the_base_misses(policy):
    obs, actions, noise = torch.randn(5, 3), torch.randn(5, 3, 2), torch.randn(5, *policy.base.noise_shape)
    base = policy.plan(obs.numpy(), noise.numpy(), np.zeros((5, 4, 2), np.float32))[:, 0]
    missing = (policy.normalizer.action(actions[:, 0]) - torch.from_numpy(base)) / 0.1
    torch.testing.assert_close(policy.correction_il_loss(obs, actions, noise), missing.square().mean())


def test_a_deterministic_base_plans_its_mean():
    policy = tiny_policy("residual_gaussian", base={"prediction_horizon": 3, "hidden_dim": 8})
    obs = torch.randn(4, 3)
    plan = policy.plan(obs.numpy(), np.zeros((4, *policy.base.noise_shape)), np.zeros((4, 3, 2), np.float32))
    seen = policy.base.normalizer.obs(obs)
    torch.testing.assert_close(torch.from_numpy(plan), policy.base.actor(seen).view(4, 3, 2), msg="no tanh")
    actions = torch.randn(4, 3, 2)
    error = (policy.base.normalizer.action(actions) - policy.base.actor(seen).view(4, 3, 2)).square().mean()
    torch.testing.assert_close(policy.bc_loss(obs, actions, actions, torch.rand(4)), error, msg="ResiP's loss")


def test_the_deterministic_base_has_the_size_of_resip():
    spec = dataclasses.replace(fake_spec(), obs_dim=58, action_dim=10)
    cls = resolve(POLICIES, "residual_gaussian", "policy")
    policy = cls(cls.Config(), spec, unit_stats(58, 10))
    assert sum(p.numel() for p in policy.base.actor.parameters()) == 10_638_416


def test_actor_and_critic_are_clipped_together(monkeypatch):
    learner = tiny_learner("residual_ppo", schedule="rl_only", rl={"max_grad_norm": 1e-3, "accumulate": None})
    norms, step = [], torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        if self is learner.critic_optimizer:
            both = [*learner.parameters, *learner.algorithm.critic.parameters()]
            norms.append(float(torch.stack([p.grad.norm() for p in both if p.grad is not None]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    learner.learn(rollout_of(learner.policy), fresh_start=True)
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)


def test_the_kl_target_ends_the_epochs_after_the_step_that_passed_it():
    rl = {"num_epochs": 50, "target_kl": 1e-3, "actor_lr": 0.05, "lr_warmup_iterations": 0}
    learner = tiny_learner("residual_ppo", schedule="rl_only", rl=rl)
    seen = []
    stop = learner.algorithm.should_stop
    learner.algorithm.should_stop = lambda stats: seen.append(float(stats["approx_kl"])) or stop(stats)
    row = learner.learn(rollout_of(learner.policy), fresh_start=True)
    assert row["early_stop"] == 1.0
    assert row["rl_updates"] == len(seen) < 50
    assert seen[-1] > 1e-3
    assert all(kl <= 1e-3 for kl in seen[:-1])


def test_learning_rates_are_resip_s():
    """diffusers' cosine schedule, stepped once an iteration: the actor's begins with 0, neither ends with it."""
    algorithm = tiny_algorithm("residual_ppo", lr_decay_iterations=20, actor_lr=1.0, critic_lr=2.0)
    actor = [algorithm.actor_lr(i) for i in range(21)]
    assert actor[:6] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert actor[5:] == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 15)) for i in range(16)])
    assert [algorithm.critic_lr(i) for i in (0, 10)] == pytest.approx([2.0, 1.0])
    of_the_run = tiny_algorithm("residual_ppo", actor_lr=1.0, critic_lr=1.0)  # of 100 iterations here
    assert of_the_run.actor_lr(99) == pytest.approx(0.5 * (1 + np.cos(np.pi * 94 / 95)), rel=1e-6)
    assert of_the_run.critic_lr(99) == pytest.approx(0.5 * (1 + np.cos(np.pi * 0.99)), rel=1e-6)


def test_time_limits_end_or_bootstrap_as_asked(policy):
    rollout = rollout_of(policy)
    assert rollout.truncated.any()
    ended, going = (
        tiny_algorithm("residual_ppo", policy=policy, **limits).prepare(rollout, policy, fresh_start=True)
        for limits in ({}, {"time_limits": "bootstrap"})
    )
    assert not torch.allclose(ended.returns, going.returns)
    by_hand = tiny_algorithm("residual_ppo", policy=policy, time_limits="bootstrap")
    over = rollout.terminated | rollout.truncated
    rollout = dataclasses.replace(rollout, terminated=over, truncated=np.zeros_like(over))
    by_hand = by_hand.prepare(rollout, policy, fresh_start=True)
    assert torch.equal(ended.returns, by_hand.returns)


def test_rewards_are_divided_by_the_deviation_of_all_so_far(policy):
    algorithm = tiny_algorithm("residual_ppo", policy=policy)
    first, second = rollout_of(policy), rollout_of(policy)
    second = dataclasses.replace(second, rewards=second.rewards * 10)
    algorithm.prepare(first, policy, fresh_start=True)
    state = algorithm.state_dict()
    scaled = algorithm.scaled_rewards(second, fresh_start=True)
    both = np.concatenate([first.rewards.ravel(), second.rewards.ravel()])
    np.testing.assert_allclose(scaled, np.clip(second.rewards / both.std(ddof=1), -5, 5), rtol=1e-3)
    again = tiny_algorithm("residual_ppo", policy=policy)
    again.load_state_dict(json.loads(json.dumps(state)))
    np.testing.assert_array_equal(again.scaled_rewards(second, fresh_start=True), scaled)


def test_the_base_s_action_is_left_as_it_is_behind_normalised_observations_of_any_shape():
    stats = unit_stats()
    normalizer = ResidualNormalizer(stats, 3, limit=2.0)
    seen = torch.linspace(-9.0, 9.0, 24).reshape(2, 4, 3)
    base = torch.arange(16.0).reshape(2, 4, 2)
    expected = torch.cat([Normalizer(stats).obs(seen).clamp(-2.0, 2.0), base], dim=2)
    torch.testing.assert_close(normalizer.obs(torch.cat([seen, base], dim=2)), expected)
