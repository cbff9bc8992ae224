"""Sequence models with a step form for acting and a sequence form for learning (spec/models.md sections 3 and 12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperrl.modules.gru import gru_sequence
from hyperrl.modules.initializers import encoder_gru_


class GRU(nn.Module):
    """A single-layer GRU over feature vectors; its state is the hidden vector.

    Args:
        input_dim: width ``F`` of the features.
        hidden_dim: width of the hidden state and of the output.
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.cell = nn.GRU(input_dim, hidden_dim, batch_first=True)
        encoder_gru_(self.cell)
        self.output_dim = self.state_dim = hidden_dim

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and recurrent weights, input and recurrent biases."""
        cell = self.cell
        return cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0  # type: ignore[return-value]

    def initial_state(self, batch: int) -> Tensor:
        """The memory at a task's start, ``[batch, S]``."""
        return self.weights[0].new_zeros(batch, self.state_dim)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        state = torch.gru_cell(x, state, *self.weights)
        return state, state

    def forward(self, x: Tensor, reset: Tensor, state: Tensor) -> Tensor:
        """Consumes whole sequences; equals stepping through them.

        Args:
            x: features ``[B, T, F]``.
            reset: where the memory is set to its initial value **before** the entry is consumed, ``[B, T]``.
            state: memory before the first entry ``[B, S]``.

        Returns:
            Outputs ``[B, T, E]``.
        """
        outputs = []
        for start, stop in _shared_chunks(reset):
            if bool(reset[:, start].all()):
                state = self.initial_state(len(x))
            outputs.append(self._chunk(x[:, start:stop], reset[:, start:stop], state))
            state = outputs[-1][:, -1]
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]

    def _chunk(self, x: Tensor, reset: Tensor, state: Tensor) -> Tensor:
        """Runs a chunk in which no column after the first resets every environment."""
        if bool(reset[:, 0].any()):
            state = torch.where(reset[:, :1], self.initial_state(len(x)), state)
        inner = reset[:, 1:]
        if not bool(inner.any()):
            return gru_sequence(x, state, *self.weights)
        return self._segments(x, reset, state)

    def _segments(self, x: Tensor, reset: Tensor, state: Tensor) -> Tensor:
        """Cuts every row at its resets and runs the pieces as one padded batch."""
        starts = reset.clone()
        starts[:, 0] = True
        row, first = starts.nonzero(as_tuple=True)
        segment = starts.flatten().cumsum(0).view_as(starts) - 1
        offset = torch.arange(x.shape[1], device=x.device) - first[segment]
        pieces = x.new_zeros(len(row), int(offset.max()) + 1, x.shape[2])
        pieces[segment, offset] = x
        initial = torch.where((first == 0).unsqueeze(-1), state[row], self.initial_state(len(row)))
        return gru_sequence(pieces, initial, *self.weights)[segment, offset]


def _shared_chunks(reset: Tensor) -> list[tuple[int, int]]:
    """Cuts the time axis of ``reset [B, T]`` where all rows reset together: the common case, free of padding."""
    cuts = [0, *(t for t in reset.all(0).nonzero()[:, 0].tolist() if t), reset.shape[1]]
    return list(zip(cuts[:-1], cuts[1:], strict=True))
