"""One step of acting as a function of tensors, which can be compiled, exported and called without an environment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.modules.agent import Agent
from hyperrl.modules.encoder import TrajectoryEncoder, Transition


class Memory(NamedTuple):
    """What an agent has to keep between two steps.

    Attributes:
        begun: 1 if the task has begun, 0 before its first step ``[N, 1]``; where it is 0, the rest is not looked at.
        observation: of the last step ``[N, O]``.
        action: of the last step ``[N, A]``, a discrete one as its index ``[N, 1]``.
        encoder: what the encoder remembers ``[N, S]``.
    """

    begun: Tensor
    observation: Tensor
    action: Tensor
    encoder: Tensor


class OneStep(nn.Module):
    """(observation, reward, memory) to (action, memory), with the mode of the policy.

    The memory ``[N, M]`` is a `Memory` as one tensor. At the start of a task it is zero.

    Args:
        agent: the agent; its parameters are shared, not copied.
        env_info: sizes of its environment.

    Attributes:
        memory_dim: width ``M`` of the memory.
    """

    def __init__(self, agent: Agent, env_info: EnvInfo) -> None:
        super().__init__()
        self.agent = agent
        self.env_info = env_info
        self._widths = 1, env_info.obs_dim, env_info.action_dim, agent.encoder.state_dim
        self.memory_dim = sum(self._widths)

    @property
    def needs(self) -> dict[str, int | None]:
        """What else the policy has to be given, by name, and its width; None for a number ``[N]``.

        The belief, the task or its number, for agents that are told; ``latent_noise``, standard normal, for agents
        that act on a sample of their latent.
        """
        info, config, noise_dim = self.env_info, self.agent.policy.config, self.agent.encoder.noise_dim
        belief = {keys.BELIEF: info.belief_dim} if config.use_belief else {}
        # A task that only stands in for something else is shown in training alone.
        by_id = {keys.TASK_ID: None} if config.uses_task_id else {keys.TASK: info.task_dim}
        noise = {keys.LATENT_NOISE: noise_dim} if noise_dim else {}
        return {**belief, **(by_id if config.use_task else {}), **noise}

    def initial_memory(self, batch: int) -> Tensor:
        """The memory at the start of a task, ``[batch, M]``."""
        return torch.zeros(batch, self.memory_dim)

    def forward(
        self, observation: Tensor, reward: Tensor, memory: Tensor, given: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Takes one step.

        Args:
            observation: ``[N, O]``.
            reward: of the last step, raw ``[N, 1]``.
            memory: ``[N, M]``.
            given: what `needs` names; none for agents that need nothing else.

        Returns:
            Action ``[N]`` or ``[N, A]``, and memory ``[N, M]``.
        """
        before = self.split(memory)
        transition = Transition(before.observation, before.action, reward, observation)
        latent, remembered = self._remember(transition, before.begun > 0, before.encoder)
        td = TensorDict({keys.OBSERVATION: observation, **(given or {})}, observation.shape[:1])
        parameters = self.agent.policy.distribution(self.agent.inputs(td, latent))
        action = parameters[keys.LOGITS].argmax(-1) if keys.LOGITS in parameters else parameters[keys.LOC]
        taken = action.to(memory.dtype).view(-1, self.env_info.action_dim)
        return action, torch.cat([torch.ones_like(before.begun), observation, taken, remembered], -1)

    def split(self, memory: Tensor) -> Memory:
        """The parts of a memory ``[N, M]``."""
        return Memory(*memory.split(self._widths, -1))

    def _remember(self, transition: Transition, begun: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """As `TrajectoryEncoder.act`, but without a look at the data, so that it can be traced."""
        encoder = self.agent.encoder
        if not isinstance(encoder, TrajectoryEncoder):
            return memory, memory  # of width 0
        latent, after = encoder.step(transition, memory)
        initial = encoder.initial_state(1)
        return torch.where(begun, latent, encoder.prior(1)), torch.where(begun, after, initial)
