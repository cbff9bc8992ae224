"""GridNavi: find a hidden goal cell in a grid (`spec/envs-navigation.md` section 4), as lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import embedding

from hyperrl import keys
from hyperrl.envs.goal_search import (
    NUM_ACTIONS,
    Cells,
    GoalSearch,
    Rewards,
    grid_moves,
    hall_moves,
    has_door,
    start_coordinates,
)
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_positive
from hyperrl.envs.registration import EnvEntry, known_landmarks

_GOAL_REWARD = 1.0
_STEP_REWARD = -0.1


class GridNavi(GoalSearch):
    """An agent in an n x n grid looks for a goal cell; the task is the goal, uniform over a goal set.

    Actions: 0 stay, 1 up, 2 right, 3 down, 4 left. The observation is the position (x, y). Every step that ends on
    the goal pays 1, any other -0.1 (see the options); an episode lasts exactly `num_steps` steps, which belongs to the
    task: the meta-episode's end is a termination. Cells, tasks and states are numbered x * n + y.

    `belief` is the exact posterior over the goal, given every observation and reward of the task so far, with the
    whole goal set as the prior, whatever `task_split` says. (The reference mixes in a random wrong cell, quirk G1.)

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        num_cells: n, the side length of the grid; the length of the corridor in hall mode.
        num_steps: H, the number of steps of an episode.
        starting_state: start cell (x, y) of every episode; None draws it anew for every episode.
        ring: goals only on the perimeter. Otherwise goals keep a distance from the start of at least two cells.
        hall_with_door_every: d turns the grid into a corridor along y = 0 with a door cell above x = d, 2d, ...; the
            goal is behind a door.
        new_state_r: reward for the first visit, within a task, of a cell that could have been the goal.
        stuck: in hall mode, a door cell cannot be left until the episode ends.
        distance_reward: off the goal, pay minus the Manhattan distance to the goal over n instead of -0.1.
        show_goal_at_start: a step that ends on the start cell shows the goal's coordinates instead of the position.
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if options exclude each other or leave no goal cell.

    Example:
        >>> env = GridNavi(16, seed=3, publish=["belief"])
        >>> env.reset()["belief"].shape
        torch.Size([16, 25])
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 4,
        *,
        num_cells: int = 5,
        num_steps: int = 15,
        starting_state: Sequence[float] | None = (0.0, 0.0),
        ring: bool = False,
        hall_with_door_every: int | None = None,
        new_state_r: float | None = None,
        stuck: bool = False,
        distance_reward: bool = False,
        show_goal_at_start: bool = False,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        _check_sizes(num_cells, num_steps, hall_with_door_every)
        check_flags(ring=ring, stuck=stuck, distance_reward=distance_reward, show_goal_at_start=show_goal_at_start)
        _check_modes(starting_state, ring, hall_with_door_every, stuck, show_goal_at_start)
        super().__init__(
            num_envs,
            episodes_per_task,
            _layout(num_cells, num_steps, hall_with_door_every),
            _cells(num_cells, starting_state, ring, hall_with_door_every, stuck),
            Rewards(_GOAL_REWARD, new_state_r, _STEP_REWARD),
            **options,
        )
        self.num_cells = num_cells
        self.distance_reward = distance_reward
        self.show_goal_at_start = show_goal_at_start

    def _observe_step(self) -> Tensor:
        """Position, or the goal where the start shows it; at an episode's start it does not yet (quirk G3)."""
        position = self.state["position"]
        if self.show_goal_at_start:
            position = torch.where(position == self._start, self.state[keys.TASK], position)
        return self._coordinates.index_select(0, position)

    def _other_reward(self, position: Tensor, goal: Tensor, first_visit: Tensor | None) -> Tensor:
        if not self.distance_reward:
            return super()._other_reward(position, goal, first_visit)
        offset = embedding(position, self._coordinates) - embedding(goal, self._coordinates)
        reward = offset.abs().sum(-1) / -self.num_cells
        return reward if first_visit is None else torch.where(first_visit, self._bonus, reward)

    def _update_candidates(self, position: Tensor, reward: Tensor, first_visit: Tensor | None) -> None:
        super()._update_candidates(position, reward, first_visit)
        if self.show_goal_at_start:
            shown = (position == self._start).unsqueeze(-1)
            self.state["candidates"] &= ~shown | (self._goals == self.state[keys.TASK].unsqueeze(-1))


def _layout(n: int, num_steps: int, every: int | None) -> Layout:
    num_ids = n**2  # quirk G2: ids cover all cells of the square, in every mode
    return Layout(
        episode_length=num_steps,
        observation_low=(0.0, 0.0),
        observation_high=(n - 1.0, n - 1.0 if every is None else 1.0),
        num_actions=NUM_ACTIONS,
        task_dim=2,
        num_tasks=num_ids,
        num_states=num_ids,
        belief_dim=num_ids,
    )


