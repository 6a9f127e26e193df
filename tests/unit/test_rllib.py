"""Interleaving in RLlib's learners, built in this process: no cluster, no environments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from ray import cloudpickle
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID as MODULE
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from inril_ray import envs
from inril_ray.demos.store import DemoStore
from inril_ray.gradient_separation.upgrad import UPGrad
from inril_ray.rllib import InterleavingLearner, with_interleaving, with_task
from inril_ray.rllib import tasks as rllib_tasks
from inril_ray.rllib.imitation import IMITATION_STD
from inril_ray.types import InrilError
from tests.fakes import fake_demos, register_fake_task

OBS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
ROWS, MINIBATCH = 48, 12


def algorithm(kind: type = PPOConfig, *, actions: gym.Space = ACTIONS, **model: Any) -> Any:
    config = kind().debugging(seed=3).training(train_batch_size_per_learner=ROWS)
    config = config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8], **model))
    return config.environment(observation_space=OBS, action_space=actions)


def learner(config: Any = None, *, actions: gym.Space = ACTIONS, **interleaving: Any) -> Any:
    """Build a learner that imitates in every second iteration."""
    interleaving = {"demos": fake_demos(), **interleaving}
    settings = {"every": 2, "il_batch_size": 16, "il_lr": 1e-2, **interleaving.pop("interleave", {})}
    config = with_interleaving(config or algorithm(actions=actions), interleave=settings, **interleaving)
    return config.build_learner(spaces={MODULE: (OBS, actions)})


def ppo_batch(rows: int = ROWS, seed: int = 0) -> MultiAgentBatch:
    rng = np.random.default_rng(seed)
    columns = {
        "obs": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "action_logp": rng.normal(size=rows) - 2.0,
        "action_dist_inputs": 0.1 * rng.normal(size=(rows, 4)),
        "advantages": rng.normal(size=rows),
        "value_targets": rng.normal(size=rows),
    }
    tensors = {name: torch.from_numpy(column.astype(np.float32)) for name, column in columns.items()}
    return MultiAgentBatch({MODULE: SampleBatch(tensors)}, rows)


def sac_batch(rows: int = ROWS, seed: int = 0) -> MultiAgentBatch:
    rng = np.random.default_rng(seed)
    columns = {
        "obs": rng.normal(size=(rows, 3)),
        "new_obs": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-0.9, 0.9, (rows, 2)),
        "rewards": rng.normal(size=rows),
        "terminateds": np.zeros(rows),
        "n_step": np.ones(rows),
        "weights": np.ones(rows),
    }
    tensors = {name: torch.from_numpy(column.astype(np.float32)) for name, column in columns.items()}
    return MultiAgentBatch({MODULE: SampleBatch(tensors)}, rows)


def update(learner: Any, seed: int = 0, **options: Any) -> dict[str, float]:
    """Make one iteration; return what was logged of the module."""
    if "SAC" in type(learner).__name__:
        result = learner.update(batch=sac_batch(seed=seed), timesteps={"num_env_steps_sampled_lifetime": 0})
    else:
        # One pass, in order: minibatches don't depend on a random stream.
        result = learner.update(batch=ppo_batch(seed=seed), timesteps={}, minibatch_size=MINIBATCH, **options)
    return {name: stats.peek() for name, stats in result[MODULE].items() if hasattr(stats, "peek")}


def weights(learner: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.module[MODULE].unwrapped().named_parameters()}


def moved(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def imitated_only(made: Any, *, seed: int = 0) -> set[str]:
    """Return which parts of the module the imitation of an iteration moves, apart from its reinforcement."""
    seen: dict[str, torch.Tensor] = {}
    original = made._imitate

    def imitate() -> dict[str, float]:
        seen.update(weights(made))
        return original()

    made._imitate = imitate
    update(made, seed)
    return moved(seen, weights(made)) if seen else set()


# -- imitation loss ---------------------------------------------------------------------------------------------------
def test_gaussian_loss_is_the_negative_log_likelihood_of_scaled_actions() -> None:
    wide = gym.spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 4.0]))
    made = learner(actions=wide)
    demos = DemoStore(fake_demos(), 1).windows(np.arange(7))
    module = made.module[MODULE]
    logits = module.pi(module.encoder({"obs": torch.from_numpy(demos.obs)})["encoder_out"]["actor"])
    mean, log_std = logits.chunk(2, dim=-1)
    scaled = torch.from_numpy((demos.actions[:, 0] - [-2.0, 0.0]) / [2.0, 2.0] - 1.0)
    expected = -torch.distributions.Normal(mean, log_std.exp()).log_prob(scaled).mean()
    torch.testing.assert_close(made._imitation.loss(demos).double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_spread_that_the_network_computes_takes_part() -> None:
    made = learner(algorithm(free_log_std=False))
    _, gradients = made._il_gradients(made._draw())
    assert all(g is not None and bool(g.any()) for g in gradients)
    assert made.module[MODULE].pi.net.mlp[-1].weight.shape[0] == 4 and bool(gradients[-1][2:].all())


def test_own_spread_gets_no_gradient_from_imitation() -> None:
    made = learner(algorithm(free_log_std=True))
    _, gradients = made._il_gradients(made._draw())
    names = {id(p): name for name, p in made.module[MODULE].named_parameters()}
    reached = {
        names[id(p)]: g is not None and bool(g.any())
        for p, g in zip(made._imitation.parameters, gradients, strict=True)
    }
    assert [name for name, has in reached.items() if not has] == ["pi.log_std"]


def test_squashed_loss_is_finite_at_the_bounds() -> None:
    made = learner(algorithm(SACConfig))
    demos = DemoStore(fake_demos(), 1).windows(np.arange(7))
    demos.actions[:] = 1.0
    module = made.module[MODULE]
    mean = module.pi(module.pi_encoder({"obs": torch.from_numpy(demos.obs)})["encoder_out"]).chunk(2, dim=-1)[0]
    expected = -torch.distributions.Normal(mean.tanh(), IMITATION_STD).log_prob(torch.ones(7, 2)).mean()
    torch.testing.assert_close(made._imitation.loss(demos), expected)


# -- what an iteration does -------------------------------------------------------------------------------------------
def test_fixed_imitates_after_every_second_iteration_and_leaves_the_critic() -> None:
    made = learner()
    assert imitated_only(made) == set()
    first = dict(made.counters)
    assert first == {"iteration": 1, "rl_iterations": 1, "rl_updates": 4, "il_iterations": 0, "il_updates": 0}
    assert imitated_only(made) == {"encoder", "pi"}
    assert not any("critic" in name for name in _names(made))
    assert made.counters["il_updates"] == 4 and made.counters["il_iterations"] == 1


def _names(made: Any) -> list[str]:
    ids = {id(p) for p in made._imitation.parameters}
    return [name for name, p in made.module[MODULE].named_parameters() if id(p) in ids]


def test_sac_steps_the_policy_only() -> None:
    made = learner(algorithm(SACConfig), interleave={"every": 1})
    alpha = made.curr_log_alpha[MODULE].detach().clone()
    before = {name: made._named_optimizers[name].state_dict() for name in made._named_optimizers}
    assert imitated_only(made) == {"pi_encoder", "pi"}
    assert all(not state["state"] for state in before.values())
    assert {name.split(".")[0] for name in _names(made)} == {"pi_encoder", "pi"}
    assert not torch.equal(alpha, made.curr_log_alpha[MODULE])  # its own step of reinforcement
    assert made.counters["il_updates"] == 1 and made._temp_losses == {}


def test_share_optimizer_steps_that_of_the_algorithm_and_leaves_the_critic() -> None:
    made = learner(interleave={"every": 1, "share_optimizer": True})
    assert imitated_only(made) == {"encoder", "pi"}
    assert made._il_optimizer.state_dict()["state"] == {}


def test_measuring_changes_neither_weights_nor_metrics_of_reinforcement() -> None:
    measured, plain = (learner(schedule="rl_only", interleave={"relation_every": n}) for n in (1, 10**6))
    plain.module[MODULE].load_state_dict(measured.module[MODULE].state_dict())
    for made in (measured, plain):
        made.counters["iteration"] = 1
    torch.manual_seed(0)
    ours = update(measured)
    after = torch.rand(1)
    torch.manual_seed(0)
    theirs = update(plain)
    assert torch.equal(after, torch.rand(1))
    assert moved(weights(measured), weights(plain)) == set()
    assert "rho_se" in ours and "rho_se" not in theirs
    for name in ("policy_loss", "mean_kl_loss", "curr_kl_coeff"):
        assert float(ours[name]) == float(theirs[name])


def test_imitation_does_not_change_what_reinforcement_logs() -> None:
    with_il, without = learner(interleave={"every": 1}), learner(schedule="rl_only")
    without.module[MODULE].load_state_dict(with_il.module[MODULE].state_dict())
    ours, theirs = update(with_il), update(without)
    assert ours["il_loss"] > 0 and ours["il_updates"] == 4
    for name in ("policy_loss", "mean_kl_loss", "curr_kl_coeff"):
        assert float(ours[name]) == float(theirs[name])


def test_il_only_leaves_the_actor_to_imitation() -> None:
    made = learner(schedule="il_only")
    start = weights(made)
    update(made)
    first = weights(made)
    changed = {name for name in start if not torch.equal(start[name], first[name])}
    assert changed and all("critic" in name or name.startswith("vf") for name in changed)
    assert imitated_only(made) == {"encoder", "pi"}
    assert made.counters["rl_updates"] == 0 and made.counters["rl_iterations"] == 0


def gradients_of(made: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the gradients of one reinforcement step by name, as RLlib is about to apply them."""
    made._begin_iteration()
    batch = {MODULE: ppo_batch(MINIBATCH, seed).policy_batches[MODULE]}
    made._kept.append(batch[MODULE])
    out = made.module.forward_train(batch)
    found = made.compute_gradients(made.compute_losses(fwd_out=out, batch=batch))
    names = {p: name for name, p in made.module[MODULE].named_parameters()}
    return {names[p]: g.clone() for p, g in found.items()}


