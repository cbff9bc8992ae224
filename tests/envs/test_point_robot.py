"""Point robots: dynamics, rewards, options, sampling laws and what a player that knows the goal earns."""

from __future__ import annotations

import math

import pytest
import torch
from sampling import assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import MetaEnv
from hyperrl.envs.point_robot import ENVS, PointRobot, Semicircle, SparsePointRobot

CLASSES = {"PointEnv-v0": PointRobot, "SparsePointEnv-v0": SparsePointRobot, "Semicircle-v0": Semicircle}


def step(env: MetaEnv, action: object) -> TensorDict:
    action = torch.as_tensor(action, dtype=torch.float32).expand(env.num_envs, 2)
    return env.step(TensorDict({keys.ACTION: action}, [env.num_envs]))[keys.NEXT]


def on_circle(angle: float, radius: float = 1.0) -> list[float]:
    return [radius * math.cos(angle), radius * math.sin(angle)]


def bin_of(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Which of so many equal parts of an interval, from 0, holds each value; bounds may be missed by rounding."""
    assert low - 1e-6 <= values.min()
    assert values.max() <= high + 1e-6
    return ((values.double() - low) / (high - low) * bins).long().clamp(0, bins - 1)


def assert_uniform_between(values: Tensor, low: float, high: float) -> None:
    """All of 20 parts are equally likely."""
    assert_uniform(bin_of(values, low, high, 20), range(20))


def assert_uniform_in_square(x: Tensor, y: Tensor) -> None:
    """Uniform in [-1, 1] x [-1, 1]: all of 8 x 8 squares are equally likely."""
    assert max(x.abs().max(), y.abs().max()) <= 1
    column, row = (bin_of(values, -1, 1, 8) for values in (x, y))
    assert_uniform(8 * column + row, range(64))


class TestSizes:
    """Sizes, bounds and standard numbers of episodes (spec 2.6 and 3)."""

    @pytest.mark.parametrize(
        ("env_id", "length", "episodes", "size", "task_dim", "high"),
        [
            ("PointEnv-v0", 100, 1, 2, 2, (0.05, 0.05)),
            ("SparsePointEnv-v0", 100, 5, 3, 2, (0.05, 0.05)),
            ("Semicircle-v0", 10, 1, 3, 3, (0.01, 2 * math.pi / 100)),
        ],
    )
    def test_sizes(
        self, env_id: str, length: int, episodes: int, size: int, task_dim: int, high: tuple[float, float]
    ) -> None:
        kwargs = next(dict(entry.kwargs) for entry in ENVS if entry.id == env_id)
        assert kwargs == {"episodes_per_task": episodes}
        env = CLASSES[env_id](3)
        assert (env.episode_length, env.episodes_per_task, env.obs_dim, env.task_dim) == (
            length,
            episodes,
            size,
            task_dim,
        )
        assert (env.num_actions, env.action_dim, env.num_tasks) == (None, 2, None)
        space = env.action_spec.space
        torch.testing.assert_close(space.high, torch.tensor(high).expand(3, 2))
        torch.testing.assert_close(space.low, -space.high)
        assert env.reset()[keys.OBSERVATION].dtype == torch.float32  # quirk R4

    @pytest.mark.parametrize("family", CLASSES.values())
    def test_episodes_are_truncated_at_the_time_limit(self, family: type[MetaEnv]) -> None:
        env = family(2, 3, max_episode_steps=4)
        after = env.rollout(24, break_when_any_done=False)[keys.NEXT]
        assert after[keys.EPISODE_DONE][0, :, 0].nonzero().squeeze(-1).tolist() == [3, 7, 11, 15, 19, 23]
        assert after[keys.DONE][0, :, 0].nonzero().squeeze(-1).tolist() == [11, 23]
        assert torch.equal(after[keys.TRUNCATED], after[keys.DONE])
        assert not after[keys.TERMINATED].any()

    @pytest.mark.parametrize("family", CLASSES.values())
    def test_moves_are_jumps_unless_actions_are_clipped(self, family: type[MetaEnv]) -> None:
        free, clipped, inside = family(64, seed=1), family(64, seed=1, clip_actions=True), family(64, seed=1)
        for env in (free, clipped, inside):
            env.reset()
        action = torch.linspace(-0.12, 0.12, 128).view(64, 2)
        jump = step(free, action)
        assert not torch.equal(jump[keys.OBSERVATION], step(clipped, action)[keys.OBSERVATION])
        step(inside, action.clamp(inside.action_spec.space.low, inside.action_spec.space.high))
        assert torch.equal(clipped.observe(), inside.observe())


class TestPointRobot:
    """Dense reward (spec 9.1)."""

    def test_move_and_reward(self) -> None:
        env = PointRobot(2, publish=["task"])
        env.inject("task", [[0.5, -0.5], [1, 1]])
        env.inject("start", [0.2, -0.1])
        assert env.reset()[keys.OBSERVATION].tolist() == torch.tensor([[0.2, -0.1]] * 2).tolist()
        td = step(env, [0.3, -2.0])
        torch.testing.assert_close(td[keys.OBSERVATION], torch.tensor([[0.5, -2.1]] * 2))
        torch.testing.assert_close(td[keys.REWARD], -torch.tensor([[1.6], [math.hypot(0.5, 3.1)]]))
        assert td[keys.TASK].tolist() == [[0.5, -0.5], [1, 1]]

    def test_goals_and_starts_are_uniform_in_the_square(self) -> None:
        env = PointRobot(20_000, 2, max_episode_steps=1, seed=1, publish=["task"])
        td = env.reset()
        goal, start = td[keys.TASK], env.coordinates()
        assert torch.equal(step(env, [0, 0])[keys.TASK], goal)
        again = env.coordinates()
        for points in (goal, start, again):
            assert_uniform_in_square(*points.unbind(-1))
        for one, other in ((goal, start), (start, again), (goal, again)):  # independent of each other
            for axis in (0, 1):
                assert_uniform_in_square(one[:, axis], other[:, axis])

    def test_knowing_the_goal(self) -> None:
        """Straight to the goal with the largest moves: what is left of either coordinate shrinks by 0.05 a step."""
        env = PointRobot(256, clip_actions=True, seed=2, publish=["task"])
        td = env.reset()
        left = (td[keys.TASK] - td[keys.OBSERVATION]).abs()
        t = torch.arange(1, 101).view(-1, 1, 1)
        best = -(left - 0.05 * t).clamp(min=0).norm(dim=-1).sum(0)
        total = torch.zeros(256)
        for _ in range(env.horizon):
            td = step(env, td[keys.TASK] - td[keys.OBSERVATION])
            total += td[keys.REWARD].squeeze(-1)
        torch.testing.assert_close(total, best, rtol=0, atol=1e-3)


class TestSparsePointRobot:
    """Reward near the goal only (spec 9.2)."""

    def test_reward_inside_and_outside_the_radius(self) -> None:
        env = SparsePointRobot(1, 1, goal_radius=0.3)
        env.inject("task", [0, 1])
        assert env.reset()[keys.OBSERVATION].tolist() == [[0, 0]]
        rewards = [step(env, [0, y])[keys.REWARD].item() for y in (0.6875, 0.0625, 0.25, 0.25, 0.125)]
        assert rewards == [0.0, 0.75, 1.0, 0.75, 0.0]
        assert math.copysign(1, rewards[0]) == 1  # quirk R3

    def test_every_episode_starts_at_the_origin(self) -> None:
        env = SparsePointRobot(4, 2, max_episode_steps=2)
        env.reset()
        step(env, [0.1, 0.2])
        assert step(env, [0.1, 0.2])[keys.OBSERVATION][0].tolist() == torch.tensor([0.2, 0.4, 1.0]).tolist()
        assert env.observe().tolist() == [[0, 0]] * 4

    def test_goals_are_uniform_on_the_half_circle(self) -> None:
        goal = SparsePointRobot(20_000, seed=1, publish=["task"]).reset()[keys.TASK]
        torch.testing.assert_close(goal.norm(dim=-1), torch.ones(20_000))
        assert_uniform_between(torch.atan2(goal[:, 1], goal[:, 0]), 0, math.pi)

    def test_knowing_the_goal(self) -> None:
        """One jump, and every step of every episode pays 1; no player can earn more."""
        env = SparsePointRobot(64, 2, seed=2, publish=["task"])
        td = env.reset()
        total = torch.zeros(64)
        for _ in range(env.horizon):
            td = step(env, td[keys.TASK] - env.coordinates())
            total += td[keys.REWARD].squeeze(-1)
        torch.testing.assert_close(total, torch.full((64,), 200.0))


def semicircle_step(
    state: tuple[float, float, float],
    action: tuple[float, float],
    goal: tuple[float, float],
    radius: float,
    reach: float,
) -> tuple[tuple[float, float, float], float]:
    """Spec 9.3, word by word, for one robot; where it is put back, the heading is NaN."""
    x, y, heading = state
    for _ in range(10):
        heading += action[1]
        x += action[0] * math.cos(heading)
        y += action[0] * math.sin(heading)
        x = min(max(x, -radius), radius)
        edge = math.sqrt(abs(radius**2 - x**2))
        y = min(max(y, -edge), edge)
        heading %= 2 * math.pi
        if math.hypot(x - goal[0], y - goal[1]) <= reach:
            return (0.0, 0.0, math.nan), 1.0
    return (x, y, heading), 0.0


class TestSemicircle:
    """Repeated actions, the edge, and being put back (spec 9.3)."""

    @pytest.mark.parametrize(("scale", "min_contacts", "min_edge"), [(1.0, 10, 0), (8.0, 100, 100)])
    def test_steps_follow_the_rules_one_robot_at_a_time(self, scale: float, min_contacts: int, min_edge: int) -> None:
        env = Semicircle(200, radius=0.3, goal_radius=0.07, seed=3, publish=["task"])
        td = env.reset()
        generator = torch.Generator().manual_seed(3)
        num_contacts = num_edge = 0
        for _ in range(10):
            # As large as a float32 action, so that both sides turn by the same angle.
            action = scale * torch.randn(200, 2, generator=generator) * torch.tensor([0.01, 0.06])
            before = torch.cat((env.state["position"], env.state["heading"].unsqueeze(-1)), -1)
            td = step(env, action)
            goals = env.state[keys.TASK][:, :2].tolist()
            for row in range(200):
                state, reward = semicircle_step(
                    tuple(before[row].tolist()), tuple(action[row].tolist()), goals[row], 0.3, 0.07
                )
                x, y, heading = td[keys.OBSERVATION][row].tolist()
                assert td[keys.REWARD][row].item() == reward
                assert (x, y) == pytest.approx(state[:2], abs=1e-6)
                if reward:
                    assert -math.pi <= heading <= math.pi
                    num_contacts += 1
                else:
                    assert math.cos(heading - state[2]) == pytest.approx(1)
                    assert 0 <= heading <= 2 * math.pi
                    num_edge += math.hypot(x, y) == pytest.approx(0.3)
        assert num_contacts >= min_contacts
        assert num_edge >= min_edge

    def test_whoever_is_put_back_gets_the_next_heading_and_nobody_else_does(self) -> None:
        env = Semicircle(2, 2, max_episode_steps=3)
        env.inject("task", [[*on_circle(0.5, 0.2), 0.5], [*on_circle(2.5, 0.2), 2.5]])
        env.inject("heading", 0.5, [-1.0, 3.0], 2.0, [1.0, -3.0])
        torch.testing.assert_close(env.reset()[keys.OBSERVATION], torch.tensor([[0, 0, 0.5, 0]] * 2))
        td = step(env, [0.015, 0.0])
        assert td[keys.REWARD].tolist() == [[0], [0]]
        td = step(env, [0.002, 0.0])  # the first robot comes within 0.04 of its goal
        assert td[keys.REWARD].tolist() == [[1], [0]]
        expected = torch.tensor([[0, 0, -1, 0], [*on_circle(0.5, 0.17), 0.5, 0]])
        torch.testing.assert_close(td[keys.OBSERVATION], expected)
        td = step(env, [0.0, 0.01])
        torch.testing.assert_close(td[keys.OBSERVATION][:, 2:], torch.tensor([[2 * math.pi - 0.9, 1], [0.6, 1]]))
        torch.testing.assert_close(env.observe(), torch.tensor([[0, 0, 2.0]] * 2))

    def test_a_contact_in_the_last_step_draws_before_the_next_episode_does(self) -> None:
        env = Semicircle(1, 2, max_episode_steps=1)
        env.inject("task", [*on_circle(1.0, 0.2), 1.0])
        env.inject("heading", 1.0, -0.5, 2.5)
        env.reset()
        td = step(env, [0.02, 0.0])
        assert td[keys.REWARD].item() == 1
        torch.testing.assert_close(td[keys.OBSERVATION], torch.tensor([[0, 0, -0.5, 1]]))
        torch.testing.assert_close(env.observe(), torch.tensor([[0, 0, 2.5]]))

    def test_the_lower_half_of_the_disc_can_be_entered(self) -> None:
        env = Semicircle(1)
        env.inject("task", [*on_circle(1.0, 0.2), 1.0])
        env.inject("heading", -math.pi / 2)
        env.reset()
        x, y, heading = step(env, [0.05, 0.0])[keys.OBSERVATION][0].tolist()
        assert (x, y, heading) == pytest.approx((0, -0.2, 1.5 * math.pi), abs=1e-6)

    def test_goals_and_headings_are_uniform(self) -> None:
        env = Semicircle(20_000, radius=0.5, seed=4, publish=["task"])
        td = env.reset()
        goal_x, goal_y, angle = td[keys.TASK].unbind(-1)
        assert_uniform_between(angle, 0, math.pi)
        torch.testing.assert_close(goal_x, 0.5 * angle.cos())
        torch.testing.assert_close(goal_y, 0.5 * angle.sin())
        heading = td[keys.OBSERVATION][:, 2]
        assert_uniform_between(heading, -math.pi, math.pi)
        # All jump to their goal.
        env.inject("heading", env.state[keys.TASK][:, 2])
        env.inject("task", env.state[keys.TASK])
        env.reset()
        td = step(env, [0.05, 0.0])
        assert (td[keys.REWARD] == 1).all()
        assert not td[keys.OBSERVATION][:, :2].any()
        assert_uniform_between(td[keys.OBSERVATION][:, 2], -math.pi, math.pi)

    def test_knowing_the_goal(self) -> None:
        """Even from the right heading the goal is 0.16 and so two steps away: five contacts at most."""
        env = Semicircle(512, clip_actions=True, seed=5, publish=["task"])
        td = env.reset()
        total = torch.zeros(512)
        for _ in range(env.horizon):
            x, y, heading = td[keys.OBSERVATION].unbind(-1)
            goal_x, goal_y, _ = td[keys.TASK].unbind(-1)
            off = torch.atan2(goal_y - y, goal_x - x) - heading
            off = torch.atan2(off.sin(), off.cos())
            speed = torch.where(off.abs() < 0.7, 0.01, 0.0)
            td = step(env, torch.stack((speed, off / 10), -1))
            total += td[keys.REWARD].squeeze(-1)
        assert total.max() <= 5
        assert total.mean() > 2


class TestErrors:
    """What is refused, in one line."""

    @pytest.mark.parametrize(
        ("family", "options", "words"),
        [
            (PointRobot, {"max_episode_steps": 0}, "`max_episode_steps` is 0"),
            (Semicircle, {"max_episode_steps": 2.5}, "`max_episode_steps` is 2.5"),
            (PointRobot, {"clip_actions": 1}, "`clip_actions` is 1: expected true or false"),
            (SparsePointRobot, {"clip_actions": "no"}, "`clip_actions` is 'no'"),
            (SparsePointRobot, {"goal_radius": 0}, "`goal_radius` is 0: expected a number above 0"),
            (Semicircle, {"goal_radius": -0.1}, "`goal_radius` is -0.1"),
            (Semicircle, {"radius": None}, "`radius` is None"),
            (Semicircle, {"radius": float("inf")}, "`radius` is inf"),
            (PointRobot, {"fixed_task": [1.5, 0]}, r"`fixed_task` is \[1.5, 0\]: .*expected coordinates from -1 to 1"),
            (PointRobot, {"task_split": "test"}, "`task_split` is 'test', but there is no finite set of tasks"),
            (Semicircle, {"publish": ["task_id"]}, "`publish` holds 'task_id'"),
        ],
    )
    def test_bad_options_are_named(self, family: type[MetaEnv], options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            family(2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("family", "name", "value", "words"),
        [
            (PointRobot, "task", [0, -1.01], "injected task is .*expected coordinates from -1 to 1"),
            (PointRobot, "task", [[0, 0], [2, 0]], r"injected task is \[2.0, 0.0\]: expected coordinates"),
            (PointRobot, "start", [2, 0], "injected start is .*expected coordinates from -1 to 1"),
            (PointRobot, "start", [float("nan"), 0], "injected start is"),
            (PointRobot, "task", [0, 0, 0], r"injected task has shape \(3,\): expected \(2,\) or \(2, 2\)"),
            (SparsePointRobot, "task", [1, 1], "expected a point of the upper half circle of radius 1"),
            (SparsePointRobot, "task", on_circle(-0.5), "expected a point of the upper half circle"),
            (SparsePointRobot, "start", [0, 0], "nothing called 'start' is drawn"),
            (
                Semicircle,
                "task",
                [*on_circle(1, 0.3), 1],
                "expected x, y and angle of a point of the upper half circle",
            ),
            (Semicircle, "task", [*on_circle(1, 0.2), 2], "injected task is"),
            (Semicircle, "task", [*on_circle(-1, 0.2), -1], "injected task is"),
            (Semicircle, "task", on_circle(1, 0.2), r"injected task has shape \(2,\): expected \(3,\) or \(2, 3\)"),
            (Semicircle, "heading", [3, -3.5], "injected heading is -3.5: expected headings"),
            (Semicircle, "heading", 3.2, "injected heading is .*expected headings from -pi to pi"),
            (Semicircle, "heading", [0, 1, 2], r"injected heading has shape \(3,\): expected \(\) or \(2,\)"),
        ],
    )
    def test_impossible_injections_are_named(self, family: type[MetaEnv], name: str, value: object, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            family(2).inject(name, value)
