"""Dealing with an MLflow server: connecting, a file in which metrics wait, and an outbox that sends everything."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrl.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

_MAX_METRICS = 1000  # in one call of MLflow
# MLflow's own defaults would hold up training for minutes per call while a server is away.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

Call = Callable[["MlflowClient", str], None]  # takes the client and the run's id; must be idempotent
Sample = tuple[str, float, int, int]  # name, value, timestamp in milliseconds, step


class MetricsFile:
    """Append-only file of metrics that remembers how much of it was sent.

    A line of ``metrics.jsonl`` is ``{"step": int, "timestamp": milliseconds, "metrics": {name: value}}``; a value that
    is not finite is one of the strings nan, inf, -inf, since JSON has no number for it.

    ``marks`` are three lengths in bytes: ``sent``; ``sending``, what a call was about to send, which after a kill may
    or may not have arrived; ``checkpoint``, what the newest checkpoint counts on. They live in ``metrics.sent.json``,
    which is replaced atomically.

    Args:
        directory: Directory of both files; must exist before something is written.

    Example:
        >>> import tempfile
        >>> file = MetricsFile(Path(tempfile.mkdtemp()))
        >>> file.append(64, {"train/loss": 0.5})
        >>> [(step, name, value) for _, batch in file.batches(1000) for name, value, _, step in batch]
        [(64, 'train/loss', 0.5)]
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "metrics.jsonl"
        self._marks_path = directory / "metrics.sent.json"
        self.marks = {"sent": 0, "sending": 0, "checkpoint": 0}
        if self._marks_path.exists():
            self.marks.update(json.loads(self._marks_path.read_text()))

    @property
    def size(self) -> int:
        """Length of the file in bytes, 0 where it does not exist."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line; without a buffer, so that it survives a kill right after this call.

        Args:
            step: Environment frames, the x axis.
            metrics: Values by name.
        """
        values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "timestamp": time.time_ns() // 1_000_000, "metrics": values})
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())

    def sync(self) -> int:
        """Bring the file to disk and return its length: a checkpoint or mark must not outlive the lines it counts."""
        if not self.path.exists():
            return 0
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def mark(self, **lengths: int) -> None:
        """Set some of ``marks``, here and on disk."""
        self.marks.update(lengths)
        temporary = self._marks_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.marks))
        temporary.replace(self._marks_path)

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes, and the marks with it."""
        if size < self.size:
            os.truncate(self.path, size)
        self.mark(**{name: min(length, size) for name, length in self.marks.items()})

    def copy_to(self, other: MetricsFile, size: int) -> None:
        """Write the first ``size`` bytes to another file, of which nothing is sent yet."""
        other.path.write_bytes(self.path.read_bytes()[:size] if self.path.exists() else b"")

    def records(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each line after byte ``start``, with the position of its end."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                yield start, json.loads(line)

    def batches(self, limit: int) -> Iterator[tuple[int, list[Sample]]]:
        """Yield what was not sent, in batches of whole lines, each with the position of its end.

        Args:
            limit: Samples per batch at most, unless a single line has more.
        """
        batch: list[Sample] = []
        end = self.marks["sent"]
        for line_end, record in self.records(end):
            line = [(name, float(v), record["timestamp"], record["step"]) for name, v in record["metrics"].items()]
            if batch and len(batch) + len(line) > limit:
                yield end, batch
                batch = []
            batch, end = batch + line, line_end
        if batch:
            yield end, batch


class Outbox:
    """Sends a run's tags, parameters, artifacts and metrics to MLflow, now or when the server is back.

    Args:
        client: MLflow's client.
        run_id: The run.
        file: Where the metrics are.
    """

    def __init__(self, client: MlflowClient, run_id: str, file: MetricsFile) -> None:
        self.client = client
        self.run_id = run_id
        self.file = file
        self.away = False
        self._calls: deque[Call] = deque()
        self._next_try = 0.0

    def send(self, call: Call) -> None:
        """Tell MLflow something, in order, now or later."""
        self._calls.append(call)
        self.flush_unless_away()

    def flush_unless_away(self) -> None:
        """Flush, but not soon after a failure: waiting for a server must not take more than a tenth of the time."""
        if time.monotonic() >= self._next_try:
            self.flush()

    def flush(self) -> None:
        """Send everything that was not sent yet. Never raises: with the server away it is kept for the next time."""
        start = time.monotonic()
        try:
            while self._calls:
                self._make(self._calls[0])
                self._calls.popleft()
            self._send_metrics()
        except Exception as error:  # whatever a tracking store may raise, it must not end a training run
            if not self.away:
                message = "MLflow is away (%s): training goes on, metrics are kept in %s and sent at a later checkpoint"
                _log.warning(message, reason(error), self.file.path)
            self.away = True
            self._next_try = time.monotonic() + 10 * (time.monotonic() - start)
        else:
            if self.away:
                _log.warning("MLflow is back and has everything again")
            self.away, self._next_try = False, 0.0

    def close(self, status: str) -> None:
        """Send everything, set the run's final status and say so where something could not be sent."""
        self._calls.append(lambda client, run_id: client.set_terminated(run_id, status))
        self.flush()
        if unsent := self.file.size - self.file.marks["sent"]:
            message = "MLflow did not get the last %d bytes of %s; they are sent when the run is resumed"
            _log.warning(message, unsent, self.file.path)

    def _make(self, call: Call) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call(self.client, self.run_id)
        except MlflowException as error:
            # A request that MLflow refuses would be refused again, and would hold up all that waits behind it.
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            _log.warning("MLflow refused something about run %s: %s", self.run_id, reason(error))

    def _send_metrics(self) -> None:
        """Send the file's unsent lines.

        MLflow's SQL store ignores a metric that it has (same name, step, timestamp and value), so a batch that a kill
        left between its two marks can be sent again.
        """
        from mlflow.entities import Metric

        self.file.sync()
        for end, batch in self.file.batches(_MAX_METRICS):
            self.file.mark(sending=end)
            metrics = [Metric(name, value, timestamp, step) for name, value, timestamp, step in batch]
            for first in range(0, len(metrics), _MAX_METRICS):
                self.client.log_batch(self.run_id, metrics=metrics[first : first + _MAX_METRICS])
            self.file.mark(sent=end)


