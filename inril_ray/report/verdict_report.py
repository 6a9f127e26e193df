"""The report of a verdict: the sentence, the arms side by side, and how their runs went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inril_ray.report.charts import Chart, Group, Series, dot_chart, line_chart
from inril_ray.report.page import Html, details, facts, number_table, page, section, tag, write_page
from inril_ray.report.records import (
    Points,
    at,
    count,
    interval,
    number,
    percent,
    points,
    rate_text,
    read_records,
    read_tree,
    source_label,
)
from inril_ray.types import InrilError

COLORS = ("s2", "s1", "s3", "s0")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, with its runs."""

    key: str
    label: str
    values: dict[str, Any]
    color: str
    records: list[list[dict[str, Any]]]
    """Metric records of each run that left any."""

    def numbers(self, name: str) -> list[float]:
        """Return the numbers of one value, by seed."""
        values = self.values.get(name)
        return [v for x in values if (v := number(x)) is not None] if isinstance(values, list) else []

    def curves(self, metric: str, scale: float = 1.0) -> list[Points]:
        """Return a metric of every run against environment steps."""
        return [p for r in self.records if (p := points(r, metric, scale))]


def write_verdict_report(verdict_dir: Path) -> Path:
    """Write ``report.html`` beside ``verdict.json``.

    Args:
        verdict_dir: holds ``verdict.json`` and the run directories that it names.

    Returns:
        the path of the report.

    Raises:
        InrilError: there is no readable verdict in the directory.
    """
    result, problem = read_tree(verdict_dir / "verdict.json")
    if problem or not isinstance(result.get("arms"), dict) or not result["arms"]:
        raise InrilError(f"{verdict_dir} holds no verdict: {problem or 'verdict.json has no arms.'}")
    arms, missing = read_arms(verdict_dir, result["arms"])
    source = source_label(result.get("demos"))
    title = f"Verdict: {result.get('task', 'unknown task')}, {result.get('algorithm', 'unknown algorithm')}"
    document = page(
        title,
        tag("h1", title),
        *_sentences(result),
        _conditions(result, source),
        *(tag("p", sentence, class_="missing") for sentence in missing),
        _arms(result, arms, source),
        _comparisons(result, arms),
        _curves(result, arms, source),
        _provenance(result, arms),
    )
    return write_page(verdict_dir / "report.html", document)


def read_arms(verdict_dir: Path, arms: dict[str, Any]) -> tuple[list[Arm], list[str]]:
    """Return the arms with the records of their runs, and sentences about runs that left none."""
    found, missing = [], []
    for (key, values), color in zip(arms.items(), COLORS * len(arms), strict=False):
        values = values if isinstance(values, dict) else {}
        records = []
        for name in values.get("runs") or []:
            read, problem = read_records(verdict_dir / str(name))
            if problem:
                missing.append(f"Run {name} is not in the curves: {problem}")
            else:
                records.append(read)
        label = str(values.get("label") or key)
        found.append(Arm(key=key, label=label, values=values, color=color, records=records))
    return found, missing


def _sentences(result: dict[str, Any]) -> list[Html]:
    comparisons = result.get("comparisons")
    sentences = [at(c, "sentence") for c in comparisons.values()] if isinstance(comparisons, dict) else []
    shown = [str(s) for s in sentences if s] or ["The verdict holds no comparison."]
    return [tag("p", sentence, class_="headline") for sentence in shown]


def _conditions(result: dict[str, Any], source: str) -> Html:
    seeds = result.get("seeds") or []
    return tag(
        "p",
        tag("span", source, class_="label"),
        f" {len(seeds)} paired seeds ({', '.join(map(str, seeds))}); every run starts from the same cloned policy, "
        "makes "
        f"{count(result.get('env_steps'))} environment steps and is evaluated on "
        f"{count(result.get('episodes_per_run'))} episodes. "
        "Unless said otherwise, intervals are 95 % stratified bootstrap intervals over seeds. Evaluation starts from "
        "initial states disjoint from those of training.",
        class_="note",
    )


