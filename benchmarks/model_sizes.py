"""What the cost model needs to know of a model, read off its modules or counted in its real code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperrl import keys
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import MetaEnv, make_env
from hyperrl.errors import ConfigError
from hyperrl.modules import scan
from hyperrl.modules.encoder import TrajectoryEncoder
from hyperrl.modules.film import FilmLinear
from hyperrl.modules.hypernet import GeneratedLinear
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.networks import Network
from hyperrl.modules.sequence import GRU


class Layer(NamedTuple):
    """A layer of actor or critic: its widths, and what is generated of it from a condition of that width (0: none)."""

    kind: str
    ins: int
    outs: int
    condition: int
    terms: int

    @property
    def expands(self) -> bool:
        """Whether it computes with the outer products of input and condition."""
        return self.kind == "generated" and self.ins <= self.outs

    @property
    def products(self) -> int:
        """Multiplications per sample."""
        if self.kind == "generated":
            contraction = 0 if self.expands else self.terms * self.outs
            return self.terms * self.ins * self.outs + self.condition * self.outs + contraction
        return self.ins * self.outs + (2 * self.condition * self.outs if self.kind == "film" else 0)

    @property
    def kept(self) -> int:
        """Numbers per sample that the backward pass needs: what is as wide as a condition's terms, and the output."""
        inner = self.terms * (self.ins if self.expands else self.outs) if self.kind == "generated" else 0
        return inner + self.outs * (3 if self.kind == "film" else 1)


@dataclass(frozen=True)
class Sizes:
    """What a model's costs depend on.

    Attributes:
        features: weights of the encoder's first layers, per transition; their input needs no gradient.
        feature_dim: width of the features.
        gru_input: weights between features and GRU.
        hidden_dim: width of the GRU.
        pooled: width of what an aggregator reads, 0 without.
        encoder_rest: weights of the encoder behind the GRU.
        state: weights of the state's embedding, whose input needs no gradient.
        state_dim: width of the embedded state.
        latent: weights of the latent's embedding and of the hypernetwork's hidden layers.
        latent_dim: width of what these give.
        actor: layers of the actor.
        critic: layers of the critic.
        policy_parameters: parameters of the policy.
        encoder_parameters: parameters of the encoder.
        frame_bytes: bytes of one step of one environment in a rollout.
    """

    features: int
    feature_dim: int
    gru_input: int
    hidden_dim: int
    pooled: int
    encoder_rest: int
    state: int
    state_dim: int
    latent: int
    latent_dim: int
    actor: tuple[Layer, ...]
    critic: tuple[Layer, ...]
    policy_parameters: int
    encoder_parameters: int
    frame_bytes: int = 0

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Sizes:
        """From JSON."""
        layers = {name: tuple(Layer(*layer) for layer in stored[name]) for name in ("actor", "critic")}
        return cls(**{**stored, **layers})

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.policy_parameters + self.encoder_parameters

    @property
    def recurrent(self) -> int:
        """Weights between one hidden state and the next."""
        return 3 * self.hidden_dim**2


@dataclass(frozen=True)
class Kernels:
    """Operations that are launched one after another, views aside.

    Attributes:
        acting: per acting step, environment and collector included.
        values: of the pass for the values, besides its recurrence.
        values_step: per step of its recurrence.
        minibatch: of forward and backward pass of a minibatch, besides its recurrence.
        minibatch_step: per step of its recurrence.
    """

    acting: float
    values: float
    values_step: float
    minibatch: float
    minibatch_step: float


def measure_sizes(learner: MetaPPO) -> Sizes:
    """Reads the sizes off a built model.

    Raises:
        ConfigError: the model has parts that are not modelled.
    """
    agent = learner.agent
    encoder, policy, config = agent.encoder, agent.policy, learner.inference.config
    expected = "; expected a GRU, with or without aggregator, trained by the RL loss alone on whole environments"
    if not isinstance(encoder, TrajectoryEncoder) or not isinstance(encoder.sequence, GRU):
        raise ConfigError(f"model.encoder.sequence is {type(getattr(encoder, 'sequence', encoder)).__name__}{expected}")
    if encoder.learned is not None or encoder.before is not None:
        raise ConfigError(f"model.encoder has a learned initial state or layers in front of the memory{expected}")
    if config.encoder_loss != "rl" or config.compares_task or learner.config.minibatch != "env":
        raise ConfigError(
            f"model.inference.encoder_loss is {config.encoder_loss}, model.ppo.minibatch is {learner.config.minibatch}"
            f"{expected}"
        )
    if policy.config.conditioning == "per_task" or not (policy.state and policy.latent) or policy.belief or policy.task:
        raise ConfigError(f"model.policy.conditioning is {policy.config.conditioning}{expected}, for state and latent")
    features, sequence = encoder.features, encoder.sequence
    state_again = features.state.weight.numel() if features.full_transitions else 0
    return Sizes(
        features=_weights(features) + state_again,
        feature_dim=features.output_dim,
        gru_input=sequence.weights[0].numel(),
        hidden_dim=sequence.output_dim,
        pooled=encoder.aggregator.width if encoder.aggregator is not None else 0,
        encoder_rest=sum(_weights(part) for part in (encoder.after, encoder.aggregator, encoder.output) if part),
        state=_weights(policy.state),
        state_dim=policy.state.output_dim,
        latent=_weights(policy.latent) + (_weights(policy.hypernet) if policy.hypernet else 0),
        latent_dim=policy.hypernet.output_dim if policy.hypernet else policy.latent.output_dim,
        actor=_layers(policy.actor),
        critic=_layers(policy.critic),
        policy_parameters=sum(p.numel() for p in policy.parameters()),
        encoder_parameters=sum(p.numel() for p in encoder.parameters()),
    )


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def _layers(network: Network) -> tuple[Layer, ...]:
    return tuple(_layer(layer) for layer in network.layers)


