"""The guard's rates of false alarms and its power, on synthetic curves whose change points are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from inril_ray.guard import Bounds, CollapseGuard, GuardConfig, Judgement, Watch, bounds, height_of, run_length
from inril_ray.types import InrilError


def evaluations(rates: list[float], rng: np.random.Generator, episodes: int = 100) -> list[np.ndarray]:
    return [(rng.random(episodes) < p).astype(float) for p in rates]


def alarms(guard: CollapseGuard, curve: list[np.ndarray]) -> list[int]:
    return [k for k, o in enumerate(curve) if guard.judge(float(o.mean()), o, k).collapsed]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 20), (7, 20), (20, 20), (93, 100)])
def test_bounds_are_clopper_and_pearsons(successes: int, episodes: int) -> None:
    found = bounds([1.0] * successes + [0.0] * (episodes - successes), 0.01)
    expected = stats.binomtest(successes, episodes).proportion_ci(0.98, "exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bounds_of_returns_are_students() -> None:
    values = [0.2, 0.5, 0.9, 0.4]
    found, t = bounds(values, 0.025), stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((t.low, t.high))


def test_equal_returns_show_no_spread_but_not_that_there_is_none() -> None:
    found = bounds([0.4] * 20, 0.025)
    assert (found.low, found.high) == pytest.approx((0.4 - (1 - 0.025**0.05), 0.4 + (1 - 0.025**0.05)))
    assert bounds([0.4, 0.4 + 1e-9], 0.025).high > 1.0


def test_bounds_of_one_return_are_none_and_two_have_some() -> None:
    assert bounds([0.3], 0.025) == Bounds(low=-math.inf, high=math.inf)
    found, reach = bounds([0.2, 0.6], 0.025), 12.706204736174694 * 0.2  # t with one degree of freedom x s / sqrt 2
    assert (found.low, found.high) == pytest.approx((0.4 - reach, 0.4 + reach))
    assert bounds([0.3, 1.0], 0.025) != bounds([0.0, 1.0], 0.025), "1 and 0 alone are counts"


@pytest.mark.parametrize(("false_alarm", "num_values"), [(0.2, 1), (0.2, 0), (0.05, 30), (0.01, 1000)])
def test_the_height_is_where_the_run_length_is_what_is_wanted(false_alarm: float, num_values: int) -> None:
    """Alarms of noise come as a Poisson process does: none within n with probability exp(-n / run length)."""
    height = height_of(false_alarm, num_values)
    assert 1.0 - math.exp(-max(num_values, 1) / run_length(height)) == pytest.approx(false_alarm)
    assert (0.0 < height < 1.0) == (num_values < 2)


def test_a_policy_that_never_gets_worse_is_hardly_ever_called_collapsed() -> None:
    rng = np.random.default_rng(0)
    config = GuardConfig(false_alarm=0.05, tolerance=0.0)
    runs = 600
    false = sum(
        bool(alarms(CollapseGuard(config, 90, 10), evaluations([rng.uniform(0.05, 0.95)] * 10, rng)))
        for _ in range(runs)
    )
    assert false / runs <= 0.05


@pytest.mark.parametrize(("after", "least"), [(0.4, 0.85), (0.3, 0.99), (0.0, 1.0)])
def test_a_collapse_is_seen_at_its_evaluation(after: float, least: float) -> None:
    """80 % until the fifth evaluation of ten, then less; 100 episodes each, the default false-alarm rate."""
    rng, seen, late = np.random.default_rng(1), 0, 0
    for _ in range(200):
        found = alarms(CollapseGuard(GuardConfig(), 90, 10), evaluations([0.8] * 5 + [after] * 5, rng))
        assert not any(k < 5 for k in found)
        seen += bool(found)
        late += bool(found) and found[0] > 6
    assert seen / 200 >= least
    assert late / 200 <= 0.35


def test_a_decline_within_the_tolerance_is_none() -> None:
    rng = np.random.default_rng(2)
    curve = evaluations([0.8] * 5 + [0.72] * 5, rng, episodes=5000)
    assert alarms(CollapseGuard(GuardConfig(tolerance=0.1), 90, 10), curve) == []
    assert alarms(CollapseGuard(GuardConfig(tolerance=0.02), 90, 10), curve)


@pytest.mark.parametrize("num_values", [100, 1000])
def test_the_height_keeps_its_rate_of_false_alarms(num_values: int) -> None:
    """Noise whose mean is at the limit, 4000 runs; the rate is stated for known noise."""
    noise = np.random.default_rng(3).standard_normal((4000, num_values))
    height, total, alarmed = height_of(0.05, num_values), np.zeros(4000), np.zeros(4000, bool)
    for column in noise.T:
        total = np.maximum(0.0, total + column - 0.5)
        alarmed |= total > height
    assert alarmed.mean() == pytest.approx(0.05, abs=0.012)


def test_the_run_length_is_that_of_published_tables() -> None:
    """Slack 0.5, both sides: 168 values to height 4, 465 to height 5 (Montgomery, Statistical Quality Control)."""
    assert run_length(4.0) / 2 == pytest.approx(168.0, rel=0.01)
    assert run_length(5.0) / 2 == pytest.approx(465.0, rel=0.01)


@pytest.mark.parametrize("action", ["none", "warn", "stop", "rollback"])
def test_the_level_is_shared_among_both_bounds_of_every_evaluation_there_may_be(action: str) -> None:
    """A collapse is a pair of bounds, two a look. Early warnings may ask for as many looks again as are planned, and
    each roll-back may repeat all of them."""
    guard = CollapseGuard(GuardConfig(false_alarm=0.06, action=action, max_rollbacks=2), 90, 5)  # type: ignore[arg-type]
    looks = 10 * (3 if action == "rollback" else 1)
    outcomes = [1.0] * 12 + [0.0] * 8
    judged = guard.judge(0.6, outcomes, 7)
    expected = stats.binomtest(12, 20).proportion_ci(1 - 2 * 0.06 / (2 * looks), "exact")  # two-sided
    assert judged.text == f"score 60.0, at most {100 * expected.high:.1f}"
    assert guard.state_dict()["best"] == {"low": pytest.approx(expected.low), "score": 0.6, "iteration": 7.0}
    assert judged.best and not judged.collapsed


def test_a_watch_sums_standardised_excess_less_its_slack() -> None:
    """By hand: the level is half the first values' mean of 2, and the noise that of their changes 0.4 and -0.2."""
    watch = Watch(0.5, relative=True, warmup=3, height=0.6)
    assert not any(watch.observe(x) for x in (1.8, 2.2, 2.0))
    noise = math.sqrt((0.4**2 + 0.2**2) / 2 / 2) * math.sqrt(2 / stats.chi2.ppf(0.05, 2))
    assert not watch.observe(2.0)
    first = (2.0 - 1.0) / noise - 0.5
    assert watch.sum == pytest.approx(first) and 0.5 < first < 0.6
    assert not watch.observe(1.0)
    assert watch.sum == pytest.approx(first - 0.5)
    assert not watch.observe(0.1)
    assert watch.sum == 0.0, "what is below the limit is not saved up"
    assert watch.observe(4.0)
    assert watch.sum == 0.0, "an alarm starts the sum anew"


