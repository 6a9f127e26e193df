"""Algorithms with a replay, and those that weight imitation: each by what its paper says, and by the bugs it avoids."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from inril_ray import checkpoint
from inril_ray.algorithms.idql import BestOfSamples, IDQLConfig, draw_index
from inril_ray.algorithms.off_policy import needs_whole_chain
from inril_ray.losses.policy_gradient import exponential_weights
from inril_ray.losses.returns import returns_to_go
from inril_ray.losses.value import ensemble_loss, expectile_loss
from inril_ray.replay import Transitions
from tests.fakes import ACTOR_OF, POLICY_OF, tiny_algorithm, tiny_collector, tiny_learner, tiny_policy, tiny_rollouts

OFF_POLICY = ("awr", "cal_ql", "dipo", "dql", "ibrl", "idql", "qsm", "rlpd", "sac")
WITH_CRITICS = tuple(name for name in OFF_POLICY if name != "awr")
ALL = (*OFF_POLICY, "rwr", "residual_ppo")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_policy(name: str, **settings):
    policy = tiny_policy(POLICY_OF[name], **ACTOR_OF.get(name, {}))
    return policy, tiny_algorithm(name, policy=policy, **settings)


def rollout_of(policy, seed: int = 0, num_decisions: int = 6):
    rollout = tiny_rollouts(policy, 1, num_decisions=num_decisions)[0]
    rewards = np.random.default_rng(seed).normal(size=rollout.rewards.shape).astype(np.float32)
    return dataclasses.replace(rollout, rewards=rewards)


class Bowl(nn.Module):
    """Values -|chunk - aim|^2 of two members that differ by a constant."""

    def __init__(self, aim: float = 0.5) -> None:
        super().__init__()
        self.aim = nn.Parameter(torch.tensor(aim))

    def forward(self, obs, chunk):
        value = -(chunk - self.aim).square().flatten(1).sum(dim=1)
        return torch.stack([value, value + 1.0])


def batch_of(policy, size: int = 16, **changes) -> Transitions:
    g = generator(3)
    chunk = (policy.horizon, 2)
    arrays = {
        "obs": torch.randn(size, 3, generator=g),
        "actions": torch.rand(size, *chunk, generator=g) * 2 - 1,
        "rewards": torch.randn(size, generator=g),
        "next_obs": torch.randn(size, 3, generator=g),
        "terminated": torch.zeros(size),
        "index": torch.arange(size),
        "note": torch.zeros(size),
    }
    return Transitions(**{**arrays, **changes}, seed=5)


# -- losses -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("expectile", "expected"), [(0.7, 0.604356), (0.8, 0.666667), (0.9, 0.75)])
def test_expectiles_of_the_uniform_distribution(expectile, expected):
    value = torch.tensor(0.5, requires_grad=True)
    samples = torch.linspace(0, 1, 20_001)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(expectile_loss(samples - value, expectile), value)
        value = (value - gradient).detach().requires_grad_()
    assert value.item() == pytest.approx(expected, abs=1e-3)


def test_an_ensemble_against_targets_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        ensemble_loss(torch.zeros(2, 5), torch.zeros(5, 1))


def test_an_ensemble_s_loss_is_the_sum_over_members_of_the_mean_over_samples():
    values = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]], dtype=torch.float64)
    targets = torch.tensor([1.0, 0.0, 6.0], dtype=torch.float64)
    # (0 + 4 + 9) / 3 + (1 + 0 + 0) / 3
    assert ensemble_loss(values, targets).item() == pytest.approx(14 / 3)


def test_each_critic_is_stepped_as_if_it_were_alone():
    """The sum over members, not their mean: more critics don't slow each other down."""
    values = torch.tensor([[1.0], [5.0], [2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ensemble_loss(values, torch.tensor([2.0])), values)
    assert gradient[:, 0].tolist() == [-2.0, 6.0, 0.0]


def test_exponential_weights_are_limited_and_do_not_overflow():
    weights = exponential_weights(torch.tensor([-1e4, 0.0, 1e4]), 10.0, 100.0)
    assert weights.tolist() == pytest.approx([math.exp(-10), 1.0, 100.0], rel=1e-4)


def test_returns_to_go_by_hand():
    rewards = np.array([[1.0], [2.0], [3.0], [4.0]])
    over = np.array([[False], [True], [False], [False]])
    returns, finished = returns_to_go(rewards, over, 0.5)
    assert returns[:, 0].tolist() == [2.0, 2.0, 5.0, 4.0]
    assert finished[:, 0].tolist() == [True, True, False, False]


# -- what all have in common ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WITH_CRITICS)
def test_critics_are_not_copies_of_each_other_and_stay_apart(name):
    """In the reference code they are, for ever."""
    policy, algorithm = with_policy(name)
    obs, chunk = torch.randn(50, 3), torch.randn(50, policy.horizon, 2)
    assert algorithm.critics(obs, chunk).std(dim=0).min() > 1e-4
    experience = algorithm.prepare(rollout_of(algorithm.acting), policy, fresh_start=True)
    for update in experience.updates(generator()):
        if update.critic:
            stats = algorithm.update_critics(policy, update.minibatch)
    assert stats["q_spread"] > 1e-4
    assert algorithm.critics(obs, chunk).std(dim=0).min() > 1e-4


@pytest.mark.parametrize("name", WITH_CRITICS)
def test_targets_bootstrap_through_time_limits_and_not_through_ends(name, monkeypatch):
    policy, algorithm = with_policy(name, **({"conservatism": 0.0} if name == "cal_ql" else {}))
    seen = {}
    monkeypatch.setattr(
        "inril_ray.algorithms.off_policy.critic_stats", lambda q, target, loss: seen.update(target=target) or {}
    )
    for module in ("idql", "actor_critic", "ibrl"):
        monkeypatch.setattr(
            f"inril_ray.algorithms.{module}.critic_stats", lambda q, t, loss: seen.update(target=t) or {}
        )
    ended = torch.tensor([0.0, 1.0] * 8)
    batch = batch_of(policy, terminated=ended)
    algorithm.update_critics(policy, batch)
    over = ended.bool()
    torch.testing.assert_close(seen["target"][over], batch.rewards[over])
    assert (seen["target"] - batch.rewards)[~over].abs().min() > 1e-6
    other = dataclasses.replace(batch, next_obs=batch.next_obs + 1)
    before = seen["target"]
    algorithm.update_critics(policy, other)
    assert not torch.allclose(seen["target"][~over], before[~over]), "what followed matters"


@pytest.mark.parametrize("name", ALL)
def test_losses_are_the_same_when_asked_twice(name):
    policy, algorithm = with_policy(name)
    collector = tiny_collector(algorithm.acting)
    experience = algorithm.prepare(collector.collect(0), policy, fresh_start=True)
    minibatch = experience.sample(generator())
    first, second = (algorithm.loss(policy, minibatch).policy for _ in range(2))
    assert torch.equal(first, second)
    assert first.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_the_actor_s_loss_moves_nothing_but_the_actor(name):
    learner = tiny_learner(name)
    learner.begin()
    experience = learner.algorithm.prepare(
        tiny_collector(learner.algorithm.acting).collect(0), learner.policy, fresh_start=True
    )
    losses = learner.algorithm.loss(learner.policy, experience.sample(generator()))
    gradients = torch.autograd.grad(losses.policy, learner.parameters, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("schedule", ["fixed", "rl_only", "bc_reg"])
def test_a_resumed_learner_continues_bit_by_bit(tmp_path, name, schedule):
    if name == "residual_ppo" and schedule == "bc_reg":
        pytest.skip("refused: imitation and reinforcement train different parameters")
    learner = tiny_learner(name, schedule=schedule, every=2, il_steps=2)
    learner.begin()
    collector = tiny_collector(learner.algorithm.acting)

    def step(who, rollout):
        metrics = who.learn(rollout, fresh_start=True)
        return {k: v for k, v in metrics.items() if not k.endswith("_s")}

    for i in range(3):
        step(learner, collector.collect(i))
    path = checkpoint.write(tmp_path, 3, learner.state_dict(), keep=1)
    other = tiny_learner(name, schedule=schedule, every=2, il_steps=2, seed=77, network_seed=5)
    other.load_state_dict(checkpoint.read(path))
    for i in range(3, 5):
        rollout = collector.collect(i)
        assert step(learner, rollout) == step(other, rollout)
    for (key, a), b in zip(learner.modules().items(), other.modules().values(), strict=True):
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(p, q), key
    for p, q in zip(
        learner.algorithm.acting.state_dict().values(), other.algorithm.acting.state_dict().values(), strict=True
    ):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_updates_follow_the_replay_ratio(name):
    learner = tiny_learner(name, schedule="rl_only", rl={"replay_ratio": 4, "batch_size": 8, "critic_steps": 3})
    learner.begin()
    experience = learner.algorithm.prepare(
        tiny_collector(learner.algorithm.acting).collect(0), learner.policy, fresh_start=True
    )
    updates = list(experience.updates(generator()))
    steps = sum(u.actor for u in updates)
    assert experience.num_updates == 24 / 8 * 4
    if name in ("rlpd", "ibrl", "idql", "sac", "dql", "qsm"):
        assert (len(updates), steps) == (12, 4)
        assert experience.nominal_updates == 4


@pytest.mark.parametrize(("critic_steps", "order"), [(1, "AAAA"), (2, "cAcA"), (3, "ccAc"), (5, "ccccA")])
def test_the_actor_is_stepped_on_the_last_of_every_few_critic_steps(critic_steps, order):
    """``A``: with the actor. Its gradient comes from critics that have had their steps."""
    policy, algorithm = with_policy("sac", critic_steps=critic_steps)
    algorithm.prepare(rollout_of(policy), policy, fresh_start=True)
    updates = list(algorithm.updates(4, generator()))
    assert "".join("A" if u.actor else "c" for u in updates) == order
    assert all(u.critic for u in updates)
    assert algorithm.actor_updates(4) == order.count("A")


def test_chains_that_are_not_trained_as_a_whole_are_refused():
    config = tiny_policy().config
    assert "actor.finetuned_steps = 3" in str(needs_whole_chain(config))
    assert "actor.action_horizon = 2" in str(needs_whole_chain(dataclasses.replace(config, finetuned_steps=6)))
    assert needs_whole_chain(tiny_policy("gaussian_mlp").config) is None


# -- IDQL -------------------------------------------------------------------------------------------------------------
def chooser(num_samples: int, value: float = 0.0, **settings) -> tuple:
    policy = tiny_policy(**ACTOR_OF["idql"])

    class Constant(nn.Module):
        def forward(self, obs):
            return torch.full((len(obs),), value)

    config = IDQLConfig(num_samples=num_samples, **settings)
    return policy, BestOfSamples(policy, Bowl(), Constant(), config)


@pytest.mark.parametrize("deterministic", [True, False])
def test_one_sample_is_the_plain_policy(deterministic):
    policy, best = chooser(1)
    obs, noise = torch.randn(5, 3), torch.randn(5, *best.noise_shape)
    plain = policy.act(obs, noise[:, :-1].reshape(5, *policy.noise_shape), deterministic=deterministic)
    assert torch.equal(best.act(obs, noise, deterministic=deterministic).chunk, plain.chunk)


def test_evaluation_takes_the_sample_that_critics_value_most():
    policy, best = chooser(8)
    obs, noise = torch.randn(5, 3), torch.randn(5, *best.noise_shape)
    chosen = best.act(obs, noise, deterministic=True).chain[:, -1]
    own = noise[:, :-1].reshape(40, *policy.noise_shape)
    samples = policy.act(obs.repeat_interleave(8, dim=0), own, deterministic=True).chain[:, -1]
    q = Bowl()(None, samples).min(dim=0).values.view(5, 8)
    torch.testing.assert_close(Bowl()(None, chosen).min(dim=0).values, q.max(dim=1).values)
    monotone = BestOfSamples(policy, lambda o, c: (3 * Bowl()(o, c)).exp(), None, best.config)  # type: ignore[arg-type]
    assert torch.equal(
        monotone.act(obs, noise, deterministic=True).chunk, best.act(obs, noise, deterministic=True).chunk
    )


def test_exploration_prefers_samples_better_than_the_state_value():
    probability = torch.tensor([[0.7, 0.7, 0.3]]) / 1.7
    drawn = draw_index(probability.repeat(100_000, 1), torch.randn(100_000, generator=generator()))
    shares = torch.bincount(drawn, minlength=3) / 100_000
    torch.testing.assert_close(shares, probability[0], atol=5e-3, rtol=0)
    policy, best = chooser(12, value=-6.0, exploration_expectile=1.0)  # worse samples are never drawn
    obs = torch.randn(200, 3)
    action = best.act(obs, torch.randn(200, *best.noise_shape), deterministic=False)
    q = Bowl()(None, action.chain[:, -1]).min(dim=0).values
    plain = Bowl()(None, policy.act(obs, torch.randn(200, *policy.noise_shape), deterministic=False).chain[:, -1])
    assert (plain.min(dim=0).values <= -6.0).float().mean() > 0.05, "there are worse samples"
    assert (q <= -6.0).float().mean() < 0.02


# -- DIPO, DQL, QSM ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("aim", [0.5, 5.0])
def test_dipo_moves_actions_up_the_critics_and_into_the_replay(aim):
    policy, algorithm = with_policy("dipo", ascent_steps=50, ascent_lr=0.05)
    algorithm.critics = Bowl(aim)
    algorithm.prepare(rollout_of(policy), policy, fresh_start=True)
    batch = algorithm.draw(generator())
    better = algorithm.improved(batch)
    before, after = (algorithm.critics(None, b.actions)[0] for b in (batch, better))
    assert (after >= before - 1e-6).all()
    assert (after - before).mean() > 0.1
    assert better.actions.abs().max() <= 1.0
    held = algorithm.replay.take(batch.index, generator()).actions
    assert torch.equal(held, better.actions) or len(set(batch.index.tolist())) < len(batch.index)


class Ignoring:
    """A replay that nothing is put back into."""

    def replace_actions(self, index, actions) -> None: ...


def test_dipo_s_step_does_not_depend_on_the_batch_unless_asked_to():
    moved = {}
    for compat in (False, True):
        policy, algorithm = with_policy("dipo", ascent_steps=1, compat_batch_clip=compat)
        algorithm.critics, algorithm.replay = Bowl(0.0), Ignoring()
        one, many = batch_of(policy, 1), batch_of(policy, 16)
        first = algorithm.improved(one).actions - one.actions
        same = dataclasses.replace(many, actions=torch.cat([one.actions, many.actions[1:]]))
        moved[compat] = float((algorithm.improved(same).actions[:1] - one.actions - first).abs().max())
    assert moved[False] < 1e-7


def test_dipo_acts_with_an_average_that_follows_the_actor():
    learner = tiny_learner("dipo", schedule="rl_only", rl={"polyak": 0.25})
    learner.begin()
    target = [p.clone() for p in learner.algorithm.acting.trainable()]
    assert all(torch.equal(a, b) for a, b in zip(target, learner.parameters, strict=True))
    with torch.no_grad():
        for p in learner.parameters:
            p += 1.0
    learner.algorithm.after_actor_step(learner.policy, None)
    for old, now in zip(target, learner.algorithm.acting.trainable(), strict=True):
        torch.testing.assert_close(now, old + 0.25)


@pytest.mark.parametrize("name", ["dql", "qsm", "sac", "ibrl", "rlpd"])
def test_actors_climb_their_critics(name):
    settings = {"init_temperature": 1e-6} if name in ("sac", "rlpd") else {}
    policy, algorithm = with_policy(name, **settings, **({"q_weight": 10.0} if name == "dql" else {}))
    algorithm.critics = Bowl(0.4)
    optimizer = torch.optim.Adam(policy.trainable(), lr=3e-3)
    obs = torch.randn(256, 3, generator=generator(8))

    def value() -> float:
        with torch.no_grad():
            noise = torch.randn(256, *policy.noise_shape, generator=generator(9))
            return float(algorithm.critics(None, policy.sample(obs, noise)).mean())

    before = value()
    for i in range(150):
        batch = dataclasses.replace(batch_of(policy, 32), seed=i)
        loss = algorithm.loss(policy, batch).policy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert value() > before + 0.1 * abs(before)


def test_dql_imitates_the_replay_and_not_itself(monkeypatch):
    for compat in (False, True):
        policy, algorithm = with_policy("dql", compat_own_actions=compat)
        seen = []
        monkeypatch.setattr(algorithm, "imitate_replay", lambda p, b, s=seen: s.append(b.actions) or torch.zeros(()))
        batch = batch_of(policy)
        algorithm.loss(policy, batch)
        assert torch.equal(seen[0], batch.actions) != compat


# -- AWR, RWR ---------------------------------------------------------------------------------------------------------
def test_awr_targets_with_a_long_trace_are_the_returns():
    policy, algorithm = with_policy("awr", td_lambda=1.0, td_step=1.0, discount=0.9, buffer_size=100)
    rollout = rollout_of(policy)
    ended = np.zeros_like(rollout.terminated)
    ended[-1] = True
    following = np.concatenate([rollout.obs[1:], rollout.obs[:1]])
    rollout = dataclasses.replace(
        rollout, terminated=ended, truncated=np.zeros_like(ended), next_obs=following
    )  # one episode, without a break
    algorithm.prepare(rollout, policy, fresh_start=True)
    targets, _ = algorithm.targets_and_advantages()
    expected, finished = returns_to_go(rollout.rewards, ended, 0.9)
    assert finished.all()
    np.testing.assert_allclose(targets.view(rollout.rewards.shape), expected, rtol=1e-4, atol=1e-5)


def test_awr_s_critic_sees_every_transition_unless_the_reference_is_asked_for():
    seen = {}
    for compat in (False, True):
        policy, algorithm = with_policy("awr", compat_targets=compat, critic_share=1.0, replay_ratio=200)
        experience = algorithm.prepare(rollout_of(policy), policy, fresh_start=True)
        critic = [u.minibatch for u in experience.updates(generator()) if u.critic]
        seen[compat] = set(torch.cat([m.batch.index for m in critic]).tolist())
    assert len(seen[False]) == 24
    assert len(seen[True]) == 6, "one in four environments' worth"


def test_awr_weights_good_decisions_more():
    policy, algorithm = with_policy("awr")
    algorithm.prepare(rollout_of(policy), policy, fresh_start=True)
    minibatch = algorithm.draw(generator())
    weights = []
    algorithm.imitate_replay = lambda p, b, w: weights.append(w) or w.sum()
    algorithm.loss(policy, minibatch)
    order = minibatch.number.argsort()
    assert (weights[0][order].diff() >= 0).all()
    assert weights[0].max() == pytest.approx(100.0)


def test_rwr_learns_from_finished_episodes_only():
    policy, algorithm = with_policy("rwr", batch_size=4)
    rollout = rollout_of(policy)
    over = rollout.terminated | rollout.truncated
    assert over.any()
    assert not over[-1].all()
    experience = algorithm.prepare(rollout, policy, fresh_start=True)
    _, finished = returns_to_go(rollout.rewards, over, 0.9)
    assert experience.stats["finished_decisions"] == finished.sum() == len(experience.obs)
    endless = dataclasses.replace(rollout, terminated=np.zeros_like(over), truncated=np.zeros_like(over))
    experience = algorithm.prepare(endless, policy, fresh_start=True)
    assert list(experience.updates(generator())) == []
    assert algorithm.loss(policy, experience.sample(generator())).policy.item() == 0.0


# -- SAC, RLPD, Cal-QL ------------------------------------------------------------------------------------------------
def test_the_density_of_squashed_chunks_integrates_to_one():
    policy = tiny_policy("tanh_gaussian", prediction_horizon=1)
    policy.noise_shape, policy.horizon = (1, 1), 1
    policy.actor[-1] = nn.Linear(8, 2)
    grid = torch.linspace(-0.9999, 0.9999, 200_001)
    for seed in range(3):
        obs = torch.randn(1, 3, generator=generator(seed))
        with torch.no_grad():
            density = policy.density(obs.expand(len(grid), 3), grid[:, None, None])[:, 0, 0].exp()
        assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-2)


def test_scored_samples_have_the_density_of_the_policy():
    policy = tiny_policy("tanh_gaussian")
    obs, noise = torch.randn(20, 3), 0.3 * torch.randn(20, *policy.noise_shape)
    chunk, log_prob = policy.sample_scored(obs, noise)
    torch.testing.assert_close(log_prob, policy.density(obs, chunk).sum(dim=(1, 2)), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("entropy", "rises"), [(-50.0, True), (50.0, False)])
def test_the_temperature_follows_the_entropy(entropy, rises):
    from inril_ray.algorithms.base import Losses

    policy, algorithm = with_policy("sac")
    before = algorithm.temperature().item()
    losses = Losses(policy=torch.zeros(()), stats={"entropy": torch.tensor(entropy)})
    algorithm.after_actor_step(policy, losses)
    assert (algorithm.temperature().item() > before) == rises
    assert algorithm.target_entropy == -6.0
    assert with_policy("rlpd")[1].target_entropy == -3.0


def test_rlpd_mixes_demonstrations_and_uses_few_critics_for_targets():
    policy, algorithm = with_policy("rlpd", num_critics=4, num_target_critics=2)
    algorithm.prepare(rollout_of(policy), policy, fresh_start=True)
    batch = algorithm.draw(generator())
    assert (batch.index[0::2] == -1).all()
    assert (batch.index[1::2] >= 0).all()
    q = torch.arange(4.0)[:, None].expand(4, 16)
    values = {float(algorithm.target_value(q, dataclasses.replace(batch_of(policy), seed=s))[0]) for s in range(60)}
    assert values == {0.0, 1.0, 2.0}, "the lesser of two of four"
    assert algorithm.actor_value(q)[0] == 1.5


def test_cal_ql_makes_its_offline_steps_once():
    learner = tiny_learner("cal_ql", schedule="rl_only", rl={"offline_updates": 7})
    learner.begin()
    collector = tiny_collector(learner.policy)
    rows = [learner.learn(collector.collect(i), fresh_start=True) for i in range(2)]
    assert rows[0]["rl_updates"] == 7 + 6
    assert rows[1]["rl_updates"] == 7 + 12


def test_cal_ql_is_not_more_pessimistic_than_what_was_achieved():
    policy, algorithm = with_policy("cal_ql", conservatism=1.0)
    batch = batch_of(policy)
    q = algorithm.critics(policy.normalizer.obs(batch.obs), batch.actions)
    low, _ = algorithm.regularization(policy, dataclasses.replace(batch, note=torch.full((16,), -100.0)), q)
    high, _ = algorithm.regularization(policy, dataclasses.replace(batch, note=torch.full((16,), 100.0)), q)
    (gradient,) = torch.autograd.grad(high, algorithm.critics.members[0].layers[-1].bias, retain_graph=True)
    assert high > low + 50
    assert gradient.item() == pytest.approx(-1.0, abs=1e-3), "actions below the return are left alone, data are raised"
    (gradient,) = torch.autograd.grad(low, algorithm.critics.members[0].layers[-1].bias)
    assert gradient.item() == pytest.approx(0.0, abs=1e-4)


def test_cal_ql_knows_the_returns_of_its_own_episodes():
    policy, algorithm = with_policy("cal_ql", discount=0.9, buffer_size=100)
    rollout = rollout_of(policy)
    algorithm.prepare(rollout, policy, fresh_start=True)
    expected, finished = returns_to_go(rollout.rewards, rollout.terminated | rollout.truncated, 0.9)
    note = algorithm.replay.in_order()["note"].numpy()
    np.testing.assert_allclose(note[finished], expected[finished], rtol=1e-5, atol=1e-6)
    assert not finished.all()
    assert (note[~finished] < -1e8).all(), "what an unfinished episode will have achieved is not known"


# -- IBRL -------------------------------------------------------------------------------------------------------------
def test_ibrl_acts_on_the_critics_that_learn_and_takes_the_better_proposal():
    learner = tiny_learner("ibrl")
    learner.begin()
    algorithm, policy = learner.algorithm, learner.policy
    assert algorithm.acting.critics is algorithm.critics, "the reference code acts on critics that never learn"
    with torch.no_grad():
        policy.actor.layers[-1].bias += 2.0
    for aim in (-1.0, 1.0):
        algorithm.acting.critics = Bowl(aim)
        obs, noise = torch.randn(30, 3), torch.randn(30, *algorithm.acting.noise_shape)
        own = noise[:, :-1].reshape(30, 2, *policy.noise_shape)
        chosen = algorithm.acting.act(obs, noise, deterministic=True).chain[:, -1]
        learned, cloned = (
            p.act(obs, own[:, i], deterministic=True).chain[:, -1] for i, p in enumerate((policy, algorithm.cloned))
        )
        q = [Bowl(aim)(None, c)[0] for c in (learned, cloned)]
        torch.testing.assert_close(Bowl(aim)(None, chosen)[0], torch.maximum(*q))
    assert not torch.equal(algorithm.cloned.actor.layers[-1].bias, policy.actor.layers[-1].bias)


def test_dipo_leaves_the_replay_alone_while_its_critics_warm_up():
    learner = tiny_learner("dipo", schedule="rl_only", rl={"critic_warmup_iterations": 1})
    learner.begin()
    collector = tiny_collector(learner.algorithm.acting)
    first = collector.collect(0)
    learner.learn(first, fresh_start=True)
    held = learner.algorithm.replay.in_order("actions")["actions"].numpy()
    np.testing.assert_array_equal(held, first.chains[:, :, -1])
    learner.learn(collector.collect(1), fresh_start=True)
    assert not np.array_equal(learner.algorithm.replay.in_order("actions")["actions"][:6].numpy(), held)


def test_time_limits_can_count_as_ends():
    for rule in ("bootstrap", "terminal"):
        learner = tiny_learner("sac", schedule="rl_only", rl={"time_limits": rule})
        learner.begin()
        rollout = rollout_of(learner.policy)
        assert rollout.truncated.any()
        learner.learn(rollout, fresh_start=True)
        held = learner.algorithm.replay.in_order("terminated")["terminated"].numpy().astype(bool)
        np.testing.assert_array_equal(held, rollout.terminated | (rollout.truncated & (rule == "terminal")))


def test_demonstrations_follow_the_normaliser_of_the_policy_that_is_loaded():
    algorithm = tiny_learner("rlpd").algorithm
    before = algorithm.demos.sample(5, generator()).actions
    with torch.no_grad():
        algorithm.acting.normalizer.action_high += 1.0
    algorithm.begin(algorithm.acting)
    assert not torch.equal(algorithm.demos.sample(5, generator()).actions, before)


def test_idql_also_measures_the_gradient_of_what_did_well():
    learner = tiny_learner("idql", schedule="rl_only", relation_pairs=3)
    learner.begin()
    row = learner.learn(tiny_rollouts(learner.policy, 1)[0], fresh_start=True)
    assert row["grad_norm_advantage"] > 0
    assert row["grad_norm_advantage"] < row["grad_norm_rl"]  # weights of 0.8 and 0.2


def test_the_advantage_weighs_by_the_expectile():
    algorithm = tiny_algorithm("idql")
    batch = algorithm.prepare(tiny_rollouts(algorithm.acting.policy, 1)[0], algorithm.acting.policy, fresh_start=True)
    drawn = batch.sample(torch.Generator().manual_seed(0), 5)
    assert len(drawn.obs) == 5
    policy = algorithm.acting.policy
    obs = policy.normalizer.obs(drawn.obs)
    better = algorithm.target_critics(obs, drawn.actions).min(dim=0).values > algorithm.value(obs)
    expected = algorithm.imitate_replay(policy, drawn, 0.2 + 0.6 * better.float())
    torch.testing.assert_close(algorithm.advantage_loss(policy, drawn), expected)
