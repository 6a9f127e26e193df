"""Interleaving in RLlib's algorithms on a local cluster, one for the module."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID as MODULE
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from inril_ray import envs
from inril_ray.demos.store import DemoArrays, write_arrow
from inril_ray.distributed.demo_service import DemoService
from inril_ray.distributed.driver import start_ray
from inril_ray.rllib import with_interleaving, with_task
from tests.fakes import FAKE_TASK_NAME, fake_demos

# RLlib's own actors warn of what no user of it can change.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    start_ray(8)
    envs.TASKS[FAKE_TASK_NAME] = "tests.fakes:FAKE_TASK"
    yield
    del envs.TASKS[FAKE_TASK_NAME]
    ray.shutdown()


def reach(kind: type = PPOConfig, *, num_envs: int = 4, runners: int = 0, **training: Any) -> Any:
    """Return the configuration of an algorithm on the point-mass task, of the smallest sizes."""
    config = with_task(kind(), FAKE_TASK_NAME).debugging(seed=1)
    config = config.env_runners(num_env_runners=runners, num_envs_per_env_runner=num_envs)
    config = config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16, 16]))
    return config.training(**{"train_batch_size_per_learner": 80, **training})


def ppo(**settings: Any) -> Any:
    config = reach(minibatch_size=40, num_epochs=2, lr=1e-3)
    return with_interleaving(config, **{"demos": fake_demos(), "interleave": {"every": 2, "il_steps": 3}, **settings})


def logged(result: dict[str, Any]) -> dict[str, float]:
    return result["learners"][MODULE]


def counters(result: dict[str, Any]) -> dict[str, float]:
    names = ("iteration", "rl_iterations", "rl_updates", "il_iterations", "il_updates")
    return {name: logged(result)[name] for name in names}


def weights_of_all(algorithm: Algorithm) -> list[dict[str, np.ndarray]]:
    """Return the weights of every learner."""

    def of(learner: Any) -> dict[str, np.ndarray]:
        state = learner.module[MODULE].unwrapped().state_dict()
        return {name: value.detach().numpy().copy() for name, value in state.items()}

    results = algorithm.learner_group.foreach_learner(of)
    return [r.get() if hasattr(r, "get") and not isinstance(r, dict) else r for r in results]


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.parametrize(("num_learners", "phase"), [(0, "merged"), (1, "inserted"), (2, "inserted"), (2, "merged")])
def test_learners_imitate_and_stay_equal(num_learners: int, phase: str) -> None:
    config = ppo(interleave={"every": 2, "il_steps": 3, "phase": phase}).learners(num_learners=num_learners)
    algorithm = config.build_algo()
    try:
        for _ in range(2):
            result = algorithm.train()
        found = counters(result)
        assert (found["iteration"], found["il_iterations"]) == (2, 1)
        assert found["il_updates"] == (3 if phase == "inserted" else found["rl_updates"] / 2)
        every = weights_of_all(algorithm)
        assert len(every) == max(1, num_learners)
        for other in every[1:]:
            for name, value in every[0].items():
                np.testing.assert_array_equal(value, other[name], err_msg=name)
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.parametrize("num_learners", [0, 2])
def test_restored_algorithm_goes_on(tmp_path: Path, num_learners: int) -> None:
    config = ppo(demos=DemoService(fake_demos()).handle).learners(num_learners=num_learners)
    algorithm = config.build_algo()
    try:
        for _ in range(3):
            result = algorithm.train()
        before, weights = counters(result), weights_of_all(algorithm)[0]
        path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        ahead = counters(algorithm.train())
        algorithm.restore_from_path(path)
        assert counters(algorithm.train()) == ahead
    finally:
        algorithm.stop()
    again = Algorithm.from_checkpoint(path)
    try:
        for learner in weights_of_all(again):
            for name, value in weights.items():
                np.testing.assert_array_equal(value, learner[name], err_msg=name)
        went_on = counters(again.train())
        assert went_on == ahead and went_on["il_iterations"] == before["il_iterations"] + 1 == 2
    finally:
        again.stop()


@pytest.mark.slow
def test_tune_searches_over_our_settings(tmp_path: Path) -> None:
    demos = fake_demos()
    demos = replace(demos, info=replace(demos.info, content_hash=demos.hash_content()))
    write_arrow(demos, tmp_path / "demos.arrow")
    config = ppo(demos=tmp_path / "demos.arrow")
    config.learner_config_dict["inril_ray"]["schedule"] = tune.grid_search(["rl_only", "fixed"])
    tuner = tune.Tuner(
        "PPO",
        param_space=config,
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path / "tune"), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    made = {
        r.config["learner_config_dict"]["inril_ray"]["schedule"]: logged(r.metrics)["il_updates"]
        for r in results  # type: ignore[union-attr]
    }
    assert made == {"rl_only": 0, "fixed": 3}


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_learners"), [(IMPALAConfig, 0), (APPOConfig, 1)])
def test_asynchronous_algorithms_run(kind: type, num_learners: int) -> None:
    config = reach(kind, runners=1).env_runners(rollout_fragment_length=10).training(broadcast_interval=1)
    config = config.learners(num_learners=num_learners, num_aggregator_actors_per_learner=0)
    config = config.reporting(min_time_s_per_iteration=1)
    config = with_interleaving(config, demos=fake_demos(), interleave={"every": 2, "il_steps": 3, "relation_pairs": 2})
    algorithm, deadline = config.build_algo(), time.monotonic() + 120.0
    try:
        found: dict[str, float] = {"il_updates": 0}
        while found["il_updates"] < 6 and time.monotonic() < deadline:
            result = algorithm.train()
            if "il_updates" in result.get("learners", {}).get(MODULE, {}):
                found = counters(result)
        assert found["il_updates"] == 3 * found["il_iterations"] >= 6, found
        assert found["il_iterations"] == found["iteration"] // 2
    finally:
        algorithm.stop()


def test_what_does_not_fit_is_refused_before_training() -> None:
    wrong = fake_demos()
    object.__setattr__(wrong, "actions", np.zeros((len(wrong.actions), 5), np.float32))
    with pytest.raises(Exception, match="actions have width 5, the module's action_space has 2"):
        ppo(demos=wrong).build_algo()


# -- learning: Gym's InvertedPendulum, whose return is the number of steps it stands, at most 200; the point mass ---
GAINS = np.float32([0.5, 6.0, 0.5, 1.0])


def pendulum_demos(episodes: int = 4) -> DemoArrays:
    """Let a linear controller balance the pendulum against noise that is not recorded; its force has the range ±3."""
    env, rng = gym.make("InvertedPendulum-v5", max_episode_steps=200), np.random.default_rng(0)
    obs, actions, starts = [], [], [0]
    for episode in range(episodes):
        seen, _ = env.reset(seed=1000 + episode)
        over = False
        while not over:
            obs.append(seen)
            actions.append(np.clip([GAINS @ seen], -3.0, 3.0))
            seen, _, terminated, truncated, _ = env.step(actions[-1] + rng.standard_normal(1))
            over = terminated or truncated
        starts.append(len(obs))
    base = fake_demos(num_episodes=episodes, num_held_out=0)
    return replace(
        base,
        obs=np.array(obs, np.float32),
        actions=np.array(actions, np.float32),
        rewards=np.ones(len(obs), np.float32),
        episode_starts=np.array(starts),
        final_obs=np.full((episodes, 4), np.nan, np.float32),
    )


def returns(config: Any, iterations: int, episodes: int) -> tuple[float, float]:
    """Train; return the mean return of evaluation episodes before and after."""
    config = config.evaluation(
        evaluation_num_env_runners=0, evaluation_duration=episodes, evaluation_duration_unit="episodes"
    )
    algorithm = config.build_algo()
    try:
        before = algorithm.evaluate()["env_runners"]["episode_return_mean"]
        for _ in range(iterations):
            algorithm.train()
        return before, algorithm.evaluate()["env_runners"]["episode_return_mean"]
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.sim
def test_ppo_balances_what_reinforcement_alone_does_not_yet() -> None:
    def pendulum() -> Any:
        config = PPOConfig().environment("InvertedPendulum-v5", env_config={"max_episode_steps": 200})
        config = config.debugging(seed=1).env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        config = config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[32, 32], free_log_std=True))
        return config.training(
            train_batch_size_per_learner=400, minibatch_size=100, num_epochs=4, lr=3e-4, use_kl_loss=False
        )

    interleave = {"every": 1, "il_steps": 200, "il_lr": 3e-3}
    config = with_interleaving(pendulum(), demos=pendulum_demos(), interleave=interleave)
    before, after = returns(config, iterations=16, episodes=16)
    _, alone = returns(pendulum(), iterations=16, episodes=16)
    assert after > max(before, alone) + 30.0, (before, after, alone)


@pytest.mark.drill
@pytest.mark.slow
def test_sac_reaches_what_reinforcement_alone_does_not_yet() -> None:
    def sac() -> Any:
        config = reach(SACConfig, num_envs=8, train_batch_size_per_learner=64, initial_alpha=0.1, actor_lr=3e-4)
        config = config.training(num_steps_sampled_before_learning_starts=200, critic_lr=1e-3, alpha_lr=1e-3)
        config = config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[32, 32]))
        return config.reporting(min_sample_timesteps_per_iteration=400, min_time_s_per_iteration=0)

    interleave = {"every": 1, "il_steps": 2, "il_lr": 1e-3, "relation_every": 1000}
    config = with_interleaving(sac(), demos=fake_demos(), interleave=interleave)
    before, after = returns(config, iterations=6, episodes=80)
    _, alone = returns(sac(), iterations=6, episodes=80)
    assert after > max(before, alone) + 2.0, (before, after, alone)  # of 10 steps, all at the goal
