"""The report of one run: what it reached, what it cost, and how the two gradients related."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inril_ray.guard import AUDIT_LOG
from inril_ray.metrics import METRICS
from inril_ray.report.charts import Chart, Series, line_chart
from inril_ray.report.gradients import gradient_charts
from inril_ray.report.page import Html, details, facts, join, number_table, page, section, tag, write_page
from inril_ray.report.pictures import pictures
from inril_ray.report.records import (
    at,
    count,
    mapping,
    number,
    percent,
    points,
    read_decisions,
    read_records,
    read_tree,
    result_text,
    source_label,
)
from inril_ray.statistics import RULES, Measure, measure_of
from inril_ray.tracking.jsonl import FILE
from inril_ray.types import InrilError

UNPROVEN = "The two intervals overlap, so this run alone does not settle whether the policy changed."


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a run directory holds for its report."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    """Entries of the guard's log."""
    missing: list[str]
    """Sentences about what is not there."""

    def known(self, *keys: str) -> Any:
        """Return a value of the summary or, of an unfinished run, of its configuration file."""
        found = at(self.summary, *keys)
        if found is None:
            found = at(self.config, "config", *keys)
        return at(self.config, *keys) if found is None else found

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records that hold an evaluation, in the order of training."""
        return [r for r in self.records if number(r.get("score")) is not None]

    @property
    def env_steps(self) -> float | None:
        """Environment steps of the run so far."""
        return number(self.summary.get("env_steps")) or max(
            (s for s, _ in points(self.records, "env_steps")), default=None
        )

    @property
    def base(self) -> Mapping[str, Any] | None:
        """Outcome of the policy before fine-tuning."""
        first = next((r for r in self.evaluations if r.get("env_steps") == 0), None)
        return mapping(self.summary.get("base")) or first

    @property
    def measure(self) -> Measure:
        """What the run is judged by."""
        return measure_of(self.base or {})

    @property
    def source(self) -> str:
        """Who made the demonstrations."""
        return source_label(self.known("demos") if isinstance(self.known("demos"), dict) else self.config.get("demos"))


def write_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory; whatever a crashed run lacks is named in it.

    Args:
        run_dir: of the run.

    Returns:
        the path of the report.

    Raises:
        InrilError: the directory holds no run.
    """
    run = read_run(run_dir)
    title = f"Run {run.name}: {run.known('task') or 'unknown task'}"
    pairs = number(at(run.config, "config", "interleave", "relation_pairs"))
    document = page(
        title,
        tag("h1", title),
        _headline(run),
        *(tag("p", sentence, class_="missing") for sentence in run.missing),
        _facts(run),
        _notices(run),
        pictures(run_dir / "media"),
        _results(run),
        section("Reinforcement against imitation", gradient_charts(run.records, run.source, pairs, run.env_steps)),
        _cost(run),
        section("Details", _evaluation_table(run), _glossary(run), _config(run)),
    )
    return write_page(run_dir / "report.html", document)


def read_run(run_dir: Path) -> RunRecord:
    """Read what a run directory holds.

    Raises:
        InrilError: it holds none of a run's files.
    """
    names = ("config.json", "summary.json", FILE)
    if not any((run_dir / name).is_file() for name in names):
        raise InrilError(f"{run_dir} holds no run: there is none of {', '.join(names)}.")
    config, no_config = read_tree(run_dir / "config.json")
    summary, no_summary = read_tree(run_dir / "summary.json")
    records, no_records = read_records(run_dir)
    if no_summary:
        no_summary += " The run has not finished: there is no final evaluation, and costs are those recorded so far."
    missing = [sentence for sentence in (no_config, no_summary, no_records) if sentence]
    name = run_dir.resolve().name
    return RunRecord(
        name=name,
        config=config,
        summary=summary,
        records=records,
        decisions=read_decisions(run_dir / AUDIT_LOG),
        missing=missing,
    )


def _headline(run: RunRecord) -> Html:
    base, final = run.base, mapping(run.summary.get("final"))
    below = tag(
        "p",
        tag("span", run.source, class_="label"),
        f" One run, seed {_text(run.known('seed'))}. Intervals are {run.measure.interval}s over evaluation episodes; "
        "they don't include the spread between seeds. Evaluation starts from initial states that training never sees. "
        f"{run.measure.definition}",
        class_="note",
    )
    if untrained := run.summary.get("untrained"):
        chosen = (
            "With critics choosing that have learned nothing yet, the cloned policy's result is ",
            _result(untrained),
        )
        below = join(tag("p", *chosen, ".", class_="note"), below)
    if final and base:
        return join(_change(base, final), below)
    if not base:
        return join(tag("p", "No evaluation was recorded.", class_="headline"), below)
    latest = run.evaluations[-1] if run.evaluations else base
    so_far = ["Base policy: ", _result(base), "."]
    if number(latest.get("env_steps")):
        reached = max((i for _, i in points(run.records, "iteration")), default=None)
        so_far += [
            f" The latest evaluation, at iteration {count(latest.get('iteration'))} "
            f"({count(latest['env_steps'], 'environment steps')}; the run is at iteration {count(reached)}): ",
            _result(latest),
            ".",
        ]
    return join(tag("p", *so_far, class_="headline"), below)


