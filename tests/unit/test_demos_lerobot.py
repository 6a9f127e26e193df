"""LeRobot v3: directories in the published layout, as its own writer lays them out, and malformed ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inril_ray.demos.episodes import DemoError, Expectation, Selection
from inril_ray.demos.formats.lerobot import LeRobot
from inril_ray.demos.store import convert, load, recognise
from inril_ray.types import Interface

LENGTHS = (5, 3, 4, 6)
FILES = (0, 0, 1, 1)
"""Data file of each episode."""
EXPECTATION = Expectation(env_name="Reach", obs_keys=(("state", 3), ("environment_state", 1)), action_dim=2)
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def vectors(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.astype(np.float32).ravel()), array.shape[1])


def feature(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": None}


def write_set(path: Path) -> Path:
    """Step t of episode e observes 100 e + t. Vectors of one number are numbers, as LeRobot writes them."""
    meta, total = path / "meta", sum(LENGTHS)
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    (path / "data" / "chunk-000").mkdir(parents=True)
    starts = np.cumsum([0, *LENGTHS])
    at = np.concatenate([100.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)])
    step = np.concatenate([np.arange(n) for n in LENGTHS])
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    actions = np.random.default_rng(0).uniform(-1, 1, (total, 2)).astype(np.float32)
    last = np.isin(np.arange(total), starts[1:] - 1)
    table = pa.table(
        {
            "observation.state": vectors(at[:, None] + [0.0, 0.25, 0.5]),
            "observation.environment_state": pa.array(-at.astype(np.float32)),
            "action": vectors(actions),
            "next.reward": pa.array((last & (episode == 1)).astype(np.float32)),
            "next.success": pa.array(last & (episode == 1)),
            "next.done": pa.array(last),
            "timestamp": pa.array((step / 10).astype(np.float32)),
            "frame_index": pa.array(step),
            "episode_index": pa.array(episode),
            "index": pa.array(np.arange(total)),
            "task_index": pa.array(np.zeros(total, np.int64)),
        }
    )
    for file in set(FILES):
        rows = np.isin(episode, [e for e, f in enumerate(FILES) if f == file])
        with pq.ParquetWriter(path / DATA_PATH.format(chunk_index=0, file_index=file), table.schema) as writer:
            own = table.filter(pa.array(rows))
            for e in np.unique(episode[rows]):  # one row group an episode, as LeRobot writes them
                writer.write_table(own.filter(pa.array(episode[rows] == e)))
    episodes = {
        "episode_index": list(range(len(LENGTHS))),
        "tasks": [["reach the goal"]] * len(LENGTHS),
        "length": list(LENGTHS),
        "data/chunk_index": [0] * len(LENGTHS),
        "data/file_index": list(FILES),
        "dataset_from_index": starts[:-1].tolist(),
        "dataset_to_index": starts[1:].tolist(),
        "stats/action/count": [[n] for n in LENGTHS],
    }
    pq.write_table(pa.table(episodes), meta / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": ["reach the goal"]}), meta / "tasks.parquet")
    stats = {"min": actions.min(axis=0).tolist(), "max": actions.max(axis=0).tolist(), "count": [total]}
    (meta / "stats.json").write_text(json.dumps({"action": stats}))
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": len(LENGTHS),
        "total_frames": total,
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": DATA_PATH,
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": feature("float32", 3),
            "observation.environment_state": feature("float32", 1),
            "observation.images.front": feature("video", 48, 64, 3),
            "action": feature("float32", 2),
            "next.reward": feature("float32", 1),
            "next.success": feature("bool", 1),
            "next.done": feature("bool", 1),
            **{k: feature("int64", 1) for k in ("frame_index", "episode_index", "index", "task_index")},
        },
    }
    (meta / "info.json").write_text(json.dumps(info))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def test_it_is_read(good: Path) -> None:
    assert recognise(good) is LeRobot
    arrays = load(good, EXPECTATION)
    at = np.concatenate([100.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)])
    np.testing.assert_array_equal(arrays.obs, np.stack([at, at + 0.25, at + 0.5, -at], axis=1))
    assert np.diff(arrays.episode_starts).tolist() == list(LENGTHS)
    assert arrays.success.tolist() == [0, 1, 0, 0]
    assert arrays.rewards.sum() == 1.0
    assert arrays.held_out.tolist() == [False, False, False, True]
    assert arrays.terminated.tolist() == [-1] * 4
    assert np.isnan(arrays.final_obs).all()
    metadata = arrays.info.metadata
    assert metadata["tasks"] == ["reach the goal"]
    assert metadata["robot_type"] == "panda"
    assert metadata["cameras"] == ["observation.images.front (video)"]
    assert "cameras are not decoded" in metadata["warnings"][0]
    assert "Reach was assumed" in metadata["warnings"][1]


def test_without_an_expectation_vectors_come_in_alphabetical_order(good: Path) -> None:
    at = np.concatenate([100.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)])
    np.testing.assert_array_equal(load(good).obs, np.stack([-at, at, at + 0.25, at + 0.5], axis=1))


def test_a_task_with_one_key_takes_the_state(good: Path) -> None:
    one = dataclasses.replace(EXPECTATION, obs_keys=(("observation", 3),))
    assert load(good, one).obs.shape == (sum(LENGTHS), 3)
    with pytest.raises(DemoError, match="has width 3, the task needs 4"):
        load(good, dataclasses.replace(EXPECTATION, obs_keys=(("observation", 4),)))
    two = dataclasses.replace(EXPECTATION, obs_keys=(("state", 3), ("object", 1)))
    with pytest.raises(DemoError, match=r"is missing; found: observation\.state, observation\.environment_state") as e:
        load(good, two)
    assert e.value.field == "observation.object"


def test_filters_and_images_are_refused(good: Path) -> None:
    with pytest.raises(DemoError, match="are videos, which are not decoded; observation.images.front can't"):
        load(good, EXPECTATION, Selection(images=("observation.images.front",)))
    with pytest.raises(DemoError, match="has no filters"):
        load(good, EXPECTATION, Selection(filter="train"))
    camera = dataclasses.replace(EXPECTATION, obs_keys=(("images.front", 3),))
    with pytest.raises(DemoError, match=r"is a camera \(video\), which is not decoded"):
        load(good, camera)


def test_what_is_optional_may_be_missing(good: Path) -> None:
    for name in ("stats.json", "tasks.parquet"):
        (good / "meta" / name).unlink()
    info(features={k: v for k, v in read_info(good)["features"].items() if not k.startswith("next.")}, splits=None)(
        good
    )
    arrays = load(good, EXPECTATION)
    assert arrays.success.tolist() == [-1] * 4
    assert np.isnan(arrays.rewards).all()
    assert not arrays.held_out.any()


def test_stale_places_in_the_metadata_are_not_believed(good: Path) -> None:
    """LeRobot's converter of 0.4.0 leaves them so; the rows themselves say which episode they are of."""
    plain = load(good, EXPECTATION)
    stale = {"data__file_index": [0, 0, 0, 0], "dataset_from_index": [0, 0, 0, 0], "dataset_to_index": [5, 3, 4, 6]}
    table(EPISODES, **{name: lambda _, v=v: v for name, v in stale.items()})(good)
    assert load(good, EXPECTATION).hash_content() == plain.hash_content()
    table(EPISODES, data__chunk_index=None, data__file_index=lambda v: [7] * len(v), dataset_from_index=None)(good)
    assert load(good, EXPECTATION).hash_content() == plain.hash_content()


