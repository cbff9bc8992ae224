"""Golden PPO updates, composed of our learner's public pieces in the reference's order.

What differs there: running input statistics move before the epochs, the memory is reset before a task's last transition
is encoded, the latent at a rollout's start is given, and minibatches are single steps in time-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from elbo_cases import cells, decoders, inference_config, load_decoder, trajectories_of
from encoder_cases import encoder_config, encoder_slots
from lightning.pytorch import Trainer
from model_cases import policy_config
from support import (
    FORMULA,
    LOSS,
    UPDATE,
    Golden,
    Slots,
    assert_close,
    load_norm,
    load_parameters,
    norms,
    policy_slots,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from training_cases import batch_first

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.modules.agent import Agent
from hyperrl.modules.elbo import ElboTerms
from hyperrl.modules.encoder import TrajectoryEncoder, Transition
from hyperrl.modules.inference_config import EncoderLoss, InferenceConfig
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.ppo import PPOConfig
from hyperrl.modules.task_inference import TaskInference

UNREAD = {"*latent_samples": "the policy reads mean and log variance (sample_embeddings is off)"}
BOUNDS = {"low": (-1.0, -1.0), "high": (1.0, 1.0)}
# The mean over a parameter's entries may be off by much less than the tolerance of a single entry, which Adam's
# division by small gradients needs: a step of an update changes entries by up to the learning rate.
MEAN_UPDATE = 1e-5


class ReferenceOrder(TrajectoryEncoder):
    """An encoder whose rollouts are encoded in the reference's order: reset, then the task's last transition.

    Args:
        other: the encoder that shares its parameters.
        trained: whether the update's gradients reach the encoder; if not, the recorded latents stand.
    """

    def __init__(self, other: TrajectoryEncoder, trained: bool) -> None:
        super(TrajectoryEncoder, self).__init__()
        self.__dict__.update(other.__dict__)  # the same modules, and with them the same parameters
        self.trained = trained

    def begin(self, first: Tensor, memory: Tensor, reset: Tensor, recorded: Tensor) -> None:
        """Takes what is given of a rollout.

        Args:
            first: latent before the first step `[B, 2L]`.
            memory: memory before the first step `[B, S]`.
            reset: before which transitions the memory is reset `[B, T]`.
            recorded: all recorded latents `[B, T+1, 2L]`.
        """
        self.first, self.memory, self.reset, self.recorded = first, memory, reset, recorded

    def recompute(self, rollout: TensorDictBase) -> Tensor:
        """Latents `[B, T+1, 2L]` under the current parameters."""
        latents = self(Transition.last(rollout[keys.NEXT]), self.reset, self.memory)
        return torch.cat([self.first.unsqueeze(1), latents], 1)

    def encode(self, rollout: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Latents at decision time and after the step."""
        latents = self.recompute(rollout) if self.trained else self.recorded
        return latents[:, :-1], latents[:, 1:]


class RecordedInference(TaskInference):
    """Task inference with recorded noise, one piece after the other `[n, T+1, L]`."""

    noise: Iterator[Tensor]

    def trajectory_loss(self, agent: Agent, trajectories: TensorDictBase, **given: Any) -> ElboTerms:
        """The loss under the next piece of noise."""
        return super().trajectory_loss(agent, trajectories, noise=next(self.noise), **given)


class OneBatch:
    """A source of trajectories that has one batch only.

    Args:
        batch: what it gives `[n]`; none where nothing is recorded.
    """

    def __init__(self, batch: TensorDict | None) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 0 if self.batch is None else len(self.batch)

    def sample(self, number: int) -> TensorDict:
        """The batch."""
        assert self.batch is not None
        return self.batch


class Learner(MetaPPO):
    """Our learner under Lightning's trainer, replaying recorded updates instead of training on rollouts."""

    replay: Callable[[int], None]
    own_optimizer: Callable[[], torch.optim.Optimizer] | None = None
    source: OneBatch

    @property
    def trajectories(self) -> OneBatch:
        """The recorded trajectories."""
        return self.source

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The learner's optimisers; the policy's may be one that a file needs and the library does not offer."""
        first, *others = super().configure_optimizers()
        return [self.own_optimizer() if self.own_optimizer else first, *others]

    def training_step(self, update: int, batch_idx: int) -> None:
        """Replays the update of this number."""
        self.replay(update)

    def rates(self) -> list[float]:
        """The current learning rates of policy and encoder."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        return [group["lr"] for group in groups[:2]]

    def finish(self, frames: int, inferring: int) -> None:
        """What follows the epochs."""
        if inferring and not self.frozen and not self.inference.config.rl_trains_encoder:
            self.infer(inferring)
        self.agent.finish_update()
        self.frames += frames
        self._anneal()


