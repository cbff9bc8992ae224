"""GridNavi: rules, options, beliefs, sampling laws and what players can earn."""

from __future__ import annotations

from functools import cache

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
    random_player,
    steps,
)
from matplotlib.figure import Figure
from sampling import assert_mean, assert_share, assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import env_ids, landmarks, make_env
from hyperrl.envs.gridworld import ENVS, GridNavi

GRID_IDS = [entry.id for entry in ENVS]


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
    """Laws of the draws."""

    @pytest.mark.parametrize("env_id", GRID_IDS)
    def test_goals_are_uniform_over_the_goal_set(self, env_id: str) -> None:
        env = make_env(env_id, 80_000, seed=11, publish=["task_id"])
        goals = env.reset()[keys.TASK_ID]
        assert_uniform(goals, env._goals)

    def test_goals_of_later_tasks_are_uniform_and_independent(self) -> None:
        env = make_env("GridNavi-v0", 30_000, seed=12, publish=["task_id"])
        first = env.reset()[keys.TASK_ID]
        second = env.reset()[keys.TASK_ID]
        assert_uniform(25 * first + second, (25 * env._goals.unsqueeze(1) + env._goals).flatten())

    def test_random_starts_are_uniform_and_redrawn_per_episode(self) -> None:
        env = make_env("Grid7-20-newr-rands-v0", 30_000, seed=13, num_steps=1, publish=["state_id"])
        first = env.reset()[keys.STATE_ID]
        env.step(TensorDict({keys.ACTION: torch.zeros(30_000, dtype=torch.int64)}, [30_000]))
        x, y = env.observe().unbind(-1)
        second = (7 * x + y).long()
        for cells in (first, second):
            assert_uniform(cells, range(49))
        assert_share(first == second, 1 / 49)

    def test_split_tasks_are_drawn_uniformly(self) -> None:
        env = make_env("GridNavi-v0", 80_000, seed=14, publish=["task_id"], task_split="train", test_fraction=0.2)
        goals = env.reset()[keys.TASK_ID]
        assert goals.unique().numel() == 17
        assert_uniform(goals, goals.unique())

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
        starts = ((3, 3), (1, 5)) if "start" in make_env(env_id, 1).injectable else ()
        assert len(belief_sizes(lambda: all_goals(env_id, **options), starts)) > 1

    def test_belief_starts_anew_with_a_task(self) -> None:
        env = make_env("GridNavi-v0", 3, publish=["belief"], episodes_per_task=1)
        td = env.rollout(2 * env.horizon, break_when_any_done=False)
        torch.testing.assert_close(td[keys.BELIEF][:, env.horizon], td[keys.BELIEF][:, 0])


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


def unknown(td: TensorDict) -> Tensor:
    return (td[keys.BELIEF] > 0).sum(-1) > 1


# Ways through GridNavi-v0: 14 of the 21 goals in 15 steps; the other seven, along one of their shortest paths.
SEARCH = [RIGHT, RIGHT, RIGHT, RIGHT, UP, LEFT, LEFT, UP, LEFT, UP, RIGHT, RIGHT, DOWN, RIGHT, UP]
REST = [UP] * 4 + [RIGHT] * 4


class Searcher:
    """The Bayes-optimal player of GridNavi-v0: searches along fixed ways, then goes to the goal."""

    def __init__(self, env: GridNavi) -> None:
        self.env = env

    def __call__(self, td: TensorDict, position: Tensor) -> Tensor:
        episode, step = (int(self.env.state[name][0]) for name in ("episode", "step"))  # the same in all environments
        way = (SEARCH, REST)[min(episode, 1)]
        search = torch.tensor(way[step] if step < len(way) else STAY)
        return torch.where(unknown(td), search, belief_player(td, position))


