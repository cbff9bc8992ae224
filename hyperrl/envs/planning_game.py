"""Planning game: collect goals on a torus whose map has to be memorised (`spec/envs-navigation.md` section 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import embedding

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_numbers, check_positive
from hyperrl.envs.registration import EnvEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOVES = ((0, 1), (0, -1), (-1, 0), (1, 0), (0, 0))  # up, down, left, right, collect
_NUM_ACTIONS = len(_MOVES)
_COLLECT = 4


class PlanningGame(MetaEnv):
    """An agent collects goals on an n x n torus whose cells carry labels in an order that every episode draws anew.

    Actions: 0 up, 1 down, 2 left, 3 right, 4 collect. The observation is the one-hot label of the agent's cell and that
    of the goal's cell, so a goal is found by remembering where its label was seen. Collecting on the goal pays
    `target_reward` and draws the next goal, uniform among the other cells, which the same step's observation shows
    already. An episode lasts exactly `max_episode_steps` steps, which belongs to the task: its end is a termination.
    Cells and tasks are numbered x * n + y.

    The published task is the current goal (x, y); it changes within the episode. Of `task_split` the first goal and all
    later ones are drawn; `fixed_task` is the first goal of every reset. There is no belief.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task; only 1, because every episode has a map of its own.
        maze_size: n, the side length of the torus.
        max_episode_steps: H, the number of steps of an episode.
        target_reward: reward for collecting on the goal.
        per_step_reward: reward for any other step.
        random_respawn: a collected goal also moves the agent to a cell drawn anew.
        show_xy: append the agent's coordinates to the observation.
        show_goal_xy: append the goal's coordinates to the observation.
        just_show_whether_at_goal: observe only whether the agent is on the goal (one element, 1 or 0).
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an argument is out of range, options exclude each other, or `task_split` leaves fewer than two
            goal cells.

    Example:
        >>> env = PlanningGame(16, seed=3, maze_size=3, publish=["task"])
        >>> env.reset()["observation"].shape
        torch.Size([16, 18])
    """

    single_episode = True
    task_changes = True

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 1,
        *,
        maze_size: int = 4,
        max_episode_steps: int = 100,
        target_reward: float = 1.0,
        per_step_reward: float = 0.0,
        random_respawn: bool = False,
        show_xy: bool = False,
        show_goal_xy: bool = False,
        just_show_whether_at_goal: bool = False,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_positive("maze_size", maze_size)
        if maze_size == 1:
            raise ValueError("`maze_size` is 1: expected at least 2, since a goal is another cell than the agent's")
        check_positive("max_episode_steps", max_episode_steps)
        check_numbers(target_reward=target_reward, per_step_reward=per_step_reward)
        check_flags(random_respawn=random_respawn, show_xy=show_xy, show_goal_xy=show_goal_xy)
        check_flags(just_show_whether_at_goal=just_show_whether_at_goal)
        if just_show_whether_at_goal and (show_xy or show_goal_xy):
            other = "show_xy" if show_xy else "show_goal_xy"
            raise ValueError(f"`just_show_whether_at_goal` is True and `{other}` is True: expected one of them")
        layout = _layout(maze_size, max_episode_steps, show_xy + show_goal_xy, just_show_whether_at_goal)
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.maze_size = maze_size
        self.random_respawn = random_respawn
        self.show_xy = show_xy
        self.show_goal_xy = show_goal_xy
        self.just_show_whether_at_goal = just_show_whether_at_goal
        self.injectable = (keys.TASK, "position", "labels", "goal")
        self._make_tables()
        # 0-dimensional tensors, because a Python number in torch.where becomes one in every call.
        self._target_reward = torch.tensor(target_reward, dtype=torch.float32, device=self.device)
        self._step_reward = torch.tensor(per_step_reward, dtype=torch.float32, device=self.device)

    def _make_tables(self) -> None:
        n, num_cells = self.maze_size, self.maze_size**2
        cells = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        target = (cells.unsqueeze(1) + torch.tensor(_MOVES)) % n
        self._moves = (target[..., 0] * n + target[..., 1]).flatten().to(self.device)
        self._coordinates = cells.to(self.device, torch.float32)
        self._one_hot = torch.eye(num_cells, device=self.device)
        self._goals = self.split_tasks(torch.arange(num_cells)).to(self.device)
        num_goals = len(self._goals)
        if num_goals < 2:
            raise ValueError(
                f"`task_split` is {self.task_split!r} and holds {num_goals} goal cell: expected at least 2"
            )
        # Where a cell stands among the goal cells; one that is no goal cell comes after all of them.
        self._goal_rank = torch.full((num_cells,), num_goals, device=self.device)
        self._goal_rank[self._goals] = torch.arange(num_goals, device=self.device)

    # The episode -------------------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` goals `[n]`, uniformly from the goal cells of the task split."""
        index = torch.randint(self._goals.shape[0], (n,), generator=self._generator, device=self.device)
        return self._goals.index_select(0, index)

    def reset_state(self, mask: Tensor) -> None:
        """Draw the map, and put the agent on any cell but the goal."""
        self.write("labels", mask, self.draw("labels", self._random_labels))
        self._move_agent(mask)
        self.write("step", mask, self._zero)

    def observe(self) -> Tensor:
        """What the agent sees of its cell and of the goal `[B, O]`."""
        position, goal = self.state["position"], self.state[keys.TASK]
        if self.just_show_whether_at_goal:
            return (position == goal).to(torch.float32).unsqueeze(-1)
        shown_labels = self.state["labels"].gather(1, torch.stack((position, goal), -1))
        shown = [embedding(shown_labels, self._one_hot).flatten(1)]
        if self.show_xy:
            shown.append(self.coordinates())
        if self.show_goal_xy:
            shown.append(self.publish_task())
        return torch.cat(shown, -1) if len(shown) > 1 else shown[0]

    def transition(self, action: Tensor) -> Transition:
        """Move, or collect; the observation shows the next goal already."""
        state = self.state
        position = self._moves.index_select(0, torch.add(action, state["position"], alpha=_NUM_ACTIONS))
        state["position"] = position
        collected = (action == _COLLECT) & (position == state[keys.TASK])
        if self.may_contain(collected):
            self._draw_next_goal(collected)
        step = state["step"] + 1
        state["step"] = step
        reward = torch.where(collected, self._target_reward, self._step_reward)
        episode_done = step >= self.episode_length
        return Transition(self.observe(), reward, episode_done, episode_done)

    def _draw_next_goal(self, collected: Tensor) -> None:
        if self.random_respawn:
            self.write(keys.TASK, collected, self.draw("goal", lambda: self.sample_tasks(self.num_envs)))
            self._move_agent(collected)
        else:
            other = self.state["position"]
            self.write(keys.TASK, collected, self._draw_apart("goal", self._random_other_goals, other, collected))

    def _move_agent(self, mask: Tensor) -> None:
        other = self.state[keys.TASK]
        self.write("position", mask, self._draw_apart("position", self._random_positions, other, mask))

    def _draw_apart(self, name: str, sample: Callable[[], Tensor], other: Tensor, mask: Tensor) -> Tensor:
        """Draw cells `[B]`; those injected for environments in `mask` `[B]` must not be `other` `[B]`."""
        injected = bool(self._injected.get(name))
        cells = self.draw(name, sample)
        if injected:
            apart = ~mask | (cells != other)
            self.check_rows(name, self._coordinates[cells].long(), apart, "agent and goal on different cells")
        return cells

    def _random_labels(self) -> Tensor:
        """A permutation of the labels per environment `[B, n * n]`: the order of random numbers."""
        shape = self.num_envs, self.maze_size**2
        return torch.rand(shape, generator=self._generator, device=self.device, dtype=torch.float64).argsort(-1)

    def _random_positions(self) -> Tensor:
        """Cells `[B]`, uniform among those that are not the goal."""
        cells = torch.randint(self.maze_size**2 - 1, (self.num_envs,), generator=self._generator, device=self.device)
        return cells + (cells >= self.state[keys.TASK])

    def _random_other_goals(self) -> Tensor:
        """Goals `[B]`, uniform among the goal cells of the task split that are not the agent's cell."""
        rank = self._goal_rank.index_select(0, self.state["position"])
        num_goals = self._goals.shape[0]
        # Only a forced first goal can be outside the split; then there is none to leave out.
        choices = num_goals - (rank < num_goals).to(torch.float64)
        share = torch.rand(self.num_envs, generator=self._generator, device=self.device, dtype=torch.float64)
        index = (share * choices).to(torch.int64)
        return self._goals.index_select(0, index + (index >= rank))

    # What can be published, injected and drawn -------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Coordinates of the current goal `[B, 2]`."""
        return self._coordinates.index_select(0, self.state[keys.TASK])

    def publish_task_id(self) -> Tensor:
        """Number of the current goal's cell `[B]`."""
        return self.state[keys.TASK].clone()

    def coordinates(self) -> Tensor:
        """Coordinates of the agent `[B, 2]`."""
        return self._coordinates.index_select(0, self.state["position"])

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Turn cell coordinates `[2]` or `[B, 2]` into cell numbers `[B]`; labels `[n * n]` or `[B, n * n]` stay.

        Label i is that of cell (i // n, i % n). That goal and agent are apart is checked when they are drawn.
        """
        n = self.maze_size
        if name == "labels":
            labels = self.rows_of(name, value, (n * n,))
            possible = (labels.sort(-1).values == torch.arange(n * n, device=self.device)).all(-1)
            self.check_rows(name, labels, possible, f"a permutation of 0 to {n * n - 1}")
            return labels.to(torch.int64)
        cells = self.rows_of(name, value, (2,))
        possible = ((cells >= 0) & (cells < n) & (cells == cells.round())).all(-1)
        self.check_rows(name, cells, possible, f"two coordinates from 0 to {n - 1}")
        return (cells[:, 0] * n + cells[:, 1]).to(torch.int64)

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the torus with its labels, the goal, the agent and its path so far."""
        n = self.maze_size
        labels = self.state["labels"][index].tolist()
        for (x, y), label in zip(self._coordinates.tolist(), labels, strict=True):
            axes.text(x - 0.4, y + 0.4, str(label), ha="left", va="top", color="dimgrey")
        for edge in range(1, n):
            axes.axhline(edge - 0.5, color="lightgrey", linewidth=0.8, zorder=0)
            axes.axvline(edge - 0.5, color="lightgrey", linewidth=0.8, zorder=0)
        (goal_x, goal_y), (x, y) = self.publish_task()[index].tolist(), self.coordinates()[index].tolist()
        size = 300 * (3 / n) ** 2
        axes.scatter(goal_x, goal_y, s=3 * size, marker="s", color="tab:green", alpha=0.6, zorder=2)
        axes.scatter(x, y, s=size, color="tab:blue", alpha=0.8, zorder=3)
        axes.plot(*_torus_path(self.path(index).cpu(), n), color="tab:blue", linewidth=1, zorder=1)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(-0.5, n - 0.5), xticks=range(n), yticks=range(n), aspect="equal")
        axes.set(title=f"Planning game, step {int(self.state['step'][index])} of {self.episode_length}")


