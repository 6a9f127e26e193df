"""What errors, counts and times are in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import inril_ray
from inril_ray.words import counted, duration, reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a"), "No such file or directory"),
        (json.JSONDecodeError("Expecting value", "x", 0), "Expecting value: line 1 column 1 (char 0)"),
        (KeyError("config"), "config is missing"),
        (ValueError("one.\ntwo"), "one"),
        (TypeError(), "TypeError"),
    ],
)
def test_an_exception_has_a_reason(error: Exception, said: str) -> None:
    assert reason(error) == said


def test_no_message_shows_how_python_writes_an_exception() -> None:
    written = re.compile(r"\{(e|err|error|exc|exception)!r\}|repr\((e|err|error|exc|exception)\)")
    files = Path(inril_ray.__file__).parent.rglob("*.py")
    assert [f"{file.name}: {found[0]}" for file in files for found in written.finditer(file.read_text())] == []


def test_counts_and_times() -> None:
    assert [counted(n, "iterations") for n in (0, 1, 2.0)] == ["0 iterations", "1 iteration", "2 iterations"]
    assert [duration(s) for s in (80.0, 720.0, 36000.0)] == ["80 s", "12 min", "10.0 h"]