class Forgetful:
    """The best player of GridNavi-v0 that knows nothing of earlier episodes: searches, and stays where it was paid."""

    def __init__(self, env: GridNavi) -> None:
        self.env = env

    def __call__(self, td: TensorDict, position: Tensor) -> Tensor:
        found = (td[keys.PREV_REWARD] == 1.0) & ~td[keys.EPISODE_DONE]
        return torch.where(found.squeeze(-1), STAY, SEARCH[int(self.env.state["step"][0])])


class Triangulator:
    """The Bayes-optimal player of GridNavi-dense-v0, by dynamic programming over the goals that are possible.

    It plans to know the goal at the end of the first episode, which the published optimum does not ask for.
    """

    def __init__(self, env: GridNavi) -> None:
        self.env = env

    def __call__(self, td: TensorDict, position: Tensor) -> Tensor:
        actions = belief_player(td, position)
        for index in unknown(td).nonzero().squeeze(-1).tolist():
            cells = td[keys.BELIEF][index].nonzero().squeeze(-1).tolist()
            left = self.env.episode_length - int(self.env.state["step"][index])
            x, y = position[index].int().tolist()
            actions[index] = self.plan((x, y), tuple(divmod(cell, 5) for cell in cells), left)[1]
        return actions

    @staticmethod
    def pay(place: tuple[int, int], goal: tuple[int, int]) -> float:
        return 1.0 if place == goal else -(abs(place[0] - goal[0]) + abs(place[1] - goal[1])) / 5

    @staticmethod
    def walk(place: tuple[int, int], goal: tuple[int, int], steps: int) -> float:
        """Return of the shortest way and staying there."""
        distance = abs(place[0] - goal[0]) + abs(place[1] - goal[1])
        return sum(1.0 if step >= distance else (step - distance) / 5 for step in range(1, steps + 1))

    @staticmethod
    @cache
    def plan(place: tuple[int, int], goals: tuple[tuple[int, int], ...], left: int) -> tuple[float, int]:
        """Mean return from here on, and the best action."""
        if len(goals) == 1:
            return Triangulator.walk(place, goals[0], left) + 3 * Triangulator.walk((0, 0), goals[0], 15), STAY
        if left == 0:
            return -float("inf"), STAY
        options = []
        for action, (dx, dy) in enumerate(((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))):
            after = min(max(place[0] + dx, 0), 4), min(max(place[1] + dy, 0), 4)
            outcomes: dict[float, list[tuple[int, int]]] = {}
            for goal in goals:
                outcomes.setdefault(Triangulator.pay(after, goal), []).append(goal)
            total = sum(
                len(rest) * (reward + Triangulator.plan(after, tuple(rest), left - 1)[0])
                for reward, rest in outcomes.items()
            )
            options.append((total / len(goals), action))
        return max(options)


