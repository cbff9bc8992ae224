"""Aggregators: order-free summaries of all that was seen in a task (spec/models.md section 2).

Each is written once, in terms of `Memory`, and runs one step at a time for acting and as scans for learning.
`docs/aggregators.md` shows how to write one in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hyperrl.errors import ConfigError
from hyperrl.modules.host_mask import on_host
from hyperrl.modules.memory import Memory, Part, SequenceMemory, StepMemory, Weighting, divide

LOW = -999999.0
SMALLEST_DENOMINATOR = 0.1
# The published weight exp((u - SHIFT) / temperature) is exp(-LOWEST / temperature) at u = -1, the denominator's bound.
SHIFT, LOWEST = 2.0, 3.0
# Below, the published bound of the denominator underflows, and straight-through gradients with it.
COLDEST_STRAIGHT_THROUGH = 0.03


class Aggregator(nn.Module):
    """Summarises the features seen since the task began; a subclass says how in `aggregate`.

    The contract, tested for every aggregator by `hyperrl.testing.check_aggregator`: stepping ``T`` times equals one
    sequence call, with resets inside. Everything runs in the precision of the state: memory has to last.

    Args:
        width: number of input features ``d``.
        output_dim: number of output features ``O``.
        parts: the parts of the state by name, in the order in which they lie in the state vector.

    Attributes:
        input_factor: how many input features make one output feature.
        gives_latent: whether the output is the latent (mean, log variance) itself.
        permutation_invariant: whether the order of what was seen in a task is irrelevant.
        learnable: which entries of the state ``[S]`` a learned initial state may change.
    """

    input_factor: ClassVar[int] = 1
    gives_latent: ClassVar[bool] = False
    permutation_invariant: ClassVar[bool] = True
    learnable: Tensor
    _initial: Tensor

    def __init__(self, width: int, output_dim: int, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.width, self.output_dim = width, output_dim
        self._widths = {name: part.width for name, part in parts.items()}
        self.state_dim = sum(self._widths.values())
        initial = [torch.full((part.width,), part.initial) for part in parts.values()]
        learnable = [torch.full((part.width,), part.learnable) for part in parts.values()]
        self.register_buffer("_initial", torch.cat(initial), persistent=False)
        self.register_buffer("learnable", torch.cat(learnable), persistent=False)

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """Consumes features and says what is known afterwards.

        Args:
            x: features ``[B, d]``, or ``[B, T, d]`` when many steps are taken at once.
            memory: the parts of the state, each of which has to be advanced exactly once.

        Returns:
            Output of the same leading dimensions, ``[..., O]``.
        """
        raise NotImplementedError

    def initial_state(self, batch: int) -> Tensor:
        """The memory at a task's start, ``[batch, S]``."""
        return self._initial.repeat(batch, 1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, d]``; returns output ``[B, O]`` and state ``[B, S]``."""
        with torch.autocast(x.device.type, enabled=False):
            memory = StepMemory(self._split(state))
            output = self.aggregate(x.to(state.dtype), memory)
            parts = tuple(memory.parts.values())
            return output, parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; equals stepping through them.

        Args:
            x: features ``[B, T, d]``.
            reset: where the memory is set to its initial value **before** the entry is consumed, ``[B, T]``.
            state: memory before the first entry ``[B, S]``.
            initial: memory at a task's start ``[S]``, ``[1, S]`` or ``[B, S]``, if it is learned; else constants.

        Returns:
            Outputs ``[B, T, O]``.
        """
        with torch.autocast(x.device.type, enabled=False):
            start = (self._initial if initial is None else initial).to(state.dtype).expand_as(state)
            somewhere = reset if bool(on_host(reset).any()) else None
            memory = SequenceMemory(somewhere, self._split(state), self._split(start))
            return self.aggregate(x.to(state.dtype), memory)

    def final_state(self, x: Tensor, state: Tensor) -> Tensor:
        """The memory ``[B, S]`` after sequences ``[B, T, d]`` without resets, from the one before them."""
        with torch.autocast(x.device.type, enabled=False):
            parts = self._split(state)
            memory = SequenceMemory(None, parts, parts)
            self.aggregate(x.to(state.dtype), memory)
            return torch.cat([memory.parts[name][:, -1] for name in parts], -1)

    def _split(self, state: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._widths, state.split(tuple(self._widths.values()), -1), strict=True))


