"""Golden trajectories of the T-Maze: row 1 plays the opposite task, with opposite checks, echoes and decisions."""

from __future__ import annotations

import numpy as np
import torch
from env_cases import build, compare, replay
from support import Golden
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import pad

from hyperrl import keys
from hyperrl.envs.t_maze import TMaze

UP, DOWN = 2, 3


def run_tmaze(golden: Golden) -> None:
    """Assert that a file of family `tmaze` replays."""
    env = build(golden, TMaze, golden.meta["kwargs"]["config"], (keys.TASK, keys.TASK_ID))
    assert isinstance(env, TMaze)
    assert env.episode_length == golden.meta["horizon_mdp"]
    _inject(env, golden)
    positions = _record_positions(env)
    actions = golden["actions"].to(torch.int64)
    # Left and right stay: both rows wait, go back and are forced alike.
    ours = replay(env, actions, torch.where(actions >= UP, _opposite(actions), actions))

    first, second = (*golden.arrays["task_vec"][0], DOWN)[:2]
    assert (ours["task_id"] == (first == UP) + 2 * (second == UP)).all()
    assert not ours["truncated"].any()
    assert not any(env._injected.values())
    compare({**ours, "position": np.array(positions)}, golden)


def _inject(env: TMaze, golden: Golden) -> None:
    """Inject what the reference drew; where it drew nothing, a cell has no check and any value does."""
    env.inject("task", _both(golden["task"]))
    length = int(golden["rand_maze_length"])
    if "maze_length" in env.injectable:
        assert golden.meta["level"] == "mdp"  # one episode, so row 1 may have another length
        env.inject("maze_length", [length, env.longest])
    assert length == env.maze_length or "maze_length" in env.injectable
    checks = golden.find("rand_checks_reset")
    assert (checks is not None) == ("checks" in env.injectable)
    if checks is not None:
        last = torch.arange(length) == length - 1
        assert torch.equal(checks == 0, (last & (not env.final_intermediate_indicator)).expand_as(checks))
        checks = pad(checks, (0, env.longest - length)).clamp(min=UP)
        env.inject("checks", *(_both(row) for row in checks))
    drawn = golden["rand_check_step"]
    if "check" in env.injectable:
        assert torch.equal(drawn == -1, torch.from_numpy(_step_ends_at_a_cell_without_check(env, golden, length)))
        env.inject("check", *(_both(check) for check in drawn.clamp(min=UP)))
    else:
        assert (drawn == -1).all()


def _step_ends_at_a_cell_without_check(env: TMaze, golden: Golden, length: int) -> np.ndarray:
    position = golden.arrays["position"]
    episode_done = golden.arrays.get("done_mdp", golden.arrays["done"])
    # The step that ends an episode does not move; the recorded position is the one in the next episode.
    place = np.where(episode_done, position[:-1], position[1:])
    return (place == length - 1) & (not env.final_intermediate_indicator)


def _record_positions(env: TMaze) -> list[int]:
    """Let the environment record the position in row 0 after a reset and each step."""
    positions: list[int] = []

    def recording(method: str) -> None:
        original = getattr(env, method)

        def spy(*args: TensorDictBase) -> TensorDictBase:
            result: TensorDictBase = original(*args)
            positions.append(int(env.state["position"][0]))
            return result

        setattr(env, method, spy)

    for method in ("_reset", "_step"):
        recording(method)
    return positions


def _both(value: Tensor) -> Tensor:
    """A row of directions and the opposite ones `[2, ...]`."""
    return torch.stack((value, _opposite(value)))


def _opposite(direction: Tensor) -> Tensor:
    return UP + DOWN - direction
