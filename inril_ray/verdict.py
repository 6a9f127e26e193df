"""Does interleaving help on this task? Paired seeds, equal rollouts, intervals, one plain sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray.experiment import ExperimentConfig, load_config, load_demos
from inril_ray.run_dir import claimed, continues, finished, provenance, write_json
from inril_ray.statistics import (
    Estimate,
    Measure,
    mean_estimate,
    measure_of,
    one_measure,
    other_rates,
    probability_of_improvement,
    rates_text,
    stratified_bootstrap,
)
from inril_ray.types import InrilError

CONTROL = "rl_only"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rl_only": ("RL only", {"schedule": "rl_only"}),
    "inril": ("IN-RIL", {}),
    "bc_reg": ("BC-Reg", {"schedule": "bc_reg"}),
}
"""Arm to its label and what it changes in the configuration."""
DEFAULT_ARMS = ("rl_only", "inril")
MIN_SEEDS = 3
MAX_MORE_SEEDS = 200

RunOne = Callable[[ExperimentConfig, Path, bool], dict[str, Any]]
"""(config, run directory, resume) -> summary."""


def checked(
    layers: Sequence[Mapping[str, Any]], seeds: Sequence[int], arms: Sequence[str] = DEFAULT_ARMS
) -> ExperimentConfig:
    """Look at what a verdict is asked for before anything runs; return the configuration of its IN-RIL arm.

    Raises:
        InrilError: see :func:`verdict`.
    """
    if len(seeds) < MIN_SEEDS or len(set(seeds)) != len(seeds):
        raise InrilError(f"seeds = {list(seeds)}: a verdict needs at least {MIN_SEEDS} different seeds.")
    config = load_config(layers)
    if config.schedule in ("rl_only", "bc_reg"):
        raise InrilError(
            f"schedule = {config.schedule!r}: this is an arm of its own; configure the interleaving to compare it with."
        )
    if CONTROL not in arms or len(arms) < 2 or not set(arms) <= ARMS.keys():
        raise InrilError(
            f"arms = {list(arms)}: {CONTROL} and at least one of {', '.join(a for a in ARMS if a != CONTROL)}."
        )
    for arm in arms:
        for seed in seeds:
            load_config([*layers, {"seed": seed}, ARMS[arm][1]])
    return config


def verdict(
    layers: Sequence[Mapping[str, Any]],
    directory: Path,
    *,
    seeds: Sequence[int],
    run_one: RunOne,
    arms: Sequence[str] = DEFAULT_ARMS,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run all arms at every seed from one cloned policy and compare each with RL only.

    Finished runs in ``directory`` are kept, unfinished ones go on, so an interrupted verdict can be started again.

    Args:
        layers: configuration of the IN-RIL arm; see :func:`inril_ray.experiment.load_config`.
        directory: where everything goes.
        seeds: at least 3, all different.
        run_one: runs one experiment.
        arms: of ``ARMS``, with the control.
        say: prints a line.

    Returns:
        what ``verdict.json`` holds.

    Raises:
        InrilError: too few or repeated seeds, arms that make no sense for this configuration, or the directory is of
            another one.
    """
    config = checked(layers, seeds, arms)
    directory.mkdir(parents=True, exist_ok=True)
    with claimed(directory, say):
        base_dir = _base_policy(layers, config, directory, run_one, say)
        summaries: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        paths: dict[str, list[str]] = {arm: [] for arm in arms}
        for seed in seeds:
            for arm in arms:
                label, changes = ARMS[arm]
                say(f"--- {label}, seed {seed}")
                own = {"seed": seed, "pretrained": str(base_dir), "video": False, **changes}
                arm_config = load_config([*layers, own])
                path = directory / f"{arm}_seed{seed}"
                summaries[arm].append(
                    finished(path, arm_config) or run_one(arm_config, path, continues(arm_config, path))
                )
                paths[arm].append(path.name)
        result = compare(summaries, paths, seeds)
        demos = load_demos(config).info
        result |= {
            "task": config.task,
            "algorithm": config.algorithm,
            "demos": {"source": demos.source, "file": demos.source_file, "hash": demos.content_hash},
            **provenance(),
        }
        write_json(directory / "verdict.json", result)
        return result


def _base_policy(
    layers: Sequence[Mapping[str, Any]], config: ExperimentConfig, directory: Path, run_one: RunOne, say: Any
) -> Path:
    """Clone the one policy that all runs start from: a run of a single iteration, whose fine-tuning is not used."""
    if config.pretrained is not None:
        return Path(config.pretrained).resolve()
    path = directory / "base"
    only = {"num_iterations": 1, "video": False, "evaluation": {"final_episodes": 1}}
    base_config = load_config([*layers, only])
    if finished(path, base_config) is None:
        say("--- cloning the policy that every run starts from")
        run_one(base_config, path, continues(base_config, path))
    return path.resolve()


