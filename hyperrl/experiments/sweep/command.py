"""``hyperrl sweep``: trains what a sweep file describes, each run once."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hyperrl.configuration import nearest
from hyperrl.errors import ConfigError
from hyperrl.experiments.sweep import scheduler
from hyperrl.experiments.sweep.folder import FOLDERS, Folder
from hyperrl.experiments.sweep.ledger import Ledger, prepare
from hyperrl.experiments.sweep.resolve import ResolvedJob, resolve
from hyperrl.experiments.sweep.sweep_file import Job, find_sweep, read_jobs
from hyperrl.experiments.sweep.table import Board, Display, as_table, summary
from hyperrl.tracking import MLflowLogger

FAILURE, INTERRUPTED = 1, 130
_RAY_STARTS = 5
_REFRESH = 1.0  # seconds
_FIRST_PAUSE = 5.0  # seconds until Ray is started again; each further pause is twice as long


def sweep(
    file: str,
    dry_run: bool = False,
    status: bool = False,
    address: str | None = None,
    cpus_per_run: float = 1.0,
    gpus_per_run: float = 0.0,
    max_parallel: int | None = None,
    retries: int = 2,
    save_dir: str = "runs",
    experiment_name: str = "hyperrl",
    only: list[str] | None = None,
    exclude: list[str] | None = None,
) -> None:
    """Train a grid of models, settings and seeds, each run once, whatever is killed on the way.

    The same command again goes on: finished runs are not repeated, interrupted ones continue from their last
    checkpoint. Ctrl-C stops all runs and leaves checkpoints; a second Ctrl-C kills them.

    Args:
        file: The sweep: a YAML file, or the name of a shipped one such as quickstart.
        dry_run: Check every run, show how they differ and what is done already, and start nothing.
        status: Show the state of every run and touch nothing.
        address: Address of a Ray cluster to join, such as auto or ray-head:6379. Default: start Ray on this computer.
        cpus_per_run: CPUs of a run; so many threads it computes with.
        gpus_per_run: Share of a GPU of a run: 0.33 puts three runs on each GPU. With 0 a run sees no GPU.
        max_parallel: Runs at once at most. Default: as many as there are CPUs and GPUs for.
        retries: How often a failed run is tried again.
        save_dir: Directory of the runs, as of `hyperrl fit`; on a cluster all computers must see it.
        experiment_name: MLflow experiment of new runs.
        only: Keep only runs whose name contains one of these texts.
        exclude: Leave out runs whose name contains one of these texts.

    Raises:
        ConfigError: The sweep or an option is wrong; nothing was started.
        TrackingError: MLflow cannot be used.
        SystemExit: 1 if a run has failed, 130 after Ctrl-C.
    """
    _check_options(cpus_per_run, gpus_per_run, max_parallel, retries)
    jobs = resolve(select(read_jobs(find_sweep(file)), only, exclude))
    root = _directory(save_dir)
    uri = MLflowLogger(save_dir=str(root)).tracking_uri
    folders = [Folder(root / FOLDERS / job.identity) for job in jobs]
    console = Console()
    if dry_run or status:
        board = Board(jobs, folders, _existing(uri, root))
        if dry_run:
            console.print(differences(jobs))
        console.print(as_table(board.rows()))
        return
    _check_ray()
    old = [state.launch for state in map(Folder.state, folders) if state and state.status != "running"]
    ledger = prepare(uri, root, experiment_name)  # asked after the folders: what they call finished, MLflow must have
    board = Board(jobs, folders, ledger, old)
    for job, folder in zip(jobs, folders, strict=True):
        if folder in board.open:
            _write(job, folder, experiment_name)
    plan = scheduler.Plan(
        folders=[str(folder.path) for folder in board.open],
        old=old,
        owner=uuid.uuid4().hex,
        environment=_environment(uri, cpus_per_run, gpus_per_run),
        address=address,
        cpus_per_run=cpus_per_run,
        gpus_per_run=gpus_per_run,
        max_parallel=max_parallel,
        retries=retries,
    )
    session = Session(plan, Display(board, console), root / FOLDERS)
    if plan.folders:
        session.run()
    _end(Board(jobs, folders, ledger, old), console, session.stops)


def select(jobs: Sequence[Job], only: Sequence[str] | None, exclude: Sequence[str] | None) -> list[Job]:
    """Keeps jobs by their names.

    Args:
        jobs: all jobs.
        only: texts of which a name must contain one.
        exclude: texts of which it must contain none.

    Raises:
        ConfigError: a text is in no name.
    """
    names = [job.name for job in jobs]
    for option, texts in (("only", only), ("exclude", exclude)):
        for text in texts or []:
            if not any(text in name for name in names):
                words = {word for name in names for word in name.split()}
                raise ConfigError(f"--{option} {text} is in no name of a run, such as {names[0]}{nearest(text, words)}")
    kept = [
        job
        for job in jobs
        if (not only or any(text in job.name for text in only)) and not any(text in job.name for text in exclude or [])
    ]
    if not kept:
        raise ConfigError(f"--only {only} and --exclude {exclude} leave no run; expected at least one")
    return kept


def differences(jobs: Sequence[ResolvedJob]) -> Table:
    """A table of what the models of a sweep differ in, as the parser resolves them."""
    table = Table("model", "differs from others in", box=None, pad_edge=False)
    models: dict[str, list[ResolvedJob]] = {}
    for job in jobs:
        models.setdefault(job.job.name.split(" ")[0], []).append(job)
    for name, group in models.items():
        common = set.intersection(*(set(job.changes.items()) for job in group))
        table.add_row(name, "\n".join(f"{key} = {value}" for key, value in sorted(common)))
        table.add_section()
    return table


class Session:
    """Runs a scheduler until all jobs have ended, and starts it again if it dies.

    Args:
        plan: what the scheduler is told.
        display: shows the jobs.
        root: directory of the jobs' folders.
    """

    def __init__(self, plan: scheduler.Plan, display: Display, root: Path) -> None:
        self.plan, self.display = plan, display
        self.stops = 0
        self._log = root / f"scheduler-{plan.owner}.log"

    def run(self) -> None:
        """Returns when all jobs have ended, or have been stopped.

        Raises:
            ConfigError: there are no resources for a job.
            SystemExit: Ray dies again and again.
        """
        with self._signals(), self.display.shown():
            for start in range(1, _RAY_STARTS + 1):
                code = self._drive()
                if self.stops or code == scheduler.DONE:
                    break
                reason = f"exit status {code}"
                if code == scheduler.REFUSED:
                    reason = self._log.read_text().splitlines()[-1]
                    if start == 1:  # later on, a cluster that was there may come back
                        raise ConfigError(reason)
                self.display.line(f"Ray has died ({reason}; start {start} of {_RAY_STARTS})")
                if start < _RAY_STARTS:
                    self._pause(_FIRST_PAUSE * 2 ** (start - 1))
            self._wait_for_own()
        if not self.stops and code != scheduler.DONE:
            self.display.line(f"Ray does not stay alive, see {self._log}; the same command goes on")
            raise SystemExit(FAILURE)
        self._log.unlink()

    def _drive(self) -> int:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                scheduler.command(), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        assert process.stdin is not None
        with process.stdin, suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps(asdict(self.plan))}\n".encode())
            process.stdin.flush()
            while process.poll() is None and not self.stops:
                self.display.refresh()
                time.sleep(_REFRESH)
        # Its input has ended, and so will it.
        with suppress(subprocess.TimeoutExpired):
            return process.wait(10)
        process.kill()
        return process.wait()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stops:
            self.display.refresh()
            time.sleep(_REFRESH)

    def _wait_for_own(self) -> None:
        """Waits until the trainings of this command have ended; a second signal kills them."""
        if self.stops:
            self.display.line("stopping: runs end after the rollout that they are in; Ctrl-C again kills them")
        while own := self._own():
            self.display.refresh()
            if self.stops > 1:
                for folder in own:
                    _kill(folder)
            time.sleep(_REFRESH / 2)
        self.display.refresh()

    def _own(self) -> list[Folder]:
        folders = [Folder(path) for path in self.plan.folders]
        return [
            folder
            for folder in folders
            if (state := folder.state()) and state.owner == self.plan.owner and folder.claimed()
        ]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self.stops += 1

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _kill(folder: Folder) -> None:
    state = folder.state()
    if state and state.process and state.host == platform.node():
        with suppress(ProcessLookupError):
            os.killpg(state.process, signal.SIGKILL)


def _existing(uri: str, root: Path) -> Ledger | None:
    """MLflow's runs, without creating a store."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    return Ledger(uri, root)


