"""Rollouts: a TorchRL collector whose stream can be saved and continued exactly, and evaluation on fresh tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hyperrl import keys
from hyperrl.data.trajectory_buffer import TRANSITION
from hyperrl.envs import MetaEnv
from hyperrl.metrics import EpisodeReturns


class Learner(Protocol):
    """What collection and evaluation need of the LightningModule."""

    frames: int

    @property
    def trajectory_settings(self) -> dict[str, Any] | None:
        """Arguments of the buffer of finished trajectories; none if nothing is learnt from them."""

    def actor(self, generator: torch.Generator) -> ActingPolicy:
        """The acting policy."""


class ActingPolicy(Protocol):
    """A policy with a memory."""

    memory: Tensor | None

    @property
    def memory_layout(self) -> str:
        """What a memory has to agree with to go on in this policy."""

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes an action."""

    def attach_memory(self, rollout: TensorDictBase, memory: Tensor | None) -> None:
        """Writes the memory that a rollout started with to it."""


ActorFactory = Callable[[torch.Generator], ActingPolicy]


class RolloutStream:
    """An endless stream of rollouts ``[B, T]``, each collected only when it is asked for.

    Args:
        env: the environments; this object owns them.
        actor: builds the acting policy from a generator.
        steps: length ``T`` of a rollout.
        seed: seed of the actions.
    """

    def __init__(self, env: MetaEnv, actor: ActorFactory, steps: int, seed: int) -> None:
        self.env = env
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.actor = actor(self.generator)
        self.collector = Collector(
            env,
            self.actor,
            frames_per_batch=steps * env.batch_size.numel(),
            total_frames=-1,
            use_buffers=False,
            track_traj_ids=False,
            trust_policy=True,
            auto_register_policy_transforms=False,
            exploration_type=ExplorationType.RANDOM,
        )
        # Environments and storage share a device: the collector's cast of every step would only take time.
        self.collector.storing_device = None
        self._iterator: Iterator[TensorDictBase] = iter(self.collector)
        self.returns = EpisodeReturns(env.batch_size.numel(), env.episodes_per_task, env.device)
        self.metrics: dict[str, float] = {}

    def collect(self) -> TensorDictBase:
        """Collects the next rollout and notes the returns of the tasks that ended in it."""
        start, memory = time.perf_counter(), self.actor.memory
        with torch.no_grad():
            rollout = next(self._iterator)
            self.actor.attach_memory(rollout, memory)
        self.metrics = {"time/collect": time.perf_counter() - start, **self._returns(rollout[keys.NEXT])}
        return rollout

    def _returns(self, after: TensorDictBase) -> dict[str, float]:
        """Mean return per episode over the tasks that ended in this rollout; empty if none did."""
        ended = self.returns.update(
            after[keys.REWARD][..., 0], after[keys.EPISODE_DONE][..., 0], after[keys.DONE][..., 0]
        )
        if not len(ended):
            return {}
        means = ended.mean(0).tolist()
        named = {f"train/return_episode_{k}": value for k, value in enumerate(means, 1)}
        return {"train/return": sum(means), **named}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next rollout depends on besides the policy's parameters: plain tensors only."""
        memory = self.actor.memory
        return {
            "memory": None if memory is None else memory.cpu().clone(),
            "memory_layout": self.actor.memory_layout,
            "env": self.env.state_dict(),
            "carrier": self.collector._carrier.cpu().clone().to_dict(),
            "generator": self.generator.get_state(),
            "returns": self.returns.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from :meth:`state_dict`: the next rollout is the one that would have come.

        Raises:
            ValueError: the policy now remembers in another way.
        """
        if state["memory_layout"] != self.actor.memory_layout:
            raise ValueError(f"the memory is {state['memory_layout']}; expected {self.actor.memory_layout}")
        self.env.load_state_dict(state["env"])
        carrier = TensorDict(state["carrier"], self.env.batch_size, device=self.env.device)
        # TorchRL's own state_dict keeps counters only; the carried step is what the next rollout starts from.
        self.collector._carrier = carrier
        self.actor.memory = None if state["memory"] is None else state["memory"].to(self.env.device)
        self.generator.set_state(state["generator"].cpu())
        self.returns.load_state_dict(state["returns"])


@torch.no_grad()
def evaluate(
    env: MetaEnv,
    actor: Callable[[TensorDictBase], TensorDictBase],
    extra: Sequence[str] | None = None,
    sampled: bool = False,
) -> TensorDict:
    """Plays one task per environment.

    Args:
        env: environments with fresh tasks ``[N]``.
        actor: the acting policy.
        extra: which published entries whole trajectories are returned with; none for no trajectories.
        sampled: whether actions are drawn from the policy, in the place of its mode.

    Returns:
        ``returns [N, K]``, raw, ``success [N, K]`` (successful steps) where the environment publishes it, and if they
        are asked for the ``trajectories [N]`` (see `hyperrl.keys`).

    Raises:
        ValueError: a task has more steps than the environment's horizon.
    """
    steps: list[TensorDictBase] = []
    wanted = _EVALUATION_KEYS if extra is None else (*_EVALUATION_KEYS, *TRANSITION, *extra)
    with set_exploration_type(ExplorationType.RANDOM if sampled else ExplorationType.DETERMINISTIC):
        td = env.reset()
        ended = td[keys.DONE]
        for _ in range(env.horizon):
            step, td = env.step_and_maybe_reset(actor(td))
            steps.append(step[keys.NEXT].select(*wanted, strict=False))
            ended = ended | step[keys.NEXT, keys.DONE]
            if not env.may_contain(~ended):  # tasks may be shorter than the horizon
                break
    if not ended.all():
        raise ValueError(f"a task goes on after env.horizon ({env.horizon} steps); expected its end by then")
    rollout: TensorDictBase = torch.stack(steps, 1)
    done = rollout[keys.DONE][..., 0]
    # Tasks that end early are followed by others in the same environment: only the first one counts.
    alive = done.long().cumsum(1) - done.long() == 0
    sums = {"returns": rollout[keys.REWARD][..., 0]}
    if rollout.get(keys.SUCCESS, None) is not None:
        sums["success"] = rollout[keys.SUCCESS][..., 0].float()
    result: dict[str, Any] = {name: _per_episode(env, value, rollout, alive) for name, value in sums.items()}
    if extra is not None:
        result[keys.TRAJECTORIES] = _first_trajectories(rollout, alive, extra)
    return TensorDict(result, [len(done)])


_EVALUATION_KEYS = (keys.REWARD, keys.EPISODE_DONE, keys.DONE, keys.SUCCESS)


def _first_trajectories(after: TensorDictBase, alive: Tensor, extra: Sequence[str]) -> TensorDict:
    """The trajectory of each environment's first task, zero behind its end, out of what followed each step."""
    per_task = [name for name in extra if name in (keys.TASK, keys.TASK_ID)]
    per_step = [*TRANSITION, *(name for name in extra if name not in per_task)]
    steps = {name: after[name] * alive.view(*alive.shape, *(1,) * (after[name].ndim - 2)) for name in per_step}
    tasks = {name: after[name][:, 0] for name in per_task}
    return TensorDict({**steps, **tasks, keys.LENGTH: alive.sum(1)}, [len(alive)])


def _per_episode(env: MetaEnv, value: Tensor, rollout: TensorDictBase, alive: Tensor) -> Tensor:
    """Sums ``value [N, T]`` over the episodes of each environment's first task, ``[N, K]``."""
    counter = EpisodeReturns(len(value), env.episodes_per_task, value.device)
    ends = [rollout[key][..., 0] & alive for key in (keys.EPISODE_DONE, keys.DONE)]
    return counter.update(value * alive, *ends)