class TestReturns:
    """What players earn agrees with the landmarks; means over all goals are exact."""

    @pytest.mark.parametrize("env_id", ["GridNavi-v0", "GridNavi-dense-v0", "GridNavi-show_start-v0"])
    def test_known_task_earns_its_landmark(self, env_id: str) -> None:
        returns = episode_returns(all_goals(env_id, publish=["task"]), oracle)
        assert returns.sum(-1).mean().item() == pytest.approx(landmarks(env_id)["task_known"], abs=1e-4)

    def test_known_task_with_drawn_goals(self) -> None:
        returns = episode_returns(make_env("GridNavi-v0", 8192, seed=1, publish=["task"]), oracle).sum(-1)
        assert_mean(returns, landmarks("GridNavi-v0")["task_known"])

    def test_searching_is_bayes_optimal_in_every_episode(self) -> None:
        env = all_goals("GridNavi-v0", publish=["belief"])
        mean = episode_returns(env, Searcher(env)).mean(0)
        assert mean.tolist() == pytest.approx([84 / 21, *[232.5 / 21] * 3], abs=1e-5)  # 4.0, 11.0714
        assert mean.sum().item() == pytest.approx(landmarks("GridNavi-v0")["bayes_optimal"], abs=1e-4)

    def test_without_memory_of_earlier_episodes_every_episode_is_the_first(self) -> None:
        env = all_goals("GridNavi-v0")
        mean = episode_returns(env, Forgetful(env)).mean(0)
        assert mean.tolist() == pytest.approx([4.0] * 4, abs=1e-5)
        assert mean.sum().item() == pytest.approx(landmarks("GridNavi-v0")["within_episode_memory"], abs=1e-4)

    def test_going_to_the_nearest_candidate_is_not_optimal(self) -> None:
        mean = episode_returns(all_goals("GridNavi-v0", publish=["belief"]), belief_player).mean(0)
        assert mean.tolist() == pytest.approx([4.0, 225.9 / 21, *[232.5 / 21] * 2], abs=1e-5)

    def test_dense_reward_locates_the_goal(self) -> None:
        env = all_goals("GridNavi-dense-v0", publish=["belief"])
        player = Triangulator(env)
        mean = episode_returns(env, player).sum(-1).mean().item()
        assert mean == pytest.approx(landmarks("GridNavi-dense-v0")["bayes_optimal"], abs=1e-4)
        goals = tuple(divmod(cell, 5) for cell in env._goals.tolist())
        assert player.plan((0, 0), goals, 15)[0] == pytest.approx(mean, abs=1e-4)

    def test_waiting_at_a_start_that_shows_the_goal_is_optimal(self) -> None:
        def player(td: TensorDict, position: Tensor) -> Tensor:
            return torch.where(unknown(td), STAY, belief_player(td, position))

        env = all_goals("GridNavi-show_start-v0", publish=["belief"])
        mean = episode_returns(env, player).sum(-1).mean().item()
        assert mean == pytest.approx(landmarks("GridNavi-show_start-v0")["bayes_optimal"], abs=1e-4)

    @pytest.mark.parametrize("env_id", ["GridNavi-v0", "GridNavi-dense-v0"])
    def test_random_player_earns_its_landmark(self, env_id: str) -> None:
        returns = episode_returns(make_env(env_id, 16_384, seed=2), random_player(2)).sum(-1)
        assert_mean(returns, landmarks(env_id)["random"])

    @pytest.mark.parametrize("env_id", ["GridNavi-v0", "GridNavi-dense-v0", "GridNavi-show_start-v0"])
    def test_no_episode_of_any_player_exceeds_the_known_task(self, env_id: str) -> None:
        env = all_goals(env_id, publish=["task", "belief"])
        best = episode_returns(all_goals(env_id, publish=["task"]), oracle)
        for player in (Searcher(env), Forgetful(env), belief_player, random_player(3)):
            env.inject("task", env._coordinates[env._goals])
            assert (episode_returns(env, player) <= best + 1e-4).all()


def drawing(env: GridNavi, index: int = 0) -> tuple[dict[str, list[list[float]]], np.ndarray]:
    """Coordinates of what is drawn, by its label, and the colours of the cells `[height, width, 3]`."""
    axes = Figure().add_subplot()
    env.draw_frame(axes, index)
    lines = {str(line.get_label()): np.stack(line.get_data(), -1).tolist() for line in axes.lines}
    lines["path"] = next(points for label, points in lines.items() if label.startswith("_"))
    return lines, np.asarray(axes.images[0].get_array())


