"""Gymnasium environments for tests; without torch, so that workers that import them start fast."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np

from hyperrl.workers.batch import Batch, Step


class Walk(gymnasium.Env):
    """A random walk that actions push, with the task as the push: observations in parts, ends and success by chance."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, render_mode: str | None = None, scale: float = 1.0) -> None:
        self.render_mode, self.scale = render_mode, scale
        place = gymnasium.spaces.Box(-100, 100, (2, 1))
        self.observation_space = gymnasium.spaces.Dict(place=place, count=gymnasium.spaces.Discrete(3))
        self.action_space = gymnasium.spaces.Box(-1, 1, (2, 1))
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.task, self.seed_given, self.steps = options["task"], seed, 0
        assert self.task.dtype == np.float32
        self.place = self.np_random.normal(size=(2, 1))
        return self.show(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (2, 1)
        assert action.dtype == np.float32
        self.steps += 1
        self.place = self.place + self.scale * action * self.task[0] + self.np_random.normal(size=(2, 1))
        end = self.steps > 4 and self.np_random.random() < 0.2
        return self.show(), float(self.place.sum()), bool(end), False, {"success": self.place[0, 0] > 0}

    def show(self) -> dict[str, Any]:
        return {"place": self.place.astype(np.float32), "count": self.steps % 3}

    def render(self) -> np.ndarray:
        rows = (np.arange(40)[:, None] < 20 + 4 * self.place[:, 0]).astype(np.uint8)
        return np.stack((rows * 255, rows * 90, 40 * (1 + rows)), -1)

    def close(self) -> None:
        self.closed = True


class Button(gymnasium.Env):
    """Two buttons, numbered 3 and 4; the task says which one pays."""

    metadata = {"render_modes": []}
    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2, start=3)

    def press(self, task: np.ndarray) -> None:
        self.good = int(task[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is None
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return np.ones(1, dtype=np.float32), float(action == self.good), False, False, {}


class Count(Batch):
    """Numbers, in the place of environments."""

    def __init__(self, num_envs: int) -> None:
        self.steps = np.zeros(num_envs)

    def begin(self, row: int, *start: Any) -> tuple[np.ndarray, ...]:
        return (np.array([row]),)

    def advance(self, row: int, action: np.ndarray) -> Step:
        if action == 13:
            raise KeyError(f"row {row}\nhas a bad action")
        if action == 66:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps[row] += action
        return Step(self.steps[row : row + 1].copy(), 0.0, False, False, False)

    def picture(self, row: int) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        self.steps = np.zeros(0)


class OnlyHere:
    """Makes numbers in the process that has made it, and in no other."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __call__(self, num_envs: int) -> Count:
        if os.getpid() != self.pid:
            raise OSError("no such\nplace")
        return Count(num_envs)
