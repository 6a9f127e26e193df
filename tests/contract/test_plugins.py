"""One check over every entry of every plug-in table: it resolves, is documented, and keeps its contract."""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray import envs
from inril_ray.algorithms import ALGORITHMS
from inril_ray.algorithms.base import Algorithm
from inril_ray.config import build
from inril_ray.demos import DEMONSTRATORS, FORMATS
from inril_ray.demos.episodes import DemoError
from inril_ray.envs.base import EnvConfig
from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.gradient_separation.base import Gramian, Separation
from inril_ray.medium import ActorCritic
from inril_ray.metrics import GROUPS, METRICS
from inril_ray.policies import POLICIES
from inril_ray.policies.base import Policy
from inril_ray.registry import resolve
from inril_ray.schedules import SCHEDULES
from inril_ray.schedules.base import Iteration, Schedule
from inril_ray.tracking import TRACKERS
from inril_ray.tracking.base import TrackerContext
from inril_ray.types import EnvSpec, InrilError
from tests.fakes import (
    ACTOR_OF,
    POLICY_OF,
    TINY_POLICY,
    StandInWandb,
    fake_spec,
    tiny_algorithm,
    tiny_collector,
    tiny_policy,
    unit_stats,
)

TABLES: dict[str, dict[str, str]] = {
    "task": envs.TASKS,
    "format": FORMATS,
    "demonstrator": DEMONSTRATORS,
    "policy": POLICIES,
    "algorithm": ALGORITHMS,
    "separation": SEPARATIONS,
    "schedule": SCHEDULES,
    "tracker": TRACKERS,
}
ENTRIES = [(kind, name) for kind, table in TABLES.items() for name in table]
INTERFACES: dict[str, tuple[str, ...]] = {
    "task": ("spec", "make"),
    "format": ("recognises", "inspect", "read"),
    "demonstrator": ("act",),
    "policy": ("act", "log_prob", "il_loss", "bc_loss", "trainable", "pretrained", "begin_finetuning"),
    "algorithm": ("prepare", "loss", "should_stop", "trains_actor", "actor_lr"),
    "separation": ("weights", "backward"),
    "schedule": ("next", "state_dict", "load_state_dict"),
    "tracker": ("log", "close"),
}
BASES = {"policy": Policy, "algorithm": Algorithm, "separation": Separation, "schedule": Schedule}
CONFIGURED = ("demonstrator", "policy", "algorithm")


def policy_of(name: str) -> Policy:
    cls = resolve(POLICIES, name, "policy")
    torch.manual_seed(0)
    return cls(build(cls.Config, TINY_POLICY.get(name, {})), fake_spec(), unit_stats())


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_entry_resolves_has_its_interface_and_is_documented(kind: str, name: str) -> None:
    entry = resolve(TABLES[kind], name, kind)
    module, _, attribute = TABLES[kind][name].partition(":")
    assert getattr(sys.modules[module], attribute) is entry
    cls = entry if isinstance(entry, type) else type(entry)
    assert inspect.getdoc(sys.modules[module])
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "that is a dataclass's own docstring"
    for method in INTERFACES[kind]:
        assert callable(getattr(entry, method)), method
        assert inspect.getdoc(getattr(entry, method)), f"{method} is not documented"
    if kind in BASES:
        assert issubclass(cls, BASES[kind])
        assert not inspect.isabstract(cls)
        for method, value in vars(BASES[kind]).items():
            if getattr(value, "__isabstractmethod__", False):
                assert getattr(cls, method) is not value, f"{method} is not implemented"
    if kind in CONFIGURED:
        assert build(cls.Config, {}) == cls.Config()
        with pytest.raises(InrilError, match="Unknown configuration key"):
            build(cls.Config, {"no_such_setting": 1})


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_name_lists_the_choices(kind: str) -> None:
    with pytest.raises(InrilError) as caught:
        resolve(TABLES[kind], "no such name", kind)
    assert f"Unknown {kind} 'no such name'" in str(caught.value)
    assert all(name in str(caught.value) for name in TABLES[kind])


@pytest.mark.parametrize("name", envs.TASKS)
def test_task_spec(name: str) -> None:
    task = resolve(envs.TASKS, name, "task")
    spec = task.spec(EnvConfig())
    assert isinstance(spec, EnvSpec)
    assert spec.task == name
    assert name.count("/") == 1
    assert spec.obs_dim == sum(width for _, width in spec.obs_keys)
    assert min(spec.obs_dim, spec.action_dim, spec.max_episode_steps, spec.num_stages) >= 1
    assert spec.action_low < spec.action_high
    assert spec.control_hz > 0
    assert task.spec(EnvConfig(max_episode_steps=17)).max_episode_steps == 17


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [None, b"", b"\x00" * 300, b"{}\n"])
def test_format_refuses_what_it_is_not(tmp_path: Path, name: str, content: bytes | None) -> None:
    reader, path = resolve(FORMATS, name, "format"), tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert reader.recognises(path) is False
    for use in (reader.inspect, lambda p: list(reader.read(p, None))):
        with pytest.raises(DemoError, match=str(path)):
            use(path)