class Case:
    """One file: the learner, and what is needed to replay its updates.

    Args:
        golden: the file.
    """

    def __init__(self, golden: Golden) -> None:
        self.golden, self.args = golden, golden.args
        self.updates = golden.meta["updates"]
        assert not self.args["sample_embeddings"]
        assert not self.args["add_nonlinearity_to_latent"]
        self.trained = self.args["rlloss_through_encoder"]
        self.steps, self.envs = golden.arrays[f"{self.prefix(0)}actions"].shape[:2]
        self.learner = self._learner()
        agent = self.learner.agent
        load_parameters(golden, "policy/", policy_slots(agent.policy), agent.policy)
        if agent.fresh_policy is not None:
            fresh = agent.fresh_policy
            load_parameters(golden, "reset_policy/", policy_slots(fresh), fresh)
        self.decoders = self._load_decoders()
        load_parameters(golden, "encoder/", encoder_slots(agent.encoder), agent.encoder)
        for name, norm in norms(agent.policy):
            load_norm(norm, *(golden[f"initial_{name}_rms_{statistic}"] for statistic in ("mean", "var", "count")))

    def prefix(self, update: int) -> str:
        """Rollouts of a file with several updates are numbered."""
        return f"u{update}/" if self.updates > 1 else ""

    def _learner(self) -> Learner:
        args, space = self.args, self.golden.meta["action_space"]
        dim, number = args["action_dim"], None
        if space.startswith("discrete"):
            number = int(space.removeprefix("discrete"))
        frames = self.golden.meta["train_steps"] * self.steps * self.envs
        bounds = {} if number else {f"action_{side}": bound for side, bound in BOUNDS.items()}
        sizes = {"task_dim": args["task_dim"], "num_states": args["num_states"] or 0}
        info = EnvInfo(args["state_dim"], dim, number, self.steps, **sizes, **bounds)
        encoder, inference = encoder_config(args), self._inference_config()
        learner = Learner(info, self.envs, frames, encoder, policy_config(args), _ppo_config(args), inference)
        learner.inference = RecordedInference(info, encoder, inference, learner.agent)
        noise = self.golden.find("eps")
        learner.inference.noise = iter(()) if noise is None else iter([batch_first(piece) for piece in noise])
        learner.source = OneBatch(self._trajectories())
        learner.agent.encoder = ReferenceOrder(learner.agent.encoder, self.trained)
        if args["policy_optimiser"] == "rmsprop":
            # No option of ours; the update around it is compared all the same.
            learner.own_optimizer = lambda: torch.optim.RMSprop(
                learner.agent.policy.parameters(), lr=args["lr_policy"], eps=args["policy_eps"], alpha=0.99
            )
        return learner

    def _inference_config(self) -> InferenceConfig:
        args = self.args
        config = inference_config(args, self._encoder_loss())
        return replace(
            config,
            lr=args["lr_vae"],
            coeff=args["vae_loss_coeff"],
            freeze_during_warmup=args["freeze_vae_during_warmup"],
        )

    def _encoder_loss(self) -> EncoderLoss:
        args = self.args
        if not self.trained:
            return "inference"
        if not args["disable_decoder"]:
            return "both"
        return "rl" if args["disable_stochasticity_in_latent"] else "rl_and_kl"

    def _load_decoders(self) -> dict[str, Slots]:
        """Loads the decoders, of which there are only those that are trained."""
        elbo = self.learner.inference.elbo
        named = {} if elbo is None else decoders(elbo)
        return {name: load_decoder(self.golden, f"{name}/", decoder) for name, decoder in named.items()}

    def _trajectories(self) -> TensorDict | None:
        """The batch that every loss on trajectories is taken of."""
        if "vae_prev_obs" not in self.golden:
            return None
        names = ("prev_obs", "actions", "rewards", "next_obs")
        steps = [batch_first(self.golden[f"vae_{name}"]) for name in names]
        found = trajectories_of(*steps)
        found[keys.TASK] = self.golden["vae_tasks"]
        found[keys.STATE_ID] = cells(steps[-1])
        return found

    def rollout(self, update: int) -> TensorDict:
        """A recorded rollout `[B, T]` in our layout."""
        prefix = self.prefix(update)
        names = ("prev_state", "next_state", "actions", "masks")
        get = {name: batch_first(self.golden[prefix + name]) for name in names}
        action = get["actions"].float()
        reward = batch_first(self.golden[f"{prefix}rewards_raw"])
        done = get["masks"][:, 1:] == 0
        blank = torch.zeros_like(get["next_state"])
        own = {
            keys.PREV_OBSERVATION: get["prev_state"][:, :-1],
            keys.PREV_ACTION: action,
            keys.PREV_REWARD: reward,
            keys.OBSERVATION: get["next_state"],
            keys.REWARD: self._rewards(prefix),
            keys.DONE: done,
            keys.TERMINATED: done,
        }
        root = {
            keys.OBSERVATION: get["prev_state"][:, :-1],
            # Of the step before the rollout nothing is recorded, and nothing is needed: memory and latent are given.
            keys.PREV_OBSERVATION: blank,
            keys.PREV_ACTION: torch.zeros_like(action),
            keys.PREV_REWARD: torch.zeros_like(reward),
            keys.IS_INIT: torch.zeros_like(done),
            keys.START_MEMORY: torch.zeros_like(reward),
            keys.ACTION: get["actions"].squeeze(-1) if self.learner.agent.actions.discrete else get["actions"],
            keys.ACTION_LOG_PROB: batch_first(self.golden[f"{prefix}action_log_probs"]).squeeze(-1),
            keys.NEXT: TensorDict(own, done.shape[:2]),
        }
        tasks = self.tasks(update)[:, :-1]
        rollout = TensorDict(root, done.shape[:2]).update(tasks)
        rollout[keys.NEXT].update(tasks.select(keys.TASK, strict=False))
        return self._apply_limits(rollout, prefix)

    def tasks(self, update: int) -> TensorDict:
        """The tasks of a rollout's steps and of the one after it `[B, T+1]`, shown or not, if there are any."""
        recorded = self.golden.find(f"{self.prefix(update)}tasks")
        if recorded is None:
            return TensorDict({}, [self.envs, self.steps + 1])
        task = batch_first(recorded)
        shown = torch.full(task.shape[:2], self.learner.agent.warming_up)
        return TensorDict({keys.TASK: task, keys.TASK_SHOWN: shown}, task.shape[:2])

    def _rewards(self, prefix: str) -> Tensor:
        """The rewards that the policy learns from."""
        both = {name: self.golden[f"{prefix}rewards_{name}"] for name in ("raw", "normalised")}
        return batch_first(both["normalised" if self.args["norm_rew_for_policy"] else "raw"])

    def _apply_limits(self, rollout: TensorDict, prefix: str) -> TensorDict:
        """A step with the time limit's mark learns nothing: its reward is its own value, and it terminates."""
        limit = batch_first(self.golden[f"{prefix}bad_masks"])[:, 1:] == 0
        if self.args["use_proper_time_limits"]:
            after, values = rollout[keys.NEXT], batch_first(self.golden[f"{prefix}value_preds"])[:, :-1]
            after[keys.REWARD] = torch.where(limit, values, after[keys.REWARD])
            for name in (keys.DONE, keys.TERMINATED):
                after[name] = after[name] | limit
        return rollout

    def minibatches(self, update: int) -> Iterator[Tensor]:
        """The recorded permutations, cut, with our count of steps (`b * T + t`, there `t * B + b`)."""
        size = self.steps * self.envs // self.args["ppo_num_minibatch"]
        for permutation in self.golden["permutations"][update]:
            for index in permutation.split(size):
                if len(index) == size:
                    yield index % self.envs * self.steps + index // self.envs