def _arms(result: dict[str, Any], arms: Sequence[Arm], source: str) -> Html:
    rows: list[list[Any]] = [
        ["Interquartile mean of success", *(tag("strong", percent(at(a.values, "iqm", "value"))) for a in arms)],
        ["95 % interval (%)", *(interval(at(a.values, "iqm", "low"), at(a.values, "iqm", "high")) for a in arms)],
    ]
    for i, seed in enumerate(result.get("seeds") or []):
        scores = [a.numbers("scores") for a in arms]
        rows.append([f"Success, seed {seed}", *(percent(s[i]) if i < len(s) else "–" for s in scores)])
    rows += [
        ["Env steps per run", *(count(result.get("env_steps")) for _ in arms)],
        ["RL gradient steps per run", *(_spread(a.numbers("rl_updates")) for a in arms)],
        ["IL gradient steps per run", *(_spread(a.numbers("il_updates")) for a in arms)],
        ["Seconds per run", *(_spread(a.numbers("seconds")) for a in arms)],
    ]
    table = tag("div", number_table(("", *(a.label for a in arms)), rows))
    groups = [
        Group(
            label=a.label,
            values=[100 * s for s in a.numbers("scores")],
            center=_hundred(at(a.values, "iqm", "value")),
            low=_hundred(at(a.values, "iqm", "low")),
            high=_hundred(at(a.values, "iqm", "high")),
            color=a.color,
        )
        for a in arms
    ]
    base = _hundred(at(result, "base", "success_rate"))
    chart = dot_chart(
        "Final success rate by arm",
        "Success rate (%)",
        groups,
        None if base is None else (base, "base policy"),
        f"{source}; {count(result.get('episodes_per_run'))} episodes per run",
    )
    episodes = count(at(result, "base", "eval_episodes"))
    base_note = (
        f"Base policy, which every run starts from: {rate_text(result.get('base'))}, {episodes} episodes "
        "(Wilson interval; evaluated at the first seed)."
    )
    spent = tag("p", _gradient_steps(arms), class_="note")
    return section(
        "The arms",
        tag("div", chart, table, class_="charts"),
        tag("p", base_note, class_="note"),
        spent,
    )


def _gradient_steps(arms: Sequence[Arm]) -> str:
    parts = []
    for arm in arms:
        rl, il = arm.numbers("rl_updates"), arm.numbers("il_updates")
        if rl and il:
            parts.append(f"{arm.label} {count(sum(rl) / len(rl))} RL + {count(sum(il) / len(il))} IL")
    return (
        "The arms make equal environment steps, not equal gradient steps: IN-RIL makes extra imitation steps. "
        f"Gradient steps per run, mean over seeds: {'; '.join(parts) or 'not recorded'}."
    )


def _hundred(value: Any) -> float | None:
    found = number(value)
    return None if found is None else 100 * found


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not recorded"
    low, high = count(min(values)), count(max(values))
    return low if low == high else f"{low} to {high}"


