"""The learner: rollouts in, epochs of minibatches, one optimiser, logging. Orchestration only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.distributed import gather_over_ranks
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError, DivergedError
from hyperrl.metrics import adaptation_metrics
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.encoder import EncoderConfig
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
from hyperrl.seeding import derive_seed, run_seed

# What the update reads of a rollout; everything else is dropped before minibatches are cut.
LEARNER_KEYS = (
    keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.START_MEMORY,
    keys.ACTION, keys.ACTION_LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET, keys.STATE_VALUE,
    (keys.NEXT, keys.OBSERVATION), (keys.NEXT, keys.PREV_OBSERVATION), (keys.NEXT, keys.PREV_ACTION),
    (keys.NEXT, keys.PREV_REWARD), keys.BELIEF, keys.TASK, keys.TASK_ID,
)  # fmt: skip


def _to_cpu(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.cpu()


class MetaPPO(LightningModule):
    """PPO for an agent with memory, by gradients through whole rollouts (spec/training.md sections 2-5, 8).

    Args:
        env_info: sizes of the environment (linked from the data).
        num_envs: number of parallel environments (linked from the data).
        frames: frame budget, for the learning-rate schedule (linked from the data).
        encoder: sizes of the memory.
        policy: configuration of actor and critic.
        ppo: PPO's settings.
    """

    def __init__(
        self,
        env_info: EnvInfo,
        num_envs: int,
        frames: int,
        encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 - frozen
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008 - frozen
        ppo: PPOConfig = PPOConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if ppo.minibatch == "env" and num_envs % ppo.num_minibatches:
            raise ConfigError(
                f"data.num_envs ({num_envs}) is not divisible by model.ppo.num_minibatches ({ppo.num_minibatches}); "
                "expected whole environments in equal minibatches"
            )
        self.automatic_optimization = False
        self.config = ppo
        self.total_frames = frames
        self.frames = 0
        self.agent = Agent(env_info, encoder, policy)
        self.reward_normalizer = RewardNormalizer(ppo.gamma, ppo.reward_clip)
        self.ppo_loss = PPOLoss(ppo, env_info.actions.discrete)
        self.permutations = torch.Generator().manual_seed(derive_seed(run_seed(), "minibatches"))
        self.rollout_metrics: dict[str, float] = {}
        self._last_time = time.perf_counter()

    # Acting

    def actor(self, generator: torch.Generator) -> Actor:
        """The acting half of the agent, for the collector; it shares the parameters."""
        return Actor(self.agent, generator)

    # The update, in public pieces

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One fused Adam with a parameter group for the policy and one for the encoder."""
        groups = [
            {"params": list(self.agent.policy.parameters()), "eps": self.config.eps},
            {"params": list(self.agent.encoder.parameters()), "eps": self.config.encoder_eps},
        ]
        return torch.optim.Adam(groups, lr=self.config.lr, fused=True)

    def training_step(self, rollout: TensorDictBase, batch_idx: int) -> None:
        """One PPO update on a rollout ``[B, T]``."""
        start = time.perf_counter()
        rollout, latent = self.with_advantages(rollout)
        parts = [self.optimize(rollout, index) for index in self.minibatches(rollout)]
        self.agent.update_statistics(rollout, latent)
        self.frames += rollout.numel() * self.trainer.world_size
        self._anneal()
        self._report(parts, rollout, start)

    @torch.no_grad()
    def with_advantages(self, rollout: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        """Adds values, normalised advantages and value targets to a rollout ``[B, T]``.

        Values are taken by the learner, in one pass over T+1 steps; the terminal transition is encoded, too, so that a
        truncated task bootstraps from its real last state.

        Returns:
            The rollout reduced to what the update reads, and the latents at decision time ``[B, T, 2L]``.
        """
        latent, next_latent = self.agent.encoder.encode(rollout)
        value, next_value = self._values(rollout, latent, next_latent)
        after = rollout[keys.NEXT]
        reward = after[keys.REWARD]
        if self.config.normalize_rewards:
            reward = self.reward_normalizer(reward, after[keys.DONE])
        advantage, target = generalized_advantages(
            reward, value, next_value, after[keys.DONE], after[keys.TERMINATED], self.config.gamma,
            self.config.gae_lambda,
        )  # fmt: skip
        rollout = rollout.copy()
        rollout[keys.STATE_VALUE], rollout[keys.VALUE_TARGET] = value, target
        rollout[keys.ADVANTAGE] = normalize_advantages(advantage)
        return rollout.select(*LEARNER_KEYS, strict=False), latent

    def _values(self, rollout: TensorDictBase, latent: Tensor, next_latent: Tensor) -> tuple[Tensor, Tensor]:
        """Values of each step's state and of the state after each step, both ``[B, T, 1]``."""
        after = rollout[keys.NEXT]
        value = self.agent.values(rollout, latent)
        next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        # Inside the rollout the next step's value serves, except where a task was cut short: it starts another task.
        own = after[keys.DONE][..., 0].clone()
        own[:, -1] = True
        row, step = (own & ~after[keys.TERMINATED][..., 0]).nonzero(as_tuple=True)
        next_value[row, step] = self.agent.values(after[row, step], next_latent[row, step])
        return value, next_value

    def minibatches(self, rollout: TensorDictBase) -> Iterator[Tensor]:
        """Index tensors of all minibatches of all epochs: of environments, or of steps counted as ``b * T + t``."""
        size = rollout.shape[0] if self.config.minibatch == "env" else rollout.numel()
        for _ in range(self.config.epochs):
            yield from permuted_chunks(size, self.config.num_minibatches, self.permutations)

    def loss(self, rollout: TensorDictBase, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch and what is logged of it."""
        if self.config.minibatch == "env":
            rollout = rollout[index]
            latent = self.agent.encoder.encode(rollout)[0].flatten(0, 1)
            batch = rollout.flatten()
        else:
            latent = self.agent.encoder.encode(rollout)[0].flatten(0, 1)[index]
            batch = rollout.flatten()[index]
        parameters, value = self.agent.evaluate(batch, latent)
        flat = batch.select(
            keys.ACTION, keys.ACTION_LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET, keys.STATE_VALUE
        ).update({**parameters, keys.NEW_VALUE: value})
        total, parts = self.ppo_loss.total(flat)
        return total, self._diagnostics(flat, total, parts)

    def _diagnostics(self, batch: TensorDictBase, total: Tensor, parts: TensorDictBase) -> dict[str, Tensor]:
        """What is logged of one minibatch, without gradient."""
        log_prob = self.ppo_loss.log_prob(batch)
        kl, change = ratio_diagnostics(log_prob, batch[keys.ACTION_LOG_PROB])
        named = {
            "loss/total": total,
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

    def optimize(self, rollout: TensorDictBase, index: Tensor) -> dict[str, Tensor]:
        """One optimiser step on one minibatch; policy and encoder gradients are clipped separately."""
        optimizer = self._optimizer
        total, logged = self.loss(rollout, index)
        optimizer.zero_grad()
        # Autocast is for forward passes: what left it (memory, heads, losses) would get its gradients in bf16.
        with torch.autocast(total.device.type, enabled=False):
            self.manual_backward(total)
        for name, module in (("policy", self.agent.policy), ("encoder", self.agent.encoder)):
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), self.config.max_grad_norm)
            logged[f"grad_norm/{name}"] = norm.to(total.device)  # on the host if nothing has a gradient
        optimizer.step()
        return logged

    @property
    def _optimizer(self) -> LightningOptimizer:
        """The single optimiser, through Lightning, which counts its steps."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def on_train_start(self) -> None:
        """Puts the configured rates over those that came with the optimiser's state of a resumed checkpoint."""
        # Not strict: a subclass may optimise the policy alone.
        for group, eps in zip(self._optimizer.param_groups, (self.config.eps, self.config.encoder_eps), strict=False):
            group["eps"] = eps
        self._anneal()

    def _anneal(self) -> None:
        """Sets the learning rate by frames, after each update."""
        left = max(0.0, 1 - self.frames / self.total_frames) if self.config.lr_schedule == "linear" else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr * left

    # Validation and test: the adaptation curve on fresh tasks

    def validation_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Logs the return of each episode over the tasks of ``batch``: ``returns [N, K]`` and maybe ``success``."""
        self._log_adaptation("val", batch)

    def test_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """As :meth:`validation_step`, on the tasks of the test."""
        self._log_adaptation("test", batch)

    def _log_adaptation(self, stage: str, batch: TensorDictBase) -> None:
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

    def _report(self, parts: list[dict[str, Tensor]], rollout: TensorDictBase, start: float) -> None:
        """Averages what the minibatches logged, in one transfer from the device, and checks that it is finite."""
        names = list(parts[0])
        table = torch.stack([torch.stack([part[name] for name in names]) for part in parts])
        norms = torch.stack(torch._foreach_norm(list(self.agent.parameters())))
        values = torch.cat([table.mean(0), table[0], norms]).tolist()
        means = dict(zip(names, values, strict=False))
        first = dict(zip(names, values[len(names) :], strict=False))
        self._check_finite(means, values[2 * len(names) :])
        now = time.perf_counter()
        seconds, self._last_time = now - self._last_time, now
        self.rollout_metrics = {
            **means,
            "ppo/first_kl": first["ppo/kl"],
            "ppo/first_max_log_prob_change": first["ppo/max_log_prob_change"],
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "reward_std": self.reward_normalizer.var.sqrt().item(),
            **self.trainer.datamodule.rollout_metrics,  # type: ignore[attr-defined]
            "time/update": now - start,
            "time/frames_per_second": rollout.numel() * self.trainer.world_size / seconds,
        }
        self.log_metrics(self.rollout_metrics)

    def _check_finite(self, metrics: dict[str, float], norms: list[float]) -> None:
        """Ends the run as diverged, naming the first loss, gradient norm or parameter that is not finite."""
        losses = [item for item in metrics.items() if item[0].startswith(("loss/", "grad_norm/"))]
        named = [*losses, *zip((name for name, _ in self.agent.named_parameters()), norms, strict=True)]
        for name, value in named:
            if not abs(value) < float("inf"):
                raise DivergedError(f"{name} is {value} at frame {self.frames}")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what resuming needs besides parameters and optimiser."""
        checkpoint["learner"] = {
            "frames": self.frames,
            "permutations": self.permutations.get_state(),
            "discounted_return": gather_over_ranks(_to_cpu(self.reward_normalizer.discounted_return)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what :meth:`on_save_checkpoint` added."""
        state = checkpoint["learner"]
        self.frames = state["frames"]
        self.permutations.set_state(state["permutations"])
        returns = state["discounted_return"]
        # Other ranks than those that saved start with new tasks, whose returns are 0.
        same = len(returns) == self.trainer.world_size
        self.reward_normalizer.discounted_return = returns[self.trainer.global_rank] if same else None
