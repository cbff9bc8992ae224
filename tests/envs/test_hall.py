"""Hall: rules, options, beliefs, sampling laws and what players can earn."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from goal_search_cases import (
    DOWN,
    LEFT,
    RIGHT,
    STAY,
    UP,
    all_goals,
    belief_sizes,
    episode_returns,
    every_goal,
    random_player,
    steps,
)
from matplotlib.figure import Figure
from sampling import assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import landmarks, make_env
from hyperrl.envs.hall import ENVS, Hall

HALL_IDS = [entry.id for entry in ENVS]


def hall(door: int, *episodes_per_task: int, **options: object) -> Hall:
    """One reset hall whose goal is behind the door above x = `door`."""
    env = Hall(1, *episodes_per_task, fixed_task=(door, 1), **options)
    env.reset()
    return env


class TestRules:
    """Moves, rewards and ends (spec 5)."""

    def test_doors_are_entered_from_below_and_left_downwards(self) -> None:
        env = hall(6, 1, num_cells=7, hall_with_door_every=3, num_steps=30)
        actions = [UP, DOWN, LEFT, RIGHT, RIGHT, UP, RIGHT, UP, STAY, UP, LEFT, RIGHT, DOWN]
        seen = [observation for observation, _ in steps(env, actions)]
        below, door = (3, 0), (3, 1)
        assert seen == [*[(0, 0)] * 3, (1, 0), (2, 0), (2, 0), below, *[door] * 5, below]
        assert [observation for observation, _ in steps(env, [RIGHT] * 5)] == [(4, 0), (5, 0), *[(6, 0)] * 3]

    def test_rewards(self) -> None:
        env = hall(2, 1, num_cells=4, success_r=5.0, constant_r=-0.3)
        paid = [reward for _, reward in steps(env, [RIGHT, UP, DOWN, RIGHT, UP, STAY, LEFT, DOWN])]
        assert paid == [-0.3] * 4 + [5.0] * 3 + [-0.3]

    def test_bonus_is_paid_once_per_task_and_never_for_the_goal(self) -> None:
        env = hall(2, 2, num_cells=4, num_steps=6, new_state_r=0.2)
        first = [reward for _, reward in steps(env, [RIGHT, UP, STAY, DOWN, RIGHT, UP])]
        assert first == [-0.1, 0.2, -0.1, -0.1, -0.1, 1.0]
        second = [reward for _, reward in steps(env, [RIGHT, UP, DOWN, RIGHT, UP, DOWN])]
        assert second == [-0.1, -0.1, -0.1, -0.1, 1.0, -0.1]
        env.reset()
        assert [reward for _, reward in steps(env, [RIGHT, UP])] == [-0.1, 0.2]

    def test_stuck_lasts_until_the_episode_ends(self) -> None:
        env = hall(3, 2, num_cells=4, num_steps=4, stuck=True)
        seen = [observation for observation, _ in steps(env, [RIGHT, UP, DOWN, LEFT, RIGHT])]
        assert seen == [(1, 0, 0), (1, 1, 0), (1, 1, 0), (1, 1, 1), (1, 0, 0)]

    def test_start_in_the_corridor(self) -> None:
        env = hall(3, 2, num_cells=5, num_steps=2, starting_state=(4, 0))
        assert env.observe().tolist() == [[4, 0]]
        assert [observation for observation, _ in steps(env, [LEFT, UP, LEFT])] == [(3, 0, 0), (3, 1, 1), (3, 0, 0)]

    @pytest.mark.parametrize("env_id", HALL_IDS)
    def test_meta_episodes_take_all_their_steps_and_terminate(self, env_id: str) -> None:
        env = make_env(env_id, 2, episodes_per_task=2)
        after = env.rollout(env.horizon + 1, break_when_any_done=False)[keys.NEXT]
        ends = after[keys.EPISODE_DONE][0, :, 0].nonzero().squeeze(-1).tolist()
        assert ends == [env.episode_length - 1, env.horizon - 1]
        assert after[keys.DONE][0, :, 0].nonzero().squeeze(-1).tolist() == [env.horizon - 1]
        assert torch.equal(after[keys.TERMINATED], after[keys.DONE])

    def test_observations_are_copies(self) -> None:
        env = hall(3)
        env.observe().fill_(9)
        assert env.observe().tolist() == [[0, 0]]


class TestUncheckedDoor:
    """The element that shows an unvisited door above (`obs_checked`)."""

    def test_it_clears_with_the_first_visit_in_the_task(self) -> None:
        env = hall(4, 2, num_cells=7, num_steps=6, hall_with_door_every=2, obs_checked=True, new_state_r=0.1)
        assert env.observe().tolist() == [[0, 0, 0]]
        seen = [observation for observation, _ in steps(env, [RIGHT, RIGHT, UP, DOWN, RIGHT, RIGHT])]
        assert seen == [(1, 0, 0, 0), (2, 0, 1, 0), (2, 1, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0), (4, 0, 1, 1)]
        seen = [observation for observation, _ in steps(env, [RIGHT] * 4 + [UP, DOWN])]
        assert seen == [(1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0), (4, 0, 1, 0), (4, 1, 0, 0), (4, 0, 0, 1)]
        env.reset()
        assert steps(env, [RIGHT, RIGHT])[1][0] == (2, 0, 1, 0)

    def test_the_start_is_below_a_door(self) -> None:
        env = hall(3, 2, num_cells=5, num_steps=2, starting_state=(2, 0), obs_checked=True, new_state_r=0.1)
        assert env.observe().tolist() == [[2, 0, 1]]
        steps(env, [UP, STAY])
        assert env.observe().tolist() == [[2, 0, 0]]

    def test_it_never_clears_without_bonus(self) -> None:
        env = hall(2, 1, num_cells=4, obs_checked=True)
        seen = [observation for observation, _ in steps(env, [RIGHT, UP, DOWN, STAY])]
        assert seen == [(1, 0, 1), (1, 1, 0), (1, 0, 1), (1, 0, 1)]

    @pytest.mark.parametrize("new_state_r", [None, 0.1])
    def test_environments_do_not_share_it(self, new_state_r: float | None) -> None:
        env = Hall(2, num_cells=4, obs_checked=True, new_state_r=new_state_r)
        env.reset()
        for actions in ([RIGHT, RIGHT], [UP, STAY], [DOWN, STAY]):
            td = env.step(TensorDict({keys.ACTION: torch.tensor(actions)}, [2]))[keys.NEXT]
        assert td[keys.OBSERVATION][:, 2].tolist() == [float(new_state_r is None), 1.0]


class TestIds:
    """Sizes per id (spec 2.2)."""

    @pytest.mark.parametrize(
        ("env_id", "length", "obs_dim", "bonus", "success"),
        [
            ("Hall-L60H80-rshape-v0", 80, 2, 0.1, 1.0),
            ("Hall-L60H200-rshape-v0", 200, 2, 0.1, 1.0),
            ("Hall-L60H200-v0", 200, 2, -0.1, 1.0),
            ("Hall-L60H200-obs-rshape-v0", 200, 3, 0.1, 1.0),
            ("Hall-L60H200-obs-v0", 200, 3, -0.1, 1.0),
            ("Hall-L60H200-obs-rshape5x-v0", 200, 3, 0.1, 5.0),
        ],
    )
    def test_sizes_and_rewards(self, env_id: str, length: int, obs_dim: int, bonus: float, success: float) -> None:
        env = make_env(env_id, 1, publish=["belief"])
        assert (env.episode_length, env.episodes_per_task, env.horizon) == (length, 4, 4 * length)
        assert (env.num_tasks, env.num_states, env.belief_dim, env.task_dim) == (60, 120, 60, 2)
        assert (env.num_actions, env.action_dim, env.obs_dim) == (5, 1, obs_dim + 1)
        assert (env.reset()[keys.BELIEF] > 0).sum() == 59
        env = make_env(env_id, 1, fixed_task=(2, 1))
        env.reset()
        paid = [reward for _, reward in steps(env, [RIGHT, UP, DOWN, RIGHT, UP])]
        assert paid == [-0.1, bonus, -0.1, -0.1, success]

    def test_table_is_complete(self) -> None:
        assert len(set(HALL_IDS)) == 6

    @pytest.mark.parametrize("env_id", HALL_IDS)
    def test_ids_and_task_vector_agree(self, env_id: str) -> None:
        env = make_env(env_id, 64, publish=["task", "task_id", "state_id"])
        td = env.rollout(20)
        assert torch.equal(td[keys.TASK_ID].float(), td[keys.TASK][..., 0])
        assert (td[keys.TASK][..., 1] == 1).all()
        x, y = td[keys.OBSERVATION][..., :2].unbind(-1)
        assert (y == 1).any()
        assert torch.equal(td[keys.STATE_ID], (x + 60 * y).long())


class TestSampling:
    """Laws of the draws."""

    @pytest.mark.parametrize("env_id", HALL_IDS)
    def test_doors_are_uniform(self, env_id: str) -> None:
        doors = make_env(env_id, 50_000, seed=21, publish=["task_id"]).reset()[keys.TASK_ID]
        assert_uniform(doors, range(1, 60))

    def test_doors_of_later_tasks_are_uniform_and_independent(self) -> None:
        env = Hall(20_000, num_cells=12, hall_with_door_every=2, seed=22, publish=["task_id"])
        first, second = (env.reset()[keys.TASK_ID] for _ in range(2))
        doors = range(2, 12, 2)
        assert set(first.tolist()) == set(doors)
        assert_uniform(12 * first + second, [12 * one + other for one in doors for other in doors])

    def test_doors_of_a_split_are_uniform_and_the_prior_is_not_split(self) -> None:
        env = make_env("Hall-L60H80-rshape-v0", 50_000, seed=23, publish=["task_id", "belief"], task_split="test")
        td = env.reset()
        doors = td[keys.TASK_ID]
        assert doors.unique().numel() == 12
        assert_uniform(doors, doors.unique())
        assert ((td[keys.BELIEF] > 0).sum(-1) == 59).all()


class TestBelief:
    """The posterior over doors."""

    @pytest.mark.parametrize("env_id", HALL_IDS)
    def test_belief_is_exact_of_ids(self, env_id: str) -> None:
        options = {"episodes_per_task": 2, "publish": ["belief", "task_id"]}
        assert len(belief_sizes(lambda: all_goals(env_id, **options))) > 1

    @pytest.mark.parametrize(
        ("options", "tells"),
        [
            ({}, True),
            ({"new_state_r": 0.1, "obs_checked": True}, True),
            ({"new_state_r": 0.1, "hall_with_door_every": 2, "stuck": True}, True),
            ({"new_state_r": 1.0}, True),  # but the first visit of a door tells nothing
            ({"new_state_r": -0.1, "obs_checked": True}, True),
            ({"success_r": -0.1}, False),
            ({"success_r": -0.1, "new_state_r": 0.1}, True),
        ],
    )
    def test_belief_is_exact_where_rewards_coincide(self, options: dict[str, object], tells: bool) -> None:
        options = {"num_cells": 7, "num_steps": 60, "publish": ["belief", "task_id"], **options}
        sizes = belief_sizes(lambda: every_goal(lambda num_envs: Hall(num_envs, 2, **options)))
        assert (len(sizes) > 1) == tells

    def test_passing_a_door_tells_nothing_and_entering_it_does(self) -> None:
        env = hall(3, 2, num_cells=5, num_steps=7, publish=["belief"])
        candidates = []
        for action in (RIGHT, UP, DOWN, RIGHT, RIGHT, STAY, RIGHT, RIGHT, RIGHT, RIGHT, UP, DOWN):
            steps(env, [action])
            candidates.append(env.publish_belief()[0].nonzero().squeeze(-1).tolist())
        assert candidates == [[1, 2, 3, 4], *[[2, 3, 4]] * 9, *[[3]] * 2]

    def test_belief_starts_anew_with_a_task(self) -> None:
        env = Hall(3, 1, num_cells=4, publish=["belief"])
        td = env.rollout(env.horizon + 1, break_when_any_done=False)
        assert (td[keys.BELIEF][:, env.horizon] == td[keys.BELIEF][:, 0]).all()
        assert (td[keys.BELIEF][:, 0] == torch.tensor([0, 1 / 3, 1 / 3, 1 / 3])).all()


def toward(door: Tensor, position: Tensor) -> Tensor:
    """Walk to the doors above x = `door` and stay there."""
    x, y = position.unbind(-1)
    across = torch.where(y == 1, DOWN, torch.where(door > x, RIGHT, LEFT))
    return torch.where(door == x, torch.where(y == 1, STAY, UP), across)


def oracle(td: TensorDict, position: Tensor) -> Tensor:
    return toward(td[keys.TASK][:, 0], position)


def belief_player(td: TensorDict, position: Tensor) -> Tensor:
    """Go to the nearest door that can still be the goal."""
    belief = td[keys.BELIEF]
    distance = (torch.arange(belief.shape[1]) - position[:, :1]).abs()
    return toward(torch.where(belief > 0, distance, torch.inf).argmin(-1), position)


def sweep_return(env: Hall) -> float:
    """Best mean return of players that search some doors in every episode, from left to right (docs/envs/hall.md)."""
    doors, length, episodes = env.num_cells - 1, env.episode_length, env.episodes_per_task
    goal, other = env._goal_reward.item(), env._step_reward.item()
    extra = 0.0 if env.new_state_r is None else env.new_state_r - other  # for each door before the goal

    @cache
    def best(episode: int, searched: int) -> float:
        """Sum over the doors that are left."""
        if episode == episodes:
            return (doors - searched) * (episodes * length * other + searched * extra)
        total, options = 0.0, []
        for rank in range(doors - searched + 1):
            x = searched + rank
            arrival = x + 2 * rank - 1
            if rank and arrival > length:
                break
            if rank:
                found = (length - arrival + 1) * goal + (arrival - 1 + episode * length) * other + (x - 1) * extra
                total += found + (episodes - 1 - episode) * ((length - x) * goal + x * other)
            options.append(total + best(episode + 1, x))
        return max(options)

    return best(0, 0) / doors


def bayes_return(env: Hall) -> float:
    """The best mean return of all players, by dynamic programming over everything that a player can know.

    Plays by rules of its own; only for very short halls.
    """
    n, length, episodes, bonus = env.num_cells, env.episode_length, env.episodes_per_task, env.new_state_r
    goal_r, other_r = env._goal_reward.item(), env._step_reward.item()

    def move(x: int, y: int, action: int) -> tuple[int, int]:
        if y == 1:
            return (x, 0) if action == DOWN else (x, 1)
        return {UP: (x, int(x > 0)), RIGHT: (min(x + 1, n - 1), 0), LEFT: (max(x - 1, 0), 0)}.get(action, (x, 0))

    @cache
    def best(t: int, x: int, y: int, goals: frozenset[int], new: frozenset[int]) -> float:
        """Mean return from step `t` on, with possible goals and doors that would pay a bonus."""
        if t == episodes * length:
            return 0.0
        values = []
        for action in range(5):
            to = move(x, y, action)
            here = {to[0]} if to[1] == 1 else set()
            other = bonus if here & new else other_r
            place = (0, 0) if (t + 1) % length == 0 else to
            value = 0.0
            for part, reward in ((goals & here, goal_r), (goals - here, other)):
                if part:
                    value += len(part) * (reward + best(t + 1, *place, part, new - here))
            values.append(value / len(goals))
        return max(values)

    doors = frozenset(range(1, n))
    return best(0, 0, 0, doors, doors if bonus is not None else frozenset())


class TestReturns:
    """What players earn; means over all doors are exact."""

    @pytest.mark.parametrize("env_id", HALL_IDS)
    def test_known_task_earns_its_landmark_in_every_episode(self, env_id: str) -> None:
        mean = episode_returns(all_goals(env_id, publish=["task"]), oracle).mean(0)
        assert mean.tolist() == pytest.approx([landmarks(env_id)["task_known"] / 4] * 4, abs=1e-4)

    @pytest.mark.parametrize("env_id", HALL_IDS)
    def test_sweeping_earns_its_landmark(self, env_id: str) -> None:
        env = all_goals(env_id, publish=["belief"])
        mean = episode_returns(env, belief_player).sum(-1).mean().item()
        assert mean == pytest.approx(landmarks(env_id)["bayes_optimal"], abs=1e-3)
        assert mean == pytest.approx(sweep_return(env), abs=1e-3)

    @pytest.mark.parametrize(
        "options",
        [
            {"num_cells": 4, "num_steps": 9, "episodes_per_task": 1},
            {"num_cells": 4, "num_steps": 6, "episodes_per_task": 2, "new_state_r": 0.1},
            {"num_cells": 5, "num_steps": 7, "episodes_per_task": 2},
            {"num_cells": 5, "num_steps": 8, "episodes_per_task": 3, "new_state_r": 0.1, "success_r": 5.0},
            {"num_cells": 6, "num_steps": 9, "episodes_per_task": 2, "new_state_r": 0.1},
        ],
    )
    def test_sweeping_is_bayes_optimal_in_short_halls(self, options: dict[str, object]) -> None:
        env = every_goal(lambda num_envs: Hall(num_envs, publish=["belief"], **options))
        mean = episode_returns(env, belief_player).sum(-1).mean().item()
        assert mean == pytest.approx(bayes_return(env), abs=1e-4)
        assert mean == pytest.approx(sweep_return(env), abs=1e-4)

    @pytest.mark.parametrize("env_id", ["Hall-L60H80-rshape-v0", "Hall-L60H200-v0", "Hall-L60H200-obs-rshape5x-v0"])
    def test_no_episode_of_any_player_exceeds_the_known_task(self, env_id: str) -> None:
        best = episode_returns(all_goals(env_id, episodes_per_task=2, publish=["task"]), oracle)
        for player in (belief_player, random_player(4)):
            env = all_goals(env_id, episodes_per_task=2, publish=["belief"])
            assert (episode_returns(env, player) <= best + 1e-3).all()


class TestPictures:
    """What is drawn where."""

    def test_corridor_doors_goal_and_path(self) -> None:
        env = hall(4, 1, num_cells=6, hall_with_door_every=2, num_steps=9, record_path=True, publish=["belief"])
        steps(env, [RIGHT, RIGHT, UP, DOWN, RIGHT])
        axes = Figure().add_subplot()
        env.draw_frame(axes, 0)
        lines = {str(line.get_label()): np.stack(line.get_data(), -1).tolist() for line in axes.lines}
        path = next(points for label, points in lines.items() if label.startswith("_"))
        assert path == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 0], [3, 0]]
        assert [lines[label] for label in ("start", "goal", "agent")] == [[[0, 0]], [[4, 1]], [[3, 0]]]
        corridor, doors = np.asarray(axes.images[0].get_array())
        assert len(np.unique(corridor, axis=0)) == 1
        wall, tried, goal, free = doors[[0, 2, 4]].tolist() + [corridor[0].tolist()]
        assert len({tuple(colour) for colour in (wall, tried, goal, free)}) == 4
        assert all(doors[x].tolist() == wall for x in (1, 3, 5))
        assert [len(set(colour)) for colour in (wall, tried, goal, free)] == [1, 1, 3, 1]  # only belief has a colour

    def test_visited_doors_are_shaded_without_belief(self) -> None:
        env = hall(3, 1, num_cells=5, new_state_r=0.1)
        steps(env, [RIGHT, UP])
        axes = Figure().add_subplot()
        env.draw_frame(axes, 0)
        doors = np.asarray(axes.images[0].get_array())[1]
        assert [bool((a == b).all()) for a, b in pairwise(doors)] == [False, False, True, True]


class TestErrors:
    """Impossible options are refused in one line, in the words of the config."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"starting_state": None}, "`starting_state` is None: expected two whole numbers"),
            ({"starting_state": (0, 1)}, r"`starting_state` is \(0, 1\): .*expects y = 0"),
            ({"starting_state": (5, 0)}, r"`starting_state` is \(5, 0\): expected .* from 0 to 4"),
            ({"starting_state": (0.5, 0)}, "`starting_state`"),
            ({"starting_state": 3}, "`starting_state` is 3"),
            ({"stuck": "no"}, "`stuck` is 'no': expected true or false"),
            ({"obs_checked": 1}, "`obs_checked` is 1: expected true or false"),
            ({"num_cells": 0}, "`num_cells` is 0: expected an integer"),
            ({"num_cells": 1}, "`num_cells` is 1: expected more"),
            ({"num_steps": 0}, "`num_steps` is 0: expected an integer"),
            ({"hall_with_door_every": 0}, "`hall_with_door_every` is 0: expected an integer"),
            ({"hall_with_door_every": None}, "`hall_with_door_every` is None: expected an integer"),
            ({"hall_with_door_every": 5}, "`num_cells` is 5: expected more"),
            ({"new_state_r": "0.1"}, "`new_state_r` is '0.1': expected a finite number or null"),
            ({"success_r": None}, "`success_r` is None: expected a finite number"),
            ({"constant_r": float("inf")}, "`constant_r` is inf: expected a finite number"),
            ({"fixed_task": (0, 1)}, r"`fixed_task` is \(0, 1\): .*expected goal cells"),
            ({"ring": True}, "option 'ring'"),
            ({"cells": 3}, "option 'cells'"),
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, object], words: str) -> None:
        options = {"num_cells": 5, **options}
        with pytest.raises(ValueError, match=words) as error:
            make_env("Hall-L60H80-rshape-v0", 2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("task", [(0, 0), (3, 0), (0, 1), (5, 1), (2.5, 1), (2, 2), [(3, 1), (0, 1)]])
    def test_forced_tasks_without_door_are_refused(self, task: object) -> None:
        with pytest.raises(ValueError, match="injected task is .*expected goal cells"):
            Hall(2).inject("task", task)

    @pytest.mark.parametrize("task", [3, (1, 2, 3), [(3, 1)] * 3])
    def test_forced_tasks_of_another_shape_are_refused(self, task: object) -> None:
        with pytest.raises(ValueError, match="injected task has shape"):
            Hall(2).inject("task", task)

    def test_starts_are_not_drawn(self) -> None:
        with pytest.raises(ValueError, match="'start'"):
            Hall(2).inject("start", (1, 0))
