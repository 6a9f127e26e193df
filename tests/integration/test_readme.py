"""The commands that the README shows work: cheap ones are executed, long ones are parsed to the end."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from inril_ray import envs
from inril_ray.cli import _layers, main, parser
from inril_ray.experiment import load_config
from inril_ray.sweep import read_sweep

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
INRIL = [shlex.split(line)[1:] for line in LINES if line.startswith(".venv/bin/inril")]


def test_the_readme_shows_commands() -> None:
    assert len(INRIL) >= 6
    assert {"make demo", "make test"} <= set(LINES)


@pytest.mark.parametrize("arguments", INRIL, ids=" ".join)
def test_inril_commands_are_valid(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stopped:
            parser().parse_args(arguments)
        assert stopped.value.code == 0
        return
    parsed = parser().parse_args(arguments)
    if arguments[0] == "demos" and arguments[1] != "inspect":
        assert parsed.task in envs.TASKS  # they record, download or read files of the user's
    elif arguments[0] in ("doctor", "demos"):
        assert main(arguments) == 0
        assert capsys.readouterr().out
    elif arguments[0] == "sweep":
        read_sweep(ROOT / parsed.file)
    elif not getattr(parsed, "resume", None):
        load_config(_layers(parsed))


@pytest.mark.parametrize("target", [line.split()[1] for line in LINES if line.startswith("make ")])
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
