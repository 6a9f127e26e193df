"""``cluster/slurm.sh`` between stand-ins for Slurm, Ray and the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"
STAND_INS = {
    "srun": 'echo "srun $*" >>"$LOG"; exec "$@"',
    # The head's part of `ray symmetric-run`: what comes after the two dashes.
    "ray": 'while [[ $1 != -- ]]; do shift; done; shift; "$@"',
    "scontrol": 'echo "scontrol $*" >>"$LOG"',
    "hostname": "echo 10.0.0.1 fe80::1",
    "inril": (
        'trap "exit 75" TERM; echo "inril $* $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >>"$LOG"; '
        "for _ in $(seq $STEPS); do sleep 0.1; done; exit $RESULT"
    ),
}


def start(tmp_path: Path, *arguments: str, steps: int = 1, result: int = 0) -> subprocess.Popen[str]:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, body in STAND_INS.items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (binaries / name).chmod(0o755)
    env = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "LOG": str(tmp_path / "log"),
        "STEPS": str(steps),
        "RESULT": str(result),
        "SLURM_JOB_ID": "31234",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "16",
    }
    return subprocess.Popen(["bash", SCRIPT, *arguments], env=env, stderr=subprocess.PIPE, text=True)


def logged(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_every_node_starts_ray_with_a_token_and_the_driver_joins_it(tmp_path: Path) -> None:
    assert start(tmp_path, "--config", "demo", "--out", "/shared/my run").wait(30) == 0
    step, driver = logged(tmp_path)
    assert "ray symmetric-run --address 10.0.0.1:21234 --min-nodes 3 --num-cpus=16 --dashboard-host=127.0.0.1" in step
    assert driver == "inril train --config demo --out /shared/my run 10.0.0.1:21234 token 64"


def test_the_signal_of_slurm_reaches_the_driver_and_the_job_queues_again(tmp_path: Path) -> None:
    job = start(tmp_path, "--config", "demo", "--out", "/shared/run", steps=300)
    deadline = time.monotonic() + 20
    while len(logged(tmp_path)) < 2 or not any(file.read_text() for file in tmp_path.glob("tmp.*/driver")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 75
    assert logged(tmp_path)[-1] == "scontrol requeue 31234"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp.")]


def test_a_run_that_fails_by_itself_is_not_queued_again(tmp_path: Path) -> None:
    assert start(tmp_path, "--config", "demo", "--out", "/shared/run", result=1).wait(30) == 1
    assert not [line for line in logged(tmp_path) if "scontrol" in line]


@pytest.mark.parametrize("arguments", [("--config", "demo"), ("--config", "demo", "--out", "runs/x")])
def test_a_run_directory_on_one_node_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    job = start(tmp_path, *arguments)
    _, error = job.communicate(timeout=30)
    assert job.returncode == 2
    assert "absolute path on storage that all nodes share" in error
    assert not (tmp_path / "log").exists()
