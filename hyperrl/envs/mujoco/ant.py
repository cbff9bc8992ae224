"""Ants: run in a direction, or to a goal (`spec/envs-mujoco.md` section 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import Transition
from hyperrl.envs.layout import is_number
from hyperrl.envs.mujoco.base import Array, MujocoMetaEnv, MujocoOptions, Tasks
from hyperrl.envs.mujoco.rendering import GoalPicture, Landmark
from hyperrl.envs.registration import EnvEntry

_CONTACT_COST = 0.0005
_ALIVE = 1.0
_HEIGHTS = (0.2, 1.0)  # of the torso of an ant that runs
_GOAL_DISTANCE = 3.0
_GOAL_RADII = (3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.3)  # by level
_PALE_GREEN = (0.15, 0.65, 0.25, 0.3)
_TOLERANCE = 1e-4  # of forced directions and goals, relative to their length


class _Ant(MujocoMetaEnv):
    """What all ants share: the start and the costs.

    Places are those of the torso in the world, which lag behind `qpos` (quirk M4). The contact cost counts the forces
    and torques between bodies and surroundings inside the engine's last step, each clipped to [-1, 1], which nearly
    all that are not zero exceed (quirk M5).
    """

    robot = "ant"
    noise_qpos = 0.1

    control_cost: ClassVar[float]
    """What a squared control costs."""

    def __init__(
        self, num_envs: int, episodes_per_task: int, tasks: Tasks, /, **options: Unpack[MujocoOptions]
    ) -> None:
        super().__init__(num_envs, episodes_per_task, tasks, **options)
        self._forces = self._batch.bind("cfrc_ext")

    def place(self) -> Array:
        """The torso's x and y `[B, 2]`."""
        return self._torso[:, :2]

    def _contacts(self) -> Array:
        """Clipped contact torques and forces, body by body, the world first `[B, 84]`."""
        return self._forces.clip(-1.0, 1.0).reshape(self.num_envs, -1)

    def _cost(self, action: Array) -> Array:
        """Cost of raw actions and of contacts `[B]`."""
        return self.control_cost * _squared(action) + _CONTACT_COST * _squared(self._contacts())


class _Runner(_Ant):
    """An ant that is paid for its speed in a direction, and for every step in which it has not fallen.

    The observation is qpos without x and y (13) and qvel (14). An episode is terminated where the height of the torso
    leaves [0.2, 1.0].
    """

    observation_size = 27
    control_cost = 0.5

    def observation(self) -> NDArray[np.float32]:
        """Pose and velocities `[B, 27]`."""
        seen = np.empty((self.num_envs, self.observation_size), dtype=np.float32)
        seen[:, :13], seen[:, 13:] = self._qpos[:, 2:], self._qvel
        return seen

    def reward(self, action: Array, velocity: Array) -> Array:
        """Speed in the direction of the task, less the costs, and 1 for not having fallen `[B]`."""
        return _dot(velocity, self._direction()) - self._cost(action) + _ALIVE

    def fallen(self) -> NDArray[np.bool_]:
        """Where the torso is too low or too high `[B]`."""
        low, high = _HEIGHTS
        height = self._qpos[:, 2]
        return (height < low) | (height > high)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The direction, with an arrow that begins under the torso."""
        (x, y), (dx, dy) = self._qpos[index, :2], self._direction()[index]
        arrow = Landmark("arrow", (x, y, 0.05), (x + 1.5 * dx, y + 1.5 * dy, 0.05), radius=0.05)
        return GoalPicture(f"run at an angle of {math.degrees(math.atan2(dy, dx)):.0f} degrees", [arrow])

    def _direction(self) -> Array:
        """Unit vectors of the tasks `[B, 2]`."""
        raise NotImplementedError


class AntDir(_Runner):
    """Run in one out of a few directions: the reward is the speed in it, less costs, and 1 for not having fallen.

    The costs are 0.5 times squared controls, and those of contacts. The task is the direction as an angle in radians,
    0 along the x axis; task ids are in the order of `directions`. An episode is terminated where the height of the
    torso leaves [0.2, 1.0].

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        directions: angles in radians. The published tasks are -1 and 1, 57.3 degrees to the right and left of the x
            axis, and not forward and backward (quirk M1).
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = AntDir(16, seed=3, publish=["task"])
        >>> env.reset()["observation"].shape
        torch.Size([16, 27])
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 1,
        *,
        directions: Sequence[float] = (-1.0, 1.0),
        **options: Unpack[MujocoOptions],
    ) -> None:
        _check_directions(directions)
        known = [(float(direction),) for direction in directions]
        super().__init__(num_envs, episodes_per_task, Tasks(1, known), **options)
        self.directions = directions

    def _direction(self) -> Array:
        angle = self._task[:, 0]
        return np.stack((np.cos(angle), np.sin(angle)), 1)


