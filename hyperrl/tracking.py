"""Experiment tracking with MLflow: a logger that survives kills and servers that go away, and its callbacks.

Metrics are written to ``metrics.jsonl`` in the run's directory and sent to MLflow from there, in batches, at each
checkpoint and at the end. A checkpoint holds the length of that file (`TrackingState`), so that a resumed run can cut
what came later and log it again: see `MLflowLogger.resume`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from hyperrl.outbox import MetricsFile, Outbox, connect, find_experiment, find_run, reached, reason, without_password
from hyperrl.run_tags import clean_name, config_tags, flatten, send_params, send_tags, version_tags

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)


class MLflowLogger(MLFlowLogger):
    """Log to MLflow, through a file that survives kills and servers that go away.

    The run's directory ``<save_dir>/<experiment_name>/<run id>/`` holds ``config.yaml``, ``metrics.jsonl`` and
    ``checkpoints/``. Nothing is created, neither there nor in MLflow, before the first use of `experiment` or
    `run_dir`. A store that cannot be reached then is a `TrackingError`; later on it costs one warning, and everything
    is sent when it is back. All of this happens in the process of rank 0 only.

    Args:
        experiment_name: MLflow experiment that the run belongs to; created if missing.
        run_name: Name of the run in the MLflow UI. Default: MLflow invents one.
        tracking_uri: MLflow tracking URI. Default: the environment variable MLFLOW_TRACKING_URI or, without it, the
            SQLite store ``<save_dir>/mlflow.db``.
        save_dir: Directory of all run directories, and of ``artifacts`` where the store is an SQLite file.
        tags: Further tags of the run. They win over those derived from the configuration: ``env``, ``model``,
            ``group``, ``seed``.

    Example:
        >>> logger = MLflowLogger(experiment_name="gridnavi", tracking_uri="http://127.0.0.1:5000")
        >>> logger.tracking_uri
        'http://127.0.0.1:5000'
    """

    def __init__(
        self,
        experiment_name: str = "hyperrl",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        save_dir: str = "runs",
        tags: dict[str, str] | None = None,
    ) -> None:
        # Not MLFlowLogger.__init__: it makes a client, and making a client of an SQLite store creates the database.
        Logger.__init__(self)
        self._tags = dict(tags or {})
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._save_dir = save_dir
        default_uri = f"sqlite:///{Path(save_dir).absolute() / 'mlflow.db'}"
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri
        self._experiment_id: str | None = None
        self._run_id: str | None = None
        self._outbox: Outbox | None = None
        self._config_logged = False
        self._step = 0
        self._offset = 0
        self._kept: set[tuple[int, str]] = set()

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking URI in use."""
        return self._tracking_uri

    @property
    def save_dir(self) -> str:
        """Directory of all run directories."""
        return self._save_dir

    @property
    def name(self) -> str:
        """The experiment's name, as a relative path."""
        return self._experiment_name.lstrip("/")

    @property
    def run_dir(self) -> Path:
        """Directory of this run; the first use starts the run. It exists on rank 0 only.

        Raises:
            TrackingError: If the tracking store cannot be reached.
        """
        return self._directory(str(self.version))

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """MLflow's client; the first use starts the run.

        Raises:
            TrackingError: If the tracking store cannot be reached.
        """
        return self._started().client

    @property
    def away(self) -> bool:
        """Whether the server did not answer when something was sent last."""
        return self._outbox is not None and self._outbox.away

    def _directory(self, run_id: str) -> Path:
        return Path(self._save_dir, self.name, run_id)

    def _started(self) -> Outbox:
        if self._outbox is None:
            with reached(self._tracking_uri):
                client = self._connect()
                self._outbox = self._open(client, self._create_run(client, {}))
        return self._outbox

    def _connect(self) -> MlflowClient:
        client = connect(self._tracking_uri)
        local = self._tracking_uri.startswith("sqlite:")
        artifacts = str(Path(self._save_dir).absolute() / "artifacts") if local else None
        self._experiment_id = find_experiment(client, self._experiment_name, artifacts)
        return client

    def _create_run(self, client: MlflowClient, tags: dict[str, str]) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        experiment_id = str(self._experiment_id)
        run = client.create_run(experiment_id, tags=resolve_tags({**self._tags, **tags}), run_name=self._run_name)
        return run.info.run_id

    def _open(self, client: MlflowClient, run_id: str) -> Outbox:
        directory = self._directory(run_id)
        directory.mkdir(parents=True, exist_ok=True)
        self._run_id = run_id
        return Outbox(client, run_id, MetricsFile(directory))

    # ---- exact resume

    def state(self) -> dict[str, str | int]:
        """Return what a checkpoint must hold: ``run_id``, ``offset`` (bytes of metrics.jsonl) and the last ``step``."""
        outbox = self._started()
        self._offset = outbox.file.sync()
        return {"run_id": outbox.run_id, "offset": self._offset, "step": self._step}

    @rank_zero_only
    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue the run of a checkpoint. Must come before anything else is done with this logger.

        From the newest checkpoint of a run, the same MLflow run goes on. Metrics that are younger than the checkpoint
        are cut, to be logged again. Those that have reached MLflow already stay, since MLflow cannot forget them, and
        the resumed run does not log the same name at the same step a second time. (After a kill there are none. After
        an exception, Ctrl+C or the end of training there are, for these send everything.)

        A run that cannot go on is left as it is, and a new child run takes over, tagged ``resumed_from``, with a copy
        of the metrics up to the checkpoint: if the run has a newer checkpoint (the metrics of two continuations would
        be mixed), if MLflow does not know the run, or if its metrics file is not there.

        Args:
            state: What `state` returned when the checkpoint was saved. If empty, a new run is started.

        Raises:
            TrackingError: If the tracking store cannot be reached.
            RuntimeError: If the run of this logger has started already.
        """
        if self._outbox is not None:
            raise RuntimeError("MLflowLogger.resume was called after the logger's run had started")
        if not state:
            return
        run_id, offset, step = str(state["run_id"]), int(state["offset"]), int(state.get("step", sys.maxsize))
        with reached(self._tracking_uri):
            client = self._connect()
            run = find_run(client, run_id)
            source = MetricsFile(self._directory(run_id))
            obstacle = self._obstacle(run, source, offset)
            if obstacle is None:
                self._outbox = self._continue_run(client, run_id, offset)
            else:
                self._outbox = self._branch(client, run, source, run_id, offset)
                _log.warning("run %s cannot go on, since %s; run %s takes over", run_id, obstacle, self._run_id)
        self._step = step
        self._kept = {
            (record["step"], name)
            for end, record in self._outbox.file.records()
            if end > offset or record["step"] > step  # the latter were kept by an earlier resume
            for name in record["metrics"]
        }
        self.flush()

    def _obstacle(self, run: Run | None, file: MetricsFile, offset: int) -> str | None:
        if run is None:
            return f"MLflow at {without_password(self._tracking_uri)} does not know it"
        if file.size < offset:
            return f"{file.path} is not there or too short"
        if offset < file.marks["checkpoint"]:
            return "it has a newer checkpoint"
        return None

    def _continue_run(self, client: MlflowClient, run_id: str, offset: int) -> Outbox:
        outbox = self._open(client, run_id)
        marks = outbox.file.marks
        outbox.file.truncate(max(offset, marks["sent"], marks["sending"]))
        client.update_run(run_id, "RUNNING")
        return outbox

    def _branch(self, client: MlflowClient, run: Run | None, source: MetricsFile, run_id: str, offset: int) -> Outbox:
        tags = {"resumed_from": run_id}
        if run is not None:
            tags["mlflow.parentRunId"] = run_id
        outbox = self._open(client, self._create_run(client, tags))
        source.copy_to(outbox.file, offset)
        return outbox

    # ---- what is logged

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line to ``metrics.jsonl``; nothing is sent.

        Args:
            metrics: Values by name; text is dropped.
            step: Environment frames, the x axis.
        """
        outbox = self._started()
        self._step = int(step or 0)
        values = {clean_name(name): float(value) for name, value in metrics.items() if not isinstance(value, str)}
        values = {name: value for name, value in values.items() if (self._step, name) not in self._kept}
        if values:
            outbox.file.append(self._step, values)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log the hyper-parameters that Lightning collects, unless `log_config` has logged the whole configuration."""
        if params and not self._config_logged:
            flat = flatten(params if isinstance(params, Mapping) else vars(params))
            self._started().send(lambda client, run_id: send_params(client, run_id, flat))

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any], yaml_text: str, tags: Mapping[str, str] | None = None) -> None:
        """Log the resolved configuration: as parameters, as ``config.yaml`` (file and artifact) and as tags.

        Args:
            config: The configuration as nested mappings. A parameter's name is its path joined by dots.
            yaml_text: The same as YAML, for ``config.yaml``.
            tags: Tags that win over the derived ones (`config_tags`); the logger's own win over both.
        """
        path = self.run_dir / "config.yaml"
        path.write_text(yaml_text, encoding="utf-8")
        self._config_logged = True
        about = {**config_tags(config), **(tags or {}), **self._tags}
        params = {**flatten(config), **about}  # MLflow's charts group by parameter, its searches go by tag
        self._started().send(lambda client, run_id: send_tags(client, run_id, about | version_tags()))
        self._started().send(lambda client, run_id: send_params(client, run_id, params))
        self.log_artifact(path)

    @rank_zero_only
    def log_artifact(self, path: str | Path) -> None:
        """Log a file as an artifact of the run, at its top level."""

        def send(client: MlflowClient, run_id: str) -> None:
            if Path(path).exists():  # it may be gone by the time a server is back
                client.log_artifact(run_id, str(path))

        self._started().send(send)

    @rank_zero_only
    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._started().send(lambda client, run_id: send_tags(client, run_id, {name: value}))

    def set_status(self, status: str) -> None:
        """Set the tag ``status``, for what MLflow's own status cannot say, such as ``diverged``."""
        self.set_tag("status", status)

    @rank_zero_only
    def flush(self) -> None:
        """Send what was not sent yet. Never raises: what cannot be sent waits for the next call."""
        if self._outbox is not None:
            self._outbox.flush()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Send what was not sent yet: Lightning calls this when a checkpoint is on disk."""
        if self._outbox is not None:
            self._outbox.file.mark(checkpoint=max(self._offset, self._outbox.file.marks["checkpoint"]))
            self._outbox.flush_unless_away()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send everything and end the MLflow run, as FINISHED, FAILED or (Ctrl+C, SIGTERM) KILLED."""
        if self._outbox is None:
            return
        if isinstance(sys.exception(), (KeyboardInterrupt, SIGTERMException)):  # Lightning says "failed" for these, too
            status = "KILLED"
        self._outbox.close({"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}.get(status, status))


class TrackingState(Callback):
    """Put `MLflowLogger.state` into each checkpoint, under the key ``tracking``.

    Whoever resumes passes it to `MLflowLogger.resume` before ``trainer.fit``: Lightning starts the logger's run before
    it loads the checkpoint, so a callback would be too late. Checkpoints are exact when they are saved at the end of a
    validation or of an epoch; during ``on_train_batch_end`` Lightning has not logged that batch yet.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the logger."""
        logger = find_logger(trainer)
        if logger is not None and trainer.is_global_zero:
            checkpoint["tracking"] = logger.state()


class SystemMetrics(Callback):
    """Log the use of CPU, memory, disk, network and GPU to the MLflow run during training, as ``system/...``.

    The x axis of these metrics counts the samples. Whatever goes wrong with them costs one warning, or nothing.

    Args:
        interval: Seconds between two samples; the environment variable MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins.
    """

    def __init__(self, interval: float = 30.0) -> None:
        self.interval = interval
        self._monitor: SystemMetricsMonitor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the thread that takes the samples."""
        self._start(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start again if the thread has ended, as it does when a server goes away, and the server is back."""
        thread = self._monitor and self._monitor._process
        logger = find_logger(trainer)
        if thread and not thread.is_alive() and logger and not logger.away:
            self._start(trainer)

    def _start(self, trainer: Trainer) -> None:
        logger = find_logger(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        # MLflow would write lines at start, at stop and, with the server away, one that the logger writes already.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                logger.run_id, self.interval, resume_logging=True, tracking_uri=logger.tracking_uri
            )
            self._monitor.start()
        except Exception as error:  # psutil or a driver is missing or broken: no reason not to train
            self._monitor = None
            _log.warning("no system metrics: %s", reason(error))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the thread."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the thread."""
        self._stop()

    def _stop(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def find_logger(trainer: Trainer) -> MLflowLogger | None:
    """Return the trainer's first `MLflowLogger`."""
    return next((logger for logger in trainer.loggers if isinstance(logger, MLflowLogger)), None)
