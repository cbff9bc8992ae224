"""A GRU over whole sequences whose backward pass does not repeat small products per step.

The library's CPU kernel launches about twenty small operations per step in either direction; here the input products,
all weight gradients and all gate derivatives are taken over the whole sequence at once, and only ``h @ W_hh`` is left
inside the loops (`benchmarks/gru.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    if x.device.type != "cpu":
        output, _ = torch.gru(x, state.unsqueeze(0), [w_ih, w_hh, b_ih, b_hh], True, 1, 0.0, False, False, True)
        return output
    projected = torch.nn.functional.linear(x.transpose(0, 1), w_ih, b_ih)
    return _Recurrence.apply(projected, state, w_hh, b_hh).transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """The recurrent part, time-major: ``projected [T, B, 3H]``, ``state [B, H]`` to hidden states ``[T, B, H]``."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, state: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
        steps, batch, width = projected.shape
        hidden = width // 3
        gates = torch.empty_like(projected)
        recurrent_new = projected.new_empty(steps, batch, hidden)
        states = projected.new_empty(steps + 1, batch, hidden)
        states[0] = state
        w_t = w_hh.t()
        buffer = projected.new_empty(batch, width)
        for p, g, q, h, out in zip(projected, gates, recurrent_new, states[:-1], states[1:], strict=True):
            torch.addmm(b_hh, h, w_t, out=buffer)
            q.copy_(buffer[:, 2 * hidden :])
            r_and_z, new = g[:, : 2 * hidden], g[:, 2 * hidden :]
            torch.add(p[:, : 2 * hidden], buffer[:, : 2 * hidden], out=r_and_z).sigmoid_()
            torch.addcmul(p[:, 2 * hidden :], r_and_z[:, :hidden], q, out=new).tanh_()
            torch.lerp(new, h, r_and_z[:, hidden:], out=out)
        ctx.save_for_backward(gates, recurrent_new, states, w_hh)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, recurrent_new, states, w_hh = ctx.saved_tensors
        hidden = w_hh.shape[1]
        r, z, n = gates.split(hidden, -1)
        # Derivatives of h' = (1-z) n + z h by the three pre-activations (of n also through r), for all steps at once.
        by_new = (1 - z) * (1 - n * n)
        factors = torch.cat([by_new * recurrent_new * r * (1 - r), (states[:-1] - n) * z * (1 - z), by_new * r], -1)
        recurrent = torch.empty_like(gates)  # gradients at the recurrent pre-activations
        upstream = torch.empty_like(n)  # gradients at every h'
        carry = torch.zeros_like(n[0])
        for t in range(len(grad) - 1, -1, -1):
            total = torch.add(grad[t], carry, out=upstream[t])
            torch.mul(factors[t].view(-1, 3, hidden), total.unsqueeze(1), out=recurrent[t].view(-1, 3, hidden))
            carry = torch.addcmul(recurrent[t] @ w_hh, total, z[t])
        flat = recurrent.flatten(0, 1)
        projected = torch.cat([recurrent[..., : 2 * hidden], upstream * by_new], -1)
        return projected, carry, flat.t() @ states[:-1].flatten(0, 1), flat.sum(0)
