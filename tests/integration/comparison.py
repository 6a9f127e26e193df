"""Compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inril_ray import checkpoint
from inril_ray.tracking.jsonl import read_metrics


def measured(run_dir: Path) -> list[dict[str, float]]:
    """Return the metrics of a run without times."""
    return [
        {k: v for k, v in r.items() if not k.endswith("_s") and k != "learner_idle_share"}
        for r in read_metrics(run_dir)
    ]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the paths at which two trees differ, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}: keys"] if a.keys() != b.keys() else []
        return found + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, list) and isinstance(b, list):
        found = [f"{path}: length"] if len(a) != len(b) else []
        return found + [d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return [] if a.shape == b.shape and a.tobytes() == b.tobytes() else [path]
    return [] if a == b else [f"{path}: {a!r} != {b!r}"]


def state(run_dir: Path, iteration: int) -> dict[str, Any]:
    """Return the backend's part of a checkpoint."""
    return checkpoint.read(run_dir / "checkpoints" / f"iteration_{iteration:06d}")["backend"]
