"""Filters and images of robomimic files: only what was asked for is converted."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from inril_ray.demos.episodes import DemoError, Selection
from inril_ray.demos.formats.robomimic_hdf5 import RobomimicHdf5
from inril_ray.demos.store import DemoStore, convert, load
from tests.unit.test_demos_robomimic import EXPECTATION, LENGTHS, replace, write_file


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_file(tmp_path / "demos.hdf5")


def test_a_filter_leaves_out_the_other_episodes(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["mask/better"] = [b"demo_3", b"demo_1"]
    episodes = list(RobomimicHdf5.read(good, EXPECTATION, Selection(filter="better")))
    assert [(e.name, e.held_out) for e in episodes] == [("demo_1", False), ("demo_3", True)]
    arrays = load(good, EXPECTATION, Selection(filter="better"))
    assert arrays.info.metadata["filter"] == "better"
    assert arrays.info.metadata["filters"] == ["better", "train", "valid"]
    assert np.diff(arrays.episode_starts).tolist() == [7, 6]


def test_a_filter_that_is_not_there(good: Path) -> None:
    with pytest.raises(DemoError, match="no such filter; found: train, valid") as caught:
        load(good, EXPECTATION, Selection(filter="20_percent"))
    assert caught.value.field == "mask/20_percent"


def with_images(path: Path, size: int = 4) -> Path:
    with h5py.File(path, "r+") as file:
        for i, (name, n) in enumerate(zip(sorted(file["data"]), LENGTHS, strict=True)):
            pictures = np.arange(n)[:, None, None, None] + 10 * i + np.zeros((1, size, size + 1, 3))
            file.create_dataset(f"data/{name}/obs/front_image", data=pictures.astype(np.uint8), compression="gzip")
    return path


def test_images_are_kept_when_they_are_asked_for(good: Path, tmp_path: Path) -> None:
    with_images(good)
    assert load(good, EXPECTATION).images == {}
    convert(good, tmp_path / "demos.arrow", EXPECTATION, Selection(images=("front_image",)))
    arrays = load(tmp_path / "demos.arrow", EXPECTATION)
    pictures = arrays.images["front_image"]
    assert pictures.shape == (sum(LENGTHS), 4, 5, 3)
    assert pictures.dtype == np.uint8
    assert not pictures.flags.writeable
    assert not pictures.flags.owndata
    assert pictures[:, 1, 2, 0].tolist() == [10 * i + t for i, n in enumerate(LENGTHS) for t in range(n)]
    batch = DemoStore(arrays, 3).windows(np.array([0, 3]))
    assert batch.images["front_image"][:, 0, 0, 0].tolist() == [0, 10]
    assert DemoStore(load(good), 3).sample(np.random.default_rng(0), 2).images == {}


@pytest.mark.parametrize(
    ("key", "message"),
    [("back_image", "is missing; images found: front_image"), ("hand", r"is float32 \(5, 3\); images are uint8")],
)
def test_images_that_are_not_there(good: Path, key: str, message: str) -> None:
    with pytest.raises(DemoError, match=message) as caught:
        load(with_images(good), EXPECTATION, Selection(images=(key,)))
    assert caught.value.field == f"obs/{key}"


def test_images_that_differ_in_size(good: Path) -> None:
    with_images(good)
    with h5py.File(good, "r+") as file:
        replace("data/demo_1/obs/front_image", np.zeros((7, 8, 8, 3), np.uint8))(file)
    with pytest.raises(DemoError, match="differs in shape between episodes"):
        load(good, EXPECTATION, Selection(images=("front_image",)))
