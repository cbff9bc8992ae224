"""The learner on real rollouts: what acting stored is what learning recomputes, and training works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tensordict import TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env
from hyperrl.errors import ConfigError, DivergedError
from hyperrl.modules.agent import Actor
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.normalization import RewardNormalizer
from hyperrl.modules.ppo import PPOConfig

pytestmark = tiny.QUIET
FAST = PPOConfig(lr=0.01, clip=0.2, entropy_coeff=0.01)
STEPS = PPOConfig(lr=0.01, clip=0.2, minibatch="step", num_minibatches=7)
CONTINUOUS = {"env": tiny.TOY, "env_options": {"continuous": True}}
# Each differs in what could break the replay: memory, resets, normalisation, action space, minibatches.
REPLAYS: dict[str, tuple[PPOConfig, dict[str, Any], dict[str, Any]]] = {
    "hypernetwork": (FAST, {}, {}),
    "plain, normalised latent": (FAST, {"conditioning": "concat", "normalize_latent": True}, {}),
    "without state": (FAST, {"conditioning": "concat", "use_state": False}, {}),
    "tasks end inside": (FAST, {}, {"episodes_per_task": 2, "steps_per_rollout": 37}),
    "each environment by itself": (FAST, {}, {"env": tiny.TOY}),
    "continuous actions": (FAST, {}, CONTINUOUS),
    "minibatches of steps": (STEPS, {}, {"steps_per_rollout": 37}),
    "one step per rollout": (FAST, {}, {"env": tiny.TOY, "steps_per_rollout": 1, "frames": 40}),
}


@pytest.mark.parametrize("case", REPLAYS)
def test_collection_equals_replay_at_every_update(case: str) -> None:
    ppo, policy, changes = REPLAYS[case]
    _, history = tiny.fit(ppo=ppo, policy=policy, **changes)
    assert len(history.updates) > 2
    for update in history.updates:
        assert abs(update["ppo/first_kl"]) < 1e-6
        assert update["ppo/first_max_log_prob_change"] < 1e-4
    # The policy does move after the first minibatch.
    assert max(update["ppo/max_log_prob_change"] for update in history.updates) > 1e-3


@pytest.mark.parametrize("case", ["hypernetwork", "each environment by itself", "continuous actions"])
def test_collection_equals_replay_in_bf16(case: str) -> None:
    ppo, _, changes = REPLAYS[case]
    policy = {"layers": [64, 32], "state_embedding_dim": 64}
    fp32, bf16 = (tiny.fit(0, ppo, policy, precision=kind, **changes)[1] for kind in ("32-true", "bf16-mixed"))
    assert bf16.updates[0]["loss/total"] != fp32.updates[0]["loss/total"]
    for update in bf16.updates:
        assert abs(update["ppo/first_kl"]) < 1e-3
        assert update["ppo/first_max_log_prob_change"] < 5e-2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_acting_runs_under_the_trainers_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[tuple[bool, torch.dtype]] = set()
    original = Actor.forward

    def forward(self: Actor, td: TensorDictBase) -> TensorDictBase:
        found.add((torch.is_autocast_enabled("cpu"), td[keys.OBSERVATION].dtype))
        return original(self, td)

    monkeypatch.setattr(Actor, "forward", forward)
    tiny.fit(precision=precision)
    assert found == {(precision == "bf16-mixed", torch.float32)}


def test_each_rollout_is_collected_after_the_update_on_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, float]] = []

    def note(owner: type, method: str, parameters: Callable[[Any], MetaPPO]) -> None:
        original = getattr(owner, method)

        def noted(self: Any, *args: Any) -> Any:
            before = weight(parameters(self))
            result = original(self, *args)
            events.append((method, before if method == "collect" else weight(parameters(self))))
            return result

        monkeypatch.setattr(owner, method, noted)

    def weight(model: MetaPPO) -> float:
        return sum(parameter.double().sum().item() for parameter in model.parameters())

    note(MetaDataModule, "collect", lambda source: source.trainer.lightning_module)
    note(MetaPPO, "training_step", lambda model: model)
    tiny.fit(ppo=FAST)
    assert [name for name, _ in events] == ["collect", "training_step"] * 5
    # The weights that collect rollout t+1 are those that update t has left, across epochs and validations.
    updates, collections = (
        [value for name, value in events if name == wanted] for wanted in ("training_step", "collect")
    )
    assert collections[1:] == updates[:-1]
    assert len(set(updates)) == 5


class Spy(Callback):
    """Holds the states of the input statistics at every loss, by update."""

    def __init__(self) -> None:
        self.updates: list[list[Tensor]] = []

    def state(self, model: MetaPPO) -> Tensor:
        norm = model.agent.policy.state.norm
        return torch.cat([norm.mean, norm.var, norm.count.float().view(1)])

    def on_train_batch_start(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        self.updates.append([self.state(pl_module)])


def test_statistics_move_once_per_update_and_after_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    spy, original = Spy(), MetaPPO.loss

    def loss(self: MetaPPO, *args: Any) -> Any:
        spy.updates[-1].append(spy.state(self))
        return original(self, *args)

    monkeypatch.setattr(MetaPPO, "loss", loss)
    model, _ = tiny.fit(callbacks=[spy])
    assert [len(update) for update in spy.updates] == [1 + 8] * 5
    for update in spy.updates:
        assert all(torch.equal(state, update[0]) for state in update)
    starts = [update[0] for update in spy.updates] + [spy.state(model)]
    assert [start[-1].item() for start in starts] == pytest.approx([80.0 * index for index in range(6)], abs=1e-3)


def norm_of(module: torch.nn.Module) -> float:
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm().item()


def prepared(ppo: PPOConfig, policy: dict[str, Any] | None = None, **changes: Any) -> tuple[MetaPPO, TensorDictBase]:
    """A new model and a rollout of it."""
    torch.manual_seed(0)
    source = tiny.data(**changes)
    model = tiny.learner(source, ppo, policy)
    env = make_env(source.env_id, source.num_envs, **source.options)
    return model, RolloutStream(env, model.actor, source.steps_per_rollout, seed=0).collect()


class Norms(Callback):
    """Gradient norms that are left after each update's last minibatch."""

    def __init__(self) -> None:
        self.norms: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        self.norms.append((norm_of(pl_module.agent.policy), norm_of(pl_module.agent.encoder)))


