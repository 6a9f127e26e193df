"""Loss traces of the first ten updates, in float64 on a CPU: ``python -m tests.update_golden`` writes them anew.

The cases are a sum, not a product: both algorithms, then every separation, then every schedule. Values are rounded to
12 digits. A change of any of them is a change of what is learned: look at the printed difference before committing it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inril_ray.algorithms import ALGORITHMS
from inril_ray.config import keys_of
from inril_ray.experiment import ExperimentConfig
from inril_ray.policies import POLICIES
from inril_ray.presets import KEYS
from inril_ray.registry import resolve
from inril_ray.sweep import SweepConfig
from tests.fakes import tiny_learner, tiny_rollouts

FOLDER = Path(__file__).parent / "golden"
NUM_UPDATES = 10
CASES: dict[str, dict[str, Any]] = {
    "dppo": {"algorithm": "dppo", "schedule": "fixed", "separation": "upgrad"},
    "ppo": {"algorithm": "ppo", "schedule": "fixed", "separation": "upgrad"},
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
    size = {"ppo": 6, "residual_ppo": 12}.get(settings.get("algorithm", "dppo"), 20)
    rl = {"num_epochs": 1, "minibatch_size": size, "actor_lr": 1e-3}
    learner = tiny_learner(**settings, rl=rl, il_lr=1e-3, double=True)
    rollouts = tiny_rollouts(learner.policy, 8)
    rng = np.random.default_rng(0)
    rows: Trace = []
    loss, il_loss = learner.algorithm.loss, learner.policy.il_loss
    pending: dict[str, float] = {}

    def recorded_loss(policy, minibatch):
        losses = loss(policy, minibatch)
        if torch.is_grad_enabled():
            pending.update(policy=losses.policy.item(), value=losses.value.item(), kl=losses.stats["approx_kl"].item())
        return losses

    def recorded_il_loss(*args):
        result = il_loss(*args)
        if torch.is_grad_enabled():
            pending["il"] = result.item()
        return result

    def after_step(optimizer, args, kwargs):
        # Reinforcement steps the critic last; imitation never steps it.
        if optimizer is learner.critic_optimizer or "il" in pending:
            rows.append(dict(pending))
            pending.clear()

    learner.algorithm.loss, learner.policy.il_loss = recorded_loss, recorded_il_loss
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


def path_of(case: str) -> Path:
    return FOLDER / f"{case}.json"


def all_keys() -> dict[str, Any]:
    """Return what the package's list of keys must hold."""
    return {
        "config": keys_of(ExperimentConfig),
        "rl": {name: keys_of(resolve(ALGORITHMS, name, "algorithm").Config) for name in ALGORITHMS},
        "actor": {name: keys_of(resolve(POLICIES, name, "policy").Config) for name in POLICIES},
        "sweep": keys_of(SweepConfig),
    }


def write_keys() -> None:
    path = Path(__file__).parents[1] / "inril_ray" / "presets" / KEYS
    before, now = path.read_text() if path.exists() else "", json.dumps(all_keys(), indent=1) + "\n"
    print(f"{KEYS}: {'unchanged' if now == before else 'changed'}")
    path.write_text(now)


def main() -> None:
    write_keys()
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        if old.stem not in CASES:
            print(f"{old.name}: removed")
            old.unlink()
    for case in CASES:
        new = trace(case)
        old = json.loads(path_of(case).read_text()) if path_of(case).exists() else []
        changes = 0
        for i in range(max(len(old), len(new))):
            before, after = (rows[i] if i < len(rows) else {} for rows in (old, new))
            for name in sorted(before.keys() | after.keys()):
                if before.get(name) != after.get(name):
                    changes += 1
                    print(f"{case} update {i + 1} {name}: {before.get(name)} -> {after.get(name)}")
        print(f"{case}: {f'{changes} values changed' if changes else 'unchanged'}")
        path_of(case).write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    main()
