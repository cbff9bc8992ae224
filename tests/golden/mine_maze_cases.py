"""Golden trajectories of MineMaze: row 1 plays the opposite task, mirrored in the rooms, in front of other pillars."""

from __future__ import annotations

import numpy as np
import torch
from env_cases import build, compare, replay
from support import Golden
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.mine_maze import MineMaze
from hyperrl.envs.mine_maze_pictures import KEYS

UP, DOWN = 2, 3
GREEN_RED = [1, 0]


def run_mine(golden: Golden) -> None:
    """Assert that a file of family `mine` replays."""
    options = {"hide_signal": False, **golden.meta["kwargs"], **golden.meta["kwargs"]["config"]}
    del options["config"]
    assert options.pop("high_res") is False  # quirk M3
    env = build(golden, MineMaze, options, (keys.TASK, keys.TASK_ID))
    assert isinstance(env, MineMaze)
    assert env.episode_length == golden.meta["horizon_mdp"] - 1  # quirk M1
    assert tuple(golden.meta["obs_keys"]) == KEYS
    pictures = _pictures(golden)
    env.set_pictures(pictures)
    _inject(env, golden)
    actions = golden["actions"]
    in_room = torch.tensor(["/" in KEYS[key] for key in golden.arrays["obs_key"][:-1]])
    ours = replay(env, actions, torch.where(in_room, 2 - actions, actions))

    assert (ours["task_id"] == (golden.arrays["task"] == UP)).all()
    assert not ours["truncated"].any()
    assert not any(env._injected.values())
    ours["obs_key"] = _keys(ours["obs"], pictures)
    flagged = {"obs_done_flag": "obs", "start_state_flag": "start_state", "term_state_flag": "term_state"}
    compare(ours | {flag: ours[name][:, -1] for flag, name in flagged.items()}, golden)


def _pictures(golden: Golden) -> Tensor:
    """The recorded pictures; where there are none, pictures that differ in brightness."""
    recorded = golden.find("image_bank")
    if recorded is not None:
        return recorded
    return torch.arange(len(KEYS), dtype=torch.uint8).mul(11).view(-1, 1, 1, 1).expand(-1, 10, 10, 3)


def _keys(observations: np.ndarray, pictures: Tensor) -> np.ndarray:
    """Which picture is shown, `[T]`: the one that an observation is closest to."""
    views = (pictures.flip(1).double().flatten(1) - 128) / 128
    return torch.cdist(torch.from_numpy(observations[:, :300]), views).argmin(-1).numpy()


def _inject(env: MineMaze, golden: Golden) -> None:
    """Inject what the reference drew; row 1 gets the opposite task, and opposite pillars in the opposite order."""
    task, colours = golden["task"], golden["rand_indicator_green"].long()
    env.inject("task", torch.stack((task, UP + DOWN - task)))
    assert len(colours) == env.num_colours
    if not env.multi_step_indicator:
        assert (colours == (task == UP)).all()
    elif task == UP:  # the colours follow from the task; row 1 is given some
        assert colours.tolist() == GREEN_RED
        env.inject("colours", [0, 1])
    else:
        env.inject("colours", colours)
    env.inject("rooms", *(torch.stack((row, 1 - row.flip(0))) for row in golden["rand_room_types"]))
    if env.noise is not None:
        assert golden.meta["level"] == "mdp"  # an inner end draws twice, for the end and for the start
        steps = len(golden["actions"]) + 1
        noise = golden.find("rand_noise")
        env.inject("noise", *(torch.zeros(steps, 300) if noise is None else torch.stack((noise, -noise), 1)))
