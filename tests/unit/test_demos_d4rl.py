"""D4RL HDF5: what is written is read back, flat arrays are split into episodes, malformed files are one clear error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from inril_ray.demos.episodes import DemoError, Expectation, RecordedEpisode, Selection
from inril_ray.demos.formats.d4rl_hdf5 import D4rlHdf5, write
from inril_ray.demos.store import convert, load, recognise

EXPECTATION = Expectation(env_name="Hopper", obs_keys=(("observation", 4),), action_dim=2, semantics="v4")
LENGTHS = (5, 3, 4)


def recorded(lengths: tuple[int, ...] = LENGTHS) -> list[RecordedEpisode]:
    rng = np.random.default_rng(0)
    return [
        RecordedEpisode(
            obs=rng.normal(size=(n, 4)),
            next_obs=rng.normal(size=(n, 4)),
            actions=rng.uniform(-1, 1, (n, 2)),
            rewards=rng.normal(size=n),
            terminated=i == 1,
        )
        for i, n in enumerate(lengths)
    ]


def write_file(path: Path, semantics: str = "v4") -> Path:
    write(path, recorded(), env_name="Hopper", semantics=semantics, source={"kind": "rl", "seed": 1})
    return path


def flat_file(path: Path, lengths: tuple[int, ...], *, cut: int = 0, timeouts: bool = True) -> Path:
    """A file as D4RL publishes them; the last ``cut`` steps are lost."""
    n = sum(lengths)
    over = np.zeros(n, bool)
    over[np.cumsum(lengths) - 1] = True
    first = np.arange(n) < lengths[0]
    arrays = {
        "observations": np.arange(n)[:, None] + np.zeros(4, np.float32),
        "actions": np.zeros((n, 2), np.float32),
        "rewards": np.ones(n, np.float32),
        "terminals": over & first,
        **({"timeouts": over & ~first} if timeouts else {}),
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array[: n - cut]
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_file(tmp_path / "demos.hdf5")


def test_round_trip(good: Path) -> None:
    episodes = list(D4rlHdf5.read(good, EXPECTATION))
    for got, want in zip(episodes, recorded(), strict=True):
        for name in ("obs", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name).astype(np.float32))
        np.testing.assert_array_equal(got.final_obs, want.next_obs[-1].astype(np.float32))
    assert [e.terminated for e in episodes] == [False, True, False]
    assert [e.success for e in episodes] == [None] * 3
    info = D4rlHdf5.inspect(good)
    assert (info.env_name, info.semantics, info.source) == ("Hopper", "v4", "rl")
    assert info.metadata["made_by"] == {"kind": "rl", "seed": 1}
    assert info.warnings == ()
    assert good.read_bytes() == write_file(good.with_name("again.hdf5")).read_bytes()


def test_a_published_file_is_split_on_terminals_and_timeouts(tmp_path: Path) -> None:
    arrays = load(flat_file(tmp_path / "hopper_medium-v2.hdf5", (3, 4, 5), cut=2), EXPECTATION)
    assert arrays.episode_starts.tolist() == [0, 3, 7, 10]
    assert arrays.terminated.tolist() == [True, False, False]
    assert np.isnan(arrays.final_obs).all()
    assert (arrays.info.env_name, arrays.info.semantics, arrays.info.source) == ("Hopper", "v2", "rl")
    warnings = arrays.info.metadata["warnings"]
    assert "cut off by the end of the recording" in warnings[0]
    assert "returns can differ slightly" in warnings[1]
    assert arrays.info.metadata["score_range"] == [-20.272305, 3234.3]


@pytest.mark.parametrize("kind", ["external", "virtual", "link", "link_above"])
def test_other_files_of_the_user_are_not_read(tmp_path: Path, kind: str) -> None:
    path, secret = flat_file(tmp_path / "hopper_medium-v2.hdf5", (3, 4, 5)), tmp_path / "secret"
    if kind == "external":
        os.mkfifo(secret)  # reading it would wait for ever
    with h5py.File(path, "r+") as file, contextlib.ExitStack() as stack:
        if kind != "external":
            other = stack.enter_context(h5py.File(secret, "w"))
            other["g/x"] = np.arange(12.0)
        shape = file["rewards"].shape
        if kind == "link_above":
            file["infos"] = h5py.ExternalLink(str(secret), "/g")
        else:
            del file["rewards"]
        if kind == "external":
            file.create_dataset("rewards", shape=shape, dtype="u4", external=[(str(secret), 0, 4 * shape[0])])
        elif kind == "link":
            file["rewards"] = h5py.ExternalLink(str(secret), "/g/x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=shape, dtype="f8")
            layout[:] = h5py.VirtualSource(str(secret), "g/x", shape=shape)
            file.create_virtual_dataset("rewards", layout)
    for use in (lambda: load(path, EXPECTATION), lambda: D4rlHdf5.inspect(path)):
        with pytest.raises(DemoError, match="another file") as caught:
            use()
        assert caught.value.field == ("infos" if kind == "link_above" else "rewards")


def test_without_timeouts_there_is_a_warning(tmp_path: Path) -> None:
    path = flat_file(tmp_path / "hopper_expert-v4.hdf5", (3, 4), timeouts=False)
    arrays = load(path, EXPECTATION)
    assert arrays.episode_starts.tolist() == [0, 3, 7]
    assert "no `timeouts`" in arrays.info.metadata["warnings"][0]


@pytest.mark.parametrize(
    ("name", "env_name", "semantics"),
    [
        ("hopper_medium-v2.hdf5", "Hopper", "v2"),
        ("walker2d_medium_replay-v2.hdf5", "Walker2d", "v2"),
        ("halfcheetah-medium-expert-v0.hdf5", "HalfCheetah", "v0"),
        ("hopper_medium.hdf5", "Hopper", ""),
        ("hammer-human-v1.hdf5", "", ""),
        ("demos.hdf5", "", ""),
    ],
)
def test_the_name_of_the_file_tells_the_environment(tmp_path: Path, name: str, env_name: str, semantics: str) -> None:
    info = D4rlHdf5.inspect(flat_file(tmp_path / name, (3, 4)))
    assert (info.env_name, info.semantics) == (env_name, semantics)
    assert info.source == ("rl" if env_name else "unknown")


def test_a_task_with_other_rules_or_an_unknown_environment(tmp_path: Path) -> None:
    new = Expectation(env_name="Hopper", obs_keys=(("observation", 4),), action_dim=2, semantics="v5")
    with pytest.raises(DemoError, match="simulates v5"):
        load(flat_file(tmp_path / "hopper_medium-v2.hdf5", (3, 4)), new)
    arrays = load(flat_file(tmp_path / "demos.hdf5", (3, 4)), new)
    assert any("Hopper was assumed" in w for w in arrays.info.metadata["warnings"])


def test_filters_images_and_split_observations_are_refused(good: Path) -> None:
    with pytest.raises(DemoError, match="has no filters, 'train' was asked for"):
        load(good, EXPECTATION, Selection(filter="train"))
    with pytest.raises(DemoError, match="front can't be converted"):
        load(good, EXPECTATION, Selection(images=("front",)))
    two = Expectation(env_name="Hopper", obs_keys=(("a", 1), ("b", 3)), action_dim=2)
    with pytest.raises(DemoError, match="one flat array, the task needs a, b apart"):
        load(good, two)


def replace(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


N = sum(LENGTHS)
MALFORMED: dict[str, tuple[Callable[[Any], None], str | None, str]] = {
    "no_terminals": (replace("terminals", None), "terminals", "is missing"),
    "observations_a_group": (
        lambda file: (file.move("observations", "o"), file.move("o", "observations/hand")),
        "observations",
        "is not a data set but a group of hand",
    ),
    "short_rewards": (replace("rewards", np.zeros(N - 1)), "rewards", f"{N - 1} steps, there are {N}"),
    "short_actions": (replace("actions", np.zeros((N - 1, 2))), "actions", f"{N - 1} steps, there are {N}"),
    "short_timeouts": (replace("timeouts", np.zeros(2)), "timeouts", "2 steps"),
    "odd_terminals": (replace("terminals", np.full(N, 0.5)), "terminals", "other values than 0 and 1"),
    "text_terminals": (replace("terminals", ["no"] * N), "terminals", "not numbers"),
    "terminals_of_steps_by_one": (replace("terminals", np.zeros((N, 1))), "terminals", "1 axes are needed"),
    "no_steps": (replace("terminals", np.zeros(0)), "terminals", "is empty"),
    "wide_actions": (replace("actions", np.zeros((N, 3))), "actions", "width 3, the task needs 2"),
    "narrow_obs": (replace("observations", np.zeros((N, 3))), "observations", "width 3, the task needs 4"),
    "flat_obs": (replace("observations", np.zeros(N)), "observations", "2 axes are needed"),
    "infinite_obs": (replace("observations", np.full((N, 4), np.inf)), "observations", "not finite at step 0"),
    "next_obs_shorter": (replace("next_observations", np.zeros((2, 4))), "next_observations", "2 steps"),
    "next_obs_a_group": (
        lambda f: (f.pop("next_observations"), f.create_group("next_observations")),
        None,
        "not a data",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    change, field, message = MALFORMED[name]
    path, out = write_file(tmp_path / "demos.hdf5"), tmp_path / "out"
    out.mkdir()
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DemoError, match=message) as caught:
        convert(path, out / "demos.arrow", EXPECTATION)
    assert caught.value.path == path
    if field:
        assert caught.value.field == field
    assert list(out.iterdir()) == []


def test_it_is_told_from_the_other_formats(good: Path) -> None:
    assert recognise(good) is D4rlHdf5
    assert not D4rlHdf5.recognises(good.parent)


def test_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write(tmp_path / "x.hdf5", recorded(), env_name="Hopper", semantics="v4", source={"kind": object()})
    assert list(tmp_path.iterdir()) == []
