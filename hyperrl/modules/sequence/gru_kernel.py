"""A GRU over whole sequences whose backward pass does not repeat small products per step.

The library's CPU kernel launches about twenty small operations per step in either direction; here the input products,
all weight gradients and all gate derivatives are taken over the whole sequence at once, and only ``h @ W_hh`` is left
inside the loops. That pays for few rows: 1.4 times as fast as the library for the 4 environments of a published
minibatch, even for 16 (`benchmarks/gru.py`); beyond that, and on other devices, the library runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FEW_ROWS = 16


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
    """
    if x.device.type != "cpu" or len(x) > FEW_ROWS:
        # Acting steps in full fp32; cuDNN's default would let sequences differ from it by TF32's rounding.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.gru(
                x, state.unsqueeze(0).contiguous(), [w_ih, w_hh, b_ih, b_hh], True, 1, 0.0, True, False, True
            )[0]
    projected = torch.nn.functional.linear(x.transpose(0, 1), w_ih, b_ih)
    return _Recurrence.apply(projected, state, w_hh, b_hh).transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """The recurrent part, time-major: ``projected [T, B, 3H]``, ``state [B, H]`` to hidden states ``[T, B, H]``."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, state: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
        steps, batch, width = projected.shape
        hidden = width // 3
        gates, recurrent = torch.empty_like(projected), torch.empty_like(projected)
        states = projected.new_empty(steps + 1, batch, hidden)
        states[0] = state
        w_t = w_hh.t().contiguous()  # a fifth faster than the view, for a few rows
        both, last = slice(0, 2 * hidden), slice(2 * hidden, width)
        # Slices of whole sequences, cut once: cutting them at every step would cost as much as the arithmetic.
        inputs, pre, post = ([x.unbind(0) for x in (t[..., both], t[..., last])] for t in (projected, recurrent, gates))
        reset, update = gates[..., :hidden].unbind(0), gates[..., hidden : 2 * hidden].unbind(0)
        products, memory = recurrent.unbind(0), states.unbind(0)
        for t in range(steps):
            torch.addmm(b_hh, memory[t], w_t, out=products[t])
            torch.add(inputs[0][t], pre[0][t], out=post[0][t]).sigmoid_()
            torch.addcmul(inputs[1][t], reset[t], pre[1][t], out=post[1][t]).tanh_()
            torch.lerp(post[1][t], memory[t], update[t], out=memory[t + 1])
        ctx.save_for_backward(gates, recurrent[..., last], states, w_hh)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The backward pass runs under the caller's autocast, but memory stays in fp32.
        with torch.autocast("cpu", enabled=False):
            gates, recurrent_new, states, w_hh = ctx.saved_tensors
            return _backward(gates, recurrent_new, states, w_hh, grad)


def _backward(
    gates: Tensor, recurrent_new: Tensor, states: Tensor, w_hh: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by projected inputs, first state, recurrent weights and biases."""
    hidden = w_hh.shape[1]
    r, z, n = gates.split(hidden, -1)
    # Derivatives of h' = (1-z) n + z h by the three pre-activations (of n also through r), for all steps at once.
    by_new = (1 - z) * (1 - n * n)
    factors = torch.cat([by_new * recurrent_new * r * (1 - r), (states[:-1] - n) * z * (1 - z), by_new * r], -1)
    recurrent = torch.empty_like(gates)  # gradients at the recurrent pre-activations
    upstream = torch.empty_like(n)  # gradients at every h'
    carry = torch.zeros_like(n[0])
    by_gate, to_gate = (t.unflatten(-1, (3, hidden)).unbind(0) for t in (factors, recurrent))
    totals, grads, gradients, keep = upstream.unbind(0), grad.unbind(0), recurrent.unbind(0), z.unbind(0)
    for t in range(len(grads) - 1, -1, -1):
        torch.add(grads[t], carry, out=totals[t])
        torch.mul(by_gate[t], totals[t].unsqueeze(1), out=to_gate[t])
        carry = torch.addcmul(gradients[t] @ w_hh, totals[t], keep[t])
    flat = recurrent.flatten(0, 1)
    projected = torch.cat([recurrent[..., : 2 * hidden], upstream * by_new], -1)
    return projected, carry, flat.t() @ states[:-1].flatten(0, 1), flat.sum(0)
