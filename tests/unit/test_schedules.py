"""Schedules."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from inril_ray.config import build
from inril_ray.interleaving_theory import IterationContext, RelationEstimate, SmoothedRelation
from inril_ray.metrics import METRICS
from inril_ray.registry import resolve
from inril_ray.schedules import SCHEDULES
from inril_ray.schedules.adaptive import AdaptiveConfig, AdaptiveSchedule, break_even, limited, paper_sqrt
from inril_ray.types import InrilError


def plan(name: str, every: int, count: int) -> tuple[list[int], list[int]]:
    """Return the (1-based) iterations that reinforce and those that imitate."""
    schedule = resolve(SCHEDULES, name, "schedule")(every)
    steps = [schedule.next(done) for done in range(count)]
    return [i for i, s in enumerate(steps, 1) if s.rl], [i for i, s in enumerate(steps, 1) if s.il]


@pytest.mark.parametrize(("every", "imitations"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7]), (10, [])])
def test_fixed_imitates_after_every_m_reinforcements(every, imitations):
    assert plan("fixed", every, 7) == ([1, 2, 3, 4, 5, 6, 7], imitations)


def test_adaptive_begins_as_fixed_does():
    assert plan("adaptive", 3, 7) == plan("fixed", 3, 7)


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


@pytest.mark.parametrize(("name", "expected"), [("fixed", 4.0), ("il_only", 4.0), ("adaptive", 4.0), ("rl_only", None)])
def test_the_log_knows_m(name, expected):
    schedule = resolve(SCHEDULES, name, "schedule")(4)
    assert schedule.decision().get("interleave_every") == expected
    assert set(schedule.decision()) <= set(METRICS)


# -- adaptive -------------------------------------------------------------------------------------------------------
def context(done=1, *, imitated=True, rl_steps=10, il_steps=10, rl_lr=1e-3, il_lr=1e-3) -> IterationContext:
    return IterationContext(
        iterations_done=done,
        reinforced=True,
        imitated=imitated,
        rl_steps=rl_steps,
        il_steps=il_steps,
        rl_lr=rl_lr,
        il_lr=il_lr,
        rl_batch_size=500,
        il_batch_size=256,
    )


def relation(rho: float, norm_il=1.0, norm_rl=1.0, variance_il=0.0) -> SmoothedRelation:
    result = SmoothedRelation()
    result.add(
        RelationEstimate(
            inner=-rho * norm_il * norm_rl,
            norm_sq_rl=norm_rl**2,
            norm_sq_il=norm_il**2,
            variance_rl=0.0,
            variance_il=variance_il,
            covariance=None,
        )
    )
    return result


def decided(every: int, found: SmoothedRelation, /, where: IterationContext | None = None, **settings) -> int:
    """Return m after one imitation iteration."""
    schedule = AdaptiveSchedule(every, AdaptiveConfig(**settings))
    schedule.observe(found, where or context())
    return schedule.every


@pytest.mark.parametrize(("rho", "expected"), [(0.05, 6.32), (0.1, 4.47), (0.5, 2.00), (0.9, 1.49)])
def test_paper_sqrt_values(rho, expected):
    assert paper_sqrt(rho, norm_il=1.0, norm_rl=2.0, kappa=0.0) == pytest.approx(expected, abs=0.005)


def test_paper_sqrt_is_guarded():
    assert paper_sqrt(0.0, 1.0, 2.0, 0.0) == 1.0
    assert paper_sqrt(-0.5, 1.0, 2.0, 0.3) == 1.0
    assert paper_sqrt(0.1, 1.0, 2.0, kappa=0.2) == math.inf
    assert paper_sqrt(0.1, 1.0, 2.0, kappa=0.3) == math.inf
    assert paper_sqrt(0.1, 1.0, 2.0, kappa=0.2 - 1e-9) > 1e4  # the limit from above
    assert paper_sqrt(1.0, 9.0, 1.0, 0.0) == 1.0  # never below one


def test_paper_sqrt_falls_with_opposition_and_break_even_rises():
    rhos = [0.01, 0.05, 0.1, 0.3, 0.6, 0.9, 1.0]
    falling = [paper_sqrt(rho, 1.0, 2.0, 0.0) for rho in rhos]
    rising = [break_even(rho, 1.0, 2.0, 0.5, context(), AdaptiveConfig()) for rho in rhos]
    assert falling == sorted(falling, reverse=True)
    assert rising == sorted(rising)
    assert len(set(rising)) == len(set(falling)) == len(rhos)


def test_break_even_by_hand():
    settings = AdaptiveConfig(c_il=0.2, smoothness_ratio=3.0)
    where = context(rl_steps=5, il_steps=20, rl_lr=1e-3, il_lr=2e-3)
    # c_R = 3 * 0.2 / 2; 20 * 2e-3 (0.5 * 4 * 2 + 0.5 * 3 * 0.2 (16 + 10)) / (5 * 1e-3 * (1 - 0.15) * 4)
    assert break_even(0.5, 4.0, 2.0, 10.0, where, settings) == pytest.approx(0.04 * 11.8 / (0.005 * 0.85 * 4))
    assert break_even(-0.5, 4.0, 2.0, 10.0, where, settings) == pytest.approx(0.04 * 3.8 / (0.005 * 0.85 * 4))
    # A larger rate of RL: c_R stops at 1.
    where = context(rl_lr=1.0, il_lr=1e-3)
    assert break_even(0.5, 4.0, 2.0, 10.0, where, settings) == pytest.approx(1e-3 * 11.8 / (0.5 * 4))


@pytest.mark.parametrize("angle", [0.0, 0.7, 1.5, 2.4, math.pi])
def test_break_even_of_a_quadratic_is_what_steps_cost_and_gain(angle):
    """Losses before and after real steps: an imitation gradient at an angle to RL's, with noise of two outcomes."""
    smooth, eta_rl, eta_il, x = 2.0, 0.3, 0.05, np.array([1.5, 0.0])
    loss, g_rl = lambda at: 0.5 * smooth * float(at @ at), smooth * x
    g_il, noise = 4.0 * np.array([math.cos(angle), math.sin(angle)]), np.array([0.4, -2.0])
    cost = np.mean([loss(x - eta_il * (g_il + sign * noise)) for sign in (-1, 1)]) - loss(x)
    gain = loss(x) - loss(x - eta_rl * g_rl)
    settings = AdaptiveConfig(c_il=0.25, smoothness_ratio=smooth / (0.25 / eta_il))
    m = break_even(
        -math.cos(angle), 4.0, float(np.linalg.norm(g_rl)), float(noise @ noise),
        context(rl_steps=7, il_steps=3, rl_lr=eta_rl, il_lr=eta_il), settings,
    )  # fmt: skip
    assert m == pytest.approx(max(0.0, 3 * cost / (7 * gain)))
    assert (m > 0) == (angle > 1.0)


