"""The GRU: equal to torch's in values and gradients, and to stepping wherever the memory is reset."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperrl.modules.gru import gru_sequence
from hyperrl.modules.sequence import GRU

BATCH, STEPS, INPUTS, HIDDEN = 5, 9, 4, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(module: nn.GRU) -> list[Tensor]:
    return [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0]


def reset_mask(pattern: str) -> Tensor:
    """Where rows are reset `[B, T]`."""
    reset = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    if pattern in ("rows", "rows and all"):
        for row, step in ((0, 3), (1, 1), (1, 2), (1, 8), (3, 0), (3, 5)):
            reset[row, step] = True
    if pattern in ("all", "rows and all"):
        reset[:, [4, 7]] = True
    if pattern == "all first":
        reset[:, 0] = True
    if pattern == "always":
        reset[:] = True
    return reset


def stepped(gru: GRU, x: Tensor, reset: Tensor, state: Tensor) -> Tensor:
    """What the sequence form must equal: one entry at a time."""
    outputs = []
    for t in range(x.shape[1]):
        state = torch.where(reset[:, t : t + 1], gru.initial_state(len(x)), state)
        output, state = gru.step(x[:, t], state)
        outputs.append(output)
    return torch.stack(outputs, 1)


@pytest.fixture
def gru() -> GRU:
    torch.manual_seed(1)
    module = GRU(INPUTS, HIDDEN).double()
    for name, parameter in module.named_parameters():
        if "bias" in name:  # they start at 0, where mistakes in them would not show
            nn.init.normal_(parameter)
    return module


PATTERNS = ["none", "rows", "all", "rows and all", "all first", "always"]


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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sequence_with_resets_equals_stepping(gru: GRU, pattern: str) -> None:
    reset = reset_mask(pattern)
    x, state = draw(BATCH, STEPS, INPUTS).requires_grad_(), draw(BATCH, HIDDEN, seed=1).requires_grad_()
    inputs = [x, state, *gru.parameters()]
    upstream = draw(BATCH, STEPS, HIDDEN, seed=2)
    expected, ours = stepped(gru, x, reset, state), gru(x, reset, state)
    torch.testing.assert_close(ours, expected)
    pairs = [torch.autograd.grad(output, inputs, upstream, allow_unused=True) for output in (ours, expected)]
    for found, wanted in zip(*pairs, strict=True):
        # Memory that is reset everywhere at once has no gradient, or one of zeros.
        zeros = torch.zeros_like(wanted if found is None else found) if None in (found, wanted) else None
        torch.testing.assert_close(zeros if found is None else found, zeros if wanted is None else wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_leak_across_environments(gru: GRU, pattern: str) -> None:
    reset = reset_mask(pattern)
    x, state = draw(BATCH, STEPS, INPUTS).requires_grad_(), draw(BATCH, HIDDEN, seed=1).requires_grad_()
    output = gru(x, reset, state)
    by_x, by_state = torch.autograd.grad(output[1].sum() + 0 * state.sum(), [x, state])
    others = [0, 2, 3, 4]
    assert by_x[1].any()
    assert not by_x[others].any()
    assert not by_state[others].any()
    disturbed_x, disturbed_state = x.detach().clone(), state.detach().clone()
    disturbed_x[1] += 1
    disturbed_state[1] += 1
    disturbed = gru(disturbed_x, reset, disturbed_state)
    assert not torch.allclose(disturbed[1], output[1])
    torch.testing.assert_close(disturbed[others], output[others], rtol=0, atol=1e-14)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_order_of_environments_does_not_matter(gru: GRU, pattern: str) -> None:
    reset, order = reset_mask(pattern), torch.tensor([3, 0, 4, 1, 2])
    x, state = draw(BATCH, STEPS, INPUTS), draw(BATCH, HIDDEN, seed=1)
    torch.testing.assert_close(gru(x[order], reset[order], state[order]), gru(x, reset, state)[order])


@pytest.mark.parametrize("pattern", ["rows", "all", "rows and all"])
def test_nothing_passes_a_reset(gru: GRU, pattern: str) -> None:
    reset = reset_mask(pattern)
    x = draw(BATCH, STEPS, INPUTS).requires_grad_()
    for row, step in reset.nonzero().tolist():
        (gradient,) = torch.autograd.grad(gru(x, reset, gru.initial_state(BATCH))[row, step:].sum(), x)
        assert not gradient[row, :step].any()
        assert gradient[row, step].any()
