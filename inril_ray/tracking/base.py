"""What a tracker is told when a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inril_ray.demos.store import DemoInfo


@dataclass(frozen=True, kw_only=True)
class TrackerContext:
    """A run as trackers see it."""

    run_dir: Path
    name: str
    """For people."""
    config: Mapping[str, Any]
    """Resolved, plain."""
    num_iterations: int
    mlflow_uri: str | None
    """Tracking server or store; None is a local one beside the run directory."""
    mlflow_experiment: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """What runs are found by: task, algorithm, demonstrations, commit."""
    demos: DemoInfo | None = None
    evaluated: Mapping[str, float] = field(default_factory=dict)
    """Record of the newest evaluation of a run that goes on."""
    parent: Path | None = None
    """Directory of the sweep or verdict that the run is part of."""
