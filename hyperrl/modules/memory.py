"""What an aggregator remembers, advanced by one step or over a whole sequence with resets, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperrl.modules.scan import cut_at_resets, linear_scan, running_max, running_sum


class Part(NamedTuple):
    """One slice of an aggregator's state.

    Attributes:
        width: number of features.
        initial: their value at a task's start.
        learnable: whether an encoder with a learned initial state may learn that value; not so for counts (Q32).
    """

    width: int
    initial: float = 0.0
    learnable: bool = True


class Memory(Protocol):
    """The parts of a state, each advanced once per use. Values are ``[B, p]`` in one step, ``[B, T, p]`` in many."""

    def sum(self, part: str, value: Tensor, decay: Tensor | None = None) -> Tensor:
        """Adds ``value`` to a part, which decays by the factor ``decay`` before; returns the part after each step."""

    def max(self, part: str, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """Raises a part to at least ``value``; returns the part after each step."""

    def before(self, part: str) -> Tensor:
        """A part, which has been advanced, as it was before each step."""


class StepMemory:
    """The memory during one step.

    Args:
        parts: every part ``[B, p]`` before the step.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self._old = parts
        self.parts = dict(parts)

    def sum(self, part: str, value: Tensor, decay: Tensor | None = None) -> Tensor:
        """See `Memory`."""
        old = self._old[part]
        self.parts[part] = value + (old if decay is None else decay * old)
        return self.parts[part]

    def max(self, part: str, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """See `Memory`."""
        old = self._old[part]
        self.parts[part] = _StraightMaximum.apply(value, old) if straight_through else torch.maximum(value, old)
        return self.parts[part]

    def before(self, part: str) -> Tensor:
        """See `Memory`."""
        return self._old[part]


class _StraightMaximum(torch.autograd.Function):
    """A maximum that is differentiated as if it were a sum."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


class SequenceMemory:
    """The memory over a whole sequence.

    Args:
        reset: where the state becomes the initial one **before** the entry is consumed ``[B, T]``; none for nowhere.
        state: every part ``[B, p]`` before the first step.
        initial: every part ``[B, p]`` at a task's start.
    """

    def __init__(self, reset: Tensor | None, state: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> None:
        self._reset, self._state, self._initial = reset, state, initial
        self.parts: dict[str, Tensor] = {}

    def sum(self, part: str, value: Tensor, decay: Tensor | None = None) -> Tensor:
        """See `Memory`."""
        state, initial = self._state[part], self._initial[part]
        if decay is None:
            self.parts[part] = running_sum(value, self._reset, state, initial)
            return self.parts[part]
        if self._reset is not None:
            decay, value = cut_at_resets(decay, value, self._reset, initial)
        self.parts[part] = linear_scan(decay, value, state)
        return self.parts[part]

    def max(self, part: str, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """See `Memory`."""
        state, initial = self._state[part], self._initial[part]
        self.parts[part] = running_max(value, self._reset, state, initial, straight_through=straight_through)
        return self.parts[part]

    def before(self, part: str) -> Tensor:
        """See `Memory`."""
        past = torch.cat([self._state[part].unsqueeze(1), self.parts[part][:, :-1]], 1)
        if self._reset is None:
            return past
        return torch.where(self._reset.unsqueeze(-1), self._initial[part].unsqueeze(1), past)
