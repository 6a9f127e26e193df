"""Sweeps: what is tried, what is refused before it starts, what came of it, which setting wins."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given

from inril_ray.config import build
from inril_ray.experiment import load_config
from inril_ray.report import write_sweep_report
from inril_ray.statistics import rate
from inril_ray.sweep import (
    Between,
    Outcome,
    Setting,
    SweepConfig,
    base_key,
    check,
    confirmation,
    draw,
    gather,
    plan_hash,
    read_sweep,
    result_lines,
    settings_of,
    trial_config,
)
from inril_ray.tune import run_sweep, search
from inril_ray.tune.estimate import at_size, num_imitations, probed
from inril_ray.types import InrilError
from tests.fuzzing import cases, edits, spoil
from tests.unit.test_report import outcome, write_run

BASE = {"task": "robomimic/lift"}


def sweep(**values: object) -> SweepConfig:
    return build(SweepConfig, {"name": "test", "base": BASE, **values})


GRID = sweep(
    space={"interleave.every": [1, 5], "separation": ["upgrad", "naive"]},
    arms=[{"schedule": "rl_only"}],
    seeds={"search": [0, 1], "confirm": [10, 11, 12]},
)


def test_a_grid_is_every_combination_and_the_arms() -> None:
    settings = settings_of(GRID)
    assert [s.label for s in settings] == [
        "m = 1, upgrad",
        "m = 1, naive",
        "m = 5, upgrad",
        "m = 5, naive",
        "RL only",
    ]
    assert len({s.key for s in settings}) == 5
    config = trial_config(GRID, settings[3], 7, pretrained=Path("base"))
    assert (config.interleave.every, config.separation, config.seed) == (5, "naive", 7)
    assert config.pretrained == str(Path("base").resolve())
    assert not config.video


def test_equal_settings_are_tried_once() -> None:
    assert len(settings_of(sweep(space={"interleave.every": [5, 5]}, arms=[{"interleave.every": 5}]))) == 1


def test_random_draws_lie_in_the_space_and_are_reproducible() -> None:
    space = {
        "rl.actor_lr": {"low": 1e-5, "high": 1e-3, "log": True},
        "interleave.every": {"low": 2, "high": 4, "integer": True},
        "separation": ["upgrad", "naive"],
    }
    config = sweep(method="random", space=space, num_samples=40)
    settings = settings_of(config)
    assert [s.key for s in settings] == [s.key for s in settings_of(config)]
    rates = np.array([s.overrides["rl.actor_lr"] for s in settings])
    assert ((rates >= 1e-5) & (rates <= 1e-3)).all()
    assert 10 < (rates < 1e-4).sum() < 30, "even in the logarithm"
    assert {s.overrides["interleave.every"] for s in settings} == {2, 3, 4}
    assert isinstance(draw(config, np.random.default_rng(1))["interleave.every"], int)
    assert {s.overrides["separation"] for s in settings} == {"upgrad", "naive"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": {"search": []}}, "seeds.search"),
        ({"seeds": {"search": [1, 1]}}, "seeds.search"),
        ({"seeds": {"search": [1], "confirm": [1]}}, r"seeds.confirm.*fresh"),
        ({"space": {"interleave.every": []}}, r"space.interleave.every = \[\]"),
        ({"space": {"rl.actor_lr": {"low": 1, "high": 2}}}, "grid needs a list"),
        ({"method": "random", "space": {"rl.actor_lr": {"low": 0, "high": 2, "log": True}}}, "bound no interval"),
        ({"method": "random", "space": {"rl.actor_lr": {"low": 2, "high": 2}}}, "bound no interval"),
        ({"method": "optuna"}, "needs a space"),
        ({"method": "optuna", "space": {"actor.hidden_dim": [16, 32]}}, r"space.actor.hidden_dim.*cloned"),
        ({"method": "pbt", "space": {"separation": ["upgrad"]}}, r"space.separation: with pbt only.*rl.actor_lr"),
        ({"method": "pbt", "space": {"rl.actor_lr": [1e-4]}, "arms": [{"schedule": "rl_only"}]}, "no arms"),
        ({"space": {"seed": [1, 2]}}, "seed: is given by the sweep"),
        ({"space": {"interleave.evry": [1]}}, r"Setting.*interleave.evry.*Did you mean 'every'"),
        ({"space": {"separation": ["upgrad", "network"]}}, r"Setting 'network'.*network"),
        ({"arms": [{"schedule": "never"}]}, r"never"),
    ],
)
def test_what_can_not_run_is_refused_before_it_starts(values: dict, message: str) -> None:
    with pytest.raises(InrilError, match=message):
        check(sweep(**values))


def test_an_unknown_key_of_the_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "base": BASE, "grids": {}}))
    with pytest.raises(InrilError, match=r"'grids'.*Keys here: name, config, base"):
        read_sweep(file)
    file.write_text(yaml.safe_dump({"name": "x", "base": BASE, "space": {"interleave.every": [1]}}))
    assert read_sweep(file).name == "x"


def test_settings_share_a_cloned_policy_unless_they_change_how_it_is_cloned() -> None:
    first, other, wide = (
        Setting(overrides=o) for o in ({"interleave.every": 1}, {"separation": "naive"}, {"actor.hidden_dim": 64})
    )
    assert base_key(GRID, first) == base_key(GRID, other)
    assert base_key(GRID, first) != base_key(GRID, wide)


def trials(folder: Path, scores: dict[str, list[int | None]]) -> list[Outcome]:
    """Finished runs, scores in per cent of 100 episodes; None is a run that failed."""
    settings, found = {s.label: s for s in settings_of(GRID)}, []
    for label, values in scores.items():
        for seed, value in enumerate(values):
            path = folder / "trials" / f"{settings[label].key}-{seed}"
            if value is not None:
                write_run(path, final=outcome(value, 100, 0.0, 1.0))
            error = None if value is not None else "InrilError: no luck"
            found.append(Outcome(setting=settings[label], seed=seed, run_dir=path, error=error))
    return found


SCORES: dict[str, list[int | None]] = {
    "m = 1, upgrad": [60, 62],
    "m = 1, naive": [70, 72],
    "m = 5, upgrad": [80, 84],
    "m = 5, naive": [99, None],
    "RL only": [50, 55],
}


def test_gather_chooses_the_best_mean_of_the_settings_with_most_seeds(tmp_path: Path) -> None:
    result = gather(GRID, trials(tmp_path, SCORES), tmp_path)
    rows = {row["label"]: row for row in result["settings"]}
    chosen = rows["m = 5, upgrad"]
    assert result["chosen"] == chosen["key"], "one seed of 99 % is luckier than two of 82 %"
    assert result["winner"] is None, "two seeds don't tell"
    assert len(result["tied"]) == 4, "lower means, but intervals that are not below"
    assert chosen["mean"]["value"] == pytest.approx(0.82)
    assert chosen["mean"]["low"] < 0.7 and chosen["mean"]["high"] > 0.9, "between two seeds"
    assert chosen["beats_control"]["value"] == 1.0
    assert chosen["beats_control"]["low"] < 0.5, "four pairs of runs"
    assert result["control"] == rows["RL only"]["key"]
    one = rows["m = 5, naive"]["mean"]
    assert (one["low"], one["high"]) == (rate(99, 100).low, rate(99, 100).high), "of its episodes"
    assert result["failed"] == [{"label": "m = 5, naive", "seed": 1, "error": "InrilError: no luck"}]
    assert chosen["trials"][0]["rho"] == pytest.approx(0.0, abs=1e-9)
    assert chosen["trials"][0]["il_probe_loss"] == pytest.approx(0.5 / 6)
    json.dumps(result)


FIVE: dict[str, list[int | None]] = {"m = 1, upgrad": [90, 91, 92, 93, 94], "m = 1, naive": [10, 12, 9, 11, 10]}


def test_a_setting_wins_if_all_other_intervals_are_below_its_own(tmp_path: Path) -> None:
    result = gather(GRID, trials(tmp_path, FIVE), tmp_path)
    keys = {row["label"]: row["key"] for row in result["settings"]}
    assert (result["winner"], result["tied"]) == (keys["m = 1, upgrad"], [])
    assert "At the 5 seeds of the search: Winner: m = 1, upgrad, 92.0 %" in "\n".join(result_lines(result))
    lucky = gather(GRID, trials(tmp_path, FIVE | {"m = 5, naive": [95]}), tmp_path)
    assert lucky["chosen"] == keys["m = 1, upgrad"]
    assert (lucky["winner"], len(lucky["tied"])) == (None, 1), "one seed of 95 % is not below"


def test_one_seed_and_a_setting_without_others_win_nothing(tmp_path: Path) -> None:
    one = gather(GRID, trials(tmp_path, {name: values[:1] for name, values in FIVE.items()}), tmp_path)
    assert (one["winner"], one["tied"]) == (None, [])
    assert "but at one seed" in one["sentence"]
    alone = gather(GRID, trials(tmp_path, {"RL only": [50, 60]}), tmp_path)
    assert alone["winner"] is None
    assert "No other setting finished than RL only" in alone["sentence"]


@pytest.mark.parametrize("score", [0, 37, 100])
def test_equal_settings_tie_in_the_order_of_the_plan_whichever_ended_first(tmp_path: Path, score: int) -> None:
    found = trials(tmp_path, {label: [score, score] for label in SCORES})
    results = [gather(GRID, order, tmp_path) for order in (found, found[::-1], found[5:] + found[:5])]
    assert results[0] == results[1] == results[2]
    result, labels = results[0], {row["key"]: row["label"] for row in results[0]["settings"]}
    assert list(labels.values()) == list(SCORES)
    assert labels[result["chosen"]] == "m = 1, upgrad", "the first of the plan"
    assert result["winner"] is None
    assert [labels[key] for key in result["tied"]] == list(SCORES)[1:]
    for row in result["settings"]:
        assert row["mean"]["low"] <= score / 100 <= row["mean"]["high"]
        assert row["mean"]["high"] - row["mean"]["low"] > 0.01
        assert row["key"] == result["control"] or 0 < row["beats_control"]["high"] - row["beats_control"]["low"]
    text = "\n".join(result_lines(result))
    assert f"No winner: the best mean is that of m = 1, upgrad, {score}.0 %" in text
    assert "which 4 others reach, too" in text
    (tmp_path / "sweep.json").write_text(json.dumps(result))
    page = write_sweep_report(tmp_path).read_text()
    assert "No winner" in page and "is highest" not in page


def test_means_that_differ_by_rounding_only_are_equal(tmp_path: Path) -> None:
    """(0.1 + 0.2 + 0.3) / 3 and (0.3 + 0.2 + 0.1) / 3 are two numbers."""
    result = gather(GRID, trials(tmp_path, {"m = 1, upgrad": [30, 20, 10], "m = 5, upgrad": [10, 20, 30]}), tmp_path)
    assert [row["label"] for row in result["settings"] if row["key"] == result["chosen"]] == ["m = 1, upgrad"]
    assert "which 1 other reaches, too, but the interval of the other one is not below its own" in result["sentence"]


def test_a_finished_run_of_another_release_is_refused_with_a_reason(tmp_path: Path) -> None:
    found = trials(tmp_path, FIVE)
    summary = json.loads((found[0].run_dir / "summary.json").read_text())
    del summary["final"]["outcomes"]
    (found[0].run_dir / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InrilError, match="no outcomes by episode"):
        gather(GRID, found, tmp_path)


def test_a_report_of_another_releases_sweep_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": [{"key": "a", "trials": []}], "winner": "a"}))
    with pytest.raises(InrilError, match="of another release"):
        write_sweep_report(tmp_path)


def test_runs_that_were_stopped_early_count_as_that(tmp_path: Path) -> None:
    found = trials(tmp_path, SCORES)
    (found[4].run_dir / "summary.json").unlink()
    result = gather(GRID, found, tmp_path)
    row = next(r for r in result["settings"] if r["label"] == "m = 5, upgrad")
    assert [t["state"] for t in row["trials"]] == ["stopped", "finished"]
    assert row["trials"][0]["score"] == pytest.approx(0.6), "its last evaluation"
    assert row["trials"][0]["iteration"] == 6
    assert row["finished"] == 1
    assert "1 of 2 seeds finished (the others: 60.0 % at iteration 6)" in "\n".join(result_lines(result))
    (found[5].run_dir / "summary.json").unlink()
    (tmp_path / "sweep.json").write_text(json.dumps(gather(GRID, found, tmp_path)))
    assert "stopped: 60.0\xa0% at iteration 6, 60.0\xa0% at iteration 6" in write_sweep_report(tmp_path).read_text()


def test_no_finished_trial_is_an_error_that_says_why(tmp_path: Path) -> None:
    found = [Outcome(setting=s, seed=0, run_dir=tmp_path / s.key, error="disk full") for s in settings_of(GRID)]
    with pytest.raises(InrilError, match=r"No trial finished. disk full"):
        gather(GRID, found, tmp_path)


def confirmed(folder: Path) -> dict:
    result = gather(GRID, trials(folder, SCORES), folder)
    settings = {s.key: s for s in settings_of(GRID)}
    found = []
    for key, values in ((result["chosen"], (75, 80, 78)), (result["control"], (50, 57, 52))):
        for seed, value in zip((10, 11, 12), values, strict=True):
            path = write_run(folder / "trials" / f"{key}-{seed}", final=outcome(value, 100, 0.0, 1.0))
            found.append(Outcome(setting=settings[key], seed=seed, run_dir=path))
    return result | {"confirmation": confirmation(result, found)}


def test_the_chosen_setting_is_confirmed_at_fresh_seeds(tmp_path: Path) -> None:
    result = confirmed(tmp_path)
    again = result["confirmation"]
    assert again["mean"]["value"] == pytest.approx((0.75 + 0.80 + 0.78) / 3)
    assert again["against_control"]["verdict"] == "helps"
    text = "\n".join(result_lines(result))
    assert "At the 2 seeds of the search: No winner: the best mean is that of m = 5, upgrad, 82.0 % [" in text
    assert "m = 5, upgrad at 3 fresh seeds: 77.7 % [" in text
    assert "Failed and left out: m = 5, naive, seed 1: InrilError: no luck" in text
    assert "RL only" in again["against_control"]["sentence"]


def test_another_choice_is_not_confirmed_from_the_records_of_the_former(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune's records know settings by their place in the list; one that is shorter had no such place."""
    names: list[str] = []
    monkeypatch.setattr(search, "_fit", lambda plan, name, *_: names.append(name))
    plan: Any = SimpleNamespace(sweep=GRID)
    first, second, *_, control = settings_of(GRID)
    for chosen in ([first, control], [second, control], [control], [first, control]):
        search._confirm(plan, chosen, load_config([BASE]), print)
    assert names[0] == names[3]
    assert len(set(names)) == 3
    assert all(name.startswith("confirm-") for name in names)