def test_episodes_come_in_order_wherever_they_are(good: Path) -> None:
    plain = load(good, EXPECTATION)
    first, second = (good / DATA.replace("000.", f"00{i}.") for i in (0, 1))
    first.rename(good / "x")
    second.rename(first)
    (good / "x").rename(second)
    assert load(good, EXPECTATION).hash_content() == plain.hash_content()


def renamed(path: Path, names: dict[str, str]) -> None:
    """Give features other names, in all that mentions them."""
    told = read_info(path)
    told["features"] = {names.get(key, key): value for key, value in told["features"].items()}
    (path / "meta" / "info.json").write_text(json.dumps(told))
    stats = json.loads((path / "meta" / "stats.json").read_text())
    (path / "meta" / "stats.json").write_text(json.dumps({names.get(key, key): v for key, v in stats.items()}))
    for file in sorted((path / "data").glob("*/*.parquet")):
        content = pq.read_table(file)
        pq.write_table(content.rename_columns([names.get(n, n) for n in content.column_names]), file)


def test_features_of_other_names_are_told_and_can_be_named(good: Path) -> None:
    plain = load(good, EXPECTATION)
    names = {"action": "actions", "observation.state": "state", "observation.environment_state": "objects",
             "next.reward": "reward", "next.success": "done"}  # fmt: skip
    renamed(good, names)
    held = "state, objects, observation.images.front, actions, reward, done, next.done"
    advice = r"--key action=NAME --key environment_state=NAME \(`inril demos inspect` and `convert` take"
    with pytest.raises(DemoError, match=f"are missing; found: {held}. Where .* them with {advice}") as caught:
        load(good, EXPECTATION)
    assert caught.value.field == "action, observation.environment_state"
    with pytest.raises(
        DemoError, match=f"is missing; found: {held}. .* it with --key environment_state=NAME"
    ) as caught:
        load(good, EXPECTATION, Selection(names={"action": "actions"}))
    assert caught.value.field == "observation.environment_state"
    keys = {"action": "actions", "environment_state": "objects"}  # `state` is found by its own name
    unpaid = load(good, EXPECTATION, Selection(names=keys))
    assert np.isnan(unpaid.rewards).all()
    assert unpaid.success.tolist() == [-1] * 4
    keys = {"action": "actions", "observation.environment_state": "objects"}  # the key as LeRobot would call it
    named = load(good, EXPECTATION, Selection(names={**keys, "next.reward": "reward", "next.success": "done"}))
    assert named.hash_content() == plain.hash_content()
    with pytest.raises(DemoError, match="is missing; found: state") as caught:
        load(good, EXPECTATION, Selection(names={**keys, "next.reward": "rewards"}))
    assert caught.value.field == "rewards"
    keys = {"action": "actions"}
    with pytest.raises(DemoError, match="holds no vector whose name begins so; found: state, objects") as caught:
        load(good, selection=Selection(names=keys))


