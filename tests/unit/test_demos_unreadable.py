"""What can't be read says what it is: whatever the format, and whatever the reason."""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from inril_ray.demos import causes
from inril_ray.demos.causes import LFS, cause, explained
from inril_ray.demos.episodes import DemoError, Expectation, Selection, reading
from inril_ray.demos.formats import resip_zarr
from inril_ray.demos.store import convert, load
from tests.unit import test_demos_d4rl, test_demos_furniture, test_demos_lerobot, test_demos_minari
from tests.unit.test_demos_robomimic import EXPECTATION, recorded, write_file

POINTER = LFS + b"v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("demo.hdf5"))
    return buffer.getvalue()


FILES: dict[str, tuple[str, bytes, str]] = {
    # name: (file, content, message)
    "pointer": ("demos.hdf5", POINTER, "is a Git-LFS pointer, not the file that it stands for: run `git lfs pull`"),
    "pointer_pickle": ("one_leg.pkl", POINTER, "is a Git-LFS pointer"),
    "pointer_arrow": ("demos.arrow", POINTER, "is a Git-LFS pointer"),
    "empty": ("demos.hdf5", b"", "is empty: 0 bytes"),
    "zip": ("demos.zip", zipped({"a": b"x"}), "is none of the known formats .*: it is a zip archive: unpack it first"),
    "gzip": ("demos.hdf5.gz", gzip.compress(b"x"), "compressed by gzip: unpack it first"),
    "tar": ("demos.tar", tarred(), "it is a tar archive: unpack it first"),
    "page": ("demos.hdf5", b"\n<!DOCTYPE html><html>", "is not an HDF5 file: it is a web page.*download it again"),
    "parquet": ("file-000.parquet", b"PAR1" * 9, "it is one Parquet file; LeRobot's and Minari's sets are given by"),
    "json": ("info.json", b'{"fps": 10}', "it is JSON; LeRobot's and Minari's sets are given by their directory"),
    "text": ("notes.txt", b"dear diary", "it begins b'dear diary'"),
    "cut": ("demos.hdf5", b"\x89HDF\r\n\x1a\n" + bytes(40), "is damaged or truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else(tmp_path: Path, name: str) -> None:
    file, content, message = FILES[name]
    path = tmp_path / file
    path.write_bytes(content)
    for use in (lambda: load(path), lambda: convert(path, tmp_path / "out.arrow", None)):
        with pytest.raises(DemoError, match=message) as caught:
            use()
        assert caught.value.path == path
        assert "damaged" not in str(caught.value) or name == "cut"


def test_a_pointer_in_place_of_the_target_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "demos.arrow"
    target.write_bytes(POINTER)
    with pytest.raises(DemoError, match="exists and is not a converted data set"):
        convert(write_file(tmp_path / "demos.hdf5"), target, EXPECTATION)
    assert target.read_bytes() == POINTER


def test_links_and_devices(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/gone/demos.hdf5")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("link", "is a link to /gone/demos.hdf5, which does not exist"),
        ("pipe", "is neither a file nor a directory"),
        ("nothing", "does not exist"),
        ("demos/below", "does not exist"),
    ):
        with pytest.raises(DemoError, match=message):
            load(tmp_path / name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DemoError, match="can't be read: Not a directory"):
        load(tmp_path / "file" / "below")


def unpacked(path: Path) -> Path:
    shutil.copytree(test_demos_minari.unpack(path.with_name("all")) / "arrow" / "flat", path)
    return path


def zarr(path: Path) -> Path:
    pytest.importorskip("zarr")
    resip_zarr.write(path, test_demos_furniture.EPISODES, task="one_leg", source=test_demos_furniture.SOURCE)
    return path


def pickles(path: Path) -> Path:
    path.mkdir()
    return test_demos_furniture.dump(path / "a.pkl", test_demos_furniture.recording()).parent


SETS: dict[str, tuple[Callable[[Path], Path], Expectation, tuple[str, ...]]] = {
    # name: (set, its task, files of it that are needed)
    "lerobot": (
        test_demos_lerobot.write_set,
        test_demos_lerobot.EXPECTATION,
        ("meta/info.json", "meta/stats.json", test_demos_lerobot.EPISODES, test_demos_lerobot.DATA),
    ),
    "minari_hdf5": (
        lambda p: test_demos_minari.write_set(p, test_demos_minari.FLAT, "Hopper-v5"),
        test_demos_minari.FLAT,
        ("data/metadata.json", "data/main_data.hdf5"),
    ),
    "minari_arrow": (unpacked, test_demos_minari.FLAT, ("data/1/metadata.json", "data/1/part-0.arrow")),
    "zarr": (zarr, test_demos_furniture.EXPECTATION, ("robot_state/0.0", "action/pos/0.0")),
    "pickles": (pickles, test_demos_furniture.EXPECTATION, ("a.pkl",)),
}


@pytest.mark.parametrize("name", SETS)
def test_a_file_of_a_set_that_git_lfs_has_not_fetched(tmp_path: Path, name: str) -> None:
    write, task, files = SETS[name]
    path = write(tmp_path / "set")
    load(path, task)
    for file in files:
        whole = (path / file).read_bytes()
        (path / file).write_bytes(POINTER)
        with pytest.raises(DemoError, match="is a Git-LFS pointer") as caught:
            load(path, task)
        assert Path(file).name in str(caught.value)
        (path / file).write_bytes(whole)


@pytest.mark.parametrize("name", SETS)
def test_a_file_of_a_set_without_permission(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no file refuses, so opening refuses."""
    write, task, files = SETS[name]
    path = write(tmp_path / "set")
    for file in files:
        with monkeypatch.context() as patch:
            closed(patch, path / file)
            with pytest.raises(DemoError, match="Permission denied") as caught:
                load(path, task)
            assert "damaged" not in str(caught.value)


def closed(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Refuse to open a file, in Python; compiled libraries open it all the same, as long as nobody asks before."""
    original = io.open

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path) and Path(file) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return original(file, *args, **kwargs)

    patch.setattr(io, "open", refuse)
    patch.setattr("builtins.open", refuse)
    for library, function in ((h5py, "File"), (h5py, "is_hdf5")):
        real = getattr(library, function)
        patch.setattr(library, function, lambda p, *a, real=real, **k: (refuse(p, "rb").close(), real(p, *a, **k))[1])
    import pyarrow as pa
    import pyarrow.parquet as pq

    for library, function in ((pa, "memory_map"), (pq, "ParquetFile"), (pq, "read_table")):
        real = getattr(library, function)
        patch.setattr(library, function, lambda p, *a, real=real, **k: (refuse(p, "rb").close(), real(p, *a, **k))[1])


def test_a_directory_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    (outer / "inner" / "a.pkl").write_bytes(b"x")
    scandir, listdir = os.scandir, os.listdir

    def refusing(real: Callable[..., Any], shut: Path) -> Callable[..., Any]:
        def call(path: Any = ".") -> Any:
            if Path(path) == shut:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path)

        return call

    for shut, message in (
        (outer, "outer: can't be read: Permission denied"),
        (outer / "inner", "none of the known formats .*: .*inner in it can't be read: Permission denied"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refusing(scandir, shut))
            patch.setattr(os, "listdir", refusing(listdir, shut))
            with pytest.raises(DemoError, match=message):
                load(outer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; the tests above refuse by hand")
def test_real_permissions(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = write_file(tmp_path / "folder" / "demos.hdf5")
    for shut, mode in ((path, 0o000), (path.parent, 0o000)):
        shut.chmod(mode)
        try:
            with pytest.raises(DemoError, match="can't be read: Permission denied"):
                load(path)
        finally:
            shut.chmod(0o755)


@pytest.mark.parametrize("where", ["robomimic", "d4rl", "minari"])
def test_an_hdf5_file_that_is_open_for_writing_elsewhere(tmp_path: Path, where: str) -> None:
    file = path = tmp_path / "set"
    if where == "minari":
        test_demos_minari.write_set(path, test_demos_minari.FLAT, "Hopper-v5")
        file = path / "data" / "main_data.hdf5"
    else:
        (write_file if where == "robomimic" else test_demos_d4rl.write_file)(path)
    load(path)
    with file.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as HDF5 does while a file is written
        for use in (lambda: load(path), lambda: convert(path, tmp_path / "out.arrow", None)):
            with pytest.raises(DemoError, match="is open for writing in another program") as caught:
                use()
            assert "damaged" not in str(caught.value)


def test_the_lock_is_that_of_hdf5(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    script = f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with pytest.raises(DemoError, match="is open for writing in another program"):
            load(path)
        other.stdin.close()
    load(path)


# -- HDF5 that is none of ours, or almost -----------------------------------------------------------------------------
def test_another_layout_tells_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        file["episodes/0/obs"] = np.zeros((3, 2))
        file["version"] = 1
    with pytest.raises(
        DemoError, match=r"is HDF5 that holds episodes \(a group\), version \(a data set\); robomimic's"
    ):
        load(path)


def nested(path: Path) -> Path:
    write_file(path, recorded((5, 4)))
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo.move("obs/hand", "obs/robot/hand")
            demo.move("next_obs/hand", "next_obs/robot/hand")
    return path


def test_nested_observations_of_robomimic_are_named_and_can_be_read(tmp_path: Path) -> None:
    path, plain = nested(tmp_path / "demos.hdf5"), load(write_file(tmp_path / "plain", recorded((5, 4))), EXPECTATION)
    with pytest.raises(DemoError, match=r"is missing; found: object, robot/hand\. .*--key hand=NAME") as caught:
        load(path, EXPECTATION)
    assert caught.value.field == "obs/hand"
    named = load(path, EXPECTATION, Selection(names={"hand": "robot/hand"}))
    np.testing.assert_array_equal(named.obs, plain.obs)
    np.testing.assert_array_equal(named.final_obs, plain.final_obs)
    found = load(path)
    assert found.info.obs_keys == (("object", 2), ("robot/hand", 3))
    assert found.info.metadata["observations"] == {"object": [2], "robot/hand": [3]}
    group = dict(obs_keys=(("robot", 3), ("object", 2)))
    with pytest.raises(DemoError, match="is not a data set but a group of hand"):
        load(path, Expectation(env_name="Fake", action_dim=2, **group))


def test_nested_observations_of_minari_are_named_and_can_be_read(tmp_path: Path) -> None:
    goal = test_demos_minari.GOAL
    path = test_demos_minari.write_set(tmp_path / "set", goal, "FetchPush-v4")
    plain = load(path, goal)
    told = json.loads((path / "data" / "metadata.json").read_text())
    spaces = json.loads(told["observation_space"])
    goals = {key: spaces["subspaces"].pop(key) for key in ("achieved_goal", "desired_goal")}
    spaces["subspaces"]["goals"] = {"type": "Dict", "subspaces": goals}
    told["observation_space"] = json.dumps(spaces)
    (path / "data" / "metadata.json").write_text(json.dumps(told))
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        for group in file.values():
            for key in goals:
                group.move(f"observations/{key}", f"observations/goals/{key}")
    with pytest.raises(
        DemoError, match=r"found: observation, goals/achieved_goal, goals/desired_goal\. .*--key achieved"
    ):
        load(path, goal)
    named = load(path, goal, Selection(names={key: f"goals/{key}" for key in goals}))
    np.testing.assert_array_equal(named.obs, plain.obs)


def test_names_are_refused_where_they_are_those_of_the_format(tmp_path: Path) -> None:
    path = test_demos_d4rl.write_file(tmp_path / "demos.hdf5")
    with pytest.raises(DemoError, match="has the names of its format; action can't be named otherwise"):
        load(path, test_demos_d4rl.EXPECTATION, Selection(names={"action": "actions"}))


# -- what errors mean -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), "can't be read: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), r"Permission denied \(/x/y\)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x/y"), "lacks /x/y"),
        (KeyError("Unable to open object"), "is damaged or truncated .*Unable to open object"),
        (ValueError(""), r"is damaged or truncated \(ValueError\)"),
    ],
)
def test_errors_in_words(tmp_path: Path, error: Exception, message: str) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(DemoError, match=message), reading(tmp_path):
        raise error


def test_what_can_be_read_has_no_cause(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5")
    assert cause(path) is None
    assert cause(tmp_path) is None
    assert "damaged" in explained(path, ValueError("x"))
    assert causes.description(tmp_path) == "it holds demos.hdf5"
