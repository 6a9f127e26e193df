"""TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping

from inril_ray.metrics import Ended, grouped
from inril_ray.tracking.base import TrackerContext


class TensorBoardTracker:
    """Writes scalars under ``tensorboard/`` in the run directory, by environment step."""

    def __init__(self, context: TrackerContext) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(context.run_dir / "tensorboard"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one point for each metric."""
        for name, value in grouped(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ended: Ended = "finished") -> None:
        """Close the files."""
        self._writer.close()