def _ppo_config(args: Mapping[str, Any]) -> PPOConfig:
    return PPOConfig(
        lr=args["lr_policy"],
        lr_schedule="linear" if args["policy_anneal_lr"] else "constant",
        eps=args["policy_eps"],
        gamma=args["policy_gamma"],
        gae_lambda=args["policy_tau"] if args["policy_use_gae"] else 1.0,
        clip=args["ppo_clip_param"],
        clip_value=args["ppo_use_clipped_value_loss"],
        huber=args["ppo_use_huberloss"],
        value_coeff=args["policy_value_loss_coef"],
        entropy_coeff=args["policy_entropy_coef"],
        max_grad_norm=args["policy_max_grad_norm"],
        epochs=args["ppo_num_epochs"],
        num_minibatches=args["ppo_num_minibatch"],
        minibatch="step",
        normalize_rewards=False,  # recorded rollouts hold both rewards
    )


class Replay:
    """The updates of one file, one call per update, in order.

    Args:
        golden: the file.
    """

    def __init__(self, golden: Golden) -> None:
        self.golden, self.case = golden, Case(golden)
        self.losses: list[Tensor] = []
        self.rates: list[list[float]] = []

    def __call__(self, update: int) -> None:
        """Replays an update and compares what it leaves."""
        case, golden = self.case, self.golden
        learner = case.learner
        rollout = case.rollout(update)
        _begin(case, update, rollout)
        rollout, latent = learner.with_advantages(rollout)
        golden.check(f"{case.prefix(update)}returns", batch_first(rollout[keys.VALUE_TARGET]), LOSS)
        learner.agent.update_statistics(rollout, latent)
        parts = [learner.optimize(rollout, index) for index in case.minibatches(update)]
        learner.finish(rollout.numel(), case.args["num_vae_updates"])
        self.losses.append(torch.stack([_loss_row(case, part) for part in parts]))
        self.rates.append(learner.rates())
        _check_after(case, update)

    def check_totals(self) -> None:
        """Compares what is recorded over all updates."""
        golden, args = self.golden, self.case.args
        golden.check("minibatch_losses", torch.cat(self.losses), LOSS)
        number = args["ppo_num_epochs"] * args["ppo_num_minibatch"]
        total, value, action, entropy = torch.stack([losses.sum(0) / number for losses in self.losses]).T
        unused = torch.zeros(len(total), 5)  # norms of gradients and inputs, which no case computes
        golden.check("update_stats", torch.cat([torch.stack([value, action, entropy, total], 1), unused], 1), LOSS)
        golden.check("lr_after", torch.tensor(self.rates), FORMULA)


