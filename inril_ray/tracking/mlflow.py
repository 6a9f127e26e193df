"""MLflow: a local store by default, or a tracking server."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inril_ray.checkpoint import replace_text
from inril_ray.config import flat
from inril_ray.demos.store import DemoInfo
from inril_ray.metrics import Ended, grouped
from inril_ray.tracking.base import TrackerContext
from inril_ray.types import InrilError

ID_FILE = "mlflow_run_id"
PARENT_TAG = "mlflow.parentRunId"
ARTIFACTS = "mlartifacts"
STATUS: dict[Ended, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
DIGEST = 36
"""Characters of a data set's digest that MLflow takes."""
BATCH = 1000
"""Metrics that a server takes in one request."""
KEPT = 200_000
"""Metrics that wait for a server that does not answer; the oldest are given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 1800.0
"""Between attempts to reach a server that failed: twice as long after each."""
CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
FORGOTTEN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What a server says of a run that it does not know, or that was deleted."""


def connect(uri: str) -> Any:
    """Return a client of a store or tracking server, without its chatter.

    Raises:
        InrilError: a store can't be opened, or the user's credentials are not for this server.
    """
    _keep_credentials(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # The run waits for the server, and MLflow's own 7 retries of two minutes each would hold it up for too long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow"):  # notes on creating the store are not for our users; importing sets the level
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs what it raises, which becomes a sentence here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _answering(uri):
        return MlflowClient(tracking_uri=uri)


def _keep_credentials(uri: str) -> None:
    """Refuse a server that the environment's credentials are not meant for: MLflow would send them anywhere.

    Raises:
        InrilError: there are credentials, and ``MLFLOW_TRACKING_URI`` does not name this server.
    """
    held = [name for name in CREDENTIALS if os.environ.get(name)]
    there, meant = urlsplit(uri), urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if there.scheme in ("http", "https") and held and there[:2] != meant[:2]:
        raise InrilError(
            f"tracking.mlflow_uri = {uri!r}: {held[0]} would be sent there. If it is meant for this server, set "
            f"MLFLOW_TRACKING_URI={there.scheme}://{there.netloc} in the environment as well; else unset {held[0]}."
        )


def _run_of(
    client: Any,
    directory: Path,
    experiment: str,
    name: str,
    artifacts: Path | None,
    tags: Mapping[str, str],
    parent: Path | None = None,
) -> tuple[str, bool]:
    """Return the MLflow run of a directory, which is running from now on, and whether it is new.

    A new experiment of a local store keeps its artifacts beside it, not where the command happened to be started.
    """
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    if commit := tags.get("commit"):
        tags = {**tags, "mlflow.source.git.commit": commit}  # which MLflow's own table of runs shows
    run_id = known_run(directory)
    if run_id is not None:
        try:
            client.update_run(run_id, status="RUNNING")
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            return run_id, False
        except MlflowException as error:
            if error.error_code not in FORGOTTEN:
                raise
    found = client.get_experiment_by_name(experiment)
    place = {"artifact_location": artifacts.resolve().as_uri()} if artifacts else {}
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, **place)
    above = known_run(parent) if parent else None
    tags = {**tags, PARENT_TAG: above} if above else dict(tags)
    run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    replace_text(directory / ID_FILE, run_id)
    return run_id, True


def known_run(directory: Path) -> str | None:
    """Return the MLflow run that a directory is tracked as, None where it is not yet."""
    file = directory / ID_FILE
    return (file.read_text(errors="replace").strip() or None) if file.is_file() else None


