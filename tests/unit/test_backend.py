"""A checkpoint's environments, dealt out to another number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inril_ray.backend import deal


def of(envs: range, *, begun: bool = True) -> dict[str, Any]:
    """Return a worker's state as a collector makes it; a scene that remembers nothing has no rows."""
    rows = np.array(envs, np.float32)
    return {
        "noise": [{"stream": i} for i in envs],
        "env": {"physics": np.stack([rows, rows + 0.5], axis=1), "scene": np.zeros((0, 0))},
        "obs": rows[:, None] if begun else None,
    }


def rows(state: dict[str, Any]) -> list[int]:
    numbers = [row["stream"] for row in state["noise"]]
    np.testing.assert_array_equal(state["env"]["physics"], np.array([[i, i + 0.5] for i in numbers], np.float32))
    np.testing.assert_array_equal(state["obs"], np.array(numbers, np.float32)[:, None])
    assert state["env"]["scene"].shape == (0, 0)
    return numbers


@pytest.mark.parametrize("before", [[range(7)], [range(4), range(4, 7)], [range(2), range(2, 5), range(5, 7)]])
@pytest.mark.parametrize(
    ("num_workers", "expected"),
    [(1, [[0, 1, 2, 3, 4, 5, 6]]), (2, [[0, 1, 2, 3], [4, 5, 6]]), (3, [[0, 1], [2, 3, 4], [5, 6]])],
)
def test_every_environment_is_kept_in_order(before: list[range], num_workers: int, expected: list[list[int]]) -> None:
    assert [rows(state) for state in deal([of(envs) for envs in before], 7, num_workers)] == expected


def test_before_the_first_rollout_there_are_no_observations() -> None:
    assert [state["obs"] for state in deal([of(range(4), begun=False)], 4, 2)] == [None, None]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([of(range(3))], "a state is of 3 environments, the run has 4"),
        ([of(range(3)), of(range(3, 5))], "a state is of 5 environments, the run has 4"),
        ([of(range(2)), {**of(range(2, 4)), "more": None}], "different keys"),
        ([of(range(2)), {}], "different keys"),
    ],
)
def test_states_that_do_not_fit_are_refused(states: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deal(states, 4, 2)
