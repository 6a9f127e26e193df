"""Other ways to interleave than separate imitation iterations at a constant m."""

from __future__ import annotations

import torch

from tests.fakes import tiny_learner
from tests.unit.test_learner import RELATION, UPDATES, actor_of, rollouts_for, run


def test_regularisation_adds_the_weighted_imitation_loss_to_every_step():
    plain, regularized = (tiny_learner(schedule=s, bc_weight=0.5, bc_decay=0.5) for s in ("rl_only", "bc_reg"))
    rollouts = rollouts_for(plain, 3)
    for learner in (plain, regularized):
        learner.begin()
    rows = run(regularized, rollouts)
    assert [r["bc_weight"] for r in rows] == [0.5, 0.25, 0.125]
    assert all(r["bc_loss"] > 0 for r in rows)
    assert rows[-1]["il_updates"] == 0
    run(plain, rollouts)
    assert not torch.equal(actor_of(plain), actor_of(regularized))
    weightless = tiny_learner(schedule="bc_reg", bc_weight=0.0)
    weightless.begin()
    run(weightless, rollouts)
    assert torch.equal(actor_of(plain), actor_of(weightless))


def test_strong_regularisation_imitates():
    learner = tiny_learner(schedule="bc_reg", bc_weight=1e3, rl={"num_epochs": 30, "actor_lr": 3e-3, "target_kl": None})
    learner.begin()
    rows = run(learner, rollouts_for(learner, 2))
    assert rows[1]["il_probe_loss"] < rows[0]["il_probe_loss"]


def test_the_cloned_policy_can_be_what_is_kept_to():
    """A policy that has strayed from the cloned one is pulled back to its samples."""
    rl = {"actor_lr": 1e-3, "num_epochs": 60, "target_kl": None}
    learner = tiny_learner(schedule="bc_reg", bc_source="base", bc_weight=1e4, rl=rl)
    learner.begin()
    (rollout,) = rollouts_for(learner)
    obs = torch.from_numpy(rollout.obs.reshape(-1, 3))
    chain = torch.from_numpy(rollout.chains.reshape(-1, 4, 3, 2))

    def likelihood() -> float:
        step = torch.full((len(obs),), 2)
        with torch.no_grad():
            return float(learner.policy.log_prob(obs, chain[:, 2], chain[:, 3], step).mean())

    cloned = likelihood()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in learner.parameters:
            p += 0.3 * torch.randn(p.shape, generator=generator)
    strayed = likelihood()
    row = run(learner, [rollout])[0]
    assert strayed < cloned - 0.05
    assert likelihood() > strayed + 0.3 * (cloned - strayed)
    assert row["bc_loss"] != 0


def test_merged_iterations_combine_both_gradients_in_every_step():
    learner = tiny_learner(every=2, phase="merged")
    learner.begin()
    rows = run(learner, rollouts_for(learner, 4))
    steps = UPDATES["dppo"]
    assert [r["rl_updates"] for r in rows] == [steps, 2 * steps, 3 * steps, 4 * steps]
    assert [r["il_updates"] for r in rows] == [0, steps, steps, 2 * steps]
    for i in (1, 3):
        assert rows[i].keys() >= {"il_loss", "separation_weight_rl", "il_probe_loss_before"}
        assert "rl_surrogate_before" not in rows[i]
    assert not learner.il_optimizer.state, "RL's optimiser steps"
    assert all(r.keys() >= RELATION for r in rows)


def test_imitation_can_share_the_optimiser_of_rl():
    learner = tiny_learner(every=1, il_steps=2, share_optimizer=True)
    learner.begin()
    run(learner, rollouts_for(learner))
    assert not learner.il_optimizer.state


def test_a_policy_that_is_not_cloned_imitates_first():
    learner, cloned = tiny_learner(), tiny_learner()
    before = actor_of(learner)
    learner.begin(cloned=False)
    cloned.begin()
    assert torch.equal(actor_of(cloned), before)
    assert not torch.equal(actor_of(learner), before)
    assert learner.counters["il_updates"] == 0, "what is counted is fine-tuning"


def test_m_adapts_and_is_logged():
    learner = tiny_learner(schedule="adaptive", every=2, il_steps=2, relation_pairs=4)
    learner.begin()
    rows = run(learner, rollouts_for(learner, 8))
    used = [r["interleave_every"] for r in rows]
    assert all(1 <= m <= 50 for m in used)
    assert {"rho_se", "noise_scale_il", "il_share"} <= set().union(*rows)
    assert rows[-1]["il_iterations"] >= 1
