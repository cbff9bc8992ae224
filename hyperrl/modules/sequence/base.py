"""What every sequence model offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class SequenceModel(nn.Module, ABC):
    """Turns feature vectors into outputs, with one flat state per row.

    A subclass is constructed with ``(input_dim, hidden_dim, horizon)`` and options of its own. Stepping through a
    sequence equals one call of :meth:`forward`, with resets inside.

    Attributes:
        initial_learnable: whether the state at a task's start may be a parameter.
        output_dim: width ``E`` of the outputs.
        state_dim: width ``S`` of the state.
    """

    initial_learnable: ClassVar[bool] = True
    output_dim: int
    state_dim: int

    def initial_state(self, batch: int) -> Tensor:
        """The state at a task's start, ``[batch, S]``: zeros."""
        return next(self.parameters()).new_zeros(batch, self.state_dim)

    @abstractmethod
    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one feature vector ``[B, F]``; returns output ``[B, E]`` and state ``[B, S]``."""

    @abstractmethod
    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        """Consumes whole sequences; equals stepping through them.

        Args:
            x: features ``[B, T, F]``.
            reset: where the state is replaced by the initial one **before** the entry is consumed, ``[B, T]``.
            state: state before the first entry ``[B, S]``.
            initial: state at a task's start ``[S]`` or ``[1, S]``; none for :meth:`initial_state`.

        Returns:
            Outputs ``[B, T, E]``.
        """

    def final_state(self, x: Tensor, output: Tensor, state: Tensor) -> Tensor:
        """The state after sequences without resets; only its value is used, no gradient.

        Steps through them; a subclass may know a shorter way.

        Args:
            x: features ``[B, T, F]``.
            output: what :meth:`forward` gave for them ``[B, T, E]``.
            state: state before the first entry ``[B, S]``.

        Returns:
            The state after the last entry ``[B, S]``.
        """
        for features in x.unbind(1):
            _, state = self.step(features, state)
        return state

    def start(self, initial: Tensor | None) -> Tensor:
        """The state at a task's start as one row ``[1, S]``, whether given or not."""
        return self.initial_state(1) if initial is None else initial.reshape(1, -1)
