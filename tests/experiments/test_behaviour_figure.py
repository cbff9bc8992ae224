"""The picture of the behaviour at the end of training: it is there, and training does not notice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from tiny import QUIET, TOY, History, data, learner, trainer

from hyperrl.behaviour_figure import BehaviourFigure
from hyperrl.errors import ConfigError
from hyperrl.experiments.behaviour import still
from hyperrl.experiments.behaviour.recording import Recording
from hyperrl.modules.meta_ppo import MetaPPO

pytestmark = QUIET
GRID: dict[str, Any] = {"env": "GridNavi-v0", "env_options": {"num_steps": 5}, "episodes_per_task": 2}


class Logger:
    """What the callback needs of a logger: a directory, and a list of artifacts."""

    def __init__(self, folder: Path) -> None:
        self.run_dir, self.artifacts = folder, []

    def log_artifact(self, path: Path) -> None:
        assert path.is_file()
        self.artifacts.append(path.name)


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logger:
    logger = Logger(tmp_path)
    monkeypatch.setattr("hyperrl.behaviour_figure.find_logger", lambda trainer: logger)
    return logger


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without content."""

    def draw(recording: Recording, path: Path) -> None:
        for file in (path, path.with_suffix(".csv"), path.with_name(f"{path.stem}_returns.csv")):
            file.touch()

    monkeypatch.setattr(still, "draw_still", draw)


def fit(*figures: BehaviourFigure, **changes: Any) -> tuple[MetaPPO, History]:
    """Epochs of two rollouts of 80 frames: the 400 frames are spent in the third."""
    seed_everything(3, verbose=False)
    source, history = data(**{**GRID, **changes}), History()
    model = learner(source)
    trainer([history, *figures]).fit(model, source)
    return model, history


def test_last_validation_is_drawn(logger: Logger) -> None:
    model, _ = fit(BehaviourFigure(tasks=3))
    name = f"behaviour_{model.frames:010d}"
    files = [f"{name}.png", f"{name}.npz", f"{name}.csv", f"{name}_returns.csv"]
    assert logger.artifacts == files
    recording = Recording.read(logger.run_dir / files[1])
    assert recording.info["frames"] == model.frames
    assert recording["reward"].shape == (3, 10)
    assert "latent" in recording


@pytest.mark.parametrize(("every", "expected"), [(1, [160, 320, 400]), (2, [320, 400]), (0, [400])])
def test_as_often_as_asked(every: int, expected: list[int], logger: Logger, blank: None) -> None:
    fit(BehaviourFigure(every_n_validations=every, tasks=1))
    drawn = [name for name in logger.artifacts if name.endswith(".npz")]
    assert drawn == [f"behaviour_{frames:010d}.npz" for frames in expected]


@pytest.mark.parametrize("env", ["GridNavi-v0", TOY])
def test_training_does_not_notice(env: str, logger: Logger, blank: None) -> None:
    """Bit by bit: the same metrics, parameters and global random stream."""
    changes = {"env": env, "env_options": {}, "episodes_per_task": 2}
    plain, before = fit(**changes)
    state = torch.get_rng_state()
    watched, after = fit(BehaviourFigure(every_n_validations=1, tasks=2), **changes)
    assert len(logger.artifacts) == 12
    assert torch.equal(torch.get_rng_state(), state)
    assert after.untimed() == before.untimed()
    for name, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[name], value), name
    assert watched.training == plain.training


def test_failure_warns_once_and_training_goes_on(
    logger: Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no\nink")

    monkeypatch.setattr(still, "draw_still", fail)
    with caplog.at_level(logging.WARNING, "hyperrl.behaviour_figure"):
        model, _ = fit(BehaviourFigure(every_n_validations=1, tasks=1))
    assert model.frames == 400
    assert not logger.artifacts
    messages = [record.getMessage() for record in caplog.records if record.name == "hyperrl.behaviour_figure"]
    assert messages == ["no picture of the behaviour (RuntimeError: no ink); training goes on"]


def test_interrupt_is_not_hidden(logger: Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quirk V1."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(still, "draw_still", interrupt)
    figure = BehaviourFigure(every_n_validations=1, tasks=1)
    seed_everything(3, verbose=False)
    source = data(**GRID)
    model, runner = learner(source), trainer([figure])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        runner.fit(model, source)
    assert model.frames == 160


def test_validation_alone_draws_nothing(logger: Logger) -> None:
    seed_everything(3, verbose=False)
    source = data(**GRID)
    trainer([BehaviourFigure(every_n_validations=1)]).validate(learner(source), source, verbose=False)
    assert not logger.artifacts


def test_without_a_run_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(BehaviourFigure(every_n_validations=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"every_n_validations": -1}, {"tasks": 0}])
def test_wrong_arguments(arguments: dict[str, int]) -> None:
    name, value = next(iter(arguments.items()))
    with pytest.raises(ConfigError, match=f"BehaviourFigure.{name} is {value}; expected at least"):
        BehaviourFigure(**arguments)