def _cells(n: int, starting_state: Sequence[float] | None, ring: bool, every: int | None, stuck: bool) -> Cells:
    """Tables of the square, in hall mode with the cells that do not exist; cell (x, y) has number x * n + y."""
    strides = n, 1
    coordinates = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    start = None
    if starting_state is not None:
        x, y = start_coordinates(starting_state, n, in_hall=every is not None)
        start = x * n + y
    moves = grid_moves(coordinates, strides) if every is None else hall_moves(coordinates, strides, every, stuck)
    goals = _is_goal(coordinates, start, ring, every).nonzero().squeeze(-1)
    return Cells(coordinates, moves, goals, torch.arange(n * n), start)


def _is_goal(coordinates: Tensor, start: int | None, ring: bool, every: int | None) -> Tensor:
    """Whether the cells can be the goal, `[n * n]` (spec 4.4)."""
    if every is not None:
        return has_door(coordinates, every) & (coordinates[:, 1] == 1)
    if ring:
        is_goal = ((coordinates == 0) | (coordinates == coordinates.max())).any(-1)
        is_goal[start] = False
        return is_goal
    if start is None:
        return torch.ones(len(coordinates), dtype=torch.bool)
    return (coordinates - coordinates[start]).abs().amax(-1) > 1


def _check_sizes(num_cells: int, num_steps: int, every: int | None) -> None:
    check_positive("num_cells", num_cells)
    check_positive("num_steps", num_steps)
    if every is not None:
        check_positive("hall_with_door_every", every)


def _check_modes(
    starting_state: Sequence[float] | None, ring: bool, every: int | None, stuck: bool, show_goal_at_start: bool
) -> None:
    if every is not None and ring:
        raise ValueError(f"`hall_with_door_every` is {every!r}: expected null with `ring`")
    if stuck and every is None:
        raise ValueError("`stuck` is True: expected false without doors (`hall_with_door_every`)")
    fixed = {"ring": ring, "hall_with_door_every": every is not None, "show_goal_at_start": show_goal_at_start}
    for name, used in fixed.items():
        if used and starting_state is None:
            raise ValueError(f"`starting_state` is None: expected a cell, which `{name}` needs")


def _entry(name: str, description: str, *, landmarks: Sequence[float | None] = (), **kwargs: Any) -> EnvEntry:
    kwargs = {"episodes_per_task": 4, **kwargs}
    return EnvEntry(name, "hyperrl.envs.gridworld:GridNavi", description, kwargs, known_landmarks(*landmarks))


_MID7: dict[str, Any] = {"num_cells": 7, "starting_state": (3.0, 3.0)}
_RANDOM_START: dict[str, Any] = {"num_cells": 7, "num_steps": 20, "new_state_r": 0.1, "starting_state": None}

ENVS = (
    _entry("GridNavi-v0", "find a hidden goal in a 5x5 grid", landmarks=(-4.662, 16.0, 37.2143, 44.2857)),
    _entry(
        "GridNavi-dense-v0",
        "5x5 grid whose reward is the negative distance to the hidden goal",
        landmarks=(-42.328, None, 35.4762, 38.1333),
        distance_reward=True,
    ),
    _entry(
        "GridNavi-show_start-v0",
        "5x5 grid whose start cell shows the hidden goal",
        landmarks=(None, None, 43.1857, 44.2857),
        show_goal_at_start=True,
    ),
    _entry("Grid7-15-v0", "7x7 grid, start in the corner, 15 steps", num_cells=7),
    _entry("Grid7-21-v0", "7x7 grid, start in the corner, 21 steps", num_cells=7, num_steps=21),
    _entry("Grid7-15-mid-v0", "7x7 grid, start in the middle", **_MID7),
    _entry("Grid8-15-mid-v0", "8x8 grid, start near the middle", num_cells=8, starting_state=(3.0, 3.0)),
    _entry("Grid7-15-mid-ring-v0", "7x7 grid, goal on the perimeter", **_MID7, ring=True),
    _entry(
        "Grid7-15-mid-ring-newr-v0",
        "7x7 grid, goal on the perimeter, bonus for new perimeter cells",
        **_MID7,
        ring=True,
        new_state_r=0.1,
    ),
    _entry(
        "Grid25-50-mid-ring-newr-v0",
        "25x25 grid, goal on the perimeter, bonus for new perimeter cells",
        num_cells=25,
        num_steps=50,
        starting_state=(12.0, 12.0),
        ring=True,
        new_state_r=0.1,
    ),
    _entry(
        "Grid16-Hall1-H20-rshape-v0",
        "corridor of 16 cells, goal behind one of 15 doors, bonus for new doors",
        num_cells=16,
        num_steps=20,
        hall_with_door_every=1,
        new_state_r=0.1,
    ),
    _entry(
        "Grid60-Hall1-H80-rshape-v0",
        "corridor of 60 cells, goal behind one of 59 doors, bonus for new doors",
        num_cells=60,
        num_steps=80,
        hall_with_door_every=1,
        new_state_r=0.1,
    ),
    _entry("Grid7-20-newr-rands-v0", "7x7 grid, random start, bonus for new cells", **_RANDOM_START),
    _entry("Grid-20-newr-rands-v0", "the same as Grid7-20-newr-rands-v0 (quirk G7)", **_RANDOM_START),
)
