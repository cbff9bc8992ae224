"""The agent: memory and policy together, one step for acting and whole rollouts for learning."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder
from hyperrl.modules.hypernet import Input
from hyperrl.modules.policy import Policy, PolicyConfig


class Agent(nn.Module):
    """A trajectory encoder whose latent conditions, or generates, a policy.

    Args:
        env_info: sizes of the environment.
        encoder: the memory.
        policy: configuration of actor and critic.
    """

    def __init__(self, env_info: EnvInfo, encoder: EncoderConfig, policy: PolicyConfig) -> None:
        super().__init__()
        self.actions = actions = env_info.actions
        self.encoder = TrajectoryEncoder(env_info.obs_dim, actions.dim, encoder, env_info.horizon)
        self.policy = Policy(
            env_info.obs_dim,
            self.encoder.latent_dim,
            actions,
            policy,
            belief_dim=env_info.belief_dim,
            task_dim=env_info.task_dim,
            num_tasks=env_info.num_tasks,
        )
        if not policy.use_latent:
            self.encoder.requires_grad_(False)
        self.task_key = keys.TASK_ID if keys.TASK_ID in policy.publish else keys.TASK

    def inputs(self, td: TensorDictBase, latent: Tensor) -> Input:
        """What actor and critic see at the steps ``td [...]``, of any batch size, with ``latent [..., 2L]``."""
        optional = (td.get(key, None) for key in (keys.BELIEF, self.task_key))
        sources = (td[keys.OBSERVATION], latent, *optional)
        return self.policy.inputs(*(None if x is None else x.flatten(0, td.ndim - 1) for x in sources))

    def evaluate(self, td: TensorDictBase, latent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Distribution parameters and values ``[N, .]`` at the steps ``td [...]`` with ``latent [..., 2L]``."""
        inputs = self.inputs(td, latent)
        return self.policy.distribution(inputs), self.policy.value(inputs)

    def values(self, td: TensorDictBase, latent: Tensor) -> Tensor:
        """Values ``[..., 1]`` alone, without the actor's half of the work."""
        return self.policy.value(self.inputs(td, latent)).unflatten(0, td.shape)

    def update_statistics(self, td: TensorDictBase, latent: Tensor) -> None:
        """Moves the running statistics of the policy's inputs by one rollout ``[B, T]``."""
        optional = (td.get(key, None) for key in (keys.BELIEF, self.task_key))
        self.policy.update_statistics(td[keys.OBSERVATION], latent, *optional)


class Actor(TensorDictModuleBase):
    """The acting half of an agent as a TorchRL policy: advances the memory, then samples an action.

    The memory stays in here instead of travelling through the TensorDicts, whose every entry is stored at every step.

    Actions follow ``torchrl.envs.utils.set_exploration_type``: sampled, or the mode where it is ``DETERMINISTIC``. The
    critic is not evaluated: the learner values whole rollouts at once, which is cheaper.

    Args:
        agent: the agent; its parameters are shared, not copied.
        generator: source of all randomness of the actions.

    Attributes:
        memory: memory before the transition that comes next ``[B, S]``; none before the first step.
    """

    memory: Tensor | None

    def __init__(self, agent: Agent, generator: torch.Generator) -> None:
        super().__init__()
        self.in_keys = [
            keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT,
            *agent.policy.config.publish,
        ]  # fmt: skip
        self.out_keys = [keys.ACTION, keys.ACTION_LOG_PROB]
        self.agent = agent
        self.generator = generator
        self.memory = None

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes action ``[B]`` or ``[B, A]`` and its log-probability ``[B]``."""
        latent, self.memory = self.agent.encoder.act(tensordict, self.memory)
        parameters = self.agent.policy.distribution(self.agent.inputs(tensordict, latent))
        distribution = action_distribution(parameters)
        action = self._choose(parameters)
        tensordict[keys.ACTION] = action
        tensordict[keys.ACTION_LOG_PROB] = distribution.log_prob(action)
        return tensordict

    @property
    def memory_layout(self) -> str:
        """What a memory has to agree with to go on here."""
        return self.agent.encoder.memory_layout

    def attach_memory(self, rollout: TensorDictBase, memory: Tensor | None) -> None:
        """Writes the memory that a rollout started with to it."""
        self.agent.encoder.attach_memory(rollout, memory)

    def _choose(self, parameters: dict[str, Tensor]) -> Tensor:
        """The mode, or a sample from the actor's own generator."""
        deterministic = exploration_type() is ExplorationType.DETERMINISTIC
        if keys.LOGITS in parameters:
            logits = parameters[keys.LOGITS]
            if deterministic:
                return logits.argmax(-1)
            # Gumbel's trick: argmax(logit - log Exp(1)) is a categorical sample.
            return (logits - torch.empty_like(logits).exponential_(generator=self.generator).log()).argmax(-1)
        loc, scale = parameters[keys.LOC], parameters[keys.SCALE]
        return loc if deterministic else loc + scale * torch.empty_like(loc).normal_(generator=self.generator)
