"""Golden vectors of the analyses of untrained memories (spec/tooling.md section 3)."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from aggregator_cases import aggregator_factory, to_reference
from encoder_cases import encoder_config, encoder_slots
from env_cases import excluded
from support import Golden, Slot, Slots
from torch import Tensor

from hyperrl.experiments.analysis import gradients, order, outputs
from hyperrl.experiments.analysis.memories import Memory, Model, without_biases
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder

# As the README of the golden data suggests: relative, absolute.
CURVE = 1e-4, 1e-6
VECTOR = 1e-4, 1e-5

# Every aggregator of the reference has them, used or not. Ours is the logarithm, and of the one that is used only.
TEMPERATURES = {"softmax": "agg.softmax_temp", "weighted_avg": "agg.wavg_temp"}


def run_analysis(golden: Golden) -> None:
    """A file of one of three kinds: the four published analyses, the other quantities, curves at default size."""
    settings = json.loads(str(golden.arrays.pop("settings")))
    if "seeds" in settings:
        _run_default_size(golden, settings)
        golden.check_all_read(dict.fromkeys(excluded("analysis"), "exclusions.yaml"))
        return
    memory, slots = _memory(golden, settings)
    if "x" in golden:
        _run_published(golden, memory, slots)
    else:
        _run_others(golden, memory)
    golden.check_all_read({})


def _close(golden: Golden, name: str, ours: Tensor, tolerance: tuple[float, float] = CURVE) -> None:
    """Compares with an array, shape included; what is undefined must be so in both."""
    relative, absolute = tolerance
    torch.testing.assert_close(
        ours.detach().double(),
        golden[name].double(),
        rtol=relative,
        atol=absolute,
        equal_nan=True,
        msg=lambda message: f"{name}: {message}",
    )


# The published analyses


def _run_published(golden: Golden, memory: Memory, slots: Slots) -> None:
    """Outputs, gradients and curves of one small memory."""
    x = golden["x"]
    _close(golden, "y", memory(x))
    for name, measure in (
        ("grad", gradients.first_input_gradient),
        ("inputs_grad", gradients.every_input_gradient),
    ):
        vectors = measure(memory, x)
        _close(golden, f"{name}/vectors", vectors, VECTOR)
        _close(golden, f"{name}/curve", vectors.norm(dim=-1).mean(0))
    _check_parameter_gradients(golden, memory, slots, gradients.parameter_gradient_norms(memory, x))

    x, orders = golden["perm_diff/x"], golden["perm_diff/permutation"].long()
    y, z = memory(x), order.reordered_outputs(memory, x, orders)
    _close(golden, "perm_diff/y", y)
    _close(golden, "perm_diff/y_permuted", z)
    _close(golden, "perm_diff/curve", order.direction_difference(y, z))


def _check_parameter_gradients(golden: Golden, memory: Memory, slots: Slots, ours: Tensor) -> None:
    """Compares norms ``[R, T, P]`` parameter by parameter: a learned start is two of them in the reference."""
    ours = ours.double()
    log_temperature = _log_temperature(memory)
    for index, parameter in enumerate(memory.parameters()):
        if parameter is log_temperature:
            ours[..., index] /= log_temperature.detach().exp()  # by the temperature, not by its logarithm
    _close(golden, "param_grad/curve", ours.norm(dim=-1).mean(0))

    names = [str(name) for name in golden.arrays.pop("param_names")]
    recorded = dict(zip(names, golden["param_grad/norm_by_parameter"].double().unbind(-1), strict=True))
    squares: dict[int, Tensor] = defaultdict(lambda: torch.zeros(ours.shape[:2], dtype=ours.dtype))
    for name, norms in recorded.items():
        if name in slots:
            squares[id(slots[name].parameter)] += norms.square()
        else:
            assert name in TEMPERATURES.values(), f"{name}: a parameter that ours does not have"
            assert not norms.any(), f"{name}: a gradient that ours does not have"
    for parameter, norms in zip(memory.parameters(), ours.unbind(-1), strict=True):
        torch.testing.assert_close(norms, squares[id(parameter)].sqrt(), rtol=1e-4, atol=1e-5)


# The other quantities


def _run_others(golden: Golden, memory: Memory) -> None:
    """Outputs for all inputs, and what is made of them."""
    plain, unbiased = memory, without_biases(memory)
    names = {name.partition("/")[0] for name in golden.arrays} - {"sd", "initial_state"}
    curves: dict[str, Callable[..., Tensor]] = {
        "signal_power": outputs.power,
        "signal_strong": outputs.power,
        "noise_power": outputs.power,
        "norm_noise": outputs.norm,
        "normalized_norm": outputs.normalized_norm,
        "snd": outputs.signal_noise_distance,
        "invv": outputs.inverse_variance,
        "cor": outputs.decorrelation,
        "lcc": outputs.linear_separation,
        "snr_zero_bias": outputs.signal_to_noise,
    }
    assert names
    assert names <= set(curves)
    for name in names:
        replayed = []
        for kind in ("signal", "noise", "signal_noise", "antisignal_noise"):
            if f"{name}/x_{kind}" in golden:
                y = (unbiased if name == "snr_zero_bias" else plain)(golden[f"{name}/x_{kind}"]).detach()
                _close(golden, f"{name}/y_{kind}", y)
                replayed.append(y.double())
        _close(golden, f"{name}/curve", curves[name](*replayed))


# Default size: weights are not recorded, so that only shape and order of magnitude are compared

MODELS = {
    "rnn": "model/rnn_hn",
    "amrl": "model/amrl",
    "splagger": "model/splagger",
    "splagger_no_rnn": "model/splagger_no_rnn",
}


# Ratio of our mean over seeds and over a window of steps to the recorded one, at most (or its inverse): wide enough for
# other weights of the same distribution, too narrow for a wrong formula, such as a missing root or mean.
EARLY, MIDDLE, LATE = slice(0, 15), slice(40, 60), slice(80, None)
BANDS: dict[str, dict[str, tuple[float, float, float]]] = {
    "grad": {
        "rnn": (1.3, 1.6, 2.0),
        "amrl": (1.3, 1.3, 1.3),
        "splagger": (1.3, 3.0, 5.0),  # what the maximum of a few features still owes to the first input
        "splagger_no_rnn": (1.3, 3.0, 5.0),
    },
    "param_grad": dict.fromkeys(MODELS, (1.1, 1.1, 1.1)),
    "inputs_grad": {
        "rnn": (2.0, 1.6, 1.3),
        "amrl": (1.3, 1.3, 1.3),
        "splagger": (2.0, 1.5, 1.5),
        "splagger_no_rnn": (2.0, 1.5, 1.5),
    },
    "perm_diff": {"rnn": (1.3, 1.2, 1.2), "amrl": (1.3, 1.2, 1.2), "splagger": (1.3, 1.2, 1.2)},
}


def _run_default_size(golden: Golden, settings: Mapping[str, Any]) -> None:
    """Order of magnitude and published outcomes of the curves with one layer behind the aggregator."""
    ours = {model: _default_curves(config, settings) for model, config in MODELS.items()}
    for analysis, bands in BANDS.items():
        for model in MODELS:
            curve, recorded = ours[model][analysis].double(), golden[f"one_head/{analysis}/{model}"]
            if model not in bands:  # order-free: 0 up to rounding
                assert max(curve.max(), recorded.max()) < 1e-5
                continue
            for window, band in zip((EARLY, MIDDLE, LATE), bands[model], strict=True):
                ratio = curve[:, window].mean() / recorded[:, window].mean()
                assert 1 / band < ratio < band, f"{analysis} of {model} in {window}: {ratio:.2f} times the recorded one"
    for curves in (ours, {model: _recorded(golden, model) for model in MODELS}):
        _check_outcomes(
            {model: {name: c.double().mean(0) for name, c in found.items()} for model, found in curves.items()}
        )


def _recorded(golden: Golden, model: str) -> dict[str, Tensor]:
    return {analysis: golden[f"one_head/{analysis}/{model}"] for analysis in BANDS}


def _check_outcomes(curves: Mapping[str, Mapping[str, Tensor]]) -> None:
    """What spec/tooling.md section 3.2 says of means over seeds; it holds of the recorded curves as well as of ours."""
    rnn, amrl, splagger, no_rnn = (curves[model] for model in MODELS)
    steps = torch.arange(100.0, dtype=torch.float64)

    assert (rnn["grad"][1:] < rnn["grad"][:-1]).all()  # decays exponentially
    assert rnn["grad"][-1] < 1e-18
    assert amrl["grad"][-1] > amrl["grad"][0]  # rises and stays constant
    assert (amrl["grad"][20:] / amrl["grad"][-1] - 1).abs().max() < 0.02
    for slow in (splagger, no_rnn):  # decay slowly
        assert 0.002 < slow["grad"][-1] / slow["grad"][0] < 0.3
    unchanged = no_rnn["grad"][50:].diff().abs() < 1e-3 * no_rnn["grad"][50]
    assert unchanged.double().mean() > 0.7  # in steps

    assert _correlation(steps, amrl["param_grad"]) > 0.995  # grows linearly
    assert amrl["param_grad"][-1] > 15 * amrl["param_grad"][0]
    assert rnn["param_grad"][10:].max() < 1.5 * rnn["param_grad"][10:].min()  # flat
    for level in (splagger, no_rnn):  # level off
        assert level["param_grad"][50:].max() < 1.2 * level["param_grad"][50:].min()

    assert _correlation(steps, rnn["inputs_grad"].log()) > 0.999  # a straight line on the log axis
    assert 1e-22 < rnn["inputs_grad"][0] < 1e-19
    assert amrl["inputs_grad"][:90].max() < 1.2 * amrl["inputs_grad"][:90].min()  # flat
    for scattered in (splagger, no_rnn):
        assert scattered["inputs_grad"][:90].std() > 0.2 * scattered["inputs_grad"][:90].mean()

    late = {model: found["perm_diff"][40:].mean() for model, found in curves.items()}
    assert 1.0 < late["rnn"] < 1.3  # highest
    torch.testing.assert_close(amrl["perm_diff"], splagger["perm_diff"], rtol=0, atol=1e-5)  # the same curve
    assert 0.35 < late["splagger"] / late["rnn"] < 0.6  # about half
    assert late["splagger_no_rnn"] < 1e-6


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([x, y]))[0, 1]


def _default_curves(config: str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our curves ``[seeds, steps]`` of the four analyses; the slow one, which differs least, of one seed."""
    steps, width = settings["steps"], settings["input_size"]
    curves: dict[str, list[Tensor]] = defaultdict(list)
    for seed in settings["seeds"]:
        memory = Model.read(config).memory(seed, steps)
        x = torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, (5, steps, width))).float()
        orders = order.prefix_orders(np.random.default_rng(seed), 5, steps)
        curves["grad"].append(gradients.first_input_gradient(memory, x[:1]).norm(dim=-1)[0])
        curves["inputs_grad"].append(gradients.every_input_gradient(memory, x[:1]).norm(dim=-1)[0])
        if not curves["param_grad"]:
            curves["param_grad"].append(gradients.parameter_gradient_norms(memory, x[:1]).norm(dim=-1)[0])
        y = memory(x).detach()
        curves["perm_diff"].append(order.direction_difference(y, order.reordered_outputs(memory, x, orders)))
    return {name: torch.stack(values) for name, values in curves.items()}


