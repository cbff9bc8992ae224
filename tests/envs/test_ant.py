"""Ants: published numbers, rewards from a plain loop over the engine, contact forces, task laws and ends."""

from __future__ import annotations

import copy
import math
from importlib.resources import as_file, files

import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sampling import assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import make_env
from hyperrl.envs.mujoco.ant import ENVS, AntDir, AntDir2D, AntGoal, AntGoalSparse
from hyperrl.envs.mujoco.base import MujocoMetaEnv

Array = NDArray[np.float64]

QPOS0 = [0, 0, 0.75, 1, *[0] * 11]
RADII = (3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.3)


def step(env: MujocoMetaEnv, action: Tensor | float = 0.0) -> TensorDict:
    action = torch.as_tensor(action, dtype=torch.float32).expand(env.num_envs, 8)
    return env.step(TensorDict({keys.ACTION: action}, [env.num_envs]))[keys.NEXT]


def at_rest(env: MujocoMetaEnv, episodes: int = 1, **qpos: Tensor | float) -> TensorDict:
    """Reset to the model's own pose without velocity, but for `x`, `y` and `z`."""
    start = torch.tensor(QPOS0, dtype=torch.float64).repeat(env.num_envs, 1)
    for name, value in qpos.items():
        start[:, "xyz".index(name)] = torch.as_tensor(value, dtype=torch.float64)
    env.inject("qpos", *[start] * episodes)
    env.inject("qvel", *[[0.0] * 14] * episodes)
    return env.reset()


def plain_model(margin: float = 0.005) -> mujoco.MjModel:
    """Gymnasium's model, without any sensor."""
    with as_file(files("gymnasium.envs.mujoco") / "assets" / "ant.xml") as path:
        spec = mujoco.MjSpec.from_file(str(path))
    for geom in spec.geoms:
        geom.margin = margin
    return spec.compile()


class PlainAnt:
    """One simulation, stepped by `mj_step` alone.

    `contacts` `[14, 6]` are the clipped contact torques and forces inside the last step of the engine: its model has no
    sensor, so they are asked for at the state before that step.
    """

    def __init__(self, qpos: Array, qvel: Array) -> None:
        self.model = plain_model()
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        self._take_contacts(self.data)

    @property
    def torso(self) -> Array:
        return self.data.xpos[1].copy()

    def step(self, action: Array) -> None:
        self.before = self.torso
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, 4)
        last = copy.copy(self.data)
        mujoco.mj_forward(self.model, last)
        self._take_contacts(last)
        mujoco.mj_step(self.model, self.data)

    def _take_contacts(self, data: mujoco.MjData) -> None:
        mujoco.mj_rnePostConstraint(self.model, data)
        self.contacts = data.cfrc_ext.clip(-1, 1)

    def observation(self, size: int) -> Array:
        pose = self.data.qpos[2:] if size == 27 else self.data.qpos
        parts = [pose, self.data.qvel, self.contacts.flatten(), self.torso]
        return np.concatenate(parts[: {27: 2, 113: 3, 116: 4}[size]])

    def reward(self, env_id: str, action: Array, task: list[float]) -> float:
        """Spec section 6, word by word."""
        controls = sum(float(a) ** 2 for a in action)
        forces = 0.0005 * sum(float(c) ** 2 for c in self.contacts.flatten())
        x, y, _ = self.torso
        if env_id.startswith("AntDir"):
            cos, sin = task if env_id == "AntDir2D-v0" else (math.cos(task[0]), math.sin(task[0]))
            velocity = (x - self.before[0]) / 0.05 * cos + (y - self.before[1]) / 0.05 * sin
            return velocity - 0.5 * controls - forces + 1
        if env_id == "AntGoal-v0":
            return -abs(x - task[0]) - abs(y - task[1]) - 0.1 * controls - forces
        distance = math.hypot(x - task[0], y - task[1])
        return (-distance if distance <= 0.75 else -0.75) - 0.01 * controls - forces


