"""Sweeps on Ray Tune: each trial is a whole run in a placement group of its own.

A trial's directory is named by its setting and seed, so whatever a sweep was doing when it stopped, what is finished is
not run again and what is not goes on from its last checkpoint. Trials of a node read one copy of the demonstrations.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

from inril_ray import checkpoint
from inril_ray.backend import LocalBackend
from inril_ray.card import write_card
from inril_ray.config import fingerprint, merge, to_dict
from inril_ray.demos.store import DemoArrays
from inril_ray.distributed.demo_service import DemoService, fetch
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import ExperimentConfig, load_config, load_demos, resolved
from inril_ray.metrics import Ended
from inril_ray.run import run, tags
from inril_ray.run_dir import claimed, continues, finished, has_checkpoint, provenance, read_json, write_json
from inril_ray.sweep import (
    Between,
    Outcome,
    Setting,
    SweepConfig,
    base_config,
    base_key,
    confirmation,
    gather,
    located,
    plan_hash,
    settings_of,
    trial_config,
)
from inril_ray.tracking.mlflow import parent_of
from inril_ray.tune.deaths import death_text, survived
from inril_ray.tune.estimate import connect, estimate_lines, estimated, placement
from inril_ray.types import InrilError

REPEAT = "__trial_index__"
"""Where Tune's repeater says which repeat of a setting a trial is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every trial is told."""

    sweep: SweepConfig
    directory: Path
    local: bool
    bases: Mapping[str, Path]
    demos: Mapping[str, list[Any]]
    """Key of demonstrations to the handle of this cluster's one copy."""


class TuneTracker:
    """Reports evaluations to Tune, whose schedulers decide by them.

    Args:
        checkpoints: directory of the run's checkpoints, where they go along; None: they don't.
    """

    def __init__(self, checkpoints: Path | None) -> None:
        self._checkpoints = checkpoints

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Report an evaluation; other metrics stay with the run."""
        if "score" not in metrics:
            return
        saved = None
        if self._checkpoints is not None:
            saved = tune.Checkpoint.from_directory(str(checkpoint.newest(self._checkpoints)))
        tune.report({**metrics, "env_steps": step}, checkpoint=saved)

    def close(self, ended: Ended = "finished") -> None:
        """Nothing is open."""


def run_sweep(
    sweep: SweepConfig,
    directory: Path,
    *,
    local: bool,
    max_hours: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a sweep to its end, or go on with one that was interrupted.

    Args:
        sweep: the plan.
        directory: where everything goes.
        local: learner and environments of a trial share one process.
        max_hours: refuse to start where the estimate exceeds so many hours of wall time.
        say: prints a line.

    Returns:
        what ``sweep.json`` holds.

    Raises:
        InrilError: the directory is of another sweep, the estimate exceeds ``max_hours``, or no trial finished.
    """
    plain = to_dict(sweep)
    plan_file = directory / "plan.json"
    plan, identity = read_json(plan_file) if plan_file.is_file() else {}, plan_hash(sweep)
    if plan and plan.get("hash") != identity:
        changed = f" (its plan, or {sweep.config}, was another)" if sweep.config else ""
        raise InrilError(f"{directory} holds another sweep{changed}; choose another --out.")
    sweep = located(sweep)
    settings = settings_of(sweep)
    # What these two draw starts from one policy; `check` sees to it.
    drawn = [Setting(overrides=_first_point(sweep))] if sweep.method in ("optuna", "pbt") else []
    starts = [*drawn, *settings]
    example = trial_config(sweep, starts[0], sweep.seeds.search[0])
    connect(example, local)
    services: dict[str, DemoService] = {}
    for setting in starts:
        config = trial_config(sweep, setting, sweep.seeds.search[0])
        if demo_key(config) not in services:
            services[demo_key(config)] = DemoService(load_demos(config))
    directory.mkdir(parents=True, exist_ok=True)
    with claimed(directory, say), contextlib.ExitStack() as closing:
        estimate = plan.get("estimate")
        if estimate is None:
            estimate = estimated(sweep, example, services[demo_key(example)], local)
        for line in estimate_lines(estimate):
            say(line)
        if max_hours is not None and estimate["wall_hours"] > max_hours:
            raise InrilError(
                f"--max-hours {max_hours:g}: the estimate is {estimate['wall_hours']:.2f} hours. Lower num_iterations, "
                "settings or seeds, or give the cluster more CPUs."
            )
        write_json(plan_file, {"sweep": plain, "hash": identity, "estimate": estimate})
        parent = closing.enter_context(parent_of(directory, example.tracking, plain, tags(example)))
        bases = {}
        for setting in starts:
            handle = services[demo_key(trial_config(sweep, setting, sweep.seeds.search[0]))].handle
            key = base_key(sweep, setting)
            bases[key] = directory / "bases" / key
            if not (bases[key] / "summary.json").is_file():
                say(f"--- cloning the policy that {'every trial' if len(bases) == 1 else key} starts from")
                own = base_config(sweep, setting)
                resume = has_checkpoint(bases[key])
                backend, arrays = _backend(local, handle), fetch(handle)
                run(
                    own,
                    bases[key],
                    backend,
                    resume=resume,
                    demos=arrays,
                    name=f"cloned policy {key}",
                    parent=directory,
                    say=lambda _: None,
                )
        plan = Plan(
            sweep=sweep,
            directory=directory.resolve(),
            local=local,
            bases={key: path.resolve() for key, path in bases.items()},
            demos={key: service.handle for key, service in services.items()},
        )
        outcomes = _search(plan, settings, example, say)
        result = gather(sweep, outcomes, directory.resolve())
        result |= {"estimate": estimate, "demo_store": _store_figures(services), **provenance()}
        write_json(directory / "sweep.json", result)
        ended = {o.run_dir: o.state for o in outcomes if o.state != "finished"}
        if sweep.seeds.confirm:
            keys = dict.fromkeys(k for k in (result["chosen"], result["control"]) if k)
            chosen = [Setting(overrides=r["overrides"]) for k in keys for r in result["settings"] if r["key"] == k]
            say(f"--- confirming {' and '.join(s.label for s in chosen)} at fresh seeds")
            outcomes = _confirm(plan, chosen, example, say)
            result["confirmation"] = confirmation(result, outcomes)
            write_json(directory / "sweep.json", result)
        _write_chosen(result, directory, say)
        if parent is not None:
            scores = {row["label"]: row["mean"]["value"] for row in result["settings"] if "mean" in row}
            parent.finish(
                {_metric_name(label): value for label, value in scores.items()},
                ("plan.json", "sweep.json", "chosen"),
                ended,
            )
            about = {
                "task": result["task"],
                "setting": next(r["label"] for r in result["settings"] if r["key"] == result["chosen"]),
            }
            say(f"MLflow: {parent.register(f'inril-{sweep.name}', 'chosen', about)}")
        return result


