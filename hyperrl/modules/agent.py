"""The agent: memory and policy together, one step for acting and whole rollouts for learning."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from hyperrl import keys
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder
from hyperrl.modules.policy import ActionSpace, Policy, PolicyConfig


class Agent(nn.Module):
    """A trajectory encoder whose latent conditions, or generates, a policy.

    Args:
        obs_dim: width of observations.
        actions: the action space.
        encoder: sizes of the memory.
        policy: configuration of actor and critic.
    """

    def __init__(self, obs_dim: int, actions: ActionSpace, encoder: EncoderConfig, policy: PolicyConfig) -> None:
        super().__init__()
        self.actions = actions
        self.encoder = TrajectoryEncoder(obs_dim, actions.dim, encoder)
        self.policy = Policy(obs_dim, self.encoder.latent_dim, actions, policy)

    def evaluate(self, observation: Tensor, latent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Distribution parameters and values ``[N, .]`` of ``observation [..., O]`` and ``latent [..., 2L]``."""
        inputs = self.policy.inputs(observation.flatten(0, -2), latent.flatten(0, -2))
        return self.policy.distribution(inputs), self.policy.value(inputs)

    def values(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Values ``[..., 1]`` alone, without the actor's half of the work."""
        inputs = self.policy.inputs(observation.flatten(0, -2), latent.flatten(0, -2))
        return self.policy.value(inputs).unflatten(0, observation.shape[:-1])


class Actor(TensorDictModuleBase):
    """The acting half of an agent as a TorchRL policy: advances the memory, then samples an action.

    Actions follow ``torchrl.envs.utils.set_exploration_type``: sampled, or the mode where it is ``DETERMINISTIC``. The
    critic is not evaluated: the learner values whole rollouts at once, which is cheaper.

    Args:
        agent: the agent; its parameters are shared, not copied.
        generator: source of all randomness of the actions.
    """

    def __init__(self, agent: Agent, generator: torch.Generator) -> None:
        super().__init__()
        self.in_keys = [
            keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.MEMORY
        ]  # fmt: skip
        self.out_keys = [keys.ACTION, keys.ACTION_LOG_PROB, keys.MEMORY, keys.PREV_MEMORY]
        self.agent = agent
        self.generator = generator

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes action ``[B]`` or ``[B, A]``, its log-probability ``[B]`` and memory ``[B, S]``."""
        latent = self.agent.encoder.act(tensordict)
        policy = self.agent.policy
        parameters = policy.distribution(policy.inputs(tensordict[keys.OBSERVATION], latent))
        distribution = action_distribution(parameters)
        action = self._choose(parameters)
        tensordict[keys.ACTION] = action
        tensordict[keys.ACTION_LOG_PROB] = distribution.log_prob(action)
        return tensordict

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
