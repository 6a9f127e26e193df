"""The ``inril`` command. Prints results and errors; everything else is in the layers below."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inril_ray import __version__
from inril_ray.terminal import Lasting, is_text, plain, print_in_any_encoding, tell_of_thread
from inril_ray.threads import limit_native_threads
from inril_ray.types import InrilError
from inril_ray.words import counted

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full."""
EPILOG = """examples:
  inril train --config demo                       the run of `make demo`
  inril train --task robomimic/lift --algorithm dppo --set interleave.every=10 --set separation=upgrad
  inril train --resume runs/RUN                   go on where a run stopped
  inril verdict --config demo --seeds 0 1 2       does interleaving help on my task?
  inril demos inspect FILE                        what is in a demonstration file?
  inril doctor                                    what is installed, what does each task need?
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        the exit status: 0 done, 1 a problem that the message explains, 2 wrong usage, 75 stopped by SIGTERM (the same
        command goes on), 130 interrupted.
    """
    limit_native_threads()
    print_in_any_encoding()
    top = parser()
    arguments = top.parse_args(argv)
    for name, value in vars(arguments).items():
        if not is_text(str(value)):
            top.error(f"{name} is {str(value)!r}, which is not UTF-8")
    before, threading.excepthook = threading.excepthook, tell_of_thread
    try:
        if arguments.command in (_train, _verdict, _sweep, _chaos):
            with contextlib.redirect_stdout(Lasting(sys.stdout)), contextlib.redirect_stderr(Lasting(sys.stderr)):
                arguments.command(arguments)
        else:
            arguments.command(arguments)
    except InrilError as error:
        print(plain(f"inril: {error}"), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno is None:  # not the system's, so it has no sentence
            raise
        where = f": {error.filename}" if error.filename else "."
        room = f" Make room; go on with: {_again(arguments)}" if error.errno in NO_SPACE else ""
        print(f"inril: {error.strerror}{where}{room}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"inril: interrupted; go on with: {_again(arguments)}", file=sys.stderr)
        return 130
    finally:
        threading.excepthook = before
    return 0


def _again(arguments: argparse.Namespace) -> str:
    """Return the command that goes on where this one stopped."""
    out = getattr(arguments, "out", None) or getattr(arguments, "resume", None)
    if out is None:
        return "the same command"
    local = " --local" if getattr(arguments, "local", False) else ""
    if arguments.command is _train and any(out.glob("checkpoints/iteration_*")):
        return f"inril train --resume {shlex.quote(str(out))}{local}"
    return f"the same command with --out {shlex.quote(str(out))}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="inril",
        description="Fine-tune behaviour-cloned robot policies with interleaved reinforcement and imitation learning.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"inril {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="clone demonstrations, then fine-tune; or resume a run")
    _add_config(train)
    place = train.add_mutually_exclusive_group()
    place.add_argument(
        "--out",
        type=Path,
        help="run directory (default: runs/TASK-ALGORITHM-SCHEDULE-sSEED-TIME); resumes a run of this configuration",
    )
    place.add_argument("--resume", type=Path, metavar="RUN", help="go on from the newest intact checkpoint of a run")
    train.add_argument("--local", action="store_true", help="one process, without Ray: for debugging")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("eval", help="measure how well a run's policy does")
    evaluate.add_argument("run", type=Path, help="run directory")
    evaluate.add_argument("--episodes", type=int, default=200)
    evaluate.add_argument(
        "--policy",
        choices=("final", "best", "base"),
        default="final",
        help="newest checkpoint, the one that the guard keeps, or the clone",
    )
    evaluate.add_argument("--backend", help="simulator, if not that of the run; the error for a wrong one lists them")
    _add_env_set(evaluate)
    evaluate.add_argument("--video", type=Path, metavar="FILE.mp4", help="also film the first episode")
    evaluate.set_defaults(command=_evaluate)

    verdict = commands.add_parser("verdict", help="does interleaving help? paired seeds, intervals, one sentence")
    _add_config(verdict)
    verdict.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="at least 3 (default: 0 to 4)")
    verdict.add_argument(
        "--out", type=Path, help="directory (default: runs/verdict-TASK-TIME); go on there if it exists"
    )
    verdict.add_argument(
        "--bc-reg",
        action="store_true",
        help="a third arm: every RL step adds the imitation loss (interleave.bc_weight)",
    )
    verdict.add_argument("--local", action="store_true", help="one process, without Ray")
    verdict.set_defaults(command=_verdict)

    sweep = commands.add_parser(
        "sweep", help="search over interleaving ratio, separation and anything else, with Ray Tune"
    )
    sweep.add_argument("file", type=Path, help="YAML file, such as tune_configs/interleaving_ratio.yaml")
    sweep.add_argument("--out", type=Path, help="directory (default: runs/sweep-NAME-TIME); go on there if it exists")
    sweep.add_argument("--max-hours", type=float, help="refuse to start where the estimate of wall time is longer")
    sweep.add_argument(
        "--local", action="store_true", help="one process for each trial, instead of learner and workers"
    )
    sweep.set_defaults(command=_sweep)

    demos = commands.add_parser("demos", help="make, inspect and convert demonstrations")
    kinds = demos.add_subparsers(required=True, metavar="ACTION")
    make = kinds.add_parser("make", help="record a script, a planner or a partly trained policy, as the task has it")
    make.add_argument("task", help="for example robomimic/lift, fetch/push, adroit/hammer, gym/hopper")
    make.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write; a new directory for fetch, adroit, furniture (NAME.zarr: ResiP's layout, else pickles)",
    )
    make.add_argument("--num", type=int, default=20, help="episodes to keep (default: 20)")
    make.add_argument("--held-out", type=int, help="of them in robomimic's mask `valid` (default: 2 of ten or more)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--max-steps", type=int, metavar="N", help="longest episode (default: the task's limit)")
    make.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="quality, such as noise=0.3, or env.semantics=v141",
    )
    make.set_defaults(command=_demos_make)
    inspect = kinds.add_parser("inspect", help="print episodes, lengths, dimensions, returns, warnings")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--task", help="also check the file against a task")
    inspect.add_argument("--filter", metavar="NAME", help="only the episodes that the file lists under NAME")
    _add_key(inspect)
    _add_env_set(inspect)
    inspect.set_defaults(command=_demos_inspect)
    convert = kinds.add_parser("convert", help="convert to one Arrow file")
    convert.add_argument(
        "file",
        type=Path,
        help="HDF5 (robomimic, D4RL), zarr or pickles (furniture), or the directory of a Minari or LeRobot set",
    )
    convert.add_argument("target", type=Path)
    convert.add_argument("--task", required=True, help="the task that the demonstrations are for")
    convert.add_argument("--filter", metavar="NAME", help="only the episodes that the file lists under NAME")
    convert.add_argument("--semantics", help="rules that the recording follows, where the file is wrong about them")
    convert.add_argument("--images", nargs="+", default=[], metavar="KEY", help="cameras to keep")
    _add_key(convert)
    _add_env_set(convert)
    convert.set_defaults(command=_demos_convert)
    download = kinds.add_parser("download", help="download public demonstrations")
    download.add_argument("task", help="for example robomimic/lift")
    download.add_argument("--variant", help="for example ph or mh; the error for a wrong one lists them")
    download.add_argument("--out", type=Path, default=Path("demos"), help="directory (default: demos)")
    download.set_defaults(command=_demos_download)

    chaos = commands.add_parser("chaos", help="kill parts of a tiny run at random moments, and tell what was lost")
    chaos.add_argument("--faults", nargs="+", metavar="FAULT", help="such as worker learner 'full disk' (default: all)")
    chaos.add_argument("--repetitions", type=int, default=1, help="of each (default: 1)")
    chaos.add_argument("--task", default="robomimic/lift")
    chaos.add_argument("--demos", help="demonstration file, for a task that ships none")
    chaos.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    chaos.add_argument("--out", type=Path, help="new directory (default: runs/chaos-TIME)")
    chaos.set_defaults(command=_chaos)

    report = commands.add_parser("report", help="write report.html of a run, a verdict or a sweep")
    report.add_argument("directory", type=Path)
    report.set_defaults(command=_report)

    doctor = commands.add_parser("doctor", help="what is installed, and what each task needs")
    doctor.set_defaults(command=_doctor)
    return top


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help="YAML file, or the name of a shipped configuration, such as demo")
    for name in ("task", "demos", "algorithm", "schedule", "separation"):
        command.add_argument(f"--{name}", help=f"short for --set {name}=…")
    command.add_argument("--seed", type=int, help="short for --set seed=…")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, for example interleave.every=10"
    )


