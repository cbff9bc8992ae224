"""Running statistics as buffers: checkpointed with the module, pooled over ranks, frozen in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperrl.distributed import sum_over_ranks
from hyperrl.modules.scan import linear_scan

# Prior weight of the initial moments (mean 0, variance 1): the reference's value, so that the first batch dominates.
INITIAL_COUNT = 1e-4
EPSILON = 1e-8


class RunningNorm(nn.Module):
    """Normalises a policy input by running moments (spec/training.md section 8.2).

    The moments move only in :meth:`update`, which the learner calls once per rollout **after** the epochs, so that
    log-probabilities recomputed from the stored rollout equal the stored ones.

    Args:
        dim: width of the input.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("count", torch.tensor(INITIAL_COUNT, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(x - mean) / sqrt(var + 1e-8)``, unclipped, for ``x`` of shape ``[..., dim]``."""
        return (x - self.mean) * torch.rsqrt(self.var + EPSILON)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merges the moments of all rows of ``x [..., dim]`` (unbiased batch variance, as published runs used)."""
        rows = x.reshape(-1, x.shape[-1]).double()
        sums = torch.stack([torch.full_like(rows[0], rows.shape[0]), rows.sum(0), rows.square().sum(0)])
        number, total, squares = sum_over_ranks(sums)
        batch_mean = total / number
        batch_var = (squares - number * batch_mean.square()).clamp_min(0) / (number - 1)
        number = number[0]
        delta, new_count = batch_mean - self.mean, self.count + number
        between = delta.square() * (self.count * number / new_count)
        self.var.copy_((self.var * self.count + batch_var * number + between) / new_count)
        self.mean.copy_(self.mean + delta * (number / new_count))
        self.count.copy_(new_count)


class RewardNormalizer(nn.Module):
    """Scales rewards by the running standard deviation of the discounted return (spec/training.md section 8.1).

    One scan over the rollout replaces the reference's loop; the moments after step ``t`` scale the reward of step
    ``t``, as there. A task's end clears only the accumulator of its own environment (quirk Q10, fixed).

    Args:
        gamma: discount of the accumulated return.
        clip: bound of the scaled reward.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, gamma: float, clip: float = 10.0) -> None:
        super().__init__()
        self.gamma, self.clip = gamma, clip
        for name, value in (("mean", 0.0), ("var", 1.0), ("count", INITIAL_COUNT)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        # One number per environment of this rank; it belongs to the rollout stream, not to the model, so it is not a
        # buffer (DDP would overwrite it with rank 0's, and a checkpoint must load with another number of environments).
        self.discounted_return: Tensor | None = None

    def reset(self, mask: Tensor) -> None:
        """Clears the accumulated return of the environments in ``mask [B]``."""
        if self.discounted_return is not None:
            self.discounted_return = self.discounted_return.masked_fill(mask, 0.0)

    @torch.no_grad()
    def forward(self, reward: Tensor, done: Tensor) -> Tensor:
        """Updates the statistics (in training mode) and scales the rewards of one rollout.

        Args:
            reward: raw rewards ``[B, T, 1]``.
            done: ends of meta-episodes ``[B, T, 1]``.

        Returns:
            Scaled, clipped rewards ``[B, T, 1]``, never centred.
        """
        var = self._advance(reward[..., 0].double(), done[..., 0])
        scaled = reward[..., 0] * torch.rsqrt(var + EPSILON)
        return scaled.clamp(-self.clip, self.clip).to(reward.dtype).unsqueeze(-1)

    def _advance(self, reward: Tensor, done: Tensor) -> Tensor:
        """Moves accumulators and moments over the rollout; returns the variance after each step ``[T]``."""
        if self.discounted_return is None or len(self.discounted_return) != len(reward):
            self.discounted_return = reward.new_zeros(len(reward))
        cut = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], 1)
        returns = linear_scan(self.gamma * (~cut).double(), reward, self.discounted_return.to(reward)).masked_fill(
            done, 0.0
        )
        self.discounted_return = returns[:, -1]
        if not self.training:
            return self.var.expand(reward.shape[1])
        number = torch.full_like(returns[0], len(returns))
        sums = sum_over_ranks(torch.stack([number, returns.sum(0), returns.square().sum(0)])).cumsum(1)
        count = self.count + sums[0]
        mean = (self.count * self.mean + sums[1]) / count
        var = (self.count * (self.var + self.mean.square()) + sums[2]) / count - mean.square()
        self.count.copy_(count[-1])
        self.mean.copy_(mean[-1])
        self.var.copy_(var[-1])
        return var
