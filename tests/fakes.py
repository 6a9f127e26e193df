"""Small stand-ins: a point-mass environment, demonstrations of it, and builders of tiny policies and learners.

``FakeEnv`` moves a point in the plane. The observation is [x, y, elapsed / limit]; an episode succeeds within a radius
of the origin. Its task object is :data:`FAKE_TASK`; ``register_fake_task(monkeypatch)`` makes it a name of the library.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import torch

from inril_ray import envs
from inril_ray.algorithms import ALGORITHMS
from inril_ray.algorithms.base import AlgorithmContext
from inril_ray.config import build
from inril_ray.demos.store import DemoArrays, DemoInfo, DemoStore
from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome, Task
from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.interleave import InterleaveConfig
from inril_ray.learner import Learner
from inril_ray.policies import POLICIES
from inril_ray.policies.base import Policy
from inril_ray.registry import resolve
from inril_ray.rollout import ActionNoise, RolloutCollector, decision_env
from inril_ray.schedules import SCHEDULES
from inril_ray.types import EnvSpec, NormalizerStats, Rollout

FAKE_TASK_NAME = "fake/reach"
CPU = torch.device("cpu")
TINY_POLICY: dict[str, dict[str, Any]] = {
    "diffusion_mlp": {
        "prediction_horizon": 3,
        "action_horizon": 2,
        "denoising_steps": 6,
        "finetuned_steps": 3,
        "hidden_dim": 8,
        "step_embedding_dim": 4,
    },
    "diffusion_unet": {
        "prediction_horizon": 4,
        "action_horizon": 2,
        "denoising_steps": 7,
        "ddim_steps": 3,
        "finetuned_steps": 2,
        "widths": (8, 16),
        "num_groups": 4,
        "kernel_size": 3,
        "step_embedding_dim": 4,
    },
    "gaussian_mlp": {"prediction_horizon": 3, "hidden_dim": 8},
    "tanh_gaussian": {"prediction_horizon": 3, "hidden_dims": (8, 8)},
    "residual_unet": {
        "hidden_dims": (8, 8),
        "base": {
            "prediction_horizon": 4,
            "action_horizon": 2,
            "denoising_steps": 7,
            "ddim_steps": 3,
            "finetuned_steps": 3,
            "widths": (8, 16),
            "num_groups": 4,
            "kernel_size": 3,
            "step_embedding_dim": 4,
        },
    },
    "residual_gaussian": {"hidden_dims": (8, 8), "base": {"prediction_horizon": 3, "hidden_dim": 8, "num_hidden": 3}},
    "residual_mlp": {
        "hidden_dims": (8, 8),
        "base": {
            "prediction_horizon": 4,
            "action_horizon": 2,
            "denoising_steps": 6,
            "ddim_steps": 3,
            "finetuned_steps": 3,
            "hidden_dim": 8,
            "step_embedding_dim": 4,
        },
    },
}
TINY_ON_POLICY: dict[str, Any] = {"num_epochs": 2, "minibatch_size": 20, "critic_hidden_dim": 8}
TINY_OFF_POLICY: dict[str, Any] = {
    "batch_size": 8, "replay_ratio": 2, "buffer_size": 20, "critic_hidden_dim": 8, "critic_warmup_iterations": 0,
}  # fmt: skip
TINY_RL: dict[str, dict[str, Any]] = {
    "dppo": TINY_ON_POLICY,
    "ppo": TINY_ON_POLICY,
    "residual_ppo": {"num_epochs": 2, "accumulate": 7, "critic_hidden_dims": (8,)},
    "rwr": {"num_epochs": 2, "batch_size": 8},
    "idql": {**TINY_OFF_POLICY, "num_samples": 3},
    "dipo": {**TINY_OFF_POLICY, "ascent_steps": 2},
    "cal_ql": {**TINY_OFF_POLICY, "num_actions": 2, "offline_updates": 3},
    "rlpd": {**TINY_OFF_POLICY, "num_critics": 3, "critic_steps": 2},
    "ibrl": {**TINY_OFF_POLICY, "num_critics": 3, "critic_steps": 2},
    **{name: TINY_OFF_POLICY for name in ("awr", "dql", "qsm", "sac")},
}
"""Algorithm to settings that take milliseconds."""
POLICY_OF = {
    "residual_ppo": "residual_mlp",
    "ppo": "gaussian_mlp", "ibrl": "gaussian_mlp", "sac": "tanh_gaussian", "rlpd": "tanh_gaussian",
    "cal_ql": "tanh_gaussian",
    **{name: "diffusion_mlp" for name in ("dppo", "idql", "dipo", "awr", "rwr", "dql", "qsm")},
}  # fmt: skip
"""Algorithm to a policy that it trains."""
WHOLE_CHAIN = {"prediction_horizon": 3, "action_horizon": 3, "finetuned_steps": 6}
ACTOR_OF = {name: WHOLE_CHAIN for name in ("idql", "dipo", "awr", "rwr", "dql", "qsm")}
"""Algorithm to settings of its policy, where it needs some."""


def fake_spec(max_episode_steps: int = 10) -> EnvSpec:
    return EnvSpec(
        task=FAKE_TASK_NAME,
        obs_dim=3,
        action_dim=2,
        max_episode_steps=max_episode_steps,
        control_hz=20.0,
        obs_keys=(("position", 2), ("clock", 1)),
        reward_values=(0.0, 1.0),
        pays_success=True,
    )


class StandInWandb(ModuleType):
    """What the tracker uses of the package ``wandb``, and what it was given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[StandInRun] = []

    def init(self, **given: Any) -> StandInRun:
        self.runs.append(StandInRun(given))
        return self.runs[-1]