def _comparisons(result: dict[str, Any], arms: Sequence[Arm]) -> Html:
    labels = {a.key: a.label for a in arms}
    compared = result.get("comparisons")
    compared = compared if isinstance(compared, dict) else {}
    head = [
        "",
        *(f"{labels.get(k, k)} against {labels.get(at(c, 'against'), at(c, 'against'))}" for k, c in compared.items()),
    ]
    cells = compared.values()

    def points_of(comparison: Any, key: str) -> str:
        return interval(at(comparison, key, "low"), at(comparison, key, "high"), sign="+")

    def value(comparison: Any) -> str:
        found = _hundred(at(comparison, "difference", "value"))
        return "not recorded" if found is None else f"{found:+.1f}".replace("-", "−")

    def improvement(comparison: Any) -> str:
        p = at(comparison, "probability_of_improvement") or {}
        found = number(p.get("value"))
        shown = "not recorded" if found is None else f"{found:.2f}"
        return f"{shown} {interval(p.get('low'), p.get('high'), 1.0, 2)}"

    rows: list[list[Any]] = [
        ["Verdict", *(tag("strong", str(at(c, "verdict"))) for c in cells)],
        ["Difference of interquartile means (percentage points)", *(value(c) for c in cells)],
        ["… 95 % bootstrap interval over seeds", *(points_of(c, "difference") for c in cells)],
    ]
    if any(at(c, "t_interval") for c in cells):
        rows.append(
            ["95 % interval of the mean paired difference, Student's t", *(points_of(c, "t_interval") for c in cells)]
        )
    rows.append(["Probability of improvement, 95 % bootstrap interval", *(improvement(c) for c in cells)])
    if any(at(c, "more_seeds") for c in cells):
        rows.append(["Further paired seeds that would tell", *(count(at(c, "more_seeds")) for c in cells)])
    note = (
        "Differences are taken seed by seed. The probability of improvement is the chance that a run of the arm beats "
        "a "
        "run of the control, ties counting half. With few seeds a bootstrap interval is too narrow; where Student's "
        "interval is shown, both must exclude zero before a side is taken."
    )
    return section("The comparison", number_table(head, rows), tag("p", note, class_="note"))


def _curves(result: dict[str, Any], arms: Sequence[Arm], source: str) -> Html:
    steps = number(result.get("env_steps"))
    note = "thin: runs; bold: mean over seeds"
    success = Chart(
        title="Success rate in evaluation",
        y_label="Success rate (%)",
        series=arm_series(arms, "success_rate", 100.0),
        y_range=(0.0, 100.0),
        x_max=steps,
        note=f"{source}; {note}",
    )
    rho = Chart(
        title="Opposition of the two gradients, ρ",
        y_label="ρ (no unit; above 0 they oppose)",
        series=arm_series(arms, "rho"),
        x_max=steps,
        reference=(0.0, ""),
        note=f"−cos(g_IL, g_RL), corrected for noise; {note}",
    )
    return section("The runs", tag("div", line_chart(success), line_chart(rho), class_="charts"))


def arm_series(arms: Sequence[Arm], metric: str, scale: float = 1.0) -> list[Series]:
    """Return the runs of every arm as thin lines below their means as bold ones."""
    runs, means = [], []
    for i, arm in enumerate(arms):
        curves = arm.curves(metric, scale)
        runs.extend(
            Series(label=arm.label, points=curve, color=arm.color, look="thin", marked=False, in_legend=False)
            for curve in curves
        )
        look = "bold dashed" if i == 0 else "bold"
        mean = Series(label=f"{arm.label}, mean", points=mean_curve(curves), color=arm.color, look=look, marked=False)
        means.append(mean)
    return runs + means


def mean_curve(curves: Sequence[Points]) -> Points:
    """Return the mean of curves where every one of them has a value; of repeated steps the last value counts."""
    if not curves:
        return []
    by_steps = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(c) for c in by_steps)))
    return [(steps, sum(c[steps] for c in by_steps) / len(by_steps)) for steps in shared]


def _provenance(result: dict[str, Any], arms: Sequence[Arm]) -> Html:
    demos = result.get("demos") or {}
    rows = [
        ("Demonstrations", f"{at(demos, 'source')}, {at(demos, 'file')} ({str(at(demos, 'hash'))[:12]})"),
        ("Commit", result.get("commit")),
        *((name, "none" if value is None else value) for name, value in (result.get("machine") or {}).items()),
        *(result.get("versions") or {}).items(),
    ]
    changes = [
        (a.label, ", ".join(f"{k} = {v}" for k, v in (a.values.get("overrides") or {}).items()) or "nothing")
        for a in arms
    ]
    runs = [(a.label, ", ".join(map(str, a.values.get("runs") or []))) for a in arms]
    return section(
        "Provenance",
        tag("h3", "What each arm changes in the configuration"),
        facts(changes),
        details("Run directories", facts(runs)),
        details("Demonstrations, machine and versions", facts(rows)),
    )
