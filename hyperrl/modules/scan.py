"""Parallel scans over time, the one tool behind every recurrence that is linear or a maximum.

The time axis is cut into about ``sqrt(T)`` blocks that advance side by side, first to learn where each one starts, then
for good: ``3 sqrt(T)`` vectorised operations instead of ``T``, with nothing stored but the result. Nothing is ever
subtracted, so nothing cancels. Long sequences are taken in chunks that stay in the cache between the two passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512


def linear_scan(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """Solves ``y[t] = decay[t] * y[t-1] + value[t]`` with ``y[-1] = initial``, for all ``t`` at once.

    With ``|decay| <= 1`` nothing grows and nothing cancels; a ``decay`` of 0 cuts the recurrence.

    Args:
        decay: coefficients ``[B, T, ...]``; trailing dimensions may be 1.
        value: inputs ``[B, T, ...]``.
        initial: value before the first step ``[B, ...]``.

    Returns:
        ``y`` of the shape of ``value``.

    Example:
        >>> linear_scan(torch.full((1, 3), 0.5), torch.ones(1, 3), torch.zeros(1))
        tensor([[1.0000, 1.5000, 1.7500]])
    """
    return _LinearScan.apply(decay, value, initial)


def cut_at_resets(decay: Tensor, value: Tensor, reset: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and value ``[B, T, d]`` of a `linear_scan` cut before some entries, to start from ``initial [B or 1, d]``.

    Where ``reset [B, T]`` is set the decay becomes 0, and the value takes up what is left of `initial`.
    """
    reset = reset.unsqueeze(-1)
    return decay.masked_fill(reset, 0.0), torch.where(reset, value + decay * initial.unsqueeze(1), value)


