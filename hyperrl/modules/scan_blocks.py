"""The recurrences of `hyperrl.modules.scan` as parallel scans in torch, for devices that work on everything at once.

The time axis is cut into about ``sqrt(T)`` blocks that advance side by side, first to learn where each one starts, then
for good: ``3 sqrt(T)`` vectorised operations instead of ``T``, with nothing stored but the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from hyperrl.modules.host_mask import on_both, on_host, queued


def accumulate(value: Tensor, decay: Tensor | None, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """See `hyperrl.modules.scan.Recurrences`."""
    if decay is not None:
        return _scan_decay(decay, value, state)
    return _scan(lambda blocks: _Sum(blocks, reset, initial), value, state)


def accumulate_backward(
    grad: Tensor, decay: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `hyperrl.modules.scan.Recurrences`."""
    zeros = torch.zeros_like(grad[:, 0])
    if decay is not None:
        later = _scan_decay(_next(decay, 0.0), grad, zeros, backwards=True)
        return later, decay[:, 0] * later[:, 0], None
    following = None if reset is None else on_both(lambda mask: _next(mask, False), reset)
    later = _scan(lambda blocks: _Sum(blocks, following, zeros), grad, zeros, backwards=True)
    starts = _Starts(later, reset)
    return later, *starts.gradients(starts.of(later), len(later))


def maximum(value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """See `hyperrl.modules.scan.Recurrences`."""
    return _scan(lambda blocks: _Max(blocks, reset, initial), value, state)


def maximum_backward(
    grad: Tensor, result: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `hyperrl.modules.scan.Recurrences`."""
    starts = _Starts(result, reset)
    # 1 where the next step leaves the maximum as it is: what reaches that step goes on to this one.
    keep = torch.zeros_like(result)
    torch.eq(result[:, 1:], result[:, :-1], out=keep[:, :-1])
    keep[starts.row, starts.step - 1] = 0  # before a first step lies the row's last one, which is 0 anyway
    later = _scan_decay(keep, grad, torch.zeros_like(state), backwards=True)
    later[:, 1:].addcmul_(later[:, 1:], keep[:, :-1], value=-1)
    old = starts.of(result) == starts.past(state, initial)
    share = starts.of(later) * old
    later[starts.row, starts.step] -= share
    return later, *starts.gradients(share, len(state))


class _Blocks:
    """How ``steps`` are cut: `count` blocks of `size` steps, in the order of time.

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
        row, step = on_host(reset).nonzero(as_tuple=True)
        position = (self.steps - 1 - step if self.backwards else step) % self.size
        order, counts = position.argsort(), position.bincount(minlength=self.size).tolist()
        rows, blocks = (queued(x, reset.device) for x in (row[order], step[order] // self.size))
        return list(zip(rows.split(counts), blocks.split(counts), strict=True))

    @property
    def _places(self) -> range:
        return range(self.size)


class _Rule(Protocol):
    """How a recurrence goes on."""

    identity: float

    def advance(self, at: int, past: Tensor, value: Tensor, out: Tensor) -> None:
        """One step of all blocks, at a position; called from position 0 on."""

    def summary(self, value: Tensor) -> Tensor | None:
        """Where each block ends if it starts from the identity, if that is a reduction of ``[B, count, size, ...]``."""

    def join(self, past: Tensor, ends: Tensor, starts: Tensor) -> None:
        """Writes what each block starts from ``[B, count, ...]``.

        Args:
            past: what the first block starts from ``[B, ...]``.
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


def _scan(rule: Callable[[_Blocks], _Rule], value: Tensor, state: Tensor, *, backwards: bool = False) -> Tensor:
    """Runs a recurrence over ``value [B, T, ...]`` from ``state [B, ...]``, from the last step on if `backwards`."""
    result = torch.empty_like(value, memory_format=torch.contiguous_format)
    blocks = _Blocks(value.shape[1], backwards)
    recurrence = rule(blocks)
    values, results = blocks.positions(value), blocks.positions(result)
    ends, past = _block_ends(blocks, recurrence, value, values), torch.empty_like(values[0])
    recurrence.join(state, ends, past)
    for at, (part, out) in enumerate(zip(values, results, strict=True)):
        recurrence.advance(at, blocks.reached(past, part), part, out)
        past = out
    return result


def _scan_decay(decay: Tensor, value: Tensor, state: Tensor, *, backwards: bool = False) -> Tensor:
    return _scan(lambda blocks: _Decay(blocks, decay), value, state, backwards=backwards)


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


class _Starts:
    """The steps at which a segment of ``[B, T, ...]`` starts: the first of every row, and those with a reset."""

    def __init__(self, like: Tensor, reset: Tensor | None) -> None:
        first = torch.zeros(like.shape[:2], dtype=torch.bool)
        first[:, 0] = True
        starts = (first if reset is None else first | on_host(reset)).nonzero(as_tuple=True)
        self.row, self.step = (queued(index, like.device) for index in starts)
        self.is_reset = None if reset is None else reset[self.row, self.step].unsqueeze(-1)

    def of(self, tensor: Tensor) -> Tensor:
        """Those steps of ``[B, T, d]``, ``[N, d]``."""
        return tensor[self.row, self.step]

    def past(self, state: Tensor, initial: Tensor) -> Tensor:
        """What those steps start from, ``[N, d]``."""
        if self.is_reset is None:
            return state
        return torch.where(self.is_reset, initial[self.row], state[self.row])

    def gradients(self, by_past: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
        """Gradients by state and initial value ``[B, d]``, from those by what the steps start from ``[N, d]``."""
        if self.is_reset is None:
            return by_past, None
        nothing = by_past.new_zeros(batch, *by_past.shape[1:])
        elsewhere = (by_past.masked_fill(mask, 0.0) for mask in (self.is_reset, ~self.is_reset))
        by_state, by_initial = (nothing.index_add(0, self.row, part) for part in elsewhere)
        return by_state, by_initial
