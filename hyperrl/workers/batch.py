"""Environments of one process, stepped one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

OPTIONS = "options"  # tasks are set by `reset(options={"task": task})`


class Step(NamedTuple):
    """What one environment returns.

    Attributes:
        observation: `[O]`.
        reward: raw environment units.
        over: whether the episode has ended.
        terminated: whether its end belongs to the task.
        success: whether the step was a success.
    """

    observation: np.ndarray
    reward: float
    over: bool
    terminated: bool
    success: bool


class Batch(ABC):
    """Some environments. A subclass writes what one of them does; rows are numbers of environments in this batch."""

    @abstractmethod
    def begin(self, row: int, *start: Any) -> tuple[np.ndarray, ...]:
        """Start an episode of one environment; return its observation `[O]` and what else is to be known of it."""

    @abstractmethod
    def advance(self, row: int, action: np.ndarray) -> Step:
        """Step one environment."""

    @abstractmethod
    def picture(self, row: int) -> np.ndarray:
        """Draw one environment, `[height, width, 3]` uint8."""

    @abstractmethod
    def close(self) -> None:
        """Close all environments."""

    def reset(self, rows: np.ndarray, *starts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Start episodes; return observations `[n, O]` and what else is to be known of them, `[n, ...]` each."""
        begun = [self.begin(*start) for start in zip(rows.tolist(), *starts, strict=True)]
        return tuple(np.stack(column).astype(np.float32) for column in zip(*begun, strict=True))

    def step(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step; return observations `[n, O]`, rewards `[n]` and `[n, 3]` whether over, terminated, a success."""
        taken = [self.advance(row, action) for row, action in zip(rows.tolist(), actions, strict=True)]
        observation, reward, *ends = (np.stack(column) for column in zip(*taken, strict=True))
        return observation.astype(np.float32), reward.astype(np.float32), np.stack(ends, -1)

    def replay(self, rows: np.ndarray, lengths: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray]:
        """Take the first `lengths [n]` of `actions [n, H, ...]`, at least one; return last observations `[n, O]`."""
        for row, length, taken in zip(rows.tolist(), lengths.tolist(), actions, strict=True):
            for action in taken[: length - 1]:
                self.advance(row, action)
        last = [taken[length - 1] for length, taken in zip(lengths.tolist(), actions, strict=True)]
        return (self.step(rows, np.stack(last))[0],)

    def render(self, rows: np.ndarray) -> tuple[np.ndarray]:
        """Draw environments, `[n, height, width, 3]` uint8."""
        return (np.stack([self.picture(row) for row in rows.tolist()]),)


class GymnasiumBatch(Batch):
    """Environments of Gymnasium's, whose tasks are set before every episode.

    Args:
        num_envs: number of environments.
        spec: what `gymnasium.make` takes; no id, because a worker has not run what registers it.
        set_task: name of the method of the unwrapped environment that takes the task, or `options`.
    """

    def __init__(self, num_envs: int, *, spec: EnvSpec, set_task: str) -> None:
        self.envs = [gymnasium.make(spec) for _ in range(num_envs)]
        self.set_task = set_task

    def begin(self, row: int, *start: Any) -> tuple[np.ndarray, ...]:
        """Set the task `[task_dim]` and reset with the seed."""
        env, (task, seed) = self.envs[row], start
        if self.set_task != OPTIONS:
            getattr(env.unwrapped, self.set_task)(task.copy())
        options = {"task": task.copy()} if self.set_task == OPTIONS else None
        observation, _ = env.reset(seed=int(seed), options=options)
        return (_flatten(env, observation),)

    def advance(self, row: int, action: np.ndarray) -> Step:
        """Step with an index, or with numbers `[A]`, which are clipped to the bounds."""
        env = self.envs[row]
        space = env.action_space
        if isinstance(space, spaces.Box):
            chosen = action.reshape(space.shape).clip(space.low, space.high).astype(space.dtype)
        else:
            assert isinstance(space, spaces.Discrete)
            chosen = space.start + action
        observation, reward, terminated, truncated, info = env.step(chosen)
        over, success = bool(terminated or truncated), bool(info.get("success", False))
        return Step(_flatten(env, observation), float(reward), over, bool(terminated), success)

    def picture(self, row: int) -> np.ndarray:
        """What the environment draws."""
        return np.asarray(self.envs[row].render())

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()


def _flatten(env: gymnasium.Env[Any, Any], observation: Any) -> np.ndarray:
    """An observation as an array `[O]`."""
    return np.asarray(spaces.flatten(env.observation_space, observation))
