"""The policy's configuration, and which combinations of its settings make no sense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hyperrl import keys
from hyperrl.errors import ConfigError
from hyperrl.modules.initializers import HypernetInit, Initializer

SOURCES = ("state", "latent", "belief", "task")
HYPERINITS = ("bias_hyperinit", "weight_hyperinit", "both_hyperinit")


@dataclass(frozen=True)
class PolicyConfig:
    """The policy: its inputs, its layers, and how they are generated and initialised.

    Attributes:
        use_state: whether the policy is given the state (observation).
        use_latent: whether it is given the latent of the memory.
        use_belief: whether it is given the environment's exact belief.
        use_task: whether it is given the task itself, as an upper bound to compare with.
        task_as_one_hot: whether the task is given as its one-hot id instead of its description.
        state_embedding_dim: width of the state embedding; null passes the state as it is.
        latent_embedding_dim: width of the latent embedding; null passes the latent as it is.
        belief_embedding_dim: width of the belief embedding; null passes the belief as it is.
        task_embedding_dim: width of the task embedding; null passes the task as it is.
        normalize_state: whether states are normalised by running statistics.
        normalize_latent: whether latents are; off where RL gradients train the encoder.
        normalize_belief: whether beliefs are.
        normalize_task: whether tasks are.
        layers: hidden widths of actor and critic, which are separate.
        activation: activation of embeddings and hidden layers.
        conditioning: what makes the policy depend on the task: all inputs are joined (concat); one of them generates
            the layers (hypernetwork), or scales and shifts their outputs (film); every task id has layers of its own
            (per_task).
        hypernet_input: what generates; it is no input of the layers then.
        generated_layers: which layers are generated, one flag per hidden layer and one for both heads; null means all.
        hypernet_layers: widths of the hypernetwork's own hidden layers.
        hypernet_head_bias: whether the hypernetwork's heads have a bias.
        hypernet_softmax_temperature: a softmax with this temperature in place of the activation of the hypernetwork's
            last hidden layer; null keeps the activation.
        initializer: initialisation of hidden layers.
        hypernet_init: initialisation of the hypernetwork's heads.
        hypernet_hidden_initializer: initialisation of the hypernetwork's hidden layers; null means initializer.
        adjust_init_gain: whether Kaiming weights inside a HyperInit use the gain of their layer; published ones do not.
        init_std: initial standard deviation of continuous actions.
        bound_actions: whether the mean of continuous actions is squashed into their range: by tanh where that is
            [-1, 1] in all dimensions, else by a scaled sigmoid. Actions themselves are neither squashed nor clipped.
        task_replaces: what the task stands in for while the policy is trained on it: the embedded latent, by an
            embedding of equal width (latent); the vector that feeds the hypernetwork's heads, by the one-hot id of the
            task (condition); or nothing (none).
        task_warmup: PPO updates during which the task always stands in.
        task_chance: probability, for each environment and step, with which it does afterwards.
        hard_reset: whether the policy starts anew after the warm-up, but for what the task has taught: its embedding
            (latent), or the hypernetwork's heads (condition).
        one_hot_without_bias: whether generated biases are zero where the one-hot id stands in.
    """

    use_state: bool = True
    use_latent: bool = True
    use_belief: bool = False
    use_task: bool = False
    task_as_one_hot: bool = False
    state_embedding_dim: int | None = 256
    latent_embedding_dim: int | None = 25
    belief_embedding_dim: int | None = None
    task_embedding_dim: int | None = 25
    normalize_state: bool = True
    normalize_latent: bool = False
    normalize_belief: bool = True
    normalize_task: bool = True
    layers: list[int] = field(default_factory=lambda: [256, 128])
    activation: Literal["tanh", "relu", "leaky_relu"] = "tanh"
    conditioning: Literal["concat", "hypernetwork", "film", "per_task"] = "hypernetwork"
    hypernet_input: Literal["latent", "task"] = "latent"
    generated_layers: list[bool] | None = None
    hypernet_layers: list[int] = field(default_factory=list)
    hypernet_head_bias: bool = True
    hypernet_softmax_temperature: float | None = None
    initializer: Initializer = "normc"
    hypernet_init: HypernetInit = "bias_hyperinit"
    hypernet_hidden_initializer: Initializer | None = None
    adjust_init_gain: bool = False
    init_std: float = 1.0
    bound_actions: bool = False
    task_replaces: Literal["none", "latent", "condition"] = "none"
    task_warmup: int = 0
    task_chance: float = 0.0
    hard_reset: bool = False
    one_hot_without_bias: bool = False

    def __post_init__(self) -> None:
        _check_values(self)
        _check_replacement(self)
        _check_inputs(self)
        if self.generates:
            _check_hypernet(self)
        else:
            _check_no_hypernet(self)

    @property
    def generates(self) -> bool:
        """Whether anything of the layers is generated."""
        return self.conditioning in ("hypernetwork", "film")

    @property
    def given_task(self) -> bool:
        """Whether the policy is given the task, as an input or now and then in the place of something else."""
        return self.use_task or self.task_replaces != "none"

    @property
    def uses_task_id(self) -> bool:
        """Whether the policy is given the task's id instead of its description."""
        by_id = self.task_as_one_hot or self.conditioning == "per_task" or self.task_replaces == "condition"
        return self.given_task and by_id

    @property
    def layer_inputs(self) -> list[str]:
        """Those of state, latent, belief and task that the layers see, in the order of concatenation."""
        elsewhere = "task" if self.conditioning == "per_task" else self.hypernet_input if self.generates else None
        return [name for name in SOURCES if getattr(self, f"use_{name}") and name != elsewhere]

    @property
    def publish(self) -> tuple[str, ...]:
        """What the environment has to publish besides the observation, as TensorDict keys."""
        belief = (keys.BELIEF,) if self.use_belief else ()
        task = (keys.TASK_ID if self.uses_task_id else keys.TASK,) if self.given_task else ()
        return belief + task