# The memory


def _config(settings: Mapping[str, Any]) -> EncoderConfig:
    """The configuration that the settings describe, with one embedding as wide as the inputs, which is not used."""
    kind = None if settings["aggregation"] == "None" else settings["aggregation"]
    transformer = settings["transformer"] or {}
    args = {
        "encoder_enc_type": None if settings["encoder_type"] == "None" else settings["encoder_type"],
        "encoder_agg_type": kind,
        "encoder_st_estimator": settings["straight_through"],
        "encoder_max_init_low": settings["max_init_low"],
        "encoder_skip_type": settings["skip"],
        "encoder_gru_hidden_size": settings["encoder_size"],
        "encoder_layers_before_gru": settings["layers_before_encoder"],
        # The reference's list of a Gaussian's ends with its latent.
        "encoder_layers_after_gru": settings["layers_after_encoder"][: -1 if kind == "gauss" else None],
        "encoder_layers_after_agg": settings["layers_after_aggregation"][:-1],
        "state_embedding_size": settings["input_size"],
        "action_embedding_size": 0,
        "reward_embedding_size": 0,
        "full_transitions": False,
        "invariant_init": settings["invariant_init"],
        "invariant_init_adjusts_weights": settings["invariant_init_adjusts_weights"],
        "latent_dim": settings["latent_dim"],
        "learn_init_state": settings["learn_init_state"],
        "softmax_temp": settings["softmax_temp"],
        "wavg_temp": settings["wavg_temp"],
        "transformer_token_sz": transformer.get("token_size"),
        "transformer_mem_sz": transformer.get("memory_size"),
        "transformer_num_layers": transformer.get("layers"),
        "transformer_num_heads": transformer.get("heads"),
    }
    config = encoder_config(args)
    if kind not in TEMPERATURES:
        return config
    names = ("max_init_low", "softmax_temp", "wavg_temp", "learn_temps")
    args = {name: settings[name] for name in names}
    return dataclasses.replace(config, aggregator=aggregator_factory(kind, args, settings["straight_through"]))


