"""What is logged reaches MLflow exactly once, whatever is killed, resumed or away."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from mlflow.tracking import MlflowClient
from torch.utils.data import DataLoader

import hyperrl
from hyperrl import cli
from hyperrl.errors import TrackingError
from hyperrl.run_tags import config_tags, version_tags
from hyperrl.tracking import MLflowLogger, SystemMetrics, TrackingState

MakeLogger = Callable[..., MLflowLogger]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: MLflow takes seconds to create one."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def make(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> MakeLogger:
    def make_logger(**kwargs: Any) -> MLflowLogger:
        arguments = {"tracking_uri": store, "save_dir": str(tmp_path), "experiment_name": request.node.name}
        return MLflowLogger(**(arguments | kwargs))

    return make_logger


@pytest.fixture
def dead_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A port that nothing listens on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def lines(directory: Path) -> list[tuple[int, int, str, float]]:
    """All metrics of metrics.jsonl, sorted."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return sorted((r["step"], r["timestamp"], k, float(v)) for r in records for k, v in r["metrics"].items())


def history(logger: MLflowLogger) -> list[tuple[int, int, str, float]]:
    """All metrics that MLflow has of the run, sorted."""
    client, run_id = MlflowClient(logger.tracking_uri), logger.run_id
    names = client.get_run(run_id).data.metrics
    return sorted(
        (m.step, m.timestamp, m.key, m.value) for name in names for m in client.get_metric_history(run_id, name)
    )


def steps(logger: MLflowLogger, name: str = "x") -> list[int]:
    return [step for step, _, key, _ in history(logger) if key == name]


def log_steps(logger: MLflowLogger, *frames: int) -> None:
    for step in frames:
        logger.log_metrics({"x": step / 7, "y": -step}, step=step)


# ---- start


def test_nothing_is_created_before_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    logger = MLflowLogger()
    assert isinstance(logger, MLFlowLogger)
    assert logger.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert (logger.save_dir, logger.name) == ("runs", "hyperrl")
    logger.flush()
    logger.finalize()
    assert list(tmp_path.iterdir()) == []


def test_environment_variable_is_the_default_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert MLflowLogger().tracking_uri == "http://tracking:5000"
    assert MLflowLogger(tracking_uri="http://other:5000").tracking_uri == "http://other:5000"


def test_first_use_creates_run_and_directory(make: MakeLogger, tmp_path: Path, store: str) -> None:
    logger = make(run_name="first", tags={"note": "hello"})
    assert logger.run_dir == tmp_path / logger.name / logger.run_id
    run = MlflowClient(store).get_run(logger.run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["note"]) == ("first", "RUNNING", "hello")
    assert run.info.artifact_uri.startswith(str(tmp_path / "artifacts"))
    assert make().run_id != logger.run_id


def test_server_away_at_start_is_one_clear_line(make: MakeLogger, dead_uri: str, tmp_path: Path) -> None:
    logger = make(tracking_uri=dead_uri.replace("//", "//user:secret@"))
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI") as error:
        _ = logger.experiment
    assert dead_uri.removeprefix("http://") in str(error.value)
    assert "Connection refused" in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrackingError):
        make(tracking_uri=dead_uri).resume({"run_id": "a" * 32, "offset": 0, "step": 0})


