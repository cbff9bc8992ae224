"""Lightning callbacks: the end of training by frames, the report of a divergence, and what the console shows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.callbacks.model_checkpoint import ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from hyperrl.errors import DivergedError
from hyperrl.outbox import without_password
from hyperrl.tracking import MLflowLogger, find_logger


class Learner(Protocol):
    """What the callbacks read of the LightningModule."""

    frames: int
    """Environment frames trained on so far, over all processes."""
    rollout_metrics: dict[str, float]
    """Metrics of the last rollout, such as ``train/return_episode_1`` and ``time/frames_per_second``."""


class Source(Protocol):
    """What the callbacks read of the LightningDataModule."""

    frames: int
    """Environment frames to train for."""
    landmarks: dict[str, float]
    """Known mean returns of a whole meta-episode, raw units, by the name of the policy that reaches them."""


def _learner(pl_module: LightningModule) -> Learner:
    return cast(Learner, pl_module)


def _source(trainer: Trainer) -> Source:
    return cast(Source, trainer.datamodule)  # type: ignore[attr-defined]


def episode_returns(metrics: Mapping[str, Any], stage: str, quantity: str = "return") -> list[float]:
    """Return the mean returns of episode 1..K that are in ``metrics``.

    Args:
        metrics: Metrics by name.
        stage: What their names begin with: ``train``, ``val`` or ``test``.
        quantity: What is averaged: ``return``, or ``success`` for the share of episodes with success.

    Example:
        >>> episode_returns({"val/return_episode_2": 3.0, "val/return_episode_1": 1.5, "val/return": 4.5}, "val")
        [1.5, 3.0]
    """
    returns: list[float] = []
    while (name := f"{stage}/{quantity}_episode_{len(returns) + 1}") in metrics:
        returns.append(float(metrics[name]))
    return returns


class FrameBudget(Callback):
    """End training once the environments have made ``data.frames`` steps; a last validation and checkpoint follow."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train at all if a resumed run has spent its budget."""
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the rollout that spends the budget."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _learner(pl_module).frames >= _source(trainer).frames:
            trainer.should_stop = True


class DivergenceReport(Callback):
    """Tag the MLflow run of a training that diverged: ``status`` and, with the offending quantity, ``diverged``."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Set the tags; Lightning ends the run as FAILED after this."""
        logger = find_logger(trainer)
        if isinstance(exception, DivergedError) and logger is not None:
            logger.set_tag("diverged", str(exception))
            logger.set_status("diverged")