def _torus_path(path: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Lines `x, y` of a path `[T, 2]`; a step over the edge is drawn at both edges, a respawn not at all."""
    move = (path[1:] - path[:-1] + n // 2) % n - n // 2
    move = torch.where(move.abs().sum(-1, keepdim=True) == 1, move, torch.nan)
    gap = torch.full_like(move, torch.nan)
    points = torch.stack((path[:-1], path[:-1] + move, gap, path[1:] - move, path[1:], gap), 1).flatten(0, 1)
    return points[:, 0], points[:, 1]


def _layout(n: int, num_steps: int, num_shown_xy: int, just_show_whether_at_goal: bool) -> Layout:
    size = 1 if just_show_whether_at_goal else 2 * n**2 + 2 * num_shown_xy
    # Quirk P5: any coordinates widen the bounds of all elements.
    return Layout(
        episode_length=num_steps,
        observation_low=(0.0,) * size,
        observation_high=(n - 1.0 if num_shown_xy else 1.0,) * size,
        num_actions=_NUM_ACTIONS,
        task_dim=2,
        num_tasks=n**2,
    )


def _entry(name: str, description: str, landmarks: dict[str, float], **kwargs: Any) -> EnvEntry:
    entry_point = "hyperrl.envs.planning_game:PlanningGame"
    return EnvEntry(name, entry_point, description, {"episodes_per_task": 1, **kwargs}, landmarks)


_KNOWN_3X3 = {"random": 1.7605, "bayes_optimal": 38.0867, "task_known": 39.72}

ENVS = (
    _entry(
        "PlanningGame-v0",
        "collect goals on a 4x4 torus with a hidden map",
        {"random": 0.9618, "bayes_optimal": 28.9408, "task_known": 31.6143},
    ),
    _entry("PlanningGame-3x3-v0", "collect goals on a 3x3 torus with a hidden map", _KNOWN_3X3, maze_size=3),
    _entry(
        # On a torus the own coordinates say nothing about where a label is.
        "PlanningGame-3x3-xy-v0",
        "collect goals on a 3x3 torus with a hidden map; the own coordinates are shown",
        _KNOWN_3X3,
        maze_size=3,
        show_xy=True,
    ),
    _entry(
        "PlanningGame-3x3-justgoal-v0",
        "search a 3x3 torus for goal after goal, seeing only whether one is there",
        {**_KNOWN_3X3, "bayes_optimal": 17.8595},
        maze_size=3,
        just_show_whether_at_goal=True,
    ),
    _entry(
        "PlanningGame-3x3-xy-goalxy-v0",
        "collect goals on a 3x3 torus; the own and the goal's coordinates are shown",
        {**_KNOWN_3X3, "bayes_optimal": 39.72},
        maze_size=3,
        show_xy=True,
        show_goal_xy=True,
    ),
)
