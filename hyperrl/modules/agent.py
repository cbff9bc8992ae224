"""The agent: memory and policy together, one step for acting and whole rollouts for learning."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder
from hyperrl.modules.host_mask import tell
from hyperrl.modules.hypernet import Input
from hyperrl.modules.no_memory import NoMemory
from hyperrl.modules.policy import Policy, PolicyConfig


class Agent(nn.Module):
    """A trajectory encoder whose latent conditions, or generates, a policy.

    Args:
        env_info: sizes of the environment.
        encoder: the memory.
        policy: configuration of actor and critic.

    Attributes:
        updates: number of finished PPO updates ``[]``, which the warm-up on the task counts.
        renewed: whether the policy has started anew ``[]``.
        fresh_policy: what the policy becomes after the warm-up, with ``hard_reset``; not trained.
    """

    updates: Tensor
    renewed: Tensor

    def __init__(self, env_info: EnvInfo, encoder: EncoderConfig, policy: PolicyConfig) -> None:
        super().__init__()
        self.actions = actions = env_info.actions
        self.encoder: TrajectoryEncoder | NoMemory = NoMemory()
        if policy.use_latent:
            self.encoder = TrajectoryEncoder(env_info.obs_dim, actions.dim, encoder, env_info.horizon)
        self.policy = self._policy(env_info, policy)
        self.fresh_policy = self._policy(env_info, policy).requires_grad_(False) if policy.hard_reset else None
        # A resumed run may have another warm-up, and must start anew once all the same.
        self.register_buffer("renewed", torch.tensor(False), persistent=policy.hard_reset)
        self.register_buffer("updates", torch.tensor(0), persistent=policy.task_replaces != "none")
        # The number of updates on the host, once it is needed: acting and learning must not ask a device for it.
        self._finished: int | None = None
        self.task_key = keys.TASK_ID if keys.TASK_ID in policy.publish else keys.TASK

    def _policy(self, env_info: EnvInfo, config: PolicyConfig) -> Policy:
        """A policy for the latents of the encoder."""
        return Policy(
            env_info.obs_dim,
            self.encoder.policy_dim,
            self.actions,
            config,
            belief_dim=env_info.belief_dim,
            task_dim=env_info.task_dim,
            num_tasks=env_info.num_tasks,
        )

    def inputs(self, td: TensorDictBase, latent: Tensor, shown_everywhere: bool | None = None) -> Input:
        """What actor and critic see at the steps ``td [...]``, of any batch size, with ``latent [..., 2L]``.

        What was drawn to act on is taken from the steps, so that learning sees what acting saw. Whoever knows that the
        task is shown in all of the steps, or in none, may say so.
        """
        sources = (*self._sources(td, latent), td.get(keys.TASK_SHOWN, None))
        observation, code, belief, task, shown = (None if x is None else x.flatten(0, td.ndim - 1) for x in sources)
        if shown is not None and shown_everywhere is not None:
            tell(shown, torch.full(shown.shape, shown_everywhere))
        return self.policy.inputs(observation, code, belief, task, shown)

    def evaluate(self, td: TensorDictBase, latent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Distribution parameters and values ``[N, .]`` at the steps ``td [...]`` with ``latent [..., 2L]``.

        The steps were acted since the last update.
        """
        chance = self.policy.config.task_chance
        # In that time the task is shown always, by chance, or never.
        everywhere = True if self.warming_up or chance >= 1 else None if chance else False
        inputs = self.inputs(td, latent, everywhere)
        return self.policy.distribution(inputs), self.policy.value(inputs)

    def values(self, td: TensorDictBase, latent: Tensor) -> Tensor:
        """Values ``[..., 1]`` alone, without the actor's half of the work."""
        return self.policy.value(self.inputs(td, latent)).unflatten(0, td.shape)

    def update_statistics(self, td: TensorDictBase, latent: Tensor) -> None:
        """Moves the running statistics of the policy's inputs by one rollout ``[B, T]``."""
        self.policy.update_statistics(*self._sources(td, latent))

    def _sources(self, td: TensorDictBase, latent: Tensor) -> tuple[Tensor | None, ...]:
        """Observation, latent for the policy, belief and task at the steps ``td``."""
        latent = self.encoder.for_policy(latent, td.get(keys.LATENT_NOISE, None))
        return td[keys.OBSERVATION], latent, td.get(keys.BELIEF, None), td.get(self.task_key, None)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._finished = None

    @property
    def warming_up(self) -> bool:
        """Whether the task always stands in for what ``task_replaces`` names."""
        warmup = self.policy.config.task_warmup
        if warmup and self._finished is None:
            self._finished = int(self.updates)
        return self._finished is not None and self._finished < warmup

    @torch.no_grad()
    def finish_update(self) -> None:
        """Counts a PPO update. After the last one of a warm-up the policy starts anew, with ``hard_reset``."""
        self.updates += 1
        if self._finished is not None:
            self._finished += 1
        if self.fresh_policy is not None and not self.renewed and not self.warming_up:
            self.policy.start_anew(self.fresh_policy)
            self.renewed.fill_(True)


class Actor(TensorDictModuleBase):
    """The acting half of an agent as a TorchRL policy: advances the memory, then samples an action.

    The memory stays in here instead of travelling through the TensorDicts, whose every entry is stored at every step.

    Actions follow ``torchrl.envs.utils.set_exploration_type``: sampled, or the mode where it is ``DETERMINISTIC``. The
    critic is not evaluated: the learner values whole rollouts at once, which is cheaper.

    Args:
        agent: the agent; its parameters are shared, not copied.
        generator: source of all randomness of acting.

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
        noise = [keys.LATENT_NOISE] if agent.encoder.noise_dim else []
        shown = [keys.TASK_SHOWN] if agent.policy.config.task_replaces != "none" else []
        self.out_keys = [*noise, *shown, keys.ACTION, keys.ACTION_LOG_PROB]
        self.agent = agent
        self.generator = generator
        self.memory = None

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes action ``[B]`` or ``[B, A]``, its log-probability ``[B]``, and what else was drawn to act on."""
        latent, self.memory = self.agent.encoder.act(tensordict, self.memory)
        self._draw(tensordict)
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

    def _draw(self, td: TensorDictBase) -> None:
        """Writes the noise of sampled latents ``[B, L]``, and where the task is shown ``[B]``, as far as there are."""
        if keys.LATENT_NOISE in self.out_keys:
            noise = td[keys.OBSERVATION].new_empty(*td.shape, self.agent.encoder.noise_dim)
            td[keys.LATENT_NOISE] = noise.normal_(generator=self.generator)
        if keys.TASK_SHOWN in self.out_keys:
            td[keys.TASK_SHOWN] = self._shown(td[keys.OBSERVATION].new_zeros(td.shape))

    def _shown(self, uniform: Tensor) -> Tensor:
        """Where the task stands in for the latent ``[B]``: never in evaluation, always during the warm-up."""
        if exploration_type() is ExplorationType.DETERMINISTIC:
            return uniform.bool()
        config = self.agent.policy.config
        if 0 < config.task_chance < 1:
            uniform.uniform_(generator=self.generator)
        return (uniform < config.task_chance) | self.agent.warming_up

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
