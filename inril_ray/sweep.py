"""Sweeps: which settings are tried at which seeds, what came of it, and which one wins.

Knows no Ray: :mod:`inril_ray.tune` runs what is planned here, and tells how each trial ended.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from inril_ray.config import LocalPath, StoreUri, build, config, fingerprint, flat, merge, nested, to_dict
from inril_ray.experiment import ExperimentConfig, load_config, resolved
from inril_ray.presets import named_config, sweep_values
from inril_ray.run_dir import read_json
from inril_ray.statistics import (
    Measure,
    measure_of,
    one_measure,
    other_rates,
    probability_of_improvement,
    rates_text,
    runs_estimate,
    score_text,
)
from inril_ray.tracking.jsonl import read_metrics
from inril_ray.types import FloatArray, InrilError
from inril_ray.verdict import judge, outcomes_of
from inril_ray.words import counted

CONTROL = "rl_only"
"""Schedule of the setting that all others are held against."""
CLONING_KEYS = ("task", "demos", "policy", "seed", "env", "actor", "pretrain")
"""Sections of a configuration that decide what a cloned policy is."""
MAX_NAMED = 6
"""Settings that the sentence on the winner names."""
PATHS: dict[str, Any] = {"demos": LocalPath, "tracking.mlflow_uri": StoreUri}
"""Keys of paths that a sweep may set."""
PBT_KEYS = (
    "rl.actor_lr", "rl.critic_lr", "rl.clip_ratio", "rl.discount", "rl.gae_lambda",
    "interleave.every", "interleave.il_lr", "interleave.il_steps", "interleave.bc_weight",
)  # fmt: skip
"""Keys that may change in the middle of a run: numbers that no network and no saved state depends on."""


@config
class Between:
    """Numbers between two ends."""

    low: float
    high: float
    log: bool = False
    """Even in the logarithm."""
    integer: bool = False


@config
class SeedsConfig:
    """Seeds are repeats of a setting: it is judged by their mean."""

    search: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """At which all settings are tried."""
    confirm: tuple[NonNegativeInt, ...] = (100, 101, 102, 103, 104)
    """Fresh ones, at which the winner is run again beside RL only: a winner of many is partly luck. Empty: not run."""


@config
class SweepConfig:
    """What a file in ``tune_configs/`` holds."""

    name: str
    config: str | None = None
    """Configuration that all trials start from: a YAML file, or the name of a shipped one."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Laid over it, in sections as in a configuration file."""
    method: Literal["grid", "random", "optuna", "pbt"] = "grid"
    """``grid``: every combination; ``random``: ``num_samples`` draws; ``optuna``: as many, each drawn by what the ones
    before it gave; ``pbt``: a population of as many, of which the weaker go on from the stronger."""
    space: dict[str, list[Any] | Between] = Field(default_factory=dict)
    """Key such as ``interleave.every`` to the values to try, or to the ends between which values are drawn."""
    arms: tuple[dict[str, Any], ...] = ()
    """Further settings, each a mapping such as ``{schedule: rl_only}``."""
    num_samples: PositiveInt = 16
    early_stopping: Literal["none", "asha"] = "none"
    """``asha``: at each of ever rarer evaluations, stop trials that are not among the best third."""
    seeds: SeedsConfig = SeedsConfig()
    retries: NonNegativeInt = 2
    """Times that a trial which failed goes on from its last checkpoint before it is given up."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the search space."""

    overrides: dict[str, Any]
    """Dotted key to value."""

    @property
    def key(self) -> str:
        """Name of its runs."""
        return fingerprint(self.overrides)[:8]

    @property
    def label(self) -> str:
        """The same for people."""
        parts = [_said(key, value) for key, value in self.overrides.items()]
        return ", ".join(parts) or "as configured"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    setting: Setting
    seed: int
    run_dir: Path
    error: str | None = None
    """Of the last attempt, where all failed."""

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run left; None where it was stopped early or failed."""
        file = self.run_dir / "summary.json"
        return read_json(file) if file.is_file() and self.error is None else None

    @property
    def state(self) -> str:
        """``finished``, ``failed`` or ``stopped`` (early)."""
        return "failed" if self.error else "finished" if self.summary else "stopped"


def _said(key: str, value: Any) -> str:
    if key == "interleave.every":
        return f"m = {value}"
    if key == "schedule" and isinstance(value, str):
        return {"rl_only": "RL only", "bc_reg": "BC-Reg", "adaptive": "adaptive m", "il_only": "IL only"}.get(
            value, f"{value} m"
        )
    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
    return shown if key in ("separation", "algorithm", "task") else f"{key.split('.')[-1]} = {shown}"


# -- plan -------------------------------------------------------------------------------------------------------------
def read_sweep(path: Path) -> SweepConfig:
    """Read and check a file of ``tune_configs/``.

    Raises:
        InrilError: it can't be read, or asks for what there is not; names the key.
    """
    values = sweep_values(path)
    try:
        sweep = build(SweepConfig, values)
        check(sweep)
    except InrilError as error:
        raise InrilError(f"{path}: {error}") from None
    return sweep


def check(sweep: SweepConfig) -> None:
    """Refuse a sweep that could not be run to its end, before anything runs.

    Raises:
        InrilError: names the key and what is allowed.
    """
    if not sweep.seeds.search or len(set(sweep.seeds.search)) != len(sweep.seeds.search):
        raise InrilError(f"seeds.search = {list(sweep.seeds.search)}: at least one seed is needed, all different.")
    both = sorted(set(sweep.seeds.search) & set(sweep.seeds.confirm))
    if both or len(set(sweep.seeds.confirm)) != len(sweep.seeds.confirm):
        raise InrilError(
            f"seeds.confirm = {list(sweep.seeds.confirm)}: fresh seeds are needed, all different, none of seeds.search."
        )
    for key, values in sweep.space.items():
        if isinstance(values, Between):
            if sweep.method == "grid":
                raise InrilError(f"space.{key}: a grid needs a list of values, not an interval.")
            if not values.low < values.high or (values.log and values.low <= 0):
                raise InrilError(f"space.{key}: low = {values.low} and high = {values.high} bound no interval.")
        elif not values:
            raise InrilError(f"space.{key} = []: at least one value is needed.")
        if sweep.method == "optuna" and key.split(".")[0] in CLONING_KEYS:
            raise InrilError(
                f"space.{key}: changes how the policy is cloned, which optuna's trials share; use grid or random."
            )
        if sweep.method == "pbt" and key not in PBT_KEYS:
            raise InrilError(f"space.{key}: with pbt only {', '.join(PBT_KEYS)} can change in the middle of a run.")
    if sweep.method in ("random", "optuna", "pbt") and not sweep.space:
        raise InrilError(f"method = {sweep.method!r} needs a space to draw from.")
    if sweep.method == "pbt" and (sweep.arms or sweep.early_stopping != "none"):
        raise InrilError("method = 'pbt' replaces weak trials by itself: no arms and no early_stopping with it.")
    for key in ("seed", "pretrained"):
        if key in sweep.space or any(key in arm for arm in sweep.arms):
            raise InrilError(f"{key}: is given by the sweep itself (seeds); it can't be searched.")
    for setting in settings_of(sweep) or [Setting(overrides=draw(sweep, np.random.default_rng(0)))]:
        trial_config(sweep, setting, sweep.seeds.search[0])


def settings_of(sweep: SweepConfig) -> list[Setting]:
    """Return the settings that are known beforehand; ``optuna`` and ``pbt`` draw theirs later."""
    drawn: list[dict[str, Any]] = []
    if sweep.method == "grid" and (sweep.space or not sweep.arms):
        values = [v if isinstance(v, list) else [] for v in sweep.space.values()]
        drawn = [dict(zip(sweep.space, point, strict=True)) for point in itertools.product(*values)]
    elif sweep.method == "random":
        rng = np.random.default_rng(0)
        drawn = [draw(sweep, rng) for _ in range(sweep.num_samples)]
    settings = [Setting(overrides=point) for point in (*drawn, *sweep.arms)]
    return list({setting.key: setting for setting in settings}.values())


def draw(sweep: SweepConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Return a random point of the space."""
    point: dict[str, Any] = {}
    for key, values in sweep.space.items():
        if not isinstance(values, Between):
            point[key] = values[int(rng.integers(len(values)))]
            continue
        low, high = (math.log(values.low), math.log(values.high)) if values.log else (values.low, values.high)
        value = float(rng.uniform(low, high))
        value = math.exp(value) if values.log else value
        point[key] = round(value) if values.integer else value
    return point