class Sum(Aggregator):
    """The sum.

    Args:
        width: number of input features.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, {"total": Part(width)})

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        return memory.sum("total", x)


class Max(Aggregator):
    """The maximum, of 0 and of all that was seen unless `low_initial`.

    Args:
        width: number of input features.
        low_initial: start at -999999 instead of 0.
        straight_through: differentiate as if it were a sum.
    """

    def __init__(self, width: int, low_initial: bool = False, straight_through: bool = False) -> None:
        super().__init__(width, width, {"high": Part(width, LOW if low_initial else 0.0)})
        self.straight_through = straight_through

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        return memory.max("high", x, straight_through=self.straight_through)


class MaxNorm(Max):
    """The maximum divided by its norm, through which no gradient flows.

    Args:
        width: number of input features.
        low_initial: start at -999999 instead of 0.
        straight_through: differentiate maximum as if it were a sum, and ignore the division.
    """

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        high = super().aggregate(x, memory)
        norm = high.detach().norm(dim=-1, keepdim=True).clamp(min=SMALLEST_DENOMINATOR)
        return divide(high, norm, straight_through=self.straight_through)


class Mean(Aggregator):
    """The mean.

    Args:
        width: number of input features.
        straight_through: ignore the division by the count when differentiating.
    """

    def __init__(self, width: int, straight_through: bool = False) -> None:
        super().__init__(width, width, {"total": Part(width), "count": Part(1, learnable=False)})
        self.straight_through = straight_through

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        total, count = memory.sum("total", x), memory.sum("count", torch.ones_like(x[..., :1]))
        return divide(total, count, straight_through=self.straight_through)


class MeanMax(Aggregator):
    """The mean of the first half of the features beside the maximum, of 0 and of all seen, of the second half.

    Args:
        width: number of input features, even.
        straight_through: differentiate the maximum as if it were a sum, and ignore the division by the count.
    """

    def __init__(self, width: int, straight_through: bool = False) -> None:
        half = _half(width, type(self))
        parts = {"total": Part(half), "high": Part(half), "count": Part(1, learnable=False)}
        super().__init__(width, width, parts)
        self.straight_through = straight_through

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        summed, maxed = x.chunk(2, -1)
        total, count = memory.sum("total", summed), memory.sum("count", torch.ones_like(x[..., :1]))
        mean = divide(total, count, straight_through=self.straight_through)
        return torch.cat([mean, memory.max("high", maxed, straight_through=self.straight_through)], -1)


class WeightedAverage(Aggregator):
    """The mean of the first half of the features, weighted by the second half.

    Args:
        width: number of input features, even.
        temperature: weights are exp((u - 2) / temperature); softplus(u) without one.
        straight_through: ignore the division by the sum of weights when differentiating.
        learn_temperature: train the temperature, as a parameter that is its logarithm.
    """

    input_factor = 2

    def __init__(
        self,
        width: int,
        temperature: float | None = None,
        straight_through: bool = False,
        learn_temperature: bool = False,
    ) -> None:
        half = _half(width, type(self))
        if temperature is None and learn_temperature:
            raise ConfigError(
                "model.encoder.aggregator.learn_temperature is true; expected false where "
                "model.encoder.aggregator.temperature is null"
            )
        weighing = None if temperature is None else Weighing(temperature, learn_temperature, straight_through)
        super().__init__(width, half, _weighted_parts(half) if weighing is None else weighing.parts(half))
        self.weighing, self.straight_through = weighing, straight_through

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        value, weight = x.chunk(2, -1)
        if self.weighing is not None:
            return self.weighing(value, weight, memory)
        return memory.mean(value, softplus(weight), Weighting(SMALLEST_DENOMINATOR, self.straight_through))


class Softmax(Aggregator):
    """The mean of all features, each weighted by the exponential of itself.

    Args:
        width: number of input features.
        temperature: weights are exp((x - 2) / temperature).
        straight_through: ignore the division by the sum of weights when differentiating.
        learn_temperature: train the temperature, as a parameter that is its logarithm.
    """

    def __init__(
        self, width: int, temperature: float = 1.0, straight_through: bool = False, learn_temperature: bool = False
    ) -> None:
        weighing = Weighing(temperature, learn_temperature, straight_through)
        super().__init__(width, width, weighing.parts(width))
        self.weighing = weighing

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        return self.weighing(x, x, memory)


class Gaussian(Aggregator):
    """A product of Gaussians: the first half of the features are means, the second half give their precisions.

    There is no unit prior: with little seen the precision is clamped to 0.1.

    Args:
        width: number of input features, even.
        straight_through: ignore the division by the precision when differentiating the mean.
    """

    input_factor = 2
    gives_latent = True

    def __init__(self, width: int, straight_through: bool = False) -> None:
        super().__init__(width, width, _weighted_parts(_half(width, type(self))))
        self.straight_through = straight_through

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Aggregator`."""
        value, weight = x.chunk(2, -1)
        weighting = Weighting(SMALLEST_DENOMINATOR, self.straight_through, log_variance=True)
        return memory.mean(value, softplus(weight), weighting)


