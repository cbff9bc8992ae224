"""The minimal GRU, whose gates do not see the state: a linear recurrence, and so a parallel scan."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperrl.errors import ConfigError
from hyperrl.modules.host_mask import on_host
from hyperrl.modules.scan import cut_at_resets, linear_scan
from hyperrl.modules.sequence.base import SequenceModel


class MinGRU(SequenceModel):
    """h <- (1 - z) h + z g with z = sigmoid(W x + b) and g = V x + c (Feng et al. 2024); its state is every layer's h.

    Args:
        input_dim: width of the features.
        hidden_dim: width of every layer and of the output.
        horizon: longest task in steps; not needed here.
        num_layers: number of layers, each on the outputs of the one before.
    """

    def __init__(self, input_dim: int, hidden_dim: int, horizon: int, num_layers: int = 1) -> None:
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"model.encoder.sequence.num_layers is {num_layers}; expected at least 1")
        dims = [input_dim] + [hidden_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(dim, 2 * hidden_dim) for dim in dims)
        self.output_dim, self.state_dim = hidden_dim, num_layers * hidden_dim

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        states = []
        for layer, hidden in zip(self.layers, state.split(self.output_dim, -1), strict=True):
            update, candidate = layer(x).chunk(2, -1)
            x = torch.lerp(hidden, candidate, update.sigmoid())
            states.append(x)
        return x, torch.cat(states, -1) if len(states) > 1 else x

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`."""
        starts = self.start(initial).split(self.output_dim, -1)
        cut = bool(on_host(reset).any())
        for layer, hidden, start in zip(self.layers, state.split(self.output_dim, -1), starts, strict=True):
            update, candidate = layer(x).chunk(2, -1)
            update = update.sigmoid()
            keep, value = 1 - update, update * candidate
            if cut:
                keep, value = cut_at_resets(keep, value, reset, start)
            x = linear_scan(keep, value, hidden)
        return x
