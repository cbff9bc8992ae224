"""One layer per task, chosen by the task's id: an upper bound to compare with (spec/models.md section 5.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyperrl.modules.hypernet import Input


class PerTaskLinear(nn.Module):
    """An affine layer with weights of its own for each task; samples meet the weights of their task only.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        num_tasks: number of tasks.

    Attributes:
        weight: ``[num_tasks, out, in]``; initialised, like the bias, as the framework does it for a single layer.
        bias: ``[num_tasks, out]``.
    """

    def __init__(self, in_features: int, out_features: int, num_tasks: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_tasks, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_tasks, out_features).uniform_(-bound, bound))

    def forward(self, inputs: Input) -> Tensor:
        """Returns ``[N, out]``."""
        task = inputs.task_id
        assert task is not None
        return torch.einsum("noi,ni->no", self.weight[task], inputs.x) + self.bias[task]