class TestSizes:
    """Sizes, bounds and registered arguments (spec section 1)."""

    @pytest.mark.parametrize(
        ("env_id", "size", "task_dim", "num_tasks", "episodes"),
        [
            ("AntDir-v0", 27, 1, 2, 1),
            ("AntDirForwardBackward-v0", 27, 1, 2, 1),
            ("AntDir2D-v0", 27, 2, None, 1),
            ("AntGoal-v0", 113, 2, None, 2),
            ("AntGoalSparse-v0", 116, 2, None, 2),
            ("AntGoalSparseFour-v0", 116, 2, None, 2),
        ],
    )
    def test_sizes(self, env_id: str, size: int, task_dim: int, num_tasks: int | None, episodes: int) -> None:
        env = make_env(env_id, 3)
        assert (env.episodes_per_task, env.episode_length, env.dt) == (episodes, 200, 0.05)
        assert (env.obs_dim, env.task_dim, env.num_tasks) == (size + (episodes > 1), task_dim, num_tasks)
        assert (env.num_actions, env.action_dim) == (None, 8)
        assert torch.equal(env.action_spec.space.high, torch.ones(3, 8))
        assert torch.equal(env.action_spec.space.low, -torch.ones(3, 8))

    def test_registered_arguments(self) -> None:
        found = {entry.id: dict(entry.kwargs) for entry in ENVS}
        assert found == {
            "AntDir-v0": {"episodes_per_task": 1},
            "AntDirForwardBackward-v0": {"episodes_per_task": 1, "directions": (0.0, math.pi)},
            "AntDir2D-v0": {"episodes_per_task": 1},
            "AntGoal-v0": {"episodes_per_task": 2},
            "AntGoalSparse-v0": {"episodes_per_task": 2},
            "AntGoalSparseFour-v0": {"episodes_per_task": 2, "level": 4},
        }
        assert make_env("AntDir-v0", 1).directions == (-1.0, 1.0)
        assert make_env("AntGoalSparse-v0", 1).level == 4


class TestPublishedNumbers:
    """Spec section 11, in the convention that takes contact forces inside the engine's last step (b)."""

    @pytest.mark.parametrize(
        ("env_id", "task", "first", "tenth", "total"),
        [
            ("AntDir-v0", [1.0], -1.7320228318, -1.52770, -73.242),
            ("AntGoal-v0", [2.0, 1.0], -3.5213426347, -3.68082, -132.996),
            ("AntGoalSparseFour-v0", [0.3, 0.0], -0.3486511973, -0.48090, -21.030),
        ],
    )
    def test_rewards(
        self,
        env_id: str,
        task: list[float],
        first: float,
        tenth: float,
        total: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        env = make_env(env_id, 2)
        env.inject("task", torch.tensor(task, dtype=torch.float64))
        at_rest(env)
        rewards, compute = [], env.reward

        def keep(action: Array, velocity: Array) -> Array:  # before it is rounded to float32
            rewards.append(compute(action, velocity))
            return rewards[-1]

        monkeypatch.setattr(env, "reward", keep)
        for t in range(40):
            env.transition(1.2 * torch.sin(0.3 * t + torch.arange(8, dtype=torch.float64)).expand(2, 8))
        reward = np.stack(rewards)[:, 1]
        assert reward[0] == pytest.approx(first, abs=5e-11)
        assert reward[9] == pytest.approx(tenth, abs=5e-6)
        # Half a digit of what is given. Velocities that are changed by 1e-9 at every step, which is more than rounding
        # does, change the sums by 1e-5.
        assert reward.sum() == pytest.approx(total, abs=5.2e-4)

    def test_height_of_a_resting_ant(self) -> None:
        """After 5 s without control; an ant whose margins are added stands higher."""
        env = AntGoalSparse(1, 1, episode_length=101)
        at_rest(env)
        for _ in range(100):
            td = step(env)
        assert env._qpos[0, 2] == pytest.approx(0.5301687, abs=5e-8)
        assert td[keys.OBSERVATION][0, -1].item() == pytest.approx(0.5301687, abs=1e-7)
        assert (env._batch.model.geom_margin == 0.005).all()
        model = plain_model(margin=0.01)
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, 500)
        assert data.qpos[2] == pytest.approx(0.54376, abs=5e-6)

    def test_model(self) -> None:
        model = AntDir(1)._batch.model
        assert (model.nq, model.nv, model.nu, model.nbody, model.ngeom) == (15, 14, 8, 14, 14)
        assert model.qpos0.tolist() == QPOS0
        assert model.body_mass.sum() == pytest.approx(0.91088, abs=5e-6)