def test_deleted_experiment_is_named(make: MakeLogger, store: str) -> None:
    client = MlflowClient(store)
    client.delete_experiment(make().experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        _ = make().experiment


def test_mlflow_is_told_not_to_wait_for_minutes(make: MakeLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    _ = make().experiment
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


def test_away_server_is_no_wrong_input_of_the_command_line(
    make: MakeLogger, dead_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run", lambda args: make(tracking_uri=dead_uri).experiment)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["hyperrl", "fit"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == cli.TRACKING_ERROR == 3
    assert capsys.readouterr().err.startswith("hyperrl: error: MLflow cannot be used at")


# ---- metrics


def test_metrics_wait_in_the_file_until_flushed(make: MakeLogger) -> None:
    logger = make()
    log_steps(logger, 64, 128)
    logger.log_metrics({"text": "dropped"}, step=128)  # type: ignore[dict-item]
    assert len((logger.run_dir / "metrics.jsonl").read_text().splitlines()) == 2
    assert history(logger) == []
    logger.flush()
    assert history(logger) == lines(logger.run_dir)
    assert steps(logger) == [64, 128]


def test_names_and_values_that_mlflow_or_json_lack(make: MakeLogger) -> None:
    logger = make()
    logger.log_metrics({"a (b)//c": torch.tensor(1.5), "bad": math.nan, "large": math.inf}, step=1)
    logger.flush()
    metrics = {name: value for _, _, name, value in history(logger)}
    assert metrics["a _b_/c"] == 1.5
    assert math.isnan(metrics["bad"])
    assert metrics["large"] > 1e308
    json.loads((logger.run_dir / "metrics.jsonl").read_text(), parse_constant=pytest.fail)


def test_more_metrics_than_one_call_takes(make: MakeLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make()
    logger.log_metrics({f"wide/{i}": float(i) for i in range(1500)}, step=1)
    for step in range(2, 400):
        logger.log_metrics({"a": 0.5, "b": 1.5, "c": 2.5}, step=step)
    client = logger._outbox.client
    log_batch, calls = client.log_batch, []

    def fails_once(run_id: str, metrics: list[Any]) -> None:
        calls.append(len(metrics))
        if len(calls) == 4:
            raise OSError("connection reset")
        log_batch(run_id, metrics=metrics)

    monkeypatch.setattr(client, "log_batch", fails_once)
    logger.flush()
    assert steps(logger, "b")[-1] == 334
    logger.flush()
    assert calls == [1000, 500, 999, 195, 195]
    assert len(client.get_run(logger.run_id).data.metrics) == 1503
    assert [m.step for m in client.get_metric_history(logger.run_id, "b")] == list(range(2, 400))


def test_sending_again_changes_nothing(make: MakeLogger) -> None:
    logger = make()
    log_steps(logger, 1, 2, 3)
    logger.log_metrics({"x": math.nan}, step=4)
    logger.flush()
    before = history(logger)
    logger._outbox.file.mark(sent=0)
    log_steps(logger, 5)
    logger.flush()
    assert len(history(logger)) == len(before) + 2 == len(lines(logger.run_dir)) == 9


# ---- resume


def checkpoint(logger: MLflowLogger) -> dict[str, Any]:
    """Save a checkpoint as Lightning does and return what it holds of the logger."""
    state = logger.state()
    logger.after_save_checkpoint(ModelCheckpoint())
    return state


def test_killed_run_logs_nothing_twice_and_loses_nothing(make: MakeLogger) -> None:
    logger = make()
    log_steps(logger, 10, 20)
    state = checkpoint(logger)
    log_steps(logger, 30, 40)
    with (logger.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "time')  # killed while it wrote
    del logger

    resumed = make()
    resumed.resume(state)
    assert resumed.run_id == state["run_id"]
    log_steps(resumed, 30, 40, 50)
    resumed.finalize("success")
    assert steps(resumed) == steps(resumed, "y") == [10, 20, 30, 40, 50]
    assert history(resumed) == lines(resumed.run_dir)


def test_killed_before_the_checkpoint_was_flushed(make: MakeLogger) -> None:
    logger = make()
    log_steps(logger, 10, 20)
    state = logger.state()
    log_steps(logger, 30)
    resumed = make()
    resumed.resume(state)
    assert steps(resumed) == [10, 20]
    log_steps(resumed, 30)
    resumed.flush()
    assert steps(resumed) == [10, 20, 30]


def test_killed_between_sending_and_noting_it(make: MakeLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make()
    log_steps(logger, 10)
    state = checkpoint(logger)
    log_steps(logger, 20, 30)
    mark = logger._outbox.file.mark
    monkeypatch.setattr(logger._outbox.file, "mark", lambda **lengths: "sent" in lengths or mark(**lengths))
    logger.flush()  # as `finalize` does at Ctrl+C; the second, impatient signal kills it
    assert steps(logger) == [10, 20, 30]
    resumed = make()
    resumed.resume(state)
    log_steps(resumed, 20, 30, 40)
    resumed.finalize()
    assert steps(resumed) == [10, 20, 30, 40]
    assert history(resumed) == lines(resumed.run_dir)


def test_metrics_sent_after_the_checkpoint_are_kept(make: MakeLogger) -> None:
    logger = make()
    log_steps(logger, 10, 20)
    state = checkpoint(logger)
    logger.log_metrics({"test/return": 1.0}, step=20)
    log_steps(logger, 30, 40)
    logger.finalize("failed")  # Ctrl+C or an exception: all was sent
    kept = lines(logger.run_dir)

    resumed = make()
    resumed.resume(state)
    assert MlflowClient(resumed.tracking_uri).get_run(resumed.run_id).info.status == "RUNNING"
    resumed.log_metrics({"test/return": 1.0}, step=20)
    log_steps(resumed, 30)
    early = checkpoint(resumed)  # a checkpoint between what was kept
    log_steps(resumed, 40, 50)
    again = make()
    again.resume(early)
    log_steps(again, 40, 50)
    again.finalize()
    assert steps(again) == [10, 20, 30, 40, 50]
    assert steps(again, "test/return") == [20]
    assert history(again) == lines(again.run_dir)
    assert set(kept) < set(history(again))


def test_older_checkpoint_branches_into_a_child_run(make: MakeLogger, caplog: pytest.LogCaptureFixture) -> None:
    logger = make()
    log_steps(logger, 10)
    best = checkpoint(logger)
    log_steps(logger, 20)
    checkpoint(logger)
    logger.finalize()
    before = history(logger)

    child = make()
    child.resume(best)
    assert "newer checkpoint" in caplog.text
    tags = MlflowClient(child.tracking_uri).get_run(child.run_id).data.tags
    assert tags["resumed_from"] == tags["mlflow.parentRunId"] == logger.run_id
    assert steps(child) == [10]
    log_steps(child, 20)
    grandchild_state = checkpoint(child)
    assert steps(child) == [10, 20]
    assert history(logger) == before == lines(logger.run_dir)

    again = make()
    again.resume(grandchild_state)
    assert again.run_id == child.run_id


def test_run_that_is_gone_is_replaced(make: MakeLogger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {"run_id": "f" * 32, "offset": 100, "step": 7}
    unknown = make()
    unknown.resume(state)
    assert "does not know it" in caplog.text
    tags = MlflowClient(unknown.tracking_uri).get_run(unknown.run_id).data.tags
    assert tags["resumed_from"] == "f" * 32
    assert "mlflow.parentRunId" not in tags

    logger = make()
    log_steps(logger, 10)
    state = checkpoint(logger)
    elsewhere = make(save_dir=str(tmp_path / "elsewhere"))
    elsewhere.resume(state)
    assert "not there or too short" in caplog.text
    assert elsewhere.run_id != logger.run_id


def test_resume_needs_a_fresh_logger_and_a_state(make: MakeLogger) -> None:
    logger = make()
    logger.resume({})
    state = logger.state()
    assert state == {"run_id": logger.run_id, "offset": 0, "step": 0}
    with pytest.raises(RuntimeError, match="had started"):
        logger.resume(state)


# ---- a server that goes away


def test_server_away_during_the_run(make: MakeLogger, dead_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = make()
    log_steps(logger, 10)
    client, logger._outbox.client = logger._outbox.client, MlflowClient(dead_uri)
    start = time.monotonic()
    for step in (20, 30, 40):
        log_steps(logger, step)
        checkpoint(logger)
        logger.flush()
    logger.set_status("diverged")
    assert time.monotonic() - start < 30
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING and "away" in record.message]
    assert len(warnings) == 1
    assert "metrics.jsonl" in caplog.text
    assert len(lines(logger.run_dir)) == 8

    logger._outbox.client = client
    log_steps(logger, 50)
    logger.flush()
    assert steps(logger) == [10, 20, 30, 40, 50]
    assert history(logger) == lines(logger.run_dir)
    assert client.get_run(logger.run_id).data.tags["status"] == "diverged"


def test_waiting_for_a_server_is_a_small_part_of_the_time(make: MakeLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make()
    clock, tries = [0.0], []

    def hang(*args: Any, **kwargs: Any) -> None:
        clock[0] += 20.0
        tries.append(clock[0])
        raise OSError("timed out")

    _ = logger.experiment
    monkeypatch.setattr(logger._outbox.client, "log_batch", hang)
    monkeypatch.setattr("hyperrl.outbox.time", SimpleNamespace(monotonic=lambda: clock[0], time_ns=time.time_ns))
    for step in range(100):
        clock[0] += 10.0
        log_steps(logger, step)
        checkpoint(logger)
    assert len(tries) == 5
    logger.flush()
    logger.finalize()
    assert len(tries) == 7


def test_server_away_at_the_end(make: MakeLogger, dead_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = make()
    log_steps(logger, 10)
    state = checkpoint(logger)
    log_steps(logger, 20)
    logger._outbox.client = MlflowClient(dead_uri)
    logger.finalize("success")
    assert str(logger.run_dir / "metrics.jsonl") in caplog.records[-1].message
    resumed = make()
    resumed.resume(state)
    log_steps(resumed, 20)
    resumed.finalize()
    assert steps(resumed) == [10, 20]


def test_refused_call_does_not_hold_up_metrics(make: MakeLogger, caplog: pytest.LogCaptureFixture) -> None:
    logger = make()
    logger.set_tag("", "a tag needs a name")
    log_steps(logger, 10)
    logger.flush()
    assert "refused" in caplog.text
    assert steps(logger) == [10]


# ---- configuration


CONFIG = {
    "seed_everything": 3,
    "model": {"name": "splagger", "ppo": {"lr": 0.1}, "text": "z" * 400},
    "data": {"env": {"class_path": "hyperrl.envs.TMaze", "init_args": {"length": 5}}},
    "trainer": {"logger": {"init_args": {"run_name": "a"}}, "callbacks": [{"class_path": "A"}, {"class_path": "B"}]},
}


def test_configuration_becomes_params_tags_and_artifact(make: MakeLogger) -> None:
    logger = make(tags={"model": "mine"})
    logger.log_config(CONFIG, "model: splagger\n", tags={"env": "T-Maze"})
    logger.log_hyperparams({"ignored": 1})
    client = MlflowClient(logger.tracking_uri)
    run = client.get_run(logger.run_id)
    params, tags = run.data.params, run.data.tags
    assert params["model.ppo.lr"] == "0.1"
    assert params["data.env.init_args.length"] == "5"
    assert params["trainer.callbacks.1.class_path"] == "B"
    assert params["model.text"] == "z" * 250
    assert params["group"] == tags["group"]
    assert params["identity"] == tags["identity"]
    assert "ignored" not in params
    assert (tags["env"], tags["model"], tags["seed"]) == ("T-Maze", "mine", "3")
    assert tags["group"].startswith("TMaze-splagger-")
    assert {"version.torch", "version.torchrl", "version.lightning", "version.hyperrl"} <= set(tags)
    assert (logger.run_dir / "config.yaml").read_text() == "model: splagger\n"
    assert [artifact.path for artifact in client.list_artifacts(logger.run_id)] == ["config.yaml"]


def test_commit_is_that_of_the_code_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repository(name: str) -> tuple[Path, str]:
        git = ["git", "-C", str(tmp_path / name), "-c", "user.name=a", "-c", "user.email=a@b"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(name)
        for args in (["init", "-q"], ["add", "."], ["commit", "-qm", name]):
            subprocess.run([*git, *args], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        return tmp_path / name, head

    (code, of_code), (configs, of_configs) = repository("code"), repository("configs")
    monkeypatch.chdir(configs)
    monkeypatch.setattr(hyperrl, "__file__", str(code / "__init__.py"))
    assert version_tags()["git_commit"] == of_code
    (code / "__init__.py").write_text("changed")
    assert version_tags()["git_commit"] == f"{of_code}-dirty"
    installed = configs / "site-packages"  # inside of a repository that does not hold it
    installed.mkdir()
    monkeypatch.setattr(hyperrl, "__file__", str(installed / "__init__.py"))
    assert version_tags()["git_commit"] == of_configs
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hyperrl, "__file__", str(tmp_path / "__init__.py"))
    assert "git_commit" not in version_tags()


def test_group_is_all_but_the_seed() -> None:
    def group(**changes: Any) -> str:
        return config_tags({**CONFIG, **changes})["group"]

    assert group() == group(seed_everything=4) == group(ckpt_path="x", config=["a.yaml"])
    assert group() == group(trainer={**CONFIG["trainer"], "logger": {"init_args": {"run_name": "b"}}})
    assert group() != group(model={"name": "splagger", "ppo": {"lr": 0.2}})
    assert group() != group(trainer={"max_epochs": 3})


def test_identity_is_all_but_where_things_are() -> None:
    def identity(**changes: Any) -> str:
        return config_tags({**CONFIG, **changes})["identity"]

    assert identity() == identity(ckpt_path="x", config=["a.yaml"], weights_only=True)
    assert identity() == identity(trainer={**CONFIG["trainer"], "logger": {"init_args": {"run_name": "b"}}})
    assert identity() != identity(seed_everything=4)
    assert identity() != identity(model={"name": "splagger", "ppo": {"lr": 0.2}})
    assert identity().startswith("v2-")
    assert len(identity()) == 35


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("trainer", "enable_progress_bar", False), ("trainer", "enable_model_summary", True),
        ("trainer", "enable_autolog_hparams", False), ("trainer", "log_every_n_steps", 5),
        ("trainer", "profiler", "simple"), ("trainer", "default_root_dir", "elsewhere"),
        ("checkpoint", "dirpath", "elsewhere"), ("checkpoint", "filename", "{epoch}"),
        ("checkpoint", "auto_insert_metric_name", True), ("checkpoint", "verbose", True),
    ],
)  # fmt: skip
def test_what_is_shown_and_where_it_is_written_tells_no_runs_apart(part: str, key: str, value: Any) -> None:
    one, other = (config_tags({**CONFIG, part: {"max_epochs": 3, key: found}}) for found in (None, value))
    assert one == other


@pytest.mark.parametrize(
    ("part", "key"),
    [("trainer", "precision"), ("checkpoint", "monitor"), ("checkpoint", "mode"), ("checkpoint", "save_top_k")],
)
def test_what_decides_which_checkpoint_is_tested_tells_runs_apart(part: str, key: str) -> None:
    one, other = (config_tags({**CONFIG, part: {key: value}}) for value in ("a", "b"))
    assert one["identity"] != other["identity"]
    assert one["group"] != other["group"]


def test_changed_params_of_a_resumed_run_are_a_tag(make: MakeLogger) -> None:
    logger = make()
    logger.log_hyperparams({"lr": 0.1, "new": {"a": 1}})
    resumed = make()
    resumed.resume(logger.state())
    resumed.log_hyperparams({"lr": 0.2, "more": 2})
    data = MlflowClient(logger.tracking_uri).get_run(logger.run_id).data
    assert data.params == {"lr": "0.1", "new.a": "1", "more": "2"}
    assert data.tags["changed_on_resume"] == "lr: 0.1 -> 0.2"


# ---- with a trainer


class Toy(LightningModule):
    """Sixteen frames a batch; dies at a given frame."""

    def __init__(self, dies_at: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.frames, self.dies_at = 0, dies_at

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.frames += 16
        if self.frames == self.dies_at:
            raise RuntimeError("boom")
        loss = self.layer(batch).square().mean()
        self.log_dict({"train/loss": loss, "step": float(self.frames)}, batch_size=1)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log_dict({"val/return": float(self.frames % 96), "step": float(self.frames)}, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["frames"] = self.frames

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.frames = checkpoint["frames"]


def fit(logger: MLflowLogger, model: Toy, ckpt_path: Path | None = None) -> ModelCheckpoint:
    checkpoints = ModelCheckpoint(monitor="val/return", mode="max", save_top_k=2)
    # Not save_last: it saves only when another checkpoint is saved, so not while the return does not improve.
    last = ModelCheckpoint(filename="last", enable_version_counter=False)
    trainer = Trainer(
        logger=logger, callbacks=[checkpoints, last, TrackingState()], max_epochs=4, accelerator="cpu",
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(torch.ones(3, 1), batch_size=1)
    trainer.fit(model, loader, DataLoader(torch.ones(1, 1)), ckpt_path=ckpt_path)
    return checkpoints


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "exception"])
def test_training_dies_and_resumes(make: MakeLogger, killed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make()
    if killed:
        monkeypatch.setattr(logger, "finalize", lambda status: None)
    with pytest.raises(RuntimeError, match="boom"):
        fit(logger, Toy(dies_at=144))
    last = logger.run_dir / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["frames"] == 96
    assert history(logger)[-1][0] == (96 if killed else 128)

    resumed = make()
    resumed.resume(saved["tracking"])
    checkpoints = fit(resumed, Toy(), last)
    assert Path(checkpoints.best_model_path).parent.samefile(logger.run_dir / "checkpoints")
    assert steps(resumed, "train/loss") == list(range(16, 193, 16))
    assert steps(resumed, "val/return") == [48, 96, 144, 192]
    assert history(resumed) == lines(resumed.run_dir)
    assert MlflowClient(resumed.tracking_uri).get_run(resumed.run_id).info.status == "FINISHED"


def test_interrupted_run_is_killed_in_mlflow(make: MakeLogger) -> None:
    logger = make()
    _ = logger.experiment
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        logger.finalize("failed")
    assert MlflowClient(logger.tracking_uri).get_run(logger.run_id).info.status == "KILLED"


def test_other_ranks_touch_nothing(make: MakeLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = make()
    logger.resume({"run_id": "a" * 32, "offset": 0, "step": 0})
    log_steps(logger, 1)
    logger.log_config(CONFIG, "")
    logger.set_status("diverged")
    logger.finalize()
    assert logger.experiment.anything() is None
    assert list(tmp_path.iterdir()) == []


def test_system_metrics_start_and_stop(make: MakeLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    logger = make()
    trainer = Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    callback = SystemMetrics()
    callback.on_fit_start(trainer, Toy())
    client = MlflowClient(logger.tracking_uri)
    deadline = time.monotonic() + 10
    while not client.get_run(logger.run_id).data.metrics and time.monotonic() < deadline:
        time.sleep(0.1)
    logger._outbox.away = True
    callback._monitor._process = Thread()  # as after a server went away: ended
    callback.on_validation_end(trainer, Toy())
    assert not callback._monitor._process.is_alive()
    logger._outbox.away = False
    callback.on_validation_end(trainer, Toy())
    assert callback._monitor._process.is_alive()
    callback._stop()
    assert "system/cpu_utilization_percentage" in client.get_run(logger.run_id).data.metrics
    assert callback._monitor is None


def test_system_metrics_never_stop_a_run(
    make: MakeLogger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(logger=make(), accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    monkeypatch.setitem(sys.modules, "mlflow.system_metrics.system_metrics_monitor", None)
    callback = SystemMetrics()
    callback.on_fit_start(trainer, Toy())
    callback.on_exception(trainer, Toy(), RuntimeError())
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("no system metrics: ")
