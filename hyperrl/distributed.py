"""The two collective operations that training needs; both are trivial in a single process."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sums ``value`` over all ranks of a distributed run."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather_over_ranks(value: T) -> list[T]:
    """The ``value`` of every rank, in order, on every rank; tensors in it arrive on the CPU.

    Pickled as they are, they would come back on the device of the rank that they are of.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, pytree.tree_map_only(Tensor, Tensor.cpu, value))
    return values
