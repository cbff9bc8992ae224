"""Per-step embeddings in the place of a recurrent memory: an aggregator behind them is what remembers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperrl.errors import ConfigError
from hyperrl.modules.sequence.base import SequenceModel


class Memoryless(SequenceModel):
    """Embeds every step by itself, ``tanh(W x + b)``; has no state.

    Args:
        input_dim: width of the features.
        hidden_dim: width of the output.
        horizon: longest task in steps; not needed here.
    """

    def __init__(self, input_dim: int, hidden_dim: int, horizon: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_dim, hidden_dim)
        self.output_dim, self.state_dim = hidden_dim, 0

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, 0]``."""
        return self.layer(x).tanh(), state

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`."""
        return self.layer(x).tanh()


class Transition(SequenceModel):
    """Embeds every step together with the end of the previous one; its state is the previous feature vector.

    With features ``(a, r, s')`` and the width of s' as ``previous_dim``, that is the transition ``(s, a, r, s')``. Kept
    for published configurations; feeding full transitions to :class:`Memoryless` says the same in a simpler way.

    Args:
        input_dim: width of the features.
        hidden_dim: width of the output.
        horizon: longest task in steps; not needed here.
        previous_dim: how many of the previous step's last features are seen again; null for all.
    """

    def __init__(self, input_dim: int, hidden_dim: int, horizon: int, previous_dim: int | None = None) -> None:
        super().__init__()
        self.previous_dim = input_dim if previous_dim is None else previous_dim
        if not 1 <= self.previous_dim <= input_dim:
            raise ConfigError(
                f"model.encoder.sequence.previous_dim is {previous_dim}; expected 1 to the number of features, "
                f"{input_dim}"
            )
        self.layer = nn.Linear(self.previous_dim + input_dim, hidden_dim)
        self.output_dim, self.state_dim = hidden_dim, input_dim

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, F]``."""
        return self._embed(state, x), x

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`."""
        previous = torch.cat([state.unsqueeze(1), x[:, :-1]], 1)
        return self._embed(torch.where(reset.unsqueeze(-1), self.start(initial), previous), x)

    def _embed(self, previous: Tensor, x: Tensor) -> Tensor:
        return self.layer(torch.cat([previous[..., -self.previous_dim :], x], -1)).tanh()
