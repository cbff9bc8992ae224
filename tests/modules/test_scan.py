"""The scans equal the loops that they replace, gradients included."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperrl.modules.scan import linear_scan, running_max, running_sum

LENGTHS = [1, 2, 3, 4, 7, 8, 9, 60, 61, 256, 257, 700]
SUM, MAX, MAX_THROUGH = running_sum, running_max, partial(running_max, straight_through=True)


def looped(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    result = []
    for t in range(value.shape[1]):
        initial = decay[:, t] * initial + value[:, t]
        result.append(initial)
    return torch.stack(result, 1)


def inputs(steps: int, *features: int, broadcast: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    decay_features = (1,) * len(features) if broadcast else features
    decay = torch.rand(3, steps, *decay_features, generator=generator, dtype=torch.float64)
    value = torch.randn(3, steps, *features, generator=generator, dtype=torch.float64)
    return decay, value, torch.randn(3, *features, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", LENGTHS)
def test_equals_the_loop_at_any_length(steps: int) -> None:
    torch.testing.assert_close(linear_scan(*inputs(steps)), looped(*inputs(steps)))


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("steps", [1, 6, 61])
def test_features_side_by_side(steps: int, broadcast: bool) -> None:
    tensors = inputs(steps, 2, broadcast=broadcast)
    torch.testing.assert_close(linear_scan(*tensors), looped(*tensors))


def test_a_decay_of_zero_cuts_the_recurrence() -> None:
    decay, value, initial = inputs(10)
    decay[1, 4] = decay[:, 7] = 0
    expected = linear_scan(decay, value, initial)
    torch.testing.assert_close(expected, looped(decay, value, initial))
    value[1, :4], value[:, 5:7], initial[1] = 1e9, 1e9, 1e9
    result = linear_scan(decay, value, initial)
    torch.testing.assert_close(result[1, 4], expected[1, 4])
    torch.testing.assert_close(result[:, 7:], expected[:, 7:])


def test_decay_of_one_is_a_cumulative_sum() -> None:
    _, value, initial = inputs(50)
    torch.testing.assert_close(
        linear_scan(torch.ones_like(value), value, initial), value.cumsum(1) + initial.unsqueeze(1)
    )


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 11])
@pytest.mark.parametrize("features", [(), (2,)])
@pytest.mark.parametrize("broadcast", [False, True])
def test_gradients_equal_finite_differences(steps: int, features: tuple[int, ...], broadcast: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(steps, *features, broadcast=broadcast)]
    assert torch.autograd.gradcheck(linear_scan, tensors)


def test_inputs_are_left_as_they_are() -> None:
    tensors = inputs(6)
    linear_scan(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, inputs(6), strict=True))


# With resets


def segments(steps: int, chance: float) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Values, resets, state and what the state is reset to."""
    generator = torch.Generator().manual_seed(steps)
    reset = torch.rand(3, steps, generator=generator) < chance
    draws = [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((steps, 2), (2,), (2,))]
    value, state, initial = (draw.requires_grad_() for draw in draws)
    return value, reset if chance else None, state, initial


def stepped(kind: Any, value: Tensor, reset: Tensor | None, state: Tensor, initial: Tensor) -> Tensor:
    results = []
    for t in range(value.shape[1]):
        if reset is not None:
            state = torch.where(reset[:, t, None], initial, state)
        state = state + value[:, t] if kind is SUM else torch.maximum(state, value[:, t])
        results.append(state)
    return torch.stack(results, 1)


@pytest.mark.parametrize("chance", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("kind", [SUM, MAX], ids=["sum", "max"])
def test_running_values_and_gradients_equal_the_loop(kind: Any, steps: int, chance: float) -> None:
    value, reset, state, initial = segments(steps, chance)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    ours, expected = kind(value, reset, state, initial), stepped(kind, value, reset, state, initial)
    torch.testing.assert_close(ours, expected)
    leaves = value, state, initial
    grads = [torch.autograd.grad(y, leaves, upstream, materialize_grads=True) for y in (ours, expected)]
    for own, target in zip(*grads, strict=True):
        torch.testing.assert_close(own, target)


@pytest.mark.parametrize("chance", [0.0, 0.2])
def test_straight_through_is_the_maximum_forward_and_the_sum_backward(chance: float) -> None:
    tensors = segments(61, chance)
    leaves = tensors[0], tensors[2], tensors[3]
    torch.testing.assert_close(MAX_THROUGH(*tensors), MAX(*tensors))
    upstream = torch.randn(3, 61, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    grads = [torch.autograd.grad(f(*tensors), leaves, upstream, materialize_grads=True) for f in (MAX_THROUGH, SUM)]
    for own, target in zip(*grads, strict=True):
        torch.testing.assert_close(own, target)


@pytest.mark.parametrize("kind", [SUM, MAX, MAX_THROUGH], ids=["sum", "max", "straight"])
def test_nothing_crosses_a_reset(kind: Any) -> None:
    value, reset, state, initial = segments(40, 0.2)
    assert reset is not None
    reset[:, 20] = True
    with torch.no_grad():
        clean = kind(value, reset, state, initial)
        value[:, :20], state[:] = float("inf"), float("nan")
        torch.testing.assert_close(kind(value, reset, state, initial)[:, 20:], clean[:, 20:])
