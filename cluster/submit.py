"""Submit an ``inril`` command to a Ray cluster, follow its log, and submit the same line again to go on.

    python cluster/submit.py --address http://127.0.0.1:8265 -- train --config demo --out /shared/runs/demo

The source tree travels with the job (``runtime_env.yaml`` says what does not); the packages are those of the nodes.
``docs/cluster.md`` has the tunnel, the token and the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEAD = {"node:__internal_head__": 0.001}
"""A resource that every Ray head node has: the driver runs there, as other nodes come and go."""
DIRECTORY_FLAGS = ("--out", "--resume")


def main(argv: Sequence[str] | None = None) -> int:
    """Submit and follow.

    Returns:
        0 when the job succeeded, 75 when it was stopped, 1 when it failed or was refused, 2 for wrong usage.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        help="of the dashboard, as seen from here (default: the near end of a tunnel, http://127.0.0.1:8265)",
    )
    parser.add_argument(
        "--entrypoint-num-cpus", type=float, default=0, help="to reserve for the driver on the head node"
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what comes after `inril`")
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    try:
        run_dir = run_directory(command)
    except ValueError as error:
        parser.error(str(error))
    # Before Ray is imported, which reads it once.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(arguments.address)
        job_id = submit(client, command, run_dir, arguments.entrypoint_num_cpus)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    print(f"Submitted {job_id}. Stop it, with a checkpoint: ray job stop --address {arguments.address} {job_id}")
    try:
        return 0 if arguments.no_wait else asyncio.run(follow(client, job_id))
    except KeyboardInterrupt:
        print(f"The job goes on; its log: ray job logs --follow --address {arguments.address} {job_id}")
        return 130


def run_directory(command: Sequence[str]) -> PurePosixPath:
    """Return the run directory that a command names.

    Raises:
        ValueError: it names none, or a relative one, which would lie in the job's own directory and go with it.
    """
    for flag in DIRECTORY_FLAGS:
        for i, word in enumerate(command):
            value = word.partition("=")[2] if word.startswith(f"{flag}=") else None
            if word == flag and i + 1 < len(command):
                value = command[i + 1]
            if value is not None:
                if not value.startswith("/"):
                    raise ValueError(f"{flag} {value}: give an absolute path on storage that outlives the nodes")
                return PurePosixPath(value)
    raise ValueError(f"the command names no run directory; add {' or '.join(DIRECTORY_FLAGS)} with an absolute path")


def entrypoint(command: Sequence[str], run_dir: PurePosixPath) -> str:
    """Return the shell command of the driver. It makes no parent directory: that would hide a missing mount."""
    parent = shlex.quote(str(run_dir.parent))
    missing = shlex.quote(f"{run_dir.parent} is not a directory on the head node: is the shared storage mounted?")
    # exec, so that the signal of `ray job stop` reaches the driver and no shell in between
    return f"test -d {parent} || {{ echo {missing} >&2; exit 1; }}; exec python -m inril_ray.cli {shlex.join(command)}"


def submit(client: Any, command: Sequence[str], run_dir: PurePosixPath, num_cpus: float) -> str:
    """Submit a job; return its id.

    Raises:
        RuntimeError: a job that has not ended writes to the same run directory, or the cluster refuses.
    """
    import yaml

    for job in client.list_jobs():
        if (job.metadata or {}).get("run_dir") == str(run_dir) and not job.status.is_terminal():
            raise RuntimeError(f"{run_dir} is in use by {job.submission_id} ({job.status}); stop that job first.")
    runtime_env = yaml.safe_load((Path(__file__).parent / "runtime_env.yaml").read_text())
    return client.submit_job(
        entrypoint=entrypoint(command, run_dir),
        runtime_env={**runtime_env, "working_dir": str(ROOT)},
        metadata={"run_dir": str(run_dir)},
        entrypoint_num_cpus=num_cpus,
        entrypoint_resources=HEAD,
    )


async def follow(client: Any, job_id: str) -> int:
    """Print a job's log until it ends; return an exit status for how it ended."""
    from ray.job_submission import JobStatus

    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", flush=True)
    info = client.get_job_info(job_id)
    print(f"{job_id}: {info.status}. {info.message or ''}")
    return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 75}.get(info.status, 1)


if __name__ == "__main__":
    sys.exit(main())