def test_the_report_shows_both_results_and_the_heat_map(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(confirmed(tmp_path)))
    page = write_sweep_report(tmp_path).read_text()
    assert "At 3 fresh seeds m = 5, upgrad reaches 77.7\xa0%" in page
    assert 'class="heat"' in page
    assert page.count("--share: ") == 4
    assert "Failed and left out: m = 5, naive, seed 1" in page
    assert page.count("<figure") == 1 + 5, "one of intervals, one for each setting"
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder, json.dumps(confirmed(folder))


@cases(20)
@given(changes=edits)
def test_of_any_spoiled_sweep_a_report_is_made_or_not_with_a_reason(finished: tuple[Path, str], changes: Any) -> None:
    folder, text = finished
    (folder / "sweep.json").write_text(json.dumps(spoil(json.loads(text), changes)))
    with contextlib.suppress(InrilError):
        write_sweep_report(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"settings": 7}', '{"settings": [{}]}', '{"settings": [{"trials": [3]}]}']
)
def test_of_something_else_no_report_is_made(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InrilError, match="holds no sweep|was not written by this program"):
        write_sweep_report(tmp_path)


def test_a_report_without_a_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="holds no sweep"):
        write_sweep_report(tmp_path)


def test_between_is_a_choice_beside_lists() -> None:
    assert isinstance(sweep(method="random", space={"a.b": {"low": 0, "high": 1}}).space["a.b"], Between)


