"""Which episode the pictures show."""

from __future__ import annotations

import pytest

from inril_ray.media import choose_episode


@pytest.mark.parametrize(
    ("before", "after", "num_envs", "expected"),
    [
        ([1, 0, 0, 0], [1, 0, 1, 1], 4, 2),
        ([1, 1, 0], [1, 1, 1], 2, 0),
        ([0.2, 0.5, 0.3], [0.3, 0.4, 0.9], 3, 2),
    ],
    ids=["the first that failed and succeeds", "none in the first round", "the score that rose most"],
)
def test_the_episode_that_gained_most_is_shown(
    before: list[float], after: list[float], num_envs: int, expected: int
) -> None:
    assert choose_episode(before, after, num_envs) == expected
