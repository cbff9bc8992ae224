"""Golden trajectories of the planning game."""

from __future__ import annotations

import torch
from env_cases import build, compare, replay
from support import Golden
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.planning_game import PlanningGame

COLLECT = 4
MIRRORED = torch.tensor([1, 0, 3, 2, COLLECT])  # up, down, left, right, collect


def run_planning_game(golden: Golden) -> None:
    """Assert that a file of family `plan` replays.

    Positions and goals after the reset are inputs only where they are drawn; all of them are compared, too.

    Args:
        golden: the file.
    """
    meta = golden.meta
    assert meta["time_limit"] is None
    env = build(golden, PlanningGame, meta["kwargs"], (keys.TASK,))
    assert isinstance(env, PlanningGame)
    assert env.episode_length == meta["horizon_mdp"]
    env.record_path = True
    actions = golden["actions"]
    _inject(env, golden, actions)
    ours = replay(env, actions, MIRRORED[actions])
    assert not ours["truncated"].any()
    compare(ours | {"position": env.path(0).numpy(), "goal": ours["task_vec"]}, golden)


def _inject(env: PlanningGame, golden: Golden, actions: Tensor) -> None:
    """Row 0 gets the recorded draws; row 1 plays their mirror image, so that both collect together, on another map."""
    position, goal = (torch.from_numpy(golden.arrays[name]) for name in ("position", "goal"))
    labels = golden["rand_labels"]
    env.inject("labels", torch.stack((labels, labels.roll(1))))
    env.inject(keys.TASK, _with_mirror(golden["task"], env))
    env.inject("position", _with_mirror(position[0], env))
    collected = (actions == COLLECT) & (position[:-1] == goal[:-1]).all(-1)
    assert collected.any()
    for t in collected.nonzero().squeeze(-1) + 1:
        env.inject("goal", _with_mirror(goal[t], env))
        if env.random_respawn:
            env.inject("position", _with_mirror(position[t], env))


def _with_mirror(cell: Tensor, env: PlanningGame) -> Tensor:
    return torch.stack((cell, env.maze_size - 1 - cell))
