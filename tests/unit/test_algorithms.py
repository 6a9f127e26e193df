"""DPPO and PPO: from rollouts to minibatches to losses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from inril_ray.losses.returns import RewardScaler, gae
from inril_ray.rollout import ActionNoise
from inril_ray.types import InrilError, Rollout
from tests.fakes import tiny_algorithm, tiny_collector, tiny_policy, tiny_rollouts


@pytest.fixture
def policy():
    return tiny_policy()


@pytest.fixture
def rollout(policy) -> Rollout:
    """Two episodes in each environment: the first is cut by the time limit after five decisions."""
    collected = tiny_rollouts(policy, 1, num_envs=4, num_decisions=6)[0]
    rewards = np.random.default_rng(0).normal(0.0, 3.0, collected.rewards.shape).astype(np.float32)
    return dataclasses.replace(collected, rewards=rewards)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def actor_gradient(algorithm, policy, minibatch) -> torch.Tensor:
    grads = torch.autograd.grad(algorithm.loss(policy, minibatch).policy, policy.trainable(), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


# -- step weights -----------------------------------------------------------------------------------------------------
def test_dppo_discounts_and_clips_each_denoising_step():
    weights, clips = tiny_algorithm("dppo", clip_ratio=0.01, clip_ratio_base=0.001).step_weights(10)
    assert weights == pytest.approx([0.99**9, *(0.99**k for k in range(8, -1, -1))])
    assert clips[0] == pytest.approx(0.001)
    assert clips[4] == pytest.approx(0.002317, abs=1e-6)
    assert clips[-1] == pytest.approx(0.01)


def test_ppo_treats_all_steps_alike():
    assert tiny_algorithm("ppo", clip_ratio=0.2).step_weights(3) == ([1.0] * 3, [0.2] * 3)


# -- prepare ----------------------------------------------------------------------------------------------------------
def test_prepare_scales_rewards_estimates_advantages_and_flattens(policy, rollout):
    algorithm = tiny_algorithm("dppo", discount=0.95, gae_lambda=0.9, time_limits="bootstrap")
    with torch.no_grad():
        values, following = (
            algorithm.critic(policy.normalizer.obs(torch.from_numpy(o))).numpy()
            for o in (rollout.obs, rollout.next_obs)
        )
    over = rollout.terminated | rollout.truncated
    assert over.any()
    rewards = RewardScaler(4)(rollout.rewards, over, True)
    advantages = gae(rewards, values, following, rollout.terminated, rollout.truncated, discount=0.95, gae_lambda=0.9)
    batch = algorithm.prepare(rollout, policy, fresh_start=True)
    np.testing.assert_allclose(batch.advantages.numpy(), advantages.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.returns.numpy(), (advantages + values).ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch.obs.numpy(), rollout.obs.reshape(-1, 3))
    np.testing.assert_array_equal(batch.chains.numpy(), rollout.chains.reshape(-1, 4, 3, 2))
    assert batch.num_samples == 6 * 4 * 3
    assert batch.num_minibatches == 72 // 20
    returns = advantages + values
    explained = 1 - (returns - values).var() / returns.var()
    assert batch.stats == {"explained_variance": pytest.approx(explained, rel=1e-3, abs=1e-4), "dropped_samples": 0.0}


def test_reward_scaling_is_an_option(policy, rollout):
    plain = tiny_algorithm("dppo", scale_rewards=False, gae_lambda=0.0, discount=0.0)
    with torch.no_grad():
        values = plain.critic(policy.normalizer.obs(torch.from_numpy(rollout.obs))).numpy()
    batch = plain.prepare(rollout, policy, fresh_start=True)
    np.testing.assert_allclose(batch.advantages.numpy(), (rollout.rewards - values).ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["bootstrap", "terminal", "next_episode"])
def test_what_follows_a_time_limit(policy, rule):
    """By hand, from the sums that define the advantages; the reference's rule is that of DPPO's agent code."""
    rollout = tiny_rollouts(policy, 1, num_decisions=10)[0]
    rewards = np.random.default_rng(0).normal(size=rollout.rewards.shape).astype(np.float32)
    rollout = dataclasses.replace(rollout, rewards=rewards)
    steps, envs = rollout.rewards.shape
    assert rollout.truncated[-1].any() and rollout.truncated[:-1].any()
    algorithm = tiny_algorithm("dppo", time_limits=rule, scale_rewards=False, discount=0.95, gae_lambda=0.9)

    def valued(obs):
        with torch.no_grad():
            return algorithm.critic(policy.normalizer.obs(torch.from_numpy(obs))).numpy().astype(np.float64)

    values, final, last = valued(rollout.obs), valued(rollout.next_obs), valued(rollout.last_obs)
    expected = np.zeros((steps, envs))
    for b in range(envs):
        carried = 0.0
        for t in reversed(range(steps)):
            over = rollout.terminated[t, b] or rollout.truncated[t, b]
            if rollout.terminated[t, b] or (over and rule == "terminal"):
                follows, carried = 0.0, 0.0
            elif over and rule == "next_episode":
                follows = values[t + 1, b] if t + 1 < steps else last[b]
            else:
                follows, carried = final[t, b], 0.0 if over else carried
            carried = rollout.rewards[t, b] + 0.95 * follows - values[t, b] + 0.95 * 0.9 * carried
            expected[t, b] = carried
    actual = algorithm.prepare(rollout, policy, fresh_start=True).advantages.numpy()
    np.testing.assert_allclose(actual, expected.ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["bootstrap", "terminal"])
def test_what_the_guard_cut_is_no_end_of_the_task(policy, rule):
    """The rows before a failure of the simulator expect what its last observation is worth, not nothing."""
    rollout = tiny_rollouts(policy, 1, num_decisions=4)[0]
    assert not (rollout.terminated | rollout.truncated).any()
    truncated, valid = rollout.truncated.copy(), rollout.valid.copy()
    truncated[2, 1], valid[2, 1] = True, False
    broken = dataclasses.replace(rollout, truncated=truncated, valid=valid)
    algorithm = tiny_algorithm("dppo", time_limits=rule, scale_rewards=False, discount=0.95, gae_lambda=0.9)
    algorithm.critic.forward = lambda obs: torch.full(obs.shape[:-1], 10.0)
    advantages = np.full(rollout.rewards.shape, np.nan)
    advantages[valid] = algorithm.prepare(broken, policy, fresh_start=True).advantages.numpy()
    rewards = rollout.rewards[:, 1].astype(np.float64)
    second = rewards[1] + 0.95 * 10 - 10 + 0.95 * 0.9 * (rewards[2] + 0.95 * 10 - 10)
    assert advantages[1, 1] == pytest.approx(second, rel=1e-5)


def test_the_last_observation_of_a_rollout_is_where_the_next_one_decides(policy):
    collector = tiny_collector(policy, num_decisions=5)
    collector.reset_each = False
    first, second = collector.collect(0), collector.collect(0)
    np.testing.assert_array_equal(first.last_obs, second.obs[0])
    ended = first.truncated[-1]
    assert ended.any() and not (first.last_obs[ended] == first.next_obs[-1][ended]).all(axis=1).any()
    joined = Rollout.concatenate([first, second])
    np.testing.assert_array_equal(joined.last_obs, np.concatenate([first.last_obs, second.last_obs]))


def test_invalid_samples_are_dropped_and_the_rest_untouched(policy, rollout):
    valid = rollout.valid.copy()
    valid[2, 1] = valid[5, 3] = False
    whole, batch = (
        tiny_algorithm("dppo").prepare(r, policy, fresh_start=True)
        for r in (rollout, dataclasses.replace(rollout, valid=valid))
    )
    assert batch.num_samples == (24 - 2) * 3
    assert batch.stats["dropped_samples"] == 2.0
    assert torch.equal(batch.obs, whole.obs[torch.from_numpy(valid.ravel())])
    assert torch.equal(batch.advantages, whole.advantages[torch.from_numpy(valid.ravel())])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_advantage_that_is_not_finite_drops_its_environment_only(policy, rollout, bad):
    rewards = rollout.rewards.copy()
    rewards[5, 2] = bad
    algorithm = tiny_algorithm("dppo", scale_rewards=False)
    with np.errstate(invalid="ignore"):
        batch = algorithm.prepare(dataclasses.replace(rollout, rewards=rewards), policy, fresh_start=True)
    assert batch.advantages.isfinite().all()
    assert batch.returns.isfinite().all()
    assert 1 <= batch.stats["dropped_samples"] <= 6
    assert batch.num_samples == (24 - batch.stats["dropped_samples"]) * 3


def test_an_advantage_that_is_not_finite_drops_its_episode_only(policy, rollout):
    rewards = rollout.rewards.copy()
    rewards[5, 2] = math.nan
    assert rollout.truncated[4, 2]
    algorithm = tiny_algorithm("dppo", scale_rewards=False)
    batch = algorithm.prepare(dataclasses.replace(rollout, rewards=rewards), policy, fresh_start=True)
    assert batch.stats["dropped_samples"] == 1


def test_a_reward_that_is_not_finite_does_not_end_reward_scaling(policy, rollout):
    algorithm = tiny_algorithm("dppo")
    bad = rollout.rewards.copy()
    bad[5, 2] = math.nan
    algorithm.prepare(rollout, policy, fresh_start=True)
    before = algorithm.reward_scaler.moments.std
    algorithm.prepare(dataclasses.replace(rollout, rewards=bad), policy, fresh_start=True)
    assert algorithm.reward_scaler.moments.std == pytest.approx(before, rel=0.2)


def test_a_rollout_without_a_valid_sample_is_an_error(policy, rollout):
    with pytest.raises(InrilError, match="No valid sample"):
        tiny_algorithm("dppo").prepare(
            dataclasses.replace(rollout, valid=np.zeros_like(rollout.valid)), policy, fresh_start=True
        )


# -- minibatches ------------------------------------------------------------------------------------------------------
def test_a_pass_covers_every_sample_at_most_once_and_drops_the_last_partial_minibatch(policy, rollout):
    batch = tiny_algorithm("dppo").prepare(rollout, policy, fresh_start=True)
    parts = list(batch.minibatches(generator()))
    assert [len(p.step) for p in parts] == [20, 20, 20]
    scores = torch.cat([p.old_log_prob for p in parts])
    assert torch.isin(scores, batch.log_probs).all()
    assert len(scores.unique()) == len(batch.log_probs.flatten().unique()) - 12
    assert set(torch.cat([p.step for p in parts]).tolist()) == {0, 1, 2}
    again = list(batch.minibatches(generator()))
    other = list(batch.minibatches(generator(1)))
    assert torch.equal(parts[0].obs, again[0].obs)
    assert not torch.equal(parts[0].obs, other[0].obs)


def test_a_minibatch_larger_than_the_rollout_takes_all_of_it(policy, rollout):
    batch = tiny_algorithm("dppo", minibatch_size=1000).prepare(rollout, policy, fresh_start=True)
    (only,) = batch.minibatches(generator())
    assert len(only.step) == 72
    assert len(batch.sample(generator()).step) == 72


def test_samples_keep_their_rows_together(policy, rollout):
    algorithm = tiny_algorithm("dppo")
    batch = algorithm.prepare(rollout, policy, fresh_start=True)
    for minibatch in (next(iter(batch.minibatches(generator()))), batch.sample(generator())):
        assert len(minibatch.step) == 20
        scored = policy.log_prob(minibatch.obs, minibatch.before, minibatch.after, minibatch.step)
        torch.testing.assert_close(scored, minibatch.old_log_prob, rtol=0, atol=1e-5)
        for i in range(20):
            row = int((batch.log_probs[:, minibatch.step[i]] == minibatch.old_log_prob[i]).nonzero()[0])
            assert batch.advantages[row] == minibatch.advantage[i]
            assert batch.returns[row] == minibatch.returns[i]


# -- losses -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["dppo", "ppo"])
def test_loss_at_ratio_one_is_minus_the_weighted_advantage(name):
    policy = tiny_policy({"dppo": "diffusion_mlp", "ppo": "gaussian_mlp"}[name])
    rollout = tiny_rollouts(policy, 1)[0]
    algorithm = (
        tiny_algorithm(name, value_coef=0.25, denoising_discount=0.7)
        if name == "dppo"
        else tiny_algorithm(name, value_coef=0.25)
    )
    batch = algorithm.prepare(rollout, policy, fresh_start=True)
    minibatch = batch.sample(generator())
    losses = algorithm.loss(policy, minibatch)
    a = minibatch.advantage.double()
    weight = 0.7 ** (2 - minibatch.step).double() if name == "dppo" else torch.ones(len(a), dtype=torch.float64)
    expected = -((a - a.mean()) / a.std() * weight).mean()
    assert losses.policy.item() == pytest.approx(float(expected), abs=1e-5)
    values = algorithm.critic(policy.normalizer.obs(minibatch.obs))
    expected = 0.25 * 0.5 * ((values - minibatch.returns) ** 2).mean()
    torch.testing.assert_close(losses.value, expected)
    assert losses.stats["value_loss"].item() == pytest.approx(4 * losses.value.item())
    assert losses.stats["approx_kl"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses.stats["clip_fraction"].item() == 0.0
    assert not any(v.requires_grad for v in losses.stats.values())


def test_actor_gradient_is_the_weighted_score(policy, rollout):
    algorithm = tiny_algorithm("dppo")
    minibatch = algorithm.prepare(rollout, policy, fresh_start=True).sample(generator())
    a = minibatch.advantage
    weight = (a - a.mean()) / a.std() * 0.99 ** (2 - minibatch.step)
    score = policy.log_prob(minibatch.obs, minibatch.before, minibatch.after, minibatch.step)
    expected = torch.autograd.grad(-(weight * score).mean(), policy.trainable())
    torch.testing.assert_close(
        actor_gradient(algorithm, policy, minibatch), torch.cat([g.flatten() for g in expected]), rtol=1e-3, atol=1e-6
    )


def test_a_step_along_the_gradient_raises_the_likelihood_of_good_actions(policy, rollout):
    algorithm = tiny_algorithm("dppo")
    minibatch = algorithm.prepare(rollout, policy, fresh_start=True).sample(generator())
    minibatch = dataclasses.replace(minibatch, advantage=(minibatch.after.mean(dim=(1, 2)) > 0).float())
    algorithm.loss(policy, minibatch).policy.backward()
    with torch.no_grad():
        for p in policy.trainable():
            p -= 1e-3 * p.grad
        score = policy.log_prob(minibatch.obs, minibatch.before, minibatch.after, minibatch.step)
    change, good = score - minibatch.old_log_prob, minibatch.advantage > 0
    assert good.any()
    assert (~good).any()
    assert change[good].mean() > change[~good].mean()


def test_the_actor_loss_does_not_reach_the_critic_nor_the_frozen_network(policy, rollout):
    algorithm = tiny_algorithm("dppo")
    losses = algorithm.loss(policy, algorithm.prepare(rollout, policy, fresh_start=True).sample(generator()))
    losses.policy.backward()
    assert all(p.grad is None for p in [*algorithm.critic.parameters(), *policy.base.parameters()])
    policy.zero_grad()
    losses.value.backward()
    assert all(p.grad is None for p in policy.parameters())
    assert any(p.grad.any() for p in algorithm.critic.parameters())


# -- the rest ---------------------------------------------------------------------------------------------------------
def test_updates_stop_above_the_kl_target():
    algorithm = tiny_algorithm("dppo", target_kl=0.5)
    assert algorithm.should_stop({"approx_kl": torch.tensor(0.51)})
    assert not algorithm.should_stop({"approx_kl": torch.tensor(0.49)})
    assert not algorithm.should_stop({"approx_kl": torch.tensor(math.nan)})
    assert not tiny_algorithm("dppo", target_kl=None).should_stop({"approx_kl": torch.tensor(9.0)})


def test_the_actor_waits_for_the_critic():
    algorithm = tiny_algorithm("dppo", critic_warmup_iterations=2)
    assert [algorithm.trains_actor(i) for i in range(4)] == [False, False, True, True]


def test_the_learning_rate_of_the_actor_is_constant_or_falls_along_half_a_cosine():
    constant = tiny_algorithm("dppo", actor_lr=1e-4)
    assert [constant.actor_lr(i) for i in (0, 50, 1000)] == [1e-4] * 3
    falling = tiny_algorithm("dppo", actor_lr=1e-4, actor_min_lr=2e-5, lr_decay_iterations=80)
    expected = [1e-4, 2e-5 + 8e-5 * 0.5 * (1 + math.sqrt(0.5)), 6e-5, 2e-5, 2e-5]
    assert [falling.actor_lr(i) for i in (0, 20, 40, 80, 500)] == pytest.approx(expected)


def test_nominal_updates_are_the_minibatches_of_all_passes(policy, rollout):
    for size, epochs, expected in ((20, 2, 6), (7, 3, 30), (1000, 4, 4)):
        batch = tiny_algorithm("dppo", num_epochs=epochs, minibatch_size=size).prepare(
            rollout, policy, fresh_start=True
        )
        assert batch.nominal_updates == expected == len(list(batch.updates(generator())))


def test_reward_statistics_survive_a_checkpoint(policy, rollout):
    first, second = tiny_algorithm("dppo"), tiny_algorithm("dppo")
    first.prepare(rollout, policy, fresh_start=True)
    second.load_state_dict(first.state_dict())
    a, b = (x.prepare(rollout, policy, fresh_start=False) for x in (first, second))
    assert torch.equal(a.advantages, b.advantages)
    fresh = tiny_algorithm("dppo").prepare(rollout, policy, fresh_start=True)
    assert not torch.equal(a.advantages, fresh.advantages)


def test_action_noise_has_a_stream_for_each_environment():
    whole = ActionNoise(3, 0, range(4), (2, 2))
    right = ActionNoise(3, 0, [2, 3], (2, 2))
    for _ in range(3):
        assert torch.equal(whole.draw()[2:], right.draw())
    assert not torch.equal(ActionNoise(3, 1, [2, 3], (2, 2)).draw(), ActionNoise(3, 0, [2, 3], (2, 2)).draw())
