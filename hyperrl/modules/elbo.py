"""The loss of task inference: reconstructions, KL and task, of latents of whole trajectories (spec/training.md 7.3)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError
from hyperrl.modules.decoders import LatentDecoder, RewardDecoder, StateDecoder, TaskDecoder, pick
from hyperrl.modules.encoder import Transition
from hyperrl.modules.encoder_config import EncoderConfig
from hyperrl.modules.inference_config import InferenceConfig

LOG_2PI = math.log(2 * math.pi)


class Indices(NamedTuple):
    """Which latents and steps of ``n`` trajectories are decoded; none for all.

    Attributes:
        latents: numbers of latents, 0 being the prior, ``[n, E]``.
        steps: numbers of the steps decoded from each of the ``E`` latents, ``[n, E, D]``.
    """

    latents: Tensor | None = None
    steps: Tensor | None = None


class ElboTerms(NamedTuple):
    """The loss and its parts, scalars; what is not part of the loss is 0.

    Attributes:
        total: their weighted sum.
        reward: reconstruction of rewards, unweighted.
        state: reconstruction of next states, unweighted.
        task: prediction of the task, unweighted.
        kl: KL divergences, unweighted.
    """

    total: Tensor
    reward: Tensor
    state: Tensor
    task: Tensor
    kl: Tensor


class Elbo(nn.Module):
    """Decoders, and what they and the latents cost.

    Every latent of a trajectory, the prior included, is a term: it decodes the whole trajectory, or only what came
    before it, and pays its KL. There are T+1 latents of each of n trajectories of T transitions. Everything here runs
    in fp32.

    Args:
        info: sizes of the environment.
        encoder: the encoder's configuration: sizes of latents and embeddings.
        config: what is decoded, and how the terms are reduced.
        target_dim: width of the task's embedding or of the generated weights, where they are the target.

    Raises:
        ConfigError: the environment lacks what has to be predicted.
    """

    def __init__(self, info: EnvInfo, encoder: EncoderConfig, config: InferenceConfig, target_dim: int = 0) -> None:
        super().__init__()
        self.config = config
        latent_dim = encoder.latent_dim * (1 if config.stochastic else 2)
        self.reward = _reward_decoder(latent_dim, info, encoder, config)
        self.state: StateDecoder | None = None
        if config.decodes and config.state != "none":
            gaussian = config.state == "gaussian"
            sizes = latent_dim, info.obs_dim, info.action_dim
            self.state = StateDecoder(*sizes, encoder, config.state_layers, gaussian=gaussian)
        self.task: TaskDecoder | None = None
        if config.decodes_task:
            self.task = TaskDecoder(latent_dim, config.task_layers, _task_width(info, config, target_dim))

    def forward(
        self,
        latents: Tensor,
        trajectories: TensorDictBase,
        *,
        noise: Tensor | None = None,
        indices: Indices | None = None,
        target: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """The loss of a batch of trajectories; what lies behind their lengths has no influence.

        Args:
            latents: mean and log variance after 0..T transitions, ``[n, T+1, 2L]``.
            trajectories: batch size ``[n]``, see :mod:`hyperrl.keys`; lengths are at least 1.
            noise: standard normal noise of the samples ``[n, T+1, L]``; drawn if there is none.
            indices: what is decoded, used as it is; drawn as the configuration says if there is none.
            target: the task's embedding or the generated weights ``[n, target_dim]``, where they are the target; it
                learns unless it is detached.
            generator: source of what is drawn; needed if anything is.

        Returns:
            The loss and its parts.
        """
        config = self.config
        with torch.autocast(latents.device.type, enabled=False):
            batch = _Batch.of(latents, trajectories)
            indices = self.draw(batch.length, batch.within.shape[1], generator) if indices is None else indices
            z = self._sample(batch.latents, noise, generator)
            z = z if indices.latents is None else pick(z, indices.latents)
            weights = _weights(batch, indices, config.only_past)
            reward = self._reconstruction(self._reward_error(z, batch, indices.steps), weights)
            state = self._reconstruction(self._state_error(z, batch, indices.steps), weights)
            task = self._over_latents(self._task_error(z, trajectories, target), weights.tasks)
            kl = self._over_latents(*self._kl(batch, indices.latents))
        weighted = (config.reward_coeff * reward, config.state_coeff * state, config.task_coeff * task)
        return ElboTerms(sum(weighted, config.kl_coeff * kl), reward, state, task, kl)

    def draw(self, length: Tensor, steps: int, generator: torch.Generator | None = None) -> Indices:
        """Draws what is decoded, with repetition and within each trajectory's own length (fix of Q8).

        Args:
            length: lengths of trajectories ``[n]``.
            steps: room for steps ``T``.
            generator: source of what is drawn; needed if anything is.

        Returns:
            The drawn indices; none where nothing is sub-sampled.
        """
        config = self.config
        latents = decoded = None
        if config.subsample_elbos is not None:
            latents = _uniform((len(length), config.subsample_elbos), length + 1, generator)
        number = int(length.max()) if config.resample_decodes else config.subsample_decodes
        if number is not None:
            decoded = _uniform((len(length), config.subsample_elbos or steps + 1, number), length, generator)
        return Indices(latents, decoded)

    @torch.no_grad()
    def profile(
        self, latents: Tensor, trajectories: TensorDictBase, *, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """How good inference is at every step of the trajectories, without noise; NaN behind their lengths.

        Args:
            latents: mean and log variance after 0..T transitions, ``[n, T+1, 2L]``.
            trajectories: batch size ``[n]``.
            target: as in :meth:`forward`.

        Returns:
            ``kl [n, T+1]``, if latents are stochastic, and of what is decoded ``reward_error [n, T]`` and
            ``state_error [n, T]``, of step t as predicted from latent t, just before it, ``reward_error_of_prior``, of
            the same rewards predicted from the prior, and ``task_error [n, T+1]``.
        """
        with torch.autocast(latents.device.type, enabled=False):
            batch = _Batch.of(latents, trajectories)
            mean, logvar = batch.latents.chunk(2, -1)
            z = mean if self.config.stochastic else batch.latents
            own = torch.arange(batch.within.shape[1], device=z.device).view(1, -1, 1).expand(len(z), -1, -1)
            kl = kl_divergence(mean, logvar, self.config.kl_prior) if self.config.stochastic else None
            of_latents = {"kl": kl, "task_error": self._task_error(z, trajectories, target)}
            reward, state = (error(z[:, :-1], batch, own) for error in (self._reward_error, self._state_error))
            unknowing = self._reward_error(z[:, :1], batch, None)
        found = {name: (values, batch.counted) for name, values in of_latents.items() if values is not None}
        of_steps = {"reward_error": reward, "reward_error_of_prior": unknowing, "state_error": state}
        for name, errors in of_steps.items():
            if errors is not None:
                found[name] = errors.flatten(1), batch.within
        return {name: values.masked_fill(~valid, math.nan) for name, (values, valid) in found.items()}

    def _sample(self, latents: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """What decoders are given of latents ``[n, T+1, 2L]``: samples ``[n, T+1, L]``, or all of them."""
        if not self.config.stochastic:
            return latents
        mean, logvar = latents.chunk(2, -1)
        if noise is None:
            source = _required(generator)
            noise = torch.randn(mean.shape, generator=source, device=source.device).to(mean)
        return mean + (logvar / 2).exp() * noise

    def _reward_error(self, z: Tensor, batch: _Batch, index: Tensor | None) -> Tensor | None:
        """Errors ``[n, E, D]`` of rewards predicted from ``z [n, E, Z]``; `index` as in :class:`Indices`."""
        if self.reward is None:
            return None
        kind = self.config.reward
        if isinstance(self.reward, RewardDecoder):
            prediction = self.reward(z, batch.steps, index).squeeze(-1)
        else:
            prediction = self.reward(z)
            prediction = prediction.log_softmax(-1) if kind == "categorical" else prediction
            states = _steps_of(batch.state_id, index)
            prediction = prediction.gather(-1, states.expand(-1, z.shape[1], -1))
        reward = _steps_of(batch.steps.reward.squeeze(-1), index)
        if kind == "deterministic":
            return (prediction - reward).square()
        return binary_error(prediction, reward == self.config.reward_target, log_probability=kind == "categorical")

    def _state_error(self, z: Tensor, batch: _Batch, index: Tensor | None) -> Tensor | None:
        """Errors ``[n, E, D]`` of next states predicted from ``z [n, E, Z]``; `index` as in :class:`Indices`."""
        if self.state is None:
            return None
        prediction, state = self.state(z, batch.steps, index), _steps_of(batch.steps.observation, index)
        return gaussian_error(prediction, state) if self.config.state == "gaussian" else _squared(prediction, state)

    def _task_error(self, z: Tensor, trajectories: TensorDictBase, target: Tensor | None) -> Tensor | None:
        """Errors ``[n, E]`` of tasks predicted from ``z [n, E, Z]``."""
        if self.task is None:
            return None
        if self.config.task == "id":
            ids = trajectories[keys.TASK_ID].unsqueeze(-1).expand(z.shape[:2])
            return functional.cross_entropy(self.task(z).flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        known = trajectories[keys.TASK] if self.config.task == "description" else target
        if known is None:
            raise ValueError(f"model.inference.task is {self.config.task}; expected target to be given")
        return self.task.squared_error(z, known.to(z.dtype))

    def _reconstruction(self, errors: Tensor | None, weights: _Weights) -> Tensor:
        """Reduces errors ``[n, E, D]``, if anything is reconstructed."""
        if errors is None:
            return weights.latents.new_zeros(())
        of_latents = _reduce(errors, weights.steps, self.config.average_decodes)
        return _reduce(of_latents, weights.latents, self.config.average_elbos).mean()

    def _over_latents(self, values: Tensor | None, weights: Tensor) -> Tensor:
        """Reduces KL or task errors ``[n, E]``, if there are any: published as sums, unless the past is decoded."""
        if values is None:
            return weights.new_zeros(())
        of_trajectories = _reduce(values, weights, self.config.average_elbos)
        summed = self.config.reduction == "published" and not self.config.only_past
        return of_trajectories.sum() if summed else of_trajectories.mean()

    def _kl(self, batch: _Batch, index: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """KL divergences ``[n, T+1]``, if latents are stochastic, and how often each counts.

        The published loss adds the KL of every drawn row, whichever trajectory it was drawn for, over all of them (Q7);
        that are ``E n n`` numbers, of which only ``T + 1`` rows differ.
        """
        counted = batch.counted.to(batch.latents.dtype)
        if not self.config.stochastic:
            return None, counted
        mean, logvar = batch.latents.chunk(2, -1)
        kl = kl_divergence(mean, logvar, self.config.kl_prior)
        if index is None:
            return kl, counted
        drawn = torch.zeros_like(kl).scatter_add(1, index, torch.ones_like(index, dtype=kl.dtype))
        return kl, drawn.sum(0) * counted if self.config.reduction == "published" else drawn


def kl_divergence(mean: Tensor, logvar: Tensor, prior: Literal["previous", "standard"]) -> Tensor:
    """KL divergence of every latent of a trajectory.

    Args:
        mean: ``[n, T+1, L]``.
        logvar: log variances ``[n, T+1, L]``.
        prior: from what: the latent before (not detached), with N(0, I) in front of the first, or N(0, I) for all.

    Returns:
        Divergences ``[n, T+1]``, added over dimensions.
    """
    if prior == "standard":
        return (mean.square() + logvar.exp() - logvar - 1).sum(-1) / 2
    before, before_logvar = (functional.pad(part, (0, 0, 1, 0))[:, :-1] for part in (mean, logvar))
    scaled = (logvar - before_logvar).exp() + (mean - before).square() * (-before_logvar).exp()
    return (before_logvar - logvar - 1 + scaled).sum(-1) / 2


def gaussian_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood, averaged over dimensions.

    Args:
        prediction: mean and log variance ``[..., 2 O]``.
        target: ``[..., O]``.

    Returns:
        Errors ``[...]``.
    """
    mean, logvar = prediction.chunk(2, -1)
    return (logvar + (target - mean).square() * (-logvar).exp() + LOG_2PI).mean(-1) / 2


