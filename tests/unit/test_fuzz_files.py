"""Every file that a command takes, with every kind of file: a sentence that names it, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from inril_ray import cli
from inril_ray.experiment import load_config, resolved
from inril_ray.run_dir import write_json


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3.0)


def run_directory(path: Path) -> None:
    """One that was begun and has no checkpoint yet."""
    path.mkdir()
    write_json(path / "config.json", {"config": resolved(load_config([{"task": "robomimic/lift"}]))})


KINDS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "directory": lambda path: path.mkdir(),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "weights": lambda path: torch.save({"model": torch.zeros(2)}, path),
    "hdf5": hdf5,
    "parquet": lambda path: pq.write_table(pa.table({"a": [1, 2]}), path),
    "json": lambda path: path.write_text(json.dumps({"a": [1]})),
    "list": lambda path: path.write_text("[1, 2]"),
    "yaml": lambda path: path.write_text(yaml.safe_dump({"task": "robomimic/lift"})),
    "text": lambda path: path.write_text("naïve: ∂\n"),
    "latin-1": lambda path: path.write_bytes("task: naïve".encode("latin-1")),
    "run": run_directory,
    "link": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path),
    "below a file": lambda path: path.write_text(""),
    "unreadable": lambda path: (path.write_text("a: 1"), path.chmod(0)),
}
ARGUMENTS: dict[str, list[str]] = {
    "train --config": ["train", "--config", "{}.yaml"],
    "train --demos": ["train", "--task", "robomimic/lift", "--demos", "{}"],
    "train --resume": ["train", "--resume", "{}"],
    "train --out": ["train", "--task", "robomimic/lift", "--out", "{}"],
    "train pretrained": ["train", "--task", "robomimic/lift", "--set", "pretrained={}"],
    "eval": ["eval", "{}"],
    "verdict --config": ["verdict", "--config", "{}.yaml"],
    "verdict --demos": ["verdict", "--task", "robomimic/lift", "--demos", "{}"],
    "verdict --out": ["verdict", "--task", "robomimic/lift", "--out", "{}"],
    "sweep": ["sweep", "{}"],
    "report": ["report", "{}"],
    "demos inspect": ["demos", "inspect", "{}"],
    "demos convert": ["demos", "convert", "{}", "made.arrow", "--task", "robomimic/lift"],
    "demos make --out": ["demos", "make", "robomimic/lift", "--num", "1", "--max-steps", "2", "--out", "{}"],
    "chaos --demos": ["chaos", "--demos", "{}"],
    "chaos --out": ["chaos", "--out", "{}"],
}


BARE = ("Traceback", "Error(", "Errno")
"""What shows that an exception was printed instead of a sentence."""


class Began(Exception):
    """What was asked for would run now."""


def ended(arguments: list[str]) -> tuple[int | str, str]:
    """Return the exit status, or that a run began, and what was said of errors."""

    def begin(*_: Any, **__: Any) -> None:
        raise Began

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for name in ("run._run", "tune.run_sweep", "record.record"):
            patch.setattr(f"inril_ray.{name}", begin)
        patch.setattr("inril_ray.tracking.mlflow.parent_of", lambda *_: contextlib.nullcontext())
        with contextlib.redirect_stderr(said):
            try:
                return cli.main(arguments), said.getvalue()
            except Began:
                return "began", ""


@pytest.mark.fuzz
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_any_kind_of_file_is_taken_or_explained(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, make in KINDS.items():
        if kind == "unreadable" and os.geteuid() == 0:
            continue
        name = f"zq-{kind.replace(' ', '-')}"  # what no message says by itself
        words = [word.format(name) for word in ARGUMENTS[argument]]
        path = next(Path(word) for given, word in zip(ARGUMENTS[argument], words, strict=True) if "{}" in given)
        path = Path(str(path).removeprefix("pretrained="))
        make(path)
        if kind == "below a file":
            words = [word.replace(name, f"{name}.yaml/x" if ".yaml" in word else f"{name}/x") for word in words]
        status, said = ended(words)
        assert status in (0, 1, "began"), (kind, words)
        assert status != 1 or (name in said and not any(word in said for word in BARE)), (kind, words, said)
        assert status != 0 or argument in ("report", "demos inspect"), (kind, words)
