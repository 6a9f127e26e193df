"""The update loop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray import checkpoint
from inril_ray.metrics import METRICS, MeanMetrics, checked
from inril_ray.types import InrilError, Rollout
from tests.fakes import fake_demos, tiny_learner, tiny_rollouts

NUM_ENVS, NUM_DECISIONS = 4, 6
UPDATES = {"dppo": 2 * (24 * 3 // 20), "ppo": 2 * (24 // 20)}
"""Gradient steps of one RL iteration: epochs times full minibatches."""

RELATION = {"grad_cosine", "conflict_rate", "grad_norm_rl", "grad_norm_il", "grad_inner"}
PROBES = {"il_probe_loss", "il_probe_loss_all"}
SURGERY = {
    "separation_weight_rl",
    "separation_weight_il",
    "inner_after_rl",
    "inner_after_il",
    "step_harm_rl",
    "step_harm_il",
    "il_probe_loss_before",
    "rl_surrogate_before",
    "rl_surrogate_after",
    "il_loss",
    "dropped_objectives",
}
TIMES = {"rl_s", "il_s", "diagnostics_s", "simulation_s", "inference_s"}


def with_random_rewards(rollout: Rollout, seed: int) -> Rollout:
    rewards = np.random.default_rng(seed).normal(size=rollout.rewards.shape).astype(np.float32)
    return dataclasses.replace(rollout, rewards=rewards)


def rollouts_for(learner, count: int = 1, seed: int = 0) -> list[Rollout]:
    """Rollouts of the learner's first weights with random rewards, so that there is something to learn."""
    rollouts = tiny_rollouts(learner.policy, count, num_envs=NUM_ENVS, num_decisions=NUM_DECISIONS)
    return [with_random_rewards(r, seed + i) for i, r in enumerate(rollouts)]


def actor_of(learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in learner.parameters])


def critic_of(learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in learner.algorithm.critic.parameters()])


def run(learner, rollouts) -> list[dict[str, float]]:
    return [learner.learn(r, fresh_start=True) for r in rollouts]


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in TIMES}


# -- interleaving -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schedule", "every", "reinforced", "imitated"),
    [
        ("fixed", 1, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ("fixed", 2, [1, 2, 3, 4, 5], [0, 1, 1, 2, 2]),
        ("fixed", 3, [1, 2, 3, 4, 5], [0, 0, 1, 1, 1]),
        ("rl_only", 2, [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]),
        ("il_only", 2, [0, 0, 0, 0, 0], [0, 1, 1, 2, 2]),
    ],
)
def test_imitation_follows_exactly_every_m_iterations(schedule, every, reinforced, imitated):
    learner = tiny_learner(schedule=schedule, every=every, il_steps=2)
    rows = run(learner, rollouts_for(learner, 5))
    assert [r["iteration"] for r in rows] == [1, 2, 3, 4, 5]
    assert [r["rl_iterations"] for r in rows] == reinforced
    assert [r["il_iterations"] for r in rows] == imitated
    assert [r["il_updates"] for r in rows] == [2 * n for n in imitated]
    assert [r["rl_updates"] for r in rows] == [UPDATES["dppo"] * n for n in reinforced]


def test_env_steps_and_policy_lag_are_counted():
    learner = tiny_learner(schedule="rl_only")
    rollouts = rollouts_for(learner, 3)
    rows = run(learner, [dataclasses.replace(r, policy_version=max(0, i - 1)) for i, r in enumerate(rollouts)])
    assert [r["env_steps"] for r in rows] == np.cumsum([r.env_steps for r in rollouts]).tolist()
    assert [r["policy_lag"] for r in rows] == [0, 1, 1]
    assert learner.version == 3


@pytest.mark.parametrize("algorithm", ["dppo", "ppo"])
def test_a_matched_imitation_iteration_makes_the_steps_of_an_rl_iteration(algorithm):
    learner = tiny_learner(algorithm, every=1)
    (row,) = run(learner, rollouts_for(learner))
    assert row["rl_updates"] == row["il_updates"] == UPDATES[algorithm]


def test_an_epoch_of_imitation_visits_every_window_once(monkeypatch):
    learner = tiny_learner(every=1, il_steps="epoch", il_batch_size=10)
    sizes, il_loss = [], learner.policy.il_loss

    def recorded(obs, *args):
        if torch.is_grad_enabled():
            sizes.append(len(obs))
        return il_loss(obs, *args)

    monkeypatch.setattr(learner.policy, "il_loss", recorded)
    (row,) = run(learner, rollouts_for(learner))
    assert sizes == [10, 10, 10, 2]  # four episodes of 10 steps, windows of 3
    assert row["il_updates"] == 4


