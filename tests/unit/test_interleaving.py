"""Other ways to interleave than separate imitation iterations at a constant m."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.schedules import SCHEDULES
from tests.fakes import tiny_learner, tiny_rollouts
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


# -- what is counted was done -----------------------------------------------------------------------------------------
def after_two_iterations(rl_factor: float = 1.0, il_factor: float = 1.0, **settings: Any) -> Any:
    """A learner after iterations whose losses were multiplied; Adam still sees a factor of -1."""
    learner = tiny_learner(every=1, il_steps=2, **settings)
    rl_loss, il_loss = learner.algorithm.loss, learner.policy.il_loss

    def scaled(policy: Any, minibatch: Any) -> Any:
        losses = rl_loss(policy, minibatch)
        return dataclasses.replace(losses, policy=rl_factor * losses.policy)

    learner.algorithm.loss = scaled
    learner.policy.il_loss = lambda *inputs: il_factor * il_loss(*inputs)
    learner.begin()
    run(learner, rollouts_for(learner, 2))
    return learner


def weights_of(learner: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])


SHARED = [n for n in SEPARATIONS if n != "network"]
COMBINATIONS = [
    *(("dppo", "fixed", separation, phase) for separation in SHARED for phase in ("inserted", "merged")),
    *itertools.product(("dppo",), (n for n in SCHEDULES if n != "fixed"), ("naive", "upgrad"), ("inserted", "merged")),
    *itertools.product(("residual_ppo",), ("fixed", "rl_only", "il_only"), ("naive", "network"), ("inserted",)),
]


@pytest.mark.parametrize(("algorithm", "schedule", "separation", "phase"), COMBINATIONS)
def test_a_loss_whose_steps_are_counted_moves_the_policy(
    algorithm: str, schedule: str, separation: str, phase: str
) -> None:
    """Whatever the schedule, the phase and the separation: neither gradient is left out and counted all the same."""
    names = {"schedule": schedule, "separation": separation, "phase": phase}
    rl = {"lr_warmup_iterations": 0} if algorithm == "residual_ppo" else {}
    plain, other_rl, other_il = (
        after_two_iterations(*factors, algorithm=algorithm, rl=rl, **names)
        for factors in ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0))
    )
    reinforced, imitated = schedule != "il_only", schedule not in ("rl_only", "bc_reg")
    assert (plain.counters["rl_updates"] > 0, plain.counters["il_updates"] > 0) == (reinforced, imitated)
    assert (plain.counters["rl_iterations"], plain.counters["il_iterations"]) == (2 * reinforced, 2 * imitated)
    assert (not torch.equal(weights_of(plain), weights_of(other_rl))) == reinforced
    assert (not torch.equal(weights_of(plain), weights_of(other_il))) == (imitated or schedule == "bc_reg")


def test_naive_merged_steps_along_the_sum_and_inserted_along_imitation_alone() -> None:
    merged, inserted = (tiny_learner(every=1, il_steps=2, separation="naive", phase=p) for p in ("merged", "inserted"))
    merged.begin()
    inserted.begin()
    found, alone = (run(learner, rollouts_for(learner))[0] for learner in (merged, inserted))
    assert (found["separation_weight_rl"], found["separation_weight_il"]) == (1.0, 1.0)
    assert (alone["separation_weight_rl"], alone["separation_weight_il"]) == (0.0, 1.0)


@pytest.mark.parametrize("bad", ["rl", "il", "both"])
def test_a_merged_step_counts_only_the_gradients_that_it_took(bad: str) -> None:
    factors = {"rl_factor": math.nan if bad != "il" else 1.0, "il_factor": math.nan if bad != "rl" else 1.0}
    learner = after_two_iterations(**factors, phase="merged")
    steps = 2 * UPDATES["dppo"]
    assert learner.counters["rl_updates"] == (steps if bad == "il" else 0)
    assert learner.counters["il_updates"] == (steps if bad == "rl" else 0)
    assert torch.isfinite(weights_of(learner)).all()
    fresh = tiny_learner()
    fresh.begin()
    assert torch.equal(weights_of(learner), weights_of(fresh)) == (bad == "both")


def test_a_stalled_merged_step_moves_nothing_and_is_not_counted() -> None:
    """Exactly opposed gradients cancel; what is left of earlier steps must not carry on as a step of both."""
    learner = tiny_learner(every=2, phase="merged", separation="upgrad")
    learner.begin()
    rollouts = rollouts_for(learner, 2)
    before = run(learner, rollouts[:1])[0]
    learner._il_loss = lambda *_: -1.0 * _sum_of(learner.parameters)
    loss = learner.algorithm.loss
    learner.algorithm.loss = lambda *inputs: dataclasses.replace(loss(*inputs), policy=_sum_of(learner.parameters))
    weights = weights_of(learner)
    after = run(learner, rollouts[1:])[0]
    assert torch.equal(weights_of(learner), weights)
    assert (after["rl_updates"], after["il_updates"]) == (before["rl_updates"], 0)
    assert after["stalled_steps"] == UPDATES["dppo"]


def _sum_of(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    return torch.stack([p.sum() for p in parameters]).sum()


@pytest.mark.parametrize("schedule", ["fixed", "il_only"])
def test_naive_steps_along_nothing_where_imitation_is_not_finite(schedule: str) -> None:
    """Its imitation steps never apply the gradient of RL, least of all where nothing is to be reinforced."""
    learner = after_two_iterations(il_factor=math.nan, separation="naive", schedule=schedule)
    assert learner.counters["il_updates"] == 0
    if schedule == "il_only":
        fresh = tiny_learner()
        fresh.begin()
        assert torch.equal(weights_of(learner), weights_of(fresh))


def test_warming_up_the_critic_is_no_iteration_of_reinforcement() -> None:
    learner = tiny_learner(every=1, phase="merged", rl={"critic_warmup_iterations": 1})
    learner.begin()
    rows = run(learner, rollouts_for(learner, 2))
    assert [r["rl_iterations"] for r in rows] == [0, 1]
    assert [r["il_iterations"] for r in rows] == [0, 1]


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
    learner = tiny_learner(schedule="adaptive", every=2, il_steps=2, relation_pairs=8)
    learner.begin()
    rows = run(learner, rollouts_for(learner, 8))
    used = [r["interleave_every"] for r in rows]
    assert all(1 <= m <= 50 for m in used)
    assert {"rho_se", "noise_scale_il", "il_share"} <= set().union(*rows)
    assert rows[-1]["il_iterations"] >= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"separation": "naive"},
        {"phase": "merged"},
        {"separation": "naive", "schedule": "adaptive"},
    ],
)
def test_a_rate_that_has_decayed_to_zero_ends_no_run(settings: dict[str, Any]) -> None:
    """Imitation then steps at RL's rate, which the theory must not divide by."""
    learner = tiny_learner(rl={"actor_min_lr": 0.0, "lr_decay_iterations": 1, "actor_lr": 1e-3}, every=1, **settings)
    learner.begin()
    for rollout in tiny_rollouts(learner.policy, 3):
        metrics = learner.learn(rollout, fresh_start=True)
    assert learner.actor_optimizer.param_groups[0]["lr"] == 0.0
    assert all(math.isfinite(v) for name, v in metrics.items() if name.startswith(("delta", "beta"))), metrics
