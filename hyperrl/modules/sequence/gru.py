"""A GRU as memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperrl.modules.initializers import encoder_rnn_
from hyperrl.modules.sequence.base import SequenceModel
from hyperrl.modules.sequence.gru_kernel import gru_sequence
from hyperrl.modules.sequence.segments import run_segments


class GRU(SequenceModel):
    """A single-layer GRU over feature vectors (Cho et al. 2014); its state is the hidden vector.

    Args:
        input_dim: width of the features.
        hidden_dim: width of the hidden state and of the output.
        horizon: longest task in steps; not needed here.
    """

    def __init__(self, input_dim: int, hidden_dim: int, horizon: int) -> None:
        super().__init__()
        self.cell = nn.GRU(input_dim, hidden_dim, batch_first=True)
        encoder_rnn_(self.cell)
        self.output_dim = self.state_dim = hidden_dim

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and recurrent weights, input and recurrent biases."""
        cell = self.cell
        return cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0  # type: ignore[return-value]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        state = torch.gru_cell(x, state, *self.weights)
        return state, state

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`."""

        def run(pieces: Tensor, before: Tensor) -> Tensor:
            return gru_sequence(pieces, before, *self.weights)

        return run_segments(run, x, reset, state, self.start(initial))

    def final_state(self, x: Tensor, output: Tensor, state: Tensor) -> Tensor:
        """See :meth:`SequenceModel.final_state`."""
        return output[:, -1]
