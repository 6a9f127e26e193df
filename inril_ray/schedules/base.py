"""The schedule contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from inril_ray.interleaving_theory import IterationContext, SmoothedRelation


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What one iteration does after its rollout."""

    rl: bool
    """Update the policy by reinforcement (the critic learns in any case)."""
    il: bool
    """Then make an imitation iteration."""
    regularized: bool = False
    """Add the weighted imitation loss to every step of the actor."""


class Schedule(ABC):
    """Decides iteration by iteration.

    Args:
        every: m, RL iterations between imitation iterations.
    """

    every: int
    """m in use."""

    def __init__(self, every: int) -> None:
        self.every = every

    @classmethod
    def from_config(cls, interleave: Any) -> Self:
        """Make one from the ``interleave`` section of a configuration."""
        return cls(interleave.every)

    @abstractmethod
    def next(self, iterations_done: int) -> Iteration:
        """Return what the iteration after ``iterations_done`` finished ones does. Asking changes nothing."""

    def observe(self, relation: SmoothedRelation, context: IterationContext) -> None:  # noqa: B027 - most don't adapt
        """Take in how the gradients relate by now, after each iteration.

        Args:
            relation: averages that include this iteration.
            context: what the iteration did.
        """

    def decision(self) -> dict[str, float]:
        """Return what the log shall know of the choice: m from the next iteration on."""
        return {"interleave_every": float(self.every)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most schedules have no state
        """Put back what :meth:`state_dict` returned."""
