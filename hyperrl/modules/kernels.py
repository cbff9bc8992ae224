"""The compiled kernels: loads the library that `hatch_build.py` builds, and calls them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import torch  # also loads the OpenMP library, whose threads the kernels share
from torch import Tensor

LIBRARY = Path(__file__).with_name("libkernels.so")
DTYPES = {torch.float32: "float", torch.float64: "double"}
# Operations that are worth another thread, as in torch.
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


def refuse_second_derivatives() -> None:
    """To be called in a backward pass that cannot be differentiated itself.

    Raises:
        RuntimeError: the pass is recorded, under ``create_graph=True``. Torch's `once_differentiable` refuses only
            where the incoming gradient depends on something, and lets second derivatives be wrong elsewhere.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("this recurrence has no second derivatives; differentiate without create_graph=True")


def run(
    kernel: str,
    results: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    *,
    smallest: float = 0.0,
    straight_through: bool = False,
    operations: int = 1,
) -> None:
    """Runs a kernel on series ``[B, T, ...]``, or whatever it has in place of steps.

    A kernel knows the shape of the first result only; whoever calls it answers for that of all others.

    Args:
        kernel: its name without the type.
        results: the series that it writes to, and first the one with the type and shape that it is called with.
        inputs: the series that it reads only.
        smallest: see `hyperrl.modules.memory`.
        straight_through: see `hyperrl.modules.memory`.
        operations: how many each entry of the first series takes, more or less.
    """
    first = results[0]
    assert first is not None
    rows, steps, width = *first.shape[:2], math.prod(first.shape[2:])
    threads = min(torch.get_num_threads(), 1 + first.numel() * operations // GRAIN)
    flat = [None if tensor is None else _flat(tensor, first.dtype) for tensor in (*results, *inputs)]
    for result, place in zip(results, flat, strict=False):
        assert result is None or (place is not None and place.data_ptr() == result.data_ptr()), "written to a copy"
    call = _Call(rows, steps, width, threads, straight_through, smallest)
    for index, tensor in enumerate(flat):
        if tensor is not None:
            call.series[index] = _Series(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
    getattr(_library, f"{kernel}_{DTYPES[first.dtype]}")(ctypes.byref(call))


def _flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, T, ...]`` as ``[B, T, D]`` with the entries of a step side by side, copied where they are not."""
    tensor = tensor.reshape(*tensor.shape[:2], math.prod(tensor.shape[2:]))
    if tensor.dtype != torch.bool:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
