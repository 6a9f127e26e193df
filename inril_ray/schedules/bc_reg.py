"""Behaviour-cloning regularisation: the rival of interleaving."""

from __future__ import annotations

from inril_ray.schedules.base import Iteration, Schedule


class BCRegularizedSchedule(Schedule):
    """Every RL step adds the weighted imitation loss, and there are no imitation iterations.

    Weight, decay and source are those of ``interleave``. Source: IN-RIL section 4 (its baseline); the decay is that of
    Rajeswaran et al. 2018 (DAPG).
    """

    def next(self, iterations_done: int) -> Iteration:
        """Return what the next iteration does."""
        return Iteration(rl=True, il=False, regularized=True)