def _add_key(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="what the file calls an observation of the task, or LeRobot's action, next.reward or next.success",
    )


def _add_env_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the task, such as env.semantics=v141"
    )


def _layers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the layers of a configuration that the command line names, whose names and keys there are."""
    from inril_ray.config import parse_overrides
    from inril_ray.presets import check_request, named_config

    layers = [named_config(arguments.config)] if arguments.config else []
    names = ("task", "demos", "algorithm", "schedule", "separation", "seed")
    layers.append({n: getattr(arguments, n) for n in names if getattr(arguments, n, None) is not None})
    layers.append(parse_overrides(arguments.set))
    try:
        check_request(layers, whole=not getattr(arguments, "resume", None))
    except InrilError as error:
        named = f" (with --config {arguments.config})" if arguments.config else ""
        raise InrilError(f"{error}{named}") from None
    return layers


def _make_backend(local: bool) -> Any:
    if local:
        from inril_ray.backend import LocalBackend

        return LocalBackend
    from inril_ray.distributed.driver import RayBackend

    return RayBackend


def _default_out(*words: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / "-".join([*(w.replace("/", "_") for w in words), stamp])


def _train(arguments: argparse.Namespace) -> None:
    from inril_ray.presets import check_run

    if arguments.resume:
        check_run(arguments.resume)
    layers = _layers(arguments)
    from inril_ray.config import fingerprint
    from inril_ray.experiment import description, load_config, resolved
    from inril_ray.run import run
    from inril_ray.run_dir import continues, reconfigured
    from inril_ray.tracking.console import phases_shown

    if arguments.resume:
        out = arguments.resume
        config = reconfigured(out, layers)
    else:
        config = load_config(layers)
        words = (config.task, config.algorithm, config.schedule, f"s{config.seed}")
        out = arguments.out = arguments.out or _default_out(*words)
    resume = bool(arguments.resume) or continues(config, out)
    make_backend = _make_backend(arguments.local)

    def begin(config: Any, demos: Any) -> Any:  # nothing is in the way of the run any more
        print(description(config))
        print(f"configuration {fingerprint(resolved(config))}, which is whole in {out / 'config.json'}", flush=True)
        if arguments.local and config.compute.mode == "pipelined":
            print("--local is one process: it collects and learns in turns, as compute.mode = 'sync' does.", flush=True)
        return make_backend(config, demos)

    with phases_shown():
        run(config, out, begin, resume=resume)
    from inril_ray.report import write_run_report

    print(f"Report: {write_run_report(out)}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from inril_ray.presets import check_run

    check_run(arguments.run)
    if arguments.episodes < 1:
        raise InrilError(f"--episodes {arguments.episodes}: at least 1 is needed.")
    if arguments.video and arguments.video.suffix != ".mp4":
        raise InrilError(f"--video {arguments.video}: an .mp4 is written.")
    from inril_ray import envs
    from inril_ray.checkpoint import complete
    from inril_ray.config import merge, nested
    from inril_ray.evaluate import evaluation_metrics
    from inril_ray.experiment import WorkerParts, acting_with, load_config, resolved, task_spec
    from inril_ray.media import config_fps, film, write_video
    from inril_ray.run_dir import read_acting, read_config, read_pretrained
    from inril_ray.session import BEST
    from inril_ray.statistics import score_text
    from inril_ray.threads import torch_threads

    config = read_config(arguments.run)
    overrides = {"env": _env_overrides(arguments)} | ({"env.backend": arguments.backend} if arguments.backend else {})
    config = load_config([merge(resolved(config), nested(overrides))])
    if arguments.policy == "best" and not complete(arguments.run / BEST):
        action = config.guard.action
        why = f": with guard.action = {action!r} none is kept" if action in ("warn", "none") else " yet"
        raise InrilError(f"--policy best: {arguments.run} has no such state{why}. Take --policy final.")
    if arguments.policy == "base":
        weights = read_pretrained(arguments.run)
    else:
        weights = read_acting(arguments.run, BEST if arguments.policy == "best" else "checkpoints")
    small = merge(resolved(config), {"rollout": {"num_envs": 1}})
    parts = WorkerParts(load_config([small]), 0, 1)
    parts.policy = acting_with(config, weights).to(parts.device)
    with torch_threads(1):
        metrics = evaluation_metrics(parts.evaluate(arguments.episodes), task_spec(config))
    result = f"{score_text(metrics)}, {counted(arguments.episodes, 'episodes')}"
    simulator = envs.entry(config.task).chosen_backend(config.env)
    print(f"{arguments.policy} policy of {arguments.run}, {simulator} simulator: {result}")
    print(json.dumps({k: round(v, 4) for k, v in metrics.items()}))
    if arguments.video:
        frames, outcome = film(config, weights, 0)
        write_video(arguments.video, frames, fps=config_fps(config))
        print(f"{arguments.video}: evaluation episode 0, {outcome}")


def _verdict(arguments: argparse.Namespace) -> None:
    from inril_ray.presets import check_seeds

    check_seeds(arguments.seeds)
    layers = _layers(arguments)
    from inril_ray.experiment import load_demos, resolved
    from inril_ray.report import write_run_report, write_verdict_report
    from inril_ray.run import run, tags
    from inril_ray.tracking.console import phases_shown
    from inril_ray.tracking.mlflow import parent_of
    from inril_ray.verdict import DEFAULT_ARMS, checked, result_lines, verdict

    arms = (*DEFAULT_ARMS, "bc_reg") if arguments.bc_reg else DEFAULT_ARMS
    config = checked(layers, arguments.seeds, arms)
    demos = load_demos(config)
    out = arguments.out = arguments.out or _default_out("verdict", config.task)
    make_backend = _make_backend(arguments.local)
    asked = {"seeds": arguments.seeds, "bc_reg": arguments.bc_reg, **resolved(config)}

    def run_one(config: Any, path: Path, resume: bool) -> dict[str, Any]:
        summary = run(config, path, make_backend, resume=resume, demos=demos, parent=out)
        write_run_report(path)
        return summary

    with phases_shown(), parent_of(out, config.tracking, asked, tags(config)) as parent:
        result = verdict(layers, out, seeds=arguments.seeds, run_one=run_one, arms=arms)
        print("\n".join(result_lines(result)))
        print(f"Report: {write_verdict_report(out)}")
        if parent is not None:
            means = {f"eval/{arm} iqm": a["iqm"]["value"] for arm, a in result["arms"].items()}
            parent.finish(means, ("verdict.json", "report.html"))


def _sweep(arguments: argparse.Namespace) -> None:
    from inril_ray.presets import sweep_values

    sweep_values(arguments.file)
    from inril_ray.report import write_sweep_report
    from inril_ray.sweep import read_sweep, result_lines
    from inril_ray.tracking.console import phases_shown

    sweep = read_sweep(arguments.file)
    out = arguments.out = arguments.out or _default_out("sweep", sweep.name)
    from inril_ray.tune import run_sweep

    with phases_shown():
        result = run_sweep(sweep, out, local=arguments.local, max_hours=arguments.max_hours)
    print("\n".join(result_lines(result)))
    print(f"Report: {write_sweep_report(out)}")


def _chaos(arguments: argparse.Namespace) -> None:
    from inril_ray.presets import check_faults, check_request

    if arguments.faults:
        check_faults(arguments.faults)
    check_request([{"task": arguments.task, "demos": arguments.demos}])
    from inril_ray.chaos import FAULTS, TINY, chaos
    from inril_ray.experiment import load_config

    config = load_config([TINY, {"task": arguments.task, "demos": arguments.demos}])
    out = arguments.out or _default_out("chaos")
    reports = chaos(config, out, arguments.faults or FAULTS, arguments.repetitions, arguments.seed)
    failed = sum(not report.passed for report in reports)
    if failed:
        raise InrilError(f"{failed} of {len(reports)} drills failed; see {out / 'chaos.json'}.")
    print(f"All {len(reports)} drills passed: {out / 'chaos.json'}")


def _demos_make(arguments: argparse.Namespace) -> None:
    from inril_ray.config import build, parse_overrides
    from inril_ray.envs.base import EnvConfig
    from inril_ray.record import can_hold_out, record

    held_out = arguments.held_out
    if held_out is None:
        held_out = 2 if can_hold_out(arguments.task) and arguments.num >= 10 else 0
    quality = parse_overrides(arguments.set)
    options = build(EnvConfig, _env_section(quality.pop("env", {})), "env")
    result = record(
        arguments.task,
        arguments.out,
        num_demos=arguments.num,
        seed=arguments.seed,
        held_out=held_out,
        quality=quality,
        max_steps=arguments.max_steps,
        config=options,
    )
    line = (
        f"{arguments.out}: {counted(arguments.num, 'episodes')}, mean length "
        f"{result['mean_length']:.0f} steps, mean return {result['mean_return']:.1f}"
    )
    if "demonstrator_success_rate" in result:
        line += (
            f"; the demonstrator succeeded in {100 * result['demonstrator_success_rate']:.0f} % of "
            f"{result['episodes_tried']:.0f}"
        )
    print(f"{line}.")


def _env_section(values: Any) -> dict[str, Any]:
    """Return what ``--set`` says of the task, which has to be said key by key."""
    from inril_ray.config import shown

    if not isinstance(values, dict):
        raise InrilError(f"--set env={shown(values)}: a key is missing, such as env.semantics.")
    return values


def _env_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says of the task."""
    from inril_ray.config import parse_overrides

    overrides = parse_overrides(arguments.set)
    if set(overrides) - {"env"}:
        raise InrilError(
            f"--set: only env. keys, such as env.semantics=v141, are for here, not {', '.join(overrides)}."
        )
    return _env_section(overrides.get("env", {}))


