"""Golden trajectories of the point robots."""

from __future__ import annotations

import math

import numpy as np
import torch
from env_cases import ATOL, Arrays, build, compare, replay
from support import Golden
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import MetaEnv
from hyperrl.envs.point_robot import PointRobot, Semicircle, SparsePointRobot

FAMILIES = {"point": PointRobot, "spoint": SparsePointRobot, "semi": Semicircle}


def run_point_robot(golden: Golden) -> None:
    """Assert that a file of family `point`, `spoint` or `semi` replays.

    The recorded `bad_transition` marks the end of every episode at its time limit. Ours truncates there, which is
    visible at the end of the task.

    Args:
        golden: the file.
    """
    meta = golden.meta
    assert meta["time_limit"] == meta["horizon_mdp"]
    env = build(golden, FAMILIES[meta["family"]], meta["kwargs"], (keys.TASK,))
    assert env.episode_length == meta["time_limit"]
    _inject(env, golden)
    actions = golden["actions"]
    ours = replay(env, actions, actions * _mirror_of_actions(env))
    _assert_draws(ours, golden)
    np.testing.assert_array_equal(ours["truncated"], ours["done"])
    compare(ours | {"bad_transition": ours["done_mdp"]}, golden)


def _inject(env: MetaEnv, golden: Golden) -> None:
    """Row 0 gets the recorded draws; row 1 plays their mirror image at the y axis, so that goals are met together."""
    task = golden["task"]
    mirrored = task * torch.tensor([-1.0, 1.0, -1.0])[: len(task)]
    mirrored[2:] += math.pi
    env.inject(keys.TASK, torch.stack((task, mirrored)))
    if "start" in env.injectable:
        starts = torch.from_numpy(golden.arrays["rand_reset_state"])
        env.inject("start", *(torch.stack((start, start * _mirror_of_actions(env))) for start in starts))
    if "heading" in env.injectable:
        headings = golden["rand_reset_angle"]
        env.inject("heading", *torch.stack((headings, headings.sign() * math.pi - headings), -1))


def _mirror_of_actions(env: MetaEnv) -> Tensor:
    """Sideways moves change their sign, turns too."""
    return torch.tensor([1.0, -1.0] if isinstance(env, Semicircle) else [-1.0, 1.0])


def _assert_draws(ours: Arrays, golden: Golden) -> None:
    """Every episode begins as recorded, and headings are drawn exactly when they were."""
    begins = ours["done_mdp"] & ~ours["done"]
    recorded = golden["rand_reset_state"].numpy()
    starts = np.concatenate((ours["obs"][:1], ours["start_state"][begins]))[:, : recorded.shape[1]]
    np.testing.assert_allclose(starts, recorded, rtol=0, atol=ATOL)
    if "rand_reset_angle_step" in golden:
        contact = ours["reward"] == 1
        steps = [-1, *np.repeat(np.arange(len(contact)), contact.astype(int) + begins)]
        np.testing.assert_array_equal(steps, golden["rand_reset_angle_step"])