def binary_error(prediction: Tensor, target: Tensor, *, log_probability: bool = False) -> Tensor:
    """Binary cross-entropy.

    Args:
        prediction: logits ``[...]``, or log-probabilities.
        target: what happened, bool, broadcastable to ``[...]``.
        log_probability: whether predictions are log-probabilities.

    Returns:
        Errors ``[...]``.
    """
    if not log_probability:
        return functional.softplus(prediction) - prediction * target
    # Of a probability that is rounded to 1 the complement would be 0.
    complement = (-prediction.clamp(max=-torch.finfo(prediction.dtype).eps).expm1()).log()
    return -torch.where(target, prediction, complement)


class _Batch(NamedTuple):
    """What is decoded, with zeros behind the trajectories' lengths.

    Attributes:
        latents: ``[n, T+1, 2L]``.
        steps: ``[n, T, ...]``.
        state_id: numbers of the states s' ``[n, T]``, zeros where there are none.
        length: ``[n]``.
        counted: which latents exist ``[n, T+1]``.
        within: which steps exist ``[n, T]``.
    """

    latents: Tensor
    steps: Transition
    state_id: Tensor
    length: Tensor
    counted: Tensor
    within: Tensor

    @classmethod
    def of(cls, latents: Tensor, trajectories: TensorDictBase) -> _Batch:
        """Takes a batch apart; zeros are selected, not multiplied, so that not even NaN gets through."""
        length = trajectories[keys.LENGTH]
        counted = torch.arange(latents.shape[1], device=length.device) <= length.unsqueeze(-1)
        within = counted[:, 1:]
        steps = Transition(*(part.where(within.unsqueeze(-1), 0) for part in Transition.last(trajectories)))
        state_id = trajectories.get(keys.STATE_ID, None)
        state_id = torch.zeros_like(within, dtype=torch.int64) if state_id is None else state_id.where(within, 0)
        return cls(latents.where(counted.unsqueeze(-1), 0), steps, state_id, length, counted, within)