def _expectation(arguments: argparse.Namespace) -> Any:
    """Return what the task expects; None without one, which has no options either."""
    from inril_ray import envs
    from inril_ray.config import build
    from inril_ray.demos.episodes import Expectation
    from inril_ray.demos.semantics import recordable
    from inril_ray.envs.base import EnvConfig

    options = build(EnvConfig, _env_overrides(arguments), "env")
    if not arguments.task:
        if arguments.set:
            raise InrilError(f"--set {' '.join(arguments.set)}: options are those of a task; name it with --task.")
        return None
    spec, rules = envs.spec(arguments.task, options), getattr(arguments, "semantics", None)
    if rules is not None and rules not in (choices := recordable(envs.entry(arguments.task).semantics)):
        known = (
            f"is recorded by the rules {' or '.join(choices)}" if choices else "has no rules to choose; leave it out"
        )
        raise InrilError(f"--semantics {rules}: {arguments.task} {known}.")
    return Expectation.of(spec, rules)


def _names(pairs: list[str]) -> dict[str, str]:
    """Return keys with their names in a file, of texts ``KEY=NAME``.

    Raises:
        InrilError: a text is something else, or a key comes twice.
    """
    split = [pair.partition("=") for pair in pairs]
    names = {key: name for key, _, name in split}
    if len(names) < len(split) or not all(key and name for key, name in names.items()):
        raise InrilError(f"--key {' '.join(pairs)}: give each key once, as KEY=NAME, such as action=actions.")
    return names


