"""The scans equal the loops that they replace, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperrl.modules import scan
from hyperrl.modules.scan import linear_scan, running_max, running_sum
from hyperrl.modules.scan_kernels import WeightedMean

LENGTHS = [1, 2, 3, 4, 7, 8, 9, 60, 61, 256, 257, 700]
SUM, MAX, MAX_THROUGH = running_sum, running_max, partial(running_max, straight_through=True)
LONG = 10_000


@pytest.fixture(params=[False, True], ids=["blocks", "kernels"], autouse=True)
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in both forms, whatever the device would choose."""
    monkeypatch.setattr(scan, "has_kernels", lambda tensor: request.param)


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


SCANS = {
    "linear": lambda value: linear_scan(value.detach().sigmoid(), value, value[:, 0].detach()),
    "decay": lambda value: linear_scan(value, value.detach(), value[:, 0].detach()),
    "sum": lambda value: SUM(value, None, value[:, 0], value[:, 0]),
    "max": lambda value: MAX(value, None, value[:, 0], value[:, 0]),
    "straight": lambda value: MAX_THROUGH(value, None, value[:, 0], value[:, 0]),
    "mean": lambda value: WeightedMean.apply(
        value, value.exp(), None, value[:, :2], value[:, :2], 1, False, None, False
    )[0],
}


@pytest.mark.parametrize("loss", [Tensor.sum, lambda result: result.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize("kind", SCANS)
def test_second_derivatives_are_refused(kind: str, loss: Callable[[Tensor], Tensor]) -> None:
    value = inputs(9, 2)[1].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss(SCANS[kind](value)), value, create_graph=True)


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


@pytest.mark.parametrize("kind", [SUM, MAX], ids=["sum", "max"])
def test_views_of_wider_tensors(kind: Any) -> None:
    value, reset, state, initial = segments(60, 0.1)
    wide, narrow = torch.stack([value, -value], -1).detach().requires_grad_(), slice(1, None)
    upstream = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64).mT.contiguous().mT
    results = []
    for x in (wide[narrow, ..., 0], value[narrow]):
        y = kind(x, None if reset is None else reset[narrow], state[narrow], initial[narrow])
        results.append((y, *torch.autograd.grad(y, (x, state, initial), upstream)))
    for own, target in zip(*results, strict=True):
        torch.testing.assert_close(own, target)


@pytest.mark.parametrize("kind", [SUM, MAX], ids=["sum", "max"])
def test_what_is_not_a_number_stays_so_until_a_reset(kind: Any) -> None:
    value, reset, state, initial = segments(40, 0.0)
    reset = torch.zeros(3, 40, dtype=torch.bool)
    reset[:, 30] = True
    with torch.no_grad():
        value[:, 10] = float("nan")
        missing = kind(value, reset, state, initial).isnan()
    assert missing[:, 10:30].all()
    assert not missing[:, :10].any()
    assert not missing[:, 30:].any()


def test_single_precision_stays_close_to_double_over_long_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(2, LONG, 3, generator=generator).requires_grad_()
    state = torch.zeros(2, 3)
    upstream = torch.rand(2, LONG, 3, generator=generator)
    y = running_sum(value, None, state, state)
    (grad,) = torch.autograd.grad(y, value, upstream)
    torch.testing.assert_close(y.double(), value.double().cumsum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), upstream.double().flip(1).cumsum(1).flip(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_and_features(threads: int) -> None:
    before, tensors = torch.get_num_threads(), inputs(61, 600)
    expected, leaves = looped(*tensors), [tensor.requires_grad_() for tensor in tensors]
    torch.set_num_threads(threads)
    try:
        result = linear_scan(*leaves)
        torch.testing.assert_close(result, expected)
        grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (result, looped(*leaves))]
        for own, target in zip(*grads, strict=True):
            torch.testing.assert_close(own, target)
    finally:
        torch.set_num_threads(before)


def test_mixed_precision_is_that_of_the_value() -> None:
    decay, value, initial = inputs(61, 2)
    result = linear_scan(decay, value.float(), initial)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), looped(decay, value, initial), rtol=1e-5, atol=1e-5)


def test_states_of_the_wrong_shape_are_refused() -> None:
    decay, value, initial = inputs(10, 2)
    with pytest.raises(RuntimeError):
        linear_scan(decay, value, initial[:2])
    with pytest.raises(RuntimeError):
        linear_scan(decay[:, :5], value, initial)


@pytest.mark.parametrize("kind", [SUM, MAX, MAX_THROUGH], ids=["sum", "max", "straight"])
def test_what_is_never_reset_to_has_no_gradient(kind: Any) -> None:
    value, _, state, initial = segments(8, 0.0)
    assert torch.autograd.grad(kind(value, None, state, initial).sum(), initial, allow_unused=True) == (None,)
