"""The recurrences of `hyperrl.modules.scan` on the CPU: compiled loops (`scan_kernels.c`).

Rows and tiles of features are shared out among as many threads as torch uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperrl.modules.kernels import refuse_second_derivatives, run


def accumulate(value: Tensor, decay: Tensor | None, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """See `hyperrl.modules.scan.Recurrences`."""
    result = _empty(value)
    factor = None if decay is None else decay.expand_as(value)
    starts = _resets(reset, value), _start(state, value), _start(initial, value)
    run("accumulate", [result], [value, factor, *starts])
    return result


def accumulate_backward(
    grad: Tensor, decay: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `hyperrl.modules.scan.Recurrences`."""
    by_value, by_state, by_initial = _empty(grad), _empty(grad[:, :1]), _empty(grad[:, :1])
    factor = None if decay is None else decay.expand_as(grad)
    run("accumulate_backward", [by_value, by_state, by_initial], [grad, factor, _resets(reset, grad)])
    return by_value, by_state.squeeze(1), None if reset is None else by_initial.squeeze(1)


def maximum(value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """See `hyperrl.modules.scan.Recurrences`."""
    result = _empty(value)
    run("maximum", [result], [value, _resets(reset, value), _start(state, value), _start(initial, value)])
    return result


def maximum_backward(
    grad: Tensor, result: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `hyperrl.modules.scan.Recurrences`."""
    by_value, by_state, by_initial = _empty(grad), _empty(grad[:, :1]), _empty(grad[:, :1])
    starts = _resets(reset, grad), _start(state, grad), _start(initial, grad)
    run("maximum_backward", [by_value, by_state, by_initial], [grad, result, *starts])
    return by_value, by_state.squeeze(1), None if reset is None else by_initial.squeeze(1)


class WeightedMean(torch.autograd.Function):
    """`hyperrl.modules.memory.Memory.mean` over a sequence, in one pass over memory each way.

    Parts of the memory are ``[B, P, d]``: weighted sum, sum of weights and, where ``weight`` is exponents, shift.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        weight: Tensor,
        reset: Tensor | None,
        state: Tensor,
        initial: Tensor,
        smallest: float,
        straight_through: bool,
        unit: Callable[[Tensor], Tensor] | None,
        log_variance: bool,
    ) -> tuple[Tensor, Tensor]:
        """The mean ``[B, T, d]``, with the log variance behind it if asked for, and the parts after the last step."""
        width = value.shape[-1]
        output = value.new_empty(*value.shape[:2], 2 * width if log_variance else width)
        variance = output[..., width:] if log_variance else None
        state, initial = (parts.expand(len(value), parts.shape[1], width) for parts in (state, initial))
        norm, shift, last = _empty(value), None if unit is None else _empty(value), value.new_empty(state.shape)
        results = output[..., :width], variance, norm, shift, last
        inputs = value, weight.expand_as(value), _resets(reset, value), state, initial
        run("mean", results, inputs, smallest=smallest)
        if variance is not None:
            variance.log_()
        scale = unit(shift) if straight_through and unit is not None and shift is not None else None
        ctx.save_for_backward(output, norm, shift, value, weight, reset, state, initial, scale)
        ctx.smallest, ctx.straight_through = smallest, straight_through
        return output, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by value, weight and the parts, of which the shift has none."""
        refuse_second_derivatives()
        output, norm, shift, value, weight, reset, state, initial, scale = ctx.saved_tensors
        width = value.shape[-1]
        by_mean, by_log_variance = grad[..., :width], grad[..., width:] if grad.shape[-1] > width else None
        if scale is not None:
            by_mean = by_mean * scale
        gradients = _empty(value), _empty(value), value.new_zeros(state.shape), value.new_zeros(state.shape)
        recorded = output[..., :width], norm, shift, value, weight, _resets(reset, value), state, initial
        inputs = by_mean, by_log_variance, grad_last, *recorded
        settings = {"smallest": ctx.smallest, "straight_through": ctx.straight_through}
        run("mean_backward", gradients, inputs, **settings)
        by_value, by_weight, by_state, by_initial = gradients
        return by_value, by_weight, None, by_state, None if reset is None else by_initial, *[None] * 4


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _start(state: Tensor, value: Tensor) -> Tensor:
    """``[B, ...]`` as ``[B, 1, ...]``, in the type and shape of ``value [B, T, ...]``."""
    return state.expand_as(value[:, 0]).unsqueeze(1)


def _resets(reset: Tensor | None, value: Tensor) -> Tensor | None:
    return None if reset is None else reset.expand(value.shape[:2])
