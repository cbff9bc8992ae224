"""Point robots: move a point in the plane to a hidden goal (`spec/envs-navigation.md` section 9)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_positive, is_number
from hyperrl.envs.registration import EnvEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_MOVE = 0.05
_MAX_SPEED, _MAX_TURN = 0.01, 2 * math.pi / 100
_SUBSTEPS = 10
_TOLERANCE = 1e-4  # of forced goals on a circle, relative to its radius


class _Robot(MetaEnv):
    """What all point robots share: a place in the plane, a goal, continuous actions and a time limit.

    The state of a subclass holds the place as `position` `[B, 2]`; the first two elements of its task are the goal. An
    episode ends at the time limit only, and is truncated there. State and tasks are float64: moves add up, and at the
    edge of a disc a rounding error grows to its square root.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        layout: sizes and bounds of the robot.
        clip_actions: clip actions to the action bounds.
        **options: what all environments take, see `MetaEnvOptions`.
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int,
        layout: Layout,
        clip_actions: bool,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_positive("max_episode_steps", layout.episode_length)
        check_flags(clip_actions=clip_actions)
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.clip_actions = clip_actions
        self._action_low = torch.tensor(layout.action_low, device=self.device)
        self._action_high = torch.tensor(layout.action_high, device=self.device)
        self._origin = torch.zeros(1, 2, dtype=torch.float64, device=self.device)

    def reset_state(self, mask: Tensor) -> None:
        """Put the robot on the origin."""
        self.write("position", mask, self._origin)
        self.write("step", mask, self._zero)

    def publish_task(self) -> Tensor:
        """The task `[B, task_dim]`."""
        return self.state[keys.TASK].to(torch.float32)

    def coordinates(self) -> Tensor:
        """Where the robots are `[B, 2]`."""
        return self.state["position"].to(torch.float32)

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Check a forced quantity, one for all environments or `[B, ...]`; a task must be a possible one (quirk G9)."""
        shape = (self.task_dim,) if name == keys.TASK else self._shape_of(name)
        rows = self.rows_of(name, value.to(torch.float64), shape)
        self.check_rows(name, rows, *self._possible(name, rows))
        return rows

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of the draw called `name` in one environment, tasks excepted."""
        raise NotImplementedError

    def _possible(self, name: str, rows: Tensor) -> tuple[Tensor, str]:
        """Whether forced values `[B, ...]` are possible, `[B]`, and what is, in words."""
        raise NotImplementedError

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(shape, generator=self._generator, device=self.device, dtype=torch.float64)
        return low + (high - low) * unit

    def _clipped(self, action: Tensor) -> Tensor:
        return action.clamp(self._action_low, self._action_high) if self.clip_actions else action

    def _transition(self, reward: Tensor) -> Transition:
        """Count the step; the time limit truncates."""
        step = self.state["step"] + 1
        self.state["step"] = step
        never = torch.zeros_like(step, dtype=torch.bool)
        return Transition(self.observe(), reward.to(torch.float32), step >= self.episode_length, never)

    def _draw(self, axes: Axes, index: int, name: str, size: float, goal_radius: float | None) -> None:
        """Draw goal, path and robot; the picture shows at least the square of half side `size`.

        A return to the origin, which nobody hits by moving, is a gap in the path.
        """
        from matplotlib.patches import Circle

        path = self.path(index).cpu()
        goal_x, goal_y = self.state[keys.TASK][index, :2].tolist()
        if goal_radius is not None:
            axes.add_patch(Circle((goal_x, goal_y), goal_radius, color="tab:green", alpha=0.3, linewidth=0))
        axes.scatter(goal_x, goal_y, marker="x", color="tab:green", zorder=4)
        returns = (path == 0).all(-1).nonzero().squeeze(-1).tolist()
        for start, end in pairwise([0, *returns, len(path)]):
            axes.plot(path[start:end, 0], path[start:end, 1], color="tab:blue", linewidth=1)
        axes.scatter(path[-1, 0], path[-1, 1], color="tab:blue", zorder=3)
        limit = max(size, 1.05 * float(path.abs().max()))
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.set(title=f"{name}, step {int(self.state['step'][index])} of {self.episode_length}")


