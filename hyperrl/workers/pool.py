"""Worker processes: they and this process each own a part of the environments; a vector step is one message to each.

Workers are plain child processes that are told over a pipe what to do. They know nothing of the main script, so it
needs no `__main__` guard; they hold no copy of the parent's threads and memory, as forked ones would; and they end when
the pipe does, however the parent has ended.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_SECONDS_TO_END = 5.0


class WorkerError(RuntimeError):
    """What went wrong in a worker, in one line; the worker's own traceback is a note."""


class Pool:
    """Environments in equal parts: one in this process, and one in each worker.

    This process works, too, rather than sleep until others have finished: of two cores, it needs one worker less.
    Nothing is built or started before the first call. The workers end with `close`, with this object, or with the
    process that owns it.

    Args:
        build: makes a part of so many environments; pickled, if there are workers.
        num_envs: number of environments in all parts together.
        num_workers: number of further processes; there are never more parts than environments.

    Example:
        >>> pool = Pool(partial(GymnasiumBatch, spec=gymnasium.spec("CartPole-v1")), num_envs=8, num_workers=1)
        >>> observation, reward, ends = pool.call("step", np.arange(8), actions)
    """

    def __init__(self, build: Callable[[int], Any], num_envs: int, num_workers: int) -> None:
        self._build = build
        count = min(num_workers + 1, num_envs)
        self._bounds = np.array([num_envs * index // count for index in range(count + 1)])
        self._parts: list[_Here | _Worker] = []  # the one of this process first

    def call(self, method: str, rows: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Call a method of every part that owns some of `rows`, all at the same time.

        Args:
            method: name of a method that takes a part's own rows and as many rows of each array.
            rows: which environments, ascending, `[n]`, at least one.
            *arrays: what each of them is given, `[n, ...]`.

        Returns:
            What the parts return, put together: arrays `[n, ...]`.

        Raises:
            WorkerError: if a worker has died, or the method has failed in one.
        """
        parts = self._parts or self._open()
        edges = np.searchsorted(rows, self._bounds).tolist()
        shares = [
            (part, (rows[first:last] - start, *(array[first:last] for array in arrays)))
            for part, start, first, last in zip(parts, self._bounds, edges, edges[1:], strict=False)
            if first < last
        ]
        try:
            for part, share in reversed(shares):  # this process comes last: it works as soon as it is asked
                part.ask(method, *share)
            replies = [part.reply() for part, _ in shares]
        except BaseException:  # an interruption, too: late replies would be taken for those of the next call
            self.close()
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return tuple(np.concatenate(column) for column in zip(*replies, strict=True))

    @property
    def here(self) -> Any:
        """The part in this process."""
        own, *_ = self._parts or self._open()
        assert isinstance(own, _Here)
        return own.batch

    def _open(self) -> list[_Here | _Worker]:
        here, *others = np.diff(self._bounds).tolist()
        workers = [
            _Worker(self._build, size, f"worker {number} of {len(others)}") for number, size in enumerate(others, 1)
        ]
        self._parts = [_Here(self._build(here)), *workers]
        return self._parts

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        parts, self._parts = self._parts, []
        for part in parts:
            part.close()


class _Here:
    """The environments of this process."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self._reply: Any = None

    def ask(self, method: str, *arguments: Any) -> None:
        self._reply = _outcome(lambda: getattr(self.batch, method)(*arguments))

    def reply(self) -> Any:
        return self._reply

    def close(self) -> None:
        self.batch.close()


class _Worker:
    """The environments of a worker."""

    def __init__(self, build: Callable[[int], Any], num_envs: int, name: str) -> None:
        self.name = name
        self._connection, theirs = Pipe()
        with theirs:
            code = f"import sys; sys.path = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.close = weakref.finalize(self, _end, self.process, self._connection)
        self._send(build, num_envs)

    def ask(self, method: str, *arguments: Any) -> None:
        self._send(method, *arguments)

    def reply(self) -> Any:
        try:
            reply = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death() from error
        if isinstance(reply, _Failure):
            failure = WorkerError(f"{self.name}: {reply.line}")
            failure.add_note(reply.traceback)
            return failure
        return reply

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(message))
        except OSError as error:
            raise self._death() from error

    def _death(self) -> WorkerError:
        self._connection.close()
        return WorkerError(f"{self.name} has died (exit code {self.process.wait(_SECONDS_TO_END)})")


class _Failure:
    """What a worker tells about an exception, which itself might not be picklable."""

    def __init__(self, error: Exception) -> None:
        self.line = " ".join(f"{type(error).__name__}: {error}".split())
        self.traceback = "".join(traceback.format_exception(error))


def serve(descriptor: int) -> None:
    """Build a part of the environments and do what the parent asks for, until its end of the pipe is closed.

    Args:
        descriptor: the worker's end of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which knows what to finish
    with Connection(descriptor) as connection:
        try:
            first = connection.recv_bytes()
            batch = _outcome(lambda: _built(*pickle.loads(first)))
            while True:
                request = connection.recv_bytes()
                connection.send_bytes(pickle.dumps(_told(batch, request)))
        except (EOFError, OSError):
            return


def _built(build: Callable[[int], Any], num_envs: int) -> Any:
    return build(num_envs)


def _told(batch: Any, request: bytes) -> Any:
    """The reply to a request."""
    if isinstance(batch, Exception):  # it could not be built
        return _Failure(batch)
    method, *arguments = pickle.loads(request)
    outcome = _outcome(lambda: getattr(batch, method)(*arguments))
    return _Failure(outcome) if isinstance(outcome, Exception) else outcome


def _outcome(function: Callable[[], Any]) -> Any:
    """What a function returns, or raises."""
    try:
        return function()
    except Exception as error:
        return error


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Close the pipe, which a worker takes as its end."""
    connection.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
