"""What is measured beside learning, against numbers computed apart."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inril_ray.diagnostics import Probe, base_plans, gradient_pair, rollout_metrics, separation_metrics, step_harm
from inril_ray.gradient_separation.base import Gramian, SeparationReport
from tests.fakes import CPU, tiny_learner, tiny_policy, tiny_rollouts


def pair(*rows: list[float]) -> list[list[torch.Tensor]]:
    """Tensors of one parameter of two elements and one of one."""
    return [[torch.tensor(row[:2]), torch.tensor(row[2:])] for row in rows]


@pytest.mark.parametrize(
    ("change", "rl", "il", "harm"),
    [
        ([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], (0, 0)),  # down the RL loss, neither for nor against IL
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], (1, 0)),  # along the RL gradient is up its loss
        ([0.0, 0.0, 2.0], [0.0, 3.0, -1.0], [0.0, 0.0, 0.5], (0, 1)),
        ([1.0, 1.0, 1.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.5], (1, 1)),
    ],
)
def test_a_step_harms_a_loss_whose_gradient_it_goes_along(change, rl, il, harm) -> None:
    change, rl, il = pair(change, rl, il)
    assert step_harm(change, rl, il) == {"step_harm_rl": harm[0], "step_harm_il": harm[1]}


class Scored:
    """A policy of three scored steps whose log-probabilities are known: 1, 2, 3 times a factor, and the data moved."""

    num_scored_steps = 3
    noise_shape = (2, 2)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def act(self, obs: torch.Tensor, noise: torch.Tensor, *, deterministic: bool) -> SimpleNamespace:
        assert not deterministic, "samples of evaluation have no spread"
        return SimpleNamespace(chain=noise[:, None] + torch.arange(4.0)[None, :, None, None])

    def log_prob(self, obs, before, after, step) -> torch.Tensor:
        torch.testing.assert_close(after, before + 1.0)
        assert (before[:, 0, 0] - before[0, 0, 0]).abs().max() > 0, "every decision has noise of its own"
        return self.factor * (step + 1.0)


def test_the_divergence_is_of_the_policy_from_the_cloned_one_a_scored_step() -> None:
    probe = Probe(tiny_learner().demos, CPU)
    assert probe.divergence(Scored(0.5), Scored(0.25)) == pytest.approx(0.25 * (1 + 2 + 3) / 3)  # type: ignore[arg-type]


def test_the_divergence_of_two_gaussians() -> None:
    """Means that are d deviations apart: z d + d^2 / 2 nats at noise z, mean over dimensions; 0 from itself."""
    learner = tiny_learner("ppo", actor={"init_std": 0.2})
    cloned, policy = copy.deepcopy(learner.policy), copy.deepcopy(learner.policy)
    with torch.no_grad():
        [m for m in policy.modules() if isinstance(m, torch.nn.Linear)][-1].bias += 0.05
    probe = Probe(learner.demos, CPU)
    obs = learner.policy.normalizer.obs(torch.from_numpy(learner.demos.probe().obs))
    z = torch.randn(len(obs), *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        d = (policy.mean(obs) - cloned.mean(obs)) / 0.2
    assert probe.divergence(policy, cloned) == pytest.approx(float((z * d + d**2 / 2).mean()), rel=1e-4)
    assert probe.divergence(policy, cloned) > 0.0
    assert probe.divergence(policy, policy) == 0.0


def test_a_pair_of_gradients_is_over_the_parameters_that_both_losses_reach() -> None:
    a, b, c = (torch.nn.Parameter(torch.tensor([x])) for x in (2.0, 3.0, 5.0))
    rl_loss, il_loss = (a * b).sum(), (b**2 * c).sum()
    shared, rl, il = gradient_pair(rl_loss, il_loss, [a, b, c])
    assert shared == [b]
    assert (rl, il) == ([torch.tensor([2.0])], [torch.tensor([30.0])])
    (rl_loss + il_loss).backward()  # the graphs are kept
    assert all(p.grad is not None for p in (a, b, c))


def test_what_a_rollout_says() -> None:
    learner = tiny_learner()
    (rollout,) = tiny_rollouts(learner.policy, 1)
    low, high = learner.policy.normalizer.obs_low.numpy(), learner.policy.normalizer.obs_high.numpy()
    obs = np.broadcast_to((low + high) / 2, rollout.obs.shape).copy()
    obs[0, :, 0], obs[1, 0, 1], obs[2, 0, 2] = high[0] + 0.01, low[1] - 0.01, high[2]  # the range includes its ends
    base = np.full((*obs.shape[:2], 2), 1e6, np.float32)  # a residual policy's base action is not looked at
    episodes = dataclasses.replace(
        rollout.episodes,
        success=np.array([True, False, False, True]),
        returns=np.array([1.0, 2.0, 3.0, 10.0], np.float32),
    )
    changed = dataclasses.replace(
        rollout,
        obs=np.concatenate([obs, base], axis=-1),
        episodes=episodes,
        policy_version=3,
        nan_resets=2,
        timings_s={"simulation": 0.5, "inference": 0.25},
    )
    assert rollout_metrics(changed, 5, learner.policy) == {
        "policy_lag": 2.0,
        "nan_resets": 2.0,
        "obs_out_of_range": pytest.approx((rollout.obs.shape[1] + 1) / obs.size),
        "train_episodes": 4.0,
        "train_success_rate": 0.5,
        "train_return": 4.0,
        "simulation_s": 0.5,
        "inference_s": 0.25,
    }
    none = dataclasses.replace(
        changed, episodes=dataclasses.replace(episodes, **{k: v[:0] for k, v in vars(episodes).items()})
    )
    assert rollout_metrics(none, 5, learner.policy).keys().isdisjoint({"train_success_rate", "train_return"})


def test_what_a_separated_step_says() -> None:
    gramian = Gramian(rl=4.0, il=9.0, inner=-1.0)
    report = SeparationReport(gramian=gramian, weights=(0.5, 2.0))
    assert separation_metrics(report) == {
        "separation_weight_rl": 0.5,
        "separation_weight_il": 2.0,
        "inner_after_rl": 0.5 * 4.0 + 2.0 * -1.0,
        "inner_after_il": 0.5 * -1.0 + 2.0 * 9.0,
    }
    dropped = separation_metrics(dataclasses.replace(report, dropped=("rl",), weights=(0.0, 1.0)))
    assert (dropped["inner_after_rl"], dropped["inner_after_il"]) == (0.0, 0.0)
    assert (dropped["separation_weight_rl"], dropped["separation_weight_il"]) == (0.0, 1.0)


def test_base_plans_are_those_of_the_base_as_it_is_now_with_the_same_noise() -> None:
    policy = tiny_policy("residual_mlp", finetuning=True)
    obs = np.random.default_rng(0).normal(size=(5, 3 + 2)).astype(np.float32)
    plans = base_plans(policy, obs, 7)
    noise = torch.randn(5, *policy.base.noise_shape, generator=torch.Generator().manual_seed(7)).numpy()
    empty = np.zeros((5, policy.base.horizon, 2), np.float32)
    expected = policy.plan(obs[:, :3], noise, empty)[:, : policy.base.action_horizon]
    first = plans()
    assert first.shape == (5, 2, 2)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(plans(), expected)
    with torch.no_grad():
        for p in policy.base.parameters():
            p += 0.1
    assert np.abs(plans() - expected).max() > 1e-3


def test_the_probe_draws_its_own_noise_once() -> None:
    """Asked again, it says the same of the same policy; it draws from no global stream."""
    learner = tiny_learner()
    probe = Probe(learner.demos, CPU)
    first = probe.losses(learner.policy)
    state = torch.random.get_rng_state()
    assert probe.losses(learner.policy) == first == Probe(learner.demos, CPU).losses(learner.policy)
    assert torch.equal(torch.random.get_rng_state(), state)
