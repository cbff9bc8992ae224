"""Hall: find the right door along a corridor (`spec/envs-navigation.md` section 5), as lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from hyperrl.envs.goal_search import NUM_ACTIONS, Cells, GoalSearch, Rewards, hall_moves, has_door, start_coordinates
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_positive
from hyperrl.envs.registration import EnvEntry

_UP = 1


class Hall(GoalSearch):
    """An agent in a corridor of n cells looks for the goal door; the task is the door, uniform over all doors.

    The corridor is y = 0, and a door is a cell (x, 1) above it. Actions: 0 stay, 1 up (through a door), 2 right, 3 down
    (back into the corridor), 4 left. The observation is the position (x, y). Every step that ends on the goal door pays
    `success_r`; an episode lasts exactly `num_steps` steps, which belongs to the task: the meta-episode's end is a
    termination. Tasks (x, 1) are numbered x; cells and states are numbered x + n * y.

    `belief` is the exact posterior over x, given every observation and reward of the task so far, with all doors as the
    prior, whatever `task_split` says: a door is excluded by entering it. (In the reference walking below a door
    excludes it, quirk H2.)

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        num_cells: n, the length of the corridor.
        num_steps: H, the number of steps of an episode.
        starting_state: start cell (x, 0) of every episode.
        hall_with_door_every: d puts doors above x = d, 2d, ...
        new_state_r: reward for the first visit, within a task, of a door that is not the goal.
        obs_checked: append to the observation whether the cell above is a door that was not visited in this task.
            Visits are recorded only if `new_state_r` is set; without it the element is 1 below every door (quirk H4).
        stuck: a door cell cannot be left until the episode ends.
        success_r: reward for every step that ends on the goal.
        constant_r: reward for any other step.
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an argument is out of range, or there is no door.

    Example:
        >>> env = Hall(16, seed=3, num_cells=6, publish=["belief"])
        >>> env.reset()["belief"][0]
        tensor([0.0000, 0.2000, 0.2000, 0.2000, 0.2000, 0.2000])
    """

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 4,
        *,
        num_cells: int = 5,
        num_steps: int = 15,
        starting_state: Sequence[float] = (0.0, 0.0),
        hall_with_door_every: int = 1,
        new_state_r: float | None = None,
        obs_checked: bool = False,
        stuck: bool = False,
        success_r: float = 1.0,
        constant_r: float = -0.1,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_positive("num_cells", num_cells)
        check_positive("num_steps", num_steps)
        check_positive("hall_with_door_every", hall_with_door_every)
        check_flags(obs_checked=obs_checked, stuck=stuck)
        cells = _cells(num_cells, starting_state, hall_with_door_every, stuck)
        super().__init__(
            num_envs,
            episodes_per_task,
            _layout(num_cells, num_steps, obs_checked),
            cells,
            Rewards(success_r, new_state_r, constant_r),
            **options,
        )
        self.num_cells = num_cells
        self.obs_checked = obs_checked
        if obs_checked:
            above = cells.moves[:, _UP]
            self._above = above.to(self.device).unsqueeze(-1)
            self._door_above = (above != torch.arange(2 * num_cells)).to(self.device).unsqueeze(-1)

    def observe(self) -> Tensor:
        """Position and, if asked for, whether there is an unvisited door above, `[B, O]`."""
        observation = self.coordinates()
        if not self.obs_checked:
            return observation
        position = self.state["position"]
        unchecked = self._door_above.index_select(0, position)
        if self.new_state_r is not None:
            unchecked = unchecked & ~self.state["visited"].gather(1, self._above.index_select(0, position))
        return torch.cat((observation, unchecked.to(observation.dtype)), -1)


def _layout(n: int, num_steps: int, obs_checked: bool) -> Layout:
    return Layout(
        episode_length=num_steps,
        observation_low=(0.0,) * (2 + obs_checked),
        observation_high=(n - 1.0, *(1.0,) * (1 + obs_checked)),
        num_actions=NUM_ACTIONS,
        task_dim=2,
        num_tasks=n,
        num_states=2 * n,
        belief_dim=n,
    )


def _cells(n: int, starting_state: Sequence[float], every: int, stuck: bool) -> Cells:
    """Tables of both rows, with the cells above the corridor that do not exist; cell (x, y) has number x + n * y."""
    coordinates = torch.cartesian_prod(torch.arange(2), torch.arange(n)).flip(-1)
    start, _ = start_coordinates(starting_state, n, in_hall=True)
    goals = (has_door(coordinates, every) & (coordinates[:, 1] == 1)).nonzero().squeeze(-1)
    return Cells(coordinates, hall_moves(coordinates, (1, n), every, stuck), goals, coordinates[:, 0], start)


def _entry(name: str, description: str, landmarks: tuple[float, float], **kwargs: Any) -> EnvEntry:
    sizes = {"episodes_per_task": 4, "num_cells": 60, "hall_with_door_every": 1}
    known = dict(zip(("bayes_optimal", "task_known"), landmarks, strict=True))
    return EnvEntry(name, "hyperrl.envs.hall:Hall", description, {**sizes, **kwargs}, known)


# The landmarks are not published; docs/envs/hall.md derives them.
ENVS = (
    _entry(
        "Hall-L60H80-rshape-v0",
        "corridor with 59 doors, 80 steps, bonus for new doors",
        (142.7525, 188.0),
        num_steps=80,
        new_state_r=0.1,
    ),
    _entry(
        "Hall-L60H200-rshape-v0",
        "corridor with 59 doors, 200 steps, bonus for new doors",
        (610.0, 668.0),
        num_steps=200,
        new_state_r=0.1,
    ),
    _entry("Hall-L60H200-v0", "corridor with 59 doors, 200 steps", (604.2, 668.0), num_steps=200),
    _entry(
        "Hall-L60H200-obs-rshape-v0",
        "corridor with 59 doors, 200 steps, bonus for new doors, which are shown",
        (610.0, 668.0),
        num_steps=200,
        new_state_r=0.1,
        obs_checked=True,
    ),
    _entry(
        "Hall-L60H200-obs-v0",
        "corridor with 59 doors, which are shown, 200 steps",
        (604.2, 668.0),
        num_steps=200,
        obs_checked=True,
    ),
    _entry(
        "Hall-L60H200-obs-rshape5x-v0",
        "corridor with 59 doors, 200 steps, bonus for new doors, which are shown, goal reward 5",
        (3098.0, 3388.0),
        num_steps=200,
        new_state_r=0.1,
        obs_checked=True,
        success_r=5.0,
    ),
)