def _change(base: Mapping[str, Any], final: Mapping[str, Any]) -> Html:
    ends = [number(at(o, f"score_{end}")) for o in (base, final) for end in ("low", "high")]
    if None in ends:
        comparison = "At least one interval is missing."
    elif ends[2] > ends[1] or ends[3] < ends[0]:  # type: ignore[operator]
        comparison = "The two intervals are disjoint."
    else:
        comparison = UNPROVEN
    sentence = tag("p", "Base policy: ", _result(base), " → final policy: ", _result(final), ".", class_="headline")
    pairs = _pairs(base, final) if measure_of(base).rule else ""
    return join(sentence, tag("p", comparison, pairs))


def _result(outcome: Mapping[str, Any]) -> Html:
    number_of = count(outcome.get("eval_episodes") if isinstance(outcome, Mapping) else None, "episodes")
    return join(tag("strong", result_text(outcome)), f" ({number_of})")


def _pairs(base: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    if not isinstance(base, Mapping) or not isinstance(final, Mapping):
        return ""
    before, after = base.get("outcomes"), final.get("outcomes")
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after) or not before:
        return ""
    gained = sum(not b and bool(a) for b, a in zip(before, after, strict=True))
    lost = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    return (
        f" Both policies met the same {len(before)} initial states: {gained} went from failure to success, "
        f"{lost} from success to failure."
    )