class StandInRun:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.id = given, given["id"]
        self.logged: list[dict[str, float]] = []
        self.axes: dict[str, str] = {}
        self.exit_code: int | None = None
        self.gone = False

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, metrics: dict[str, float]) -> None:
        self._ask()
        self.logged.append(metrics)

    def finish(self, *, exit_code: int) -> None:
        self._ask()
        self.exit_code = exit_code

    def _ask(self) -> None:
        if self.gone:
            raise ConnectionError("The service process is gone.")


class FakeEnv(SimVectorEnv):
    """A point that actions push. Every row is computed on its own, so results don't depend on the batch."""

    def __init__(
        self,
        num_envs: int = 2,
        *,
        seed: int = 0,
        purpose: str = "train",
        first_env: int = 0,
        max_episode_steps: int = 10,
        terminate_on_success: bool = False,
        radius: float = 0.3,
    ) -> None:
        super().__init__(fake_spec(max_episode_steps), num_envs, seed, purpose, first_env)
        self.terminate_on_success, self.radius = terminate_on_success, radius
        self.position = np.zeros((num_envs, 2), np.float32)
        self.nan_obs_at: set[tuple[int, int, int]] = set()
        """(environment, episode, step) at which the observation is NaN: a fault to inject."""

    def _observation(self, elapsed: np.ndarray) -> np.ndarray:
        clock = elapsed[:, None] / self.task_spec.max_episode_steps
        return np.concatenate([self.position, clock], axis=1).astype(np.float32)

    def _begin_episodes(self, mask: np.ndarray) -> np.ndarray:
        for i in np.flatnonzero(mask):
            self.position[i] = self.episode_rng(int(i)).uniform(-1.0, 1.0, 2)
        return self._observation(self.elapsed)

    def advance(self, actions: np.ndarray, active: np.ndarray) -> StepOutcome:
        push = np.clip(np.asarray(actions, np.float32), -1.0, 1.0)
        self.position[active] = (self.position + np.float32(0.25) * push)[active]
        success = np.linalg.norm(self.position, axis=1) < self.radius
        obs = self._observation(self.elapsed + 1)
        for i, episode, step in self.nan_obs_at:
            if active[i] and self.episode[i] == episode and self.elapsed[i] == step:
                obs[i] = np.nan
        return StepOutcome(
            obs=obs,
            reward=success.astype(np.float32),
            terminated=success & self.terminate_on_success,
            success=success,
            stage=success.astype(np.int64),
        )

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "position": self.position.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.position[:] = state["position"]
        self.obs[:] = self._observation(self.elapsed)


class FakeTask(Task):
    """What a row of ``inril_ray.envs.TASKS`` points to."""

    def spec(self, config: EnvConfig) -> EnvSpec:
        return dataclasses.replace(fake_spec(config.max_episode_steps or 10), success=self.chosen_success(config))

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        return FakeEnv(
            num_envs,
            seed=seed,
            purpose=purpose,
            first_env=first_env,
            max_episode_steps=config.max_episode_steps or 10,
            terminate_on_success=config.terminate_on_success,
        )


FAKE_TASK = FakeTask(name=FAKE_TASK_NAME, backends=("fast", "stock"))


def register_fake_task(monkeypatch: Any) -> str:
    """Make ``fake/reach`` a task of the library for the length of a test; return its name."""
    monkeypatch.setitem(envs.TASKS, FAKE_TASK_NAME, "tests.fakes:FAKE_TASK")
    return FAKE_TASK_NAME


def fake_demos(num_episodes: int = 5, length: int = 10, num_held_out: int = 1, seed: int = 0) -> DemoArrays:
    """Demonstrations that walk to the origin, all of one length; the last ``num_held_out`` are held out."""
    rng = np.random.default_rng(seed)
    obs, actions, rewards = [], [], []
    for _ in range(num_episodes):
        position = rng.uniform(-1.0, 1.0, 2)
        for t in range(length):
            action = np.clip(-3.0 * position + 0.2 * rng.standard_normal(2), -1.0, 1.0)
            obs.append([*position, t / length])
            actions.append(action)
            position = position + 0.25 * action
            rewards.append(float(np.linalg.norm(position) < 0.3))
    info = DemoInfo(
        source_file="fake.hdf5",
        format="fake",
        env_name="Reach",
        semantics="",
        source="scripted",
        obs_keys=fake_spec().obs_keys,
        content_hash=f"fake-{num_episodes}-{length}-{num_held_out}-{seed}",
        metadata={},
    )
    return DemoArrays(
        obs=np.array(obs, np.float32),
        actions=np.array(actions, np.float32),
        rewards=np.array(rewards, np.float32),
        episode_starts=np.arange(num_episodes + 1, dtype=np.int64) * length,
        held_out=np.arange(num_episodes) >= num_episodes - num_held_out,
        info=info,
    )