class TestPlainLoop:
    """What a loop of `mj_step` over single simulations shows and pays."""

    @pytest.mark.parametrize(
        "env_id",
        ["AntDir-v0", "AntDirForwardBackward-v0", "AntDir2D-v0", "AntGoal-v0", "AntGoalSparse-v0"],
    )
    def test_observations_and_rewards(self, env_id: str) -> None:
        env = make_env(env_id, 5, episodes_per_task=1, seed=2, publish=["task"], num_threads=2)
        td = env.reset()
        ants = [PlainAnt(qpos, qvel) for qpos, qvel in zip(env._qpos.copy(), env._qvel.copy(), strict=True)]
        tasks = env.state[keys.TASK].tolist()
        generator = torch.Generator().manual_seed(2)
        forces = []
        for _ in range(15):
            for row, ant in enumerate(ants):
                expected = ant.observation(env.obs_dim)
                np.testing.assert_allclose(td[keys.OBSERVATION][row].numpy(), expected, rtol=1e-6, atol=1e-7)
            action = 1.3 * torch.randn(5, 8, generator=generator)
            td = step(env, action)
            for row, ant in enumerate(ants):
                ant.step(action[row].double().numpy())
                forces.append(np.square(ant.contacts).sum())
                expected = ant.reward(env_id, action[row].double().numpy(), tasks[row])
                assert td[keys.REWARD][row].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert not td[keys.DONE].any()
        assert sum(force > 1 for force in forces) > 10  # contacts have been paid for

    def test_contacts_at_the_start(self) -> None:
        """One robot is in the air, two are pressed into the floor, one less; one thread serves them all."""
        env = AntGoal(4, 1, num_threads=1)
        height = [0.9, 0.2, 0.1, 0.9]
        for again in range(2):
            td = at_rest(env, z=torch.tensor(height))
            shown = td[keys.OBSERVATION][:, 29:]
            ants = [PlainAnt(qpos, np.zeros(14)) for qpos in env._qpos.copy()]
            np.testing.assert_allclose(shown.numpy(), np.stack([ant.contacts.flatten() for ant in ants]), atol=1e-6)
            assert shown.abs().sum(-1).gt(0).tolist() == [False, again == 0, True, False]
            height[1] = 0.7  # off the floor

    def test_contacts_are_mostly_saturated(self) -> None:
        """Near 87 % of what is not zero; the cost is a thousandth or two (spec section 6)."""
        env = AntGoal(32, 1, seed=1)
        env.reset()
        generator = torch.Generator().manual_seed(1)
        actions = 2 * torch.rand(200, 32, 8, generator=generator) - 1
        contacts = torch.stack([step(env, action)[keys.OBSERVATION][:, 29:] for action in actions])
        loaded = contacts[:40][contacts[:40] != 0]  # fewer are saturated among the legs of an ant that lies
        assert 0.83 < (loaded.abs() == 1).float().mean() < 0.91
        assert contacts.abs().max() == 1
        assert not contacts[..., :6].any()  # nothing loads the world
        assert 0.001 < 0.0005 * contacts.square().sum(-1).mean() < 0.002

    def test_positions_lag(self) -> None:
        env = AntGoalSparse(16, 1, seed=3)
        td = env.reset()
        assert torch.equal(td[keys.OBSERVATION][:, -3:], td[keys.OBSERVATION][:, :3])
        td = step(env, 1.0)
        lag = (td[keys.OBSERVATION][:, -3:] - td[keys.OBSERVATION][:, :3]).abs()
        assert 1e-9 < lag.max() < 6e-3  # spec section 2
        assert torch.equal(env.coordinates(), td[keys.OBSERVATION][:, :2])


