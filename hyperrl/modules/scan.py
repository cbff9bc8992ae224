"""Parallel scans over time, the one tool behind every recurrence that is linear."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """Solves ``y[t] = decay[t] * y[t-1] + value[t]`` with ``y[-1] = initial``, for all ``t`` at once.

    Works by recursive doubling: ``ceil(log2 T)`` vectorised passes instead of ``T`` sequential steps. With
    ``|decay| <= 1`` nothing grows and nothing cancels; a ``decay`` of 0 cuts the recurrence.

    Args:
        decay: coefficients ``[B, T]``.
        value: inputs ``[B, T]``.
        initial: value before the first step ``[B]``.

    Returns:
        ``y`` of shape ``[B, T]``.

    Example:
        >>> linear_scan(torch.full((1, 3), 0.5), torch.ones(1, 3), torch.zeros(1))
        tensor([[1.0000, 1.5000, 1.7500]])
    """
    steps = value.shape[1]
    result = value.clone()
    result[:, 0] += decay[:, 0] * initial
    product = decay
    shift = 1
    while shift < steps:
        tail = result[:, shift:] + product[:, shift:] * result[:, :-shift]
        result = torch.cat([result[:, :shift], tail], 1)
        product = torch.cat([product[:, :shift], product[:, shift:] * product[:, :-shift]], 1)
        shift *= 2
    return result
