"""Gymnasium environments as a `MetaEnv`: any id whose tasks can be set, B environments stepped one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.host import HostMetaEnv
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_positive
from hyperrl.workers.batch import OPTIONS, GymnasiumBatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_SEEDS = 2**31
_RGB = "rgb_array"


class GymnasiumMetaEnv(HostMetaEnv):
    """K episodes of a Gymnasium environment per task; the task is set before every episode.

    Observations are flattened as by `gymnasium.spaces.flatten`, actions are Discrete or Box (clipped to the bounds).
    An episode ends where the Gymnasium environment terminates, or truncates at its time limit; the step that ends it
    shows the first observation of the next one. Every episode is reset with an own seed out of this object's
    generator. The state is the task, that seed and the actions of the episode: `load_state_dict` plays them again, and
    so is exact for environments that task, seed and actions determine.

    The Gymnasium environments run on the CPU, whatever `device` is.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        env_id: Gymnasium id, also as `module:Id-v0`; required, unless a subclass gives it.
        set_task: how an environment gets its task, a float32 array `[task_dim]`: the name of a method of the unwrapped
            environment, or `options` for `reset(options={"task": task})`.
        task_low: smallest value of every element of the task, which is drawn uniformly.
        task_high: largest value of every element of the task.
        tasks: all tasks, instead of bounds; then tasks have numbers, and `task_split` works.
        episode_length: H, the time limit of an episode; None takes the id's `max_episode_steps`.
        env_kwargs: further arguments of `gymnasium.make`.
        num_workers: number of processes besides this one among which the environments are divided: worth it for
            environments that take a tenth of a millisecond or more per step.
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if the id is missing or unknown, its spaces or its tasks cannot be used, it does not take
            `env_kwargs`, or arguments exclude each other.

    Example:
        >>> env = GymnasiumMetaEnv(4, env_id="hyperrl/GridNavi-v0", set_task="options", tasks=[[3, 4], [4, 2]],
        ...     episode_length=15, env_kwargs={"episodes_per_task": 1}, publish=["task"])
        >>> env.rollout(20)["task"].shape
        torch.Size([4, 20, 2])
    """

    shows_next_episode = True  # the start of an episode may be random: an action needs to see it
    starts_with = (keys.TASK, "seed")

    reports_success: ClassVar[bool] = False
    """Whether evaluation reports success without being asked to; a subclass whose `info` always has it sets this."""

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 2,
        *,
        env_id: str | None = None,
        set_task: str = "set_task",
        task_low: Sequence[float] | None = None,
        task_high: Sequence[float] | None = None,
        tasks: Sequence[Sequence[float]] | None = None,
        episode_length: int | None = None,
        env_kwargs: dict[str, Any] | None = None,
        num_workers: int = 0,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        if not isinstance(env_id, str):
            raise ValueError(f"`env_id` is {env_id!r}: expected a Gymnasium id")
        check_positive("num_envs", num_envs)
        if episode_length is not None:
            check_positive("episode_length", episode_length)
        known = None if tasks is None else _parse_tasks(tasks)
        bounds = _parse_bounds(task_low, task_high, known)
        with closing(_make_example(env_id, episode_length, env_kwargs or {})) as example:
            _check_set_task(set_task, example)
            layout = _layout(example, env_id, bounds.shape[1], None if known is None else len(known))
        assert example.spec is not None
        build = partial(GymnasiumBatch, spec=example.spec, set_task=set_task)
        super().__init__(num_envs, episodes_per_task, layout, build, num_workers, **options)
        self.env_id = env_id
        self.injectable = (keys.TASK, "seed")
        self._has_pictures = example.render_mode == _RGB
        self._low, self._high = bounds.to(self.device).unbind()
        # No rows, if there are only bounds.
        self._known = (bounds[:0] if known is None else known).to(self.device)
        self._drawn = self._known if known is None else self.split_tasks(self._known)

    # The inner episode -------------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` tasks `[n, task_dim]`, uniformly from the box or from the tasks of the task split."""
        if self.num_tasks is not None:
            index = torch.randint(len(self._drawn), (n,), generator=self._generator, device=self.device)
            return self._drawn[index]
        unit = torch.rand(n, self.task_dim, generator=self._generator, device=self.device)
        return torch.lerp(self._low, self._high, unit)

    def reset_state(self, mask: Tensor) -> None:
        """Begin episodes with their tasks and new seeds."""
        self.write("seed", mask, self.draw("seed", self._random_seeds))
        super().reset_state(mask)

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Show the picture that the Gymnasium environment draws."""
        if not self._has_pictures:
            raise NotImplementedError(f"{self.env_id} has no picture: expected the render mode {_RGB!r}")
        super().draw_frame(axes, index)

    def _random_seeds(self) -> Tensor:
        return torch.randint(_NUM_SEEDS, (self.num_envs,), generator=self._generator, device=self.device)

    # What can be published and injected --------------------------------------------------------------------------

    @property
    def publish_task_id(self) -> Callable[[], Tensor]:
        """Returns the tasks' numbers in `tasks` `[B]`; missing if there are only bounds."""
        if self.num_tasks is None:
            raise AttributeError("tasks within bounds have no numbers")
        return self._task_id

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Check tasks `[task_dim]` or `[B, task_dim]`, and seeds `[]` or `[B]`."""
        if name == "seed":
            value = self.rows_of(name, value, ())
            seed = value.to(torch.int64)
            self.check_rows(name, value, (seed == value) & (seed >= 0), "a whole number of at least 0")
            return seed
        task = self.rows_of(name, value, (self.task_dim,)).to(torch.float32)
        inside = ((task >= self._low) & (task <= self._high)).all(-1)
        possible = inside if self.num_tasks is None else self._is_known(task).any(-1)
        self.check_rows(name, task, possible, "tasks of this environment")
        return task

    def _task_id(self) -> Tensor:
        return self._is_known(self.state[keys.TASK]).to(torch.int64).argmax(-1)

    def _is_known(self, task: Tensor) -> Tensor:
        """Which of all tasks each of `task` `[B, task_dim]` is, `[B, N]`."""
        return (task.unsqueeze(1) == self._known).all(-1)


def _make_example(env_id: str, episode_length: int | None, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """One environment, which draws where it can."""
    try:
        example = gymnasium.make(env_id, max_episode_steps=episode_length, **kwargs)
        if _RGB not in (example.metadata.get("render_modes") or ()) or "render_mode" in kwargs:
            return example
        example.close()
        return gymnasium.make(env_id, max_episode_steps=episode_length, render_mode=_RGB, **kwargs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"`env_id` is {env_id!r}: {error}") from error
    except TypeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`env_kwargs` is {kwargs!r}: expected arguments of {env_id!r} ({reason})") from error


def _check_set_task(set_task: str, env: gymnasium.Env[Any, Any]) -> None:
    if set_task != OPTIONS and not callable(getattr(env.unwrapped, set_task, None)):
        name = type(env.unwrapped).__name__
        raise ValueError(f"`set_task` is {set_task!r}: expected {OPTIONS!r}, or the name of a method of {name}")


def _layout(env: gymnasium.Env[Any, Any], env_id: str, task_dim: int, num_tasks: int | None) -> Layout:
    limit = None if env.spec is None else env.spec.max_episode_steps
    if limit is None:
        raise ValueError(f"`episode_length` is None, but {env_id!r} has no time limit: expected a number of steps")
    observation, action = _flat(env.observation_space), env.action_space
    if observation is None:
        raise ValueError(f"`env_id` is {env_id!r}: expected observations of fixed size, not {env.observation_space}")
    sizes: dict[str, Any] = {"task_dim": task_dim, "num_tasks": num_tasks}
    if isinstance(action, spaces.Discrete):
        sizes["num_actions"] = int(action.n)
    elif isinstance(action, spaces.Box) and action.is_bounded():
        sizes |= {"action_low": action.low.flatten().tolist(), "action_high": action.high.flatten().tolist()}
    else:
        raise ValueError(f"`env_id` is {env_id!r}: expected Discrete or bounded Box actions, not {action}")
    return Layout(limit, observation.low.tolist(), observation.high.tolist(), **sizes)


def _flat(space: spaces.Space[Any]) -> spaces.Box | None:
    """The box `[O]` of flattened elements; None if their size varies."""
    flat = spaces.flatten_space(space) if space.is_np_flattenable else None
    return flat if isinstance(flat, spaces.Box) else None


def _parse_tasks(tasks: Sequence[Sequence[float]]) -> Tensor:
    known = _table("tasks", tasks)
    if len(known.unique(dim=0)) < len(known):
        raise ValueError(f"`tasks` is {tasks}: expected every task once")
    return known


def _parse_bounds(low: Sequence[float] | None, high: Sequence[float] | None, known: Tensor | None) -> Tensor:
    """Smallest and largest task, `[2, task_dim]`."""
    if known is not None and low is None and high is None:
        return torch.stack((known.amin(0), known.amax(0)))
    if known is not None or low is None or high is None:
        raise ValueError("expected either `tasks`, or both `task_low` and `task_high`")
    bounds = _table("task_low` and `task_high", (low, high))
    if (bounds[0] > bounds[1]).any():
        raise ValueError(f"`task_low` is {low}: expected no value above `task_high` ({high})")
    return bounds


def _table(name: str, rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows of numbers of equal length, `[N, task_dim]`."""
    try:
        table = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        table = torch.empty(0)
    if table.ndim != 2 or not table.numel() or not table.isfinite().all():
        raise ValueError(f"`{name}` is {rows!r}: expected lists of equally many finite numbers")
    return table
