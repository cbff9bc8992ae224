"""Golden vectors of single aggregators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from support import FORMULA, GRADIENT, Golden, assert_close
from torch import Tensor

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

TEMPERATURE = 1e-2  # as the README of the golden data suggests


def aggregator_factory(kind: str, args: Mapping[str, Any], straight_through: bool) -> Callable[[int], Aggregator]:
    """What makes the aggregator that the reference calls `kind`, by its width."""
    through = {"straight_through": straight_through}
    low = {"low_initial": args["max_init_low"]}
    learned = {"learn_temperature": args["learn_temps"]}
    weighted = {
        "temperature": args["wavg_temp"],
        "learn_temperature": args["learn_temps"] and args["wavg_temp"] is not None,
    }
    return {
        "sum": Sum,
        "max": partial(Max, **low, **through),
        "max_norm": partial(MaxNorm, **low, **through),
        "avg": partial(Mean, **through),
        "am": partial(MeanMax, **through),
        "weighted_avg": partial(WeightedAverage, **weighted, **through),
        "softmax": partial(Softmax, temperature=args["softmax_temp"], **learned, **through),
        "gauss": partial(Gaussian, **through),
    }[kind]


def from_reference(aggregator: Aggregator, state: Tensor) -> Tensor:
    """Our state ``[..., S]`` for the reference's: with a temperature, sums in other units, and the unit last."""
    weighing = getattr(aggregator, "weighing", None)
    if weighing is None:
        return state
    total, norm = state.chunk(2, -1)
    shift = torch.zeros_like(total)
    unit = weighing.published_unit(shift)
    return torch.cat([total / unit, norm / unit, shift], -1)


def to_reference(aggregator: Aggregator, state: Tensor) -> Tensor:
    """The reference's state for ours."""
    weighing = getattr(aggregator, "weighing", None)
    if weighing is None:
        return state
    total, norm, shift = state.chunk(3, -1)
    unit = weighing.published_unit(shift)
    return torch.cat([total * unit, norm * unit], -1)


def run_aggregator(golden: Golden) -> None:
    """Outputs and states step by step and as a sequence with a reset inside, and gradients of both."""
    meta = golden.meta
    x = golden["in/x"].transpose(0, 1).requires_grad_()
    recorded = golden["in/state0"].requires_grad_()
    reset = golden["in/reset"].bool().T
    aggregator = aggregator_factory(meta["agg_type"], meta, meta["st_estimator"])(x.shape[-1])
    assert aggregator.output_dim == meta["dims"]["output"]
    if meta["initial_state"] == "init":
        golden.check("in/state0", to_reference(aggregator, aggregator.initial_state(len(x))))
    initial = from_reference(aggregator, golden["in/init_state"])
    assert_close("in/init_state", aggregator.initial_state(len(x)), initial, FORMULA)

    outputs, states = [], []
    state = from_reference(aggregator, recorded)
    for t in range(x.shape[1]):
        output, state = aggregator.step(x[:, t], torch.where(reset[:, t, None], initial, state))
        outputs.append(output)
        states.append(to_reference(aggregator, state))
    golden.check("out/state", torch.stack(states))
    stepwise = torch.stack(outputs, 1)
    for output in (stepwise, aggregator(x, reset, from_reference(aggregator, recorded), initial)):
        golden.check("out/output", output.transpose(0, 1))
        _check_gradients(golden, aggregator, output, x, recorded)
    golden.check_all_read({"grad/*": "at exact ties each operand gets half there"} if meta["ties"] else {})


def _check_gradients(golden: Golden, aggregator: Aggregator, output: Tensor, x: Tensor, state: Tensor) -> None:
    parameters = list(aggregator.parameters())
    weighted = (golden["in/cotangent"] * output.transpose(0, 1)).sum()
    by_x, by_state, *by_temperature = torch.autograd.grad(weighted, [x, state, *parameters], retain_graph=True)
    if golden.meta["ties"]:
        return
    golden.check("grad/x", by_x.transpose(0, 1), GRADIENT)
    golden.check("grad/state0", by_state, GRADIENT)
    names = golden.under("grad/")
    assert len(names) == 2 + len(parameters), f"temperatures: {names}"
    for log_temperature, gradient in zip(parameters, by_temperature, strict=True):
        (name,) = (name for name in names if name.endswith("_temp"))
        ours = gradient / log_temperature.detach().exp()
        expected = golden[f"grad/{name}"].squeeze()
        assert_close(f"grad/{name}", ours, expected, TEMPERATURE)