def test_policy_and_encoder_are_clipped_separately() -> None:
    norms = Norms()
    ppo = PPOConfig(lr=0.01, max_grad_norm=1e-3, epochs=1, num_minibatches=1)
    _, history = tiny.fit(ppo=ppo, policy={"hypernet_init": "none"}, callbacks=[norms])
    for (policy, encoder), update in zip(norms.norms, history.updates, strict=True):
        assert min(update["grad_norm/policy"], update["grad_norm/encoder"]) > 1e-3  # what is logged is unclipped
        assert policy == pytest.approx(1e-3, rel=1e-3)
        assert encoder == pytest.approx(1e-3, rel=1e-3)


def test_gradients_below_the_bound_are_left_as_they_are() -> None:
    norms = Norms()
    ppo = PPOConfig(max_grad_norm=1e6, epochs=1, num_minibatches=1)
    _, history = tiny.fit(ppo=ppo, policy={"hypernet_init": "none"}, callbacks=[norms])
    for (policy, encoder), update in zip(norms.norms, history.updates, strict=True):
        assert policy == pytest.approx(update["grad_norm/policy"], rel=1e-4)
        assert encoder == pytest.approx(update["grad_norm/encoder"], rel=1e-4)


def test_linear_schedule_falls_to_zero_over_the_frames() -> None:
    model, history = tiny.fit(ppo=PPOConfig(lr=0.01, lr_schedule="linear"))
    expected = [0.01 * (1 - frames / 400) for frames in (80, 160, 240, 320, 400)]
    assert [update["learning_rate"] for update in history.updates] == pytest.approx(expected)
    assert model.frames == 400