@contextmanager
def reached(tracking_uri: str) -> Iterator[None]:
    """Turn whatever goes wrong with MLflow into one line; MLflow and its stores raise errors of many kinds.

    Args:
        tracking_uri: Where MLflow is.

    Raises:
        TrackingError: If the context raises anything.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow cannot be used at {without_password(tracking_uri)} ({reason(error)}): start that server, or set"
            " MLFLOW_TRACKING_URI to another one, or unset it to use a local file."
        ) from error


def connect(tracking_uri: str) -> MlflowClient:
    """Return a client that does not wait for long; the directory of an SQLite store is created."""
    for variable, value in _PATIENCE.items():
        os.environ.setdefault(variable, value)
    from mlflow.tracking import MlflowClient  # takes seconds, so not with `hyperrl --help`

    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri)


def find_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Return the id of an experiment, which is created if missing.

    Args:
        client: MLflow's client.
        name: Name of the experiment.
        artifacts: Directory of the artifacts of a new experiment; None leaves that to the server.

    Raises:
        TrackingError: If the experiment is deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # another run of a sweep may have been faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"The MLflow experiment {name!r} is deleted: restore it with"
            f" `mlflow experiments restore -x {experiment.experiment_id}`, or choose another experiment_name."
        )
    return experiment.experiment_id


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, or None where it is unknown or deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def reason(error: BaseException) -> str:
    """Return the first line of the root cause; MLflow wraps a refused connection in three layers of retries."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return without_password(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def without_password(text: str) -> str:
    """Hide the user and password of URIs, for logs."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
