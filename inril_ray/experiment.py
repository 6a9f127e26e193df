"""The configuration of a run, and the parts that are built from it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from inril_ray import envs
from inril_ray.algorithms import ALGORITHMS
from inril_ray.algorithms.base import Algorithm, AlgorithmContext
from inril_ray.checkpoint import load_module
from inril_ray.config import LocalPath, StoreUri, build, config, flat, masked, merge, nested, shown, to_dict
from inril_ray.demos.episodes import Expectation
from inril_ray.demos.store import DemoArrays, DemoStore, load
from inril_ray.envs.base import PURPOSES, EnvConfig
from inril_ray.envs.base_actions import BaseActions
from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.evaluate import EvaluationConfig, Evaluator
from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.guard import GuardConfig
from inril_ray.interleave import InterleaveConfig
from inril_ray.learner import Learner
from inril_ray.policies import POLICIES
from inril_ray.policies.base import Policy
from inril_ray.presets import BUNDLED_DEMOS, check_demos, check_name, preset
from inril_ray.pretrain import PretrainConfig
from inril_ray.registry import resolve
from inril_ray.rollout import ActionNoise, RolloutCollector, decision_env
from inril_ray.schedules import SCHEDULES
from inril_ray.tracking import TRACKERS
from inril_ray.types import EnvSpec, EpisodeStats, InrilError, NormalizerStats

LARGEST = 2**32
NO_MEMORY = "allocate memory|out of memory|maximum allowed|too big|too large|overflow"
"""How PyTorch and numpy say that something is too large."""
SECRET = re.compile(r"[?&][^=&]*(user|pass|pwd|token|secret|key|sig|auth|cred)[^=&]*=", re.IGNORECASE)
"""Credentials among the options of a database's address; that of a server has none."""


@config
class RolloutConfig:
    """How much experience an iteration collects. Defaults are DPPO's for Robomimic Lift."""

    num_envs: PositiveInt = 50
    """Environments of all workers together."""
    num_decisions: PositiveInt = 300
    """Chunk decisions in each environment per iteration."""
    reset_each: bool = True
    """Begin every rollout with a reset of all environments."""


@config
class ComputeConfig:
    """Where a run computes."""

    num_workers: PositiveInt = 1
    """Rollout workers: one single-threaded process each. Ignored by ``--local``."""
    mode: Literal["sync", "pipelined"] = "sync"
    """``sync``: collect, learn, publish, reproducible bit by bit; ``pipelined``: collect while learning."""
    max_policy_lag: NonNegativeInt = 1
    """Rollouts collected with weights that are older than this many updates are dropped (``pipelined``)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The learner's. ``auto`` takes a GPU when there is one. Unless it is ``cpu``, a rollout worker that owns a GPU, or
    a share of one, acts on it."""
    worker_gpu: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of a GPU that each rollout worker asks Ray for; the learner then asks for as much. None: a half where the
    simulator needs a GPU, else none, and workers act on their CPU. With ``--local`` one process has the whole GPU, and
    0 makes it act on the CPU."""
    learner_threads: PositiveInt = 1
    """Torch threads of the learner on a CPU."""
    rollout_timeout_s: PositiveFloat = 600.0
    """A worker that is silent for longer is replaced."""
    max_worker_restarts: NonNegativeInt = 10
    """Replacements of one worker before the run gives up."""


@config
class CheckpointConfig:
    """When the state of a run is saved. The first and the last iteration always are."""

    every: PositiveInt | None = None
    """Iterations between checkpoints. None: each iteration, or as often as saving takes a fiftieth of the time."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""


@config
class TrackingConfig:
    """Where metrics go."""

    trackers: tuple[str, ...] = ("console", "jsonl", "tensorboard", "mlflow")
    mlflow_uri: StoreUri | None = None
    """Tracking server; None is a local store beside the run directories."""
    mlflow_experiment: str = "inril"


@config
class ExperimentConfig:
    """Everything about a run."""

    task: str
    demos: LocalPath | None = None
    """Demonstration file; None takes the one that ships with the package for this task."""
    algorithm: str = "dppo"
    policy: str = "diffusion_mlp"
    schedule: str = "fixed"
    separation: str = "upgrad"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_iterations: PositiveInt = 81
    pretrained: LocalPath | None = None
    """Run directory whose cloned policy this run starts from, instead of cloning one of its own."""
    env: EnvConfig = EnvConfig()
    actor: Any
    """Configuration of the policy."""
    rl: Any
    """Configuration of the algorithm."""
    interleave: InterleaveConfig = InterleaveConfig()
    pretrain: PretrainConfig = PretrainConfig()
    rollout: RolloutConfig = RolloutConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    tracking: TrackingConfig = TrackingConfig()
    video: bool = True
    """Render one episode before and after, where an OpenGL library is found."""


