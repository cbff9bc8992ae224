"""What memories that keep a token per step share: counting steps, and refusing what has no room."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperrl.errors import ConfigError


def checked_horizon(horizon: int, model: str) -> int:
    """The horizon, where it is one."""
    if horizon < 1:
        raise ConfigError(
            f"horizon is {horizon} and model.encoder.sequence is {model}, which keeps every step; expected the number "
            "of steps of the longest task"
        )
    return horizon


def check_heads(token_dim: int, num_layers: int, num_heads: int) -> None:
    """Refuses widths that cannot be built."""
    if num_layers < 1:
        raise ConfigError(f"model.encoder.sequence.num_layers is {num_layers}; expected at least 1")
    if num_heads < 1 or token_dim < 1 or token_dim % num_heads:
        raise ConfigError(
            f"model.encoder.sequence.num_heads is {num_heads} and a token has width {token_dim} (token_dim, or "
            "memory_dim divided by the horizon); expected heads of equal width"
        )


def steps_in_memory(reset: Tensor, count: Tensor) -> Tensor:
    """How many steps of its task precede each entry, ``[B, T]``.

    Args:
        reset: where a task starts **before** the entry, ``[B, T]``.
        count: steps of the first entry's task that went before ``[B]``.
    """
    time = torch.arange(reset.shape[1], device=reset.device)
    start = torch.where(reset, time, torch.iinfo(time.dtype).min)
    start[:, 0] = torch.where(reset[:, 0], 0, -count.long())
    return time - start.cummax(1).values


def check_room(used: Tensor, horizon: int) -> None:
    """Refuses a task that is longer than the memory.

    Args:
        used: steps in memory before others come ``[...]``.
        horizon: steps that the memory holds.

    Raises:
        ConfigError: there is no room. On an accelerator, where waiting for the answer at every step would cost more
            than the step, a device assertion with the same message.
    """
    message = (
        f"horizon is {horizon}, and a task has more steps; expected the number of steps of the longest task that the "
        "memory will meet, evaluation included"
    )
    if not used.is_cpu:
        torch._assert_async((used < horizon).all(), message)
    elif bool((used >= horizon).any()):
        raise ConfigError(message)


def steps_in_use(count: Tensor, horizon: int) -> int:
    """How many slots of a memory have to be looked at: those in use, where asking for them costs nothing.

    Args:
        count: steps in memory ``[B, 1]``.
        horizon: steps that the memory holds.
    """
    return int(count.max()) if count.is_cpu else horizon
