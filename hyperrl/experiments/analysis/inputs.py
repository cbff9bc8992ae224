"""What an analysed memory is fed with: synthetic features, or trajectories of an environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hyperrl.errors import ConfigError

Kind = Literal["noise", "signal", "signal_noise", "antisignal_noise"]


@dataclass(frozen=True)
class Synthetic:
    """Laws of synthetic inputs (spec/tooling.md section 3.1).

    Attributes:
        steps: T.
        scale: s, the size of all inputs.
        strong: whether a signal comes again and again, in the place of once.
        probability: chance of a strong signal at each step.
        block: last fraction of the steps, in which there is no strong signal.
    """

    steps: int = 100
    scale: float = 1.0
    strong: bool = False
    probability: float = 0.01
    block: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; expected at least 1")
        if not self.scale > 0:
            raise ConfigError(f"scale is {self.scale}; expected a positive number")
        for name, value in (("strong_probability", self.probability), ("strong_block", self.block)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; expected a number from 0 to 1")

    def draw(self, kind: Kind, generator: np.random.Generator, runs: int, width: int) -> Tensor:
        """Draws the inputs of some runs, ``[runs, T, width]``.

        Args:
            kind: ``noise``: each number uniform in [-s, s]; ``signal``: s at the first step, or at random ones, else 0;
                ``signal_noise`` and ``antisignal_noise``: s, or -s, at the first step, and then s or -s at random.
            generator: source of randomness.
            runs: number of runs.
            width: number of features, which are all alike in a signal.
        """
        if kind == "noise":
            values = generator.uniform(-1, 1, (runs, self.steps, width))
        else:
            values = np.repeat(self._pulses(kind, generator, runs)[..., None], width, -1)
        return torch.from_numpy(self.scale * values).float()

    def _pulses(self, kind: Kind, generator: np.random.Generator, runs: int) -> np.ndarray:
        """What all features of an input are, for a scale of 1, ``[runs, T]``."""
        shape = runs, self.steps
        if kind != "signal":
            pulses = generator.choice([-1.0, 1.0], shape)
            pulses[:, 0] = 1 if kind == "signal_noise" else -1
        elif self.strong:
            pulses = (generator.random(shape) < self.probability).astype(float)
            pulses[:, round(self.steps * (1 - self.block)) :] = 0
        else:
            pulses = np.zeros(shape)
            pulses[:, 0] = 1
        return pulses