def shared_config(sweep: SweepConfig) -> dict[str, Any]:
    """Return what the configuration that a sweep names holds; nothing where it names none."""
    return named_config(sweep.config) if sweep.config else {}


def located(sweep: SweepConfig) -> SweepConfig:
    """Return a sweep that means the same in whatever directory it is read, as Tune gives each trial one of its own.

    Its paths are absolute, and what the file that it names holds is in its base.
    """
    base = flat(merge(shared_config(sweep), sweep.base))
    space = {k: [_located(k, v) for v in vs] if isinstance(vs, list) else vs for k, vs in sweep.space.items()}
    return dataclasses.replace(
        sweep,
        config=None,
        base=nested({key: _located(key, value) for key, value in base.items()}),
        space=space,
        arms=tuple({key: _located(key, value) for key, value in arm.items()} for arm in sweep.arms),
    )


def _located(key: str, value: Any) -> Any:
    return TypeAdapter(PATHS[key]).validate_python(value) if key in PATHS and isinstance(value, str) else value


def plan_hash(sweep: SweepConfig) -> str:
    """Return what tells sweeps apart: the plan, with what the file that it names holds."""
    return fingerprint({"sweep": to_dict(sweep), "config": shared_config(sweep)})


def trial_config(
    sweep: SweepConfig, setting: Setting, seed: int, *, pretrained: Path | None = None
) -> ExperimentConfig:
    """Return the configuration of one trial.

    Raises:
        InrilError: the setting does not fit the rest; names what.
    """
    own: dict[str, Any] = {"seed": seed, "video": False}
    if pretrained is not None:
        own["pretrained"] = str(pretrained)
    try:
        made = load_config([shared_config(sweep), sweep.base, nested(setting.overrides), own])
        # Trials go on side by side: on the console each has one line, at its end.
        quiet = [name for name in made.tracking.trackers if name != "console"]
        return load_config([merge(resolved(made), {"tracking": {"trackers": quiet}})])
    except InrilError as error:
        raise InrilError(f"Setting {setting.label!r}: {error}") from None


