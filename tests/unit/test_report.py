"""Reports are self-contained, escaped, hold the numbers, and survive what a crash leaves behind."""

import base64
import contextlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given

from inril_ray.report import write_run_report, write_verdict_report
from inril_ray.report.arms import mean_band, mean_curve
from inril_ray.report.charts import (
    Chart,
    Scale,
    Series,
    line_chart,
    log_ticks,
    nice_ticks,
    tick_text,
)
from inril_ray.report.gradients import error_band, imitation_steps, pooled_rate
from inril_ray.report.page import Html, tag
from inril_ray.report.records import count, interval, number, points
from inril_ray.statistics import rate
from inril_ray.types import InrilError
from tests.fuzzing import cases, edits, spoil

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VERSIONS = {"inril_ray": "0.1.0", "torch": "2.15.0"}


def outcome(successes, episodes, low, high):
    outcomes = [1] * successes + [0] * (episodes - successes)
    ends = {"": successes / episodes, "_low": low, "_high": high}
    rates = {f"{name}{end}": value for name in ("score", "success_rate") for end, value in ends.items()}
    counts = {"eval_episodes": float(episodes), "eval_return": 2.0, "outcomes": outcomes}
    return {
        **rates,
        "success_rate_held": 0.95 * successes / episodes,
        "success_rate_final": successes / episodes,
        **counts,
    }


def scored(score, low, high, mean_return):
    ends = {"score": score, "score_low": low, "score_high": high}
    return {**ends, "eval_episodes": 3.0, "eval_return": mean_return, "outcomes": [score - 0.1, score, score + 0.1]}


BASE, FINAL = outcome(48, 100, 0.385, 0.577), outcome(85, 100, 0.767, 0.907)
MIDDLE = outcome(30, 50, 0.5, 0.7)
SCORED_BASE, SCORED_FINAL = scored(0.351, 0.302, 0.4, 1122.4), scored(1.031, 0.981, 1.081, 3335.0)
SCORED_RECORDS = {"base": SCORED_BASE, "middle": scored(0.6, 0.5, 0.7, 1932.0), "train": "train_return"}


