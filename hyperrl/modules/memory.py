"""What an aggregator remembers, advanced by one step or over a whole sequence with resets, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperrl.modules import scan
from hyperrl.modules.scan import cut_at_resets, linear_scan, running_max, running_sum
from hyperrl.modules.scan_kernels import WeightedMean


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


class Weighting(NamedTuple):
    """How a weighted mean is taken.

    Attributes:
        smallest: what the denominator, the sum of weights, is raised to.
        straight_through: ignore the division when differentiating.
        unit: given where weights are exponents: what 1 in a sum counts in such gradients, given the shift ``[..., d]``.
        log_variance: whether minus the logarithm of the denominator follows the mean.
    """

    smallest: float
    straight_through: bool = False
    unit: Callable[[Tensor], Tensor] | None = None
    log_variance: bool = False


class Memory(Protocol):
    """The parts of a state, each advanced once per use. Values are ``[B, p]`` in one step, ``[B, T, p]`` in many."""

    def sum(self, part: str, value: Tensor, decay: Tensor | None = None) -> Tensor:
        """Adds ``value`` to a part, which decays by the factor ``decay`` before; returns the part after each step."""

    def max(self, part: str, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """Raises a part to at least ``value``; returns the part after each step."""

    def mean(self, value: Tensor, weight: Tensor, weighting: Weighting) -> Tensor:
        """Advances the parts ``total`` and ``norm``, the sums of weighted values and of weights; returns their ratio.

        Exponents instead of weights are taken relative to the part ``shift``, the largest so far, which is the unit of
        both sums: they neither overflow nor lose what came early. No gradient flows through that unit, because the mean
        does not depend on it.
        """

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

    def mean(self, value: Tensor, weight: Tensor, weighting: Weighting) -> Tensor:
        """See `Memory`."""
        return _weighted_mean(self, value, weight, weighting)

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

    def mean(self, value: Tensor, weight: Tensor, weighting: Weighting) -> Tensor:
        """See `Memory`."""
        if not scan.has_kernels(value):
            return _weighted_mean(self, value, weight, weighting)
        names = ("total", "norm") if weighting.unit is None else ("total", "norm", "shift")
        state, initial = (torch.stack([parts[name] for name in names], 1) for parts in (self._state, self._initial))
        output, last = WeightedMean.apply(value, weight, self._reset, state, initial, *weighting)
        self.parts |= zip(names, last.split(1, 1), strict=True)
        return output

    def before(self, part: str) -> Tensor:
        """See `Memory`."""
        past = torch.cat([self._state[part].unsqueeze(1), self.parts[part][:, :-1]], 1)
        if self._reset is None:
            return past
        return torch.where(self._reset.unsqueeze(-1), self._initial[part].unsqueeze(1), past)


def _weighted_mean(memory: Memory, value: Tensor, weight: Tensor, weighting: Weighting) -> Tensor:
    """`Memory.mean` in terms of the other operations."""
    smallest, straight_through, unit_of, log_variance = weighting
    decay = unit = None
    if unit_of is not None:
        shift = memory.max("shift", weight.detach()).detach()
        decay = (memory.before("shift").detach() - shift).exp()
        weight = (weight - shift).exp()
        unit = unit_of(shift) if straight_through else None
    total, norm = memory.sum("total", value * weight, decay), memory.sum("norm", weight, decay)
    norm = norm.clamp(min=smallest)
    mean = divide(total, norm, straight_through=straight_through, unit=unit)
    return torch.cat([mean, -norm.log()], -1) if log_variance else mean


def divide(numerator: Tensor, denominator: Tensor, *, straight_through: bool, unit: Tensor | None = None) -> Tensor:
    """Divides; with `straight_through` the gradient reaches the numerator unchanged and the denominator not at all.

    Args:
        numerator: ``[..., d]``.
        denominator: ``[..., d]`` or ``[..., 1]``, not 0.
        straight_through: whether to ignore the division when differentiating (spec/models.md section 2).
        unit: what a numerator of 1 stands for ``[..., d]``, where that is not 1.

    Returns:
        The ratio ``[..., d]``.
    """
    return _StraightThrough.apply(numerator, denominator, unit) if straight_through else numerator / denominator


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numerator: Tensor, denominator: Tensor, unit: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if unit is None else (unit,)))
        return numerator / denominator

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        for unit in ctx.saved_tensors:
            grad = grad * unit
        return grad, None, None