class PointRobot(_Robot):
    """A point moves to a goal anywhere in a square; the reward is minus the distance to it.

    The observation is the position (x, y), which the action moves by (dx, dy). Start and goal are uniform in
    [-1, 1] x [-1, 1]; the start is drawn anew for every episode. An episode is truncated after `max_episode_steps`
    steps. The task is the goal (x, y).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        max_episode_steps: H, the number of steps of an episode.
        clip_actions: clip actions to the action bounds, 0.05 either way. Without it a policy may jump (quirk R2).
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = PointRobot(16, seed=3)
        >>> env.reset()["observation"].shape
        torch.Size([16, 2])
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 1,
        *,
        max_episode_steps: int = 100,
        clip_actions: bool = False,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        layout = _plane_layout(max_episode_steps)
        super().__init__(num_envs, episodes_per_task, layout, clip_actions, **options)
        self.injectable = (keys.TASK, "start")

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` goals `[n, 2]`, uniform in the square."""
        return self._uniform(-1.0, 1.0, n, 2)

    def reset_state(self, mask: Tensor) -> None:
        """Put the robot anywhere in the square."""
        super().reset_state(mask)
        self.write("position", mask, self.draw("start", lambda: self.sample_tasks(self.num_envs)))

    def observe(self) -> Tensor:
        """Position `[B, 2]`."""
        return self.coordinates()

    def transition(self, action: Tensor) -> Transition:
        """Move; neither walls nor the goal stop the robot."""
        position = self.state["position"] + self._clipped(action)
        self.state["position"] = position
        x, y = (position - self.state[keys.TASK]).unbind(-1)
        return self._transition(self._reward(torch.hypot(x, y)))

    def _reward(self, distance: Tensor) -> Tensor:
        return -distance

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return (2,)

    def _possible(self, name: str, rows: Tensor) -> tuple[Tensor, str]:
        return (rows.abs() <= 1).all(-1), "coordinates from -1 to 1"

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the goal and the path so far."""
        self._draw(axes, index, "Point robot", 1.1, None)


class SparsePointRobot(PointRobot):
    """A point starts at the origin and looks for a goal on the upper unit half circle; only near it there is reward.

    The observation is the position (x, y), which the action moves by (dx, dy). A step that ends at a distance d of at
    most `goal_radius` from the goal pays 1 - d, any other 0. The goal is uniform on the half circle, an episode is
    truncated after `max_episode_steps` steps. The task is the goal (x, y).

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        max_episode_steps: H, the number of steps of an episode.
        goal_radius: largest distance to the goal that is paid.
        clip_actions: clip actions to the action bounds, 0.05 either way. Without it a policy may jump (quirk R2).
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = SparsePointRobot(16, seed=3)
        >>> env.reset()["observation"].shape
        torch.Size([16, 3])
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 5,
        *,
        max_episode_steps: int = 100,
        goal_radius: float = 0.2,
        clip_actions: bool = False,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        _check_length("goal_radius", goal_radius)
        super().__init__(
            num_envs, episodes_per_task, max_episode_steps=max_episode_steps, clip_actions=clip_actions, **options
        )
        self.goal_radius = goal_radius
        self.injectable = (keys.TASK,)
        self._no_reward = torch.zeros((), dtype=torch.float64, device=self.device)

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` goals `[n, 2]`, uniform on the half circle."""
        angle = self._uniform(0.0, math.pi, n)
        return torch.stack((angle.cos(), angle.sin()), -1)

    def reset_state(self, mask: Tensor) -> None:
        """Put the robot on the origin."""
        _Robot.reset_state(self, mask)

    def _reward(self, distance: Tensor) -> Tensor:
        return torch.where(distance <= self.goal_radius, 1 - distance, self._no_reward)

    def _possible(self, name: str, rows: Tensor) -> tuple[Tensor, str]:
        return _on_half_circle(rows, 1.0), "a point of the upper half circle of radius 1"

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the half circle of goals, the rewarded disc and the path so far."""
        _draw_half_circle(axes, 1.0)
        self._draw(axes, index, "Sparse point robot", 1.3, self.goal_radius)


class Semicircle(_Robot):
    """A robot steers through a disc and collects a goal that is hidden on the upper half of its edge.

    The observation is position and heading (x, y, theta), the action forward speed and turn. A step repeats the action
    up to 10 times: turn, move forward, and stay within the disc (the lower half belongs to it, quirk R5). Whoever comes
    within `goal_radius` of the goal gets 1 and is put back to the centre with a new heading, uniform in [-pi, pi],
    which ends the step; other steps pay 0. An episode starts at the centre likewise and is truncated after
    `max_episode_steps` steps. Headings lie in [0, 2 pi) after other steps (quirk R6).

    The goal is uniform on the half circle of `radius`; the task is (x, y, angle) of the goal.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        max_episode_steps: H, the number of steps of an episode.
        goal_radius: distance to the goal at which it is collected.
        radius: radius of the disc, and of the half circle of goals.
        clip_actions: clip actions to the action bounds, 0.01 and 2 pi / 100 either way. Without it a policy may jump
            (quirk R2).
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> env = Semicircle(16, seed=3)
        >>> env.reset()["observation"].shape
        torch.Size([16, 3])
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 1,
        *,
        max_episode_steps: int = 10,
        goal_radius: float = 0.04,
        radius: float = 0.2,
        clip_actions: bool = False,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        _check_length("goal_radius", goal_radius)
        _check_length("radius", radius)
        layout = _disc_layout(max_episode_steps, radius)
        super().__init__(num_envs, episodes_per_task, layout, clip_actions, **options)
        self.goal_radius = goal_radius
        self.radius = radius
        self.injectable = (keys.TASK, "heading")
        self._count = torch.arange(1, _SUBSTEPS + 1, dtype=torch.float64, device=self.device).unsqueeze(-1)

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` goals with their angles `[n, 3]`, uniform on the half circle."""
        angle = self._uniform(0.0, math.pi, n)
        return torch.stack((self.radius * angle.cos(), self.radius * angle.sin(), angle), -1)

    def reset_state(self, mask: Tensor) -> None:
        """Put the robot to the centre, with a heading of its own."""
        super().reset_state(mask)
        self.write("heading", mask, self.draw("heading", self._random_headings))

    def observe(self) -> Tensor:
        """Position and heading `[B, 3]`."""
        return torch.cat((self.state["position"], self.state["heading"].unsqueeze(-1)), -1).to(torch.float32)

    def transition(self, action: Tensor) -> Transition:
        """Repeat the action until the goal is met."""
        speed, turn = self._clipped(action).unbind(-1)
        heading = self.state["heading"]
        x, y = self._drive(speed, heading + self._count * turn)
        goal_x, goal_y, _ = self.state[keys.TASK].unbind(-1)
        # What would come after the contact does not matter: the robot is put back.
        contact = ((x - goal_x).square() + (y - goal_y).square() <= self.goal_radius**2).any(0)
        self.state["position"] = torch.stack((x[-1], y[-1]), -1)
        self.state["heading"] = torch.remainder(torch.add(heading, turn, alpha=_SUBSTEPS), 2 * math.pi)
        if self.may_contain(contact):
            self.write("position", contact, self._origin)
            self.write("heading", contact, self.draw("heading", self._random_headings))
        return self._transition(contact)

    def _drive(self, speed: Tensor, headings: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates `[10, B]` after each repetition, with the headings `[10, B]` used in them."""
        x, y = self.state["position"].unbind(-1)
        xs, ys = [], []
        for move in (speed * headings.cos()).unbind():
            x = (x + move).clamp(-self.radius, self.radius)
            xs.append(x)
        all_x = torch.stack(xs)
        half_chord = ((self.radius - all_x) * (self.radius + all_x)).sqrt()  # exactly 0 at the edge
        moves = (speed * headings.sin()).unbind()
        for move, low, high in zip(moves, (-half_chord).unbind(), half_chord.unbind(), strict=True):
            y = (y + move).clamp(low, high)
            ys.append(y)
        return all_x, torch.stack(ys)

    def _random_headings(self) -> Tensor:
        return self._uniform(-math.pi, math.pi, self.num_envs)

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return ()

    def _possible(self, name: str, rows: Tensor) -> tuple[Tensor, str]:
        if name == "heading":
            return rows.abs() <= math.pi + _TOLERANCE, "headings from -pi to pi"
        angle = rows[:, 2]
        goal = self.radius * torch.stack((angle.cos(), angle.sin()), -1)
        agree = ((rows[:, :2] - goal).abs() <= _TOLERANCE * self.radius).all(-1)
        words = f"x, y and angle of a point of the upper half circle of radius {self.radius}"
        return agree & _on_half_circle(rows, self.radius), words

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the disc, the half circle of goals, the goal, the path so far and the heading."""
        from matplotlib.patches import Circle

        axes.add_patch(Circle((0, 0), self.radius, fill=False, color="lightgrey"))
        _draw_half_circle(axes, self.radius)
        self._draw(axes, index, "Semicircle", 1.3 * self.radius, self.goal_radius)
        x, y = self.state["position"][index].tolist()
        heading, length = float(self.state["heading"][index]), 0.15 * self.radius
        end = x + length * math.cos(heading), y + length * math.sin(heading)
        axes.annotate("", end, (x, y), arrowprops={"arrowstyle": "->", "color": "tab:blue"})


def _plane_layout(num_steps: int) -> Layout:
    return Layout(
        episode_length=num_steps,
        observation_low=(-math.inf, -math.inf),
        observation_high=(math.inf, math.inf),
        action_low=(-_MAX_MOVE, -_MAX_MOVE),
        action_high=(_MAX_MOVE, _MAX_MOVE),
        task_dim=2,
    )


def _disc_layout(num_steps: int, radius: float) -> Layout:
    return Layout(
        episode_length=num_steps,
        observation_low=(-radius, -radius, -math.pi),
        observation_high=(radius, radius, 2 * math.pi),
        action_low=(-_MAX_SPEED, -_MAX_TURN),
        action_high=(_MAX_SPEED, _MAX_TURN),
        task_dim=3,
    )


def _check_length(name: str, value: float) -> None:
    if not is_number(value) or value <= 0:
        raise ValueError(f"`{name}` is {value!r}: expected a number above 0")


def _on_half_circle(rows: Tensor, radius: float) -> Tensor:
    """Whether points `[B, 2 or more]` lie on the upper half circle, but for rounding."""
    x, y = rows[:, 0], rows[:, 1]
    return ((torch.hypot(x, y) - radius).abs() <= _TOLERANCE * radius) & (y >= -_TOLERANCE * radius)


def _draw_half_circle(axes: Axes, radius: float) -> None:
    angle = torch.linspace(0, math.pi, 100)
    axes.plot(radius * angle.cos(), radius * angle.sin(), color="tab:green", linewidth=0.8, linestyle="--", alpha=0.6)


def _entry(name: str, robot: str, description: str, episodes_per_task: int, **kwargs: Any) -> EnvEntry:
    kwargs = {"episodes_per_task": episodes_per_task, **kwargs}
    return EnvEntry(name, f"hyperrl.envs.point_robot:{robot}", description, kwargs)


ENVS = (
    _entry("PointEnv-v0", "PointRobot", "move a point to a hidden goal in a square, paid by distance", 1),
    _entry("SparsePointEnv-v0", "SparsePointRobot", "find a goal on a half circle, paid only near it", 5),
    _entry("Semicircle-v0", "Semicircle", "steer to a hidden goal on a half circle again and again", 1),
)