def base_config(sweep: SweepConfig, setting: Setting) -> ExperimentConfig:
    """Return the configuration of the run that clones the policy which a setting's trials start from.

    All seeds start from one policy, and so do all settings that don't change how it is cloned.
    """
    values = resolved(trial_config(sweep, setting, sweep.seeds.search[0]))
    values |= {"num_iterations": 1, "schedule": CONTROL}
    values["evaluation"] = {**values["evaluation"], "final_episodes": 1}
    return load_config([values])


def base_key(sweep: SweepConfig, setting: Setting) -> str:
    """Return a name that settings share whose trials start from one cloned policy."""
    values = resolved(base_config(sweep, setting))
    return fingerprint({key: values[key] for key in CLONING_KEYS})[:8]


# -- result -----------------------------------------------------------------------------------------------------------
def gather(sweep: SweepConfig, outcomes: Sequence[Outcome], directory: Path) -> dict[str, Any]:
    """Return what came of every setting: scores by seed, intervals, how gradients related, cost, failures.

    Settings, and the trials of each, stand in the order of the plan, whichever ended first.

    Args:
        sweep: its plan.
        outcomes: of all trials.
        directory: of the sweep, which paths are relative to.

    Raises:
        InrilError: no trial finished; gives the errors.
    """
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[FloatArray]] = {}
    outcomes = sorted(outcomes, key=_planned(sweep))
    for outcome in outcomes:
        row = rows.setdefault(
            outcome.setting.key,
            {
                "key": outcome.setting.key,
                "label": outcome.setting.label,
                "overrides": outcome.setting.overrides,
                "schedule": trial_config(sweep, outcome.setting, outcome.seed).schedule,
                "trials": [],
            },
        )
        row["trials"].append(_trial(outcome, directory))
        if outcome.summary:
            scores.setdefault(outcome.setting.key, []).append(outcomes_of(outcome.summary))
    finished = [o.summary for o in outcomes if o.summary]
    if not finished:
        errors = {o.error for o in outcomes if o.error}
        raise InrilError("No trial finished. " + " ".join(sorted(errors)))
    control = next((row for row in rows.values() if row["schedule"] == CONTROL), None)
    measure = one_measure(s["final"] for s in finished)
    for key, row in rows.items():
        runs = scores.get(key, [])
        row["finished"] = len(runs)
        if runs:
            row["mean"] = vars(runs_estimate(runs, measure))
            finals = [o.summary["final"] for o in outcomes if o.summary and o.setting.key == key]
            row["other_rates"] = other_rates(finals)
        if control is not None and row is not control and runs and control["key"] in scores:
            each = [np.array([run.mean() for run in some]) for some in (runs, scores[control["key"]])]
            row["beats_control"] = vars(probability_of_improvement(*each))
    return {
        "name": sweep.name,
        "task": finished[0]["task"],
        "demos": finished[0]["demos"],
        "measure": measure.word,
        "sweep": to_dict(sweep),
        "base": {k: v for k, v in finished[0]["base"].items() if k != "outcomes"},
        "settings": list(rows.values()),
        "control": control["key"] if control else None,
        **_choice(list(rows.values()), measure),
        "failed": [
            {"label": o.setting.label, "seed": o.seed, "error": o.error} for o in outcomes if o.state == "failed"
        ],
        "seconds": sum(sum(s["seconds_by_phase"].values()) for s in finished),
    }


