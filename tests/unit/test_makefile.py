"""What `make` does to an environment: its own it makes and brings up to date, another's it leaves as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout that is newer than every environment."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (2e9, 2e9))
    return folder


def environment(path: Path, owner: Path | None) -> Path:
    """Return an environment whose programs write down that they were called, and see whose code."""
    (path / "bin").mkdir(parents=True)
    for name in ("python", "uv", "ruff"):
        program = path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $* with $PYTHONPATH" >> {path}/calls\n')
        program.chmod(0o755)
    (path / ".ready").touch()
    os.utime(path / ".ready", (1e9, 1e9))
    if owner is not None:
        (path / ".checkout").write_text(f"{owner}\n")
    return path


def make(checkout: Path, *arguments: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("VENV", "MAKEFLAGS", "MAKELEVEL", "PYTHONPATH")}
    done = subprocess.run(["make", *arguments], cwd=checkout, capture_output=True, text=True, check=True, env=clean)
    return done.stdout


@pytest.mark.parametrize("owner", [None, Path("/elsewhere")])
@pytest.mark.parametrize("place", ["../venv", "{}"])
def test_the_environment_of_another_checkout_is_left_as_it_is(checkout: Path, owner: Path | None, place: str) -> None:
    venv = environment(checkout.parent / "venv", owner)
    said = make(checkout, "lint", f"VENV={place.format(venv)}")
    assert f"was made by {owner or 'another'}: it is used as it is" in said
    assert (venv / "calls").read_text() == f"ruff check --quiet . with {checkout}\n"
    assert (venv / ".ready").stat().st_mtime == 1e9
    make(checkout, "clean", f"VENV={venv}")
    assert venv.is_dir()


@pytest.mark.parametrize("place", [".venv", "../venv"])
def test_an_environment_of_its_own_is_brought_up_to_date(checkout: Path, place: str) -> None:
    venv = environment((checkout / place).resolve(), checkout if place == "../venv" else None)
    make(checkout, "lint", f"VENV={place}", "PYTHON=true")
    calls = (venv / "calls").read_text()
    assert "uv pip sync" in calls and "--no-deps --editable ." in calls and "ruff check" in calls
    assert (venv / ".checkout").read_text() == f"{checkout}\n"
    make(checkout, "clean", f"VENV={place}")
    assert not venv.exists()


def test_a_demo_of_another_seed_has_a_directory_of_its_own(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".ready").touch()
    os.utime(checkout / ".venv" / ".ready", (3e9, 3e9))
    assert "inril train --config demo --seed 4 --out runs/demo-seed4" in make(checkout, "-n", "demo", "SEED=4")
    assert "inril train --config demo  --out runs/demo\n" in make(checkout, "-n", "demo")