class Weighing(nn.Module):
    """A mean weighted by exp((u - 2) / temperature) that neither overflows nor loses what came early.

    Weights are taken relative to that of u = -1, so the published lower bound of the denominator is 1 at every
    temperature (spec/models.md section 2, Q5). Sums are kept in units of ``exp(shift)``, ``shift`` being the largest
    exponent so far and at least 0. No gradient flows through either unit, because the mean does not depend on them.

    Args:
        temperature: initial temperature, above 0.
        learn: whether the logarithm of the temperature is a parameter.
        straight_through: whether to ignore the division by the sum of weights when differentiating.
    """

    log_temperature: Tensor

    def __init__(self, temperature: float, learn: bool, straight_through: bool) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ConfigError(f"model.encoder.aggregator.temperature is {temperature}; expected a positive number")
        if straight_through and temperature < COLDEST_STRAIGHT_THROUGH:
            raise ConfigError(
                f"model.encoder.aggregator.temperature is {temperature} and "
                f"model.encoder.aggregator.straight_through is true; expected at least {COLDEST_STRAIGHT_THROUGH}"
            )
        self.straight_through = straight_through
        log_temperature = torch.tensor(temperature).log()
        if learn:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature, persistent=False)

    def parts(self, width: int) -> dict[str, Part]:
        """The state: both sums, in units of ``exp(shift)``."""
        return _weighted_parts(width) | {"shift": Part(width, learnable=False)}

    def published_unit(self, shift: Tensor) -> Tensor:
        """What 1 in a sum stands for where weights are exp((u - 2) / temperature)."""
        return (shift - LOWEST / self.log_temperature.detach().exp()).exp()

    def forward(self, value: Tensor, weight: Tensor, memory: Memory) -> Tensor:
        """The weighted mean ``[..., d]`` of ``value [..., d]``, given ``weight [..., d]`` (u)."""
        temperature = self.log_temperature.exp()
        exponent = (weight - SHIFT) / temperature + LOWEST / temperature.detach()
        # The denominator is above 1 as soon as an exponent was positive, since the largest one then counts 1.
        return memory.mean(value, exponent, Weighting(1.0, self.straight_through, self.published_unit))


def _half(width: int, kind: type[Aggregator]) -> int:
    if width % 2:
        raise ConfigError(f"{kind.__name__} is given {width} features (model.encoder); expected an even number")
    return width // 2


def _weighted_parts(width: int) -> dict[str, Part]:
    return {"total": Part(width), "norm": Part(width)}
