"""Walkers and hoppers whose masses, inertias, dampings and frictions are drawn (`spec/envs-mujoco.md` section 7)."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperrl.envs.layout import is_number
from hyperrl.envs.mujoco.base import Array, MujocoMetaEnv, MujocoOptions, Tasks
from hyperrl.envs.mujoco.models import load_model
from hyperrl.envs.mujoco.rendering import GoalPicture
from hyperrl.envs.registration import EnvEntry

_BASES = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}  # b by field of the model
_CONTROL_COST = 0.001
_SURVIVAL = 1.0
_MAX_VELOCITY = 10.0  # that is observed
_MAX_STATE = 100.0  # of a hopper that is alive
_ROUNDING = torch.finfo(torch.float32).eps  # relative, of what is published


class _RandomPhysics(MujocoMetaEnv):
    """What walker and hopper share: the tasks, the reward, the observation and the start.

    The task holds body masses, body inertias, joint dampings and geom frictions, one row after the other. Every element
    is drawn as its nominal value times b^u, with u of its own, uniform in [-log_scale_limit, log_scale_limit], and b of
    1.3 for dampings, otherwise 1.5. Nominal zeros stay zero.

    The engine reads these fields alone; constants that its compiler has derived from nominal values, such as inverse
    weights, are not derived anew (quirk M15).
    """

    noise_qpos = 0.005
    noise_qvel = 0.005

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 2,
        *,
        log_scale_limit: float = 3.0,
        **options: Unpack[MujocoOptions],
    ) -> None:
        if not is_number(log_scale_limit) or log_scale_limit < 0:
            raise ValueError(f"`log_scale_limit` is {log_scale_limit!r}: expected a number of at least 0")
        model = load_model(self.robot)
        values = {name: getattr(model, name).ravel() for name in _BASES}
        ends = np.cumsum([len(value) for value in values.values()])
        super().__init__(num_envs, episodes_per_task, Tasks(int(ends[-1])), **options)
        self.log_scale_limit = log_scale_limit
        self._nominal = torch.tensor(np.concatenate(list(values.values())), device=self.device)
        bases = [np.full_like(value, _BASES[name]) for name, value in values.items()]
        self._base = torch.tensor(np.concatenate(bases), device=self.device)
        self._fields = [self._batch.expand(name) for name in _BASES]
        self._starts = ends[:-1]

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` sets of physical parameters `[n, task_dim]`."""
        exponent = self._uniform(-self.log_scale_limit, self.log_scale_limit, n, self.task_dim)
        return self._nominal * self._base**exponent

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced parameters are in the range of the drawn ones, up to the rounding of what is published `[B]`.

        The rounding is relative, so that zeros have to be zeros.
        """
        largest = self._base**self.log_scale_limit
        low, high = self._nominal / largest * (1 - _ROUNDING), self._nominal * largest * (1 + _ROUNDING)
        possible = ((task >= low) & (task <= high)).all(-1)
        return possible, f"nominal values times 1.5^u (damping: 1.3^u) with u within {self.log_scale_limit}"

    def place(self) -> Array:
        """The root's x `[B]`."""
        return self._qpos[:, 0]

    def observation(self) -> NDArray[np.float32]:
        """Joints and clipped velocities `[B, O]`."""
        velocity = self._qvel.clip(-_MAX_VELOCITY, _MAX_VELOCITY)
        return np.concatenate((self._qpos[:, 1:], velocity), 1, dtype=np.float32)

    def reward(self, action: Array, velocity: Array) -> Array:
        """Speed forward and survival, less the cost of raw actions `[B]`."""
        return velocity + _SURVIVAL - _CONTROL_COST * np.einsum("ij,ij->i", action, action)

    def goal_in_picture(self, index: int) -> GoalPicture:
        """The mass, of all that is hidden; the goal is the same in all tasks."""
        mass = self._fields[0][index].sum()
        return GoalPicture(f"go forward with a body of {mass:.1f} kg")

    def _random_qvel(self) -> Tensor:
        # Uniform, where all other robots start with normal noise.
        return self._uniform(-self.noise_qvel, self.noise_qvel, self.num_envs, self._batch.model.nv)

    def _take_tasks(self) -> None:
        """Build the robots as the tasks say."""
        super()._take_tasks()
        for field, values in zip(self._fields, np.split(self._task, self._starts, axis=1), strict=True):
            field[:] = values.reshape(field.shape)


class Walker2DRandParams(_RandomPhysics):
    """Walk forward with an unknown body: the reward is the speed plus 1, less 0.001 times squared controls.

    An episode is over, terminated, unless the torso is between 0.8 and 2 metres high and tilted by less than 1 radian.
    The task holds 65 physical parameters: masses (8), inertias (8 x 3), dampings (9) and frictions (8 x 3), in absolute
    values.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        log_scale_limit: largest exponent s; every parameter is multiplied by 1.5^u (damping: 1.3^u) with u uniform in
            [-s, s]. With 0 all robots are the nominal one.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = Walker2DRandParams(16, seed=3, publish=["task"])
        >>> env.reset()["task"].shape
        torch.Size([16, 65])
    """

    robot = "walker2d"
    observation_size = 17

    def fallen(self) -> NDArray[np.bool_]:
        """Where the torso is too low, too high or too tilted `[B]`."""
        height, tilt = self._qpos[:, 1], self._qpos[:, 2]
        return ~((height > 0.8) & (height < 2.0) & (np.abs(tilt) < 1.0))


class HopperRandParams(_RandomPhysics):
    """Hop forward with an unknown body: the reward is the speed plus 1, less 0.001 times squared controls.

    An episode is over, terminated, unless the torso is above 0.7 metres and tilted by less than 0.2 radians, and no
    angle and no velocity reaches 100. The task holds 41 physical parameters: masses (5), inertias (5 x 3), dampings (6)
    and frictions (5 x 3), in absolute values.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        log_scale_limit: largest exponent s; every parameter is multiplied by 1.5^u (damping: 1.3^u) with u uniform in
            [-s, s]. With 0 all robots are the nominal one.
        **options: what all robots take, see `MujocoOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    robot = "hopper"
    observation_size = 11

    def fallen(self) -> NDArray[np.bool_]:
        """Where the torso is too low or too tilted, or the state is too large or not finite `[B]`."""
        state = np.concatenate((self._qpos, self._qvel), 1)
        bounded = np.isfinite(state).all(1) & (np.abs(state[:, 2:]) < _MAX_STATE).all(1)
        return ~(bounded & (state[:, 1] > 0.7) & (np.abs(state[:, 2]) < 0.2))


def _entry(name: str, description: str) -> EnvEntry:
    kwargs: dict[str, Any] = {"episodes_per_task": 2}
    return EnvEntry(f"{name}-v0", f"{__name__}:{name}", description, kwargs)


ENVS = (
    _entry("Walker2DRandParams", "walker: walk forward with hidden masses, inertias, dampings and frictions"),
    _entry("HopperRandParams", "hopper: hop forward with hidden masses, inertias, dampings and frictions"),
)
