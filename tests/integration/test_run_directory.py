"""What the directory of a run withstands: two processes, edited or damaged files, forged checkpoints, odd machines."""

from __future__ import annotations

import contextlib
import copy as copy_module
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from inril_ray import checkpoint, media
from inril_ray.backend import LocalBackend
from inril_ray.cli import main
from inril_ray.experiment import load_config, resolved
from inril_ray.learner import Learner
from inril_ray.run import run
from inril_ray.run_dir import claimed, read_config
from inril_ray.session import Session
from inril_ray.tracking.jsonl import read_metrics
from inril_ray.types import InrilError
from tests.fuzzing import cases, edits, spoil
from tests.integration.conftest import TINY

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("directory") / "run"
    run(load_config([TINY]), out, LocalBackend, say=lambda _: None)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def again(path: Path, **changes: Any) -> list[str]:
    """Go on with a run; return what it said."""
    said: list[str] = []
    config = load_config([{**resolved(read_config(path)), **changes}])
    run(config, path, LocalBackend, resume=True, say=said.append)
    return said


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


# -- two processes ----------------------------------------------------------------------------------------------------
def test_one_process_at_a_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inril_ray.run_dir.LEAVES_WITHIN_S", 0.0)
    with claimed(copy), pytest.raises(InrilError, match="is in use"):
        again(copy, num_iterations=5)
    assert again(copy, num_iterations=5)[0].startswith("Resumed at iteration 4")


def test_a_killed_process_holds_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inril_ray.run_dir.LEAVES_WITHIN_S", 0.3)
    code = "import sys, os, signal; from pathlib import Path; from inril_ray.run_dir import claimed\n"
    code += "with claimed(Path(sys.argv[1])): print('in', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, copy], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        with pytest.raises(InrilError, match="is in use"), claimed(copy):
            pass
        process.kill()
    with claimed(copy):
        pass


def test_a_file_system_without_locks_is_told(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS emulates `flock` with locks that want a file that is open for writing; others have none."""

    def nfs(handle: int, _operation: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    said: list[str] = []
    monkeypatch.setattr("inril_ray.run_dir.fcntl.flock", nfs)
    with claimed(copy, said.append):
        assert not said

    def refused(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("inril_ray.run_dir.fcntl.flock", refused)
    with claimed(copy, said.append):
        assert said == [f"Check: {copy} can't be locked (No locks available); start no second process there."]


# -- edited and damaged files -----------------------------------------------------------------------------------------
def test_a_configuration_that_was_changed_is_noticed(copy: Path) -> None:
    edit(copy / "config.json", lambda tree: tree["config"]["rl"].update(actor_lr=0.5))
    with pytest.raises(InrilError, match=r"config\.json was changed"):
        read_config(copy)


@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000, '{"config": 7}'])
def test_a_checkpoint_has_a_copy_of_the_configuration(copy: Path, content: str | None) -> None:
    good = resolved(read_config(copy))
    (copy / "config.json").unlink() if content is None else (copy / "config.json").write_text(content)
    assert resolved(read_config(copy)) == good
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InrilError, match="holds no readable run"):
        read_config(copy)


def test_versions_are_those_of_the_checkpoint(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that failed meanwhile has not changed what the weights were trained with."""
    monkeypatch.setattr("inril_ray.run.provenance", lambda: {"versions": {"torch": "99.0"}, "commit": "zq"})

    def fails(*_: Any) -> LocalBackend:
        raise InrilError("no cluster")

    with pytest.raises(InrilError, match="no cluster"):
        run(load_config([{**TINY, "num_iterations": 5}]), copy, fails, resume=True, say=lambda _: None)
    assert any("The run was started with other versions" in text and "-> 99.0" in text for text in again(copy))


def test_a_damaged_line_of_the_record_costs_only_itself(copy: Path) -> None:
    file = copy / "metrics.jsonl"
    whole = read_metrics(copy)
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"{", b"\xff", 1)
    file.write_bytes(b"\n".join(lines))
    assert [r["iteration"] for r in read_metrics(copy)] == [0, 1, 3, 4, 4]
    said = again(copy, num_iterations=5)
    assert "Check: 1 line of metrics.jsonl left out, unreadable; the run itself is whole." in said
    assert read_metrics(copy)[:2] == whole[:2] and [r["iteration"] for r in read_metrics(copy)] == [0, 1, 3, 4, 4, 5, 5]


