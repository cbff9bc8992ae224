"""A run can be killed and resumed without a trace, and a checkpoint alone is enough to go on or to evaluate."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.utils import _pytree as pytree

import hyperrl
from hyperrl import cli
from hyperrl.data.datamodule import MetaDataModule

pytestmark = tiny.QUIET
ROLLOUT, EPOCH, TOTAL = 60, 180, 1440
PROCESS_ARGS = (
    "--seed_everything=5", "--trainer.accelerator=cpu", "--data.num_envs=4", "--data.steps_per_rollout=15",
    f"--data.frames={TOTAL}", f"--data.rollouts_per_epoch={EPOCH // ROLLOUT}", "--data.val_tasks=8",
    "--data.test_tasks=8", "--model.ppo.lr=0.003", "--model.ppo.lr_schedule=linear", *tiny.MODEL_ARGS,
)  # fmt: skip
Sample = tuple[int, str, float]


@dataclass
class Run:
    """What a finished run has left."""

    directory: Path
    store: Path
    errors: str

    @property
    def id(self) -> str:
        (directory,) = (self.directory / "runs" / "hyperrl").iterdir()
        return directory.name

    @property
    def history(self) -> list[Sample]:
        """All metrics in the order in which they were logged, timings aside."""
        return [sample for sample in samples(self.directory) if not sample[1].startswith("time/")]

    @property
    def sent(self) -> list[Sample]:
        """All metrics that are in MLflow, timings and the use of the machine aside."""
        query = "select step, key, value from metrics where run_uuid = ? and key not like 'system/%'"
        with contextlib.closing(sqlite3.connect(self.store)) as connection:
            rows = connection.execute(query, [self.id]).fetchall()
        return sorted(row for row in rows if not row[1].startswith("time/"))

    @property
    def checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint."""
        return torch.load(last_checkpoint(self.directory), weights_only=True)


