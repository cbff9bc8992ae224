"""What all robots share: the engine's models, its batch, starts, ends, warnings and state; half-cheetahs show it."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from sampling import LEVEL, assert_mean
from scipy import stats
from tensordict import TensorDict
from test_meta_env import assert_equal, play
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import make_env
from hyperrl.envs.mujoco.base import MujocoMetaEnv
from hyperrl.envs.mujoco.half_cheetah import HalfCheetahDir
from hyperrl.envs.mujoco.models import ROBOTS, load_model

RK4, EULER = mujoco.mjtIntegrator.mjINT_RK4, mujoco.mjtIntegrator.mjINT_EULER
# `spec/envs-mujoco.md` 3.1. Root joints come first: without damping, armature and stiffness.
TABLE: dict[str, dict[str, Any]] = {
    "half_cheetah": {
        "sizes": (9, 9, 6, 8, 9),  # nq, nv, nu, bodies, geoms
        "timestep": 0.01,
        "substeps": 5,
        "integrator": EULER,
        "total_mass": 14.0,
        "gears": [120, 90, 60, 120, 60, 30],
        "actuators": ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"],
        "damping": [0, 0, 0, 6, 4.5, 3, 4.5, 3, 1.5],
        "armature": [0, 0, 0, *[0.1] * 6],
        "stiffness": [0, 0, 0, 240, 180, 120, 180, 120, 60],
        "friction": [[0.4, 0.1, 0.1]] * 9,
        "margin": 0.0,
        "solimp": [0.0, 0.8, 0.01],
        "qpos0": [0] * 9,
    },
    "ant": {
        "sizes": (15, 14, 8, 14, 14),
        "timestep": 0.01,
        "substeps": 5,
        "integrator": RK4,
        "total_mass": 0.91088,
        "gears": [150] * 8,
        "actuators": ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"],
        "damping": [*[0] * 6, *[1] * 8],
        "armature": [*[0] * 6, *[1] * 8],
        "stiffness": [0] * 9,  # per joint, of which the root is one
        "friction": [[1, 0.5, 0.5]] * 14,
        "margin": 0.005,
        "solimp": [0.9, 0.95, 0.001],
        "qpos0": [0, 0, 0.75, 1, *[0] * 11],
    },
    "walker2d": {
        "sizes": (9, 9, 6, 8, 8),
        "timestep": 0.004,
        "substeps": 4,
        "integrator": RK4,
        "total_mass": 23.67714,
        "gears": [100] * 6,
        "actuators": [
            "thigh_joint",
            "leg_joint",
            "foot_joint",
            "thigh_left_joint",
            "leg_left_joint",
            "foot_left_joint",
        ],
        "damping": [0, 0, 0, *[0.1] * 6],
        "armature": [0, 0, 0, *[0.01] * 6],
        "stiffness": [0] * 9,
        "friction": [[mu, 0.1, 0.1] for mu in (0.7, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 1.9)],
        "margin": 0.0,
        "solimp": [0.9, 0.95, 0.001],
        "qpos0": [0, 1.25, *[0] * 7],
    },
    "hopper": {
        "sizes": (6, 6, 3, 5, 5),
        "timestep": 0.004,
        "substeps": 4,
        "integrator": RK4,
        "total_mass": 15.82001,
        "gears": [200] * 3,
        "actuators": ["thigh_joint", "leg_joint", "foot_joint"],
        "damping": [0, 0, 0, *[1] * 3],
        "armature": [0, 0, 0, *[1] * 3],
        "stiffness": [0] * 6,
        "friction": [[mu, 0.005, 0.0001] for mu in (1, 0.9, 0.9, 0.9, 2.0)],
        "margin": 0.0005,
        "solimp": [0.8, 0.8, 0.01],
        "qpos0": [0, 1.25, *[0] * 4],
    },
}
ACTION_SIZE = 6


def names(model: mujoco.MjModel) -> list[str]:
    """Names of the joints that actuators move."""
    return [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]


def start(env: MujocoMetaEnv, task: float = 1.0, **forced: Any) -> TensorDict:
    """Reset without noise, unless another start is given."""
    env.inject("task", [task])
    env.inject("qpos", forced.get("qpos", env._batch.model.qpos0))
    env.inject("qvel", forced.get("qvel", np.zeros(env._batch.model.nv)))
    return env.reset()


def step(env: MujocoMetaEnv, action: Tensor) -> TensorDict:
    return env.step(TensorDict({keys.ACTION: action}, env.batch_size))[keys.NEXT]


def actions(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    """Many of them beyond the limits."""
    return scale * torch.randn(*shape, ACTION_SIZE, generator=torch.Generator().manual_seed(seed))


class TestModels:
    """The models are those of the specification."""

    @pytest.mark.parametrize("name", TABLE)
    def test_table(self, name: str) -> None:
        model, table = load_model(name), TABLE[name]
        assert (model.nq, model.nv, model.nu, model.nbody, model.ngeom) == table["sizes"]
        assert model.opt.timestep == table["timestep"]
        assert ROBOTS[name].substeps == table["substeps"]
        assert model.opt.integrator == table["integrator"]
        assert model.body_mass.sum() == pytest.approx(table["total_mass"], abs=5e-6)
        assert model.actuator_gear[:, 0].tolist() == table["gears"]
        assert names(model) == table["actuators"]
        assert model.dof_damping.tolist() == table["damping"]
        assert model.dof_armature.tolist() == table["armature"]
        assert model.jnt_stiffness.tolist() == table["stiffness"]
        assert model.geom_friction.tolist() == table["friction"]
        assert set(model.geom_margin.tolist()) == {table["margin"]}
        assert (model.geom_solimp[:, :3] == table["solimp"]).all()
        assert (model.geom_solref == [0.02, 1.0]).all()
        assert model.qpos0.tolist() == table["qpos0"]
        assert (model.actuator_ctrllimited == 1).all()
        assert (model.actuator_ctrlrange == [-1.0, 1.0]).all()
        assert model.body(1).name == "torso"  # as `MujocoMetaEnv` takes for granted

    def test_every_robot_is_in_the_table(self) -> None:
        assert set(TABLE) == set(ROBOTS)

    @pytest.mark.parametrize("name", TABLE)
    def test_bodies_collide_with_each_other_only_in_the_hopper(self, name: str) -> None:
        model = load_model(name)
        kinds, wanted = model.geom_contype[1:], model.geom_conaffinity[1:]
        assert bool((kinds[:, None] & wanted[None]).any()) == (name == "hopper")
        assert (kinds & model.geom_conaffinity[0]).all()  # all with the floor

    def test_total_mass_is_as_by_the_rule_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Which the engine still follows, with a warning that it writes into a file."""
        monkeypatch.chdir(tmp_path)
        with as_file(files("gymnasium.envs.mujoco") / "assets" / "half_cheetah.xml") as path:
            expected = mujoco.MjModel.from_xml_path(str(path))
        model = load_model("half_cheetah")
        for field in ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0"):
            np.testing.assert_allclose(getattr(model, field), getattr(expected, field), rtol=1e-12, atol=0)
        np.testing.assert_allclose(model.body_ipos, expected.body_ipos, rtol=1e-12, atol=1e-15)

    def test_models_are_shared(self) -> None:
        assert load_model("half_cheetah") is load_model("half_cheetah")
        assert HalfCheetahDir(1)._batch.model is HalfCheetahDir(2)._batch.model


