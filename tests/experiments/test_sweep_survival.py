"""Twelve real runs on two slots survive whatever is killed: each is finished once, none is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

import hyperrl
from hyperrl.experiments.sweep.folder import Folder, State

pytestmark = pytest.mark.slow
RUNS = 12
SWEEP = {
    "name": "survival",
    "shared": {
        "trainer.accelerator": "cpu", "data.num_envs": 4, "data.steps_per_rollout": 15, "data.frames": 1200,
        "data.rollouts_per_epoch": 1, "data.val_tasks": 8, "data.test_tasks": 8, "model.encoder.hidden_dim": 8,
        "model.policy.layers": [8], "model.policy.state_embedding_dim": 8, "model.policy.latent_embedding_dim": 4,
    },
    "models": {"RNN+HN": {"config": "model/rnn_hn"}, "RNN": {"config": "model/rnn"}},
    "search": {"model.ppo.lr": [0.003, 0.001]},
    "seeds": [1, 2, 3],
}  # fmt: skip
COMMAND = """
import json, sys
from hyperrl.experiments.sweep.command import sweep
sweep(sys.argv[1], **json.loads(sys.argv[2]))
"""


class Sweep:
    """A sweep in a directory, and the commands that were started on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[subprocess.Popen[bytes]] = []
        (root / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """Another command on the same runs."""
        options = {"cpus_per_run": 0.5, "max_parallel": 2, "save_dir": str(self.root / "runs"), **options}
        source = str(Path(hyperrl.__file__).parents[1])
        paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        with (self.root / f"command{len(self.commands)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "sweep.yaml", json.dumps(options)],
                cwd=self.root, env={**environment, "PYTHONPATH": paths}, stdout=log, stderr=log,
            )  # fmt: skip
        self.commands.append(process)
        return process

    def states(self) -> dict[Folder, State]:
        folders = map(Folder, self.root.glob("runs/sweeps/v2-*"))
        return {folder: state for folder in folders if (state := folder.state())}

    def finished(self) -> int:
        return sum(state.status == "finished" for state in self.states().values())

    def training(self, with_checkpoint: bool = False) -> dict[Folder, State]:
        """Jobs whose training process is alive."""
        running = {
            folder: state
            for folder, state in self.states().items()
            if state.status == "running" and state.process and psutil.pid_exists(state.process) and folder.claimed()
        }
        if not with_checkpoint:
            return running
        return {folder: state for folder, state in running.items() if self.has_checkpoint(state)}

    def has_checkpoint(self, state: State) -> bool:
        client = MlflowClient(f"sqlite:///{self.root / 'runs' / 'mlflow.db'}")
        runs = client.search_runs(["1"], f"tags.launch = '{state.launch}'")
        return any(list(self.root.glob(f"runs/hyperrl/{run.info.run_id}/checkpoints/last.ckpt")) for run in runs)

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to this sweep but Ray."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.root) in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def log(self, command: int) -> str:
        """What a command has written."""
        return sorted(self.root.glob("command*.log"))[command].read_text()

    def logs(self) -> str:
        files = [*self.root.glob("command*.log"), *self.root.glob("runs/sweeps/scheduler-*.log")]
        return "\n".join(f"{file.name}:\n{file.read_text()}" for file in sorted(files))

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 240) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := condition():
                return result
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.logs()}")


def is_supervisor(process: psutil.Process, identity: str = "") -> bool:
    command = " ".join(process.cmdline())
    return "sweep.supervisor" in command and identity in command


def scheduler_of(command: subprocess.Popen[bytes]) -> psutil.Process:
    (process,) = psutil.Process(command.pid).children()
    return process


