"""GridNavi: rules, options, beliefs, sampling laws and what players can earn."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import env_ids, landmarks, make_env
from hyperrl.envs.gridworld import ENVS, GridNavi

GRID_IDS = [entry.id for entry in ENVS]
STAY, UP, RIGHT, DOWN, LEFT = range(5)


def steps(env: GridNavi, actions: list[int]) -> list[tuple[tuple[int, ...], float]]:
    """Observation and reward of environment 0 after each action."""
    seen = []
    for action in actions:
        td = env.step(TensorDict({keys.ACTION: torch.full((env.num_envs,), action)}, [env.num_envs]))[keys.NEXT]
        seen.append((tuple(td[keys.OBSERVATION][0].int().tolist()), round(td[keys.REWARD][0, 0].item(), 6)))
    return seen


def coordinates(cells: Tensor, env: GridNavi) -> Tensor:
    return torch.stack((cells // env.num_cells, cells % env.num_cells), -1)


def all_goals(env_id: str, **options: object) -> GridNavi:
    """One environment per goal, and every further task the same one."""
    goals = make_env(env_id, 1, **options)._goals
    env = make_env(env_id, len(goals), **options)
    env.inject("task", coordinates(goals, env))
    return env


def chi_square_limit(categories: int, level: float = 0.001) -> float:
    """Upper quantile of the chi-square distribution (Wilson and Hilferty's approximation)."""
    degrees = categories - 1
    z = NormalDist().inv_cdf(1 - level)
    return degrees * (1 - 2 / (9 * degrees) + z * (2 / (9 * degrees)) ** 0.5) ** 3


def chi_square(draws: Tensor, categories: int) -> float:
    counts = draws.unique(return_counts=True)[1].double()
    expected = len(draws) / categories
    return float(((counts - expected) ** 2 / expected).sum() + (categories - len(counts)) * expected)


class TestRules:
    """Moves and rewards."""

    def test_walls_and_goal(self) -> None:
        env = GridNavi(1, 1)
        env.inject("task", (2, 1))
        env.reset()
        seen = steps(env, [DOWN, LEFT, RIGHT, RIGHT, UP, STAY, LEFT])
        assert seen == [
            *[((0, 0), -0.1)] * 2,
            ((1, 0), -0.1),
            ((2, 0), -0.1),
            ((2, 1), 1.0),
            ((2, 1), 1.0),
            ((1, 1), -0.1),
        ]

    def test_distance_reward(self) -> None:
        env = GridNavi(1, 1, distance_reward=True)
        env.inject("task", (3, 0))
        env.reset()
        assert [reward for _, reward in steps(env, [UP, RIGHT, DOWN, RIGHT, RIGHT])] == [-0.8, -0.6, -0.4, -0.2, 1.0]

    def test_bonus_is_paid_once_per_task_and_cell(self) -> None:
        env = GridNavi(1, 2, num_steps=4, new_state_r=0.5, starting_state=None)
        env.inject("task", (4, 4), (4, 4))
        env.inject("start", (0, 0), (0, 1), (0, 0))
        env.reset()
        seen = steps(env, [STAY, STAY, UP, DOWN, STAY, UP, STAY, STAY])
        assert [reward for _, reward in seen] == [0.5, -0.1, 0.5, -0.1, -0.1, 0.5, -0.1, -0.1]
        assert env.reset() is not None
        assert steps(env, [STAY])[0][1] == 0.5

    def test_goal_is_shown_only_after_a_step_that_ends_on_the_start(self) -> None:
        env = GridNavi(1, 2, num_steps=3, show_goal_at_start=True)
        env.inject("task", (4, 2))
        assert env.reset()[keys.OBSERVATION].tolist() == [[0, 0, 0]]
        seen = [observation for observation, _ in steps(env, [STAY, UP, STAY, UP, DOWN])]
        assert seen == [(4, 2, 0), (0, 1, 0), (0, 1, 1), (0, 1, 0), (4, 2, 0)]

    def test_hall_has_doors_only_where_it_says(self) -> None:
        env = GridNavi(1, 1, num_cells=7, num_steps=30, hall_with_door_every=3)
        env.inject("task", (6, 1))
        env.reset()
        up_everywhere = [action for _ in range(7) for action in (UP, DOWN, RIGHT)]
        seen = [observation for observation, _ in steps(env, up_everywhere)]
        assert {observation for observation in seen if observation[1] == 1} == {(3, 1), (6, 1)}

    def test_stuck_lasts_until_the_episode_ends(self) -> None:
        env = GridNavi(1, 2, num_cells=4, num_steps=4, hall_with_door_every=1, stuck=True)
        env.inject("task", (3, 1))
        env.reset()
        seen = [observation for observation, _ in steps(env, [RIGHT, UP, DOWN, DOWN, RIGHT])]
        assert seen == [(1, 0, 0), (1, 1, 0), (1, 1, 0), (1, 1, 1), (1, 0, 0)]

    @pytest.mark.parametrize("env_id", GRID_IDS)
    def test_meta_episodes_take_all_their_steps_and_terminate(self, env_id: str) -> None:
        env = make_env(env_id, 2, episodes_per_task=3)
        after = env.rollout(2 * env.horizon, break_when_any_done=False)[keys.NEXT]
        length, total = env.episode_length, env.horizon
        assert after[keys.EPISODE_DONE][0, :, 0].nonzero().squeeze(-1).tolist() == list(
            range(length - 1, 2 * total, length)
        )
        assert after[keys.DONE][0, :, 0].nonzero().squeeze(-1).tolist() == [total - 1, 2 * total - 1]
        assert torch.equal(after[keys.TERMINATED], after[keys.DONE])
        assert not after[keys.TRUNCATED].any()

    def test_terminal_observation_is_returned_and_the_next_episode_has_begun(self) -> None:
        env = GridNavi(1, 2, num_steps=2, publish=["state_id"])
        env.reset()
        td = env.step(TensorDict({keys.ACTION: torch.tensor([RIGHT])}, [1]))[keys.NEXT]
        td = env.step(TensorDict({keys.ACTION: torch.tensor([RIGHT])}, [1]))[keys.NEXT]
        assert td[keys.OBSERVATION].tolist() == [[2, 0, 1]]
        assert td[keys.STATE_ID].tolist() == [10]
        assert env.observe().tolist() == [[0, 0]]
        assert steps(env, [UP])[0][0] == (0, 1, 0)

    def test_batch_of_as_many_environments_as_cells(self) -> None:
        env = GridNavi(25, new_state_r=0.1, seed=1)  # a table of cells must not be taken for one of environments
        rows = GridNavi(50, new_state_r=0.1, seed=1)
        env.inject("task", (3, 3))
        rows.inject("task", (3, 3))
        env.reset(), rows.reset()
        assert steps(env, [RIGHT, UP, UP]) == steps(rows, [RIGHT, UP, UP])


class TestIds:
    """Sizes per id (spec 2.1)."""

    @pytest.mark.parametrize(
        ("env_id", "length", "goals", "ids"),
        [
            ("GridNavi-v0", 15, 21, 25),
            ("GridNavi-dense-v0", 15, 21, 25),
            ("GridNavi-show_start-v0", 15, 21, 25),
            ("Grid7-15-v0", 15, 45, 49),
            ("Grid7-21-v0", 21, 45, 49),
            ("Grid7-15-mid-v0", 15, 40, 49),
            ("Grid8-15-mid-v0", 15, 55, 64),
            ("Grid7-15-mid-ring-v0", 15, 24, 49),
            ("Grid7-15-mid-ring-newr-v0", 15, 24, 49),
            ("Grid25-50-mid-ring-newr-v0", 50, 96, 625),
            ("Grid16-Hall1-H20-rshape-v0", 20, 15, 256),
            ("Grid60-Hall1-H80-rshape-v0", 80, 59, 3600),
            ("Grid7-20-newr-rands-v0", 20, 49, 49),
            ("Grid-20-newr-rands-v0", 20, 49, 49),
        ],
    )
    def test_sizes(self, env_id: str, length: int, goals: int, ids: int) -> None:
        assert env_id in env_ids()
        env = make_env(env_id, 1, publish=["belief"])
        assert (env.episode_length, env.episodes_per_task, env.horizon) == (length, 4, 4 * length)
        assert (env.num_tasks, env.num_states, env.belief_dim, env.task_dim) == (ids, ids, ids, 2)
        assert (env.num_actions, env.action_dim, env.obs_dim) == (5, 1, 3)
        assert (env.reset()[keys.BELIEF] > 0).sum() == goals

    @pytest.mark.parametrize("env_id", GRID_IDS)
    def test_ids_and_task_vector_agree(self, env_id: str) -> None:
        env = make_env(env_id, 64, publish=["task", "task_id", "state_id"])
        td = env.rollout(5)
        x, y = td[keys.TASK].unbind(-1)
        assert torch.equal(td[keys.TASK_ID], (x * env.num_cells + y).long())
        x, y, _ = td[keys.OBSERVATION].unbind(-1)
        shown = torch.zeros_like(x, dtype=torch.bool)
        if env.show_goal_at_start:
            shown = td[keys.STATE_ID] == 0
        assert torch.equal(td[keys.STATE_ID][~shown], (x * env.num_cells + y).long()[~shown])


class TestSampling:
    """Laws of the draws, at level 0.001 with a fixed seed."""

    @pytest.mark.parametrize("env_id", GRID_IDS)
    def test_goals_are_uniform_over_the_goal_set(self, env_id: str) -> None:
        env = make_env(env_id, 50_000, seed=11, publish=["task_id"])
        goals = env.reset()[keys.TASK_ID]
        assert torch.isin(goals, env._goals).all()
        assert chi_square(goals, len(env._goals)) < chi_square_limit(len(env._goals))

    def test_goals_of_later_tasks_are_uniform_and_independent(self) -> None:
        env = make_env("GridNavi-v0", 20_000, seed=12, publish=["task_id"])
        first = env.reset()[keys.TASK_ID]
        second = env.reset()[keys.TASK_ID]
        assert chi_square(25 * first + second, 21 * 21) < chi_square_limit(21 * 21)

    def test_random_starts_are_uniform_and_redrawn_per_episode(self) -> None:
        env = make_env("Grid7-20-newr-rands-v0", 20_000, seed=13, num_steps=1, publish=["state_id"])
        first = env.reset()[keys.STATE_ID]
        env.step(TensorDict({keys.ACTION: torch.zeros(20_000, dtype=torch.int64)}, [20_000]))
        x, y = env.observe().unbind(-1)
        second = (7 * x + y).long()
        for cells in (first, second):
            assert chi_square(cells, 49) < chi_square_limit(49)
        assert 0.01 < (first == second).double().mean() < 0.03  # 1 / 49

    def test_split_tasks_are_drawn_uniformly(self) -> None:
        env = make_env("GridNavi-v0", 50_000, seed=14, publish=["task_id"], task_split="train", test_fraction=0.2)
        goals = env.reset()[keys.TASK_ID]
        assert goals.unique().numel() == 17
        assert chi_square(goals, 17) < chi_square_limit(17)

    def test_belief_and_bonus_do_not_depend_on_the_split(self) -> None:
        env = make_env("Grid7-15-mid-ring-newr-v0", 4, task_split="test", publish=["belief"])
        assert (env.reset()[keys.BELIEF] > 0).sum(-1).tolist() == [24] * 4


class TestBelief:
    """The published belief is the posterior by definition: goals that would have shown the same up to now."""

    @pytest.mark.parametrize(
        ("env_id", "options"),
        [
            *((env_id, {}) for env_id in GRID_IDS),
            ("GridNavi-dense-v0", {"new_state_r": 0.1}),
            ("GridNavi-dense-v0", {"show_goal_at_start": True}),
            ("GridNavi-v0", {"new_state_r": 1.0}),  # the bonus hides the goal
            ("Grid16-Hall1-H20-rshape-v0", {"hall_with_door_every": 3, "stuck": True}),
            ("Grid16-Hall1-H20-rshape-v0", {"distance_reward": True, "new_state_r": None}),
        ],
    )
    def test_belief_is_the_exact_posterior(self, env_id: str, options: dict[str, object]) -> None:
        options = {"episodes_per_task": 2, "publish": ["belief", "task_id"], **options}
        env = all_goals(env_id, **options)
        if "start" in env.injectable:
            env.inject("start", (3, 3), (1, 5))
        generator = torch.Generator().manual_seed(0)
        td = env.reset()
        goals = td[keys.TASK_ID]
        alike = torch.ones(len(goals), len(goals), dtype=torch.bool)
        for _ in range(env.horizon):
            expected = torch.zeros(len(goals), env.belief_dim)
            expected[:, goals] = alike / alike.sum(-1, keepdim=True)
            torch.testing.assert_close(td[keys.BELIEF], expected)
            action = torch.randint(5, (1,), generator=generator).expand(len(goals))
            td = env.step(TensorDict({keys.ACTION: action}, [len(goals)]))[keys.NEXT]
            shown = torch.cat((td[keys.OBSERVATION], td[keys.REWARD]), -1)
            alike &= (shown.unsqueeze(0) == shown.unsqueeze(1)).all(-1)

    def test_belief_starts_anew_with_a_task(self) -> None:
        env = make_env("GridNavi-v0", 3, publish=["belief"], episodes_per_task=1)
        td = env.rollout(2 * env.horizon, break_when_any_done=False)
        torch.testing.assert_close(td[keys.BELIEF][:, env.horizon], td[keys.BELIEF][:, 0])


def total_return(env: GridNavi, player: Callable[[TensorDict, Tensor], Tensor]) -> Tensor:
    """Return of one meta-episode per environment; the player is told where it stands after an inner reset."""
    td = env.reset()
    total = torch.zeros(env.num_envs)
    position = td[keys.OBSERVATION][:, :2]
    for _ in range(env.horizon):
        td[keys.ACTION] = player(td, position)
        td = env.step(td)[keys.NEXT]
        total += td.pop(keys.REWARD).squeeze(-1)
        position = env.observe()
    assert td[keys.DONE].all()
    return total


def toward(target: Tensor, position: Tensor) -> Tensor:
    x, y = (target - position).sign().unbind(-1)
    return torch.where(x > 0, RIGHT, torch.where(x < 0, LEFT, torch.where(y > 0, UP, torch.where(y < 0, DOWN, STAY))))


def oracle(td: TensorDict, position: Tensor) -> Tensor:
    return toward(td[keys.TASK], position)


def belief_player(td: TensorDict, position: Tensor) -> Tensor:
    """Go to the nearest cell that can still be the goal."""
    n = round(td[keys.BELIEF].shape[-1] ** 0.5)
    cells = torch.cartesian_prod(torch.arange(n), torch.arange(n)).float()
    distance = (cells - position.unsqueeze(1)).abs().sum(-1)
    nearest = torch.where(td[keys.BELIEF] > 0, distance, torch.inf).argmin(-1)
    return toward(cells[nearest], position)


class TestReturns:
    """What players earn agrees with the landmarks; means over all goals are exact."""

    @pytest.mark.parametrize("env_id", ["GridNavi-v0", "GridNavi-dense-v0", "GridNavi-show_start-v0"])
    def test_known_task_earns_its_landmark(self, env_id: str) -> None:
        mean = total_return(all_goals(env_id, publish=["task"]), oracle).mean().item()
        assert mean == pytest.approx(landmarks(env_id)["task_known"], abs=1e-3)

    def test_known_task_with_drawn_goals(self) -> None:
        returns = total_return(make_env("GridNavi-v0", 4096, seed=1, publish=["task"]), oracle)
        error = 3.29 * returns.std().item() / 64  # level 0.001
        assert abs(returns.mean().item() - landmarks("GridNavi-v0")["task_known"]) < error

    def test_belief_player_needs_the_memory_of_other_episodes(self) -> None:
        mean = total_return(all_goals("GridNavi-v0", publish=["belief"]), belief_player).mean().item()
        known = landmarks("GridNavi-v0")
        assert known["within_episode_memory"] < 30 < mean <= known["bayes_optimal"] + 1e-3

    def test_waiting_at_a_start_that_shows_the_goal_is_optimal(self) -> None:
        def player(td: TensorDict, position: Tensor) -> Tensor:
            unknown = (td[keys.BELIEF] > 0).sum(-1) > 1
            return torch.where(unknown, STAY, belief_player(td, position))

        mean = total_return(all_goals("GridNavi-show_start-v0", publish=["belief"]), player).mean().item()
        assert mean == pytest.approx(landmarks("GridNavi-show_start-v0")["bayes_optimal"], abs=1e-3)

    @pytest.mark.parametrize("env_id", ["GridNavi-v0", "GridNavi-dense-v0"])
    def test_random_player_earns_its_landmark(self, env_id: str) -> None:
        generator = torch.Generator().manual_seed(2)

        def player(td: TensorDict, position: Tensor) -> Tensor:
            return torch.randint(5, td.batch_size, generator=generator)

        returns = total_return(make_env(env_id, 8192, seed=2), player)
        error = 3.29 * returns.std().item() / 8192**0.5  # level 0.001
        assert abs(returns.mean().item() - landmarks(env_id)["random"]) < error


class TestErrors:
    """Options that exclude each other are refused in the words of the config."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"starting_state": None, "ring": True}, "`ring` .*`starting_state`"),
            ({"starting_state": None, "hall_with_door_every": 1}, "`hall_with_door_every` .*`starting_state`"),
            ({"starting_state": None, "show_goal_at_start": True}, "`show_goal_at_start` .*`starting_state`"),
            ({"ring": True, "hall_with_door_every": 2}, "`ring` and `hall_with_door_every`"),
            ({"starting_state": (0, 1), "hall_with_door_every": 1}, "`starting_state` .*`hall_with_door_every`"),
            ({"stuck": True}, "`stuck` .*`hall_with_door_every`"),
            ({"starting_state": (0, 5)}, r"`starting_state` is \(0, 5\)"),
            ({"starting_state": (0.5, 0)}, "`starting_state`"),
            ({"starting_state": (0,)}, "`starting_state`"),
            ({"starting_state": 3}, "`starting_state` is 3"),
            ({"ring": "no"}, "`ring` is 'no'"),
            ({"show_goal_at_start": 1}, "`show_goal_at_start` is 1"),
            ({"new_state_r": "0.1"}, "`new_state_r` is '0.1'"),
            ({"test_fraction": "0.1"}, "`test_fraction` is '0.1'"),
            ({"num_cells": 0}, "`num_cells` is 0"),
            ({"num_cells": 2}, "`num_cells`"),
            ({"num_steps": 0}, "`num_steps` is 0"),
            ({"hall_with_door_every": 0}, "`hall_with_door_every` is 0"),
            ({"hall_with_door_every": 5}, "no cell can be the goal"),
            ({"new_state_r": float("nan")}, "`new_state_r` is nan"),
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            make_env("GridNavi-v0", 2, **options)

    @pytest.mark.parametrize("task", [(0, 0), (5, 0), (-1, 3), (2.5, 2), (1, 1), [(4, 4), (0, 1)]])
    def test_forced_tasks_outside_the_goal_set_are_refused(self, task: object) -> None:
        with pytest.raises(ValueError, match="injected task is .*expected goal cells"):
            GridNavi(2).inject("task", task)

    @pytest.mark.parametrize("task", [3, (1, 2, 3), [(4, 4)] * 3])
    def test_forced_tasks_of_another_shape_are_refused(self, task: object) -> None:
        with pytest.raises(ValueError, match="injected task has shape"):
            GridNavi(2).inject("task", task)

    def test_start_can_be_forced_only_where_it_is_drawn(self) -> None:
        with pytest.raises(ValueError, match="'start'"):
            GridNavi(2).inject("start", (1, 1))
        with pytest.raises(ValueError, match="expected cells of the grid"):
            GridNavi(2, starting_state=None).inject("start", (5, 1))

    def test_a_goal_of_the_other_split_can_be_forced(self) -> None:
        env = GridNavi(21, task_split="train", publish=["task_id"])
        env.inject("task", coordinates(env._goals, env))
        assert torch.equal(env.reset()[keys.TASK_ID], env._goals)