def _write_chosen(result: Mapping[str, Any], directory: Path, say: Callable[[str], None]) -> None:
    """Write the card of the best run of the chosen setting."""
    row = next(r for r in result["settings"] if r["key"] == result["chosen"])
    best = max((t for t in row["trials"] if t["state"] == "finished"), key=lambda t: t["score"])
    evaluations = {
        "Setting": f"{row['label']}; the best of {row['finished']} seeds of it, of {len(result['settings'])} settings",
        "Search": result["sentence"],
    }
    confirmed = result.get("confirmation") or {}
    if "mean" in confirmed:
        count = len(confirmed["scores"][row["key"]])
        mean, low, high = (f"{100 * confirmed['mean'][name]:.1f}" for name in ("value", "low", "high"))
        evaluations["Same setting, fresh seeds"] = (
            f"{result['measure']} {mean} [{low}, {high}] in the mean of {count} other runs"
        )
    card = write_card(directory / "chosen", directory / best["run"], evaluations=evaluations)
    say(f"Policy card of {row['label']}: {card}")


def _metric_name(label: str) -> str:
    """Return a label as MLflow takes names."""
    return "eval/score " + re.sub(r"[^\w ./-]", "", label.replace(" = ", " "))


# -- a trial ----------------------------------------------------------------------------------------------------------
def trial(values: Mapping[str, Any], plan: Plan, points: Sequence[Mapping[str, Any]]) -> None:
    """Run one trial in the process that Tune gives it, and its actors in the trial's placement group.

    Args:
        values: Tune's: ``point`` and ``seed``, or the drawn keys with the number of the repeat.
        plan: of the sweep.
        points: settings that are known beforehand.
    """
    setting, seed = _setting_of(values, plan, points)
    base = plan.bases[base_key(plan.sweep, setting)]
    config = trial_config(plan.sweep, setting, seed, pretrained=base)
    pbt = plan.sweep.method == "pbt"
    if pbt:  # a checkpoint for each evaluation, since the weak go on from those of the strong
        # Nor does the guard evaluate in between: exploitation is what takes care of members that collapse.
        own = {"checkpoint": {"every": config.evaluation.every}, "guard": {"action": "none", "kl_limit": None}}
        config = load_config([merge(resolved(config), own)])
    donor = tune.get_checkpoint() if pbt else None
    path = _run_dir(plan, setting, seed, new=donor is not None)
    if donor is not None:
        _adopt(donor, path)
    reporter = TuneTracker(path / "checkpoints" if pbt else None)
    summary = None if pbt else finished(path, config)
    if summary is not None:  # Tune was stopped before it took note of the end
        last = {k: v for k, v in summary["final"].items() if k != "outcomes"}
        reporter.log({**last, "iteration": summary["iterations"]}, summary["env_steps"])
        return
    handle = plan.demos[demo_key(config)]
    run(
        config,
        path,
        _backend(plan.local, handle),
        resume=has_checkpoint(path) if pbt else continues(config, path),
        demos=fetch(handle),
        name=None if pbt else f"{setting.label}, seed {seed}",
        parent=plan.directory,
        trackers=[reporter],
        say=logging.getLogger(__name__).info,
    )


