"""An LSTM as memory."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from hyperrl.errors import ConfigError
from hyperrl.modules.initializers import encoder_rnn_
from hyperrl.modules.sequence.base import SequenceModel
from hyperrl.modules.sequence.segments import run_segments

Invariant = Literal["none", "bias", "full"]
# Input and forget gates are 1 - 1e-8: this bias is in both of their bias vectors.
OPEN_GATE = math.log((1 - 1e-4) / 1e-4)


class LSTM(SequenceModel):
    """A single-layer LSTM over feature vectors (Hochreiter and Schmidhuber 1997); its state is (h, c).

    Args:
        input_dim: width of the features.
        hidden_dim: width of h, of c and of the output.
        horizon: longest task in steps; not needed here.
        invariant: initialisation at which the order of the steps does not matter (SplAgger, 2024): `bias` holds the
            input and forget gates open, `full` moreover makes the cell a sum of embedded inputs, `none` does nothing.
    """

    def __init__(self, input_dim: int, hidden_dim: int, horizon: int, invariant: Invariant = "none") -> None:
        super().__init__()
        if invariant not in ("none", "bias", "full"):
            raise ConfigError(f"model.encoder.sequence.invariant is {invariant!r}; expected none, bias or full")
        self.cell = nn.LSTM(input_dim, hidden_dim, batch_first=True)
        encoder_rnn_(self.cell)
        if invariant != "none":
            invariant_(*self.weights, full=invariant == "full")
        self.output_dim, self.state_dim = hidden_dim, 2 * hidden_dim

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and recurrent weights, input and recurrent biases."""
        cell = self.cell
        return cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0  # type: ignore[return-value]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        hidden, cell = torch.lstm_cell(x, state.chunk(2, -1), *self.weights)
        return hidden, torch.cat([hidden, cell], -1)

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`."""
        return run_segments(self._run, x, reset, state, self.start(initial))

    def _run(self, x: Tensor, state: Tensor) -> Tensor:
        """The fused kernel, without resets."""
        before = [part.contiguous() for part in state.unsqueeze(0).chunk(2, -1)]
        # Acting steps in full fp32; cuDNN's default would let sequences differ from it by TF32's rounding.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.lstm(x, before, self.weights, True, 1, 0.0, True, False, True)[0]


@torch.no_grad()
def invariant_(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, full: bool) -> None:
    """Makes an LSTM an almost exact sum: invariant initialisation (spec/models.md section 3).

    Args:
        w_ih: input weights ``[4H, F]``, orthogonal; gates in the order input, forget, cell, output.
        w_hh: recurrent weights ``[4H, H]``.
        b_ih: input biases ``[4H]``, zeros.
        b_hh: recurrent biases ``[4H]``, zeros.
        full: also cut the input and forget gates from the input, and all gates from the recurrence.
    """
    gates = slice(0, len(w_ih) // 2)
    b_ih[gates] = b_hh[gates] = OPEN_GATE
    if full:
        w_ih[gates] = 0
        w_hh.zero_()