def test_fewer_iterations_than_there_are_is_refused(copy: Path) -> None:
    with pytest.raises(InrilError, match="num_iterations = 3: .* is at iteration 4 already"):
        again(copy, num_iterations=3)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"session": {}, "backend": {}},
        {"session": {"iteration": 4}, "backend": {"learner": {}, "workers": [{}]}},
        {"session": [], "backend": 7},
        {"session": {"iteration": "x"}, "backend": {"learner": [], "workers": 3}},
    ],
)
def test_a_forged_checkpoint_is_a_sentence(
    copy: Path, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    checkpoint.write(copy / "checkpoints", 4, tree, keep=1)
    checkpoint.write(copy / "pretrained", 0, {"policy": {}} if tree else {}, keep=1)
    for command in (["eval", "--episodes", "1"], ["eval", "--policy", "base", "--episodes", "1"]):
        assert main([command[0], str(copy), *command[1:]]) == 1
    assert main(["train", "--local", "--resume", str(copy)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "session",
    [
        {"iteration": 4.5},
        {"iteration": None},
        {"env_steps": "x"},
        {"best": []},
        {"best": {"score": "high"}},
        {"base": {}},
        {"phase_s": []},
        {"phase_s": {"rollout": "x"}},
        {"health": 7},
        {"health": [7]},
        {"counters": {"rl_updates": None}},
        {"versions": "x"},
        {"versions": ["a"]},
        {"versions": 3},
    ],
    ids=str,
)
def test_a_session_of_other_types_is_a_sentence_or_goes_on(copy: Path, session: dict[str, Any]) -> None:
    tree = checkpoint.read_latest(copy / "checkpoints")[0]
    tree["session"] |= session
    checkpoint.write(copy / "checkpoints", 4, tree, keep=1)
    if "versions" in session:  # they are only compared
        assert again(copy, num_iterations=5)
    else:
        with pytest.raises(InrilError, match="was not written by this program"):
            again(copy, num_iterations=5)


@pytest.mark.parametrize("shape", [(0, 19), (4, 3), (4,), (3, 19)])
def test_observations_of_other_environments_are_refused(
    opened: Callable[[], tuple[Session, dict[str, Any]]], shape: tuple[int, ...]
) -> None:
    session, tree = opened()
    tree["backend"]["workers"][0]["obs"] = np.zeros(shape, np.float32)
    with pytest.raises(InrilError, match="was not written by this program, or not for this run"):
        session.restore(tree)


def test_what_can_not_go_on_says_that_versions_differ_and_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a simulator's next release, whose state is wider."""
    tree = checkpoint.read_latest(copy / "checkpoints")[0]
    tree["backend"]["workers"][0]["env"]["env"]["physics"] = np.zeros((4, 3))
    checkpoint.write(copy / "checkpoints", 4, tree, keep=1)
    before, said = (copy / "config.json").read_bytes(), []
    monkeypatch.setattr("inril_ray.run.provenance", lambda: {"versions": {"mujoco": "99.0"}, "commit": "zq"})
    config = load_config([{**resolved(read_config(copy)), "num_iterations": 9}])
    with pytest.raises(InrilError, match="was not written by this program, or not for this run"):
        run(config, copy, LocalBackend, resume=True, say=said.append)
    assert any("The run was started with other versions" in text and "-> 99.0" in text for text in said)
    assert (copy / "config.json").read_bytes() == before


@pytest.fixture(scope="module")
def opened(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Session, dict[str, Any]]]:
    """A session that could go on from the finished run, and the checkpoint; by a call, so that a failure is short."""
    config = read_config(finished)
    backend = LocalBackend(config, _demos())
    session = Session(config, tmp_path_factory.mktemp("spoiled"), backend, [], lambda _: None)
    tree = checkpoint.read_latest(finished / "checkpoints")[0]
    return lambda: (session, copy_module.deepcopy(tree))


@cases(20)
@given(changes=edits)
def test_any_spoiled_checkpoint_is_taken_or_explained(
    opened: Callable[[], tuple[Session, dict[str, Any]]], changes: list[tuple[int, bool, Any]]
) -> None:
    """One whose hashes fit: whoever forges values forges these, too."""
    session, tree = opened()
    with contextlib.suppress(InrilError):
        session.restore(spoil(tree, changes, arrays=True))


def test_nothing_from_a_file_commands_the_terminal(copy: Path) -> None:
    edit(copy / "checkpoints" / "iteration_000004" / "manifest.json", lambda m: m.update(format_version="\x1b[2J\x07"))
    said = again(copy)
    assert said[0].startswith("Passed over: ") and all(c.isprintable() for text in said for c in text.replace("\n", ""))


# -- odd machines -----------------------------------------------------------------------------------------------------
def test_git_is_not_needed(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    again(copy, num_iterations=5)
    assert json.loads((copy / "config.json").read_text())["commit"] is None


def test_pictures_that_fail_do_not_undo_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    said: list[str] = []
    run(load_config([{**TINY, "num_iterations": 1, "video": True}]), tmp_path, LocalBackend, say=said.append)
    assert (tmp_path / "summary.json").is_file()
    assert any(text.startswith("No pictures: ") for text in said)
    assert [p.name for p in (tmp_path / "media").iterdir()] == ["media.json"]


def test_a_damaged_cloned_policy_costs_the_pictures_only(copy: Path) -> None:
    tensors = copy / "pretrained" / "iteration_000000" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    (copy / "media").mkdir()
    (copy / "media" / "after.mp4").write_text("of a former end")
    said = again(copy, num_iterations=5, video=True)
    assert any(text.startswith("No pictures: ") and "tensors.safetensors is damaged" in text for text in said)
    assert [p.name for p in (copy / "media").iterdir()] == ["media.json"]
    assert json.loads((copy / "summary.json").read_text())["iterations"] == 5


def test_only_a_guard_that_acts_keeps_a_best_state(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(copy), "--policy", "best"]) == 1
    said = capsys.readouterr().err
    assert "has no such state: with guard.action = 'warn' none is kept. Take --policy final." in said


def test_a_film_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(media.os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        media.write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3, fps=10)
    assert list(tmp_path.iterdir()) == []


# -- checkpoints ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cost_s", "saved"), [(0.0, [1, 2, 3, 4]), (1e6, [1, 4])])
def test_checkpoints_are_made_as_often_as_they_are_cheap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cost_s: float, saved: list[int]
) -> None:
    """After each iteration, unless it takes more than a fiftieth of the time; before the first one that isn't known."""
    at: list[int] = []
    save, spend = Session.save, Session._spend

    def noted(self: Session) -> Path:
        at.append(self.iteration)
        return save(self)

    monkeypatch.setattr(Session, "save", noted)
    monkeypatch.setattr(Session, "_spend", lambda *a: cost_s if a[1] == "checkpoint" else spend(*a))
    run(load_config([{**TINY, "checkpoint": {}}]), tmp_path, LocalBackend, say=lambda _: None)
    assert at == [0, *saved]


