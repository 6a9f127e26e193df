"""The first ten updates are what they were. ``python -m tests.update_golden`` writes new ones."""

from __future__ import annotations

import json

import pytest

from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.schedules import SCHEDULES
from tests.update_golden import CASES, FOLDER, NUM_UPDATES, path_of, trace


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_the_golden_trace(case):
    golden, actual = json.loads(path_of(case).read_text()), trace(case)
    assert len(golden) == len(actual) == NUM_UPDATES
    for i, (old, new) in enumerate(zip(golden, actual, strict=True)):
        # The absolute part is for the KL divergence, whose terms cancel.
        assert new == pytest.approx(old, rel=1e-6, abs=1e-10), f"update {i + 1}"


def test_every_separation_and_schedule_has_a_golden_trace():
    names = {f"separation_{s}" for s in SEPARATIONS} | {f"schedule_{s}" for s in SCHEDULES} | {"dppo", "ppo"}
    assert names == set(CASES) == {p.stem for p in FOLDER.glob("*.json")}


def test_golden_traces_tell_methods_apart():
    goldens = {case: json.loads(path_of(case).read_text()) for case in CASES}
    separations = [goldens[c][-1] for c in ("dppo", "separation_naive", "separation_pcgrad")]
    assert len({json.dumps(row) for row in separations}) == 3
    assert all("il" not in row for row in goldens["schedule_rl_only"])
    assert any("il" in row for row in goldens["schedule_il_only"])
    assert any("il" in row for row in goldens["dppo"])