def test_constant_schedule_is_constant() -> None:
    _, history = tiny.fit(ppo=PPOConfig(lr=0.01))
    assert {update["learning_rate"] for update in history.updates} == {0.01}


def test_policy_and_encoder_have_their_own_epsilon() -> None:
    (optimizer,) = tiny.learner(tiny.data(), PPOConfig(eps=1e-3, encoder_eps=1e-4)).configure_optimizers()
    assert [group["eps"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    model = tiny.learner(tiny.data())
    (optimizer,) = model.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}


def test_rmsprop_moves_the_policy_and_adam_the_encoder() -> None:
    """A first step is the rate in the direction of the gradient's sign for Adam, ten times that for RMSprop."""
    ppo = PPOConfig(optimizer="rmsprop", lr=1e-4, lr_schedule="linear", eps=1e-8, epochs=1, num_minibatches=1)
    before: dict[str, Tensor] = {}

    class Before(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: MetaPPO) -> None:  # type: ignore[override]
            before.update({name: value.detach().clone() for name, value in pl_module.named_parameters()})

    # A hypernetwork with Bias-HyperInit would let no gradient through to the encoder yet.
    model, _ = tiny.fit(ppo=ppo, policy={"conditioning": "concat"}, callbacks=[Before()], frames=80)
    for part, step in (("policy", 1e-3), ("encoder", 1e-4)):
        names = [name for name in before if name.startswith(f"agent.{part}.")]
        moved = torch.cat([(model.get_parameter(name).detach() - before[name]).abs().flatten() for name in names])
        assert moved.max() == pytest.approx(step, rel=1e-2)
        assert moved.median() == pytest.approx(step, rel=1e-2)
    policy, encoder = model.trainer.optimizers
    assert {group["lr"] for optimizer in (policy, encoder) for group in optimizer.param_groups} == {0.0}
    with pytest.raises(ConfigError, match=r"^model\.ppo\.optimizer is sgd; expected adam or rmsprop$"):
        PPOConfig(optimizer="sgd")  # type: ignore[arg-type]


@pytest.mark.parametrize("minibatch", ["env", "step"])
def test_minibatches_cover_the_rollout(minibatch: Any) -> None:
    model, rollout = prepared(PPOConfig(minibatch=minibatch, epochs=3, num_minibatches=2))
    parts = list(model.minibatches(rollout))
    size = 4 if minibatch == "env" else 80
    assert [len(part) for part in parts] == [size // 2] * 6
    for epoch in range(3):
        assert sorted(torch.cat(parts[2 * epoch : 2 * epoch + 2]).tolist()) == list(range(size))


def test_both_kinds_of_minibatch_give_the_same_loss_on_the_whole_rollout() -> None:
    losses = []
    for minibatch in ("env", "step"):
        model, rollout = prepared(PPOConfig(minibatch=minibatch, num_minibatches=1), env=tiny.TOY)  # type: ignore[arg-type]
        rollout, _ = model.with_advantages(rollout)
        (index,) = list(model.minibatches(rollout))[:1]
        losses.append(model.loss(rollout, index)[0])
    torch.testing.assert_close(*losses)


def test_minibatches_of_steps_train() -> None:
    _, history = tiny.fit(ppo=STEPS)
    assert len(history.updates) == 5
    assert all(update["ppo/kl"] > 0 for update in history.updates)


@pytest.fixture(scope="module")
def case() -> tuple[MetaPPO, TensorDictBase]:
    """Tasks of the toy end by termination and by truncation in the middle of rollouts."""
    policy = {"hypernet_init": "none"}  # so that the latent matters for the values
    ppo = PPOConfig(normalize_rewards=False, gamma=0.9, gae_lambda=0.8)
    return prepared(ppo, policy, env=tiny.TOY, steps_per_rollout=40)


class TestAdvantages:
    def expected(self, model: MetaPPO, rollout: TensorDictBase) -> Tensor:
        """Value targets step by step, each next value from the step's own next observation and latent."""
        after = rollout[keys.NEXT]
        latent, next_latent = model.agent.encoder.encode(rollout)
        value = model.agent.values(rollout, latent)
        next_value = model.agent.values(after, next_latent)
        carry, targets = torch.zeros_like(value[:, 0]), []
        for t in reversed(range(rollout.shape[1])):
            future = next_value[:, t] * ~after[keys.TERMINATED][:, t]
            delta = after[keys.REWARD][:, t] + 0.9 * future - value[:, t]
            carry = delta + 0.9 * 0.8 * carry * ~after[keys.DONE][:, t]
            targets.append(carry + value[:, t])
        return torch.stack(targets[::-1], 1)

    def test_targets_equal_those_of_the_loop(self, case: tuple[MetaPPO, TensorDictBase]) -> None:
        model, rollout = case
        ended = rollout[keys.NEXT, keys.DONE][:, :-1]
        assert (ended & rollout[keys.NEXT, keys.TERMINATED][:, :-1]).any()
        assert (ended & ~rollout[keys.NEXT, keys.TERMINATED][:, :-1]).any()
        result, _ = model.with_advantages(rollout)
        expected = self.expected(model, rollout).detach()
        torch.testing.assert_close(result[keys.VALUE_TARGET], expected, rtol=1e-4, atol=1e-5)
        advantage = expected - result[keys.STATE_VALUE]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
        torch.testing.assert_close(result[keys.ADVANTAGE], advantage, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", [keys.TRUNCATED, keys.TERMINATED])
    def test_a_truncated_task_bootstraps_from_its_last_state_and_no_other(
        self, case: tuple[MetaPPO, TensorDictBase], kind: str
    ) -> None:
        model, rollout = case
        row, step = rollout[keys.NEXT, kind][:, :-1, 0].nonzero()[0].tolist()
        before = model.with_advantages(rollout)[0][keys.VALUE_TARGET]
        changed = rollout.clone()
        changed[keys.NEXT, keys.OBSERVATION][row, step] += 3.0
        after = model.with_advantages(changed)[0][keys.VALUE_TARGET]
        assert bool(after[row, step] != before[row, step]) == (kind == keys.TRUNCATED)
        torch.testing.assert_close(after[row, step + 1 :], before[row, step + 1 :])
        changed = rollout.clone()
        changed[keys.OBSERVATION][row, step + 1 :] += 3.0  # the next task
        after = model.with_advantages(changed)[0][keys.VALUE_TARGET]
        assert torch.equal(after[row, step], before[row, step])
        assert not torch.equal(after[row, step + 1], before[row, step + 1])

    def test_the_end_of_a_rollout_bootstraps_from_the_state_after_it(
        self, case: tuple[MetaPPO, TensorDictBase]
    ) -> None:
        model, rollout = case
        row = (~rollout[keys.NEXT, keys.DONE][:, -1, 0]).nonzero()[0].item()
        before = model.with_advantages(rollout)[0][keys.VALUE_TARGET]
        changed = rollout.clone()
        changed[keys.NEXT, keys.OBSERVATION][row, -1] += 3.0
        after = model.with_advantages(changed)[0][keys.VALUE_TARGET]
        assert after[row, -1] != before[row, -1]
        others = [index for index in range(4) if index != row]
        torch.testing.assert_close(after[others], before[others])


def test_rewards_are_normalised_only_if_asked() -> None:
    model, rollout = prepared(PPOConfig(normalize_rewards=False))
    model.with_advantages(rollout)
    assert model.reward_normalizer.count < 1


def test_rewards_are_normalised_by_returns_that_end_with_the_task() -> None:
    model, rollout = prepared(PPOConfig(normalize_rewards=True, gae_lambda=0.0), env=tiny.TOY)
    after, normalizer = rollout[keys.NEXT], RewardNormalizer(0.95)
    reward = normalizer(after[keys.REWARD], after[keys.DONE])
    result, _ = model.with_advantages(rollout)
    assert (after[keys.EPISODE_DONE] & ~after[keys.DONE]).any()
    torch.testing.assert_close(dict(model.reward_normalizer.named_buffers()), dict(normalizer.named_buffers()))
    ends = after[keys.TERMINATED]
    torch.testing.assert_close(result[keys.VALUE_TARGET][ends], reward[ends])


class Poison(Callback):
    """Sets a parameter to nan before the third update."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        if pl_module.frames == 160:
            next(pl_module.agent.policy.parameters()).data[0] = float("nan")


def test_a_non_finite_loss_ends_the_run_and_is_named() -> None:
    with pytest.raises(DivergedError, match=r"^loss/total is nan at frame 240$"):
        tiny.fit(callbacks=[Poison()])


def test_a_non_finite_parameter_ends_the_run_and_is_named() -> None:
    # The loss of the only minibatch is finite; the step after it is not.
    ppo = PPOConfig(lr=3e38, epochs=1, num_minibatches=1)
    with pytest.raises(DivergedError, match=r"^(policy|encoder)\.\S+ is (nan|inf) at frame 80$"):
        tiny.fit(ppo=ppo)


def test_the_seed_decides_everything() -> None:
    one, same, other = (tiny.fit(seed)[1].untimed() for seed in (3, 3, 4))
    assert one == same
    assert all(a["loss/total"] != b["loss/total"] for a, b in zip(one, other, strict=True))


def test_metrics_are_means_over_the_minibatches() -> None:
    model, rollout = prepared(PPOConfig(epochs=1, num_minibatches=2), env=tiny.TOY)
    rollout, _ = model.with_advantages(rollout)
    (one, first), (two, second) = (model.loss(rollout, index) for index in model.minibatches(rollout))
    assert first["loss/total"] == one.detach().squeeze()
    assert second["loss/total"] == two.detach().squeeze()
    assert first["loss/total"] == pytest.approx(
        (first["loss/objective"] + first["loss/critic"] + first["loss/entropy"]).item(), rel=1e-5
    )


class TestLearning:
    """A 3x3 grid with five possible goals, two episodes of six steps on each.

    The best sequence of actions without memory earns 0.5 per episode on average, a memory of the episode 2.7. Knowing
    the goal gives 4.02, so that the second episode can earn more than the first, and both together at most 8.04.
    """

    DATA: dict[str, Any] = {
        "env": "GridNavi-v0",
        "env_options": {"num_cells": 3, "num_steps": 6},
        "episodes_per_task": 2,
        "num_envs": 32,
        "steps_per_rollout": 12,
        "rollouts_per_epoch": 10**6,
        "val_tasks": 512,
    }

    def returns(self, model: MetaPPO) -> tuple[float, float]:
        trainer = tiny.trainer()
        trainer.validate(model, tiny.data(**self.DATA), verbose=False)
        metrics = trainer.callback_metrics
        return metrics["val/return_episode_1"].item(), metrics["val/return_episode_2"].item()

    def test_a_recurrent_hypernetwork_learns_to_remember_the_goal(self) -> None:
        ppo = PPOConfig(lr=5e-3, clip=0.2, entropy_coeff=0.02)
        policy = {"layers": [32], "state_embedding_dim": 32, "latent_embedding_dim": 8}
        seed_everything(1, verbose=False)
        initial = sum(self.returns(tiny.learner(tiny.data(**self.DATA), ppo, policy)))
        model, _ = tiny.fit(1, ppo, policy, encoder={"hidden_dim": 32}, **self.DATA, frames=30_000)
        first, second = self.returns(model)
        assert initial < 2.0
        assert 4.5 < first + second < 8.04
        assert second > 3.2, "it remembers nothing from the first episode"


def test_a_second_model_on_the_same_data_collects_with_its_own_policy() -> None:
    source, histories = tiny.data(), (tiny.History(), tiny.History())
    for history in histories:
        tiny.trainer([history], "32-true").fit(tiny.learner(source, None, None, None), source)
    for history in histories:
        assert all(metrics["ppo/first_max_log_prob_change"] < 1e-4 for metrics in history.untimed())