def test_a_number_of_imitation_steps():
    learner = tiny_learner(every=1, il_steps=5)
    assert run(learner, rollouts_for(learner))[0]["il_updates"] == 5


@pytest.mark.parametrize("timesteps", ["finetuned", "all"])
def test_imitation_trains_the_timesteps_of_the_configuration(monkeypatch, timesteps):
    learner = tiny_learner(every=1, il_steps=2, il_timesteps=timesteps)
    used, il_loss = [], learner.policy.il_loss

    def recorded(obs, actions, noise, uniform, which):
        if torch.is_grad_enabled():
            used.append(which)
        return il_loss(obs, actions, noise, uniform, which)

    monkeypatch.setattr(learner.policy, "il_loss", recorded)
    run(learner, rollouts_for(learner))
    assert used == [timesteps] * 2


# -- what each part changes -------------------------------------------------------------------------------------------
def test_rl_only_changes_actor_and_critic_and_never_imitates():
    learner = tiny_learner(schedule="rl_only")
    actor, critic, base = actor_of(learner), critic_of(learner), learner.policy.base.state_dict()
    base = {k: v.clone() for k, v in base.items()}
    run(learner, rollouts_for(learner))
    assert not torch.equal(actor_of(learner), actor)
    assert not torch.equal(critic_of(learner), critic)
    assert all(torch.equal(v, base[k]) for k, v in learner.policy.base.state_dict().items())
    assert not learner.il_optimizer.state


def test_rl_only_does_not_depend_on_the_actions_of_the_demonstrations():
    demos = fake_demos()
    actions = demos.actions.copy()
    actions[1:-1] = actions[1:-1][::-1]  # the ranges stay
    results = []
    for arrays in (demos, dataclasses.replace(demos, actions=actions)):
        learner = tiny_learner(schedule="rl_only", demos=arrays)
        run(learner, rollouts_for(learner, 2))
        results.append(actor_of(learner))
    assert torch.equal(*results)


def test_il_only_leaves_the_actor_alone_between_imitations():
    learner = tiny_learner(schedule="il_only", every=3, il_steps=2)
    first, second, third = rollouts_for(learner, 3)
    actor, critic = actor_of(learner), critic_of(learner)
    run(learner, [first, second])
    assert torch.equal(actor_of(learner), actor)
    assert not torch.equal(critic_of(learner), critic)
    run(learner, [third])
    assert not torch.equal(actor_of(learner), actor)


@pytest.mark.parametrize("separation", ["naive", "upgrad", "pcgrad"])
def test_il_only_never_changes_the_actor_by_reinforcement(separation):
    """Other rewards, same actor."""
    results = []
    for seed in (0, 100):
        learner = tiny_learner(schedule="il_only", separation=separation, every=1, il_steps=3)
        before = actor_of(learner)
        run(learner, rollouts_for(learner, 2, seed=seed))
        assert not torch.equal(actor_of(learner), before)
        results.append(actor_of(learner))
    assert torch.equal(*results)


def test_critic_warm_up_trains_the_critic_only():
    learner = tiny_learner(schedule="rl_only", rl={"critic_warmup_iterations": 2})
    actor, critic = actor_of(learner), critic_of(learner)
    rollouts = rollouts_for(learner, 3)
    rows = run(learner, rollouts[:2])
    assert torch.equal(actor_of(learner), actor)
    assert not torch.equal(critic_of(learner), critic)
    assert rows[-1]["rl_updates"] == 0
    assert run(learner, rollouts[2:])[0]["rl_updates"] == UPDATES["dppo"]
    assert not torch.equal(actor_of(learner), actor)


def test_imitation_lowers_the_probe_loss():
    learner = tiny_learner(schedule="il_only", separation="naive", every=1, il_steps=100, il_lr=1e-2)
    row = run(learner, rollouts_for(learner))[0]
    assert row["il_probe_loss"] < 0.95 * row["il_probe_loss_before"]


