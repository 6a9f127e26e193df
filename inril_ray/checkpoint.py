"""Checkpoints: complete, verified, and never half-written.

A checkpoint is a directory: ``tensors.safetensors`` (networks, optimisers, random states, environment states),
``state.json`` (everything that is not an array), ``manifest.json`` (format version and SHA-256 of both). It is written
beside its place and renamed, so a directory with that name is complete. Loading runs no code from the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from inril_ray.types import InrilError
from inril_ray.words import reason

FORMAT_VERSION = 1
NAME = re.compile(r"^iteration_(\d{6,})$")
ARRAY_KEY = "__array__"


def write(root: Path, iteration: int, tree: dict[str, Any], keep: int) -> Path:
    """Write ``tree`` as the checkpoint of an iteration, delete later ones and all but ``keep`` up to it.

    Args:
        root: directory of a run's checkpoints.
        iteration: iterations finished.
        tree: nested dicts and lists of plain values, numpy arrays and tensors.
        keep: complete checkpoints to keep, at least 1.

    Raises:
        InrilError: the disk refuses; nothing is left of the attempt.
    """
    final = root / f"iteration_{iteration:06d}"
    partial = root / f".{final.name}.partial"
    arrays: dict[str, np.ndarray] = {}
    plain = _split(tree, arrays)
    try:
        for left in root.glob(".iteration_*.partial"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(arrays, partial / "tensors.safetensors")
        (partial / "state.json").write_text(json.dumps(plain))
        hashes = {name: _sha256(partial / name) for name in ("tensors.safetensors", "state.json")}
        (partial / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "sha256": hashes}))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(root)  # before older ones are deleted
    except (OSError, SafetensorError) as error:
        raise InrilError(
            f"Cannot write checkpoint {final}: {reason(error)}. Make room; the run goes on from the checkpoint before."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for other in complete(root):
        # Later ones are of a run that was resumed from an earlier checkpoint, and are now history that never was.
        if other > iteration or other in [k for k in complete(root) if k <= iteration][:-keep]:
            shutil.rmtree(root / f"iteration_{other:06d}", ignore_errors=True)
    return final


def replace_text(path: Path, text: str) -> None:
    """Write a file that appears, or takes the place of another, only when it is complete.

    Raises:
        OSError: the disk refuses; nothing is left of the attempt.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed; or a link, which would be followed
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        _sync(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete(root: Path) -> list[int]:
    """Return the iterations that have a checkpoint under ``root``, in order."""
    if not root.is_dir():
        return []
    return sorted(int(m.group(1)) for p in root.iterdir() if (m := NAME.match(p.name)))


def newest(root: Path) -> Path:
    """Return the newest checkpoint under ``root``.

    Raises:
        InrilError: there is none.
    """
    found = complete(root)
    if not found:
        raise InrilError(f"No checkpoint in {root}.")
    return root / f"iteration_{found[-1]:06d}"


def adopt(source: Path, root: Path, iteration: int) -> None:
    """Put a copy of a checkpoint of another run in the place of all those under ``root``."""
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial / f"iteration_{iteration:06d}")
    shutil.rmtree(root, ignore_errors=True)
    os.replace(partial, root)


def part(tree: Mapping[str, Any], *keys: str, of: Path) -> Any:
    """Return what lies under ``keys`` in a checkpoint.

    Args:
        tree: that :func:`read` returned.
        keys: one within the other.
        of: where it came from, for the message.

    Raises:
        InrilError: it is not there, so another program wrote the checkpoint.
    """
    found: Any = tree
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise InrilError(f"The checkpoint in {of} lacks {'.'.join(keys)}: it was not written by this program.")
        found = found[key]
    return found


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint after verifying it.

    Raises:
        InrilError: missing or damaged files, a wrong hash or another format version; names the file.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version, hashes = manifest["format_version"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InrilError(f"Checkpoint {path} has no readable manifest.json ({reason(error)}).") from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise InrilError(f"Checkpoint {path} has format version {version}, this release reads {FORMAT_VERSION}.")
    for name in ("tensors.safetensors", "state.json"):
        if not (path / name).is_file():
            raise InrilError(f"Checkpoint {path} lacks {name}.")
        try:
            intact = _sha256(path / name) == hashes.get(name)
        except OSError as error:  # of a disk that is failing
            raise InrilError(f"Checkpoint {path}: {name} can't be read ({reason(error)}).") from None
        if not intact:
            raise InrilError(f"Checkpoint {path}: {name} is damaged (its SHA-256 differs from the manifest).")
    try:
        return dict(_join(json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise InrilError(f"Checkpoint {path} was not written by this program ({reason(error)}).") from None


def read_latest(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the newest checkpoint that is intact.

    Returns:
        its tree, and a warning for each newer one that was passed over.

    Raises:
        InrilError: there is none.
    """
    warnings = []
    for iteration in reversed(complete(root)):
        try:
            return read(root / f"iteration_{iteration:06d}"), warnings
        except InrilError as error:
            warnings.append(str(error))
    raise InrilError(f"No intact checkpoint in {root}." + "".join(f"\n{w}" for w in warnings))


def _split(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.asarray(value, order="C")
        return {ARRAY_KEY: name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(k): _split(v, arrays) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(v, arrays) for v in value]
    return value


def _join(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY_KEY}:
            return arrays[value[ARRAY_KEY]]
        return {k: _join(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, arrays) for v in value]
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back an optimiser's state as it comes out of a checkpoint (string keys, numpy arrays)."""
    moments = {int(k): {n: _tensor(v) for n, v in entry.items()} for k, entry in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def load_module(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put back a module's weights.

    Raises:
        InrilError: names or shapes differ; the message names them.
    """
    try:
        module.load_state_dict({name: _tensor(value) for name, value in state.items()})
    except (AttributeError, RuntimeError) as error:
        _, *problems = [line.strip().rstrip(".") for line in f"{error}".splitlines()] or [""]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        why = f"{problems[0]}{more}" if problems else f"{error}"
        raise InrilError(f"The checkpoint does not fit the configured {type(module).__name__}: {why}.") from None


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