def ray_of(command: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes of a command's Ray, without the supervisors and what they have started."""
    found, waiting = [], scheduler_of(command).children()
    while waiting:
        process = waiting.pop()
        if not is_supervisor(process):
            found.append(process)
            waiting += process.children()
    return found


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    result = Sweep(tmp_path)
    yield result
    for command in result.commands:
        command.kill()
        command.wait()
    for process in result.processes():
        process.kill()


def test_twelve_runs_survive_every_kill(sweep: Sweep) -> None:
    first = sweep.start()

    # A training.
    folder, state = next(iter(sweep.until(lambda: sweep.training(with_checkpoint=True), "a checkpoint").items()))
    os.kill(state.process, signal.SIGKILL)
    after = sweep.until(lambda: (s := folder.state()) and s.failures and s, "the kill is noticed")
    assert after.reason.startswith("killed by SIGKILL")
    assert after.launch == state.launch

    # A second command at the same time; then a supervisor.
    second = sweep.start()
    owners = lambda: {state.owner for state in sweep.training().values()}  # noqa: E731
    sweep.until(lambda: len(owners()) == 2, "both commands train")
    assert len(sweep.training()) <= 4
    folder, state = next(iter(sweep.training().items()))
    (supervisor,) = [process for process in sweep.processes() if is_supervisor(process, folder.identity)]
    supervisor.kill()
    sweep.until(lambda: not psutil.pid_exists(state.process) or not folder.claimed(), "its training ends")

    # Ray, all of it.
    assert sweep.finished() < RUNS - 2
    sweep.until(lambda: sweep.training(), "a training")
    for process in ray_of(first):
        process.kill()
    sweep.until(lambda: "Ray has died" in sweep.logs(), "the command notices")
    assert first.poll() is None

    # The command.
    sweep.until(lambda: len(owners()) == 2, "both commands train again")
    assert sweep.finished() < RUNS
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(children, 120)
    assert not alive

    # Everything else, and a full restart.
    children = psutil.Process(second.pid).children(recursive=True)
    for process in [psutil.Process(second.pid), *children]:
        process.kill()
    second.wait()
    assert sweep.finished() < RUNS
    third = sweep.start()
    assert sweep.until(lambda: third.poll() is not None, "the end", 900)
    assert third.returncode == 0, sweep.logs()
    assert_finished_once(sweep)


def test_signal_leaves_checkpoints_and_the_same_command_goes_on(sweep: Sweep) -> None:
    options = {"only": ["RNN lr=0.003"], "max_parallel": 1}
    first = sweep.start(**options)
    ((folder, state),) = sweep.until(lambda: sweep.training(with_checkpoint=True), "a checkpoint").items()
    first.send_signal(signal.SIGINT)
    assert first.wait(120) == 130
    assert not folder.claimed()
    assert folder.state().status == "stopped"  # type: ignore[union-attr]
    assert sweep.processes() == []
    run = run_of(sweep, folder)
    assert run.info.status == "KILLED"
    second = sweep.start(**options)
    assert second.wait(600) == 0, sweep.logs()
    assert run_of(sweep, folder).info.run_id == run.info.run_id
    assert_finished_once(sweep, 3)


def run_of(sweep: Sweep, folder: Folder) -> Any:
    """The only run of a job."""
    client = MlflowClient(f"sqlite:///{sweep.root / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], f"tags.identity = '{folder.identity}'")
    return run


def assert_finished_once(sweep: Sweep, count: int = RUNS) -> None:
    client = MlflowClient(f"sqlite:///{sweep.root / 'runs' / 'mlflow.db'}")
    runs = client.search_runs(["1"], max_results=1000)
    finished = [run for run in runs if run.info.status == "FINISHED"]
    assert len(finished) == count
    identities = {run.data.tags["identity"] for run in finished}
    assert len(identities) == count
    assert {run.data.tags["identity"] for run in runs} == identities
    assert Counter(run.info.status for run in runs) - Counter(KILLED=len(runs)) == Counter(FINISHED=count)
    for run in finished:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/total")]
        assert sorted(steps) == list(range(60, 1201, 60)), "every update once"
        assert "test/return" in run.data.metrics
    assert sweep.log(-1).splitlines()[-1] == f"{count} finished"
    assert not any(folder.claimed() for folder in sweep.states())
    assert sweep.processes() == []
