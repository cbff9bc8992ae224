"""A causal transformer with a key-value cache."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hyperrl.errors import ConfigError
from hyperrl.modules.sequence.base import SequenceModel
from hyperrl.modules.sequence.tokens import check_heads, check_room, checked_horizon, steps_in_memory, steps_in_use

Turn = tuple[Tensor, Tensor]  # cosines and sines of every position's angles, [B, 1, T, W / 2]


class CausalTransformer(SequenceModel):
    """A pre-norm causal transformer over the steps of a task, positions by rotation (Su et al. 2021).

    Learning is one parallel pass; a step of acting attends to the steps before it. Rotated keys know only distances, so
    no parameter depends on the horizon.

    Its state is the keys and values of all layers, ``[layers, 2, horizon, token_dim]``, and the number of steps.

    Args:
        input_dim: width of the features.
        hidden_dim: width of the output.
        horizon: longest task in steps: the number of steps attended to.
        token_dim: width of a token.
        num_layers: number of blocks.
        num_heads: attention heads per block.
    """

    initial_learnable: ClassVar[bool] = False

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        horizon: int,
        token_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.horizon = checked_horizon(horizon, type(self).__name__)
        check_heads(token_dim, num_layers, num_heads)
        if token_dim // num_heads % 2:
            raise ConfigError(
                f"model.encoder.sequence.token_dim is {token_dim} and model.encoder.sequence.num_heads is {num_heads}; "
                "expected heads of even width, whose halves are rotated against each other"
            )
        self.input = nn.Linear(input_dim, token_dim)
        self.blocks = nn.ModuleList(_Block(token_dim, num_heads) for _ in range(num_layers))
        self.output = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, hidden_dim))
        half = token_dim // num_heads // 2
        self.frequency: Tensor
        self.register_buffer("frequency", 10_000 ** -(torch.arange(half) / half), persistent=False)
        self.layout = (num_layers, 2, horizon, token_dim)
        self.output_dim, self.state_dim = hidden_dim, horizon * num_layers * 2 * token_dim + 1

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""
        cache, count = self._cache(state), state[:, -1:].long()
        check_room(count, self.horizon)
        used = steps_in_use(count, self.horizon)
        mask = torch.arange(used + 1, device=count.device) < count
        mask[:, -1] = True
        output, new = self._attend(x.unsqueeze(1), count, cache[..., :used, :], mask[:, None, None])
        state = state.clone()
        state[:, -1] += 1
        self._cache(state)[torch.arange(len(x), device=x.device), :, :, count[:, 0]] = new[..., 0, :]
        return output[:, 0], state

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences in one pass; see :meth:`SequenceModel.forward`.

        Raises:
            ValueError: ``initial`` is given; a task starts with nothing to attend to.
        """
        if initial is not None:
            raise ValueError("CausalTransformer takes no initial state: a task starts with nothing to attend to")
        count = state[:, -1]
        position = steps_in_memory(reset, count)
        check_room(position, self.horizon)
        used = steps_in_use(count, self.horizon)
        # Without a mask the library's causal kernel does, which is faster and stores less.
        masked = used > 0 or bool(reset[:, 1:].any())
        mask = _mask(reset, count, used) if masked else None
        return self._attend(x, position, self._cache(state)[..., :used, :], mask)[0]

    def _cache(self, state: Tensor) -> Tensor:
        """Keys and values ``[B, layers, 2, horizon, D]``, a view of the state."""
        return state[:, :-1].unflatten(1, self.layout)

    def _attend(self, x: Tensor, position: Tensor, cache: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sends entries through all blocks.

        Args:
            x: features ``[B, T, F]``.
            position: steps of the task before each entry ``[B, T]``.
            cache: keys and values of C steps before the first entry ``[B, layers, 2, C, D]``.
            mask: what each entry attends to, of the C and of the T, ``[B, 1, T, C+T]``; none where C is 0 and every
                entry attends to all before it.

        Returns:
            Outputs ``[B, T, E]``, keys and values of the entries ``[B, layers, 2, T, D]``.
        """
        angle = position.unsqueeze(-1) * self.frequency
        turn = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
        tokens, own = self.input(x), []
        for block, (keys, values) in zip(self.blocks, (layer.unbind(1) for layer in cache.unbind(1)), strict=True):
            tokens, new = block(tokens, turn, keys, values, mask)
            own.append(new)
        return self.output(tokens), torch.stack(own, 1)


class _Block(nn.Module):
    """Pre-norm attention and a two-layer network, each added to its input."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.network = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Tensor, turn: Turn, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, T, D]`` and what is cached ``[B, C, D]`` to tokens and own keys and values ``[B, 2, T, D]``."""
        query, key, value = (self._heads(part) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        key = _rotated(key, turn)
        attended = scaled_dot_product_attention(
            _rotated(query, turn),
            torch.cat([self._heads(keys), key], 2),
            torch.cat([self._heads(values), value], 2),
            attn_mask=mask,
            is_causal=mask is None,
        )
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        own = torch.stack([key, value], 1).transpose(2, 3).flatten(3)
        return x + self.network(self.norm2(x)), own

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[B, heads, T, D / heads]``."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _rotated(x: Tensor, turn: Turn) -> Tensor:
    """Rotates the halves of ``x [B, heads, T, W]`` against each other, by angles that grow with the position."""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def _mask(reset: Tensor, count: Tensor, used: int) -> Tensor:
    """What entries attend to ``[B, 1, T, used + T]``: what is cached until the first reset, then their own task."""
    task = reset.cumsum(1)
    own = (task.unsqueeze(2) == task.unsqueeze(1)).tril()
    cached = torch.arange(used, device=count.device) < count.unsqueeze(1)
    return torch.cat([(task == 0).unsqueeze(2) & cached.unsqueeze(1), own], 2).unsqueeze(1)
