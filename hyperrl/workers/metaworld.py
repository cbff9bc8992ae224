"""Meta-World: its benchmarks' tasks, and its simulators stepped one after another (`spec/envs-mujoco.md` section 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import metaworld
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer
from metaworld.sawyer_xyz_env import SawyerMocapBase, SawyerXYZEnv
from metaworld.types import Task

from hyperrl.workers.batch import Batch, Step
from hyperrl.workers.opengl import missing, new_context

_PIXELS = 480
_SHADOW_PIXELS = 1024  # side of the shadow map: the 4096 of the models take twice as long
_VIEW = {"azimuth": -20.0, "elevation": -30.0, "distance": 1.5, "lookat": (0.0, 0.7, 0.12)}
_VERSION = "-v3"  # how the library's names end

TASK_NAMES = tuple(name.removesuffix(_VERSION) for name in metaworld.ALL_V3_ENVIRONMENTS)

# Hand, opening of the gripper, objects; the same one step before; and zeros for the goal, which is hidden.
_HAND = SawyerXYZEnv._HAND_SPACE
OBSERVATION_LOW = (*[*_HAND.low.tolist(), -1.0, *[-np.inf] * 14] * 2, *[0.0] * 3)
OBSERVATION_HIGH = (*[*_HAND.high.tolist(), 1.0, *[np.inf] * 14] * 2, *[0.0] * 3)


@cache
def load_tasks(name: str, seed: int) -> tuple[Task, ...]:
    """Draw the tasks of a benchmark: 50 of each class, training before test tasks.

    Args:
        name: `ML10`, `ML45`, or for ML1 one of `TASK_NAMES`.
        seed: seed of the draws.
    """
    with _no_physics():
        if name in TASK_NAMES:
            benchmark = metaworld.ML1(name + _VERSION, seed=seed)
        else:
            benchmark = getattr(metaworld, name)(seed=seed)
    return *benchmark.train_tasks, *benchmark.test_tasks


@cache
def load_goals(name: str, seed: int) -> np.ndarray:
    """Where the goals of a benchmark's tasks are, `[tasks, 3]`; takes 10 ms per task."""
    tasks = load_tasks(name, seed)
    batch = MetaWorldBatch(1, tasks=tasks)
    _, goals = zip(*(batch.begin(0, number) for number in range(len(tasks))), strict=True)
    batch.close()
    return np.stack(goals).astype(np.float32)


def class_name(name: str, seed: int, number: int) -> str:
    """Name of the class of a task."""
    return load_tasks(name, seed)[number].env_name.removesuffix(_VERSION)


@contextmanager
def _no_physics() -> Iterator[None]:
    """Draw tasks seven times as fast: the library resets an environment for each, but draws do not look at it."""
    library: Any = SawyerXYZEnv
    library.do_simulation = lambda env, *_: mujoco.mj_kinematics(env.model, env.data)
    try:
        yield
    finally:
        del library.do_simulation


def _reset_mocap_welds(env: SawyerMocapBase) -> None:
    """Metaworld 3.0.0 writes 11 parameters of a weld; since MuJoCo 3.17 there are 12, and the last keeps its value."""
    model = env.model
    model.eq_data[model.eq_type == mujoco.mjtEq.mjEQ_WELD, :11] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]


_library: Any = SawyerMocapBase
_library.reset_mocap_welds = _reset_mocap_welds


