"""Intact files of the wrong structure, in every format: one part is replaced by anything; a clear error or success."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inril_ray.demos.episodes import DemoError, Expectation
from inril_ray.demos.store import DemoArrays, convert, load
from tests.unit import test_demos_d4rl, test_demos_lerobot, test_demos_minari
from tests.unit.test_demos_robomimic import EXPECTATION, recorded, write_file

SETTINGS = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
HDF5 = {
    "robomimic": ("", EXPECTATION),
    "d4rl": ("", test_demos_d4rl.EXPECTATION),
    "minari_hdf5": ("data/main_data.hdf5", test_demos_minari.GOAL),
}
"""Data set to its HDF5 file and the task's expectation."""
JSON = {
    "minari_hdf5": ("data/metadata.json", test_demos_minari.GOAL),
    "minari_arrow": ("data/metadata.json", test_demos_minari.GOAL),
    "lerobot": ("meta/info.json", test_demos_lerobot.EXPECTATION),
}
PARQUET = {
    "lerobot": ("**/*.parquet", test_demos_lerobot.EXPECTATION),
    "minari_parquet": ("**/*.parquet", test_demos_minari.GOAL),
}

numbers = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.complex64])
shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
replacements = st.one_of(
    st.none(),
    st.just("a group"),
    st.just(b"text"),
    st.just([b"a", b"b", b"c"]),
    st.builds(lambda shape, dtype: np.ones(shape, dtype), shapes, numbers),
    st.builds(lambda shape: np.full(shape, np.nan), shapes),
)
"""What a data set of an HDF5 file is replaced by; None removes it."""
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("structure")
    write_file(folder / "robomimic", recorded((5, 4)))
    test_demos_d4rl.write_file(folder / "d4rl")
    test_demos_lerobot.write_set(folder / "lerobot")
    originals = test_demos_minari.unpack(folder / "originals")
    for layout in test_demos_minari.LAYOUTS:
        shutil.copytree(originals / layout / "goal", folder / f"minari_{layout}")
    return folder


def copy(folder: Path, name: str) -> Path:
    path = folder / "x" / name
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    return Path((shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, path))


def outcome(path: Path, expectation: Expectation | None) -> DemoArrays | None:
    """Convert, and check that there is a complete store or an error and nothing."""
    out = path.parent / "out"
    out.mkdir()
    try:
        arrays = convert(path, out / "x.arrow", expectation)
    except DemoError as error:
        assert str(path) in str(error)
        assert list(out.iterdir()) == []
        return None
    assert [p.name for p in out.iterdir()] == ["x.arrow"]
    assert np.isfinite(arrays.obs).all()
    assert np.isfinite(arrays.actions).all()
    np.testing.assert_array_equal(load(out / "x.arrow", expectation).obs, arrays.obs)
    return arrays


@pytest.mark.parametrize("name", HDF5)
@SETTINGS
@given(which=st.floats(0, 1, exclude_max=True), value=replacements, strict=st.booleans())
def test_a_part_of_an_hdf5_file(folder: Path, name: str, which: float, value: Any, strict: bool) -> None:
    path = copy(folder, name)
    inner, expectation = HDF5[name]
    with h5py.File(path / inner, "r+") as file:
        parts: list[str] = []
        file.visit(parts.append)
        part = parts[int(which * len(parts))]
        del file[part]
        if isinstance(value, str):
            file.create_group(part)
        elif value is not None:
            file[part] = value
    outcome(path, expectation if strict else None)


@pytest.mark.parametrize("name", JSON)
@SETTINGS
@given(which=st.floats(0, 1, exclude_max=True), value=values, inside=st.booleans())
def test_a_part_of_the_metadata(folder: Path, name: str, which: float, value: Any, inside: bool) -> None:
    path = copy(folder, name)
    inner, expectation = JSON[name]
    told = json.loads((path / inner).read_text())
    key = sorted(told)[int(which * len(told))]
    if inside and isinstance(told[key], dict):  # LeRobot's features
        part = sorted(told[key])[int(which * 1000) % len(told[key])]
        told[key][part] = value
    elif inside and isinstance(told[key], str) and told[key].startswith("{"):  # Minari's spaces
        space = json.loads(told[key])
        space[sorted(space)[int(which * 1000) % len(space)]] = value
        told[key] = json.dumps(space)
    else:
        told[key] = value
    (path / inner).write_text(json.dumps(told))
    outcome(path, expectation)


columns = st.one_of(
    st.none(),
    st.builds(lambda width: ("list", width), st.integers(0, 4)),
    st.sampled_from([("text", 0), ("null", 0), ("bool", 0), ("float", 0), ("int", 0), ("ragged", 0), ("struct", 0)]),
)


def column(how: tuple[str, int], length: int) -> pa.Array:
    kind, width = how
    made = {
        "list": lambda: [[0.5] * width] * length,
        "text": lambda: ["x"] * length,
        "null": lambda: pa.nulls(length, pa.float32()),
        "bool": lambda: [True] * length,
        "float": lambda: [np.nan] * length,
        "int": lambda: [1] * length,
        "ragged": lambda: [[0.5] * (1 + i % 2) for i in range(length)],
        "struct": lambda: [{"success": 1, "observation": None}] * length,
    }[kind]()
    return pa.array(made)


@pytest.mark.parametrize("name", PARQUET)
@SETTINGS
@given(which=st.floats(0, 1, exclude_max=True), how=columns, keep=st.none() | st.integers(0, 4))
def test_a_column_of_a_parquet_file(
    folder: Path, name: str, which: float, how: tuple[str, int] | None, keep: int | None
) -> None:
    path = copy(folder, name)
    pattern, expectation = PARQUET[name]
    files = sorted(path.glob(pattern))
    file = files[int(which * len(files))]
    table = pq.read_table(file)
    index = int(which * 1000) % table.num_columns
    if how is None:
        table = table.remove_column(index)
    else:
        table = table.set_column(index, table.column_names[index], column(how, table.num_rows))
    pq.write_table(table if keep is None else table.slice(0, keep), file)
    outcome(path, expectation)


def test_the_whole_sets_are_good(folder: Path) -> None:
    """What the tests above change is accepted unchanged, so that they show something."""
    for name, (_, expectation) in {**HDF5, **JSON, **PARQUET}.items():
        assert outcome(copy(folder, name), expectation) is not None, name
