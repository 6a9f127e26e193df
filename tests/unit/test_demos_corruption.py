"""Damaged bytes in every format: a clear error or success, never another exception, a dead process or half a file."""

from __future__ import annotations

import json
import os
import select
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inril_ray.demos.episodes import Expectation
from inril_ray.demos.formats import resip_zarr
from inril_ray.demos.store import convert
from tests.fuzzing import cases
from tests.unit import test_demos_d4rl, test_demos_furniture, test_demos_lerobot, test_demos_minari
from tests.unit.test_demos_robomimic import EXPECTATION, recorded, write_file

CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from inril_ray.demos.episodes import DemoError, Expectation
from inril_ray.demos.store import DemoStore, convert, load
from inril_ray.types import InrilError

for line in sys.stdin:
    path, target, fields = json.loads(line)
    fields["obs_keys"] = tuple((k, w) for k, w in fields["obs_keys"])
    expectation = Expectation(**fields)
    try:
        arrays = convert(Path(path), Path(target), expectation) if target else load(Path(path), expectation)
        assert np.isfinite(arrays.obs).all() and np.isfinite(arrays.actions).all()
        store = DemoStore(arrays, 3)
        store.windows(np.arange(store.num_windows)), store.probe(), store.normalizer_stats()
        print("ok", flush=True)
    except DemoError:
        print("DemoError", flush=True)
    except InrilError:  # no episode is as long as a window
        print("ok", flush=True)
    except BaseException as error:
        print(f"{error!r}".replace("\\n", " "), flush=True)