class TestPictures:
    """What is drawn where."""

    def test_agent_path_goal_and_start_are_where_they_are(self) -> None:
        env = GridNavi(2, 2, record_path=True)
        env.inject("task", torch.tensor([[3, 4], [4, 0]]))
        env.reset()
        steps(env, [RIGHT, UP])
        drawn, _ = drawing(env, 1)
        assert drawn["path"] == [[0, 0], [1, 0], [1, 1]]
        assert [drawn[label] for label in ("start", "goal", "agent")] == [[[0, 0]], [[4, 0]], [[1, 1]]]
        assert "start" not in drawing_of_random_start()

    def test_candidates_and_visited_cells_have_colours_of_their_own(self) -> None:
        env = GridNavi(1, 1, num_steps=20, publish=["belief"])
        env.inject("task", (4, 4))
        env.reset()
        steps(env, [RIGHT, RIGHT, UP])
        colours = drawing(env)[1].transpose(1, 0, 2)  # by x and y
        candidates = env.publish_belief().view(5, 5) > 0
        near = torch.zeros(5, 5, dtype=torch.bool)
        near[:2, :2] = True
        for kind in (candidates, near, ~candidates & ~near):
            assert len(np.unique(colours[kind.numpy()], axis=0)) == 1
        assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 3
        assert colours[2, 0].tolist() == colours[2, 1].tolist() == [colours[2, 0, 0]] * 3  # grey

    def test_without_belief_only_what_paid_a_bonus_is_marked(self) -> None:
        assert len(np.unique(drawing_after([RIGHT, RIGHT])[1])) == 1
        colours = drawing_after([RIGHT, RIGHT], new_state_r=0.1)[1]
        assert np.argwhere((colours != colours[0, 0]).any(-1)).tolist() == [[0, 2]]  # y, x

    def test_hall_mode_shows_corridor_and_doors(self) -> None:
        colours = drawing_after([], num_cells=7, hall_with_door_every=3)[1]
        assert colours.shape == (2, 7, 3)
        walls = (colours != colours[0, 0]).all(-1)
        assert walls[1].tolist() == [x not in (3, 6) for x in range(7)]
        assert not walls[0].any()


def drawing_after(actions: list[int], **options: object) -> tuple[dict[str, list[list[float]]], np.ndarray]:
    env = GridNavi(1, 1, **options)
    env.reset()
    steps(env, actions)
    return drawing(env)


def drawing_of_random_start() -> dict[str, list[list[float]]]:
    return drawing_after([], starting_state=None)[0]


class TestErrors:
    """Options that exclude each other are refused in the words of the config."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"starting_state": None, "ring": True}, "`starting_state` is None: expected a cell, which `ring` needs"),
            ({"starting_state": None, "hall_with_door_every": 1}, "`starting_state` is None: .*`hall_with_door_every`"),
            ({"starting_state": None, "show_goal_at_start": True}, "`starting_state` is None: .*`show_goal_at_start`"),
            ({"ring": True, "hall_with_door_every": 2}, "`hall_with_door_every` is 2: expected null with `ring`"),
            ({"starting_state": (0, 1), "hall_with_door_every": 1}, "`starting_state` .*`hall_with_door_every`"),
            ({"stuck": True}, "`stuck` is True: expected false without doors .*`hall_with_door_every`"),
            ({"starting_state": (0, 5)}, r"`starting_state` is \(0, 5\)"),
            ({"starting_state": (0.5, 0)}, "`starting_state`"),
            ({"starting_state": (0,)}, "`starting_state`"),
            ({"starting_state": 3}, "`starting_state` is 3"),
            ({"ring": "no"}, "`ring` is 'no'"),
            ({"show_goal_at_start": 1}, "`show_goal_at_start` is 1"),
            ({"new_state_r": "0.1"}, "`new_state_r` is '0.1'"),
            ({"test_fraction": "0.1"}, "`test_fraction` is '0.1'"),
            ({"num_cells": 0}, "`num_cells` is 0"),
            ({"num_cells": 2}, "`num_cells` is 2: expected more, as the other options leave no goal cell"),
            ({"num_steps": 0}, "`num_steps` is 0"),
            ({"hall_with_door_every": 0}, "`hall_with_door_every` is 0"),
            ({"hall_with_door_every": 5}, "`num_cells` is 5: expected more"),
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
        env.inject("task", env._coordinates[env._goals])
        assert torch.equal(env.reset()[keys.TASK_ID], env._goals)
