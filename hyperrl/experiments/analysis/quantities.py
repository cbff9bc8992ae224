"""What can be measured, by name (spec/tooling.md sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hyperrl.experiments.analysis import gradients, order, outputs
from hyperrl.experiments.analysis.memories import Memory, without_biases

Name = Literal[
    "first_input_gradient",
    "every_input_gradient",
    "parameter_gradient",
    "permutation_difference",
    "norm",
    "normalized_norm",
    "power",
    "signal_to_noise",
    "gradient_times_signal_to_noise",
    "signal_noise_distance",
    "inverse_variance",
    "decorrelation",
    "linear_separation",
    "map_distance",
]
Given = Literal["chosen", "noise", "signal", "signal_noise", "antisignal_noise"]


@dataclass(frozen=True)
class Quantity:
    """A curve over the steps of a memory.

    Attributes:
        title: of the picture.
        label: of the vertical axis.
        inputs: what the memory is fed with, in the order of the curve's arguments; ``chosen`` is what the user chooses.
        curve: memory, seed and inputs ``[R, T, D]`` to the curve ``[T]``.
        log: whether the vertical axis is logarithmic.
        runs: R, unless the user says otherwise.
        step: what the horizontal axis counts.
    """

    title: str
    label: str
    inputs: tuple[Given, ...]
    curve: Callable[..., Tensor]
    log: bool = False
    runs: int = 5
    step: str = "step of the output"


def _mean_norm(measure: Callable[[Memory, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The curve of vectors ``[R, T, n]``: mean over runs of their L2 norms."""

    def curve(memory: Memory, seed: int, x: Tensor) -> Tensor:
        return measure(memory, x).double().norm(dim=-1).mean(0)

    return curve


def _of_outputs(measure: Callable[..., Tensor], biases: bool = True) -> Callable[..., Tensor]:
    """The curve of what is measured of outputs ``[R, T, O]``."""

    @torch.no_grad()
    def curve(memory: Memory, seed: int, *inputs: Tensor) -> Tensor:
        module = memory if biases else without_biases(memory)
        return measure(*(module(x).double() for x in inputs))

    return curve


@torch.no_grad()
def _permutation_difference(memory: Memory, seed: int, x: Tensor) -> Tensor:
    orders = order.prefix_orders(np.random.default_rng(seed), *x.shape[:2])
    return order.direction_difference(memory(x), order.reordered_outputs(memory, x, orders))


def _gradient_times_signal_to_noise(memory: Memory, seed: int, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    gradient, ratio = QUANTITIES["first_input_gradient"], QUANTITIES["signal_to_noise"]
    return gradient.curve(memory, seed, x) * ratio.curve(memory, seed, signal, noise)


def _map_distance(memory: Memory, seed: int, signal: Tensor, antisignal: Tensor) -> Tensor:
    return _of_outputs(lambda a, b: outputs.map_distance(a, b, seed))(memory, seed, signal, antisignal)


_OPPOSITES: tuple[Given, ...] = ("signal_noise", "antisignal_noise")

QUANTITIES: dict[Name, Quantity] = {
    "first_input_gradient": Quantity(
        "Gradient of the output by the first input",
        "Initial Input Gradient Norm",
        ("chosen",),
        _mean_norm(gradients.first_input_gradient),
        runs=1,
    ),
    "every_input_gradient": Quantity(
        "Gradient of the last output by every input",
        "All Inputs Gradient Norm",
        ("chosen",),
        _mean_norm(gradients.every_input_gradient),
        log=True,
        runs=1,
        step="step of the input",
    ),
    "parameter_gradient": Quantity(
        "Gradient of the output by the parameters",
        "Parameter Gradient Norm",
        ("chosen",),
        _mean_norm(gradients.parameter_gradient_norms),
        runs=1,
    ),
    "permutation_difference": Quantity(
        "Difference of the output's direction after reordering the inputs",
        "Permutation Difference",
        ("chosen",),
        _permutation_difference,
    ),
    "norm": Quantity("Norm of the output", "Output Norm", ("chosen",), _of_outputs(outputs.norm), log=True),
    "normalized_norm": Quantity(
        "Norm of the output less its mean over steps, by that mean",
        "Normalized Output Norm",
        ("chosen",),
        _of_outputs(outputs.normalized_norm),
        runs=1,
    ),
    "power": Quantity(
        "Power of the output, without biases",
        "Output Power",
        ("chosen",),
        _of_outputs(outputs.power, biases=False),
        log=True,
    ),
    "signal_to_noise": Quantity(
        "Output power for a signal by that for noise, without biases",
        "Signal-to-Noise Ratio",
        ("signal", "noise"),
        _of_outputs(outputs.signal_to_noise, biases=False),
        log=True,
    ),
    "gradient_times_signal_to_noise": Quantity(
        "Gradient by the first input times signal-to-noise ratio",
        "Initial Input Gradient Norm x SNR",
        ("chosen", "signal", "noise"),
        _gradient_times_signal_to_noise,
        log=True,
        runs=1,
    ),
    "signal_noise_distance": Quantity(
        "Distance of the outputs for a signal and for noise",
        "Mean Square Distance",
        ("signal", "noise"),
        _of_outputs(outputs.signal_noise_distance),
        log=True,
    ),
    "inverse_variance": Quantity(
        "How little the output varies with noise",
        "1 / Variance over Runs",
        ("noise",),
        _of_outputs(outputs.inverse_variance),
        log=True,
    ),
    "decorrelation": Quantity(
        "How different the outputs for a signal and its opposite are, under noise",
        "1 - Correlation over Runs",
        _OPPOSITES,
        _of_outputs(outputs.decorrelation),
    ),
    "linear_separation": Quantity(
        "How well a line tells a signal (1) from its opposite (0), under noise",
        "Fitted Value of the Signal",
        _OPPOSITES,
        _of_outputs(outputs.linear_separation),
    ),
    "map_distance": Quantity(
        "Distance of a signal from its opposite in a t-SNE map, under noise",
        "Distance in the Map",
        _OPPOSITES,
        _map_distance,
    ),
}
