"""The recurrences of `hyperrl.modules.scan` on the CPU: compiled loops (`scan_kernels.c`).

Rows and tiles of features are shared out among as many threads as torch uses.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # also loads the OpenMP library, whose threads the kernels share
from torch import Tensor
from torch.autograd.function import once_differentiable

LIBRARY = Path(__file__).with_name("libscan_kernels.so")
DTYPES = {torch.float32: "float", torch.float64: "double"}
# Entries that are worth another thread, as in torch.
GRAIN = 1 << 15


class _Series(ctypes.Structure):
    """Where the entries ``[B, T, D]`` are; those of one step are adjacent."""

    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("step", ctypes.c_int64)]


class _Call(ctypes.Structure):
    """What a kernel is called with; a kernel names its series in the order in which they are given."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "steps", "width", "threads", "straight_through")),
        ("smallest", ctypes.c_double),
        ("series", _Series * 16),
    ]


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ImportError(
            f"hyperrl was built without its C kernels; reinstall it with a C compiler ({error})"
        ) from error


_library = _load()


def accumulate(value: Tensor, decay: Tensor | None, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """See `hyperrl.modules.scan.Recurrences`."""
    result = _empty(value)
    factor = None if decay is None else decay.expand_as(value)
    _run("accumulate", result, value, factor, _resets(reset, value), _start(state, value), _start(initial, value))
    return result


def accumulate_backward(
    grad: Tensor, decay: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `hyperrl.modules.scan.Recurrences`."""
    by_value, by_state, by_initial = _empty(grad), _empty(grad[:, :1]), _empty(grad[:, :1])
    factor = None if decay is None else decay.expand_as(grad)
    _run("accumulate_backward", by_value, by_state, by_initial, grad, factor, _resets(reset, grad))
    return by_value, by_state.squeeze(1), None if reset is None else by_initial.squeeze(1)


def maximum(value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    """See `hyperrl.modules.scan.Recurrences`."""
    result = _empty(value)
    _run("maximum", result, value, _resets(reset, value), _start(state, value), _start(initial, value))
    return result


def maximum_backward(
    grad: Tensor, result: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `hyperrl.modules.scan.Recurrences`."""
    by_value, by_state, by_initial = _empty(grad), _empty(grad[:, :1]), _empty(grad[:, :1])
    starts = _resets(reset, grad), _start(state, grad), _start(initial, grad)
    _run("maximum_backward", by_value, by_state, by_initial, grad, result, *starts)
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
        inputs = value, weight.expand_as(value), _resets(reset, value), state, initial
        _run("mean", output[..., :width], variance, norm, shift, last, *inputs, smallest=smallest)
        if variance is not None:
            variance.log_()
        scale = unit(shift) if straight_through and unit is not None and shift is not None else None
        ctx.save_for_backward(output, norm, shift, value, weight, reset, state, initial, scale)
        ctx.smallest, ctx.straight_through = smallest, straight_through
        return output, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by value, weight and the parts, of which the shift has none."""
        output, norm, shift, value, weight, reset, state, initial, scale = ctx.saved_tensors
        width = value.shape[-1]
        by_mean, by_log_variance = grad[..., :width], grad[..., width:] if grad.shape[-1] > width else None
        if scale is not None:
            by_mean = by_mean * scale
        gradients = _empty(value), _empty(value), value.new_zeros(state.shape), value.new_zeros(state.shape)
        inputs = output[..., :width], norm, shift, value, weight, _resets(reset, value), state, initial
        settings = {"smallest": ctx.smallest, "straight_through": ctx.straight_through}
        _run("mean_backward", *gradients, by_mean, by_log_variance, grad_last, *inputs, **settings)
        by_value, by_weight, by_state, by_initial = gradients
        return by_value, by_weight, None, by_state, None if reset is None else by_initial, *[None] * 4


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _start(state: Tensor, value: Tensor) -> Tensor:
    """``[B, ...]`` as ``[B, 1, ...]``, in the type and shape of ``value [B, T, ...]``."""
    return state.expand_as(value[:, 0]).unsqueeze(1)


def _resets(reset: Tensor | None, value: Tensor) -> Tensor | None:
    return None if reset is None else reset.expand(value.shape[:2])


def _run(kernel: str, *tensors: Tensor | None, smallest: float = 0.0, straight_through: bool = False) -> None:
    """Runs a kernel on series ``[B, T, ...]``, or whatever it has in place of steps; the first one is a result."""
    first = tensors[0]
    assert first is not None
    rows, steps, width = *first.shape[:2], math.prod(first.shape[2:])
    threads = min(torch.get_num_threads(), 1 + first.numel() // GRAIN)
    flat = [None if tensor is None else _flat(tensor, first.dtype) for tensor in tensors]
    call = _Call(rows, steps, width, threads, straight_through, smallest)
    for place, tensor in enumerate(flat):
        if tensor is not None:
            call.series[place] = _Series(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
    getattr(_library, f"{kernel}_{DTYPES[first.dtype]}")(ctypes.byref(call))


def _flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, T, ...]`` as ``[B, T, D]`` with the entries of a step side by side; results are so already."""
    tensor = tensor.reshape(*tensor.shape[:2], math.prod(tensor.shape[2:]))
    if tensor.dtype != torch.bool:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