class MlflowTracker:
    """One MLflow run for each run directory; a resumed run goes on in the same one.

    Runs of a sweep or a verdict are nested in its run, if it has one; see :class:`MlflowParent`. A server that fails
    later does not end the run: what it did not take is kept in memory, and sent when it answers again.

    Raises:
        InrilError: the server or store does not answer, and the run is new.
    """

    def __init__(self, context: TrackerContext) -> None:
        parent = context.parent if context.parent and known_run(context.parent) else None
        store = (parent or context.run_dir).parent
        place = context.mlflow_uri or local_store(store)
        self._client, self._run_dir = connect(place), context.run_dir
        artifacts = None if context.mlflow_uri else store / ARTIFACTS
        self._waiting: deque[Any] = deque(maxlen=KEPT)
        self._pause_s, self._again_at = 0.0, 0.0
        """Time between attempts to reach a server that fails, 0 while it answers, and when the next one is."""
        try:
            with _answering(place):
                self._run_id, new = _run_of(
                    self._client,
                    context.run_dir,
                    context.mlflow_experiment,
                    context.name,
                    artifacts,
                    context.tags,
                    parent,
                )
                if new:
                    _log_params(self._client, self._run_id, context.config)
                    if context.demos is not None:
                        _log_demos(self._client, self._run_id, context.demos, context.config.get("demos"))
        except InrilError as error:
            known = known_run(context.run_dir)
            if known is None:
                raise
            self._run_id = known  # of a run that goes on: it does not have to wait for the server
            self._pause(error)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one point for each metric in one request, with those that could not be written before."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting.extend(Metric(k, v, now, step) for k, v in grouped(metrics).items())
        if time.monotonic() >= self._again_at:
            self._send()

    def _send(self) -> None:
        """Write what waits, if the server takes it."""
        try:
            while self._waiting:
                batch = list(itertools.islice(self._waiting, BATCH))
                self._client.log_batch(self._run_id, metrics=batch)
                for _ in batch:
                    self._waiting.popleft()
        except Exception as error:  # of MLflow, of the connection, of the store's disk
            self._pause(error)
            return
        if self._pause_s:
            print("MLflow takes metrics again, and has got those that waited.", flush=True)
        self._pause_s, self._again_at = 0.0, 0.0

    def _pause(self, error: Exception) -> None:
        if not self._pause_s:
            print(f"MLflow does not take metrics, the run goes on and keeps them: {_reason(error)}", flush=True)
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._again_at = time.monotonic() + self._pause_s

    def close(self, ended: Ended = "finished") -> None:
        """Attach the summary and mark how the run ended."""
        self._send()
        why = f"{len(self._waiting)} metrics were not taken." if self._waiting else ""
        if not why:
            try:
                self._client.set_terminated(self._run_id, STATUS[ended])  # whether its artifacts are taken or not
                names = ("config.json", "summary.json", "report.html", "media")
                _attach(self._client, self._run_id, self._run_dir, names)
            except Exception as error:  # of a store of artifacts, too: the run itself is complete
                why = _reason(error)
        if why:
            print(f"The MLflow run {self._run_id} is not complete: {why} What {self._run_dir} holds is.", flush=True)


