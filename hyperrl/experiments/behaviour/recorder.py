"""Recording meta-episodes: what happened in the environment, and what the agent knew and expected at each step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from hyperrl import __version__, keys
from hyperrl.envs import MetaEnv
from hyperrl.experiments.behaviour.places import plan_of
from hyperrl.experiments.behaviour.playing import Actor, random_actor, steps
from hyperrl.experiments.behaviour.recording import FORMAT, Array, Recording
from hyperrl.modules.decoders import LatentDecoder, RewardDecoder
from hyperrl.modules.encoder import Transition
from hyperrl.modules.meta_ppo import MetaPPO

_OF_STEPS = (keys.REWARD, keys.EPISODE_DONE, keys.DONE, keys.TERMINATED, keys.SUCCESS)
_OF_STATES = (keys.OBSERVATION, keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF)
_SAMPLES = 100  # of a latent, for what a decoder predicts of all states
Pair = tuple[Tensor, Tensor]


def record(
    env: MetaEnv,
    learner: MetaPPO | None = None,
    *,
    seed: int = 0,
    sampled: bool = False,
    pictures_of: int | None = None,
    about: dict[str, Any] | None = None,
) -> Recording:
    """Play one meta-episode in each environment from a reset on, and keep everything.

    Nothing global is read or changed: no random stream, and nothing of the learner.

    Args:
        env: the environments `[N]`; with `record_path` and all that they publish, more is kept.
        learner: whose agent acts; none takes random actions.
        seed: seed of everything that is drawn to act on.
        sampled: whether actions are drawn from the policy, in the place of its mode.
        pictures_of: of which environment pictures are kept; none keeps no pictures.
        about: what else belongs into ``info``, such as the environment's id and the checkpoint's name.

    Raises:
        NotImplementedError: pictures are asked for, and the family has none.
    """
    generator = torch.Generator(env.device).manual_seed(seed)
    actor: Actor = random_actor(env, seed) if learner is None else learner.actor(generator)
    rollout, places, pictures = _play(env, actor, sampled, pictures_of)
    after = rollout[keys.NEXT]
    length = after[keys.DONE][..., 0].long().argmax(1) + 1
    names = set(after.keys())
    of_steps = {name: after[name][..., 0] for name in _OF_STEPS if name in names}
    of_steps |= {keys.ACTION: rollout[keys.ACTION], **places}
    of_states = {name: (rollout[name], after[name]) for name in _OF_STATES if name in names}
    info: dict[str, Any] = {"format": FORMAT, "versions": {"hyperrl": __version__, "torch": torch.__version__}}
    info |= {"episodes_per_task": env.episodes_per_task, "num_actions": env.num_actions, "plan": plan_of(env)}
    info |= {"seed": seed, "sampled": sampled, "pictures_of": pictures_of, **(about or {})}
    if learner is not None:
        with torch.no_grad(), torch.autocast(env.device.type, enabled=False):
            expected, known = _expected_and_known(learner, rollout, seed)
        of_steps, of_states = of_steps | expected, of_states | known
        info |= _units(learner)
    arrays = {name: _masked(value, length) for name, value in of_steps.items()}
    arrays |= {name: _joined(*pair, length) for name, pair in of_states.items()}
    kept: dict[str, Array] = {name: value.cpu().numpy() for name, value in {"length": length, **arrays}.items()}
    if pictures:
        kept["pictures"] = np.stack(pictures)
    return Recording(json.loads(json.dumps(info)), kept)  # as it will be read


def _play(
    env: MetaEnv, actor: Actor, sampled: bool, pictures_of: int | None
) -> tuple[TensorDictBase, dict[str, Tensor], list[Array]]:
    """Steps ``[N, T]`` until all tasks have ended, places before and after each, and pictures of one of the tasks."""
    start = env.reset()
    played, starts, ends = [], [], []
    pictures = [] if pictures_of is None else [env.render_frame(pictures_of)]
    rows = torch.arange(env.num_envs, device=env.device)
    walked, over = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)  # steps of the episode; of the task
    place = env.coordinates() if "path" in env.state else None
    for step in steps(env, start, actor, sampled):
        played.append(step.clone(recurse=False))
        after = step[keys.NEXT]
        if place is not None:
            walked = walked + 1
            starts.append(place)
            # Where the next episode has begun already, only the path still knows where the last one has ended.
            ends.append(env.state["path"][rows, walked])
            walked, place = walked.masked_fill(after[keys.EPISODE_DONE][:, 0], 0), env.coordinates()
        if pictures_of is not None and not over[pictures_of]:
            pictures.append(env.render_frame(pictures_of))
        over = over | after[keys.DONE][:, 0]
        if over.all():
            break
    places = {"start": torch.stack(starts, 1), "position": torch.stack(ends, 1)} if starts else {}
    rollout = torch.stack(played, 1)
    if hasattr(actor, "attach_memory"):
        actor.attach_memory(rollout, None)
    return rollout, places, pictures


def _expected_and_known(
    learner: MetaPPO, rollout: TensorDictBase, seed: int
) -> tuple[dict[str, Tensor], dict[str, Pair]]:
    """What the agent expected of each step ``[N, T]``; what it knew before and after each."""
    agent = learner.agent
    before, after = agent.encoder.encode(rollout)
    expected = {"value": agent.values(rollout, before)[..., 0]}
    known: dict[str, Pair] = {}
    if before.shape[-1] and stochastic_latents(learner):
        (mean, log_variance), (next_mean, next_log_variance) = before.chunk(2, -1), after.chunk(2, -1)
        known = {"latent_mean": (mean, next_mean), "latent_log_variance": (log_variance, next_log_variance)}
    elif before.shape[-1]:
        known = {"latent": (before, after)}
    decoder = None if learner.inference.elbo is None else learner.inference.elbo.reward
    if isinstance(decoder, RewardDecoder):
        expected["predicted_reward"] = _of_own_steps(learner, decoder, before, rollout[keys.NEXT])
    elif isinstance(decoder, LatentDecoder):
        generator = torch.Generator().manual_seed(seed)
        known["state_prediction"] = tuple(_of_states(learner, decoder, x, generator) for x in (before, after))  # type: ignore[assignment]
    return expected, known


def stochastic_latents(learner: MetaPPO) -> bool:
    """Whether latents are the mean and the log variance of a distribution, not just numbers.

    Args:
        learner: whose encoder they come from.
    """
    config = learner.inference.config
    return bool(learner.agent.encoder.noise_dim) or (config.uses_trajectories and config.stochastic)


def _of_own_steps(learner: MetaPPO, decoder: RewardDecoder, latent: Tensor, after: TensorDictBase) -> Tensor:
    """The rewards ``[N, T]`` of all steps as the mean of the latent just before each of them predicts them."""
    z = latent.chunk(2, -1)[0] if learner.inference.config.stochastic else latent
    index = torch.arange(z.shape[1], device=z.device).view(1, -1, 1).expand(len(z), -1, -1)
    return _probability(learner, decoder(z, Transition.last(after), index)).flatten(1)


def _of_states(learner: MetaPPO, decoder: LatentDecoder, latent: Tensor, generator: torch.Generator) -> Tensor:
    """Predictions ``[N, T, S]`` of all states, averaged over samples of the latents ``[N, T, 2L]``."""
    if not learner.inference.config.stochastic:
        return _probability(learner, decoder(latent))
    mean, log_variance = latent.chunk(2, -1)
    total = torch.zeros((), device=mean.device)
    for _ in range(_SAMPLES):  # one after the other, as all at once would need a hundred times the memory
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        total = total + _probability(learner, decoder(mean + (log_variance / 2).exp() * noise))
    return total / _SAMPLES


def _probability(learner: MetaPPO, prediction: Tensor) -> Tensor:
    """What a prediction ``[..., S]`` means: rewards, or probabilities of the reward that is looked for."""
    kind = learner.inference.config.reward
    if kind == "categorical":
        return prediction.softmax(-1)
    return prediction.sigmoid() if kind == "bernoulli" else prediction


def _units(learner: MetaPPO) -> dict[str, Any]:
    """What the numbers of an agent mean."""
    scaled = learner.config.normalize_rewards
    return {
        "prediction": learner.inference.config.reward,
        # What values have to be multiplied with to be in units of rewards.
        "value_unit": learner.reward_normalizer.var.sqrt().item() if scaled else 1.0,
    }


def _masked(value: Tensor, length: Tensor) -> Tensor:
    """What belongs to steps ``[N, T, ...]``, zero behind the ends."""
    alive = torch.arange(value.shape[1], device=length.device) < length.unsqueeze(1)
    return value.where(alive.view(*alive.shape, *(1,) * (value.ndim - 2)), torch.zeros_like(value))


def _joined(before: Tensor, after: Tensor, length: Tensor) -> Tensor:
    """What belongs to states ``[N, T+1, ...]``, out of what was before and after each step, zero behind the ends."""
    joined = torch.cat((_masked(before, length), torch.zeros_like(before[:, :1])), 1)
    rows = torch.arange(len(length), device=length.device)
    # Where a task ended, the next one has begun in the following step.
    joined[rows, length] = after[rows, length - 1]
    return joined
