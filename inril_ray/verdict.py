"""Does interleaving help on this task? Paired seeds, equal rollouts, intervals, one plain sentence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray.experiment import ExperimentConfig, load_config, load_demos
from inril_ray.presets import check_seeds
from inril_ray.run_dir import claimed, continues, finished, provenance, write_json
from inril_ray.statistics import (
    Estimate,
    Measure,
    Z,
    detectable_difference,
    difference_of_episodes,
    measure_of,
    one_measure,
    other_rates,
    paired_difference,
    pairs_needed,
    probability_of_improvement,
    rates_text,
    stratified_bootstrap,
)
from inril_ray.types import FloatArray, InrilError
from inril_ray.words import counted, duration

CONTROL = "rl_only"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rl_only": ("RL only", {"schedule": "rl_only"}),
    "inril": ("IN-RIL", {}),
    "bc_reg": ("BC-Reg", {"schedule": "bc_reg"}),
}
"""Arm to its label and what it changes in the configuration."""
DEFAULT_ARMS = ("rl_only", "inril")
STATED = 0.05
"""Difference for which it is told how many seeds would find it: 5 percentage points, or points of a score."""

RunOne = Callable[[ExperimentConfig, Path, bool], dict[str, Any]]
"""(config, run directory, resume) -> summary."""


def checked(
    layers: Sequence[Mapping[str, Any]], seeds: Sequence[int], arms: Sequence[str] = DEFAULT_ARMS
) -> ExperimentConfig:
    """Look at what a verdict is asked for before anything runs; return the configuration of its IN-RIL arm.

    Raises:
        InrilError: see :func:`verdict`.
    """
    check_seeds(seeds)
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
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        plan = [(seed, arm) for seed in seeds for arm in arms]
        for i, (seed, arm) in enumerate(plan):
            label, changes = ARMS[arm]
            say(f"--- run {i + 1} of {len(plan)}: {label}, seed {seed}{_left((a for _, a in plan[i:]), seconds)}")
            own = {"seed": seed, "pretrained": str(base_dir), "video": False, **changes}
            arm_config = load_config([*layers, own])
            path = directory / f"{arm}_seed{seed}"
            start, summary = time.monotonic(), finished(path, arm_config)
            whole = False
            if summary is None:
                resume = continues(arm_config, path)
                whole, summary = not resume, run_one(arm_config, path, resume)
            # What was run before, or in part, took as long as its phases.
            seconds[arm].append(time.monotonic() - start if whole else sum(summary["seconds_by_phase"].values()))
            summaries[arm].append(summary)
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


def _left(arms: Iterable[str], seconds: Mapping[str, Sequence[float]]) -> str:
    """Return how long runs of these arms will take, by the mean of the runs of each that ended, or of all."""
    ended = [s for own in seconds.values() for s in own]
    if not ended:
        return ""
    left = sum(float(np.mean(seconds[arm] or ended)) for arm in arms)
    return f"; about {duration(left)} to go"


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
        say("--- cloning the policy that every run starts from; it is evaluated with each of them, here by one episode")
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
    base = summaries[CONTROL][0]["base"]
    measure = one_measure(s["final"] for runs in summaries.values() for s in runs)
    outcomes = {arm: [outcomes_of(s) for s in runs] for arm, runs in summaries.items()}
    arms = {}
    for arm, runs in summaries.items():
        counters = [s["counters"] for s in runs]
        arms[arm] = {
            "label": ARMS[arm][0],
            "overrides": ARMS[arm][1],
            "scores": [s["final"]["score"] for s in runs],
            "env_steps": [s["env_steps"] for s in runs],
            "rl_updates": [c["rl_updates"] for c in counters],
            "il_updates": [c["il_updates"] for c in counters],
            "seconds": [sum(s["seconds_by_phase"].values()) for s in runs],
            "iqm": vars(stratified_bootstrap([outcomes[arm]], measure)),
            "other_rates": other_rates([s["final"] for s in runs]),
            "runs": paths[arm],
        }
    comparisons = {}
    for arm in summaries:
        if arm != CONTROL:
            labels = ARMS[arm][0], ARMS[CONTROL][0]
            comparisons[arm] = judge(outcomes[arm], outcomes[CONTROL], *labels, measure)
    return {
        "seeds": list(seeds),
        "iterations": iterations.pop(),
        "episodes_per_run": int(summaries[CONTROL][0]["final"]["eval_episodes"]),
        "base": {k: v for k, v in base.items() if k != "outcomes"},
        "arms": arms,
        "comparisons": comparisons,
    }


def outcomes_of(summary: Mapping[str, Any]) -> FloatArray:
    """Return [k] scores of the episodes that a finished run's last evaluation ran.

    Raises:
        InrilError: an older program wrote the summary, which kept the mean only.
    """
    outcomes = summary["final"].get("outcomes")
    if not outcomes:
        raise InrilError(
            "A finished run here holds no outcomes by episode, which comparisons need (final.outcomes in its "
            "summary.json); another release wrote it. Choose another --out."
        )
    return np.asarray(outcomes, np.float64)


def judge(
    treatment: Sequence[FloatArray], control: Sequence[FloatArray], name: str, control_name: str, measure: Measure
) -> dict[str, Any]:
    """Return difference, probability of improvement, what the design could have found, and the sentence.

    Two intervals of the paired difference must agree that it is not zero before a side is taken: the bootstrap's and
    Student's t. The sentence shows the wider one; where no side is taken, of those that hold zero. With few seeds the
    bootstrap alone is far too narrow (three seeds of one sign would decide, which happens by chance in one case of
    four).

    Args:
        treatment: for each seed, [k] final scores of its episodes.
        control: likewise, at the same seeds.
        name: of the treatment, for the sentence.
        control_name: of the control.
        measure: what the scores are.
    """
    bootstrap = stratified_bootstrap([treatment], measure, paired=[control])
    t = paired_difference(treatment, control, measure)
    means = [np.array([run.mean() for run in runs]) for runs in (treatment, control)]
    outcome = "can't tell yet"
    if min(bootstrap.low, t.low) > 0:
        outcome = "helps"
    elif max(bootstrap.high, t.high) < 0:
        outcome = "hurts"
    found = power(treatment, control, measure)
    shown, wider = _shown({"Student's t": t, "bootstrap": bootstrap}, decided=outcome != "can't tell yet")
    words = _difference_text(shown, wider, len(treatment), measure)
    return {
        "against": CONTROL,
        "difference": vars(bootstrap),
        "t_interval": vars(t),
        "wider": wider,
        "probability_of_improvement": vars(probability_of_improvement(*means)),
        "verdict": outcome,
        "sentence": _sentence(outcome, words, name, control_name, found, len(treatment[0]), measure),
        "power": found,
    }


def _shown(intervals: Mapping[str, Estimate], *, decided: bool) -> tuple[Estimate, str]:
    """Return the interval that the sentence shows, with its name."""
    fitting = {name: e for name, e in intervals.items() if decided or e.low <= 0 <= e.high}
    # Where no side is taken and none holds zero, they are on two sides of it.
    name = max(fitting or intervals, key=lambda n: intervals[n].high - intervals[n].low)
    return intervals[name], name


def power(treatment: Sequence[FloatArray], control: Sequence[FloatArray], measure: Measure) -> dict[str, Any]:
    """Return what this design could have found, and what it would take to find ``STATED``.

    Both are of the paired t-test, see :func:`inril_ray.statistics.detectable_difference`, at the spread of the
    differences between seeds that was seen, or that of the episodes alone where that is larger.

    Args:
        treatment: for each seed, [k] final scores of its episodes.
        control: likewise, at the same seeds.
        measure: what the scores are.

    Returns:
        ``detectable``: difference that would be found in four of five such studies; ``stated``; ``seeds``: that would
        find the stated one as often.
    """
    differences = np.array([x.mean() - y.mean() for x, y in zip(treatment, control, strict=True)])
    alone = difference_of_episodes(treatment, control, measure)
    of_episodes = (alone.high - alone.low) / (2 * Z) * math.sqrt(len(differences))
    deviation = max(float(differences.std(ddof=1)), of_episodes)
    detectable = detectable_difference(deviation, len(differences))
    return {"detectable": detectable, "stated": STATED, "seeds": pairs_needed(deviation, STATED)}


def _difference_text(difference: Estimate, kind: str, num_seeds: int, measure: Measure) -> str:
    # Adding 0 makes a rounded -0.0 positive.
    points, low, high = (round(100 * x, 1) + 0.0 for x in (difference.value, difference.low, difference.high))
    return f"{points:+.1f} {measure.points} [{low:+.1f}, {high:+.1f}] (95 %, {kind}) over {num_seeds} paired seeds"


def _detectable(difference: float, measure: Measure) -> str:
    if measure.rule and difference > 1:
        return "no difference that is possible"
    return f"a true difference of {100 * difference:.1f} {measure.points}"


def _sentence(
    outcome: str, difference: str, name: str, control: str, found: Mapping[str, Any], episodes: int, measure: Measure
) -> str:
    if outcome in ("helps", "hurts"):
        return f"{name} {outcome}: its {measure.name} differs from {control}'s by {difference}."
    text = (
        f"Can't tell yet: {name} differs from {control} by {difference}. With {counted(episodes, 'episodes')} a run, "
        f"such a study finds {_detectable(found['detectable'], measure)} in four cases of five"
    )
    if found["detectable"] > found["stated"]:
        text += f"; {100 * found['stated']:.0f} would take about {found['seeds']} seeds"
    return f"{text}."


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
        p, t, bootstrap = (comparison[k] for k in ("probability_of_improvement", "t_interval", "difference"))
        lines.append(f"probability of improvement {p['value']:.2f} [{p['low']:.2f}, {p['high']:.2f}]")
        lines.append(
            f"difference: of means {_said(t)} by Student's t, of interquartile means {_said(bootstrap)} by bootstrap; "
            "a side is taken where neither holds 0"
        )
        lines.append(comparison["sentence"])
    return lines


def _said(difference: Mapping[str, float]) -> str:
    value, low, high = (round(100 * difference[k], 1) + 0.0 for k in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
