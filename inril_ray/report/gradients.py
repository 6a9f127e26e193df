"""Charts of how the gradients of reinforcement and imitation relate, with the bands that tell what is noise."""

from __future__ import annotations

from typing import Any

from inril_ray.report.charts import Chart, Series, line_chart
from inril_ray.report.page import Html, tag
from inril_ray.report.records import Points, number, points
from inril_ray.statistics import wilson

POOLED = 10
"""Measurements of the conflict rate that share an interval: one has but a few pairs."""
RHO_READING = (
    "above 0 with the whole band (95 %), imitation works against reinforcement, below 0 for it, and a band around 0 "
    "can't tell"
)
"""How to read a chart of rho."""


def _opposition(records: list[dict[str, Any]], pairs: float | None, x_max: float | None) -> tuple[Chart, Chart]:
    """Return the charts of rho and of the conflict rate: single measurements, and averages with their bands."""
    ema = points(records, "rho_ema")
    name, shown = ("rho_ema", "moving average") if ema else ("rho", "ρ")
    single = Series(label="each measurement", points=points(records, "rho"), look="thin")
    average = Series(
        label=shown, points=ema or single.points, band=error_band(records, name), look="bold", marked=False
    )
    rho = Chart(
        title="Opposition of the two gradients, ρ",
        y_label="ρ (no unit; above 0 they oppose)",
        series=[single, average] if ema else [average],
        x_max=x_max,
        reference=(0.0, ""),
        note=f"−cos(g_IL, g_RL), corrected for noise; {RHO_READING}",
    )
    rates = points(records, "conflict_rate")
    conflict = Chart(
        title="Conflict rate",
        y_label="Opposing minibatch pairs (%)",
        series=[
            Series(label="each measurement", points=[(x, 100 * v) for x, v in rates], look="thin"),
            pooled_rate(rates, pairs),
        ],
        y_range=(0.0, 100.0),
        x_max=x_max,
        reference=(50.0, "chance"),
        note="Share of minibatch pairs whose gradients oppose each other; above 50 % with the whole band (95 %, "
        "Wilson), they conflict more often than gradients that have nothing to do with each other",
    )
    return rho, conflict


def error_band(records: list[dict[str, Any]], name: str) -> list[tuple[float, float, float]]:
    """Return (steps, low, high) two standard errors around rho, within its range, where they were recorded."""
    found = []
    for record in records:
        x, value, error = (number(record.get(key)) for key in ("env_steps", name, f"{name}_se"))
        if x is not None and value is not None and error is not None:
            found.append((x, max(-1.0, value - 2 * error), min(1.0, value + 2 * error)))
    return found


def pooled_rate(rates: Points, pairs: float | None) -> Series:
    """Return the conflict rate over the last measurements, in per cent, with its interval.

    Args:
        rates: (steps, share of the pairs of a measurement).
        pairs: of each measurement; None where it is not known: then there is no band.
    """
    windows = [rates[max(0, i + 1 - POOLED) : i + 1] for i in range(len(rates))]
    means = [(w[-1][0], min(max(sum(v for _, v in w) / len(w), 0.0), 1.0), len(w)) for w in windows]
    ends = [(x, wilson(mean, n * pairs)) for x, mean, n in means] if pairs and pairs >= 1 else []
    return Series(
        label=f"last {POOLED} together",
        points=[(x, 100 * mean) for x, mean, _ in means],
        band=[(x, 100 * rate.low, 100 * rate.high) for x, rate in ends],
        look="bold",
        marked=False,
    )


def gradient_charts(records: list[dict[str, Any]], source: str, pairs: float | None, x_max: float | None) -> Html:
    """Return the charts of what the gradients of reinforcement and imitation have to do with each other.

    Args:
        records: of a run.
        source: of its demonstrations, in words.
        pairs: of gradients in a measurement; None where it is not known.
        x_max: environment steps of the run.
    """
    rho, conflict = _opposition(records, pairs, x_max)
    probe = Chart(
        title="Imitation loss on held-out demonstrations",
        y_label="Loss (no unit)",
        series=[
            Series(label="fine-tuned steps", points=points(records, "il_probe_loss")),
            Series(label="all steps", points=points(records, "il_probe_loss_all"), color="s2", look="dashed"),
        ],
        x_max=x_max,
        rug=imitation_steps(records),
        rug_label="imitation iteration",
        note=f"{source}; at the end of each iteration",
    )
    norms = Chart(
        title="Gradient norms",
        y_label="Root mean square norm (log scale)",
        series=[
            Series(label="reinforcement", points=points(records, "grad_norm_rl")),
            Series(label="imitation", points=points(records, "grad_norm_il"), color="s2", look="dashed"),
        ],
        x_max=x_max,
        log=True,
        note="No unit; of the policy's parameters",
    )
    figures = [line_chart(chart) for chart in (rho, conflict, probe, norms)]
    return tag("div", *figures, class_="charts")


def imitation_steps(records: list[dict[str, Any]]) -> list[float]:
    """Return the environment steps at the end of each iteration that made imitation steps."""
    found, before = [], 0.0
    for steps, updates in points(records, "il_updates"):
        if updates > before:
            found.append(steps)
        before = updates
    return found
