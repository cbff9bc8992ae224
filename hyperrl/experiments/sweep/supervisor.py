"""One job from its claim to its end: ``python -m hyperrl.experiments.sweep.supervisor FOLDER OWNER RETRIES``.

A supervisor runs ``hyperrl fit`` in a process group of its own until MLflow has the finished run, at most as often as
it may. It ends the training when its own standard input ends, which is when whoever has started it does, however that
came about. If the supervisor itself is killed, the kernel tells the training to stop (on Linux), and the training holds
the claim until it has.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyperrl.experiments.sweep.folder import Folder, State

SETTLED, BUSY = 0, 75
USAGE_ERROR = 2  # of `hyperrl fit`; it would be refused again, unlike a run that could not reach MLflow
GRACE = 120.0  # seconds until a training that was told to stop is killed; it ends after the rollout that it is in
PATIENCE = 600.0  # seconds for MLflow to answer
_POLL = 0.2
_PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """Whoever has started this process is gone, or wants it to stop."""


class Supervisor:
    """Runs one claimed job.

    Args:
        folder: the job's folder.
        owner: names the command that has launched this.
        retries: further attempts after a failed one.
        claim: the descriptor of the claim, for the training to inherit.
    """

    def __init__(self, folder: Folder, owner: str, retries: int, claim: int) -> None:
        before = folder.state()
        # After a kill of this process, or of Ray, the same command goes on counting.
        failures = before.failures if before and before.owner == owner and before.status == "running" else 0
        self.folder, self.retries, self.claim = folder, retries, claim
        self.job = folder.job()
        self.state = State("running", uuid.uuid4().hex, owner, failures, host=platform.node())
        folder.add_launch(self.state.launch)
        folder.write_state(self.state)

    def run(self) -> None:
        """Trains until the job is finished, or has failed for good, or this process is told to stop."""
        try:
            verdict = self._look()
            while verdict["verdict"] not in ("finished", "diverged"):
                status = self._train(verdict)
                reason = f"{describe(status)}: {last_line(self.folder)}"
                verdict = self._look()
                if verdict["verdict"] in ("resume", "start"):
                    self._update(failures=self.state.failures + 1, reason=reason, process=0)
                    if status == USAGE_ERROR or self.state.failures > self.retries:
                        self._update(status="failed")
                        return
            finished = verdict["verdict"] == "finished"
            reason = "" if finished else f"diverged: {verdict['reason']}"
            self._update(status="finished" if finished else "failed", reason=reason, run_id=verdict["run_id"])
        except Stopped:
            self._update(status="stopped", process=0)
        except OSError as error:  # the disk is full, or Python is gone: no reason to try again and again
            self._update(status="failed", reason=str(error))

    def _update(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self.folder.write_state(self.state)

    def _look(self) -> dict[str, Any]:
        """Asks MLflow, for some minutes if it is away."""
        command = [sys.executable, "-m", "hyperrl.experiments.sweep.ledger", str(self.folder.path)]
        wait, end = 1.0, time.monotonic() + PATIENCE
        while True:
            with self.folder.log.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    cwd=self.job["directory"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    preexec_fn=end_with_parent(),
                )
                try:
                    _wait(process)
                except Stopped:
                    process.kill()
                    process.wait()
                    raise
            answer = process.stdout.read() if process.stdout else b""
            if process.returncode == 0:
                verdict: dict[str, Any] = json.loads(answer.splitlines()[-1])
                self._update(run_id=verdict["run_id"])
                return verdict
            if time.monotonic() > end:
                raise OSError(f"MLflow does not answer: {last_line(self.folder)}")
            _pause(wait)
            wait = min(2 * wait, 60.0)

    def arguments(self, verdict: Mapping[str, Any]) -> list[str]:
        """The arguments of ``hyperrl fit`` for one attempt.

        Args:
            verdict: what MLflow says of the job, a `ledger.Verdict`.
        """
        tags = json.dumps({**self.job["tags"], "identity": self.folder.identity, "launch": self.state.launch})
        arguments = [*self.job["arguments"], f"--trainer.logger.init_args.tags={tags}"]
        if not verdict["checkpoint"]:
            return arguments
        # Its metrics are where it was begun, which another sweep may have done.
        experiment = f"--trainer.logger.init_args.experiment_name={verdict['experiment']}"
        return ["--ckpt_path", verdict["checkpoint"], *arguments, experiment]

    def _train(self, verdict: Mapping[str, Any]) -> int:
        """One attempt.

        Returns:
            The exit status of ``hyperrl fit``.
        """
        arguments = self.arguments(verdict)
        command = [sys.executable, "-m", "hyperrl.cli", "fit", *arguments]
        with self.folder.log.open("ab") as log:
            log.write(f"\n$ hyperrl fit {' '.join(arguments)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=self.job["directory"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self.claim],
                preexec_fn=end_with_parent(),
            )
        self._update(process=process.pid)
        try:
            _wait(process)
        except Stopped:
            end(process)
            raise
        finally:
            _signal_group(process.pid, signal.SIGKILL)  # what the training may have left behind
        return process.returncode


def end_with_parent() -> Callable[[], None]:
    """What a child must call before it executes its program, so that it is told to stop when this process dies."""
    if sys.platform != "linux":
        return lambda: None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died before it could be asked
            os._exit(1)

    return ask


def end(process: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """Ends a training so that MLflow knows of it; kills its group if it takes too long."""
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _wait(process: subprocess.Popen[Any]) -> None:
    """Waits for a process.

    Raises:
        Stopped: standard input has ended.
    """
    while process.poll() is None:
        _pause(_POLL)


def _pause(seconds: float) -> None:
    # Nobody writes to standard input: it is readable only when it has ended.
    if select.select([0], [], [], seconds)[0]:
        raise Stopped


def describe(status: int) -> str:
    """An exit status in words.

    Example:
        >>> describe(1), describe(-9)
        ('exit status 1', 'killed by SIGKILL')
    """
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def last_line(folder: Folder) -> str:
    """The last line that says something in a job's log."""
    with folder.log.open("rb") as file:
        file.seek(max(0, folder.log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def _stop(*_: Any) -> None:
    """A signal is the same as the end of standard input."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def main(arguments: Sequence[str]) -> int:
    """Claims a job and runs it; BUSY where somebody else has claimed it."""
    folder = Folder(arguments[0])
    claim = folder.claim()
    if claim is None:
        return BUSY
    supervisor = Supervisor(folder, arguments[1], int(arguments[2]), claim)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    supervisor.run()
    return SETTLED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
