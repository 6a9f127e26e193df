"""Imitation alone: more behaviour cloning at the same number of environment steps."""

from __future__ import annotations

from inril_ray.schedules.base import Iteration, Schedule


class ILOnlySchedule(Schedule):
    """Imitates after every m rollouts and never reinforces.

    Rollouts are collected and the critic learns, so that the reinforcement gradient which is *not* applied can be
    measured and curves compare at equal environment steps.
    """

    def next(self, iterations_done: int) -> Iteration:
        """Return what the next iteration does."""
        return Iteration(rl=False, il=(iterations_done + 1) % self.every == 0)
