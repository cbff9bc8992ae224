"""The kernel of the GRU: equal to torch's in values and gradients."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperrl.modules import kernels, scan
from hyperrl.modules.sequence import GRU
from hyperrl.modules.sequence.gru_kernel import _Recurrence, gru_sequence

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hatch_build import FLAGS, SOURCES  # noqa: E402

BATCH, STEPS, INPUTS, HIDDEN = 5, 9, 4, 6
NAMES = "x", "state", "w_ih", "w_hh", "b_ih", "b_hh"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work is shared out, too, and torch's number of threads is as before afterwards."""
    monkeypatch.setattr(kernels, "GRAIN", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(module: nn.GRU) -> list[Tensor]:
    return [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0]


def library(x: Tensor, state: Tensor, *parameters: Tensor) -> Tensor:
    return torch.gru(x, state.unsqueeze(0), parameters, True, 1, 0.0, True, False, True)[0]


def inputs(rows: int, steps: int, hidden: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """In the order of `NAMES`, weights of the usual size."""
    shapes = (rows, steps, INPUTS), (rows, hidden), (3 * hidden, INPUTS), (3 * hidden, hidden), *[(3 * hidden,)] * 2
    scales = 1, 1, *[hidden**-0.5] * 4
    drawn = (scale * draw(*shape, seed=seed) for seed, (shape, scale) in enumerate(zip(shapes, scales, strict=True)))
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def results(run: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Hidden states and all gradients."""
    out = run(*tensors)
    return [out, *torch.autograd.grad(out, tensors, draw(*out.shape, seed=9).to(out.dtype))]


# Blocks of rows, tiles of units and vectors of the processor, each with and without a rest.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden", [1, 6, 16, 37, 64])
@pytest.mark.parametrize("rows", range(1, 18))
def test_equals_torch_in_values_and_all_gradients(rows: int, hidden: int, dtype: torch.dtype) -> None:
    tensors = inputs(rows, STEPS, hidden, dtype)
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for name, found, wanted in zip(
        ("out", *NAMES), results(gru_sequence, tensors), results(library, tensors), strict=True
    ):
        torch.testing.assert_close(found, wanted, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_any_number_of_steps(steps: int) -> None:
    tensors = inputs(BATCH, steps, HIDDEN)
    for found, wanted in zip(results(gru_sequence, tensors), results(library, tensors), strict=True):
        torch.testing.assert_close(found, wanted)


def test_gradients_equal_finite_differences() -> None:
    assert torch.autograd.gradcheck(gru_sequence, inputs(2, 3, 3))


@pytest.mark.parametrize("loss", [Tensor.sum, lambda out: out.square().sum()], ids=["linear", "square"])
def test_second_derivatives_are_refused(loss: Callable[[Tensor], Tensor]) -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss(gru_sequence(*tensors)), tensors, create_graph=True)


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        ("state", (1, 6), r"state is \[1, 6\]; expected \[5, 6\]"),
        ("state", (7, 6), r"state is \[7, 6\]; expected \[5, 6\]"),
        ("state", (5, 5), r"state is \[5, 5\]; expected \[5, 6\]"),
        ("w_hh", (12, 5), r"w_hh is \[12, 5\]; expected \[15, 5\]"),
        ("w_hh", (12, 4), r"b_hh is \[18\]; expected \[12\]"),
        ("b_hh", (17,), r"b_hh is \[17\]; expected \[18\]"),
        ("b_hh", (1, 18), r"b_hh is \[1, 18\]; expected \[18\]"),
        ("x", (4,), r"projected x is \[18\]; expected \[18, 18\]"),
        ("x", (5, 4), r"projected x is \[5, 18\]; expected \[5, 18, 18\]"),
        ("x", (5, 0, 4), "x has no steps"),
    ],
)
def test_other_shapes_are_refused(place: str, shape: tuple[int, ...], message: str) -> None:
    """The kernel would read and write beyond its tensors."""
    tensors = inputs(BATCH, STEPS, HIDDEN)
    tensors[NAMES.index(place)] = draw(*shape)
    with pytest.raises(ValueError, match=message):
        gru_sequence(*tensors)


@pytest.mark.parametrize(("rows", "hidden"), [(1, HIDDEN), (7, HIDDEN), (BATCH, 7)])
def test_a_memory_refuses_a_state_of_another_size(rows: int, hidden: int) -> None:
    with pytest.raises(ValueError, match=rf"state is \[{rows}, {hidden}\]; expected \[5, 6\]"):
        GRU(INPUTS, HIDDEN, STEPS)(
            torch.zeros(BATCH, STEPS, INPUTS), torch.zeros(BATCH, STEPS, dtype=torch.bool), torch.zeros(rows, hidden)
        )


@pytest.mark.parametrize("place", range(5))
def test_operations_refuse_other_shapes(place: int) -> None:
    for operation, arguments in operations():
        if place < len(arguments):
            arguments[place] = arguments[place].repeat(2, *[1] * (arguments[place].ndim - 1))
            with pytest.raises(ValueError, match="expected"):
                operation(*arguments)


def operations() -> list[tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]]:
    """Those of torch, and arguments."""
    x, state, w_ih, w_hh, b_ih, b_hh = (tensor.detach() for tensor in inputs(BATCH, STEPS, HIDDEN))
    forward = [nn.functional.linear(x, w_ih, b_ih), w_hh, b_hh, state]
    out, gates, recurrent = torch.ops.hyperrl.gru(*forward)
    past = torch.cat([state.unsqueeze(1), out[:, :-1]], 1)
    backward = [draw(*out.shape), w_hh, gates, recurrent, past]
    return [(torch.ops.hyperrl.gru.default, forward), (torch.ops.hyperrl.gru_backward.default, backward)]


@pytest.mark.parametrize("number", [0, 1], ids=["forward", "backward"])
def test_operations_are_what_they_tell_torch(number: int) -> None:
    """Shapes, layouts and that nothing is written to."""
    torch.library.opcheck(*operations()[number])


def test_forms_of_the_library_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is chosen here, and the plainest."""
    compiler, built = shlex.split(os.environ.get("CC") or "cc"), tmp_path / "plain.so"
    subprocess.run([*compiler, *FLAGS, "-DCLONES=", *SOURCES, "-o", str(built)], cwd=ROOT, check=True)
    tensors = inputs(BATCH, STEPS, 37)
    decay, value = (draw(BATCH, STEPS, 37, seed=seed).sigmoid().requires_grad_() for seed in range(2))
    found = []
    for form in (kernels._library, ctypes.CDLL(str(built))):
        monkeypatch.setattr(kernels, "_library", form)
        scanned = results(lambda *leaves: scan.linear_scan(*leaves, leaves[1][:, 0]), [decay, value])
        found.append(results(gru_sequence, tensors) + scanned)
    for chosen, plain in zip(*found, strict=True):
        torch.testing.assert_close(chosen, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 10, 17])
def test_threads_change_no_bit(threads: None, rows: int, dtype: torch.dtype) -> None:
    x, state, w_ih, w_hh, _, b_hh = (tensor.detach() for tensor in inputs(rows, 20, 37, dtype))
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        out, gates, recurrent = torch.ops.hyperrl.gru(x @ w_ih.t(), w_hh, b_hh, state)
        found.append([out, gates, recurrent, *torch.ops.hyperrl.gru_backward(out, w_hh, gates, recurrent, out)])
    for others in found[1:]:
        assert all(torch.equal(ours, other) for ours, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden", [1, 16])
def test_gates_are_exact_to_the_last_digits(hidden: int, dtype: torch.dtype) -> None:
    magnitudes = torch.cat([torch.logspace(-30, 3, 3000), torch.linspace(0, 800, 5000), torch.tensor([torch.inf])])
    entries = torch.cat([magnitudes, -magnitudes])[2:].view(1, -1, hidden).to(dtype)
    nothing = torch.zeros(3 * hidden, hidden, dtype=dtype)
    _, gates, _ = torch.ops.hyperrl.gru(entries.repeat(1, 1, 3), nothing, nothing[:, 0], nothing[:1])
    info = torch.finfo(dtype)
    for found, function in zip(gates.chunk(3, -1), (torch.sigmoid, torch.sigmoid, torch.tanh), strict=True):
        exact = function(entries.double())
        # What would be less than the smallest normal number, or twice that, is none.
        assert ((found.double() - exact).abs() <= 4 * info.eps * exact.abs() + 2 * info.tiny).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", NAMES)
def test_what_is_not_finite_propagates_as_in_torch(place: str, value: float) -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    with torch.no_grad():
        tensors[NAMES.index(place)][1] = value
    ours, theirs = results(gru_sequence, tensors), results(library, tensors)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, equal_nan=True)


def test_layout_does_not_matter() -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    scattered = [torch.stack([t, t], -1).detach()[..., 0].requires_grad_() for t in tensors]
    turned = [t.detach().t().contiguous().t().requires_grad_() if t.ndim == 2 else t for t in tensors]
    for others in (scattered, turned):
        assert any(not tensor.is_contiguous() for tensor in others)
        for found, wanted in zip(results(gru_sequence, others), results(gru_sequence, tensors), strict=True):
            torch.testing.assert_close(found, wanted)


def test_gates_of_any_layout() -> None:
    (_, _), (backward, arguments) = operations()
    expected = backward(*arguments)
    arguments[2] = arguments[2].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not arguments[2].is_contiguous()
    assert all(torch.equal(ours, other) for ours, other in zip(backward(*arguments), expected, strict=True))


def test_no_result_is_lost_in_a_copy() -> None:
    grad, start = draw(BATCH, STEPS, 2), draw(BATCH, 1, 2)
    turned = draw(BATCH, 2, STEPS).mT
    for written in ([turned, start, start], [torch.empty_like(grad), start, start.float()]):
        with pytest.raises(AssertionError, match="written to a copy"):
            kernels.run("accumulate_backward", written, [grad, None, None])


def test_gradient_of_any_layout() -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    upstream = draw(BATCH, HIDDEN, STEPS).transpose(1, 2)
    for grad in (upstream, upstream[:, :1, :1].expand(BATCH, STEPS, HIDDEN)):
        ours = torch.autograd.grad(gru_sequence(*tensors), tensors, grad)
        for found, wanted in zip(ours, torch.autograd.grad(library(*tensors), tensors, grad), strict=True):
            torch.testing.assert_close(found, wanted)


def test_recurrence_leaves_autocast() -> None:
    x, *others = inputs(BATCH, STEPS, HIDDEN, torch.float32)
    projected = torch.nn.functional.linear(x, others[1], others[3])
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = _Recurrence.apply(projected, others[0], others[2], others[4])
            found.append(torch.autograd.grad(out.square().sum(), [projected, others[0], others[2], others[4]]))
    assert all(torch.equal(ours, under) for ours, under in zip(*found, strict=True))


def test_types_without_a_kernel_run_by_the_library() -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN, torch.bfloat16)
    for found, wanted in zip(results(gru_sequence, tensors), results(library, tensors), strict=True):
        assert torch.equal(found, wanted)


def test_other_devices_run_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    ours = results(gru_sequence, tensors)
    monkeypatch.setattr(scan, "has_kernels", lambda tensor: False)
    assert "Recurrence" not in str(gru_sequence(*tensors).grad_fn)
    for found, wanted in zip(results(gru_sequence, tensors), ours, strict=True):
        torch.testing.assert_close(found, wanted)


def test_inputs_are_left_as_they_are() -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    before = [tensor.clone() for tensor in tensors]
    results(gru_sequence, tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_operations_are_counted() -> None:
    tensors = inputs(BATCH, STEPS, HIDDEN)
    counts = []
    for run in (gru_sequence, library):
        with FlopCounterMode(display=False) as counter:
            results(run, tensors)
        counts.append(counter.get_total_flops())
    assert counts[0] == 3 * 2 * BATCH * STEPS * 3 * HIDDEN * (INPUTS + HIDDEN) == counts[1]
