"""A path is a path, never an address: Arrow takes what has a colon before its first slash for a URL."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from inril_ray.demos.store import load
from tests.unit.test_demos_lerobot import write_set
from tests.unit.test_demos_minari import unpack

ODD = "".join(sorted({*map(chr, range(32, 127))} - {"/"}))


@pytest.mark.parametrize("folder", ["http:sets", "s3:sets", "file:sets", ODD])
def test_a_relative_directory_may_be_named_as_an_address_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    write_set(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / folder / "lerobot")
    shutil.copytree(unpack(tmp_path / "minari") / "parquet" / "flat", tmp_path / folder / "minari")
    monkeypatch.chdir(tmp_path)
    for kind, original in (("lerobot", "plain"), ("minari", "minari/parquet/flat")):
        moved, plain = load(Path(folder) / kind), load(tmp_path / original)
        assert np.array_equal(moved.actions, plain.actions)
