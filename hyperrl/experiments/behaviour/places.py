"""Where things are in the pictures of a meta-episode: what each family of environments has to draw a path on."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor

from hyperrl.envs import MetaEnv
from hyperrl.envs.gridworld import GridNavi
from hyperrl.envs.hall import Hall
from hyperrl.envs.metaworld import MetaWorld
from hyperrl.envs.mine_maze import MineMaze
from hyperrl.envs.mujoco.ant import AntGoal
from hyperrl.envs.mujoco.base import MujocoMetaEnv
from hyperrl.envs.planning_game import PlanningGame
from hyperrl.envs.point_robot import PointRobot, Semicircle
from hyperrl.envs.t_maze import TMaze

Kind = Literal["cells", "torus", "plane", "side", "corridor", "hand", "none"]


class Plan(TypedDict, total=False):
    """What a path is drawn on, as plain numbers and text, so that it can be kept in a file.

    Attributes:
        kind: cells with beliefs; a torus of cells; a plane; a robot's place and height over time; the place in a
            corridor over time; hand and object of an arm, as observations have them; or nothing.
        size: width and height of cells and torus.
        belief_cells: places (x, y) of the entries of a belief ``[G, 2]``.
        state_cells: places (x, y) of the states ``[S, 2]``.
        unit: of coordinates, such as m or cells; missing where they have none.
        goal: whether the task tells where a goal is.
    """

    kind: Kind
    size: list[int]
    belief_cells: list[list[int]]
    state_cells: list[list[int]]
    unit: str
    goal: bool


def plan_of(env: MetaEnv) -> Plan:
    """What the paths of an environment are drawn on.

    Args:
        env: any environment, after its first reset.
    """
    if isinstance(env, GridNavi):
        n = env.num_cells
        cells = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        height = int(env.observation_spec["observation"].space.high[0, 1]) + 1  # two rows in its hall mode
        return _cells([n, height], cells, cells)
    if isinstance(env, Hall):
        x = torch.arange(env.num_cells)
        corridor, doors = (torch.stack((x, torch.full_like(x, y)), -1) for y in (0, 1))
        return _cells([env.num_cells, 2], doors, torch.cat((corridor, doors)))
    if isinstance(env, PlanningGame):
        return {"kind": "torus", "size": [env.maze_size, env.maze_size], "goal": False}
    if isinstance(env, TMaze):
        return {"kind": "corridor", "goal": False}
    if isinstance(env, MetaWorld):
        return {"kind": "hand", "unit": "m", "goal": True}
    if isinstance(env, MujocoMetaEnv):
        kind: Kind = "plane" if env.robot == "ant" else "side"
        return {"kind": kind, "unit": "m", "goal": isinstance(env, AntGoal)}
    if isinstance(env, MineMaze):
        return {"kind": "plane", "unit": "cells", "goal": False}
    if "path" in env.state:
        return {"kind": "plane", "goal": isinstance(env, PointRobot | Semicircle)}
    return {"kind": "none", "goal": False}


def _cells(size: list[int], belief_cells: Tensor, state_cells: Tensor) -> Plan:
    places = {"belief_cells": belief_cells.tolist(), "state_cells": state_cells.tolist()}
    return {"kind": "cells", "size": size, "goal": True, **places}  # type: ignore[typeddict-item]