class FrameProgressBar(ProgressBar):
    """Progress in environment frames: done and total, frames per second, time left, return of each episode.

    On a terminal it is one line that stays in place. Elsewhere (a file, a batch system) it is one plain line at each
    validation. Validation and test on their own show nothing: their result is `AdaptationTable`.

    Args:
        refresh_rate: Redraws per second at most.
        console: Where it is shown. Default: the standard error stream.
    """

    def __init__(self, refresh_rate: float = 4.0, console: Console | None = None) -> None:
        super().__init__()
        self.refresh_rate = refresh_rate
        self._console = console or Console(stderr=True)
        self._enabled = True
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def disable(self) -> None:
        """Show nothing from now on, as Lightning asks of all processes but one."""
        self._enabled = False
        self._stop()

    def enable(self) -> None:
        """Show progress again, from the next start of training on."""
        self._enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Write a line above the bar: what ``trainer.print`` calls."""
        if self._enabled:
            self._console.print(sep.join(map(str, args)), markup=False, highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, on a terminal."""
        if self._enabled and self._console.is_interactive:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=8),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                refresh_per_second=self.refresh_rate,
            )
            self._task = self._progress.add_task("train", total=_source(trainer).frames, text="")
            self._update(trainer, pl_module, "train")
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by the rollout's frames."""
        self._update(trainer, pl_module, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the frames stand still."""
        self._update(trainer, pl_module, "valid")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the plain line where there is no terminal."""
        self._update(trainer, pl_module, "train")
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and not self._console.is_interactive:
            text = progress_text(_learner(pl_module), _source(trainer).frames)
            if returns := episode_returns(trainer.callback_metrics, "val"):
                text += f"  validation {_joined(returns)}"
            self.print(text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar's last state on the terminal."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._stop()

    def _update(self, trainer: Trainer, pl_module: LightningModule, doing: str) -> None:
        if self._progress is not None:
            learner = _learner(pl_module)
            text = progress_text(learner, _source(trainer).frames)
            self._progress.update(self._task, completed=learner.frames, description=doing, text=text)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def progress_text(learner: Learner, total: int) -> str:
    """Return frames done and to do, frames per second, time left and the return of each episode, as far as known.

    Args:
        learner: The LightningModule.
        total: Frames to train for.
    """
    parts = [f"{_short(learner.frames)}/{_short(total)} frames"]
    if speed := learner.rollout_metrics.get("time/frames_per_second", 0.0):
        left = timedelta(seconds=round(max(total - learner.frames, 0) / speed))
        parts += [f"{speed:,.0f}/s", f"{left} left"]
    if returns := episode_returns(learner.rollout_metrics, "train"):
        parts.append("return " + _joined(returns))
    return "  ".join(parts)


def _short(frames: int) -> str:
    """Return a number short enough for a terminal of 80 columns."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if frames >= unit:
            return f"{frames / unit:.2f}{name}"
    return str(frames)


def _joined(returns: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in returns)


class AdaptationTable(Callback):
    """Show how the agent adapts: return of each episode, their sum, and the landmarks of the environment around it.

    Shown after ``test`` and ``validate``, not for the validations during training.

    Args:
        next_experiment: Configuration that the last line of `summary` proposes.
        console: Where it is shown. Default: the standard output.
    """

    def __init__(self, next_experiment: str = "experiment/gridnavi_rnn_hn", console: Console | None = None) -> None:
        self.next_experiment = next_experiment
        self._console = console or Console()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table of the test."""
        self._show(trainer, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table of a validation on its own."""
        if trainer.state.fn == "validate":
            self._show(trainer, "val")

    def _show(self, trainer: Trainer, stage: str) -> None:
        if trainer.is_global_zero:
            landmarks = getattr(trainer.datamodule, "landmarks", None) or {}  # type: ignore[attr-defined]
            table = adaptation_table(trainer.callback_metrics, stage, landmarks)
            if table is not None:
                self._console.print(table)

    def summary(self, trainer: Trainer) -> None:
        """Say where a finished training left its results, and three commands to go on with.

        Args:
            trainer: The trainer, after ``fit``.
        """
        logger = find_logger(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        checkpoint = _best_checkpoint(trainer)
        places = {"run": logger.run_dir, "config": logger.run_dir / "config.yaml", "checkpoint": checkpoint}
        lines = [f"{name:<12}{_shown(path)}" for name, path in places.items() if path]
        commands = [_ui_command(logger)]
        if checkpoint:
            commands.append(f"hyperrl validate --ckpt_path {_shown(checkpoint)}")
        commands.append(f"hyperrl fit --config {self.next_experiment}")
        text = "\n".join([*lines, "", "Next:", *(f"  {command}" for command in commands)])
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def adaptation_table(metrics: Mapping[str, Any], stage: str, landmarks: Mapping[str, float]) -> Table | None:
    """Return the adaptation of an agent as a table, or None where ``metrics`` has no return of episodes.

    Args:
        metrics: Mean returns, raw units: ``<stage>/return_episode_<k>``, ``<stage>/return`` (of all episodes) and its
            standard error ``<stage>/return_sem``; perhaps shares ``<stage>/success_episode_<k>``.
        stage: ``val`` or ``test``.
        landmarks: Known returns of all episodes together, by name.
    """
    returns = episode_returns(metrics, stage)
    if not returns:
        return None
    table = Table("", title=f"Adaptation ({'validation' if stage == 'val' else stage})")
    table.add_column("return", justify="right")
    columns = [[f"{value:.2f}" for value in returns]]
    if shares := episode_returns(metrics, stage, "success"):
        table.add_column("success", justify="right")
        columns.append([f"{share:.1%}" for share in shares])
    for episode, cells in enumerate(zip(*columns, strict=True), 1):
        table.add_row(f"episode {episode}", *cells)
    table.add_section()
    total = float(metrics.get(f"{stage}/return", sum(returns)))
    error = f" ± {float(metrics[f'{stage}/return_sem']):.2f}" if f"{stage}/return_sem" in metrics else ""
    rows = [(value, name.replace("_", " "), f"{value:.2f}", "") for name, value in landmarks.items()]
    rows.append((total, "this agent, all episodes", f"{total:.2f}{error}", "bold"))
    for _, name, text, style in sorted(rows):
        table.add_row(name, text, style=style)
    return table


def _best_checkpoint(trainer: Trainer) -> Path | None:
    """Return the best checkpoint or, where nothing is monitored, the last one."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    for callback in sorted(callbacks, key=lambda callback: callback.monitor is None):
        if path := callback.best_model_path or callback.last_model_path:
            return Path(path)
    return None


def _ui_command(logger: MLflowLogger) -> str:
    """Return how to look at the run: a command for a local store, the run's page on a server."""
    uri = without_password(logger.tracking_uri)
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/#/experiments/{logger.experiment_id}/runs/{logger.run_id}"
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{_shown(Path(uri.removeprefix('sqlite:///')))}"
    return f"mlflow ui --backend-store-uri {uri}"


def _shown(path: Path) -> str:
    """Return a path relative to the working directory, where it is below it, quoted for a shell where needed."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
