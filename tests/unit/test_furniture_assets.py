"""Public meshes: fetched once, checked, and never half-written."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from inril_ray.envs.furniture import assets
from inril_ray.types import InrilError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def a_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with meshes and other things, taken for the published one."""
    file = folder / "furniture_bench-0.1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("lamp/lamp_base.obj", "lamp/lamp_base.mtl", "desk/desk_leg.obj", "square_table/x.obj"):
            archive.writestr(assets.INSIDE + name, name)
        archive.writestr("furniture_bench/__init__.py", "raise AssertionError")
    monkeypatch.setattr(assets, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_only_meshes_are_taken_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def download(folder: Path) -> Path:
        calls.append(folder)
        return a_wheel(folder, monkeypatch)

    monkeypatch.setattr(assets, "_download", download)
    folder = assets.meshes()
    assert assets.meshes() == folder == assets.cache()
    assert len(calls) == 1
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["lamp/lamp_base.obj", "square_table/x.obj"]
    assert list(folder.parent.iterdir()) == [folder], "nothing else is left behind"


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = a_wheel(tmp_path, monkeypatch)
    monkeypatch.undo()
    with pytest.raises(InrilError, match=r"has SHA-256 .*, the published furniture-bench 0\.1 22548e226db8"):
        assets.unpack(wheel, tmp_path / "meshes")
    assert not (tmp_path / "meshes").exists()


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(
        InrilError, match=r"No matching distribution found.*pictures only.*env\.furniture\.meshes=false"
    ):
        assets.meshes()
    assert not assets.cache().exists()