def test_bc_reg_adds_the_weighted_gradient_to_the_actor_only() -> None:
    made = learner(schedule="bc_reg", interleave={"bc_weight": 0.3})
    regularized = gradients_of(made)
    made._begin_iteration()
    names = {p: name for name, p in made.module[MODULE].named_parameters()}
    _, il = made._il_gradients(made._draw())
    il_of = {names[p]: g for p, g in zip(made._imitation.parameters, il, strict=True)}
    made.interleaving = learner(schedule="rl_only").interleaving
    plain = gradients_of(made)
    assert plain.keys() == regularized.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(regularized[name], gradient + 0.3 * il_of.get(name, torch.zeros(())))


def test_merged_combines_in_every_step_of_an_imitation_iteration() -> None:
    made = learner(interleave={"every": 1, "phase": "merged"})
    merged = gradients_of(made)
    made._begin_iteration()
    actor = made._imitation.parameters
    names = {p: name for name, p in made.module[MODULE].named_parameters()}
    _, il = made._il_gradients(made._draw())
    made.interleaving = learner(schedule="rl_only").interleaving
    plain = gradients_of(made)
    UPGrad().merge([plain[names[p]].clone() for p in actor], il, actor)
    for name, gradient in plain.items():
        expected = next((p.grad for p in actor if names[p] == name), gradient)
        torch.testing.assert_close(merged[name], expected)


