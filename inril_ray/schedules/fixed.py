"""IN-RIL with a constant ratio."""

from __future__ import annotations

from inril_ray.schedules.base import Iteration, Schedule


class FixedSchedule(Schedule):
    """After every m RL iterations, one imitation iteration. Source: IN-RIL section 1."""

    def next(self, iterations_done: int) -> Iteration:
        """Return what the next iteration does."""
        return Iteration(rl=True, il=(iterations_done + 1) % self.every == 0)
