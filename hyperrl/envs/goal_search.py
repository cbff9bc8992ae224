"""`GoalSearch`: look for a hidden goal among numbered cells. What GridNavi and Hall share, as lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WALL, _FREE, _VISITED = 0.45, 0.94, 0.78  # grey levels of pictures
_MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # stay, up, right, down, left
NUM_ACTIONS = len(_MOVES)


@dataclass(frozen=True)
class Cells:
    """Tables of C numbered cells.

    Attributes:
        coordinates: (x, y) of the cells, `[C, 2]` int64.
        moves: numbers of the cells in which the moves end, `[C, 5]`.
        goals: numbers of the cells that can be the goal, `[G]`.
        task_ids: task ids of the cells if they are the goal, `[C]`.
        start: number of the start cell of every episode; None draws it anew for every episode.

    Raises:
        ValueError: if no cell can be the goal.
    """

    coordinates: Tensor
    moves: Tensor
    goals: Tensor
    task_ids: Tensor
    start: int | None

    def __post_init__(self) -> None:
        if not len(self.goals):
            size = int(self.coordinates[:, 0].max()) + 1
            raise ValueError(f"`num_cells` is {size}: expected more, as the other options leave no goal cell")


@dataclass(frozen=True)
class Rewards:
    """What a step is paid.

    Attributes:
        success_r: for every step that ends on the goal.
        new_state_r: for the first visit, within a task, of a cell that could have been the goal; None pays no bonus.
        constant_r: for any other step.

    Raises:
        ValueError: if a reward is no number.
    """

    success_r: float
    new_state_r: float | None
    constant_r: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            or_null = " or null" if name == "new_state_r" else ""
            if not (is_number(value) or (or_null and value is None)):
                raise ValueError(f"`{name}` is {value!r}: expected a finite number{or_null}")


def grid_moves(coordinates: Tensor, strides: tuple[int, int]) -> Tensor:
    """Numbers of the cells in which moves in an open rectangle end, `[C, 5]`.

    Args:
        coordinates: (x, y) of the cells, `[C, 2]`.
        strides: (a, b) if cell (x, y) has number a * x + b * y.
    """
    last = coordinates.amax(0)
    target = (coordinates.unsqueeze(1) + torch.tensor(_MOVES)).clamp(torch.zeros_like(last), last)
    return (target * torch.tensor(strides)).sum(-1)


def hall_moves(coordinates: Tensor, strides: tuple[int, int], every: int, stuck: bool) -> Tensor:
    """The same in a hall, a corridor y = 0 with door cells (x, 1) above x = every, 2 * every, ... (spec 4.2)."""
    table = grid_moves(coordinates, strides)
    door = has_door(coordinates, every)
    y = coordinates[:, 1]
    corridor = y == 0
    leave = (y == 1) & door & (not stuck)
    allowed = torch.stack((torch.ones_like(door), corridor & door, corridor, leave, corridor), -1)
    return torch.where(allowed, table, table[:, :1])


def has_door(coordinates: Tensor, every: int) -> Tensor:
    """Whether there is a door at the cells' x, `[C]`."""
    x = coordinates[:, 0]
    return (x > 0) & (x % every == 0)


def start_coordinates(starting_state: Sequence[float], num_cells: int, in_hall: bool) -> tuple[int, int]:
    """Check a start cell; in a hall it has to be in the corridor."""
    if (
        not isinstance(starting_state, Sequence)
        or len(starting_state) != 2
        or any(c not in range(num_cells) for c in starting_state)
    ):
        raise ValueError(
            f"`starting_state` is {starting_state!r}: expected two whole numbers from 0 to {num_cells - 1}"
        )
    x, y = (int(c) for c in starting_state)
    if in_hall and y != 0:
        raise ValueError(f"`starting_state` is {starting_state!r}: a hall (`hall_with_door_every`) expects y = 0")
    return x, y


