"""The configuration of task inference: what trains the encoder, what is decoded, how the losses are reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hyperrl import keys
from hyperrl.errors import ConfigError

EncoderLoss = Literal["rl", "inference", "both", "rl_and_kl"]
RewardDecoding = Literal["none", "deterministic", "bernoulli", "categorical"]
StateDecoding = Literal["none", "deterministic", "gaussian"]
TaskTarget = Literal["none", "id", "description", "embedding", "base_network"]


@dataclass(frozen=True)
class InferenceConfig:
    """Task inference: a decoder that explains whole trajectories from the latent, or the true task as a target.

    Attributes:
        encoder_loss: what trains the encoder: the RL loss alone (rl); reconstructions, KL and task, in updates of their
            own (inference: VariBAD); both at once, in every minibatch (both), or the same without any decoder
            (rl_and_kl: PEARL, RL2).
        lr: learning rate of encoder and decoders where they have a decoder; otherwise they follow model.ppo.lr.
        updates: updates on trajectories after each PPO update, with encoder_loss: inference.
        batch_trajectories: trajectories per update.
        buffer_capacity: finished trajectories that are kept; the oldest make room.
        store_probability: with which probability a finished trajectory is kept.
        coeff: weight of the inference loss where it is added to the RL loss.
        precollect_frames: frames that fill the buffer before the first update of anything.
        pretrain_updates: updates on trajectories in place of the first PPO update.
        stochastic: whether decoders get samples of the latent and the KL is minimised; without, they get mean and log
            variance, and there is no KL.
        kl_coeff: weight of the KL.
        kl_prior: KL to the posterior one step earlier, or to the standard normal distribution.
        reward: prediction of rewards; none leaves them out; bernoulli and categorical predict whether it is the target.
        reward_target: the reward whose presence is predicted, that of success.
        reward_per_state: whether the reward decoder has an output per state instead of states and actions as inputs.
        reward_uses_action: whether the reward decoder is given the action.
        reward_uses_prev_state: whether it is given the previous state.
        reward_layers: hidden widths of the reward decoder.
        reward_coeff: weight of the reward's reconstruction.
        state: prediction of the next state, none to leave it out.
        state_layers: hidden widths of the state decoder.
        state_coeff: weight of the state's reconstruction.
        task: what the latent is regressed on: the task's id or description, the policy's embedding of it, or all the
            weights that the policy generates from that embedding (base_network). A decoder predicts it with
            encoder_loss: inference; else the policy's embedding of the latent itself is compared, in every minibatch.
        task_layers: hidden widths of the task decoder.
        task_coeff: weight of the task loss.
        task_stop_gradient: whether the target does not learn from the task loss.
        subsample_elbos: latents of a trajectory that are decoded, drawn anew for every batch; null for all.
        subsample_decodes: steps that are decoded from each; null for all.
        resample_decodes: draw as many steps as the longest trajectory of the batch has.
        only_past: decode only what came before the latent.
        average_elbos: average over the latents of a trajectory, instead of adding.
        average_decodes: average over decoded steps, instead of adding.
        reduction: over trajectories, `published` averages reconstructions but adds KL and task losses (and adds the KL
            of every drawn step over all trajectories), as the papers' weights were tuned; `mean` averages all.
        bptt_steps: cut gradients through the memory every so many steps of a trajectory; null for never.
        freeze_during_warmup: leave encoder and decoders alone while the policy is given the task.
    """

    encoder_loss: EncoderLoss = "rl"
    lr: float = 0.001
    updates: int = 3
    batch_trajectories: int = 25
    buffer_capacity: int = 10_000
    store_probability: float = 1.0
    coeff: float = 1.0
    precollect_frames: int = 0
    pretrain_updates: int = 0
    stochastic: bool = True
    kl_coeff: float = 1.0
    kl_prior: Literal["previous", "standard"] = "previous"
    reward: RewardDecoding = "deterministic"
    reward_target: float = 1.0
    reward_per_state: bool = False
    reward_uses_action: bool = True
    reward_uses_prev_state: bool = True
    reward_layers: list[int] = field(default_factory=lambda: [32, 32])
    reward_coeff: float = 1.0
    state: StateDecoding = "none"
    state_layers: list[int] = field(default_factory=lambda: [32, 32])
    state_coeff: float = 1.0
    task: TaskTarget = "none"
    task_layers: list[int] = field(default_factory=lambda: [32, 32])
    task_coeff: float = 1.0
    task_stop_gradient: bool = True
    subsample_elbos: int | None = None
    subsample_decodes: int | None = None
    resample_decodes: bool = False
    only_past: bool = False
    average_elbos: bool = False
    average_decodes: bool = False
    reduction: Literal["published", "mean"] = "published"
    bptt_steps: int | None = None
    freeze_during_warmup: bool = False

    def __post_init__(self) -> None:
        _check_values(self)
        _check_combinations(self)

    @property
    def rl_trains_encoder(self) -> bool:
        """Whether gradients of the RL loss reach the encoder."""
        return self.encoder_loss != "inference"

    @property
    def decodes(self) -> bool:
        """Whether there are decoders."""
        return self.encoder_loss in ("inference", "both")

    @property
    def uses_trajectories(self) -> bool:
        """Whether whole trajectories of finished tasks are needed."""
        return self.encoder_loss != "rl"

    @property
    def decodes_task(self) -> bool:
        """Whether a decoder predicts the task; if not, a task loss compares embeddings in PPO's minibatches."""
        return self.task != "none" and self.encoder_loss == "inference"

    @property
    def compares_task(self) -> bool:
        """Whether PPO's minibatches compare the embedding of the latent with the task."""
        return self.task != "none" and self.encoder_loss != "inference"

    @property
    def publish(self) -> tuple[str, ...]:
        """What the environment has to publish besides the observation, as TensorDict keys."""
        return self.trajectory_entries + ((keys.TASK,) if self.compares_task else ())

    @property
    def trajectory_entries(self) -> tuple[str, ...]:
        """What of that is kept with trajectories."""
        states = (keys.STATE_ID,) if self.decodes and self.reward != "none" and self.reward_per_state else ()
        task = (keys.TASK_ID if self.task == "id" else keys.TASK,) if self.decodes_task else ()
        return states + task


