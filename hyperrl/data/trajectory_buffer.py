"""Trajectories of whole tasks, for inference losses: a ring of finished ones, and those under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hyperrl import keys

TRANSITION = (keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.OBSERVATION)
# What is constant in a task; any other extra entry belongs to the state s' of each transition.
_OF_TASK = (keys.TASK, keys.TASK_ID)


class TrajectoryBuffer:
    """The newest trajectories of finished tasks (spec/training.md section 7.1).

    `hyperrl.keys` says what a trajectory consists of. A task may have any length up to the horizon, and stretch over
    any number of rollouts. Everything lives on the device of the rollouts. TorchRL's replay buffers do not fit: their
    tensor storages allocate and save the whole capacity, and their samplers draw with replacement, or go through one
    permutation over successive draws.

    Args:
        capacity: number of finished trajectories kept; the oldest make room.
        horizon: longest task ``H`` in steps.
        seed: seed of what is kept and what is sampled.
        extra: published entries to keep, out of task, task_id, state_id.
        store_probability: probability with which a finished trajectory is kept.

    Attributes:
        running: trajectories of the unfinished tasks ``[B]``, without what is constant in a task; none before the
            first rollout.
        position: row of the ring that is written next.
    """

    def __init__(
        self, capacity: int, horizon: int, seed: int, *, extra: Sequence[str] = (), store_probability: float = 1.0
    ) -> None:
        self.capacity, self.horizon, self.store_probability = capacity, horizon, store_probability
        self.running: TensorDict | None = None
        self.position = 0
        self._steps = (*TRANSITION, *(name for name in extra if name not in _OF_TASK))
        self._constants = tuple(name for name in extra if name in _OF_TASK)
        self._generator = torch.Generator().manual_seed(seed)
        self._ring: TensorDict | None = None
        self._filled = 0

    def __len__(self) -> int:
        """Number of finished trajectories."""
        return self._filled

    @property
    def trajectories(self) -> TensorDict:
        """The finished trajectories ``[len(self)]`` in the order of the ring's rows, not to be changed.

        Raises:
            ValueError: there is none yet.
        """
        if self._ring is None or not self._filled:
            raise ValueError("the buffer is empty; expected a finished trajectory")
        return self._ring[: self._filled]

    def add(self, rollout: TensorDictBase) -> None:
        """Takes up a rollout ``[B, T]`` as TorchRL collects it, the next one of the same environments.

        Raises:
            ValueError: a task is longer than the horizon, or the number of environments has changed.
        """
        finished = self.finish(rollout)
        kept = torch.rand(len(finished), generator=self._generator) < self.store_probability
        self.store(finished[kept.to(finished.device)])

    def finish(self, rollout: TensorDictBase) -> TensorDict:
        """Continues the running trajectories by a rollout ``[B, T]`` and takes out those that it finishes.

        Returns:
            The finished trajectories ``[n]``, in the order of their ends.

        Raises:
            ValueError: a task is longer than the horizon, or the number of environments has changed.
        """
        after = rollout[keys.NEXT]
        done = after[keys.DONE][..., 0]
        running = self._continued(rollout)
        ends = done.sum(1)
        # Each environment gets a row for every task that ends, and behind them one for the task that goes on.
        last = (ends + 1).cumsum(0) - 1
        row = last.unsqueeze(1) - done.flip(1).cumsum(1).flip(1)
        step = _steps_since_start(done, running[keys.LENGTH])
        longest = int(step.max()) + 1
        if longest > self.horizon:
            raise ValueError(f"a task has {longest} steps or more; expected at most the horizon, {self.horizon}")
        rows = self._blank(after, int(last[-1]) + 1)
        rows[last - ends] = running
        for name in self._steps:
            rows[name][row, step] = after[name]
        rows[keys.LENGTH] += row.flatten().bincount(minlength=len(rows))
        self.running = rows[last]
        end, env = done.T.nonzero(as_tuple=True)
        finished = rows[row[env, end]]
        for name in self._constants:
            # The root of a task's last step still shows this task; only the next root shows another.
            finished[name] = rollout[name][env, end]
        return finished

    def store(self, trajectories: TensorDict) -> None:
        """Writes finished trajectories ``[n, H]`` to the next rows of the ring, where they may overwrite the oldest."""
        trajectories = trajectories[-self.capacity :]
        number = len(trajectories)
        end = self.position + number
        ring = self._with_rows(min(end, self.capacity), trajectories)
        ring[torch.arange(self.position, end, device=trajectories.device) % self.capacity] = trajectories
        self._ring, self._filled = ring, min(max(self._filled, end), self.capacity)
        self.position = end % self.capacity

    def sample(self, number: int) -> TensorDict:
        """Draws different trajectories, all subsets of the size with the same probability.

        Args:
            number: how many trajectories; all of them are drawn if there are fewer.

        Returns:
            Trajectories ``[min(number, len(self))]``, cut to the longest of them.

        Raises:
            ValueError: there is none yet.
        """
        stored = self.trajectories
        index = torch.randperm(len(stored), generator=self._generator)[:number].to(stored.device)
        batch = stored[index]
        longest = int(batch[keys.LENGTH].max())
        for name in self._steps:
            batch[name] = batch[name][:, :longest]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Everything that later contents and samples depend on: plain tensors and numbers, on the CPU."""
        return {
            "kind": self._kind,
            "position": self.position,
            "trajectories": _to_cpu(self._ring[: self._filled] if self._ring is not None else None),
            "running": _to_cpu(self.running),
            "generator": self._generator.get_state(),
        }

    @property
    def _kind(self) -> str:
        """What a stored state has to agree with."""
        kept = ", ".join((*self._steps, *self._constants))
        return f"capacity {self.capacity} and horizon {self.horizon} of {kept}"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from :meth:`state_dict`; the next rollout says on which device.

        Raises:
            ValueError: the state is of a buffer of another size, or of one that keeps something else.
        """
        kind, own = state["kind"], self._kind
        if kind != own:
            raise ValueError(f"the stored buffer has {kind}; expected {own}")
        self._ring, self.running = _from_state(state["trajectories"]), _from_state(state["running"])
        self._filled = 0 if self._ring is None else len(self._ring)
        self.position = state["position"]
        self._generator.set_state(state["generator"].cpu())

    def _continued(self, rollout: TensorDictBase) -> TensorDict:
        """The running trajectories that a rollout goes on with, empty for environments that begin a task with it."""
        blank = self._blank(rollout[keys.NEXT], len(rollout))
        if self.running is None:
            return blank
        if len(self.running) != len(rollout):
            raise ValueError(f"the rollout has {len(rollout)} environments; expected {len(self.running)} as before")
        # Also where no end was seen: environments that were started anew must not go on with the task before.
        goes_on = ~rollout[keys.IS_INIT][:, 0, 0]
        blank[goes_on] = self.running.to(goes_on.device)[goes_on]
        return blank

    def _blank(self, after: TensorDictBase, number: int) -> TensorDict:
        """Empty trajectories ``[number]`` for the entries of ``after [B, T]``."""
        rows = {name: after[name].new_zeros(number, self.horizon, *after[name].shape[2:]) for name in self._steps}
        device = after[keys.DONE].device
        length = torch.zeros(number, dtype=torch.int64, device=device)
        return TensorDict({**rows, keys.LENGTH: length}, [number], device=device)

    def _with_rows(self, needed: int, like: TensorDict) -> TensorDict:
        """The ring with at least ``needed`` rows, for trajectories of the kind and on the device of ``like``.

        It grows by doubling: an unfilled buffer costs no memory, and rows are rarely copied.
        """
        if self._ring is None:
            return like.new_zeros(needed)
        ring = self._ring.to(like.device)
        if needed <= len(ring):
            return ring
        more = max(needed, min(2 * len(ring), self.capacity)) - len(ring)
        return torch.cat([ring, like.new_zeros(more)])


def _steps_since_start(done: Tensor, carried: Tensor) -> Tensor:
    """Number of steps of the same task before each step.

    Args:
        done: ends of tasks ``[B, T]``.
        carried: steps that the first task of each environment had before ``[B]``.

    Returns:
        ``[B, T]`` int64.
    """
    time = torch.arange(done.shape[1], device=done.device).expand_as(done)
    begins = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], 1)
    start = torch.where(begins, time, -carried.unsqueeze(1)).cummax(1).values
    return time - start


def _to_cpu(trajectories: TensorDict | None) -> dict[str, Tensor] | None:
    return None if trajectories is None else trajectories.cpu().clone().to_dict()


def _from_state(state: dict[str, Tensor] | None) -> TensorDict | None:
    return None if state is None else TensorDict(state, [len(state[keys.LENGTH])], device="cpu").clone()
