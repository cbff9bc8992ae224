"""The kernel of the GRU: equal to torch's in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperrl.modules.sequence.gru_kernel import FEW_ROWS, gru_sequence

BATCH, STEPS, INPUTS, HIDDEN = 5, 9, 4, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(module: nn.GRU) -> list[Tensor]:
    return [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0]


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_equals_torch_in_values_and_all_gradients(steps: int) -> None:
    torch.manual_seed(0)
    reference = nn.GRU(INPUTS, HIDDEN, batch_first=True).double()
    x, state = draw(BATCH, steps, INPUTS).requires_grad_(), draw(BATCH, HIDDEN, seed=1).requires_grad_()
    upstream = draw(BATCH, steps, HIDDEN, seed=2)
    inputs = [x, state, *weights(reference)]
    expected, _ = reference(x, state.unsqueeze(0))
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    ours = gru_sequence(x, state, *weights(reference))
    torch.testing.assert_close(ours, expected)
    gradients = torch.autograd.grad(ours, inputs, upstream)
    for name, found, wanted in zip(
        ("x", "state", "w_ih", "w_hh", "b_ih", "b_hh"), gradients, expected_gradients, strict=True
    ):
        torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_equals_torch_in_fp32() -> None:
    torch.manual_seed(0)
    reference = nn.GRU(INPUTS, HIDDEN, batch_first=True)
    x, state = draw(BATCH, 50, INPUTS).float(), draw(BATCH, HIDDEN, seed=1).float()
    expected, _ = reference(x, state.unsqueeze(0))
    torch.testing.assert_close(gru_sequence(x, state, *weights(reference)), expected, rtol=1e-5, atol=1e-6)


def test_gradients_equal_finite_differences() -> None:
    shapes = [(2, 3, 2), (2, 3), (9, 2), (9, 3), (9,), (9,)]
    inputs = [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(gru_sequence, inputs)


def test_inputs_are_left_as_they_are() -> None:
    inputs = [draw(*shape) for shape in ((2, 3, 2), (2, 3), (9, 2), (9, 3), (9,), (9,))]
    before = [tensor.clone() for tensor in inputs]
    gru_sequence(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_many_rows_run_by_the_library_equal_few() -> None:
    torch.manual_seed(0)
    reference = nn.GRU(INPUTS, HIDDEN, batch_first=True).double()
    x, state = draw(2 * FEW_ROWS, STEPS, INPUTS), draw(2 * FEW_ROWS, 2 * HIDDEN, seed=1)[:, :HIDDEN]
    halves = [gru_sequence(*half, *weights(reference)) for half in zip(x.chunk(2), state.chunk(2), strict=True)]
    torch.testing.assert_close(gru_sequence(x, state, *weights(reference)), torch.cat(halves))
