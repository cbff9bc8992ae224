"""Actor and critic on (state, latent): plain, or generated from the latent (spec/models.md section 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from hyperrl.errors import ConfigError
from hyperrl.modules.hypernet import Condition, GeneratedLinear, Input, PlainLinear
from hyperrl.modules.initializers import GAINS, HypernetInit, Initializer, LayerRole, init_generated_, init_plain_
from hyperrl.modules.normalization import RunningNorm

MIN_STD = 1e-6


@dataclass(frozen=True)
class ActionSpace:
    """What the actor has to put out.

    Attributes:
        dim: width of a continuous action; 1 for discrete ones.
        num_actions: number of discrete actions; none if actions are continuous.
        low: smallest value of each dimension of a continuous action, where there is one.
        high: largest value of each dimension.
    """

    dim: int
    num_actions: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @property
    def discrete(self) -> bool:
        """Whether actions are indices."""
        return self.num_actions is not None


@dataclass(frozen=True)
class PolicyConfig:
    """The policy: its inputs, its layers, and how they are generated and initialised.

    Attributes:
        use_state: whether the policy sees the state (observation) itself, besides the latent.
        state_embedding_dim: width of the state embedding; null passes the state as it is.
        latent_embedding_dim: width of the latent embedding; null passes the latent as it is.
        normalize_state: whether states are normalised by running statistics.
        normalize_latent: whether latents are; off where RL gradients train the encoder.
        layers: hidden widths of actor and critic, which are separate.
        activation: activation of embeddings and hidden layers.
        initializer: initialisation of hidden layers.
        hypernetwork: whether the embedded latent generates all layers and heads instead of being an input.
        hypernet_init: initialisation of the hypernetwork's heads.
        init_std: initial standard deviation of continuous actions.
        bound_actions: whether the mean of continuous actions is squashed into their range: by tanh where that is
            [-1, 1] in all dimensions, else by a scaled sigmoid. Actions themselves are neither squashed nor clipped.
    """

    use_state: bool = True
    state_embedding_dim: int | None = 256
    latent_embedding_dim: int | None = 25
    normalize_state: bool = True
    normalize_latent: bool = False
    layers: list[int] = field(default_factory=lambda: [256, 128])
    activation: Literal["tanh", "relu"] = "tanh"
    initializer: Initializer = "normc"
    hypernetwork: bool = True
    hypernet_init: HypernetInit = "bias_hyperinit"
    init_std: float = 1.0
    bound_actions: bool = False

    def __post_init__(self) -> None:
        if self.hypernetwork and not self.use_state:
            raise ConfigError(
                "model.policy.hypernetwork is true and model.policy.use_state is false; expected use_state: true, "
                "since a generated policy has no other input"
            )
        if not self.layers or min(self.layers) < 1:
            raise ConfigError(f"model.policy.layers is {self.layers}; expected at least one positive width")
        for name in ("state_embedding_dim", "latent_embedding_dim"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise ConfigError(f"model.policy.{name} is {width}; expected at least 1, or null for no embedding")
        if not 0 < self.init_std < float("inf"):
            raise ConfigError(f"model.policy.init_std is {self.init_std}; expected a positive number")


class InputEmbedding(nn.Module):
    """Optional normalisation, then an optional affine layer with the policy's activation.

    Args:
        dim: width of the input.
        embedding_dim: width of the embedding; none leaves the input as it is.
        normalize: whether running statistics normalise the input.
        activation: activation of the embedding.
    """

    def __init__(self, dim: int, embedding_dim: int | None, normalize: bool, activation: str) -> None:
        super().__init__()
        self.norm = RunningNorm(dim) if normalize else None
        self.linear = nn.Linear(dim, embedding_dim) if embedding_dim else None
        self.activation = ACTIVATIONS[activation]
        self.output_dim = embedding_dim or dim

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[..., output_dim]``."""
        if self.norm is not None:
            x = self.norm(x)
        return x if self.linear is None else self.activation(self.linear(x))

    def update(self, x: Tensor) -> None:
        """Moves the running statistics, if there are any, by all rows of ``x``."""
        if self.norm is not None:
            self.norm.update(x)


ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


