"""A transformer that keeps and re-processes one token per step, as published."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hyperrl.errors import ConfigError
from hyperrl.modules.sequence.base import SequenceModel
from hyperrl.modules.sequence.segments import run_segments
from hyperrl.modules.sequence.tokens import check_heads, check_room, checked_horizon, steps_in_memory, steps_in_use


class Transformer(SequenceModel):
    """Keeps the tokens of all steps of a task and sends all of them through the blocks at every step.

    The blocks' outputs replace the tokens, so that a token has passed them once for every step since it was added. That
    is the memory called Transformer in SplAgger (2024), kept for comparison with it: k steps cost O(k^3), and nothing
    but the rows runs in parallel. For a memory of this kind to work with, see :class:`CausalTransformer`.

    Its state is all tokens, zeros where there is none yet, and their number.

    Args:
        input_dim: width of the features.
        hidden_dim: width of the output.
        horizon: longest task in steps: the number of tokens kept.
        token_dim: width of a token; null where `memory_dim` is given.
        memory_dim: width of the whole memory, shared by `horizon` tokens, in the place of `token_dim`.
        num_layers: number of blocks.
        num_heads: attention heads per block.
    """

    initial_learnable: ClassVar[bool] = False

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        horizon: int,
        token_dim: int | None = 16,
        memory_dim: int | None = None,
        num_layers: int = 2,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        self.horizon = checked_horizon(horizon, type(self).__name__)
        self.token_dim = _token_dim(token_dim, memory_dim, horizon)
        check_heads(self.token_dim, num_layers, num_heads)
        self.input = nn.Linear(input_dim, self.token_dim)
        self.blocks = nn.ModuleList(_Block(self.token_dim, num_heads) for _ in range(num_layers))
        self.output = nn.Linear(self.token_dim, hidden_dim)
        self.output_dim, self.state_dim = hidden_dim, horizon * self.token_dim + 1

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        count = state[:, -1:]
        check_room(count, self.horizon)
        used = min(steps_in_use(count, self.horizon), self.horizon - 1)
        output, tokens = self._advance(self.input(x), self._tokens(state, used), count)
        tokens = nn.functional.pad(tokens, (0, 0, 0, self.horizon - tokens.shape[1]))
        return self.output(output), torch.cat([tokens.flatten(1), count + 1], 1)

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; see :meth:`SequenceModel.forward`.

        Steps through them, since re-processing has no parallel form; all tasks of all rows go side by side.
        """
        check_room(steps_in_memory(reset, state[:, -1]), self.horizon)
        return run_segments(self._run, x, reset, state, self.start(initial))

    def _tokens(self, state: Tensor, used: int) -> Tensor:
        """The first tokens ``[B, used, D]``."""
        return state[:, : used * self.token_dim].unflatten(1, (used, self.token_dim))

    def _run(self, x: Tensor, state: Tensor) -> Tensor:
        count = state[:, -1:]
        tokens = self._tokens(state, steps_in_use(count, self.horizon))
        outputs = []
        for new in self.input(x).unbind(1):
            # Only padding goes beyond the horizon.
            output, tokens = self._advance(new, tokens[:, : self.horizon - 1], count)
            outputs.append(output)
            count = count + 1
        return self.output(torch.stack(outputs, 1))

    def _advance(self, new: Tensor, tokens: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a token and sends all of them through the blocks.

        Args:
            new: the token to add ``[N, D]``.
            tokens: the others, and room behind them where a row has fewer than others, ``[N, K, D]``.
            count: the number of each row's tokens ``[N, 1]``, at most K.

        Returns:
            The new token behind the blocks ``[N, D]`` and all tokens ``[N, K+1, D]``.
        """
        slots = torch.arange(tokens.shape[1] + 1, device=count.device)
        room = nn.functional.pad(tokens, (0, 0, 0, 1))
        tokens = torch.where((slots == count).unsqueeze(-1), new.unsqueeze(1), room)
        empty = slots > count
        for block in self.blocks:
            tokens = block(tokens, empty)
        tokens = tokens.masked_fill(empty.unsqueeze(-1), 0.0)
        last = count[:, 0].long().clamp(max=tokens.shape[1] - 1)
        return tokens[torch.arange(len(tokens), device=last.device), last], tokens


class _Block(nn.Module):
    """Attention and one affine layer, each added to its input and normalised; no activation."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.ff = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, empty: Tensor) -> Tensor:
        """Tokens ``[N, K, D]``, and which of them nobody attends to ``[N, K]``."""
        attended, _ = self.attention(x, x, x, key_padding_mask=empty, need_weights=False)
        x = self.norm1(x + attended)
        return self.norm2(x + self.ff(x))


def _token_dim(token_dim: int | None, memory_dim: int | None, horizon: int) -> int:
    if token_dim is not None and memory_dim is None:
        return token_dim
    if memory_dim is not None and token_dim is None:
        return memory_dim // horizon
    raise ConfigError(
        f"model.encoder.sequence.token_dim is {token_dim} and model.encoder.sequence.memory_dim is {memory_dim}; "
        "expected one of them, and null for the other"
    )