def compare(
    summaries: Mapping[str, list[dict[str, Any]]], paths: Mapping[str, list[str]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Compare every arm with the control.

    Runs of equally many iterations make equally many decisions. Their environment steps are equal too, but for the
    action chunks that the end of an episode cuts short.

    Args:
        summaries: arm to the summaries of its runs, in the order of ``seeds``.
        paths: arm to the names of its run directories.
        seeds: of the runs.

    Raises:
        InrilError: the runs differ in iterations.
    """
    iterations = {s["iterations"] for runs in summaries.values() for s in runs}
    if len(iterations) != 1:
        raise InrilError(f"The runs differ in iterations ({sorted(iterations)}); they can't be compared.")
    measure = one_measure(s["final"] for runs in summaries.values() for s in runs)
    scores = {arm: np.array([s["final"]["score"] for s in runs]) for arm, runs in summaries.items()}
    arms = {}
    for arm, runs in summaries.items():
        counters = [s["counters"] for s in runs]
        arms[arm] = {
            "label": ARMS[arm][0],
            "overrides": ARMS[arm][1],
            "scores": scores[arm].tolist(),
            "env_steps": [s["env_steps"] for s in runs],
            "rl_updates": [c["rl_updates"] for c in counters],
            "il_updates": [c["il_updates"] for c in counters],
            "seconds": [sum(s["seconds_by_phase"].values()) for s in runs],
            "iqm": vars(stratified_bootstrap([scores[arm]])),
            "other_rates": other_rates([s["final"] for s in runs]),
            "runs": paths[arm],
        }
    base = summaries[CONTROL][0]["base"]
    comparisons = {}
    for arm in summaries:
        if arm != CONTROL:
            labels = ARMS[arm][0], ARMS[CONTROL][0]
            comparisons[arm] = judge(scores[arm], scores[CONTROL], *labels, measure)
    return {
        "seeds": list(seeds),
        "iterations": iterations.pop(),
        "episodes_per_run": int(summaries[CONTROL][0]["final"]["eval_episodes"]),
        "base": {k: v for k, v in base.items() if k != "outcomes"},
        "arms": arms,
        "comparisons": comparisons,
    }


def judge(treatment: np.ndarray, control: np.ndarray, name: str, control_name: str, measure: Measure) -> dict[str, Any]:
    """Return difference, probability of improvement and the sentence.

    Two intervals of the paired difference must agree that it is not zero before a side is taken: the bootstrap's, which
    is reported, and Student's t. With few seeds the bootstrap alone is far too narrow (three seeds of one sign would
    decide, which happens by chance in one case of four).

    Args:
        treatment: [S] final scores by seed.
        control: [S] at the same seeds.
        name: of the treatment, for the sentence.
        control_name: of the control.
        measure: what the scores are.
    """
    difference = stratified_bootstrap([treatment], paired=[control])
    improvement = probability_of_improvement(treatment, control)
    t = mean_estimate(treatment - control)
    outcome = "can't tell yet"
    if min(difference.low, t.low) > 0:
        outcome = "helps"
    elif max(difference.high, t.high) < 0:
        outcome = "hurts"
    more = more_seeds(treatment - control) if outcome == "can't tell yet" else None
    return {
        "against": CONTROL,
        "difference": vars(difference),
        "t_interval": {"low": t.low, "high": t.high},
        "probability_of_improvement": vars(improvement),
        "verdict": outcome,
        "sentence": _sentence(outcome, difference, name, control_name, len(treatment), more, measure),
        "more_seeds": more,
    }


def more_seeds(differences: np.ndarray) -> int | None:
    """Return how many more paired seeds would show the observed mean difference with 80 % power at the 5 % level.

    None where the observed difference is too small for any affordable number. Source: the normal approximation of the
    paired t-test, n = ((1.96 + 0.84) s / d)^2.
    """
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if mean == 0.0:
        return None
    needed = math.ceil(((1.96 + 0.84) * deviation / mean) ** 2)
    more = max(1, needed - len(differences))
    return more if more <= MAX_MORE_SEEDS else None


def _sentence(
    outcome: str, difference: Estimate, name: str, control: str, num_seeds: int, more: int | None, measure: Measure
) -> str:
    # Adding 0 makes a rounded -0.0 positive.
    points, low, high = (round(100 * x, 1) + 0.0 for x in (difference.value, difference.low, difference.high))
    interval = f"{points:+.1f} {measure.points} [{low:+.1f}, {high:+.1f}] over {num_seeds} paired seeds"
    if outcome in ("helps", "hurts"):
        return f"{name} {outcome}: its {measure.name} differs from {control}'s by {interval}."
    if more is None:
        return (
            f"Can't tell yet: {name} differs from {control} by {interval}; so small a difference would need more than "
            f"{MAX_MORE_SEEDS} further seeds."
        )
    return f"Can't tell yet: {name} differs from {control} by {interval}; about {more} more paired seeds would tell."


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what the command prints."""
    measure = measure_of(result["base"])
    lines, unit = [], measure.unit
    for arm in result["arms"].values():
        iqm = arm["iqm"]
        scores = ", ".join(f"{100 * s:.1f}" for s in arm["scores"])
        others = f"; {rates_text(arm['other_rates'])}" if arm.get("other_rates") else ""
        lines.append(
            f"{arm['label']:8s} interquartile mean {100 * iqm['value']:.1f}{unit} "
            f"[{100 * iqm['low']:.1f}, {100 * iqm['high']:.1f}]  (seeds: {scores}{others})"
        )
    lines += [measure.definition] if measure.rule else []
    for comparison in result["comparisons"].values():
        p = comparison["probability_of_improvement"]
        lines.append(f"probability of improvement {p['value']:.2f} [{p['low']:.2f}, {p['high']:.2f}]")
        lines.append(comparison["sentence"])
    return lines
