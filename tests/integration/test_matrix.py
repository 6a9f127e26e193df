"""Every algorithm on every task, on budgets of a second: clone, collect, reinforce, imitate, publish, evaluate.

`make test` has every algorithm on a task of every kind, and two algorithms on every task; the rest are drills.
MimicGen's tasks need an installation that is not on PyPI; their adapter has tests of its own.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

from inril_ray import envs
from inril_ray.algorithms import ALGORITHMS
from inril_ray.backend import LocalBackend
from inril_ray.demos.store import DemoArrays, DemoInfo
from inril_ray.envs.base import EnvConfig
from inril_ray.experiment import load_config
from tests.fakes import POLICY_OF

TASKS = [name for name in envs.TASKS if not name.startswith("mimicgen/") and not name.endswith(("_med", "_high"))]
KINDS = (
    "robomimic/lift", "robomimic/transport", "gym/hopper", "fetch/push", "adroit/hammer", "furniture/one_leg_low",
)  # fmt: skip
"""A task of every kind; Transport because it has two arms."""
PAIRS = [
    pytest.param(task, algorithm, marks=[] if task in KINDS or algorithm in ("dppo", "rlpd") else pytest.mark.drill)
    for task in TASKS
    for algorithm in ALGORITHMS
]
STEPS = 8
SMALL_DIFFUSION = {
    "hidden_dim": 16,
    "num_hidden": 3,
    "step_embedding_dim": 4,
    "denoising_steps": 4,
    "ddim_steps": None,
    "obs_encoder_dims": None,
}
SMALL_ACTOR: dict[str, dict[str, Any]] = {
    "diffusion_mlp": SMALL_DIFFUSION,
    "gaussian_mlp": {"hidden_dim": 16, "num_hidden": 3},
    "tanh_gaussian": {"hidden_dims": [16]},
    "residual_mlp": {"base": {**SMALL_DIFFUSION, "ddim_steps": 2, "finetuned_steps": 2}},
}
OFF_POLICY = {"batch_size": 4, "replay_ratio": 2, "buffer_size": 10, "critic_hidden_dim": 16}
SMALL_RL: dict[str, dict[str, Any]] = {
    "dppo": {"num_epochs": 1, "minibatch_size": 4, "critic_hidden_dim": 16},
    "ppo": {"num_epochs": 1, "minibatch_size": 4, "critic_hidden_dim": 16},
    "residual_ppo": {"num_epochs": 1, "critic_hidden_dims": [16]},
    "rwr": {"num_epochs": 1, "batch_size": 4},
    "dipo": {**OFF_POLICY, "ascent_steps": 1},
    "cal_ql": {**OFF_POLICY, "offline_updates": 1, "num_actions": 2},
    **{name: OFF_POLICY for name in ("awr", "dql", "ibrl", "idql", "qsm", "rlpd", "sac")},
}


@functools.cache
def random_demos(task: str) -> DemoArrays:
    """Two episodes of random actions: what they show does not matter here."""
    spec = envs.spec(task, EnvConfig())
    env = envs.make(task, num_envs=1, seed=0, purpose="demos", config=EnvConfig(max_episode_steps=1000))
    rng = np.random.default_rng(0)
    obs, actions, rewards = [], [], []
    for _ in range(2):
        seen, _ = env.reset()
        for _ in range(20):
            action = rng.uniform(spec.action_low, spec.action_high, (1, spec.action_dim)).astype(np.float32)
            obs.append(seen[0])
            actions.append(action[0])
            seen, reward, *_ = env.step(action)
            rewards.append(reward[0])
    env.close()
    info = DemoInfo(
        source_file="random",
        format="random",
        env_name=str(spec.recorded_as),
        semantics=spec.semantics,
        source="unknown",
        obs_keys=spec.obs_keys,
        content_hash=task,
        metadata={},
    )
    return DemoArrays(
        obs=np.array(obs, np.float32),
        actions=np.array(actions, np.float32),
        rewards=np.array(rewards, np.float32),
        episode_starts=np.array([0, 20, 40]),
        held_out=np.zeros(2, bool),
        info=info,
    )


def config_of(task: str, algorithm: str) -> Any:
    """The preset of a pair, made small."""
    horizon = {"prediction_horizon": 2, "action_horizon": 2}
    policy = POLICY_OF[algorithm]
    actor = {**SMALL_ACTOR[policy]}
    if policy == "diffusion_mlp":
        actor |= {**horizon, "finetuned_steps": 2 if algorithm == "dppo" else 4}
    elif policy == "residual_mlp":
        actor["base"] = {**actor["base"], **horizon}
    else:
        actor["prediction_horizon"] = 2
    small = {
        "task": task,
        "algorithm": algorithm,
        "policy": policy,
        "num_iterations": 2,
        "env": {"max_episode_steps": STEPS},
        "actor": actor,
        "rl": {**SMALL_RL[algorithm], "critic_warmup_iterations": 0},
        "pretrain": {"num_epochs": 1, "batch_size": 16},
        "rollout": {"num_envs": 2, "num_decisions": STEPS // 2},
        "interleave": {"every": 2, "il_steps": 2, "il_batch_size": 4, "relation_pairs": 2},
        "evaluation": {"num_envs": 1},
    }
    return load_config([small])


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # gymnasium's v4 environments are meant
@pytest.mark.parametrize(("task", "algorithm"), PAIRS)
def test_every_algorithm_runs_on_every_task(task: str, algorithm: str) -> None:
    backend = LocalBackend(config_of(task, algorithm), random_demos(task))
    try:
        cloned = backend.pretrain()
        assert math.isfinite(cloned["bc_loss"])
        rows = [backend.iterate() for _ in range(2)]
        assert [r["il_updates"] for r in rows] == [0, 2]
        assert rows[-1]["rl_updates"] >= 1
        assert all(math.isfinite(r[name]) for r in rows for name in ("policy_loss", "il_probe_loss"))
        assert rows[-1]["dropped_samples"] == 0
        assert rows[-1]["skipped_updates"] == 0
    finally:
        backend.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_evaluates_what_acts(algorithm: str) -> None:
    backend = LocalBackend(config_of("fetch/push", algorithm), random_demos("fetch/push"))
    backend.pretrain()
    backend.iterate()
    outcomes = backend.evaluate(2)
    assert outcomes.lengths.tolist() == [STEPS, STEPS]
    again = backend.evaluate(2)
    assert again.returns.tolist() == outcomes.returns.tolist()
