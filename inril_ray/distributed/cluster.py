"""The cluster that a command joins or starts: whether it is there, and what helps where it is not."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private.services import canonicalize_bootstrap_address

from inril_ray.threads import available_cpus
from inril_ray.types import InrilError

ANSWERS_WITHIN_S = 10.0
"""Time that a cluster has to answer. Ray itself tries for minutes, in code that no signal ends."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of gRPC, and so of Ray, begins: the preface of HTTP/2 and empty settings (RFC 9113, 3.4 and 6.5)."""
SETTINGS = 4
"""Type of the frame that such a server begins with."""


def start_ray(num_cpus: int, **options: Any) -> float:
    """Join the cluster that this process belongs to, or start a local one; return the CPUs that it has.

    Args:
        num_cpus: logical CPUs that a local one has at least.
        options: further ones of ``ray.init`` for a local one.

    Raises:
        InrilError: Ray did not start, or nothing answers at ``RAY_ADDRESS``; says what helps.
    """
    if not ray.is_initialized() and (address := cluster_address()):
        _check_answers(address)
    try:
        _init_ray(num_cpus, options)
        return ray.cluster_resources().get("CPU", 0.0)
    except Exception as error:  # Ray raises bare ones, too, where one of its processes is gone
        raise InrilError(f"Ray did not start: {_first_line(error).rstrip('.')}. {_what_helps(error)}") from None


def cluster_address() -> str | None:
    """Return the address of the cluster to join, None where the command starts one of its own."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def _init_ray(num_cpus: int, options: Mapping[str, Any]) -> None:
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        handler = signal.getsignal(signal.SIGTERM)
        # An actor that was given no GPU sees none. By Ray's default it would see all of its node, and use the first.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        if cluster_address():
            ray.init(logging_level=logging.WARNING)
        else:
            # Ray gives its processes almost the lowest priority, so that anything else on the machine starves them.
            # Here they are the job. Measured: beside two busy processes a learner did not start within 300 s.
            os.environ.setdefault("RAY_worker_niceness", "0")
            # Logical CPUs: in sync mode workers and learner take turns, so a local cluster may have more than cores.
            # Without the dashboard: eleven processes and 0.25 GB that a cluster of one run's own has no use for.
            # Not the one that somebody's `ray start` left on this machine, which Ray would look for otherwise.
            ray.init(
                address="local",
                num_cpus=max(available_cpus(), num_cpus),
                logging_level=logging.WARNING,
                log_to_driver=True,
                include_dashboard=False,
                **options,
            )
        # Ray has put a handler of its own in the place of a run's, which ends well.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Knock where a cluster should be.

    Raises:
        InrilError: there is none; says why it can't be.
    """
    if reason := _silence(address):
        raise InrilError(
            f"RAY_ADDRESS = {address!r}: {reason}. Start a cluster there (`ray start --head`), name another address, "
            "or unset RAY_ADDRESS, and the command starts a cluster of its own."
        )


def _silence(address: str) -> str | None:
    """Return why no cluster answers at an address; None if one does, or if only Ray can tell."""
    try:
        parts = urlsplit(address if "://" in address else f"//{canonicalize_bootstrap_address(address)}")
        host, port = parts.hostname, parts.port
    except ConnectionError:  # of `auto`
        return "no cluster runs on this machine"
    except (ValueError, OSError):
        return "this is not HOST:PORT of a cluster that can be reached, auto, or local"
    if parts.scheme in ("http", "https"):
        return "this is where `ray job submit` sends jobs; a program joins the cluster's own port, such as HOST:6379"
    if parts.scheme not in ("", "ray"):  # a plug-in of Ray's
        return None
    if not host or not port:
        return "this is not HOST:PORT, auto, or local"
    try:
        with socket.create_connection((host, port), ANSWERS_WITHIN_S) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return None
            connection.sendall(GREETING)
            frame = connection.recv(9)
    except TimeoutError:
        return f"nothing answers there within {ANSWERS_WITHIN_S:.0f} s"
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            return "nothing listens there"
        return f"it can't be reached ({error.strerror or error})"
    return None if len(frame) == 9 and frame[3] == SETTINGS else "what answers there is not Ray"


def _what_helps(error: Exception) -> str:
    """Return what to do about a cluster that could not be joined or started."""
    if address := cluster_address():
        return f"See to the cluster at RAY_ADDRESS = {address!r}, or unset RAY_ADDRESS: the command starts one itself."
    folder = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    if "AF_UNIX" in str(error):
        where = f"{folder} = {os.environ[folder]!r}" if folder else "The directory for temporary files"
        return f"{where} is too long for the sockets that Ray puts there: set RAY_TMPDIR=/tmp, or another short one."
    if isinstance(error, OSError) and error.errno is not None:
        where = os.environ[folder] if folder else "/tmp"
        return f"Ray writes to {where}: make that possible, or set RAY_TMPDIR to another short directory."
    return "Start the run again, or without Ray: `inril train --local`."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
