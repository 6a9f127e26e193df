"""Rewards of a recording in the units of a task: what can't be brought into them is unknown, not zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inril_ray.demos.episodes import Episode, Expectation
from inril_ray.types import FloatArray, Interface

RAISED = "1 was added to them"
STATED = "they were computed from the success that the file states after each step"
RULE = "they were computed from the observations by the task's rule of success"
UNKNOWN = "they are not in its units and count as unknown; algorithms that learn from them refuse such demonstrations"
PENALTIES = (-1.0, 0.0)
"""Rewards of goal tasks in gymnasium-robotics: 0 in a step that ends solved, else -1."""


def task_rewards(
    episodes: Sequence[Episode], stated: Interface, expectation: Expectation | None
) -> tuple[list[FloatArray | None], tuple[str, ...]]:
    """Return the rewards of each episode in the units of a task, None where they are unknown, and warnings.

    Where the task pays for success and the file says after which steps it was solved, they are computed from that.
    Else the file's own are taken, if they can be the task's; -1 and 0 become 0 and 1. Else they are computed by the
    task's own rule of success, where observations tell whether it is solved.

    Args:
        episodes: as they were read.
        stated: what the file says about its rewards.
        expectation: of the task; None takes the rewards as they are.
    """
    found = [e.rewards for e in episodes]
    if expectation is None:
        return found, ()
    known = [r for r in found if r is not None]
    add = _difference(np.concatenate(known), stated, expectation) if known else None
    rewards, ways = [], set()
    for episode in episodes:
        own, way = None if episode.rewards is None or add is None else episode.rewards + np.float32(add), RAISED
        if expectation.pays_success and episode.solved is not None:
            own, way = episode.solved.astype(np.float32), STATED
        elif expectation.pays_success and own is None:
            own, way = _by_rule(episode, expectation), RULE
        rewards.append(own)
        if episode.rewards is None and own is not None:
            ways.add(way)
        elif episode.rewards is not None and (own is None or not np.array_equal(own, episode.rewards)):
            ways.add(UNKNOWN if own is None else way)
    had = "the file has no rewards of its own"
    if known:
        had = f"the file's rewards are from {np.concatenate(known).min():.4g} to {np.concatenate(known).max():.4g}"
        had += f" ({stated.rewards})" if stated.rewards else ""
    pays = " or ".join(f"{v:g}" for v in expectation.reward_values or ()) or "by its own formula"
    return rewards, tuple(f"{had}, the task pays {pays}: {way}." for way in sorted(ways))


def task_successes(
    episodes: Sequence[Episode],
    rewards: Sequence[FloatArray | None],
    pays_success: bool,
    expectation: Expectation | None,
) -> list[bool | None]:
    """Return whether each episode is a success, None where that is unknown.

    Where a step pays 1 if it ends solved, its rewards tell, once they are in these units: by the rule of the task, or
    with no task in any step. Else what the file says of the episode counts.

    Args:
        episodes: as they were read.
        rewards: of each, in the units of the task; as they were read with no task.
        pays_success: the file states that its own are in these units.
        expectation: of the task, if there is one.
    """
    known = [r for r in rewards if r is not None]
    if expectation:
        pays = expectation.pays_success
    else:
        pays = pays_success and all(np.isin(r, (0.0, 1.0)).all() for r in known)
    steps = slice(-1, None) if expectation and expectation.success == "final" else slice(None)
    paid = [None if r is None or not pays else bool((r[steps] == 1.0).any()) for r in rewards]
    return [e.success if p is None else p for e, p in zip(episodes, paid, strict=True)]


def _by_rule(episode: Episode, expectation: Expectation) -> FloatArray | None:
    if episode.final_obs is None:
        return None
    solved = expectation.solved(np.concatenate([episode.obs[1:], episode.final_obs[None]]))
    return None if solved is None else solved.astype(np.float32)


def _difference(values: FloatArray, stated: Interface, expectation: Expectation) -> float | None:
    """Return what has to be added to the file's rewards; None if that does not make them the task's."""
    if None not in (stated.rewards, expectation.interface.rewards) and stated.rewards != expectation.interface.rewards:
        return None
    if expectation.reward_values is None or np.isin(values, expectation.reward_values).all():
        return 0.0
    return 1.0 if expectation.pays_success and np.isin(values, PENALTIES).all() else None
