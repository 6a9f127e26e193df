"""The Arrow file (a read-only map, never half there) and the store that samples windows of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inril_ray.demos.episodes import DemoError, Expectation, Selection
from inril_ray.demos.store import DemoArrays, DemoStore, convert, load, read_arrow, read_source, write_arrow
from inril_ray.demos.summary import summary_lines
from inril_ray.types import InrilError
from tests.fakes import fake_demos
from tests.unit.test_demos_robomimic import EXPECTATION, LENGTHS, OBS_KEYS, recorded, write_file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_file(tmp_path / "demos.hdf5")


def ragged(lengths: tuple[int, ...], held_out: tuple[bool, ...]) -> DemoArrays:
    """Demonstrations whose observation is [episode, step] and whose action is [step]."""
    obs = np.array([[e, t] for e, n in enumerate(lengths) for t in range(n)], np.float32)
    return dataclasses.replace(
        fake_demos(),
        obs=obs,
        actions=obs[:, 1:].copy(),
        rewards=np.zeros(len(obs), np.float32),
        episode_starts=np.cumsum([0, *lengths]),
        held_out=np.array(held_out),
    )


def same(a: DemoArrays, b: DemoArrays) -> None:
    for name in ("obs", "actions", "rewards", "episode_starts", "held_out", "final_obs", "terminated", "success"):
        got, want = getattr(a, name), getattr(b, name)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert json.loads(json.dumps(dataclasses.asdict(a.info))) == json.loads(json.dumps(dataclasses.asdict(b.info)))


# -- files ------------------------------------------------------------------------------------------------------------
def test_arrow_round_trip(source: Path, tmp_path: Path) -> None:
    converted = convert(source, tmp_path / "new" / "demos.arrow", EXPECTATION)
    same(load(tmp_path / "new" / "demos.arrow", EXPECTATION), converted)
    same(read_source(source, EXPECTATION), converted)
    assert converted.info.obs_keys == OBS_KEYS
    assert converted.info.source_file == "demos.hdf5"
    assert converted.info.source == "scripted"
    assert np.diff(converted.episode_starts).tolist() == list(LENGTHS)
    np.testing.assert_array_equal(converted.obs, np.concatenate([e.obs for e in recorded()]))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["demos.arrow"]


def test_arrays_are_read_only_views_of_the_map(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "demos.arrow"
    convert(source, path, EXPECTATION)
    allocated = pa.total_allocated_bytes()
    arrays = read_arrow(path)
    assert pa.total_allocated_bytes() == allocated, "something was copied"
    for array in (arrays.obs, arrays.actions, arrays.rewards):
        assert not array.flags.writeable
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    again = table["obs"].chunk(0).flatten().to_numpy(zero_copy_only=True)
    np.testing.assert_array_equal(again.reshape(arrays.obs.shape), arrays.obs)
    store = DemoStore(arrays, 3)
    assert np.shares_memory(store.arrays.obs, arrays.obs)
    batch = store.sample(np.random.default_rng(0), 4)
    assert not np.shares_memory(batch.obs, arrays.obs)
    assert batch.obs.flags.writeable


def test_hash_is_that_of_the_content(source: Path, tmp_path: Path) -> None:
    first = read_source(source, EXPECTATION).info.content_hash
    copy = write_file(tmp_path / "another_name.hdf5")
    assert read_source(copy, EXPECTATION).info.content_hash == first
    convert(copy, tmp_path / "demos.arrow", EXPECTATION)
    assert read_arrow(tmp_path / "demos.arrow").info.content_hash == first
    for number, change in enumerate(({"seed": 1}, {"lengths": (5, 7, 6, 4)})):
        other = write_file(tmp_path / f"other_{number}.hdf5", recorded(**change))
        assert read_source(other, EXPECTATION).info.content_hash != first
    fewer = write_file(tmp_path / "fewer.hdf5", num_held_out=2)
    assert read_source(fewer, EXPECTATION).info.content_hash != first


def test_changed_numbers_are_found_by_their_hash(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "demos.arrow"
    arrays = convert(source, path, EXPECTATION)
    needle = arrays.actions[3].tobytes()
    content = path.read_bytes()
    assert content.count(needle) == 1
    path.unlink()
    path.write_bytes(content.replace(needle, np.zeros(2, np.float32).tobytes()))
    with pytest.raises(DemoError, match="differs from its hash"):
        load(path, EXPECTATION)


def test_selecting_from_a_converted_store_is_an_error(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "demos.arrow", EXPECTATION)
    with pytest.raises(DemoError, match="chosen when it is converted"):
        load(tmp_path / "demos.arrow", EXPECTATION, Selection(filter="train"))


def test_what_is_not_given_is_unknown() -> None:
    arrays = fake_demos(num_episodes=3)
    assert np.isnan(arrays.final_obs).all()
    assert arrays.final_obs.shape == (3, 3)
    assert arrays.success.tolist() == [-1, -1, -1]
    assert arrays.terminated.tolist() == [-1, -1, -1]


def test_the_same_demonstrations_give_the_same_arrow_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(source, tmp_path / f"{name}.arrow", EXPECTATION)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_an_arrow_file_for_another_task_is_an_error(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "demos.arrow"
    convert(source, path, EXPECTATION)
    with pytest.raises(DemoError, match="'Fake', the task needs 'Lift'") as caught:
        load(path, dataclasses.replace(EXPECTATION, env_name="Lift"))
    assert caught.value.field == "env_name"
    with pytest.raises(DemoError, match="hand.*the task needs") as caught:
        load(path, dataclasses.replace(EXPECTATION, obs_keys=OBS_KEYS[::-1]))
    assert caught.value.field == "obs_keys"
    load(path, Expectation(env_name=None, obs_keys=OBS_KEYS, action_dim=2))


def test_an_arrow_file_with_other_actions_is_an_error(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "demos.arrow", EXPECTATION)
    with pytest.raises(DemoError, match="width 2, the task needs 7"):
        load(tmp_path / "demos.arrow", dataclasses.replace(EXPECTATION, action_dim=7))


def test_a_foreign_arrow_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "foreign.arrow"
    table = pa.table({"obs": [1.0, 2.0]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DemoError, match="not a complete demonstration store") as caught:
        load(path)
    assert caught.value.path == path


def rewritten(path: Path, **changes: object) -> None:
    """Write an Arrow store anew with another header."""
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    header = {**json.loads(table.schema.metadata[b"inril_demos"]), **changes}
    table = table.replace_schema_metadata({b"inril_demos": json.dumps(header)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, this release reads 3. Convert again"),
        ({"episode_starts": [0, 5, 12, 16, 21]}, "disagrees with the number of steps"),
        ({"episode_starts": [0, 5, 12, 22]}, "disagrees with the number of steps"),
        ({"episode_starts": [0, 12, 5, 16, 22]}, "disagrees with the number of steps"),
        ({"episode_starts": [0, 5, 5, 16, 22]}, "disagrees with the number of steps"),
        ({"episode_starts": []}, "disagrees with the number of steps"),
        ({"episode_starts": "none"}, "not a complete demonstration store"),
        ({"held_out": [False]}, "disagrees with the number of steps"),
        ({"final_obs": [None]}, "disagrees with the number of episodes"),
        ({"final_obs": [[1.0]] * 4}, "disagrees with the number of episodes"),
        ({"success": [1, 0]}, "disagrees with the number of episodes"),
        ({"terminated": [True] * 5}, "disagrees with the number of episodes"),
        ({"success": [0, 0, 0, 0]}, "differs from its hash"),
        ({"held_out": [True, False, False, False]}, "differs from its hash"),
        ({"image_shapes": {"front": [2, 2, 3]}}, "not a complete demonstration store"),
        ({"info": {}}, "not a complete demonstration store"),
        ({"info": None}, "not a complete demonstration store"),
    ],
)
def test_a_header_that_does_not_fit_is_an_error(
    source: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "demos.arrow"
    convert(source, path, EXPECTATION)
    rewritten(path)
    load(path, EXPECTATION)
    rewritten(path, **changes)
    with pytest.raises(DemoError, match=message) as caught:
        load(path, EXPECTATION)
    assert caught.value.path == path


@pytest.mark.parametrize("value", [7, "x", None, [], {}, [7], {"x": [None]}, True])
def test_a_header_of_other_types_is_an_error_or_printed(source: Path, tmp_path: Path, value: object) -> None:
    """Every value in it, and what is calculated with, replaced by one of another kind."""
    path = tmp_path / "demos.arrow"
    convert(source, path, EXPECTATION)
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    header = json.loads(table.schema.metadata[b"inril_demos"])
    known = {"warnings": ["w"], "observations": {"a": [3]}, "score_range": [0.0, 1.0]}
    info = {**header["info"], "metadata": {**header["info"]["metadata"], **known}}
    changed = [{name: value} for name in header]
    changed += [{"info": {**info, name: value}} for name in info]
    changed += [{"info": {**info, "metadata": {**info["metadata"], name: value}}} for name in info["metadata"]]
    told = 0
    for changes in changed:
        rewritten(path, **changes)
        try:
            arrays = load(path, EXPECTATION)
            assert summary_lines(path, arrays)
        except DemoError as error:
            assert str(path) in str(error)
            told += 1
    assert told >= len(header)


@pytest.mark.parametrize("starts", [[-5, 5, 12, 16, 22], [3, 5, 12, 16, 22]])
def test_episodes_must_begin_at_the_first_step(source: Path, tmp_path: Path, starts: list[int]) -> None:
    path = tmp_path / "demos.arrow"
    convert(source, path, EXPECTATION)
    rewritten(path, episode_starts=starts)
    with pytest.raises(DemoError, match="disagrees with the number of steps"):
        load(path, EXPECTATION)


def test_starts_that_are_no_int64_are_an_error(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "demos.arrow"
    convert(source, path, EXPECTATION)
    rewritten(path, episode_starts=[0, 5, 12, 16, 2**70])
    with pytest.raises(DemoError):
        load(path, EXPECTATION)


def test_a_truncated_arrow_file_is_an_error_wherever_it_ends(source: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.arrow"
    convert(source, whole, EXPECTATION)
    content, path = whole.read_bytes(), tmp_path / "cut.arrow"
    for size in np.unique(np.linspace(0, len(content) - 1, 80).astype(int)):
        path.unlink(missing_ok=True)
        path.write_bytes(content[:size])
        with pytest.raises(DemoError) as caught:
            load(path, EXPECTATION)
        assert caught.value.path == path, f"cut at {size}"


def test_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    arrays = dataclasses.replace(fake_demos(), rewards=np.zeros(3, np.float32))
    with pytest.raises(pa.ArrowInvalid):
        write_arrow(arrays, tmp_path / "x.arrow")
    unserialisable = dataclasses.replace(fake_demos().info, metadata={"x": object()})
    with pytest.raises(TypeError):
        write_arrow(dataclasses.replace(fake_demos(), info=unserialisable), tmp_path / "x.arrow")
    assert list(tmp_path.iterdir()) == []


# -- sampling ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("horizon", [1, 2, 4, 5, 8])
def test_windows_are_those_inside_the_episodes(horizon: int) -> None:
    lengths, held_out = (5, 8, 3, 6), (False, False, False, True)
    store = DemoStore(ragged(lengths, held_out), horizon)
    windows = [max(0, n - horizon + 1) for n in lengths]
    assert store.num_windows == sum(windows[:3])
    assert store.num_probe_windows == windows[3]
    assert store.num_episodes == 4
    batch = store.windows(np.arange(store.num_windows))
    assert batch.obs.shape == (store.num_windows, 2)
    assert batch.actions.shape == (store.num_windows, horizon, 1)
    wanted = [(e, t) for e in range(3) for t in range(windows[e])]
    assert [tuple(row) for row in batch.obs.astype(int).tolist()] == wanted
    steps = np.array([t for _, t in wanted])[:, None] + np.arange(horizon)
    np.testing.assert_array_equal(batch.actions[:, :, 0], steps)


def test_sampling_is_by_the_generator_over_training_windows_only() -> None:
    store = DemoStore(ragged((6, 6, 6), (False, True, False)), 3)
    first = store.sample(np.random.default_rng(5), 400)
    again = store.sample(np.random.default_rng(5), 400)
    other = store.sample(np.random.default_rng(6), 400)
    np.testing.assert_array_equal(first.obs, again.obs)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.obs, other.obs)
    assert {tuple(row) for row in first.obs.astype(int).tolist()} == {(e, t) for e in (0, 2) for t in range(4)}


def test_the_probe_is_held_out_and_evenly_spread() -> None:
    store = DemoStore(ragged((6, 30), (False, True)), 3)
    everything = store.probe()
    assert everything.obs[:, 1].tolist() == list(range(28))
    assert set(everything.obs[:, 0]) == {1.0}
    some = store.probe(max_windows=10)
    assert some.obs[:, 1].tolist() == list(range(0, 28, 3))
    np.testing.assert_array_equal(store.probe(10).actions, some.actions)


def test_without_held_out_episodes_the_probe_is_of_training_windows() -> None:
    store = DemoStore(ragged((6, 5), (False, False)), 3)
    assert store.num_probe_windows == 0
    assert len(store.probe().obs) == store.num_windows == 7


def test_no_episode_as_long_as_a_window_is_an_error() -> None:
    arrays = ragged((3, 9), (False, True))
    DemoStore(arrays, 3)
    with pytest.raises(InrilError, match=r"fake\.hdf5.*prediction_horizon = 4"):
        DemoStore(arrays, 4)


def test_normaliser_ranges_cover_every_step() -> None:
    arrays = fake_demos(num_episodes=3, num_held_out=2)
    stats = DemoStore(arrays, 2).normalizer_stats()
    np.testing.assert_array_equal(stats.obs_low, arrays.obs.min(axis=0))
    np.testing.assert_array_equal(stats.obs_high, arrays.obs.max(axis=0))
    np.testing.assert_array_equal(stats.action_low, arrays.actions.min(axis=0))
    np.testing.assert_array_equal(stats.action_high, arrays.actions.max(axis=0))


def test_sizes_add_up() -> None:
    arrays = fake_demos(num_episodes=2, length=10)
    per_episode = 3 * 4 + 1 + 1 + 1  # final observation, terminated, success, held out
    assert arrays.size_bytes() == 20 * (3 + 2 + 1) * 4 + 3 * 8 + 2 * per_episode
    pictures = {"front": np.zeros((20, 2, 2, 3), np.uint8)}
    assert dataclasses.replace(arrays, images=pictures).size_bytes() == arrays.size_bytes() + 20 * 12


def test_padded_windows_reach_the_end_and_repeat_the_last_action() -> None:
    arrays = ragged((4, 2), (False, False))
    store = DemoStore(arrays, 3, pad_ends=True)
    assert store.num_windows == 6  # also of the episode that is shorter than a window
    batch = store.windows(np.arange(6))
    steps = [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3], [4, 5, 5], [5, 5, 5]]
    np.testing.assert_array_equal(batch.actions, arrays.actions[np.array(steps)])
    np.testing.assert_array_equal(batch.obs, arrays.obs)


def test_a_column_that_never_changes_has_a_range() -> None:
    arrays = ragged((4, 6), (False, False))
    obs = arrays.obs.copy()
    obs[:, 0] = 0.25
    stats = DemoStore(dataclasses.replace(arrays, obs=obs), 2).normalizer_stats()
    assert (stats.obs_low[0], stats.obs_high[0]) == (-0.75, 1.25)
    np.testing.assert_array_equal(stats.obs_low[1:], obs[:, 1:].min(axis=0))


@pytest.mark.parametrize("name", ["source", "notes.txt", "folder"])
def test_a_file_of_something_else_is_not_replaced(source: Path, tmp_path: Path, name: str) -> None:
    target = source if name == "source" else tmp_path / name
    if name == "folder":
        target.mkdir()
    elif name != "source":
        target.write_text("mine")
    before = target.read_bytes() if target.is_file() else b""
    with pytest.raises(DemoError, match="exists and is not a converted data set"):
        convert(source, target, EXPECTATION)
    assert (target.read_bytes() if target.is_file() else b"") == before
