"""The command line as a user types it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from inril_ray.cli import main, parser
from inril_ray.experiment import load_config, resolved
from inril_ray.run_dir import write_json
from inril_ray.tracking.jsonl import read_metrics

pytestmark = pytest.mark.sim


def inril(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose demonstrations and directory were named from where the command was typed."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copy(resources.files("inril_ray.data") / "lift_scripted.hdf5", folder / "lift.hdf5")
    with contextlib.chdir(folder):
        assert inril("train", "--config", tiny_file, "--demos", "lift.hdf5", "--local", "--out", "run") == 0
    return folder / "run"


def test_train_writes_a_report(trained: Path) -> None:
    assert "<html" in (trained / "report.html").read_text()


def test_train_prints_and_saves_the_resolved_configuration(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())["config"]
    assert config["rl"]["denoising_discount"] == 0.99
    assert config["interleave"]["every"] == 2


def test_resume_extends_a_run_from_elsewhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["--set", "num_iterations=5", "--set", "compute.rollout_timeout_s=60", "--set", "checkpoint.keep=1"]
    assert inril("train", "--resume", trained, "--local", *changes) == 0
    said = capsys.readouterr().out
    assert "Resumed at iteration 4" in said
    assert "not evaluated" not in said, "it was, before it was stopped"
    assert json.loads((trained / "summary.json").read_text())["iterations"] == 5


@pytest.mark.parametrize("change", ["seed=3", "algorithm=sac", "rl.actor_lr=0.5", "compute.mode=pipelined"])
def test_resume_refuses_other_changes(trained: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inril("train", "--resume", trained, "--local", "--set", "compute.num_workers=3", "--set", change) == 1
    said = capsys.readouterr().err
    assert f"can't go on with another {change.split('=')[0]}; these may change: num_iterations, demos, tracking" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume", "{run}", "--demos", "zq.hdf5"), "zq.hdf5: does not exist"),
        (("--resume", "{moved}"), "zq.hdf5: does not exist; if it has moved: --demos FILE."),
        (("--resume", "{run}", "--set", "num_iterations=1"), "num_iterations = 1: "),
        (("--task", "robomimic/lift", "--demos", "{damaged}"), "zq-damaged"),
        (("--task", "robomimic/lift", "--set", "pretrained={run}"), "its networks are others"),
        (("--task", "robomimic/lift", "--set", "tracking.trackers=[wandb]"), "wandb"),
    ],
)
def test_refusals_come_before_the_configuration_and_leave_nothing(
    trained: Path,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    moved, damaged = tmp_path / "moved", tmp_path / "zq-damaged"
    damaged.write_bytes(b"no HDF5")
    config = json.loads((trained / "config.json").read_text())["config"]
    moved.mkdir()
    write_json(moved / "config.json", {"config": {**config, "demos": str(tmp_path / "zq.hdf5")}})
    words = [word.format(run=trained, moved=moved, damaged=damaged) for word in arguments]
    out = [] if "--resume" in words else ["--out", "out"]
    assert inril("train", "--local", *words, *out) == 1
    told = capsys.readouterr()
    assert said in told.err and "the preset" not in told.out
    assert not Path("out").exists()


@pytest.mark.parametrize("policy", ["base", "final"])
def test_eval_reproduces_the_summary(trained: Path, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inril("eval", trained, "--episodes", 6, "--policy", policy) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["eval_return"] == pytest.approx(
        json.loads((trained / "summary.json").read_text())[policy]["eval_return"], abs=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "stock"), "stock simulator: success"),
        (("--set", "env.max_episode_steps=8"), "fast simulator: success"),
    ],
)
def test_eval_takes_other_settings_of_the_task(
    trained: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inril("eval", trained, "--episodes", 1, *arguments) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "cpu"), "No intact checkpoint in"),  # the simulator is fine; this run has no policy yet
        (("--backend", "warp"), "No intact checkpoint in"),
        (("--set", "env.furniture.perturbation=0.1"), "No intact checkpoint in"),
        (("--backend", "fast"), "env.backend = 'fast': furniture/one_leg_low has cpu, warp."),
        (("--backend", "zq"), "env.backend = 'zq': furniture/one_leg_low has cpu, warp."),
        (("--set", "env.furniture.x=1"), "Unknown configuration key 'env.furniture.x'"),
        (("--set", "seed=1"), "only env. keys"),
        (("--set", "env=1"), "a key is missing"),
    ],
)
def test_eval_asks_the_task_for_its_simulators(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "config.json", {"config": resolved(load_config([{"task": "furniture/one_leg_low"}]))})
    assert inril("eval", tmp_path, *arguments) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupted_run_says_how_to_go_on(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Any, out: Path, *_: Any, **__: Any) -> None:
        (out / "checkpoints" / "iteration_000000" if begun else out).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("inril_ray.run.run", interrupted)
    monkeypatch.chdir(tmp_path)
    assert inril("train", "--config", "demo", "--local") == 130
    (out,) = Path("runs").iterdir()
    again = f"inril train --resume {out} --local" if begun else f"the same command with --out {out}"
    assert capsys.readouterr().err == f"inril: interrupted; go on with: {again}\n"


def test_verdict_compares_paired_seeds(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "verdict"
    arguments = ("verdict", "--config", tiny_file, "--local", "--seeds", 0, 1, 2, "--out", out)
    arguments = (*arguments, "--set", "num_iterations=2", "--set", "evaluation.every=0", "--bc-reg")
    assert inril(*arguments) == 0
    printed = capsys.readouterr().out
    assert "interquartile mean" in printed
    assert "Can't tell yet" in printed  # neither arm of so tiny a run ever succeeds
    assert "a true difference of" in printed, "that this study could have found"
    assert "--- run 3 of 9: BC-Reg, seed 0; about " in printed
    assert "Clone longer" not in printed, "from one episode"
    result = json.loads((out / "verdict.json").read_text())
    assert result["arms"]["rl_only"]["il_updates"] == [0, 0, 0]
    assert result["arms"]["inril"]["il_updates"] == [3, 3, 3]
    assert len(result["arms"]["inril"]["scores"]) == 3
    assert result["arms"]["bc_reg"]["il_updates"] == [0, 0, 0]
    assert result["comparisons"].keys() == {"inril", "bc_reg"}
    assert "<html" in (out / "report.html").read_text()
    before = (out / "inril_seed0" / "summary.json").stat().st_mtime_ns
    assert inril(*arguments) == 0  # started again: finished runs are kept
    assert (out / "inril_seed0" / "summary.json").stat().st_mtime_ns == before


def test_demos_make_inspect_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, arrow = tmp_path / "lift.hdf5", tmp_path / "lift.arrow"
    assert inril("demos", "make", "robomimic/lift", "--out", file, "--num", 3, "--held-out", 1) == 0
    assert inril("demos", "inspect", file, "--task", "robomimic/lift") == 0
    assert inril("demos", "convert", file, arrow, "--task", "robomimic/lift") == 0
    assert inril("demos", "inspect", arrow) == 0
    printed = capsys.readouterr().out
    assert "3 (1 held out)" in printed
    assert "scripted" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "No task given"),
        (("train", "--task", "robomimic/lfit"), "Did you mean 'robomimic/lift'"),
        (("train", "--task", "robomimic/lift", "--algorithm", "dpo"), "Did you mean 'dppo'"),
        (("train", "--config", "demo", "--set", "interleave.evry=3"), "Did you mean 'every'"),
        (("train", "--config", "demo", "--set", "interleave.every=0"), "interleave.every = 0"),
        (("train", "--config", "demo", "--set", "rl.clip_ratio=-1"), "rl.clip_ratio = -1"),
        (("train", "--config", "nothing"), "neither a file nor a shipped configuration"),
        (("train", "--config", "nothing.yaml"), "Cannot read configuration file"),
        (("train", "--config", "demo", "--demos", "no.hdf5", "--local", "--out", "{tmp}/x"), "no.hdf5: does not exist"),
        (("eval", "{tmp}"), "holds no readable run"),
        (("sweep", "{tmp}/zq.yaml"), "zq.yaml: Configuration name is missing."),
        (("report", "{tmp}"), "{tmp}"),
        (("demos", "inspect", "{tmp}/none.hdf5"), "does not exist"),
        (("demos", "make", "robomimic/lift", "--out", "{tmp}/a.hdf5", "--held-out", "20"), "held_out = 20"),
        (("verdict", "--config", "demo", "--seeds", "1", "2"), "at least 3 different seeds"),
    ],
)
def test_mistakes_get_one_clear_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(text: str) -> str:
        return text.replace("{tmp}", str(tmp_path))

    (tmp_path / "zq.yaml").write_text("base: {task: robomimic/lift}")
    assert inril(*(fill(a) for a in arguments)) == 1
    error = capsys.readouterr().err
    assert fill(message) in error
    assert "Traceback" not in error


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here it is the record of metrics that cannot grow; for checkpoints see `inril chaos`."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    command = ("train", "--config", tiny_file, "--local", "--out", tmp_path)
    assert inril(*command) == 1
    assert capsys.readouterr().err == (
        f"inril: No space left on device. Make room; go on with: inril train --resume {tmp_path} --local\n"
    )
    (tmp_path / "metrics.jsonl").unlink()
    assert inril(*command) == 0
    assert [r["iteration"] for r in read_metrics(tmp_path)] == [0, 1, 2, 3, 4, 4]


def test_what_the_disk_refuses_a_thread_is_one_sentence(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread of its own."""

    def full(self: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    assert (
        inril("train", "--config", tiny_file, "--local", "--out", tmp_path, "--set", "tracking.trackers=[tensorboard]")
        == 1
    )
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith(
        "inril: a thread could not go on: No space left on device.\ninril: No space left on device. Make"
    )


def test_a_run_goes_on_when_nobody_reads_its_output(tiny_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inril_ray.cli", "train", "--config", tiny_file, "--local", "--out", tmp_path]
    with subprocess.Popen(
        [*command, "--set", "tracking.trackers=[console,jsonl]"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(6):
            process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0
    assert said.splitlines() == ["inril: nobody reads the output any longer; the command goes on."]
    assert (tmp_path / "summary.json").is_file() and (tmp_path / "report.html").is_file()


def test_nor_when_its_errors_went_the_same_way(tiny_file: Path, tmp_path: Path) -> None:
    """As with ``2>&1 | tee``."""
    command = [sys.executable, "-m", "inril_ray.cli", "train", "--config", tiny_file, "--local", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
    assert process.returncode == 0 and (tmp_path / "report.html").is_file()


def test_names_from_files_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.hdf5"
    assert inril("demos", "make", "robomimic/lift", "--out", file, "--num", 2, "--max-steps", 60) == 0
    with h5py.File(file, "r+") as data:
        about = json.loads(data["data"].attrs["env_args"])
        data["data"].attrs["env_args"] = json.dumps({**about, "env_name": "Lift\x1b[2J\x07"})
    capsys.readouterr()
    inril("demos", "inspect", file)
    inril("demos", "inspect", file, "--task", "robomimic/lift")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\\x1b[2J\\x07" in said.out + said.err


def test_an_argument_that_is_no_text_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        inril("train", "--task", "robomimic/lift", "--out", "run\udcff")
    assert ended.value.code == 2 and "out is 'run\\udcff', which is not UTF-8" in capsys.readouterr().err


def test_a_film_is_an_mp4(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inril("eval", trained, "--episodes", 1, "--video", trained / "a.txt") == 1
    assert "a.txt: an .mp4 is written." in capsys.readouterr().err and not (trained / "a.txt").exists()


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, inril_ray.cli as c; c.parser(); "
        "print([m for m in ('ray', 'torch', 'mlflow', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_flags_are_frozen() -> None:
    """A new flag is a decision: it is added here too."""
    actions = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    flags = {
        name: sorted(o for a in p._actions for o in a.option_strings if o.startswith("--"))
        for name, p in actions.items()
    }
    shared = ["--algorithm", "--config", "--demos", "--help", "--schedule", "--seed", "--separation", "--set", "--task"]
    assert flags == {
        "train": sorted([*shared, "--out", "--resume", "--local"]),
        "eval": ["--backend", "--episodes", "--help", "--policy", "--set", "--video"],
        "verdict": sorted([*shared, "--seeds", "--out", "--bc-reg", "--local"]),
        "sweep": ["--help", "--local", "--max-hours", "--out"],
        "demos": ["--help"],
        "chaos": ["--demos", "--faults", "--help", "--out", "--repetitions", "--seed", "--task"],
        "report": ["--help"],
        "doctor": ["--help"],
    }


def test_doctor_reports_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert inril("doctor") == 0
    said = capsys.readouterr().out
    assert "robomimic/lift" in said
    gpu = re.search(r"GPU: (.*)", said)
    assert gpu is not None
    assert ("env.backend=warp  not ready here: env.backend = 'warp' simulates on a GPU" in said) == (gpu[1] == "none")


def test_video_shows_the_simulator(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import imageio.v2 as imageio

    from inril_ray import envs
    from inril_ray.types import InrilError

    env = envs.make("robomimic/lift", num_envs=1, seed=0)
    env.reset()
    try:
        frame = env.render_env(0, 64, 48)
    except InrilError as error:
        # Without an OpenGL library the promise is another one: the reason is said.
        assert "OpenGL" in str(error)
        return
    env.close()
    assert frame.std() > 10
    assert inril("eval", trained, "--episodes", 1, "--video", tmp_path / "e.mp4") == 0
    with imageio.get_reader(tmp_path / "e.mp4") as reader:
        assert reader.count_frames() == 10
