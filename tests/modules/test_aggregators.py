"""Aggregators keep their contract, are what their names say, and last for ten thousand steps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hyperrl.errors import ConfigError
from hyperrl.modules.aggregators import (
    Aggregator,
    Gaussian,
    Max,
    MaxNorm,
    Mean,
    MeanMax,
    Softmax,
    Sum,
    WeightedAverage,
)
from hyperrl.modules.memory import Memory, Part
from hyperrl.testing import check_aggregator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "aggregators.md"
ALL: dict[str, Callable[[int], Aggregator]] = {
    "sum": Sum,
    "max": Max,
    "max low": partial(Max, low_initial=True),
    "max straight": partial(Max, straight_through=True),
    "norm": MaxNorm,
    "norm straight": partial(MaxNorm, straight_through=True),
    "mean": Mean,
    "mean straight": partial(Mean, straight_through=True),
    "mean max": MeanMax,
    "mean max straight": partial(MeanMax, straight_through=True),
    "weighted": WeightedAverage,
    "weighted straight": partial(WeightedAverage, straight_through=True),
    "weighted 0.5": partial(WeightedAverage, temperature=0.5),
    "weighted learned": partial(WeightedAverage, temperature=0.5, learn_temperature=True),
    "softmax": Softmax,
    "softmax straight": partial(Softmax, straight_through=True),
    "softmax learned": partial(Softmax, temperature=0.2, learn_temperature=True),
    "gaussian": Gaussian,
    "gaussian straight": partial(Gaussian, straight_through=True),
}
LONG = 10_000


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def resets(batch: int, steps: int, chance: float) -> Tensor:
    return torch.rand(batch, steps, generator=torch.Generator().manual_seed(1)) < chance


@pytest.mark.parametrize("width", [2, 6])
@pytest.mark.parametrize("name", ALL)
def test_contract(name: str, width: int) -> None:
    check_aggregator(ALL[name], width, seed=width)


# Breaking the contract in one way each, to see that the check can fail.


class Forgetful(Sum):
    def initial_state(self, batch: int) -> Tensor:
        return super().initial_state(batch) + 1


class Leaky(Sum):
    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        return super().forward(x, reset, state, initial) + x.mean()


class Batched(Sum):
    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        return super().aggregate(x, memory) * (1 + x.mean(0))


class Decaying(Aggregator):
    def __init__(self, width: int) -> None:
        super().__init__(width, width, {"total": Part(width)})

    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        return memory.sum("total", x, torch.full_like(x, 0.9))


class Wide(Sum):
    input_factor = 2


class Single(Sum):
    def aggregate(self, x: Tensor, memory: Memory) -> Tensor:
        return super().aggregate(x, memory).float()


class Detached(Sum):
    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        return super().forward(x, reset, state.detach(), initial)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Forgetful, "forward without `initial` differs from initial_state"),
        (Leaky, "forward differs from stepping with resets"),
        (Batched, "a row depends on the others"),
        (Decaying, "the order of steps matters"),
        (Wide, "6 features give 6; input_factor promises 3"),
        (Single, "output of step is torch.float32"),
        (Detached, "gradient by state differs from stepping"),
    ],
)
def test_the_check_names_what_is_broken(broken: Callable[[int], Aggregator], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)) as caught:
        check_aggregator(broken)
    assert "\n" not in str(caught.value)


# Values


def test_what_the_names_say() -> None:
    x = random(3, 50, 8)
    none = torch.zeros(3, 50, dtype=torch.bool)
    value, weight = x.chunk(2, -1)

    def last(aggregator: Aggregator) -> Tensor:
        return aggregator(x, none, aggregator.initial_state(3))[:, -1]

    def weighted(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).sum(1) / w.sum(1)

    expected = {
        Sum(8): x.sum(1),
        Max(8): x.amax(1),
        MaxNorm(8): torch.nn.functional.normalize(x.amax(1), dim=-1),
        Mean(8): x.mean(1),
        MeanMax(8): torch.cat([value.mean(1), weight.amax(1)], -1),
        WeightedAverage(8): weighted(value, softplus(weight)),
        WeightedAverage(8, 0.5): weighted(value, (weight / 0.5).exp()),
        Softmax(8, 0.5): (x * (x / 0.5).softmax(1)).sum(1),
        Gaussian(8): torch.cat([weighted(value, softplus(weight)), -softplus(weight).sum(1).log()], -1),
    }
    for aggregator, value_ in expected.items():
        torch.testing.assert_close(last(aggregator), value_)


def test_max_starts_at_zero_or_low() -> None:
    x, none = torch.full((1, 3, 2), -5.0), torch.zeros(1, 3, dtype=torch.bool)
    for aggregator, expected in ((Max(2), 0.0), (Max(2, low_initial=True), -5.0)):
        assert (aggregator(x, none, aggregator.initial_state(1)) == expected).all()


def test_gradient_of_a_maximum_goes_to_the_first_of_the_largest() -> None:
    x = torch.tensor([1.0, 3.0, 3.0, 2.0]).view(1, 4, 1).requires_grad_()
    aggregator = Max(1)
    aggregator(x, torch.zeros(1, 4, dtype=torch.bool), aggregator.initial_state(1)).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 3, 0, 0]


@pytest.mark.parametrize("make", [Sum, partial(Max, straight_through=True), partial(Mean, straight_through=True)])
def test_straight_through_gradients_are_those_of_a_sum(make: Callable[[int], Aggregator]) -> None:
    x, weight, reset = random(2, 40, 3).requires_grad_(), random(2, 40, 3, seed=2), resets(2, 40, 0.1)
    aggregator = make(3)
    aggregator(x, reset, aggregator.initial_state(2)).backward(weight)
    segment = reset.cumsum(1)
    later = (segment.unsqueeze(1) == segment.unsqueeze(2)) & torch.ones(40, 40, dtype=torch.bool).triu()
    torch.testing.assert_close(x.grad, later.float() @ weight)


# Long and short segments, extreme inputs, mixed precision


@pytest.mark.parametrize("chance", [0.0, 0.001, 0.5], ids=["one segment", "long segments", "short segments"])
@pytest.mark.parametrize("name", ALL)
def test_ten_thousand_steps_are_as_accurate_as_one(name: str, chance: float) -> None:
    x, reset = random(2, LONG, 4).tanh(), resets(2, LONG, chance)
    weight = random(2, LONG, ALL[name](4).output_dim, seed=3)
    results = []
    for dtype in (torch.float32, torch.float64):
        aggregator = ALL[name](4).to(dtype)
        leaf = x.to(dtype).requires_grad_()
        output = aggregator(leaf, reset, aggregator.initial_state(2))
        (grad,) = torch.autograd.grad(output, leaf, weight.to(dtype))
        results.append((output.double(), grad.double()))
    for single, double in zip(*results, strict=True):
        assert (single - double).abs().max() <= 1e-5 * (1 + double.abs().max())


@pytest.mark.parametrize("make", [Softmax, WeightedAverage])
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_weights_neither_overflow_nor_vanish(make: Any, size: float) -> None:
    """The largest exponents are far beyond what a float32 holds; the mean stays within its inputs."""
    aggregator = make(6, temperature=0.03)
    x = (size * random(2, 300, 6)).requires_grad_()
    none = torch.zeros(2, 300, dtype=torch.bool)
    output = aggregator(x, none, aggregator.initial_state(2))
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    values = x.detach()[..., : aggregator.output_dim]
    if make is Softmax and size > 1:
        torch.testing.assert_close(output[:, -1].detach(), values.amax(1), atol=0.05, rtol=1e-3)
    assert (output.abs() <= values.abs().amax(1, keepdim=True) * 1.001).all()


@pytest.mark.parametrize("name", ALL)
def test_memory_keeps_its_precision_under_autocast(name: str) -> None:
    x, reset = random(3, 30, 4), resets(3, 30, 0.1)
    results = []
    for enabled in (False, True):
        aggregator, leaf = ALL[name](4), x.clone().requires_grad_()
        state = aggregator.initial_state(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = aggregator(leaf, reset, state)
            stepped, state = aggregator.step(leaf[:, 0], state)
            (output.sum() + stepped.sum()).backward()
        results.append((output, stepped, state, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Configuration


def test_state_layouts() -> None:
    sizes = {"sum": 6, "max": 6, "norm": 6, "mean": 7, "mean max": 7, "weighted": 6, "gaussian": 6, "softmax": 18}
    assert {name: ALL[name](6).state_dim for name in sizes} == sizes


def test_counts_and_units_are_not_learned() -> None:
    fixed = {name: int((~ALL[name](6).learnable).sum()) for name in ("sum", "mean", "mean max", "softmax", "gaussian")}
    assert fixed == {"sum": 0, "mean": 1, "mean max": 1, "softmax": 6, "gaussian": 0}


def test_only_a_learned_temperature_is_a_parameter() -> None:
    assert [name for name in ALL if list(ALL[name](4).parameters())] == ["weighted learned", "softmax learned"]
    assert not any(ALL[name](4).state_dict() for name in ALL if "learned" not in name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(WeightedAverage, 5), "WeightedAverage is given 5 features"),
        (partial(Gaussian, 5), "even number"),
        (partial(MeanMax, 5), "even number"),
        (partial(Softmax, 4, temperature=0.0), "aggregator.temperature is 0.0; expected a positive number"),
        (partial(WeightedAverage, 4, learn_temperature=True), "aggregator.learn_temperature is true"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Aggregator], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_the_example_of_the_documentation_keeps_the_contract() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    check_aggregator(namespace["Range"])


def test_the_mean_of_one_step_is_that_step_at_every_learned_temperature() -> None:
    aggregator, x = Softmax(3, learn_temperature=True), torch.tensor([[0.5, -0.5, 0.9]])
    for temperature in (1.0, 0.5, 0.1, 0.03):
        nn.init.constant_(aggregator.weighing.log_temperature, math.log(temperature))
        torch.testing.assert_close(aggregator.step(x, aggregator.initial_state(1))[0], x)
