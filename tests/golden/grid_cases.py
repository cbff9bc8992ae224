"""Golden trajectories of GridNavi."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from env_cases import ATOL, Arrays, build, compare, excluded, replay
from support import Golden

from hyperrl import keys
from hyperrl.envs.gridworld import GridNavi

PUBLISH = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF)


def run_grid(golden: Golden) -> None:
    """Assert that a file of family `grid` replays."""
    meta = golden.meta
    assert meta["time_limit"] is None
    env = build(golden, GridNavi, meta["kwargs"], PUBLISH)
    assert isinstance(env, GridNavi)
    assert env.episode_length == meta["horizon_mdp"]
    _inject(env, golden)
    actions = golden["actions"]
    other = torch.randint(env.num_actions or 0, actions.shape, generator=torch.Generator().manual_seed(0))
    ours = replay(env, actions, other)
    _assert_inputs(ours, golden, env.num_cells)
    expected = golden.arrays["belief"]
    for condition in excluded("grid"):
        expected = _CONDITIONS[condition](expected, golden.arrays, meta, ours["state_id"])
    compare(ours, golden, {"belief": expected})


def _inject(env: GridNavi, golden: Golden) -> None:
    """Row 0 gets the recorded task and start cells, row 1 a drawn task and the opposite corners."""
    other = env.sample_tasks(1)
    task = torch.stack((golden["task"], torch.cat((other // env.num_cells, other % env.num_cells))))
    env.inject("task", task)
    starts = golden["rand_reset_state"]
    if "start" in env.injectable:
        env.inject("start", *(torch.stack((start, env.num_cells - 1 - start)) for start in starts))


def _assert_inputs(ours: Arrays, golden: Golden, num_cells: int) -> None:
    """Start cells, task ids, and that the recorded belief follows the reference's rule (spec 4.7) with its hints."""
    inner_starts = ours["start_state"][~np.isnan(ours["start_state"][:, 0])]
    starts = np.concatenate((ours["obs"][:1, :2], inner_starts[:, :2]))
    np.testing.assert_array_equal(starts, golden["rand_reset_state"])
    goal = int(golden["task"][0] * num_cells + golden["task"][1])
    assert (ours["task_id"] == goal).all()
    recorded_beliefs = golden.arrays["belief"]
    belief = recorded_beliefs[0]
    steps = zip(ours["state_id"][1:], golden["rand_wrong_hint_id"].numpy(), recorded_beliefs[1:], strict=True)
    for cell, hint, recorded in steps:
        assert (hint >= 0) == (cell == goal)
        if cell == goal:
            belief = np.eye(belief.size)[[goal, hint]].mean(0)
        else:
            belief = np.where(np.arange(belief.size) == cell, 0.0, np.ceil(belief))
            belief = belief / belief.sum()
        np.testing.assert_allclose(recorded, belief, rtol=0, atol=ATOL)


# Differences on purpose: each turns a recorded array into what ours must give instead, where its condition holds.


def _goal_touched(belief: np.ndarray, arrays: Arrays, meta: Mapping[str, Any], positions: np.ndarray) -> np.ndarray:
    """Once a step has ended on the goal, the reward has told it: one-hot of the task."""
    touched = np.append(False, np.logical_or.accumulate(arrays["rand_wrong_hint_id"] >= 0))
    return _replaced(belief, touched, _one_hot(belief, arrays, meta))


def _goal_shown(belief: np.ndarray, arrays: Arrays, meta: Mapping[str, Any], positions: np.ndarray) -> np.ndarray:
    """Once a step has ended on a start cell that shows the goal: one-hot of the task."""
    if not meta["kwargs"].get("show_goal_at_start"):
        return belief
    shown = positions == _cell(arrays["rand_reset_state"][0], meta)
    shown[0] = False  # a reset shows nothing
    return _replaced(belief, np.logical_or.accumulate(shown), _one_hot(belief, arrays, meta))


def _distance_paid(belief: np.ndarray, arrays: Arrays, meta: Mapping[str, Any], positions: np.ndarray) -> np.ndarray:
    """A reward that is a distance leaves only the goals at that distance."""
    if not meta["kwargs"].get("distance_reward"):
        return belief
    n, bonus = meta["kwargs"].get("num_cells", 5), meta["kwargs"].get("new_state_r")
    x, y = np.divmod(np.arange(n * n), n)
    possible = belief[0] > 0
    visited = ~possible | (bonus is None)  # where no bonus can be had
    rows = [belief[0]]
    for reward, cell in zip(arrays["reward"], positions[1:], strict=True):
        distance = abs(x - x[cell]) + abs(y - y[cell])
        paid = -distance / n if visited[cell] else np.full(n * n, bonus)
        possible = possible & (abs(np.where(distance == 0, 1.0, paid) - reward) < ATOL)
        visited = visited | (distance == 0)
        rows.append(possible / max(possible.sum(), 1))
    return np.stack(rows)


def _cell(coordinates: np.ndarray, meta: Mapping[str, Any]) -> float:
    return coordinates[0] * meta["kwargs"].get("num_cells", 5) + coordinates[1]


def _one_hot(belief: np.ndarray, arrays: Arrays, meta: Mapping[str, Any]) -> np.ndarray:
    return np.eye(belief.shape[-1])[int(_cell(arrays["task"], meta))]


def _replaced(belief: np.ndarray, rows: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.where(rows[:, None], value, belief)


_CONDITIONS: dict[str, Callable[[np.ndarray, Arrays, Mapping[str, Any], np.ndarray], np.ndarray]] = {
    "from the first step that ends on the goal": _goal_touched,
    "from the first step that ends on a start cell that shows the goal": _goal_shown,
    "distance_reward is on": _distance_paid,
}