class TestDirections:
    """Ants that run: tasks, the directions that they are paid for, and falls."""

    def test_tasks(self) -> None:
        for env_id, angles in (("AntDir-v0", (-1.0, 1.0)), ("AntDirForwardBackward-v0", (0.0, math.pi))):
            td = make_env(env_id, 10_000, seed=1, publish=["task", "task_id"]).reset()
            assert_uniform(td[keys.TASK_ID], range(2))
            assert torch.equal(td[keys.TASK][:, 0], torch.tensor(angles)[td[keys.TASK_ID]])

    def test_task_ids_are_in_the_order_of_the_list(self) -> None:
        env = AntDir(4, directions=[2.0, -0.5, 0.25], publish=["task", "task_id"])
        env.inject("task", [[0.25], [-0.5], [2.0], [-0.5]])
        assert env.reset()[keys.TASK_ID].tolist() == [2, 1, 0, 1]
        assert_uniform(AntDir(3000, directions=[2.0, -0.5, 0.25], publish=["task_id"]).reset()[keys.TASK_ID], range(3))

    def test_any_direction_is_uniform(self) -> None:
        task = make_env("AntDir2D-v0", 20_000, seed=1, publish=["task"]).reset()[keys.TASK]
        torch.testing.assert_close(task.norm(dim=-1), torch.ones(20_000))
        turn = torch.atan2(task[:, 1], task[:, 0]) / (2 * math.pi) % 1.0
        assert_uniform((20 * turn).long().clamp(max=19), range(20))

    @pytest.mark.parametrize(
        ("env_id", "directions"),
        [
            ("AntDir-v0", {(-1.0,): (0.5403, -0.8415), (1.0,): (0.5403, 0.8415)}),
            ("AntDirForwardBackward-v0", {(0.0,): (1, 0), (math.pi,): (-1, 0)}),
            ("AntDir2D-v0", {(0.6, -0.8): (0.6, -0.8), (0.0, 1.0): (0, 1)}),
        ],
    )
    def test_direction_that_is_paid_for(
        self, env_id: str, directions: dict[tuple[float, ...], tuple[float, float]]
    ) -> None:
        """An ant in the air that flies at 1 m/s along either axis gets a component of the direction, and 1."""
        env = make_env(env_id, 4)
        env.inject("task", [task for task in directions for _ in "xy"])
        env.inject("qpos", QPOS0)
        env.inject("qvel", [[1.0, 0.0, *[0] * 12], [0.0, 1.0, *[0] * 12]] * 2)
        env.reset()
        reward = step(env)[keys.REWARD].view(2, 2)
        torch.testing.assert_close(reward, 1 + torch.tensor(list(directions.values())).float(), rtol=0, atol=2e-2)

    @pytest.mark.parametrize("env_id", ["AntDir-v0", "AntDir2D-v0"])
    def test_falls_end_episodes(self, env_id: str) -> None:
        """Also deep ones: the floor throws robots that are put into it out, but not those that are shot at it."""
        env = make_env(env_id, 181)
        height = torch.linspace(-0.6, 1.2, 181)
        kinds = set()
        for speed in (0.0, -5.0, -20.0):
            env.inject("qvel", [0, 0, speed, *[0] * 11])
            start = torch.tensor(QPOS0, dtype=torch.float64).repeat(181, 1)
            start[:, 2] = height
            env.inject("qpos", start)
            env.reset()
            after = step(env)
            z = after[keys.OBSERVATION][:, 0]
            assert torch.equal(after[keys.TERMINATED][:, 0], (z < 0.2) | (z > 1.0))
            assert torch.equal(after[keys.DONE], after[keys.TERMINATED])
            kinds |= set(((z >= 0.2).int() + (z > 1.0)).tolist())
        assert kinds == {0, 1, 2}
        assert not env.engine_warnings

    def test_bounds_of_the_height_are_allowed(self) -> None:
        env = AntDir(4)
        at_rest(env, z=torch.tensor([0.2, 1.0, math.nextafter(0.2, 0), math.nextafter(1, 2)], dtype=torch.float64))
        assert env.fallen().tolist() == [False, False, True, True]

    def test_a_fall_in_the_last_step_is_the_time_limit(self) -> None:
        """Quirk M18."""
        for limit in (1, 2):
            env = AntDir(2, episode_length=limit)
            at_rest(env, z=torch.tensor([1.1, 0.7]))
            after = step(env)
            assert after[keys.TERMINATED][:, 0].tolist() == [limit == 2, False]
            assert after[keys.TRUNCATED][:, 0].tolist() == [limit == 1] * 2

    def test_a_fall_ends_the_episode_and_not_the_task(self) -> None:
        """Quirk M22: the meta-episode is shorter then."""
        env = AntDir(2, 2, episode_length=3)
        at_rest(env, episodes=2, z=torch.tensor([1.1, 0.7]))
        first, second, third = (step(env) for _ in range(3))
        assert first[keys.EPISODE_DONE][:, 0].tolist() == [True, False]
        assert not first[keys.DONE].any()
        assert second[keys.TERMINATED][:, 0].tolist() == second[keys.DONE][:, 0].tolist() == [True, False]
        assert third[keys.EPISODE_DONE][1].item()
        assert not third[keys.DONE][1].item()

    def test_a_state_that_is_not_finite_ends_the_episode(self) -> None:
        env, undisturbed = AntDir(3, seed=1), AntDir(3, seed=1)
        for each in (env, undisturbed):
            each.reset()
        action = torch.zeros(3, 8)
        action[1, 2] = float("nan")
        after, expected = step(env, action), step(undisturbed)
        assert after[keys.TERMINATED][:, 0].tolist() == [False, True, False]
        assert after[keys.REWARD][1].item() == 0
        for name in (keys.OBSERVATION, keys.REWARD):
            assert torch.equal(after[name][[0, 2]], expected[name][[0, 2]])
            assert after[name].isfinite().all()