def _text(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def _facts(run: RunRecord) -> Html:
    every = at(run.config, "config", "interleave", "every") or run.summary.get("every")
    il_steps = at(run.config, "config", "interleave", "il_steps")
    counters = mapping(run.summary.get("counters")) or (run.records[-1] if run.records else {})
    demos = at(run.config, "demos") or run.summary.get("demos") or {}
    content_hash = at(demos, "content_hash") or at(demos, "hash")
    best = mapping(run.summary.get("best"))
    first = [
        ("Task", run.known("task")),
        (
            "Demonstrations",
            f"{run.source}, {at(demos, 'source_file') or at(demos, 'file')} ({_text(content_hash)[:12]})",
        ),
        ("Algorithm", run.known("algorithm")),
        ("Schedule", run.known("schedule")),
        ("Separation", run.known("separation")),
        ("Period m", None if every is None else f"{count(every, 'iterations')} (used by interleaving schedules)"),
        ("IL steps", None if il_steps is None else f"{il_steps} (gradient steps of one imitation iteration)"),
        ("Seed", run.known("seed")),
    ]
    second = [
        ("Env steps", None if run.env_steps is None else f"{count(run.env_steps, 'control steps')}"),
        ("RL updates", count(counters.get("rl_updates"), "gradient steps")),
        (
            "IL updates",
            f"{count(counters.get('il_updates'), 'gradient steps')} in "
            f"{count(counters.get('il_iterations'), 'iterations')}",
        ),
        ("Best policy", None if not best else f"{result_text(best)} at iteration {best.get('iteration')}"),
        ("Cloning loss", _cloning(run.summary.get("cloning"))),
        ("Commit", run.known("commit")),
        ("Config hash", run.summary.get("config_hash") or run.config.get("hash")),
    ]
    caution = f"The best policy is chosen by the {run.measure.name} shown, which flatters it; judge by the final one."
    return section(
        "The run",
        tag("div", facts(first), facts(second), class_="columns"),
        tag("p", caution if best else "", class_="note"),
    )


def _notices(run: RunRecord) -> Html:
    """Return what the checks found and what the guard decided; nothing where both were silent."""
    health = run.summary.get("health")
    found = [text for text in health if isinstance(text, str)] if isinstance(health, list) else []
    rows = [(f"Iteration {_text(entry.get('iteration'))}", _text(entry.get("text"))) for entry in run.decisions]
    if not found and not rows:
        return Html("")
    checks = tag("ul", *(tag("li", text) for text in found)) if found else ""
    discarded = number(at(run.summary, "guard", "discarded_env_steps"))
    lost = f"Roll-backs discarded {count(discarded, 'environment steps')}." if discarded else ""
    return section("Checks and collapse guard", checks, facts(rows) if rows else "", tag("p", lost) if lost else "")


def _cloning(losses: Any) -> str | None:
    train, held_out = number(at(losses, "bc_loss")), number(at(losses, "bc_loss_held_out"))
    if train is None or held_out is None:
        return None
    return f"{train:.4g} on training, {held_out:.4g} on held-out demonstrations"


def _results(run: RunRecord) -> Html:
    evaluations, x_max, measure = run.evaluations, run.env_steps, run.measure
    scores = points(evaluations, "score", 100.0)
    band = [
        (r["env_steps"], 100 * r["score_low"], 100 * r["score_high"])
        for r in evaluations
        if None not in [number(r.get(k)) for k in ("env_steps", "score_low", "score_high")]
    ]
    base = [(s, v) for s, v in scores if s == 0]
    marks = [Series(label="base policy", points=base, color="s2", hollow=True)] if base else []
    episodes = sorted({int(n) for _, n in points(evaluations, "eval_episodes")})
    each = f"{' or '.join(map(str, episodes))} episode{'s' * (episodes != [1])}"
    note = f"{run.source}; {each} an evaluation; band: {measure.interval}"
    evaluation = Chart(
        title=f"{measure.name.capitalize()} in evaluation",
        y_label=measure.axis,
        series=[Series(label="evaluation", points=scores, band=band), *marks],
        y_range=measure.axis_range,
        x_max=x_max,
        note=note if scores else run.source,
        reference=(base[0][1], "base") if base else None,
    )
    if measure.rule:
        title, y_label, learned = "Success rate", measure.axis, points(run.records, "train_success_rate", 100.0)
    else:
        title, y_label, learned = "Return", "Mean return", points(run.records, "train_return")
    train = Chart(
        title=f"{title} in training",
        y_label=y_label,
        series=[Series(label="training", points=learned)],
        y_range=measure.axis_range,
        x_max=x_max,
        note=f"{run.source}; episodes of each iteration, with exploration noise",
    )
    return section(measure.word.capitalize(), tag("div", line_chart(evaluation), line_chart(train), class_="charts"))


def _cost(run: RunRecord) -> Html:
    phases = mapping(run.summary.get("seconds_by_phase"))
    if not phases:
        for name in ("rollout", "rl", "il", "diagnostics", "eval", "checkpoint"):
            spent = [v for _, v in points(run.records, f"{name}_s")]
            phases |= {name: sum(spent)} if spent else {}
    spent = {name: number(s) or 0.0 for name, s in phases.items()}
    total = sum(spent.values())
    rows = [(name, f"{s:.2f}", percent(s / total) if total else "") for name, s in spent.items()]
    rows.append((tag("strong", "sum of phases"), f"{total:.2f}", ""))
    time = join(tag("h3", "Time by phase"), number_table(("Phase", "Seconds", "Share"), rows))
    memory = run.summary.get("peak_memory_bytes")
    memory = memory if isinstance(memory, Mapping) else {}
    sizes = [(name, f"{(number(size) or 0.0) / 2**20:,.0f}") for name, size in memory.items()]
    if sizes:
        held = number_table(("Process", "MiB"), sizes)
    else:
        held = tag("p", "Peak memory is recorded when a run finishes.", class_="note")
    machine = mapping(run.known("machine"))
    versions = mapping(run.known("versions"))
    where = [(name, "none" if value is None else value) for name, value in machine.items()]
    left = tag("div", time, tag("h3", "Peak resident memory"), held)
    right = tag("div", tag("h3", "Machine"), facts(where), tag("h3", "Versions"), facts(versions.items()))
    return section("Cost and provenance", tag("div", left, right, class_="columns"))


def _evaluation_table(run: RunRecord) -> Html:
    head = ["Iteration", "Env steps", f"{run.measure.name.capitalize()}, 95 % interval", "Episodes"]
    rows = [
        [count(r.get("iteration")), count(r.get("env_steps")), result_text(r), count(r.get("eval_episodes"))]
        for r in run.evaluations
    ]
    for rule in (r for r in RULES if run.measure.rule not in (None, r)):
        head.append(f"Success {rule}")
        for row, record in zip(rows, run.evaluations, strict=True):
            row.append(percent(record.get(f"success_rate_{rule}")))
    table = number_table(head, rows)
    return details("All evaluations", tag("p", run.source, class_="note"), table) if rows else join()


def _glossary(run: RunRecord) -> Html:
    occurring = {name for record in run.records for name in record}
    rows = [(tag("code", name), meaning) for name, meaning in METRICS.items() if name in occurring]
    body = [tag("tr", tag("th", name, scope="row"), tag("td", meaning)) for name, meaning in rows]
    return details("Metric glossary", tag("div", tag("table", tag("tbody", *body)), class_="scroll"))


def _config(run: RunRecord) -> Html:
    values = run.config.get("config")
    if values is None:
        return details("Resolved configuration", tag("p", "Not recorded."))
    return details("Resolved configuration", tag("pre", json.dumps(values, indent=2, ensure_ascii=False)))
