"""Checkpoints: complete, verified, never half-written."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inril_ray import checkpoint
from inril_ray.types import InrilError

TREE = {
    "a": {"b": [1, 2.5, "x", None, True, {"c": np.arange(6, dtype=np.int64).reshape(2, 3)}]},
    "weights": torch.arange(4.0),
    "empty": {},
    "none": [],
    "wide": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "big": 2**127 + 1,
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        a = a.numpy()
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(map(str, a)) == list(b) and all(same(a[k], b[str(k)]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def flip(path: Path, offset: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(bytes(content))


# -- round trips ------------------------------------------------------------------------------------------------------
def test_round_trip_of_a_nested_tree(tmp_path):
    path = checkpoint.write(tmp_path, 3, TREE, keep=2)
    assert path == tmp_path / "iteration_000003"
    assert same(TREE, checkpoint.read(path))


def test_keys_become_strings_tuples_lists_and_numpy_scalars_numbers(tmp_path):
    path = checkpoint.write(tmp_path, 1, {7: (1, 2), "s": np.float32(0.5), "n": math.inf}, keep=1)
    assert checkpoint.read(path) == {"7": [1, 2], "s": 0.5, "n": math.inf}


def test_arrays_without_axes_keep_their_shape(tmp_path):
    path = checkpoint.write(tmp_path, 1, {"step": torch.tensor(3.0)}, keep=1)
    assert checkpoint.read(path)["step"].shape == ()


def test_keys_with_slashes_don_t_collide(tmp_path):
    path = checkpoint.write(tmp_path, 1, {"a/b": np.zeros(1), "a": {"b": np.ones(1)}}, keep=1)
    assert checkpoint.read(path)["a/b"][0] == 0


def trees() -> st.SearchStrategy[dict[str, Any]]:
    arrays = hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3),
    )
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    keys = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="/"), max_size=6)
    return st.dictionaries(
        keys, st.recursive(arrays | plain, lambda c: st.lists(c, max_size=3) | st.dictionaries(keys, c, max_size=3))
    )


@given(tree=trees())
@settings(deadline=None, max_examples=40)
def test_round_trip_of_any_tree(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("tree")
    try:
        assert same(tree, checkpoint.read(checkpoint.write(root, 1, tree, keep=1)))
    finally:
        shutil.rmtree(root)


def test_an_optimiser_continues_as_if_nothing_had_happened(tmp_path):
    def make() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)

    def step(module, optimizer, scale: float) -> None:
        optimizer.zero_grad()
        module(torch.full((4, 3), scale)).square().sum().backward()
        optimizer.step()

    module, optimizer = make()
    step(module, optimizer, 1.0)
    optimizer.param_groups[0]["lr"] = 0.03
    tree = {"module": dict(module.state_dict()), "optimizer": optimizer.state_dict()}
    state = checkpoint.read(checkpoint.write(tmp_path, 1, tree, keep=1))
    other, other_optimizer = make()
    checkpoint.load_module(other, state["module"])
    checkpoint.load_optimizer(other_optimizer, state["optimizer"])
    for scale in (0.5, 2.0):
        step(module, optimizer, scale)
        step(other, other_optimizer, scale)
    assert torch.equal(module.weight, other.weight)
    assert other_optimizer.param_groups[0]["lr"] == 0.03


def test_weights_of_another_shape_are_named():
    with pytest.raises(InrilError, match=r"(?s)does not fit the configured Linear.*weight"):
        checkpoint.load_module(torch.nn.Linear(3, 2), dict(torch.nn.Linear(4, 2).state_dict()))


def test_loaded_arrays_are_writable_and_their_own(tmp_path):
    path = checkpoint.write(tmp_path, 1, {"w": np.ones(3)}, keep=1)
    first, second = checkpoint.read(path), checkpoint.read(path)
    first["w"][0] = 5
    assert second["w"][0] == 1


# -- damage -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("offset", [0, -1])
def test_a_flipped_byte_is_found(tmp_path, name, offset):
    path = checkpoint.write(tmp_path, 1, TREE, keep=1)
    flip(path / name, offset)
    with pytest.raises(InrilError, match=f"{name} is damaged"):
        checkpoint.read(path)


def test_every_byte_of_the_tensors_counts(tmp_path):
    path = checkpoint.write(tmp_path, 1, {"w": np.arange(3.0)}, keep=1)
    file = path / "tensors.safetensors"
    for offset in range(file.stat().st_size):
        flip(file, offset)
        with pytest.raises(InrilError):
            checkpoint.read(path)
        flip(file, offset)
    checkpoint.read(path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_missing_file_is_named(tmp_path, name):
    path = checkpoint.write(tmp_path, 1, TREE, keep=1)
    (path / name).unlink()
    with pytest.raises(InrilError, match=f"lacks {name}"):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "{}", '{"format_version": 1}', "\x00"])
def test_an_unreadable_manifest_is_an_error_of_ours(tmp_path, content):
    path = checkpoint.write(tmp_path, 1, TREE, keep=1)
    manifest = path / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(InrilError, match=r"no readable manifest\.json"):
        checkpoint.read(path)


def test_another_format_version_is_refused(tmp_path):
    path = checkpoint.write(tmp_path, 1, TREE, keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(InrilError, match=r"format version 99, this release reads 1"):
        checkpoint.read(path)


def test_the_newest_intact_checkpoint_is_used_and_the_others_are_reported(tmp_path):
    for iteration in (1, 2, 3, 4):
        checkpoint.write(tmp_path, iteration, {"n": iteration}, keep=9)
    flip(tmp_path / "iteration_000004" / "state.json")
    (tmp_path / "iteration_000003" / "tensors.safetensors").unlink()
    tree, warnings = checkpoint.read_latest(tmp_path)
    assert tree == {"n": 2}
    assert len(warnings) == 2
    assert "iteration_000004" in warnings[0]
    assert "iteration_000003" in warnings[1]


def test_a_manifest_that_is_too_deep_is_passed_over(tmp_path):
    checkpoint.write(tmp_path, 1, {"n": 1}, keep=2)
    (checkpoint.write(tmp_path, 2, {"n": 2}, keep=2) / "manifest.json").write_text("[" * 100_000)
    tree, (warning,) = checkpoint.read_latest(tmp_path)
    assert tree == {"n": 1} and "iteration_000002 has no readable manifest.json" in warning


def test_a_million_iterations_are_not_the_last(tmp_path):
    for iteration in (999_999, 1_000_000, 1_000_001):
        checkpoint.write(tmp_path, iteration, {"n": iteration}, keep=2)
    assert checkpoint.complete(tmp_path) == [1_000_000, 1_000_001]
    assert checkpoint.read_latest(tmp_path)[0] == {"n": 1_000_001}


def test_a_text_is_never_written_through_a_link(tmp_path):
    (mine := tmp_path / "mine").write_text("precious")
    (tmp_path / ".report.html.partial").symlink_to(mine)
    checkpoint.replace_text(tmp_path / "report.html", "<html>")
    assert (mine.read_text(), (tmp_path / "report.html").read_text()) == ("precious", "<html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "report.html"]


def test_no_intact_checkpoint_is_an_error_that_says_why(tmp_path):
    with pytest.raises(InrilError, match="No intact checkpoint"):
        checkpoint.read_latest(tmp_path / "nowhere")
    path = checkpoint.write(tmp_path, 1, {}, keep=1)
    flip(path / "state.json")
    with pytest.raises(InrilError, match=r"(?s)No intact checkpoint.*state\.json is damaged"):
        checkpoint.read_latest(tmp_path)


# -- writing ----------------------------------------------------------------------------------------------------------
def test_only_the_newest_are_kept(tmp_path):
    for iteration in (1, 2, 10, 11):
        checkpoint.write(tmp_path, iteration, {}, keep=2)
    assert checkpoint.complete(tmp_path) == [10, 11]
    assert {p.name for p in tmp_path.iterdir()} == {"iteration_000010", "iteration_000011"}


def test_what_was_just_written_is_never_deleted(tmp_path):
    damaged = checkpoint.write(tmp_path, 10, {}, keep=1)
    flip(damaged / "state.json")
    assert checkpoint.write(tmp_path, 5, {}, keep=1).exists()


def test_writing_again_replaces(tmp_path):
    checkpoint.write(tmp_path, 1, {"n": 1, "w": np.ones(2)}, keep=1)
    path = checkpoint.write(tmp_path, 1, {"n": 2}, keep=1)
    assert checkpoint.read(path) == {"n": 2}


def test_other_names_are_not_checkpoints(tmp_path):
    checkpoint.write(tmp_path, 5, {}, keep=3)
    for name in (".iteration_000009.partial", "iteration_7", "iteration_000008.bak", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoint.complete(tmp_path) == [5]
    assert checkpoint.complete(tmp_path / "nowhere") == []


@pytest.mark.parametrize("failing", ["save_file", "_sha256", "os.fsync", "os.replace"])
def test_a_failure_leaves_nothing_half_written_and_the_old_one_intact(tmp_path, monkeypatch, failing):
    checkpoint.write(tmp_path, 1, {"n": 1}, keep=3)

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"inril_ray.checkpoint.{failing}", refuse)
        with pytest.raises(InrilError, match=r"Cannot write checkpoint .*iteration_000002.*No space left"):
            checkpoint.write(tmp_path, 2, TREE, keep=3)
    assert [p.name for p in tmp_path.iterdir()] == ["iteration_000001"]
    assert checkpoint.read_latest(tmp_path) == ({"n": 1}, [])


def test_a_tree_that_can_t_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.write(tmp_path, 1, {"x": object()}, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_the_leftover_of_a_killed_process_is_no_obstacle(tmp_path):
    partial = tmp_path / ".iteration_000001.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"junk")
    (partial / "old").mkdir()
    path = checkpoint.write(tmp_path, 1, {"n": 1}, keep=1)
    assert checkpoint.read(path) == {"n": 1}
    assert not partial.exists()


def test_what_a_killed_process_left_of_another_iteration_is_removed(tmp_path):
    """With ``checkpoint.every`` unset the resumed run saves at other iterations."""
    partial = tmp_path / ".iteration_000005.partial"
    partial.mkdir()
    checkpoint.write(tmp_path, 4, {"n": 1}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["iteration_000004"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_file_that_the_disk_can_not_read_is_passed_over(tmp_path, monkeypatch, name):
    for iteration in (1, 2):
        checkpoint.write(tmp_path, iteration, {"n": iteration}, keep=2)
    sha256 = checkpoint._sha256

    def fails(path):
        if path == tmp_path / "iteration_000002" / name:
            raise OSError(errno.EIO, "Input/output error")
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", fails)
    tree, warnings = checkpoint.read_latest(tmp_path)
    assert tree == {"n": 1}
    assert len(warnings) == 1 and f"{name} can't be read" in warnings[0]


def test_a_root_that_is_a_file_is_an_error_of_ours(tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(InrilError, match="Cannot write checkpoint"):
        checkpoint.write(root, 1, {}, keep=1)