def test_the_estimate_extrapolates_what_grows_and_not_what_does_not() -> None:
    """2 s of diagnostics and 0.5 s by decision; the first measurement also imported things."""
    sizes = [1, 2, 4, 8]
    assert at_size(64, sizes, [9.0, 3.0, 4.0, 6.0]) == pytest.approx(2.0 + 32.0)
    assert at_size(8, sizes, [9.0, 1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert at_size(16, sizes, [9.0, 0.2, 0.4, 0.8]) == pytest.approx(1.6)
    assert at_size(16, sizes, [9.0, 4.0, 3.0, 2.0]) > 0.0, "noise that falls with size does not make time negative"
    assert at_size(64, [1, 64], [5.0, 3.0]) == pytest.approx(3.0), "measured at its size"


@pytest.mark.parametrize(
    ("schedule", "every", "expected"),
    [("fixed", 3, 2), ("fixed", 1, 8), ("rl_only", 3, 0), ("bc_reg", 3, 0), ("il_only", 4, 2)],
)
def test_the_estimate_counts_imitations(schedule: str, every: int, expected: int) -> None:
    layers = {"task": "robomimic/lift", "num_iterations": 8, "schedule": schedule, "interleave": {"every": every}}
    config = load_config([layers])
    assert num_imitations(config) == expected
    shown = probed(config)
    assert shown.pretrain.num_epochs == 1
    assert num_imitations(shown) == (8 if schedule == "fixed" else expected)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml")), ids=lambda f: f.stem
)
def test_shipped_sweeps_are_sound(file: Path) -> None:
    config = read_sweep(file)
    assert config.name == file.stem
    if config.method != "pbt":
        assert "RL only" in [s.label for s in settings_of(config)]


def test_a_sweep_whose_configuration_file_changed_is_another_one(tmp_path: Path) -> None:
    file, hashes = tmp_path / "mine.yaml", []
    plan = sweep(space={"rl.actor_lr": [1e-3, 1e-4]}, arms=[{"schedule": "rl_only"}], config=str(file))
    for text in ("rl: {actor_lr: 1.0e-4}", "rl: {actor_lr: 0.1}", "rl: {actor_lr: 1.0e-4} # as before"):
        file.write_text(text)
        hashes.append(plan_hash(plan))
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", '{"hash": "of another"}'])
def test_a_directory_with_another_plan_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InrilError, match=r"plan\.json is damaged|holds another sweep"):
        run_sweep(sweep(space={"interleave.every": [1]}), tmp_path, local=True)
    assert (tmp_path / "plan.json").read_text() == content