def _demos_inspect(arguments: argparse.Namespace) -> None:
    from inril_ray.demos.episodes import Selection
    from inril_ray.demos.store import load
    from inril_ray.demos.summary import summary_lines

    expectation = _expectation(arguments)
    arrays = load(arguments.file, expectation, Selection(filter=arguments.filter, names=_names(arguments.key)))
    expected = expectation.interface if expectation else None
    print(plain("\n".join(summary_lines(arguments.file, arrays, expected))))


def _demos_convert(arguments: argparse.Namespace) -> None:
    from inril_ray.demos.episodes import Selection
    from inril_ray.demos.store import convert

    names = _names(arguments.key)
    selection = Selection(filter=arguments.filter, images=tuple(arguments.images), names=names)
    arrays = convert(arguments.file, arguments.target, _expectation(arguments), selection)
    size = f"{counted(len(arrays.held_out), 'episodes')}, {counted(len(arrays.obs), 'steps')}"
    print(f"{arguments.target}: {size}, {arrays.size_bytes()} bytes")
    for warning in arrays.info.metadata.get("warnings", ()):
        print(plain(f"warning: {warning}"))


def _demos_download(arguments: argparse.Namespace) -> None:
    from inril_ray.demos.download import download, source

    file = download(source(arguments.task, arguments.variant), arguments.out)
    rules = " --set env.semantics=v141" if file.stem.endswith("v141") else ""
    print(f"Use it: inril train --task {arguments.task} --demos {file}{rules}")


def _report(arguments: argparse.Namespace) -> None:
    if not arguments.directory.is_dir():
        what = "is a file" if arguments.directory.exists() else "is not there"
        raise InrilError(f"{arguments.directory} {what}; give the directory of a run, a verdict or a sweep.")
    from inril_ray.report import write_run_report, write_sweep_report, write_verdict_report

    writers = {"sweep.json": write_sweep_report, "verdict.json": write_verdict_report}
    write = next((w for name, w in writers.items() if (arguments.directory / name).is_file()), write_run_report)
    print(f"Report: {write(arguments.directory)}")


def _doctor(_: argparse.Namespace) -> None:
    from inril_ray.doctor import examine

    print("\n".join(examine()))


if __name__ == "__main__":
    sys.exit(main())