def test_merged_naive_is_the_sum_of_both_gradients() -> None:
    made = learner(separation="naive", interleave={"every": 1, "phase": "merged"})
    merged = gradients_of(made)
    assert made.counters["rl_updates"] == made.counters["il_updates"] == 1
    made._begin_iteration()
    names = {p: name for name, p in made.module[MODULE].named_parameters()}
    _, il = made._il_gradients(made._draw())
    il_of = {names[p]: g for p, g in zip(made._imitation.parameters, il, strict=True) if g is not None}
    made.interleaving = learner(schedule="rl_only").interleaving
    for name, gradient in gradients_of(made).items():
        torch.testing.assert_close(merged[name], gradient + il_of.get(name, torch.zeros(())))


@pytest.mark.parametrize("bad", ["rl", "il"])
def test_merged_counts_only_the_gradients_that_a_step_took(bad: str) -> None:
    made = learner(interleave={"every": 1, "phase": "merged"})
    combine = made._combine

    def broken(separation: Any, rl: Any, demos: Any) -> Any:
        return combine(separation, [g * float("nan") if bad == "rl" else g for g in rl], demos)

    made._combine = broken
    if bad == "il":
        made._imitation.loss = lambda _: sum(p.sum() for p in made._imitation.parameters) * float("nan")
    gradients_of(made)
    assert (made.counters["rl_updates"], made.counters["il_updates"]) == ((0, 1) if bad == "rl" else (1, 0))


