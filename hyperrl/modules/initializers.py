"""Weight initialisations as in-place functions, in the manner of ``torch.nn.init`` (spec/models.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Initializer = Literal["normc", "orthogonal", "kaiming"]
HypernetInit = Literal["bias_hyperinit", "none"]
LayerRole = Literal["hidden", "actor_head", "critic_head"]
GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2)}


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
def encoder_gru_(gru: nn.GRU) -> None:
    """Initialises a GRU as the encoders are: each weight one orthogonal matrix over all gates, biases 0."""
    for name, parameter in gru.named_parameters():
        if name.startswith("weight"):
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)


def init_actor_head_(weight: Tensor, discrete: bool) -> Tensor:
    """Initialises the actor head's ``weight [out, in]``: nearly uniform logits, or unit rows for a Gaussian's mean."""
    return nn.init.orthogonal_(weight, 0.01) if discrete else normc_(weight, 1.0)


@torch.no_grad()
def init_plain_(layer: nn.Linear, role: LayerRole, initializer: Initializer, gain: float, discrete: bool) -> None:
    """Initialises an ordinary layer of actor or critic; the critic head keeps the framework's default.

    Args:
        layer: the layer.
        role: where it stands.
        initializer: initialiser of hidden layers.
        gain: its gain.
        discrete: whether actions are discrete.
    """
    if role == "critic_head":
        return
    nn.init.zeros_(layer.bias)
    if role == "actor_head":
        init_actor_head_(layer.weight, discrete)
    else:
        INITIALIZERS[initializer](layer.weight, gain)


@torch.no_grad()
def init_generated_(
    components: Tensor,
    bias_head: nn.Linear,
    role: LayerRole,
    scheme: HypernetInit,
    initializer: Initializer,
    gain: float,
    discrete: bool,
) -> None:
    """Initialises a generated layer through the heads that generate it.

    ``bias_hyperinit`` (Bias-HyperInit): the generated weights are the same sample of the base initialisation for every
    condition. ``none``: the plain initialiser on the head matrix itself, so that small conditions give small weights.

    Args:
        components: weight head ``[K+1, out, in]``, entry 0 its bias.
        bias_head: bias head, ``K -> out``.
        role: where the layer stands.
        scheme: initialisation of the hypernetwork.
        initializer: base initialiser.
        gain: gain of hidden layers.
        discrete: whether actions are discrete.
    """
    components.zero_()
    nn.init.zeros_(bias_head.bias)
    if scheme == "none":
        terms, outs, ins = components.shape
        head = INITIALIZERS[initializer](components.new_empty(outs * ins, terms - 1), gain)
        components[1:] = head.T.view(terms - 1, outs, ins)
        INITIALIZERS[initializer](bias_head.weight, gain)
        return
    nn.init.zeros_(bias_head.weight)
    base = torch.empty_like(components[0], memory_format=torch.contiguous_format)
    components[0] = _base_sample(base, role, initializer, gain, discrete)
    if role == "critic_head":
        # The published initialisation (quirk Q16): an initial value offset of up to 1.
        bias_head.bias.uniform_(-1, 1)


def _base_sample(weight: Tensor, role: LayerRole, initializer: Initializer, gain: float, discrete: bool) -> Tensor:
    """Draws what a Bias-HyperInit layer starts from; Kaiming ignores all gains, as published (quirks Q17, Q18)."""
    if initializer == "kaiming" or role == "critic_head":
        return kaiming_(weight, math.sqrt(2))
    if role == "actor_head":
        return init_actor_head_(weight, discrete)
    return INITIALIZERS[initializer](weight, gain)
