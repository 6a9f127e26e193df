"""Where metrics go. Trackers only write; see :class:`inril_ray.metrics.Tracker`.

To add one: a module here with a class ``(TrackerContext) -> Tracker`` and one line in ``TRACKERS``.
"""

from __future__ import annotations

TRACKERS: dict[str, str] = {
    "console": "inril_ray.tracking.console:ConsoleTracker",
    "jsonl": "inril_ray.tracking.jsonl:JsonlTracker",
    "mlflow": "inril_ray.tracking.mlflow:MlflowTracker",
    "tensorboard": "inril_ray.tracking.tensorboard:TensorBoardTracker",
    "wandb": "inril_ray.tracking.wandb:WandbTracker",
}
"""Tracker name to its class."""
