"""What happens to each input of the policy before actor and critic see it (spec/models.md section 5.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperrl.modules.hypernet import Input
from hyperrl.modules.normalization import RunningNorm
from hyperrl.modules.per_task import PerTaskLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
}


class InputEmbedding(nn.Module):
    """Optional normalisation, then an optional affine layer with the policy's activation.

    Args:
        dim: width of the input.
        embedding_dim: width of the embedding; none leaves the input as it is.
        normalize: whether running statistics normalise the input.
        activation: activation of the embedding.
        num_tasks: number of tasks, each with an affine layer of its own; 0 for one layer.
    """

    def __init__(
        self, dim: int, embedding_dim: int | None, normalize: bool, activation: str, num_tasks: int = 0
    ) -> None:
        super().__init__()
        self.norm = RunningNorm(dim) if normalize else None
        self.linear: nn.Linear | PerTaskLinear | None = None
        if embedding_dim:
            self.linear = PerTaskLinear(dim, embedding_dim, num_tasks) if num_tasks else nn.Linear(dim, embedding_dim)
        self.activation = ACTIVATIONS[activation]
        self.output_dim = embedding_dim or dim

    def forward(self, x: Tensor, task_id: Tensor | None = None) -> Tensor:
        """Embeds ``x [N, dim]``, by the layer of each ``task_id [N]`` if there are several, to ``[N, output_dim]``."""
        if self.norm is not None:
            x = self.norm(x)
        if self.linear is None:
            return x
        per_task = isinstance(self.linear, PerTaskLinear)
        return self.activation(self.linear(Input(x, task_id=task_id) if per_task else x))

    def update(self, x: Tensor) -> None:
        """Moves the running statistics, if there are any, by all rows of ``x``."""
        if self.norm is not None:
            self.norm.update(x)