class Network(nn.Module):
    """Hidden layers and head of the actor or the critic.

    Args:
        input_dim: width of the base input.
        output_dim: width of the head.
        condition_dim: width of what generates the layers; none for ordinary layers.
        head: role of the head, which decides its initialisation.
        discrete: whether actions are discrete.
        config: the policy's configuration.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        condition_dim: int | None,
        head: LayerRole,
        discrete: bool,
        config: PolicyConfig,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.layers = nn.ModuleList()
        widths = [input_dim, *config.layers, output_dim]
        for index, (ins, outs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            role: LayerRole = head if index == len(config.layers) else "hidden"
            layer = _make_layer(ins, outs, condition_dim, role, discrete, config)
            self.layers.append(layer)

    def forward(self, inputs: Input) -> Tensor:
        """Returns the head's output ``[N, output_dim]`` in fp32.

        The head is the last few thousand of millions of products; under bf16 it alone decides how well the
        log-probabilities of acting and learning agree, so it leaves autocast.
        """
        for layer in self.layers[:-1]:
            inputs = Input(self.activation(layer(inputs)), inputs.condition)
        with torch.autocast(inputs.x.device.type, enabled=False):
            condition = inputs.condition
            return self.layers[-1](Input(inputs.x.float(), condition.float() if condition else None))


def _make_layer(
    ins: int, outs: int, condition_dim: int | None, role: LayerRole, discrete: bool, config: PolicyConfig
) -> nn.Module:
    """Builds and initialises one layer."""
    gain = GAINS[config.activation]
    if condition_dim is None:
        plain = PlainLinear(ins, outs)
        init_plain_(plain, role, config.initializer, gain, discrete)
        return plain
    layer = GeneratedLinear(ins, outs, condition_dim)
    init_generated_(layer.components(), layer.bias_head, role, config.hypernet_init, config.initializer, gain, discrete)
    return layer


class Policy(nn.Module):
    """Actor and critic of a meta-RL agent.

    With a hypernetwork the embedded latent generates every layer of both networks, and the embedded state is their
    input; without one, state and latent are concatenated.

    Args:
        obs_dim: width of observations.
        latent_dim: width of the latent handed over by the encoder (mean and log variance).
        actions: the action space.
        config: inputs, layers, initialisation.
    """

    low: Tensor
    high: Tensor

    def __init__(self, obs_dim: int, latent_dim: int, actions: ActionSpace, config: PolicyConfig) -> None:
        super().__init__()
        self.actions = actions
        self.state = (
            InputEmbedding(obs_dim, config.state_embedding_dim, config.normalize_state, config.activation)
            if config.use_state
            else None
        )
        self.latent = InputEmbedding(
            latent_dim, config.latent_embedding_dim, config.normalize_latent, config.activation
        )
        state_dim = self.state.output_dim if self.state is not None else 0
        self.hypernetwork = config.hypernetwork
        condition_dim = self.latent.output_dim if config.hypernetwork else None
        input_dim = state_dim if config.hypernetwork else state_dim + self.latent.output_dim
        outputs = actions.num_actions or actions.dim
        self.actor = Network(input_dim, outputs, condition_dim, "actor_head", actions.discrete, config)
        self.critic = Network(input_dim, 1, condition_dim, "critic_head", actions.discrete, config)
        self.bound_actions = config.bound_actions and not actions.discrete
        if not actions.discrete:
            self.log_std = nn.Parameter(torch.full((actions.dim,), config.init_std).log())
        if self.bound_actions:
            if actions.low is None or actions.high is None:
                raise ConfigError(
                    "model.policy.bound_actions is true; expected false, as the environment's actions have no bounds"
                )
            self.register_buffer("low", torch.tensor(actions.low), persistent=False)
            self.register_buffer("high", torch.tensor(actions.high), persistent=False)
            self.symmetric = set(actions.low) == {-1.0} and set(actions.high) == {1.0}

    def inputs(self, observation: Tensor, latent: Tensor) -> Input:
        """Normalises and embeds ``observation [N, O]`` and ``latent [N, 2L]`` for actor and critic."""
        latent = self.latent(latent)
        state = self.state(observation) if self.state is not None else None
        if self.hypernetwork:
            assert state is not None
            return Input(state, Condition(latent))
        return Input(latent if state is None else torch.cat([state, latent], -1), None)

    def distribution(self, inputs: Input) -> dict[str, Tensor]:
        """Parameters of the action distribution: ``logits [N, n]``, or ``loc`` and ``scale [N, A]``."""
        output = self.actor(inputs)
        if self.actions.discrete:
            return {"logits": output}
        if self.bound_actions:
            output = output.tanh() if self.symmetric else output.sigmoid() * (self.high - self.low) + self.low
        return {"loc": output, "scale": self.log_std.exp().clamp_min(MIN_STD).expand_as(output)}

    def value(self, inputs: Input) -> Tensor:
        """Values ``[N, 1]``."""
        return self.critic(inputs)

    def update_statistics(self, observation: Tensor, latent: Tensor) -> None:
        """Moves the running statistics of the inputs by one rollout, ``[..., O]`` and ``[..., 2L]``."""
        if self.state is not None:
            self.state.update(observation)
        self.latent.update(latent)
