"""Half-cheetahs: run in a direction, at a speed, or hop (`spec/envs-mujoco.md` sections 4 and 5)."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import Transition
from hyperrl.envs.layout import check_flags, is_number
from hyperrl.envs.mujoco.base import Array, MujocoMetaEnv, MujocoOptions, Tasks
from hyperrl.envs.mujoco.rendering import GoalPicture, Landmark
from hyperrl.envs.registration import EnvEntry

_CONTROL_COST = 0.05
_SPEEDS = (0.0, 3.0)
_HEIGHTS = (0.3, 2.0)
_HOP_SCALE = 10.0
_WALK, _HOP = 0.0, 1.0  # modes of HopWalk
_LEFT_RIGHT = ((-1.0,), (1.0,))


class _HalfCheetah(MujocoMetaEnv):
    """What all half-cheetahs share: the observation, the start and the cost of controls.

    The observation is qpos without the root's x (8), qvel (9) and the world position of the torso (3), in which x is
    seen after all (quirk M7). An episode ends at its time limit only.
    """

    robot = "half_cheetah"
    observation_size = 20
    noise_qpos = 0.1

    def place(self) -> Array:
        """The root's x `[B]`."""
        return self._qpos[:, 0]

    def observation(self) -> NDArray[np.float32]:
        """Joints, velocities and place of the torso `[B, 20]`."""
        seen = np.empty((self.num_envs, self.observation_size), dtype=np.float32)
        seen[:, :8], seen[:, 8:17], seen[:, 17:] = self._qpos[:, 1:], self._qvel, self._torso
        return seen

    def _cost(self, action: Array) -> Array:
        """Cost of raw actions `[B]`."""
        return _CONTROL_COST * np.einsum("ij,ij->i", action, action)

    def _hop_reward(self, height: Array, action: Array) -> Array:
        """Reward of a torso near a target height `[B]`."""
        return _HOP_SCALE * (-np.abs(self._torso[:, 2] - height) - self._cost(action))

    def _picture_of_run(self, index: int, direction: float) -> GoalPicture:
        """The goal of running, with an arrow above the robot."""
        x = self._qpos[index, 0]
        arrow = Landmark("arrow", (x - 0.5 * direction, 0.0, 1.4), (x + 0.5 * direction, 0.0, 1.4), radius=0.05)
        return GoalPicture("run forward" if direction > 0 else "run backward", [arrow])

    def _picture_of_hop(self, index: int, height: float) -> GoalPicture:
        """The goal of hopping, with a line at the height."""
        x = self._qpos[index, 0]
        line = Landmark("line", (x - 2.0, 0.3, height), (x + 2.0, 0.3, height), radius=0.02)
        return GoalPicture(f"hold the torso at {height:.2f} m", [line])


