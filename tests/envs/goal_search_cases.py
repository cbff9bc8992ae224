"""What the tests of GridNavi and Hall share: playing every goal at once, and the exact posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import make_env
from hyperrl.envs.goal_search import GoalSearch

STAY, UP, RIGHT, DOWN, LEFT = range(5)

Player = Callable[[TensorDict, Tensor], Tensor]
"""Chooses actions `[B]` from what the environment returned, and from where the agents stand after an inner reset."""


def steps(env: GoalSearch, actions: list[int]) -> list[tuple[tuple[int, ...], float]]:
    """Observation and reward of environment 0 after each action."""
    seen = []
    for action in actions:
        td = env.step(TensorDict({keys.ACTION: torch.full((env.num_envs,), action)}, [env.num_envs]))[keys.NEXT]
        seen.append((tuple(td[keys.OBSERVATION][0].int().tolist()), round(td[keys.REWARD][0, 0].item(), 6)))
    return seen


def every_goal(build: Callable[[int], GoalSearch]) -> GoalSearch:
    """One environment per goal; `build` takes the number of environments."""
    goals = build(1)._goals
    env = build(len(goals))
    env.inject("task", env._coordinates[goals])
    return env


def all_goals(env_id: str, **options: object) -> GoalSearch:
    """One environment of an id per goal."""
    return every_goal(lambda num_envs: make_env(env_id, num_envs, **options))


def episode_returns(env: GoalSearch, player: Player) -> Tensor:
    """Returns `[B, K]` of the episodes of one meta-episode."""
    td = env.reset()
    returns = torch.zeros(env.num_envs, env.episodes_per_task, dtype=torch.float64)
    for t in range(env.horizon):
        td[keys.ACTION] = player(td, env.coordinates())
        td = env.step(td)[keys.NEXT]
        returns[:, t // env.episode_length] += td.pop(keys.REWARD).squeeze(-1)
    assert td[keys.DONE].all()
    return returns


def random_player(seed: int) -> Player:
    """Plays uniformly random actions."""
    generator = torch.Generator().manual_seed(seed)
    return lambda td, position: torch.randint(5, td.batch_size, generator=generator)


def belief_sizes(build: Callable[[], GoalSearch], starts: Sequence[tuple[int, int]] = ()) -> set[int]:
    """Numbers of goals that beliefs hold possible along several sequences of actions; asserts that beliefs are exact.

    By definition, the posterior is uniform over the goals under which the same would have been seen up to now.

    Args:
        build: returns a new environment per goal, which publishes `belief` and `task_id`.
        starts: start cells of the episodes, where they are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for hold in (1, 3, 13):  # steps for which an action is kept, as random walks do not get far
        env = build()
        if starts:
            env.inject("start", *starts)
        actions = torch.randint(5, (env.horizon,), generator=generator).repeat_interleave(hold)
        if hold > 1:
            actions[:hold], actions[hold : 2 * hold] = RIGHT, UP  # away from the start
        sizes |= _sizes_along(env, actions[: env.horizon])
    return sizes


def _sizes_along(env: GoalSearch, actions: Tensor) -> set[int]:
    td = env.reset()
    goals = td[keys.TASK_ID]
    alike = torch.ones(len(goals), len(goals), dtype=torch.bool)
    sizes = set()
    for action in actions:
        expected = torch.zeros(len(goals), env.belief_dim)
        expected[:, goals] = alike / alike.sum(-1, keepdim=True)
        torch.testing.assert_close(td[keys.BELIEF], expected)
        sizes |= set(alike.sum(-1).tolist())
        td = env.step(TensorDict({keys.ACTION: action.expand(len(goals))}, [len(goals)]))[keys.NEXT]
        shown = torch.cat((td[keys.OBSERVATION], td[keys.REWARD]), -1)
        alike &= (shown.unsqueeze(0) == shown.unsqueeze(1)).all(-1)
    return sizes