class TestBatch:
    """All simulations are stepped at once, and are what each would be by itself."""

    def test_threads_change_nothing(self) -> None:
        one, two = (HalfCheetahDir(5, 2, seed=1, episode_length=15, num_threads=n) for n in (1, 2))
        assert_equal(play(one, 40), play(two, 40))

    def test_number_of_environments_changes_nothing(self) -> None:
        several = HalfCheetahDir(4, seed=1)
        first = several.reset()
        given = actions(12, 4)
        rows = [step(several, action) for action in given]
        together = torch.stack(rows, 1)
        again = HalfCheetahDir(4, seed=1)
        again.reset()
        for index in range(4):
            env = HalfCheetahDir(1)
            td = start(
                env, float(again._task[index, 0]), qpos=again._qpos[index].copy(), qvel=again._qvel[index].copy()
            )
            assert torch.equal(td[keys.OBSERVATION][0], first[keys.OBSERVATION][index])
            alone = torch.stack([step(env, action[index : index + 1]) for action in given], 1)
            for key in (keys.OBSERVATION, keys.REWARD, keys.PREV_ACTION):
                assert torch.equal(alone[key][0], together[key][index])

    def test_steps_are_those_of_a_plain_loop(self) -> None:
        """Bit by bit; the engine clamps what is beyond the limits."""
        env = HalfCheetahDir(2, seed=3)
        env.reset()
        model = load_model("half_cheetah")
        simulations = [mujoco.MjData(model) for _ in range(2)]
        for index, data in enumerate(simulations):
            data.qpos, data.qvel = env._qpos[index], env._qvel[index]
            mujoco.mj_forward(model, data)
        for action in actions(20, 2, seed=1):
            step(env, action)
            for index, data in enumerate(simulations):
                data.ctrl = action[index]
                for _ in range(5):
                    mujoco.mj_step(model, data)
                assert np.array_equal(data.qpos, env._qpos[index])
                assert np.array_equal(data.qvel, env._qvel[index])
                assert np.array_equal(data.xpos[1], env._torso[index])

    def test_a_step_takes_dt(self) -> None:
        env = HalfCheetahDir(1)
        start(env)
        step(env, torch.zeros(1, ACTION_SIZE))
        assert env.dt == 0.05
        assert env._batch.get_data(0).time == pytest.approx(0.05)

    def test_actions_are_clamped_for_the_engine_and_raw_elsewhere(self) -> None:
        """Quirk M3: the same motion costs more."""
        env = HalfCheetahDir(2)
        start(env)
        action = torch.tensor([[1.0, -1.0, 0.5, 1.0, -1.0, 0.5], [1.7, -3.0, 0.5, 1.0, -1.25, 0.5]])
        for _ in range(5):
            after = step(env, action)
            assert np.array_equal(env._qpos[0], env._qpos[1])
            difference = (after[keys.REWARD][0] - after[keys.REWARD][1]).item()
            raw = action.double().square().sum(1)
            assert difference == pytest.approx(0.05 * (raw[1] - raw[0]).item(), abs=1e-6)
            assert torch.equal(after[keys.PREV_ACTION], action)

    def test_positions_are_late_after_a_step_and_current_after_a_reset(self) -> None:
        """Quirk M4; the torso is 0.7 above the root's z, and at its x."""

        def lag(td: TensorDict) -> np.ndarray:
            seen = td[keys.OBSERVATION][:, -3:].double().numpy()
            return np.abs(seen - np.stack((env._qpos[:, 0], np.zeros(64), 0.7 + env._qpos[:, 1]), 1)).max(1)

        env = HalfCheetahDir(64, seed=2)
        assert lag(env.reset()).max() < 1e-7
        late = np.stack([lag(step(env, action)) for action in actions(20, 64)])
        assert 0.001 < late.mean() < 0.02
        assert late.max() < 0.1

    def test_partial_reset_leaves_the_others(self) -> None:
        env = HalfCheetahDir(3, seed=4)
        td = play(env, 5)[:, -1][keys.NEXT].exclude(keys.REWARD)
        before = env._qpos.copy(), env._qvel.copy(), env._torso.copy(), env._place.copy(), env._task.copy()
        env.reset(td.set("_reset", torch.tensor([[False], [True], [False]])))
        after = env._qpos, env._qvel, env._torso, env._place, env._task
        for old, new in zip(before[:4], after[:4], strict=True):
            assert np.array_equal(old[[0, 2]], new[[0, 2]])
            assert not np.array_equal(old[1], new[1])
        assert np.array_equal(before[4][[0, 2]], after[4][[0, 2]])
        assert env._step_count.tolist() == [5, 0, 5]