def _planned(sweep: SweepConfig) -> Callable[[Outcome], tuple[int, str, int]]:
    """Return what sorts outcomes as the plan has them; settings that were drawn on the way, by their values."""
    place = {setting.key: i for i, setting in enumerate(settings_of(sweep))}
    return lambda o: (
        place.get(o.setting.key, len(place)),
        json.dumps(o.setting.overrides, sort_keys=True, default=str),
        o.seed,
    )


def _trial(outcome: Outcome, directory: Path) -> dict[str, Any]:
    trial: dict[str, Any] = {
        "seed": outcome.seed,
        "state": outcome.state,
        "run": str(outcome.run_dir.relative_to(directory)),
    }
    try:
        records = read_metrics(outcome.run_dir)
    except (OSError, ValueError):
        records = []
    for name in ("rho", "conflict_rate", "il_probe_loss"):
        values = [r[name] for r in records if name in r]
        if values:
            trial[name] = float(values[-1] if name == "il_probe_loss" else np.mean(values))
    summary = outcome.summary
    if summary:
        final, counters = summary["final"], summary["counters"]
        return trial | {
            "score": final["score"],
            "env_steps": summary["env_steps"],
            "rl_updates": counters["rl_updates"],
            "il_updates": counters["il_updates"],
            "seconds": sum(summary["seconds_by_phase"].values()),
            "peak_memory_bytes": summary["peak_memory_bytes"]["sum"],
        }
    evaluations = [r for r in records if "score" in r]
    if evaluations:
        trial |= {name: evaluations[-1].get(name) for name in ("iteration", "env_steps", "score")}
    return trial


def _choice(rows: Sequence[Mapping[str, Any]], measure: Measure) -> dict[str, Any]:
    """Return the setting of the best mean, and whether it won.

    Of the settings with the most finished seeds, whose means are the least lucky, the best one is chosen; of equal
    means the first one of the plan, so that a sweep that goes on confirms the setting that it would have. It has won if
    the interval of every other setting, whatever its seeds, is below its own.
    """
    scored = [row for row in rows if row["finished"]]
    most = max(row["finished"] for row in scored)
    chosen = max((row for row in scored if row["finished"] == most), key=_mean_of)
    others = [row for row in scored if row is not chosen]
    tied = [row for row in others if row["mean"]["high"] >= chosen["mean"]["low"]]
    mean, one_seed = _said_mean(chosen["mean"], measure.unit), most < 2
    if not others:
        text = f"No other setting finished than {chosen['label']}, {mean}."
    elif tied:
        named = [row["label"] for row in tied[:MAX_NAMED]] + ["…"] * (len(tied) > MAX_NAMED)
        equal = sum(_mean_of(row) == _mean_of(chosen) for row in others)
        same = f", which {counted(equal, 'others')} reach{'es' * (equal == 1)}, too" if equal else ""
        whose = f"of {len(tied)} of {len(others)} others" if len(others) > 1 else "of the other one"
        theirs = f"the interval {whose} is" if len(tied) == 1 else f"the intervals {whose} are"
        text = (
            f"No winner: the best mean is that of {chosen['label']}, {mean}{same}, but {theirs} not below its "
            f"own ({'; '.join(named)})."
        )
    elif one_seed:
        text = f"No winner: the best is {chosen['label']}, {mean}, but at one seed, which says nothing of others."
    else:
        text = f"Winner: {chosen['label']}, {mean}; the interval of every other setting is below its own."
    won = bool(others) and not tied and not one_seed
    return {
        "chosen": chosen["key"],
        "winner": chosen["key"] if won else None,
        "tied": [row["key"] for row in tied],
        "sentence": f"At the {most} seeds of the search: {text}" if most > 1 else f"At one seed: {text}",
    }


