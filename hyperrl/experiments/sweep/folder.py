"""The folder of a job, ``<save_dir>/sweeps/<identity>/``: who has claimed it, and how far it has come.

Nothing in here needs a clock or cleaning up after a kill: the claim is a lock that the kernel gives back when the last
process that holds it has ended. This module imports nothing heavy, since a supervisor lives as long as its training.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDERS = "sweeps"


@dataclass(frozen=True)
class State:
    """What is known of the newest launch of a job.

    Attributes:
        status: ``running``, ``finished``, ``failed`` or ``stopped``.
        launch: names the supervisor that has written this; new for each.
        owner: names the command ``hyperrl sweep`` that has launched it.
        failures: attempts that have failed.
        reason: why it has failed, or why the last attempt has.
        run_id: its MLflow run, as far as known.
        host: computer that it runs on.
        process: id of the training process, 0 before it starts; also of its process group.
    """

    status: str
    launch: str
    owner: str
    failures: int = 0
    reason: str = ""
    run_id: str = ""
    host: str = ""
    process: int = 0


class Folder:
    """One job's folder.

    Args:
        path: ``<save_dir>/sweeps/<identity>``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def identity(self) -> str:
        """The tag ``identity`` of the job's runs."""
        return self.path.name

    @property
    def save_dir(self) -> Path:
        """Directory of all run directories."""
        return self.path.parents[1]

    @property
    def log(self) -> Path:
        """What all attempts have written."""
        return self.path / "log.txt"

    # ---- the claim

    def claim(self) -> int | None:
        """Claims the job for this process and those that inherit the descriptor.

        Returns:
            The descriptor, which must stay open; None where the job is claimed already.
        """
        return self._lock(fcntl.LOCK_EX)

    def claimed(self) -> bool:
        """Whether somebody has claimed the job."""
        # Shared, so that those who only look do not get in each other's way.
        descriptor = self._lock(fcntl.LOCK_SH) if self.path.is_dir() else -1
        if descriptor is None:
            return True
        if descriptor >= 0:
            os.close(descriptor)
        return False

    def _lock(self, kind: int) -> int | None:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    # ---- what is to be done

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Keeps what a supervisor must know; the folder is made."""
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.path / "job.json", job)

    def job(self) -> dict[str, Any]:
        """What `write_job` has kept."""
        result: dict[str, Any] = json.loads((self.path / "job.json").read_text())
        return result

    # ---- how far it has come

    def write_state(self, state: State) -> None:
        """Replaces the state; only whoever has claimed the job may do so."""
        _replace(self.path / "state.json", asdict(state))

    def state(self) -> State | None:
        """The newest state; None before the first launch."""
        with suppress(FileNotFoundError):
            return State(**json.loads((self.path / "state.json").read_text()))
        return None

    def add_launch(self, launch: str) -> None:
        """Remembers a launch, and with it which MLflow runs were started from this folder."""
        with (self.path / "launches").open("a") as file:
            file.write(f"{launch}\n")

    def launches(self) -> set[str]:
        """All launches."""
        with suppress(FileNotFoundError):
            return set((self.path / "launches").read_text().split())
        return set()


def settled(folder: Folder, old: Iterable[str]) -> bool:
    """Whether a job has finished or failed for good, in a launch that is not one of `old`."""
    state = folder.state()
    return state is not None and state.status in ("finished", "failed") and state.launch not in old


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file at once, whoever reads it or is killed meanwhile."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)