@pytest.mark.parametrize("name", DEMONSTRATORS)
def test_demonstrator_acts(name: str) -> None:
    spec = envs.spec(name, EnvConfig())
    cls = resolve(DEMONSTRATORS, name, "demonstrator")

    def predict(actions: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(*actions.shape[:2], spec.obs_dim))

    third: dict[str, tuple[Any, ...]] = {"scripted": (), "planner": (predict,), "rl": (ActorCritic(spec),)}

    def actions(seed: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        actor = cls(np.random.default_rng(seed), cls.Config(), *third[cls.source])
        return np.stack([actor.act(rng.normal(size=spec.obs_dim).astype(np.float32)) for _ in range(20)])

    first = actions(0)
    assert first.shape == (20, spec.action_dim)
    assert first.dtype == np.float32
    assert (first >= spec.action_low).all()
    assert (first <= spec.action_high).all()
    np.testing.assert_array_equal(actions(0), first)
    assert not np.array_equal(actions(1), first)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_acts_scores_and_imitates(name: str) -> None:
    policy, b = policy_of(name), 5
    policy.begin_finetuning()
    assert 1 <= policy.action_horizon <= policy.horizon
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(b, policy.decision_spec(fake_spec()).obs_dim, generator=generator)
    noise = torch.randn(b, *policy.noise_shape, generator=generator)
    action = policy.act(obs, noise, deterministic=False)
    f, h = policy.num_scored_steps, policy.horizon
    assert action.chunk.shape == (b, h, 2)
    assert action.chain.shape == (b, f + 1, h, 2)
    assert action.log_probs.shape == (b, f)
    assert not action.chunk.requires_grad
    executed = action.chain[:, -1]
    if policy.plan is not None:  # what is scored is the correction of the base action, which is observed
        executed = obs[:, None, 3:] + policy.config.scale * executed
    torch.testing.assert_close(policy.normalizer.unnormalize_action(executed), action.chunk)
    torch.testing.assert_close(policy.act(obs, noise, deterministic=False).chunk, action.chunk, rtol=0, atol=0)
    assert not torch.equal(policy.act(obs, -noise, deterministic=False).chunk, action.chunk)
    for step in range(f):
        scored = policy.log_prob(obs, action.chain[:, step], action.chain[:, step + 1], torch.full((b,), step))
        torch.testing.assert_close(scored.detach(), action.log_probs[:, step])
        assert scored.requires_grad
    length = policy.config.prediction_horizon
    windows, uniform = torch.randn(b, length, 2, generator=generator), torch.rand(b, generator=generator)
    target = torch.randn(b, length, 2, generator=generator)
    for parameters in (policy.trainable(), policy.imitated()):
        assert parameters
        assert len({id(p) for p in parameters}) == len(parameters)
    assert policy.imitates_apart == ({id(p) for p in policy.trainable()} != {id(p) for p in policy.imitated()})
    for timesteps in ("finetuned", "all"):
        loss = policy.il_loss(obs[:, :3], windows, target, uniform, timesteps)
        assert loss.shape == ()
        grads = torch.autograd.grad(loss, policy.imitated(), allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads)
        alone = policy.il_loss(obs[:, :3], windows, target, uniform, timesteps, weight=b * torch.eye(b)[2])
        own = policy.il_loss(obs[2:3, :3], windows[2:3], target[2:3], uniform[2:3], timesteps)
        torch.testing.assert_close(alone, own, msg="weights choose among windows")


@pytest.mark.parametrize("name", POLICIES)
def test_cloning_trains_what_fine_tuning_starts_from(name: str) -> None:
    policy = policy_of(name)
    length = policy.config.prediction_horizon

    def acted(policy: Any) -> torch.Tensor:
        torch.manual_seed(3)
        if policy.plan is None:
            return policy.act(torch.randn(4, 3), torch.randn(4, *policy.noise_shape), deterministic=True).chunk
        noise = np.random.default_rng(0).normal(size=(4, *policy.plan_shapes["noise_shape"])).astype(np.float32)
        former = np.zeros((4, *policy.plan_shapes["chunk_shape"]), np.float32)
        return torch.from_numpy(policy.plan(np.ones((4, 3), np.float32), noise, former))

    windows, target = torch.randn(4, length, 2), torch.randn(4, length, 2)
    policy.bc_loss(torch.randn(4, 3), windows, target, torch.rand(4)).backward()
    grads = [p.grad for p in policy.pretrained().parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)
    with torch.no_grad():
        for parameter in policy.pretrained().parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    policy.begin_finetuning()
    tuned = acted(policy)
    again = policy_of(name)
    again.load_state_dict(policy.state_dict())
    torch.testing.assert_close(acted(again), tuned, rtol=0, atol=0)
    fresh = policy_of(name)
    fresh.begin_finetuning()
    assert not torch.equal(acted(fresh), tuned)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_turns_a_rollout_into_losses(name: str) -> None:
    policy = tiny_policy(POLICY_OF[name], **ACTOR_OF.get(name, {}))
    algorithm = tiny_algorithm(name, policy=policy)
    assert isinstance(algorithm, Algorithm)
    assert POLICY_OF[name] in algorithm.policies
    assert set(algorithm.policies) <= set(POLICIES)
    assert algorithm.problem(algorithm.config, policy.config) is None
    collector = tiny_collector(algorithm.acting)
    experience = algorithm.prepare(collector.collect(0), policy, fresh_start=True)
    generator = torch.Generator().manual_seed(0)
    updates = list(experience.updates(generator))
    assert sum(u.actor for u in updates) == experience.nominal_updates + getattr(algorithm, "offline_done", 0)
    losses = algorithm.loss(policy, experience.sample(generator))
    assert math.isfinite(losses.policy.item())
    assert losses.policy.requires_grad
    assert (losses.value is not None) == algorithm.joint_loss
    assert not any(value.requires_grad for value in losses.stats.values())
    assert set(algorithm.optimizers()) <= set(algorithm.modules())
    worker = algorithm.behaviour(algorithm.config, tiny_policy(POLICY_OF[name], **ACTOR_OF.get(name, {})), fake_spec())
    worker.load_state_dict(algorithm.acting.state_dict())  # what workers act with has the weights that are published


@pytest.mark.parametrize("name", [n for n in SEPARATIONS if n != "network"])
def test_separation_gives_finite_weights_and_writes_the_gradient(name: str) -> None:
    separation = resolve(SEPARATIONS, name, "separation")()
    assert separation.optimizer in ("il", "rl")
    for rl, il, inner in ((1.0, 4.0, 1.0), (1.0, 4.0, -1.0), (1.0, 1.0, -1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)):
        weights = separation.weights(Gramian(rl=rl, il=il, inner=inner))
        assert len(weights) == 2
        assert all(math.isfinite(w) and w >= 0 for w in weights)
    x = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    g, h = torch.tensor([1.0, 0.5], dtype=torch.float64), torch.tensor([-1.0, 0.3], dtype=torch.float64)
    report = separation.backward((x * g).sum(), (x * h).sum(), [x])
    torch.testing.assert_close(x.grad, report.weights[0] * g + report.weights[1] * h)
    assert report.gramian.conflict
    assert report.dropped == ()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("every", [1, 3])
def test_schedule_decides_by_the_number_of_iterations(name: str, every: int) -> None:
    cls = resolve(SCHEDULES, name, "schedule")
    schedule, resumed = cls(every), cls(every)
    first = [schedule.next(i) for i in range(7)]
    assert all(isinstance(x, Iteration) for x in first)
    resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert [resumed.next(i) for i in range(7, 20)] == [schedule.next(i) for i in range(7, 20)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's use of SQLAlchemy, also under -W error
@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("ended", ["finished", "stopped", "failed"])
def test_tracker_takes_every_metric_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ended: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", StandInWandb())
    context = TrackerContext(
        run_dir=tmp_path / "run",
        name="run",
        config={"seed": 0, "interleave": {"every": 2, "list": [1, 2]}},
        num_iterations=3,
        mlflow_uri=None,
        mlflow_experiment="contract",
    )
    context.run_dir.mkdir()
    tracker: Any = resolve(TRACKERS, name, "tracker")(context)
    for iteration in range(2):
        tracker.log({**dict.fromkeys(METRICS, 0.5), "iteration": float(iteration)}, 100 * iteration)
    tracker.log({"iteration": 2.0}, 200)
    tracker.close(ended)


def test_every_metric_has_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(METRICS)
    assert list(GROUPS) == ["eval", "train", "grad", "time"]
    seconds = {name for name in METRICS if name.endswith("_s")}
    assert seconds <= set(GROUPS["time"])


def test_tensorboard_shows_metrics_in_groups(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    context = TrackerContext(
        run_dir=tmp_path, name="run", config={}, num_iterations=3, mlflow_uri=None, mlflow_experiment="contract"
    )
    tracker: Any = resolve(TRACKERS, "tensorboard", "tracker")(context)
    tracker.log({"score": 0.5, "rho": 0.1, "value_loss": 2.0, "rl_s": 3.0}, 7)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["eval/score", "grad/rho", "train/value_loss", "time/rl_s"]
    assert [(e.step, e.value) for e in events.Scalars("eval/score")] == [(7, 0.5)]