class _Weights(NamedTuple):
    """How often an error counts.

    Attributes:
        latents: ``[n, E]``.
        steps: ``[n, E or 1, D]``.
        tasks: ``[n, E]``.
    """

    latents: Tensor
    steps: Tensor
    tasks: Tensor


def _weights(batch: _Batch, indices: Indices, only_past: bool) -> _Weights:
    """What exists counts once, and what was drawn; with `only_past`, a latent's steps do only before it."""
    latents = batch.counted if indices.latents is None else torch.ones_like(indices.latents, dtype=torch.bool)
    steps = batch.within.unsqueeze(1) if indices.steps is None else torch.ones_like(indices.steps, dtype=torch.bool)
    tasks = latents
    if only_past:
        numbers = torch.arange(batch.counted.shape[1], device=latents.device)
        of_latents = numbers if indices.latents is None else indices.latents
        of_steps = numbers[:-1] if indices.steps is None else indices.steps
        steps, tasks = steps & (of_steps < of_latents.unsqueeze(-1)), tasks & (of_latents > 0)
    return _Weights(*(weight.to(batch.latents.dtype) for weight in (latents, steps, tasks)))


def _reduce(values: Tensor, weights: Tensor, average: bool) -> Tensor:
    """The weighted sum or average over the last dimension."""
    total = (values * weights).sum(-1)
    return total / weights.sum(-1) if average else total


