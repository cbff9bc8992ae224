"""The memory of the current task: transition features -> sequence model -> latent (spec/models.md sections 1 and 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.errors import ConfigError
from hyperrl.modules.sequence import GRU


class Transition(NamedTuple):
    """What the memory consumes: one step of the environment, raw and unnormalised.

    Attributes:
        prev_observation: s ``[..., O]``.
        action: a ``[..., A]``; a discrete action as its index, ``[..., 1]``.
        reward: r ``[..., 1]``, raw units.
        observation: s' before any reset ``[..., O]``.
    """

    prev_observation: Tensor
    action: Tensor
    reward: Tensor
    observation: Tensor

    @classmethod
    def last(cls, td: TensorDictBase) -> Transition:
        """The transition that led to the root of ``td``."""
        return cls(td[keys.PREV_OBSERVATION], td[keys.PREV_ACTION], td[keys.PREV_REWARD], td[keys.OBSERVATION])

    @classmethod
    def rollout(cls, td: TensorDictBase) -> Transition:
        """All transitions that a rollout ``[B, T]`` touches, ``[B, T+1]``: the one before its first step, its own."""
        first, own = cls.last(td[:, :1]), td[keys.NEXT]
        steps = cls(own[keys.PREV_OBSERVATION], own[keys.PREV_ACTION], own[keys.PREV_REWARD], own[keys.OBSERVATION])
        return cls(*(torch.cat(pair, 1) for pair in zip(first, steps, strict=True)))


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the trajectory encoder; an embedding of size 0 drops that input.

    Attributes:
        state_embedding_dim: width of the embedding shared by s and s'.
        action_embedding_dim: width of the action embedding.
        reward_embedding_dim: width of the reward embedding.
        hidden_dim: width of the recurrent memory.
        latent_dim: width of the latent's mean, and again of its log variance.
        full_transitions: feed (s, a, r, s') instead of (a, r, s').
    """

    state_embedding_dim: int = 32
    action_embedding_dim: int = 0
    reward_embedding_dim: int = 8
    hidden_dim: int = 256
    latent_dim: int = 5
    full_transitions: bool = False

    def __post_init__(self) -> None:
        for name in ("state_embedding_dim", "hidden_dim", "latent_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.encoder.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("action_embedding_dim", "reward_embedding_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.encoder.{name} is {getattr(self, name)}; expected 0 (input dropped) or more")


class TransitionFeatures(nn.Module):
    """One affine layer and ReLU per part of a transition, concatenated as ([s,] a, r, s').

    Args:
        obs_dim: width of observations.
        action_dim: width of actions (1 for discrete ones).
        config: embedding sizes.
    """

    def __init__(self, obs_dim: int, action_dim: int, config: EncoderConfig) -> None:
        super().__init__()
        self.state = nn.Linear(obs_dim, config.state_embedding_dim)
        self.action = nn.Linear(action_dim, config.action_embedding_dim) if config.action_embedding_dim else None
        self.reward = nn.Linear(1, config.reward_embedding_dim) if config.reward_embedding_dim else None
        self.full_transitions = config.full_transitions
        self.output_dim = (
            config.action_embedding_dim
            + config.reward_embedding_dim
            + config.state_embedding_dim * (2 if config.full_transitions else 1)
        )

    def forward(self, transition: Transition) -> Tensor:
        """Returns features ``[..., F]``."""
        parts = [self.state(transition.prev_observation)] if self.full_transitions else []
        if self.action is not None:
            parts.append(self.action(transition.action))
        if self.reward is not None:
            parts.append(self.reward(transition.reward))
        parts.append(self.state(transition.observation))
        return torch.cat(parts, -1).relu()


class TrajectoryEncoder(nn.Module):
    """Turns the transitions of the current task into a latent for the policy.

    The contract, tested for every variant: stepping ``T`` times equals one sequence call, with resets inside. The
    latent before any transition (the prior) is the output after one all-zero feature vector, whose effect on the
    memory is discarded. Everything here runs in fp32: it is a small share of the work, and memory has to last.

    Args:
        obs_dim: width of observations.
        action_dim: width of actions (1 for discrete ones).
        config: sizes.
    """

    def __init__(self, obs_dim: int, action_dim: int, config: EncoderConfig) -> None:
        super().__init__()
        self.features = TransitionFeatures(obs_dim, action_dim, config)
        self.sequence = GRU(self.features.output_dim, config.hidden_dim)
        self.output = nn.Linear(self.sequence.output_dim, 2 * config.latent_dim)
        self.latent_dim = 2 * config.latent_dim
        self.state_dim = self.sequence.state_dim

    def initial_state(self, batch: int) -> Tensor:
        """The memory before any transition of a task, ``[batch, S]``."""
        return self.sequence.initial_state(batch)

    def prior(self, batch: int) -> Tensor:
        """The latent before any transition of a task, ``[batch, 2L]`` (mean, log variance)."""
        nothing = self.output.weight.new_zeros(1, self.features.output_dim)
        with torch.autocast(nothing.device.type, enabled=False):
            output, _ = self.sequence.step(nothing, self.initial_state(1))
            return self.output(output).expand(batch, -1)

    def step(self, transition: Transition, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one transition ``[B, ...]``; returns latent ``[B, 2L]`` and memory ``[B, S]``."""
        with torch.autocast(state.device.type, enabled=False):
            output, state = self.sequence.step(self.features(transition), state)
            return self.output(output), state

    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        """Consumes sequences.

        Args:
            transition: transitions ``[B, T, ...]``.
            reset: where the memory starts anew **before** the transition is consumed, ``[B, T]``.
            state: memory before the first transition ``[B, S]``.

        Returns:
            The latent after every transition, ``[B, T, 2L]``.
        """
        with torch.autocast(state.device.type, enabled=False):
            return self.output(self.sequence(self.features(transition), reset, state))

    def act(self, td: TensorDictBase) -> Tensor:
        """Advances the memory at decision time.

        Args:
            td: root of a step ``[B]``: the last transition, ``is_init``, and ``memory`` as left here a step ago.

        Returns:
            The latent to act on ``[B, 2L]``; ``memory`` and ``prev_memory [B, S]`` are written to ``td``.
        """
        is_init = td[keys.IS_INIT]
        previous = td.get(keys.MEMORY, None)
        if previous is None:
            # Nobody has stepped yet: the first call of a stream is the first step of all its tasks.
            previous = self.initial_state(len(is_init))
        latent, memory = self.step(Transition.last(td), previous)
        td[keys.PREV_MEMORY] = previous
        if memory.is_cpu and not bool(is_init.any()):  # not worth a synchronisation elsewhere
            td[keys.MEMORY] = memory
            return latent
        td[keys.MEMORY] = torch.where(is_init, self.initial_state(len(memory)), memory)
        return torch.where(is_init, self.prior(len(latent)), latent)

    def encode(self, rollout: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Re-encodes a rollout from the memory stored at its start.

        Every transition is consumed once, the last one of a task included, and then the memory starts anew: the first
        action of a task is taken from the prior, and a task's final value is known.

        Args:
            rollout: ``[B, T]`` with ``prev_memory`` at its first step.

        Returns:
            Latents at decision time and latents after the step, both ``[B, T, 2L]``.
        """
        is_init = rollout[keys.IS_INIT].squeeze(-1)
        reset = torch.cat([torch.zeros_like(is_init[:, :1]), is_init], 1)
        latents = self(Transition.rollout(rollout), reset, rollout[keys.PREV_MEMORY][:, 0])
        before, after = latents[:, :-1], latents[:, 1:]
        return torch.where(is_init.unsqueeze(-1), self.prior(1), before), after