def _memory(golden: Golden, settings: Mapping[str, Any]) -> tuple[Memory, Slots]:
    """The memory with the recorded parameters, and these by the reference's names."""
    encoder = TrajectoryEncoder(1, 1, _config(settings), (settings["transformer"] or {}).get("max_len"))
    slots = {name.removeprefix("agg."): slot for name, slot in encoder_slots(encoder).items() if name[:4] == "agg."}
    recorded, memory = set(golden.under("sd/")), Memory(encoder)
    assert recorded - set(TEMPERATURES.values()) == set(slots)
    for name in slots:
        slots[name].load(golden[f"sd/{name}"])
    for name in recorded - set(slots):
        golden[f"sd/{name}"]
    log_temperature = _log_temperature(memory)
    if log_temperature is not None:
        name = TEMPERATURES[settings["aggregation"]]
        slots[name] = Slot(log_temperature)
        torch.testing.assert_close(log_temperature.detach().exp(), golden[f"sd/{name}"].squeeze())
    assert sum(slot.value.numel() for slot in slots.values()) == sum(p.numel() for p in memory.parameters())
    if "initial_state" in golden:
        _check_start(golden, encoder)
    return memory, slots


def _log_temperature(memory: Memory) -> torch.nn.Parameter | None:
    """The parameter that is the logarithm of the aggregator's temperature."""
    return dict(memory.named_parameters()).get("encoder.aggregator.weighing.log_temperature")


def _check_start(golden: Golden, encoder: TrajectoryEncoder) -> None:
    """The memory before the first step, in the reference's terms."""
    start = encoder.initial_state(1)
    if encoder.aggregator is not None:
        memory, summary = start.split((encoder.sequence.state_dim, encoder.aggregator.state_dim), -1)
        start = torch.cat([memory, to_reference(encoder.aggregator, summary)], -1)
    _close(golden, "initial_state", start[0])
