"""Action distributions: a categorical over indices, or a diagonal Gaussian."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from hyperrl import keys


class UncheckedCategorical(Categorical):
    """A categorical that trusts its logits: the check would synchronise the device at every call."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)


class DiagonalNormal(Independent):
    """A Gaussian with independent dimensions: log-probability and entropy are sums over them."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def action_distribution(parameters: dict[str, Tensor]) -> Distribution:
    """The action distribution that ``logits``, or ``loc`` and ``scale``, describe."""
    return (UncheckedCategorical if keys.LOGITS in parameters else DiagonalNormal)(**parameters)
