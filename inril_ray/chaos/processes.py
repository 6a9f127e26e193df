"""Faults of a whole run in a process of its own: it is killed, or what it stands on fails.

``python -m inril_ray.chaos CONFIG RUN ray|local [FAULT SEED]`` is that process; with a fault it brings it on itself. It
goes on with a run that it finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ObjectStoreFullError

from inril_ray import checkpoint
from inril_ray.backend import Backend, LocalBackend
from inril_ray.chaos.result import ATTEMPTS, Drill, orphans, same, temporary_files
from inril_ray.distributed.cluster import start_ray
from inril_ray.distributed.driver import RayBackend
from inril_ray.experiment import ExperimentConfig, load_config, resolved
from inril_ray.run import run
from inril_ray.run_dir import has_checkpoint, write_json
from inril_ray.tracking.jsonl import read_metrics
from inril_ray.types import InrilError
from inril_ray.words import counted

STORE_BYTES, CHUNK_BYTES = 80_000_000, 8_000_000
"""Of the object store that is filled, about the least that Ray makes, and of what it is filled with."""
CROWDED_S = 8.0
STARTS_WITHIN_S, ENDS_WITHIN_S = 20.0, 300.0
"""Time in which something is struck before the first checkpoint, and in which a process must end."""
STRUCK, ENDED = "struck", "ended: "
"""What the process prints when its fault has happened, and before the message that it ends with."""
ENDED_BY_RAY = "Failed to connect to GCS within"
"""What Ray prints where it ends a process itself: the head node is gone, and a call of Ray waits for it."""
PLAIN = {"max_direct_call_object_size": 0}
"""Configuration of Ray: nothing is small enough to travel with a message, so everything passes through the store."""


# -- the process ------------------------------------------------------------------------------------------------------
def _full_disk(path: Path, moment: int, rng: random.Random) -> type[Backend]:
    class FullDisk(LocalBackend):
        """No file may grow any longer, to a random point in the next checkpoint."""

        def iterate(self) -> dict[str, float]:
            if self.learner.version == moment:
                size = (checkpoint.newest(path / "checkpoints") / "tensors.safetensors").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(size), resource.RLIM_INFINITY))
                print(STRUCK, flush=True)
            return super().iterate()

    return FullDisk


def _full_store(moment: int, *, spilling: bool) -> type[Backend]:
    start_ray(
        3, object_store_memory=STORE_BYTES, _system_config={**PLAIN, "automatic_object_spilling_enabled": spilling}
    )

    class Crowded(RayBackend):
        """Somebody else fills the store to the brim (three times over where it spills), and leaves after a while."""

        def iterate(self) -> dict[str, float]:
            if self._refs.version == moment:
                held: list[Any] = []
                with contextlib.suppress(ObjectStoreFullError):
                    while len(held) < 3 * STORE_BYTES // CHUNK_BYTES:
                        held += [ray.put(np.zeros(CHUNK_BYTES, np.uint8))]
                print(STRUCK, flush=True)
                threading.Timer(CROWDED_S, held.clear).start()
            return super().iterate()

    return Crowded


def _leaving_node(moment: int, rng: random.Random) -> type[Backend]:
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": PLAIN}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(3):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address)

    class Leaving(RayBackend):
        """A node with a worker, the learner, or nothing, is killed."""

        def iterate(self) -> dict[str, float]:
            if self._refs.version == moment:
                threading.Timer(rng.uniform(0.0, 0.3), self._remove).start()
            return super().iterate()

        def _remove(self) -> None:
            cluster.remove_node(rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.node_id)), False)
            print(STRUCK, flush=True)

    return Leaving


INSIDE: dict[str, Callable[[Path, int, random.Random], type[Backend]]] = {
    "full disk": _full_disk,
    "full object store": lambda _path, moment, _rng: _full_store(moment, spilling=True),
    "full object store without spilling": lambda _path, moment, _rng: _full_store(moment, spilling=False),
    "node": lambda _path, moment, rng: _leaving_node(moment, rng),
}
"""Faults that the process brings on itself, before the iteration of a moment."""


def main() -> None:
    """Run, or go on; end with one message where that is not possible."""
    plan, path, where, *fault = sys.argv[1:]
    config, out = load_config([json.loads(Path(plan).read_text())]), Path(path)
    backend: Any = {"ray": RayBackend, "local": LocalBackend}[where]
    if fault:
        rng = random.Random(int(fault[1]))
        backend = INSIDE[fault[0]](out, rng.randrange(config.num_iterations), rng)
    try:
        run(config, out, backend, resume=has_checkpoint(out))
    except (InrilError, OSError) as error:  # as the command line does
        print(f"{ENDED}{error}", flush=True)
        raise SystemExit(1) from None


# -- the drill --------------------------------------------------------------------------------------------------------
def _damage(newest: Path, rng: random.Random) -> None:
    victim = rng.choice(sorted(newest.iterdir()))
    content = bytearray(victim.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    victim.write_bytes(content)


def _remove(newest: Path, rng: random.Random) -> None:
    rng.choice(sorted(newest.iterdir())).unlink()


def _foreign(newest: Path, _rng: random.Random) -> None:
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "damaged checkpoint": _damage,
    "missing file": _remove,
    "foreign checkpoint": _foreign,
}
"""What befalls the newest checkpoint of a run that was killed."""
KILLED = ("driver", "cluster")
"""``cluster``: every process but the driver's, which must end by itself."""
FAULTS = (*KILLED, *INSIDE, *DAMAGES)
ON_RAY = ("driver", "cluster", "node", "full object store", "full object store without spilling")