def _setting_of(values: Mapping[str, Any], plan: Plan, points: Sequence[Mapping[str, Any]]) -> tuple[Setting, int]:
    if "point" in values:
        return Setting(overrides=dict(points[values["point"]])), values["seed"]
    drawn = {key: value for key, value in values.items() if key in plan.sweep.space}
    seed = plan.sweep.seeds.search[values[REPEAT]] if REPEAT in values else values["seed"]
    return Setting(overrides=drawn), seed


def _run_dir(plan: Plan, setting: Setting, seed: int, *, new: bool = False) -> Path:
    """Return the directory of a trial; of a population's member, the one of its last life.

    Args:
        plan: of the sweep.
        setting: what a member is changes on its way; its seed does not.
        seed: of the trial.
        new: a member takes over another's checkpoint. Its former life may not have ended yet, so it gets a directory.
    """
    trials = plan.directory / "trials"
    if plan.sweep.method != "pbt":
        return trials / f"{setting.key}-seed{seed}"
    lives = len(list(trials.glob(f"member{seed}-life*")))
    return trials / f"member{seed}-life{max(lives - (not new), 0)}"


def _adopt(donor: Any, path: Path) -> None:
    """Go on from a checkpoint that Tune hands over: of a stronger member, or of one's own after a failure."""
    with donor.as_directory() as source:
        tree = checkpoint.read(Path(source))
        checkpoint.adopt(Path(source), path / "checkpoints", tree["session"]["iteration"])


def _backend(local: bool, handle: list[Any]) -> Callable[[ExperimentConfig, DemoArrays], Any]:
    return LocalBackend if local else lambda config, _: RayBackend(config, handle)


# -- search -----------------------------------------------------------------------------------------------------------
def _search(plan: Plan, settings: Sequence[Setting], example: ExperimentConfig, say: Callable[[str], None]) -> Any:
    """Run all trials of the search; return their outcomes."""
    sweep, seeds = plan.sweep, plan.sweep.seeds.search
    points = [setting.overrides for setting in settings]
    known: dict[str, Any] = {"point": tune.grid_search(list(range(len(points)))), "seed": tune.grid_search(list(seeds))}
    space, algorithm, samples = known, None, 1
    if sweep.method == "optuna":
        from ray.tune.search import Repeater
        from ray.tune.search.optuna import OptunaSearch

        space, samples = _domains(sweep), sweep.num_samples * len(seeds)
        algorithm = Repeater(OptunaSearch(metric="score", mode="max", seed=0), repeat=len(seeds))
    elif sweep.method == "pbt":
        space = {**_domains(sweep), "seed": tune.grid_search(list(range(sweep.num_samples)))}
    outcomes = _fit(plan, "search", space, points, example, say, scheduler=True, algorithm=algorithm, samples=samples)
    if sweep.method == "optuna" and points:
        outcomes += _fit(plan, "arms", known, points, example, say)
    return outcomes


def _confirm(plan: Plan, chosen: Sequence[Setting], example: ExperimentConfig, say: Callable[[str], None]) -> Any:
    points, seeds = [setting.overrides for setting in chosen], list(plan.sweep.seeds.confirm)
    space = {"point": tune.grid_search(list(range(len(points)))), "seed": tune.grid_search(seeds)}
    # Tune's records know settings by their place in this list: another list must not find them.
    return _fit(plan, f"confirm-{fingerprint({'points': points})[:8]}", space, points, example, say)


