"""PPO's arithmetic: advantages and loss, from TorchRL wherever it expresses the specification exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from hyperrl import keys
from hyperrl.distributed import sum_over_ranks
from hyperrl.errors import ConfigError
from hyperrl.modules.distributions import DiagonalNormal, UncheckedCategorical

ADVANTAGE_EPSILON = 1e-5
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class PPOConfig:
    """PPO's settings (spec/training.md section 5).

    Attributes:
        optimizer: optimiser of the policy: adam, or rmsprop with smoothing 0.99; encoder and decoders have Adam.
        lr: learning rate of policy and encoder.
        lr_schedule: constant, or linear decay to 0 over the frame budget.
        eps: epsilon of the policy's optimiser.
        encoder_eps: Adam's epsilon for the encoder's parameters.
        gamma: discount.
        gae_lambda: lambda of generalised advantage estimation.
        clip: clip range of the probability ratio, and of the value if clip_value.
        clip_value: whether the value loss is clipped around the old value.
        huber: whether the value loss is Huber's (threshold 1) instead of the squared error.
        value_coeff: weight of the value loss.
        entropy_coeff: weight of the entropy bonus.
        max_grad_norm: bound of the gradient norm, for policy and encoder separately.
        epochs: passes over each rollout.
        num_minibatches: minibatches per pass.
        minibatch: whole environments over all steps (env), or single steps as in the reference (step), which
            re-encodes the whole rollout for each.
        normalize_rewards: whether the policy learns from rewards scaled by the running deviation of the return.
        reward_clip: bound of the scaled rewards.
    """

    optimizer: Literal["adam", "rmsprop"] = "adam"
    lr: float = 7e-4
    lr_schedule: Literal["constant", "linear"] = "constant"
    eps: float = 1e-5
    encoder_eps: float = 1e-8
    gamma: float = 0.95
    gae_lambda: float = 0.95
    clip: float = 0.05
    clip_value: bool = True
    huber: bool = True
    value_coeff: float = 0.5
    entropy_coeff: float = 0.1
    max_grad_norm: float = 0.5
    epochs: int = 2
    num_minibatches: int = 4
    minibatch: Literal["env", "step"] = "env"
    normalize_rewards: bool = True
    reward_clip: float = 10.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "rmsprop"):
            raise ConfigError(f"model.ppo.optimizer is {self.optimizer}; expected adam or rmsprop")
        for name in ("lr", "eps", "encoder_eps", "clip", "max_grad_norm", "reward_clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"model.ppo.{name} is {getattr(self, name)}; expected a positive number")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"model.ppo.{name} is {getattr(self, name)}; expected a number between 0 and 1")
        for name in ("value_coeff", "entropy_coeff"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"model.ppo.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.ppo.{name} is {getattr(self, name)}; expected at least 1")


def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, never across the end of a meta-episode; inner episodes do not cut credit.

    Args:
        reward: ``[B, T, 1]``.
        value: value of each step's state ``[B, T, 1]``.
        next_value: value of the state after each step, before any reset ``[B, T, 1]``.
        done: ends of meta-episodes, which cut the sum ``[B, T, 1]``.
        terminated: those ends that also have no future value ``[B, T, 1]``.
        gamma: discount.
        gae_lambda: lambda; 1 gives discounted returns minus values.

    Returns:
        Advantages and value targets, both ``[B, T, 1]``.
    """
    if gamma * gae_lambda < NEGLIGIBLE:  # TorchRL drops such terms of the sum and fails if none is left
        target = reward + gamma * next_value.masked_fill(terminated, 0.0)
        return target - value, target
    advantage, target = vec_generalized_advantage_estimate(
        gamma, gae_lambda, value, next_value, reward, done, terminated
    )
    return advantage, target


def normalize_advantages(advantage: Tensor) -> Tensor:
    """Centres and scales the advantages of a rollout over all ranks: ``(A - mean) / (std + 1e-5)``, unbiased std."""
    rows = advantage.double()
    sums = torch.stack([torch.ones_like(rows).sum(), rows.sum(), rows.square().sum()])
    number, total, squares = sum_over_ranks(sums)
    mean = total / number
    std = ((squares - number * mean.square()).clamp_min(0) / (number - 1)).sqrt()
    return ((rows - mean) / (std + ADVANTAGE_EPSILON)).to(advantage.dtype)


class PPOLoss(ClipPPOLoss):
    """TorchRL's clipped PPO loss on distribution parameters and values that are already computed.

    Actor and critic share their first expansion, so the learner runs both and hands over ``logits`` (or ``loc`` and
    ``scale``) and ``new_value``; the "networks" of the loss only pick them up. ``critic_coeff`` is half the coefficient
    except for the unclipped Huber loss, which has no factor 1/2 (spec/training.md section 5.1).

    Args:
        config: PPO's settings.
        discrete: whether actions are discrete.
    """

    def __init__(self, config: PPOConfig, discrete: bool) -> None:
        plain_huber = config.huber and not config.clip_value
        super().__init__(
            _actor(discrete),
            TensorDictModule(nn.Identity(), in_keys=[keys.NEW_VALUE], out_keys=[keys.STATE_VALUE]),
            clip_epsilon=config.clip,
            clip_value=config.clip_value,
            entropy_coeff=config.entropy_coeff,
            critic_coeff=config.value_coeff * (1.0 if plain_huber else 0.5),
            loss_critic_type="smooth_l1" if config.huber else "l2",
            normalize_advantage=False,
            functional=False,
        )
        if config.clip_value:
            # The loss asks whether this is 0; a buffer, as TorchRL has it, would make the host wait for the device.
            del self.clip_value
            self.clip_value: float | None = config.clip
        # Coefficients belong to the configuration: a checkpoint must not bring back those it was trained with.
        self._non_persistent_buffers_set.update(self._buffers)

    def _get_entropy(self, dist: Distribution, adv_shape: torch.Size) -> Tensor:
        """The closed form; TorchRL's own would synchronise the device to see whether it is finite."""
        return dist.entropy().unsqueeze(-1)

    def log_prob(self, batch: TensorDictBase) -> Tensor:
        """Log-probabilities ``[N]`` of the stored actions under the parameters in ``batch``."""
        with torch.no_grad():
            return self.actor_network.get_dist(batch).log_prob(batch[keys.ACTION])

    def total(self, batch: TensorDictBase) -> tuple[Tensor, TensorDictBase]:
        """The loss of a flat minibatch ``[N]`` and its parts, named as TorchRL names them."""
        parts = self(batch)
        return parts["loss_objective"] + parts["loss_critic"] + parts["loss_entropy"], parts


def _actor(discrete: bool) -> ProbabilisticTensorDictModule:
    """What the loss takes for an actor: distribution parameters in, distribution out."""
    return ProbabilisticTensorDictModule(
        in_keys=[keys.LOGITS] if discrete else [keys.LOC, keys.SCALE],
        out_keys=[keys.ACTION],
        distribution_class=UncheckedCategorical if discrete else DiagonalNormal,
        return_log_prob=True,
    )


def ratio_diagnostics(log_prob: Tensor, old_log_prob: Tensor) -> tuple[Tensor, Tensor]:
    """How far the policy has moved: mean of ``ratio - 1 - log ratio``, and the largest change of a log-probability.

    On the first minibatch of an update both are 0 up to rounding (collection equals replay).
    """
    change = (log_prob - old_log_prob).detach()
    return (change.exp() - 1 - change).mean(), change.abs().max()
