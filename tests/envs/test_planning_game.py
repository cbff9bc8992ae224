"""Planning game: rules, options, sampling laws, and what players can earn, computed exactly and played."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sampling import assert_mean, assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import landmarks
from hyperrl.envs.planning_game import ENVS, PlanningGame

UP, DOWN, LEFT, RIGHT, COLLECT = range(5)
MOVES = ((0, 1), (0, -1), (-1, 0), (1, 0))
KWARGS = {entry.id: dict(entry.kwargs) for entry in ENVS}


def build(env_id: str, num_envs: int, **options: object) -> PlanningGame:
    return PlanningGame(num_envs, **{**KWARGS[env_id], **options})


def step(env: PlanningGame, action: int | Tensor) -> TensorDict:
    action = torch.as_tensor(action).expand(env.num_envs)
    return env.step(TensorDict({keys.ACTION: action}, [env.num_envs]))[keys.NEXT]


def beside(env: PlanningGame, goal: tuple[int, int] | Tensor, position: tuple[int, int] | Tensor) -> None:
    """Reset with everything forced but the labels."""
    env.inject("task", goal)
    env.inject("position", position)
    env.reset()


def cells(env: PlanningGame) -> tuple[Tensor, Tensor]:
    """Numbers of the agents' and the goals' cells."""
    return tuple((xy[:, 0] * env.maze_size + xy[:, 1]).long() for xy in (env.coordinates(), env.publish_task()))


class TestRules:
    """Moves, collecting, rewards and ends (spec 8)."""

    def test_moves_wrap_around(self) -> None:
        env = PlanningGame(1, maze_size=3)
        beside(env, (1, 1), (0, 2))
        places = []
        for action in (UP, DOWN, LEFT, LEFT, RIGHT, COLLECT, RIGHT, RIGHT):
            step(env, action)
            places.append(tuple(env.coordinates()[0].int().tolist()))
        assert places == [(0, 0), (0, 2), (2, 2), (1, 2), (2, 2), (2, 2), (0, 2), (1, 2)]

    def test_only_collecting_on_the_goal_pays(self) -> None:
        env = PlanningGame(1, maze_size=3, target_reward=2.5, per_step_reward=-0.25)
        beside(env, (1, 1), (0, 1))
        env.inject("goal", (0, 1), (2, 2))
        rewards = [
            step(env, action)[keys.REWARD].item() for action in (COLLECT, RIGHT, COLLECT, COLLECT, LEFT, COLLECT)
        ]
        assert rewards == [-0.25, -0.25, 2.5, -0.25, -0.25, 2.5]
        assert env.publish_task().tolist() == [[2, 2]]

    def test_the_step_that_collects_shows_the_next_goal_and_publishes_it(self) -> None:
        env = PlanningGame(1, maze_size=3, publish=["task", "task_id"])
        env.inject("labels", [4, 5, 6, 7, 8, 0, 1, 2, 3])
        beside(env, (0, 1), (0, 0))
        env.inject("goal", (2, 2))
        before, after = step(env, UP), step(env, COLLECT)
        for td, goal, task, task_id in ((before, 5, [0, 1], 1), (after, 3, [2, 2], 8)):
            shown = td[keys.OBSERVATION][0].view(2, 9)
            assert shown.sum(-1).tolist() == [1, 1]
            assert shown.argmax(-1).tolist() == [5, goal]
            assert (td[keys.TASK][0].tolist(), td[keys.TASK_ID].item()) == (task, task_id)

    def test_goal_is_drawn_only_where_one_was_collected(self) -> None:
        env = PlanningGame(3, maze_size=3, seed=1, publish=["task"])
        env.inject("task", [(1, 1), (1, 1), (0, 0)])
        env.inject("position", [(1, 0), (1, 2), (0, 1)])
        env.reset()
        env.inject("goal", (2, 0), (2, 1))
        step(env, torch.tensor([UP, UP, LEFT]))
        assert step(env, COLLECT)[keys.TASK].tolist() == [[2, 0], [1, 1], [0, 0]]
        assert step(env, torch.tensor([UP, DOWN, COLLECT]))[keys.TASK].tolist() == [[2, 0], [1, 1], [0, 0]]
        assert step(env, torch.tensor([UP, DOWN, COLLECT]))[keys.TASK].tolist() == [[2, 0], [1, 1], [0, 0]]
        assert step(env, COLLECT)[keys.TASK].tolist() == [[2, 0], [2, 1], [0, 0]]

    def test_labels_stay_within_an_episode_and_are_drawn_anew_for_the_next(self) -> None:
        env = build("PlanningGame-v0", 8, seed=2)
        env.reset()
        first = env.state["labels"].clone()
        assert torch.equal(first.sort(-1).values, torch.arange(16).expand(8, 16))
        for _ in range(100):
            td = step(env, env.action_spec.rand())
        assert td[keys.DONE].all()
        assert torch.equal(env.state["labels"], first)
        env.reset()
        assert (env.state["labels"] != first).any(-1).all()

    def test_respawn_moves_the_agent_where_it_collected(self) -> None:
        env = PlanningGame(2, maze_size=3, random_respawn=True)
        env.inject("task", [(1, 1), (2, 2)])
        env.inject("position", (1, 0))
        env.reset()
        env.inject("goal", (0, 2))
        env.inject("position", (2, 0))
        step(env, UP)
        assert env.coordinates().tolist() == [[1, 1], [1, 1]]
        assert step(env, COLLECT)[keys.REWARD].tolist() == [[1], [0]]
        assert env.coordinates().tolist() == [[2, 0], [1, 1]]
        assert env.publish_task().tolist() == [[0, 2], [2, 2]]

    def test_an_episode_lasts_all_its_steps_and_terminates(self) -> None:
        env = PlanningGame(2, max_episode_steps=7)
        after = env.rollout(21, break_when_any_done=False)[keys.NEXT]
        for name in (keys.DONE, keys.TERMINATED, keys.EPISODE_DONE):
            assert after[name][0, :, 0].nonzero().squeeze(-1).tolist() == [6, 13, 20]
        assert not after[keys.TRUNCATED].any()

    def test_fixed_task_is_the_first_goal_of_every_episode(self) -> None:
        env = PlanningGame(64, maze_size=3, max_episode_steps=3, fixed_task=[2, 1], publish=["task"])
        td = env.rollout(9, break_when_any_done=False)
        assert (td[keys.TASK][:, ::3] == torch.tensor([2.0, 1.0])).all()
        beside(env, (2, 1), (2, 0))
        assert (env.reset()[keys.TASK] == torch.tensor([2.0, 1.0])).all()
        assert (env.coordinates() != torch.tensor([2.0, 1.0])).any(-1).all()


class TestObservations:
    """Sizes per id (spec 2.5) and what the elements say."""

    @pytest.mark.parametrize(
        ("env_id", "size", "high", "tasks"),
        [
            ("PlanningGame-v0", 32, 1, 16),
            ("PlanningGame-3x3-v0", 18, 1, 9),
            ("PlanningGame-3x3-xy-v0", 20, 2, 9),
            ("PlanningGame-3x3-justgoal-v0", 1, 1, 9),
            ("PlanningGame-3x3-xy-goalxy-v0", 22, 2, 9),
        ],
    )
    def test_sizes(self, env_id: str, size: int, high: int, tasks: int) -> None:
        env = build(env_id, 1)
        assert (env.obs_dim, env.num_tasks, env.task_dim, env.num_actions) == (size, tasks, 2, 5)
        assert (env.horizon, env.episodes_per_task, env.num_states, env.belief_dim) == (100, 1, None, None)
        space = env.observation_spec[keys.OBSERVATION].space
        assert (space.low == 0).all()
        assert (space.high == high).all()

    def test_coordinates_come_after_the_labels(self) -> None:
        for options in ({"show_xy": True}, {"show_goal_xy": True}, {"show_xy": True, "show_goal_xy": True}):
            env = PlanningGame(64, **options)
            observation = env.reset()[keys.OBSERVATION]
            shown = [env.coordinates()] * ("show_xy" in options) + [env.publish_task()] * ("show_goal_xy" in options)
            assert torch.equal(observation[:, 32:], torch.cat(shown, -1))
            position, goal = cells(env)
            for part, cell in ((observation[:, :16], position), (observation[:, 16:32], goal)):
                assert torch.equal(part.argmax(-1), env.state["labels"].gather(1, cell.unsqueeze(-1)).squeeze(-1))
                assert (part.sum(-1) == 1).all()

    def test_just_the_goal(self) -> None:
        env = PlanningGame(1, maze_size=3, just_show_whether_at_goal=True)
        beside(env, (1, 1), (1, 0))
        assert [step(env, action)[keys.OBSERVATION].item() for action in (LEFT, RIGHT, UP, COLLECT)] == [0, 0, 1, 0]


class TestSampling:
    """Laws of the draws."""

    def test_position_and_goal_are_uniform_and_distinct(self) -> None:
        env = build("PlanningGame-3x3-v0", 50_000, seed=3)
        env.reset()
        position, goal = cells(env)
        assert (position != goal).all()
        assert_uniform(8 * goal + position - (position > goal).long(), range(72))

    def test_labels_are_a_uniform_permutation(self) -> None:
        env = PlanningGame(50_000, maze_size=2, seed=4)
        env.reset()
        digits = env.state["labels"] @ torch.tensor([64, 16, 4, 1])
        assert len(digits.unique()) == 24
        assert_uniform(digits, digits.unique())

    @pytest.mark.parametrize("respawn", [False, True])
    def test_next_goals_are_uniform_among_the_other_cells(self, respawn: bool) -> None:
        env = PlanningGame(50_000, maze_size=3, random_respawn=respawn, seed=5)
        beside(env, (1, 1), (1, 0))
        step(env, UP)
        assert (step(env, COLLECT)[keys.REWARD] == 1).all()
        position, goal = cells(env)
        assert (position != goal).all()
        others = goal - (goal > position).long()
        if respawn:
            assert_uniform(8 * position + others, range(72))
        else:
            assert (position == 4).all()
            assert_uniform(others, range(8))

    @pytest.mark.parametrize("respawn", [False, True])
    def test_goals_of_a_split_are_uniform_in_it(self, respawn: bool) -> None:
        options = {"task_split": "train", "test_fraction": 0.5, "split_seed": 6, "random_respawn": respawn}
        env = PlanningGame(40_000, maze_size=3, seed=6, **options)
        env.reset()
        goal = env.publish_task()
        first = cells(env)[1]
        inside = first.unique()
        assert len(inside) == 5
        assert_uniform(first, inside)
        beside(env, goal, (goal - torch.tensor([0.0, 1.0])) % 3)
        step(env, UP)
        assert (step(env, COLLECT)[keys.REWARD] == 1).all()
        position, later = cells(env)
        assert torch.isin(later, inside).all()
        assert (later != position).all()
        if respawn:
            assert_uniform(8 * torch.searchsorted(inside, later) + position - (position > later).long(), range(40))
        else:
            rank, last = torch.searchsorted(inside, later), torch.searchsorted(inside, position)
            assert_uniform(4 * last + rank - (rank > last).long(), range(20))

    def test_after_a_forced_goal_outside_the_split_all_its_goals_are_equally_likely(self) -> None:
        options = {"task_split": "test", "test_fraction": 0.4, "split_seed": 7}
        probe = PlanningGame(2000, maze_size=3, **options)
        probe.reset()
        inside = cells(probe)[1].unique()
        assert len(inside) == 4
        outside = next(cell for cell in range(9) if cell not in inside)
        env = PlanningGame(20_000, maze_size=3, seed=7, **options)
        goal = (outside // 3, outside % 3)
        beside(env, goal, (goal[0], (goal[1] - 1) % 3))
        step(env, UP)
        assert (step(env, COLLECT)[keys.REWARD] == 1).all()
        assert_uniform(cells(env)[1], inside)


class TestPath:
    """The path in a picture."""

    def test_a_step_over_the_edge_is_drawn_at_both_edges_and_a_respawn_not_at_all(self) -> None:
        env = PlanningGame(1, maze_size=4, random_respawn=True, record_path=True)
        beside(env, (0, 0), (3, 0))
        env.inject("goal", (1, 1))
        env.inject("position", (2, 2))
        for action in (RIGHT, COLLECT, UP):
            step(env, action)
        axes = Figure().add_subplot()
        env.draw_frame(axes, 0)
        drawn = np.stack(axes.lines[-1].get_data(), -1)
        segments = {tuple(map(tuple, pair)) for pair in zip(drawn[:-1], drawn[1:], strict=True)}
        assert {pair for pair in segments if np.isfinite(pair).all()} == {
            ((3, 0), (4, 0)),
            ((-1, 0), (0, 0)),
            ((2, 2), (2, 3)),
        }


# What players can earn -----------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The exact optimum of a player that remembers its map.

    A state is what has been seen, relative to the agent: a set of cells as bits (its own, bit 0, left out), and where
    the goal is, n * n if its label has not been seen yet; it is then uniform among the unseen cells.

    Attributes:
        values: expected return `[2**(n*n-1), n*n+1]` with all steps to go.
        actions: best action by the number of steps to go minus one.
    """

    values: np.ndarray
    actions: np.ndarray


