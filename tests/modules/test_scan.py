"""The linear scan equals the loop that it replaces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperrl.modules.scan import linear_scan


def looped(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    result = []
    for t in range(value.shape[1]):
        initial = decay[:, t] * initial + value[:, t]
        result.append(initial)
    return torch.stack(result, 1)


def inputs(steps: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    decay = torch.rand(3, steps, generator=generator, dtype=torch.float64)
    value = torch.randn(3, steps, generator=generator, dtype=torch.float64)
    return decay, value, torch.randn(3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 9, 60, 700])
def test_equals_the_loop_at_any_length(steps: int) -> None:
    torch.testing.assert_close(linear_scan(*inputs(steps)), looped(*inputs(steps)))


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


def test_gradients_equal_finite_differences() -> None:
    assert torch.autograd.gradcheck(linear_scan, [tensor.requires_grad_() for tensor in inputs(5)])


def test_inputs_are_left_as_they_are() -> None:
    tensors = inputs(6)
    linear_scan(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, inputs(6), strict=True))
