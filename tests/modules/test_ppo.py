"""PPO's arithmetic against the formulas of spec/training.md sections 4 and 5, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.nn.functional import smooth_l1_loss

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.ppo import PPOConfig, PPOLoss, generalized_advantages, normalize_advantages, ratio_diagnostics

ENVS, STEPS, NUMBER = 4, 12, 40
GRID = EnvInfo(3, 1, 5, horizon=60)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped_advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor, terminated: Tensor, gamma: float, lam: float
) -> Tensor:
    """A_t = d_t + gamma lambda A_t+1, cut at done; d_t has no next value where the task terminated."""
    advantage = torch.zeros_like(reward)
    carry = torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        future = torch.where(terminated[:, t], 0.0, next_value[:, t])
        delta = reward[:, t] + gamma * future - value[:, t]
        carry = delta + gamma * lam * torch.where(done[:, t], 0.0, carry)
        advantage[:, t] = carry
    return advantage


def ends() -> tuple[Tensor, Tensor]:
    """Done and terminated: one row ends by termination, one by truncation, one by both kinds, one never."""
    done, terminated = (torch.zeros(ENVS, STEPS, 1, dtype=torch.bool) for _ in range(2))
    done[0, 5] = terminated[0, 5] = True
    done[1, 5] = True
    done[2, [2, 3, 11]] = terminated[2, 3] = True
    return done, terminated


@pytest.mark.parametrize("gamma", [0.95, 1.0, 0.0])
@pytest.mark.parametrize("lam", [0.95, 1.0, 0.0])
def test_advantages_equal_the_loop_with_ends_in_the_middle(gamma: float, lam: float) -> None:
    reward, value, next_value = (random(ENVS, STEPS, 1, seed=seed) for seed in range(3))
    done, terminated = ends()
    advantage, target = generalized_advantages(reward, value, next_value, done, terminated, gamma, lam)
    expected = looped_advantages(reward, value, next_value, done, terminated, gamma, lam)
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(target, expected + value)


def test_termination_has_no_future_and_truncation_has() -> None:
    reward, value, next_value = (random(ENVS, STEPS, 1, seed=seed) for seed in range(3))
    done, terminated = ends()
    before, _ = generalized_advantages(reward, value, next_value, done, terminated, 0.9, 0.9)
    next_value[:2, 5] += 10
    after, _ = generalized_advantages(reward, value, next_value, done, terminated, 0.9, 0.9)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1, 5], before[1, 5] + 9)
    torch.testing.assert_close(after[1, 4], before[1, 4] + 0.81 * 9)
    torch.testing.assert_close(after[1, 6:], before[1, 6:])


def test_nothing_passes_the_end_of_a_task() -> None:
    reward, value, next_value = (random(ENVS, STEPS, 1, seed=seed) for seed in range(3))
    done, terminated = ends()
    before, _ = generalized_advantages(reward, value, next_value, done, terminated, 0.9, 0.9)
    reward[:2, 6:] += 100
    after, _ = generalized_advantages(reward, value, next_value, done, terminated, 0.9, 0.9)
    torch.testing.assert_close(after[:2, :6], before[:2, :6])
    assert (after[:2, 6:] > before[:2, 6:]).all()


def test_advantages_are_normalised_over_the_rollout() -> None:
    advantage = random(ENVS, STEPS, 1) * 3 + 2
    result = normalize_advantages(advantage)
    torch.testing.assert_close(result, (advantage - advantage.mean()) / (advantage.std(correction=1) + 1e-5))


def batch_of(discrete: bool) -> TensorDict:
    """A flat minibatch in which ratios, values and targets fall on both sides of every clip."""
    parameters = (
        {keys.LOGITS: random(NUMBER, 5)}
        if discrete
        else {keys.LOC: random(NUMBER, 2), keys.SCALE: random(NUMBER, 2, seed=1).exp()}
    )
    action = torch.arange(NUMBER) % 5 if discrete else random(NUMBER, 2, seed=2)
    old = log_prob_of(parameters, action) + 0.2 * random(NUMBER, seed=3)
    entries = {
        keys.ACTION: action,
        keys.ACTION_LOG_PROB: old,
        keys.ADVANTAGE: random(NUMBER, 1, seed=4),
        keys.VALUE_TARGET: 2 * random(NUMBER, 1, seed=5),
        keys.STATE_VALUE: random(NUMBER, 1, seed=6),
    }
    entries[keys.NEW_VALUE] = entries[keys.STATE_VALUE] + 0.2 * random(NUMBER, 1, seed=7)
    trained = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
    return TensorDict({**entries, **trained, keys.NEW_VALUE: entries[keys.NEW_VALUE].requires_grad_()}, [NUMBER])


def log_prob_of(parameters: Any, action: Tensor) -> Tensor:
    if keys.LOGITS in parameters:
        return Categorical(logits=parameters[keys.LOGITS]).log_prob(action)
    return Normal(parameters[keys.LOC], parameters[keys.SCALE]).log_prob(action).sum(-1)


def entropy_of(batch: TensorDict) -> Tensor:
    if keys.LOGITS in batch:
        return Categorical(logits=batch[keys.LOGITS]).entropy().mean()
    return Normal(batch[keys.LOC], batch[keys.SCALE]).entropy().sum(-1).mean()


def value_loss(batch: TensorDict, config: PPOConfig) -> Tensor:
    """The table of section 5.1."""
    new, old, target = batch[keys.NEW_VALUE], batch[keys.STATE_VALUE], batch[keys.VALUE_TARGET]

    def distance(value: Tensor) -> Tensor:
        return smooth_l1_loss(value, target, reduction="none") if config.huber else (value - target) ** 2

    if not config.clip_value:
        return distance(new).mean() * (1.0 if config.huber else 0.5)
    clipped = old + (new - old).clamp(-config.clip, config.clip)
    return 0.5 * torch.maximum(distance(new), distance(clipped)).mean()


def policy_loss(batch: TensorDict, clip: float) -> Tensor:
    ratio = (log_prob_of(batch, batch[keys.ACTION]) - batch[keys.ACTION_LOG_PROB]).exp()
    advantage = batch[keys.ADVANTAGE].squeeze(-1)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("clip_value", [True, False])
@pytest.mark.parametrize("huber", [True, False])
class TestLoss:
    def config(self, huber: bool, clip_value: bool) -> PPOConfig:
        return PPOConfig(huber=huber, clip_value=clip_value, clip=0.1, value_coeff=0.7, entropy_coeff=0.03)

    def test_parts_and_sum_equal_the_formulas(self, huber: bool, clip_value: bool, discrete: bool) -> None:
        config, batch = self.config(huber, clip_value), batch_of(discrete)
        total, parts = PPOLoss(config, discrete).total(batch)
        expected = {
            "loss_objective": policy_loss(batch, 0.1),
            "loss_critic": 0.7 * value_loss(batch, config),
            "loss_entropy": -0.03 * entropy_of(batch),
        }
        for name, value in expected.items():
            torch.testing.assert_close(parts[name].squeeze(), value, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(total.squeeze(), sum(expected.values()))
        torch.testing.assert_close(parts["entropy"].squeeze(), entropy_of(batch).detach())

    def test_gradients_equal_those_of_the_formulas(self, huber: bool, clip_value: bool, discrete: bool) -> None:
        config, batch = self.config(huber, clip_value), batch_of(discrete)
        names = ([keys.LOGITS] if discrete else [keys.LOC, keys.SCALE]) + [keys.NEW_VALUE]
        inputs = [batch[name] for name in names]
        total, _ = PPOLoss(config, discrete).total(batch)
        formula = policy_loss(batch, 0.1) + 0.7 * value_loss(batch, config) - 0.03 * entropy_of(batch)
        found, expected = (torch.autograd.grad(loss.squeeze(), inputs) for loss in (total, formula))
        torch.testing.assert_close(found, expected)

    def test_old_values_and_log_probabilities_are_left_as_they_are(
        self, huber: bool, clip_value: bool, discrete: bool
    ) -> None:
        batch = batch_of(discrete)
        before = batch.clone()
        PPOLoss(self.config(huber, clip_value), discrete).total(batch)
        for name in (keys.STATE_VALUE, keys.ACTION_LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET):
            assert torch.equal(batch[name], before[name])


@pytest.mark.parametrize("discrete", [True, False])
def test_log_prob_is_that_of_the_stored_actions(discrete: bool) -> None:
    batch = batch_of(discrete)
    expected = log_prob_of(batch, batch[keys.ACTION])
    torch.testing.assert_close(PPOLoss(PPOConfig(), discrete).log_prob(batch), expected.detach())


def test_coefficients_are_not_in_the_checkpoint() -> None:
    assert not PPOLoss(PPOConfig(), True).state_dict()
    assert not [name for name in MetaPPO(GRID, 4, 1).state_dict() if name.startswith("ppo_loss")]


def test_loss_follows_its_own_configuration_after_loading_another_ones_state() -> None:
    one, other = (PPOLoss(PPOConfig(clip=clip, entropy_coeff=clip, value_coeff=clip), True) for clip in (0.1, 0.3))
    before = one.total(batch_of(True))[0]
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.total(batch_of(True))[0], before)


def test_ratio_diagnostics() -> None:
    old = random(NUMBER)
    new = old + 0.1 * random(NUMBER, seed=1)
    kl, change = ratio_diagnostics(new, old)
    ratio = (new - old).exp()
    torch.testing.assert_close(kl, (ratio - 1 - ratio.log()).mean())
    torch.testing.assert_close(change, (new - old).abs().max())
    assert ratio_diagnostics(old, old) == (0, 0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", 0.0, "a positive number"),
        ("lr", float("nan"), "a positive number"),
        ("clip", -0.1, "a positive number"),
        ("max_grad_norm", 0.0, "a positive number"),
        ("gamma", 1.01, "a number between 0 and 1"),
        ("gae_lambda", -0.5, "a number between 0 and 1"),
        ("entropy_coeff", -1.0, "0 or more"),
        ("epochs", 0, "at least 1"),
        ("num_minibatches", -4, "at least 1"),
    ],
)
def test_illegal_settings_name_key_value_and_what_was_expected(name: str, value: float, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        PPOConfig(**{name: value})
    assert str(error.value) == f"model.ppo.{name} is {value}; expected {expected}"


def test_minibatches_of_whole_environments_must_divide_them() -> None:
    with pytest.raises(ConfigError, match=r"data\.num_envs \(30\).*model\.ppo\.num_minibatches \(4\)"):
        MetaPPO(GRID, 30, 1)
    assert MetaPPO(GRID, 30, 1, ppo=PPOConfig(minibatch="step")).config.num_minibatches == 4