def test_a_watch_of_no_height_gives_no_alarm_below_its_limit() -> None:
    watch = Watch(3.0, relative=False, warmup=3, height=0.0)
    assert not any(watch.observe(x) for x in (1.0, 1.1, 1.0, 1.1, 3.0))
    assert watch.observe(9.0)


def test_multiples_of_a_loss_that_touched_zero_are_not_watched() -> None:
    watch = Watch(3.0, relative=True, warmup=3, height=0.0)
    assert not any(watch.observe(x) for x in (0.0, 1.0, 1.0, 50.0, 50.0))


def test_the_imitation_loss_is_watched_by_multiples_and_the_divergence_as_it_is() -> None:
    guard = CollapseGuard(GuardConfig(kl_limit=5.0, il_loss_factor=3.0, warmup=3), 10, 4)
    assert guard.rollbacks == 0
    for _ in range(3):
        assert guard.warnings({"kl_base": 2.0, "il_probe_loss": 2.0}) == []
    assert guard.warnings({"kl_base": 4.9, "il_probe_loss": 5.9}) == []
    assert guard.warnings({"kl_base": 99.0, "il_probe_loss": 99.0}) == [
        "il_probe_loss is 99 and has been above 6.",
        "kl_base is 99 and has been above 5.",
    ]


def test_what_a_judgement_says() -> None:
    guard = CollapseGuard(GuardConfig(tolerance=0.0), 20, 3)
    assert guard.best_iteration is None
    same = [0.5] * 100_000  # so many that both bounds are the score, as it is printed
    assert guard.judge(0.5, same, 3) == Judgement(collapsed=False, best=True, text="score 50.0, at most 50.0")
    assert guard.best_iteration == 3
    text = "; the best was 50.0 at iteration 3, at least 50.0"
    again = guard.judge(0.5, same, 4)
    assert again == Judgement(collapsed=False, best=False, text=f"score 50.0, at most 50.0{text}"), "not less, not more"
    assert guard.judge(0.25, [0.25] * 100_000, 5).collapsed
    assert guard.best_iteration == 3