class GoalSearch(MetaEnv):
    """An agent moves between cells and looks for a goal cell; the task is the goal, uniform over a goal set.

    A subclass builds the tables, and may change what is observed and paid.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        layout: sizes and bounds of the family.
        cells: the tables.
        rewards: what is paid.
        **options: what all environments take, see `MetaEnvOptions`.
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int,
        layout: Layout,
        cells: Cells,
        rewards: Rewards,
        /,  # options by name are those of the families
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.new_state_r = rewards.new_state_r
        self._random_start = cells.start is None
        self.injectable = (keys.TASK, "start") if self._random_start else (keys.TASK,)
        self._coordinates = cells.coordinates.to(self.device, torch.float32)
        self._moves = cells.moves.flatten().to(self.device)
        self._goals = cells.goals.to(self.device)
        self._tasks = self.split_tasks(cells.goals).to(self.device)
        self._task_ids = cells.task_ids.to(self.device)
        self._goal_ids = self._task_ids[self._goals]
        # 0-dimensional tensors, because a Python number in torch.where becomes one in every call.
        self._start = torch.tensor(-1 if cells.start is None else cells.start, device=self.device)
        self._goal_reward = torch.tensor(rewards.success_r, dtype=torch.float32, device=self.device)
        self._step_reward = torch.tensor(rewards.constant_r, dtype=torch.float32, device=self.device)
        self._true = torch.tensor(True, device=self.device)
        if self.new_state_r is not None:
            self._bonus = torch.tensor(self.new_state_r, dtype=torch.float32, device=self.device)
            # Cells that can never earn the bonus count as visited from the start.
            self._no_bonus = torch.ones(1, len(cells.coordinates), dtype=torch.bool, device=self.device)
            self._no_bonus[:, self._goals] = False

    # The inner episode -------------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` goal cells `[n]`, uniformly from the goal cells of the task split."""
        index = torch.randint(self._tasks.shape[0], (n,), generator=self._generator, device=self.device)
        return self._tasks.index_select(0, index)

    def reset_task(self, mask: Tensor) -> None:
        """Clear the visited cells and the belief; both survive the ends of inner episodes (quirk G4)."""
        if self.new_state_r is not None:
            self.write("visited", mask, self._no_bonus)
        if keys.BELIEF in self.publish:
            self.write("candidates", mask, self._true.expand(1, self._goals.shape[0]))

    def reset_state(self, mask: Tensor) -> None:
        """Put the agent on its start cell."""
        start = self.draw("start", self._random_cells) if self._random_start else self._start
        self.write("position", mask, start)
        self.write("step", mask, self._zero)

    def observe(self) -> Tensor:
        """Position `[B, 2]`."""
        return self.coordinates()

    def transition(self, action: Tensor) -> Transition:
        """Move, and pay for where the move ends."""
        state = self.state
        position = self._moves.index_select(0, torch.add(action, state["position"], alpha=NUM_ACTIONS))
        state["position"] = position
        step = state["step"] + 1
        state["step"] = step
        first_visit = None if self.new_state_r is None else self._first_visit(position)
        goal = state[keys.TASK]
        other = self._other_reward(position, goal, first_visit)
        reward = torch.where(position == goal, self._goal_reward, other)
        if keys.BELIEF in self.publish:
            self._update_candidates(position, reward, first_visit)
        episode_done = step >= self.episode_length
        return Transition(self._observe_step(), reward, episode_done, episode_done)

    # What a subclass may change ----------------------------------------------------------------------------------

    def _observe_step(self) -> Tensor:
        """What is observed after a step, `[B, O]`."""
        return self.observe()

    def _other_reward(self, position: Tensor, goal: Tensor, first_visit: Tensor | None) -> Tensor:
        """Reward for a step that ends on `position`, which is not `goal` (spec 4.5); the arguments broadcast."""
        return self._step_reward if first_visit is None else torch.where(first_visit, self._bonus, self._step_reward)

    def _update_candidates(self, position: Tensor, reward: Tensor, first_visit: Tensor | None) -> None:
        """Keep the goals `[B, G]` under which the agent would have been paid what it was paid in this step."""
        here, paid = position.unsqueeze(-1), reward.unsqueeze(-1)
        other = self._other_reward(here, self._goals, None if first_visit is None else first_visit.unsqueeze(-1))
        possible = torch.where(here == self._goals, paid == self._goal_reward, paid == other)
        self.state["candidates"] = self.state["candidates"] & possible

    # Private -----------------------------------------------------------------------------------------------------

    def _first_visit(self, position: Tensor) -> Tensor:
        """Whether the cell earns the bonus, `[B]`; marks it visited."""
        visited = self.state["visited"]
        cell = position.unsqueeze(-1)
        first_visit = ~visited.gather(1, cell).squeeze(-1)
        visited.scatter_(1, cell, True)
        return first_visit

    def _random_cells(self) -> Tensor:
        cells = self._coordinates.shape[0]
        return torch.randint(cells, (self.num_envs,), generator=self._generator, device=self.device)

    # What can be published and injected --------------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Goal coordinates `[B, 2]`."""
        return self._coordinates.index_select(0, self.state[keys.TASK])

    def publish_task_id(self) -> Tensor:
        """Task id of the goal cell `[B]`."""
        return self._task_ids.index_select(0, self.state[keys.TASK])

    def publish_state_id(self) -> Tensor:
        """Number of the cell in which the last step ended `[B]`, whatever the observation shows."""
        return self.state["position"].clone()

    def publish_belief(self) -> Tensor:
        """Posterior over the task ids `[B, num_tasks]`."""
        candidates = self.state["candidates"].to(torch.float32)
        belief = candidates.new_zeros(self.num_envs, self.num_tasks or 0)
        # Faster than assigning to belief[:, ids].
        return belief.scatter_(1, self._goal_ids.expand_as(candidates), candidates / candidates.sum(-1, keepdim=True))

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Turn cell coordinates, `[2]` or `[B, 2]`, into cell numbers `[B]`; a task must be a goal cell (quirk G9)."""
        value = self.rows_of(name, value, (2,))
        found, cells = (value.unsqueeze(-2) == self._coordinates).all(-1).to(torch.uint8).max(-1)
        possible, expected = found.bool(), "cells of the grid"
        if name == keys.TASK:
            possible, expected = possible & torch.isin(cells, self._goals), "goal cells"
        self.check_rows(name, value, possible, f"{expected} of this environment")
        return cells

    # Pictures ----------------------------------------------------------------------------------------------------

    def coordinates(self) -> Tensor:
        """Where the agents are, `[B, 2]`."""
        return self._coordinates.index_select(0, self.state["position"])

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the cells, the goal, the start, and the agent's path.

        Walls are dark grey, visited cells light grey; where beliefs are published, possible goals are purple.
        """
        image = self._image(index)
        height, width = image.shape[:2]
        axes.imshow(image, origin="lower", aspect="auto" if height == 2 else "equal")  # a hall is too long for squares
        for set_ticks, size in ((axes.set_xticks, width), (axes.set_yticks, height)):
            set_ticks(range(0, size, -(-size // 12)))
            set_ticks([edge - 0.5 for edge in range(size + 1)], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        state = self.state
        axes.plot(*self.path(index).T.tolist(), color="tab:blue", linewidth=1.2)
        if not self._random_start:
            self._mark(axes, self._start, "s", "start", color="black", fillstyle="none", markersize=12)
        self._mark(axes, state[keys.TASK][index], "*", "goal", color="tab:green", markersize=15)
        self._mark(axes, state["position"][index], "o", "agent", color="tab:blue", markersize=8)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, frameon=False)
        episode, step = int(state["episode"][index]) + 1, int(state["step"][index])
        axes.set_title(f"episode {episode} of {self.episodes_per_task}, step {step} of {self.episode_length}")

    def _image(self, index: int) -> np.ndarray:
        """Colours of the cells `[height, width, 3]`, row 0 at the bottom."""
        from matplotlib import colormaps

        stays = torch.arange(len(self._coordinates), device=self.device).unsqueeze(-1)
        exists = (self._moves.view(-1, NUM_ACTIONS) != stays).any(-1)
        exists[self._goals] = True  # also where an agent is stuck
        x, y = self._coordinates.long().unbind(-1)
        image = np.full((int(y[exists].max()) + 1, int(x.max()) + 1, 3), _WALL)

        def paint(cells: Tensor, colour: np.ndarray | float) -> None:
            image[y[cells].cpu(), x[cells].cpu()] = colour

        paint(exists.nonzero().squeeze(-1), _FREE)
        if self.new_state_r is not None:
            paint(self._goals[self.state["visited"][index, self._goals]], _VISITED)
        if keys.BELIEF in self.publish:
            belief = self.publish_belief()[index, self._goal_ids]
            paint(self._goals[belief == 0], _VISITED)
            colours = colormaps["Purples"](0.15 + 0.55 * belief[belief > 0].sqrt().cpu().numpy())
            paint(self._goals[belief > 0], colours[:, :3])
        return image

    def _mark(self, axes: Axes, cell: Tensor, marker: str, label: str, **style: Any) -> None:
        axes.plot(*self._coordinates[cell].unsqueeze(-1).tolist(), marker, label=label, clip_on=False, **style)
