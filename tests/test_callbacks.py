"""Training ends by frames, divergence is reported, and the console shows adaptation."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from torch.utils.data import DataLoader

from hyperrl.callbacks import (
    AdaptationTable,
    DivergenceReport,
    FrameBudget,
    FrameProgressBar,
    adaptation_table,
    progress_text,
)
from hyperrl.errors import DivergedError
from hyperrl.tracking import MLflowLogger

LANDMARKS = {"random": -4.66, "within-episode memory": 16.0, "Bayes-optimal": 37.21, "task_known": 44.29}


class Data(LightningDataModule):
    """Ten rollouts of 16 frames per epoch."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames, self.landmarks = frames, LANDMARKS

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(10, 1), batch_size=1)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(1, 1))

    test_dataloader = val_dataloader


class Toy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.frames = 0
        self.rollout_metrics: dict[str, float] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.frames += 16
        self.rollout_metrics = {
            "train/return_episode_1": 1.25,
            "train/return_episode_2": 2.5,
            "time/frames_per_second": 1345.4,
        }
        self.trainer.print(f"[bracket] {self.frames}")
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log_dict({"val/return_episode_1": 3.0, "val/return_episode_2": 4.0, "val/return": 7.0})

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log_dict({"test/return_episode_1": 10.0, "test/return_episode_2": 12.0})
        self.log_dict({"test/return": 22.0, "test/return_sem": 0.5})


def make_trainer(*callbacks: Callback, **kwargs: Any) -> Trainer:
    has_bar = any(isinstance(callback, FrameProgressBar) for callback in callbacks)
    defaults = {"logger": False, "max_epochs": -1, "enable_checkpointing": False, "num_sanity_val_steps": 1}
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_progress_bar=has_bar, enable_model_summary=False,
        log_every_n_steps=1, **(defaults | kwargs),
    )  # fmt: skip


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80, color_system=None)


@pytest.fixture
def plain() -> Console:
    return Console(file=io.StringIO(), width=80)


def output(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---- FrameBudget


@pytest.mark.parametrize(("frames", "expected"), [(96, 96), (100, 112), (160, 160), (400, 400)])
def test_training_ends_with_the_rollout_that_spends_the_budget(frames: int, expected: int) -> None:
    model, trainer = Toy(), make_trainer(FrameBudget())
    trainer.fit(model, datamodule=Data(frames))
    assert model.frames == expected
    assert trainer.callback_metrics["val/return"] == 7.0


def test_a_spent_budget_trains_no_further() -> None:
    model = Toy()
    model.frames = 96
    make_trainer(FrameBudget()).fit(model, datamodule=Data(96))
    assert model.frames == 96


# ---- DivergenceReport


def test_divergence_is_tagged(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, str] = {}
    monkeypatch.setattr(MLflowLogger, "set_tag", lambda self, name, value: tags.update({name: value}))
    trainer = make_trainer(logger=MLflowLogger())
    DivergenceReport().on_exception(trainer, Toy(), RuntimeError("something else"))
    assert tags == {}
    DivergenceReport().on_exception(trainer, Toy(), DivergedError("loss/total is nan at frame 64"))
    assert tags == {"status": "diverged", "diverged": "loss/total is nan at frame 64"}


# ---- FrameProgressBar


def test_progress_names_frames_speed_time_left_and_returns() -> None:
    learner = Toy()
    learner.frames = 1_204_000
    assert progress_text(learner, 4_000_000) == "1.20M/4.00M frames"
    learner.rollout_metrics = {"time/frames_per_second": 1345.4, "train/return_episode_1": 1.0}
    assert progress_text(learner, 4_000_000) == "1.20M/4.00M frames  1,345/s  0:34:38 left  return 1.0"


def test_bar_on_a_terminal(terminal: Console) -> None:
    trainer = make_trainer(FrameBudget(), FrameProgressBar(console=terminal))
    trainer.fit(Toy(), datamodule=Data(200))
    text = output(terminal)
    last = [line for line in text.splitlines() if "1,345/s" in line][-1]
    assert "train ━━━━━━━━ 208/200 frames  1,345/s  0:00:00 left  return 1.2 2.5" in last
    assert "[bracket] 16\n" in text
    assert "Epoch" not in text
    assert "validation 3.0" not in text


def test_one_plain_line_per_validation_elsewhere(plain: Console) -> None:
    trainer = make_trainer(FrameBudget(), FrameProgressBar(console=plain))
    trainer.fit(Toy(), datamodule=Data(200))
    lines = [line for line in output(plain).splitlines() if "bracket" not in line]
    assert lines == [
        "160/200 frames  1,345/s  0:00:00 left  return 1.2 2.5  validation 3.0 4.0",
        "208/200 frames  1,345/s  0:00:00 left  return 1.2 2.5  validation 3.0 4.0",
    ]


def test_bar_is_silent_outside_of_training(terminal: Console, plain: Console) -> None:
    for console in (terminal, plain):
        trainer = make_trainer(FrameProgressBar(console=console))
        trainer.validate(Toy(), datamodule=Data(200), verbose=False)
        trainer.test(Toy(), datamodule=Data(200), verbose=False)
        assert output(console) == ""


def test_bar_gives_the_terminal_back_after_an_exception(terminal: Console) -> None:
    class Broken(Toy):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            raise DivergedError("loss is nan")

    bar = FrameProgressBar(console=terminal)
    with pytest.raises(DivergedError):
        make_trainer(bar).fit(Broken(), datamodule=Data(200))
    assert bar._progress is None
    assert output(terminal).endswith("\x1b[?25h")


def test_disabled_bar_shows_nothing(terminal: Console) -> None:
    bar = FrameProgressBar(console=terminal)
    bar.disable()
    make_trainer(bar, max_epochs=1).fit(Toy(), datamodule=Data(200))
    assert output(terminal) == ""


# ---- AdaptationTable


def test_table_after_test_and_validate_only(plain: Console) -> None:
    trainer = make_trainer(AdaptationTable(console=plain), max_epochs=1)
    trainer.fit(Toy(), datamodule=Data(200))
    assert output(plain) == ""
    trainer.validate(Toy(), datamodule=Data(200), verbose=False)
    assert "Adaptation (validation)" in output(plain)
    assert "7.00" in output(plain)
    trainer.test(Toy(), datamodule=Data(200), verbose=False)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output(plain).splitlines() if "│" in line]
    assert rows[-7:] == [
        ["episode 1", "10.00"],
        ["episode 2", "12.00"],
        ["random", "-4.66"],
        ["within-episode memory", "16.00"],
        ["this agent, all episodes", "22.00 ± 0.50"],
        ["Bayes-optimal", "37.21"],
        ["task known", "44.29"],
    ]


