"""Golden trajectories of environments: replay a recorded one in ours, with its random quantities injected.

A trajectory is played in row 0 of a batch of two; row 1 plays another task with other actions, so that a leak between
environments shows. Every array of a file is either compared or consumed; one that is neither fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict

from hyperrl import keys
from hyperrl.envs import MetaEnv, make_env
from hyperrl.envs.gridworld import GridNavi

ATOL = 1e-6
PUBLISH = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF)

Arrays = dict[str, np.ndarray]


class Recording(NamedTuple):
    """Our side of a trajectory, under the names of the recorded arrays."""

    arrays: Arrays
    positions: np.ndarray


def run_grid(arrays: Arrays, meta: Mapping[str, Any], exclusions: Iterable[Mapping[str, str]]) -> None:
    """Assert that a file of family `grid` replays.

    Args:
        arrays: all arrays of the file but `meta`.
        meta: its metadata.
        exclusions: the entries of `exclusions.yaml`; those of kind `grid` are applied.
    """
    assert meta["family"] == "grid"
    assert meta["env_type"] == "gym"
    assert meta["time_limit"] is None
    episodes = 1 if meta["level"] == "mdp" else meta["K"]
    env = _grid_env(meta, episodes)
    assert env.episode_length == meta["horizon_mdp"]
    _inject_grid(env, arrays)
    ours = _replay(env, arrays["actions"])
    _assert_inputs(ours, arrays, env.num_cells)

    expected = dict(arrays)
    for name in ("actions", "task", "rand_reset_state", "rand_wrong_hint_id"):
        expected.pop(name)  # inputs, see _assert_inputs
    for entry in exclusions:
        if entry["kind"] == "grid":
            name = entry["array"]
            expected[name] = _GRID_CONDITIONS[entry["condition"]](expected[name], arrays, meta, ours.positions)
    for name, value in expected.items():
        assert name in ours.arrays, f"array {name!r} is neither compared nor listed"
        np.testing.assert_allclose(ours.arrays[name], value, rtol=0, atol=ATOL, err_msg=name)


def _grid_env(meta: Mapping[str, Any], episodes: int) -> GridNavi:
    options = {"episodes_per_task": episodes, "publish": PUBLISH}
    if meta["registered"]:  # built from our table alone, which thereby is compared, too
        env = make_env(meta["env_id"], 2, **options)
        assert isinstance(env, GridNavi)
        return env
    return GridNavi(2, **options, **meta["kwargs"])


def _inject_grid(env: GridNavi, arrays: Arrays) -> None:
    """Row 0 gets the recorded task and start cells, row 1 a drawn task and the opposite corners."""
    other = env.sample_tasks(1)
    task = torch.stack((torch.tensor(arrays["task"]), torch.cat((other // env.num_cells, other % env.num_cells))))
    env.inject("task", task)
    if "start" in env.injectable:
        starts = torch.tensor(arrays["rand_reset_state"])
        env.inject("start", *(torch.stack((start, env.num_cells - 1 - start)) for start in starts))


def _replay(env: MetaEnv, actions: np.ndarray) -> Recording:
    """Play recorded actions; return what ours gives in row 0, under the names of the recorded arrays."""
    other = torch.randint(env.num_actions or 0, actions.shape, generator=torch.Generator().manual_seed(0))
    both = torch.stack((torch.tensor(actions), other), -1)
    frames, steps = [_frame(env.reset())], []
    for action in both:
        episode = int(env.state["episode"][0])
        td = env.step(TensorDict({keys.ACTION: action}, [env.num_envs]))[keys.NEXT]
        frames.append(_frame(td))
        steps.append(_step(env, td, episode))
    stacked = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    stacked |= {name: np.stack([step[name] for step in steps]) for step in steps[:1] for name in step}
    return Recording(stacked, stacked.pop("state_id"))


def _frame(td: TensorDict) -> Arrays:
    names = {"obs": keys.OBSERVATION, "task_vec": keys.TASK, "belief": keys.BELIEF, "state_id": keys.STATE_ID}
    return {name: td[key][0].numpy().astype(np.float64) for name, key in names.items()} | {
        "task_id": td[keys.TASK_ID][0].numpy()
    }


def _step(env: MetaEnv, td: TensorDict, episode: int) -> Arrays:
    done, episode_done = bool(td[keys.DONE][0]), bool(td[keys.EPISODE_DONE][0])
    absent = np.full(env.obs_dim, np.nan)
    start = absent
    if episode_done and not done:  # the next episode has begun within this step; its first observation has flag 0
        start = np.append(env.observe()[0].numpy(), 0.0)
    return {
        "reward": td[keys.REWARD][0, 0].numpy(),
        "done": np.array(done),
        "done_mdp": np.array(episode_done),
        "episode": np.array(episode),
        "start_state": start,
        "term_state": absent,  # "gym" type: the terminal observation is the returned one
    }


def _assert_inputs(ours: Recording, arrays: Arrays, num_cells: int) -> None:
    """Start cells, task ids, and that the recorded belief follows the reference's rule (spec 4.7) with its hints."""
    inner_starts = ours.arrays["start_state"][~np.isnan(ours.arrays["start_state"][:, 0])]
    starts = np.concatenate((ours.arrays["obs"][:1, :2], inner_starts[:, :2]))
    np.testing.assert_array_equal(starts, arrays["rand_reset_state"])
    goal = int(arrays["task"][0] * num_cells + arrays["task"][1])
    assert (ours.arrays.pop("task_id") == goal).all()
    belief = arrays["belief"][0]
    steps = zip(ours.positions[1:], arrays["rand_wrong_hint_id"], arrays["belief"][1:], strict=True)
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
    for reward, cell in zip(arrays["reward"], positions[1:].astype(int), strict=True):
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


_GRID_CONDITIONS: dict[str, Callable[[np.ndarray, Arrays, Mapping[str, Any], np.ndarray], np.ndarray]] = {
    "from the first step that ends on the goal": _goal_touched,
    "from the first step that ends on a start cell that shows the goal": _goal_shown,
    "distance_reward is on": _distance_paid,
}