def records(last=6, steps=5000, base=BASE, middle=MIDDLE, train="train_success_rate"):
    made = [{"iteration": 0, "env_steps": 0, **{k: v for k, v in base.items() if k != "outcomes"}}]
    for i in range(1, last + 1):
        record = {
            "iteration": i,
            "env_steps": i * steps,
            train: 0.3 + 0.05 * i,
            "rho": 0.1 * (-1) ** i,
            "rho_se": 0.2,
            "rho_ema": 0.02 * i,
            "rho_ema_se": 0.03,
            "conflict_rate": 0.4,
            "il_probe_loss": 0.5 / i,
            "il_probe_loss_all": 0.6 / i,
            "grad_norm_rl": 0.01 * i,
            "grad_norm_il": 1.0 * i,
            "il_updates": float(20 * (i // 2)),
            "rl_updates": 10.0 * i,
            "il_iterations": float(i // 2),
            "rollout_s": 2.0,
            "rl_s": 1.0,
        }
        if i % 3 == 0:
            record |= {k: v for k, v in middle.items() if k != "outcomes"}
        made.append(record)
    return made


def write_run(folder, *, task="robomimic/lift", base=BASE, final=FINAL, finished=True, lines=None):
    folder.mkdir(parents=True, exist_ok=True)
    demos = {"source": "scripted", "source_file": "lift_scripted.hdf5", "content_hash": "e6526078dd3a66c9"}
    interleave = {"every": 7, "il_steps": "matched", "relation_pairs": 4}
    plain = {"task": task, "algorithm": "dppo", "schedule": "fixed", "separation": "upgrad", "seed": 3}
    about = {"versions": VERSIONS, "commit": "700753edbacb", "machine": {"system": "Linux", "cpus": 2, "gpu": None}}
    config = {"config": {**plain, "interleave": interleave}, "hash": "ecd2c5dd1cec", "demos": demos, **about}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (lines or records())))
    summary = {
        **plain,
        "every": 7,
        "config_hash": "ecd2c5dd1cec",
        "demos": {"source": "scripted", "file": "lift_scripted.hdf5", "hash": "e6526078dd3a66c9"},
        "base": base,
        "final": final,
        "best": {"iteration": 4, **final},
        "cloning": {"bc_loss": 0.12, "bc_loss_held_out": 0.15},
        "iterations": 6,
        "env_steps": 30000,
        "counters": {"rl_updates": 60, "il_updates": 61, "il_iterations": 3},
        "seconds_by_phase": {"rollout": 120.25, "rl": 30.5},
        "peak_memory_bytes": {"process": 2**30, "sum": 2**30},
        **about,
    }
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_verdict(folder, seeds=(0, 1, 2), *, label="IN-RIL", runs=True):
    scores = {"rl_only": [0.55, 0.6, 0.5], "inril": [0.8, 0.85, 0.7]}
    iqms = {"rl_only": (0.55, 0.5, 0.6), "inril": (0.783, 0.7, 0.85)}
    arms = {}
    for arm, values in scores.items():
        names = [f"{arm}_seed{s}" for s in seeds]
        if runs:
            for name in names:
                write_run(folder / name)
        arms[arm] = {
            "label": label if arm == "inril" else "RL only",
            "overrides": {"schedule": "rl_only"} if arm == "rl_only" else {},
            "scores": values,
            "env_steps": [30000, 30000, 30000] if arm == "rl_only" else [29990, 30000, 29995],
            "rl_updates": [1210, 1210, 1210],
            "il_updates": [0, 0, 0] if arm == "rl_only" else [340, 340, 343],
            "seconds": [400.0, 410.0, 420.0],
            "iqm": dict(zip(("value", "low", "high"), iqms[arm], strict=True)),
            "runs": names,
        }
    comparison = {
        "against": "rl_only",
        "difference": {"value": 0.233, "low": 0.2, "high": 0.25},
        "t_interval": {"value": 0.233, "low": 0.161, "high": 0.305},
        "wider": "Student's t",
        "probability_of_improvement": {"value": 1.0, "low": 0.91, "high": 1.0},
        "verdict": "helps",
        "sentence": "IN-RIL helps: its success rate differs from RL only's by +23.3 percentage points.",
        "power": {"detectable": 0.112, "stated": 0.05, "seeds": 7},
    }
    result = {
        "task": "robomimic/lift",
        "algorithm": "dppo",
        "demos": {"source": "scripted", "file": "lift_scripted.hdf5", "hash": "e6526078dd3a66c9"},
        "seeds": list(seeds),
        "iterations": 6,
        "episodes_per_run": 100,
        "base": {k: v for k, v in BASE.items() if k != "outcomes"},
        "arms": arms,
        "comparisons": {"inril": comparison},
        "versions": VERSIONS,
        "commit": "700753edbacb",
        "machine": {"system": "Linux", "cpus": 2, "gpu": None},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verdict.json").write_text(json.dumps(result))
    return folder


class Reader(HTMLParser):
    """Checks that tags nest and collects what a browser would load, and the text."""

    VOID = {"img", "meta", "source"}

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.loads, self.labels, self.text = [], [], [], [], ""
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.loads += [values[k] for k in ("src", "href", "poster", "data", "action") if values.get(k)]
        assert not [k for k in values if k.startswith("on")]
        if tag == "svg" and "aria-hidden" not in values:
            self.labels.append(values["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + " "


def read(path):
    document = path.read_text(encoding="utf-8")
    reader = Reader(document)
    assert not {"script", "link", "iframe", "object", "embed"} & set(reader.tags)
    assert all(source.startswith("data:") for source in reader.loads)
    assert not re.search(r"https?://|@import|url\(", document)
    reader.flat = re.sub(r"\s+", " ", reader.text)
    return reader


def flattened(page):
    return page.flat.replace("( ", "(").replace(" .", ".").replace("  ", " ")


def test_run_report_holds_the_numbers(tmp_path):
    path = write_run_report(write_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    assert not list(path.parent.glob(".*partial"))
    page = read(path)
    for expected in (
        "Base policy: success 48.0 % [38.5, 57.7] (100 episodes)",
        "final policy: success 85.0 % [76.7, 90.7] (100 episodes)",
        "95 % Wilson intervals over evaluation episodes",
        "success 85.0 % [76.7, 90.7] at iteration 4",
        "The two intervals are disjoint.",
        "37 went from failure to success, 0 from success to failure",
        "scripted demonstrations",
        "robomimic/lift",
        "dppo",
        "upgrad",
        "7 iterations",
        "30 000 control steps",
        "61 gradient steps in 3 iterations",
        "120.25",
        "150.75",
        "1,024",
        "700753edbacb",
        "2.15.0",
        "share of minibatch pairs whose gradients oppose each other",
        '"il_steps": "matched"',
    ):
        assert expected in flattened(page), expected
    assert len(page.labels) == 6
    assert all("against environment steps" in label for label in page.labels)
    assert "missing" not in page.flat


def test_run_report_of_a_task_without_success(tmp_path):
    lines = records(**SCORED_RECORDS)
    write_run(tmp_path, task="gym/hopper", base=SCORED_BASE, final=SCORED_FINAL, lines=lines)
    page = flattened(read(write_run_report(tmp_path)))
    for expected in (
        "Base policy: score 35.1 [30.2, 40.0] (return 1122) (3 episodes) → "
        "final policy: score 103.1 [98.1, 108.1] (return 3335) (3 episodes)",
        "The two intervals are disjoint.",
        "95 % Student-t intervals over evaluation episodes",
        "score 103.1 [98.1, 108.1] (return 3335) at iteration 4",
        "chosen by the score shown",
        "Score (0: random policy, 100: expert)",
        "Return in training",
        "30 000 score 60.0 [50.0, 70.0] (return 1932)",
    ):
        assert expected in page, expected
    assert "success" not in page.lower().split("metric glossary")[0]


def test_glossary_names_only_metrics_that_occur(tmp_path):
    page = read(write_run_report(write_run(tmp_path)))
    assert "conflict_rate" in page.flat
    assert "worker_restarts" not in page.flat


def test_what_the_checks_found_and_the_guard_decided(tmp_path):
    quiet = write_run_report(write_run(tmp_path / "quiet")).read_text()
    assert "collapse guard" not in quiet
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    changes = {"health": ["Only 3 MiB of disk are free."], "guard": {"discarded_env_steps": 12000}}
    (run / "summary.json").write_text(json.dumps({**summary, **changes}))
    entries = [{"iteration": 2, "event": "collapse", "text": f"The policy has collapsed {HOSTILE}"}, 7, {"text": None}]
    (run / "guard.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries) + '{"iteration"')
    text = write_run_report(run).read_text()
    assert "Only 3 MiB of disk" in text and "Iteration 2" in text and "The policy has collapsed" in text
    assert f"{count(12000)} environment steps" in text and "<script>alert" not in text


def test_overlapping_intervals_are_said_to_overlap(tmp_path):
    page = read(write_run_report(write_run(tmp_path, final=outcome(52, 100, 0.42, 0.61))))
    assert "The two intervals overlap" in page.flat
    assert "disjoint." not in page.flat


@pytest.mark.parametrize("place", ["task", "config"])
def test_text_from_files_is_escaped(tmp_path, place):
    write_run(tmp_path, task=HOSTILE)
    if place == "config":
        (tmp_path / "summary.json").unlink()
    path = write_run_report(tmp_path)
    read(path)
    assert "<script" not in path.read_text()
    assert "&lt;script&gt;" in path.read_text()


def test_crashed_run_says_what_is_missing(tmp_path):
    write_run(tmp_path, finished=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 350')
    page = read(write_run_report(tmp_path))
    assert "summary.json is missing. The run has not finished" in page.flat
    assert "Base policy: success 48.0 %" in page.flat
    latest = "at iteration 6 (30 000 environment steps; the run is at iteration 6): success 60.0 % [50.0, 70.0]"
    assert latest in flattened(page)
    assert "18.00" in page.flat  # seconds so far
    assert "scripted demonstrations" in page.flat


def test_nothing_but_a_configuration(tmp_path):
    write_run(tmp_path, finished=False)
    (tmp_path / "metrics.jsonl").unlink()
    page = read(write_run_report(tmp_path))
    assert "metrics.jsonl is missing or empty." in page.flat
    assert "No evaluation was recorded." in page.flat
    assert "Not recorded in this run." in page.flat


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("content", ["{", "[1]", '{"config": 3, "base": 4, "peak_memory_bytes": 5}'])
def test_damaged_files_do_not_crash(tmp_path, name, content):
    write_run(tmp_path)
    (tmp_path / name).write_text(content)
    read(write_run_report(tmp_path))


def test_not_a_run(tmp_path):
    with pytest.raises(InrilError, match=re.escape(str(tmp_path))):
        write_run_report(tmp_path)
    with pytest.raises(InrilError, match="holds no verdict"):
        write_verdict_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures(tmp_path):
    media = write_run(tmp_path) / "media"
    media.mkdir()
    (media / "media.json").write_text(json.dumps({"error": "No pictures: no OpenGL <library>"}))
    page = read(write_run_report(tmp_path))
    assert "No pictures: no OpenGL <library>" in page.flat
    (media / "media.json").write_text(
        json.dumps({"episode": 4, "before": "failure", "after": "success", "note": "Evaluation episode 4."})
    )
    for name in ("before", "after"):
        (media / f"{name}.png").write_bytes(b"png" + name.encode())
    page = read(write_run_report(tmp_path))
    assert page.tags.count("img") == 2
    (media / "before.mp4").write_bytes(b"video")
    page = read(write_run_report(tmp_path))
    assert (page.tags.count("video"), page.tags.count("img")) == (1, 1)
    assert "data:video/mp4;base64," + base64.b64encode(b"video").decode() in page.loads
    assert "data:image/png;base64," + base64.b64encode(b"pngbefore").decode() in page.loads, "the poster"
    (media / "before.png").unlink()
    assert "poster" not in write_run_report(tmp_path).read_text()
    assert "Before fine-tuning: failure" in page.flat
    assert "After fine-tuning: success" in page.flat
    assert "Evaluation episode 4." in page.flat


def test_a_link_in_a_run_shows_no_file_of_the_reader(tmp_path):
    media = write_run(tmp_path / "run") / "media"
    media.mkdir()
    (tmp_path / "secret").write_bytes(b"mine")
    (media / "before.png").symlink_to(tmp_path / "secret")
    (media / "after.png").write_bytes(b"png")
    page = read(write_run_report(tmp_path / "run"))
    assert page.tags.count("img") == 1
    assert base64.b64encode(b"mine").decode() not in (tmp_path / "run" / "report.html").read_text()


def test_a_report_that_can_not_be_written_leaves_nothing(tmp_path):
    write_run(tmp_path)
    (tmp_path / "report.html").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError):
        write_run_report(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_verdict_report_holds_the_numbers(tmp_path):
    page = read(write_verdict_report(write_verdict(tmp_path)))
    for expected in (
        "IN-RIL helps: its success rate differs",
        "scripted demonstrations",
        "78.3 %",
        "[70.0, 85.0]",
        "Success, seed 2",
        "makes 29 990 to 30 000 environment steps",
        "Env steps per run 30 000 29 990 to 30 000",
        "340 to 343",
        "400 to 420",
        "RL only 1 210 RL + 0 IL; IN-RIL 1 210 RL + 341 IL",
        "95 % stratified bootstrap intervals over seeds",
        "disjoint from those of training",
        "+23.3",
        "[+20.0, +25.0]",
        "[+16.1, +30.5]",
        "1.00 [0.91, 1.00]",
        "True difference that such a study finds in four cases of five (percentage points) 11.2",
        "Paired seeds that would find one of 5 7",
        "Both intervals of the difference must exclude zero",
        "success 48.0 % [38.5, 57.7], 100 episodes (95 % Wilson interval; evaluated at the first seed)",
        "schedule = rl_only",
        "700753edbacb",
    ):
        assert expected in page.flat, expected
    assert len(page.labels) == 3
    assert "RL only: 55.0, 60.0, 50.0" in page.labels[0]
    assert "IN-RIL, mean" in page.labels[1]
    assert "missing" not in page.flat


def test_verdict_report_of_a_task_without_success(tmp_path):
    write_verdict(tmp_path, runs=False)
    result = json.loads((tmp_path / "verdict.json").read_text())
    result["arms"]["inril"]["scores"] = [1.08, 1.02, 0.97]
    result["arms"]["inril"]["iqm"] = {"value": 1.023, "low": 0.97, "high": 1.08}
    result["base"] = {k: v for k, v in SCORED_BASE.items() if k != "outcomes"}
    result["comparisons"]["inril"]["sentence"] = "IN-RIL helps: its score differs from RL only's by +45.0 points."
    for arm in result["arms"].values():
        for name in arm["runs"]:
            write_run(tmp_path / name, base=SCORED_BASE, final=SCORED_FINAL, lines=records(**SCORED_RECORDS))
    (tmp_path / "verdict.json").write_text(json.dumps(result))
    page = read(write_verdict_report(tmp_path))
    for expected in (
        "Interquartile mean of score 55.0 102.3",
        "Score, seed 0 55.0 108.0",
        "score 35.1 [30.2, 40.0] (return 1122), 3 episodes (95 % Student-t interval",
        "Difference of interquartile means (points), 95 % interval by bootstrap over seeds +23.3 [+20.0, +25.0]",
        "Score (0: random policy, 100: expert)",
        "120",  # the axis goes beyond 100
    ):
        assert expected in page.flat, expected
    assert "success" not in page.flat.lower()
    assert "RL only, mean: 3 values, first 35.1, last 60" in page.labels[1]


def test_a_verdict_of_another_release_is_shown_with_what_it_holds(tmp_path):
    write_verdict(tmp_path, runs=False)
    result = json.loads((tmp_path / "verdict.json").read_text())
    comparison = result["comparisons"]["inril"]
    del comparison["power"], comparison["wider"], comparison["t_interval"]["value"]
    (tmp_path / "verdict.json").write_text(json.dumps(result))
    page = read(write_verdict_report(tmp_path))
    assert "Student's t not recorded [+16.1, +30.5]" in page.flat
    assert "four cases of five" not in page.flat


def test_verdict_without_runs_and_with_hostile_text(tmp_path):
    path = write_verdict_report(write_verdict(tmp_path, label=HOSTILE, runs=False))
    page = read(path)
    assert "Run inril_seed2 is not in the curves: metrics.jsonl is missing or empty." in page.flat
    assert "<script" not in path.read_text()


def test_verdict_with_three_arms_and_bare_ones(tmp_path):
    write_verdict(tmp_path)
    result = json.loads((tmp_path / "verdict.json").read_text())
    result["arms"]["bc_reg"] = {"label": "BC regularised"}
    del result["comparisons"], result["base"], result["machine"]
    (tmp_path / "verdict.json").write_text(json.dumps(result))
    page = read(write_verdict_report(tmp_path))
    assert "The verdict holds no comparison." in page.flat
    assert "BC regularised" in page.flat


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = write_verdict(tmp_path_factory.mktemp("verdict"))
    return folder, (folder / "verdict.json").read_text()


@cases(20)
@given(changes=edits)
def test_of_any_spoiled_verdict_a_report_is_made_or_not_with_a_reason(finished, changes):
    folder, text = finished
    (folder / "verdict.json").write_text(json.dumps(spoil(json.loads(text), changes)))
    with contextlib.suppress(InrilError):
        write_verdict_report(folder)


def test_a_verdict_names_no_runs_elsewhere(tmp_path):
    write_run(tmp_path / "private")
    folder = write_verdict(tmp_path / "verdict")
    result = json.loads((folder / "verdict.json").read_text())
    (folder / "loop").symlink_to("loop")
    result["arms"]["inril"]["runs"] = ["../private", str(tmp_path / "private"), "loop", "inril_seed0"]
    (folder / "verdict.json").write_text(json.dumps(result))
    page = read(write_verdict_report(folder))
    assert "Run ../private is not in the curves: it lies elsewhere." in page.flat
    assert page.flat.count("it lies elsewhere") == 3


def test_a_stale_evaluation_says_when_it_was_measured(tmp_path):
    write_run(tmp_path, finished=False, lines=records(last=5))
    page = flattened(read(write_run_report(tmp_path)))
    assert "The latest evaluation, at iteration 3 (15 000 environment steps; the run is at iteration 5):" in page
    assert "3 15 000 success 60.0 % [50.0, 70.0] 50" in page, "in the table of all evaluations, too"


def test_rho_has_the_band_of_two_standard_errors_and_a_sentence_on_reading_it(tmp_path):
    made = [{"env_steps": s, "rho": r, "rho_se": e} for s, r, e in ((10, 0.1, 0.2), (20, -0.9, 0.2), (30, 0.0, None))]
    assert error_band(made, "rho") == [(10, pytest.approx(-0.3), 0.5), (20, -1.0, pytest.approx(-0.5))]
    path = write_run_report(write_run(tmp_path))
    page = read(path)
    assert page.flat.count("above 0 with the whole band (95 %), imitation works against reinforcement") == 1
    (figure,) = (f for f in path.read_text().split("<figure>") if "Opposition of the two gradients" in f)
    assert figure.count("<polygon") == 1
    assert "moving average: 6 values, first 0.02, last 0.12" in html.unescape(figure)


def test_the_conflict_rate_is_pooled_and_has_wilsons_band(tmp_path):
    rates = [(10.0 * i, v) for i, v in enumerate([0.0, 0.5, 1.0, *[0.75] * 9])]
    drawn = pooled_rate(rates, 4.0)
    assert drawn.points[:3] == [(0.0, 0.0), (10.0, 25.0), (20.0, 50.0)]
    assert drawn.points[-1] == (110.0, pytest.approx(100 * (1.0 + 9 * 0.75) / 10)), "the last ten"
    for (_, low, high), successes, trials in zip(drawn.band, (0, 2, 6), (4, 8, 12), strict=False):
        assert (low, high) == pytest.approx((100 * rate(successes, trials).low, 100 * rate(successes, trials).high))
    assert pooled_rate(rates, None).band == []
    path = write_run_report(write_run(tmp_path))
    (figure,) = (f for f in path.read_text().split("<figure>") if ">Conflict rate" in f)
    assert figure.count("<polygon") == 1
    assert "above 50 % with the whole band" in figure


def test_means_over_runs_have_bands(tmp_path):
    curves = [{1: (10, 0.1), 2: (20, 0.2)}, {1: (12, 0.3), 2: (20, 0.9)}]
    (first, second) = mean_band(curves, (-1.0, 1.0))
    assert first == (11, pytest.approx(-1.0), pytest.approx(1.0)), "t of one degree of freedom, within the limits"
    assert second[0] == 20
    assert mean_band(curves[:1], (-1.0, 1.0)) == []
    narrow = mean_band([{1: (10, v)} for v in (0.1, 0.11, 0.12)], (-1.0, 1.0))
    assert narrow == [(10, pytest.approx(0.11 - 0.02484, abs=1e-5), pytest.approx(0.11 + 0.02484, abs=1e-5))]
    path = write_verdict_report(write_verdict(tmp_path))
    (figure,) = (f for f in path.read_text().split("<figure>") if "Opposition of the two gradients" in f)
    assert figure.count("<polygon") == 2
    assert "imitation works against reinforcement" in figure


def test_imitation_iterations_are_those_that_added_updates():
    made = [{"env_steps": s, "il_updates": u} for s, u in ((10, 0.0), (20, 5.0), (30, 5.0), (40, 10.0))]
    assert imitation_steps(made) == [20, 40]


def test_mean_curve_uses_shared_iterations_only():
    curves = [{0: (0, 1.0), 2: (5, 2.0)}, {0: (0, 3.0), 2: (7, 4.0), 3: (9, 9.0)}]
    assert mean_curve(curves) == [(0, 2.0), (6, 3.0)]
    assert mean_curve([]) == []


@pytest.mark.parametrize("ends", [(0, 1), (-0.03, 0.4), (1.009, 1.017), (5, 5), (0, 0), (0, 1e-9), (3e5, 7e6)])
def test_ticks_are_few_and_cover(ends):
    ticks = nice_ticks(*ends)
    assert ticks[0] <= ends[0] + 1e-15
    assert ticks[-1] >= ends[1] - 1e-15
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


def test_logarithmic_axis():
    assert log_ticks(0.02, 5) == pytest.approx([0.01, 0.1, 1, 10])
    assert log_ticks(1, 1) == [1, 10]
    assert Scale(0.01, 100, 200, 0, True)(1.0) == 100.0


def test_tick_text():
    assert [tick_text(v) for v in (0, -0.2, 20000, 1.5e6, 0.1 + 0.2)] == ["0", "−0.2", "20k", "1.5M", "0.3"]


def test_chart_marks_and_positions():
    chart = Chart(
        title="T", y_label="Y (%)", series=[Series(label="a", points=[(0, 0), (10, 100)])], y_range=(0, 100), x_max=10
    )
    drawn = line_chart(chart)
    assert 'points="46.0,206.0 390.0,26.0"' in drawn
    assert drawn.count("<circle") == 2
    assert 'role="img"' in drawn
    assert "first 0, last 100" in drawn


def test_tag_escapes_text_and_attributes():
    assert tag("p", "<b>", class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;</p>'
    assert tag("p", Html("<b>"), muted=True, id=None) == "<p muted><b></p>"


def test_numbers_from_files_are_checked():
    assert [number(v) for v in (1, 2.5, True, "3", None, float("nan"))] == [1.0, 2.5, None, None, None, None]
    assert points([{"env_steps": 1, "rho": 0.5}, {"env_steps": 2}, {"rho": 1}], "rho", 2.0) == [(1.0, 1.0)]
    assert interval(-0.1, 0.2, sign="+") == "[−10.0, +20.0]"
    assert interval(None, 0.2) == "[no interval]"
