"""Whatever ends a trial's process, Tune takes it for the death of an actor, and a sentence says why."""

from __future__ import annotations

import pickle
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.tune.execution import tune_controller

from inril_ray.tune.deaths import TrialActors, death_text, survived
from inril_ray.types import InrilError

KILLED = OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was 9.65GB used "
    "/ 23.54GB limit (0.409878).\nObject store memory usage: [- objects spillable: 0\n- bytes spillable: 0"
)
"""As Ray 2.60 words it, with some fifty lines more."""


def told(manager: RayActorManager, error: Exception) -> list[Exception]:
    """What Tune hears where a call to a trial's actor ends with an error."""
    found: list[Exception] = []
    actor = TrackedActor(1)
    manager._live_actors_to_ray_actors_resources[actor] = (MagicMock(), MagicMock())
    task = TrackedActorTask(actor, on_error=lambda _, problem: found.append(problem))
    manager._actor_task_failed(task, error)
    return found


@pytest.mark.parametrize("error", [KILLED, WorkerCrashedError(), NodeDiedError("The node died.")], ids=type)
def test_every_end_of_a_process_is_the_death_of_an_actor(error: Exception) -> None:
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):  # what Ray does: the whole sweep ends
        told(RayActorManager(resource_manager=MagicMock()), error)
    (heard,) = told(TrialActors(resource_manager=MagicMock()), error)
    assert isinstance(heard, RayActorError)
    assert str(pickle.loads(pickle.dumps(heard))) == death_text(error), "Tune keeps it in a file"


def test_what_tune_knows_it_hears_unchanged() -> None:
    for error in (RayActorError(error_msg="gone"), RayTaskError("trial", "Traceback", InrilError("no luck"))):
        assert told(TrialActors(resource_manager=MagicMock()), error) == [error]


def test_other_errors_are_nobodys_death() -> None:
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        told(TrialActors(resource_manager=MagicMock()), ValueError("a bug"))


def test_it_holds_while_a_sweep_runs_and_no_longer() -> None:
    before: Any = tune_controller.RayActorManager
    with pytest.raises(ZeroDivisionError), survived():
        assert tune_controller.RayActorManager is TrialActors
        raise ZeroDivisionError
    assert tune_controller.RayActorManager is before


def test_a_death_is_told_in_a_sentence() -> None:
    assert death_text(KILLED) == (
        "The trial's process was killed, since its node ran out of memory (9.65GB used / 23.54GB limit). Lower "
        "rollout.num_envs or compute.num_workers, or let fewer trials run at a time (fewer CPUs); the same command "
        "tries it again."
    )
    assert "memory. Lower" in death_text(OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert death_text(ValueError("one\n  two\n\n")) == "two"
    assert death_text(ValueError()) == "ValueError"