def _steps_of(values: Tensor, index: Tensor | None) -> Tensor:
    """Of ``values [n, T, *]`` those at ``index [n, E, D]``, or all of them, ``[n, 1, T, *]``."""
    return values.unsqueeze(1) if index is None else pick(values, index)


def _squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean(-1)


def _uniform(shape: tuple[int, ...], number: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws from ``0 .. number - 1``, ``number [n]`` being another one for each of the first dimension."""
    source = _required(generator)
    number = number.view(-1, *(1,) * (len(shape) - 1))
    drawn = torch.rand(shape, generator=source, device=source.device).to(number.device) * number
    return drawn.long().minimum(number - 1)  # as a product may be rounded up


def _required(generator: torch.Generator | None) -> torch.Generator:
    """The caller's source of randomness; there is no global one."""
    if generator is None:
        raise ValueError("generator is None; expected one, as noise or indices have to be drawn")
    return generator


def _reward_decoder(
    latent_dim: int, info: EnvInfo, encoder: EncoderConfig, config: InferenceConfig
) -> RewardDecoder | LatentDecoder | None:
    """The decoder of rewards, if they are decoded."""
    if not config.decodes or config.reward == "none":
        return None
    if not config.reward_per_state:
        uses = {"uses_action": config.reward_uses_action, "uses_prev_state": config.reward_uses_prev_state}
        return RewardDecoder(latent_dim, info.obs_dim, info.action_dim, encoder, config.reward_layers, **uses)
    if not info.num_states:
        raise ConfigError("model.inference.reward_per_state is true; expected false, as the states have no ids")
    return LatentDecoder(latent_dim, config.reward_layers, info.num_states)


def _task_width(info: EnvInfo, config: InferenceConfig, target_dim: int) -> int:
    """The width of what is predicted of the task."""
    width = {"id": info.num_tasks, "description": info.task_dim}.get(config.task, target_dim)
    if not width:
        raise ConfigError(
            f"model.inference.task is {config.task}; expected another target, as this environment or policy has none"
        )
    return width
