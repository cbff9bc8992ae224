"""Decoders: what a latent tells of steps, of all states and of the task (spec/models.md section 8).

Trajectories come first, then latents, then steps: ``[n, E, D, ...]`` are ``D`` steps decoded from each of ``E`` latents
of each of ``n`` trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperrl.modules.encoder import Transition
from hyperrl.modules.encoder_config import EncoderConfig

# Outputs above which squared errors are computed without the prediction.
WIDE = 4096


class StepDecoder(nn.Module):
    """Predicts something of steps from a latent and the embedded parts of the step that are given.

    The first layer is split, W [z; x] = W_z z + W_x x, so that nothing is repeated for every pair of latent and step
    in front of it, and each step is embedded once, however often it is drawn.

    Args:
        latent_dim: width of what is decoded ``Z``.
        obs_dim: width of observations.
        action_dim: width of actions (1 for discrete ones).
        embedding: sizes of the embeddings; an action embedding of 0 leaves actions out.
        inputs: names of the parts of a :class:`~hyperrl.modules.encoder.Transition` that are given, in order.
        layers: hidden widths.
        output_dim: width of the prediction.
    """

    def __init__(
        self,
        latent_dim: int,
        obs_dim: int,
        action_dim: int,
        embedding: EncoderConfig,
        inputs: Sequence[str],
        layers: Sequence[int],
        output_dim: int,
    ) -> None:
        super().__init__()
        state, action = embedding.state_embedding_dim, embedding.action_embedding_dim
        self.inputs = tuple(name for name in inputs if name != "action" or action)
        self.state = nn.Linear(obs_dim, state)
        if "action" in self.inputs:
            self.action = nn.Linear(action_dim, action)
        self._widths = latent_dim, sum(action if name == "action" else state for name in self.inputs)
        self.first, *others = _affine([sum(self._widths), *layers, output_dim])
        self.rest = nn.Sequential(*(module for layer in others for module in (nn.ReLU(), layer)))

    def forward(self, latent: Tensor, steps: Transition, index: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            latent: ``[n, E, Z]``.
            steps: ``[n, T, ...]``.
            index: which steps are decoded from each latent, ``[n, E, D]``; none for all of them.

        Returns:
            Predictions ``[n, E, D, output_dim]``, ``D`` being ``T`` without an index.
        """
        of_latent, of_step = self.first.weight.split(self._widths, 1)
        step = functional.linear(self._embed(steps), of_step)
        step = step.unsqueeze(1) if index is None else pick(step, index)
        return self.rest(functional.linear(latent, of_latent, self.first.bias).unsqueeze(2) + step)

    def _embed(self, steps: Transition) -> Tensor:
        """What is given of the steps, embedded, ``[n, T, .]``."""
        embedded = [(self.action if name == "action" else self.state)(getattr(steps, name)) for name in self.inputs]
        return torch.cat(embedded, -1).relu()


class RewardDecoder(StepDecoder):
    """Predicts the reward of a step from (z, s'[, a][, s]).

    Args:
        latent_dim: width of what is decoded ``Z``.
        obs_dim: width of observations.
        action_dim: width of actions (1 for discrete ones).
        embedding: sizes of the embeddings.
        layers: hidden widths.
        uses_action: whether the action is given.
        uses_prev_state: whether the previous state is given; it shares the embedding of s'.
        output_dim: width of the prediction.
    """

    def __init__(
        self,
        latent_dim: int,
        obs_dim: int,
        action_dim: int,
        embedding: EncoderConfig,
        layers: Sequence[int],
        *,
        uses_action: bool = True,
        uses_prev_state: bool = True,
        output_dim: int = 1,
    ) -> None:
        given = {"observation": True, "action": uses_action, "prev_observation": uses_prev_state}
        inputs = [name for name, used in given.items() if used]
        super().__init__(latent_dim, obs_dim, action_dim, embedding, inputs, layers, output_dim)


