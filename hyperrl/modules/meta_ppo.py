"""The learner: rollouts in, epochs of minibatches, updates of task inference, logging. Orchestration only."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.distributed import gather_over_ranks, sum_over_ranks
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError, DivergedError
from hyperrl.metrics import adaptation_metrics
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.host_mask import on_host, queued, tell
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.minibatches import permuted_chunks
from hyperrl.modules.normalization import RewardNormalizer
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.ppo import (
    PPOConfig,
    PPOLoss,
    generalized_advantages,
    normalize_advantages,
    ratio_diagnostics,
)
from hyperrl.modules.task_inference import TaskInference
from hyperrl.seeding import derive_seed, run_seed

# What the update reads of a rollout; everything else is dropped before minibatches are cut.
LEARNER_KEYS = (
    keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.START_MEMORY,
    keys.ACTION, keys.ACTION_LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET, keys.STATE_VALUE,
    (keys.NEXT, keys.OBSERVATION), (keys.NEXT, keys.PREV_OBSERVATION), (keys.NEXT, keys.PREV_ACTION),
    (keys.NEXT, keys.PREV_REWARD), keys.BELIEF, keys.TASK, keys.TASK_ID, keys.LATENT, keys.LATENT_NOISE,
    keys.TASK_SHOWN,
)  # fmt: skip


Logged = dict[str, Tensor]
ParameterGroup = dict[str, Any]


class TrajectorySource(Protocol):
    """Where whole trajectories of finished tasks come from."""

    def __len__(self) -> int:
        """Number of trajectories."""

    def sample(self, number: int) -> TensorDictBase:
        """Draws up to ``number`` different ones; see `hyperrl.keys`."""


def _to_cpu(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.cpu()


class MetaPPO(LightningModule):
    """PPO for an agent with memory (spec/training.md sections 2-8).

    Gradients of the RL loss go through whole rollouts into the encoder, or task inference trains it, or both do.

    Args:
        env_info: sizes of the environment (linked from the data).
        num_envs: number of parallel environments (linked from the data).
        frames: frame budget, for the learning-rate schedule (linked from the data).
        encoder: sizes of the memory.
        policy: configuration of actor and critic.
        ppo: PPO's settings.
        inference: how the task is inferred, where not by the RL loss alone.
    """

    def __init__(
        self,
        env_info: EnvInfo,
        num_envs: int,
        frames: int,
        encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 - frozen
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008 - frozen
        ppo: PPOConfig = PPOConfig(),  # noqa: B008 - frozen
        inference: InferenceConfig = InferenceConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if ppo.minibatch == "env" and num_envs % ppo.num_minibatches:
            raise ConfigError(
                f"data.num_envs ({num_envs}) is not divisible by model.ppo.num_minibatches ({ppo.num_minibatches}); "
                "expected whole environments in equal minibatches"
            )
        if inference.precollect_frames >= frames:
            raise ConfigError(
                f"model.inference.precollect_frames is {inference.precollect_frames} and data.frames is {frames}; "
                "expected fewer, or nothing would be learnt"
            )
        self.automatic_optimization = False
        self.config = ppo
        self.total_frames = frames
        self.frames = 0
        self.agent = Agent(env_info, encoder, policy)
        self.inference = TaskInference(env_info, encoder, inference, self.agent)
        self.reward_normalizer = RewardNormalizer(ppo.gamma, ppo.reward_clip)
        self.ppo_loss = PPOLoss(ppo, env_info.actions.discrete)
        self.permutations = torch.Generator().manual_seed(derive_seed(run_seed(), "minibatches"))
        self.pretrained = not inference.pretrain_updates
        self._trajectories_everywhere = False
        self.rollout_metrics: dict[str, float] = {}
        self.inference_profile: dict[str, list[float]] = {}
        self._last_time = time.perf_counter()

    # Acting

    def actor(self, generator: torch.Generator) -> Actor:
        """The acting half of the agent, for the collector; it shares the parameters."""
        return Actor(self.agent, generator)

    # The update, in public pieces

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One fused Adam for all that the RL loss trains, or RMSprop for the policy; a fused Adam for the rest."""
        policy, *others = self.parameter_groups()
        adam = functools.partial(torch.optim.Adam, fused=True)
        first = adam if self.config.optimizer == "adam" else functools.partial(torch.optim.RMSprop, alpha=0.99)
        return [first(policy), *map(adam, others)]

    def parameter_groups(self) -> list[list[ParameterGroup]]:
        """The groups of each optimiser: policy; encoder and decoders, as far as they have parameters."""
        config = self.inference.config
        policy = {"params": list(self.agent.policy.parameters()), "lr": self.config.lr, "eps": self.config.eps}
        # Encoders without a decoder learn at the policy's rate (spec/models.md quirk Q45).
        own = {"lr": config.lr if config.decodes else self.config.lr, "eps": self.config.encoder_eps}
        parts = (list(module.parameters()) for module in (self.agent.encoder, self.inference))
        others = [{"params": parameters, **own} for parameters in parts if parameters]
        together = config.rl_trains_encoder and self.config.optimizer == "adam"
        groups = [[policy, *others]] if together else [[policy], others]
        return [group for group in groups if group]

    @property
    def trajectory_settings(self) -> dict[str, Any] | None:
        """How finished trajectories have to be kept; none where nothing is learnt from them."""
        config = self.inference.config
        if not config.uses_trajectories:
            return None
        return {
            "capacity": config.buffer_capacity,
            "store_probability": config.store_probability,
            "extra": config.trajectory_entries,
        }

    @property
    def trajectories(self) -> TrajectorySource:
        """The finished trajectories."""
        return self.trainer.datamodule.trajectories  # type: ignore[attr-defined]

    @property
    def has_trajectories(self) -> bool:
        """Whether every rank has finished trajectories: all of them take the same steps.

        Ranks ask each other until it is so: a buffer never becomes empty again.
        """
        if not self._trajectories_everywhere:
            ready = len(self.trajectories) > 0
            if self.trainer.world_size > 1:
                ranks = sum_over_ranks(torch.tensor(float(ready), device=self.device))
                ready = bool(ranks == self.trainer.world_size)
            self._trajectories_everywhere = ready
        return self._trajectories_everywhere

    @property
    def frozen(self) -> bool:
        """Whether encoder and decoders wait for the end of the warm-up on the true task."""
        waits = self.agent.policy.config.hard_reset or self.inference.config.freeze_during_warmup
        return self.agent.warming_up and waits

    @property
    def _rl_trains_encoder(self) -> bool:
        """Whether gradients of the RL loss reach the encoder now."""
        return self.inference.config.rl_trains_encoder and not self.frozen

    def training_step(self, rollout: TensorDictBase, batch_idx: int) -> None:
        """One PPO update on a rollout ``[B, T]``, and the updates of task inference after it."""
        start = time.perf_counter()
        self.frames += rollout.numel() * self.trainer.world_size
        learnt = self._learn(rollout) if self.frames >= self.inference.config.precollect_frames else self._wait(rollout)
        self._report(learnt, rollout, start)

    def _wait(self, rollout: TensorDictBase) -> list[list[Logged]]:
        """Only statistics of rewards move, while the first trajectories are collected."""
        self._rewards(rollout)
        return []

    def _learn(self, rollout: TensorDictBase) -> list[list[Logged]]:
        """Pre-training of task inference, once, or an update; what each of its optimiser steps logs, by kind."""
        config = self.inference.config
        if not self.pretrained and not self.frozen and self.has_trajectories:
            self._wait(rollout)
            self.pretrained = True
            return [self.infer(config.pretrain_updates)]
        rollout, latent = self.with_advantages(rollout)
        learnt = [[self.optimize(rollout, index) for index in self.minibatches(rollout)]]
        self.agent.update_statistics(rollout, latent)
        if not config.rl_trains_encoder and not self.frozen:
            learnt.append(self.infer(config.updates))
        self.agent.finish_update()
        self._anneal()
        return learnt

    @torch.no_grad()
    def with_advantages(self, rollout: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        """Adds values, normalised advantages and value targets to a rollout ``[B, T]``.

        Values are taken by the learner, in one pass over T+1 steps; the terminal transition is encoded, too, so that a
        truncated task bootstraps from its real last state.

        Returns:
            The rollout reduced to what the update reads, and the latents at decision time ``[B, T, 2L]``.
        """
        on_host(rollout[keys.IS_INIT])  # asked here, and not in every minibatch
        latent, next_latent = self.agent.encoder.encode(rollout)
        value, next_value = self._values(rollout, latent, next_latent)
        after = rollout[keys.NEXT]
        advantage, target = generalized_advantages(
            self._rewards(rollout), value, next_value, after[keys.DONE], after[keys.TERMINATED], self.config.gamma,
            self.config.gae_lambda,
        )  # fmt: skip
        rollout = rollout.copy()
        rollout[keys.STATE_VALUE], rollout[keys.VALUE_TARGET] = value, target
        rollout[keys.ADVANTAGE] = normalize_advantages(advantage)
        if not self._rl_trains_encoder:
            rollout[keys.LATENT] = latent  # it stays what it is through all epochs
        return rollout.select(*LEARNER_KEYS, strict=False), latent

    def _rewards(self, rollout: TensorDictBase) -> Tensor:
        """The rewards ``[B, T, 1]`` that the policy learns from; moves their statistics."""
        after = rollout[keys.NEXT]
        if not self.config.normalize_rewards:
            return after[keys.REWARD]
        return self.reward_normalizer(after[keys.REWARD], after[keys.DONE])

    def _values(self, rollout: TensorDictBase, latent: Tensor, next_latent: Tensor) -> tuple[Tensor, Tensor]:
        """Values of each step's state and of the state after each step, both ``[B, T, 1]``."""
        after = rollout[keys.NEXT]
        value = self.agent.values(rollout, latent)
        next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        # Inside the rollout the next step's value serves, except where a task was cut short: it starts another task.
        own = after[keys.DONE][..., 0].clone()
        own[:, -1] = True
        row, step = (own & ~after[keys.TERMINATED][..., 0]).nonzero(as_tuple=True)
        # The value after a step is that of the policy that acted in it: with its noise, and shown the task if it was.
        drawn = rollout.select(keys.LATENT_NOISE, keys.TASK_SHOWN, strict=False)
        states = after.copy().update(drawn)[row, step]
        next_value[row, step] = self.agent.values(states, next_latent[row, step])
        return value, next_value

    def minibatches(self, rollout: TensorDictBase) -> Iterator[Tensor]:
        """Index tensors of all minibatches of all epochs: of environments, or of steps counted as ``b * T + t``."""
        size = rollout.shape[0] if self.config.minibatch == "env" else rollout.numel()
        for _ in range(self.config.epochs):
            yield from permuted_chunks(size, self.config.num_minibatches, self.permutations)

    def loss(self, rollout: TensorDictBase, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch and what is logged of it."""
        is_init = rollout[keys.IS_INIT]
        rows = queued(index, is_init.device)
        if self.config.minibatch == "env":
            rollout = rollout[rows]
            if not is_init.is_cpu:
                tell(rollout[keys.IS_INIT], on_host(is_init)[index])
            latent = self._latent(rollout).flatten(0, 1)
            batch = rollout.flatten()
        else:
            latent = self._latent(rollout).flatten(0, 1)[rows]
            batch = rollout.flatten()[rows]
        parameters, value = self.agent.evaluate(batch, latent)
        flat = batch.select(
            keys.ACTION, keys.ACTION_LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET, keys.STATE_VALUE
        ).update({**parameters, keys.NEW_VALUE: value})
        total, parts = self.ppo_loss.total(flat)
        logged = self._diagnostics(flat, parts)
        if self._rl_trains_encoder:
            inferred, more = self._inference_loss(batch, latent)
            total, logged = total + inferred, {**logged, **more}
        return total, {"loss/total": total.detach().float().squeeze(), **logged}

    def _latent(self, rollout: TensorDictBase) -> Tensor:
        """Latents at decision time ``[B, T, 2L]``, encoded anew where the encoder changes between minibatches."""
        return self.agent.encoder.encode(rollout)[0] if self._rl_trains_encoder else rollout[keys.LATENT]

    def _inference_loss(self, batch: TensorDictBase, latent: Tensor) -> tuple[Tensor, Logged]:
        """What task inference adds to the loss of a minibatch, and what is logged of it."""
        config, total, logged = self.inference.config, latent.new_zeros(()), {}
        if config.uses_trajectories and self.has_trajectories:
            terms = self.inference.trajectory_loss(self.agent, self.trajectories.sample(config.batch_trajectories))
            total, logged = total + config.coeff * terms.total, self.inference.metrics(terms)
        if config.compares_task:
            loss = self.inference.embedding_loss(self.agent, batch, latent)
            total, logged = total + config.task_coeff * loss, {**logged, "inference/task": loss.detach()}
        return total, logged

    def _diagnostics(self, batch: TensorDictBase, parts: TensorDictBase) -> Logged:
        """What is logged of one minibatch, without gradient."""
        log_prob = self.ppo_loss.log_prob(batch)
        kl, change = ratio_diagnostics(log_prob, batch[keys.ACTION_LOG_PROB])
        named = {
            "loss/objective": parts["loss_objective"],
            "loss/critic": parts["loss_critic"],
            "loss/entropy": parts["loss_entropy"],
            "ppo/entropy": parts["entropy"],
            "ppo/clip_fraction": parts["clip_fraction"],
            "ppo/explained_variance": parts["explained_variance"],
            "ppo/kl": kl,
            "ppo/max_log_prob_change": change,
        }
        return {name: value.detach().float().squeeze() for name, value in named.items()}

    def optimize(self, rollout: TensorDictBase, index: Tensor) -> Logged:
        """One optimiser step on one minibatch; policy and encoder gradients are clipped separately."""
        total, logged = self.loss(rollout, index)
        self._backward(total)
        trained = {"policy": self.agent.policy, **({"encoder": self.agent.encoder} if self._rl_trains_encoder else {})}
        for name, module in trained.items():
            norm = torch.nn.utils.clip_grad_norm_(list(module.parameters()), self.config.max_grad_norm)
            # It is on the host if nothing has a gradient.
            logged[f"grad_norm/{name}"] = queued(norm, total.device)
        for optimizer in self._optimizers if self.inference.config.rl_trains_encoder else self._optimizers[:1]:
            optimizer.step()
        return logged

    def infer(self, updates: int) -> list[Logged]:
        """Updates of encoder and decoders on whole trajectories, as soon as there are any (section 7.4)."""
        if not self.has_trajectories:
            return []
        number = self.inference.config.batch_trajectories
        return [self.infer_from(self.trajectories.sample(number)) for _ in range(updates)]

    def infer_from(self, trajectories: TensorDictBase) -> Logged:
        """One optimiser step of encoder and decoders on trajectories ``[n]``; gradients are not clipped."""
        config = self.inference.config
        terms = self.inference.trajectory_loss(self.agent, trajectories)
        self._backward(terms.total)
        policy, encoder = self._optimizers
        gradients = [parameter.grad for parameter in self.agent.encoder.parameters() if parameter.grad is not None]
        logged = {**self.inference.metrics(terms), "grad_norm/encoder": torch.nn.utils.get_total_norm(gradients)}
        encoder.step()
        # Of all targets that learn, the published code lets only generated networks learn here (quirk Q22).
        if config.task == "base_network" and not config.task_stop_gradient:
            policy.step()
        return logged

    def _backward(self, total: Tensor) -> None:
        """Gradients of a loss, and of nothing else."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        # Autocast is for forward passes: what left it (memory, heads, losses) would get its gradients in bf16.
        with torch.autocast(total.device.type, enabled=False):
            self.manual_backward(total)

    @property
    def _optimizers(self) -> list[LightningOptimizer]:
        """The optimisers, through Lightning, which counts their steps."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def setup(self, stage: str) -> None:
        """Gives each further rank its own noise of task inference; parameters and minibatches are those of rank 0."""
        if stage == "fit" and self.trainer.global_rank:
            self.inference.generator.manual_seed(derive_seed(run_seed(), "inference", self.trainer.global_rank))

    def on_train_start(self) -> None:
        """Puts the configured rates over those that came with the optimisers' state of a resumed checkpoint."""
        self._trajectories_everywhere = False  # the buffer is a new one
        self._anneal()

    def _anneal(self) -> None:
        """Sets the learning rates by frames, after each update; task inference of its own keeps its rate."""
        left = max(0.0, 1 - self.frames / self.total_frames) if self.config.lr_schedule == "linear" else 1.0
        own = not self.inference.config.rl_trains_encoder
        for number, (optimizer, groups) in enumerate(zip(self._optimizers, self.parameter_groups(), strict=True)):
            # Not strict: a subclass may optimise the policy alone.
            for group, configured in zip(optimizer.param_groups, groups, strict=False):
                group["lr"], group["eps"] = configured["lr"] * (1.0 if number and own else left), configured["eps"]

    # Validation and test: the adaptation curve on fresh tasks

    def validation_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Logs the return of each episode over the tasks of ``batch``: ``returns [N, K]`` and maybe ``success``."""
        self._log_adaptation("val", batch)

    def test_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """As :meth:`validation_step`, on the tasks of the test."""
        self._log_adaptation("test", batch)

    def _log_adaptation(self, stage: str, batch: TensorDictBase) -> None:
        trajectories = batch.pop(keys.TRAJECTORIES, None)
        if trajectories is not None:
            self.inference_profile = self.inference.profile(self.agent, trajectories)
        gathered = {name: torch.cat(gather_over_ranks(value.cpu())) for name, value in batch.items()}
        metrics = adaptation_metrics(gathered["returns"], gathered.get("success"))
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, logger=False, batch_size=len(batch))
        self.log_metrics(named)

    # Logging

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Sends metrics to all loggers at the exact frame count (``self.log`` would round it to fp32)."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.frames)

    def _report(self, learnt: list[list[Logged]], rollout: TensorDictBase, start: float) -> None:
        """Averages what the optimiser steps of all ranks logged, in one transfer, and checks that it is finite."""
        steps = [parts for parts in learnt if parts]
        names = [name for parts in steps for name in parts[0]]
        tables = [torch.stack([torch.stack(list(part.values())) for part in parts]) for parts in steps]
        norms = torch.stack(torch._foreach_norm([parameter for _, parameter in self._named_parameters()]))
        means, firsts = [table.mean(0) for table in tables], [table[0] for table in tables]
        values = (sum_over_ranks(torch.cat([*means, *firsts, norms])) / self.trainer.world_size).tolist()
        mean = dict(zip(names, values, strict=False))
        first = dict(zip(names, values[len(names) :], strict=False))
        self._check_finite(mean, values[2 * len(names) :])
        now = time.perf_counter()
        seconds, self._last_time = now - self._last_time, now
        compared = {f"ppo/first_{name}": f"ppo/{name}" for name in ("kl", "max_log_prob_change")}
        self.rollout_metrics = {
            **mean,
            **{ours: first[name] for ours, name in compared.items() if name in first},
            "learning_rate": self._optimizers[0].param_groups[0]["lr"],
            "reward_std": self.reward_normalizer.var.sqrt().item(),
            **self.trainer.datamodule.rollout_metrics,  # type: ignore[attr-defined]
            "time/update": now - start,
            "time/frames_per_second": rollout.numel() * self.trainer.world_size / seconds,
        }
        self.log_metrics(self.rollout_metrics)

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All parameters by name, those of the agent as it names them."""
        return [*self.agent.named_parameters(), *self.inference.named_parameters("inference")]

    def _check_finite(self, metrics: dict[str, float], norms: list[float]) -> None:
        """Ends the run as diverged, naming the first loss, gradient norm or parameter that is not finite."""
        losses = [item for item in metrics.items() if item[0].startswith(("loss/", "grad_norm/", "inference/"))]
        named = [*losses, *zip((name for name, _ in self._named_parameters()), norms, strict=True)]
        for name, value in named:
            if not abs(value) < float("inf"):
                raise DivergedError(f"{name} is {value} at frame {self.frames}")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what resuming needs besides parameters and optimiser."""
        checkpoint["learner"] = {
            "frames": self.frames,
            "permutations": self.permutations.get_state(),
            "inference": torch.stack(gather_over_ranks(self.inference.generator.get_state())),
            "pretrained": self.pretrained,
            "discounted_return": gather_over_ranks(_to_cpu(self.reward_normalizer.discounted_return)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what :meth:`on_save_checkpoint` added."""
        state = checkpoint["learner"]
        self.frames = state["frames"]
        self.permutations.set_state(state["permutations"])
        self.pretrained = state["pretrained"]
        returns, rank = state["discounted_return"], self.trainer.global_rank
        # Other ranks than those that saved start with new tasks, whose returns are 0, and with new noise.
        same = len(returns) == self.trainer.world_size
        self.reward_normalizer.discounted_return = returns[rank] if same else None
        if same:
            own = self.inference.generator.get_state()
            # Cloned, because a generator reads a state from the beginning of the row's storage.
            self.inference.generator.set_state(state["inference"].view(-1, len(own))[rank].clone())
