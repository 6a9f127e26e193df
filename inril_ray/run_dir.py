"""What the directory of a run holds: its configuration, its policies, its summary, and where it came from."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from inril_ray import __version__, checkpoint
from inril_ray.config import fingerprint, flat, merge, shown
from inril_ray.experiment import ExperimentConfig, build_policy, load_config, resolved, task_spec
from inril_ray.presets import check_run
from inril_ray.threads import available_cpus
from inril_ray.types import InrilError
from inril_ray.words import reason

INCIDENTAL = (
    "tracking",
    "checkpoint",
    "video",
    "compute.num_workers",
    "compute.device",
    "compute.worker_gpu",
    "compute.learner_threads",
    "compute.rollout_timeout_s",
    "compute.max_worker_restarts",
    "env.furniture.threads",
    "env.furniture.meshes",
    "env.furniture.contacts",
    "env.furniture.constraints",
    "env.furniture.warp_device",
)
"""Settings that may change when a run goes on: where and with how much it computes, is saved, drawn and tracked."""
RESUMED = ("num_iterations", "demos")
"""Those that may change when one asks for it: a run is extended; its demonstrations, known by a hash, have moved."""
LOCK, LEAVES_WITHIN_S = ".lock", 10.0
"""Time that a process which was told to end, or was killed, has to leave its run directory."""


def continues(config: ExperimentConfig, run_dir: Path) -> bool:
    """Return whether a directory holds a run of this configuration to go on with; see :data:`INCIDENTAL`.

    Raises:
        InrilError: it holds a run of another configuration; names the keys that differ.
    """
    if not has_checkpoint(run_dir):
        return False
    _check_same(run_dir, config)
    return True


def _check_same(run_dir: Path, config: ExperimentConfig) -> None:
    differing = changes(read_config(run_dir), config)
    if differing:
        raise InrilError(
            f"{run_dir} already holds a run with another {', '.join(differing)}. "
            "Take that change back, or choose another --out."
        )


def changes(before: ExperimentConfig, now: ExperimentConfig) -> list[str]:
    """Return the dotted keys in which two configurations are of different runs: all but :data:`INCIDENTAL` ones."""
    there, free = flat(resolved(before)), tuple(f"{name}." for name in INCIDENTAL)
    return [k for k, v in flat(resolved(now)).items() if v != there.get(k) and not f"{k}.".startswith(free)]


def reconfigured(run_dir: Path, layers: Sequence[Mapping[str, Any]]) -> ExperimentConfig:
    """Return the configuration of a run that goes on with other settings.

    Args:
        run_dir: of the run.
        layers: the settings.

    Raises:
        InrilError: with one of them it would be another run; names it, and what may change.
    """
    before, given = read_config(run_dir), functools.reduce(merge, layers, {})
    there = resolved(before)
    # Those decide which keys there are.
    refused = [key for key in ("task", "algorithm", "policy") if given.get(key, there[key]) != there[key]]
    config = before if refused else load_config([there, given])
    if config.demos is not None and not Path(config.demos).exists():
        raise InrilError(f"Demonstration file {config.demos}: does not exist; if it has moved: --demos FILE.")
    refused += [key for key in changes(before, config) if key not in RESUMED]
    if refused:
        raise InrilError(
            f"The run in {run_dir} can't go on with another {', '.join(refused)}; these may change: "
            f"{', '.join(RESUMED + INCIDENTAL)}."
        )
    return config


def has_checkpoint(run_dir: Path) -> bool:
    """Tell whether a run can go on."""
    return bool(checkpoint.complete(run_dir / "checkpoints"))


def finished(run_dir: Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, None of one that is not, or whose summary is damaged.

    Raises:
        InrilError: it is of another configuration.
    """
    try:
        summary = dict(json.loads((run_dir / "summary.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    _check_same(run_dir, config)
    return summary


def read_pretrained(run_dir: Path) -> dict[str, Any]:
    """Return the weights of a run's cloned policy."""
    place = run_dir / "pretrained" / "iteration_000000"
    return checkpoint.part(checkpoint.read(place), "policy", of=place)


def check_pretrained(config: ExperimentConfig) -> None:
    """Refuse to start from the cloned policy of a run of another task or with other networks.

    Raises:
        InrilError: it is none, or another; names what differs.
    """
    if config.pretrained is None:
        return
    try:
        there = read_config(Path(config.pretrained))
    except InrilError as error:
        raise InrilError(f"pretrained = {config.pretrained!r}: {error}") from None
    for key in ("task", "policy"):
        before, now = getattr(there, key), getattr(config, key)
        if before != now:
            raise InrilError(
                f"pretrained = {config.pretrained!r}: the {key} of that run is {before}, that of this one {now}."
            )
    before, now = (flat({k: resolved(c)[k] for k in ("actor", "env")}) for c in (there, config))
    differing = [f"{k} = {shown(before.get(k))} there, {shown(v)} here" for k, v in now.items() if v != before.get(k)]
    if differing and _shapes(there) != _shapes(config):
        raise InrilError(f"pretrained = {config.pretrained!r}: its networks are others ({'; '.join(differing)}).")


def _shapes(config: ExperimentConfig) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in build_policy(config, task_spec(config)).state_dict().items()}


def read_acting(run_dir: Path, folder: str) -> dict[str, Any]:
    """Return the weights of what acts in the newest intact checkpoint.

    Before the first iteration, critics that have a say in it have learned nothing: there the policy's own are returned,
    as it was evaluated.

    Args:
        run_dir: of a run.
        folder: in it, with checkpoints.
    """
    place = run_dir / folder
    saved = checkpoint.read_latest(place)[0]
    learner = checkpoint.part(saved, "backend", "learner", of=place)
    begun = checkpoint.part(saved, "session", "iteration", of=place) != 0
    if begun and isinstance(learner, dict) and isinstance(learner.get("acting"), dict) and learner["acting"]:
        return learner["acting"]
    return checkpoint.part(learner, "modules", "policy", of=place)


def read_config(run_dir: Path) -> ExperimentConfig:
    """Return the configuration that a run has now; what may change has since it was started.

    Raises:
        InrilError: the directory holds no run, or its configuration was changed.
    """
    check_run(run_dir)
    path = run_dir / "config.json"
    try:
        record = json.loads(path.read_text())
        values, told = dict(record["config"]), record.get("hash")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        values, told = _saved_config(run_dir), None
        if values is None:
            raise InrilError(
                f"{run_dir} holds no readable run: its {path.name} can't be read ({reason(error)})."
            ) from None
    if told is not None and told != fingerprint(values):
        raise InrilError(
            f"{path} was changed: its configuration does not have the hash {told}. Undo the change, or delete the file "
            "where there is a checkpoint, which has a copy; other settings are another run (--config, --out)."
        )
    return load_config([values])


def _saved_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration in a run's last intact checkpoint, None if there is none."""
    try:
        saved, _ = checkpoint.read_latest(run_dir / "checkpoints")
        return dict(saved["session"]["config"])
    except (InrilError, KeyError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def claimed(run_dir: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Keep other processes out of a run directory; the system lets go of it when this process ends, however it ends.

    The file ``.lock`` is what is locked, since NFS locks only files that are open for writing; it stays.

    Args:
        run_dir: exists.
        say: prints a line, where the file system has no locks.

    Raises:
        InrilError: another process is in it, and stays for ``LEAVES_WITHIN_S``: one that was killed is about to end.
    """
    handle, deadline = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644), time.monotonic() + LEAVES_WITHIN_S
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InrilError(
                        f"{run_dir} is in use: another process runs there. Wait for it or end it."
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                say(f"Check: {run_dir} can't be locked ({error.strerror}); start no second process there.")
                break
        yield
    finally:
        os.close(handle)


def remove_if_unused(run_dir: Path) -> None:
    """Remove the directory of a start that failed, which holds nothing but the lock."""
    with contextlib.suppress(OSError):
        if [path.name for path in run_dir.iterdir()] == [LOCK]:
            (run_dir / LOCK).unlink()
            run_dir.rmdir()


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and what a run depends on."""
    found = {"inril_ray": __version__, "python": platform.python_version()}
    for name in ("ray", "torch", "mujoco", "robosuite", "robomimic", "gymnasium", "numpy", "pyarrow", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance() -> dict[str, Any]:
    """Return versions, the commit of the source tree, and the machine."""
    return {
        "versions": versions(),
        "commit": _commit(),
        "machine": {"system": platform.platform(), "cpus": available_cpus(), "gpu": _gpu()},
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or its disk is slow
        return None
    return done.stdout.strip() or None


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping that :func:`write_json` wrote.

    Raises:
        InrilError: it can't be read, or something else is in it.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InrilError(f"{path} is damaged, or was not written by this program ({reason(error)}).") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears only when it is complete."""
    checkpoint.replace_text(path, json.dumps(value, indent=2) + "\n")
