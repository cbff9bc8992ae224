"""What a sweep shows: the state of each job, as a table that stays in place or as one line per change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hyperrl.errors import TrackingError
from hyperrl.experiments.sweep.folder import Folder, settled
from hyperrl.experiments.sweep.ledger import DIVERGED, FINISHED, RESUME, Ledger, Verdict
from hyperrl.experiments.sweep.resolve import ResolvedJob

_ORDER = ("running", "failed", "interrupted", "queued", "finished")  # what is left out last, where not all fits
_STYLES = {"running": "bold", "failed": "red", "finished": "green"}
_TAIL = 65536  # bytes: enough for the metrics of some updates


@dataclass(frozen=True)
class Row:
    """What is shown of a job.

    Attributes:
        name: the job's name.
        status: queued, interrupted, running, finished or failed.
        about: progress, result or reason.
        event: what of `about` is worth a line of its own.
    """

    name: str
    status: str
    about: str = ""
    event: str = ""


class Board:
    """The state of all jobs of a sweep, out of MLflow and their folders.

    Args:
        jobs: the jobs.
        folders: their folders.
        ledger: MLflow; None where there is no store yet.
        old: launches whose failures do not count any more.
    """

    def __init__(
        self, jobs: Sequence[ResolvedJob], folders: Sequence[Folder], ledger: Ledger | None, old: Collection[str] = ()
    ) -> None:
        self.jobs, self.folders = jobs, folders
        self._ledger, self._old = ledger, old
        runs = ledger.runs() if ledger else {}
        self._verdicts = {
            folder.identity: ledger.judge(runs.get(folder.identity, []), folder.launches()) if ledger else Verdict("")
            for folder in folders
        }
        self._directories: dict[str, Path] = {}

    @property
    def open(self) -> list[Folder]:
        """Folders of the jobs that were neither finished nor diverged at first."""
        done = (FINISHED, DIVERGED)
        return [folder for folder in self.folders if self._verdicts[folder.identity].verdict not in done]

    def rows(self) -> list[Row]:
        """The present state of all jobs."""
        return [self._row(job, folder) for job, folder in zip(self.jobs, self.folders, strict=True)]

    def _row(self, job: ResolvedJob, folder: Folder) -> Row:
        name, verdict, state = job.job.name, self._verdicts[folder.identity], folder.state()
        if verdict.verdict == FINISHED:
            text = f"test return {verdict.result:.2f}"
            return Row(name, "finished", text, text)
        if verdict.verdict == DIVERGED:
            return Row(name, "failed", f"diverged: {verdict.reason}", verdict.reason)
        if state and folder.claimed():
            retried = f"attempt {state.failures + 1}, after: {state.reason}" if state.failures else ""
            return Row(name, "running", "  ".join(filter(None, [self._progress(job, folder), retried])), retried)
        if state and settled(folder, self._old):
            if state.status == "failed":
                return Row(name, "failed", state.reason, state.reason)
            if self._ledger and self._finished(folder, self._ledger):
                return self._row(job, folder)
        return Row(name, "interrupted" if verdict.verdict == RESUME else "queued")

    def _finished(self, folder: Folder, ledger: Ledger) -> bool:
        """Asks MLflow about a job whose supervisor says that it is finished."""
        verdict = ledger.judge(ledger.runs(folder.identity)[folder.identity], folder.launches())
        self._verdicts[folder.identity] = verdict
        return verdict.verdict == FINISHED

    def _progress(self, job: ResolvedJob, folder: Folder) -> str:
        directory = self._directory(folder)
        frames, speed = progress(directory / "metrics.jsonl") if directory else (0, 0.0)
        return f"{frames / max(job.frames, 1):4.0%}  {speed:,.0f} frames/s" if frames else "starting"

    def _directory(self, folder: Folder) -> Path | None:
        """Where the newest launch of a running job has its metrics."""
        state = folder.state()
        if state is None or self._ledger is None:
            return None
        if state.launch not in self._directories:
            for run in self._ledger.runs(folder.identity)[folder.identity]:
                if run.info.run_id == state.run_id or run.data.tags.get("launch") == state.launch:
                    self._directories[state.launch] = self._ledger.directory(run)
        return self._directories.get(state.launch)


def progress(path: Path) -> tuple[int, float]:
    """Frames trained on, and frames per second of the last update.

    Args:
        path: a ``metrics.jsonl``.
    """
    if not path.exists():
        return 0, 0.0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().splitlines(keepends=True)
    for line in reversed(lines):
        if line.startswith(b"{") and line.endswith(b"\n") and b"time/frames_per_second" in line:
            record = json.loads(line)
            return int(record["step"]), float(record["metrics"]["time/frames_per_second"])
    return 0, 0.0


def summary(rows: Sequence[Row]) -> str:
    """How many jobs are in which state."""
    counts = Counter(row.status for row in rows)
    return ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])


def as_table(rows: Sequence[Row], height: int = 0) -> Table:
    """A table of jobs.

    Args:
        rows: the jobs.
        height: rows at most; 0 for all. What is left out is finished or queued rather than running or failed.
    """
    shown = list(rows)
    if height and len(rows) > height:
        kept = sorted(range(len(rows)), key=lambda index: (_ORDER.index(rows[index].status), index))[:height]
        shown = [rows[index] for index in sorted(kept)]
    more = f"; {len(rows) - len(shown)} more" if len(shown) < len(rows) else ""
    table = Table("run", "state", box=None, pad_edge=False, caption=summary(rows) + more, caption_justify="left")
    table.add_column(no_wrap=height > 0, overflow="ellipsis")  # a table in place must not outgrow the terminal
    for row in shown:
        style = _STYLES.get(row.status, "")
        table.add_row(escape(row.name), row.status, escape(row.about), style=style)
    return table


class Display:
    """Shows a board while a sweep runs: in place on a terminal, elsewhere one plain line per change.

    Args:
        board: the jobs.
        console: where to. Default: the standard output.
    """

    def __init__(self, board: Board, console: Console | None = None) -> None:
        self._board = board
        self.console = console or Console()
        self._live: Live | None = None
        self._last: dict[str, tuple[str, str]] = {}
        self._away = False

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the table as long as the context lasts."""
        if not self.console.is_interactive:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def refresh(self) -> None:
        """Shows what has changed; while MLflow is away, what was shown last stays."""
        try:
            rows = self._board.rows()
        except TrackingError as error:
            if not self._away:
                self.line(f"no news of the runs, which go on: {error}")
            self._away = True
            return
        if self._away:
            self.line("MLflow is back")
        self._away = False
        if self._live is not None:
            self._live.update(as_table(rows, max(self.console.height - 4, 4)), refresh=True)
            return
        for row in rows:
            now = row.status, row.event
            if self._last.get(row.name, ("queued", "")) != now:
                self.line(f"{row.name}: {row.status}{f' ({row.event})' if row.event else ''}")
            self._last[row.name] = now

    def line(self, text: str) -> None:
        """Writes a line, above the table where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
