"""Damaged bytes: a clear error or success, never another exception, a dead process or half a file."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inril_ray.demos.episodes import DemoError
from inril_ray.demos.store import convert
from tests.unit.test_demos_robomimic import EXPECTATION, OBS_KEYS, recorded, write_file

CHILD = f"""
import sys
from pathlib import Path
import numpy as np
from inril_ray.demos.episodes import DemoError, Expectation
from inril_ray.demos.store import DemoStore, load
from inril_ray.types import InrilError

expectation = Expectation(env_name="Fake", obs_keys={OBS_KEYS!r}, action_dim=2)
for line in sys.stdin:
    try:
        arrays = load(Path(line.strip()), expectation)
    except DemoError:
        print("DemoError", flush=True)
        continue
    except BaseException as error:
        print(f"load: {{error!r}}".replace("\\n", " "), flush=True)
        continue
    try:
        store = DemoStore(arrays, 3)
        store.windows(np.arange(store.num_windows)), store.probe(), store.normalizer_stats()
        print("ok", flush=True)
    except InrilError:
        print("ok", flush=True)
    except BaseException as error:
        print(f"use: {{error!r}}".replace("\\n", " "), flush=True)
"""
SETTINGS = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


class Loader:
    """Loads files in a process of its own, because damaged Arrow metadata has killed the one that reads it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, path: Path) -> str:
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
        stdin.write(f"{path}\n")
        stdin.flush()
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
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def hdf5(folder: Path) -> bytes:
    return write_file(folder / "good.hdf5", recorded((5, 4))).read_bytes()


@pytest.fixture(scope="module")
def arrow(folder: Path, hdf5: bytes) -> bytes:
    convert(folder / "good.hdf5", folder / "good.arrow", EXPECTATION)
    return (folder / "good.arrow").read_bytes()


damage = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.none() | st.floats(0, 1),
)
"""Bytes to overwrite, as (place, value), and where to cut; places are fractions of the file."""


def damaged(content: bytes, how: tuple[list[tuple[float, int]], float | None]) -> bytes:
    changes, cut = how
    result = bytearray(content)
    for place, value in changes:
        result[int(place * len(content))] = value
    return bytes(result if cut is None else result[: int(cut * len(result))])


@SETTINGS
@given(how=damage)
def test_damaged_hdf5(folder: Path, hdf5: bytes, how: tuple[list[tuple[float, int]], float | None]) -> None:
    path, out = folder / "x.hdf5", folder / "out"
    out.mkdir(exist_ok=True)
    path.write_bytes(damaged(hdf5, how))
    target = out / "x.arrow"
    try:
        arrays = convert(path, target, EXPECTATION)
    except DemoError as error:
        assert error.path == path
        assert str(path) in str(error)
        assert list(out.iterdir()) == []
    else:
        assert [p.name for p in out.iterdir()] == ["x.arrow"]
        assert np.isfinite(arrays.obs).all()
        assert np.isfinite(arrays.actions).all()
        target.unlink()


@SETTINGS
@given(how=damage)
def test_damaged_arrow(
    folder: Path, arrow: bytes, loader: Loader, how: tuple[list[tuple[float, int]], float | None]
) -> None:
    path = folder / "x.arrow"
    path.unlink(missing_ok=True)
    path.write_bytes(damaged(arrow, how))
    outcome = loader.outcome(path)
    assert outcome in ("ok", "DemoError")
    cut = how[1] is not None and int(how[1] * len(arrow)) < len(arrow)
    assert not (cut and outcome == "ok"), "a file that lacks its end was accepted"


def test_the_whole_files_are_good(folder: Path, hdf5: bytes, arrow: bytes, loader: Loader) -> None:
    """What the tests above damage is accepted undamaged, so that they show something."""
    assert loader.outcome(folder / "good.hdf5") == "ok"
    assert loader.outcome(folder / "good.arrow") == "ok"
    assert json.loads(arrow[arrow.index(b'{"episode_starts') :].split(b"\x00")[0])["format_version"] == 1


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