# -- configuration ----------------------------------------------------------------------------------------------------
def load_config(layers: Sequence[Mapping[str, Any]]) -> ExperimentConfig:
    """Merge configuration layers over the algorithm's preset, later ones on top, and validate the result.

    Args:
        layers: plain mappings, such as a file and the overrides of the command line. One of them names the ``task``.

    Raises:
        InrilError: unknown names or keys, wrong types, values out of range.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(values, layer)
    if not isinstance(values.get("task"), str):
        raise InrilError("No task given. Pass --task, for example --task robomimic/lift.")
    task, algorithm = values["task"], values.get("algorithm", "dppo")
    check_name(envs.TASKS, task, "task")
    check_name(ALGORITHMS, algorithm, "algorithm")
    if values.get("policy") is not None:
        check_name(POLICIES, values["policy"], "policy")
    values = merge(preset(algorithm, task, values.get("policy")), values)
    policy = values.get("policy", "diffusion_mlp")
    for name, table, kind in (
        (policy, POLICIES, "policy"),
        (values.get("schedule", "fixed"), SCHEDULES, "schedule"),
        (values.get("separation", "upgrad"), SEPARATIONS, "separation"),
    ):
        check_name(table, name, kind)
    sections = {
        "actor": (resolve(POLICIES, policy, "policy").Config, values.get("actor", {})),
        "rl": (resolve(ALGORITHMS, algorithm, "algorithm").Config, values.get("rl", {})),
    }
    built = {name: build(cls, section, name) for name, (cls, section) in sections.items()}
    config = build(ExperimentConfig, {**values, **built})
    for name in config.tracking.trackers:
        check_name(TRACKERS, name, "tracker")
    _check_secrets(config)
    _check_sizes(config)
    _check_combination(config)
    return config


def _check_secrets(config: ExperimentConfig) -> None:
    """Refuse credentials in a configuration, which is printed, saved and tracked; the message must not show them."""
    uri = config.tracking.mlflow_uri or ""
    server = uri.lower().startswith(("http:", "https:"))
    database = "://" in uri and not uri.startswith(("sqlite:", "file:"))
    mistyped = masked(uri) != uri and not uri.startswith(("sqlite:", "file:"))
    if mistyped or (server and "?" in uri) or (database and ("@" in uri or SECRET.search(uri))):
        raise InrilError(
            "tracking.mlflow_uri holds credentials, which would be printed and saved with the run. Leave them out and "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment."
        )


def _check_sizes(config: ExperimentConfig) -> None:
    """Refuse numbers that no array can count to; what takes more memory than there is shows when it is made."""
    for key, value in flat(to_dict(config)).items():
        if any(isinstance(v, int) and abs(v) > LARGEST for v in (value if isinstance(value, tuple) else (value,))):
            raise InrilError(f"Configuration {key} = {shown(value)}: numbers go up to {LARGEST}.")


@contextlib.contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Put into words that there is no memory for the parts of a run.

    Args:
        what: they are, and which settings make them smaller.

    Raises:
        InrilError: the system refused memory, or the sizes are beyond what an array can have.
    """
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, MemoryError | OverflowError) and not re.search(NO_MEMORY, text):
            raise
        raise InrilError(f"There is no memory for {what}: {text}") from None


def _check_combination(config: ExperimentConfig) -> None:
    """Refuse parts that do not go together, with the reason."""
    envs.entry(config.task).chosen_backend(config.env)
    envs.entry(config.task).chosen_semantics(config.env)
    spec = task_spec(config)
    if config.env.success is not None and spec.score_range is not None:
        raise InrilError(f"env.success = {config.env.success!r}: {config.task} has no success, its score is a return.")
    algorithm = resolve(ALGORITHMS, config.algorithm, "algorithm")
    policy = resolve(POLICIES, config.policy, "policy")
    if config.policy not in algorithm.policies:
        raise InrilError(f"policy = {config.policy!r}: {config.algorithm} trains {' or '.join(algorithm.policies)}.")
    problem = algorithm.problem(config.rl, config.actor)
    if problem:
        raise InrilError(f"{config.algorithm}: {problem}")
    apart = ("network", "naive") if policy.imitates_apart else tuple(n for n in SEPARATIONS if n != "network")
    if config.separation not in apart:
        reason = (
            f"{config.policy} imitates and reinforces different parameters, so nothing can be combined: use network "
            "or naive, which trains the correction by imitation as well"
            if policy.imitates_apart
            else f"{config.policy} imitates and reinforces the same parameters; network needs those of residual_ppo"
        )
        raise InrilError(f"separation = {config.separation!r}: {reason}.")
    if config.interleave.phase == "merged" and getattr(config.rl, "accumulate", None):
        raise InrilError("interleave.phase = 'merged' needs whole minibatches: rl.accumulate must be null.")
    if policy.imitates_apart and config.guard.kl_limit is not None:
        raise InrilError("guard.kl_limit: the divergence of a residual policy is not measured; leave it null.")
    if policy.imitates_apart and (config.interleave.phase == "merged" or config.schedule == "bc_reg"):
        raise InrilError(
            f"{config.policy} imitates and reinforces different parameters: schedule bc_reg and phase merged, which "
            "add both losses, have no meaning for it."
        )