class TestGoals:
    """Ants that go to goals."""

    @pytest.mark.parametrize("env_id", ["AntGoal-v0", "AntGoalSparse-v0"])
    def test_goals_are_uniform_in_the_disc(self, env_id: str) -> None:
        """All of 8 rings of the same area in 8 sectors are equally likely."""
        x, y = make_env(env_id, 20_000, seed=2, publish=["task"]).reset()[keys.TASK].double().unbind(-1)
        ring = ((x.square() + y.square()) / 9 * 8).long()
        sector = (torch.atan2(y, x) / (2 * math.pi) % 1.0 * 8).long().clamp(max=7)
        assert_uniform(8 * ring + sector, range(64))

    @pytest.mark.parametrize("family", [AntGoal, AntGoalSparse])
    def test_episodes_end_at_the_time_limit_only(self, family: type[AntGoal]) -> None:
        """Quirk M6: not by lying on the back, in the floor, or far up."""
        env = family(3, 2, episode_length=4)
        start = torch.tensor([QPOS0] * 3, dtype=torch.float64)
        start[0, 2:7] = torch.tensor([0.3, 0, 1, 0, 0])
        start[1, 2], start[2, 2] = 0.1, 5.0
        env.inject("qpos", start, start)
        env.reset()
        rows = [step(env) for _ in range(8)]
        assert [row[keys.EPISODE_DONE].sum().item() for row in rows] == [0, 0, 0, 3, 0, 0, 0, 3]
        assert not any(row[keys.TERMINATED].any() for row in rows)
        assert rows[-1][keys.TRUNCATED].all()

    @pytest.mark.parametrize(("level", "radius"), list(enumerate(RADII)))
    def test_levels(self, level: int, radius: float) -> None:
        """Without controls, and before the ant touches the floor, there are no costs."""
        distance = torch.linspace(0.005, 2.995, 300)
        angle = torch.arange(300.0)
        env = AntGoalSparse(300, 1, level=level, publish=["task", "success"])
        assert env.goal_radius == radius
        env.inject("task", distance.unsqueeze(-1) * torch.stack((angle.cos(), angle.sin()), -1))
        assert not at_rest(env)[keys.SUCCESS].any()
        after = step(env)
        found = (after[keys.OBSERVATION][:, -3:-1] - after[keys.TASK]).norm(dim=-1)
        torch.testing.assert_close(found, distance, rtol=0, atol=2e-3)
        near = found <= radius
        assert near.sum().item() == pytest.approx(100 * radius, abs=1)
        assert torch.equal(after[keys.SUCCESS][:, 0], near)
        expected = torch.where(near, -found, torch.tensor(-radius))
        torch.testing.assert_close(after[keys.REWARD][:, 0], expected, rtol=0, atol=1e-6)

    def test_success_belongs_to_the_step(self) -> None:
        """It is not forgotten at the end of an episode, and by nobody's reset but one's own."""
        env = AntGoalSparse(2, 2, episode_length=2, publish=["success"])
        env.inject("task", [[0.1, 0.0], [2.0, 0.0]])
        shown = [at_rest(env, episodes=2), *(step(env) for _ in range(3))]
        assert [td[keys.SUCCESS][:, 0].tolist() for td in shown] == [[False, False], *[[True, False]] * 3]
        mask = torch.tensor([[False], [True]])
        again = env.reset(shown[-1].exclude(keys.REWARD).set("_reset", mask))
        assert again[keys.SUCCESS][:, 0].tolist() == [True, False]

    def test_success_is_forgotten_with_the_task(self) -> None:
        env = AntGoalSparse(2, 1, level=0, publish=["success"])
        env.reset()
        assert step(env)[keys.SUCCESS].any()
        assert not env.reset()[keys.SUCCESS].any()

    @pytest.mark.parametrize("family", [AntDir, AntGoalSparse])
    def test_a_reset_right_after_a_state_was_taken_up(self, family: type[AntDir | AntGoalSparse]) -> None:
        """Places and forces that the engine has not yet computed anew are not shown and not paid for."""
        publish = ["task", "success"] if family is AntGoalSparse else ["task"]
        env, fresh = (family(3, 2, seed=seed, publish=publish) for seed in (1, 2))
        env.reset()
        for _ in range(5):
            td = step(env, 0.5)
        fresh.reset()
        for _ in range(9):
            step(fresh, -0.5)
        fresh.load_state_dict(env.state_dict())
        mask = torch.tensor([[False], [True], [False]])
        rows = [
            [each.reset(td.exclude(keys.REWARD).set("_reset", mask)), *(step(each, 0.3) for _ in range(3))]
            for each in (env, fresh)
        ]
        for expected, found in zip(*rows, strict=True):
            for name in sorted(expected.keys()):
                assert torch.equal(found[name], expected[name]), name


