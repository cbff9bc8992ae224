"""Walkers and hoppers with random physics: tasks, their physics, rewards and ends (spec/envs-mujoco.md section 7)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import mujoco
import numpy as np
import pytest
import torch
from sampling import LEVEL, assert_share, assert_uniform
from scipy import stats
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import make_env
from hyperrl.envs.mujoco.models import load_model
from hyperrl.envs.mujoco.random_physics import ENVS, HopperRandParams, Walker2DRandParams

Robot = Walker2DRandParams | HopperRandParams
ROBOTS = [Walker2DRandParams, HopperRandParams]
FIELDS = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
DERIVED = ("body_invweight0", "dof_invweight0", "body_subtreemass", "dof_M0", "actuator_acc0")
DIMENSIONS = {Walker2DRandParams: (8, 9, 8), HopperRandParams: (5, 6, 5)}  # bodies, dofs, geoms (spec 3.1)


def step(env: Robot, action: object) -> TensorDict:
    action = torch.as_tensor(np.asarray(action)).expand(env.num_envs, env.action_dim)
    return env.step(TensorDict({keys.ACTION: action}, [env.num_envs]))[keys.NEXT]


def random_actions(env: Robot, steps: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(steps, env.num_envs, env.action_dim, generator=generator)


def at_rest(env: Robot) -> None:
    """Let the next episode start without noise."""
    model = load_model(env.robot)
    env.inject("qpos", model.qpos0)
    env.inject("qvel", np.zeros(model.nv))


def parameters(model: mujoco.MjModel) -> np.ndarray:
    """The task that a model stands for, in the order of spec 7."""
    return np.concatenate([getattr(model, field).ravel() for field in FIELDS])


def built(env: Robot) -> np.ndarray:
    """What the engine has for the robots of a batch `[B, task_dim]`."""
    return np.stack([parameters(env._batch.get_model(index)) for index in range(env.num_envs)])


def bases(family: type[Robot]) -> np.ndarray:
    """Base of the multiplier of every element (table of spec 7)."""
    bodies, dofs, geoms = DIMENSIONS[family]
    return np.repeat([1.5, 1.5, 1.3, 1.5], [bodies, 3 * bodies, dofs, 3 * geoms])


def model_of(family: type[Robot], task: np.ndarray) -> mujoco.MjModel:
    """A copy of the nominal model with the four arrays overwritten."""
    bodies, dofs, geoms = DIMENSIONS[family]
    model = copy.copy(load_model(family.robot))
    model.body_mass[:] = task[:bodies]
    model.body_inertia[:] = task[bodies : 4 * bodies].reshape(bodies, 3)
    model.dof_damping[:] = task[4 * bodies : 4 * bodies + dofs]
    model.geom_friction[:] = task[4 * bodies + dofs :].reshape(geoms, 3)
    return model


def positions(model: mujoco.MjModel, qpos: np.ndarray, qvel: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Where a plain loop over the engine gets to with four physics steps per action `[T, nq]`."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_forward(model, data)
    path = []
    for action in actions:
        data.ctrl[:] = action
        mujoco.mj_step(model, data, nstep=4)
        path.append(data.qpos.copy())
    return np.stack(path)


def assert_uniform_between(values: Tensor, low: float, high: float) -> None:
    """Kolmogorov-Smirnov test of one law at the level of `sampling`."""
    values = values.double().numpy()
    assert low <= values.min() <= values.max() <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > LEVEL


class TestSizes:
    """Sizes and standard arguments (spec 1 and 9)."""

    @pytest.mark.parametrize(
        ("env_id", "family", "observation", "action", "task"),
        [
            ("Walker2DRandParams-v0", Walker2DRandParams, 17, 6, 65),
            ("HopperRandParams-v0", HopperRandParams, 11, 3, 41),
        ],
    )
    def test_sizes(self, env_id: str, family: type[Robot], observation: int, action: int, task: int) -> None:
        assert env_id in [entry.id for entry in ENVS]
        for env in (make_env(env_id, 2), family(2)):
            assert isinstance(env, family)
            assert (env.obs_dim, env.action_dim, env.task_dim, env.num_tasks) == (observation + 1, action, task, None)
            assert (env.episodes_per_task, env.episode_length, env.log_scale_limit) == (2, 200, 3.0)
            assert env.dt == pytest.approx(0.016)


class TestAnchors:
    """Numbers of spec 11, of a start without noise and nominal parameters."""

    @pytest.mark.parametrize(
        ("family", "first", "total", "steps", "qpos"),
        [
            (
                Walker2DRandParams,
                0.8513345719,
                -5.2315383,
                10,
                (-0.24301313, 1.17054708, -1.05319814, -0.65603671, -0.26401408)
                + (-1.00320688, -0.41971371, -1.16763606, 1.18756754),
            ),
            (
                HopperRandParams,
                1.0434372663,
                15.2089188,
                14,
                (0.01983183, 1.27929226, -0.2083931, -0.04804266, -0.4290622, -0.31975832),
            ),
        ],
    )
    def test_rewards_end_and_position(
        self,
        family: type[Robot],
        first: float,
        total: float,
        steps: int,
        qpos: tuple[float, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        env = family(1, 1, log_scale_limit=0.0)
        rewards: list[float] = []
        reward = env.reward

        def record(*args: np.ndarray) -> np.ndarray:  # before rewards become float32
            paid = reward(*args)
            rewards.append(paid.item())
            return paid

        monkeypatch.setattr(env, "reward", record)
        at_rest(env)
        env.reset()
        for t in range(steps):
            td = step(env, 1.2 * np.sin(0.3 * t + np.arange(env.action_dim)))
            assert td[keys.TERMINATED].item() == td[keys.DONE].item() == (t == steps - 1)
            assert td[keys.REWARD].item() == np.float32(rewards[-1])
        assert rewards[0] == pytest.approx(first, abs=5e-11)
        assert sum(rewards) == pytest.approx(total, abs=5e-8)
        np.testing.assert_allclose(env._qpos[0], qpos, rtol=0, atol=5e-9)


@pytest.mark.parametrize("family", ROBOTS)
class TestTasks:
    """What is drawn, in which order, and by which law (table of spec 7)."""

    def test_layout_is_that_of_the_model_row_by_row(self, family: type[Robot]) -> None:
        env = family(3, seed=1, publish=["task"])
        task = env.reset()[keys.TASK]
        assert np.array_equal(built(env), env.state[keys.TASK].numpy())
        assert torch.equal(task, env.state[keys.TASK].float())
        nominal = parameters(load_model(family.robot))
        assert (len(nominal), (nominal == 0).sum()) == (env.task_dim, 7)
        bodies = DIMENSIONS[family][0]
        damping = 4 * bodies
        zeros = [0, bodies, bodies + 1, bodies + 2, damping, damping + 1, damping + 2]  # world, and root joints
        for row in task:
            assert (row == 0).nonzero().squeeze(-1).tolist() == zeros

    def test_limit_zero_is_the_nominal_robot(self, family: type[Robot]) -> None:
        env = family(4, log_scale_limit=0, publish=["task"])
        env.reset()
        assert (built(env) == parameters(load_model(family.robot))).all()

    def test_every_element_has_a_uniform_exponent_of_its_own(self, family: type[Robot]) -> None:
        nominal = parameters(load_model(family.robot))
        varied = torch.tensor(nominal != 0)
        # First two and last of masses, inertias, dampings and frictions (the first frictions are the floor's).
        bodies, dofs, geoms = DIMENSIONS[family]
        sizes = torch.tensor([bodies - 1, 3 * (bodies - 1), dofs - 3, 3 * geoms])
        ends = sizes.cumsum(0)
        chosen = torch.cat((ends - sizes, ends - sizes + 1, ends - 1)).tolist()
        for limit in (3.0, 0.5):
            task = family(1, log_scale_limit=limit, seed=2).sample_tasks(4000)
            exponent = ((task / torch.tensor(nominal)).log() / torch.tensor(bases(family)).log())[:, varied]
            for index in chosen:
                assert_uniform_between(exponent[:, index], -limit, limit)
            parts = ((exponent / limit + 1) * 3).long()
            for one, other in zip(chosen[:-1], chosen[1:], strict=True):  # and independent of each other
                assert_uniform(6 * parts[:, one] + parts[:, other], range(36))

    def test_draws_are_in_the_published_order(self, family: type[Robot]) -> None:
        env = family(2, seed=5)
        env.reset()
        generator = torch.Generator().manual_seed(5)
        nominal = parameters(load_model(family.robot))
        for row in env.state[keys.TASK].numpy():
            for element, (value, base) in enumerate(zip(nominal, bases(family), strict=True)):
                exponent = -3 + 6 * torch.rand((), generator=generator, dtype=torch.float64).item()
                assert row[element] == pytest.approx(value * base**exponent, rel=1e-14)

    def test_parameters_do_not_drift(self, family: type[Robot]) -> None:
        env = family(50, seed=3)
        nominal, largest = parameters(load_model(family.robot)), bases(family) ** 3
        for _ in range(40):
            env.reset()
            task = env.state[keys.TASK].numpy()
            assert (task >= nominal / largest * (1 - 1e-12)).all()
            assert (task <= nominal * largest * (1 + 1e-12)).all()

    def test_most_bodies_are_no_solid_bodies(self, family: type[Robot]) -> None:
        """Quirk M14; the shares of spec 7 were measured with 64 tasks (448 and 256 bodies)."""
        bodies = DIMENSIONS[family][0]
        task = family(1, seed=4).sample_tasks(64)
        inertia = task[:, bodies : 4 * bodies].view(64, bodies, 3)[:, 1:]
        violates = 2 * inertia.max(-1).values > inertia.sum(-1)
        assert_share(violates, {Walker2DRandParams: 0.91, HopperRandParams: 0.93}[family])

    def test_a_published_task_can_be_forced(self, family: type[Robot]) -> None:
        env, again = family(5, seed=6, publish=["task"]), family(5, seed=7, publish=["task"])
        task = env.reset()[keys.TASK]
        again.inject("task", task)
        assert torch.equal(again.reset()[keys.TASK], task)
        np.testing.assert_allclose(built(again), built(env), rtol=1e-7)
        again.inject("task", env.state[keys.TASK])  # not rounded
        again.reset()
        assert np.array_equal(built(again), built(env))

    def test_fixed_task_is_built_by_every_reset(self, family: type[Robot]) -> None:
        task = family(1, seed=8, publish=["task"]).reset()[keys.TASK][0]
        env = family(3, fixed_task=task.tolist(), publish=["task"])
        for _ in range(2):
            assert (env.reset()[keys.TASK] == task).all()
            assert (built(env) == task.double().numpy()).all()

    def test_possible_are_multiples_within_the_range(self, family: type[Robot]) -> None:
        nominal, largest = torch.tensor(parameters(load_model(family.robot))), torch.tensor(bases(family) ** 1.5)
        env = family(2, log_scale_limit=1.5)
        for task in (nominal, nominal * largest, nominal / largest):
            env.inject("task", task, task.float())
        bodies, dofs, _ = DIMENSIONS[family]
        for element in (1, bodies + 3, 4 * bodies + dofs - 1, -1):  # mass, inertia, damping, friction
            for factor in (1.00001 * largest[element], 0.99999 / largest[element]):
                task = nominal.clone()
                task[element] *= factor
                with pytest.raises(ValueError, match="expected nominal values times"):
                    env.inject("task", task)


@pytest.mark.parametrize("family", ROBOTS)
class TestPhysics:
    """The engine runs on the task, and on nothing else that is derived from it (quirk M15)."""

    def test_positions_are_those_of_the_overwritten_model_bit_for_bit(self, family: type[Robot]) -> None:
        env = family(4, 1, seed=1)
        env.reset()
        start = env._qpos.copy(), env._qvel.copy()
        actions = random_actions(env, 20)
        path = np.stack([(step(env, action), env._qpos.copy())[1] for action in actions])
        nominal = load_model(family.robot)
        for index in range(4):
            task = env.state[keys.TASK][index].numpy()
            args = start[0][index], start[1][index], actions[:, index].numpy()
            model = model_of(family, task)
            assert np.array_equal(path[:, index], positions(model, *args))
            mujoco.mj_setConst(model, mujoco.MjData(model))
            for other in (model, nominal):
                assert not np.array_equal(path[-1, index], positions(other, *args)[-1])

    def test_derived_constants_are_nominal(self, family: type[Robot]) -> None:
        env = family(2, seed=2)
        env.reset()
        nominal = load_model(family.robot)
        for index in range(2):
            model = env._batch.get_model(index)
            recomputed = copy.copy(model)
            mujoco.mj_setConst(recomputed, mujoco.MjData(recomputed))
            for field in DERIVED:
                assert np.array_equal(getattr(model, field), getattr(nominal, field))
                assert not np.array_equal(getattr(recomputed, field), getattr(nominal, field))

    def test_the_shared_model_stays_nominal(self, family: type[Robot]) -> None:
        before = parameters(load_model(family.robot))
        family(2).reset()
        assert np.array_equal(parameters(load_model(family.robot)), before)

    def test_partial_resets_rebuild_their_robots_only(self, family: type[Robot]) -> None:
        env = family(4, 1, seed=3)
        td = env.reset()
        step(env, np.zeros(env.action_dim))
        before = built(env)
        chosen = np.array([False, True, False, True])
        env.reset(td.set("_reset", torch.tensor(chosen).unsqueeze(-1)))
        after = built(env)
        assert np.array_equal(after[~chosen], before[~chosen])
        assert (after[chosen] != before[chosen]).sum(1).tolist() == [env.task_dim - 7] * 2

    def test_all_episodes_of_a_task_are_with_the_same_body(self, family: type[Robot]) -> None:
        env = family(3, 3, seed=4, episode_length=2)
        env.reset()
        before = built(env)
        for _ in range(env.horizon):
            td = step(env, np.zeros(env.action_dim))
            assert np.array_equal(built(env), before)
        assert td[keys.DONE].all()

    def test_pictures_tell_the_mass(self, family: type[Robot]) -> None:
        env = family(3, seed=5)
        env.reset()
        bodies = DIMENSIONS[family][0]
        for index, task in enumerate(env.state[keys.TASK]):
            assert env.goal_in_picture(index).words == f"go forward with a body of {task[:bodies].sum():.1f} kg"

    def test_resume_within_an_episode(self, family: type[Robot]) -> None:
        env, fresh, used = (family(3, seed=seed) for seed in (5, 6, 7))
        env.reset()
        used.reset()
        actions = random_actions(env, 16, scale=0.2)
        for action in actions[:8]:
            step(env, action)
        for other in (fresh, used):
            other.load_state_dict(env.state_dict())
            assert np.array_equal(built(other), built(env))
        for action in actions[8:]:
            rows = [step(each, action) for each in (env, fresh, used)]
            for row in rows[1:]:
                assert torch.equal(row[keys.OBSERVATION], rows[0][keys.OBSERVATION])
        assert np.array_equal(env._qpos, fresh._qpos)
        assert np.array_equal(env._qpos, used._qpos)


@pytest.mark.parametrize("family", ROBOTS)
class TestSteps:
    """Start, observation and reward (spec 7)."""

    def test_start_has_uniform_noise(self, family: type[Robot]) -> None:
        env = family(2000, seed=1)
        env.reset()
        model = load_model(family.robot)
        for noise in (torch.tensor(env._qpos - model.qpos0), torch.tensor(env._qvel)):
            for column in noise.T:
                assert_uniform_between(column, -0.005, 0.005)
        places = torch.tensor(np.stack((env._qpos[:, 0], env._qvel[:, 0], env._qvel[:, -1])))
        parts = ((places + 0.005) / 0.01 * 6).long().clamp(0, 5)
        for one, other in ((0, 1), (1, 2)):  # independent of each other
            assert_uniform(6 * parts[one] + parts[other], range(36))

    def test_observation_has_no_x_and_clipped_velocities(self, family: type[Robot]) -> None:
        env = family(2, 1)
        size = load_model(family.robot).nv
        qpos = load_model(family.robot).qpos0 + 0.01 * np.arange(size)
        qvel = np.linspace(-15, 15, size)
        env.inject("qpos", qpos)
        env.inject("qvel", qvel)
        observation = env.reset()[keys.OBSERVATION]
        expected = np.concatenate((qpos[1:], qvel.clip(-10, 10))).astype(np.float32)
        assert np.array_equal(observation.numpy(), np.stack([expected] * 2))
        observation = step(env, np.ones(env.action_dim))[keys.OBSERVATION]
        expected = np.concatenate((env._qpos[:, 1:], env._qvel.clip(-10, 10)), 1).astype(np.float32)
        assert np.array_equal(observation.numpy(), expected)
        assert (abs(env._qvel) > 10).any()

    def test_reward_is_speed_survival_and_cost_of_raw_actions(self, family: type[Robot]) -> None:
        env = family(8, 1, seed=2)
        env.reset()
        for action in random_actions(env, 10, scale=2.0).double():
            before = env._qpos[:, 0].copy()
            reward = step(env, action)[keys.REWARD].squeeze(-1)
            speed = (env._qpos[:, 0] - before) / 0.016
            expected = torch.tensor(speed) + 1 - 0.001 * action.square().sum(-1)
            torch.testing.assert_close(reward, expected.float())


def walker_is_over(qpos: np.ndarray, qvel: np.ndarray) -> bool:
    """The rule of spec 7, word by word."""
    return not (0.8 < qpos[1] < 2.0 and -1 < qpos[2] < 1)


def hopper_is_over(qpos: np.ndarray, qvel: np.ndarray) -> bool:
    """The rule of spec 7, word by word."""
    state = [*qpos, *qvel]
    finite = all(math.isfinite(value) for value in state)
    small = all(abs(value) < 100 for value in state[2:])
    return not (finite and small and qpos[1] > 0.7 and abs(qpos[2]) < 0.2)


class TestEnds:
    """When an episode is over (spec 7)."""

    @pytest.mark.parametrize(
        ("family", "is_over"), [(Walker2DRandParams, walker_is_over), (HopperRandParams, hopper_is_over)]
    )
    def test_falls_terminate(self, family: type[Robot], is_over: Callable[[np.ndarray, np.ndarray], bool]) -> None:
        env = family(64, 1, seed=1)
        env.reset()
        num_over = 0
        for action in random_actions(env, 60):
            td = step(env, action)
            expected = [is_over(*state) for state in zip(env._qpos, env._qvel, strict=True)]
            assert td[keys.TERMINATED].squeeze(-1).tolist() == expected
            assert torch.equal(td[keys.DONE], td[keys.TERMINATED])
            num_over += sum(expected)
        assert 0 < num_over < 60 * 64
        assert not env.engine_warnings

    @pytest.mark.parametrize(
        ("family", "qpos", "qvel", "over"),
        [
            (Walker2DRandParams, {1: 0.8}, {}, True),
            (Walker2DRandParams, {1: 0.8001}, {}, False),
            (Walker2DRandParams, {1: 1.9999}, {}, False),
            (Walker2DRandParams, {1: 2.0}, {}, True),
            (Walker2DRandParams, {2: 0.9999}, {}, False),
            (Walker2DRandParams, {2: 1.0}, {}, True),
            (Walker2DRandParams, {2: -0.9999}, {}, False),
            (Walker2DRandParams, {2: -1.0}, {}, True),
            (Walker2DRandParams, {0: 1000.0, 3: 7.0}, {0: 200.0, 8: -200.0}, False),
            (HopperRandParams, {1: 0.7}, {}, True),
            (HopperRandParams, {1: 0.7001}, {}, False),
            (HopperRandParams, {1: 50.0}, {}, False),
            (HopperRandParams, {2: 0.1999}, {}, False),
            (HopperRandParams, {2: 0.2}, {}, True),
            (HopperRandParams, {2: -0.1999}, {}, False),
            (HopperRandParams, {2: -0.2}, {}, True),
            (HopperRandParams, {0: 1000.0, 1: 1000.0}, {}, False),
            (HopperRandParams, {3: 99.9}, {5: -99.9}, False),
            (HopperRandParams, {3: -100.0}, {}, True),
            (HopperRandParams, {5: 100.0}, {}, True),
            (HopperRandParams, {}, {0: 100.0}, True),
            (HopperRandParams, {}, {1: -100.0}, True),
            (HopperRandParams, {}, {5: 100.0}, True),
        ],
    )
    def test_bounds(self, family: type[Robot], qpos: dict[int, float], qvel: dict[int, float], over: bool) -> None:
        env = family(2)
        model = load_model(family.robot)
        position, velocity = (np.stack((start, start)) for start in (model.qpos0, np.zeros(model.nv)))
        position[1, list(qpos)] = list(qpos.values())
        velocity[1, list(qvel)] = list(qvel.values())
        env.inject("qpos", position)
        env.inject("qvel", velocity)
        env.reset()
        assert env.fallen().tolist() == [False, over]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("family", ROBOTS)
    def test_numbers_that_are_not_finite_are_an_end(self, family: type[Robot], bad: float) -> None:
        env = family(2)
        at_rest(env)
        env.reset()
        env._qpos[1, 1] = bad
        assert env.fallen().tolist() == [False, True]

    @pytest.mark.parametrize("family", ROBOTS)
    def test_a_fall_at_the_time_limit_is_a_time_out(self, family: type[Robot]) -> None:
        """Quirk M18."""
        for limit, terminated in ((1, False), (2, True)):
            env = family(1, 1, episode_length=limit)
            model = load_model(family.robot)
            qpos = model.qpos0.copy()
            qpos[2] = 1.5
            env.inject("qpos", qpos)
            env.inject("qvel", np.zeros(model.nv))
            env.reset()
            td = step(env, np.zeros(env.action_dim))
            assert td[keys.DONE].item()
            assert td[keys.TERMINATED].item() == terminated
            assert td[keys.TRUNCATED].item() != terminated

    def test_a_fall_starts_the_next_episode_of_the_task(self) -> None:
        """Quirk M22: there are K episodes, however short they are."""
        env = HopperRandParams(1, 2, publish=["task"])
        model = load_model("hopper")
        qpos = model.qpos0.copy()
        qpos[2] = 0.5
        env.inject("qpos", qpos, qpos)
        task = env.reset()[keys.TASK]
        ends = []
        for _ in range(2):
            td = step(env, np.zeros(3))
            assert torch.equal(td[keys.TASK], task)
            assert td[keys.EPISODE_DONE].item()
            ends.append((td[keys.TERMINATED].item(), td[keys.DONE].item()))
        assert ends == [(False, False), (True, True)]


class TestErrors:
    """What is refused, in one line."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"log_scale_limit": -0.1}, "`log_scale_limit` is -0.1: expected a number of at least 0"),
            ({"log_scale_limit": None}, "`log_scale_limit` is None"),
            ({"log_scale_limit": "3"}, "`log_scale_limit` is '3'"),
            ({"log_scale_limit": True}, "`log_scale_limit` is True"),
            ({"log_scale_limit": math.nan}, "`log_scale_limit` is nan"),
            ({"log_scale_limit": math.inf}, "`log_scale_limit` is inf"),
            ({"task_split": "train"}, "`task_split` is 'train', but there is no finite set of tasks"),
            ({"publish": ["task_id"]}, "`publish` holds 'task_id'"),
            ({"fixed_task": [1.0] * 40}, r"`fixed_task` is .*: injected task has shape \(40,\): expected \(41,\)"),
            (
                {"fixed_task": [1.0] * 41},
                "`fixed_task` is .*: injected task is .*: expected nominal values times 1.5.u",
            ),
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            HopperRandParams(2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("family", ROBOTS)
    @pytest.mark.parametrize(
        ("element", "value"),
        [(0, 1e-50), (0, -1.0), (1, 0.0), (1, -1.0), (1, math.nan), (1, math.inf), (1, 100.0), (-1, 0.0)],
    )
    def test_impossible_parameters_are_refused(self, family: type[Robot], element: int, value: float) -> None:
        env = family(2)
        task = torch.tensor(parameters(load_model(family.robot)))
        task[element] = value
        for tasks in (task, torch.stack((torch.tensor(parameters(load_model(family.robot))), task))):
            with pytest.raises(ValueError, match="injected task is .*: expected (nominal values|finite numbers)"):
                env.inject("task", tasks)
