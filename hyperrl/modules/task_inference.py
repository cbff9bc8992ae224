"""Learning to infer the task: the losses that train an encoder besides, or in place of, the RL loss.

Spec/models.md section 7, spec/training.md sections 6.4 and 7.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError
from hyperrl.modules.agent import Agent
from hyperrl.modules.elbo import Elbo, ElboTerms, Indices
from hyperrl.modules.encoder_config import EncoderConfig
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.policy_config import PolicyConfig
from hyperrl.seeding import derive_seed, run_seed

# Trajectories that a profile averages over, at most.
PROFILED = 64


class TaskInference(nn.Module):
    """What an encoder is trained to know of the task.

    Two kinds of loss: on whole trajectories of finished tasks (:meth:`trajectory_loss`), and, where RL gradients train
    the encoder, on the steps of PPO's minibatches (:meth:`embedding_loss`).

    Args:
        env_info: sizes of the environment.
        encoder: configuration of the encoder, whose embedding sizes the decoders have, too.
        config: what is predicted, and how the losses add up.
        agent: the agent whose encoder learns; it is looked at, not kept.
    """

    def __init__(self, env_info: EnvInfo, encoder: EncoderConfig, config: InferenceConfig, agent: Agent) -> None:
        super().__init__()
        check_inference(env_info, encoder, agent.policy.config, config)
        if config.compares_task and config.task == "description":
            _check_width(agent, env_info.task_dim)
        self.config = config
        self.elbo: Elbo | None = None
        if config.uses_trajectories:
            self.elbo = Elbo(env_info, encoder, config, _target_dim(agent, config, env_info.task_dim))
        self.generator = torch.Generator().manual_seed(derive_seed(run_seed(), "inference"))

    def trajectory_loss(
        self,
        agent: Agent,
        trajectories: TensorDictBase,
        *,
        noise: Tensor | None = None,
        indices: Indices | None = None,
    ) -> ElboTerms:
        """Reconstructions, KL and task loss of whole trajectories ``[n]``, encoded from the prior.

        Args:
            agent: whose encoder encodes, and whose policy embeds the task.
            trajectories: see `hyperrl.keys`.
            noise: noise of the sampled latents; drawn if not given.
            indices: which latents and steps are decoded; drawn if not given.
        """
        assert self.elbo is not None
        latents = agent.encoder.encode_trajectories(trajectories, self.config.bptt_steps)
        target = self._target(agent, trajectories)
        return self.elbo(latents, trajectories, noise=noise, indices=indices, target=target, generator=self.generator)

    def metrics(self, terms: ElboTerms) -> dict[str, Tensor]:
        """What is logged of a loss on trajectories: the sum, and its parts without their weights."""
        config = self.config
        absent = {
            "reward": not config.decodes or config.reward == "none",
            "state": not config.decodes or config.state == "none",
            "task": not config.decodes_task,
            "kl": not config.stochastic,
        }
        parts = terms._asdict().items()
        return {f"inference/{name}": value.detach().float() for name, value in parts if not absent.get(name)}

    @torch.no_grad()
    def profile(self, agent: Agent, trajectories: TensorDictBase) -> dict[str, list[float]]:
        """What is known of the task at each step, without noise: means over trajectories ``[n]`` that are so long.

        Returns:
            ``kl`` of the posterior after 0..T transitions from the one before, and the errors of what is decoded, such
            as ``reward_error`` of transitions 1..T as the latents just before them predict them.
        """
        assert self.elbo is not None
        trajectories = trajectories[:PROFILED]
        latents = agent.encoder.encode_trajectories(trajectories)
        found = self.elbo.profile(latents, trajectories, target=self._target(agent, trajectories))
        return {name: value.double().nanmean(0).tolist() for name, value in found.items()}

    def _target(self, agent: Agent, trajectories: TensorDictBase) -> Tensor | None:
        """What the task decoder has to predict ``[n, width]``, where it is not the task itself."""
        if not self.config.decodes_task or self.config.task in ("id", "description"):
            return None
        task = trajectories[keys.TASK]
        with torch.autocast(task.device.type, enabled=False):
            target = _embedded_target(agent, self.config, task)
        return target.detach() if self.config.task_stop_gradient else target

    def embedding_loss(self, agent: Agent, batch: TensorDictBase, latent: Tensor) -> Tensor:
        """How far the policy's embedding of the latent is from the task, averaged over a minibatch.

        Args:
            agent: whose policy embeds both.
            batch: steps ``[N]`` with their task.
            latent: their latents ``[N, 2L]``.
        """
        policy, task = agent.policy, batch[keys.TASK]
        guess = policy.embed_latent(agent.encoder.for_policy(latent, batch.get(keys.LATENT_NOISE, None)))
        if self.config.task == "description":
            return nn.functional.mse_loss(guess, task)
        target = policy.embed_task(task)
        target = target.detach() if self.config.task_stop_gradient else target
        if self.config.task == "base_network":
            return policy.generated_distance(guess, target).mean()
        return nn.functional.mse_loss(guess, target)


def check_inference(env_info: EnvInfo, encoder: EncoderConfig, policy: PolicyConfig, config: InferenceConfig) -> None:
    """Refuses settings of inference that do not go with encoder, policy or environment.

    Raises:
        ConfigError: with the names of both keys.
    """
    mode = f"model.inference.encoder_loss is {config.encoder_loss}"
    if not policy.use_latent and config.encoder_loss != "rl":
        raise ConfigError(
            f"model.policy.use_latent is false and {mode}; expected encoder_loss: rl, as nothing reads it"
        )
    if config.decodes and config.reward_per_state and config.reward != "none" and not env_info.num_states:
        raise ConfigError(
            "model.inference.reward_per_state is true and data.env has no ids of states; expected "
            "reward_per_state: false"
        )
    if config.decodes and config.state != "none" and not encoder.action_embedding_dim:
        raise ConfigError(
            f"model.inference.state is {config.state} and model.encoder.action_embedding_dim is 0, as wide as the "
            "decoder embeds actions; expected at least 1, or state: none"
        )
    if config.freeze_during_warmup and not policy.task_warmup:
        raise ConfigError(
            "model.inference.freeze_during_warmup is true and model.policy.task_warmup is 0; expected a warm-up"
        )
    if config.task != "none":
        _check_task(env_info, policy, config)


def _check_task(env_info: EnvInfo, policy: PolicyConfig, config: InferenceConfig) -> None:
    """Refuses targets that do not exist, or that cannot be compared."""
    target = f"model.inference.task is {config.task}"
    if config.task == "id" and not env_info.num_tasks:
        raise ConfigError(f"{target} and data.env has no ids of tasks; expected description")
    if config.task == "description" and not env_info.task_dim:
        raise ConfigError(f"{target} and data.env has no description of tasks; expected another target")
    if config.task in ("embedding", "base_network") and policy.task_replaces != "latent":
        raise ConfigError(
            f"{target} and model.policy.task_replaces is {policy.task_replaces}; expected task_replaces: latent, so "
            "that the policy learns to embed the task"
        )
    if config.task in ("embedding", "base_network") and policy.task_as_one_hot:
        raise ConfigError(f"{target} and model.policy.task_as_one_hot is true; expected task_as_one_hot: false")
    if config.task == "base_network" and not policy.generates:
        raise ConfigError(
            f"{target} and model.policy.conditioning is {policy.conditioning}; expected hypernetwork or film, which "
            "generate a network"
        )


def _check_width(agent: Agent, task_dim: int) -> None:
    """Refuses an embedding of the latent that cannot be compared with a task."""
    assert agent.policy.latent is not None
    width = agent.policy.latent.output_dim
    if width != task_dim:
        raise ConfigError(
            f"model.inference.task is description, without a decoder, and model.policy.latent_embedding_dim makes "
            f"latents {width} wide; expected {task_dim}, as wide as the description"
        )


def _embedded_target(agent: Agent, config: InferenceConfig, task: Tensor) -> Tensor:
    """The policy's embedding of a task ``[n, task_dim]``, or all that the policy generates from it."""
    embedding = agent.policy.embed_task(task)
    if config.task != "base_network":
        return embedding
    assert agent.policy.hypernet is not None
    return agent.policy.generated_parameters(agent.policy.hypernet(embedding))


@torch.no_grad()
def _target_dim(agent: Agent, config: InferenceConfig, task_dim: int) -> int:
    """The width of what the task decoder has to predict, where that is of the policy's making; else 0."""
    if not config.decodes_task or config.task in ("id", "description"):
        return 0
    return _embedded_target(agent, config, torch.zeros(1, task_dim)).shape[1]
