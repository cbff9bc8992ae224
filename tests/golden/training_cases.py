"""Golden vectors of the training arithmetic: returns, losses, normalisation, metrics, rollout encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from encoder_cases import encoder_slots, make_encoder, walk, with_prior
from support import FORMULA, LOSS, Golden, assert_close, load_parameters
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.metrics import adaptation_metrics
from hyperrl.modules.encoder import Transition
from hyperrl.modules.normalization import EPSILON, INITIAL_COUNT, RewardNormalizer, RunningNorm
from hyperrl.modules.ppo import PPOConfig, PPOLoss, generalized_advantages, normalize_advantages


def batch_first(value: Tensor) -> Tensor:
    """`[T, B, ...]` there is `[B, T, ...]` here."""
    return value.transpose(0, 1)


# Returns


def reference_advantages(
    reward: Tensor, values: Tensor, mask: Tensor, bad_mask: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The four recursions of spec/training.md section 4 through ours.

    Without GAE, lambda is 1. Where proper time limits are on, a step with the limit's mark learns nothing and passes
    nothing on: its reward becomes its own value, and it terminates.

    Args:
        reward: `[B, T, 1]`.
        values: `[B, T+1, 1]`, the last one bootstraps.
        mask: 0 where the task ended with the step `[B, T, 1]`.
        bad_mask: 0 where the step hit a time limit `[B, T, 1]`.
        settings: `gamma`, `tau`, `use_gae`, `use_proper_time_limits`.

    Returns:
        Advantages and returns `[B, T, 1]`.
    """
    value, done = values[:, :-1], mask == 0
    if settings["use_proper_time_limits"]:
        limit = bad_mask == 0
        reward, done = torch.where(limit, value, reward), done | limit
    gae_lambda = settings["tau"] if settings["use_gae"] else 1.0
    return generalized_advantages(reward, value, values[:, 1:], done, done, settings["gamma"], gae_lambda)


def run_returns(golden: Golden) -> None:
    """Returns and normalised advantages, with and without GAE and proper time limits."""
    meta = golden.meta
    rewards = {True: golden["rewards_normalised"], False: golden["rewards_raw"]}[meta["normalise_rewards"]]
    recorded = golden["value_preds"]
    values = torch.cat([recorded[:-1], golden["next_value"].unsqueeze(0)])
    advantage, returns = reference_advantages(
        batch_first(rewards),
        batch_first(values),
        batch_first(golden["masks"][1:]),
        batch_first(golden["bad_masks"][1:]),
        meta,
    )
    golden.check("returns", batch_first(returns))
    golden.check("value_preds_after", values if meta["use_gae"] else recorded)
    golden.check("advantages_normalised", batch_first(normalize_advantages(advantage)))
    unused = "rewards_raw" if meta["normalise_rewards"] else "rewards_normalised"
    golden.check_all_read({unused: "the case does not learn from these rewards"})


# Loss


