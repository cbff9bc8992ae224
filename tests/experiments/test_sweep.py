"""What a sweep file stands for, who may run a job, what is tried again, and what is shown."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from rich.console import Console

from hyperrl import cli, configuration
from hyperrl.errors import ConfigError, TrackingError
from hyperrl.experiments.sweep import scheduler, supervisor, table
from hyperrl.experiments.sweep.command import Session, _write, differences, select, sweep
from hyperrl.experiments.sweep.folder import Folder, State, settled
from hyperrl.experiments.sweep.ledger import DIVERGED, FINISHED, RESUME, START, Ledger, Verdict, look
from hyperrl.experiments.sweep.resolve import Resolver, resolve
from hyperrl.experiments.sweep.scheduler import Plan, Scheduler
from hyperrl.experiments.sweep.sweep_file import Job, find_sweep, read_jobs
from hyperrl.experiments.sweep.table import Board, Display, Row
from hyperrl.run_tags import flat_identity

pytestmark = tiny.QUIET
SIZES = {
    "trainer.accelerator": "cpu", "trainer.precision": "bf16-mixed",
    "data.num_envs": 4, "data.steps_per_rollout": 15, "data.frames": 120,
    "data.rollouts_per_epoch": 1, "data.val_tasks": 4, "data.test_tasks": 4, "model.encoder.hidden_dim": 8,
    "model.policy.layers": [8], "model.policy.state_embedding_dim": 8, "model.policy.latent_embedding_dim": 4,
}  # fmt: skip
TINY = {"shared": SIZES, "models": {"RNN+HN": {}}, "seeds": [1, 2]}


def write(directory: Path, content: Any) -> Path:
    path = directory / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def jobs_of(directory: Path, content: Any) -> list[Job]:
    return read_jobs(write(directory, content))


# ---- the file


def test_grid_is_sets_times_models_times_search_times_seeds(tmp_path: Path) -> None:
    sets = {"a": {"models": {"M": {}, "N": {}}}, "b": {"models": {"M": {}}, "seeds": [9], "search": {"x.y": [5]}}}
    jobs = jobs_of(tmp_path, {"name": "s", "search": {"x.y": [1, 2], "x.z": ["q"]}, "seeds": [3, 4], "sets": sets})
    names = [job.name for job in jobs]
    assert names[:3] == ["a/M y=1 z=q seed=3", "a/M y=1 z=q seed=4", "a/M y=2 z=q seed=3"]
    assert names[-1] == "b/M y=5 z=q seed=9"
    assert len(names) == len(set(names)) == 2 * 4 + 1
    assert {(job.sweep, job.label) for job in jobs} == {("s", "M"), ("s", "N")}


def test_names_say_so_much_of_a_key_that_it_is_no_other(tmp_path: Path) -> None:
    search = {"model.ppo.lr": [0.1], "model.inference.lr": [0.2], "model.ppo.clip": [0.3], "data.seed": [5]}
    (job,) = jobs_of(tmp_path, {"models": {"M": {}}, "search": search, "seeds": [1]})
    assert job.name == "M ppo.lr=0.1 inference.lr=0.2 clip=0.3 data.seed=5 seed=1"


def test_search_wins_over_model_and_model_over_shared(tmp_path: Path) -> None:
    model = {"config": "model/rnn", "b": 2, "c": 2}
    content = {
        "config": ["experiment/quickstart"], "shared": {"a": 1, "b": 1, "c": 1}, "models": {"M": model},
        "search": {"c": [3]},
    }  # fmt: skip
    (job,) = jobs_of(tmp_path, content)
    assert job.settings == {"a": 1, "b": 2, "c": 3}
    assert [Path(config).name for config in job.configs] == ["quickstart.yaml", "rnn.yaml"]
    assert job.arguments[::2][:2] == ["--config", "--config"]
    assert job.arguments[-3:] == ["--a=1", "--b=2", "--c=3"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"model": {}}, "has the key model; expected one of .*; did you mean models"),
        ({"sets": {"a": {"serch": {}}}}, "sets.a has the key serch; .*; did you mean search"),
        ({"name": "x"}, "has no models; expected models"),
        ({"models": {"M": [1]}}, r"models.M is \[1\]; expected keys and values"),
        ({"models": {"M": {}}, "search": {"a": 3}}, "search.a is 3; expected a list of values"),
        ({"models": {"M": {}}, "seeds": []}, r"seeds is \[\]; expected a list of values"),
        ({"models": {"M": {}}, "seeds": [1], "search": {"seed_everything": [1]}}, "seed_everything.*expected one"),
        ({"models": {"M": {3: 4}}}, "^models.M has the key 3; expected the name of a setting"),
        ({"shared": {3: 4}, "models": {"M": {}}}, "^shared has the key 3; expected the name of a setting"),
        ("models: {M: {}}\nsearch: {model.ppo.lr: [2026-11-23]}", "^search.model.ppo.lr is .*date.*; expected quoted"),
        ("models: {M: {model.ppo.lr: 2026-11-23}}", "^models.M.model.ppo.lr is 2026-11-23 .*; expected quoted text"),
        ({"models": {"M": {"config": "model/rnnn"}}}, "model/rnnn: .*did you mean model/rnn"),
        ("models:\n  M: {}\n  M: {}\n", "sweep.yaml, line 2: the key M stands twice"),
        ("models: [", "not a readable YAML file"),
        ("3", "is 3; expected keys and values"),
    ],
)
def test_wrong_file_is_one_line(tmp_path: Path, content: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as error:
        jobs_of(tmp_path, content)
    assert "\n" not in str(error.value)


def test_unknown_sweep_is_one_line() -> None:
    with pytest.raises(ConfigError, match="quikstart: no such file.*did you mean sweep/quickstart"):
        find_sweep("quikstart")


def test_only_and_exclude_keep_by_name(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, {"models": {"A": {}, "B": {}}, "seeds": [1, 2]})
    assert [job.name for job in select(jobs, ["A", "seed=2"], ["B"])] == ["A seed=1", "A seed=2"]
    with pytest.raises(ConfigError, match="--only seed=3 is in no name of a run.*did you mean seed="):
        select(jobs, ["seed=3"], None)
    with pytest.raises(ConfigError, match="leave no run"):
        select(jobs, None, ["A", "B"])


# ---- the configuration


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    """One for all shipped sweeps, which share models and searched values."""
    return Resolver()


SHIPPED = {
    "main_results": 60, "init_main_result": 150, "all_envs": 430, "analysis": 60, "quickstart": 6,
    "gridnavi_models": 30, "gridnavi_initialisations": 15, "t_maze_memories": 15, "t_maze_lengths": 24,
    "planning_memories": 2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), SHIPPED.items())
def test_shipped_sweeps_resolve(resolver: Resolver, name: str, count: int) -> None:
    flats = [resolver.flat(job) for job in read_jobs(find_sweep(name))]
    assert len({flat_identity(flat) for flat in flats}) == len(flats) == count
    assert all(int(flat["data.frames"]) >= 200_000 for flat in flats)


def test_all_shipped_sweeps_are_tested() -> None:
    assert set(configuration.shipped_configs("sweep")) == {f"sweep/{name}" for name in SHIPPED}


def test_what_is_not_parsed_again_is_what_the_parser_would_say(tmp_path: Path) -> None:
    models = {"A": {"config": "model/rnn"}, "B": {"config": "model/splagger"}}
    search = {"model.ppo.lr": ["3e-4", 0.1], "model.encoder.aggregator": [None, "Softmax"]}
    resolver = Resolver()
    jobs = jobs_of(tmp_path, {"shared": {"seed_everything": 1}, "models": models, "search": search})
    flats = [resolver.flat(job) for job in jobs]
    assert flats == [resolver.parse(job) for job in jobs]
    assert {flat["model.ppo.lr"] for flat in flats} == {"0.0003", "0.1"}
    assert flats[-1]["model.encoder.aggregator.class_path"].endswith(".Softmax")


def test_what_a_value_changes_depends_on_the_model(tmp_path: Path) -> None:
    models = {"A": {"data.publish": ["task"]}, "B": {}}
    content = {"shared": {"seed_everything": 1}, "models": models, "search": {"model.policy.use_task": [False, True]}}
    resolver, jobs = Resolver(), jobs_of(tmp_path, content)
    flats = [resolver.flat(job) for job in jobs]
    assert [flat["data.publish"] for flat in flats] == ["['task']", "['task']", "[]", "['task']"]
    assert flats == [resolver.parse(job) for job in jobs]


@pytest.mark.parametrize("units", [False, True])
def test_identity_is_that_of_the_precision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    monkeypatch.setattr(configuration, "_has_bf16_units", lambda: units)
    content = {"shared": {"seed_everything": 1, "trainer.accelerator": "cpu"}, "models": {"M": {}}}
    jobs = jobs_of(tmp_path, {**content, "search": {"trainer.precision": ["bf16-mixed", "32-true"]}})
    assert [job.flat["trainer.precision"] for job in resolve(jobs)] == ["bf16-mixed", "32-true"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"search": {"model.ppo.ir": [1]}}, "^M ir=1: .*model.ppo.ir.*did you mean"),
        ({"search": {"model.ppo.lr": ["fast"]}}, "^M lr=fast: .*model.ppo.lr"),
        ({"shared": {"trainer.limit_val_batches": 2}}, "^M: trainer.limit_val_batches is 2; expected None"),
        ({"shared": {}}, "seed_everything is True; expected a number"),
        ({"shared": {"trainer.logger.init_args.save_dir": "x"}}, "save_dir is the sweep's own"),
        ({"models": {"M": {}, "N": {}}}, "^N is the same run as M"),
    ],
)
def test_wrong_setting_is_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    content = {"shared": {"seed_everything": 1}, "models": {"M": {}}, **change}
    with pytest.raises(ConfigError, match=line) as error:
        resolve(jobs_of(tmp_path, content))
    assert "\n" not in str(error.value)


def test_dry_run_shows_what_models_differ_in_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    models = {"A": {"model.ppo.clip": 0.1}, "B": {"model.ppo.clip": 0.3}}
    path = write(tmp_path, {**TINY, "models": models})
    sweep(str(path), dry_run=True, save_dir=str(tmp_path / "runs"))
    shown = capsys.readouterr().out
    assert "model.ppo.clip = 0.1" in shown
    assert "B seed=2  queued" in shown
    assert "4 queued" in shown
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.yaml"]
    assert differences(resolve(read_jobs(path))).row_count == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cpus_per_run": 0.0}, "cpus_per_run is 0.0 and gpus_per_run 0.0"),
        ({"gpus_per_run": 1.5}, "gpus_per_run is 1.5; expected a share"),
        ({"max_parallel": 0}, "max_parallel is 0"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_wrong_option_is_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        sweep("quickstart", **options)


# ---- MLflow


@pytest.fixture
def dead_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow is at a port that nothing listens on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs of a finished ``hyperrl fit`` outside any sweep: the first job of `TINY`.

    It asks for bf16 on a processor without.
    """
    root = tmp_path_factory.mktemp("trained")
    (first, _) = jobs_of(root, TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(configuration, "_has_bf16_units", lambda: False)
        cli.run(["fit", *first.arguments, f"--trainer.logger.init_args.save_dir={root / 'runs'}"])
    return root


def test_run_of_hyperrl_fit_counts_as_finished_on_every_processor(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(configuration, "_has_bf16_units", lambda: True)
    before = sorted(trained.rglob("*"))
    sweep(str(trained / "sweep.yaml"), status=True, save_dir=str(trained / "runs"))
    shown = capsys.readouterr().out
    assert "RNN+HN seed=1  finished  test return" in shown
    assert "RNN+HN seed=2  queued" in shown
    assert sorted(trained.rglob("*")) == before
    client = MlflowClient(f"sqlite:///{trained / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert (run.data.params["trainer.precision"], run.data.tags["precision"]) == ("bf16-mixed", "32-true")


def test_interrupted_run_goes_on_in_its_own_experiment(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(trained, tmp_path / "copy") / "runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    (_, job) = resolve(jobs_of(trained, TINY))
    folder = Folder(root / "sweeps" / job.identity)
    _write(job, folder, "first")
    half = supervisor.Supervisor(folder, "owner", 2, claim=-1).arguments(asdict(Verdict(START)))
    cli.run(["fit", *half, "--data.frames=60"], test=False)
    (before,) = root.glob("first/*/metrics.jsonl")
    begun = before.read_text()

    _write(job, folder, "second")
    verdict = look(folder)
    assert (verdict.verdict, verdict.run_id, verdict.experiment) == (RESUME, before.parent.name, "first")
    cli.run(["fit", *supervisor.Supervisor(folder, "owner", 2, claim=-1).arguments(asdict(verdict))])
    assert {path.parent.parent.name for path in root.glob("*/*/metrics.jsonl")} == {"hyperrl", "first"}
    assert before.read_text().startswith(begun)
    assert "loss/total" in begun
    assert look(folder) == Verdict(FINISHED, before.parent.name, result=look(folder).result)


def test_only_own_dead_runs_are_ended(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{trained / 'runs' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    folder = Folder(tmp_path / "sweeps" / "v2-dead")
    folder.path.mkdir(parents=True)
    folder.add_launch("mine")
    own, foreign = (
        client.create_run("1", tags={"identity": "v2-dead", "launch": launch}).info.run_id
        for launch in ("mine", "theirs")
    )
    assert look(folder) == Verdict(START)
    assert client.get_run(own).info.status == "KILLED"
    assert client.get_run(own).data.tags["abandoned"] == "killed before a checkpoint"
    assert client.get_run(foreign).info.status == "RUNNING"


class FakeLedger(Ledger):
    """A ledger without MLflow."""

    def __init__(self, root: Path) -> None:
        self._save_dir, self._experiments = root, {"1": "hyperrl"}


def save(path: Path, time: int, whole: bool = True) -> None:
    """What can be told from a checkpoint, which is an archive, without loading it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "weights")
    path.write_bytes(path.read_bytes()[: None if whole else 20])
    os.utime(path, (time, time))


def fake_run(root: Path, name: str, ended: str, *, saved: bool = False, result: bool = False, **tags: str) -> Any:
    if saved:
        path = root / "hyperrl" / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        save(path, ord(name))
    info = SimpleNamespace(run_id=name, status=ended, experiment_id="1")
    return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags, metrics={"test/return": 1.5} if result else {}))


@pytest.mark.parametrize(
    ("runs", "verdict", "run_id"),
    [
        ([], START, ""),
        ([("a", "FINISHED", {"result": True}), ("b", "FAILED", {"status": "diverged"})], FINISHED, "a"),
        ([("a", "FAILED", {"status": "diverged", "saved": True})], DIVERGED, "a"),
        ([("a", "KILLED", {"saved": True}), ("b", "KILLED", {})], RESUME, "a"),
        ([("a", "FINISHED", {"saved": True})], RESUME, "a"),
        ([("a", "RUNNING", {"saved": True, "launch": "mine"})], RESUME, "a"),
        ([("a", "RUNNING", {"saved": True, "launch": "theirs"})], START, ""),
        ([("a", "RUNNING", {"saved": True})], START, ""),
        ([("a", "KILLED", {"saved": True}), ("b", "FAILED", {"saved": True})], RESUME, "b"),
    ],
)
def test_verdicts(tmp_path: Path, runs: list[tuple[str, str, dict[str, Any]]], verdict: str, run_id: str) -> None:
    made = [fake_run(tmp_path, name, status, **options) for name, status, options in runs]
    found = FakeLedger(tmp_path).judge(made, {"mine"})
    assert (found.verdict, found.run_id) == (verdict, run_id)
    assert bool(found.checkpoint) == (verdict == RESUME)
    assert found.experiment == ("hyperrl" if verdict == RESUME else "")


def test_cut_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "a", "KILLED", saved=True)
    last = tmp_path / "hyperrl" / "a" / "checkpoints" / "last.ckpt"
    for name, time in (("epoch1.ckpt", 1), ("epoch2.ckpt", 200)):
        save(last.with_name(name), time)
    assert FakeLedger(tmp_path).judge([run], []).checkpoint == str(last), "the last one, although another is newer"
    save(last, 300, whole=False)
    assert FakeLedger(tmp_path).judge([run], []).checkpoint == str(last.with_name("epoch2.ckpt"))
    for path in last.parent.glob("epoch*"):
        path.unlink()
    assert FakeLedger(tmp_path).judge([run], []) == Verdict(START)


@pytest.mark.parametrize("options", [{"status": True}, {"dry_run": True}, {}])
def test_unusable_store_is_one_line(
    tmp_path: Path, dead_uri: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    path = write(tmp_path, TINY)
    with pytest.raises(TrackingError, match=f"MLflow cannot be used at {dead_uri} .*Connection refused") as error:
        sweep(str(path), save_dir=str(tmp_path / "runs"), **options)
    assert "\n" not in str(error.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / "mlflow.db").write_text("no database, but long enough to be looked at" * 100)
    with pytest.raises(TrackingError, match="mlflow.db .*file is not a database") as error:
        sweep(str(path), save_dir=str(tmp_path / "runs"), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"status": True}, {"dry_run": True}, {}])
def test_file_in_place_of_a_directory_is_one_line(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path, TINY)
    with pytest.raises(ConfigError, match=r"^save_dir is .*sweep.yaml/x, and .*sweep.yaml is a file; expected a dir"):
        sweep(str(path), save_dir=str(path / "x"), **options)


# ---- claims


HOLD = """
import subprocess, sys
from hyperrl.experiments.sweep.folder import Folder
claim = Folder(sys.argv[1]).claim()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[claim])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    result = Folder(tmp_path / "runs" / "sweeps" / "v2-job")
    result.write_job({"name": "job", "tags": {}, "arguments": [], "directory": str(tmp_path)})
    return result


def test_claim_is_held_by_whoever_trains_and_freed_by_any_death(folder: Folder) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert folder.claimed()
    assert folder.claim() is None
    process.kill()
    process.wait()
    assert folder.claimed(), "the orphan still trains"
    os.kill(child, signal.SIGKILL)
    descriptor = None
    while descriptor is None:  # the kernel takes a moment
        descriptor = folder.claim()
    os.close(descriptor)
    assert not folder.claimed()


def test_busy_job_is_left_alone(folder: Folder) -> None:
    claim = folder.claim()
    assert claim is not None
    assert supervisor.main([str(folder.path), "owner", "2"]) == supervisor.BUSY
    assert folder.state() is None
    os.close(claim)


def test_state_is_settled_by_new_launches_only(folder: Folder) -> None:
    assert not settled(folder, [])
    folder.write_state(State("failed", "launch", "owner", reason="why"))
    assert folder.state() == State("failed", "launch", "owner", reason="why")
    assert settled(folder, [])
    assert not settled(folder, ["launch"])
    folder.write_state(State("stopped", "other", "owner"))
    assert not settled(folder, [])


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell a child that its parent has died")
def test_training_is_told_to_stop_when_its_supervisor_is_killed() -> None:
    code = (
        "import subprocess, sys, time; from hyperrl.experiments.sweep.supervisor import end_with_parent\n"
        "child = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        "subprocess.Popen(child, preexec_fn=end_with_parent(), start_new_session=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    process.kill()
    assert process.stdout.read() == b"", "the pipe ends with the child, long before it would by itself"
    process.wait()


# ---- retries


class Scripted(supervisor.Supervisor):
    """A supervisor whose trainings end as scripted, and whose MLflow says what is scripted."""

    def __init__(self, folder: Folder, attempts: Sequence[tuple[int, str]], retries: int = 2) -> None:
        super().__init__(folder, "owner", retries, claim=-1)
        self.folder.log.write_text("some line\nhyperrl: error: the cause\n\n")
        self.attempts = list(attempts)
        self.verdicts = ["start", *(verdict for _, verdict in attempts)]
        self.checkpoints: list[str] = []

    def _look(self) -> dict[str, Any]:
        verdict = self.verdicts.pop(0)
        checkpoint = "last.ckpt" if verdict == "resume" else ""
        return {"verdict": verdict, "run_id": "run", "checkpoint": checkpoint, "reason": "loss is nan"}

    def _train(self, verdict: Mapping[str, Any]) -> int:
        self.checkpoints.append(verdict["checkpoint"])
        status, _ = self.attempts.pop(0)
        if status == 99:
            raise supervisor.Stopped
        return status


@pytest.mark.parametrize(
    ("attempts", "status", "failures", "reason"),
    [
        ([(0, "finished")], "finished", 0, ""),
        ([(-9, "resume"), (0, "finished")], "finished", 1, ""),
        ([(1, "start"), (1, "resume"), (1, "resume")], "failed", 3, "exit status 1: hyperrl: error: the cause"),
        ([(0, "resume"), (0, "resume"), (-9, "resume")], "failed", 3, "killed by SIGKILL: hyperrl: error: the cause"),
        ([(2, "start")], "failed", 1, "exit status 2: hyperrl: error: the cause"),
        ([(cli.TRACKING_ERROR, "start"), (0, "finished")], "finished", 1, ""),
        ([(1, "diverged")], "failed", 0, "diverged: loss is nan"),
        ([(1, "resume"), (99, "")], "stopped", 1, "exit status 1: hyperrl: error: the cause"),
    ],
)
def test_what_is_tried_again(
    folder: Folder, attempts: list[tuple[int, str]], status: str, failures: int, reason: str
) -> None:
    job = Scripted(folder, attempts)
    job.run()
    state = folder.state()
    assert state is not None
    assert (state.status, state.failures, state.reason) == (status, failures, reason)
    assert job.attempts == [], "nothing else was tried"
    assert job.checkpoints == ["", *("last.ckpt" if v == "resume" else "" for _, v in attempts[:-1])]
    assert state.launch in folder.launches()


def test_training_that_cannot_reach_mlflow_says_so_by_its_exit_status() -> None:
    assert cli.USAGE_ERROR == supervisor.USAGE_ERROR
    assert cli.TRACKING_ERROR not in (supervisor.USAGE_ERROR, cli.FAILURE)


def test_same_command_goes_on_counting_after_a_kill(folder: Folder) -> None:
    folder.write_state(State("running", "killed", "owner", failures=2))
    Scripted(folder, [(1, "resume")]).run()
    assert folder.state().failures == 3  # type: ignore[union-attr]
    folder.write_state(State("running", "killed", "another", failures=2))
    Scripted(folder, [(1, "resume"), (0, "finished")]).run()
    assert folder.state().status == "finished"  # type: ignore[union-attr]


# ---- the scheduler


class FakeRay:
    """Ray with tasks that end when they are waited for, as scripted."""

    exceptions = SimpleNamespace(RayError=ConnectionError)

    def __init__(self, script: dict[str, list[Any]], slots: float = 2, gpus: float = 0) -> None:
        self.script, self.slots, self.gpus = script, slots, gpus
        self.started: list[str] = []
        self.most = 0
        self.open: list[str] = []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.slots, **({"GPU": self.gpus} if self.gpus else {})}

    def remote(self, **options: Any) -> Any:
        return lambda function: SimpleNamespace(remote=self.submit)

    def submit(self, path: str, owner: str, *_: Any) -> tuple[str, int]:
        self.started.append(Path(path).name)
        self.open.append(path)
        self.most = max(self.most, len(self.open))
        return path, len(self.started)

    def wait(self, tasks: list[tuple[str, int]], timeout: float) -> tuple[list[tuple[str, int]], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: tuple[str, int]) -> int:
        folder = Folder(task[0])
        self.open.remove(task[0])
        result = self.script[folder.path.name].pop(0)
        if isinstance(result, str):
            folder.write_state(State(result, f"launch{task[1]}", "owner"))
            return supervisor.SETTLED
        if isinstance(result, Exception):
            raise result
        return int(result)


def schedule(root: Path, script: dict[str, list[Any]], old: Sequence[str] = (), **options: Any) -> FakeRay:
    for name in script:
        Folder(root / name).write_job({})
    ray = FakeRay(script, **options)
    plan = Plan([str(root / name) for name in script], list(old), "owner", cpus_per_run=1.0)
    Scheduler(plan, ray).run()
    return ray


def test_jobs_start_in_order_within_the_slots(tmp_path: Path) -> None:
    ray = schedule(tmp_path, {name: ["finished"] for name in "abcde"})
    assert ray.started == list("abcde")
    assert ray.most == 2


def test_one_failed_job_stops_no_other_and_busy_ones_wait(tmp_path: Path) -> None:
    script = {"a": ["failed"], "b": [supervisor.BUSY, "finished"], "c": ["stopped", "finished"], "d": ["finished"]}
    ray = schedule(tmp_path, script, slots=1)
    assert ray.started == ["a", "b", "c", "d", "b", "c"]


def test_supervisors_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    ray = schedule(tmp_path, {"a": [-9, ConnectionError("worker died"), 1]})
    assert ray.started == ["a"] * 3
    state = Folder(tmp_path / "a").state()
    assert state is not None
    assert (state.status, state.reason) == ("failed", "its supervisor has died again and again (1)")


def test_what_another_command_has_done_is_not_done_again(tmp_path: Path) -> None:
    for name, launch in (("a", "new"), ("b", "old")):
        Folder(tmp_path / name).write_job({})
        Folder(tmp_path / name).write_state(State("finished", launch, "another"))
    ray = schedule(tmp_path, {"a": [], "b": ["finished"]}, old=["old"])
    assert ray.started == ["b"]


@pytest.mark.parametrize(("share", "most"), [(0.33, 6), (0.5, 4), (1, 2), (2, 1)])
def test_runs_share_gpus(tmp_path: Path, share: float, most: int) -> None:
    for name in "abcdefgh":
        Folder(tmp_path / name).write_job({})
    ray = FakeRay({name: ["finished"] for name in "abcdefgh"}, slots=16, gpus=2)
    Scheduler(Plan([str(tmp_path / name) for name in "abcdefgh"], [], "owner", gpus_per_run=share), ray).run()
    assert ray.most == most


def test_no_resources_is_one_line() -> None:
    plan = Plan([], [], "owner", gpus_per_run=0.5)
    assert "this computer has 2 CPUs and 0 GPUs" in str(Scheduler(plan, FakeRay({})).check())
    assert Scheduler(Plan([], [], "owner"), FakeRay({})).check() is None


@pytest.mark.parametrize(
    ("address", "line"), [("127.0.0.1:{}", "Connection refused"), ("host:port", "invalid literal")]
)
def test_unknown_cluster_is_one_line(address: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as reserved:  # a port that nothing listens on
        reserved.bind(("127.0.0.1", 0))
        address = address.format(reserved.getsockname()[1])
        plan = Plan([], [], "owner", address=address)
        assert scheduler.main(json.dumps(asdict(plan))) == scheduler.REFUSED
    said = capsys.readouterr().err
    assert said.startswith(f"Ray at {address}: ")
    assert line in said
    assert said.count("\n") == 1


class Driven(Session):
    """A session whose schedulers end as scripted."""

    def __init__(self, root: Path, script: Sequence[int]) -> None:
        self.text = io.StringIO()
        display = Display(Board([], [], None), Console(file=self.text, width=40))
        super().__init__(Plan([], [], "owner", address="head:6379"), display, root)
        self.script = list(script)

    def _drive(self) -> int:
        self._log.write_text("Ray at head:6379: Connection refused\n")
        return self.script.pop(0)


def test_cluster_that_goes_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Session, "_pause", lambda self, seconds: pauses.append(seconds))
    died, refused, done = scheduler.RAY_DIED, scheduler.REFUSED, scheduler.DONE
    session = Driven(tmp_path, [died, refused, refused, done])
    session.run()
    assert pauses == [5, 10, 20]
    assert session.text.getvalue().splitlines() == [
        "Ray has died (exit status 3; start 1 of 5)",
        "Ray has died (Ray at head:6379: Connection refused; start 2 of 5)",
        "Ray has died (Ray at head:6379: Connection refused; start 3 of 5)",
    ]
    with pytest.raises(SystemExit):
        Driven(tmp_path, [died, *[refused] * 4]).run()
    with pytest.raises(ConfigError, match="Ray at head:6379: Connection refused"):
        Driven(tmp_path, [refused]).run()


# ---- what is shown


def test_progress_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert table.progress(path) == (0, 0.0)
    lines = [{"step": step, "metrics": {"time/frames_per_second": step / 2}} for step in (100, 200)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, {"step": 300, "metrics": {"val/return": 1}}]))
    with path.open("a") as file:
        file.write('{"step": 400, "metrics": {"time/frames_per_sec')
    assert table.progress(path) == (200, 100.0)


def test_table_leaves_out_what_is_finished_first() -> None:
    states = ["finished", "queued", "running", "failed", "finished"]
    shown = table.as_table([Row(f"run{index}", status) for index, status in enumerate(states)], height=3)
    assert list(shown.columns[0].cells) == ["run1", "run2", "run3"]
    assert shown.caption == "1 running, 1 failed, 1 queued, 2 finished; 2 more"


def test_one_plain_line_per_change(tmp_path: Path) -> None:
    jobs = resolve(jobs_of(tmp_path, TINY))
    folders = [Folder(tmp_path / "sweeps" / job.identity) for job in jobs]
    for folder in folders:
        folder.write_job({})
    text = io.StringIO()
    display = Display(Board(jobs, folders, None), Console(file=text, width=40))
    claim = folders[0].claim()
    assert claim is not None
    with display.shown():
        display.refresh()
        folders[0].write_state(State("running", "a", "owner"))
        display.refresh()
        display.refresh()
        folders[0].write_state(State("running", "a", "owner", failures=1, reason="killed by SIGKILL: [0/9]"))
        display.refresh()
        os.close(claim)
        folders[0].write_state(State("failed", "a", "owner", failures=3, reason="exit status 1: what [it] said"))
        display.refresh()
    assert text.getvalue().splitlines() == [
        "RNN+HN seed=1: running",
        "RNN+HN seed=1: running (attempt 2, after: killed by SIGKILL: [0/9])",
        "RNN+HN seed=1: failed (exit status 1: what [it] said)",
    ]


def test_table_stays_while_mlflow_is_away(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = resolve(jobs_of(tmp_path, TINY))
    folders = [Folder(tmp_path / "sweeps" / job.identity) for job in jobs]
    ledger = Ledger(f"sqlite:///{trained / 'runs' / 'mlflow.db'}", trained / "runs")
    text = io.StringIO()
    display = Display(Board(jobs, folders, ledger), Console(file=text, width=40))
    folders[1].write_job({})
    claim = folders[1].claim()
    assert claim is not None
    folders[1].write_state(State("running", "a", "owner", run_id="unknown"))
    display.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(ledger.client, "search_runs", refuse)
        display.refresh()
        display.refresh()
    folders[1].write_state(State("running", "a", "owner", failures=1, reason="exit status 1"))
    display.refresh()
    os.close(claim)
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("RNN+HN seed=1: finished (test return ")
    assert lines[1] == "RNN+HN seed=2: running"
    assert lines[2].startswith("no news of the runs, which go on: MLflow cannot be used at sqlite:")
    assert lines[3:] == ["MLflow is back", "RNN+HN seed=2: running (attempt 2, after: exit status 1)"]


def refuse(*args: Any, **kwargs: Any) -> None:
    raise MlflowException("Connection refused")