def running_sum(value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """The sum of what was consumed since the last reset, after every step.

    Args:
        value: inputs ``[B, T, d]``.
        reset: where the sum is set to ``initial`` **before** the entry is consumed ``[B, T]``; none for nowhere.
        state: sum before the first step ``[B, d]``.
        initial: sum at a reset ``[B, d]``.

    Returns:
        Sums ``[B, T, d]``.
    """
    return _RunningSum.apply(value, reset, state, initial)


def running_max(
    value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor, *, straight_through: bool = False
) -> Tensor:
    """The maximum of what was consumed since the last reset, after every step.

    Args:
        value: inputs ``[B, T, d]``.
        reset: where the maximum is set to ``initial`` **before** the entry is consumed ``[B, T]``; none for nowhere.
        state: maximum before the first step ``[B, d]``.
        initial: maximum at a reset ``[B, d]``.
        straight_through: differentiate as if it were a sum (spec/models.md section 2) instead of sending the gradient
            to the entry that is the maximum, the first one where several are.

    Returns:
        Maxima ``[B, T, d]``.
    """
    return _RunningMax.apply(value, reset, state, initial, straight_through)


class _Blocks:
    """How a chunk of ``steps`` is cut: `count` blocks of `size` steps, in the order of time.

    The block that is reached last may be shorter than the others. A position is a step's place within its block,
    counted in the direction of the recurrence.
    """

    def __init__(self, steps: int, backwards: bool) -> None:
        self.steps, self.backwards = steps, backwards
        root = math.isqrt(steps)
        # Blocks of equal size are summarised at once.
        self.size = next((size for size in range(root, root // 2, -1) if steps % size == 0), root)
        self.count = -(-steps // self.size)

    def positions(self, tensor: Tensor) -> list[Tensor]:
        """What ``[B, T, ...]`` holds at each position, in all blocks that have it: ``[B, up to count, ...]``."""
        if self.backwards:
            return [tensor[:, (self.steps - 1 - at) % self.size : self.steps - at : self.size] for at in self._places]
        return [tensor[:, at :: self.size] for at in self._places]

    def equal(self, tensor: Tensor) -> Tensor | None:
        """``[B, T, ...]`` as ``[B, count, size, ...]``; none if the blocks differ in size."""
        return tensor.unflatten(1, (self.count, self.size)) if self.steps == self.count * self.size else None

    def reached(self, blockwise: Tensor, value: Tensor) -> Tensor:
        """The part of ``[B, count, ...]`` whose blocks have the position that `value` is of."""
        missing = blockwise.shape[1] - value.shape[1]
        if not missing:
            return blockwise
        return blockwise[:, missing:] if self.backwards else blockwise[:, :-missing]

    def each(self, blockwise: Tensor) -> tuple[Tensor, ...]:
        """The blocks of ``[B, count, ...]`` in the order in which they are reached."""
        return blockwise.unbind(1)[:: -1 if self.backwards else 1]

    def where(self, reset: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The rows and blocks (indices into `positions`) with a reset, for each position."""
        row, step = reset.nonzero(as_tuple=True)
        position = (self.steps - 1 - step if self.backwards else step) % self.size
        order, counts = position.argsort(), position.bincount(minlength=self.size).tolist()
        return list(zip(row[order].split(counts), (step[order] // self.size).split(counts), strict=True))

    @property
    def _places(self) -> range:
        return range(self.size)


class _Rule(Protocol):
    """How a recurrence goes on, in one chunk."""

    identity: float

    def advance(self, at: int, past: Tensor, value: Tensor, out: Tensor) -> None:
        """One step of all blocks, at a position; called from position 0 on."""

    def summary(self, value: Tensor) -> Tensor | None:
        """Where each block ends if it starts from the identity, if that is a reduction of ``[B, count, size, ...]``."""

    def join(self, past: Tensor, ends: Tensor, starts: Tensor) -> None:
        """Writes what each block starts from ``[B, count, ...]``.

        Args:
            past: what the chunk starts from ``[B, ...]``.
            ends: where each block ends if it starts from the identity.
            starts: the result.
        """


class _Decay:
    """``decay * past + value``."""

    identity = 0.0

    def __init__(self, blocks: _Blocks, decay: Tensor) -> None:
        self.blocks = blocks
        self.decays = blocks.positions(decay)

    def advance(self, at: int, past: Tensor, value: Tensor, out: Tensor) -> None:
        torch.addcmul(value, self.decays[at], past, out=out)

    def summary(self, value: Tensor) -> None:
        return None

    def join(self, past: Tensor, ends: Tensor, starts: Tensor) -> None:
        kept = self.decays[0].clone()
        for decay in self.decays[1:]:
            self.blocks.reached(kept, decay).mul_(decay)
        start, end, keep = (self.blocks.each(tensor) for tensor in (starts, ends, kept))
        start[0].copy_(past)
        for i, j in pairwise(range(len(start))):
            torch.addcmul(end[i], keep[i], start[i], out=start[j])


class _Sum:
    """``past + value``, where ``past`` is replaced by ``initial`` at a reset."""

    identity = 0.0

    def __init__(self, blocks: _Blocks, reset: Tensor | None, initial: Tensor) -> None:
        self.blocks, self.reset, self.initial = blocks, reset, initial
        # Resets are few: the rows that have one are overwritten, instead of choosing at every element.
        self.where = None if reset is None else blocks.where(reset)

    def combine(self, past: Tensor, value: Tensor, out: Tensor | None = None) -> Tensor:
        """Both together."""
        return torch.add(past, value, out=out)

    def summary(self, value: Tensor) -> Tensor | None:
        return None if self.reset is not None else self.reduce(value)

    def reduce(self, value: Tensor) -> Tensor:
        """All of ``[B, count, size, ...]`` of each block together."""
        return value.sum(2)

    def advance(self, at: int, past: Tensor, value: Tensor, out: Tensor) -> None:
        self.combine(past, value, out)
        if self.where is not None and len(self.where[at][0]):
            where = self.where[at]
            out[where] = self.combine(self.initial[where[0]], value[where])

    def join(self, past: Tensor, ends: Tensor, starts: Tensor) -> None:
        start, end = self.blocks.each(starts), self.blocks.each(ends)
        closed = None if self.reset is None else self.blocks.each(self._closed(self.reset, starts.shape[1]))
        start[0].copy_(past)
        for i, j in pairwise(range(len(start))):
            past = start[i] if closed is None else start[i].masked_fill(closed[i], self.identity)
            self.combine(past, end[i], start[j])

    def _closed(self, reset: Tensor, count: int) -> Tensor:
        """Where a block has a reset, ``[B, count, 1]``."""
        closed = reset.new_zeros(len(reset), count)
        for part in self.blocks.positions(reset):
            self.blocks.reached(closed, part).logical_or_(part)
        return closed.unsqueeze(-1)


class _Max(_Sum):
    """``max(past, value)``, where ``past`` is replaced by ``initial`` at a reset."""

    identity = -math.inf

    def combine(self, past: Tensor, value: Tensor, out: Tensor | None = None) -> Tensor:
        """Both together."""
        return torch.maximum(past, value, out=out)

    def reduce(self, value: Tensor) -> Tensor:
        """All of ``[B, count, size, ...]`` of each block together."""
        return value.amax(2)


def _scan(rule: Callable[[_Blocks, slice], _Rule], value: Tensor, state: Tensor, *, backwards: bool = False) -> Tensor:
    """Runs a recurrence over ``value [B, T, ...]`` from ``state [B, ...]``, from the last step on if `backwards`."""
    result = torch.empty_like(value, memory_format=torch.contiguous_format)
    chunks = [slice(start, start + CHUNK) for start in range(0, value.shape[1], CHUNK)]
    for chunk in reversed(chunks) if backwards else chunks:
        part = value[:, chunk]
        blocks = _Blocks(part.shape[1], backwards)
        _scan_chunk(blocks, rule(blocks, chunk), part, state, result[:, chunk])
        state = result[:, chunk][:, 0 if backwards else -1]
    return result


def _scan_chunk(blocks: _Blocks, rule: _Rule, value: Tensor, state: Tensor, result: Tensor) -> None:
    values, results = blocks.positions(value), blocks.positions(result)
    ends, past = _block_ends(blocks, rule, value, values), torch.empty_like(values[0])
    rule.join(state, ends, past)
    for at, (part, out) in enumerate(zip(values, results, strict=True)):
        rule.advance(at, blocks.reached(past, part), part, out)
        past = out


def _block_ends(blocks: _Blocks, rule: _Rule, value: Tensor, values: list[Tensor]) -> Tensor:
    """Where each block ends if it starts from the identity."""
    equal = blocks.equal(value)
    ends = None if equal is None else rule.summary(equal)
    if ends is None:
        ends = torch.full_like(values[0], rule.identity)
        for at, part in enumerate(values):
            end = blocks.reached(ends, part)
            rule.advance(at, end, part, end)
    return ends


def _next(gate: Tensor, last: float) -> Tensor:
    """The gate of the following step at each step, for recurrences that run backwards."""
    return torch.cat([gate[:, 1:], torch.full_like(gate[:, :1], last)], 1)


def _scan_decay(decay: Tensor, value: Tensor, state: Tensor, *, backwards: bool = False) -> Tensor:
    return _scan(lambda blocks, chunk: _Decay(blocks, decay[:, chunk]), value, state, backwards=backwards)


def _scan_resets(kind: type[_Sum], value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    def rule(blocks: _Blocks, chunk: slice) -> _Rule:
        return kind(blocks, None if reset is None else reset[:, chunk], initial)

    return _scan(rule, value, state)


def _later(grad: Tensor, reset: Tensor | None) -> Tensor:
    """Sums of the gradients from each step up to the end of its segment."""
    zeros = torch.zeros_like(grad[:, 0])
    following = None if reset is None else _next(reset, False)

    def rule(blocks: _Blocks, chunk: slice) -> _Rule:
        return _Sum(blocks, None if following is None else following[:, chunk], zeros)

    return _scan(rule, grad, zeros, backwards=True)


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
        result = _scan_decay(decay, value, initial)
        ctx.save_for_backward(decay, *((result, initial) if ctx.needs_input_grad[0] else ()))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        decay, *recorded = ctx.saved_tensors
        later = _scan_decay(_next(decay, 0.0), grad, torch.zeros_like(grad[:, 0]), backwards=True)
        by_decay = None
        if recorded:
            result, initial = recorded
            by_decay = torch.empty_like(later)
            torch.mul(later[:, 0], initial, out=by_decay[:, 0])
            torch.mul(later[:, 1:], result[:, :-1], out=by_decay[:, 1:])
            by_decay = by_decay.sum_to_size(decay.shape)
        return by_decay, later, decay[:, 0] * later[:, 0]


class _RunningSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
        ctx.reset = reset
        return _scan_resets(_Sum, value, reset, state, initial)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None]:
        later = _later(grad, ctx.reset)
        return later, None, *_sum_starts(later, ctx.reset)


class _RunningMax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor, straight_through: bool
    ) -> Tensor:
        ctx.reset = reset
        result = _scan_resets(_Max, value, reset, state, initial)
        if not straight_through:
            ctx.save_for_backward(result, state, initial)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None, None]:
        if not ctx.saved_tensors:
            later = _later(grad, ctx.reset)
            return later, None, *_sum_starts(later, ctx.reset), None
        result, state, initial = ctx.saved_tensors
        starts = _Starts(result, ctx.reset)
        # 1 where the next step leaves the maximum as it is: what reaches that step goes on to this one.
        keep = torch.zeros_like(result)
        torch.eq(result[:, 1:], result[:, :-1], out=keep[:, :-1])
        keep[starts.row, starts.step - 1] = 0  # before a first step lies the row's last one, which is 0 anyway
        later = _scan_decay(keep, grad, torch.zeros_like(state), backwards=True)
        later[:, 1:].addcmul_(later[:, 1:], keep[:, :-1], value=-1)
        old = starts.of(result) == starts.past(state, initial)
        share = starts.of(later) * old
        later[starts.row, starts.step] -= share
        return later, None, *starts.gradients(share, len(state)), None


class _Starts:
    """The steps at which a segment of ``[B, T, ...]`` starts: the first of every row, and those with a reset."""

    def __init__(self, like: Tensor, reset: Tensor | None) -> None:
        first = torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)
        first[:, 0] = True
        self.row, self.step = (first if reset is None else first | reset).nonzero(as_tuple=True)
        self.is_reset = None if reset is None else reset[self.row, self.step]

    def of(self, tensor: Tensor) -> Tensor:
        """Those steps of ``[B, T, d]``, ``[N, d]``."""
        return tensor[self.row, self.step]

    def past(self, state: Tensor, initial: Tensor) -> Tensor:
        """What those steps start from, ``[N, d]``."""
        if self.is_reset is None:
            return state
        return torch.where(self.is_reset.unsqueeze(-1), initial[self.row], state[self.row])

    def gradients(self, by_past: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
        """Gradients by state and initial value ``[B, d]``, from those by what the steps start from ``[N, d]``."""
        if self.is_reset is None:
            return by_past, None
        nothing = by_past.new_zeros(batch, *by_past.shape[1:])
        is_reset = self.is_reset
        return (
            nothing.index_add(0, self.row[~is_reset], by_past[~is_reset]),
            nothing.index_add(0, self.row[is_reset], by_past[is_reset]),
        )


def _sum_starts(later: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients by state and initial value of a sum, from those by its inputs."""
    starts = _Starts(later, reset)
    return starts.gradients(starts.of(later), len(later))
