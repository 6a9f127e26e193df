"""Minari: data sets that Minari itself wrote in each of its layouts, our writer, and malformed directories."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from gymnasium.envs.registration import EnvSpec

from inril_ray.demos.episodes import DemoError, Expectation, RecordedEpisode, Selection
from inril_ray.demos.formats.minari import Minari, write
from inril_ray.demos.store import convert, load, recognise

LAYOUTS = ("hdf5", "arrow", "parquet")
LENGTHS = (5, 3, 4)
FLAT = Expectation(env_name="Hopper", obs_keys=(("observation", 3),), action_dim=2, semantics="v5")
GOAL_KEYS = (("observation", 2), ("achieved_goal", 1), ("desired_goal", 1))
GOAL = Expectation(env_name="FetchPush", obs_keys=GOAL_KEYS, action_dim=2)
ARCHIVE = Path(__file__).parents[1] / "golden" / "minari.zip"
"""Written by Minari 0.5.4; see tests/record_minari.py."""


def unpack(folder: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("minari"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flat_data_set_of_minari(originals: Path, layout: str) -> None:
    arrays = load(originals / layout / "flat", FLAT)
    at = np.concatenate([100.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)])
    np.testing.assert_array_equal(arrays.obs, at[:, None] + [0.0, 0.5, 0.75])
    np.testing.assert_array_equal(arrays.final_obs[:, 0], [5.0, 103.0, 204.0])
    actions = [(np.arange(n * 2).reshape(n, 2) + e) / 10 for e, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(arrays.actions, np.concatenate(actions), rtol=1e-6)
    np.testing.assert_array_equal(arrays.rewards, np.concatenate([np.arange(n) - 1.0 for n in LENGTHS]))
    assert arrays.terminated.tolist() == [True, False, False]
    assert arrays.success.tolist() == [-1, -1, -1]
    info = arrays.info
    assert (info.env_name, info.semantics, info.source, info.format) == ("Hopper", "v5", "human", "minari")
    assert info.metadata["dataset_id"] == "flat/human-v0"
    assert info.metadata["layout"] == layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_goal_data_set_of_minari(originals: Path, layout: str) -> None:
    arrays = load(originals / layout / "goal", GOAL)
    at = np.concatenate([100.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)])
    np.testing.assert_array_equal(arrays.obs, np.stack([at, at + 0.25, -at, 2 * at], axis=1))
    assert arrays.success.tolist() == [0, 1, 0]
    everything = load(originals / layout / "goal")  # in alphabetical order
    np.testing.assert_array_equal(everything.obs, np.stack([-at, 2 * at, at, at + 0.25], axis=1))


def test_the_data_directory_may_be_named_itself(originals: Path) -> None:
    assert load(originals / "arrow" / "flat" / "data", FLAT).obs.shape == (12, 3)
    assert recognise(originals / "arrow" / "flat") is Minari
    assert not Minari.recognises(originals)


def test_filters_images_and_split_observations_are_refused(originals: Path) -> None:
    with pytest.raises(DemoError, match="has no filters"):
        load(originals / "hdf5" / "flat", FLAT, Selection(filter="train"))
    with pytest.raises(DemoError, match="robomimic files only; front can't"):
        load(originals / "hdf5" / "flat", FLAT, Selection(images=("front",)))
    with pytest.raises(DemoError, match="is one array, the task needs a, b apart"):
        load(originals / "hdf5" / "flat", Expectation(env_name=None, obs_keys=(("a", 1), ("b", 2)), action_dim=2))


# -- writer -----------------------------------------------------------------------------------------------------------
def recorded(width: int, success: bool | None) -> list[RecordedEpisode]:
    rng = np.random.default_rng(0)
    return [
        RecordedEpisode(
            obs=rng.normal(size=(n, width)),
            next_obs=rng.normal(size=(n, width)),
            actions=rng.uniform(-1, 1, (n, 2)),
            rewards=rng.normal(size=n),
            terminated=n == 3,
            success=None if success is None else np.arange(n) >= n - 2 * success,
        )
        for n in LENGTHS
    ]


def write_set(path: Path, expectation: Expectation, env_id: str, success: bool | None = None, **source: Any) -> Path:
    write(
        path,
        recorded(sum(w for _, w in expectation.obs_keys), success),
        env_spec=EnvSpec(env_id, max_episode_steps=50).to_json(),
        obs_keys=expectation.obs_keys,
        action_range=(-1.0, 1.0),
        source={"kind": "planner", **source},
        dataset_id="ours/set-v0",
    )
    return path


@pytest.mark.parametrize(("expectation", "env_id"), [(FLAT, "Hopper-v5"), (GOAL, "FetchPush-v4")])
@pytest.mark.parametrize("success", [None, True, False])
def test_round_trip(tmp_path: Path, expectation: Expectation, env_id: str, success: bool | None) -> None:
    path = write_set(tmp_path / "set-v0", expectation, env_id, success)
    episodes = list(Minari.read(path, expectation))
    for got, want in zip(episodes, recorded(3 if expectation is FLAT else 4, success), strict=True):
        for name in ("obs", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name).astype(np.float32))
        np.testing.assert_array_equal(got.final_obs, want.next_obs[-1].astype(np.float32))
        assert (got.terminated, got.success) == (want.terminated, success)
    info = load(path, expectation).info
    assert info.source == "planner"
    assert info.metadata["made_by"] == {"kind": "planner"}
    assert [p.name for p in tmp_path.iterdir()] == ["set-v0"]
    told = json.loads((path / "data" / "metadata.json").read_text())
    env_spec = EnvSpec.from_json(told["env_spec"])  # how Minari makes the environment again
    assert (env_spec.id, env_spec.max_episode_steps) == (env_id, 50)


def test_success_is_written_for_every_step(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set-v0", FLAT, "Hopper-v5", True)
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        assert file["episode_0/infos/success"][()].tolist() == [False] * 4 + [True] * 2


def test_writing_replaces_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set-v0", FLAT, "Hopper-v5")
    with pytest.raises(DemoError, match="exists"):
        write_set(path, FLAT, "Hopper-v5")
    with pytest.raises(TypeError):
        write_set(tmp_path / "other", FLAT, "Hopper-v5", unwritable=object())
    assert [p.name for p in tmp_path.iterdir()] == ["set-v0"]


# -- malformed data sets ----------------------------------------------------------------------------------------------
def metadata(**changes: Any) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        told = json.loads((data / "metadata.json").read_text())
        told.update(changes)
        (data / "metadata.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return change


def hdf5(name: str, value: Any) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "r+") as file:
            del file[name]
            if value is not None:
                file[name] = value

    return change


def column(name: str, make: Callable[[pa.Array], pa.Array | None]) -> Callable[[Path], None]:
    """Change a column of the second episode."""

    def change(data: Path) -> None:
        file = data / "1" / "part-0.arrow"
        table = pa.ipc.open_file(pa.BufferReader(file.read_bytes())).read_all()
        columns = {n: make(table[n].combine_chunks()) if n == name else table[n] for n in table.column_names}
        table = pa.table({n: c for n, c in columns.items() if c is not None})
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    return change


def nothing(array: pa.Array) -> pa.Array:
    return pa.array([None] * len(array), array.type)


MALFORMED: dict[str, tuple[str, Callable[[Path], Any], str | None, str]] = {
    # name: (layout, change, field, part of the message)
    "metadata_gone": ("hdf5", lambda d: (d / "metadata.json").unlink(), "metadata.json", "is missing"),
    "metadata_not_json": (
        "hdf5",
        lambda d: (d / "metadata.json").write_text("{"),
        None,
        r"metadata\.json: is not JSON",
    ),
    "metadata_a_list": (
        "hdf5",
        lambda d: (d / "metadata.json").write_text('["total_episodes"]'),
        "metadata.json",
        "not",
    ),
    "no_episodes": ("hdf5", metadata(total_episodes=0), "total_episodes", "is 0; a positive number"),
    "episodes_a_word": ("hdf5", metadata(total_episodes="3"), "total_episodes", "positive number"),
    "too_few_episodes": ("hdf5", metadata(total_episodes=4), "total_episodes", "says 4, there are 3"),
    "too_few_directories": ("arrow", metadata(total_episodes=4), "total_episodes", "says 4"),
    "too_few_steps": ("hdf5", metadata(total_steps=13), "total_steps", "says 13, there are 12"),
    "unknown_layout": ("hdf5", metadata(data_format="zarr"), "data_format", "'zarr'; known: hdf5, arrow, parquet"),
    "space_not_json": ("hdf5", metadata(observation_space="Box"), "observation_space", "not a JSON object"),
    "space_missing": ("hdf5", metadata(observation_space=None), "observation_space", "None; Box and Dict"),
    "space_discrete": ("hdf5", metadata(observation_space='{"type": "Discrete"}'), "observation_space", "'Discrete'"),
    "space_an_image": (
        "hdf5",
        metadata(observation_space='{"type": "Box", "shape": [32, 32, 3]}'),
        "observation_space",
        "holds no vector",
    ),
    "space_without_shape": ("hdf5", metadata(observation_space='{"type": "Box"}'), None, "damaged"),
    "space_too_wide": (
        "hdf5",
        metadata(observation_space='{"type": "Box", "shape": [4]}'),
        "observations",
        "width 4, the task needs 3",
    ),
    "spec_not_json": ("hdf5", metadata(env_spec="Hopper-v5"), "env_spec", "not a JSON object"),
    "file_gone": ("hdf5", lambda d: (d / "main_data.hdf5").unlink(), None, "does not exist"),
    "no_actions": ("hdf5", hdf5("episode_1/actions", None), "actions", "is missing"),
    "no_observations": ("hdf5", hdf5("episode_1/observations", None), "observations", "is missing"),
    "one_observation_less": ("hdf5", hdf5("episode_1/observations", np.zeros((3, 3))), "observations", "3 steps"),
    "wide_actions": ("hdf5", hdf5("episode_1/actions", np.zeros((3, 5))), "actions", "width 5, the task needs 2"),
    "odd_terminations": ("hdf5", hdf5("episode_1/terminations", np.full(3, 2)), "terminations", "0 and 1"),
    "nan_rewards": ("hdf5", hdf5("episode_1/rewards", np.full(3, np.nan)), "rewards", "not finite at step 0"),
    "episode_a_dataset": ("hdf5", hdf5("episode_1", 1.0), "episode_1", "is missing"),
    "episode_renamed": (
        "hdf5",
        lambda d: h5py.File(d / "main_data.hdf5", "r+").move("episode_1", "x"),
        None,
        "missing",
    ),
    "directory_gone": ("arrow", lambda d: shutil.rmtree(d / "1"), "total_episodes", r"directories are \[0, 2\]"),
    "part_gone": ("arrow", lambda d: (d / "1" / "part-0.arrow").unlink(), None, "has 0 data files"),
    "own_metadata_gone": ("arrow", lambda d: (d / "1" / "metadata.json").unlink(), None, "json: does not exist"),
    "own_metadata_differs": (
        "arrow",
        lambda d: (d / "1" / "metadata.json").write_text('{"total_steps": 9}'),
        "total_steps",
        "says 9, but there are 3 actions",
    ),
    "no_column": ("arrow", column("rewards", lambda a: None), None, "rewards"),
    "null_column": ("arrow", column("rewards", nothing), None, "4 values are missing"),
    "text_column": ("arrow", column("rewards", lambda a: pa.array(["x"] * 4)), "rewards", "not numbers"),
    "ragged_column": (
        "arrow",
        column("actions", lambda a: pa.array([[1.0], [1.0, 2.0], [1.0], [1.0]])),
        None,
        "rows differ in length: 1 to 2",
    ),
    "flat_column": ("arrow", column("observations", lambda a: pa.array([1.0] * 4)), "observations", "2 axes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_set_is_one_error_and_leaves_nothing(tmp_path: Path, originals: Path, name: str) -> None:
    layout, change, field, message = MALFORMED[name]
    path, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(originals / layout / "flat", path)
    change(path / "data")
    out.mkdir()
    with pytest.raises(DemoError, match=message) as caught:
        convert(path, out / "demos.arrow", FLAT)
    assert str(path) in str(caught.value)
    if field:
        assert caught.value.field == field
    assert list(out.iterdir()) == []


def test_a_key_that_is_not_in_the_dictionary(originals: Path) -> None:
    wrong = Expectation(env_name=None, obs_keys=(("observation", 2), ("goal", 1)), action_dim=2)
    with pytest.raises(DemoError, match="is missing; found: achieved_goal") as caught:
        load(originals / "parquet" / "goal", wrong)
    assert caught.value.field == "observations/goal"


def test_passing_by_the_goal_is_no_success(originals: Path, tmp_path: Path) -> None:
    for end in (False, True):
        copy = tmp_path / str(end)
        shutil.copytree(originals / "hdf5" / "goal", copy)
        with h5py.File(copy / "data" / "main_data.hdf5", "r+") as file:
            told = file["episode_0/infos/success"]
            told[2], told[-1] = True, end
        assert load(copy, GOAL).success.tolist() == [int(end), 1, 0]
