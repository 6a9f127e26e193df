"""Output in any encoding, and what is told before anything heavy is loaded."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inril_ray.terminal import print_in_any_encoding

RUNS: list[list[str]] = [
    ["train", "--task", "robomimic/lfit"],
    ["train", "--task", "robomimic/lift", "--algorithm", "dpo"],
    ["train", "--config", "demo", "--set", "foo=1"],
    ["train", "--config", "demo", "--set", "rl.clip_ratoi=1"],
    ["train", "--config", "demo", "--set", "actor.x=1"],
    ["train", "--config", "demo", "--set", "foo"],
    ["train", "--config", "nothing"],
    ["train", "--config", "missing.yaml"],
    ["train", "--config", "broken.yaml"],
    ["train", "--task", "robomimic/can"],
    ["train", "--config", "demo", "--demos", "missing.hdf5"],
    ["train", "--config", "demo", "--set", "pretrained=broken.yaml"],
    ["train", "--resume", "missing"],
    ["verdict", "--task", "robomimic/lfit"],
    ["verdict", "--config", "demo", "--set", "foo=1"],
    ["sweep", "missing.yaml"],
    ["sweep", "broken.yaml"],
    ["sweep", "wrong.yaml"],
    ["eval", "missing"],
    ["eval", "broken.yaml"],
    ["report", "missing"],
    ["demos", "inspect", "missing.hdf5"],
    ["demos", "convert", "missing.hdf5", "a.arrow", "--task", "robomimic/lift"],
    ["demos", "make", "nonsense", "--out", "a.hdf5"],
    ["demos", "download", "nonsense"],
    ["chaos", "--task", "robomimic/lfit"],
]
HEAVY = ("torch", "ray", "mlflow", "mujoco")


def test_wrong_usage_is_told_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(": [")
    (tmp_path / "wrong.yaml").write_text("base: {task: robomimic/lift, interleave: {evry: 3}}")
    code = f"""
import json, sys
from inril_ray.cli import main
for arguments in {RUNS!r}:
    status = main(arguments)
    print(json.dumps([status, [m for m in {HEAVY!r} if m in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [case for case, result in zip(RUNS, found, strict=True) if result != [1, []]] == [], done.stderr
    assert len(done.stderr.splitlines()) == len(RUNS), "one sentence each"
    assert "wrong.yaml: Unknown configuration key 'interleave.evry'. Did you mean 'every'?" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", r"3 epochs ... - 1/2 x, rho -> na\xefve \u6f22 \udcff"),
        ("latin-1", "3 epochs ... - ½ ×, rho -> naïve \\u6f22 \\udcff"),
        ("utf-8", "3 epochs … − ½ ×, ρ → naïve 漢 \\udcff"),
    ],
)
def test_any_text_can_be_printed(encoding: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, name, stream)
        print_in_any_encoding()
        print("3 epochs … − ½ ×, ρ → naïve 漢 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue().decode(encoding) == f"{printed}\n"  # type: ignore[attr-defined]


def test_help_is_printed_in_a_pipe_that_takes_ascii_only() -> None:
    command = [sys.executable, "-m", "inril_ray.cli", "train", "--help"]
    own = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, encoding="ascii", check=True, env=own)
    assert "short for --set task=..." in done.stdout
