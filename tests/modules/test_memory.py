"""The weighted mean over sequences equals its plain definition in double precision, gradients included."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hyperrl.modules import kernels as library
from hyperrl.modules import scan
from hyperrl.modules.memory import SequenceMemory, Weighting

UNIT = 0.4  # what 1 counts in straight-through gradients, where the shift is 0


@pytest.fixture(params=[False, True], ids=["composed", "kernels"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test runs in both forms, whatever the device would choose."""
    monkeypatch.setattr(scan, "has_kernels", lambda tensor: request.param)
    return bool(request.param)


class Inputs(NamedTuple):
    value: Tensor
    weight: Tensor
    reset: Tensor | None
    state: dict[str, Tensor]
    initial: dict[str, Tensor]

    def leaves(self) -> list[Tensor]:
        """What is differentiated; a shift has no gradient."""
        starts = [parts[name] for parts in (self.state, self.initial) for name in ("total", "norm")]
        return [tensor.requires_grad_() for tensor in (self.value, self.weight, *starts)]

    def mean(self, weighting: Weighting) -> tuple[Tensor, list[Tensor]]:
        """Means and last parts."""
        memory = SequenceMemory(self.reset, self.state, self.initial)
        output = memory.mean(self.value, self.weight, weighting)
        return output, [memory.parts[name][:, -1] for name in self.state]


def inputs(exponents: bool, steps: int, chance: float, *, width: int = 3, batch: int = 4) -> Inputs:
    generator = torch.Generator().manual_seed(steps)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, width, generator=generator, dtype=torch.float64)

    reset = torch.rand(batch, steps, generator=generator) < chance
    starts = [{"total": draw(), "norm": 0.1 * draw().abs()} for _ in range(2)]
    if exponents:
        starts = [start | {"shift": draw().relu()} for start in starts]
    value, weight = draw(steps), draw(steps)
    # Small enough for the bound of the denominator to count at first.
    return Inputs(value, weight if exponents else 0.05 * weight.abs(), reset if chance else None, *starts)


def settings(exponents: bool, straight_through: bool = False, log_variance: bool = False) -> Weighting:
    unit = (lambda shift: UNIT * shift.exp()) if exponents else None
    return Weighting(1.0 if exponents else 0.1, straight_through, unit, log_variance)


