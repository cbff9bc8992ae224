"""Gradients of a memory's outputs by its inputs and parameters (spec/tooling.md section 3.2, analyses 1 to 3).

A memory is a module that turns features ``[R, T, D]`` of R runs into outputs ``[R, T, O]``; what is differentiated is
the sum over the O numbers of one step's output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Rows times steps that are held at once, with all that a backward pass needs of them. More would not be faster.
STEPS_AT_ONCE = 16_384


def first_input_gradient(memory: nn.Module, x: Tensor) -> Tensor:
    """How the output of every step depends on the first input.

    Every step's output is that of a row of its own, so that one backward pass gives the gradients of many.

    Args:
        memory: features to outputs.
        x: features ``[R, T, D]``.

    Returns:
        At ``[r, t]`` the gradient of output ``[r, t]`` by ``x[r, 0]``, ``[R, T, D]``.
    """
    gradients = []
    for steps in blocks_of_steps(x):
        prefixes = x[:, : steps[-1] + 1].repeat_interleave(len(steps), 0).requires_grad_()
        outputs = memory(prefixes).unflatten(0, (len(x), len(steps)))
        (gradient,) = torch.autograd.grad(outputs[:, range(len(steps)), steps].sum(), prefixes)
        gradients.append(gradient[:, 0].unflatten(0, (len(x), len(steps))))
    return torch.cat(gradients, 1)


def every_input_gradient(memory: nn.Module, x: Tensor) -> Tensor:
    """How the last output depends on every input: at ``[r, t]`` its gradient by ``x[r, t]``, ``[R, T, D]``."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(memory(x)[:, -1].sum(), x)[0]


def parameter_gradient_norms(memory: nn.Module, x: Tensor) -> Tensor:
    """How the output of every step depends on the parameters.

    Args:
        memory: features to outputs.
        x: features ``[R, T, D]``.

    Returns:
        At ``[r, t, p]`` the L2 norm of the gradient of output ``[r, t]`` by the p-th of ``memory.parameters()``,
        which is 0 if it is unused, ``[R, T, P]``.
    """
    parameters = list(memory.parameters())
    norms = x.new_zeros(*x.shape[:2], len(parameters))
    for run, features in enumerate(x.split(1)):
        for step, output in enumerate(memory(features)[0].sum(-1).unbind()):
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    norms[run, step, index] = gradient.norm()
    return norms


def blocks_of_steps(x: Tensor) -> Iterator[Tensor]:
    """The steps of ``x [R, T, D]`` in consecutive blocks; a prefix of each run per step of a block fits into memory."""
    runs, steps, _ = x.shape
    return iter(torch.arange(steps).split(max(1, STEPS_AT_ONCE // (runs * steps))))
