"""A run from demonstrations to summary, in one process or through a cluster.

:func:`run` pre-trains, evaluates, iterates, checkpoints and evaluates again. It talks to a
:class:`inril_ray.backend.Backend`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inril_ray import checkpoint, health
from inril_ray.backend import Backend
from inril_ray.config import fingerprint
from inril_ray.demos.store import DemoArrays, DemoInfo
from inril_ray.experiment import ExperimentConfig, load_demos, resolved
from inril_ray.metrics import Ended, Tracker
from inril_ray.registry import resolve
from inril_ray.run_dir import check_pretrained, claimed, provenance, remove_if_unused, write_json
from inril_ray.session import STOPPED, Session, StopRequest
from inril_ray.terminal import plain
from inril_ray.tracking import TRACKERS
from inril_ray.tracking.base import TrackerContext
from inril_ray.tracking.jsonl import FILE, damaged_lines, drop_after, drop_final, last_evaluation
from inril_ray.types import InrilError
from inril_ray.words import counted


def run(
    config: ExperimentConfig,
    run_dir: Path,
    make_backend: Callable[[ExperimentConfig, DemoArrays], Backend],
    *,
    resume: bool = False,
    demos: DemoArrays | None = None,
    name: str | None = None,
    parent: Path | None = None,
    trackers: Sequence[Tracker] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run an experiment from demonstrations to summary.

    Args:
        config: of the run.
        run_dir: where everything goes; must be new unless resuming.
        make_backend: makes the parts.
        resume: go on from the newest intact checkpoint in ``run_dir``.
        demos: where they are in memory already; otherwise they are loaded from the configured file.
        name: of the run in trackers; None: that of the directory.
        parent: directory of the sweep or verdict that the run is part of.
        trackers: further ones, beside those of the configuration.
        say: prints a line.

    Returns:
        what ``summary.json`` holds.

    Raises:
        InrilError: see the parts.
        SystemExit: SIGTERM stopped the run; see :class:`StopRequest`.
    """
    if not resume:
        check_pretrained(config)
    demos = load_demos(config) if demos is None else demos

    def tell(text: str) -> None:  # some of it comes from files
        say(plain(text))

    for warning in demos.info.metadata.get("warnings", ()):
        tell(f"Demonstrations: {warning}")
    run_dir.mkdir(parents=True, exist_ok=True)
    with claimed(run_dir, tell):
        try:
            return _run(config, run_dir, make_backend, resume, demos, name or run_dir.name, parent, trackers, tell)
        finally:
            remove_if_unused(run_dir)


def _run(
    config: ExperimentConfig,
    run_dir: Path,
    make_backend: Callable[[ExperimentConfig, DemoArrays], Backend],
    resume: bool,
    demos: DemoArrays,
    name: str,
    parent: Path | None,
    trackers: Sequence[Tracker],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """See :func:`run`; the directory is ours."""
    values = resolved(config)
    if not resume and checkpoint.complete(run_dir / "checkpoints"):
        raise InrilError(
            f"{run_dir} already holds a run. Go on with it by --resume {run_dir}, or choose another --out."
        )
    try:
        saved, warnings = checkpoint.read_latest(run_dir / "checkpoints") if resume else (None, [])
    except InrilError as error:
        raise InrilError(f"{error}\nChoose another --out to start anew.") from None
    for warning in warnings:
        say(f"Passed over: {warning}")
    origin, evaluated = provenance(), {}
    findings = health.machine(run_dir)
    if saved is not None:
        reached = checkpoint.part(saved, "session", "iteration", of=run_dir)
        if isinstance(reached, int) and reached > config.num_iterations:
            raise InrilError(f"num_iterations = {config.num_iterations}: {run_dir} is at iteration {reached} already.")
        evaluated = last_evaluation(run_dir, reached) if isinstance(reached, int) else {}
        before = saved["session"].get("versions")
        findings += health.versions(before if isinstance(before, dict) else {}, origin["versions"])
    about = {"config": values, "hash": fingerprint(values), **origin, "demos": dataclasses.asdict(demos.info)}
    active: list[Tracker] = []
    ended: Ended = "failed"
    closing = contextlib.ExitStack()
    try:
        with StopRequest() as stop:
            found = tags(config, demos.info, origin["commit"])
            # First: a server may not be there, and Ray takes its time to start.
            for tracker in _trackers(config, run_dir, values, name, found, demos.info, evaluated, parent):
                active.append(tracker)  # noqa: PERF402 - one by one, so that those before it are closed
            backend = make_backend(config, demos)
            closing.callback(backend.close)
            session = Session(config, run_dir, backend, active, say)
            active += [*backend.trackers(run_dir.name), *trackers]
            session.check(findings)
            if saved is None:
                write_json(run_dir / "config.json", about)
                session.begin()
            else:
                session.restore(saved)
                write_json(run_dir / "config.json", about)  # not before: what it can't go on with changes nothing
                if damaged := damaged_lines(run_dir):
                    say(f"Check: {counted(damaged, 'lines')} of {FILE} left out, unreadable; the run itself is whole.")
                # A kill may have come before the record of iteration 0, which can be made again; later ones are written
                # before their checkpoint.
                drop_after(run_dir, session.iteration or -1)
                if session.iteration == config.num_iterations or session.collapsed:
                    drop_final(run_dir, session.iteration)
                (run_dir / "summary.json").unlink(missing_ok=True)  # of a shorter run, which goes on
            stop.saves = True
            if session.iteration == 0:
                session.log_base()
            session.iterate(stop)
            summary = session.finish(demos)
            ended = "finished"
            return summary
    except KeyboardInterrupt:
        ended = "stopped"
        raise
    except SystemExit:  # while Ray starts, its own handler is there, which has other numbers
        ended = "stopped"
        say(f"Stopped by SIGTERM. The same command goes on with {run_dir}.")
        raise SystemExit(STOPPED) from None
    finally:
        with closing:
            for tracker in reversed(active):
                closing.callback(tracker.close, ended)


def _trackers(
    config: ExperimentConfig,
    run_dir: Path,
    values: Mapping[str, Any],
    name: str,
    found_by: Mapping[str, str],
    demos: DemoInfo,
    evaluated: Mapping[str, float],
    parent: Path | None,
) -> Iterator[Tracker]:
    context = TrackerContext(
        run_dir=run_dir,
        name=name,
        config=values,
        num_iterations=config.num_iterations,
        mlflow_uri=config.tracking.mlflow_uri,
        mlflow_experiment=config.tracking.mlflow_experiment,
        tags=found_by,
        demos=demos,
        evaluated=evaluated,
        parent=parent,
    )
    for tracker in config.tracking.trackers:
        yield resolve(TRACKERS, tracker, "tracker")(context)


def tags(config: ExperimentConfig, demos: DemoInfo | None = None, commit: str | None = None) -> dict[str, str]:
    """Return what trackers find a run, a sweep or a verdict by.

    Args:
        config: of the run, or of one of several.
        demos: its demonstrations, where there is one set of them.
        commit: of the source tree; None asks git.
    """
    found = {"task": config.task, "algorithm": config.algorithm}
    if demos is not None:
        found["demos"] = demos.source_file
    commit = commit or provenance()["commit"]
    return found | ({"commit": commit} if commit else {})
