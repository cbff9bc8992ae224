"""Which inputs a memory gets for a quantity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tensordict import TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.errors import ConfigError
from hyperrl.experiments.analysis.inputs import Synthetic
from hyperrl.experiments.analysis.memories import Memory, Model
from hyperrl.experiments.analysis.quantities import Given, Quantity
from hyperrl.experiments.analysis.trajectories import embedded, play


@dataclass(frozen=True)
class Feed:
    """What the memories of an analysis are fed with; with the same seed, all models get the same.

    Attributes:
        synthetic: laws of synthetic inputs.
        runs: input sequences per agent.
        chosen: the synthetic input of a quantity that leaves a choice.
        trajectories: what plays real trajectories in their place; none for none.
        steps: how many steps of them are taken; none for those of the shortest.
    """

    synthetic: Synthetic
    runs: int
    chosen: Literal["noise", "signal"] = "noise"
    trajectories: str | None = None
    steps: int | None = None
    _played: dict[int, TensorDictBase] = field(default_factory=dict)

    def curve(self, quantity: Quantity, model: Model, seed: int) -> np.ndarray:
        """Measures an agent: its curve ``[T]``."""
        played = self._play(seed)
        steps = self.synthetic.steps if played is None else self._length(played)
        memory = model.memory(seed, steps, played)
        generator = np.random.default_rng(seed)
        inputs = [self._draw(given, memory, generator, played, steps) for given in quantity.inputs]
        return quantity.curve(memory, seed, *inputs).numpy()

    def _draw(
        self, given: Given, memory: Memory, generator: np.random.Generator, played: TensorDictBase | None, steps: int
    ) -> Tensor:
        """One of a quantity's inputs ``[R, T, D]``."""
        if given == "chosen" and played is not None:
            return embedded(memory, played, steps)
        return self.synthetic.draw(self.chosen if given == "chosen" else given, generator, self.runs, memory.width)

    def _play(self, seed: int) -> TensorDictBase | None:
        """The trajectories of a seed, played once for all models."""
        if self.trajectories is not None and seed not in self._played:
            self._played[seed] = play(self.trajectories, self.runs, seed)
        return self._played.get(seed)

    def _length(self, played: TensorDictBase) -> int:
        """Number of steps that are taken of trajectories."""
        length = played[keys.PREV_REWARD].shape[1]
        if self.steps is not None and self.steps > length:
            raise ConfigError(
                f"steps is {self.steps}; expected at most {length}, the length of the shortest trajectory"
            )
        return length if self.steps is None else self.steps
