"""The policy: inputs, actor and critic, action distribution (spec/models.md section 5)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperrl.env_info import ActionSpace
from hyperrl.errors import ConfigError
from hyperrl.modules.embedding import InputEmbedding
from hyperrl.modules.host_mask import known
from hyperrl.modules.hypernet import Condition, Input, RepeatedInput, distinct_rows
from hyperrl.modules.initializers import GAINS, LayerInit
from hyperrl.modules.networks import ConditionNetwork, LayerFactory, Network
from hyperrl.modules.policy_config import SOURCES, PolicyConfig, shown

__all__ = ["Policy", "PolicyConfig"]

MIN_STD = 1e-6
# Rows without gradients, as in acting, from which sharing products is the faster way in bf16 (acting with GridNavi's
# sizes, two threads: 0.9 of the speed with 128 rows, 1.4 with 512): autocast keeps the cast of a weight, but not that
# of its view, which sharing needs.
MANY_ROWS = 256


class Policy(nn.Module):
    """Actor and critic of a meta-RL agent.

    Inputs are state, latent, belief and task, as far as the configuration uses them, embedded and concatenated in this
    order. What generates layers (``hypernet_input``) is left out of the concatenation; a task id that selects layers
    (``per_task``) as well, and a task that stands in for something else (``task_replaces``).

    Args:
        obs_dim: width of observations.
        latent_dim: width of the latent handed over by the encoder.
        actions: the action space.
        config: inputs, layers, initialisation.
        belief_dim: width of the belief; 0 if there is none.
        task_dim: width of the description of a task; 0 if there is none.
        num_tasks: number of tasks with an id; 0 if they have none.

    Attributes:
        few_observations: whether the last rollout had so few distinct observations that it pays to compute the large
            products of generated first layers once for each of them ``[]``.
    """

    few_observations: Tensor
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
        self._check_replacement(condition_dim)
        self._sees_state_alone = config.conditioning == "hypernetwork" and config.layer_inputs == ["state"]
        self.register_buffer("few_observations", torch.tensor(False), persistent=self._sees_state_alone)
        factory = LayerFactory(config, init, condition_dim, self._networks)
        self._width = sum(getattr(self, name).output_dim for name in config.layer_inputs)
        self.actor = Network(self._width, actions.num_actions or actions.dim, "actor_head", factory)
        self.critic = Network(self._width, 1, "critic_head", factory)
        self._prepare_continuous_actions()

    def _embedding(self, name: str, dim: int) -> InputEmbedding | None:
        """Normalisation and embedding of an input, where it is one; with per-task layers states have one per task."""
        config = self.config
        generates = config.generates and name == config.hypernet_input
        replaces = config.task_replaces == "latent" and name == "task"
        if name not in config.layer_inputs and not generates and not replaces:
            return None
        width, normalize = getattr(config, f"{name}_embedding_dim"), getattr(config, f"normalize_{name}")
        return InputEmbedding(dim, width, normalize, config.activation, self._networks if name == "state" else 0)

    def _hypernet(self, init: LayerInit) -> ConditionNetwork | None:
        config = self.config
        if not config.generates:
            return None
        own = replace(init, initializer=config.hypernet_hidden_initializer or config.initializer)
        return ConditionNetwork(getattr(self, config.hypernet_input).output_dim, config, own)

    def _check_replacement(self, condition_dim: int) -> None:
        """Refuses a task that is not as wide as what it stands in for."""
        config = self.config
        widths = {name: getattr(self, name).output_dim for name in ("latent", "task") if getattr(self, name)}
        if config.task_replaces == "latent" and widths["latent"] != widths["task"]:
            latent, task = (
                f"model.policy.{name}_embedding_dim is {shown(getattr(config, f'{name}_embedding_dim'))} ({width} wide)"
                for name, width in widths.items()
            )
            raise ConfigError(f"{latent} and {task}; expected equal widths with task_replaces: latent")
        if config.task_replaces == "condition" and condition_dim != self.num_tasks:
            key = "hypernet_layers" if config.hypernet_layers else "latent_embedding_dim"
            raise ConfigError(
                f"model.policy.task_replaces is condition and model.policy.{key} is {shown(getattr(config, key))}, "
                f"which gives the hypernetwork's heads {condition_dim} numbers; expected {self.num_tasks}, one per task"
            )

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
        task_shown: Tensor | None = None,
    ) -> Input:
        """Normalises and embeds what actor and critic see.

        Args:
            observation: ``[N, O]``; this and the others may be left out where the policy does not use them.
            latent: ``[N, latent_dim]``.
            belief: ``[N, belief_dim]``.
            task: description ``[N, task_dim]``, or id ``[N]`` or ``[N, 1]`` if ``config.uses_task_id``.
            task_shown: where the task stands in for what ``config.task_replaces`` names, ``[N]``; none for nowhere.

        Returns:
            The input for :meth:`distribution`, :meth:`value` and :meth:`materialise`.

        Raises:
            ValueError: if an input that the policy uses is missing.
        """
        ids = self._prepared("task", task).flatten().long() if self._networks else None
        repeated = self._repeated(observation)
        if repeated is not None:
            observation = repeated[0]
        given = dict(zip(SOURCES, (observation, latent, belief, task), strict=True))
        parts = {
            name: self._embed(name, x, ids if name == "state" else None)
            for name, x in given.items()
            if getattr(self, name) is not None and getattr(self.config, f"use_{name}")
        }
        replaces = self.config.task_replaces
        if replaces == "latent" and task_shown is not None:
            parts["latent"] = _replaced(parts["latent"], self._embed("task", task), task_shown)
        condition = self.hypernet(parts.pop(self.config.hypernet_input)) if self.hypernet is not None else None
        if replaces == "condition" and task_shown is not None and condition is not None:
            one_hot = self._one_hot(self._prepared("task", task))
            unbiased = task_shown.unsqueeze(-1) if self.config.one_hot_without_bias else None
            condition = Condition(_replaced(condition.embedding, one_hot, task_shown), condition.head_bias, unbiased)
        x = torch.cat([*parts.values()], -1) if len(parts) > 1 else next(iter(parts.values()))
        if repeated is not None and condition is not None:
            return RepeatedInput(x, repeated[1], condition)
        return Input(x, condition, ids)

    def _repeated(self, observation: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The distinct observations and which of them each sample has, where the first layers share their products."""
        if not self._sees_state_alone or observation is None or not observation.is_cpu or observation.requires_grad:
            return None  # on other devices, counting would wait for them
        if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled() and len(observation) < MANY_ROWS:
            return None
        return distinct_rows(observation, self._width) if self.few_observations else None

    def embed_latent(self, latent: Tensor) -> Tensor:
        """The embedding ``[N, W]`` of ``latent [N, latent_dim]``: normalised, then the affine layer and activation."""
        return self._embed("latent", latent)

    def embed_task(self, task: Tensor) -> Tensor:
        """The embedding ``[N, W]`` of ``task``, which is given as in :meth:`inputs`."""
        return self._embed("task", task)

    def _embed(self, name: str, x: Tensor | None, ids: Tensor | None = None) -> Tensor:
        """The embedding of an input."""
        return getattr(self, name)(self._prepared(name, x), ids)

    def _prepared(self, name: str, x: Tensor | None) -> Tensor:
        """An input as its normalisation takes it."""
        if x is None:
            raise ValueError(f"the policy uses `{name}`, but its inputs hold none")
        return self._one_hot(x) if name == "task" and self.config.task_as_one_hot else x

    def _one_hot(self, task: Tensor) -> Tensor:
        """The ids ``[...]`` of tasks as ``[N, num_tasks]``."""
        return functional.one_hot(task.flatten().long(), self.num_tasks).float()

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

    def generated_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far apart two embeddings are as the layers that they generate.

        What is generated is affine in the condition, so that a distance is a quadratic form of as many dimensions as
        the condition has. No generated parameters are built per sample.

        Args:
            a: embeddings ``[N, W]``, see :meth:`embed_latent` and :meth:`embed_task`.
            b: others ``[N, W]``.

        Returns:
            The mean of the squared differences of all generated parameters ``[N]``, in fp32.
        """
        assert self.hypernet is not None
        with torch.autocast(a.device.type, enabled=False):
            first, second = (self.hypernet(x.float()).embedding for x in (a, b))
            unit = torch.eye(first.shape[1], device=a.device)
            origin = self.generated_parameters(Condition(torch.zeros_like(unit[:1]), self.config.hypernet_head_bias))
            slopes = self.generated_parameters(Condition(unit, self.config.hypernet_head_bias)) - origin
            difference = first - second
            return ((difference @ (slopes @ slopes.T)) * difference).sum(1) / slopes.shape[1]

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
        for name, x in zip(SOURCES, (observation, latent, belief, task), strict=True):
            embedding = getattr(self, name)
            if embedding is not None:
                embedding.update(self._prepared(name, x))
        if self._sees_state_alone and observation is not None and observation.is_cpu:
            # Decided once for all minibatches: for a quarter, the work of the products is halved.
            rows = observation.flatten(0, -2)
            self.few_observations.fill_(distinct_rows(rows, min(len(rows), self._width) // 4) is not None)

    @torch.no_grad()
    def start_anew(self, fresh: Policy) -> None:
        """Takes over the parameters of another policy, except for what the task has taught (spec/training.md 6.3).

        Those of the task's embedding stay with ``task_replaces: latent``, the hypernetwork's heads with ``condition``;
        and so do running statistics.
        """
        kept = set(self.task.parameters()) if self.task is not None else {*self.critic.heads(), *self.actor.heads()}
        for name, parameter in self.named_parameters():
            if parameter not in kept:
                parameter.copy_(fresh.get_parameter(name))


def _check_dims(config: PolicyConfig, dims: dict[str, int]) -> None:
    """Refuses inputs that the environment or the memory do not provide."""
    for name, dim in dims.items():
        key, value, expected = f"use_{name}", shown(getattr(config, f"use_{name}")), "false"
        if name == "task" and config.task_replaces != "none":
            key, value, expected = "task_replaces", config.task_replaces, "none"
        if dim < 1 and value != expected:
            what = "ids of tasks" if name == "task" and config.uses_task_id else name
            raise ConfigError(
                f"model.policy.{key} is {value}; expected {expected}, as there is no {what} (of width {dim})"
            )


def _replaced(x: Tensor, other: Tensor, where: Tensor) -> Tensor:
    """``x [N, K]`` with ``other [N, K]`` in its place in the rows ``where [N]``.

    What no row is taken from gets no gradient, not one of zeros: Adam would go on moving its parameters. Looking for
    such rows would make the host wait for a device, so there it counts what the caller has told it.
    """
    shown = known(where)
    if shown is not None:
        number = int(shown.sum())
        if number in (0, len(shown)):
            return other.to(x.dtype) if number else x
    return torch.where(where.unsqueeze(-1), other.to(x.dtype), x)