def resolved(config: ExperimentConfig) -> dict[str, Any]:
    """Return the whole configuration as plain data, as it is saved and hashed."""
    return json.loads(json.dumps(to_dict(config)))


def apart_from_preset(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings in which a configuration differs from its algorithm's preset for the task."""
    values, shipped = resolved(config), {}
    with contextlib.suppress(InrilError):  # the preset may be for another policy
        shipped = flat(resolved(load_config([{key: values[key] for key in ("task", "algorithm", "policy")}])))
    return nested({key: value for key, value in flat(values).items() if key not in shipped or shipped[key] != value})


def description(config: ExperimentConfig) -> str:
    """Return what a configuration is and in what it differs from the preset, in lines for a terminal of 80 columns."""
    what = f"{config.task}, {config.algorithm}, {config.policy}, seed {config.seed}: the preset"
    own = apart_from_preset(config)
    if not own:
        return what
    return f"{what}, but for\n{yaml.safe_dump(own, sort_keys=False, default_flow_style=False, width=70)}".rstrip()


# -- parts ------------------------------------------------------------------------------------------------------------
def task_spec(config: ExperimentConfig) -> EnvSpec:
    """Return the task's dimensions; loads no simulator."""
    return envs.spec(config.task, config.env)


def load_demos(config: ExperimentConfig) -> DemoArrays:
    """Load the demonstrations of a run and check them against its task.

    Raises:
        InrilError: none given and none shipped, or the file can't be used, or not by the algorithm.
    """
    demos = _load_demos(config)
    if getattr(resolve(ALGORITHMS, config.algorithm, "algorithm"), "mixes_demos", False):
        demos.require_rewards(config.algorithm)
    return demos


def _load_demos(config: ExperimentConfig) -> DemoArrays:
    check_demos({"task": config.task, "demos": config.demos})
    expectation = Expectation.of(task_spec(config))
    if config.demos is not None:
        return load(Path(config.demos), expectation)
    with resources.as_file(resources.files("inril_ray.data") / BUNDLED_DEMOS[config.task]) as path:
        return load(path, expectation)


def learner_device(config: ExperimentConfig) -> torch.device:
    """Return where the learner computes.

    Raises:
        InrilError: a GPU was asked for and there is none.
    """
    wanted = config.compute.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InrilError("compute.device = 'cuda': no GPU is available to this process.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def acting_device(config: ExperimentConfig) -> torch.device:
    """Return where a rollout worker acts: on the GPU that its process was given, whole or a share, else on the CPU."""
    takes = config.compute.device != "cpu" and config.compute.worker_gpu != 0
    return torch.device("cuda" if takes and torch.cuda.is_available() else "cpu")


def build_policy(config: ExperimentConfig, spec: EnvSpec, stats: NormalizerStats | None = None) -> Policy:
    """Make an untrained policy; without statistics, one that weights will be loaded into."""
    blank = NormalizerStats(
        obs_low=np.zeros(spec.obs_dim),
        obs_high=np.ones(spec.obs_dim),
        action_low=np.zeros(spec.action_dim),
        action_high=np.ones(spec.action_dim),
    )
    return resolve(POLICIES, config.policy, "policy")(config.actor, spec, stats or blank)


def build_acting(config: ExperimentConfig) -> Policy:
    """Make what acts in the environments, without its weights: a policy, with critics where they have a say."""
    spec = task_spec(config)
    policy = build_policy(config, spec)
    return resolve(ALGORITHMS, config.algorithm, "algorithm").behaviour(config.rl, policy, policy.decision_spec(spec))


def critics_choose(config: ExperimentConfig) -> bool:
    """Tell whether critics have a say in what acts."""
    return resolve(ALGORITHMS, config.algorithm, "algorithm").behaviour is not Algorithm.behaviour


def acting_with(config: ExperimentConfig, weights: Mapping[str, Any]) -> Policy:
    """Make what acted with these weights: where they are a policy's alone, it does so without critics that choose.

    Raises:
        InrilError: they don't fit the configuration.
    """
    policy = build_acting(config)
    if critics_choose(config) and weights.keys() != policy.state_dict().keys():
        policy, weights = policy.alone, {f"policy.{name}": value for name, value in weights.items()}
    load_module(policy, dict(weights))
    return policy.eval()


def load_acting(policy: Policy, weights: Mapping[str, Any]) -> None:
    """Load named weights [numpy or tensors] into what acts; those not named keep their values.

    Weights of a policy alone, as cloning leaves it, go to their place in what acts with critics.
    """
    own = policy.state_dict()
    if not weights.keys() <= own.keys():
        own = {name.removeprefix("policy."): value for name, value in own.items()}
    for name, value in weights.items():
        own[name].copy_(torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value)


def build_learner(config: ExperimentConfig, demos: DemoArrays) -> Learner:
    """Make the learner with freshly initialised networks.

    Raises:
        InrilError: there is no memory for it.
    """
    with enough_memory("the networks and the replay; make sizes in actor and rl smaller"):
        return _build_learner(config, demos)


def _build_learner(config: ExperimentConfig, demos: DemoArrays) -> Learner:
    device = learner_device(config)
    spec = task_spec(config)
    pads = resolve(POLICIES, config.policy, "policy").pads_demos
    store = DemoStore(demos, config.actor.prediction_horizon, pad_ends=pads)
    torch.manual_seed(config.seed)
    policy = build_policy(config, spec, store.normalizer_stats()).to(device)
    context = AlgorithmContext(
        policy=policy,
        spec=policy.decision_spec(spec),
        num_envs=config.rollout.num_envs,
        device=device,
        demos=demos,
        num_iterations=config.num_iterations,
    )
    algorithm = resolve(ALGORITHMS, config.algorithm, "algorithm")(config.rl, context)
    schedule = resolve(SCHEDULES, config.schedule, "schedule").from_config(config.interleave)
    separation = resolve(SEPARATIONS, config.separation, "separation").from_config(config.interleave)
    return Learner(
        policy,
        algorithm,
        schedule,
        separation,
        store,
        config.interleave,
        seed=config.seed,
        device=device,
        measure_base=config.guard.action != "none" and config.guard.kl_limit is not None,
    )


def share(total: int, worker: int, num_workers: int) -> range:
    """Return the indices of ``total`` environments that a worker runs: contiguous, sizes differing by at most one."""
    bounds = np.linspace(0, total, num_workers + 1).round().astype(int)
    return range(int(bounds[worker]), int(bounds[worker + 1]))


class WorkerParts:
    """What a rollout worker runs: a private policy, its share of the training and of the evaluation environments.

    Args:
        config: of the run.
        worker: index.
        num_workers: workers in all.
    """

    def __init__(self, config: ExperimentConfig, worker: int, num_workers: int) -> None:
        self.config, self.worker, self.num_workers = config, worker, num_workers
        self.device = acting_device(config)
        self._evaluator: Evaluator | None = None
        with enough_memory("the policy and the environments; make sizes in actor or rollout.num_envs smaller"):
            self._build(config)

    def _build(self, config: ExperimentConfig) -> None:
        worker, num_workers = self.worker, self.num_workers
        self.policy = build_acting(config).to(self.device).eval()
        mine = share(config.rollout.num_envs, worker, num_workers)
        self.collector = RolloutCollector(
            self._make_env("train", mine),
            self.policy,
            ActionNoise(config.seed, PURPOSES.index("train"), mine, self.policy.noise_shape),
            num_decisions=config.rollout.num_decisions,
            reset_each=config.rollout.reset_each,
            index=worker,
            device=self.device,
        )

    def _make_env(self, purpose: str, indices: range) -> ChunkedEnv | BaseActions:
        env = envs.make(
            self.config.task,
            num_envs=len(indices),
            seed=self.config.seed,
            config=self.config.env,
            purpose=purpose,
            first_env=indices.start,
        )
        return decision_env(env, self.policy)

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Load named weights; see :func:`load_acting`."""
        load_acting(self.policy, weights)

    def evaluate(self, num_episodes: int, *, alone: bool = False) -> EpisodeStats:
        """Run this worker's share of an evaluation, of the policy alone or of what acts; see :attr:`Policy.alone`."""
        if self._evaluator is None:
            total = self.config.evaluation.num_envs
            env = self._make_env("eval", share(total, self.worker, self.num_workers))
            self._evaluator = Evaluator(env, self.config.seed, total, self.device)
        return self._evaluator.evaluate(self.policy.alone if alone else self.policy, num_episodes)


def policy_weights(policy: Policy, *, everything: bool) -> dict[str, torch.Tensor]:
    """Return the weights that workers need: all of them, or those that fine-tuning changes."""
    state = policy.state_dict()
    if everything:
        return dict(state)
    changing = {id(p) for p in [*policy.trainable(), *policy.imitated()]}
    names = {name for name, p in policy.named_parameters() if id(p) in changing}
    return {name: value for name, value in state.items() if name in names}
