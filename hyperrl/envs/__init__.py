"""Environments: native batched TorchRL environments, named in Gymnasium's registry as `hyperrl/<id>`.

A new family is one file with a `MetaEnv` subclass and a table `ENVS`, and its name in the tuple below.
"""

from __future__ import annotations

from hyperrl.envs import gridworld, hall, metaworld, mine_maze, planning_game, point_robot, t_maze
from hyperrl.envs.base import MetaEnv
from hyperrl.envs.gymnasium import GymnasiumMetaEnv
from hyperrl.envs.mujoco import ant, half_cheetah, random_physics
from hyperrl.envs.registration import EnvEntry, description, env_ids, landmarks, make_env, register_family

__all__ = [
    "EnvEntry",
    "GymnasiumMetaEnv",
    "MetaEnv",
    "description",
    "env_ids",
    "landmarks",
    "make_env",
    "register_family",
]

for _family in (
    gridworld,
    hall,
    t_maze,
    mine_maze,
    planning_game,
    point_robot,
    half_cheetah,
    ant,
    random_physics,
    metaworld,
):
    register_family(_family.ENVS)