class HalfCheetahDir(_HalfCheetah):
    """Run forward or backward: the reward is the speed in the direction of the task, less 0.05 times squared controls.

    The task is the direction, -1 or 1 (task ids 0 and 1).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = HalfCheetahDir(16, seed=3, publish=["task"])
        >>> env.reset()["observation"].shape
        torch.Size([16, 20])
    """

    def __init__(self, num_envs: int, episodes_per_task: int = 1, **options: Unpack[MujocoOptions]) -> None:
        super().__init__(num_envs, episodes_per_task, Tasks(1, _LEFT_RIGHT), **options)

    def reward(self, action: Array, velocity: Array) -> Array:
        """Speed in the direction of the task, less the cost `[B]`."""
        return self._task[:, 0] * velocity - self._cost(action)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The direction."""
        return self._picture_of_run(index, self._task[index, 0])


class HalfCheetahDirSparse(_HalfCheetah):
    """Run forward or backward, paid for speed only far from the start.

    The reward is that of `HalfCheetahDir` where the torso's x is at least `sparse_dist` metres away from 0, else the
    cost of controls alone. The belief is (P(left), P(right)), and certain as soon as the torso has been there (quirk
    M9). The task is the direction, -1 or 1.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        sparse_dist: distance in metres from which speed is paid for.
        episode_length: H, the time limit of an episode.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 1,
        *,
        sparse_dist: float = 5.0,
        **options: Unpack[MujocoOptions],
    ) -> None:
        if not is_number(sparse_dist) or sparse_dist <= 0:
            raise ValueError(f"`sparse_dist` is {sparse_dist!r}: expected a positive number")
        super().__init__(num_envs, episodes_per_task, Tasks(1, _LEFT_RIGHT, belief_dim=2), **options)
        self.sparse_dist = sparse_dist

    def reset_task(self, mask: Tensor) -> None:
        """Forget whether the direction was found."""
        super().reset_task(mask)
        self.write("found", mask, torch.zeros_like(mask))

    def reward(self, action: Array, velocity: Array) -> Array:
        """Speed in the direction of the task where it is paid, less the cost `[B]`."""
        return np.where(self._is_far(), self._task[:, 0] * velocity, 0.0) - self._cost(action)

    def transition(self, action: Tensor) -> Transition:
        """Advance all simulations by one step; find the direction far away from the start."""
        result = super().transition(action)
        self.state["found"] = self.state["found"] | self._on_device(self._is_far())
        return result

    def publish_belief(self) -> Tensor:
        """Probabilities of left and right `[B, 2]`."""
        right = self.state[keys.TASK] > 0
        known = torch.cat((~right, right), -1).to(torch.float32)
        return torch.where(self.state["found"].unsqueeze(-1), known, 0.5)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The direction, and a post where it begins to pay."""
        direction = self._task[index, 0]
        words, arrow = self._picture_of_run(index, direction)
        x = direction * self.sparse_dist
        post = Landmark("line", (x, 0.5, 0.0), (x, 0.5, 1.0))
        return GoalPicture(f"{words}, paid from {self.sparse_dist:g} m on", [*arrow, post])

    def _is_far(self) -> NDArray[np.bool_]:
        return np.abs(self._torso[:, 0]) >= self.sparse_dist


class HalfCheetahVel(_HalfCheetah):
    """Run forward at a speed: the reward is minus the difference of the speed to the task's, less the cost of controls.

    The task is the speed, uniform in [0, 3] metres per second (quirk M8).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, num_envs: int, episodes_per_task: int = 1, **options: Unpack[MujocoOptions]) -> None:
        super().__init__(num_envs, episodes_per_task, Tasks(1), **options)

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` speeds `[n, 1]`."""
        return self._uniform(*_SPEEDS, n, 1)

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced speeds are in the range of the drawn ones `[B]`."""
        return _is_within(task[:, 0], _SPEEDS), f"a speed in {list(_SPEEDS)}"

    def reward(self, action: Array, velocity: Array) -> Array:
        """Minus the error of the speed, less the cost `[B]`."""
        return -np.abs(velocity - self._task[:, 0]) - self._cost(action)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The speed."""
        return GoalPicture(f"run at {self._task[index, 0]:.2f} m/s")


class Hop(_HalfCheetah):
    """Hold the torso at a height: the reward is minus ten times the sum of the height's error and the cost of controls.

    The task is the height, uniform in [0.3, 2.0] metres; at rest the torso is at 0.57.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, num_envs: int, episodes_per_task: int = 1, **options: Unpack[MujocoOptions]) -> None:
        super().__init__(num_envs, episodes_per_task, Tasks(1), **options)

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` heights `[n, 1]`."""
        return self._uniform(*_HEIGHTS, n, 1)

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced heights are in the range of the drawn ones `[B]`."""
        return _is_within(task[:, 0], _HEIGHTS), f"a height in {list(_HEIGHTS)}"

    def reward(self, action: Array, velocity: Array) -> Array:
        """Reward of the torso's height `[B]`."""
        return self._hop_reward(self._task[:, 0], action)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The height."""
        return self._picture_of_hop(index, self._task[index, 0])


class HopWalk(_HalfCheetah):
    """Find out whether to run or to hop: a task of `HalfCheetahDir` or one of `Hop`, with the rewards of either.

    The task is (mode, goal): mode 0 runs in direction -1 or 1, mode 1 hops to a height in [0.3, 2.0] metres; either
    mode has probability 1/2. Rewards of hopping are larger by a factor of ten (quirk M12).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        parametric: draw direction and height, too; otherwise there are two tasks, run forward (0) and hop to 2 (1).
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 1,
        *,
        parametric: bool = True,
        **options: Unpack[MujocoOptions],
    ) -> None:
        check_flags(parametric=parametric)
        known = None if parametric else ((_WALK, 1.0), (_HOP, 2.0))
        super().__init__(num_envs, episodes_per_task, Tasks(2, known), **options)
        self.parametric = parametric

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` modes and goals `[n, 2]`."""
        if not self.parametric:
            return super().sample_tasks(n)
        mode, right, height = self._uniform(0, 1, 3, n).unbind()
        hops = mode < 0.5
        low, high = _HEIGHTS
        goal = torch.where(hops, low + (high - low) * height, torch.where(right < 0.5, -1.0, 1.0))
        return torch.stack((hops.to(goal.dtype), goal), -1)

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced modes and goals can be drawn `[B]`."""
        if not self.parametric:
            return super().possible(task)
        mode, goal = task.unbind(-1)
        possible = (mode == _WALK) & (goal.abs() == 1) | (mode == _HOP) & _is_within(goal, _HEIGHTS)
        return possible, f"(0, direction -1 or 1) or (1, height in {list(_HEIGHTS)})"

    def reward(self, action: Array, velocity: Array) -> Array:
        """Reward of the task's mode `[B]`."""
        mode, goal = self._task.T
        return np.where(mode == _HOP, self._hop_reward(goal, action), goal * velocity - self._cost(action))

    def goal_in_picture(self, index: int) -> GoalPicture:
        """Direction or height."""
        mode, goal = self._task[index]
        return self._picture_of_hop(index, goal) if mode == _HOP else self._picture_of_run(index, goal)


def _is_within(value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Whether values are within bounds, up to the rounding of what is published."""
    low, high = torch.tensor(bounds, dtype=torch.float32, device=value.device)
    rounded = value.to(torch.float32)
    return (rounded >= low) & (rounded <= high)


_HERE = __name__


def _entry(id: str, name: str, description: str, **kwargs: Any) -> EnvEntry:
    return EnvEntry(f"{id}-v0", f"{_HERE}:{name}", description, {"episodes_per_task": 1, **kwargs})


ENVS = (
    _entry("HalfCheetahDir", "HalfCheetahDir", "half-cheetah: run forward or backward"),
    _entry("HalfCheetahVel", "HalfCheetahVel", "half-cheetah: run at a hidden speed"),
    _entry(
        "HalfCheetahDirSparseTen",
        "HalfCheetahDirSparse",
        "half-cheetah: run forward or backward, paid from 10 metres on",
        sparse_dist=10.0,
        episode_length=400,
    ),
    _entry("Hop", "Hop", "half-cheetah: hold the torso at a hidden height"),
    _entry("HopWalk", "HopWalk", "half-cheetah: run in a hidden direction or hop to a hidden height"),
    _entry("HopWalkNonpara", "HopWalk", "half-cheetah: run forward or hop to height 2", parametric=False),
)