@pytest.mark.parametrize(("separation", "used"), [("naive", "actor"), ("upgrad", "il"), ("pcgrad", "il")])
def test_the_separation_chooses_the_optimiser(separation, used):
    learner = tiny_learner(separation=separation, every=1, il_steps=1, rl={"critic_warmup_iterations": 1})
    run(learner, rollouts_for(learner))
    assert {n for n, o in learner.optimizers().items() if o.state} == {used, "critic"}


def test_updates_stop_at_the_kl_target():
    learner = tiny_learner(schedule="rl_only", rl={"target_kl": 1e-9, "actor_lr": 0.05})
    (row,) = run(learner, rollouts_for(learner))
    assert row["early_stop"] == 1.0
    assert 1 <= row["rl_updates"] < UPDATES["dppo"]
    calm = tiny_learner(schedule="rl_only", rl={"target_kl": None, "actor_lr": 0.05})
    (row,) = run(calm, rollouts_for(calm))
    assert (row["early_stop"], row["rl_updates"]) == (0.0, UPDATES["dppo"])


def test_gradients_are_clipped_after_separation(monkeypatch):
    learner = tiny_learner(every=1, il_steps=2, rl={"max_grad_norm": 1e-3})
    norms, step = [], torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        if self is not learner.critic_optimizer:
            norms.append(float(torch.stack([p.grad.norm() for p in learner.parameters]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    run(learner, rollouts_for(learner))
    assert len(norms) == UPDATES["dppo"] + 2
    assert max(norms) <= 1e-3 * 1.001
    assert max(norms) > 0.9e-3


def test_reinforcement_raises_the_likelihood_of_rewarded_chunks():
    learner = tiny_learner(
        schedule="rl_only", rl={"actor_lr": 3e-3, "clip_ratio": 0.2, "clip_ratio_base": 0.2, "num_epochs": 10}
    )
    (rollout,) = tiny_rollouts(learner.policy, 1, num_envs=32, num_decisions=4)
    last = rollout.chains[:, :, -1, :2, 0].mean(axis=-1)
    rollout = dataclasses.replace(
        rollout, rewards=last.astype(np.float32), terminated=np.ones_like(rollout.terminated),
        truncated=np.zeros_like(rollout.truncated),
    )  # fmt: skip
    run(learner, [rollout])
    after = tiny_rollouts(learner.policy, 1, num_envs=32, num_decisions=4)[0]
    assert after.chains[:, :, -1, :2, 0].mean() > last.mean() + 0.01


# -- diagnostics ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schedule", ["fixed", "rl_only", "il_only"])
@pytest.mark.parametrize("algorithm", ["dppo", "ppo"])
def test_diagnostics_are_there_in_every_iteration_of_every_schedule(algorithm, schedule):
    learner = tiny_learner(algorithm, schedule=schedule, every=2, il_steps=3)
    rows = run(learner, rollouts_for(learner, 4))
    for i, row in enumerate(rows, 1):
        assert row.keys() >= RELATION | PROBES | TIMES
        imitated = schedule != "rl_only" and i % 2 == 0
        assert (row.keys() >= SURGERY) == imitated
        assert set(checked(row)) <= set(METRICS)
        assert row["grad_norm_rl"] > 0
        assert row["grad_norm_il"] > 0
        assert -1 <= row.get("rho", 0.0) <= 1
        assert all(math.isfinite(v) for v in row.values())


def test_diagnostics_of_separation_agree_with_each_other():
    learner = tiny_learner(separation="upgrad", every=1, il_steps=3)
    row = run(learner, rollouts_for(learner))[0]
    assert row["separation_weight_rl"] >= 0.5
    assert row["separation_weight_il"] >= 0.5
    assert row["inner_after_rl"] >= -1e-9
    assert row["inner_after_il"] >= -1e-9
    naive = tiny_learner(separation="naive", every=1, il_steps=3)
    row = run(naive, rollouts_for(naive))[0]
    assert (row["separation_weight_rl"], row["separation_weight_il"]) == (0.0, 1.0)


def test_measuring_changes_no_weights():
    learner = tiny_learner(schedule="il_only", every=100)
    actor = actor_of(learner)
    rows = run(learner, rollouts_for(learner, 2))
    assert torch.equal(actor_of(learner), actor)
    assert rows[0]["il_probe_loss"] == rows[1]["il_probe_loss"]
    assert all(p.grad is None for p in learner.parameters)


def test_the_probe_is_the_held_out_loss_on_fixed_noise():
    learner = tiny_learner(schedule="il_only", every=100)
    row = run(learner, rollouts_for(learner))[0]
    batch = learner.demos.probe()
    assert len(batch.obs) == 8  # the one held-out episode
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 3, 2, generator=generator)
    uniform = torch.rand(8, generator=generator)
    with torch.no_grad():
        for name, which in (("il_probe_loss", "finetuned"), ("il_probe_loss_all", "all")):
            loss = learner.policy.il_loss(
                torch.from_numpy(batch.obs), torch.from_numpy(batch.actions), noise, uniform, which
            )
            assert row[name] == pytest.approx(float(loss), rel=1e-6)


def test_rho_of_the_learner_is_that_of_its_gradients(monkeypatch):
    """With the imitation loss replaced by minus the RL loss on the whole rollout, the gradients oppose exactly."""
    learner = tiny_learner(schedule="rl_only", rl={"minibatch_size": 72})
    (rollout,) = rollouts_for(learner)
    batch = tiny_learner(schedule="rl_only").algorithm.prepare(rollout, learner.policy, fresh_start=True)
    everything = next(batch.minibatches(torch.Generator().manual_seed(0)))
    everything = dataclasses.replace(everything)
    loss = learner.algorithm.loss
    monkeypatch.setattr(type(batch), "sample", lambda self, generator, limit=None: everything)
    for sign, expected in ((-1.0, 1.0), (1.0, -1.0)):
        monkeypatch.setattr(
            learner, "_il_loss", lambda demos, generator, s=sign: s * loss(learner.policy, everything).policy
        )
        row = learner.learn(rollout, fresh_start=True)
        assert row["rho"] == pytest.approx(expected, abs=1e-5)
        assert row["conflict_rate"] == float(sign < 0)


def test_observations_outside_the_range_of_the_demonstrations_are_counted():
    learner = tiny_learner(schedule="rl_only")
    (rollout,) = rollouts_for(learner)
    low, high = learner.demos.arrays.obs.min(axis=0), learner.demos.arrays.obs.max(axis=0)
    obs = np.broadcast_to((low + high) / 2, rollout.obs.shape).copy()
    obs[0, :, 0] = high[0] + 1
    obs[1, 0, 1] = low[1] - 1
    (row,) = run(learner, [dataclasses.replace(rollout, obs=obs)])
    assert row["obs_out_of_range"] == pytest.approx(5 / obs.size)


def test_episodes_of_the_rollout_are_reported():
    learner = tiny_learner(schedule="rl_only")
    (rollout,) = rollouts_for(learner)
    row = run(learner, [rollout])[0]
    assert row["train_episodes"] == 4
    assert row["train_success_rate"] == rollout.episodes.success.mean()
    assert row["train_return"] == pytest.approx(rollout.episodes.returns.mean())


# -- gradients that are not finite ------------------------------------------------------------------------------------
def spoil(monkeypatch, learner, which: str, bad: float) -> None:
    """Make the gradient of one loss not finite."""
    if which == "rl":
        loss = learner.algorithm.loss

        def spoiled(policy, minibatch):
            losses = loss(policy, minibatch)
            return dataclasses.replace(losses, policy=losses.policy * bad)

        monkeypatch.setattr(learner.algorithm, "loss", spoiled)
    else:
        il_loss = learner.policy.il_loss
        monkeypatch.setattr(learner.policy, "il_loss", lambda *args: il_loss(*args) * bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rl_updates_with_bad_gradients_are_skipped(monkeypatch, bad):
    learner = tiny_learner(schedule="rl_only")
    rollouts = rollouts_for(learner, 2)
    with monkeypatch.context() as patch:
        spoil(patch, learner, "rl", bad)
        actor, critic = actor_of(learner), critic_of(learner)
        row = learner.learn(rollouts[0], fresh_start=True)
    assert row["skipped_updates"] == UPDATES["dppo"]
    assert row["rl_updates"] == 0
    assert torch.equal(actor_of(learner), actor)
    assert torch.equal(critic_of(learner), critic)
    assert all(math.isfinite(v) for v in checked(row).values())
    row = learner.learn(rollouts[1], fresh_start=True)
    assert row["skipped_updates"] == 0
    assert row["rl_updates"] == UPDATES["dppo"]
    assert actor_of(learner).isfinite().all()


@pytest.mark.parametrize("separation", ["naive", "upgrad", "pcgrad"])
@pytest.mark.parametrize("schedule", ["fixed", "il_only"])
@pytest.mark.parametrize("which", ["rl", "il"])
def test_imitation_survives_a_bad_gradient_of_one_objective(monkeypatch, schedule, separation, which):
    """The other one is used, if it is used at all; only steps that the demonstrations had a part in are counted."""
    learner = tiny_learner(schedule=schedule, separation=separation, every=1, il_steps=3)
    (rollout,) = rollouts_for(learner)
    spoil(monkeypatch, learner, which, math.nan)
    actor = actor_of(learner)
    row = learner.learn(rollout, fresh_start=True)
    combined = schedule == "fixed" and separation != "naive"
    assert row["dropped_objectives"] == 3
    assert row["il_updates"] == (3 if which == "rl" else 0)
    assert actor_of(learner).isfinite().all()
    assert torch.equal(actor_of(learner), actor) == (which == "il" and schedule == "il_only")
    assert (row["separation_weight_rl"], row["separation_weight_il"]) == (
        (0, 1) if which == "rl" else (int(combined), 0)
    )


def test_imitation_with_two_bad_gradients_changes_nothing(monkeypatch):
    learner = tiny_learner(schedule="il_only", every=1, il_steps=3)
    (rollout,) = rollouts_for(learner)
    for which in ("rl", "il"):
        spoil(monkeypatch, learner, which, math.nan)
    actor = actor_of(learner)
    row = learner.learn(rollout, fresh_start=True)
    assert (row["dropped_objectives"], row["il_updates"]) == (3, 0)
    assert torch.equal(actor_of(learner), actor)


# -- learning rates ---------------------------------------------------------------------------------------------------
def stepped_rates(learner, rollouts) -> dict[str, list[float]]:
    """The learning rate at every step of every optimiser."""
    rates: dict[str, list[float]] = {name: [] for name in learner.optimizers()}
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs, seen=rates[name]: seen.append(o.param_groups[0]["lr"]))
        for name, optimizer in learner.optimizers().items()
    ]
    run(learner, rollouts)
    for handle in handles:
        handle.remove()
    return rates


FALLING = {"actor_lr": 1e-3, "actor_min_lr": 1e-4, "lr_decay_iterations": 3}


def test_scaled_steps_are_taken_by_reinforcement_and_imitation_and_not_by_critics():
    plain, scaled = (tiny_learner(every=1, il_steps=2, il_lr=2e-4, rl=FALLING) for _ in range(2))
    scaled.scale_steps(0.25)
    expected, rates = (stepped_rates(x, rollouts_for(x, 2)) for x in (plain, scaled))
    assert rates["actor"] == pytest.approx([0.25 * rate for rate in expected["actor"]])
    assert rates["il"] == [0.25 * 2e-4] * 4
    assert rates["critic"] == expected["critic"]
    # 1e-3 in the first iteration, then a third of the way along half a cosine.
    second = 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi / 3))
    assert expected["actor"] == pytest.approx([1e-3] * UPDATES["dppo"] + [second] * UPDATES["dppo"])
    scaled.scale_steps(1.0)  # of the configured rates, not of the last ones
    assert stepped_rates(scaled, rollouts_for(scaled, 1))["il"] == [2e-4] * 2


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, True),
        ({"share_optimizer": True}, False),
        ({"separation": "naive"}, False),
        ({"phase": "merged"}, False),
        ({"schedule": "il_only"}, True),
    ],
)
def test_the_theory_counts_the_rates_that_were_stepped(monkeypatch, scale, settings, own):
    """The RL rate is that of the iteration that just ended, both are scaled, and an imitation without an optimiser of
    its own steps at the rate of RL."""
    learner = tiny_learner(every=1, il_steps=2, il_lr=2e-4, rl=FALLING, **settings)
    learner.scale_steps(scale)
    seen = []
    observe = learner.theory.observe
    monkeypatch.setattr(learner.theory, "observe", lambda e, context, p: seen.append(context) or observe(e, context, p))
    rates = stepped_rates(learner, rollouts_for(learner, 3))
    falling = [1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
    assert [c.rl_lr for c in seen] == pytest.approx([scale * rate for rate in falling])
    assert [c.il_lr for c in seen] == pytest.approx([scale * (2e-4 if own else rate) for rate in falling])
    assert [c.iterations_done for c in seen] == [1, 2, 3]
    stepped = {rate for name in ("actor", "il") for rate in rates[name]}
    assert {c.il_lr for c in seen} <= stepped
    if settings.get("schedule") != "il_only":
        assert {c.rl_lr for c in seen} <= stepped


# -- reproducibility --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ["dppo", "ppo"])
def test_the_seed_determines_everything(algorithm):
    results = []
    for seed in (0, 0, 1):
        learner = tiny_learner(algorithm, seed=seed)
        rollouts = rollouts_for(learner, 3)
        torch.manual_seed(len(results))  # the global streams must not matter
        np.random.seed(len(results))
        rows = run(learner, rollouts)
        results.append((actor_of(learner), [without_times(r) for r in rows]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("algorithm", ["dppo", "ppo"])
@pytest.mark.parametrize("schedule", ["fixed", "rl_only", "il_only"])
def test_a_resumed_learner_continues_bit_by_bit(tmp_path, algorithm, schedule):
    learner = tiny_learner(algorithm, schedule=schedule, every=2, il_steps=3)
    rollouts = rollouts_for(learner, 5)
    run(learner, rollouts[:3])
    path = checkpoint.write(tmp_path, 3, learner.state_dict(), keep=1)
    other = tiny_learner(algorithm, schedule=schedule, every=2, il_steps=3, seed=77, network_seed=5)
    other.load_state_dict(checkpoint.read(path))
    for rollout in rollouts[3:]:
        a, b = (x.learn(rollout, fresh_start=False) for x in (learner, other))
        assert without_times(a) == without_times(b)
    assert torch.equal(actor_of(learner), actor_of(other))
    assert torch.equal(critic_of(learner), critic_of(other))
    for name, optimizer in learner.optimizers().items():
        for p, q in zip(optimizer.state.values(), other.optimizers()[name].state.values(), strict=True):
            assert all(torch.equal(p[k].flatten(), q[k].flatten()) for k in p)


def test_a_checkpoint_of_other_demonstrations_is_refused():
    learner, other = tiny_learner(), tiny_learner(demos=fake_demos(seed=1))
    with pytest.raises(InrilError, match="demonstrations differ from those of the checkpoint"):
        other.load_state_dict(learner.state_dict())


def test_a_checkpoint_of_other_networks_is_refused():
    learner, other = tiny_learner(), tiny_learner(actor={"hidden_dim": 16})
    with pytest.raises(InrilError, match="does not fit the configured DiffusionPolicy"):
        other.load_state_dict(learner.state_dict())


# -- metric helpers ---------------------------------------------------------------------------------------------------
def test_mean_metrics_average_each_name_over_its_own_count():
    means = MeanMetrics()
    means.add({"a": 1.0, "b": torch.tensor(4.0)})
    means.add({"a": torch.tensor(2.0, requires_grad=True)})
    assert means.means() == {"a": 1.5, "b": 4.0}


def test_a_metric_that_is_not_in_the_table_can_t_be_logged():
    with pytest.raises(KeyError, match="no_such_metric"):
        checked({"rho": 0.1, "no_such_metric": 1.0})
    assert checked({"rho": 0.1, "il_loss": math.nan, "policy_loss": math.inf}) == {"rho": 0.1}


def test_the_relation_is_measured_now_and_then_and_when_imitating() -> None:
    learner = tiny_learner(every=4, il_steps=2, relation_every=3)
    learner.begin()
    rows = [learner.learn(r, fresh_start=True) for r in tiny_rollouts(learner.policy, 8)]
    measured = [i for i, row in enumerate(rows) if "conflict_rate" in row]
    assert measured == [0, 3, 6, 7]  # every third, and the fourth and the eighth imitate
    # Between measurements the moving average stands for the gradient of reinforcement.
    gains = [row["beta_il_rl"] for row in rows if "beta_il_rl" in row]
    assert gains
    assert learner.theory.rl_gain > 0


def test_imitation_takes_no_more_of_the_rollout_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = tiny_learner(every=1, il_steps=3, relation_batch_size=5)
    learner.begin()
    sizes: list[int] = []
    loss = type(learner.algorithm).loss

    def counted(self: Any, policy: Any, minibatch: Any) -> Any:
        sizes.append(len(minibatch.obs))
        return loss(self, policy, minibatch)

    monkeypatch.setattr(type(learner.algorithm), "loss", counted)
    learner.learn(tiny_rollouts(learner.policy, 1)[0], fresh_start=True)
    assert sizes.count(5) == 3  # steps of imitation; reinforcement keeps its own
    assert max(sizes) == 20
