"""The minimal GRU, whose gates do not see the state: a linear recurrence, and so a parallel scan."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hyperrl.errors import ConfigError
from hyperrl.modules.sequence.base import SequenceModel


class MinGRU(SequenceModel):
    """h <- (1 - z) h + z g with z = sigmoid(W x + b) and g = V x + c (Feng et al. 2024); its state is every layer's h.

    Args:
        input_dim: width of the features.
        hidden_dim: width of every layer and of the output.
        horizon: longest task in steps; not needed here.
        num_layers: number of layers, each on the outputs of the one before.
    """

    def __init__(self, input_dim: int, hidden_dim: int, horizon: int, num_layers: int = 1) -> None:
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"model.encoder.sequence.num_layers is {num_layers}; expected at least 1")
        dims = [input_dim] + [hidden_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(dim, 2 * hidden_dim) for dim in dims)
        self.output_dim, self.state_dim = hidden_dim, num_layers * hidden_dim

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        states = []
        for layer, hidden in zip(self.layers, state.split(self.output_dim, -1), strict=True):
            update, candidate = layer(x).chunk(2, -1)
            x = torch.lerp(hidden, candidate, update.sigmoid())
            states.append(x)
        return x, torch.cat(states, -1) if len(states) > 1 else x

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`."""
        starts = self.start(initial).split(self.output_dim, -1)
        cut = reset.unsqueeze(-1) if bool(reset.any()) else None
        for layer, hidden, start in zip(self.layers, state.split(self.output_dim, -1), starts, strict=True):
            update, candidate = layer(x).chunk(2, -1)
            update = update.sigmoid()
            keep, value = 1 - update, update * candidate
            if cut is not None:
                value = value + torch.where(cut, keep * start, 0.0)
                keep = keep.masked_fill(cut, 0.0)
            x = linear_recurrence(keep, value, hidden)
        return x


def linear_recurrence(keep: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """Solves ``h[t] = keep[t] * h[t-1] + value[t]`` with ``h[-1] = initial``; a ``keep`` of 0 cuts the recurrence.

    The time axis is cut into about sqrt(T) blocks that advance side by side, first to learn where each one starts, then
    for good: 2 sqrt(T) vectorised steps instead of T, no division, and nothing stored but the result.

    Args:
        keep: coefficients ``[B, T, H]``, at most 1 in size.
        value: inputs ``[B, T, H]``.
        initial: value before the first step ``[B, H]``.

    Returns:
        ``h`` of shape ``[B, T, H]``.
    """
    return _Recurrence.apply(keep, value, initial)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: Tensor, value: Tensor, initial: Tensor) -> Tensor:
        result = torch.empty_like(value)
        _scan(keep, value, initial, result)
        ctx.save_for_backward(keep, initial, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, initial, result = ctx.saved_tensors
        # The gradient at h[t] is grad[t] + keep[t+1] * (gradient at h[t+1]): the same recurrence against time.
        total = torch.empty_like(result)
        total[:, -1] = grad[:, -1]
        _scan(keep[:, 1:], grad[:, :-1], grad[:, -1], total[:, :-1], backwards=True)
        by_keep = torch.empty_like(result)
        torch.mul(total[:, 0], initial, out=by_keep[:, 0])
        torch.mul(total[:, 1:], result[:, :-1], out=by_keep[:, 1:])
        return by_keep, total, total[:, 0] * keep[:, 0]


def _scan(keep: Tensor, value: Tensor, initial: Tensor, result: Tensor, backwards: bool = False) -> None:
    """Writes the recurrence ``[B, T, H]`` to ``result``, from the first step on or from the last one."""
    steps = value.shape[1]
    size = max(1, math.isqrt(steps))
    blocks = -(-steps // size)
    # The steps at each position within all blocks; the last block may be shorter than the others.
    if backwards:
        positions = [slice((steps - 1 - at) % size, steps - at, size) for at in range(size)]
    else:
        positions = [slice(at, None, size) for at in range(size)]

    def reached(per_block: Tensor, part: Tensor) -> Tensor:
        count = part.shape[1]
        return per_block[:, per_block.shape[1] - count :] if backwards else per_block[:, :count]

    ends, kept = torch.zeros_like(value[:, :1]).repeat(1, blocks, 1), torch.ones_like(value[:, :1]).repeat(1, blocks, 1)
    for position in positions:
        part, factor = value[:, position], keep[:, position]
        end, product = reached(ends, part), reached(kept, part)
        torch.addcmul(part, factor, end, out=end)
        product.mul_(factor)
    starts = torch.empty_like(ends)
    for block in range(blocks - 1, -1, -1) if backwards else range(blocks):
        starts[:, block] = initial
        initial = torch.addcmul(ends[:, block], kept[:, block], initial)
    before = starts
    for position in positions:
        part = value[:, position]
        before = torch.addcmul(part, keep[:, position], reached(before, part), out=result[:, position])