def _check_values(config: PolicyConfig) -> None:
    """Refuses values that are wrong by themselves."""
    if not config.layers or min(config.layers) < 1:
        raise ConfigError(f"model.policy.layers is {config.layers}; expected at least one positive width")
    if config.hypernet_layers and min(config.hypernet_layers) < 1:
        raise ConfigError(f"model.policy.hypernet_layers is {config.hypernet_layers}; expected positive widths")
    for name in (f"{source}_embedding_dim" for source in SOURCES):
        width = getattr(config, name)
        if width is not None and width < 1:
            raise ConfigError(f"model.policy.{name} is {width}; expected at least 1, or null for no embedding")
    temperature = config.hypernet_softmax_temperature
    for name, number in (("init_std", config.init_std), ("hypernet_softmax_temperature", temperature)):
        if number is not None and not 0 < number < float("inf"):
            raise ConfigError(f"model.policy.{name} is {number}; expected a positive number")
    if config.task_warmup < 0:
        raise ConfigError(f"model.policy.task_warmup is {config.task_warmup}; expected 0 or more")
    if not 0 <= config.task_chance <= 1:
        raise ConfigError(f"model.policy.task_chance is {config.task_chance}; expected a number from 0 to 1")


def _check_replacement(config: PolicyConfig) -> None:
    """Refuses settings that do not go with the task in the place of something else, or have no effect without."""
    for clashes, key, other, expected in _replacement_clashes(config):
        if clashes:
            raise _clash(config, key, other, expected)


def _replacement_clashes(config: PolicyConfig) -> Iterator[tuple[bool, str, str, str]]:
    """Whether two settings exclude each other, their names, and what is expected."""
    replaces, on = config.task_replaces, config.task_replaces != "none"
    condition = replaces == "condition"
    for name in ("task_warmup", "task_chance"):
        yield bool(getattr(config, name)) and not on, name, "task_replaces", "task_replaces: latent or condition"
    yield (config.hard_reset and not config.task_warmup, "hard_reset", "task_warmup",
           "task_warmup of at least 1, as the reset comes after it")  # fmt: skip
    without = "one_hot_without_bias"
    yield config.one_hot_without_bias and not condition, without, "task_replaces", "task_replaces: condition"
    yield on and config.use_task, "task_replaces", "use_task", "use_task: false, as the task is no input of its own"
    yield on and not config.use_latent, "task_replaces", "use_latent", "use_latent: true, which the task stands in for"
    yield (on and config.conditioning == "per_task", "task_replaces", "conditioning",
           "another conditioning, as the task selects the layers here")  # fmt: skip
    yield on and config.hypernet_input == "task", "task_replaces", "hypernet_input", "hypernet_input: latent"
    yield replaces == "latent" and config.use_belief, "task_replaces", "use_belief", "use_belief: false"
    yield condition and not config.generates, "task_replaces", "conditioning", "conditioning: hypernetwork or film"
    yield (condition and config.task_as_one_hot, "task_replaces", "task_as_one_hot",
           "task_as_one_hot: false, as it is one-hot anyway")  # fmt: skip


