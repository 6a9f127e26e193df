"""Trials whose process is gone: Tune tries them again, and a sentence tells of those that it gives up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.tune.execution import tune_controller


class TrialActors(RayActorManager):
    """Calls whatever ends a trial's process the death of an actor.

    Tune tries a trial again if its actor died or its code raised. Any other error of Ray ends the whole sweep, and
    Ray's memory monitor kills with one of those (Ray 2.60, ``ray/air/execution/_internal/actor_manager.py``).
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=death_text(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


@contextlib.contextmanager
def survived() -> Iterator[None]:
    """Let sweeps that are started meanwhile survive every death of a trial."""
    before, tune_controller.RayActorManager = tune_controller.RayActorManager, TrialActors  # type: ignore[misc]
    try:
        yield
    finally:
        tune_controller.RayActorManager = before  # type: ignore[misc]


def death_text(error: BaseException) -> str:
    """Return in one sentence why a trial ended."""
    if isinstance(error, OutOfMemoryError):
        held = re.search(r"[\d.]+ ?GB used / [\d.]+ ?GB limit", str(error))
        return (
            f"The trial's process was killed, since its node ran out of memory{f' ({held[0]})' if held else ''}. Lower "
            "rollout.num_envs or compute.num_workers, or let fewer trials run at a time (fewer CPUs); the same command "
            "tries it again."
        )
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
