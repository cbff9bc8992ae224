"""Golden trajectories of Hall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from env_cases import ATOL, Arrays, build, compare, excluded, replay
from support import Golden

from hyperrl import keys
from hyperrl.envs.hall import Hall

PUBLISH = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF)


def run_hall(golden: Golden) -> None:
    """Assert that a file of family `hall` replays."""
    meta = golden.meta
    assert meta["time_limit"] is None
    env = build(golden, Hall, meta["kwargs"], PUBLISH)
    assert isinstance(env, Hall)
    assert env.episode_length == meta["horizon_mdp"]
    other_door = env.sample_tasks(1) - env.num_cells
    env.inject("task", torch.stack((golden["task"], torch.cat((other_door, torch.ones_like(other_door))))))
    actions = golden["actions"]
    other = torch.randint(env.num_actions or 0, actions.shape, generator=torch.Generator().manual_seed(0))
    ours = replay(env, actions, other)
    _assert_inputs(ours, golden, env.num_cells)
    expected = golden.arrays["belief"]
    for condition in excluded("hall"):
        expected = _CONDITIONS[condition](expected, golden.arrays, meta)
    compare(ours, golden, {"belief": expected})


def _assert_inputs(ours: Arrays, golden: Golden, n: int) -> None:
    """Start cells, ids, and that the recorded belief follows the reference's rule (spec 5) with its hints."""
    inner_starts = ours["start_state"][~np.isnan(ours["start_state"][:, 0])]
    starts = np.concatenate((ours["obs"][:1, :2], inner_starts[:, :2]))
    np.testing.assert_array_equal(starts, golden["rand_reset_state"])
    goal = int(golden["task"][0])
    assert (ours["task_id"] == goal).all()
    x, y = golden.arrays["obs"][:, :2].T.astype(int)
    np.testing.assert_array_equal(ours["state_id"], x + n * y)
    recorded_beliefs = golden.arrays["belief"]
    belief = recorded_beliefs[0]
    steps = zip(x[1:], y[1:], golden["rand_wrong_hint_id"].numpy(), recorded_beliefs[1:], strict=True)
    for here, above, hint, recorded in steps:
        assert (hint >= 0) == (above == 1 and here == goal)
        if hint >= 0:
            belief = np.where(np.isnan(belief), np.nan, 0.0)
            belief[[goal, hint]] = 0.5
        else:
            belief = np.where(np.arange(2 * n) == here, 0.0, np.ceil(belief))
            with np.errstate(invalid="ignore"):
                belief = belief / belief.sum()  # 0 / 0 is recorded as NaN
        np.testing.assert_allclose(recorded, belief, rtol=0, atol=ATOL)


# Differences on purpose: each turns a recorded array into what ours must give instead, where its condition holds.


def _second_half(belief: np.ndarray, arrays: Arrays, meta: Mapping[str, Any]) -> np.ndarray:
    """One entry per task id."""
    first, second = np.split(belief, 2, axis=1)
    assert not np.nan_to_num(second).any()
    return first


def _door_passed(belief: np.ndarray, arrays: Arrays, meta: Mapping[str, Any]) -> np.ndarray:
    """Uniform over the doors under which every reward would have been what it was."""
    options = {"hall_with_door_every": 1, "new_state_r": None, "success_r": 1, "constant_r": -0.1, **meta["kwargs"]}
    every, bonus = options["hall_with_door_every"], options["new_state_r"]
    doors = np.arange(belief.shape[1])
    possible = (doors > 0) & (doors % every == 0)
    visited = ~possible | (bonus is None)  # where no bonus can be had
    rows, passed = [belief[0]], False
    for (x, y), reward, recorded in zip(arrays["obs"][1:, :2].astype(int), arrays["reward"], belief[1:], strict=True):
        passed = passed or (x > 0 and x % every == 0)
        paid = np.full(len(doors), options["constant_r"] if y == 0 or visited[x] else bonus)
        paid[x] = options["success_r"] if y == 1 else paid[x]
        possible = possible & (abs(paid - reward) < ATOL)
        visited = visited | ((doors == x) & (y == 1))
        rows.append(possible / possible.sum() if passed else recorded)
    return np.stack(rows)


_CONDITIONS: dict[str, Callable[[np.ndarray, Arrays, Mapping[str, Any]], np.ndarray]] = {
    "entries from n on": _second_half,
    "from the first step that ends at the x of a door": _door_passed,
}
