"""Jobs as a user submits them: a real head with its job server and a token, ``cluster/submit.py`` in front of it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from inril_ray import checkpoint
from inril_ray.backend import LocalBackend
from inril_ray.experiment import load_config
from inril_ray.run import run
from tests.integration.comparison import differences, measured, state
from tests.integration.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
LONG = {**TINY, "num_iterations": 60, "evaluation": {"every": 0, "final_episodes": 4}, "checkpoint": {"every": 1000}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


class Head:
    """A head node with the job server, everything on loopback."""

    def __init__(self, home: str) -> None:
        self.address = f"http://127.0.0.1:{free_port()}"
        token = Path(home) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": home,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        ports = f"--dashboard-agent-listen-port={free_port()} --ray-client-server-port={free_port()}"
        command = (
            "ray start --head --block --port=0 --num-cpus=3 --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 "
            f"--dashboard-port={self.address.rpartition(':')[2]} --object-store-memory=200000000 {ports}"
        )
        self.process = subprocess.Popen(
            command.split(), env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.token = token.read_text()
        try:
            wait_for(lambda: self.status(self.token) == 200, "the job server")
        except BaseException:
            self.stop()
            raise

    def status(self, token: str | None, path: str = "", method: str = "GET") -> int:
        request = urllib.request.Request(f"{self.address}/api/jobs/{path}", method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def submit(self, *command: object, token: Path | None = None) -> subprocess.Popen[str]:
        env = self.env | ({"RAY_AUTH_TOKEN_PATH": str(token)} if token else {})
        line = [sys.executable, ROOT / "cluster" / "submit.py", "--address", self.address, "--", *command]
        return subprocess.Popen(
            [str(word) for word in line], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def stop(self) -> None:
        family = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        psutil.wait_procs([p for p in family if isinstance(p, psutil.Process)], timeout=20)
        for process in family:
            if isinstance(process, psutil.Process) and process.is_running():
                process.kill()
        self.process.wait(20)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    pytest.importorskip("opencensus", reason="the job server needs ray[default]")
    home = tempfile.mkdtemp(dir="/tmp")  # short, because sockets lie there
    node = Head(home)
    yield node
    node.stop()
    shutil.rmtree(home, ignore_errors=True)


def driver_of(run_dir: Path) -> int:
    found = [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if str(run_dir) in (p.info["cmdline"] or []) and "inril_ray.cli" in p.info["cmdline"]
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_job_is_followed_stopped_killed_and_goes_on_where_it_was(head: Head, tmp_path: Path) -> None:
    config, out = tmp_path / "long.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(LONG))
    line = ("train", "--config", config, "--out", out)

    def iterations() -> int:
        file = out / "metrics.jsonl"
        return len(file.read_text().splitlines()) - 1 if file.exists() else -1

    assert head.status(None) == 401
    first = head.submit(*line)
    assert first.stdout is not None
    submitted = re.search(r"Submitted (\S+)\.", next(text for text in first.stdout if "Submitted" in text))
    assert submitted is not None
    second = head.submit(*line)
    printed, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"is in use by {submitted[1]}" in printed

    wait_for(lambda: iterations() >= 2 or first.poll() is not None, "two iterations")
    driver = driver_of(out)
    assert head.status(head.token, f"{submitted[1]}/stop", "POST") == 200  # what `ray job stop` does, without its start
    printed, _ = first.communicate(timeout=120)
    assert first.returncode == 75, printed
    assert "Cloning the demonstrations" in printed  # the log was followed
    assert "Stopped by SIGTERM" in printed
    assert not psutil.pid_exists(driver)
    stopped_at = checkpoint.complete(out / "checkpoints")[-1]
    assert 2 <= stopped_at < LONG["num_iterations"]
    assert stopped_at == measured(out)[-1]["iteration"]

    third = head.submit(*line)
    wait_for(lambda: iterations() > stopped_at or third.poll() is not None, "another iteration")
    os.kill(driver_of(out), signal.SIGKILL)
    printed, _ = third.communicate(timeout=120)
    assert third.returncode == 1
    assert f"Resumed at iteration {stopped_at}" in printed

    last = head.submit(*line)
    printed, _ = last.communicate(timeout=240)
    assert last.returncode == 0, printed
    assert f"Resumed at iteration {stopped_at}" in printed
    assert json.loads((out / "summary.json").read_text())["iterations"] == LONG["num_iterations"]
    run(load_config([LONG]), tmp_path / "local", LocalBackend)
    assert measured(out) == measured(tmp_path / "local")
    assert differences(state(out, 60), state(tmp_path / "local", 60)) == []


def test_a_client_with_another_token_is_refused(head: Head, tmp_path: Path) -> None:
    other = tmp_path / "token"
    other.write_text(secrets.token_hex(32))
    job = head.submit("train", "--config", "demo", "--out", tmp_path / "run", token=other)
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert "submit: " in printed
    assert "token" in printed
    assert "Traceback" not in printed


def test_storage_that_is_not_mounted_fails_before_anything_is_written(head: Head, tmp_path: Path) -> None:
    job = head.submit("train", "--config", "demo", "--out", tmp_path / "not-mounted" / "run")
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert "is the shared storage mounted?" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--config", "demo"], "names no run directory"),
        (["train", "--config", "demo", "--out", "runs/x"], "--out runs/x: give an absolute path"),
        (["train", "--resume=x"], "--resume x: give an absolute path"),
    ],
)
def test_a_run_directory_of_the_job_alone_is_refused(command: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "cluster" / "submit.py", "--", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
