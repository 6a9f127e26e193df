"""What should follow a time limit? Lift by DPPO without imitation, five seeds from one clone, by several rules.

``python -m benchmarks.time_limits [RULE …]`` takes ``terminal`` and ``bootstrap`` unless told otherwise. Beside
success it records why: how the advantages of each iteration relate to what the episodes went on to earn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from benchmarks.result import FOLDER, write
from inril_ray.algorithms.on_policy import OnPolicyAlgorithm, OnPolicyConfig
from inril_ray.backend import LocalBackend
from inril_ray.experiment import load_config
from inril_ray.losses.returns import returns_to_go
from inril_ray.policies.base import Policy
from inril_ray.presets import shipped_config
from inril_ray.run import run
from inril_ray.run_dir import read_config
from inril_ray.statistics import measure_of, paired_difference, score_text
from inril_ray.types import Rollout

SEEDS = range(5)
RULES: tuple[str, ...] = get_args(get_type_hints(OnPolicyConfig)["time_limits"])
DEFAULT = ("terminal", "bootstrap")
RUNS = Path("runs/bench-time-limits")
SETTINGS: dict[str, Any] = {
    "schedule": "rl_only",
    "num_iterations": 24,
    "env": {"backend": "kernel"},
    "rl": {"lr_decay_iterations": 24, "minibatch_size": 2000},
    "rollout": {"num_envs": 40},
    "evaluation": {"every": 0},
    "tracking": {"trackers": ["jsonl"]},
    "video": False,
}
"""Over those of `make demo`: 96,000 control steps, episodes of 100, 25 decisions each."""
SIGNALS = "signals.jsonl"
LATE = 6
"""Iterations after which the critic has seen something."""


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Write a line for each rollout that is learned from."""
    prepare = OnPolicyAlgorithm.prepare

    def watched(self: OnPolicyAlgorithm, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> Any:
        batch = prepare(self, rollout, policy, fresh_start=fresh_start)
        over = rollout.terminated | rollout.truncated
        earned, _ = returns_to_go(rollout.rewards, over, self.config.discount)
        # Less their mean at each decision: the time that is left, which no action decides, is not what is asked for.
        chosen = (earned - earned.mean(axis=1, keepdims=True))[rollout.valid]
        first, last = (self._values(obs, policy)[0] for obs in (rollout.obs[:1], rollout.next_obs[-1:]))
        won = rollout.rewards.sum(axis=0) > 0
        line = {
            "correlation": float(np.corrcoef(batch.advantages.cpu().numpy(), chosen)[0, 1]),
            "first_value": float(first.mean()),
            # Of the observations at the limit, where the episodes that succeeded are compared with those that failed.
            "last_value_won": float(last[won].mean()) if won.any() else None,
            "last_value_lost": float(last[~won].mean()) if not won.all() else None,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return batch

    OnPolicyAlgorithm.prepare = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        OnPolicyAlgorithm.prepare = prepare


def finished(name: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Run, or go on with, or read a run; return its summary."""
    out = RUNS / name
    if not (out / "summary.json").is_file():
        RUNS.mkdir(parents=True, exist_ok=True)
        resume = any((out / "checkpoints").glob("iteration_*"))
        config = read_config(out) if resume else load_config([shipped_config("demo"), SETTINGS, *layers])
        with recorded(RUNS / f"{name}.{SIGNALS}"):
            run(config, out, LocalBackend, resume=resume)
    return json.loads((out / "summary.json").read_text())


def outcomes(summaries: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the scores of the episodes of each run."""
    return [np.array(s["final"]["outcomes"], np.float64) for s in summaries]


def signals(rule: str, seed: int) -> list[dict[str, Any]]:
    """Return what was recorded of a run."""
    return [json.loads(line) for line in (RUNS / f"{rule}_seed{seed}.{SIGNALS}").read_text().splitlines()]


def main(rules: Sequence[str]) -> None:
    """Run the rules at every seed and write success, differences and signals."""
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown or not {*DEFAULT} <= {*rules}:
        raise SystemExit(f"Rules {' '.join(rules)}: choose of {', '.join(RULES)}; {' and '.join(DEFAULT)} are needed.")
    finished("clone", [{"num_iterations": 1, "rollout": {"num_envs": 2, "num_decisions": 2}}])
    start = {"pretrained": str((RUNS / "clone").resolve())}
    found = {
        rule: [finished(f"{rule}_seed{s}", [start, {"seed": s, "rl": {"time_limits": rule}}]) for s in SEEDS]
        for rule in rules
    }
    measure = measure_of(found[rules[0]][0]["final"])
    differences = {
        f"{rule} less bootstrap": vars(paired_difference(outcomes(found[rule]), outcomes(found["bootstrap"]), measure))
        for rule in rules
        if rule != "bootstrap"
    }
    write(
        "time_limits",
        {
            "base": {f"seed{s}": score_text(found["bootstrap"][s]["base"]) for s in SEEDS},
            "final": {rule: {f"seed{s}": score_text(runs[s]["final"]) for s in SEEDS} for rule, runs in found.items()},
            "differences": differences,
            "signals": {rule: {f"seed{s}": signals(rule, s) for s in SEEDS} for rule in rules},
            "late_correlation": {
                rule: float(np.mean([line["correlation"] for s in SEEDS for line in signals(rule, s)[LATE:]]))
                for rule in rules
            },
        },
        reference="the rule `bootstrap`, from the same clone at the same seeds",
        ratio=round(
            float(np.mean([s["final"]["score"] for s in found["terminal"]]))
            / float(np.mean([s["final"]["score"] for s in found["bootstrap"]])),
            3,
        ),
        goal="the default is what learns best",
    )
    print(f"Results in {FOLDER}, runs in {RUNS}.")


if __name__ == "__main__":
    main(sys.argv[1:] or DEFAULT)
