"""Reinforcement alone: the baseline, m = infinity."""

from __future__ import annotations

from inril_ray.schedules.base import Iteration, Schedule


class RLOnlySchedule(Schedule):
    """Never imitates; the imitation loss and the relation of the gradients are measured all the same."""

    def next(self, iterations_done: int) -> Iteration:
        """Return what the next iteration does."""
        return Iteration(rl=True, il=False)

    def decision(self) -> dict[str, float]:
        """Return nothing: there is no m."""
        return {}
