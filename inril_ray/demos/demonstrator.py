"""What makes demonstrations: scripts, planners, and policies that reinforcement learning has trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from inril_ray.types import FloatArray


class Demonstrator(ABC):
    """One episode of a demonstrator. Subclasses are made with the random stream of the episode and their ``Config``.

    A planner takes as third argument a function that tells what action sequences [K, H, A] would lead to, as
    observations [K, H, O]. One that is trained has a static method ``train(task, config, seed, say, env)``, and
    takes its result as third argument.
    """

    Config: ClassVar[Any]
    """Dataclass of its quality."""
    source: ClassVar[Literal["scripted", "planner", "rl"]] = "scripted"
    """Written into every file, since such demonstrations are not those of people."""
    reads: ClassVar[tuple[str, ...] | None] = None
    """Rules of the simulator whose observations it understands; None for all of the task."""
    keeps_failures: ClassVar[bool] = False
    """Failed episodes are part of the demonstrations, and all are recorded to their end."""

    @abstractmethod
    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [A] for an observation [O]."""
