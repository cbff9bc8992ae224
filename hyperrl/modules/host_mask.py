"""Masks whose values the host knows: sequences are cut where tasks start, and asking a device makes the host wait."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_host(mask: Tensor) -> Tensor:
    """The values of a mask on the CPU. The host waits for them once per mask, unless somebody told it (`tell`)."""
    values = known(mask)
    return on_host(tell(mask, mask.cpu())) if values is None else values


def known(mask: Tensor) -> Tensor | None:
    """The values of a mask on the CPU, if they are there already."""
    return mask if mask.is_cpu else getattr(mask, "on_host", None)


def tell(mask: Tensor, values: Tensor) -> Tensor:
    """Lets the host know the values of a mask, which must not change; returns the mask."""
    if not mask.is_cpu:
        mask.on_host = values  # type: ignore[attr-defined]
    return mask


def on_both(function: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """What a function makes of a mask, on the device and on the host."""
    return function(mask) if mask.is_cpu else tell(function(mask), function(on_host(mask)))


def nowhere(like: Tensor) -> Tensor:
    """A mask ``[B, T]`` for ``like [B, T, ...]`` that is set nowhere."""
    return tell(like.new_zeros(like.shape[:2], dtype=torch.bool), torch.zeros(like.shape[:2], dtype=torch.bool))