def _mean_of(row: Mapping[str, Any]) -> float:
    return round(row["mean"]["value"], 9) if "mean" in row else -math.inf


def confirmation(result: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return how the chosen setting, and RL only beside it, did at the fresh seeds.

    Args:
        result: of :func:`gather`.
        outcomes: of the trials at ``seeds.confirm``.
    """
    scores: dict[str, dict[int, FloatArray]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.seed):
        if outcome.summary:
            scores.setdefault(outcome.setting.key, {})[outcome.seed] = outcomes_of(outcome.summary)
    chosen, control, measure = result["chosen"], result["control"], measure_of(result["base"])
    by_seed = {key: {str(seed): float(run.mean()) for seed, run in found.items()} for key, found in scores.items()}
    found: dict[str, Any] = {
        "scores": by_seed,
        "runs": {f"{o.setting.key}-{o.seed}": o.run_dir.name for o in outcomes},
        "failed": [{"label": o.setting.label, "seed": o.seed, "error": o.error} for o in outcomes if o.error],
    }
    if chosen in scores:
        found["mean"] = vars(runs_estimate(list(scores[chosen].values()), measure))
    paired = sorted(set(scores.get(chosen, {})) & set(scores.get(control, {})))
    if control != chosen and len(paired) > 1:
        labels = {row["key"]: row["label"] for row in result["settings"]}
        arms = [[scores[key][seed] for seed in paired] for key in (chosen, control)]
        found["against_control"] = judge(arms[0], arms[1], labels[chosen], labels[control], measure)
    return found


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what the command prints: all settings, whether one won, and how the chosen one held up."""
    measure = measure_of(result["base"])
    unit = measure.unit
    ranked = sorted(result["settings"], key=_mean_of, reverse=True)
    width = max(len(row["label"]) for row in ranked)
    lines = [f"Base policy: {score_text(result['base'])}. {measure.definition}".rstrip()]
    for row in ranked:
        line = f"{row['label']:{width}s}  "
        if "mean" in row:
            line += _said_mean(row["mean"], unit)
            line += f" ({rates_text(row['other_rates'])})" if row.get("other_rates") else ""
        last = [t for t in row["trials"] if t["state"] != "finished" and "score" in t]
        line += f"  {row['finished']} of {counted(len(row['trials']), 'seeds')} finished"
        if last:
            reached = (f"{100 * t['score']:.1f}{unit} at iteration {t['iteration']:.0f}" for t in last)
            line += f" (the others: {', '.join(reached)})"
        if "beats_control" in row:
            line += f", beats RL only with probability {row['beats_control']['value']:.2f}"
        lines.append(line)
    lines.append(result["sentence"])
    confirmed = result.get("confirmation")
    if confirmed and "mean" in confirmed:
        count, labels = len(confirmed["scores"][result["chosen"]]), {r["key"]: r["label"] for r in result["settings"]}
        mean = _said_mean(confirmed["mean"], unit)
        lines.append(f"{labels[result['chosen']]} at {counted(count, 'fresh seeds')}: {mean}.")
    if confirmed and "against_control" in confirmed:
        lines.append(confirmed["against_control"]["sentence"])
    failures = [*result["failed"], *(confirmed or {}).get("failed", ())]
    lines += [f"Failed and left out: {f['label']}, seed {f['seed']}: {f['error']}" for f in failures]
    return lines


def _said_mean(mean: Mapping[str, float], unit: str) -> str:
    return f"{100 * mean['value']:.1f}{unit} [{100 * mean['low']:.1f}, {100 * mean['high']:.1f}]"
