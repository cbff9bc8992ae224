"""The policy: inputs, actor and critic, action distribution (spec/models.md section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperrl.env_info import ActionSpace
from hyperrl.errors import ConfigError
from hyperrl.modules.embedding import InputEmbedding
from hyperrl.modules.hypernet import Condition, Input
from hyperrl.modules.initializers import GAINS, LayerInit
from hyperrl.modules.networks import ConditionNetwork, LayerFactory, Network
from hyperrl.modules.policy_config import SOURCES, PolicyConfig

__all__ = ["Policy", "PolicyConfig"]

MIN_STD = 1e-6


class Policy(nn.Module):
    """Actor and critic of a meta-RL agent.

    Inputs are state, latent, belief and task, as far as the configuration uses them, embedded and concatenated in this
    order. What generates layers (``hypernet_input``) is left out of the concatenation; a task id that selects layers
    (``per_task``) as well.

    Args:
        obs_dim: width of observations.
        latent_dim: width of the latent handed over by the encoder.
        actions: the action space.
        config: inputs, layers, initialisation.
        belief_dim: width of the belief; 0 if there is none.
        task_dim: width of the description of a task; 0 if there is none.
        num_tasks: number of tasks with an id; 0 if they have none.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        obs_dim: int,
        latent_dim: int,
        actions: ActionSpace,
        config: PolicyConfig,
        *,
        belief_dim: int = 0,
        task_dim: int = 0,
        num_tasks: int = 0,
    ) -> None:
        super().__init__()
        self.actions, self.config, self.num_tasks = actions, config, num_tasks
        dims = {"state": obs_dim, "latent": latent_dim, "belief": belief_dim, "task": task_dim}
        if config.uses_task_id:
            dims["task"] = num_tasks
        _check_dims(config, dims)
        self._networks = num_tasks if config.conditioning == "per_task" else 0
        self.state, self.latent, self.belief, self.task = (self._embedding(name, dims[name]) for name in SOURCES)
        init = LayerInit(config.initializer, GAINS[config.activation], actions.discrete, config.adjust_init_gain)
        self.hypernet = self._hypernet(init)
        condition_dim = self.hypernet.output_dim if self.hypernet is not None else 0
        factory = LayerFactory(config, init, condition_dim, self._networks)
        input_dim = sum(getattr(self, name).output_dim for name in config.layer_inputs)
        self.actor = Network(input_dim, actions.num_actions or actions.dim, "actor_head", factory)
        self.critic = Network(input_dim, 1, "critic_head", factory)
        self._prepare_continuous_actions()

    def _embedding(self, name: str, dim: int) -> InputEmbedding | None:
        """Normalisation and embedding of an input, where it is one; with per-task layers states have one per task."""
        config = self.config
        generates = config.generates and name == config.hypernet_input
        if name not in config.layer_inputs and not generates:
            return None
        width, normalize = getattr(config, f"{name}_embedding_dim"), getattr(config, f"normalize_{name}")
        return InputEmbedding(dim, width, normalize, config.activation, self._networks if name == "state" else 0)

    def _hypernet(self, init: LayerInit) -> ConditionNetwork | None:
        config = self.config
        if not config.generates:
            return None
        own = replace(init, initializer=config.hypernet_hidden_initializer or config.initializer)
        return ConditionNetwork(getattr(self, config.hypernet_input).output_dim, config, own)

    def _prepare_continuous_actions(self) -> None:
        """Deviations, and bounds of the means; nothing for discrete actions."""
        actions, config = self.actions, self.config
        self.bound_actions = config.bound_actions
        if actions.discrete:
            if config.bound_actions:
                raise ConfigError("model.policy.bound_actions is true; expected false, as actions are discrete")
            return
        shape = (self._networks, actions.dim) if self._networks else (actions.dim,)
        self.log_std = nn.Parameter(torch.full(shape, config.init_std).log())
        if not self.bound_actions:
            return
        if actions.low is None or actions.high is None:
            raise ConfigError(
                "model.policy.bound_actions is true; expected false, as the environment's actions have no bounds"
            )
        self.register_buffer("low", torch.tensor(actions.low), persistent=False)
        self.register_buffer("high", torch.tensor(actions.high), persistent=False)
        self.symmetric = set(actions.low) == {-1.0} and set(actions.high) == {1.0}

    def inputs(
        self,
        observation: Tensor | None = None,
        latent: Tensor | None = None,
        belief: Tensor | None = None,
        task: Tensor | None = None,
    ) -> Input:
        """Normalises and embeds what actor and critic see.

        Args:
            observation: ``[N, O]``; this and the others may be left out where the policy does not use them.
            latent: ``[N, latent_dim]``.
            belief: ``[N, belief_dim]``.
            task: description ``[N, task_dim]``, or id ``[N]`` or ``[N, 1]`` if ``config.uses_task_id``.

        Returns:
            The input for :meth:`distribution`, :meth:`value` and :meth:`materialise`.

        Raises:
            ValueError: if an input that the policy uses is missing.
        """
        ids = _present("task", task).flatten().long() if self._networks else None
        parts = {
            name: embedding(x, ids if name == "state" else None)
            for name, embedding, x in self._used(observation, latent, belief, task)
        }
        condition = self.hypernet(parts.pop(self.config.hypernet_input)) if self.hypernet is not None else None
        return Input(torch.cat([*parts.values()], -1) if len(parts) > 1 else next(iter(parts.values())), condition, ids)

    def _used(self, *given: Tensor | None) -> Iterator[tuple[str, InputEmbedding, Tensor]]:
        """Name, embedding and value of the inputs in use, out of all in the order of ``SOURCES``."""
        for name, x in zip(SOURCES, given, strict=True):
            embedding = getattr(self, name)
            if embedding is None:
                continue
            x = _present(name, x)
            if name == "task" and self.config.task_as_one_hot:
                x = functional.one_hot(x.flatten().long(), self.num_tasks).float()
            yield name, embedding, x

    def distribution(self, inputs: Input) -> dict[str, Tensor]:
        """Parameters of the action distribution: ``logits [N, n]``, or ``loc`` and ``scale [N, A]``."""
        output = self.actor(inputs)
        if self.actions.discrete:
            return {"logits": output}
        if self.bound_actions:
            output = output.tanh() if self.symmetric else output.sigmoid() * (self.high - self.low) + self.low
        log_std = self.log_std if inputs.task_id is None else self.log_std[inputs.task_id]
        return {"loc": output, "scale": log_std.exp().clamp_min(MIN_STD).expand_as(output)}

    def value(self, inputs: Input) -> Tensor:
        """Values ``[N, 1]``."""
        return self.critic(inputs)

    def materialise(self, inputs: Input) -> dict[str, Tensor]:
        """The weights and biases (FiLM: scales and biases) that ``inputs`` generate, for inspection.

        Returns:
            For each generated layer of critic and actor ``critic/0/weight [N, out, in]``, ``critic/0/bias [N, out]``,
            ..., ``actor/head/bias``, in the order of :meth:`generated_parameters`; empty where nothing is generated.
        """
        return self._materialise(inputs.condition) if inputs.condition is not None else {}

    def generated_parameters(self, condition: Condition) -> Tensor:
        """All that ``condition`` (see :attr:`hypernet`) generates as one vector per sample ``[N, P]``.

        The order is the published one (spec/models.md section 5.3): critic, actor; within each layer by layer, the
        head last; weight before bias, with FiLM bias before scale in hidden layers and scale before bias in heads.
        """
        return torch.cat([value.flatten(1) for value in self._materialise(condition).values()], 1)

    def _materialise(self, condition: Condition) -> dict[str, Tensor]:
        networks = {"critic": self.critic, "actor": self.actor}
        return {
            f"{name}/{key}": value
            for name, network in networks.items()
            for key, value in network.materialise(condition).items()
        }

    def update_statistics(
        self,
        observation: Tensor | None = None,
        latent: Tensor | None = None,
        belief: Tensor | None = None,
        task: Tensor | None = None,
    ) -> None:
        """Moves the running statistics of the inputs by one rollout; shapes as in :meth:`inputs`, ``[..., width]``."""
        for _, embedding, x in self._used(observation, latent, belief, task):
            embedding.update(x)


def _check_dims(config: PolicyConfig, dims: dict[str, int]) -> None:
    """Refuses inputs that the environment or the memory do not provide."""
    for name, dim in dims.items():
        if getattr(config, f"use_{name}") and dim < 1:
            what = "ids of tasks" if name == "task" and config.uses_task_id else name
            raise ConfigError(
                f"model.policy.use_{name} is true; expected false, as there is no {what} (of width {dim})"
            )


def _present(name: str, x: Tensor | None) -> Tensor:
    """An input that the policy needs."""
    if x is None:
        raise ValueError(f"the policy uses `{name}`, but its inputs hold none")
    return x
