"""Resets inside sequences of a recurrence that knows none."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from hyperrl.modules.host_mask import on_both, on_host, queued

Run = Callable[[Tensor, Tensor], Tensor]


def run_segments(run: Run, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor) -> Tensor:
    """Runs a recurrence that knows no resets over sequences that have some.

    Where all rows reset together, the common case, the time axis is cut, which needs no padding. Other resets cut their
    row, and all pieces run as one padded batch. The cuts are made on the host.

    Args:
        run: features ``[N, L, F]`` and states before them ``[N, S]`` to outputs ``[N, L, E]``.
        x: features ``[B, T, F]``.
        reset: where the state is replaced **before** the entry is consumed, ``[B, T]``.
        state: state before the first entry ``[B, S]``.
        initial: state after a reset ``[1, S]``.

    Returns:
        Outputs ``[B, T, E]``.
    """
    if not bool(on_host(reset).any()):
        return run(x, state)
    outputs = []
    for start, stop in _shared_chunks(on_host(reset)):
        chunk = on_both(operator.itemgetter((slice(None), slice(start, stop))), reset)
        outputs.append(_run_chunk(run, x[:, start:stop], chunk, state, initial))
        state = initial.expand_as(state)  # what every later chunk starts from
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]


def _shared_chunks(reset: Tensor) -> list[tuple[int, int]]:
    """Cuts the time axis of ``reset [B, T]`` where all rows reset together."""
    cuts = [0, *(t for t in reset.all(0).nonzero()[:, 0].tolist() if t), reset.shape[1]]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _run_chunk(run: Run, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor) -> Tensor:
    """Runs a chunk in which no column after the first resets every row."""
    known = on_host(reset)
    if bool(known[:, 0].any()):
        state = torch.where(reset[:, :1], initial, state)
    if not bool(known[:, 1:].any()):
        return run(x, state)
    starts = known.clone()
    starts[:, 0] = True
    row, first = starts.nonzero(as_tuple=True)
    segment = starts.flatten().cumsum(0).view_as(starts) - 1
    offset = torch.arange(x.shape[1]) - first[segment]
    longest = int(offset.max()) + 1
    row, first, segment, offset = (queued(index, x.device) for index in (row, first, segment, offset))
    pieces = x.new_zeros(len(row), longest, x.shape[2])
    pieces[segment, offset] = x
    return run(pieces, torch.where((first == 0).unsqueeze(-1), state[row], initial))[segment, offset]