@cache
def plan(n: int, horizon: int = 100) -> Plan:
    """Dynamic programming over the steps to go."""
    size = n * n
    unknown = size
    seen = 2 * np.arange(2 ** (size - 1)) + 1
    bits = (seen[:, None] >> np.arange(size)) & 1
    num_unseen = size - bits.sum(-1)
    x, y = np.divmod(np.arange(size), n)
    values = np.zeros((len(seen), size + 1))
    actions = np.empty((horizon, *values.shape), np.int8)
    moved = []
    for dx, dy in MOVES:
        target = (x - dx) % n * n + (y - dy) % n  # where a cell is after the move, relative to the agent
        after = (bits << target).sum(-1)
        moved.append((after // 2, after % 2 == 0, np.append(target, unknown)))  # the own cell is seen in any case
    for t in range(horizon):
        options = []
        for after, is_new, target in moved:
            value = values[after][:, target]
            here = values[after, 0]
            found = 1 / np.maximum(num_unseen, 1)
            value[:, unknown] = np.where(
                is_new, found * here + (1 - found) * values[after, unknown], values[after, unknown]
            )
            options.append(value)
        collect = values.copy()
        next_goal = np.where(bits[:, 1:], values[:, 1:size], values[:, [unknown]]).mean(-1)
        collect[:, 0] = 1 + next_goal
        options.append(collect)
        stacked = np.stack(options)
        actions[t], values = stacked.argmax(0), stacked.max(0)
    return Plan(values, actions)


def search_anew(n: int, horizon: int = 100) -> float:
    """The optimum of a player that sees only whether it is on the goal: visit one new cell per step, then collect."""
    others = n * n - 1
    values = [0.0]
    for t in range(1, horizon + 1):
        finds = [1 + values[t - cost] if cost <= t else 0.0 for cost in range(2, others + 2)]
        values.append(sum(finds) / others)
    return values[-1]


def play_at_random(n: int, horizon: int = 100) -> float:
    """Expected return of uniform actions, by the offset of the goal."""
    offset = np.zeros((horizon + 1, n, n))
    for t in range(1, horizon + 1):
        last = offset[t - 1]
        collect = last.copy()
        collect[0, 0] = 1 + (last.sum() - last[0, 0]) / (n * n - 1)
        offset[t] = (collect + sum(np.roll(last, move, (0, 1)) for move in MOVES)) / 5
    return float((offset[-1].sum() - offset[-1][0, 0]) / (n * n - 1))


def task_known(n: int) -> float:
    """Optimum of a player that is told where every goal is: all cells are seen, which wastes nothing."""
    return float(plan(n).values[-1, 1 : n * n].mean())


def toward(offset: Tensor, n: int) -> Tensor:
    """First step of a shortest way over the torus, or collect."""
    x, y = ((offset + (n - 1) // 2) % n - (n - 1) // 2).long().unbind(-1)
    sideways = torch.where(x > 0, RIGHT, LEFT)
    upwards = torch.where(y > 0, UP, torch.where(y < 0, DOWN, COLLECT))
    return torch.where(x != 0, sideways, upwards)


def walker(observation: Tensor, n: int) -> Tensor:
    """Goes to the goal whose coordinates the observation ends with."""
    position, goal = observation[:, -4:].split(2, -1)
    return toward(goal - position, n)


class Explorer:
    """Plays `plan` from observations and its own moves alone."""

    def __init__(self, num_envs: int, n: int) -> None:
        self.n = n
        self.place = torch.zeros(num_envs, 2, dtype=torch.int64)
        self.cell_of_label = torch.full((num_envs, n * n), -1)
        self.actions = torch.from_numpy(plan(n).actions)
        self.moves = torch.tensor([*MOVES, (0, 0)])

    def __call__(self, observation: Tensor, steps_to_go: int) -> Tensor:
        n, size = self.n, self.n**2
        own, goal = observation.split(size, -1)
        cell = self.place[:, 0] * n + self.place[:, 1]
        self.cell_of_label.scatter_(1, own.argmax(-1, keepdim=True), cell.unsqueeze(-1))
        relative = self.relative(self.cell_of_label)
        bits = torch.where(relative > 0, 2 ** (relative - 1).clamp(min=0), 0).sum(-1)
        where = relative.gather(1, goal.argmax(-1, keepdim=True)).squeeze(-1)
        action = self.actions[steps_to_go - 1][bits, torch.where(where < 0, size, where)].long()
        self.place = (self.place + self.moves[action]) % n
        return action

    def relative(self, cell: Tensor) -> Tensor:
        """Numbers of cells as seen from the own one; -1 stays."""
        x, y = (cell // self.n - self.place[:, :1]) % self.n, (cell % self.n - self.place[:, 1:]) % self.n
        return torch.where(cell < 0, -1, x * self.n + y)


def returns(env: PlanningGame, player: Callable[[TensorDict, int], Tensor]) -> Tensor:
    """Return of one episode per environment, `[B]`."""
    td = env.reset()
    total = torch.zeros(env.num_envs)
    for steps_to_go in range(env.horizon, 0, -1):
        td = step(env, player(td, steps_to_go))
        total += td[keys.REWARD].squeeze(-1)
    assert td[keys.DONE].all()
    return total


class TestReturns:
    """The published landmarks are the exact optima of these rules, and players of the environment reach them."""

    @pytest.mark.parametrize(("env_id", "n"), [("PlanningGame-3x3-v0", 3), ("PlanningGame-v0", 4)])
    def test_landmarks_are_exact(self, env_id: str, n: int) -> None:
        known = landmarks(env_id)
        assert play_at_random(n) == pytest.approx(known["random"], abs=6e-5)
        assert task_known(n) == pytest.approx(known["task_known"], abs=6e-5)
        assert plan(n).values[0, -1] == pytest.approx(known["bayes_optimal"], abs=6e-5)

    def test_landmarks_of_what_else_is_shown(self) -> None:
        memory = landmarks("PlanningGame-3x3-v0")
        just_goal = landmarks("PlanningGame-3x3-justgoal-v0")
        assert search_anew(3) == pytest.approx(just_goal["bayes_optimal"], abs=6e-5)
        assert landmarks("PlanningGame-3x3-xy-v0") == memory
        assert landmarks("PlanningGame-3x3-xy-goalxy-v0") == memory | {"bayes_optimal": memory["task_known"]}
        assert just_goal["bayes_optimal"] < memory["bayes_optimal"] < memory["task_known"]

    @pytest.mark.parametrize(("env_id", "n"), [("PlanningGame-3x3-v0", 3), ("PlanningGame-v0", 4)])
    def test_known_goals(self, env_id: str, n: int) -> None:
        env = build(env_id, 2048, seed=8, publish=["task"])
        total = returns(env, lambda td, _: toward(td[keys.TASK] - env.coordinates(), n))
        assert_mean(total, landmarks(env_id)["task_known"])

    def test_shown_coordinates_make_the_goal_known(self) -> None:
        env = build("PlanningGame-3x3-xy-goalxy-v0", 2048, seed=9)
        assert_mean(returns(env, lambda td, _: walker(td[keys.OBSERVATION], 3)), task_known(3))

    def test_map_memory_from_labels_alone(self) -> None:
        total = returns(env := build("PlanningGame-3x3-v0", 4096, seed=10), explorer(env))
        assert_mean(total, landmarks("PlanningGame-3x3-v0")["bayes_optimal"])
        assert total.mean().item() > search_anew(3) + 20

    def test_map_memory_on_the_larger_torus(self) -> None:
        total = returns(env := build("PlanningGame-v0", 1024, seed=11), explorer(env))
        assert_mean(total, landmarks("PlanningGame-v0")["bayes_optimal"])

    def test_search_without_a_map(self) -> None:
        env = build("PlanningGame-3x3-justgoal-v0", 4096, seed=12)
        way = torch.tensor([RIGHT, RIGHT, UP, RIGHT, RIGHT, UP, RIGHT, RIGHT])  # through all nine cells
        visited = torch.zeros(4096, dtype=torch.int64)

        def player(td: TensorDict, _: int) -> Tensor:
            found = td[keys.OBSERVATION].squeeze(-1) == 1
            action = torch.where(found, COLLECT, way[visited % 8])
            visited.copy_(torch.where(found, 0, visited + 1))
            return action

        assert_mean(returns(env, player), landmarks("PlanningGame-3x3-justgoal-v0")["bayes_optimal"])

    @pytest.mark.parametrize("env_id", ["PlanningGame-3x3-v0", "PlanningGame-v0"])
    def test_random_player(self, env_id: str) -> None:
        generator = torch.Generator().manual_seed(13)
        env = build(env_id, 4096, seed=13)
        total = returns(env, lambda td, _: torch.randint(5, (4096,), generator=generator))
        assert_mean(total, landmarks(env_id)["random"])


def explorer(env: PlanningGame) -> Callable[[TensorDict, int], Tensor]:
    player = Explorer(env.num_envs, env.maze_size)
    return lambda td, steps_to_go: player(td[keys.OBSERVATION], steps_to_go)


class TestErrors:
    """What is refused, in one line."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"maze_size": 1}, "`maze_size` is 1: expected at least 2"),
            ({"maze_size": 0}, "`maze_size` is 0: expected an integer"),
            ({"maze_size": 3.0}, "`maze_size` is 3.0"),
            ({"max_episode_steps": 0}, "`max_episode_steps` is 0"),
            ({"target_reward": "1"}, "`target_reward` is '1': expected a finite number"),
            ({"per_step_reward": float("nan")}, "`per_step_reward` is nan"),
            ({"random_respawn": 1}, "`random_respawn` is 1: expected true or false"),
            ({"show_xy": "no"}, "`show_xy` is 'no'"),
            ({"show_goal_xy": 0}, "`show_goal_xy` is 0"),
            ({"just_show_whether_at_goal": None}, "`just_show_whether_at_goal` is None"),
            ({"just_show_whether_at_goal": True, "show_xy": True}, "`just_show_whether_at_goal`.*`show_xy`"),
            ({"just_show_whether_at_goal": True, "show_goal_xy": True}, "`just_show_whether_at_goal`.*`show_goal_xy`"),
            ({"episodes_per_task": 2}, "`episodes_per_task` is 2: .*expects 1"),
            (
                {"task_split": "test", "test_fraction": 0.01},
                "`task_split` is 'test' and holds 1 goal cell: expected at least 2",
            ),
            ({"task_split": "train", "test_fraction": 0.99}, "`task_split` is 'train' and holds 1 goal cell"),
            ({"fixed_task": [4, 0]}, r"`fixed_task` is \[4, 0\]: .*expected two coordinates from 0 to 3"),
            ({"publish": ["belief"]}, "`publish` holds 'belief'"),
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            PlanningGame(2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("task", (3, 0), "injected task is .*expected two coordinates from 0 to 2"),
            ("goal", (0, -1), "injected goal is"),
            ("position", (0.5, 1), "injected position is"),
            ("position", 3, r"injected position has shape \(\): expected \(2,\) or \(2, 2\)"),
            ("labels", [0, 1, 2], r"injected labels has shape \(3,\): expected \(9,\) or \(2, 9\)"),
            ("goal", [(0, 1), (1, 3)], r"injected goal is \[1, 3\]: expected two"),
            ("labels", [0, 0, 2, 3, 4, 5, 6, 7, 8], r"injected labels is \[0, 0, .*expected a permutation of 0 to 8"),
            ("start", (0, 0), "nothing called 'start' is drawn"),
        ],
    )
    def test_impossible_injections_are_named(self, name: str, value: object, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            PlanningGame(2, maze_size=3).inject(name, value)

    @pytest.mark.parametrize("random_respawn", [False, True])
    def test_an_injected_goal_is_never_the_cell_of_the_agent(self, random_respawn: bool) -> None:
        env = PlanningGame(2, maze_size=3, random_respawn=random_respawn)
        env.inject("task", [(0, 1), (2, 2)])
        env.inject("position", [(0, 0), (2, 2)])
        with pytest.raises(ValueError, match=r"^injected position is \[2, 2\]: expected agent and goal on"):
            env.reset()
        beside(env, (1, 1), (1, 0))
        step(env, UP)
        env.inject("goal", (1, 1))  # the cell of the agent, which only a respawn leaves
        if random_respawn:
            env.inject("position", (1, 1))
        name = "position" if random_respawn else "goal"
        with pytest.raises(ValueError, match=rf"^injected {name} is \[1, 1\]: expected agent and goal"):
            step(env, COLLECT)

    def test_only_environments_that_take_an_injected_cell_are_checked(self) -> None:
        env = PlanningGame(2, maze_size=3)
        beside(env, (1, 1), [(1, 0), (0, 0)])
        env.inject("goal", [(0, 0), (0, 1)])  # the second one is the cell of an agent that collects nothing
        step(env, UP)
        assert step(env, COLLECT)[keys.REWARD].flatten().tolist() == [1, 0]
        assert cells(env)[1].tolist() == [0, 4]