class MetaWorldBatch(Batch):
    """Meta-World's environments.

    Simulators of a class serve whoever plays it next: building one takes 20 ms and 18 MB, and a reset leaves no trace
    of what was before.

    Args:
        num_envs: number of environments.
        tasks: what `load_tasks` returns; an episode starts with the number of one.
        episode_length: number of steps until an episode is truncated.
        reward_version: v1 or v2.
        sparse_rewards: whether the reward is 1 at success, else 0.
        terminate_on_success: whether success ends the episode.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        tasks: tuple[Task, ...],
        episode_length: int = 500,
        reward_version: str = "v2",
        sparse_rewards: bool = False,
        terminate_on_success: bool = False,
    ) -> None:
        self.tasks = tasks
        self.episode_length = episode_length
        self.reward_version = reward_version
        self.sparse_rewards = sparse_rewards
        self.terminate_on_success = terminate_on_success
        self._playing: list[tuple[str, SawyerXYZEnv] | None] = [None] * num_envs
        self._idle: dict[str, list[SawyerXYZEnv]] = defaultdict(list)
        self._camera = _Camera()

    def begin(self, row: int, *start: Any) -> tuple[np.ndarray, ...]:
        """Reset to a task, given by its number; return the observation `[39]` and the goal `[3]`."""
        task = self.tasks[int(start[0])]
        env = self._take(row, task.env_name)
        env.set_task(task)
        observation, _ = env.reset()
        return observation, np.array(env._target_pos)  # a copy: it may be a view of the simulator

    def advance(self, row: int, action: np.ndarray) -> Step:
        """Step with `[4]`: three velocities, which the library clips, and the gripper's force, which it does not."""
        env = self._env(row)
        observation, reward, _, truncated, info = env.step(action)
        success = bool(info["success"])
        terminated = success and self.terminate_on_success
        reward = float(success if self.sparse_rewards else reward)
        return Step(observation, reward, bool(truncated) or terminated, terminated, success)

    def picture(self, row: int) -> np.ndarray:
        """What a camera at the side of the table sees; the goal is a small ball."""
        return self._camera.picture(self._env(row))

    def close(self) -> None:
        """Close all simulators and the camera."""
        self._camera.close()
        playing = [entry[1] for entry in self._playing if entry is not None]
        for env in [*playing, *(env for idle in self._idle.values() for env in idle)]:
            env.close()

    def _env(self, row: int) -> SawyerXYZEnv:
        entry = self._playing[row]
        if entry is None:
            raise RuntimeError("call reset() before step()")
        return entry[1]

    def _take(self, row: int, name: str) -> SawyerXYZEnv:
        """A simulator of a class; that of another class is left to others."""
        entry = self._playing[row]
        if entry is not None:
            self._idle[entry[0]].append(entry[1])
        idle = self._idle[name]
        self._playing[row] = name, idle.pop() if idle else self._build(name)
        return self._env(row)

    def _build(self, name: str) -> SawyerXYZEnv:
        env_class = metaworld.ALL_V3_ENVIRONMENTS[name]
        env = env_class(reward_function_version=self.reward_version)
        env.max_path_length = self.episode_length
        return env


class _Viewer(OffScreenViewer):
    """Gymnasium's, in a context of ours: by itself it looks for a display first."""

    def __init__(self, env: SawyerXYZEnv, context: Any) -> None:
        self.opengl_context = context
        super().__init__(env.model, env.data, _PIXELS, _PIXELS)

    def _get_opengl_backend(self, width: int, height: int) -> None:
        """There is a context already."""


class _Camera:
    """Draws simulators, with OpenGL's objects for one at a time: they cost half a second and much memory."""

    def __init__(self) -> None:
        self._seen: tuple[SawyerXYZEnv, OffScreenViewer] | None = None

    def picture(self, env: SawyerXYZEnv) -> np.ndarray:
        """Draw an environment, `[height, width, 3]` uint8."""
        if self._seen is None or self._seen[0] is not env:
            self.close()
            self._seen = env, self._look_at(env)
        viewer = self._seen[1]
        viewer.make_context_current()
        return viewer.render("rgb_array")

    def close(self) -> None:
        """Free the objects in their own context, not in whichever is current when they are collected."""
        if self._seen is not None:
            viewer = self._seen[1]
            viewer.make_context_current()
            viewer.con.free()
            viewer.close()
        self._seen = None

    def _look_at(self, env: SawyerXYZEnv) -> OffScreenViewer:
        env.model.vis.quality.shadowsize = _SHADOW_PIXELS
        try:
            viewer = _Viewer(env, new_context(_PIXELS, _PIXELS))
        except Exception as error:
            raise missing(error) from error
        for name, value in _VIEW.items():
            setattr(viewer.cam, name, value)
        return viewer
