"""The report of a verdict: the sentence, the arms side by side, and how their runs went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inril_ray.report.arms import Arm, arm_series, hundred, origin, read_arms, spread
from inril_ray.report.charts import Chart, Group, dot_chart, line_chart
from inril_ray.report.gradients import RHO_READING
from inril_ray.report.page import Html, details, facts, number_table, page, section, tag, write_page
from inril_ray.report.records import (
    at,
    count,
    interval,
    made_of,
    mapping,
    number,
    percent,
    read_tree,
    result_text,
    source_label,
)
from inril_ray.statistics import RULES, Measure, measure_of
from inril_ray.types import InrilError


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
    with made_of(verdict_dir / "verdict.json"):
        arms, missing = read_arms(verdict_dir, result["arms"])
        source = source_label(result.get("demos"))
        measure = measure_of(mapping(result.get("base")))
        title = f"Verdict: {result.get('task', 'unknown task')}, {result.get('algorithm', 'unknown algorithm')}"
        document = page(
            title,
            tag("h1", title),
            *_sentences(result),
            _conditions(result, arms, source),
            *(tag("p", sentence, class_="missing") for sentence in missing),
            _arms(result, arms, source, measure),
            _comparisons(result, arms, measure),
            _curves(arms, source, measure),
            _provenance(result, arms),
        )
    return write_page(verdict_dir / "report.html", document)


def _sentences(result: dict[str, Any]) -> list[Html]:
    comparisons = result.get("comparisons")
    sentences = [at(c, "sentence") for c in comparisons.values()] if isinstance(comparisons, dict) else []
    shown = [str(s) for s in sentences if s] or ["The verdict holds no comparison."]
    return [tag("p", sentence, class_="headline") for sentence in shown]


def _conditions(result: dict[str, Any], arms: Sequence[Arm], source: str) -> Html:
    seeds = result.get("seeds") or []
    return tag(
        "p",
        tag("span", source, class_="label"),
        f" {len(seeds)} paired seeds ({', '.join(map(str, seeds))}); every run starts from the same cloned policy, "
        f"makes {spread(_env_steps(arms))} environment steps and is evaluated on "
        f"{count(result.get('episodes_per_run'), 'episodes')}. "
        "Unless said otherwise, intervals are 95 % stratified bootstrap intervals over seeds, and none is narrower "
        "than the episodes of its runs allow. Evaluation starts from initial states disjoint from those of training.",
        class_="note",
    )


def _arms(result: dict[str, Any], arms: Sequence[Arm], source: str, measure: Measure) -> Html:
    unit, iqms = measure.unit, [at(a.values, "iqm", "value") for a in arms]
    rows: list[list[Any]] = [
        [f"Interquartile mean of {measure.word}", *(tag("strong", percent(value, unit)) for value in iqms)],
        ["95 % interval", *(interval(at(a.values, "iqm", "low"), at(a.values, "iqm", "high")) for a in arms)],
    ]
    for rule in (r for r in RULES if any(at(a.values, "other_rates", r) is not None for a in arms)):
        rates = (at(a.values, "other_rates", rule) for a in arms)
        rows.append([f"Mean of success {rule}", *("–" if r is None else percent(r, unit) for r in rates)])
    for i, seed in enumerate(result.get("seeds") or []):
        scores = [a.numbers("scores") for a in arms]
        rows.append(
            [f"{measure.word.capitalize()}, seed {seed}", *(percent(s[i], unit) if i < len(s) else "–" for s in scores)]
        )
    rows += [
        ["Env steps per run", *(spread(a.numbers("env_steps")) for a in arms)],
        ["RL gradient steps per run", *(spread(a.numbers("rl_updates")) for a in arms)],
        ["IL gradient steps per run", *(spread(a.numbers("il_updates")) for a in arms)],
        ["Seconds per run", *(spread(a.numbers("seconds")) for a in arms)],
    ]
    table = tag("div", number_table(("", *(a.label for a in arms)), rows))
    groups = [
        Group(
            label=a.label,
            values=[100 * s for s in a.numbers("scores")],
            center=hundred(iqm),
            low=hundred(at(a.values, "iqm", "low")),
            high=hundred(at(a.values, "iqm", "high")),
            color=a.color,
        )
        for a, iqm in zip(arms, iqms, strict=True)
    ]
    base = hundred(at(result, "base", "score"))
    chart = dot_chart(
        f"Final {measure.name} by arm",
        measure.axis,
        groups,
        None if base is None else (base, "base policy"),
        f"{source}; {count(result.get('episodes_per_run'), 'episodes')} per run",
        measure.axis_range,
    )
    episodes = count(at(result, "base", "eval_episodes"), "episodes")
    base_note = (
        f"Base policy, which every run starts from: {result_text(result.get('base'))}, {episodes} "
        f"({measure.interval}; evaluated at the first seed). {measure.definition}"
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
        "Rollouts are equal in number and size, gradient steps are not: IN-RIL makes extra imitation steps. "
        f"Gradient steps per run, mean over seeds: {'; '.join(parts) or 'not recorded'}."
    )


def _env_steps(arms: Sequence[Arm]) -> list[float]:
    return [steps for arm in arms for steps in arm.numbers("env_steps")]


def _comparisons(result: dict[str, Any], arms: Sequence[Arm], measure: Measure) -> Html:
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

    def difference(comparison: Any, key: str) -> str:
        found = hundred(at(comparison, key, "value"))
        value = "not recorded" if found is None else f"{found:+.1f}".replace("-", "−")
        return f"{value} {points_of(comparison, key)}"

    def improvement(comparison: Any) -> str:
        p = at(comparison, "probability_of_improvement") or {}
        found = number(p.get("value"))
        shown = "not recorded" if found is None else f"{found:.2f}"
        return f"{shown} {interval(p.get('low'), p.get('high'), 1.0, 2)}"

    rows: list[list[Any]] = [
        ["Verdict", *(tag("strong", str(at(c, "verdict"))) for c in cells)],
        [
            f"Mean paired difference ({measure.points}), 95 % interval by Student's t",
            *(difference(c, "t_interval") for c in cells),
        ],
        [
            f"Difference of interquartile means ({measure.points}), 95 % interval by bootstrap over seeds",
            *(difference(c, "difference") for c in cells),
        ],
        ["Probability of improvement, 95 % score interval", *(improvement(c) for c in cells)],
    ]
    if any(at(c, "power") for c in cells):
        stated = next(number(at(c, "power", "stated")) or 0.0 for c in cells if at(c, "power"))
        rows += [
            [
                f"True difference that such a study finds in four cases of five ({measure.points})",
                *(percent(at(c, "power", "detectable"), "") for c in cells),
            ],
            [
                f"Paired seeds that would find one of {100 * stated:.0f}",
                *(count(at(c, "power", "seeds")) for c in cells),
            ],
        ]
    note = (
        "Differences are taken seed by seed. Both intervals of the difference must exclude zero before a side is "
        "taken; the sentence above shows the wider one, since with few seeds a bootstrap interval is too narrow. The "
        "probability of improvement is the chance that a run of the arm beats a run of the control, ties counting "
        "half. What a study finds is said of the paired t-test at the 5 % level, at the spread between seeds that was "
        "seen."
    )
    return section("The comparison", number_table(head, rows), tag("p", note, class_="note"))


def _curves(arms: Sequence[Arm], source: str, measure: Measure) -> Html:
    steps = max(_env_steps(arms), default=None)
    note = "thin: runs; bold: mean over seeds"
    scores = Chart(
        title=f"{measure.name.capitalize()} in evaluation",
        y_label=measure.axis,
        series=arm_series(arms, "score", 100.0),
        y_range=measure.axis_range,
        x_max=steps,
        note=f"{source}; {note}",
    )
    # The moving average, where every run has one: single measurements are noisy.
    rho_name = "rho_ema" if all(arm.curves("rho_ema") for arm in arms) else "rho"
    rho = Chart(
        title="Opposition of the two gradients, ρ",
        y_label="ρ (no unit; above 0 they oppose)",
        series=arm_series(arms, rho_name, limits=(-1.0, 1.0)),
        x_max=steps,
        reference=(0.0, ""),
        note=f"−cos(g_IL, g_RL), corrected for noise; {RHO_READING}; {note}, with its Student-t interval",
    )
    return section("The runs", tag("div", line_chart(scores), line_chart(rho), class_="charts"))


def _provenance(result: dict[str, Any], arms: Sequence[Arm]) -> Html:
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
        details("Demonstrations, machine and versions", facts(origin(result))),
    )
