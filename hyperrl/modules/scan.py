"""Scans over time, the one tool behind every recurrence that is linear or a maximum.

Each takes the form that suits the device: compiled loops on the CPU (`scan_kernels`), parallel scans in torch elsewhere
(`scan_blocks`). Nothing is ever subtracted, so nothing cancels, and nothing is stored but the result.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from hyperrl.modules import kernels, scan_blocks, scan_kernels


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
    return _Accumulation.apply(value, decay, None, initial, initial)


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
    return _Accumulation.apply(value, None, reset, state, initial)


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
    return _Maximum.apply(value, reset, state, initial, straight_through)


class Recurrences(Protocol):
    """The recurrences and their gradients, in one form. Values are ``[B, T, ...]``, states ``[B, ...]``."""

    def accumulate(
        self, value: Tensor, decay: Tensor | None, reset: Tensor | None, state: Tensor, initial: Tensor
    ) -> Tensor:
        """``past <- decay * past + value`` after every step, from ``state`` on, and from ``initial`` at resets.

        One of ``decay`` and ``reset`` is none: 1 and nowhere.
        """

    def accumulate_backward(
        self, grad: Tensor, decay: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients by value, state and initial value, the last one none without resets."""

    def maximum(self, value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
        """``past <- max(past, value)`` after every step, from ``state`` on, and from ``initial`` at resets."""

    def maximum_backward(
        self, grad: Tensor, result: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `accumulate_backward`; where several entries are the maximum, the first one gets the gradient."""


def has_kernels(tensor: Tensor) -> bool:
    """Whether compiled loops exist for the device and type of a tensor."""
    return tensor.device.type == "cpu" and tensor.dtype in kernels.DTYPES


def _form(tensor: Tensor) -> Recurrences:
    return scan_kernels if has_kernels(tensor) else scan_blocks


class _Accumulation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, decay: Tensor | None, reset: Tensor | None, state: Tensor, initial: Tensor
    ) -> Tensor:
        result = _form(value).accumulate(value, decay, reset, state, initial)
        ctx.save_for_backward(decay, reset, *((result, state) if ctx.needs_input_grad[1] else ()))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, Tensor, Tensor | None]:
        kernels.refuse_second_derivatives()
        decay, reset, *recorded = ctx.saved_tensors
        later, by_state, by_initial = _form(grad).accumulate_backward(grad, decay, reset)
        by_decay = None
        if recorded:
            result, state = recorded
            by_decay = torch.empty_like(later)
            torch.mul(later[:, 0], state, out=by_decay[:, 0])
            torch.mul(later[:, 1:], result[:, :-1], out=by_decay[:, 1:])
            by_decay = by_decay.sum_to_size(decay.shape)
        return later, by_decay, None, by_state, by_initial


class _Maximum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor, straight_through: bool
    ) -> Tensor:
        result = _form(value).maximum(value, reset, state, initial)
        ctx.save_for_backward(reset, *(() if straight_through else (result, state, initial)))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None, None]:
        kernels.refuse_second_derivatives()
        reset, *recorded = ctx.saved_tensors
        form = _form(grad)
        if not recorded:
            by_value, by_state, by_initial = form.accumulate_backward(grad, None, reset)
        else:
            result, state, initial = recorded
            by_value, by_state, by_initial = form.maximum_backward(grad, result, reset, state, initial)
        return by_value, None, by_state, by_initial, None
