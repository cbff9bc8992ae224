"""GridNavi: find a hidden goal cell in a grid (`spec/envs-navigation.md` section 4), as lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import embedding

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_positive, is_number
from hyperrl.envs.registration import EnvEntry

_MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # stay, up, right, down, left
_NUM_ACTIONS = len(_MOVES)
_GOAL_REWARD = 1.0
_STEP_REWARD = -0.1


class GridNavi(MetaEnv):
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
        _check_sizes(num_cells, num_steps, new_state_r, hall_with_door_every)
        check_flags(ring=ring, stuck=stuck, distance_reward=distance_reward, show_goal_at_start=show_goal_at_start)
        _check_modes(starting_state, ring, hall_with_door_every, stuck, show_goal_at_start)
        start = None if starting_state is None else _start_cell(starting_state, num_cells, hall_with_door_every)
        layout = _layout(num_cells, num_steps, hall_with_door_every)
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.num_cells = num_cells
        self.new_state_r = new_state_r
        self.distance_reward = distance_reward
        self.show_goal_at_start = show_goal_at_start
        self.injectable = ("task", "start") if start is None else ("task",)
        self._random_start = start is None
        goals = _goal_cells(num_cells, start, ring, hall_with_door_every)
        self._moves = _move_table(num_cells, hall_with_door_every, stuck).flatten().to(self.device)
        self._coordinates = _coordinates(num_cells).to(self.device, torch.float32)
        self._goals = goals.to(self.device)
        self._tasks = self.split_tasks(goals).to(self.device)
        self._make_constants(start)

    def _make_constants(self, start: int | None) -> None:
        # 0-dimensional tensors, because a Python number in torch.where becomes one in every call.
        self._start = torch.tensor(-1 if start is None else start, device=self.device)
        self._goal_reward = torch.tensor(_GOAL_REWARD, dtype=torch.float32, device=self.device)
        self._step_reward = torch.tensor(_STEP_REWARD, dtype=torch.float32, device=self.device)
        self._true = torch.tensor(True, device=self.device)
        if self.new_state_r is not None:
            self._bonus = torch.tensor(self.new_state_r, dtype=torch.float32, device=self.device)
            # Cells that can never earn the bonus count as visited from the start.
            self._no_bonus = torch.ones(1, self.num_cells**2, dtype=torch.bool, device=self.device)
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
        """Position `[B, 2]`; even if the start shows the goal, it does so only after a step (quirk G3)."""
        return self._coordinates.index_select(0, self.state["position"])

    def transition(self, action: Tensor) -> Transition:
        """Move, and pay for where the move ends."""
        state = self.state
        goal = state[keys.TASK]
        position = self._moves.index_select(0, torch.add(action, state["position"], alpha=_NUM_ACTIONS))
        state["position"] = position
        step = state["step"] + 1
        state["step"] = step
        first_visit = None if self.new_state_r is None else self._first_visit(position)
        reward = self._reward(position, goal, first_visit)
        shown = torch.where(position == self._start, goal, position) if self.show_goal_at_start else position
        if keys.BELIEF in self.publish:
            self._update_candidates(position, reward, first_visit)
        episode_done = step >= self.episode_length
        return Transition(self._coordinates.index_select(0, shown), reward, episode_done, episode_done)

    def _first_visit(self, position: Tensor) -> Tensor:
        """Whether the cell earns the bonus, `[B]`; marks it visited."""
        visited = self.state["visited"]
        cell = position.unsqueeze(-1)
        first_visit = ~visited.gather(1, cell).squeeze(-1)
        visited.scatter_(1, cell, True)
        return first_visit

    def _reward(self, position: Tensor, goal: Tensor, first_visit: Tensor | None) -> Tensor:
        """Reward for a step that ends on `position` if the goal is `goal` (spec 4.5); the arguments broadcast."""
        reward = self._step_reward
        if self.distance_reward:
            offset = embedding(position, self._coordinates) - embedding(goal, self._coordinates)
            reward = offset.abs().sum(-1) / -self.num_cells
        if first_visit is not None:
            reward = torch.where(first_visit, self._bonus, reward)
        return torch.where(position == goal, self._goal_reward, reward)

    def _update_candidates(self, position: Tensor, reward: Tensor, first_visit: Tensor | None) -> None:
        """Keep the goals `[B, G]` under which the agent would have seen what it has seen in this step."""
        here = position.unsqueeze(-1)
        if first_visit is not None:
            first_visit = first_visit.unsqueeze(-1)
        possible = self._reward(here, self._goals, first_visit) == reward.unsqueeze(-1)
        if self.show_goal_at_start:
            possible &= (here != self._start) | (self._goals == self.state[keys.TASK].unsqueeze(-1))
        self.state["candidates"] = self.state["candidates"] & possible

    def _random_cells(self) -> Tensor:
        return torch.randint(self.num_cells**2, (self.num_envs,), generator=self._generator, device=self.device)

    # What can be published and injected --------------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Goal coordinates `[B, 2]`."""
        return self._coordinates.index_select(0, self.state[keys.TASK])

    def publish_task_id(self) -> Tensor:
        """Number of the goal cell `[B]`."""
        return self.state[keys.TASK].clone()

    def publish_state_id(self) -> Tensor:
        """Number of the cell in which the last step ended `[B]`, also where the observation shows the goal."""
        return self.state["position"].clone()

    def publish_belief(self) -> Tensor:
        """Posterior over the goal cell `[B, n * n]`."""
        candidates = self.state["candidates"].to(torch.float32)
        belief = candidates.new_zeros(self.num_envs, self.num_cells**2)
        belief[:, self._goals] = candidates / candidates.sum(-1, keepdim=True)
        return belief

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Turn cell coordinates, `[2]` or `[B, 2]`, into cell numbers `[B]`; a task must be a goal cell (quirk G9)."""
        if value.shape not in ((2,), (self.num_envs, 2)):
            raise ValueError(f"injected {name} has shape {tuple(value.shape)}: expected (2,) or ({self.num_envs}, 2)")
        on_grid = ((value >= 0) & (value < self.num_cells) & (value == value.round())).all()
        cells = (value[..., 0] * self.num_cells + value[..., 1]).to(torch.int64)
        if not on_grid or (name == "task" and not torch.isin(cells, self._goals).all()):
            expected = "goal cells" if name == "task" else "cells of the grid"
            raise ValueError(f"injected {name} is {value.tolist()}: expected {expected} of this environment")
        return cells.expand(self.num_envs)


def _layout(n: int, num_steps: int, every: int | None) -> Layout:
    num_ids = n**2  # quirk G2: ids cover all cells of the square, in every mode
    return Layout(
        episode_length=num_steps,
        observation_low=(0.0, 0.0),
        observation_high=(n - 1.0, n - 1.0 if every is None else 1.0),
        num_actions=_NUM_ACTIONS,
        task_dim=2,
        num_tasks=num_ids,
        num_states=num_ids,
        belief_dim=num_ids,
    )


def _coordinates(n: int) -> Tensor:
    """Coordinates of all cells `[n * n, 2]`, int64; cell (x, y) has number x * n + y."""
    return torch.cartesian_prod(torch.arange(n), torch.arange(n))


def _move_table(n: int, every: int | None, stuck: bool) -> Tensor:
    """Number of the cell in which a move ends `[n * n, 5]` (spec 4.2)."""
    coordinates = _coordinates(n)
    target = (coordinates.unsqueeze(1) + torch.tensor(_MOVES)).clamp(0, n - 1)
    table = target[..., 0] * n + target[..., 1]
    if every is None:
        return table
    # A corridor y = 0 with door cells (x, 1) above x = every, 2 * every, ...
    x, y = coordinates.unbind(-1)
    door = (x > 0) & (x % every == 0)
    corridor = y == 0
    leave = (y == 1) & door & (not stuck)
    allowed = torch.stack((torch.ones_like(door), corridor & door, corridor, leave, corridor), -1)
    return torch.where(allowed, table, torch.arange(n * n).unsqueeze(-1))


def _goal_cells(n: int, start: int | None, ring: bool, every: int | None) -> Tensor:
    """Numbers of the cells that can be the goal `[G]` (spec 4.4)."""
    coordinates = _coordinates(n)
    x, y = coordinates.unbind(-1)
    if every is not None:
        is_goal = (y == 1) & (x > 0) & (x % every == 0)
    elif ring:
        is_goal = (coordinates == 0).any(-1) | (coordinates == n - 1).any(-1)
        is_goal[start] = False
    elif start is None:
        is_goal = torch.ones(n * n, dtype=torch.bool)
    else:
        is_goal = (coordinates - coordinates[start]).abs().amax(-1) > 1
    goals = is_goal.nonzero().squeeze(-1)
    if not len(goals):
        raise ValueError(f"no cell can be the goal: `num_cells` ({n}) is too small for the other options")
    return goals


def _start_cell(starting_state: Sequence[float], n: int, every: int | None) -> int:
    if (
        not isinstance(starting_state, Sequence)
        or len(starting_state) != 2
        or any(c not in range(n) for c in starting_state)
    ):
        raise ValueError(f"`starting_state` is {starting_state!r}: expected two whole numbers from 0 to {n - 1}")
    x, y = (int(c) for c in starting_state)
    if every is not None and y != 0:
        raise ValueError(f"`starting_state` is {starting_state!r}: `hall_with_door_every` expects a start with y = 0")
    return x * n + y


def _check_sizes(num_cells: int, num_steps: int, new_state_r: float | None, every: int | None) -> None:
    check_positive("num_cells", num_cells)
    check_positive("num_steps", num_steps)
    if every is not None:
        check_positive("hall_with_door_every", every)
    if new_state_r is not None and not is_number(new_state_r):
        raise ValueError(f"`new_state_r` is {new_state_r!r}: expected a finite number or null")


def _check_modes(
    starting_state: Sequence[float] | None, ring: bool, every: int | None, stuck: bool, show_goal_at_start: bool
) -> None:
    if every is not None and ring:
        raise ValueError(f"`ring` and `hall_with_door_every` ({every!r}) exclude each other")
    if stuck and every is None:
        raise ValueError("`stuck` needs doors: expected `hall_with_door_every` to be set")
    fixed = {"ring": ring, "hall_with_door_every": every is not None, "show_goal_at_start": show_goal_at_start}
    for name, used in fixed.items():
        if used and starting_state is None:
            raise ValueError(f"`{name}` needs a fixed start: expected `starting_state` not to be null")


_LANDMARKS = ("random", "within_episode_memory", "bayes_optimal", "task_known")


def _entry(name: str, description: str, *, landmarks: Sequence[float | None] = (), **kwargs: Any) -> EnvEntry:
    known = {key: value for key, value in zip(_LANDMARKS, landmarks, strict=False) if value is not None}
    return EnvEntry(name, "hyperrl.envs.gridworld:GridNavi", description, {"episodes_per_task": 4, **kwargs}, known)


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
