"""Schedules."""

from __future__ import annotations

import pytest

from inril_ray.registry import resolve
from inril_ray.schedules import SCHEDULES


def plan(name: str, every: int, count: int) -> tuple[list[int], list[int]]:
    """Return the (1-based) iterations that reinforce and those that imitate."""
    schedule = resolve(SCHEDULES, name, "schedule")(every)
    steps = [schedule.next(done) for done in range(count)]
    return [i for i, s in enumerate(steps, 1) if s.rl], [i for i, s in enumerate(steps, 1) if s.il]


@pytest.mark.parametrize(("every", "imitations"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7]), (10, [])])
def test_fixed_imitates_after_every_m_reinforcements(every, imitations):
    assert plan("fixed", every, 7) == ([1, 2, 3, 4, 5, 6, 7], imitations)


def test_rl_only_never_imitates():
    assert plan("rl_only", 2, 6) == ([1, 2, 3, 4, 5, 6], [])


def test_il_only_never_reinforces():
    assert plan("il_only", 2, 6) == ([], [2, 4, 6])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_depend_on_the_count_alone_and_survive_a_checkpoint(name):
    first = resolve(SCHEDULES, name, "schedule")(3)
    forwards = [first.next(i) for i in range(9)]
    second = resolve(SCHEDULES, name, "schedule")(3)
    second.load_state_dict(first.state_dict())
    assert [second.next(i) for i in reversed(range(9))] == forwards[::-1]