def unit_stats(obs_dim: int = 3, action_dim: int = 2) -> NormalizerStats:
    """Ranges that are not symmetric, so that a forgotten normalisation shows."""
    return NormalizerStats(
        obs_low=np.full(obs_dim, -1.0, np.float32),
        obs_high=np.full(obs_dim, 2.0, np.float32),
        action_low=np.full(action_dim, -0.5, np.float32),
        action_high=np.full(action_dim, 1.0, np.float32),
    )


def tiny_policy(
    kind: str = "diffusion_mlp",
    *,
    seed: int = 0,
    stats: NormalizerStats | None = None,
    finetuning: bool = True,
    **settings: Any,
) -> Policy:
    """A policy of a few hundred parameters for :class:`FakeEnv`."""
    cls = resolve(POLICIES, kind, "policy")
    torch.manual_seed(seed)
    policy = cls(build(cls.Config, {**TINY_POLICY[kind], **settings}), fake_spec(), stats or unit_stats())
    if finetuning:
        policy.begin_finetuning()
    return policy


def tiny_algorithm(
    name: str = "dppo",
    *,
    num_envs: int = 4,
    seed: int = 1,
    policy: Policy | None = None,
    demos: DemoArrays | None = None,
    **settings: Any,
) -> Any:
    """An algorithm over tiny critics, for a policy of its kind."""
    policy = policy or tiny_policy(POLICY_OF[name], **ACTOR_OF.get(name, {}))
    cls = resolve(ALGORITHMS, name, "algorithm")
    torch.manual_seed(seed)
    context = AlgorithmContext(
        policy=policy,
        spec=policy.decision_spec(fake_spec()),
        num_envs=num_envs,
        device=CPU,
        demos=fake_demos() if demos is None else demos,
    )
    return cls(build(cls.Config, {**TINY_RL[name], **settings}), context)


def tiny_learner(
    algorithm: str = "dppo",
    *,
    schedule: str = "fixed",
    separation: str | None = None,
    policy_name: str | None = None,
    seed: int = 0,
    network_seed: int = 0,
    num_envs: int = 4,
    double: bool = False,
    actor: dict[str, Any] | None = None,
    rl: dict[str, Any] | None = None,
    demos: DemoArrays | None = None,
    **interleave: Any,
) -> Learner:
    """A learner over tiny networks. ``interleave`` goes to :class:`InterleaveConfig`."""
    kind = policy_name or POLICY_OF[algorithm]
    actor = {**ACTOR_OF.get(algorithm, {}), **(actor or {})}
    cls = resolve(POLICIES, kind, "policy").Config
    arrays = demos or fake_demos()
    pads = resolve(POLICIES, kind, "policy").pads_demos
    store = DemoStore(arrays, build(cls, {**TINY_POLICY[kind], **actor}).prediction_horizon, pad_ends=pads)
    policy = tiny_policy(kind, seed=network_seed, stats=store.normalizer_stats(), **actor)
    rl_algorithm = tiny_algorithm(
        algorithm, num_envs=num_envs, seed=network_seed + 1, policy=policy, demos=arrays, **(rl or {})
    )
    if double:
        for module in (policy, *rl_algorithm.modules().values()):
            module.double()
    default = "network" if policy.imitates_apart else "upgrad"
    config = build(
        InterleaveConfig, {"every": 2, "il_batch_size": 16, "relation_pairs": 2, "relation_every": 1, **interleave}
    )
    return Learner(
        policy,
        rl_algorithm,
        resolve(SCHEDULES, schedule, "schedule").from_config(config),
        resolve(SEPARATIONS, separation or default, "separation").from_config(config),
        store,
        config,
        seed=seed,
        device=CPU,
    )


def tiny_collector(policy: Policy, *, num_envs: int = 4, num_decisions: int = 6, seed: int = 0) -> RolloutCollector:
    return RolloutCollector(
        decision_env(FakeEnv(num_envs, seed=seed), policy),
        policy,
        ActionNoise(seed, 0, range(num_envs), policy.noise_shape),
        num_decisions=num_decisions,
        reset_each=True,
    )


def tiny_rollouts(
    policy: Policy, count: int, *, num_envs: int = 4, num_decisions: int = 6, seed: int = 0
) -> list[Rollout]:
    """Collect successive rollouts with the weights that the policy has now."""
    collector = tiny_collector(policy, num_envs=num_envs, num_decisions=num_decisions, seed=seed)
    return [collector.collect(version) for version in range(count)]
