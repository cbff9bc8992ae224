"""Running statistics: merged exactly, frozen where they must be, and never leaking between environments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperrl.modules.normalization import INITIAL_COUNT, RewardNormalizer, RunningNorm

DIM = 3


def rows(number: int, seed: int = 0, shift: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, DIM, generator=generator) * torch.tensor([1.0, 3.0, 0.1]) + shift


def merged(batches: list[Tensor]) -> tuple[Tensor, Tensor, float]:
    """The moment update of spec/training.md section 8, batch by batch, with unbiased batch variances."""
    mean = torch.zeros(DIM, dtype=torch.float64)
    var, count = torch.ones(DIM, dtype=torch.float64), 1e-4
    for batch in batches:
        batch = batch.double()
        number, delta = len(batch), batch.mean(0) - mean
        total = count + number
        var = (var * count + batch.var(0) * number + delta**2 * (count * number / total)) / total
        mean, count = mean + delta * number / total, total
    return mean, var, count


class TestRunningNorm:
    def test_moments_follow_the_published_update(self) -> None:
        norm, batches = RunningNorm(DIM), [rows(number, number) for number in (7, 2, 100)]
        for batch in batches:
            norm.update(batch)
        mean, var, count = merged(batches)
        torch.testing.assert_close(norm.mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.var.double(), var, rtol=1e-5, atol=1e-6)
        assert norm.count.item() == pytest.approx(count)

    def test_batches_merge_like_one_big_batch(self) -> None:
        data = rows(4000)
        parts, whole = RunningNorm(DIM), RunningNorm(DIM)
        for part in data.split([1000, 500, 2500]):
            parts.update(part)
        whole.update(data)
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-6)
        # Unbiased batch variances differ by a factor of 1 + 1/c.
        torch.testing.assert_close(parts.var, whole.var, rtol=3e-3, atol=0)
        assert parts.count == whole.count

    def test_leading_dimensions_are_rows(self) -> None:
        data, flat, shaped = rows(60), RunningNorm(DIM), RunningNorm(DIM)
        flat.update(data)
        shaped.update(data.view(4, 15, DIM))
        assert all(torch.equal(a, b) for a, b in zip(flat.buffers(), shaped.buffers(), strict=True))

    def test_a_large_mean_does_not_swallow_the_variance(self) -> None:
        norm = RunningNorm(DIM)
        for seed in range(5):
            norm.update(rows(1000, seed, shift=100.0))
        torch.testing.assert_close(norm.var, torch.tensor([1.0, 9.0, 0.01]), rtol=0.1, atol=0)

    def test_output_has_mean_zero_and_variance_one(self) -> None:
        norm, data = RunningNorm(DIM), rows(5000)
        norm.update(data)
        torch.testing.assert_close(norm(data).mean(0), torch.zeros(DIM), rtol=0, atol=1e-4)
        torch.testing.assert_close(norm(data).var(0), torch.ones(DIM), rtol=1e-3, atol=0)

    @pytest.mark.parametrize("training", [True, False])
    def test_moments_move_only_in_update(self, training: bool) -> None:
        norm = RunningNorm(DIM).train(training)
        norm.update(rows(10))
        before = [buffer.clone() for buffer in norm.buffers()]
        norm(rows(10, 1))
        assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))

    def test_moments_are_part_of_a_checkpoint_and_not_trained(self) -> None:
        assert set(RunningNorm(DIM).state_dict()) == {"mean", "var", "count"}
        assert not list(RunningNorm(DIM).parameters())


BATCH, GAMMA = 4, 0.9


class Loop:
    """Spec/training.md section 8.1 step by step, in double precision; only the done environment is cleared."""

    def __init__(self, clip: float = 10.0) -> None:
        self.accumulator = torch.zeros(BATCH, dtype=torch.float64)
        self.mean, self.var, self.count, self.clip = 0.0, 1.0, INITIAL_COUNT, clip

    def step(self, reward: Tensor, done: Tensor) -> Tensor:
        self.accumulator = GAMMA * self.accumulator + reward
        self.accumulator[done] = 0
        number, delta = BATCH, self.accumulator.mean() - self.mean
        total = self.count + number
        between = delta**2 * self.count * number / total
        self.var = (self.var * self.count + self.accumulator.var(correction=0) * number + between) / total
        self.mean, self.count = self.mean + delta * number / total, total
        return (reward / torch.sqrt(self.var + 1e-8)).clamp(-self.clip, self.clip)

    def __call__(self, reward: Tensor, done: Tensor) -> Tensor:
        steps = [self.step(reward[:, t, 0], done[:, t, 0]) for t in range(reward.shape[1])]
        return torch.stack(steps, 1).unsqueeze(-1)


def rollout(seed: int, steps: int = 11, rate: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(BATCH, steps, 1, generator=generator, dtype=torch.float64) * 3 + 0.5
    return reward, torch.rand(BATCH, steps, 1, generator=generator) < rate


class TestRewardNormalizer:
    @pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
    def test_equals_the_step_by_step_loop_across_rollouts(self, rate: float) -> None:
        ours, loop = RewardNormalizer(GAMMA), Loop()
        for seed in range(3):
            reward, done = rollout(seed, rate=rate)
            torch.testing.assert_close(ours(reward, done), loop(reward, done))
        for name in ("mean", "var", "count"):
            assert getattr(ours, name).item() == pytest.approx(float(getattr(loop, name)))
        torch.testing.assert_close(ours.discounted_return, loop.accumulator)

    def test_cutting_into_rollouts_changes_nothing(self) -> None:
        whole, parts = RewardNormalizer(GAMMA), RewardNormalizer(GAMMA)
        reward, done = rollout(5, steps=20)
        pieces = zip(reward.split([1, 12, 7], 1), done.split([1, 12, 7], 1), strict=True)
        torch.testing.assert_close(torch.cat([parts(*piece) for piece in pieces], 1), whole(reward, done))

    def test_scaled_rewards_are_clipped_and_never_centred(self) -> None:
        ours, loop = RewardNormalizer(GAMMA, clip=0.3), Loop(clip=0.3)
        reward, done = rollout(0)
        result = ours(reward, done)
        torch.testing.assert_close(result, loop(reward, done))
        assert result.abs().max() == 0.3
        inside = result.abs() < 0.3
        assert torch.equal(result[inside].sign(), reward[inside].sign())

    def test_result_has_the_type_of_the_rewards(self) -> None:
        reward, done = rollout(0)
        assert RewardNormalizer(GAMMA)(reward.float(), done).dtype == torch.float32

    def test_statistics_are_frozen_in_evaluation(self) -> None:
        ours = RewardNormalizer(GAMMA)
        ours(*rollout(0))
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        reward, done = rollout(1)
        result = ours.eval()(reward, done)
        assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())
        torch.testing.assert_close(result, (reward / (before["var"] + 1e-8).sqrt()).clamp(-10, 10))

    def test_reset_clears_only_the_masked_environments(self) -> None:
        ours, loop = RewardNormalizer(GAMMA), Loop()
        first, second, mask = rollout(0, rate=0), rollout(1, rate=0), torch.tensor([True, False, False, True])
        ours.reset(mask)  # nothing to clear yet
        ours(*first)
        loop(*first)
        ours.reset(mask)
        loop.accumulator[mask] = 0
        assert (ours.discounted_return == 0).tolist() == mask.tolist()
        torch.testing.assert_close(ours(*second), loop(*second))

    def test_another_number_of_environments_starts_new_accumulators(self) -> None:
        ours = RewardNormalizer(GAMMA)
        ours(*rollout(0))
        reward, done = rollout(1)
        ours(reward[:2], done[:2])
        assert ours.discounted_return.shape == (2,)

    def test_accumulators_are_not_part_of_the_model(self) -> None:
        ours = RewardNormalizer(GAMMA)
        ours(*rollout(0))
        assert set(ours.state_dict()) == {"mean", "var", "count"}