# -- cloning ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", ["one", "all"])
def test_a_loss_of_cloning_that_is_not_finite_costs_its_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: str
) -> None:
    policy, calls = type(LocalBackend(load_config([TINY]), _demos()).learner.policy), []
    loss = policy.bc_loss

    def spoiled(self: Any, *inputs: Any) -> Any:
        calls.append(1)
        return loss(self, *inputs) * (float("nan") if bad == "all" or len(calls) == 3 else 1.0)

    monkeypatch.setattr(policy, "bc_loss", spoiled)
    config = load_config([{**TINY, "num_iterations": 1}])
    if bad == "all":
        with pytest.raises(InrilError, match="Cloning failed: the gradients of all .* were not finite"):
            run(config, tmp_path, LocalBackend, say=lambda _: None)
        return
    summary = run(config, tmp_path, LocalBackend, say=lambda _: None)
    assert summary["cloning"]["bc_dropped_steps"] == 1.0
    assert any(text.startswith("1 steps of the cloning had gradients") for text in summary["health"])
    weights = checkpoint.read(tmp_path / "pretrained" / "iteration_000000")["policy"]
    assert all(np.isfinite(value).all() for value in weights.values())


def test_without_cloning_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([{**TINY, "pretrain": {"num_epochs": 0}, "interleave": {"il_batch_size": 64}}])
    loss, calls = Learner._il_loss, []

    def spoiled(self: Learner, *inputs: Any) -> Any:
        calls.append(1)
        return loss(self, *inputs) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(Learner, "_il_loss", spoiled)
    backend = LocalBackend(config, _demos())
    backend.pretrain()
    assert len(calls) > 2
    assert all(bool(p.isfinite().all()) for p in backend.learner.policy.parameters())


def _demos() -> Any:
    from inril_ray.experiment import load_demos

    return load_demos(load_config([TINY]))