@pytest.mark.parametrize("robot", [None, "unknown", "Unknown", "", "none", "N/A", [], [None]])
def test_a_robot_that_nobody_named_is_not_stated(good: Path, robot: Any) -> None:
    """Converters and ``lerobot/pusht`` write "unknown"."""
    info(robot_type=robot)(good)
    arrays = load(good, dataclasses.replace(EXPECTATION, interface=Interface(robots=("Panda",))))
    assert arrays.info.stated.robots is None
    assert "robot_type" not in arrays.info.metadata


@pytest.mark.parametrize("fps", [0, -1, "unknown", float("inf")])
def test_a_frequency_that_is_none_is_not_stated(good: Path, fps: Any) -> None:
    info(fps=fps)(good)
    arrays = load(good, dataclasses.replace(EXPECTATION, interface=Interface(control_hz=20.0)))
    assert arrays.info.stated.control_hz is None


def test_the_one_key_of_a_task_is_missing_as_lerobot_would_call_it(good: Path) -> None:
    renamed(good, {"observation.state": "position"})
    one = dataclasses.replace(EXPECTATION, obs_keys=(("observation", 3),))
    with pytest.raises(DemoError, match="--key observation=NAME") as caught:
        load(good, one)
    assert caught.value.field == "observation.state"
    assert load(good, one, Selection(names={"observation": "position"})).obs.shape == (sum(LENGTHS), 3)


# -- malformed data sets ----------------------------------------------------------------------------------------------
def read_info(path: Path) -> dict[str, Any]:
    return json.loads((path / "meta" / "info.json").read_text())


