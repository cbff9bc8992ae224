"""Task inference within training: who trains the encoder, when, on what; and what can be seen of it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tensordict import TensorDictBase
from torch import Tensor

from hyperrl import cli, keys
from hyperrl.errors import ConfigError
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.ppo import PPOConfig

pytestmark = tiny.QUIET
FAST = PPOConfig(lr=0.01, clip=0.2, entropy_coeff=0.01)
GRID: dict[str, Any] = {
    "reward": "bernoulli", "reward_per_state": True, "reward_uses_action": False, "reward_uses_prev_state": False,
    "batch_trajectories": 3,
}  # fmt: skip
VI: dict[str, Any] = {"encoder_loss": "inference", **GRID}
WARM: dict[str, Any] = {"task_replaces": "latent", "task_warmup": 2, "task_embedding_dim": 4}
TASK: dict[str, Any] = {"steps_per_rollout": 60, "frames": 1200}  # five updates, each on whole tasks
CONTINUOUS: dict[str, Any] = {"env": tiny.TOY, "env_options": {"continuous": True}}
Settings = dict[str, Any]
# Policy, encoder, inference, data: all that changes what acting and learning have to agree on.
MODES: dict[str, tuple[Settings, Settings, Settings, Settings]] = {
    "inference": ({"normalize_latent": True}, {}, VI, TASK),
    "inference, tasks end inside": ({}, {}, VI, {"steps_per_rollout": 37, "frames": 1200}),
    "both": ({}, {}, {"encoder_loss": "both", **GRID}, TASK),
    "sampled latents": ({}, {"sample_latent": True}, {"encoder_loss": "rl_and_kl", "kl_coeff": 1e-3}, TASK),
    "warm-up": (WARM, {}, {**VI, "task": "embedding"}, TASK),
    "task at times": ({**WARM, "task_warmup": 0, "task_chance": 0.5}, {}, {**VI, "task": "base_network"}, TASK),
    "task at times, without decoder": ({**WARM, "task_chance": 0.5}, {}, {"task": "embedding"}, TASK),
    "continuous, each environment by itself": (
        {},
        {"sample_latent": True, "action_embedding_dim": 4},
        {"encoder_loss": "both", "state": "gaussian"},
        {**CONTINUOUS, "steps_per_rollout": 20, "frames": 400},
    ),
    "task oracle": ({"use_latent": False, "use_task": True, "hypernet_input": "task"}, {}, {}, TASK),
    "belief oracle": ({"use_latent": False, "use_belief": True, "conditioning": "concat"}, {}, {}, TASK),
}


class Weights(Callback):
    """Copies of all parameters before training and after each update."""

    def __init__(self) -> None:
        self.copies: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: MetaPPO) -> None:
        self._copy(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        self._copy(pl_module)

    def _copy(self, model: MetaPPO) -> None:
        self.copies.append({name: value.detach().clone() for name, value in model.named_parameters()})

    def moved(self, prefix: str) -> list[bool]:
        """Whether anything under a prefix changed in each update."""
        pairs = zip(self.copies, self.copies[1:], strict=False)
        names = [name for name in self.copies[0] if name.startswith(prefix)]
        assert names, prefix
        return [any(not torch.equal(old[name], new[name]) for name in names) for old, new in pairs]


def run(
    policy: Settings | None = None, encoder: Settings | None = None, inference: Settings | None = None, **changes: Any
) -> tuple[MetaPPO, tiny.History, Weights]:
    """A tiny training."""
    weights = Weights()
    settings = {**TASK, **changes}
    ppo = settings.pop("ppo", FAST)
    model, history = tiny.fit(0, ppo, policy, encoder, inference, callbacks=[weights], **settings)
    return model, history, weights


@pytest.mark.parametrize("mode", MODES)
def test_collection_equals_replay(mode: str) -> None:
    policy, encoder, inference, changes = MODES[mode]
    _, history, weights = run(policy, encoder, inference, **changes)
    assert len(history.updates) > 2
    for update in history.updates:
        assert abs(update["ppo/first_kl"]) < 1e-6
        assert update["ppo/first_max_log_prob_change"] < 1e-4
    assert max(update["ppo/max_log_prob_change"] for update in history.updates) > 1e-3
    assert all(weights.moved("agent.policy"))


class TestWhoTrainsTheEncoder:
    def test_inference_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MetaPPO, "infer", lambda self, updates: [])
        _, _, weights = run(inference=VI)
        assert not any(weights.moved("agent.encoder"))
        assert all(weights.moved("agent.policy"))

    def test_ppo_does_not_without_inference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MetaPPO, "optimize", lambda self, rollout, index: {"loss/total": torch.zeros(())})
        _, history, weights = run(inference=VI)
        assert all(weights.moved("agent.encoder"))
        assert all(weights.moved("inference"))
        assert not any(weights.moved("agent.policy"))
        assert all(update["inference/reward"] > 0 for update in history.updates)

    def test_both_add_up(self) -> None:
        model, rollout = prepared({"encoder_loss": "both", "coeff": 0.25, **GRID})
        index = next(iter(model.minibatches(rollout)))
        state = model.inference.generator.get_state()
        total, logged = model.loss(rollout, index)
        model.inference.generator.set_state(state)
        terms = model.inference.trajectory_loss(model.agent, model.trajectories.sample(3))
        alone = logged["loss/objective"] + logged["loss/critic"] + logged["loss/entropy"]
        torch.testing.assert_close(total.detach(), alone + 0.25 * terms.total.detach())
        assert logged["inference/kl"] > 0

    def test_the_rl_loss_reaches_it_without_a_decoder(self) -> None:
        _, history, weights = run(inference={"encoder_loss": "rl_and_kl"})
        assert all(weights.moved("agent.encoder"))
        assert "inference/reward" not in history.updates[0]
        assert not any(name.startswith("inference.") for name in weights.copies[0])

    def test_rates(self) -> None:
        ppo = replace(FAST, lr_schedule="linear")
        for loss, expected in (("inference", [[0.5], [0.1, 0.1]]), ("both", [[0.5, 0.05, 0.05]])):
            model, _, _ = run(inference={**VI, "encoder_loss": loss, "lr": 0.1}, ppo=ppo, frames=480, num_envs=4)
            model.frames = model.total_frames // 2
            model.config = replace(ppo, lr=1.0)
            model._anneal()
            groups = [[group["lr"] for group in optimizer.param_groups] for optimizer in model._optimizers]
            assert groups == [pytest.approx(part) for part in expected]


class OneSource:
    """A source with the same trajectories at every draw."""

    def __init__(self, trajectories: TensorDictBase) -> None:
        self.trajectories = trajectories

    def __len__(self) -> int:
        return len(self.trajectories)

    def sample(self, number: int) -> TensorDictBase:
        return self.trajectories[:number]


def prepared(inference: Settings, policy: Settings | None = None) -> tuple[MetaPPO, TensorDictBase]:
    """A trained model with a fixed batch of trajectories, and a rollout that it can learn from."""
    kept: dict[str, Any] = {}

    class Keep(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: MetaPPO, batch: Any, batch_idx: int) -> None:
            kept["rollout"] = batch
            kept["trajectories"] = trainer.datamodule.trajectories  # type: ignore[attr-defined]

    model, _ = tiny.fit(0, FAST, policy, None, inference, callbacks=[Keep()], **TASK)
    if kept["trajectories"] is not None:
        source = OneSource(kept["trajectories"].sample(3))
        model.__class__ = type("Prepared", (MetaPPO,), {"trajectories": source})
    return model, model.with_advantages(kept["rollout"])[0]


class TestSchedule:
    def test_precollection_fills_the_buffer_and_learns_nothing(self) -> None:
        model, history, weights = run(inference={**VI, "precollect_frames": 500})
        # Rollouts of 240 frames: the third is the first with 500 frames behind it.
        assert weights.moved("agent") == [False, False, True, True, True]
        assert [update["frames"] for update in history.updates] == [240, 480, 720, 960, 1200]
        assert ["loss/total" in update for update in history.updates] == [False, False, True, True, True]
        assert model.reward_normalizer.count > 10  # of rewards, statistics move from the start

    def test_pretraining_takes_the_place_of_the_first_update(self) -> None:
        calls: list[int] = []
        original = MetaPPO.infer

        def infer(self: MetaPPO, updates: int) -> Any:
            calls.append(updates)
            return original(self, updates)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MetaPPO, "infer", infer)
            model, history, weights = run(inference={**VI, "pretrain_updates": 7, "updates": 2})
        assert calls == [7, 2, 2, 2, 2]
        assert weights.moved("agent.policy") == [False, True, True, True, True]
        assert all(weights.moved("agent.encoder"))
        assert "loss/total" not in history.updates[0]
        assert model.pretrained

    @pytest.mark.parametrize("freeze", [{"hard_reset": True}, {"freeze_during_warmup": True}, {}])
    def test_the_encoder_waits_for_the_end_of_the_warmup_if_told_to(self, freeze: Settings) -> None:
        inference = {**VI, "task": "embedding", **({} if "hard_reset" in freeze else freeze)}
        policy = {**WARM, **(freeze if "hard_reset" in freeze else {})}
        _, history, weights = run(policy, None, inference)
        first = [not freeze, not freeze]
        assert weights.moved("agent.encoder") == [*first, True, True, True]
        assert ["inference/task" in update for update in history.updates] == [*first, True, True, True]

    def test_the_rl_loss_waits_too(self) -> None:
        _, history, weights = run(WARM, None, {"task": "embedding", "freeze_during_warmup": True})
        assert weights.moved("agent.encoder") == [False, False, True, True, True]
        assert ["grad_norm/encoder" in update for update in history.updates] == [False, False, True, True, True]

    def test_a_hard_reset_keeps_the_embedding_of_the_task(self) -> None:
        _, _, weights = run({**WARM, "hard_reset": True}, None, {**VI, "task": "embedding"})
        start, after = weights.copies[0], weights.copies[2]
        fresh = {name: start[name.replace("agent.policy.", "agent.fresh_policy.")] for name in start
                 if name.startswith("agent.policy.")}  # fmt: skip
        for name, value in fresh.items():
            if name.startswith("agent.policy.task."):
                assert not torch.equal(after[name], value)
                assert not torch.equal(after[name], start[name])
            else:
                assert torch.equal(after[name], value), name


class TestTargets:
    @pytest.mark.parametrize(("stop", "moves"), [(True, False), (False, True)])
    def test_a_generated_network_learns_from_the_task_loss_unless_stopped(self, stop: bool, moves: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MetaPPO, "optimize", lambda self, rollout, index: {"loss/total": torch.zeros(())})
            _, _, weights = run(WARM, None, {**VI, "task": "base_network", "task_stop_gradient": stop})
        assert any(weights.moved("agent.policy")) == moves

    @pytest.mark.parametrize("target", ["description", "embedding", "base_network"])
    def test_without_a_decoder_the_embedding_of_the_latent_is_compared(self, target: str) -> None:
        width = 2 if target == "description" else 4  # a goal has two coordinates
        policy = {**({} if target == "description" else WARM), "latent_embedding_dim": width}
        model, rollout = prepared({"task": target, "task_coeff": 0.5, "task_stop_gradient": True}, policy)
        index = next(iter(model.minibatches(rollout)))
        total, logged = model.loss(rollout, index)
        batch = rollout[index]
        latent = model.agent.encoder.encode(batch)[0].flatten(0, 1)
        guess, task = model.agent.policy.embed_latent(latent), batch[keys.TASK].flatten(0, 1)
        known = task if target == "description" else model.agent.policy.embed_task(task)
        if target == "base_network":
            generated = [
                model.agent.policy.generated_parameters(model.agent.policy.hypernet(x)) for x in (guess, known)
            ]
            guess, known = generated
        expected = (guess - known).square().mean().detach()
        torch.testing.assert_close(logged["inference/task"], expected, rtol=1e-4, atol=1e-7)
        alone = logged["loss/objective"] + logged["loss/critic"] + logged["loss/entropy"]
        torch.testing.assert_close(total.detach(), alone + 0.5 * expected, rtol=1e-4, atol=1e-6)


def test_inference_learns_where_rewards_are() -> None:
    """Over three seeds together: in trainings this short, which half of a task has the larger errors is luck."""
    inference = {**VI, "lr": 0.01, "updates": 20, "batch_trajectories": 16}
    settings = {**TASK, "frames": 9600, "num_envs": 8}
    ratios, errors = [], torch.zeros(60)
    for seed in range(3):
        model, history = tiny.fit(seed, FAST, {"normalize_latent": True}, {"latent_dim": 2}, inference, **settings)
        first, last = (history.updates[index]["inference/reward"] for index in (0, -1))
        ratios.append(last / first)
        errors += torch.tensor(model.inference_profile["reward_error"])
        assert len(model.inference_profile["kl"]) == 61
    assert sum(ratios) / 3 < 0.6
    assert errors[30:].sum() < errors[:30].sum()


ARGS = (
    "--trainer.accelerator=cpu", "--data.num_envs=4", "--data.steps_per_rollout=60", "--data.val_tasks=8",
    "--data.test_tasks=8", "--data.rollouts_per_epoch=2", "--config=env/gridnavi",
    "--model.inference.encoder_loss=inference", "--model.inference.batch_trajectories=3", *tiny.MODEL_ARGS,
)  # fmt: skip


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    return lambda *args: cli.run(list(args), test=False)


def test_a_resumed_run_goes_on_as_if_never_interrupted(in_folder: Callable[..., Any]) -> None:
    common = (*ARGS, "--seed_everything=3", "--trainer.logger=false")
    whole = in_folder("fit", *common, "--data.frames=1440", "--trainer.default_root_dir=whole")
    half = in_folder("fit", *common, "--data.frames=960", "--trainer.default_root_dir=half")
    path = next(Path("half").rglob("last.ckpt"))
    seed_everything(99, verbose=False)
    resumed = in_folder("fit", "--ckpt_path", str(path), "--data.frames=1440", "--trainer.default_root_dir=rest")
    assert half.model.frames == 960
    assert resumed.model.frames == whole.model.frames == 1440
    for (name, ours), theirs in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_what_cannot_go_on_is_refused_by_name(in_folder: Callable[..., Any]) -> None:
    in_folder("fit", *ARGS, "--data.frames=480", "--trainer.logger=false")
    path = str(next(Path().rglob("last.ckpt")))
    with pytest.raises(ConfigError, match=r"encoder_loss is both and --ckpt_path .* was trained with inference"):
        in_folder("fit", "--ckpt_path", path, "--data.frames=960", "--model.inference.encoder_loss=both")
    with pytest.raises(ConfigError, match=r"ppo\.optimizer is rmsprop and --ckpt_path .* was trained with adam"):
        in_folder("fit", "--ckpt_path", path, "--data.frames=960", "--model.ppo.optimizer=rmsprop")
    with pytest.raises(ConfigError, match=r"precollect_frames is 960 and data\.frames is 960; expected fewer"):
        in_folder("fit", *ARGS, "--data.frames=960", "--model.inference.precollect_frames=960")
    with pytest.raises(ConfigError, match=r"strategy is ddp and model\.inference\.encoder_loss is inference"):
        in_folder("fit", *ARGS, "--trainer.strategy=ddp")


def test_a_run_resumed_with_a_shorter_warmup_still_starts_anew_and_only_once() -> None:
    model, _ = prepared({**VI, "task": "embedding"}, {**WARM, "hard_reset": True, "task_warmup": 100})
    agent = model.agent
    assert not agent.renewed
    agent.policy.config = replace(agent.policy.config, task_warmup=2)
    agent.finish_update()
    assert agent.renewed
    torch.nn.init.zeros_(agent.policy.actor.layers[0].weight)
    agent.finish_update()
    assert not agent.policy.actor.layers[0].weight.any()


def test_every_validation_leaves_a_picture_and_its_numbers(in_folder: Callable[..., Any]) -> None:
    in_folder("fit", *ARGS, "--data.frames=960")
    (run_directory,) = Path("runs/hyperrl").iterdir()
    assert sorted(path.name for path in run_directory.glob("inference_*")) == [
        f"inference_{frames:010d}.{kind}" for frames in (480, 960) for kind in ("csv", "png")
    ]
    with (run_directory / "inference_0000000960.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(61))
    assert rows[0]["reward_error"] == ""
    assert all(float(row["kl"]) >= 0 and float(row["reward_error"]) > 0 for row in rows[1:])
    checkpoint = next(run_directory.rglob("last.ckpt"))
    in_folder("validate", "--ckpt_path", str(checkpoint))
    assert checkpoint.with_name("inference_0000000960.png").stat().st_size > 5000


def test_nothing_is_drawn_where_nothing_is_inferred(in_folder: Callable[..., Any]) -> None:
    in_folder("fit", *ARGS, "--model.inference.encoder_loss=rl", "--data.frames=480")
    assert not list(Path().rglob("inference_*"))
