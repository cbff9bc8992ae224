"""Weight initialisations as in-place functions, in the manner of ``torch.nn.init`` (spec/models.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Initializer = Literal["normc", "orthogonal", "kaiming"]
HypernetInit = Literal["bias_hyperinit", "weight_hyperinit", "both_hyperinit", "hfi", "none"]
LayerRole = Literal["hidden", "actor_head", "critic_head"]
GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.01**2))}


@torch.no_grad()
def normc_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fills ``weight [out, in]`` with N(0, 1) and scales every row to the L2 norm ``gain``."""
    weight.normal_()
    return weight.mul_(gain / weight.norm(dim=1, keepdim=True))


@torch.no_grad()
def kaiming_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fills ``weight [out, in]`` uniformly within ``sqrt(3) * gain / sqrt(in)``."""
    bound = math.sqrt(3 / weight.shape[1]) * gain
    return weight.uniform_(-bound, bound)


INITIALIZERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "normc": normc_,
    "orthogonal": nn.init.orthogonal_,
    "kaiming": kaiming_,
}


@torch.no_grad()
def encoder_rnn_(rnn: nn.RNNBase) -> None:
    """Initialises a GRU or LSTM as the encoders are: each weight one orthogonal matrix over all gates, biases 0."""
    for name, parameter in rnn.named_parameters():
        if name.startswith("weight"):
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)


@dataclass(frozen=True)
class LayerInit:
    """How the layers of actor and critic start, whatever makes their weights.

    Attributes:
        initializer: initialiser of hidden layers.
        gain: its gain, from the activation.
        discrete: whether actions are discrete.
        adjust_gain: whether Kaiming weights inside a HyperInit use the gain of their layer. The published ones ignore
            it (quirks Q17, Q18), so that an actor head drawn by Kaiming starts with large logits.
    """

    initializer: Initializer
    gain: float
    discrete: bool
    adjust_gain: bool = False

    def hidden_(self, weight: Tensor) -> Tensor:
        """Initialises a hidden layer's ``weight [out, in]``."""
        return INITIALIZERS[self.initializer](weight, self.gain)

    def actor_head_(self, weight: Tensor) -> Tensor:
        """Initialises the actor head: nearly uniform logits, or unit rows for a Gaussian's mean."""
        gain = self.role_gain("actor_head")
        return nn.init.orthogonal_(weight, gain) if self.discrete else normc_(weight, gain)

    def role_gain(self, role: LayerRole) -> float:
        """The gain of a layer by its role."""
        return {"hidden": self.gain, "critic_head": 1.0, "actor_head": 0.01 if self.discrete else 1.0}[role]

    def hyperinit_(self, weight: Tensor, role: LayerRole) -> Tensor:
        """Draws what a layer generated under a HyperInit starts from."""
        if self.initializer == "kaiming" or role == "critic_head":
            return kaiming_(weight, self.role_gain(role) if self.adjust_gain else math.sqrt(2))
        return self.actor_head_(weight) if role == "actor_head" else self.hidden_(weight)


@torch.no_grad()
def init_plain_(weight: Tensor, bias: Tensor | None, role: LayerRole, init: LayerInit) -> None:
    """Initialises an ordinary layer of actor or critic; the critic head keeps the framework's default.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``, if there is one.
        role: where the layer stands.
        init: base initialisation.
    """
    if role == "critic_head":
        return
    if bias is not None:
        nn.init.zeros_(bias)
    if role == "actor_head":
        init.actor_head_(weight)
    else:
        init.hidden_(weight)


@torch.no_grad()
def init_generated_(
    components: Tensor, bias_head: nn.Linear, role: LayerRole, scheme: HypernetInit, init: LayerInit
) -> None:
    """Initialises a generated layer through the heads that generate it.

    ``bias_hyperinit`` (Bias-HyperInit): the generated weights are the same sample of the base initialisation for every
    condition. ``weight_hyperinit``: every component of the condition adds such a sample of its own, so that one-hot
    conditions start from the base initialisation. ``both_hyperinit``: half the sum of both. ``hfi`` (Chang et al.
    2020): variances such that outputs keep theirs. ``none``: the plain initialiser on the head matrix itself, so that
    small conditions give small weights, those of the actor head included.

    Args:
        components: weight head ``[terms, out, in]``: its bias, if ``bias_head`` has one, then its columns.
        bias_head: bias head, ``K -> out``.
        role: where the layer stands.
        scheme: initialisation of the hypernetwork.
        init: base initialisation.
    """
    components.zero_()
    columns = components if bias_head.bias is None else components[1:]
    if scheme == "none":
        _plain_columns_(columns, init)
    elif scheme == "hfi":
        _hfi_(columns, init.role_gain(role))
    else:
        share = 0.5 if scheme == "both_hyperinit" else 1.0
        sampled = {"bias_hyperinit": components[:1], "weight_hyperinit": columns, "both_hyperinit": components}[scheme]
        for matrix in sampled:
            matrix.copy_(share * init.hyperinit_(matrix.new_empty(matrix.shape), role))
    init_bias_head_(bias_head, role, scheme, init)


@torch.no_grad()
def init_scale_head_(head: nn.Linear, scheme: HypernetInit, init: LayerInit) -> None:
    """Initialises a scale head ``K -> out`` of FiLM.

    ``none`` starts with scales around 0; ``bias_hyperinit`` with 1, ``weight_hyperinit`` with the sum of the
    condition's components, ``both_hyperinit`` with half the sum of both.
    """
    if scheme == "none":
        init.hidden_(head.weight)
        nn.init.zeros_(head.bias)
        return
    constants = {"bias_hyperinit": (0.0, 1.0), "weight_hyperinit": (1.0, 0.0), "both_hyperinit": (0.5, 0.5)}
    weight, bias = constants[scheme]
    nn.init.constant_(head.weight, weight)
    nn.init.constant_(head.bias, bias)


@torch.no_grad()
def init_bias_head_(head: nn.Linear, role: LayerRole, scheme: HypernetInit, init: LayerInit) -> None:
    """Initialises a bias head ``K -> out``; under a HyperInit generated biases start at 0, but for the critic's."""
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    if scheme == "none":
        init.hidden_(head.weight)
    elif scheme == "hfi":
        kaiming_(head.weight, init.role_gain(role) / math.sqrt(2))
    else:
        nn.init.zeros_(head.weight)
        if role == "critic_head" and head.bias is not None:
            # The published initialisation (quirk Q16): an initial value offset of up to 1.
            head.bias.uniform_(-1, 1)


def _plain_columns_(columns: Tensor, init: LayerInit) -> None:
    """Draws the columns ``[K, out, in]`` of a head as one matrix ``[out * in, K]``."""
    conditions, outs, ins = columns.shape
    head = init.hidden_(columns.new_empty(outs * ins, conditions))
    columns.copy_(head.T.view(conditions, outs, ins))


def _hfi_(columns: Tensor, gain: float) -> None:
    """Draws the columns ``[K, out, in]`` with variance ``gain^2 / (2 K in)``: bias and weights each give half."""
    conditions, _, ins = columns.shape
    bound = gain * math.sqrt(3 / (2 * conditions * ins))
    columns.uniform_(-bound, bound)
