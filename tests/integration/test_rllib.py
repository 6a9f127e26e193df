"""Interleaving in RLlib's algorithms on a local cluster, one for the module."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID as MODULE
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.rllib_learning import LEARNING, returns
from inril_ray import envs
from inril_ray.cli import main
from inril_ray.demos.store import write_arrow
from inril_ray.distributed.cluster import start_ray
from inril_ray.distributed.demo_service import DemoService
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
@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.drill)])
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


@pytest.mark.drill
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
@pytest.mark.parametrize(
    ("kind", "num_learners", "num_aggregators"),
    [(IMPALAConfig, 0, 0), (APPOConfig, 1, 0), (IMPALAConfig, 1, 1), (APPOConfig, 1, 1)],
)
def test_asynchronous_algorithms_run(kind: type, num_learners: int, num_aggregators: int) -> None:
    config = reach(kind, runners=1).env_runners(rollout_fragment_length=10).training(broadcast_interval=1)
    config = config.learners(num_learners=num_learners, num_aggregator_actors_per_learner=num_aggregators)
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


# -- learning ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.parametrize(("name", "seed"), [("ppo", 4), pytest.param("sac", 7, marks=pytest.mark.drill)])
def test_balances_what_reinforcement_alone_does_not_yet(name: str, seed: int) -> None:
    """Gym's InvertedPendulum at a seed that neither chose the settings nor is one of the benchmark's."""
    learning = LEARNING[name]
    interleaved = returns(learning.imitating(seed), learning.iterations)
    alone = returns(learning.plain(seed), learning.iterations)
    assert interleaved["before"] < 50.0
    assert interleaved["after"] > alone["after"] + 50.0, (interleaved, alone)


# -- the example of the page ------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.sim
def test_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rllib.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (command,) = re.findall(r"`inril (demos make [^`]*)`", page)
    for shown, tiny in (("range(100)", "range(2)"), ('"every": 10', '"every": 2')):
        assert shown in code
        code = code.replace(shown, tiny)
    assert "--num 40" in command
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command.replace("--num 40", "--num 2"))) == 0
    names: dict[str, Any] = {}
    try:
        exec(code, names)
        assert logged(names["result"])["il_updates"] > 0
        assert list((tmp_path / "checkpoint").iterdir())
    finally:
        if "algorithm" in names:
            names["algorithm"].stop()