Rule = tuple[tuple[str, ...], Callable[[Any], bool], str]
RULES: tuple[Rule, ...] = (
    (("updates", "batch_trajectories", "buffer_capacity"), lambda x: x >= 1, "at least 1"),
    (("precollect_frames", "pretrain_updates"), lambda x: x >= 0, "0 or more"),
    (("subsample_elbos", "subsample_decodes", "bptt_steps"), lambda x: x is None or x >= 1, "at least 1, or null"),
    (
        ("coeff", "kl_coeff", "reward_coeff", "state_coeff", "task_coeff"),
        lambda x: 0 <= x < float("inf"),
        "a number of at least 0",
    ),
    (("lr",), lambda x: 0 < x < float("inf"), "a positive number"),
    (("store_probability",), lambda x: 0 < x <= 1, "a number above 0, at most 1"),
    (("reward_layers", "state_layers", "task_layers"), lambda x: all(width >= 1 for width in x), "positive widths"),
)


def _check_values(config: InferenceConfig) -> None:
    """Refuses values that are wrong by themselves."""
    for names, holds, expected in RULES:
        for name in names:
            if not holds(getattr(config, name)):
                shown = _shown(getattr(config, name))
                raise ConfigError(f"model.inference.{name} is {shown}; expected {expected}")


def _check_combinations(config: InferenceConfig) -> None:
    """Refuses settings that exclude each other."""
    all_of_them = "all latents and steps with sums, since what is past differs among latents"
    reducing = ("subsample_elbos", "subsample_decodes", "resample_decodes", "average_elbos", "average_decodes")
    for name in reducing:
        _refuse(config, "only_past", name, config.only_past and bool(getattr(config, name)), all_of_them)
    both = config.resample_decodes and config.subsample_decodes is not None
    _refuse(config, "resample_decodes", "subsample_decodes", both, "one of them")
    expected = "reward_per_state: true, over whose states the categories range"
    alone = config.reward == "categorical" and not config.reward_per_state
    _refuse(config, "reward", "reward_per_state", alone, expected)
    nothing = config.decodes and config.reward == config.state == "none" and not config.decodes_task
    expected = "something to decode, or encoder_loss: rl_and_kl"
    _refuse(config, "encoder_loss", "reward", nothing, expected)
    for name in ("precollect_frames", "bptt_steps"):
        idle = bool(getattr(config, name)) and not config.uses_trajectories
        _refuse(config, name, "encoder_loss", idle, "another encoder_loss, since rl learns from no trajectories")
    own = config.encoder_loss == "inference"
    expected = "encoder_loss: inference, since only a decoder can predict an id"
    _refuse(config, "task", "encoder_loss", config.task == "id" and not own, expected)
    _refuse(config, "pretrain_updates", "encoder_loss", config.pretrain_updates > 0 and not own, "inference")
    idle = config.encoder_loss == "rl_and_kl" and not config.stochastic
    _refuse(config, "stochastic", "encoder_loss", idle, "stochastic: true, or encoder_loss: rl")


def _refuse(config: InferenceConfig, key: str, other: str, clash: bool, expected: str) -> None:
    """Raises if two settings exclude each other."""
    if clash:
        first, second = (f"model.inference.{name} is {_shown(getattr(config, name))}" for name in (key, other))
        raise ConfigError(f"{first} and {second}; expected {expected}")


def _shown(value: Any) -> str:
    """A value as YAML shows it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
