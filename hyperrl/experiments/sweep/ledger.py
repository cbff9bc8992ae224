"""What MLflow and the run directories know of jobs: finished, diverged, interrupted, or never begun.

``python -m hyperrl.experiments.sweep.ledger FOLDER`` prints what to do with one job; a supervisor calls it before and
after each attempt, in a process of its own, so that the supervisor itself stays small.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperrl.errors import TrackingError
from hyperrl.experiments.sweep.folder import FOLDERS, Folder
from hyperrl.outbox import connect, find_experiment, reached
from hyperrl.run_tags import send_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

FINISHED, DIVERGED, RESUME, START = "finished", "diverged", "resume", "start"
RESULT = "test/return"
_PAGE = 1000


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a job.

    Attributes:
        verdict: ``finished`` or ``diverged``, which leave nothing to do; ``resume`` or ``start``.
        run_id: the MLflow run in question; empty for ``start``.
        checkpoint: what to resume from.
        experiment: the experiment of that run, which a resumed run stays in.
        reason: what has diverged.
        result: the test return of a finished run.
    """

    verdict: str
    run_id: str = ""
    checkpoint: str = ""
    experiment: str = ""
    reason: str = ""
    result: float | None = None


class Ledger:
    """MLflow's runs by identity.

    Args:
        tracking_uri: MLflow's tracking URI.
        save_dir: directory of all run directories.

    Raises:
        TrackingError: MLflow cannot be used, here or later.
    """

    def __init__(self, tracking_uri: str, save_dir: Path) -> None:
        self._uri, self._save_dir = tracking_uri, save_dir
        with reached(tracking_uri):
            self.client = connect(tracking_uri)
            self._experiments = {found.experiment_id: found.name for found in self.client.search_experiments()}

    def runs(self, identity: str = "") -> dict[str, list[Run]]:
        """All runs with an identity, in all experiments; or those with this one.

        Args:
            identity: keeps the runs of one job.
        """
        condition = f"tags.identity = '{identity}'" if identity else "tags.identity LIKE 'v%'"
        result: dict[str, list[Run]] = defaultdict(list)
        token = None
        while True:
            with reached(self._uri):
                page = self.client.search_runs(list(self._experiments), condition, max_results=_PAGE, page_token=token)
            for run in page:
                result[run.data.tags["identity"]].append(run)
            token = page.token
            if not token:
                return result

    def directory(self, run: Run) -> Path:
        """Where a run has its metrics and checkpoints."""
        return self._save_dir / self._experiment(run).lstrip("/") / str(run.info.run_id)

    def _experiment(self, run: Run) -> str:
        return self._experiments.get(run.info.experiment_id, "")

    def judge(self, runs: Collection[Run], launches: Collection[str]) -> Verdict:
        """Decides what is to be done with a job.

        Args:
            runs: all runs with its identity.
            launches: launches from its folder.
        """
        for run in runs:
            if run.info.status == "FINISHED" and RESULT in run.data.metrics:
                return Verdict(FINISHED, run.info.run_id, result=run.data.metrics[RESULT])
        for run in runs:
            if run.data.tags.get("status") == "diverged":
                return Verdict(DIVERGED, run.info.run_id, reason=run.data.tags.get("diverged", "diverged"))
        # A run that MLflow takes for running may be: it is touched only if it was started from the job's own folder,
        # whose claim tells that it is not.
        ended = [run for run in runs if run.info.status != "RUNNING" or _is_own(run, launches)]
        candidates = [(path, run) for run in ended if (path := _checkpoint(self.directory(run)))]
        if not candidates:
            return Verdict(START)
        path, run = max(candidates, key=lambda candidate: candidate[0].stat().st_mtime_ns)
        return Verdict(RESUME, run.info.run_id, str(path), self._experiment(run))

    def abandon(self, runs: Collection[Run], launches: Collection[str], verdict: Verdict) -> None:
        """Ends what a kill has left as running in MLflow, and says why; nothing is deleted."""
        for run in runs:
            if run.info.status == "RUNNING" and _is_own(run, launches) and run.info.run_id != verdict.run_id:
                reason = f"killed; run {verdict.run_id} took over" if verdict.run_id else "killed before a checkpoint"
                with reached(self._uri):
                    send_tags(self.client, run.info.run_id, {"abandoned": reason})
                    self.client.set_terminated(run.info.run_id, "KILLED")


def _is_own(run: Run, launches: Collection[str]) -> bool:
    return run.data.tags.get("launch", "") in launches


def _checkpoint(directory: Path) -> Path | None:
    """The checkpoint to resume a run from: the last one, or the newest other one that is whole.

    A kill may have cut one, where the directory of temporary files, from which it is moved, is on another disk.
    """
    others = sorted(directory.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next(filter(zipfile.is_zipfile, [directory / "checkpoints" / "last.ckpt", *others]), None)


def prepare(tracking_uri: str, save_dir: Path, experiment_name: str) -> Ledger:
    """Makes store and experiment, one command at a time: MLflow cannot create a database twice at once.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    with _alone(save_dir), reached(tracking_uri):
        local = tracking_uri.startswith("sqlite:")
        find_experiment(connect(tracking_uri), experiment_name, str(save_dir / "artifacts") if local else None)
        return Ledger(tracking_uri, save_dir)


@contextmanager
def _alone(save_dir: Path) -> Iterator[None]:
    (save_dir / FOLDERS).mkdir(parents=True, exist_ok=True)
    with (save_dir / FOLDERS / "store.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def look(folder: Folder) -> Verdict:
    """Decides what is to be done with one claimed job, and ends its abandoned runs."""
    ledger = Ledger(os.environ["MLFLOW_TRACKING_URI"], folder.save_dir)
    runs, launches = ledger.runs(folder.identity)[folder.identity], folder.launches()
    verdict = ledger.judge(runs, launches)
    ledger.abandon(runs, launches, verdict)
    return verdict


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(asdict(look(Folder(sys.argv[1])))) + "\n")
    except TrackingError as tracking_error:
        sys.exit(str(tracking_error))
