"""MLflow: a local store by default, or a tracking server."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inril_ray.tracking.base import TrackerContext

ID_FILE = "mlflow_run_id"


class MlflowTracker:
    """One MLflow run for each run directory; a resumed run goes on in the same one."""

    def __init__(self, context: TrackerContext) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        logging.getLogger("alembic").setLevel(logging.WARNING)  # its notes on creating the store are not for our users
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        uri = context.mlflow_uri or local_store(context.run_dir.parent)
        self._client = MlflowClient(tracking_uri=uri)
        self._run_dir = context.run_dir
        id_file = context.run_dir / ID_FILE
        if id_file.is_file():
            self._run_id = id_file.read_text().strip()
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            experiment = self._client.get_experiment_by_name(context.mlflow_experiment)
            experiment_id = (
                experiment.experiment_id if experiment else self._client.create_experiment(context.mlflow_experiment)
            )
            self._run_id = self._client.create_run(experiment_id, run_name=context.name).info.run_id
            id_file.write_text(self._run_id)
            for key, value in _flat(context.config).items():
                self._client.log_param(self._run_id, key, str(value)[:500])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one point for each metric in one request."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, metrics=[Metric(k, v, now, step) for k, v in metrics.items()])

    def close(self) -> None:
        """Attach the summary and mark the run as finished."""
        for name in ("config.json", "summary.json", "report.html"):
            if (self._run_dir / name).is_file():
                self._client.log_artifact(self._run_id, str(self._run_dir / name))
        finished = (self._run_dir / "summary.json").is_file()
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def local_store(directory: Path) -> str:
    """Return the address of the local store beside the run directories: one SQLite file, artifacts next to it."""
    return f"sqlite:///{(directory / 'mlflow.db').resolve()}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= _flat(value, f"{name}.")
        else:
            result[name] = json.dumps(value) if isinstance(value, list) else value
    return result
