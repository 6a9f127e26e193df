"""Live metrics of a cluster: gauges that every Ray node exports to Prometheus, shown by ``cluster/grafana.json``."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from inril_ray.metrics import METRICS, Ended

SHOWN = (
    "iteration",
    "env_steps",
    "env_steps_per_s",
    "learner_idle_share",
    "queue_age_s",
    "policy_lag",
    "worker_restarts",
    "rho",
    "conflict_rate",
    "interleave_every",
    "il_probe_loss",
    "score",
    "score_low",
    "score_high",
)
"""Metrics that a cluster's dashboard shows while a run goes on; the others are in its trackers."""
PREFIX = "inril_"
"""Of the gauges' names; Ray puts ``ray_`` before it."""


class GaugeTracker:
    """Sets a Ray gauge for each metric of :data:`SHOWN`, labelled with the run and its task.

    Ray exports a gauge for as long as the process lives that set it, so a run's gauges end with the driver or, in a
    sweep, with the trial.

    Args:
        run: label.
        task: label.
    """

    def __init__(self, run: str, task: str) -> None:
        self._tags = {"run": run, "task": task}
        self._gauges = {name: Gauge(PREFIX + name, METRICS[name], tuple(self._tags)) for name in SHOWN}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Set what was measured; the rest keeps its last value."""
        for name, gauge in self._gauges.items():
            if name in metrics:
                gauge.set(metrics[name], self._tags)

    def close(self, ended: Ended = "finished") -> None:
        """Nothing to write."""
