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
    return mask if mask.is_cpu else _told(mask)


def tell(mask: Tensor, values: Tensor) -> Tensor:
    """Lets the host know the values of a mask; returns the mask."""
    if not mask.is_cpu:
        mask.host_values = _version(mask), values  # type: ignore[attr-defined]
    return mask


def _told(mask: Tensor) -> Tensor | None:
    """What the host was told of a mask, unless the mask was written to since then."""
    version, values = getattr(mask, "host_values", (None, None))
    return values if version == _version(mask) else None


def _version(mask: Tensor) -> int:
    """How often a mask was written to; PyTorch does not count it for tensors of its inference mode."""
    return 0 if mask.is_inference() else mask._version


def on_both(function: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """What a function makes of a mask, on the device and on the host."""
    return function(mask) if mask.is_cpu else tell(function(mask), function(on_host(mask)))


def nowhere(like: Tensor) -> Tensor:
    """A mask ``[B, T]`` for ``like [B, T, ...]`` that is set nowhere."""
    return tell(like.new_zeros(like.shape[:2], dtype=torch.bool), torch.zeros(like.shape[:2], dtype=torch.bool))


def queued(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, by a copy that the host does not wait for; elsewhere the tensor itself."""
    if tensor.is_cpu and device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory CUDA may copy only when the device has done its work
    return tensor.to(device, non_blocking=True)
