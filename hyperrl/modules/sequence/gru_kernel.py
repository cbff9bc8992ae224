"""A GRU over whole sequences, whose recurrence is a compiled loop on the CPU (`gru_kernel.c`).

The library's CPU kernel launches about twenty small operations per step in either direction. Here the recurrence is one
operation each way; products over the whole sequence, of inputs and for the gradients of weights, stay torch's. With
AVX-512 and two threads, forward and backward of 60 steps take a quarter of the library's time for 4 rows, a published
minibatch, and nine tenths for 256 (`benchmarks/gru.py`); without AVX-512 torch is as fast or faster from about 64 rows
on. Other devices run the library's.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hyperrl.modules import scan
from hyperrl.modules.kernels import refuse_second_derivatives, run

# Units whose weights the kernel reads together.
TILE = 16


def gru_sequence(x: Tensor, state: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """Runs a GRU over ``x``; same parameters, gate order (reset, update, new) and result as ``torch.nn.GRU``.

    Args:
        x: inputs ``[B, T, F]``.
        state: hidden state before the first step ``[B, H]``.
        w_ih: input weights ``[3H, F]``.
        w_hh: recurrent weights ``[3H, H]``.
        b_ih: input biases ``[3H]``.
        b_hh: recurrent biases ``[3H]``.

    Returns:
        Hidden states ``[B, T, H]``.

    Raises:
        ValueError: a shape is another one, or there are no steps (other devices: torch's errors).
        RuntimeError: in a backward pass under ``create_graph=True``, for there are no second derivatives.
    """
    if not scan.has_kernels(x):
        # Acting steps in full fp32; cuDNN's default would let sequences differ from it by TF32's rounding.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.gru(
                x, state.unsqueeze(0).contiguous(), [w_ih, w_hh, b_ih, b_hh], True, 1, 0.0, True, False, True
            )[0]
    return _Recurrence.apply(torch.nn.functional.linear(x, w_ih, b_ih), state, w_hh, b_hh)


class _Recurrence(torch.autograd.Function):
    """The recurrent part: ``projected [B, T, 3H]``, ``state [B, H]`` to hidden states ``[B, T, H]``."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, state: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
        out, gates, recurrent = _forward(projected, w_hh, b_hh, state)
        ctx.save_for_backward(out, gates, recurrent, state, w_hh)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        refuse_second_derivatives()
        out, gates, recurrent, state, w_hh = ctx.saved_tensors
        past = torch.cat([state.unsqueeze(1), out[:, :-1]], 1)
        by_projected, by_products, by_state = _backward(grad, w_hh, gates, recurrent, past)
        flat = by_products.flatten(0, 1)
        # The backward pass runs under the caller's autocast, but memory stays in fp32.
        with torch.autocast("cpu", enabled=False):
            return by_projected, by_state, flat.t() @ past.flatten(0, 1), flat.sum(0)


# Operations of torch, so that it sees them when it counts launches, products or time, and exports or compiles. For the
# latter it calls what makes room for the results alone.


@torch.library.custom_op("hyperrl::gru", mutates_args=(), device_types="cpu")
def _forward(projected: Tensor, w_hh: Tensor, b_hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, gates ``[B, T, 3H]`` and recurrent products of the new gate ``[B, T, H]``."""
    out, gates, recurrent = _room(projected, w_hh, b_hh, state)
    inputs = w_hh.unsqueeze(0), projected, state.unsqueeze(1), b_hh[None, None]
    run("gru", [gates, _panels(w_hh), out, recurrent], inputs, operations=w_hh.shape[1])
    return out, gates, recurrent


@_forward.register_fake
def _room(projected: Tensor, w_hh: Tensor, b_hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden = _hidden(w_hh)
    _require("b_hh", b_hh, 3 * hidden)
    _require("projected x", projected, *projected.shape[:2], 3 * hidden)
    rows, steps, _ = projected.shape
    _require("state", state, rows, hidden)
    if steps == 0:
        raise ValueError(f"x has no steps (projected x is {list(projected.shape)}); expected at least one")
    gates = w_hh.new_empty(rows, steps, 3 * hidden)
    out, recurrent = (w_hh.new_empty(rows, steps, hidden) for _ in range(2))
    return out, gates, recurrent


@torch.library.custom_op("hyperrl::gru_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, w_hh: Tensor, gates: Tensor, recurrent: Tensor, past: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by ``projected``, by the recurrent products with their biases ``[B, T, 3H]``, and by ``state``."""
    by_projected, by_products, by_state = _room_backward(grad, w_hh, gates, recurrent, past)
    results = by_projected, _panels(w_hh), by_products, by_state.unsqueeze(1)
    run("gru_backward", results, [w_hh.unsqueeze(0), grad, gates, recurrent, past], operations=w_hh.shape[1])
    return by_projected, by_products, by_state


@_backward.register_fake
def _room_backward(
    grad: Tensor, w_hh: Tensor, gates: Tensor, recurrent: Tensor, past: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = _hidden(w_hh)
    _require("grad", grad, *grad.shape[:2], hidden)
    rows, steps, _ = grad.shape
    _require("gates", gates, rows, steps, 3 * hidden)
    _require("recurrent", recurrent, rows, steps, hidden)
    _require("past", past, rows, steps, hidden)
    by_projected, by_products = (w_hh.new_empty(rows, steps, 3 * hidden) for _ in range(2))
    return by_projected, by_products, w_hh.new_zeros(rows, hidden)


def _hidden(w_hh: Tensor) -> int:
    hidden = w_hh.shape[-1]
    _require("w_hh", w_hh, 3 * hidden, hidden)
    return hidden


def _require(name: str, tensor: Tensor, *shape: int) -> None:
    """The kernel reads and writes as far as these shapes tell it to."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {list(tensor.shape)}; expected {list(shape)}")


def _panels(w_hh: Tensor) -> Tensor:
    """Room for the weights in the order in which the kernel reads them.

    Zeros, for the last panel may have fewer units: the sums of missing ones are not used, but subnormal numbers left in
    memory would make them slow.
    """
    hidden = w_hh.shape[1]
    return w_hh.new_zeros(1, -(-hidden // TILE), 3 * hidden * TILE)


@register_flop_formula([torch.ops.hyperrl.gru, torch.ops.hyperrl.gru_backward])
def _flops(rows: torch.Size, w_hh: torch.Size, *_: torch.Size, **__: Any) -> int:
    """Operations of the recurrent products, 2 per multiplication."""
    return 2 * prod(rows[:2]) * prod(w_hh)
