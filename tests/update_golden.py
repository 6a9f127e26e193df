"""What learning does, in numbers: ``python -m tests.update_golden`` writes all of them anew and prints what moved.

Losses of the first ten updates in float64 on a CPU, to 12 digits: the cases are a sum, not a product, every algorithm,
then every separation, then every schedule. And ``train.json``: the metrics of a whole run of ten iterations, in float32
as runs are, to 9 digits. Only one machine gives the same bits again; the tests say how far another may be off. A change
of any of these numbers is a change of what is learned: look at the printed difference before committing it.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray.algorithms import ALGORITHMS
from inril_ray.backend import Backend, LocalBackend
from inril_ray.chaos import FAULTS
from inril_ray.config import keys_of
from inril_ray.experiment import ExperimentConfig, load_config
from inril_ray.policies import POLICIES
from inril_ray.presets import KEYS
from inril_ray.registry import resolve
from inril_ray.run import run
from inril_ray.sweep import SweepConfig
from tests.fakes import FAKE_TASK_NAME, fake_demos, register_fake_task, tiny_learner, tiny_rollouts
from tests.integration.comparison import measured

FOLDER = Path(__file__).parent / "golden"
NUM_UPDATES = 10
CASES: dict[str, dict[str, Any]] = {
    "dppo": {"algorithm": "dppo", "schedule": "fixed", "separation": "upgrad"},
    "ppo": {"algorithm": "ppo", "schedule": "fixed", "separation": "upgrad"},
    **{name: {"algorithm": name} for name in ALGORITHMS if name not in ("dppo", "ppo")},
    "separation_cagrad": {"separation": "cagrad"},
    "separation_dualproj": {"separation": "dualproj"},
    "separation_mgda": {"separation": "mgda"},
    "separation_naive": {"separation": "naive"},
    "separation_network": {"algorithm": "residual_ppo", "separation": "network"},
    "separation_pcgrad": {"separation": "pcgrad"},
    "separation_project_il": {"separation": "project_il"},
    "separation_upgrad": {"separation": "upgrad", "every": 2},
    "schedule_adaptive": {"schedule": "adaptive", "relation_pairs": 4, "adaptive": {"rule": "paper_sqrt"}},
    "schedule_bc_reg": {"schedule": "bc_reg", "bc_weight": 0.5},
    "schedule_fixed": {"schedule": "fixed", "every": 3},
    "schedule_il_only": {"schedule": "il_only", "separation": "naive"},
    "schedule_rl_only": {"schedule": "rl_only"},
}
TRACED_RL: dict[str, dict[str, Any]] = {
    "dppo": {"num_epochs": 1, "minibatch_size": 20},
    "ppo": {"num_epochs": 1, "minibatch_size": 6},
    "residual_ppo": {"num_epochs": 1, "minibatch_size": 12},
    "rwr": {"num_epochs": 1},
}
"""Algorithm to settings with which ten updates hold both reinforcement and imitation."""
RUN: dict[str, Any] = {
    "task": FAKE_TASK_NAME,
    "algorithm": "dppo",
    "policy": "diffusion_mlp",
    "num_iterations": 10,
    "env": {"max_episode_steps": 10},
    "actor": {
        "prediction_horizon": 3, "action_horizon": 2, "denoising_steps": 6, "finetuned_steps": 3, "ddim_steps": None,
        "hidden_dim": 16, "num_hidden": 3, "step_embedding_dim": 4, "obs_encoder_dims": None,
    },
    "rl": {
        "num_epochs": 2, "minibatch_size": 40, "actor_lr": 1e-3, "critic_hidden_dim": 16, "critic_warmup_iterations": 1,
    },
    "pretrain": {"num_epochs": 60, "batch_size": 16, "lr": 3e-3, "warmup_epochs": 1},
    "rollout": {"num_envs": 8, "num_decisions": 10},
    "interleave": {"every": 3, "il_steps": 3, "il_lr": 1e-3, "il_batch_size": 16, "relation_every": 1},
    "evaluation": {"every": 5, "num_episodes": 20, "final_episodes": 30, "num_envs": 10},
    "tracking": {"trackers": ["jsonl"]},
    "compute": {"device": "cpu"},
    "video": False,
}  # fmt: skip
"""A run on the fake task, whose arithmetic another processor does the same up to rounding; contacts of a simulator
would make more of it. The task must be registered; see :mod:`tests.fakes`."""
RUN_CASE = "train"
Trace = list[dict[str, float]]


def trace(case: str) -> Trace:
    """Return, for the first ten gradient steps, its kind and the losses that it was taken from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trace(**{"every": 1, "il_steps": 4, **CASES[case]})
    finally:
        torch.set_num_threads(threads)