class AntDir2D(_Runner):
    """Run in any direction; rewards and ends are those of `AntDir`.

    The task is the direction as a unit vector (x, y), whose angle is uniform (quirk M2).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, num_envs: int, episodes_per_task: int = 1, **options: Unpack[MujocoOptions]) -> None:
        super().__init__(num_envs, episodes_per_task, Tasks(2), **options)

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` directions `[n, 2]`."""
        return _on_circle(1.0, self._uniform(0.0, 2 * math.pi, n))

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced directions have length 1 `[B]`."""
        return (task.norm(dim=-1) - 1).abs() <= _TOLERANCE, "a direction (x, y) of length 1"

    def _direction(self) -> Array:
        return self._task


class AntGoal(_Ant):
    """Go to a goal: the reward is minus the distance to it along both axes, less costs.

    The costs are 0.1 times squared controls, and those of contacts. The observation is qpos (15), qvel (14) and the
    clipped contact torques and forces on the bodies (84). The task is the goal (x, y), uniform in the disc of radius 3
    metres around the start. An episode ends at its time limit only, also if the ant lies on its back (quirk M6).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = AntGoal(16, seed=3)
        >>> env.reset()["observation"].shape
        torch.Size([16, 114])
    """

    observation_size = 113
    control_cost = 0.1

    def __init__(self, num_envs: int, episodes_per_task: int = 2, **options: Unpack[MujocoOptions]) -> None:
        super().__init__(num_envs, episodes_per_task, Tasks(2), **options)

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` goals `[n, 2]`."""
        turn, area = self._uniform(0.0, 1.0, 2, n).unbind()
        return _on_circle(_GOAL_DISTANCE * area.sqrt(), 2 * math.pi * turn)

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced goals are in the disc of the drawn ones `[B]`."""
        inside = task.norm(dim=-1) <= _GOAL_DISTANCE * (1 + _TOLERANCE)
        return inside, f"a goal (x, y) within {_GOAL_DISTANCE:g} of the origin"

    def observation(self) -> NDArray[np.float32]:
        """Positions, velocities and contacts `[B, 113]`."""
        seen = np.empty((self.num_envs, self.observation_size), dtype=np.float32)
        seen[:, :15], seen[:, 15:29], seen[:, 29:113] = self._qpos, self._qvel, self._contacts()
        return seen

    def reward(self, action: Array, velocity: Array) -> Array:
        """Minus the distance along both axes, less the costs `[B]`."""
        return -np.abs(self._place - self._task).sum(1) - self._cost(action)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The goal, as a post on the floor."""
        x, y = self._task[index]
        return GoalPicture(f"go to ({x:.1f}, {y:.1f})", [Landmark("line", (x, y, 0.0), (x, y, 0.5), radius=0.05)])