def _check_inputs(config: PolicyConfig) -> None:
    """Refuses inputs that the rest cannot work with."""
    if config.task_as_one_hot and not config.given_task:
        raise _clash(config, "task_as_one_hot", "use_task", "use_task: true")
    if config.conditioning == "per_task":
        if not config.use_task:
            raise _clash(config, "conditioning", "use_task", "use_task: true, since the task selects the layers")
        if config.task_as_one_hot:
            raise _clash(
                config, "conditioning", "task_as_one_hot", "task_as_one_hot: false: the task is no input there"
            )
    if config.generates and not getattr(config, f"use_{config.hypernet_input}"):
        source = f"use_{config.hypernet_input}"
        raise _clash(config, "hypernet_input", source, f"{source}: true, since it generates the layers")
    if not config.layer_inputs:
        raise _clash(config, "conditioning", "use_state", "use_state: true, since the layers have no other input")


def _check_hypernet(config: PolicyConfig) -> None:
    """Refuses settings of the hypernetwork's shape that exclude each other or have no effect."""
    flags, number = config.generated_layers, len(config.layers) + 1
    if flags is not None and len(flags) != number:
        expected = f"{number} flags in generated_layers, one per hidden layer and one for the heads"
        raise _clash(config, "generated_layers", "layers", expected)
    if flags is not None and not any(flags):
        raise _clash(config, "generated_layers", "conditioning", "at least one true, or conditioning: concat")
    if not config.hypernet_layers:
        for name in ("hypernet_softmax_temperature", "hypernet_hidden_initializer"):
            if getattr(config, name) is not None:
                raise _clash(config, name, "hypernet_layers", f"{name}: null, since there is no such layer")
    _check_film(config) if config.conditioning == "film" else _check_generated(config)


def _check_film(config: PolicyConfig) -> None:
    """Refuses what FiLM cannot have."""
    if not config.hypernet_head_bias:
        raise _clash(config, "conditioning", "hypernet_head_bias", "hypernet_head_bias: true")
    if config.hypernet_init == "hfi":
        raise _clash(config, "conditioning", "hypernet_init", "another hypernet_init: hfi is for generated weights")
    if config.adjust_init_gain:
        raise _clash(config, "conditioning", "adjust_init_gain", "adjust_init_gain: false, since no gain is ignored")


def _check_generated(config: PolicyConfig) -> None:
    """Refuses initialisations of generated weights that do not go together."""
    if not config.hypernet_head_bias and config.hypernet_init in ("bias_hyperinit", "both_hyperinit"):
        expected = "hypernet_head_bias: true, or another hypernet_init: this one puts the weights into that bias"
        raise _clash(config, "hypernet_head_bias", "hypernet_init", expected)
    if config.adjust_init_gain and config.hypernet_init not in HYPERINITS:
        raise _clash(config, "adjust_init_gain", "hypernet_init", f"hypernet_init: {' or '.join(HYPERINITS)}")


def _check_no_hypernet(config: PolicyConfig) -> None:
    """Refuses settings of a hypernetwork where there is none; a scheme of HyperInit may stay in a composed file."""
    default = PolicyConfig()
    for name in ("hypernet_input", "generated_layers", "hypernet_layers", "hypernet_head_bias",
                 "hypernet_softmax_temperature", "hypernet_hidden_initializer", "adjust_init_gain"):  # fmt: skip
        if getattr(config, name) != getattr(default, name):
            raise _clash(config, name, "conditioning", "conditioning: hypernetwork or film")
    if config.hypernet_init == "hfi":
        raise _clash(config, "hypernet_init", "conditioning", "conditioning: hypernetwork")


def _clash(config: PolicyConfig, key: str, other: str, expected: str) -> ConfigError:
    """Two settings that exclude each other."""
    first, second = (f"model.policy.{name} is {shown(getattr(config, name))}" for name in (key, other))
    return ConfigError(f"{first} and {second}; expected {expected}")


def shown(value: Any) -> str:
    """A value as YAML shows it."""
    return value if isinstance(value, str) else json.dumps(value)
