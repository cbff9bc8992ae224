"""What the checks of all contracts share."""

from __future__ import annotations

import torch
from torch import Tensor


class Contract:
    """Random numbers, and requirements whose failure is one line.

    Args:
        name: what is checked, for messages.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.
    """

    def __init__(self, name: str, seed: int, tolerance: float) -> None:
        self.name, self.tolerance = name, tolerance
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int) -> Tensor:
        """Normal numbers in double precision."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def require(self, holds: bool, message: str) -> None:
        """Raises `AssertionError` with the message if it does not hold."""
        if not holds:
            raise AssertionError(f"{self.name}: {message}")

    def equal(self, what: str, ours: Tensor, expected: Tensor) -> None:
        """Requires equality up to the tolerance."""
        error = float(((ours - expected).abs() / (1 + expected.abs())).max().detach())
        self.require(error <= self.tolerance, f"{what}: relative difference {error:.1e}")

    def sound(self, what: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Requires a shape, a type and finite numbers."""
        self.require(tensor.shape == shape, f"{what} has shape {tuple(tensor.shape)}, expected {shape}")
        self.require(tensor.dtype == dtype, f"{what} is {tensor.dtype}, expected {dtype}")
        self.require(bool(tensor.isfinite().all()), f"{what} is not finite")

    def reached(self, output: Tensor, leaves: dict[str, Tensor]) -> None:
        """Requires a gradient by every leaf that wants one."""
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        gradients = torch.autograd.grad(output, list(leaves.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            self.require(bool(gradient.isfinite().all()), f"the gradient by {name} is not finite")
            self.require(bool(gradient.any()), f"no gradient reaches {name}")