class AntGoalSparse(AntGoal):
    """Go to a goal whose distance shows only near it; elsewhere the reward is as low as at the rim.

    The reward is minus the distance to the goal, at least minus the radius, less the costs: 0.01 times squared
    controls, and those of contacts. The observation is that of `AntGoal` and the place of the torso (3). The task is
    that of `AntGoal`, too; a step within the radius is a success.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        level: how hard, from 0 to 6: the radius is 3, 2, 1.5, 1, 0.75, 0.5 or 0.3 metres (quirk M20).
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = AntGoalSparse(16, seed=3, publish=["success"])
        >>> env.reset()["observation"].shape
        torch.Size([16, 117])
    """

    observation_size = 116
    control_cost = 0.01

    def __init__(
        self, num_envs: int, episodes_per_task: int = 2, *, level: int = 4, **options: Unpack[MujocoOptions]
    ) -> None:
        if type(level) is not int or level not in range(len(_GOAL_RADII)):
            raise ValueError(f"`level` is {level!r}: expected an integer from 0 to {len(_GOAL_RADII) - 1}")
        super().__init__(num_envs, episodes_per_task, **options)
        self.level = level
        self.goal_radius = _GOAL_RADII[level]

    def reset_task(self, mask: Tensor) -> None:
        """Forget the success of the last step."""
        super().reset_task(mask)
        self.write(keys.SUCCESS, mask, torch.zeros_like(mask))

    def observation(self) -> NDArray[np.float32]:
        """Positions, velocities, contacts and place of the torso `[B, 116]`."""
        seen = super().observation()
        seen[:, 113:] = self._torso
        return seen

    def reward(self, action: Array, velocity: Array) -> Array:
        """Minus the distance within the radius, less the costs `[B]`."""
        return -np.minimum(self._distance(), self.goal_radius) - self._cost(action)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The goal, and the disc in which its distance shows."""
        words, post = super().goal_in_picture(index)
        x, y = self._task[index]
        disc = Landmark("disk", (x, y, 0.0), (x, y, 0.01), self.goal_radius, _PALE_GREEN)
        return GoalPicture(words, [*post, disc])

    def transition(self, action: Tensor) -> Transition:
        """Advance all simulations by one step; tell who is near the goal."""
        result = super().transition(action)
        self.state[keys.SUCCESS] = self._on_device(self._distance() <= self.goal_radius)
        return result

    def publish_success(self) -> Tensor:
        """Whether the last step has ended within the radius `[B, 1]`."""
        return self.state[keys.SUCCESS].unsqueeze(-1).clone()

    def _distance(self) -> Array:
        return np.sqrt(_squared(self._place - self._task))


def _check_directions(directions: Sequence[float]) -> None:
    listed = isinstance(directions, Sequence) and len(directions) > 0 and all(is_number(angle) for angle in directions)
    if not listed or len({np.float32(angle) for angle in directions}) < len(directions):
        raise ValueError(f"`directions` is {directions!r}: expected a list of different angles in radians")


def _dot(a: Array, b: Array) -> Array:
    """Dot products of rows `[B]`."""
    return np.einsum("ij,ij->i", a, b)  # faster than a product and a sum


def _squared(a: Array) -> Array:
    """Squared lengths of rows `[B]`."""
    return _dot(a, a)


def _on_circle(radius: Tensor | float, angle: Tensor) -> Tensor:
    """Points in the plane `[n, 2]`."""
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


_HERE = __name__


def _entry(id: str, name: str, description: str, episodes_per_task: int, **kwargs: Any) -> EnvEntry:
    return EnvEntry(f"{id}-v0", f"{_HERE}:{name}", description, {"episodes_per_task": episodes_per_task, **kwargs})


ENVS = (
    _entry("AntDir", "AntDir", "ant: run 57.3 degrees to the left or right of the x axis", 1),
    _entry("AntDirForwardBackward", "AntDir", "ant: run forward or backward", 1, directions=(0.0, math.pi)),
    _entry("AntDir2D", "AntDir2D", "ant: run in a hidden direction", 1),
    _entry("AntGoal", "AntGoal", "ant: go to a hidden goal", 2),
    _entry("AntGoalSparse", "AntGoalSparse", "ant: find a hidden goal whose distance shows only near it", 2),
    _entry("AntGoalSparseFour", "AntGoalSparse", "ant: find a hidden goal, paid within 0.75 metres", 2, level=4),
)