def _trace(**settings: Any) -> Trace:
    name = settings.get("algorithm", "dppo")
    rl = {"actor_lr": 1e-3} | TRACED_RL.get(name, {})
    learner = tiny_learner(**settings, rl=rl, il_lr=1e-3, double=True)
    learner.begin()
    rollouts = tiny_rollouts(learner.algorithm.acting, 8)
    rng = np.random.default_rng(0)
    rows: Trace = []
    loss, il_loss, update_critics = learner.algorithm.loss, learner.policy.il_loss, learner.algorithm.update_critics
    pending: dict[str, float] = {}
    imitates_itself = [False]

    def flush():
        if pending:
            rows.append(dict(pending))
            pending.clear()

    def recorded_critics(policy, minibatch):
        flush()  # of a step before it, that the actor did not follow
        stats = update_critics(policy, minibatch)
        pending.update({name: value.item() for name, value in stats.items()})
        return stats

    def recorded_loss(policy, minibatch):
        imitates_itself[0] = True
        losses = loss(policy, minibatch)
        imitates_itself[0] = False
        if torch.is_grad_enabled():
            pending["policy"] = losses.policy.item()
            if losses.value is not None:
                pending["value"] = losses.value.item()
            if "approx_kl" in losses.stats:
                pending["kl"] = losses.stats["approx_kl"].item()
        return losses

    def recorded_il_loss(*args, **kwargs):
        result = il_loss(*args, **kwargs)
        if torch.is_grad_enabled() and not imitates_itself[0]:
            pending["il"] = result.item()
        return result

    last = learner.critic_optimizer if learner.algorithm.joint_loss else learner.actor_optimizer

    def after_step(optimizer, args, kwargs):
        if optimizer is last or "il" in pending:
            flush()

    learner.algorithm.loss, learner.policy.il_loss = recorded_loss, recorded_il_loss
    learner.algorithm.update_critics = recorded_critics
    handles = [o.register_step_post_hook(after_step) for o in learner.optimizers().values()]
    for rollout in rollouts:
        pending.clear()
        rewards = rng.normal(size=rollout.rewards.shape).astype(np.float32)
        learner.learn(dataclasses.replace(rollout, rewards=rewards), fresh_start=True)
        pending.clear()
        if len(rows) >= NUM_UPDATES:
            break
    for handle in handles:
        handle.remove()
    return [{k: float(f"{v:.12g}") for k, v in row.items()} for row in rows[:NUM_UPDATES]]


def metrics_of_run(backend: Callable[..., Backend]) -> Trace:
    """Return all metrics of the run but those of the clock, to 9 digits."""
    with tempfile.TemporaryDirectory() as folder:
        run(load_config([RUN]), Path(folder) / "run", backend, demos=fake_demos(), say=lambda _: None)
        rows = measured(Path(folder) / "run")
    return [{k: float(f"{v:.9g}") for k, v in row.items()} for row in rows]


def assert_golden_run(rows: Trace) -> None:
    """Compare with ``train.json``.

    Without vector instructions, or on other ones, 1e-6 or a share of 1e-6 were seen; rounding grows along a run.
    """
    golden = json.loads(path_of(RUN_CASE).read_text())
    assert len(rows) == len(golden)
    for i, (new, old) in enumerate(zip(rows, golden, strict=True)):
        assert new == pytest.approx(old, rel=1e-4, abs=2e-6), f"record {i + 1}"


def path_of(case: str) -> Path:
    return FOLDER / f"{case}.json"


def all_keys() -> dict[str, Any]:
    """Return what the package's list of keys must hold."""
    return {
        "config": keys_of(ExperimentConfig),
        "rl": {name: keys_of(resolve(ALGORITHMS, name, "algorithm").Config) for name in ALGORITHMS},
        "actor": {name: keys_of(resolve(POLICIES, name, "policy").Config) for name in POLICIES},
        "sweep": keys_of(SweepConfig),
        "faults": list(FAULTS),
    }


def write_keys() -> None:
    path = Path(__file__).parents[1] / "inril_ray" / "presets" / KEYS
    before, now = path.read_text() if path.exists() else "", json.dumps(all_keys(), indent=1) + "\n"
    print(f"{KEYS}: {'unchanged' if now == before else 'changed'}")
    path.write_text(now)


def update(case: str, new: Trace, row_name: str) -> None:
    """Write a golden file and print what moved."""
    old = json.loads(path_of(case).read_text()) if path_of(case).exists() else []
    changes = 0
    for i in range(max(len(old), len(new))):
        before, after = (rows[i] if i < len(rows) else {} for rows in (old, new))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                changes += 1
                print(f"{case} {row_name} {i + 1} {name}: {before.get(name)} -> {after.get(name)}")
    print(f"{case}: {f'{changes} values changed' if changes else 'unchanged'}")
    path_of(case).write_text(json.dumps(new, indent=1) + "\n")


def main() -> None:
    write_keys()
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        if old.stem not in (*CASES, RUN_CASE):
            print(f"{old.name}: removed")
            old.unlink()
    for case in CASES:
        update(case, trace(case), "update")
    with pytest.MonkeyPatch.context() as patch:
        register_fake_task(patch)
        update(RUN_CASE, metrics_of_run(LocalBackend), "record")


if __name__ == "__main__":
    main()