class Recorded:
    """Stands in for an action distribution: what the file holds instead of one.

    Args:
        loc: log-probabilities of the actions `[N]`.
        scale: entropies `[N]`.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.log_probability, self.entropies = loc, scale

    def log_prob(self, action: Tensor) -> Tensor:
        """The recorded log-probabilities."""
        return self.log_probability

    def entropy(self) -> Tensor:
        """The recorded entropies."""
        return self.entropies


def run_ppo_loss(golden: Golden) -> None:
    """Value, action and total loss with their gradients."""
    meta = golden.meta
    config = PPOConfig(
        clip=meta["clip_param"],
        clip_value=meta["use_clipped_value_loss"],
        huber=meta["use_huber_loss"],
        value_coeff=meta["value_loss_coef"],
        entropy_coeff=meta["entropy_coef"],
    )
    loss = PPOLoss(config, discrete=False)
    loss.actor_network.distribution_class = Recorded
    inputs = {name: golden[name].requires_grad_() for name in ("values", "action_log_probs", "entropy")}
    number = len(inputs["values"])
    batch = TensorDict(
        {
            keys.LOC: inputs["action_log_probs"].squeeze(-1),
            keys.SCALE: inputs["entropy"].expand(number),  # recorded as its mean
            keys.NEW_VALUE: inputs["values"],
            keys.ACTION: torch.zeros(number),
            keys.ACTION_LOG_PROB: golden["old_action_log_probs"].squeeze(-1),
            keys.STATE_VALUE: golden["value_preds"],
            keys.VALUE_TARGET: golden["returns"],
            keys.ADVANTAGE: golden["advantages"],
        },
        [number],
    )
    total, parts = loss.total(batch)
    golden.check("loss", total)
    golden.check("value_loss", parts["loss_critic"] / meta["value_loss_coef"])
    golden.check("action_loss", parts["loss_objective"])
    golden.check("dist_entropy", parts["entropy"])
    total.backward()
    for name, value in inputs.items():
        golden.check_gradient(f"grad_{name}", value)
    golden.check_all_read({})


# Running statistics of inputs


def run_running_mean_std(golden: Golden) -> None:
    """Statistics after each batch, and a normalised query; both layouts."""
    if "in/query" in golden:
        names = {"batch": "in/batch{}", "query": "in/query", "normalised": "out/normalised"}
    else:
        names = {"batch": "batch_{}", "query": "query", "normalised": "query_normalised"}
    assert golden.meta.get("epsilon", golden.meta.get("epsilon_count")) == INITIAL_COUNT
    number = 0
    norm = RunningNorm(golden[names["query"]].shape[-1])
    while names["batch"].format(number) in golden:
        norm.update(golden[names["batch"].format(number)])
        for statistic in ("mean", "var", "count"):
            stacked = statistic in golden
            name = statistic if stacked else f"out/{statistic}{number}"
            expected = golden[name][number] if stacked else golden[name]
            assert_close(f"{name} after batch {number}", getattr(norm, statistic), expected, FORMULA)
        number += 1
    assert number == golden.meta.get("num_batches", number) > 0
    golden.check(names["normalised"], norm(golden[names["query"]]))
    golden.check_all_read({})


# Normalisation of rewards


def _normaliser(gamma: float, clip: float, initial: list[float] | None = None) -> RewardNormalizer:
    normaliser = RewardNormalizer(gamma, clip)
    for name, value in zip(("mean", "var", "count"), initial or (), strict=False):
        getattr(normaliser, name).fill_(value)
    return normaliser


def _accumulated(normaliser: RewardNormalizer) -> Tensor:
    """The discounted return of every environment `[1, P]`."""
    assert normaliser.discounted_return is not None
    return normaliser.discounted_return.clone().unsqueeze(0)


class RewardStream:
    """Replays recorded rewards `[T, P]`, by single steps and by whole stretches between two resets.

    Args:
        rewards: raw rewards `[T, P]`.
        dones: ends of tasks `[T, P]`.
        clear: after which steps the accumulators of all environments are cleared `[T]`; the reference clears all of
            them when any environment is reset (quirk Q10).
        frozen_from: first step with frozen statistics; none if they always move.
    """

    def __init__(self, rewards: Tensor, dones: Tensor, clear: Tensor, frozen_from: int | None = None) -> None:
        self.rewards, self.dones, self.clear = rewards, dones, clear
        self.frozen_from = len(rewards) if frozen_from is None else frozen_from

    def steps(self, normaliser: RewardNormalizer) -> dict[str, Tensor]:
        """One call per step: scaled rewards, accumulators before and after the reset, statistics."""
        pieces = [slice(t, t + 1) for t in range(len(self.rewards))]
        return self._run(normaliser, pieces)

    def stretches(self, normaliser: RewardNormalizer) -> dict[str, Tensor]:
        """One call per stretch in which nothing is cleared or frozen, as the learner makes them."""
        cuts = {0, len(self.rewards), self.frozen_from, *(self.clear.nonzero()[:, 0] + 1).tolist()}
        bounds = sorted(cuts)
        return self._run(normaliser, [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)])

    def _run(self, normaliser: RewardNormalizer, pieces: list[slice]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for piece in pieces:
            normaliser.train(piece.start < self.frozen_from)
            rewards, dones = (batch_first(value[piece]).unsqueeze(-1) for value in (self.rewards, self.dones))
            scaled = normaliser(rewards, dones)
            found.setdefault("scaled", []).append(batch_first(scaled.squeeze(-1)))
            found.setdefault("after_step", []).append(_accumulated(normaliser))
            if self.clear[piece.stop - 1]:
                normaliser.reset(torch.ones(rewards.shape[0], dtype=torch.bool))
            found.setdefault("after_reset", []).append(_accumulated(normaliser))
            for name in ("mean", "var", "count"):
                found.setdefault(name, []).append(getattr(normaliser, name).clone().unsqueeze(0))
        return {name: torch.cat(values) for name, values in found.items()}


def run_reward_normalisation(golden: Golden) -> None:
    """Scaled rewards, accumulators and statistics, in three reset modes."""
    meta, rewards, dones = golden.meta, golden["rewards"], golden["dones"]
    assert (meta["epsilon"], meta["rms_initial_count"]) == (EPSILON, INITIAL_COUNT)
    ended = {"no_reset": torch.zeros(len(dones), dtype=torch.bool), "reset": dones.any(1), "all_done": dones.any(1)}
    stream = RewardStream(rewards, dones, ended[meta["mode"]])
    found = stream.steps(_normaliser(meta["gamma"], meta["clip"]))
    names = {"normalised": "scaled", "ret_after_step": "after_step", "ret_after_reset": "after_reset"}
    names |= {f"rms_{name}": name for name in ("mean", "var", "count")}
    for recorded, ours in names.items():
        golden.check(recorded, found[ours])
    golden.check("normalised", stream.stretches(_normaliser(meta["gamma"], meta["clip"]))["scaled"])
    golden.check_all_read({})


def run_vecnormalize(golden: Golden) -> None:
    """The reward normaliser of the vector environment: partial resets, clipping, frozen and pre-filled statistics."""
    kwargs, rewards = golden.meta["kwargs"], golden["reward_raw"]
    assert kwargs["epsilon"] == EPSILON
    frozen_from = kwargs["frozen_from"] if kwargs["normalise_rew"] else 0
    stream = RewardStream(rewards, golden["done"], golden["reset_call"] != -2, frozen_from)
    arguments = kwargs["gamma"], kwargs["cliprew"], kwargs["init"]
    found = stream.steps(_normaliser(*arguments))
    golden.check("discounted_return", found["after_step"])
    if not kwargs["normalise_rew"]:
        golden.check("reward_norm", rewards)
        return golden.check_all_read({})
    for name in ("mean", "var", "count"):
        golden.check(f"rms_{name}", found[name])
    golden.check("reward_norm", found["scaled"])
    golden.check("reward_norm", stream.stretches(_normaliser(*arguments))["scaled"])
    return golden.check_all_read({})


# Metrics


def run_evaluation_metrics(golden: Golden) -> None:
    """The adaptation curve and success, under the reference's names, for training and test tasks."""
    ours: dict[str, float] = {}
    for stage, suffix in (("train", ""), ("test", "test")):
        if f"returns_{stage}" not in golden:
            continue
        metrics = adaptation_metrics(golden[f"returns_{stage}"], golden.find(f"success_{stage}"))
        ours |= _reference_names(metrics, f"_{suffix}".rstrip("_"), f" {suffix}".rstrip())
    names = golden.meta["metric_names"]
    golden.check("values", torch.tensor([ours[name] for name in names], dtype=torch.float64))
    assert len(names) == len(ours)
    golden.check_all_read({})


