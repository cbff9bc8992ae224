"""The memory of a configuration or a trained agent, cut off from its embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import yaml
from jsonargparse import ArgumentError, auto_cli
from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.configuration import one_line, resolve_config
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import load_agent
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition, TransitionFeatures

# What the published analyses have (spec/tooling.md section 3.1), where a configuration leaves it open: 80 features.
SIZES = {
    "state_embedding_dim": 32,
    "action_embedding_dim": 8,
    "reward_embedding_dim": 8,
    "full_transitions": True,
    "latent_dim": 12,
}


class Memory(nn.Module):
    """Features ``[R, T, D]`` to latents ``[R, T, O]`` from a task's start.

    Args:
        encoder: an encoder, which loses its embeddings to this object: nobody else may use it.

    Attributes:
        width: number of features D.
        embed: what turns transitions into features.
    """

    def __init__(self, encoder: TrajectoryEncoder) -> None:
        super().__init__()
        self.width, self.embed, self.encoder = encoder.features.output_dim, encoder.features, encoder
        encoder.features = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Consumes features."""
        reset = torch.zeros(x.shape[:2], dtype=torch.bool)
        return self.encoder(cast(Transition, x), reset, self.encoder.initial_state(len(x)))

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters behind the embeddings."""
        return self.encoder.parameters(recurse)


def without_biases(memory: nn.Module) -> nn.Module:
    """A copy with all biases 0, so that outputs are what inputs make of them."""
    memory = deepcopy(memory)
    with torch.no_grad():
        for name, parameter in memory.named_parameters():
            if "bias" in name:
                parameter.zero_()
    return memory


@dataclass(frozen=True)
class Model:
    """What memories are made of.

    Attributes:
        source: where it is from, for messages.
        config: the configuration of an untrained encoder; none for a trained one.
        trained: a trained encoder.
    """

    source: str
    config: EncoderConfig | None = None
    trained: TrajectoryEncoder | None = None

    @classmethod
    def read(cls, source: str) -> Model:
        """Reads a configuration, by path or by the name of a shipped one, or a trained agent.

        Raises:
            ConfigError: there is no such file, or nothing in it has a memory.
        """
        if not is_trained(source):
            return cls(source, config=_encoder_config(source))
        encoder = load_agent(source).learner.agent.encoder
        if not isinstance(encoder, TrajectoryEncoder):
            raise ConfigError(f"models: {source} has no memory; expected an agent with one")
        return cls(source, trained=encoder.requires_grad_(True))

    def memory(self, seed: int, horizon: int, trajectories: TensorDictBase | None = None) -> Memory:
        """Builds a memory.

        Args:
            seed: seed of the initialisation; without effect on a trained memory.
            horizon: longest task in steps.
            trajectories: what the embeddings have to fit; none where they are not used.

        Raises:
            ConfigError: a trained memory has other embeddings, or room for fewer steps.
        """
        if self.trained is not None:
            if trajectories is not None:
                self._check(trajectories, self.trained.features)
            return Memory(deepcopy(self.trained))
        assert self.config is not None
        obs_dim, action_dim = (
            1 if trajectories is None else trajectories[name].shape[-1] for name in (keys.OBSERVATION, keys.PREV_ACTION)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Memory(TrajectoryEncoder(obs_dim, action_dim, self.config, horizon))

    def _check(self, trajectories: TensorDictBase, embeddings: TransitionFeatures) -> None:
        """Refuses observations and actions of other widths than what the embeddings were trained on."""
        for name, layer in ((keys.OBSERVATION, embeddings.state), (keys.PREV_ACTION, embeddings.action)):
            width = trajectories[name].shape[-1]
            if layer is not None and layer.in_features != width:
                raise ConfigError(
                    f"models: {self.source} reads {name} of width {layer.in_features}; expected {width}, as the "
                    "trajectories have"
                )


def is_trained(source: str) -> bool:
    """Whether a checkpoint or a bundle is meant, and no configuration."""
    return source.endswith(".ckpt") or Path(source).is_dir()


def _encoder_config(source: str) -> EncoderConfig:
    """The encoder that a configuration file describes, be it that of a model or a whole experiment."""
    config = yaml.safe_load(Path(resolve_config(source)).read_text())
    model = (config.get("model") if isinstance(config, dict) else None) or {}
    if not model.get("encoder") or not (model.get("policy") or {}).get("use_latent", True):
        raise ConfigError(f"models: {source} has no memory; expected a configuration with model.encoder")
    text = json.dumps({**SIZES, **model["encoder"]})
    try:
        return auto_cli(_typed, [f"--encoder={text}"], as_positional=False, exit_on_error=False)
    except ArgumentError as error:
        raise ConfigError(f"models: {source}: model.{one_line(str(error))}") from error


def _typed(encoder: EncoderConfig) -> EncoderConfig:
    """What jsonargparse makes of an encoder's settings."""
    return encoder
