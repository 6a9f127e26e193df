"""Weights & Biases, with the package ``wandb`` (``pip install 'inril-ray[wandb]'``) and its own environment variables.

``WANDB_MODE=offline`` writes below the run directory, and ``wandb sync`` sends it later; ``WANDB_PROJECT``,
``WANDB_ENTITY`` and ``WANDB_BASE_URL`` say where runs go, ``WANDB_API_KEY`` or ``wandb login`` who sends them.
"""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping
from typing import Any

from inril_ray.checkpoint import replace_text
from inril_ray.metrics import Ended, grouped
from inril_ray.tracking.base import TrackerContext
from inril_ray.types import InrilError

ID_FILE = "wandb_run_id"
STATUS: dict[Ended, int] = {"finished": 0, "failed": 1, "stopped": 255}
"""Exit codes that W&B shows as finished, failed and killed."""
STARTS_WITHIN_S, ENDS_WITHIN_S = 90.0, 120.0
"""Time that the server has at the beginning, and for what is left at the end."""
TAG = 64
"""Characters of a tag that W&B takes."""


class WandbTracker:
    """One W&B run for each run directory; a resumed run goes on under the same id.

    Runs of a sweep or a verdict are a group. Metrics are sent by a process of W&B's own, so a server that fails later
    does not end the run.

    Raises:
        InrilError: the package is missing, nobody is logged in, or the server does not answer.
    """

    def __init__(self, context: TrackerContext) -> None:
        wandb = _package()
        file = context.run_dir / ID_FILE
        known = file.read_text(errors="replace").strip() if file.is_file() else ""
        run_id = known or uuid.uuid4().hex[:12]
        settings = {
            "console": "off",  # standard output stays ours
            "silent": True,
            "init_timeout": STARTS_WITHIN_S,
            "login_timeout": STARTS_WITHIN_S,
            "finish_timeout": ENDS_WITHIN_S,
            "finish_timeout_raises": True,
        }
        tags = [f"{key}: {value}"[:TAG] for key, value in context.tags.items()]
        data = {"demos_hash": context.demos.content_hash} if context.demos else {}
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", context.mlflow_experiment),
                name=context.name,
                group=context.parent.name if context.parent else None,
                id=run_id,
                resume="allow",
                config={**context.config, **data},
                tags=tags,
                dir=context.run_dir,
                reinit="create_new",
                settings=settings,
            )
            self._run.define_metric("*", step_metric="train/env_steps")
        except Exception as error:  # of wandb, of its process, of the connection
            raise InrilError(
                f"W&B does not begin a run: {_reason(error)} Log in (`wandb login`), set WANDB_MODE=offline, or leave "
                "wandb out of tracking.trackers."
            ) from None
        replace_text(file, run_id)
        self._failed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand over one point for each metric."""
        try:
            self._run.log({**grouped(metrics), "train/env_steps": step})
        except Exception as error:  # of the connection to W&B's process
            if not self._failed:
                print(f"W&B does not take metrics, the run goes on without it: {_reason(error)}", flush=True)
            self._failed = True

    def close(self, ended: Ended = "finished") -> None:
        """Send what is left, and how the run ended."""
        try:
            self._run.finish(exit_code=STATUS[ended])
        except Exception as error:
            print(f"The W&B run {self._run.id} is not complete: {_reason(error)}", flush=True)


def _package() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InrilError(
            "tracking.trackers: wandb is not installed. Install it (pip install 'inril-ray[wandb]'), or leave it out."
        ) from None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
