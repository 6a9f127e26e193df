"""Whatever is written into a configuration, a command line, a sweep or a checkpoint: an explanation, or it is accepted.

Never a traceback, never half a file. Demonstration files are damaged in ``test_demos_corruption.py``.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import pickle
import pickletools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inril_ray import checkpoint, cli
from inril_ray.config import fingerprint, parse_overrides
from inril_ray.demos.episodes import DAMAGE
from inril_ray.demos.formats import restricted_pickle
from inril_ray.demos.formats.restricted_pickle import SafeUnpickler
from inril_ray.experiment import ExperimentConfig, load_config, resolved
from inril_ray.run_dir import read_config
from inril_ray.sweep import SweepConfig, read_sweep, settings_of, trial_config
from inril_ray.types import InrilError
from tests.fuzzing import cases, paths_of, plain, values, words

ROOT = Path(__file__).resolve().parents[2]


@st.composite
def spoiled(draw: Any, good: Any) -> Any:
    """Return a good tree in which some nodes are replaced, removed or given a neighbour."""
    tree = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(paths_of(tree)))
        if not path:
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            parent[path[-1]] = draw(values)
        elif what == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(words)] = draw(values)
    return tree


GOOD = resolved(load_config([{"task": "robomimic/lift"}]))


def accepted(config: ExperimentConfig) -> None:
    """What was accepted can be written down and read again."""
    again = load_config([yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(resolved(config)))))])
    assert fingerprint(resolved(again)) == fingerprint(resolved(config))


TAGS = (
    "int",
    "float",
    "bool",
    "null",
    "timestamp",
    "binary",
    "set",
    "omap",
    "pairs",
    "seq",
    "map",
    "str",
    "python/none",
)
odd = st.one_of(
    st.builds("!!{} {}".format, st.sampled_from(TAGS), words),
    st.from_regex(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9:.+-]{1,12})?", fullmatch=True),
    st.from_regex(r"[0-9a-fxob_:.e+-]{1,20}", fullmatch=True),
)
"""Scalars that PyYAML gives to Python, which may not like them."""


# -- configurations ---------------------------------------------------------------------------------------------------
@cases(20)
@given(tree=spoiled(GOOD))
def test_any_configuration_is_accepted_or_explained(tree: Any) -> None:
    try:
        config = load_config([tree])
    except InrilError as error:
        assert str(error)
        return
    accepted(config)


@cases(13)
@given(
    text=st.one_of(
        words,
        odd.map("seed: {}".format),
        st.binary(max_size=60),
        values.map(lambda v: yaml.safe_dump(v, allow_unicode=True)),
    )
)
def test_any_configuration_file_is_accepted_or_explained(tmp_path_factory: Any, text: str | bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzzed.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_no_traceback(["train", "--config", str(path), "--task", "robomimic/lift"])


@cases(20)
@given(items=st.lists(st.one_of(words, st.builds("{}={}".format, words, plain | odd)), max_size=4))
def test_any_override_is_parsed_or_explained(items: list[str]) -> None:
    with contextlib.suppress(InrilError):
        assert isinstance(parse_overrides(items), dict)


def dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


KEYS = [dotted(p) for p in paths_of(GOOD) if p]


class Ran(Exception):
    """A run would have begun."""


def assert_no_traceback(arguments: list[str]) -> None:
    """Run the command up to where a run would begin; anything but a normal exit fails the test."""

    def begin(*_: Any, **__: Any) -> None:
        raise Ran

    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr("inril_ray.run.run", begin)
        with contextlib.redirect_stderr(errors):
            try:
                status = cli.main(arguments)
            except Ran:
                return
            except SystemExit as error:  # argparse refuses the command line
                status = error.code
    assert status in (1, 2)
    assert errors.getvalue().strip()
    assert "Traceback" not in errors.getvalue()


@cases(20)
@given(items=st.lists(st.builds("{}={}".format, st.sampled_from(KEYS) | words, plain | values), max_size=3))
def test_any_command_line_ends_in_an_explanation_or_a_run(items: list[str]) -> None:
    overrides = [part for item in items for part in ("--set", item)]
    assert_no_traceback(["train", "--task", "robomimic/lift", "--local", "--out", "never-written", *overrides])
    assert not Path("never-written").exists()


@cases(10)
@given(arguments=st.lists(st.sampled_from(["train", "eval", "demos", "inspect", "report", "--set", "--out"]) | words))
def test_any_words_are_a_usage_error_or_explained(tmp_path_factory: Any, arguments: list[str]) -> None:
    empty = tmp_path_factory.getbasetemp() / "empty"
    empty.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty)
        if arguments[:1] == ["train"] or not arguments:
            assert_no_traceback(arguments)
            return
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                assert cli.main(arguments) in (0, 1, 2)
            except SystemExit as error:
                assert error.code in (0, 1, 2)
    assert list(empty.iterdir()) == [], "nothing is half-written"


# -- sweeps -----------------------------------------------------------------------------------------------------------
SWEEPS = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((ROOT / "tune_configs").glob("*.yaml"))}


@cases(20)
@given(name=st.sampled_from(sorted(SWEEPS)), data=st.data())
def test_any_sweep_is_accepted_or_explained(tmp_path_factory: Any, name: str, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-sweep.yaml"
    path.write_text(yaml.safe_dump(data.draw(spoiled(SWEEPS[name]))))
    try:
        sweep = read_sweep(path)
    except InrilError as error:
        assert str(error)
        return
    assert isinstance(sweep, SweepConfig)
    for setting in settings_of(sweep)[:2]:
        trial_config(sweep, setting, sweep.seeds.search[0])


# -- checkpoints ------------------------------------------------------------------------------------------------------
TREE = {
    "session": {"iteration": 3, "best": {"score": 0.5}, "health": []},
    "backend": {"weights": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2), np.float32), "names": ["a", None]},
}
FILES = ("manifest.json", "state.json", "tensors.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.write(tmp_path_factory.mktemp("good"), 3, TREE, keep=1)


def copied(good: Path, folder: Path) -> Path:
    target = folder / "iteration_000003"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(good, target)
    return target


@cases(20)
@given(
    name=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.floats(0, 1),
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path_factory: Any, good: Path, name: str, changes: Any, cut: Any
) -> None:
    path = copied(good, tmp_path_factory.getbasetemp())
    content = bytearray((path / name).read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    content = content if cut is None else content[: int(cut * len(content))]
    same = bytes(content) == (good / name).read_bytes()
    (path / name).write_bytes(content)
    try:
        checkpoint.read(path)
    except InrilError as error:
        assert str(path) in str(error)
        assert not same
    else:
        assert same or name == "manifest.json"


@cases(13)
@given(tree=spoiled(json.loads(json.dumps({"a": {"__array__": "0"}, "b": [1, {"__array__": "1"}], "c": None}))))
def test_a_forged_state_runs_no_code(tmp_path_factory: Any, good: Path, tree: Any) -> None:
    """The hashes fit: somebody wrote this on purpose. It is data, or it is refused."""
    path = copied(good, tmp_path_factory.getbasetemp())
    (path / "state.json").write_text(json.dumps(tree))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = hashlib.sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(InrilError):
        checkpoint.read(path)


@cases(13)
@given(tree=spoiled({"config": GOOD, "versions": {"torch": "2.15.0"}}), cut=st.none() | st.floats(0, 1))
def test_any_run_directory_is_read_or_explained(tmp_path_factory: Any, tree: Any, cut: float | None) -> None:
    folder = tmp_path_factory.getbasetemp() / "run"
    folder.mkdir(exist_ok=True)
    text = json.dumps(tree)
    (folder / "config.json").write_text(text if cut is None else text[: int(cut * len(text))])
    try:
        config = read_config(folder)
    except InrilError as error:
        assert str(error)
        return
    accepted(config)


# -- pickles ----------------------------------------------------------------------------------------------------------
OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]
HARMFUL = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"csubprocess\nPopen\n", b"cbuiltins\ngetattr\n", b"cnumpy\nload\n"]


@cases(33)
@given(
    values=st.lists(st.integers(-5, 5) | words, max_size=4),
    protocol=st.integers(0, 5),
    inserted=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([*OPCODES, *HARMFUL]) | st.binary(max_size=4)), max_size=4
    ),
)
def test_a_forged_pickle_is_data_or_an_error(values: Any, protocol: int, inserted: Any) -> None:
    """Any sequence of opcodes: numbers, words and arrays come out, or an error."""
    content = pickle.dumps({"observations": [np.arange(3.0)], "words": values}, protocol)
    for place, piece in inserted:
        at = int(place * len(content))
        content = content[:at] + piece + content[at:]
    try:
        found = SafeUnpickler(io.BytesIO(content)).load()
    except (*DAMAGE, pickle.UnpicklingError, EOFError):  # what becomes a DemoError
        return
    assert harmless(found), type(found)


def harmless(value: Any, depth: int = 0) -> bool:
    """Tell whether a value is made of plain data only."""
    if isinstance(value, dict):
        return depth > 20 or all(harmless(v, depth + 1) for pair in value.items() for v in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return depth > 20 or all(harmless(v, depth + 1) for v in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return all(harmless(v, depth + 1) for v in value.ravel())
    plain_types = (str, bytes, bytearray, int, float, complex, bool, type(None), np.ndarray, np.generic)
    stand_ins = (restricted_pickle._Constructor, restricted_pickle._Dtype)  # which make such values only
    return isinstance(value, (*plain_types, *stand_ins))
