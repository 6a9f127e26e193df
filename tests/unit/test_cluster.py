"""A cluster that is not there, or can't be started, is told at once, with what helps. No test here starts Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.utils import validate_socket_filepath

from inril_ray.cli import main
from inril_ray.distributed import cluster
from inril_ray.session import STOPPED, StopRequest
from inril_ray.types import InrilError
from tests.integration.conftest import TINY

SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray was started with, in a process that has not joined a cluster."""
    given: list[dict[str, Any]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: given.append(options))
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 3.0})
    return given


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Something at an address that says this to whoever knocks; None: nothing, for as long as one waits."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                visitor = server.accept()[0]
                held.append(visitor)
                if answer is not None:
                    visitor.recv(64)
                    visitor.sendall(answer)
                    visitor.close()

    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for visitor in held:
        visitor.close()


@pytest.fixture
def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(autouse=True)
def as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes this machine's own address for 127.0.0.1, where these servers do not listen."""
    monkeypatch.setattr("ray._private.services.resolve_ip_for_localhost", lambda host: host)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "nothing answers there within 0 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is not Ray"),
        (b"", "what answers there is not Ray"),
    ],
)
def test_what_is_no_cluster_is_named_before_ray_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any], answer: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(cluster, "ANSWERS_WITHIN_S", 0.2)
    with listening(answer) as address, pytest.raises(InrilError) as caught:
        monkeypatch.setenv("RAY_ADDRESS", address)
        cluster.start_ray(2)
    assert str(caught.value).startswith(f"RAY_ADDRESS = '{address}': {reason}. Start a cluster there")
    assert "unset RAY_ADDRESS" in str(caught.value)
    assert calls == []


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_answers_is_joined(monkeypatch: pytest.MonkeyPatch, calls: list[Any], scheme: str) -> None:
    with listening(SETTINGS_FRAME) as address:
        monkeypatch.setenv("RAY_ADDRESS", scheme + address)
        assert cluster.start_ray(2) == 3.0
    assert [set(options) for options in calls] == [{"logging_level"}]


@pytest.mark.parametrize("address", ["", "local"])
def test_without_an_address_a_cluster_of_ones_own_is_started(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any], address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    cluster.start_ray(2)
    assert calls[0]["address"] == "local", "not the cluster that somebody started on this machine"
    assert calls[0]["num_cpus"] >= 2


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("somewhere", "this is not HOST:PORT"),
        ("somewhere:", "this is not HOST:PORT"),
        ("somewhere:ninety", "this is not HOST:PORT"),
        ("somewhere:99999", "this is not HOST:PORT"),
        ("http://127.0.0.1:8265", "this is where `ray job submit` sends jobs"),
        ("nowhere.invalid:6379", "it can't be reached"),
    ],
)
def test_an_address_that_can_be_none_is_explained(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any], address: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InrilError) as caught:
        cluster.start_ray(2)
    assert f"RAY_ADDRESS = '{address}': {reason}" in str(caught.value)
    assert calls == []


def test_auto_without_a_cluster_on_this_machine_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda *_: None)
    with pytest.raises(InrilError, match="RAY_ADDRESS = 'auto': no cluster runs on this machine"):
        cluster.start_ray(2)


@pytest.mark.parametrize("verb", ["train", "verdict", "sweep"])
def test_every_command_that_needs_ray_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nobody: str,
    verb: str,
    calls: list[Any],
) -> None:
    file = tmp_path / f"{verb}.yaml"
    grid = {"name": "x", "base": TINY, "space": {"interleave.every": [1]}, "seeds": {"search": [0], "confirm": []}}
    file.write_text(yaml.safe_dump(grid if verb == "sweep" else TINY))
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    command = [verb, str(file)] if verb == "sweep" else [verb, "--config", str(file)]
    begun = time.monotonic()
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert f"inril: RAY_ADDRESS = '{nobody}': nothing listens there." in capsys.readouterr().err
    assert time.monotonic() - begun < cluster.ANSWERS_WITHIN_S
    assert calls == []


def test_sigterm_ends_a_run_that_waits_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    with listening(None) as address, StopRequest(), pytest.raises(SystemExit) as stop:
        monkeypatch.setenv("RAY_ADDRESS", address)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        cluster.start_ray(2)
    assert stop.value.code == STOPPED
    assert time.monotonic() - begun < cluster.ANSWERS_WITHIN_S / 2


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(InrilError) as caught:
        cluster.start_ray(2)
    return str(caught.value)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_directory_that_is_too_long_for_sockets_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, f"/scratch/{'x' * 90}")
    with pytest.raises(OSError) as words:
        validate_socket_filepath(f"/scratch/{'x' * 90}/ray/session/sockets/plasma_store")
    said = failing(monkeypatch, words.value)
    assert f"{variable} = '/scratch/{'x' * 90}' is too long" in said
    assert said.endswith("set RAY_TMPDIR=/tmp, or another short one.")


def test_a_directory_that_can_not_be_written_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch")
    said = failing(monkeypatch, PermissionError(13, "Permission denied", "/scratch/ray"))
    assert said.endswith("Ray writes to /scratch: make that possible, or set RAY_TMPDIR to another short directory.")


@pytest.mark.parametrize("error", [ValueError("of its arguments"), ConnectionError("no raylet.")])
def test_a_ray_that_does_not_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    said = failing(monkeypatch, error)
    words = str(error).rstrip(".")
    assert said.startswith(f"Ray did not start: {type(error).__name__}: {words}. Start the run again")


def test_a_cluster_that_can_not_be_joined_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(SETTINGS_FRAME) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        said = failing(monkeypatch, RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9"))
    assert f"Version mismatch: The cluster was started with:. See to the cluster at RAY_ADDRESS = '{address}'" in said
