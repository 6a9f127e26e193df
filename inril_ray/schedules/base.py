"""The schedule contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What one iteration does after its rollout."""

    rl: bool
    """Update the policy by reinforcement (the critic learns in any case)."""
    il: bool
    """Then make an imitation iteration."""


class Schedule(ABC):
    """Decides iteration by iteration.

    Args:
        every: m, RL iterations between imitation iterations.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    @abstractmethod
    def next(self, iterations_done: int) -> Iteration:
        """Return what the iteration after ``iterations_done`` finished ones does."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most schedules have no state
        """Put back what :meth:`state_dict` returned."""
