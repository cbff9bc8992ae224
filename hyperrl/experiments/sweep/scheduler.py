"""Hands jobs to Ray: ``python -m hyperrl.experiments.sweep.scheduler``, with a `Plan` as the first line of its input.

This is a process of its own because Ray ends the process that drives it when something of Ray dies. It holds no state:
whoever has started it may start it again. It ends when its standard input does, and takes a local Ray with it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from hyperrl.experiments.sweep.folder import Folder, State, settled
from hyperrl.experiments.sweep.supervisor import BUSY, SETTLED

DONE, REFUSED, RAY_DIED = 0, 2, 3
_POLL = 1.0
_SECONDS_TO_CONNECT = 10.0
_RAY = ("raylet", "gcs_server")
# Of a local Ray: a supervisor ends by itself, and gently; memory is used by its training, which Ray does not see; and
# trainings are what the computer is there for.
_ENVIRONMENT = {
    "RAY_kill_child_processes_on_worker_exit": "0",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True)
class Plan:
    """What the command tells the scheduler.

    Attributes:
        folders: the jobs' folders, in the order in which they are started.
        old: launches that do not count: what they have left is to be done again.
        owner: names the command.
        environment: variables for the jobs.
        address: Ray cluster; None starts a local Ray.
        cpus_per_run: CPUs of a job.
        gpus_per_run: share of a GPU of a job.
        max_parallel: jobs at once at most; None for as many as there are resources for.
        retries: further attempts after a failed one.
    """

    folders: list[str]
    old: list[str]
    owner: str
    environment: dict[str, str] = field(default_factory=dict)
    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    max_parallel: int | None = None
    retries: int = 2


def supervise(folder: str, owner: str, retries: int, environment: Mapping[str, str]) -> int:
    """Runs a job's supervisor and returns its exit status; the Ray task."""
    command = [sys.executable, "-m", "hyperrl.experiments.sweep.supervisor", folder, owner, str(retries)]
    # The supervisor ends when its input does, which is when this process ends.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, env={**os.environ, **environment}, start_new_session=True
    )
    return process.wait()


class Scheduler:
    """Starts jobs as resources become free, until all have ended, here or elsewhere.

    Args:
        plan: what is to be done.
        ray: the module, connected.
    """

    def __init__(self, plan: Plan, ray: Any) -> None:
        self.plan, self._ray = plan, ray
        self._waiting = [Folder(path) for path in plan.folders]
        self._tasks: dict[Any, Folder] = {}
        self._deaths: Counter[str] = Counter()
        # Not by its name: what `python -m` runs is known to no worker by that.
        self._task = ray.remote(num_cpus=plan.cpus_per_run, num_gpus=plan.gpus_per_run, max_retries=0)(supervise)

    def run(self) -> None:
        """Returns when no job is left to do."""
        while self._waiting or self._tasks:
            self._submit()
            if not self._tasks:
                time.sleep(_POLL)  # all that is left runs elsewhere
                continue
            done, _ = self._ray.wait(list(self._tasks), timeout=_POLL)
            for task in done:
                self._ended(task, self._tasks.pop(task))

    def _submit(self) -> None:
        slots = self._slots()
        running = {folder.path for folder in self._tasks.values()}
        for folder in list(self._waiting):
            if settled(folder, self.plan.old):
                self._waiting.remove(folder)
            elif len(self._tasks) < slots and folder.path not in running and not folder.claimed():
                self._waiting.remove(folder)
                plan = self.plan
                task = self._task.remote(str(folder.path), plan.owner, plan.retries, plan.environment)
                self._tasks[task] = folder

    def _ended(self, task: Any, folder: Folder) -> None:
        try:
            status = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            status = str(error).splitlines()[0]
        if settled(folder, self.plan.old):
            return
        if status not in (SETTLED, BUSY):
            self._deaths[folder.identity] += 1
        if self._deaths[folder.identity] > self.plan.retries:
            self._give_up(folder, f"its supervisor has died again and again ({status})")
        else:
            self._waiting.append(folder)

    def _give_up(self, folder: Folder, reason: str) -> None:
        claim = folder.claim()
        if claim is None:  # it still trains, or somebody else is at it
            self._waiting.append(folder)
            return
        state = folder.state()
        launch = state.launch if state and state.launch not in self.plan.old else os.urandom(16).hex()
        folder.add_launch(launch)
        folder.write_state(State("failed", launch, self.plan.owner, reason=reason))
        os.close(claim)

    def _slots(self) -> int:
        """How many jobs there are resources for; a cluster may grow and shrink."""
        total = self._ray.cluster_resources()
        needs = {"CPU": self.plan.cpus_per_run, "GPU": self.plan.gpus_per_run}
        slots = int(min(total.get(name, 0.0) / need + 1e-9 for name, need in needs.items() if need > 0))
        return min(slots, self.plan.max_parallel or slots)

    def check(self) -> str | None:
        """What is wrong with the resources, if no job could ever run."""
        if self._slots() > 0 or self.plan.address is not None:  # a cluster may grow
            return None
        total = self._ray.cluster_resources()
        has = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
        return (
            f"cpus_per_run is {self.plan.cpus_per_run:g} and gpus_per_run {self.plan.gpus_per_run:g}, and this "
            f"computer has {has}; expected no more than that"
        )


def connect(plan: Plan) -> Any:
    """Joins a cluster, or starts a local Ray.

    Returns:
        The module.

    Raises:
        OSError: there is no cluster at the address.
        ValueError: this is no address.
    """
    if plan.address and ":" in plan.address:  # Ray itself would try for many minutes
        host, port = plan.address.rpartition("/")[2].rsplit(":", 1)
        socket.create_connection((host, int(port)), _SECONDS_TO_CONNECT).close()
    os.environ.update(_ENVIRONMENT)
    import ray

    ray.init(
        address=plan.address or "local",
        include_dashboard=None if plan.address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return ray


def watch(local: bool, ended: threading.Event) -> None:
    """Ends this process, whatever it is waiting for, with its parent and with the Ray that it has started."""
    own = [child for child in psutil.Process().children() if child.name() in _RAY] if local else []
    status = RAY_DIED
    while all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in own):
        if select.select([0], [], [], _POLL)[0]:
            status = DONE
            break
    if ended.is_set():
        return
    for process in own:
        # Workers and agents are its children; supervisors are theirs, and end gently as their input ends.
        with suppress(psutil.NoSuchProcess):
            for part in [*process.children(), process]:
                part.kill()
    os._exit(status)


def main(line: str) -> int:
    """Runs a plan."""
    plan = Plan(**json.loads(line))
    try:
        ray = connect(plan)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"Ray at {plan.address or 'this computer'}: {str(error).splitlines()[0]}\n")
        return REFUSED
    ended = threading.Event()
    threading.Thread(target=watch, args=[plan.address is None, ended], daemon=True).start()
    scheduler = Scheduler(plan, ray)
    problem = scheduler.check()
    if problem is None:
        scheduler.run()
    ended.set()
    ray.shutdown()
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return REFUSED
    return DONE


def command() -> Sequence[str]:
    """How to start a scheduler."""
    return [sys.executable, "-m", "hyperrl.experiments.sweep.scheduler"]


if __name__ == "__main__":
    # Unbuffered, so that the end of the input is seen by `select`.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        sys.exit(main(stdin.readline().decode()))