"""
PATIENCE_S = 30.0


class Loader:
    """Loads files in a process of its own, because damaged files have killed the one that reads them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, path: Path, expectation: Expectation = EXPECTATION, target: Path | None = None) -> str:
        if self._process is None:
            # Stderr is dropped: Arrow prints its reason there before it aborts.
            self._process = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        stdin, stdout = self._pipes()
        fields = {name: getattr(expectation, name) for name in ("env_name", "obs_keys", "action_dim", "semantics")}
        stdin.write(json.dumps([str(path), str(target) if target else None, fields]) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], PATIENCE_S)[0]:
            self._process.kill()
            self.close()
            return "hung"
        answer = stdout.readline().strip()
        if not answer:
            answer = f"died with {self._process.wait()}"
            self.close()
        return answer

    def _pipes(self) -> tuple[IO[Any], IO[Any]]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def close(self) -> None:
        if self._process is not None:
            for pipe in self._pipes():
                pipe.close()
            self._process.wait(timeout=30)
            self._process = None


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    loader = Loader()
    yield loader
    loader.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good data set of each format."""
    folder = tmp_path_factory.mktemp("damaged")
    write_file(folder / "robomimic", recorded((5, 4)))
    test_demos_d4rl.write_file(folder / "d4rl")
    test_demos_lerobot.write_set(folder / "lerobot")
    originals = test_demos_minari.unpack(folder / "originals")
    for layout in test_demos_minari.LAYOUTS:
        shutil.copytree(originals / layout / "goal", folder / f"minari_{layout}")
    for suffix in ("", ".xz"):
        test_demos_furniture.dump(folder / f"one_leg.pkl{suffix}", test_demos_furniture.recording())
    resip_zarr.write(
        folder / "one_leg.zarr", test_demos_furniture.EPISODES, task="one_leg", source=test_demos_furniture.SOURCE
    )
    return folder


SOURCES = {
    "robomimic": EXPECTATION,
    "d4rl": test_demos_d4rl.EXPECTATION,
    "lerobot": test_demos_lerobot.EXPECTATION,
    **{f"minari_{layout}": test_demos_minari.GOAL for layout in test_demos_minari.LAYOUTS},
    **{f"one_leg.{suffix}": test_demos_furniture.EXPECTATION for suffix in ("pkl", "pkl.xz", "zarr")},
}


@pytest.fixture(scope="module")
def arrow(folder: Path) -> bytes:
    convert(folder / "robomimic", folder / "good.arrow", EXPECTATION)
    return (folder / "good.arrow").read_bytes()


Damage = tuple[list[tuple[float, int]], float | None]
damage = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.none() | st.floats(0, 1),
)
"""Bytes to overwrite, as (place, value), and where to cut; places are fractions of the file."""


def damaged(content: bytes, how: Damage) -> bytes:
    changes, cut = how
    result = bytearray(content)
    for place, value in changes:
        result[int(place * len(content))] = value
    return bytes(result if cut is None else result[: int(cut * len(result))])


@pytest.mark.parametrize("name", SOURCES)
@cases(40)
@given(how=damage, which=st.floats(0, 1, exclude_max=True))
def test_damaged_source(folder: Path, loader: Loader, name: str, how: Damage, which: float) -> None:
    """One file of a data set is damaged; nothing but a complete store may appear."""
    good, path, out = folder / name, folder / "x" / name, folder / "out"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    (shutil.copytree if good.is_dir() else shutil.copy)(good, path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if good.is_dir() else [path]
    victim = files[int(which * len(files))]
    victim.write_bytes(damaged(victim.read_bytes(), how))
    out.mkdir(exist_ok=True)
    target = out / "x.arrow"
    outcome = loader.outcome(path, SOURCES[name], target)
    left = [p.name for p in out.iterdir()]
    target.unlink(missing_ok=True)
    assert outcome in ("ok", "DemoError")
    assert left == (["x.arrow"] if outcome == "ok" else [])


@cases(40)
@given(how=damage)
def test_damaged_arrow(folder: Path, arrow: bytes, loader: Loader, how: Damage) -> None:
    path = folder / "x.arrow"
    path.unlink(missing_ok=True)
    content = damaged(arrow, how)
    path.write_bytes(content)
    outcome = loader.outcome(path)
    assert outcome in ("ok", "DemoError")
    cut = how[1] is not None and int(how[1] * len(arrow)) < len(arrow)
    assert not (cut and outcome == "ok"), "a file that lacks its end was accepted"


UNREAD = ("action/.zgroup", "action/delta/", "augment_states/", "pickle_file/", "skill/", ".zattrs")
"""Parts of zarr files that are not looked at."""


@pytest.mark.parametrize("name", SOURCES)
def test_a_truncated_file_is_an_error(folder: Path, loader: Loader, name: str) -> None:
    """Every file but the statistics and words of LeRobot, which are optional but not when they are damaged."""
    good, path = folder / name, folder / "cut" / name
    names = sorted(p.relative_to(good) for p in good.rglob("*") if p.is_file()) if good.is_dir() else [Path()]
    outcomes = {}
    for file in names:
        content = (good / file).read_bytes()
        for share in (0.0, 0.3, 0.7, 0.95):
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir()
            (shutil.copytree if good.is_dir() else shutil.copy)(good, path)
            (path / file).write_bytes(content[: int(share * len(content))])
            outcomes[str(file), share] = loader.outcome(path, SOURCES[name])
    unread = [key for key in outcomes if name.endswith(".zarr") and any(part in key[0] for part in UNREAD)]
    assert {k: v for k, v in outcomes.items() if v != "DemoError" and k not in unread} == {}


def test_the_whole_files_are_good(folder: Path, arrow: bytes, loader: Loader) -> None:
    """What the tests above damage is accepted undamaged, so that they show something."""
    for name, expectation in SOURCES.items():
        assert loader.outcome(folder / name, expectation) == "ok", name
    assert loader.outcome(folder / "good.arrow") == "ok"
    assert json.loads(arrow[arrow.index(b'{"episode_starts') :].split(b"\x00")[0])["format_version"] == 3


def test_damaged_lengths_in_arrow_metadata(folder: Path, loader: Loader) -> None:
    """Every 64-bit number in the file that counts steps or values is replaced by one that does not fit."""
    length = 173
    convert(write_file(folder / "long.hdf5", recorded((100, 73))), folder / "long.arrow", EXPECTATION)
    content = (folder / "long.arrow").read_bytes()
    outcomes = {}
    for count in (length, 5 * length, 2 * length):  # steps, values of observations, values of actions
        needle = struct.pack("<q", count)
        places = [i for i in range(len(content) - 7) if content[i : i + 8] == needle]
        assert places, f"{count} is not in the file"
        for place in places:
            for number in (-1, 0, count - 5, count + 1000, 2**40, -(2**62)):
                path = folder / "length.arrow"
                path.unlink(missing_ok=True)
                path.write_bytes(content[:place] + struct.pack("<q", number) + content[place + 8 :])
                outcomes[count, place, number] = loader.outcome(path)
    assert {k: v for k, v in outcomes.items() if v not in ("ok", "DemoError")} == {}