@pytest.mark.parametrize("rho", [-0.05, -0.1, -1.0])
def test_break_even_of_gradients_that_agree_more_than_the_step_overshoots_is_one(rho):
    # A step of 0.1 / L overshoots by 0.1/2 |g_I|^2.
    assert break_even(rho, 1.0, 1.0, 0.0, context(), AdaptiveConfig()) == pytest.approx(0.0, abs=1e-12)
    assert decided(1, relation(rho)) == 1
    assert decided(2, relation(rho)) == 1


@pytest.mark.parametrize("rule", ["break_even", "paper_sqrt"])
@pytest.mark.parametrize("scale", [1e-4, 0.5, 1e3])
def test_rules_don_t_depend_on_the_scale_of_both_losses(rule, scale):
    ms = []
    for factor in (1.0, scale):
        schedule = AdaptiveSchedule(10, AdaptiveConfig(rule=rule))
        schedule.observe(relation(0.3, 5.0 * factor, 2.0 * factor, 40.0 * factor**2), context())
        ms.append(schedule.decision()["interleave_target"])
    assert ms[1] == pytest.approx(ms[0])
    assert ms[0] != pytest.approx(1.0)


def test_the_noise_of_imitation_asks_for_more_reinforcement():
    quiet, loud = relation(0.5, 1.0, 2.0, variance_il=1.0), relation(0.5, 1.0, 2.0, variance_il=200.0)
    assert decided(3, quiet) == 2
    assert decided(3, loud) == 3  # (0.5 * 2 + 0.5 * 0.1 * 201) / (0.95 * 4) = 2.91
    # kappa = 0.5e-3 * 200 = 0.1 of a denominator of 1: 2 / sqrt(0.9)
    schedule = AdaptiveSchedule(3, AdaptiveConfig(rule="paper_sqrt"))
    schedule.observe(loud, context())
    assert schedule.decision()["interleave_target"] == pytest.approx(2 / math.sqrt(0.9))


@pytest.mark.parametrize(
    ("target", "every", "expected"),
    [
        (7.4, 10, 7),
        (7.6, 10, 8),
        (0.0, 10, 5),
        (0.0, 3, 2),
        (0.0, 1, 1),
        (1000.0, 10, 20),
        (math.inf, 10, 20),
        (math.inf, 30, 50),
        (math.inf, 1, 2),
        (5.2, 5, 5),
    ],
)
def test_m_is_rounded_bounded_and_changes_by_a_factor_of_two_at_most(target, every, expected):
    assert limited(target, every, AdaptiveConfig()) == expected