def test_the_noise_of_a_watch_is_that_of_differences_at_the_upper_end_of_its_interval() -> None:
    values = [1.0, 1.3, 0.9, 1.6, 1.2]
    watch = Watch(2.0, relative=False, warmup=5, height=10.0)
    for value in values:
        watch.observe(value)
    variance = np.mean((np.diff(values) / 2.0) ** 2) / 2  # a difference has twice the variance of a value
    expected = math.sqrt(variance * 4 / stats.chi2.ppf(0.05, 4))
    watch.observe(9.0)
    assert watch.sum == pytest.approx((9.0 / 2.0 - 1.0) / expected - 0.5)
    still = Watch(2.0, relative=False, warmup=3, height=1e9)
    for value in (1.0, 1.0, 1.0, 2.2):
        still.observe(value)
    assert still.sum == pytest.approx(0.1 / 0.01 - 0.5), "a floor, or anything would be infinitely unlikely"


def watched(values: np.ndarray, *, relative: bool = True) -> list[int]:
    watch = Watch(3.0, relative=relative, warmup=5, height=height_of(0.01, len(values)))
    return [i for i, value in enumerate(values) if watch.observe(float(value))]


def test_a_loss_that_rises_is_noticed_soon_after_its_change_point() -> None:
    delays = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        loss = np.where(np.arange(100) < 60, 1.0, 5.0) * np.exp(0.1 * rng.standard_normal(100))
        found = watched(loss)
        assert found and found[0] >= 60
        delays.append(found[0] - 60)
    assert np.mean(delays) < 3.0
    assert max(delays) <= 8


def test_a_loss_below_its_limit_and_noise_at_it_give_no_alarm() -> None:
    quiet = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        assert watched(1.5 * np.exp(0.2 * rng.standard_normal(100))) == []
        quiet += watched(3.0 + 0.3 * rng.standard_normal(100), relative=False) == []
    assert quiet >= 290, "0.01 were asked for; the noise is estimated from four differences, so a little more"


def test_a_log_likelihood_is_not_watched() -> None:
    watch = Watch(3.0, relative=True, warmup=3, height=1.0)
    assert not any(watch.observe(value) for value in [-1.3, -1.2, -1.3, 5.0, 50.0])


def test_settings_at_their_ends() -> None:
    assert height_of(0.45, 1) == 0.0
    guard = CollapseGuard(GuardConfig(false_alarm=0.45), 1, 2)
    assert not guard.judge(float("nan"), [float("nan")], 0).best
    assert guard.judge(0.5, [0.0, 1.0] * 50, 1).best


def test_what_the_watches_saw_is_rolled_back() -> None:
    guard = CollapseGuard(GuardConfig(), 100, 4)
    guard.warnings({"il_probe_loss": 1.0})
    before = guard.state_dict()
    for value in (7e14, 7e14, 7e14):
        guard.warnings({"il_probe_loss": value})
    guard.rollbacks = 1
    guard.rewind(before)
    assert guard.state_dict() == {**before, "rollbacks": 1}


def test_warnings_ask_for_no_more_evaluations_than_are_planned() -> None:
    guard = CollapseGuard(GuardConfig(kl_limit=0.5), 200, 3)
    for _ in range(5):
        assert guard.warnings({"kl_base": 0.1, "il_probe_loss": 1.0}) == []
    asked = [w for _ in range(150) if (w := guard.warnings({"kl_base": 4.0, "il_probe_loss": 1.0}))]
    assert len(asked) == 3
    assert asked[0] == ["kl_base is 4 and has been above 0.5."]
    assert guard.warnings({"il_probe_loss": float("nan")}) == []


def test_the_state_comes_back_through_json() -> None:
    guard, rng = CollapseGuard(GuardConfig(), 50, 6), np.random.default_rng(0)
    for k, outcome in enumerate(evaluations([0.7] * 3, rng)):
        guard.judge(float(outcome.mean()), outcome, k)
        guard.warnings({"il_probe_loss": 1.0 + 0.1 * k})
    other = CollapseGuard(GuardConfig(), 50, 6)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    bad = evaluations([0.1], rng)[0]
    assert other.judge(0.1, bad, 4) == guard.judge(0.1, bad, 4)
    assert other.state_dict() == guard.state_dict()


@pytest.mark.parametrize(
    "values", [{"false_alarm": 0.0}, {"step_factor": 1.0}, {"action": "panic"}, {"warmup": 2}, {"il_loss_factor": 1.0}]
)
def test_settings_out_of_range_are_refused(values: dict) -> None:
    from inril_ray.config import build

    with pytest.raises(InrilError, match=next(iter(values))):
        build(GuardConfig, values, "guard")