class TestStart:
    """Initial noise, injected starts and their refusals."""

    def test_noise_laws(self) -> None:
        """Kolmogorov-Smirnov tests of every coordinate at level 1e-4."""
        env = HalfCheetahDir(2000, seed=5)
        env.reset()
        for positions, velocities in zip(env._qpos.T, env._qvel.T, strict=True):  # qpos0 is 0
            assert stats.kstest(positions, stats.uniform(-0.1, 0.2).cdf).pvalue > LEVEL
            assert stats.kstest(velocities, stats.norm(0.0, 0.1).cdf).pvalue > LEVEL

    def test_noise_is_independent(self) -> None:
        """Products of standardized coordinates have mean 0, also of positions with velocities."""
        env = HalfCheetahDir(2000, seed=6)
        env.reset()
        both = torch.tensor(np.concatenate((env._qpos / (0.1 / 3**0.5), env._qvel / 0.1), 1))
        for i, j in ((0, 1), (1, 2), (3, 8), (0, 9), (8, 17), (9, 10), (16, 17)):
            assert_mean(both[:, i] * both[:, j], 0.0)

    def test_every_episode_has_its_own(self) -> None:
        env = HalfCheetahDir(2, 2, seed=1, episode_length=3)
        env.reset()
        starts = [env._qpos.copy()]
        for _ in range(3):
            step(env, torch.zeros(2, ACTION_SIZE))
        starts.append(env._qpos.copy())
        values = np.concatenate(starts)[:, 1:]
        assert (np.abs(values) <= 0.1).all()
        assert len(np.unique(values)) == values.size

    def test_forced_starts_are_taken_exactly(self) -> None:
        env = HalfCheetahDir(2)
        qpos, qvel = np.linspace(-0.3, 0.5, 9), np.linspace(2.0, -1.0, 18).reshape(2, 9)
        observation = start(env, qpos=qpos, qvel=qvel)[keys.OBSERVATION]
        assert np.array_equal(env._qpos, np.stack((qpos, qpos)))
        assert np.array_equal(env._qvel, qvel)
        expected = np.concatenate((env._qpos[:, 1:], qvel), 1, dtype=np.float32)
        assert np.array_equal(observation[:, :17].numpy(), expected)

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("qpos", np.zeros(8), r"injected qpos has shape \(8,\): expected \(9,\) or \(3, 9\)"),
            ("qvel", np.zeros((2, 9)), r"injected qvel has shape \(2, 9\)"),
            ("qpos", np.full(9, np.nan), "injected qpos is .*: expected finite numbers"),
            ("qvel", np.full(9, np.inf), "injected qvel is .*: expected finite numbers"),
            ("task", [0.5], r"injected task is \[0.5\]: expected one out of \[\[-1.0\], \[1.0\]\]"),
            ("task", [np.nan], "injected task is .*: expected finite numbers"),
            ("start", [0.0], "nothing called 'start' is drawn by HalfCheetahDir"),
        ],
    )
    def test_refusals(self, name: str, value: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            HalfCheetahDir(3).inject(name, value)


class TestEnds:
    """Time limits and what the engine cannot simulate."""

    @pytest.mark.parametrize("episodes", [1, 2])
    def test_time_limit_truncates(self, episodes: int) -> None:
        env = HalfCheetahDir(2, episodes, episode_length=7)
        after = play(env, 7 * episodes)[keys.NEXT]
        ends = (torch.arange(1, 7 * episodes + 1) % 7 == 0).expand(2, -1)
        last = torch.arange(1, 7 * episodes + 1) == 7 * episodes
        assert torch.equal(after[keys.EPISODE_DONE][..., 0], ends)
        assert torch.equal(after[keys.TRUNCATED][..., 0], last.expand(2, -1))
        assert torch.equal(after[keys.DONE], after[keys.TRUNCATED])
        assert not after[keys.TERMINATED].any()
        assert env.engine_warnings == {}

    @pytest.mark.parametrize("cause", ["velocity", "action"])
    def test_warnings_end_the_episode_of_their_environment(self, cause: str) -> None:
        env, undisturbed = (HalfCheetahDir(3, seed=1) for _ in range(2))
        qvel = np.zeros((3, 9))
        given = actions(3, scale=0.5)
        start(undisturbed)
        if cause == "velocity":
            qvel[1, 3] = 1e12
        start(env, qvel=qvel)
        expected = step(undisturbed, given)
        if cause == "action":
            given[1, 2] = torch.nan
        after = step(env, given)
        assert after[keys.TERMINATED][:, 0].tolist() == after[keys.DONE][:, 0].tolist() == [False, True, False]
        assert not after[keys.TRUNCATED].any()
        assert after[keys.REWARD][1] == 0.0
        assert torch.isfinite(after[keys.OBSERVATION]).all()
        assert_equal(after[[0, 2]], expected[[0, 2]])
        assert sum(env.engine_warnings.values()) >= 1
        assert undisturbed.engine_warnings == {}

    def test_next_episode_is_normal(self) -> None:
        """Both the next one on the same task, and the next task."""
        env = HalfCheetahDir(2, 2, seed=1)
        start(env)
        bad = torch.zeros(2, ACTION_SIZE)
        bad[0] = torch.nan
        after = step(env, bad)
        assert after[keys.EPISODE_DONE][:, 0].tolist() == [True, False]
        assert not after[keys.DONE].any()
        assert env._step_count.tolist() == [0, 1]
        count = dict(env.engine_warnings)
        assert (np.abs(env._qpos[0]) <= 0.1).all()
        rewards = torch.stack([step(env, torch.zeros(2, ACTION_SIZE))[keys.REWARD] for _ in range(10)])
        assert rewards.isfinite().all()
        assert (rewards[:, 0] != 0).all()
        assert dict(env.engine_warnings) == count
        after = step(env, bad)
        assert after[keys.TERMINATED][:, 0].tolist() == [True, False]
        fresh = env.reset(after.exclude(keys.REWARD).set("_reset", after[keys.DONE]))
        assert fresh[keys.OBSERVATION].isfinite().all()
        assert not step(env, torch.zeros(2, ACTION_SIZE))[keys.DONE].any()

    def test_failing_at_the_time_limit_is_a_time_out(self) -> None:
        """Quirk M18."""
        env = HalfCheetahDir(1, episode_length=1)
        start(env)
        after = step(env, torch.full((1, ACTION_SIZE), torch.nan))
        assert after[keys.TRUNCATED].all()
        assert not after[keys.TERMINATED].any()
        assert after[keys.REWARD].item() == 0.0

    def test_warnings_are_counted_always_and_logged_once_per_kind(self, caplog: pytest.LogCaptureFixture) -> None:
        env = HalfCheetahDir(3)
        bad = torch.zeros(3, ACTION_SIZE)
        bad[1:] = torch.nan
        qvel = np.zeros((3, 9))
        with caplog.at_level(logging.WARNING, logger="hyperrl.envs.mujoco.base"):
            start(env)
            step(env, bad)
            assert env.engine_warnings == {"BADCTRL": 2}
            start(env)
            step(env, bad)
            assert env.engine_warnings == {"BADCTRL": 4}
            assert len(caplog.records) == 1
            qvel[0, 3] = 1e12
            start(env, qvel=qvel)
            step(env, torch.zeros(3, ACTION_SIZE))
            start(env, qvel=qvel)
            step(env, torch.zeros(3, ACTION_SIZE))
        logged = [record.getMessage() for record in caplog.records]
        kinds = [kind for kind in env.engine_warnings if kind != "BADCTRL"]
        assert kinds
        assert all(env.engine_warnings[kind] == 2 for kind in kinds)
        assert len(logged) == 1 + len(kinds)
        assert logged[0] == "MuJoCo warns of BADCTRL in environment 1; it ends the episode, further ones, too"
        for kind, message in zip(kinds, logged[1:], strict=True):
            assert message.startswith(f"MuJoCo warns of {kind} in environment 0;")

    def test_nothing_is_written_into_the_working_directory(self, tmp_path: Path) -> None:
        """Neither by loading the models nor by warnings."""
        script = """
import os, torch
from hyperrl.envs import make_env
from hyperrl.envs.mujoco.models import ROBOTS, load_model
for name in ROBOTS:
    load_model(name)
assert not os.listdir()
env = make_env("HalfCheetahDir-v0", 2)
td = env.reset().set("action", torch.full((2, 6), torch.nan))
assert env.step(td)["next", "terminated"].all()
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not list(tmp_path.iterdir())
        assert done.stdout == ""


class TestOptions:
    """What every robot takes."""

    @pytest.mark.parametrize("name", ["episode_length", "num_threads"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
    def test_refusals(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}: expected an integer of at least 1"):
            make_env("HalfCheetahDir-v0", 2, **{name: value})

    def test_threads_are_as_many_as_torch_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert [HalfCheetahDir(n)._batch.nthread for n in (1, 2, 8)] == [1, 2, 3]
        assert HalfCheetahDir(8, num_threads=2)._batch.nthread == 2


class TestState:
    """Whole simulations are saved."""

    def test_a_state_continues_exactly_in_the_middle_of_an_episode(self) -> None:
        """Also what the engine keeps from step to step to solve faster, as `qpos` and `qvel` alone would not."""
        env, fresh = (HalfCheetahDir(3, 2, seed=seed, episode_length=30) for seed in (1, 2))
        td = play(env, 11)[:, -1][keys.NEXT].exclude(keys.REWARD)
        fresh.load_state_dict(env.state_dict())
        assert_equal(play(fresh, 60, td=td.clone()), play(env, 60, td=td.clone()))

    def test_the_state_of_another_robot_is_refused_and_changes_nothing(self) -> None:
        env = HalfCheetahDir(2, episodes_per_task=1)
        stranger = make_env("AntDir-v0", 2, episodes_per_task=1)
        for each in (env, stranger):
            each.reset()
        before = env.get_extra_state()
        with pytest.raises(ValueError, match=r"state 'physics' is a tensor \(2, \d+\): expected a tensor \(2, \d+\)"):
            env.load_state_dict(stranger.state_dict())
        after = env.get_extra_state()
        assert_equal(*(TensorDict(each["simulator"]) for each in (before, after)))
        assert torch.equal(before["generator"], after["generator"])

    def test_the_state_of_no_robot_is_refused(self) -> None:
        env, stranger = HalfCheetahDir(2), make_env("PointEnv-v0", 2)
        for each in (env, stranger):
            each.reset()
        with pytest.raises(ValueError, match=r"state 'physics' is missing: expected a tensor"):
            env.load_state_dict(stranger.state_dict())

    def test_path_is_x_and_height(self) -> None:
        env = HalfCheetahDir(2, record_path=True)
        start(env)
        places = [env._qpos[1, :2].copy()]
        for action in actions(4, 2):
            step(env, action)
            places.append(env._qpos[1, :2].copy())
        assert np.array_equal(env.path(1).numpy(), np.array(places, dtype=np.float32))
