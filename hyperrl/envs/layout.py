"""Sizes and bounds of an environment family, and the TorchRL specs that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.data.tensor_specs import TensorSpec

from hyperrl import keys

TaskSplit = Literal["all", "train", "test"]


class MetaEnvOptions(TypedDict, total=False):
    """Options that every environment family takes.

    Attributes:
        seed: seed of the environment's own generator; nothing global is read or changed.
        device: where the environments live.
        publish: what to publish besides the observation: task, task_id, state_id, belief, success.
        task_split: draw tasks from all tasks, or only from the training or the test tasks.
        test_fraction: share of the tasks that are test tasks (at least one task is on either side).
        split_seed: seed of the rule that divides the tasks.
        fixed_task: the task that every reset plays, in the units of the published task; None draws tasks.
        record_path: keep the path of the current episode for `render_frame`, in families with places in a plane.
    """

    seed: int
    device: str | torch.device
    publish: Sequence[str]
    task_split: TaskSplit
    test_fraction: float
    split_seed: int
    fixed_task: Sequence[float] | None
    record_path: bool


@dataclass(frozen=True)
class Layout:
    """Sizes and bounds of an environment family, for one inner episode.

    Attributes:
        episode_length: H, the largest number of steps of an inner episode.
        observation_low: lower bound of every observation element (no flag).
        observation_high: upper bound of every observation element (no flag).
        num_actions: number of discrete actions, or None if actions are continuous.
        action_low: lower bound of every action element (continuous only).
        action_high: upper bound of every action element (continuous only).
        task_dim: length of the task vector.
        num_tasks: number of task ids, or None if tasks are not numbered.
        num_states: number of state ids, or None if states are not numbered.
        belief_dim: length of the belief, or None if there is none.
    """

    episode_length: int
    observation_low: Sequence[float]
    observation_high: Sequence[float]
    num_actions: int | None = None
    action_low: Sequence[float] = ()
    action_high: Sequence[float] = ()
    task_dim: int = 0
    num_tasks: int | None = None
    num_states: int | None = None
    belief_dim: int | None = None


@dataclass(frozen=True)
class SpecFactory:
    """Specs with leading dimension B.

    Attributes:
        num_envs: B.
        device: where the environments live.
    """

    num_envs: int
    device: torch.device

    def observations(
        self, layout: Layout, obs_dim: int, action_dim: int, publish: Sequence[str]
    ) -> dict[str, TensorSpec]:
        """Specs of all entries that the policy finds at the root."""
        flag = obs_dim - len(layout.observation_low)
        low = (*layout.observation_low, *[0.0] * flag)
        high = (*layout.observation_high, *[1.0] * flag)
        entries: dict[str, TensorSpec] = {
            keys.OBSERVATION: self.bounded(low, high),
            # Zero after a reset, wherever the bounds of the originals are.
            keys.PREV_OBSERVATION: self.unbounded(obs_dim),
            keys.PREV_ACTION: self.unbounded(action_dim),
            keys.PREV_REWARD: self.unbounded(1),
            keys.IS_INIT: self.boolean(),
            keys.EPISODE_DONE: self.boolean(),
        }
        belief_dim = layout.belief_dim or 0
        optional: dict[str, Callable[[], TensorSpec]] = {
            keys.TASK: lambda: self.unbounded(layout.task_dim),
            keys.TASK_ID: lambda: self.index(layout.num_tasks),
            keys.STATE_ID: lambda: self.index(layout.num_states),
            keys.BELIEF: lambda: self.bounded([0.0] * belief_dim, [1.0] * belief_dim),
            keys.SUCCESS: self.boolean,
        }
        return entries | {name: optional[name]() for name in publish}

    def action(self, layout: Layout) -> TensorSpec:
        """An index `[B]`, or a box `[B, A]`."""
        if layout.num_actions is None:
            return self.bounded(layout.action_low, layout.action_high)
        return self.index(layout.num_actions)

    def bounded(self, low: Sequence[float], high: Sequence[float]) -> Bounded:
        """A box of float32 `[B, len(low)]`."""
        shape = (self.num_envs, len(low))
        low_, high_ = (self._row(bound).expand(shape) for bound in (low, high))
        return Bounded(low_, high_, shape=shape, dtype=torch.float32, device=self.device)

    def unbounded(self, size: int) -> Unbounded:
        """Any float32 `[B, size]`."""
        return Unbounded(shape=(self.num_envs, size), dtype=torch.float32, device=self.device)

    def boolean(self) -> Categorical:
        """A bool `[B, 1]`."""
        return Categorical(2, shape=(self.num_envs, 1), dtype=torch.bool, device=self.device)

    def index(self, size: int | None) -> Categorical:
        """An int64 `[B]` below `size`."""
        return Categorical(size, shape=(self.num_envs,), dtype=torch.int64, device=self.device)

    def _row(self, bound: Sequence[float]) -> Tensor:
        return torch.tensor(list(bound), dtype=torch.float32, device=self.device)


def is_number(value: object) -> bool:
    """Whether a value is a finite real number (a bool is none)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(**numbers: object) -> None:
    """Raise ValueError unless all values are finite numbers."""
    for name, value in numbers.items():
        if not is_number(value):
            raise ValueError(f"`{name}` is {value!r}: expected a finite number")


def check_flags(**flags: object) -> None:
    """Raise ValueError unless all values are bools."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` is {value!r}: expected true or false")


def check_positive(name: str, value: int) -> None:
    """Raise ValueError unless `value` is an integer of at least 1."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"`{name}` is {value!r}: expected an integer of at least 1")


def check_seeds(**seeds: int) -> None:
    """Raise ValueError unless all values are integers that a generator takes."""
    for name, value in seeds.items():
        if not _is_integer(value) or not -(2**63) <= value < 2**64:
            raise ValueError(f"`{name}` is {value!r}: expected an integer of 64 bits")


def parse_device(device: str | torch.device) -> torch.device:
    """Return a device that can be used here, or raise ValueError."""
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:  # depends on how torch was built
        raise ValueError(f"`device` is {device!r}: expected one that is present, such as 'cpu' or 'cuda'") from error


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