def info(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        told = {**read_info(path), **changes}
        (path / "meta" / "info.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return change


def table(name: str, **columns: Callable[[list[Any]], Any] | None) -> Callable[[Path], None]:
    """Change columns of a Parquet file; ``__`` stands for a dot or a slash in their names."""

    def change(path: Path) -> None:
        content = pq.read_table(path / name)
        for column, make in columns.items():
            real = next(n for n in content.column_names if n.replace(".", "__").replace("/", "__") == column)
            index = content.column_names.index(real)
            if make is None:
                content = content.remove_column(index)
            else:
                content = content.set_column(index, real, pa.array(make(content[real].to_pylist())))
        pq.write_table(content, path / name)

    return change


def changed(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:index], value, *values[index + 1 :]]


EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"
MALFORMED: dict[str, tuple[Callable[[Path], Any], str | None, str]] = {
    # name: (change, field, part of the message)
    "no_info": (lambda p: (p / "meta" / "info.json").unlink(), None, "none of the known formats"),
    "info_not_json": (lambda p: (p / "meta" / "info.json").write_text("{"), None, r"info\.json: is not JSON"),
    "info_of_another_tool": (lambda p: (p / "meta" / "info.json").write_text("{}"), "codebase_version", "'None'; v3"),
    "version_2": (info(codebase_version="v2.1"), "codebase_version", "'v2.1'; v3 is read"),
    "no_total": (info(total_episodes=None), "total_episodes", "is None; a positive number"),
    "other_total": (info(total_episodes=5), "total_episodes", "says 5, meta/episodes lists 4"),
    "other_frames": (info(total_frames=17), "total_frames", "says 17, meta/episodes counts 18"),
    "foreign_data_path": (info(data_path="../{chunk_index}.parquet"), "data_path", "is '../"),
    "features_a_list": (info(features=["action"]), "features", "not a list of features"),
    "no_features": (
        info(features={}),
        "action, observation.state, observation.environment_state",
        "are missing; found: none",
    ),
    "frequency_in_words": (info(fps="abc"), "fps", "'abc' is no number of Hz"),
    "frequency_a_list": (info(fps=[10]), "fps", r"\[10\] is no number of Hz"),
    "odd_split": (info(splits={"train": "most"}), "splits.train", "'most', not 'first:end'"),
    "nothing_to_train_on": (info(splits={"train": "0:0"}), None, "none is left to train on"),
    "no_episodes_file": (lambda p: (p / EPISODES).unlink(), "total_episodes", "lists 0"),
    "episodes_not_parquet": (lambda p: (p / EPISODES).write_bytes(b"PAR1"), None, "damaged or truncated"),
    "episodes_lack_lengths": (table(EPISODES, length=None), None, "damaged or truncated"),
    "length_null": (table(EPISODES, length=changed(1, None)), None, "damaged or truncated"),
    "length_wrong": (table(EPISODES, length=changed(1, 4)), "total_frames", "says 18, meta/episodes counts 19"),
    "lengths_wrong": (
        table(EPISODES, length=lambda v: [v[1], v[0], *v[2:]]),
        "length",
        "says 3, the data file has 5 steps of it",
    ),
    "length_negative": (table(EPISODES, length=changed(0, -5)), "length", "is -5; a positive number"),
    "data_file_gone": (
        lambda p: (p / DATA).unlink(),
        "episode_index",
        "episode 0.*no steps in any of the 1 data files",
    ),
    "data_file_twice": (
        lambda p: (p / DATA.replace("000.", "007.")).write_bytes((p / DATA).read_bytes()),
        "episode_index",
        "is in file-000.parquet and in file-007.parquet",
    ),
    "steps_of_no_episode": (
        table(DATA.replace("file-000", "file-001"), episode_index=changed(9, 8)),
        "episode_index",
        r"not in meta/episodes: \[8\]",
    ),
    "steps_apart": (
        table(DATA, episode_index=lambda v: [*v[:2], v[6], *v[3:6], v[2], *v[7:]]),
        "episode_index",
        "is not in one piece",
    ),
    "data_not_parquet": (lambda p: (p / DATA).write_bytes(b"PAR1PAR1"), None, "damaged or truncated"),
    "no_column": (table(DATA, action=None), None, "file-000.parquet: lacks the columns action"),
    "steps_of_another": (table(DATA, episode_index=changed(4, 1)), "length", "says 5, the data file has 4 steps"),
    "frames_not_counted": (table(DATA, frame_index=changed(2, 7)), "frame_index", "does not count from 0"),
    "null_action": (table(DATA, action=changed(0, None)), None, "1 values are missing"),
    "null_in_action": (table(DATA, action=changed(0, [0.0, None])), None, "1 values are missing"),
    "ragged_action": (table(DATA, action=changed(0, [0.0])), None, "rows differ in length: 1 to 2"),
    "text_state": (table(DATA, observation__state=lambda v: ["x"] * len(v)), "observation.state", "not numbers"),
    "infinite_state": (
        table(DATA, observation__state=changed(3, [0.0, np.inf, 0.0])),
        "observation.state",
        "not finite at step 3",
    ),
    "odd_success": (table(DATA, next__success=lambda v: [2] * len(v)), "next.success", "other values than 0 and 1"),
    "stats_not_json": (lambda p: (p / "meta" / "stats.json").write_text("{"), None, r"stats\.json: is not JSON"),
    "stats_of_another": (
        lambda p: (p / "meta" / "stats.json").write_text('{"action": {"max": [5.0, 5.0]}}'),
        "stats action max",
        r"says \[5\.0, 5\.0\], the data have",
    ),
    "stats_of_another_width": (
        lambda p: (p / "meta" / "stats.json").write_text('{"action": {"min": [-1.0]}}'),
        "stats action min",
        "the data have",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_set_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    change, field, message = MALFORMED[name]
    path, out = write_set(tmp_path / "set"), tmp_path / "out"
    change(path)
    out.mkdir()
    with pytest.raises(DemoError, match=message) as caught:
        convert(path, out / "demos.arrow", EXPECTATION)
    assert str(path) in str(caught.value)
    if field:
        assert caught.value.field == field
    assert list(out.iterdir()) == []
