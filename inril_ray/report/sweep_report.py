"""The report of a sweep: which setting won, if one did, and how it held up; all settings; how their runs went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inril_ray.report.arms import Arm, arm_series, hundred, mean_curve, origin, read_arms, spread
from inril_ray.report.charts import Chart, Series, interval_chart, line_chart
from inril_ray.report.page import Html, details, facts, number_table, page, section, tag, write_page
from inril_ray.report.records import (
    at,
    interval,
    made_of,
    mapping,
    number,
    percent,
    read_tree,
    result_text,
    source_label,
)
from inril_ray.statistics import Measure, measure_of, rates_text
from inril_ray.types import InrilError
from inril_ray.words import counted

MAX_CHARTS = 12
"""Settings whose curves are drawn, the best of them."""
"""How the interval of a mean over seeds is made."""
AXES = ("interleave.every", "separation")
"""Keys that a heat map is made of, if a sweep tries them."""


def write_sweep_report(sweep_dir: Path) -> Path:
    """Write ``report.html`` beside ``sweep.json``.

    Args:
        sweep_dir: holds ``sweep.json`` and the run directories that it names.

    Returns:
        the path of the report.

    Raises:
        InrilError: there is no readable sweep in the directory.
    """
    result, problem = read_tree(sweep_dir / "sweep.json")
    listed = result.get("settings")
    settings = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    if problem or not settings:
        raise InrilError(f"{sweep_dir} holds no sweep: {problem or 'sweep.json has no settings.'}")
    with made_of(sweep_dir / "sweep.json"):
        settings.sort(key=lambda row: -(number(at(row, "mean", "value")) or -math.inf))
        named = {str(r["key"]): {**r, "runs": [t["run"] for t in r.get("trials", [])]} for r in settings}
        arms, missing = read_arms(sweep_dir, named)
        source = source_label(result.get("demos"))
        measure = measure_of(mapping(result.get("base")))
        title = f"Sweep: {result.get('name', 'unnamed')}, {result.get('task', 'unknown task')}"
        document = page(
            title,
            tag("h1", title),
            *_headlines(result, named, measure),
            _conditions(result, settings, source, measure),
            *(tag("p", sentence, class_="missing") for sentence in [*_failures(result), *missing]),
            _heat_map(settings, measure),
            _ranking(result, settings, measure),
            _relations(settings, result.get("control")),
            _curves(arms, str(result.get("control")), measure),
            _provenance(result, settings),
        )
    return write_page(sweep_dir / "report.html", document)


def _headlines(result: dict[str, Any], named: Mapping[str, Any], measure: Measure) -> list[Html]:
    if "chosen" not in result:
        raise InrilError(
            "sweep.json is of another release; the same inril sweep command writes it anew, and runs nothing."
        )
    key = str(result["chosen"])
    found = [tag("p", str(result.get("sentence")), class_="headline")]
    confirmed = mapping(result.get("confirmation"))
    again = mapping(confirmed.get("mean"))
    if again:
        scores = mapping(at(confirmed, "scores", key))
        sentence = at(confirmed, "against_control", "sentence")
        found.append(
            tag(
                "p",
                f"At {counted(len(scores), 'fresh seeds')} {mapping(named.get(key)).get('label', key)} reaches "
                f"{percent(again.get('value'), measure.unit)} {interval(again.get('low'), again.get('high'))}. "
                f"{sentence or ''}",
                class_="headline",
            )
        )
    else:
        text = "It was not run again at fresh seeds: the best of many settings is partly luck."
        found.append(tag("p", text, class_="note"))
    return found


def _mean_by(measure: Measure) -> str:
    return "Wilson's for the number of independent episodes that the runs are worth" if measure.rule else "Student's t"


def _conditions(result: dict[str, Any], settings: Sequence[Mapping[str, Any]], source: str, measure: Measure) -> Html:
    trials = [t for row in settings for t in row.get("trials", [])]
    states = {state: sum(t["state"] == state for t in trials) for state in ("finished", "stopped", "failed")}
    said = ", ".join(f"{n} {'stopped early' if s == 'stopped' else s}" for s, n in states.items() if n)
    seeds = at(result, "sweep", "seeds", "search") or []
    definition = measure_of(mapping(result.get("base"))).definition
    return tag(
        "p",
        tag("span", source, class_="label"),
        f" {counted(len(settings), 'settings')} at the seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}; "
        f"{said}. Every trial starts from a cloned policy: {result_text(result.get('base'))}. {definition} "
        f"Intervals are of the mean over seeds (95 %, {_mean_by(measure)}), and never narrower than the "
        "episodes allow; that of a single seed knows nothing of others. "
        "Evaluation starts from initial states disjoint from those of training.",
        class_="note",
    )


def _failures(result: dict[str, Any]) -> list[str]:
    failed = [*(result.get("failed") or []), *(at(result, "confirmation", "failed") or [])]
    return [f"Failed and left out: {f['label']}, seed {f['seed']}: {f['error']}" for f in failed]


def _heat_map(settings: Sequence[Mapping[str, Any]], measure: Measure) -> Html | str:
    cells: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in settings:
        overrides = mapping(row.get("overrides"))
        if set(overrides) == set(AXES):
            cells[overrides[AXES[0]], overrides[AXES[1]]] = row
    rows, columns = ([*dict.fromkeys(key[i] for key in sorted(cells, key=str))] for i in (0, 1))
    rows.sort()
    if len(rows) < 2 or len(columns) < 2:
        return ""
    values = [v for row in cells.values() if (v := hundred(at(row, "mean", "value"))) is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)

    def cell(row: Mapping[str, Any] | None) -> Html:
        value = hundred(at(row, "mean", "value"))
        if row is None or value is None:
            return tag("td", "–")
        share = round(45 * (value - low) / (high - low)) if high > low else 0
        text = interval(at(row, "mean", "low"), at(row, "mean", "high"))
        return tag("td", tag("strong", f"{value:.1f}"), tag("span", text), style=f"--share: {share}%")

    head = tag("tr", tag("th", "m", scope="col"), *(tag("th", c, scope="col") for c in columns))
    body = [tag("tr", tag("th", str(r), scope="row"), *(cell(cells.get((r, c))) for c in columns)) for r in rows]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="heat")
    note = f"{measure.axis}, mean over seeds and its interval. Stronger colour is higher: {low:.1f} to {high:.1f}."
    return section(
        "Interleaving ratio and separation",
        tag("div", table, class_="scroll", tabindex=0),
        tag("p", note, class_="note"),
    )


def _ranking(result: dict[str, Any], settings: Sequence[Mapping[str, Any]], measure: Measure) -> Html:
    rows = []
    for row in settings:
        mean, beats = mapping(row.get("mean")), mapping(row.get("beats_control"))
        chance = "–" if not beats else f"{beats['value']:.2f} {interval(beats['low'], beats['high'], 1.0, 2)}"
        trials = row.get("trials", [])
        done = [t for t in trials if t["state"] == "finished"]
        others = "" if len(done) > 1 else ", one seed"
        others += f" ({rates_text(row['other_rates'])})" if row.get("other_rates") else ""
        rows.append(
            [
                str(row.get("label")),
                tag("strong", percent(mean.get("value"), measure.unit)) if mean else _latest(trials, measure),
                interval(mean.get("low"), mean.get("high")) + others if mean else "–",
                chance,
                f"{len(done)} of {len(trials)}",
                spread([t["seconds"] / 60 for t in done if "seconds" in t]) + " min" if done else "–",
                spread([t["env_steps"] for t in done]) if done else "–",
            ]
        )
    head = (
        "", f"Mean {measure.word}", "95 % interval", "Beats RL only", "Seeds", "Time of a run", "Env steps of a run",
    )  # fmt: skip
    chart = interval_chart(
        f"Final {measure.name} by setting",
        measure.axis,
        [
            (
                str(row.get("label")),
                [100 * t["score"] for t in row.get("trials", []) if t["state"] == "finished"],
                hundred(at(row, "mean", "value")),
                hundred(at(row, "mean", "low")),
                hundred(at(row, "mean", "high")),
            )
            for row in settings
            if row.get("mean")
        ],
        hundred(at(result, "base", "score")),
        measure.axis_range,
    )
    note = (
        "Beats RL only: the chance that a run of the setting scores higher than one of RL only, ties counting half, "
        "with its 95 % score interval."
    )
    return section("All settings", chart, number_table(head, rows), tag("p", note, class_="note"))


def _latest(trials: Sequence[Mapping[str, Any]], measure: Measure) -> str:
    """Return what the trials of a setting reached that has no finished one, and when that was measured."""
    last = [f"{percent(t['score'], measure.unit)} at iteration {t.get('iteration')}" for t in trials if "score" in t]
    return f"stopped: {', '.join(last)}" if last else "–"


def _relations(settings: Sequence[Mapping[str, Any]], control: Any) -> Html:
    def shown(row: Mapping[str, Any], name: str, digits: int) -> str:
        values = [v for t in row.get("trials", []) if (v := number(t.get(name))) is not None]
        return f"{sum(values) / len(values):.{digits}f}".replace("-", "−") if values else "–"

    rows = [
        [
            f"{row.get('label')}{' (control)' if row.get('key') == control else ''}",
            shown(row, "rho", 3),
            shown(row, "conflict_rate", 2),
            shown(row, "il_probe_loss", 4),
            shown(row, "il_updates", 0),
        ]
        for row in settings
    ]
    head = ("", "ρ", "Conflict rate", "IL loss at the end", "IL gradient steps")
    note = (
        "ρ = −cos(g_IL, g_RL), corrected for noise, mean over the run: above 0 the gradients oppose each other. "
        "Conflict rate: share of minibatch pairs that do. IL loss: on held-out demonstrations. Means over seeds."
    )
    return section("How the gradients relate", number_table(head, rows), tag("p", note, class_="note"))


def _curves(arms: Sequence[Arm], control: str, measure: Measure) -> Html:
    reference = next((mean_curve(arm.curves("score", 100.0)) for arm in arms if arm.key == control), [])
    steps = max((x for arm in arms for curve in arm.curves("score") for x, _ in curve.values()), default=None)
    charts = []
    for arm in arms[:MAX_CHARTS]:
        own = Arm(key=arm.key, label=arm.label, values=arm.values, color="s1", records=arm.records)
        series = [s for s in arm_series([own], "score", 100.0) if s.points]
        series = [Series(**{**vars(s), "look": s.look.replace(" dashed", "")}) for s in series]
        if reference and arm.key != control:
            series.append(Series(label="RL only, mean", points=reference, color="s0", look="dashed", marked=False))
        charts.append(
            line_chart(
                Chart(title=arm.label, y_label=measure.axis, series=series, y_range=measure.axis_range, x_max=steps)
            )
        )
    left = len(arms) - len(charts)
    note = f"Thin: runs; bold: mean over seeds.{f' The {left} weakest settings are not drawn.' if left > 0 else ''}"
    return section("The runs", tag("p", note, class_="note"), tag("div", *charts, class_="charts"))


def _provenance(result: dict[str, Any], settings: Sequence[Mapping[str, Any]]) -> Html:
    estimate, store = mapping(result.get("estimate")), mapping(result.get("demo_store"))
    seconds = number(result.get("seconds"))
    memory = [t["peak_memory_bytes"] for row in settings for t in row.get("trials", []) if "peak_memory_bytes" in t]
    cost = [
        ("Time in finished trials", None if seconds is None else f"{seconds / 3600:.2f} hours"),
        ("Estimated before it began", f"{number(estimate.get('wall_hours')) or 0:.2f} hours of wall time"),
        ("Peak memory of a trial", f"{max(memory) / 2**30:.2f} GiB" if memory else None),
        (
            "Demonstrations",
            f"{store.get('copies_per_node', 0)} set(s), {(number(store.get('bytes')) or 0) / 2**20:.1f} MiB on each "
            "node, shared by all trials",
        ),
    ]
    runs = [(str(row.get("label")), ", ".join(t["run"] for t in row.get("trials", []))) for row in settings]
    return section(
        "Cost and provenance",
        facts(cost),
        details("Run directories", facts(runs)),
        details("Demonstrations, machine and versions", facts(origin(result))),
    )