def drill(fault: str, seed: int, config: ExperimentConfig, path: Path, whole: Path, rng: random.Random) -> Drill:
    """Start the process, let the fault happen, start it again until it ends well, and compare."""
    path.mkdir(parents=True)
    plan, log = path.with_suffix(".json"), path.with_suffix(".log")
    write_json(plan, resolved(config))
    command = [sys.executable, "-m", "inril_ray.chaos", str(plan), str(path), "ray" if fault in ON_RAY else "local"]
    inside = [fault, str(rng.randrange(2**32))] if fault in INSIDE else []
    seen, problems = Seen(), []
    # Before the first checkpoint, too; of damaged ones one must be left.
    moment = (
        max(rng.randrange(config.num_iterations), 1) if fault in DAMAGES else rng.randrange(-1, config.num_iterations)
    )
    with tempfile.TemporaryDirectory(prefix="inril", dir="/tmp", ignore_cleanup_errors=True) as home:
        alone = {"RAY_TMPDIR": home, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        process = _start([*command, *inside], log, alone if fault == "node" else {})  # sockets want a short path
        if not inside:
            if fault == "cluster":
                _follow(process, seen, lambda: bool(seen.processes))
            due = time.monotonic() + (rng.uniform(0.0, STARTS_WITHIN_S) if moment < 0 else ENDS_WITHIN_S)
            _follow(process, seen, lambda: time.monotonic() > due or _reached(path) >= max(moment, 0))
            time.sleep(rng.uniform(0.0, 0.3))
            with contextlib.suppress(psutil.NoSuchProcess):  # it may just have ended
                seen.look(psutil.Process(process.pid))
            struck = process.poll() is None and (fault != "cluster" or bool(seen.processes))
            _kill(seen.processes if fault == "cluster" else {psutil.Process(process.pid)} if struck else set())
        status = _end(process, seen, log, problems)
        problems += orphans(seen.processes)
    if inside:
        struck = STRUCK in log.read_text().splitlines()
    found = checkpoint.complete(path / "checkpoints")
    if fault in DAMAGES:
        struck = len(found) > 1
        if struck:
            DAMAGES[fault](checkpoint.newest(path / "checkpoints"), rng)
            found.pop()
    repeated = max(0, int(max((r["iteration"] for r in read_metrics(path)), default=0)) - max(found, default=0))
    if repeated > (config.checkpoint.every or 1) * (2 if fault in DAMAGES else 1):
        problems.append(f"{counted(repeated, 'iterations')} lost")
    message, restarts = "", 0
    if inside or fault == "cluster":
        message = _said(log, ENDED).removeprefix(ENDED) or _said(log, ENDED_BY_RAY)
    if status and not message and fault not in ("driver", *DAMAGES):
        problems.append("no word on why it ended")
    while status and restarts < ATTEMPTS:
        restarts += 1
        again, log = Seen(), path.with_suffix(f".{restarts}.log")  # what the first start said stays
        status = _end(_start(command, log, {}), again, log, problems)
        problems += orphans(again.processes)
        message = _said(log, "Passed over: ") if fault in DAMAGES else message
    return Drill(
        fault=fault,
        seed=seed,
        struck=struck,
        restarts=restarts,
        replaced=int(max((r.get("worker_restarts", 0.0) for r in read_metrics(path)), default=0.0)),
        repeated=repeated,
        equal=same(path, whole, config.num_iterations),
        problems=[*problems, *temporary_files(path)],
        message=message,
        memory_mb=round(seen.memory_mb),
    )


@dataclass
class Seen:
    """What was seen of a process and all that it started."""

    processes: set[psutil.Process] = field(default_factory=set)
    memory_mb: float = 0.0
    """The most that they had for themselves at a time."""

    def look(self, process: psutil.Process) -> None:
        """Note its descendants, and the memory of them all."""
        family = [process, *process.children(recursive=True)]
        self.processes |= set(family[1:])
        total = 0
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory = member.memory_info()
                total += memory.rss - memory.shared
        self.memory_mb = max(self.memory_mb, total / 1e6)


def _start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[Any]:
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})


def _end(process: subprocess.Popen[Any], seen: Seen, log: Path, problems: list[str]) -> int:
    """Wait until a process has ended, and return its status; one that hangs is killed."""
    if not _follow(process, seen, lambda: False):
        problems.append("a driver that did not end")
        _kill({psutil.Process(process.pid), *seen.processes})
    status = process.wait()
    if any(text.startswith("Traceback") for text in log.read_text(errors="replace").splitlines()):
        problems.append("a traceback")
    return status


def _follow(process: subprocess.Popen[Any], seen: Seen, until: Callable[[], bool]) -> bool:
    """Look at a process until something is so or it ends; return False where neither comes in time."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while process.poll() is None and not until():
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            seen.look(psutil.Process(process.pid))
        time.sleep(0.05)
    return True


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil looks whether it is still the same
            process.kill()


def _reached(path: Path) -> int:
    return max(checkpoint.complete(path / "checkpoints"), default=-1)


def _said(log: Path, sign: str) -> str:
    """Return the last line of what a process said that has a sign, from there on."""
    lines = [text for text in log.read_text(errors="replace").splitlines() if sign in text]
    return lines[-1][lines[-1].index(sign) :] if lines else ""
