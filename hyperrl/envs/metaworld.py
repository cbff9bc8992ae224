"""Meta-World: a robot arm has to reach, push and grasp for a goal that it cannot see."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.host import HostMetaEnv
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_positive, is_number
from hyperrl.envs.registration import EnvEntry

_CLASSES = {"ML1": (1, 1), "ML10": (10, 5), "ML45": (45, 5)}  # of training and of test tasks
_VARIANTS = 50  # tasks of a class


class MetaWorld(HostMetaEnv):
    """A benchmark of Meta-World's (`spec/envs-mujoco.md` section 8).

    A task is one of a benchmark's 50 variants of a class: where object and goal are. It fixes an episode's start, there
    is no other noise. ML1 has one class and 50 tasks each for training and test; ML10 and ML45 have 10 and 45 training
    classes and 5 others for tests. There, each environment plays all classes once, in random order, before it plays one
    again, and all variants of a class once before it plays one again.

    Actions are the velocity of the hand, `[-1, 1]` in three directions, and the force of the gripper. Beyond that range
    the library clips the first three.

    A task vector is the goal `[3]`; with several classes a one-hot class comes first, zeros for test classes, and
    `task_id`, which needs a `task_split` of train or test, is the number of the class within it. The goal does not tell
    where the object starts, which an observation shows. `fixed_task` and `inject` take a task vector, or `[i]` for
    number i of the benchmark's tasks, training tasks first.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        benchmark: ML1, ML10 or ML45.
        task_name: class of ML1, such as reach or door-open.
        benchmark_seed: seed of the benchmark's tasks; the same for training, validation and test.
        episode_length: H, the number of steps after which an episode is truncated; 150 in the first Meta-World.
        reward_version: v2, at most 10 per step, or v1, the rewards of the first Meta-World, up to thousands.
        sparse_rewards: whether the reward is 1 in steps with success and 0 in others.
        terminate_on_success: whether success ends an episode; it then costs the rewards that would have come.
        num_workers: number of processes besides this one among which the environments are divided; None takes what the
            machine has, as far as torch may use it (`OMP_NUM_THREADS=1` makes it 0).
        **options: what all environments take, see `MetaEnvOptions`. `task_split` is the benchmark's own.

    Raises:
        ValueError: if Meta-World is not installed, or an argument is out of range.

    Example:
        >>> env = MetaWorld(8, task_name="reach", publish=["task", "success"])
        >>> env.rollout(3)["task"].shape
        torch.Size([8, 3, 3])
    """

    benchmark_split = True

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 2,
        *,
        benchmark: Literal["ML1", "ML10", "ML45"] = "ML1",
        task_name: str | None = None,
        benchmark_seed: int = 0,
        episode_length: int = 500,
        reward_version: Literal["v1", "v2"] = "v2",
        sparse_rewards: bool = False,
        terminate_on_success: bool = False,
        num_workers: int | None = None,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_positive("num_envs", num_envs)
        check_positive("episode_length", episode_length)
        check_flags(sparse_rewards=sparse_rewards, terminate_on_success=terminate_on_success)
        if reward_version not in ("v1", "v2"):
            raise ValueError(f"`reward_version` is {reward_version!r}: expected 'v1' or 'v2'")
        if not is_number(benchmark_seed) or benchmark_seed % 1 or not 0 <= benchmark_seed < 2**32 - 1:
            raise ValueError(f"`benchmark_seed` is {benchmark_seed!r}: expected an integer from 0 to 2**32 - 2")
        simulation = _simulation()
        _check_names(benchmark, task_name, simulation.TASK_NAMES)
        num_train, num_test = _CLASSES[benchmark]
        num_tasks = None if benchmark == "ML1" else num_train
        layout = Layout(
            episode_length,
            simulation.OBSERVATION_LOW,
            simulation.OBSERVATION_HIGH,
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            task_dim=3 + (num_tasks or 0),
            num_tasks=num_tasks,
        )
        self._benchmark = task_name or benchmark, int(benchmark_seed)
        build = partial(
            simulation.MetaWorldBatch,
            tasks=simulation.load_tasks(*self._benchmark),
            episode_length=episode_length,
            reward_version=reward_version,
            sparse_rewards=sparse_rewards,
            terminate_on_success=terminate_on_success,
        )
        workers = _free_cores(num_envs) if num_workers is None else num_workers
        super().__init__(num_envs, episodes_per_task, layout, build, workers, **options)
        self._simulation = simulation
        self._num_classes = num_train, num_test
        tasks = torch.arange((num_train + num_test) * _VARIANTS, device=self.device).view(-1, _VARIANTS)
        self._drawn = {"all": tasks, "train": tasks[:num_train], "test": tasks[num_train:]}[self.task_split]
        self._goals = np.zeros((num_envs, 3), dtype=np.float32)

    # Tasks -------------------------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw numbers of tasks `[n]`; with several classes the next of each environment, and `n` is B."""
        if self.num_tasks is None:
            index = torch.randint(self._drawn.numel(), (n,), generator=self._generator, device=self.device)
            return self._drawn.flatten()[index]
        self._deal()
        return self.state["deck"].gather(1, self.state["played"].unsqueeze(1)).squeeze(1)

    def reset_task(self, mask: Tensor) -> None:
        """Take the task off the deck."""
        super().reset_task(mask)
        if self.num_tasks is not None:
            self._deal()
            self.state["played"] = self.state["played"] + mask

    def _deal(self) -> None:
        """Give a new deck to all environments that have played theirs."""
        used_up = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        if "deck" in self.state:
            used_up = self.state["played"] == self._drawn.numel()
        if used_up.any():
            self.write("deck", used_up, self._decks())
            self.write("played", used_up, self._zero)

    def _decks(self) -> Tensor:
        """Tasks in the order of playing, `[B, 50 * classes]`: all classes before any again, so all tasks of a class."""
        classes = len(self._drawn)
        tasks = self._drawn.expand(self.num_envs, -1, -1).gather(2, self._permutations(classes, _VARIANTS))
        return tasks.transpose(1, 2).gather(2, self._permutations(_VARIANTS, classes)).flatten(1)

    def _permutations(self, count: int, size: int) -> Tensor:
        """Random orders `[B, count, size]`."""
        return torch.rand(self.num_envs, count, size, generator=self._generator, device=self.device).argsort(-1)

    def _set_seed(self, seed: int | None) -> None:
        super()._set_seed(seed)
        if "deck" in self.state:  # what the old seed has dealt is not played
            self.state["played"] = torch.full_like(self.state["played"], self._drawn.numel())

    # The inner episode -------------------------------------------------------------------------------------------

    def restart(self, rows: np.ndarray) -> list[np.ndarray]:
        """Begin the current episodes of the environments `rows` `[n]`, and note where their goals are."""
        told = super().restart(rows)
        if told:
            (self._goals[rows],) = told
        self.state["goal"] = torch.tensor(self._goals, device=self.device)
        return told

    def task_title(self, index: int) -> str:
        """Name of the class, and which of its tasks it is."""
        number = int(self.state[keys.TASK][index])
        return f"{self._simulation.class_name(*self._benchmark, number)}, task {number}"

    # What can be published and injected --------------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Goal `[B, 3]`, with several classes after a one-hot class, which is zero for test classes."""
        return self._vectors(self.state[keys.TASK], self.state["goal"])

    @property
    def publish_task_id(self) -> Callable[[], Tensor]:
        """Returns the number of the class within its split `[B]`; missing if there is only one class, or no split."""
        if self.num_tasks is None:
            raise AttributeError("tasks of a single class have no numbers")
        if self.task_split == "all":
            raise AttributeError("training and test classes have the same numbers")
        return lambda: self._class(self.state[keys.TASK]) % self._num_classes[0]

    def _check_publish(self, publish: Sequence[str]) -> tuple[str, ...]:
        try:
            return super()._check_publish(publish)
        except ValueError as error:
            if self.num_tasks is None or self.task_split != "all":
                raise
            raise ValueError(f"{error}, and with `task_split` 'train' or 'test' also {keys.TASK_ID}") from error

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Check task vectors, or numbers of tasks `[1]` or `[B, 1]`; return numbers `[B]`."""
        if value.shape[-1:] != (1,):
            rows = self.rows_of(name, value, (self.task_dim,)).to(torch.float32)
            return self._find(name, rows)
        number = self.rows_of(name, value, (1,)).squeeze(-1)
        total = sum(self._num_classes) * _VARIANTS
        valid = (number == number.to(torch.int64)) & (number >= 0) & (number < total)
        self.check_rows(name, number, valid, f"the number of a task, from 0 to {total - 1}")
        return number.to(torch.int64)

    def _find(self, name: str, rows: Tensor) -> Tensor:
        """Numbers of the tasks with certain vectors `[B, task_dim]`."""
        goals = self._simulation.load_goals(*self._benchmark)
        vectors = self._vectors(torch.arange(len(goals), device=self.device), torch.tensor(goals, device=self.device))
        equal = (rows.unsqueeze(1) == vectors).all(-1)
        self.check_rows(name, rows, equal.any(-1), "a task of the benchmark")
        only = equal.sum(-1) == 1
        self.check_rows(name, rows, only, "the number [i] of a task, since several have this goal")
        return equal.to(torch.int64).argmax(-1)

    def _vectors(self, task: Tensor, goal: Tensor) -> Tensor:
        """Task vectors `[n, task_dim]` of tasks, numbers `[n]`, whose goals are `[n, 3]`."""
        if self.num_tasks is None:
            return goal.clone()
        classes = torch.arange(self.num_tasks, device=self.device)
        return torch.cat(((self._class(task).unsqueeze(-1) == classes).to(goal.dtype), goal), -1)

    def _class(self, task: Tensor) -> Tensor:
        """Numbers of the classes of tasks; those of test classes follow those of training classes."""
        return task // _VARIANTS


def _simulation() -> ModuleType:
    """What runs Meta-World; imported here, so that who does not use it neither needs it nor waits for it."""
    try:
        from hyperrl.workers import metaworld
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hyperrl"):
            raise
        raise ValueError(f"Meta-World is not installed ({error}): pip install 'hyperrl[metaworld]'") from error
    return metaworld


def _check_names(benchmark: str, task_name: str | None, known: Sequence[str]) -> None:
    if benchmark not in _CLASSES:
        raise ValueError(f"`benchmark` is {benchmark!r}: expected one of {', '.join(_CLASSES)}")
    if (benchmark == "ML1") != (task_name is not None):
        expected = "a class of Meta-World's" if benchmark == "ML1" else f"None, since {benchmark} has its own classes"
        raise ValueError(f"`task_name` is {task_name!r}: expected {expected}")
    if task_name is not None and task_name not in known:
        nearest = get_close_matches(str(task_name), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"`task_name` is {task_name!r}: the nearest valid name is {nearest!r}")


def _free_cores(num_envs: int) -> int:
    """Cores besides that of this process which torch may use, too: `OMP_NUM_THREADS` keeps parallel runs apart."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, torch.get_num_threads(), num_envs) - 1


def _entry(name: str, description: str, **kwargs: Any) -> EnvEntry:
    return EnvEntry(name, f"{__name__}:MetaWorld", description, kwargs)


ENVS = (
    _entry("ML1-reach-v0", "Meta-World: move the hand to a hidden goal", benchmark="ML1", task_name="reach"),
    _entry("ML1-push-v0", "Meta-World: push an object to a hidden goal", benchmark="ML1", task_name="push"),
    _entry(
        "ML1-pick-place-v0", "Meta-World: carry an object to a hidden goal", benchmark="ML1", task_name="pick-place"
    ),
    _entry("ML1-v0", "Meta-World: one class of tasks, by task_name", benchmark="ML1", task_name="reach"),
    _entry("ML10-v0", "Meta-World: 10 classes of tasks for training, 5 others for the test", benchmark="ML10"),
    _entry("ML45-v0", "Meta-World: 45 classes of tasks for training, 5 others for the test", benchmark="ML45"),
)