class StateDecoder(StepDecoder):
    """Predicts the next state of a step from (z, s, a).

    Args:
        latent_dim: width of what is decoded ``Z``.
        obs_dim: width of observations ``O``.
        action_dim: width of actions (1 for discrete ones).
        embedding: sizes of the embeddings.
        layers: hidden widths.
        gaussian: predict mean and log variance, ``2 O`` values, instead of s' itself.
    """

    def __init__(
        self,
        latent_dim: int,
        obs_dim: int,
        action_dim: int,
        embedding: EncoderConfig,
        layers: Sequence[int],
        *,
        gaussian: bool = False,
    ) -> None:
        output_dim = obs_dim * (2 if gaussian else 1)
        super().__init__(latent_dim, obs_dim, action_dim, embedding, ("prev_observation", "action"), layers, output_dim)


class LatentDecoder(nn.Module):
    """Predicts from the latent alone: the task, or the rewards of all states.

    Args:
        latent_dim: width of what is decoded ``Z``.
        layers: hidden widths.
        output_dim: width of the prediction ``P``.
    """

    def __init__(self, latent_dim: int, layers: Sequence[int], output_dim: int) -> None:
        super().__init__()
        *others, self.output = _affine([latent_dim, *layers, output_dim])
        self.hidden = nn.Sequential(*(module for layer in others for module in (layer, nn.ReLU())))

    def forward(self, latent: Tensor) -> Tensor:
        """Returns predictions ``[..., P]`` for ``latent [..., Z]``."""
        return self.output(self.hidden(latent))


class TaskDecoder(LatentDecoder):
    """Predicts the task: its description, its id (as logits), its embedding, or the weights generated from it.

    Args:
        latent_dim: width of what is decoded ``Z``.
        layers: hidden widths.
        output_dim: width of the prediction ``P``.
    """

    def squared_error(self, latent: Tensor, target: Tensor) -> Tensor:
        """Mean over outputs of the squared difference from the target.

        Args:
            latent: ``[n, E, Z]``.
            target: ``[n, P]``.

        Returns:
            Errors ``[n, E]``.
        """
        hidden = self.hidden(latent)
        if self.output.out_features > WIDE:
            return affine_squared_error(hidden, self.output.weight, self.output.bias, target)
        return (self.output(hidden) - target.unsqueeze(1)).square().mean(-1)


def affine_squared_error(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Mean over outputs of (W h + b - g)^2, without ever computing W h + b.

    With h~ = (h, 1) and A = [W | b] the sum is h~' A'A h~ - 2 h~' A'g + |g|^2. For ``E`` latents of each of ``n``
    trajectories this takes ``P H (H + n)`` instead of ``P H n E`` products and no array of size ``n E P`` at all: for
    the 198,150 weights of an actor and critic, 61 latents and 25 trajectories that array would be 1.2 GB, and its
    gradient as much. The terms cancel where the prediction is good, hence the double precision.

    Args:
        hidden: h ``[n, E, H]``.
        weight: W ``[P, H]``.
        bias: b ``[P]``.
        target: g ``[n, P]``.

    Returns:
        Errors ``[n, E]``, in the type of ``hidden``.
    """
    affine, exact = torch.cat([weight, bias.unsqueeze(1)], 1).double(), target.double()
    extended = functional.pad(hidden, (0, 1), value=1.0).double()
    gram, cross = affine.T @ affine, exact @ affine
    # h~'(A'A h~ - 2 A'g)
    products = (extended * (extended @ gram - 2 * cross.unsqueeze(1))).sum(-1)
    return ((products + exact.square().sum(-1, keepdim=True)) / len(weight)).to(hidden.dtype)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """The entries at ``index [n, ...]`` of the second dimension of ``values [n, T, *]``: ``[n, ..., *]``."""
    first = torch.arange(0, values.shape[0] * values.shape[1], values.shape[1], device=index.device)
    rows = index + first.view(-1, *(1,) * (index.dim() - 1))
    # Whole rows at once: the gradient is one index_add.
    return values.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, *values.shape[2:])


def _affine(widths: Sequence[int]) -> list[nn.Linear]:
    return [nn.Linear(*pair) for pair in pairwise(widths)]