class TestPictures:
    """What pictures show of a task."""

    def test_directions(self) -> None:
        env = AntDir(1, directions=[math.pi])
        at_rest(env, x=2.0, y=1.0)
        words, (arrow,) = env.goal_in_picture(0)
        assert words == "run at an angle of 180 degrees"
        assert arrow.shape == "arrow"
        assert arrow.start[:2] == (2.0, 1.0)
        assert arrow.end[:2] == pytest.approx((0.5, 1.0))

    def test_goals(self) -> None:
        dense, sparse = (family(1, fixed_task=[0.5, -1.25]) for family in (AntGoal, AntGoalSparse))
        for env in (dense, sparse):
            env.reset()
        words, (post,) = dense.goal_in_picture(0)
        again, (same_post, disc) = sparse.goal_in_picture(0)
        assert words == again == "go to (0.5, -1.2)"
        assert post == same_post
        assert post.start == (0.5, -1.25, 0.0)
        assert post.end[:2] == disc.start[:2] == disc.end[:2] == (0.5, -1.25)
        assert (disc.shape, disc.radius) == ("disk", 0.75)


class TestErrors:
    """What is refused, in one line."""

    @pytest.mark.parametrize(
        ("family", "options", "words"),
        [
            (AntDir, {"directions": []}, r"`directions` is \[\]: expected a list of different angles"),
            (AntDir, {"directions": 1.0}, "`directions` is 1.0"),
            (AntDir, {"directions": "forward"}, "`directions` is 'forward'"),
            (AntDir, {"directions": [0, True]}, r"`directions` is \[0, True\]"),
            (AntDir, {"directions": [0, float("inf")]}, r"`directions` is \[0, inf\]"),
            (AntDir, {"directions": [1, 0, 1.0]}, r"`directions` is \[1, 0, 1.0\]"),
            (
                AntDir,
                {"directions": [1.0, 1.0 + 1e-12]},
                r"`directions` is \[1.0, 1.000000000001\]",
            ),  # equal, if float32
            (AntDir, {"directions": [1.0], "task_split": "test"}, "`task_split` is 'test', but 1 task"),
            (AntDir, {"fixed_task": [0.5]}, r"`fixed_task` is \[0.5\]: .*one out of \[\[-1.0\], \[1.0\]\]"),
            (AntDir, {"publish": ["success"]}, "`publish` holds 'success'"),
            (AntDir2D, {"publish": ["task_id"]}, "`publish` holds 'task_id'"),
            (
                AntDir2D,
                {"fixed_task": [1, 1]},
                r"`fixed_task` is \[1, 1\]: .*expected a direction \(x, y\) of length 1",
            ),
            (AntGoal, {"fixed_task": [3, 0.1]}, r"`fixed_task` is \[3, 0.1\]: .*within 3 of the origin"),
            (AntGoal, {"task_split": "test"}, "`task_split` is 'test', but there is no finite set of tasks"),
            (AntGoal, {"episode_length": 0}, "`episode_length` is 0"),
            (AntGoalSparse, {"level": -1}, "`level` is -1: expected an integer from 0 to 6"),  # quirk M20
            (AntGoalSparse, {"level": 7}, "`level` is 7"),
            (AntGoalSparse, {"level": 4.0}, "`level` is 4.0"),
            (AntGoalSparse, {"level": True}, "`level` is True"),
            (AntGoalSparse, {"level": None}, "`level` is None"),
        ],
    )
    def test_bad_options_are_named(self, family: type[MujocoMetaEnv], options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            family(2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("family", "name", "value", "words"),
        [
            (AntDir, "task", [2.0], "injected task is .*expected one out of"),
            (AntDir, "task", [1.0, 1.0], r"injected task has shape \(2,\): expected \(1,\) or \(2, 1\)"),
            (AntDir2D, "task", [0.0, 0.99], "injected task is .*expected a direction"),
            (AntGoal, "task", [[0.0, 0.0], [2.5, 2.5]], r"injected task is \[2.5, 2.5\]: expected a goal"),
            (AntGoal, "qpos", [0.0] * 14, r"injected qpos has shape \(14,\): expected \(15,\) or \(2, 15\)"),
            (AntGoalSparse, "qvel", [float("nan")] * 14, "injected qvel is .*expected finite numbers"),
        ],
    )
    def test_impossible_injections_are_named(
        self, family: type[MujocoMetaEnv], name: str, value: object, words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            family(2).inject(name, value)