def samples(directory: Path) -> list[Sample]:
    """What `metrics.jsonl` of the only run under a directory holds; nothing before it exists."""
    files = list(directory.glob("runs/hyperrl/*/metrics.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines(True) if line[-1:] == "\n"]
    return [(record["step"], name, value) for record in records for name, value in record["metrics"].items()]


def last_checkpoint(directory: Path) -> Path:
    """The newest checkpoint of the only run under a directory; a path of nothing before it exists."""
    return next(directory.glob("runs/hyperrl/*/checkpoints/last.ckpt"), directory / "none")


def start(directory: Path, store: Path, *args: str) -> subprocess.Popen[str]:
    """The real command line in a process of its own."""
    directory.mkdir(exist_ok=True)
    source = str(Path(hyperrl.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    changes = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    command = [sys.executable, "-m", "hyperrl.cli", *args]
    return subprocess.Popen(
        command, cwd=directory, env={**os.environ, **changes}, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    return errors


def kill_in_mid_epoch(process: subprocess.Popen[str], directory: Path) -> None:
    """Kills a run that has a checkpoint, and has logged something after it."""
    while process.poll() is None:
        steps = [step for step, *_ in samples(directory)]
        if steps and steps[-1] > 2 * EPOCH and steps[-1] % EPOCH and last_checkpoint(directory).exists():
            process.send_signal(signal.SIGKILL)
            process.communicate()
        time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL, "it had ended before it could be killed"
    assert samples(directory)[-1][0] < TOTAL


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """An uninterrupted run, and one that was killed and resumed from its last checkpoint."""
    root = tmp_path_factory.mktemp("resume")
    store, killed, whole = root / "mlflow.db", root / "killed", root / "whole"
    process = start(killed, store, "fit", *PROCESS_ARGS)
    kill_in_mid_epoch(process, killed)
    errors = finish(start(killed, store, "fit", "--ckpt_path", str(last_checkpoint(killed))))
    return Run(whole, store, finish(start(whole, store, "fit", *PROCESS_ARGS))), Run(killed, store, errors)


def assert_identical(one: Any, other: Any) -> None:
    """Bit for bit, in nested containers."""
    leaves, structure = pytree.tree_flatten(one)
    others, structure_of_other = pytree.tree_flatten(other)
    assert structure == structure_of_other
    for a, b in zip(leaves, others, strict=True):
        same = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        assert same


class TestKilledAndResumed:
    @pytest.mark.parametrize("entry", ["state_dict", "optimizer_states", "learner", "MetaDataModule"])
    def test_final_state_is_that_of_the_uninterrupted_run(self, pair: tuple[Run, Run], entry: str) -> None:
        whole, resumed = (run.checkpoint[entry] for run in pair)
        assert whole
        assert_identical(resumed, whole)

    def test_metric_history_is_that_of_the_uninterrupted_run(self, pair: tuple[Run, Run]) -> None:
        whole, resumed = pair
        assert resumed.history == whole.history
        updates = [step for step, name, _ in whole.history if name == "loss/total"]
        assert updates == list(range(ROLLOUT, TOTAL + 1, ROLLOUT))
        assert {"val/return", "test/return", "ppo/first_kl"} <= {name for _, name, _ in whole.history}

    def test_mlflow_has_every_metric_once(self, pair: tuple[Run, Run]) -> None:
        for run in pair:
            assert run.sent == sorted(run.history)
            assert len({sample[:2] for sample in run.sent}) == len(run.sent)

    def test_the_same_mlflow_run_goes_on(self, pair: tuple[Run, Run]) -> None:
        ids = {run.id for run in pair}  # each directory holds a single run
        with contextlib.closing(sqlite3.connect(pair[0].store)) as connection:
            rows = connection.execute("select run_uuid, status from runs").fetchall()
        assert dict(rows) == dict.fromkeys(ids, "FINISHED")
        assert len(ids) == 2

    def test_a_checkpoint_alone_reproduces_the_logged_validation(self, pair: tuple[Run, Run], tmp_path: Path) -> None:
        for run in pair:
            result = cli.run(["validate", "--ckpt_path", str(last_checkpoint(run.directory))])
            metrics = result.trainer.callback_metrics
            logged = {name: value for step, name, value in run.history if step == TOTAL and name.startswith("val/")}
            assert len(logged) > 5
            assert {name: torch.tensor(value) for name, value in logged.items()} == dict(metrics)
        assert not list(tmp_path.iterdir())
        assert sum(1 for run in pair for _ in (run.directory / "runs" / "hyperrl").iterdir()) == 2

    def test_nothing_but_progress_is_on_the_console(self, pair: tuple[Run, Run]) -> None:
        for run in pair:
            assert [line for line in run.errors.splitlines() if "frames" not in line and "mlflow" not in line] == []

    def test_replay_was_exact_throughout(self, pair: tuple[Run, Run]) -> None:
        for run in pair:
            assert max(abs(value) for _, name, value in run.history if name == "ppo/first_kl") < 1e-6
            assert max(value for _, name, value in run.history if name == "ppo/first_max_log_prob_change") < 1e-4


ARGS = (
    "--seed_everything=0", "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.num_envs=4",
    "--data.steps_per_rollout=20", "--data.rollouts_per_epoch=3", "--data.val_tasks=64", "--data.test_tasks=64",
    "--model.ppo.lr=0.01", *tiny.MODEL_ARGS,
)  # fmt: skip


@dataclass
class Trained:
    """A run of 400 frames that ended in the middle of its second epoch."""

    cli: cli.HyperRLCLI
    last: Path
    scores: dict[str, float]

    def resume(self, *args: str) -> cli.HyperRLCLI:
        return cli.run(["fit", "--ckpt_path", str(self.last), *args], test=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    directory = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(directory):
        result = cli.run(["fit", *ARGS, "--data.frames=400"], test=False)
    last = directory / "checkpoints" / "last.ckpt"
    scores = {path: score.item() for path, score in result.trainer.checkpoint_callback.best_k_models.items()}
    return Trained(result, last, {**scores, str(last): result.trainer.callback_metrics["val/return"].item()})


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


class TestEvaluation:
    def test_checkpoints_load_without_trusting_them(self, trained: Trained) -> None:
        assert len(trained.scores) == 3
        for path in trained.scores:
            checkpoint = torch.load(path, weights_only=True)
            assert {"state_dict", "optimizer_states", "learner", "config"} <= set(checkpoint)

    def test_a_checkpoint_alone_reproduces_its_validation_exactly(self, trained: Trained, tmp_path: Path) -> None:
        for path, score in trained.scores.items():
            result = cli.run(["validate", "--ckpt_path", path])
            assert result.trainer.callback_metrics["val/return"].item() == score
        assert not list(tmp_path.iterdir())

    def test_test_is_reproducible_and_draws_other_tasks(self, trained: Trained, tmp_path: Path) -> None:
        one, two, val = (
            {name.partition("/")[2]: value.item() for name, value in result.trainer.callback_metrics.items()}
            for result in (cli.run([stage, f"--ckpt_path={trained.last}"]) for stage in ("test", "test", "validate"))
        )
        assert one == two
        assert set(one) == set(val)
        assert one != val
        assert not list(tmp_path.iterdir())

    def test_flags_win_in_evaluation(self, trained: Trained) -> None:
        result = cli.run(["validate", "--ckpt_path", str(trained.last), "--data.eval_episodes_per_task=2"])
        assert "val/return_episode_2" in result.trainer.callback_metrics
        assert "val/return_episode_3" not in result.trainer.callback_metrics


class TestResume:
    def test_the_configuration_is_the_checkpoints(self, trained: Trained) -> None:
        resumed = trained.resume()
        assert resumed.model.config == trained.cli.model.config
        assert resumed.datamodule.steps_per_rollout == 20

    def test_a_spent_budget_trains_no_further(self, trained: Trained) -> None:
        resumed = trained.resume()
        assert resumed.model.frames == 400
        assert_identical(dict(resumed.model.state_dict()), dict(trained.cli.model.state_dict()))

    def test_a_longer_budget_continues_as_if_it_had_been_meant(self, trained: Trained, tmp_path: Path) -> None:
        resumed = trained.resume("--data.frames=720")
        whole = cli.run(["fit", *ARGS, "--data.frames=720"], test=False)
        assert resumed.model.frames == whole.model.frames == 720
        assert_identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
        assert_identical(
            resumed.trainer.optimizers[0].state_dict()["state"], whole.trainer.optimizers[0].state_dict()["state"]
        )

    def test_flags_win_over_the_checkpoint(self, trained: Trained) -> None:
        flags = ("--model.ppo.lr=0.5", "--model.ppo.eps=0.125", "--model.ppo.clip=0.25", "--model.ppo.gamma=0.5")
        resumed = trained.resume("--data.frames=480", *flags)
        assert resumed.model.rollout_metrics["learning_rate"] == 0.5
        groups = resumed.trainer.optimizers[0].param_groups
        assert [(group["lr"], group["eps"]) for group in groups] == [(0.5, 0.125), (0.5, 1e-8)]
        assert resumed.model.ppo_loss.clip_epsilon == 0.25
        assert resumed.model.reward_normalizer.gamma == 0.5

    def test_a_new_schedule_counts_from_the_first_frame(self, trained: Trained) -> None:
        resumed = trained.resume("--data.frames=640", "--model.ppo.lr_schedule=linear")
        assert resumed.model.rollout_metrics["learning_rate"] == 0
        again = trained.resume("--data.frames=800", "--model.ppo.lr_schedule=linear", "--trainer.max_epochs=3")
        assert again.model.rollout_metrics["learning_rate"] == pytest.approx(0.01 * (1 - 640 / 800))

    @pytest.mark.parametrize(
        "flags",
        [
            ("--data.num_envs=8",),
            ("--data.env=Grid7-15-v0",),
            ("--data.env_options.num_cells=4",),
            ("--data.episodes_per_task=2", "--data.eval_episodes_per_task=2"),
        ],
    )
    def test_other_environments_start_with_new_tasks(
        self, trained: Trained, flags: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(MetaDataModule, "teardown", lambda self, stage: None)  # keeps the stream, to look at it
        resumed = trained.resume("--data.frames=720", "--data.steps_per_rollout=60", *flags)
        assert "new tasks" in caplog.text
        env = resumed.datamodule.stream.env
        assert (env.state["task"] < env.num_cells**2).all()
        episodes = [name for name in resumed.model.rollout_metrics if name.startswith("train/return_episode_")]
        assert len(episodes) == env.episodes_per_task == resumed.datamodule.stream.returns.returns.shape[1]
        assert resumed.model.frames == 400 + 60 * env.num_envs * -(-320 // (60 * env.num_envs))


class TestRefused:
    @pytest.fixture
    def refusal(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
        def call(*args: str) -> str:
            before = sorted(tmp_path.rglob("*"))
            monkeypatch.setattr(sys, "argv", ["hyperrl", *args])
            with pytest.raises(SystemExit) as exit_:
                cli.main()
            assert exit_.value.code == 2
            output = capsys.readouterr()
            assert output.out == ""
            assert output.err.count("\n") == 1
            assert sorted(tmp_path.rglob("*")) == before
            return output.err

        return call

    @pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
    @pytest.mark.parametrize(
        "flag", ["--model.encoder.hidden_dim=16", "--model.policy.conditioning=concat", "--data.episodes_per_task=1"]
    )
    def test_a_checkpoint_of_another_model(self, trained: Trained, refusal: Any, subcommand: str, flag: str) -> None:
        error = refusal(subcommand, "--ckpt_path", str(trained.last), flag)
        assert f"--ckpt_path {trained.last} is of another model: agent." in error

    def test_a_checkpoint_of_something_else(self, refusal: Any, tmp_path: Path) -> None:
        torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
        assert "foreign.ckpt: not a checkpoint of hyperrl" in refusal("fit", "--ckpt_path", "foreign.ckpt")

    def test_a_file_that_is_no_checkpoint(self, refusal: Any, tmp_path: Path) -> None:
        (tmp_path / "text.ckpt").write_text("no checkpoint")
        assert "text.ckpt: not a readable checkpoint" in refusal("validate", "--ckpt_path=text.ckpt")

    def test_a_truncated_checkpoint(self, trained: Trained, refusal: Any, tmp_path: Path) -> None:
        whole = trained.last.read_bytes()
        (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
        assert "half.ckpt: not a readable checkpoint" in refusal("fit", "--ckpt_path=half.ckpt")

    def test_a_missing_checkpoint(self, refusal: Any) -> None:
        assert "--ckpt_path none.ckpt: no such file" in refusal("test", "--ckpt_path=none.ckpt")