def run_ppo_update(golden: Golden) -> None:
    """Complete updates: values and log-probabilities of the rollout, losses, statistics, parameters, rates."""
    replay = Replay(golden)
    learner = replay.case.learner
    learner.replay = replay
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, barebones=True)
    trainer.fit(learner, range(golden.meta["updates"]))
    assert len(replay.losses) == golden.meta["updates"]
    replay.check_totals()
    golden.check_all_read(UNREAD)


def _begin(case: Case, update: int, rollout: TensorDictBase) -> None:
    """Gives the encoder the rollout's start, and checks that acting would give what was recorded."""
    golden, prefix, agent = case.golden, case.prefix(update), case.learner.agent
    encoder: Any = agent.encoder
    halves = [batch_first(golden[f"{prefix}latent_{half}"]) for half in ("mean", "logvar")]
    recorded = torch.cat(halves, -1)
    memories = batch_first(golden[f"{prefix}hidden_states"])
    done = batch_first(golden[f"{prefix}done"])[:, 1:].squeeze(-1).bool()
    assert torch.equal(done, batch_first(golden[f"{prefix}masks"])[:, 1:].squeeze(-1) == 0)
    encoder.begin(recorded[:, 0], memories[:, 0], done, recorded)
    with torch.no_grad():
        assert_close(f"{prefix}latent", encoder.recompute(rollout), recorded, LOSS)
        features = encoder.features(Transition.last(rollout[keys.NEXT]))
        states = encoder.sequence(features, done, memories[:, 0])
        assert_close(f"{prefix}hidden_states", states, memories[:, 1:], LOSS)
        observations = batch_first(golden[f"{prefix}prev_state"])
        steps = TensorDict({keys.OBSERVATION: observations}, observations.shape[:2]).update(case.tasks(update))
        values = agent.values(steps, recorded)
        golden.check(f"{prefix}value_preds", batch_first(values), LOSS)
        golden.check(f"{prefix}next_value", values[:, -1], LOSS)
        parameters, value = agent.evaluate(rollout, recorded[:, :-1])
        batch = rollout.flatten().update({**parameters, keys.NEW_VALUE: value})
        log_prob = case.learner.ppo_loss.log_prob(batch).view(rollout.shape).unsqueeze(-1)
        golden.check(f"{prefix}action_log_probs", batch_first(log_prob), LOSS)


def _loss_row(case: Case, part: dict[str, Tensor]) -> Tensor:
    """Total, value, action and entropy of a minibatch, as recorded."""
    value = part["loss/critic"] / case.args["policy_value_loss_coef"]
    return torch.stack([part["loss/total"], value, part["loss/objective"], part["ppo/entropy"]])


def _check_after(case: Case, update: int) -> None:
    """Parameters and input statistics after an update."""
    golden, agent = case.golden, case.learner.agent
    prefix = f"{case.prefix(update)}after/"
    _check_parameters(golden, f"{prefix}policy/", policy_slots(agent.policy))
    if f"{prefix}encoder/state_encoder.fc.weight" in golden:
        _check_parameters(golden, f"{prefix}encoder/", encoder_slots(agent.encoder))
    for name, slots in case.decoders.items():
        if any(key.startswith(f"{prefix}{name}/") for key in golden.arrays):
            _check_parameters(golden, f"{prefix}{name}/", slots)

    for name, norm in norms(agent.policy):
        for statistic in ("mean", "var", "count"):
            golden.check(f"{prefix}{name}_rms_{statistic}", getattr(norm, statistic))


def _check_parameters(golden: Golden, prefix: str, slots: Slots) -> None:
    for name, slot in slots.items():
        expected = golden[prefix + name]
        ours = slot.value.reshape(expected.shape)
        assert_close(prefix + name, ours, expected, UPDATE)
        assert (ours - expected).abs().mean() <= MEAN_UPDATE * (1 + expected.abs().mean()), f"{prefix}{name}: mean"