def _reference_names(metrics: dict[str, float], underscored: str, spaced: str) -> dict[str, float]:
    names = {"return": "Meta-Episode Return"}
    names |= {"success_mean": "Meta-Episode Success Avg", "success_fraction": "Meta-Episode Success Frac"}
    found = {names[name] + spaced: value for name, value in metrics.items() if name in names}
    for kind, prefix in (("avg", "return_episode_"), ("std", "return_std_episode_")):
        for name, value in metrics.items():
            if name.startswith(prefix):
                for axis in ("iter", "frame"):
                    found[f"return_{kind}_per_{axis}{underscored}/episode_{name.removeprefix(prefix)}"] = value
    return found


# Encoding of running trajectories


def run_rollout_encoding(golden: Golden) -> None:
    """Latents and memories after trajectories of different lengths, then along a step stream with task ends."""
    encoder = make_encoder(golden.args)
    load_parameters(golden, "encoder/", encoder_slots(encoder), encoder)

    def steps(part: str) -> Transition:
        names = ("prev_obs", "actions", "rewards", "next_obs")
        return Transition(*(batch_first(golden[f"{part}_{name}"]) for name in names))

    running, lengths = steps("running"), golden["running_lengths"]
    batch = len(lengths)
    _check_halves(golden, "prior_{}", encoder.prior(batch).unsqueeze(0))
    golden.check("prior_hidden", encoder.initial_state(batch).unsqueeze(0))
    none = torch.zeros(running.reward.shape[:2], dtype=torch.bool)
    latents, states = with_prior(encoder, *walk(encoder, running, none, encoder.initial_state(batch)))
    at = torch.arange(batch), lengths
    _check_halves(golden, "latent_{}", latents[at])
    golden.check("hidden", states[at])

    stream, reset = steps("step"), batch_first(golden["step_done"]).squeeze(-1).bool()
    latents, after = walk(encoder, stream, reset, states[at])
    golden.check("step_hidden", batch_first(after))
    for ours in (latents, encoder(stream, reset, states[at])):
        _check_halves(golden, "step_latent_{}", batch_first(ours))
    golden.check_all_read({})


def _check_halves(golden: Golden, name: str, latent: Tensor) -> None:
    for half, part in zip(latent.chunk(2, -1), ("mean", "logvar"), strict=True):
        golden.check(name.format(part), half, LOSS)
