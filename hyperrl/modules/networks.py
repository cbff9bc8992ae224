"""Actor and critic: hidden layers and a head, each ordinary, generated, modulated or one per task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hyperrl.modules.embedding import ACTIVATIONS
from hyperrl.modules.film import FilmLinear
from hyperrl.modules.hypernet import Condition, GeneratedLinear, Input, PlainLinear
from hyperrl.modules.initializers import (
    LayerInit,
    LayerRole,
    init_bias_head_,
    init_generated_,
    init_plain_,
    init_scale_head_,
)
from hyperrl.modules.per_task import PerTaskLinear
from hyperrl.modules.policy_config import PolicyConfig


@dataclass(frozen=True)
class LayerFactory:
    """Builds and initialises the layers of actor and critic as the configuration says.

    Attributes:
        config: the policy's configuration.
        init: initialisation of ordinary layers, and base of the generated ones.
        condition_dim: width of what generates; 0 where nothing is generated.
        num_tasks: number of tasks, where each has layers of its own.
    """

    config: PolicyConfig
    init: LayerInit
    condition_dim: int = 0
    num_tasks: int = 0

    def make(self, ins: int, outs: int, role: LayerRole, index: int) -> nn.Module:
        """The layer ``index`` of a network, the head being the last, from ``[N, ins]`` to ``[N, outs]``."""
        flags = self.config.generated_layers
        if self.config.conditioning == "per_task":
            return self._per_task(ins, outs, role)
        if not self.config.generates or (flags is not None and not flags[index]):
            plain = PlainLinear(ins, outs)
            init_plain_(plain.weight, plain.bias, role, self.init)
            return plain
        return (self._film if self.config.conditioning == "film" else self._generated)(ins, outs, role)

    def _per_task(self, ins: int, outs: int, role: LayerRole) -> PerTaskLinear:
        layer = PerTaskLinear(ins, outs, self.num_tasks)
        for weight, bias in zip(layer.weight.detach(), layer.bias.detach(), strict=True):
            init_plain_(weight, bias, role, self.init)
        return layer

    def _film(self, ins: int, outs: int, role: LayerRole) -> FilmLinear:
        layer = FilmLinear(ins, outs, self.condition_dim)
        init_plain_(layer.weight, None, role, self.init)
        init_scale_head_(layer.scale_head, self.config.hypernet_init, self.init)
        init_bias_head_(layer.bias_head, role, self.config.hypernet_init, self.init)
        return layer

    def _generated(self, ins: int, outs: int, role: LayerRole) -> GeneratedLinear:
        layer = GeneratedLinear(ins, outs, self.condition_dim, self.config.hypernet_head_bias)
        init_generated_(layer.components(), layer.bias_head, role, self.config.hypernet_init, self.init)
        return layer


class Network(nn.Module):
    """Hidden layers and head of the actor or the critic.

    Args:
        input_dim: width of the base input.
        output_dim: width of the head.
        head: role of the head, which decides its initialisation.
        factory: builds the layers.
    """

    def __init__(self, input_dim: int, output_dim: int, head: LayerRole, factory: LayerFactory) -> None:
        super().__init__()
        config = factory.config
        self.activation = ACTIVATIONS[config.activation]
        roles: list[LayerRole] = [*("hidden" for _ in config.layers), head]  # type: ignore[list-item]
        shapes = pairwise([input_dim, *config.layers, output_dim])
        self.layers = nn.ModuleList(
            factory.make(ins, outs, role, index)
            for index, ((ins, outs), role) in enumerate(zip(shapes, roles, strict=True))
        )

    def forward(self, inputs: Input) -> Tensor:
        """Returns the head's output ``[N, output_dim]`` in fp32.

        The head is the last few thousand of millions of products; under bf16 it alone decides how well the
        log-probabilities of acting and learning agree, so it leaves autocast.
        """
        for layer in self.layers[:-1]:
            inputs = inputs.next(self.activation(layer(inputs)))
        with torch.autocast(inputs.x.device.type, enabled=False):
            return self.layers[-1](inputs.float())

    def materialise(self, condition: Condition) -> dict[str, Tensor]:
        """What ``condition [N, K]`` generates, by layer (``0``, ..., ``head``) and kind, in order; for inspection."""
        found = {}
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, GeneratedLinear | FilmLinear):
                continue
            head = index == len(self.layers) - 1
            parts = list(zip(layer.generates, layer.materialise(condition.embedding), strict=True))
            if isinstance(layer, FilmLinear) and not head:
                parts.reverse()  # the published order, see `Policy.generated_parameters`
            for kind, value in parts:
                found[f"{'head' if head else index}/{kind}"] = condition.bias(value) if kind == "bias" else value
        return found

    def heads(self) -> Iterator[nn.Parameter]:
        """The parameters of the hypernetwork's heads."""
        for layer in self.layers:
            if isinstance(layer, GeneratedLinear):
                yield from layer.parameters()
            elif isinstance(layer, FilmLinear):
                yield from layer.scale_head.parameters()
                yield from layer.bias_head.parameters()


class ConditionNetwork(nn.Module):
    """The hypernetwork's own hidden layers, shared by actor and critic: embedded input to condition.

    Args:
        input_dim: width of the embedded input.
        config: the policy's configuration.
        init: initialisation of the layers.
    """

    def __init__(self, input_dim: int, config: PolicyConfig, init: LayerInit) -> None:
        super().__init__()
        widths = [input_dim, *config.hypernet_layers]
        layers = [nn.Linear(ins, outs) for ins, outs in pairwise(widths)]
        for layer in layers:
            init_plain_(layer.weight, layer.bias, "hidden", init)
        self.layers = nn.ModuleList(layers)
        self.activation = ACTIVATIONS[config.activation]
        self.temperature = config.hypernet_softmax_temperature
        self.head_bias = config.hypernet_head_bias
        self.output_dim = widths[-1]

    def forward(self, embedding: Tensor) -> Condition:
        """Returns the condition for ``embedding [N, input_dim]``."""
        for index, layer in enumerate(self.layers):
            embedding = layer(embedding)
            last = index == len(self.layers) - 1
            if last and self.temperature is not None:
                embedding = (embedding / self.temperature).softmax(-1)
            else:
                embedding = self.activation(embedding)
        return Condition(embedding, self.head_bias)
