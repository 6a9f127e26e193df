"""What the directory of a run holds: its configuration, its policies, its summary, and where it came from."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from inril_ray import __version__, checkpoint
from inril_ray.experiment import ExperimentConfig, load_config, resolved
from inril_ray.threads import available_cpus
from inril_ray.types import InrilError


def continues(config: ExperimentConfig, run_dir: Path) -> bool:
    """Return whether a directory holds a run of this configuration to go on with; it may be tracked elsewhere.

    Raises:
        InrilError: it holds a run of another configuration; names the keys that differ.
    """
    if not has_checkpoint(run_dir):
        return False
    there, wanted = resolved(read_config(run_dir)), resolved(config)
    differing = [key for key in wanted if key != "tracking" and wanted[key] != there.get(key)]
    if differing:
        raise InrilError(
            f"{run_dir} already holds a run with another {', '.join(differing)}. "
            f"Go on with it by --resume {run_dir}, or choose another --out."
        )
    return True


def has_checkpoint(run_dir: Path) -> bool:
    """Tell whether a run can go on."""
    return bool(checkpoint.complete(run_dir / "checkpoints"))


def finished(run_dir: Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, None of one that is not.

    Raises:
        InrilError: it is of another configuration.
    """
    file = run_dir / "summary.json"
    if not file.is_file():
        return None
    summary = json.loads(file.read_text())
    # Not by the hash: a release may add keys, and where a run is tracked does not change it.
    there, wanted = ({k: v for k, v in resolved(c).items() if k != "tracking"} for c in (read_config(run_dir), config))
    if there != wanted:
        raise InrilError(f"{run_dir} holds a run of another configuration; choose another --out.")
    return summary


def read_pretrained(run_dir: Path) -> dict[str, Any]:
    """Return the weights of a run's cloned policy."""
    return checkpoint.read(run_dir / "pretrained" / "iteration_000000")["policy"]


def read_config(run_dir: Path) -> ExperimentConfig:
    """Return the configuration that a run was started with.

    Raises:
        InrilError: the directory holds no run, or its configuration is damaged.
    """
    path = run_dir / "config.json"
    try:
        values = dict(json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InrilError(f"{run_dir} holds no readable run: {path.name} ({error!r}).") from None
    return load_config([values])


def read_versions(run_dir: Path) -> dict[str, str]:
    """Return the versions of packages that a run was last started with; none if it does not say."""
    try:
        return dict(json.loads((run_dir / "config.json").read_text())["versions"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def provenance() -> dict[str, Any]:
    """Return versions, the commit of the source tree, and the machine."""
    packages = ("ray", "torch", "mujoco", "robosuite", "robomimic", "gymnasium", "numpy", "pyarrow", "mlflow")
    versions = {"inril_ray": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    source = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": versions,
        "commit": git.stdout.strip() or None,
        "machine": {"system": platform.platform(), "cpus": available_cpus(), "gpu": _gpu()},
    }


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears only when it is complete."""
    checkpoint.replace_text(path, json.dumps(value, indent=2) + "\n")
