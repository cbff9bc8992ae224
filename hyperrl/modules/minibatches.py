"""Minibatches of a rollout: whole environments, or single steps as in the reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperrl.errors import ConfigError


def permuted_chunks(size: int, number: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Cuts a random permutation of ``range(size)`` into ``number`` equal parts.

    Args:
        size: number of items: environments, or steps.
        number: number of minibatches; the rest of an indivisible ``size`` is dropped (only steps can be indivisible:
            :class:`~hyperrl.modules.meta_ppo.MetaPPO` refuses indivisible environments).
        generator: source of the permutation.

    Raises:
        ConfigError: there are fewer items than minibatches.

    Yields:
        Index tensors of length ``size // number``.
    """
    if size < number:
        raise ConfigError(f"model.ppo.num_minibatches is {number}; expected at most the {size} steps of a rollout")
    permutation = torch.randperm(size, generator=generator)
    yield from permutation[: size // number * number].chunk(number)