def test_merged_counts_its_steps() -> None:
    made = learner(interleave={"every": 1, "phase": "merged"})
    result = update(made)
    assert made.counters["il_updates"] == made.counters["rl_updates"] == 4
    assert {"rho", "il_loss", "separation_weight_il"} <= result.keys()


def test_adaptive_decides_after_an_imitation_iteration() -> None:
    made = learner(schedule="adaptive", interleave={"every": 2, "adaptive": {"c_il": 10.0}})
    for seed in range(2):
        result = update(made, seed)
    assert result["interleave_every"] in (1.0, 4.0)


def test_gradients_that_are_not_finite_are_not_stepped() -> None:
    made = learner(interleave={"every": 1})
    made._imitation.loss = lambda _: sum(p.sum() for p in made._imitation.parameters) * float("nan")
    made._rl_loss = lambda *_: sum(p.sum() for p in made._imitation.parameters) * float("nan")
    assert imitated_only(made) == set()
    assert made.counters["il_updates"] == 0


def test_gradient_is_clipped_as_the_algorithm_says() -> None:
    made = learner(algorithm().training(grad_clip=1e-3, grad_clip_by="global_norm"))
    for parameter in made._imitation.parameters:
        parameter.grad = torch.ones_like(parameter)
    assert made._clipped()
    norm = torch.nn.utils.get_total_norm([p.grad for p in made._imitation.parameters])
    torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-2, atol=0)


# -- state ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [PPOConfig, SACConfig])
@pytest.mark.parametrize("schedule", ["fixed", "adaptive"])
def test_restored_learner_goes_on_where_it_was(kind: type, schedule: str) -> None:
    made, other = (learner(algorithm(kind), schedule=schedule, interleave={"every": 3}) for _ in range(2))
    for seed in range(4):
        update(made, seed)
    state = cloudpickle.loads(cloudpickle.dumps(made.get_state()))
    other.set_state(state)
    if kind is SACConfig:  # RLlib's checkpoints leave the temperature out
        other.curr_log_alpha[MODULE].data.copy_(made.curr_log_alpha[MODULE].data)
        other.module[MODULE].load_state_dict(made.module[MODULE].state_dict())
    else:  # and PPO's KL coefficient
        other.curr_kl_coeffs_per_module[MODULE].data.copy_(made.curr_kl_coeffs_per_module[MODULE].data)
    assert other.counters == made.counters
    logged = []
    for each in (made, other):
        torch.manual_seed(0)
        logged.append([update(each, seed) for seed in range(4, 10)])
    assert made.counters["il_iterations"] > state["inril_ray"]["counters"]["il_iterations"] == 1
    assert moved(weights(made), weights(other)) == set()
    for ours, theirs in zip(*logged, strict=True):
        for name in ("il_updates", "interleave_every", "rho_ema", "il_loss"):
            np.testing.assert_equal(ours.get(name), theirs.get(name), err_msg=name)


def test_state_of_weights_alone_has_nothing_of_ours() -> None:
    made = learner()
    assert "inril_ray" not in made.get_state(components="rl_module")
    assert "inril_ray" not in made.get_state(not_components="inril_ray")


def test_other_demonstrations_are_refused_at_restore() -> None:
    made, other = learner(), learner(demos=fake_demos(seed=1))
    before = weights(other)
    with pytest.raises(InrilError, match=r"demonstrations differ .* fake-5-10-1.*it had fake-5-10-1"):
        other.set_state(made.get_state())
    assert moved(before, weights(other)) == set()


# -- configuration ----------------------------------------------------------------------------------------------------
def test_copies_of_a_configuration_share_the_arrays() -> None:
    demos = fake_demos()
    config = with_interleaving(algorithm(), demos=demos)
    held = copy.deepcopy(config.to_dict())["learner_config_dict"]["inril_ray"]["demos"]
    assert held.load() is demos
    assert repr(held) == "DemoSource('fake.hdf5')"


