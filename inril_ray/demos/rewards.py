"""Rewards of a recording in the units of a task: what can't be brought into them is unknown, not zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inril_ray.demos.episodes import Episode, Expectation
from inril_ray.types import FloatArray, Interface

PENALTIES = (-1.0, 0.0)
"""Rewards of goal tasks in gymnasium-robotics: 0 in a step that ends solved, else -1."""


def task_rewards(
    episodes: Sequence[Episode], stated: Interface, expectation: Expectation | None
) -> tuple[list[FloatArray | None], tuple[str, ...]]:
    """Return the rewards of each episode in the units of a task, and warnings.

    Where the task pays for success and the file says after which steps it was solved, they are computed from that.
    Else the file's own are taken, if they can be the task's; -1 and 0 become 0 and 1. None where they are unknown.

    Args:
        episodes: as they were read.
        stated: what the file says about its rewards.
        expectation: of the task; None takes the rewards as they are.
    """
    found = [e.rewards for e in episodes]
    known = [r for r in found if r is not None]
    if expectation is None:
        return found, ()
    add = _difference(np.concatenate(known), stated, expectation) if known else None
    rewards: list[FloatArray | None] = []
    for episode in episodes:
        own = None if episode.rewards is None or add is None else episode.rewards + np.float32(add)
        if expectation.pays_success and episode.solved is not None:
            own = episode.solved.astype(np.float32)
        rewards.append(own)
    if not known:
        return rewards, ()
    values = np.concatenate(known)
    own = f"the file's own rewards, from {values.min():.4g} to {values.max():.4g}"
    own += f" ({stated.rewards})" if stated.rewards else ""
    pays = " or ".join(f"{v:g}" for v in expectation.reward_values or ()) or "by its own formula"
    pairs = [(a, b) for a, b in zip(found, rewards, strict=True) if a is not None]
    if any(b is None for _, b in pairs):
        return rewards, (
            f"{own}, are not in the units of the task, which pays {pays}: they count as unknown, and algorithms that "
            "learn from rewards of demonstrations refuse them.",
        )
    if all(b is not None and np.array_equal(a, b) for a, b in pairs):
        return rewards, ()
    how = "are -1 and 0 where the task pays 0 and 1, and were raised by 1"
    if any(e.solved is not None for e in episodes):
        how = f"were replaced by what the task pays ({pays}) for the success that the file states after each step"
    return rewards, (f"{own}, {how}.",)


def _difference(values: FloatArray, stated: Interface, expectation: Expectation) -> float | None:
    """Return what has to be added to the file's rewards; None if that does not make them the task's."""
    if None not in (stated.rewards, expectation.interface.rewards) and stated.rewards != expectation.interface.rewards:
        return None
    if expectation.reward_values is None or np.isin(values, expectation.reward_values).all():
        return 0.0
    return 1.0 if expectation.pays_success and np.isin(values, PENALTIES).all() else None
