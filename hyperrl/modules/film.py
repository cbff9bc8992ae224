"""Feature-wise linear modulation: ordinary weights, generated scales and biases (spec/models.md section 5.4)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from hyperrl.modules.hypernet import Input


class FilmLinear(nn.Module):
    """A layer ``(M x) * scale(e) + bias(e)`` (Perez et al. 2018); ``M`` has no bias of its own.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        condition_dim: width ``K`` of the condition.

    Attributes:
        weight: ``M``, ``[out, in]``; initialised as the framework does.
        scale_head: ``scale(e)`` as an affine layer ``[out, K]``.
        bias_head: ``bias(e)`` as an affine layer ``[out, K]``.
    """

    generates: ClassVar = ("scale", "bias")

    def __init__(self, in_features: int, out_features: int, condition_dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(in_features, out_features, bias=False).weight
        self.scale_head = nn.Linear(condition_dim, out_features)
        self.bias_head = nn.Linear(condition_dim, out_features)

    def forward(self, inputs: Input) -> Tensor:
        """Returns ``[N, out]``."""
        condition = inputs.condition
        assert condition is not None
        scale, bias = self.materialise(condition.embedding)
        return functional.linear(inputs.x, self.weight) * scale + condition.bias(bias)

    def materialise(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The generated scales and biases, both ``[N, out]``, for ``embedding [N, K]``."""
        return self.scale_head(embedding), self.bias_head(embedding)
