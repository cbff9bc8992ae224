"""How much a memory's output depends on the order of its inputs (spec/tooling.md section 3.2, analysis 4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hyperrl.experiments.analysis.gradients import blocks_of_steps

SMALLEST_NORM = 1e-30


def prefix_orders(generator: np.random.Generator, runs: int, steps: int) -> Tensor:
    """Random orders of the first t+1 inputs, for every t.

    Returns:
        Row ``[r, t]`` begins with a uniformly drawn permutation of 0..t, and ends with -1. ``[runs, steps, steps]``.
    """
    keys = generator.random((runs, steps, steps), dtype=np.float32)
    later = np.triu(np.ones((steps, steps), bool), 1)
    keys[:, later] = np.inf
    orders = keys.argsort(-1)
    orders[:, later] = -1
    return torch.from_numpy(orders)


@torch.no_grad()
def reordered_outputs(memory: nn.Module, x: Tensor, orders: Tensor) -> Tensor:
    """The last output after every prefix in another order.

    Args:
        memory: features ``[R, T, D]`` to outputs ``[R, T, O]``.
        x: features ``[R, T, D]``.
        orders: orders of prefixes ``[R, T, T]``, as `prefix_orders` gives them.

    Returns:
        At ``[r, t]`` the output after ``x[r, orders[r, t, :t+1]]``, ``[R, T, O]``.
    """
    run = torch.arange(len(x))[:, None, None]
    outputs = []
    for steps in blocks_of_steps(x):
        # What is fed behind a prefix, shorter than others of its block, comes too late to matter.
        order = orders[:, steps, : steps[-1] + 1].clamp(min=0)
        latents = memory(x[run, order].flatten(0, 1)).unflatten(0, (len(x), len(steps)))
        outputs.append(latents[:, range(len(steps)), steps])
    return torch.cat(outputs, 1)


def direction_difference(y: Tensor, z: Tensor) -> Tensor:
    """Mean over runs of the distance of two outputs ``[R, T, O]`` scaled to length 1: between 0 and 2, ``[T]``."""
    y, z = (output / output.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM) for output in (y.double(), z.double()))
    return (y - z).norm(dim=-1).mean(0)
