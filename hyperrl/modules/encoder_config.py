"""The configuration of a trajectory encoder, and which parts fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hyperrl.errors import ConfigError
from hyperrl.modules.aggregators import Aggregator
from hyperrl.modules.sequence import GRU, SequenceModel, Transition


@dataclass(frozen=True)
class EncoderConfig:
    """The trajectory encoder: its parts and their sizes; an embedding of size 0 drops that input.

    Attributes:
        state_embedding_dim: width of the embedding shared by s and s'.
        action_embedding_dim: width of the action embedding.
        reward_embedding_dim: width of the reward embedding.
        hidden_dim: width of the sequence model.
        latent_dim: width of the latent's mean, and again of its log variance.
        full_transitions: feed (s, a, r, s') instead of (a, r, s').
        sequence: the sequence model: GRU, LSTM, MinGRU, CausalTransformer, Transformer, Memoryless, Transition or your
            own, called with the widths of its input and output and the longest task in steps.
        aggregator: what pools the sequence model's outputs over the task, called with their width; null for none.
        split: pool only the second half of the outputs, and pass the first half by (SplAgger, 2024).
        layers_before: widths of layers between features and sequence model, of whatever kind (the published code moves
            them behind all but GRU and LSTM).
        layers_after: widths of layers between sequence model and aggregator, the last one linear.
        output_layers: widths of hidden layers in front of the latent.
        learn_initial_state: learn the memory that a task starts with, except for its counts.
        sample_latent: give the policy a sample of the latent in the place of its mean and log variance (PEARL).
        relu_latent: give the policy only what is positive of mean, log variance and sample.
    """

    state_embedding_dim: int = 32
    action_embedding_dim: int = 0
    reward_embedding_dim: int = 8
    hidden_dim: int = 256
    latent_dim: int = 5
    full_transitions: bool = False
    sequence: Callable[[int, int, int], SequenceModel] = GRU
    aggregator: Callable[[int], Aggregator] | None = None
    split: bool = False
    layers_before: list[int] = field(default_factory=list)
    layers_after: list[int] = field(default_factory=list)
    output_layers: list[int] = field(default_factory=list)
    learn_initial_state: bool = False
    sample_latent: bool = False
    relu_latent: bool = False

    def __post_init__(self) -> None:
        for name in ("state_embedding_dim", "hidden_dim", "latent_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.encoder.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("action_embedding_dim", "reward_embedding_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.encoder.{name} is {getattr(self, name)}; expected 0 (input dropped) or more")
        for name in ("layers_before", "layers_after", "output_layers"):
            if any(width < 1 for width in getattr(self, name)):
                raise ConfigError(f"model.encoder.{name} is {getattr(self, name)}; expected widths of at least 1")
        if self.split and self.aggregator is None:
            raise ConfigError(
                "model.encoder.split is true and model.encoder.aggregator is null; expected an aggregator to pass by"
            )


def check_parts(config: EncoderConfig, model: SequenceModel, aggregator: Aggregator | None, width: int) -> None:
    """Refuses parts that do not fit together.

    Args:
        config: what they were built from.
        model: the sequence model.
        aggregator: an aggregator of the configured class, of any width.
        width: width of what is split or aggregated.

    Raises:
        ConfigError: with the names of both keys.
    """
    kind = type(model).__name__
    if aggregator is None and not model.state_dim:
        raise ConfigError(
            f"model.encoder.sequence is {kind}, which has no memory, and model.encoder.aggregator is null; "
            "expected one of them to remember"
        )
    if config.split and aggregator is not None and aggregator.gives_latent:
        raise ConfigError(
            f"model.encoder.split is true and model.encoder.aggregator is {type(aggregator).__name__}, which gives the "
            "latent itself; expected split: false"
        )
    if config.split and width % 2:
        last = "layers_after" if config.layers_after else "hidden_dim"
        raise ConfigError(
            f"model.encoder.split is true and model.encoder.{last} gives width {width}; expected an even one"
        )
    if config.learn_initial_state and not model.initial_learnable:
        raise ConfigError(
            f"model.encoder.learn_initial_state is true and model.encoder.sequence is {kind}; expected false, since a "
            "memory of steps starts empty"
        )
    if isinstance(model, Transition):
        _check_transition(config, model)


def _check_transition(config: EncoderConfig, model: Transition) -> None:
    """Refuses what makes the previous features something else than the embedding of s."""
    if config.full_transitions:
        raise ConfigError(
            "model.encoder.full_transitions is true and model.encoder.sequence is Transition, which adds s by itself; "
            "expected false"
        )
    if config.layers_before:
        raise ConfigError(
            f"model.encoder.layers_before is {config.layers_before} and model.encoder.sequence is Transition, which "
            "reads the features themselves; expected an empty list"
        )
    if model.previous_dim != config.state_embedding_dim:
        raise ConfigError(
            f"model.encoder.sequence.previous_dim is {model.previous_dim} and model.encoder.state_embedding_dim is "
            f"{config.state_embedding_dim}; expected the same, so that s is what is seen again"
        )