def plain(tensors: Inputs, weighting: Weighting) -> tuple[Tensor, list[Tensor], Tensor]:
    """Means, last parts and weighted sums (as published, for straight-through gradients): sums of exp(exponent)."""
    value, weight, reset, state, initial = tensors
    exponents = weighting.unit is not None

    def start(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        shift = parts.get("shift", torch.zeros_like(parts["total"]))
        return parts["total"] * shift.exp(), parts["norm"] * shift.exp(), shift

    total, norm, shift = start(state)
    outputs, totals = [], []
    for t in range(value.shape[1]):
        if reset is not None:
            past = total, norm, shift
            total, norm, shift = (
                torch.where(reset[:, t, None], new, old) for new, old in zip(start(initial), past, strict=True)
            )
        w = weight[:, t].exp() if exponents else weight[:, t]
        total, norm = total + w * value[:, t], norm + w
        shift = torch.maximum(shift, weight[:, t].detach()) if exponents else shift
        relative = (norm / shift.exp()).clamp(min=weighting.smallest)
        output = total / shift.exp() / relative
        outputs.append(torch.cat([output, -relative.log()], -1) if weighting.log_variance else output)
        totals.append(UNIT * total if exponents else total)
    last = [total / shift.exp(), norm / shift.exp(), *([shift] if exponents else [])]
    return torch.stack(outputs, 1), last, torch.stack(totals, 1)


@pytest.mark.parametrize("chance", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 60, 257])
@pytest.mark.parametrize("log_variance", [False, True])
@pytest.mark.parametrize("exponents", [False, True])
def test_equals_the_plain_definition(exponents: bool, log_variance: bool, steps: int, chance: float) -> None:
    tensors, weighting = inputs(exponents, steps, chance), settings(exponents, log_variance=log_variance)
    leaves, generator = tensors.leaves(), torch.Generator().manual_seed(7)
    output, last = tensors.mean(weighting)
    expected, expected_last, _ = plain(tensors, weighting)
    torch.testing.assert_close([output, *last], [expected, *expected_last])
    ours, plainly = [output, *last[:2]], [expected, *expected_last[:2]]
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in ours]
    grads = [torch.autograd.grad(ys, leaves, upstream, materialize_grads=True) for ys in (ours, plainly)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("chance", [0.0, 0.2])
@pytest.mark.parametrize("exponents", [False, True])
def test_straight_through_gradients_are_those_of_the_weighted_sum(exponents: bool, chance: float) -> None:
    tensors, weighting = inputs(exponents, 61, chance), settings(exponents, straight_through=True)
    leaves = tensors.leaves()
    upstream = torch.randn(4, 61, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    output, (expected, _, totals) = tensors.mean(weighting)[0], plain(tensors, weighting)
    torch.testing.assert_close(output, expected)
    grads = [torch.autograd.grad(y, leaves, upstream, materialize_grads=True) for y in (output, totals)]
    torch.testing.assert_close(*grads)


def test_a_straight_through_posterior_passes_the_gradient_of_its_variance() -> None:
    tensors, weighting = inputs(False, 61, 0.1), settings(False, straight_through=True, log_variance=True)
    leaves = tensors.leaves()
    upstream = torch.randn(4, 61, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    output, (expected, _, totals) = tensors.mean(weighting)[0], plain(tensors, weighting)
    torch.testing.assert_close(output, expected)
    published = torch.cat([totals, expected[..., 3:]], -1)
    grads = [torch.autograd.grad(y, leaves, upstream, materialize_grads=True) for y in (output, published)]
    torch.testing.assert_close(*grads)


def constant(value: list[float], weight: list[float], exponents: bool) -> Inputs:
    def zeros() -> dict[str, Tensor]:
        names = ("total", "norm", "shift") if exponents else ("total", "norm")
        return {name: torch.zeros(1, 1, dtype=torch.float64) for name in names}

    value_, weight_ = (torch.tensor(x, dtype=torch.float64).view(1, -1, 1) for x in (value, weight))
    return Inputs(value_, weight_, None, zeros(), zeros())


@pytest.mark.parametrize(
    ("exponents", "weight"),
    [
        (False, [0.1, 0.0, 0.0]),  # the denominator equals its bound
        (False, [0.05, 0.0, 0.2]),
        (False, [0.0, 0.0, 0.0]),
        (True, [0.0, 0.0, 0.0]),  # equals its bound at the first step, and the largest exponent
        (True, [2.0, 2.0, 3.0]),
        (True, [-1.0, -1.0, -0.5]),
        (True, [-800.0, 0.0, -800.0]),
        (True, [800.0, 0.0, 800.0]),
    ],
)
def test_ties_and_bounds(exponents: bool, weight: list[float]) -> None:
    log_variance = not exponents
    tensors, weighting = constant([1.0, -2.0, 0.5], weight, exponents), settings(exponents, log_variance=log_variance)
    upstream = torch.tensor([1.0, 0.7, -0.4], dtype=torch.float64).view(1, 3, 1)
    upstream = torch.cat([upstream, -2 * upstream], -1) if log_variance else upstream
    # Where the bound does not count, neither does a constant in all exponents; the plain exponential needs small ones.
    moved = tensors._replace(weight=tensors.weight - 800.0) if max(weight) == 800.0 else tensors
    results = []
    for case, form in ((tensors, tensors.mean), (moved, partial(plain, moved))):
        leaves = case.leaves()[:2]
        output = form(weighting)[0]
        results.append((output, *torch.autograd.grad(output, leaves, upstream)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("place", ["value", "weight"])
@pytest.mark.parametrize("exponents", [False, True])
def test_what_is_not_a_number_stays_so_until_a_reset(exponents: bool, place: str, kernels: bool) -> None:
    tensors = inputs(exponents, 40, 0.1)
    assert tensors.reset is not None
    tensors.reset[:] = False
    tensors.reset[:, 30] = True
    getattr(tensors, place)[:, 10, 1] = float("nan")
    missing = tensors.mean(settings(exponents))[0].isnan()
    assert missing[:, 10:30, 1].all()
    missing[:, 10:30, 1] = False
    if exponents and not kernels:  # composed of scans in which a reset is a decay of 0
        missing[:, 30:, 1] = False
    assert not missing.any()


@pytest.mark.parametrize("exponents", [False, True])
def test_no_part_forgets_a_weight_that_is_not_a_number(exponents: bool) -> None:
    tensors = inputs(exponents, 40, 0.0)
    tensors.weight[:, 10, 1] = float("nan")
    for part in tensors.mean(settings(exponents))[1]:
        assert part[:, 1].isnan().all()
        assert part[:, ::2].isfinite().all()


def test_an_infinite_exponent_is_no_number() -> None:
    tensors = inputs(True, 40, 0.0)
    tensors.weight[:, 10, 1] = float("inf")
    tensors.weight[:, 20, 2] = -float("inf")
    missing = tensors.mean(settings(True))[0].isnan()
    assert missing[:, 10:, 1].all()
    assert not missing[..., 2].any()


@pytest.mark.parametrize("exponents", [False, True])
def test_nothing_crosses_a_reset(exponents: bool) -> None:
    tensors = inputs(exponents, 40, 0.2)
    assert tensors.reset is not None
    tensors.reset[:, 20] = True
    clean = tensors.mean(settings(exponents))[0]
    tensors.value[:, :20], tensors.weight[:, :20], tensors.state["norm"][:] = 1e9, 50.0, 1e9
    leaves = tensors.leaves()
    output = tensors.mean(settings(exponents))[0]
    torch.testing.assert_close(output[:, 20:], clean[:, 20:])
    by_value, by_weight, by_total, by_norm, *_ = torch.autograd.grad(output[:, 20:].sum(), leaves)
    assert all((grad == 0).all() for grad in (by_value[:, :20], by_weight[:, :20], by_total, by_norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_are_exact_to_the_last_digits(dtype: torch.dtype) -> None:
    exponent = torch.linspace(-110, 0, 40_001, dtype=torch.float64).to(dtype).view(1, 1, -1)
    start = {name: torch.zeros(1, exponent.shape[-1], dtype=dtype) for name in ("total", "norm", "shift")}
    _, (_, norm, _) = Inputs(exponent, exponent, None, start, start).mean(settings(True))
    info = torch.finfo(dtype)
    torch.testing.assert_close(norm, exponent[:, 0].exp(), rtol=1.3 * info.eps, atol=1.5 * info.tiny)


@pytest.mark.parametrize("exponents", [False, True])
def test_any_number_of_threads_views_and_features(exponents: bool) -> None:
    """Large enough for several threads and tiles, and the halves of a wider tensor."""
    tensors, weighting = inputs(exponents, 50, 0.1, width=300, batch=5), settings(exponents, log_variance=True)
    wide = torch.cat([tensors.value, tensors.weight], -1).requires_grad_()
    upstream = torch.randn(600, 50, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64).transpose(0, 2)

    def run(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        output = tensors._replace(value=value, weight=weight).mean(weighting)[0]
        return output, torch.autograd.grad(output, wide, upstream)[0]

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(*wide.chunk(2, -1)))
    finally:
        torch.set_num_threads(before)
    expected = plain(tensors._replace(value=wide[..., :300], weight=wide[..., 300:]), weighting)[0]
    expected = expected, torch.autograd.grad(expected, wide, upstream)[0]
    for result in results:
        torch.testing.assert_close(result, expected)
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("exponents", [False, True])
def test_single_precision_stays_close_to_double_over_long_sequences(exponents: bool) -> None:
    tensors, weighting = inputs(exponents, 10_000, 0.001, batch=2), settings(exponents, log_variance=True)
    upstream = torch.randn(2, 10_000, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    results = []
    for dtype in (torch.float32, torch.float64):
        starts = ({name: part.to(dtype) for name, part in parts.items()} for parts in (tensors.state, tensors.initial))
        cast = Inputs(tensors.value.to(dtype), tensors.weight.to(dtype), tensors.reset, *starts)
        leaves = cast.leaves()
        mean = cast.mean(weighting)[0]
        results.append([mean, *torch.autograd.grad(mean, leaves, upstream.to(dtype))])
    for single, double in zip(*results, strict=True):
        assert (single.double() - double).abs().max() <= 3e-6 * (1 + double.abs().max())


def test_parts_of_the_wrong_shape_are_refused() -> None:
    tensors = inputs(False, 5, 0.0)
    for state in (
        {name: part[:2] for name, part in tensors.state.items()},
        {name: part[:, :2] for name, part in tensors.state.items()},
    ):
        with pytest.raises(RuntimeError):
            tensors._replace(state=state).mean(settings(False))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "missing.so")
    with pytest.raises(ImportError, match="built without its C kernels; reinstall it with a C compiler"):
        library._load()