def test_table_shows_success_where_it_is_known(plain: Console) -> None:
    returns = {"test/return_episode_1": 1.0, "test/return_episode_2": 2.0}
    table = adaptation_table(returns | {"test/success_episode_1": 0.25, "test/success_episode_2": 1.0}, "test", {})
    assert table is not None
    plain.print(table)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output(plain).splitlines() if "│" in line]
    assert rows[-3:-1] == [["episode 1", "1.00", "25.0%"], ["episode 2", "2.00", "100.0%"]]


def test_no_table_without_returns() -> None:
    assert adaptation_table({"test/loss": 1.0}, "test", LANDMARKS) is None


@pytest.mark.parametrize("uri", [None, "http://user:secret@tracking:5000/"])
def test_summary_names_places_and_next_commands(
    plain: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MLflowLogger, "_started", lambda self: SimpleNamespace(client=None))
    logger = MLflowLogger(tracking_uri=uri)
    logger._run_id, logger._experiment_id = "abc", "1"
    last, checkpoints = ModelCheckpoint(filename="last"), ModelCheckpoint(monitor="val/return")
    last.best_model_path = "last.ckpt"
    checkpoints.best_model_path = str(tmp_path / "runs/hyperrl/abc/checkpoints/best.ckpt")
    trainer = make_trainer(last, checkpoints, logger=logger, enable_checkpointing=True)
    AdaptationTable(console=plain).summary(trainer)
    ui = (
        "http://***@tracking:5000/#/experiments/1/runs/abc"
        if uri
        else "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
    )
    assert output(plain).splitlines() == [
        "run         runs/hyperrl/abc",
        "config      runs/hyperrl/abc/config.yaml",
        "checkpoint  runs/hyperrl/abc/checkpoints/best.ckpt",
        "",
        "Next:",
        f"  {ui}",
        "  hyperrl validate --ckpt_path runs/hyperrl/abc/checkpoints/best.ckpt",
        "  hyperrl fit --config experiment/gridnavi_rnn_hn",
    ]


def test_summary_without_mlflow_is_silent(plain: Console) -> None:
    AdaptationTable(console=plain).summary(make_trainer())
    assert output(plain) == ""