def _write(job: ResolvedJob, folder: Folder, experiment_name: str) -> None:
    logger = {"save_dir": str(folder.save_dir), "experiment_name": experiment_name}
    arguments = [f"--trainer.logger.init_args.{key}={value}" for key, value in logger.items()]
    content = {
        "name": job.job.name,
        "tags": {"sweep": job.job.sweep, "label": job.job.label},
        "arguments": [*job.job.arguments, *arguments],
        "directory": str(Path.cwd()),
    }
    folder.write_job(content)


def _environment(uri: str, cpus: float, gpus: float) -> dict[str, str]:
    """Variables for the jobs. The tracking URI may hold a password, which must not be an argument or in a file."""
    environment = {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": str(max(1, int(cpus)))}
    return environment if gpus else environment | {"CUDA_VISIBLE_DEVICES": ""}


def _check_options(cpus: float, gpus: float, max_parallel: int | None, retries: int) -> None:
    if cpus < 0 or gpus < 0 or cpus + gpus == 0:
        raise ConfigError(f"cpus_per_run is {cpus} and gpus_per_run {gpus}; expected at least one above 0")
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"gpus_per_run is {gpus}; expected a share up to 1, or a whole number")
    if max_parallel is not None and max_parallel < 1:
        raise ConfigError(f"max_parallel is {max_parallel}; expected 1 or more")
    if retries < 0:
        raise ConfigError(f"retries is {retries}; expected 0 or more")


def _directory(save_dir: str) -> Path:
    root = Path(save_dir).absolute()
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"save_dir is {save_dir}, and {path} is a file; expected a directory")
    return root


def _check_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("hyperrl sweep needs Ray, which is not installed; expected: pip install 'hyperrl[sweep]'")


def _end(board: Board, console: Console, stops: int) -> None:
    """Says what has become of the jobs, and sets the exit status."""
    rows = board.rows()
    for row in rows:
        if row.status == "failed":
            console.print(f"failed: {row.name}: {row.about}", markup=False, highlight=False, soft_wrap=True)
    console.print(summary(rows), highlight=False)
    if stops:
        raise SystemExit(INTERRUPTED)
    if any(row.status != "finished" for row in rows):
        raise SystemExit(FAILURE)
