"""The memory of the current task (spec/models.md sections 1 and 4).

Transition features -> hidden layers -> sequence model -> hidden layers -> aggregator, of one half or all -> latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.modules.encoder_config import EncoderConfig, check_parts
from hyperrl.modules.host_mask import nowhere, on_both


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

    The memory is one vector per row, the sequence model's state and then the aggregator's.

    Args:
        obs_dim: width of observations.
        action_dim: width of actions (1 for discrete ones).
        config: parts and sizes.
        horizon: longest task in steps, evaluation included; only memories that keep every step need it.

    Raises:
        ConfigError: parts of the configuration do not fit together.
    """

    def __init__(self, obs_dim: int, action_dim: int, config: EncoderConfig, horizon: int | None = None) -> None:
        super().__init__()
        self.latent_dim = 2 * config.latent_dim
        self.sample_latent, self.relu_latent = config.sample_latent, config.relu_latent
        self.features = TransitionFeatures(obs_dim, action_dim, config)
        # A factory does not tell its class, and with it how wide its input has to be: a small specimen does.
        specimen = None if config.aggregator is None else config.aggregator(2)
        gives_latent = specimen is not None and specimen.gives_latent
        hidden, after = config.hidden_dim, list(config.layers_after)
        if gives_latent:
            after += [*config.output_layers, self.latent_dim]
        elif specimen is not None and after:
            after[-1] *= specimen.input_factor
        elif specimen is not None:
            hidden *= specimen.input_factor

        before = [self.features.output_dim, *config.layers_before]
        self.before = nn.Sequential(*_layers(before), nn.ReLU()) if config.layers_before else None
        self.sequence = config.sequence(before[-1], hidden, horizon or 0)
        self.after = _layers([self.sequence.output_dim, *after]) if after else None
        width = after[-1] if after else self.sequence.output_dim
        check_parts(config, self.sequence, specimen, width)
        self.passed_by = width // 2 if config.split else 0
        self.aggregator = None if config.aggregator is None else config.aggregator(width - self.passed_by)
        if self.aggregator is not None:
            width = self.passed_by + self.aggregator.output_dim
        self.output = None if gives_latent else _layers([width, *config.output_layers, self.latent_dim])
        self.state_dim = self.sequence.state_dim + (0 if self.aggregator is None else self.aggregator.state_dim)
        self.learned: nn.Parameter | None = None
        if config.learn_initial_state:
            self._learn_initial_state()

    def _learn_initial_state(self) -> None:
        """Makes the constants that a task starts with a parameter, where they may be."""
        learnable = torch.ones(self.state_dim, dtype=torch.bool)
        if self.aggregator is not None:
            learnable[self.sequence.state_dim :] = self.aggregator.learnable
        self.learnable: Tensor
        # Positions: differentiating a choice by a mask would make the host wait for a device.
        self.register_buffer("learnable", learnable.nonzero()[:, 0], persistent=False)
        self.learned = nn.Parameter(self._constants(1)[0, learnable])

    @property
    def memory_layout(self) -> str:
        """What the entries of the memory mean, as far as no parameter tells: the kinds of its parts, and its width."""
        parts = " | ".join(type(part).__name__ for part in (self.sequence, self.aggregator) if part is not None)
        return f"{parts}, {self.state_dim}"

    @property
    def noise_dim(self) -> int:
        """Width of the noise that :meth:`for_policy` takes; 0 where it takes none."""
        return self.latent_dim // 2 if self.sample_latent else 0

    @property
    def policy_dim(self) -> int:
        """Width of what :meth:`for_policy` gives."""
        return self.noise_dim or self.latent_dim

    def for_policy(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        """What the policy is given of a latent (spec/models.md section 4).

        Args:
            latent: mean and log variance ``[..., 2L]``.
            noise: standard normal noise of the sample ``[..., L]``; none where the policy is given no sample.

        Returns:
            The latent itself ``[..., 2L]``, or a sample ``[..., L]``.

        Raises:
            ValueError: if the noise is missing.
        """
        if self.sample_latent:
            if noise is None:
                raise ValueError(f"latents are sampled, but there is no `{keys.LATENT_NOISE}`")
            mean, log_var = latent.chunk(2, -1)
            latent = mean + (log_var / 2).exp() * noise
        return latent.relu() if self.relu_latent else latent

    def initial_state(self, batch: int) -> Tensor:
        """The memory before any transition of a task, ``[batch, S]``."""
        if self.learned is None:
            return self._constants(batch)
        return self._constants(1).index_copy(1, self.learnable, self.learned.unsqueeze(0)).expand(batch, -1)

    def _constants(self, batch: int) -> Tensor:
        """The memory before any transition as the parts have it."""
        state = self.sequence.initial_state(batch)
        return state if self.aggregator is None else torch.cat([state, self.aggregator.initial_state(batch)], -1)

    def prior(self, batch: int) -> Tensor:
        """The latent before any transition of a task, ``[batch, 2L]`` (mean, log variance)."""
        initial = self.initial_state(1)
        with torch.autocast(initial.device.type, enabled=False):
            latent, _ = self._step(initial.new_zeros(1, self.features.output_dim), initial)
            return latent.expand(batch, -1)

    def step(self, transition: Transition, state: Tensor) -> tuple[Tensor, Tensor]:
        """Consumes one transition ``[B, ...]``; returns latent ``[B, 2L]`` and memory ``[B, S]``."""
        with torch.autocast(state.device.type, enabled=False):
            return self._step(self.features(transition), state)

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
            return self._run(self._enter(self.features(transition)), reset, state)[0]

    def _run(self, x: Tensor, reset: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the sequence model reads ``[B, T, F]`` to latents ``[B, T, 2L]`` and its outputs ``[B, T, E]``."""
        width = self.sequence.state_dim
        initial = None if self.learned is None else self.initial_state(1)
        output = self.sequence(x, reset, state[:, :width], None if initial is None else initial[:, :width])
        by, x = self._split(output)
        if self.aggregator is not None:
            x = self.aggregator(x, reset, state[:, width:], None if initial is None else initial[:, width:])
        return self._leave(by, x), output

    @torch.no_grad()
    def _memory_after(self, x: Tensor, output: Tensor, state: Tensor) -> Tensor:
        """The memory ``[B, S]`` after :meth:`_run` without resets, detached."""
        width = self.sequence.state_dim
        memory = self.sequence.final_state(x, output, state[:, :width])
        if self.aggregator is None:
            return memory
        return torch.cat([memory, self.aggregator.final_state(self._split(output)[1], state[:, width:])], -1)

    def _step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, F]`` and memory ``[B, S]`` to latent ``[B, 2L]`` and memory."""
        width = self.sequence.state_dim
        x, memory = self.sequence.step(self._enter(features), state[:, :width])
        by, x = self._split(x)
        if self.aggregator is not None:
            x, pooled = self.aggregator.step(x, state[:, width:])
            memory = torch.cat([memory, pooled], -1)
        return self._leave(by, x), memory

    def _enter(self, features: Tensor) -> Tensor:
        """What the sequence model reads ``[..., F]``."""
        return features if self.before is None else self.before(features)

    def _split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """What passes the aggregator by, and what it reads, of the sequence model's outputs ``[..., E]``."""
        if self.after is not None:
            x = self.after(x)
        return (x[..., : self.passed_by], x[..., self.passed_by :]) if self.passed_by else (None, x)

    def _leave(self, by: Tensor | None, x: Tensor) -> Tensor:
        """The latent ``[..., 2L]``."""
        x = x if by is None else torch.cat([by, x], -1)
        return x if self.output is None else self.output(x)

    def act(self, td: TensorDictBase, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Advances the memory at decision time.

        Args:
            td: root of a step ``[B]``: the last transition and ``is_init``.
            memory: memory before that transition ``[B, S]``; none where nobody has stepped yet, as the first call of a
                stream is the first step of all its tasks.

        Returns:
            The latent to act on ``[B, 2L]`` and the memory to come back with ``[B, S]``.
        """
        is_init = td[keys.IS_INIT]
        latent, memory = self.step(Transition.last(td), self.initial_state(len(is_init)) if memory is None else memory)
        if memory.is_cpu and not bool(is_init.any()):  # not worth a synchronisation elsewhere
            return latent, memory
        memory = torch.where(is_init, self.initial_state(len(memory)), memory)
        return torch.where(is_init, self.prior(len(latent)), latent), memory

    def attach_memory(self, rollout: TensorDictBase, memory: Tensor | None) -> None:
        """Writes the memory before the first transition of a rollout ``[B, T]`` to it, ``[B, S]`` or none.

        A memory that keeps every step is too wide to be stored at each of them. So the one that the learner starts from
        is cut into T pieces, one per step: it goes along with whole environments and takes no more room than it needs.
        """
        batch, steps = rollout.shape
        memory = self.initial_state(batch).detach() if memory is None else memory
        padding = -self.state_dim % steps
        rollout[keys.START_MEMORY] = nn.functional.pad(memory, (0, padding)).view(batch, steps, -1)

    def start_memory(self, rollout: TensorDictBase) -> Tensor:
        """The memory ``[B, S]`` that :meth:`attach_memory` wrote."""
        return rollout[keys.START_MEMORY].flatten(1)[:, : self.state_dim]

    def encode(self, rollout: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Re-encodes a rollout from the memory stored at its start.

        Every transition is consumed once, the last one of a task included, and then the memory starts anew: the first
        action of a task is taken from the prior, and a task's final value is known.

        Args:
            rollout: ``[B, T]`` with ``start_memory``.

        Returns:
            Latents at decision time and latents after the step, both ``[B, T, 2L]``.
        """
        is_init = rollout[keys.IS_INIT]
        reset = on_both(_resets, is_init)
        latents = self(Transition.rollout(rollout), reset, self.start_memory(rollout))
        before, after = latents[:, :-1], latents[:, 1:]
        return torch.where(is_init, self.prior(1), before), after

    def encode_trajectories(self, trajectories: TensorDictBase, bptt_steps: int | None = None) -> Tensor:
        """Encodes trajectories from the prior.

        Args:
            trajectories: of H transitions each, ``[n]``; see `hyperrl.keys`.
            bptt_steps: detach the memory after the transitions of index k, 2k, ..., where this is k, so that gradients
                span k transitions, k + 1 at the beginning (spec/models.md section 4); none lets them span all.

        Returns:
            The latents before the first transition and after each, ``[n, H+1, 2L]``. Those behind the end of a
            trajectory mean nothing.
        """
        transitions = Transition.last(trajectories)
        with torch.autocast(transitions.reward.device.type, enabled=False):
            x = self._enter(self.features(transitions))
            batch, steps = x.shape[:2]
            cuts = range(bptt_steps + 1, steps, bptt_steps) if bptt_steps else ()
            state, latents = self.initial_state(batch), [self.prior(batch).unsqueeze(1)]
            for start, stop in pairwise((0, *cuts, steps)):
                window = x[:, start:stop]
                latent, output = self._run(window, nowhere(window), state)
                latents.append(latent)
                if stop < steps:
                    state = self._memory_after(window, output, state)
            return torch.cat(latents, 1)


def _resets(is_init: Tensor) -> Tensor:
    """Where the memory starts anew before one of the T+1 transitions of a rollout, ``[B, T, 1]`` to ``[B, T+1]``."""
    is_init = is_init.squeeze(-1)
    return torch.cat([torch.zeros_like(is_init[:, :1]), is_init], 1)


def _layers(widths: Sequence[int]) -> nn.Sequential:
    """Affine layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for pair in zip(widths[1:-1], widths[2:], strict=True):
        layers += [nn.ReLU(), nn.Linear(*pair)]
    return nn.Sequential(*layers)