def _fit(
    plan: Plan,
    name: str,
    space: dict[str, Any],
    points: Sequence[Mapping[str, Any]],
    example: ExperimentConfig,
    say: Callable[[str], None],
    *,
    scheduler: bool = False,
    algorithm: Any = None,
    samples: int = 1,
) -> list[Outcome]:
    """Run trials, or go on with those that an interrupted sweep left; return the outcome of each."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # every run writes its own records
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # with tracebacks; `Progress` says why a trial failed
    made = tune.with_resources(
        tune.with_parameters(trial, plan=plan, points=list(points)), placement(example, plan.local)
    )
    storage = plan.directory / "tune"
    if tune.Tuner.can_restore(str(storage / name)):
        tuner = tune.Tuner.restore(str(storage / name), made, resume_errored=True, param_space=space)
        say(f"Goes on with what {storage / name} has recorded.")
    else:
        tuner = tune.Tuner(
            made,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=samples,
                scheduler=_scheduler(plan.sweep, example) if scheduler else None,
                search_alg=algorithm,
                # A process imports the simulators once for all its trials; actors of a trial go with its process.
                reuse_actors=plan.local,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=plan.sweep.retries),
                callbacks=[Progress(plan, points), JsonLoggerCallback()],  # what `fit` reads its results from
            ),
        )
    outcomes = []
    with survived():
        results = tuner.fit()
    for result in results:
        setting, seed = _setting_of(result.config or {}, plan, points)
        path = _run_dir(plan, setting, seed)
        error = None if result.error is None else death_text(result.error)
        outcomes.append(Outcome(setting=setting, seed=seed, run_dir=path, error=error))
    return outcomes


class Progress(tune.Callback):
    """Prints a line for each trial that ends."""

    def __init__(self, plan: Plan, points: Sequence[Mapping[str, Any]]) -> None:
        self._plan, self._points = plan, points

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print what it reached."""
        last = trial.last_result or {}
        reached = (
            f"score {100 * last['score']:.1f} at iteration {last['iteration']:.0f}" if "score" in last else "ended"
        )
        self._say(trials, trial, reached)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that it failed."""
        self._say(trials, trial, f"failed. {_reason(trial)}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that it failed and is tried again."""
        failures, retries = trial.run_metadata.num_failures, self._plan.sweep.retries
        self._say(trials, trial, f"tried again, {failures} of {retries} times. {_reason(trial)}", ended=False)

    def _say(self, trials: list[Any], trial: Any, what: str, *, ended: bool = True) -> None:
        setting, seed = _setting_of(trial.config, self._plan, self._points)
        # Tune marks one that ended as such only afterwards.
        done = sum(t.is_finished() or (ended and t.trial_id == trial.trial_id) for t in trials)
        print(f"{done}/{len(trials)}  {setting.label}, seed {seed}: {what}", flush=True)


def _reason(trial: Any) -> str:
    """Return why a trial failed last, from the file that Tune has just written."""
    try:
        return death_text(cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()))
    except (OSError, TypeError):  # Tune keeps no file of some errors
        return ""


def _scheduler(sweep: SweepConfig, example: ExperimentConfig) -> Any:
    interval = example.evaluation.every
    if sweep.method == "pbt":
        return PopulationBasedTraining(
            time_attr="iteration",
            perturbation_interval=interval,
            hyperparam_mutations={key: _domain(values) for key, values in sweep.space.items()},
        )
    if sweep.early_stopping == "asha":
        return ASHAScheduler(
            time_attr="iteration", grace_period=interval, max_t=example.num_iterations + 1, reduction_factor=3
        )
    return None


def _domains(sweep: SweepConfig) -> dict[str, Any]:
    return {key: _domain(values) for key, values in sweep.space.items()}


def _domain(values: list[Any] | Between) -> Any:
    if isinstance(values, list):
        return tune.choice(values)
    if values.integer:
        return (tune.lograndint if values.log else tune.randint)(int(values.low), int(values.high) + 1)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def demo_key(config: ExperimentConfig) -> str:
    """Return a name that trials share which read the same demonstrations."""
    values = resolved(config)
    return fingerprint({key: values[key] for key in ("task", "demos", "env")})[:8]


def _store_figures(services: Mapping[str, DemoService]) -> dict[str, int]:
    return {"copies_per_node": len(services), "bytes": sum(s.size_bytes for s in services.values())}


def _first_point(sweep: SweepConfig) -> dict[str, Any]:
    return {key: values[0] if isinstance(values, list) else values.low for key, values in sweep.space.items()}