@contextlib.contextmanager
def _answering(place: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into a sentence.

    Raises:
        InrilError: a server or store does not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        todo = "Make room for it, or move it away" if place.startswith("sqlite") else "Start the server"
        raise InrilError(
            f"MLflow at {place} does not answer: {_reason(error)} {todo}, or leave MLflow out: "
            "--set tracking.trackers=[console,jsonl,tensorboard]."
        ) from None


class MlflowParent:
    """The MLflow run of a sweep or a verdict, which those of its runs are nested in.

    Args:
        directory: of the sweep or verdict; the store is beside it unless there is a server.
        uri: of the tracking server; None is a local store.
        experiment: name.
        params: what was asked for.
        tags: what it is found by.

    Raises:
        InrilError: the server or store does not answer now.
    """

    def __init__(
        self, directory: Path, uri: str | None, experiment: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        place = uri or local_store(directory.parent)
        self._client, self._directory = connect(place), directory
        directory.mkdir(parents=True, exist_ok=True)
        artifacts = None if uri else directory.parent / ARTIFACTS
        with _answering(place):
            self._run_id, new = _run_of(self._client, directory, experiment, directory.name, artifacts, tags)
            if new:
                _log_params(self._client, self._run_id, params)

    def finish(
        self, metrics: Mapping[str, float], artifacts: Sequence[str], ended: Mapping[Path, Ended] | None = None
    ) -> None:
        """Write the outcome, and mark runs that could not do so themselves; say so where the server does not take it.

        Args:
            metrics: name to value.
            artifacts: files and folders of the directory, those that there are.
            ended: directories of runs that were cut short or failed, and which of it.
        """
        try:
            for name, value in metrics.items():
                self._client.log_metric(self._run_id, name, value)
            _attach(self._client, self._run_id, self._directory, artifacts)
            for path, how in (ended or {}).items():
                if run_id := known_run(path):
                    self._client.set_terminated(run_id, STATUS[how])
        except Exception as error:
            self._tell(error)
        self.end("finished")

    def end(self, ended: Ended) -> None:
        """Mark how it ended; say so where the server does not take it."""
        try:
            self._client.set_terminated(self._run_id, STATUS[ended])
        except Exception as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        reason = f"{_reason(error)} What {self._directory} holds is."
        print(f"The MLflow run {self._run_id} is not complete: {reason}", flush=True)

    def register(self, name: str, folder: str, tags: Mapping[str, str]) -> str:
        """Register a folder of the directory as a new version of a model; return ``name`` and version.

        Raises:
            InrilError: the store has no registry or refuses the name.
        """
        from mlflow.exceptions import MlflowException

        try:
            with contextlib.suppress(MlflowException):  # it exists
                self._client.create_registered_model(name)
            source = f"{self._client.get_run(self._run_id).info.artifact_uri}/{folder}"
            version = self._client.create_model_version(name, source, self._run_id, tags=dict(tags))
        except MlflowException as error:
            raise InrilError(f"MLflow does not register {name!r}: {error.message}") from None
        return f"{name} version {version.version}"


@contextlib.contextmanager
def parent_of(
    directory: Path, tracking: Any, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[MlflowParent | None]:
    """Give the MLflow run of a sweep or a verdict, None where MLflow is not among its trackers.

    It is marked as failed or stopped where an exception ends it, which goes on.

    Args:
        directory: of the sweep or verdict.
        tracking: section ``tracking`` of the configuration.
        params: what was asked for.
        tags: what it is found by.
    """
    if "mlflow" not in tracking.trackers:
        yield None
        return
    parent = MlflowParent(directory, tracking.mlflow_uri, tracking.mlflow_experiment, params, tags)
    try:
        yield parent
    except BaseException as error:
        parent.end("failed" if isinstance(error, Exception) else "stopped")
        raise


def _log_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    """Write all parameters in requests of the greatest size that a server takes: trials begin at the same time."""
    from mlflow.entities import Param

    written = {key: json.dumps(v) if isinstance(v, list) else v for key, v in flat(values).items()}
    params = [Param(key, str(value)[:500]) for key, value in written.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])


def _log_demos(client: Any, run_id: str, demos: DemoInfo, path: str | None) -> None:
    """Fill MLflow's field for the data set of a run: its digest is the hash of the demonstrations."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": path or demos.source_file})
    data = Dataset(demos.source_file, demos.content_hash[:DIGEST], "local", source)
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def _attach(client: Any, run_id: str, directory: Path, names: Sequence[str]) -> None:
    for name in names:
        path = directory / name
        if path.is_dir():
            client.log_artifacts(run_id, str(path), name)
        elif path.is_file():
            client.log_artifact(run_id, str(path))


def local_store(directory: Path) -> str:
    """Return the address of the local store beside the run directories: one SQLite file, artifacts next to it.

    Trials of a sweep write to it at the same time, so each waits for the others.

    Raises:
        InrilError: it is not there and can't be made.
    """
    file = (directory / "mlflow.db").resolve()
    place = _address(file, timeout="60")
    if not file.exists():
        # MLflow makes its tables one by one, and can't go on with some of them: those of a process that was killed, or
        # had no room, would be in the way of every later run. So they are made elsewhere.
        with _answering(place):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
            try:
                partial.write_bytes(_empty_store())
                _put_if_new(partial, file)
            finally:
                partial.unlink(missing_ok=True)
    return place


def _address(file: Path, **options: str) -> str:
    """Return the address of a SQLite file, whose path may hold what means something in an address."""
    from sqlalchemy import URL

    # With its driver: MLflow makes a directory of what follows `sqlite:///`, as it stands there.
    return URL.create("sqlite+pysqlite", database=str(file), query=options).render_as_string()


@functools.cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / "mlflow.db"
        connect(_address(made))
        return made.read_bytes()


def _put_if_new(partial: Path, file: Path) -> None:
    """Give a file its name, unless another run was faster: then that one is in use."""
    try:
        os.link(partial, file)
    except FileExistsError:
        pass
    except OSError:  # some file systems have no hard links
        if not file.exists():
            os.replace(partial, file)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)  # the system's errors list their files
    lines = said.strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