def _layer(layer: nn.Module) -> Layer:
    if isinstance(layer, GeneratedLinear):
        condition = layer.bias_head.in_features
        return Layer("generated", layer.in_features, layer.out_features, condition, layer.terms)
    outs, ins = layer.weight.shape  # type: ignore[misc]
    if isinstance(layer, FilmLinear):
        return Layer("film", ins, outs, layer.bias_head.in_features, 0)
    return Layer("plain", ins, outs, 0, 0)


# Launches, counted in the real code


class _Launches(TorchDispatchMode):
    """Counts operations, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def count_distinct(data: MetaDataModule, minibatches: int) -> tuple[float, float, float]:
    """Distinct observations of an acting step, a minibatch and a rollout, all on average, while acting is random."""
    env = make_env(data.env_id, data.num_envs, seed=0, **data.options)
    env.set_seed(0)
    observation = env.rollout(data.steps_per_rollout, break_when_any_done=False)[keys.OBSERVATION]
    env.close(raise_if_closed=False)
    acting, minibatch = observation.unbind(1), observation.chunk(minibatches)
    each, part = ([len(torch.unique(x.flatten(0, -2), dim=0)) for x in parts] for parts in (acting, minibatch))
    return sum(each) / len(each), sum(part) / len(part), float(len(torch.unique(observation.flatten(0, 1), dim=0)))


def _launched(run: Callable[[], Any]) -> tuple[int, Any]:
    with _Launches() as counter:
        result = run()
    return counter.number, result


class _Away:
    """An environment that says it is not on the CPU."""

    device = SimpleNamespace(type="pretended")

    def __init__(self, env: MetaEnv) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


@contextlib.contextmanager
def as_on_a_device() -> Iterator[None]:
    """The package takes the ways that it takes on a GPU, with tensors of the CPU; unlike others, these know autocast.

    All environments are reset at every step, no products are shared, aggregators are scans in blocks. A test compares
    the launches with those on `tests/pretended_device.py`.
    """
    maybe_reset = MetaEnv.maybe_reset
    with (
        mock.patch.object(Tensor, "is_cpu", False),
        mock.patch.object(scan, "has_kernels", return_value=False),
        mock.patch.object(MetaEnv, "may_contain", return_value=True),
        mock.patch.object(MetaEnv, "maybe_reset", lambda env, tensordict: maybe_reset(_Away(env), tensordict)),  # type: ignore[arg-type]
    ):
        yield


def count_kernels(learner: MetaPPO, data: MetaDataModule, bf16: bool) -> tuple[Kernels, int]:
    """Runs two short rollouts, one longer than the other, and counts what a step adds; and its bytes in a rollout."""
    # How many environments there are changes no launch.
    envs = min(data.num_envs, 2 * learner.config.num_minibatches)
    # A learner's first update has an operation that no other one has.
    _, short, long = (_count_at(learner, data, envs, steps, bf16) for steps in (4, 4, 8))
    slopes = [(more - less) / 4 for less, more in zip(short[:3], long[:3], strict=True)]
    acting, values_step, minibatch_step = slopes
    rest = [less - 5 * slope for less, slope in zip(short[1:3], slopes[1:], strict=True)]
    return Kernels(acting, rest[0], values_step, rest[1], minibatch_step), short[3]


def _count_at(learner: MetaPPO, data: MetaDataModule, envs: int, steps: int, bf16: bool) -> list[int]:
    """Launches of collection, values and a minibatch, and bytes per frame."""
    learner.zero_grad()  # adding to old gradients is a launch for each parameter, which training does not need
    env = make_env(data.env_id, envs, seed=0, **data.options)
    stream = RolloutStream(env, learner.actor, steps, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        collected, rollout = _launched(stream.collect)
        valued, (ready, _) = _launched(lambda: learner.with_advantages(rollout))
        index = next(iter(learner.minibatches(ready)))
        forward, loss = _launched(lambda: learner.loss(ready, index)[0])
    backward, _ = _launched(loss.backward)
    env.close(raise_if_closed=False)
    return [collected, valued, forward + backward, rollout.bytes() // rollout.numel()]