def test_learner_class_survives_pickling() -> None:
    config = with_interleaving(algorithm(), demos=fake_demos())
    cls = config.learner_class
    again = cloudpickle.loads(cloudpickle.dumps(cls))
    assert issubclass(again, InterleavingLearner) and again.__name__ == "InterleavingPPOTorchLearner"
    twice = with_interleaving(config, demos=fake_demos(), schedule="rl_only")
    assert twice.learner_class is cls
    assert twice.learner_config_dict["inril_ray"]["schedule"] == "rl_only"


def old_stack() -> Any:
    return algorithm().api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (old_stack, {}, "new API stack"),
        (lambda: algorithm(BCConfig), {}, "BCConfig: an offline algorithm"),
        (
            lambda: algorithm().env_runners(env_to_module_connector=lambda *_: None),
            {},
            "env_to_module_connector=….*MeanStdFilter",
        ),
        (lambda: algorithm().framework(torch_compile_learner=True), {}, "torch_compile_learner=True"),
        (algorithm, {"schedule": "fixd"}, "Unknown schedule 'fixd'. Did you mean 'fixed'"),
        (algorithm, {"separation": "upgrade"}, "Unknown separation 'upgrade'. Did you mean 'upgrad'"),
        (algorithm, {"separation": "network"}, "separation = 'network': RLlib has no residual policies"),
        (algorithm, {"interleave": {"evry": 3}}, r"interleave.evry.*Did you mean 'every'"),
        (algorithm, {"interleave": {"bc_source": "base"}}, "bc_source = 'base'"),
        (algorithm, {"demos": Path("/nowhere/demos.arrow")}, "/nowhere/demos.arrow does not exist|does not exist"),
        (algorithm, {"demos": {"a": 1}}, "demos = dict"),
    ],
)
def test_what_does_not_go_is_refused_and_changes_nothing(change: Any, settings: Any, message: str) -> None:
    config = change()
    before = config.learner_class, dict(config.learner_config_dict)
    with pytest.raises(InrilError, match=message):
        with_interleaving(config, **{"demos": fake_demos(), **settings})
    assert (config.learner_class, dict(config.learner_config_dict)) == before


@pytest.mark.parametrize(
    ("config", "actions", "settings", "message"),
    [
        (
            algorithm,
            gym.spaces.Box(-1.0, 1.0, (4,), np.float32),
            {},
            r"demos = 'fake.hdf5': actions have width 2, the module's action_space has 4",
        ),
        (algorithm, ACTIONS, {"module_id": "other"}, "module_id = 'other': choose one of default_policy"),
        (lambda: algorithm(use_lstm=True), ACTIONS, {}, "not recurrent"),
        (lambda: algorithm(DQNConfig), gym.spaces.Discrete(4), {}, "a Gaussian, plain or squashed, is needed"),
    ],
)
def test_what_does_not_fit_the_module_is_refused(config: Any, actions: Any, settings: Any, message: str) -> None:
    with pytest.raises(InrilError, match=message):
        learner(config().environment(action_space=actions), actions=actions, **settings)


# -- tasks ------------------------------------------------------------------------------------------------------------
def test_task_is_a_batch_with_nextstep_autoreset(monkeypatch: pytest.MonkeyPatch) -> None:
    name = register_fake_task(monkeypatch)
    config = with_task(PPOConfig(), name, {"max_episode_steps": 4})
    assert config.env == "inril_ray/fake/reach" and config.gym_env_vectorize_mode == "vector_entry_point"
    task = envs.entry(name)
    env = rllib_tasks._make(task, {**config.env_config, "num_envs": 3})
    assert env.num_envs == 3 and env.purpose == "train" and env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.task_spec.max_episode_steps == 4
    held_out = rllib_tasks._make(task, {**config.evaluation_config["env_config"], "num_envs": 3})
    assert held_out.purpose == "eval"
    assert not np.array_equal(env.reset(seed=1)[0], held_out.reset(seed=1)[0])
    with pytest.raises(InrilError, match="vector_entry_point"):
        rllib_tasks._make(task, config.env_config)
    with pytest.raises(InrilError, match="Unknown task 'fake/rech'"):
        with_task(PPOConfig(), "fake/rech")
    with pytest.raises(InrilError, match="with_task comes before with_interleaving"):
        with_task(with_interleaving(config, demos=fake_demos()), name)
    expectation = rllib_tasks.expectation_of(config)
    assert expectation is not None and expectation.action_dim == 2
    assert rllib_tasks.expectation_of(PPOConfig().environment("Hopper-v5")) is None