def test_m_keeps_to_bounds_of_its_own():
    settings = AdaptiveConfig(min_every=4, max_every=12)
    assert limited(0.0, 6, settings) == 4
    assert limited(math.inf, 8, settings) == 12


def test_m_reaches_a_distant_target_in_several_cycles():
    schedule, found, seen, done = AdaptiveSchedule(3), relation(1.0, norm_il=20.0), [], 0
    for _ in range(6):
        done += schedule.every
        schedule.observe(found, context(done))
        seen.append(schedule.every)
    assert seen == [6, 12, 24, 42, 42, 42]  # (20 + 0.5 * 0.1 * 400) / 0.95


@pytest.mark.parametrize("rule", ["break_even", "paper_sqrt"])
def test_m_holds_where_the_relation_is_not_known(rule):
    assert decided(7, SmoothedRelation(), rule=rule) == 7
    assert decided(7, relation(0.5, norm_rl=0.0), rule=rule) == 7
    assert decided(7, relation(0.5, norm_il=0.0), rule=rule) == 7
    assert decided(7, relation(1.0, norm_il=90.0), context(rl_steps=0), rule=rule) == 7
    assert decided(7, relation(1.0, norm_il=90.0), context(rl_lr=0.0), rule=rule) == 7
    assert decided(7, relation(1.0, norm_il=90.0), rule=rule) != 7


def run(schedule: AdaptiveSchedule, start: int, stop: int) -> list[tuple[int, int]]:
    """Iterate under a changing relation; return (iteration, m after it) of those that imitate."""
    result = []
    for done in range(start, stop):
        imitates = schedule.next(done).il
        assert schedule.next(done).il == imitates
        found = relation(math.sin(done / 9.0), norm_il=6.0, variance_il=8.0)
        schedule.observe(found, context(done + 1, imitated=imitates))
        if imitates:
            result.append((done + 1, schedule.every))
    return result


def test_cycles_have_the_length_that_was_decided_at_their_start():
    schedule = AdaptiveSchedule(4)
    history = run(schedule, 0, 120)
    assert history[0][0] == 4
    ms = [m for _, m in history]
    assert [b - a for (a, _), (b, _) in zip(history, history[1:], strict=False)] == ms[:-1]
    assert len(set(ms)) >= 4
    assert all(b <= 2 * a and a <= 2 * b for a, b in zip(ms, ms[1:], strict=False))


@pytest.mark.parametrize("stop", range(1, 40, 3))
def test_resuming_in_the_middle_of_a_cycle_equals_not_having_stopped(stop):
    whole, first, second = (AdaptiveSchedule(5) for _ in range(3))
    expected = run(whole, 0, 90)
    history = run(first, 0, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.decision() == first.decision()
    assert history + run(second, stop, 90) == expected
    assert second.state_dict() == whole.state_dict()


def test_an_infinite_target_survives_json_and_stays_out_of_the_log():
    schedule = AdaptiveSchedule(5, AdaptiveConfig(rule="paper_sqrt"))
    schedule.observe(relation(0.01, variance_il=1e6), context())
    resumed = AdaptiveSchedule(5)
    resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert resumed.decision() == {"interleave_every": 10.0}
    assert resumed.state_dict() == schedule.state_dict()


def test_bounds_that_exclude_the_start_are_refused():
    with pytest.raises(InrilError, match=r"interleave\.every = 60.*max_every = 50"):
        AdaptiveSchedule(60)
    with pytest.raises(InrilError, match=r"min_every = 9.*max_every = 8"):
        AdaptiveSchedule(8, AdaptiveConfig(min_every=9, max_every=8))
    with pytest.raises(InrilError, match="rule = 'cubic'"):
        build(AdaptiveConfig, {"rule": "cubic"})
    with pytest.raises(InrilError, match=r"ema = 1\.0"):
        build(AdaptiveConfig, {"ema": 1.0})


def test_m_may_start_at_either_bound():
    settings = AdaptiveConfig(min_every=3, max_every=9)
    assert [AdaptiveSchedule(every, settings).every for every in (3, 9)] == [3, 9]


def test_an_adaptive_schedule_is_made_of_the_sections_of_a_configuration():
    interleave = SimpleNamespace(every=7, adaptive=AdaptiveConfig(rule="paper_sqrt", max_every=8))
    schedule = AdaptiveSchedule.from_config(interleave)
    assert (schedule.every, schedule.settings) == (7, interleave.adaptive)
