"""Gymnasium in both directions: our environments for Gymnasium's users, and Gymnasium's as a `MetaEnv`."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import test_meta_env
import tiny
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium_cases import Button, Walk
from matplotlib.axes import Axes
from sampling import assert_share, assert_uniform
from test_meta_env import assert_equal, play

from hyperrl import cli, keys
from hyperrl.envs import MetaEnv, landmarks, make_env, register_family
from hyperrl.envs.base import Transition
from hyperrl.envs.gridworld import GridNavi
from hyperrl.envs.gymnasium import GymnasiumMetaEnv
from hyperrl.envs.gymnasium_export import MetaEpisodeEnv, MetaEpisodeVectorEnv
from hyperrl.envs.layout import Layout
from hyperrl.envs.registration import EnvEntry

SMALL = (
    "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.num_envs=4", "--data.steps_per_rollout=7",
    "--data.rollouts_per_epoch=1", "--data.val_tasks=2", "--data.test_tasks=2", *tiny.MODEL_ARGS,
)  # fmt: skip
PAGE = Path(__file__).resolve().parents[2] / "docs" / "envs" / "gymnasium.md"


def make(env_id: str, **options: Any) -> gymnasium.Env:
    return gymnasium.make(f"hyperrl/{env_id}", **options)


def make_vec(env_id: str, num_envs: int, **options: Any) -> gymnasium.vector.VectorEnv:
    return gymnasium.make_vec(f"hyperrl/{env_id}", num_envs=num_envs, **options)


# Ours for Gymnasium ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", test_meta_env.TESTED)
class TestEveryIdForGymnasium:
    """`gymnasium.make` and `gymnasium.make_vec` for all registered ids."""

    def test_gymnasiums_checker_passes(self, env_id: str) -> None:
        env = make(env_id, **test_meta_env.short(env_id))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Advice on spaces, which are what they are.
            warnings.filterwarnings("ignore", message=".*Box observation space (min|max)imum value is -?infinity")
            warnings.filterwarnings("ignore", message=".*Box observation space maximum and minimum values are equal")
            warnings.filterwarnings("ignore", message=".*For Box action spaces, we recommend")
            check_env(env.unwrapped)

    def test_one_environment_plays_as_the_native_one(self, env_id: str) -> None:
        options = test_meta_env.short(env_id)
        env, native = make(env_id, **options), make_env(env_id, 1, publish=["task"], seed=5, **options)
        observation, info = env.reset(seed=5)
        env.action_space.seed(1)
        td = native.reset()
        done = False
        while not done:
            np.testing.assert_array_equal(observation, td[keys.OBSERVATION][0])
            np.testing.assert_array_equal(info["task"], td[keys.TASK][0])
            assert info["episode_done"] == td[keys.EPISODE_DONE].item()
            action = env.action_space.sample()
            td = native.step(td.set(keys.ACTION, torch.as_tensor(action[None])))[keys.NEXT]
            observation, reward, terminated, truncated, info = env.step(action)
            assert reward == td[keys.REWARD].item()
            assert (terminated, truncated) == (td[keys.TERMINATED].item(), td[keys.TRUNCATED].item())
            done = terminated or truncated
        np.testing.assert_array_equal(observation, td[keys.OBSERVATION][0])
        assert info["episode_done"]

    def test_a_batch_plays_as_the_native_one(self, env_id: str) -> None:
        options = test_meta_env.short(env_id)
        envs, native = make_vec(env_id, 5, **options), make_env(env_id, 5, publish=["task"], seed=5, **options)
        assert isinstance(envs, MetaEpisodeVectorEnv)
        observation, info = envs.reset(seed=5)
        envs.action_space.seed(1)
        td = native.reset()
        for _ in range(native.horizon + 3):
            np.testing.assert_array_equal(observation, td[keys.OBSERVATION])
            np.testing.assert_array_equal(info["task"], td[keys.TASK])
            np.testing.assert_array_equal(info["episode_done"], td[keys.EPISODE_DONE][:, 0])
            action = envs.action_space.sample()
            row, td = native.step_and_maybe_reset(td.set(keys.ACTION, torch.as_tensor(action)))
            observation, *numbers, info = envs.step(action)
            after = row[keys.NEXT]
            for number, name in zip(numbers, (keys.REWARD, keys.TERMINATED, keys.TRUNCATED), strict=True):
                np.testing.assert_array_equal(number, after[name][:, 0])
            done = after[keys.DONE][:, 0]
            assert ("final_obs" in info) == done.any()
            for index in done.nonzero()[:, 0].tolist():
                np.testing.assert_array_equal(info["final_obs"][index], after[keys.OBSERVATION][index])
                np.testing.assert_array_equal(info["final_info"]["task"][index], after[keys.TASK][index])


class Steps(MetaEnv):
    """An episode of three steps, whose reward is the number of the environment times the action.

    Args:
        num_envs: number of environments.
        episodes_per_task: episodes per task.
        **options: what all environments take.
    """

    def __init__(self, num_envs: int, episodes_per_task: int = 2, **options: Any) -> None:
        box = {"action_low": (-1.0,), "action_high": (1.0,)}
        layout = Layout(3, (0.0,), (3.0,), task_dim=1, num_tasks=4, **box)
        super().__init__(num_envs, episodes_per_task, layout, **options)

    def sample_tasks(self, n: int) -> torch.Tensor:
        return torch.randint(4, (n,), generator=self._generator)

    def reset_state(self, mask: torch.Tensor) -> None:
        self.write("step", mask, self._zero)

    def observe(self) -> torch.Tensor:
        return self.state["step"].unsqueeze(-1).float()

    def transition(self, action: torch.Tensor) -> Transition:
        self.state["step"] = self.state["step"] + 1
        done = self.state["step"] == 3
        return Transition(self.observe(), self.state[keys.TASK] * action[:, 0], done, ~done)

    def publish_task(self) -> torch.Tensor:
        return self.state[keys.TASK].unsqueeze(-1).float()

    def publish_task_id(self) -> torch.Tensor:
        return self.state[keys.TASK].clone()

    def publish_success(self) -> torch.Tensor:
        return self.state["step"].unsqueeze(-1) == 2

    def parse_injection(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if not ((value >= 0) & (value < 4)).all():
            raise ValueError(f"injected {name} is {value.tolist()}: expected 0 to 3")
        return value[..., 0].long().expand(self.num_envs)

    def draw_frame(self, axes: Axes, index: int) -> None:
        axes.set_title(f"{index}: step {self.state['step'][index]}")


register_family([EnvEntry("Steps-v0", f"{__name__}:Steps", "counts", {"episodes_per_task": 2})], namespace="test")
STEPS = "test/Steps-v0"


class TestOneEnvironment:
    """`gymnasium.make`."""

    def test_spaces(self) -> None:
        discrete, continuous = make("GridNavi-v0"), gymnasium.make(STEPS)
        assert discrete.action_space == gymnasium.spaces.Discrete(5)
        assert discrete.observation_space == gymnasium.spaces.Box(np.float32([0, 0, 0]), np.float32([4, 4, 1]))
        assert continuous.action_space == gymnasium.spaces.Box(-1, 1, (1,))
        assert make("GridNavi-v0", episodes_per_task=1).observation_space.shape == (2,)

    def test_an_episode_is_a_meta_episode_and_info_tells_the_inner_ones(self) -> None:
        env = gymnasium.make(STEPS, publish=["task_id", "success"])
        observation, info = env.reset(options={"task": [3]})
        assert info == {"episode_index": 0, "episode_done": False, "task": [3.0], "task_id": 3, "success": False}
        rows = [env.step(np.array([0.5], dtype=np.float32)) for _ in range(6)]
        assert observation.tolist() == [0, 0]
        assert [row[0].tolist() for row in rows] == [[1, 0], [2, 0], [3, 1], [1, 0], [2, 0], [3, 1]]
        assert [row[1:4] for row in rows] == [*[(1.5, False, False)] * 5, (1.5, False, True)]
        assert [row[4]["episode_index"] for row in rows] == [0, 0, 0, 1, 1, 1]
        assert [row[4]["episode_done"] for row in rows] == [False, False, True] * 2
        assert [row[4]["success"] for row in rows] == [False, True, False] * 2
        assert {type(value) for value in rows[0][4].values()} == {int, bool, np.ndarray}
        assert rows[0][0].dtype == np.float32

    def test_task_is_played_once_and_impossible_ones_are_refused(self) -> None:
        env = make("GridNavi-v0", seed=1)
        assert [env.reset(options={"task": task})[1]["task"].tolist() for task in ([3, 4], [2, 2])] == [[3, 4], [2, 2]]
        assert len({tuple(env.reset()[1]["task"].tolist()) for _ in range(20)}) > 1
        with pytest.raises(ValueError, match=r"injected task is \[0.0, 0.0\]: expected goal cells"):
            env.reset(options={"task": [0, 0]})
        with pytest.raises(ValueError, match="`options` holds 'tusk': expected 'task'"):
            env.reset(options={"tusk": [3, 4]})

    def test_seeds_decide_and_no_seed_is_a_random_one(self) -> None:
        one, two = (make("GridNavi-v0") for _ in range(2))
        tasks = [[tuple(env.reset(seed=seed)[1]["task"]) for seed in (3, None, None, None)] for env in (one, two)]
        assert tasks[0] == tasks[1]
        assert len(set(tasks[0])) > 1
        given = [make_vec("GridNavi-v0", 64, seed=seed).reset()[1]["task"].tolist() for seed in (3, 3, 4, None, None)]
        assert given[0] == given[1]
        # 21 tasks: two of these are equal with probability 21 ** -64.
        assert not any(one == other for i, one in enumerate(given[1:]) for other in given[i + 2 :])

    def test_bad_arguments_are_named_in_one_line(self) -> None:
        for call in (make, lambda *args, **options: make_vec(*args, 2, **options)):
            with pytest.raises(ValueError, match="unknown option 'num_cell' of GridNavi: .* 'num_cells'$"):
                call("GridNavi-v0", num_cell=5)
        with pytest.raises(ValueError, match="`render_mode` is 'ansi': expected 'rgb_array' or None$"):
            MetaEpisodeEnv(Steps, render_mode="ansi")
        with pytest.raises(ValueError, match="'builtins:dict' is not a MetaEnv: expected a class, or its path"):
            MetaEpisodeEnv("builtins:dict")

    @pytest.mark.parametrize("action", [5, -1, 1.5, [1]])
    def test_actions_outside_the_space_are_refused(self, action: Any) -> None:
        env = make("GridNavi-v0")
        env.reset()
        with pytest.raises(ValueError, match=r"the action is .*: expected an element of Discrete\(5\)"):
            env.step(action)

    def test_a_step_needs_a_reset(self) -> None:
        for env in (MetaEpisodeEnv(Steps), MetaEpisodeVectorEnv(Steps, 2)):
            with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
                env.step(env.action_space.sample())

    def test_continuous_actions_are_finite_numbers_of_the_right_shape(self) -> None:
        """Those beyond the bounds are for the environment to judge (quirk R2)."""
        for env in (MetaEpisodeEnv(Steps), MetaEpisodeVectorEnv(Steps, 2)):
            env.reset(options={"task": [3]})
            right = np.full(env.action_space.shape, 5)
            assert np.all(env.step(right)[1] == 15)
            for wrong in (right[None], right.flatten()[:, None, None], right[..., 0], np.nan * right, np.inf * right):
                with pytest.raises(ValueError, match="the action is .*: expected finite numbers with .* Box") as error:
                    env.step(wrong)
                assert "\n" not in str(error.value)
            assert np.all(env.meta_env.state["step"].numpy() == 1)

    def test_pictures(self) -> None:
        env = gymnasium.make(STEPS, render_mode="rgb_array")
        env.reset(seed=1)
        start = env.render()
        env.step(env.action_space.sample())
        assert np.array_equal(env.render(), env.unwrapped.meta_env.render_frame(0))
        assert not np.array_equal(env.render(), start)
        assert env.unwrapped.meta_env.record_path
        silent = MetaEpisodeEnv(Steps)
        silent.reset()
        assert silent.render() is None
        assert not silent.meta_env.record_path

    def test_the_spec_rebuilds_it(self) -> None:
        env = gymnasium.make(STEPS, publish=["success"], episodes_per_task=3)
        again = EnvSpec.from_json(env.spec.to_json()).make()
        assert again.unwrapped.meta_env.horizon == 9
        assert "success" in again.reset()[1]

    def test_statistics_are_those_of_the_meta_episode(self) -> None:
        env = RecordEpisodeStatistics(gymnasium.make(STEPS))
        env.reset(options={"task": [2]})
        info = [env.step(np.ones(1, dtype=np.float32)) for _ in range(6)][-1][-1]
        assert (info["episode"]["r"], info["episode"]["l"]) == (12, 6)

    def test_closing_closes_the_environment(self) -> None:
        for env in (gymnasium.make("test/MetaWalk-v0"), gymnasium.make_vec("test/MetaWalk-v0", 2)):
            env.reset(seed=1)
            inner = stepped_by(env.unwrapped.meta_env)
            assert not any(each.closed for each in inner)
            env.close()
            env.close()
            assert all(each.closed for each in inner)


class TestBatch:
    """`gymnasium.make_vec`."""

    def test_spaces_and_modes(self) -> None:
        envs = gymnasium.make_vec(STEPS, num_envs=3)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert envs.single_observation_space.shape == (2,)
        assert envs.observation_space.shape == (3, 2)
        assert envs.action_space.shape == (3, 1)
        assert make_vec("GridNavi-v0", 3).action_space == gymnasium.spaces.MultiDiscrete([5] * 3)

    def test_it_is_what_gymnasium_makes_of_single_ones(self) -> None:
        """Observations, rewards, ends and `info` of `SyncVectorEnv`, with which of them are set, over three tasks."""
        options = {"fixed_task": [3], "publish": ["task_id", "success"], "episodes_per_task": 2}
        ours = gymnasium.make_vec(STEPS, num_envs=3, **options)
        theirs = SyncVectorEnv(
            [lambda: gymnasium.make(STEPS, **options)] * 3, autoreset_mode=AutoresetMode.SAME_STEP, copy=True
        )
        ours.action_space.seed(2)
        both = [vector_wrappers.DictInfoToList(envs) for envs in (ours, theirs)]
        shown = [envs.reset() for envs in both]
        for t in range(15):
            (ours_now, their_now) = shown
            for one, other in zip(ours_now[:-1], their_now[:-1], strict=True):
                np.testing.assert_array_equal(one, other)
            for one, other in zip(ours_now[-1], their_now[-1], strict=True):
                assert_same_info(one, other)
                assert ("final_obs" in one) == (t in (6, 12))
            action = ours.action_space.sample()
            shown = [envs.step(action) for envs in both]

    def test_masks_say_for_whom_an_entry_holds(self) -> None:
        envs = MetaEpisodeVectorEnv(test_meta_env.Countdown, 2, seed=1)
        _, info = envs.reset()
        assert "task" not in info  # it publishes none
        envs.meta_env.inject("length", torch.tensor([2, 3]), torch.tensor([2, 3]))
        envs.reset()
        infos = [envs.step(np.zeros((2, 2)))[-1] for _ in range(6)]
        masks = [info["_final_info"].tolist() for info in infos if "final_info" in info]
        assert masks == [[True, False], [False, True]]
        assert ["final_info" in info for info in infos] == [False, False, False, True, False, True]
        assert infos[3]["final_obs"][0].tolist() == [0, 1]
        assert infos[3]["final_obs"][1] is None
        assert infos[3]["final_info"]["_episode_index"].tolist() == [True, False]
        assert infos[3]["_episode_index"].tolist() == [True, True]
        assert [info["episode_index"].tolist() for info in infos[:4]] == [[0, 0], [0, 0], [1, 0], [0, 1]]
        assert infos[3]["final_info"]["episode_index"][0] == 1

    def test_tasks_for_all_or_for_each(self) -> None:
        envs = make_vec("GridNavi-v0", 2)
        assert envs.reset(options={"task": [3, 4]})[1]["task"].tolist() == [[3, 4], [3, 4]]
        assert envs.reset(options={"task": np.array([[3, 4], [2, 2]])})[1]["task"].tolist() == [[3, 4], [2, 2]]

    def test_a_reset_of_some_leaves_the_others_alone(self) -> None:
        envs = gymnasium.make_vec(STEPS, num_envs=3)
        with pytest.raises(RuntimeError, match="before a reset of some"):
            envs.reset(options={"reset_mask": np.array([True, False, False])})
        envs.reset(options={"task": [1]})
        envs.step(np.ones((3, 1)))
        options = {"reset_mask": np.array([True, False, False]), "task": [2]}
        observation, info = envs.reset(options=options)
        assert observation[:, 0].tolist() == [0, 1, 1]
        assert info["task"][:, 0].tolist() == [2, 1, 1]
        assert set(options) == {"reset_mask", "task"}
        options["reset_mask"].fill(True)
        assert info["_task"].tolist() == info["_episode_index"].tolist() == [True, False, False]
        assert envs.step(np.ones((3, 1)))[1].tolist() == [2, 1, 1]
        observation, info = envs.reset(options={"reset_mask": [False, True, False], "task": [3]})
        assert observation[:, 0].tolist() == [1, 0, 2]
        assert isinstance(info["_task"], np.ndarray)
        assert info["_task"].tolist() == [False, True, False]
        _, info = envs.reset(options={"reset_mask": [False] * 3})
        assert info["task"][:, 0].tolist() == [2, 3, 1]

    @pytest.mark.parametrize("mask", [[True, False], [[True], [False], [True]], [1, 0, 1], np.ones(3), True, None])
    def test_a_reset_mask_holds_a_bool_for_each(self, mask: Any) -> None:
        envs = gymnasium.make_vec(STEPS, num_envs=3)
        envs.reset()
        with pytest.raises(ValueError, match=r"`reset_mask` is an array of .*: expected bools with shape \(3,\)$"):
            envs.reset(options={"reset_mask": mask})

    @pytest.mark.parametrize(
        "wrong",
        [
            {"options": {"reset_mask": [True, False]}},
            {"options": {"reset_mask": [1, 1]}},
            {"options": {"tusk": [0]}},
            {"seed": -1},
            {"seed": 2**70},
        ],
    )
    def test_a_failed_reset_leaves_no_task_behind(self, wrong: dict[str, Any]) -> None:
        failed, untouched = (make_vec("GridNavi-v0", 2) for _ in range(2))
        options = {"task": [3, 4], **wrong.get("options", {})}
        with pytest.raises((ValueError, RuntimeError, gymnasium.error.Error)):
            failed.reset(**{**wrong, "options": options})
        one, other = (envs.reset(seed=1)[1]["task"].tolist() for envs in (failed, untouched))
        assert one == other != [[3, 4], [3, 4]]

    def test_one_seed_for_all(self) -> None:
        with pytest.raises(gymnasium.error.Error, match="Seed must be a python integer"):
            gymnasium.make_vec(STEPS, num_envs=2).reset(seed=[1, 2])

    @pytest.mark.parametrize("action", [[0, 5], [0, -1], [0.0, 1.0], [0]])
    def test_actions_outside_the_space_are_refused(self, action: Any) -> None:
        envs = make_vec("GridNavi-v0", 2)
        envs.reset()
        with pytest.raises(ValueError, match="the action is .*: expected an element of MultiDiscrete"):
            envs.step(np.array(action))

    def test_what_is_handed_out_is_not_the_simulator(self) -> None:
        changed, untouched = (gymnasium.make_vec(STEPS, num_envs=4, publish=["task_id", "success"]) for _ in range(2))
        for envs in (changed, untouched):
            observation, info = envs.reset(seed=1)
        for _ in range(14):
            for array in (observation, *info.values()):
                if isinstance(array, np.ndarray):
                    array.fill(0)
            observation, *numbers, info = changed.step(np.ones((4, 1)))
            expected, *expected_numbers, expected_info = untouched.step(np.ones((4, 1)))
            np.testing.assert_array_equal(observation, expected)
            np.testing.assert_array_equal(numbers, expected_numbers)
            for name in ("task", "task_id", "episode_index", "_task"):
                np.testing.assert_array_equal(info[name], expected_info[name])
            for array in numbers:
                array.fill(0)

    def test_copies_of_single_environments_get_tasks_of_their_own(self) -> None:
        envs = make_vec("GridNavi-v0", 32, vectorization_mode="sync")
        # 32 equal ones among 21 tasks have probability 21 ** -31.
        assert len(np.unique(envs.reset()[1]["task"], axis=0)) > 1

    def test_statistics_are_those_of_meta_episodes(self) -> None:
        envs = vector_wrappers.RecordEpisodeStatistics(gymnasium.make_vec(STEPS, num_envs=2))
        envs.reset(options={"task": [[1], [2]]})
        for _ in range(6):
            *_, info = envs.step(np.ones((2, 1)))
        assert info["episode"]["r"].tolist() == [6, 12]
        assert info["episode"]["l"].tolist() == [6, 6]

    def test_pictures(self) -> None:
        envs = gymnasium.make_vec(STEPS, num_envs=2, render_mode="rgb_array")
        envs.reset()
        assert [frame.shape for frame in envs.render()] == [(400, 400, 3)] * 2
        assert not np.array_equal(*envs.render())
        assert gymnasium.make_vec(STEPS, num_envs=2).render() is None


def assert_same_info(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same_info(value, other[name])
        else:
            np.testing.assert_array_equal(value, other[name], err_msg=name)


# Gymnasium's for us ------------------------------------------------------------------------------------------------


def stepped_by(env: MetaEnv) -> list[Any]:
    """The environments of this process, unwrapped."""
    assert isinstance(env, GymnasiumMetaEnv)
    return [each.unwrapped for each in env._pool.here.envs]


def walk(num_envs: int = 4, **options: Any) -> GymnasiumMetaEnv:
    bounds: dict[str, Any] = {} if "tasks" in options else {"task_low": [-1, 2], "task_high": [1, 4]}
    return GymnasiumMetaEnv(num_envs, **{"env_id": "test/Walk-v0", "set_task": "options", **bounds, **options})


def button(num_envs: int = 2, **options: Any) -> GymnasiumMetaEnv:
    given = {"env_id": "test/Button-v0", "set_task": "press", "tasks": [[3], [4]], "episode_length": 4}
    return GymnasiumMetaEnv(num_envs, **{**given, **options})


gymnasium.register("test/Walk-v0", entry_point=Walk, max_episode_steps=10)
gymnasium.register("test/Endless-v0", entry_point=Walk)
gymnasium.register("test/Button-v0", entry_point=Button)
_WALK: dict[str, Any] = {"env_id": "test/Walk-v0", "set_task": "options"}
ENVS = (
    EnvEntry(
        "MetaWalk-v0",
        "hyperrl.envs.gymnasium:GymnasiumMetaEnv",
        "a random walk that actions push",
        {**_WALK, "task_low": [-1.0, 2.0], "task_high": [1.0, 4.0]},
        {"random": 0.0},
    ),
    EnvEntry(
        "FiniteWalk-v0",
        "hyperrl.envs.gymnasium:GymnasiumMetaEnv",
        "a random walk with five tasks",
        {**_WALK, "tasks": [[0.0], [1.0], [2.0], [3.0], [4.0]]},
    ),
)
register_family(ENVS, namespace="test")

# The same tests as for all registered ids; a subclass would inherit their ids, too. That of `task_split` builds 32,768
# environments, which takes Gymnasium long; `TestGymnasiumMetaEnv` has its own.
_CONTRACT = {name: test for name, test in vars(test_meta_env.TestEveryEnv).items() if name.startswith("test_")}
del _CONTRACT["test_task_split_is_disjoint_and_complete"]
TestContract = pytest.mark.parametrize("env_id", [f"{__name__}:test/{entry.id}" for entry in ENVS])(
    type("TestContract", (), _CONTRACT)
)


class TestGymnasiumMetaEnv:
    """A Gymnasium environment as a `MetaEnv`."""

    @pytest.mark.parametrize("episodes", [1, 2])
    def test_ours_in_gymnasium_in_ours_is_ours(self, episodes: int) -> None:
        tasks, plain = [[3, 4], [2, 2], [4, 0]], {"episodes_per_task": 1}
        options = {"set_task": "options", "tasks": tasks, "episode_length": 15, "env_kwargs": plain}
        there = GymnasiumMetaEnv(3, episodes, env_id="hyperrl/GridNavi-v0", publish=["task"], **options)
        native = GridNavi(3, episodes, publish=["task"])
        for env in (there, native):
            env.inject("task", tasks, tasks)
        assert there.env_info == native.env_info.__class__(**{**vars(native.env_info), "num_tasks": 3, "num_states": 0,
                                                             "belief_dim": 0})  # fmt: skip
        steps = native.horizon
        one, other = play(there, steps), play(native, steps)
        inner = other[keys.NEXT, keys.EPISODE_DONE] & ~other[keys.NEXT, keys.DONE]
        assert inner.sum() == 3 * (episodes - 1)
        # Between episodes, ours here shows where the agent was, and what comes out of Gymnasium where it is.
        start = torch.tensor([0.0, 0.0, 1.0])[: native.obs_dim]
        other[keys.NEXT, keys.OBSERVATION] = torch.where(inner, start, other[keys.NEXT, keys.OBSERVATION])
        later = torch.zeros_like(inner)
        later[:, 1:] = inner[:, :-1]
        other[keys.OBSERVATION] = torch.where(later, start, other[keys.OBSERVATION])
        for before, mask in ((keys.PREV_OBSERVATION, later), ((keys.NEXT, keys.PREV_OBSERVATION), later)):
            assert ((one[before] == other[before]).all(-1, keepdim=True) | mask | shifted(mask)).all()
            one[before] = other[before]
        assert_equal(one, other)

    def test_sizes_are_those_of_the_spaces(self) -> None:
        env = walk(episodes_per_task=3)
        assert (env.obs_dim, env.action_dim, env.num_actions, env.task_dim, env.num_tasks) == (6, 2, None, 2, None)
        assert (env.episode_length, env.horizon) == (10, 30)
        assert env.env_info.action_low == (-1, -1)
        assert env.reset()[keys.OBSERVATION][:, 2:].tolist() == [[1, 0, 0, 0]] * 4  # the count, one-hot, and the flag
        assert button(tasks=[[3]]).env_info.num_actions == 2
        assert walk(episode_length=7).episode_length == 7

    def test_tasks_are_uniform_in_the_box(self) -> None:
        tasks = walk(seed=3).sample_tasks(20_000)
        x, y = ((tasks - torch.tensor([-1, 2])) * 4).floor().T
        assert ((x >= 0) & (x < 8) & (y >= 0) & (y < 8)).all()
        assert_uniform(8 * x + y, range(64))

    def test_tasks_of_a_list_are_equally_likely_within_the_split(self) -> None:
        listed = [[float(value)] for value in range(8)]
        env = walk(tasks=listed, task_split="train", test_fraction=0.25, seed=3)
        drawn = env.sample_tasks(20_000).long()
        assert len(drawn.unique()) == 6
        assert_uniform(drawn, drawn.unique())

    def test_task_split_is_disjoint_and_complete(self) -> None:
        listed = [[float(value)] for value in range(8)]
        train, test = (
            set(walk(tasks=listed, task_split=split, test_fraction=0.25).sample_tasks(1000)[:, 0].tolist())
            for split in ("train", "test")
        )
        assert (len(train), len(test)) == (6, 2)
        assert train | test == set(range(8))

    def test_task_ids_are_places_in_the_list(self) -> None:
        env = walk(64, tasks=[[2, 3], [-1, 0], [2, 1]], publish=["task", "task_id"], seed=1)
        td = env.reset()
        assert torch.equal(torch.tensor([[2.0, 3], [-1, 0], [2, 1]])[td[keys.TASK_ID]], td[keys.TASK])
        with pytest.raises(ValueError, match="`publish` holds 'task_id', .* expected names out of task, success$"):
            walk(publish=["task_id"])

    def test_the_task_is_set_before_every_episode(self) -> None:
        env = walk(2, publish=["task"])
        td = play(env, 12)
        assert [inner.task.tolist() for inner in stepped_by(env)] == td[keys.NEXT, keys.TASK][:, -1].tolist()
        pressed = button(2, publish=["task"])
        pressed.inject("task", [[3], [4]])
        td = pressed.reset()
        rewards = [pressed.step(td.set(keys.ACTION, torch.full((2,), a)))[keys.NEXT, keys.REWARD] for a in (0, 1)]
        assert torch.cat(rewards, 1).tolist() == [[1, 0], [0, 1]]

    def test_every_episode_has_a_seed_of_its_own(self) -> None:
        env = walk(64, seed=1)
        seeds = set()
        td = env.reset()
        for _ in range(20):
            seeds |= {inner.seed_given for inner in stepped_by(env)}
            td = env.step(td.set(keys.ACTION, torch.zeros(64, 2)))[keys.NEXT]
        assert len(seeds) == 128
        env.inject("seed", 7)
        td = env.reset()
        assert (td[keys.OBSERVATION] == td[keys.OBSERVATION][0]).all()

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("task", [[0, 3], [0, 3], [5, 3], [0, 9]], r"task is \[5.0, 3.0\]: expected tasks of this environment"),
            ("task", [float("nan"), 3], r"task is \[nan, 3.0\]: expected tasks"),
            ("task", [0, 3, 3], r"task has shape \(3,\): expected \(2,\) or \(4, 2\)"),
            ("seed", [1, 2, -3, 4], "seed is -3: expected a whole number of at least 0"),
            ("seed", 1.5, "seed is 1.5: expected a whole number"),
            ("seed", [1, 2], r"seed has shape \(2,\): expected \(\) or \(4,\)"),
        ],
    )
    def test_impossible_injections_show_the_first_bad_row(self, name: str, value: Any, words: str) -> None:
        with pytest.raises(ValueError, match=f"^injected {words}"):
            walk().inject(name, value)

    def test_actions_are_clipped_to_the_bounds(self) -> None:
        env = walk(2, fixed_task=[1, 2])
        env.inject("seed", 3)
        td = env.reset()
        after = env.step(td.set(keys.ACTION, torch.tensor([[5.0, -5.0], [1.0, -1.0]])))[keys.NEXT]
        assert torch.equal(after[keys.OBSERVATION][0], after[keys.OBSERVATION][1])
        assert after[keys.PREV_ACTION].tolist() == [[5, -5], [1, -1]]

    def test_ends_are_those_of_gymnasium(self) -> None:
        env = walk(256, episodes_per_task=1, seed=2)
        after = play(env, 10)[keys.NEXT]
        first = after[keys.DONE][..., 0].int().argmax(1)
        rows = torch.arange(256)
        terminated, truncated = (after[name][rows, first, 0] for name in (keys.TERMINATED, keys.TRUNCATED))
        assert (terminated ^ truncated).all()
        assert first.min() == 4  # the walk cannot end before its fifth step
        assert (first[truncated] == 9).all()
        assert_share(terminated, 1 - 0.8**6)  # six chances of 0.2; an end at the limit counts as terminated

    def test_success_is_what_info_says(self) -> None:
        env = walk(8, publish=["success"], seed=4)
        assert not env.reset()[keys.SUCCESS].any()
        after = play(env, 30)[keys.NEXT]
        # The last place of an episode is hidden behind the first one of the next.
        place = after[keys.OBSERVATION][..., 0]
        shown = ~after[keys.EPISODE_DONE][..., 0] | after[keys.DONE][..., 0]
        assert torch.equal(after[keys.SUCCESS][..., 0][shown], place[shown] > 0)
        hidden = after[keys.SUCCESS][..., 0][~shown]
        assert hidden.any()
        assert not hidden.all()
        assert not play(button(publish=["success"]), 9)[keys.NEXT, keys.SUCCESS].any()

    def test_evaluation_reports_success_where_it_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By itself if the class says so, else if it is asked to: `info` might have none, which is no failure."""
        env = f"{__name__}:test/MetaWalk-v0"
        assert "publish" not in tiny.data(env=env).eval_options
        assert tiny.data(env=env, publish=["success"]).eval_options["publish"] == ("success",)
        monkeypatch.setattr(GymnasiumMetaEnv, "reports_success", True)
        assert tiny.data(env=env).eval_options["publish"] == ("success",)

    def test_done_stays_until_the_reset(self) -> None:
        env = walk(8, episodes_per_task=1, publish=["success"], seed=1)
        td = env.reset()
        for _ in range(10):
            td = env.step(td.set(keys.ACTION, torch.zeros(8, 2)))[keys.NEXT]
        ended = td.clone()
        td.zero_()  # what is handed out is not the simulator's
        last = env.step(td.set(keys.ACTION, torch.zeros(8, 2)))[keys.NEXT]
        for name in (keys.OBSERVATION, keys.DONE, keys.TERMINATED, keys.TRUNCATED, keys.SUCCESS):
            assert torch.equal(last[name], ended[name])
            assert ended[name].any()
        assert not last[keys.REWARD].any()

    def test_a_state_before_the_first_reset(self) -> None:
        one, other = walk(seed=1), walk(seed=2)
        other.load_state_dict(one.state_dict())
        assert_equal(one.reset(), other.reset())

    def test_pictures(self) -> None:
        env = walk(2, episodes_per_task=3, env_kwargs={"render_mode": None})
        env.reset()
        with pytest.raises(NotImplementedError, match="test/Walk-v0 has no picture: expected the render mode"):
            env.render_frame(0)
        never = button()
        never.reset()
        with pytest.raises(NotImplementedError, match="test/Button-v0 has no picture"):
            never.render_frame(1)

    def test_closing_closes_all(self) -> None:
        env = walk(2)
        env.reset()
        inner = stepped_by(env)
        assert not any(each.closed for each in inner)
        env.close()
        assert all(each.closed for each in inner)

    @pytest.mark.parametrize(
        "wrong", [{"set_task": "choose"}, {"env_id": "test/Endless-v0"}], ids=["in its task", "in its sizes"]
    )
    def test_an_environment_that_cannot_be_used_is_closed(
        self, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = []
        monkeypatch.setattr(Walk, "close", lambda env: closed.append(env.render_mode))
        with pytest.raises(ValueError, match="expected"):
            walk(**wrong)
        assert closed == [None, "rgb_array"]

    def test_further_arguments_reach_gymnasium(self) -> None:
        env = walk(2, env_kwargs={"scale": 3.0})
        env.reset()
        assert [inner.scale for inner in stepped_by(env)] == [3, 3]

    def test_a_subclass_takes_all_options(self) -> None:
        class Presser(GymnasiumMetaEnv):
            def __init__(self, num_envs: int, episodes_per_task: int = 3, *, good: float = 3, **options: Any) -> None:
                fixed = {"env_id": "test/Button-v0", "set_task": "press", "tasks": [[good]]}
                super().__init__(num_envs, episodes_per_task, **fixed, **options)

        gymnasium.register("test/Presser-v0", entry_point=Presser)
        env = make_env("test/Presser-v0", 2, good=4, episode_length=5)
        assert (env.horizon, env.reset()[keys.OBSERVATION].shape) == (15, (2, 2))
        with pytest.raises(ValueError, match="option 'episode_len' of Presser: .* 'episode_length'"):
            make_env("test/Presser-v0", 2, episode_len=5)

    def test_an_entry_without_an_id_is_named(self) -> None:
        gymnasium.register("test/Nothing-v0", entry_point=GymnasiumMetaEnv)
        with pytest.raises(ValueError, match="`env_id` is None: expected a Gymnasium id$"):
            make_env("test/Nothing-v0", 2, tasks=[[0]])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"env_id": "test/Wolk-v0"}, "`env_id` is 'test/Wolk-v0': .*`Wolk` doesn't exist"),
            ({"env_id": "nowhere:Walk-v0"}, "`env_id` is 'nowhere:Walk-v0': No module named 'nowhere'"),
            ({"env_id": "test/Button-v0"}, "`episode_length` is None, but 'test/Button-v0' has no time limit"),
            ({"episode_length": 0}, "`episode_length` is 0: expected an integer of at least 1"),
            ({"num_envs": 0}, "`num_envs` is 0"),
            (
                {"env_kwargs": {"scales": 2}},
                r"`env_kwargs` is {'scales': 2}: expected arguments of 'test/Walk-v0' \(",
            ),
            ({"env_kwargs": {"max_episode_steps": 2}}, "`env_kwargs` is {'max_episode_steps': 2}: .*multiple values"),
            ({"env_kwargs": [2]}, r"`env_kwargs` is \[2\]: .*must be a mapping"),
            ({"set_task": "choose"}, "`set_task` is 'choose': expected 'options', or the name of a method of Walk"),
            ({"task_low": None}, "expected either `tasks`, or both `task_low` and `task_high`"),
            ({"task_low": None, "task_high": None}, "expected either `tasks`, or both"),
            ({"tasks": [[1]], "task_low": [1]}, "expected either `tasks`, or both"),
            ({"task_low": [1], "task_high": [0]}, r"`task_low` is \[1\]: expected no value above `task_high`"),
            ({"task_low": [1]}, "`task_low` and `task_high` is .*: expected lists of equally many finite numbers"),
            ({"task_low": [1, float("inf")]}, "expected lists of equally many finite numbers"),
            ({"tasks": []}, r"`tasks` is \[\]: expected lists of equally many finite numbers"),
            ({"tasks": [1, 2]}, r"`tasks` is \[1, 2\]: expected lists"),
            ({"tasks": [["a"]]}, r"`tasks` is \[\['a'\]\]: expected lists"),
            ({"tasks": [[1], [2], [1]]}, r"`tasks` is \[\[1\], \[2\], \[1\]\]: expected every task once"),
            ({"fixed_task": [2, 3]}, r"`fixed_task` is \[2, 3\]: .*expected tasks of this environment"),
            ({"fixed_task": [0]}, r"`fixed_task` is \[0\]: .* shape \(1,\): expected \(2,\)"),
            ({"tasks": [[1], [2]], "fixed_task": [1.5]}, r"`fixed_task` is \[1.5\]: .*expected tasks of this"),
            ({"task_split": "test"}, "`task_split` is 'test', but there is no finite set"),
        ],
    )
    def test_bad_arguments_are_named_in_one_line(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            walk(**options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("space", "value", "words"),
        [
            ("action_space", gymnasium.spaces.Box(-np.inf, 1, (1,)), "Discrete or bounded Box actions, not Box"),
            ("action_space", gymnasium.spaces.MultiBinary(2), "Discrete or bounded Box actions, not MultiBinary"),
            (
                "observation_space",
                gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2)),
                "observations of fixed size, not Sequence",
            ),
        ],
    )
    def test_spaces_without_a_size_are_refused(
        self, space: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Button, space, value)
        with pytest.raises(ValueError, match=f"`env_id` is 'test/Button-v0': expected {words}"):
            button()


def shifted(mask: torch.Tensor) -> torch.Tensor:
    """The same mask `[B, T, 1]` one step later."""
    return torch.cat((torch.zeros_like(mask[:, :1]), mask[:, :-1]), 1)


# The page -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def my_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The example of the page, saved in the current directory, where the command line finds it."""
    (tmp_path / "my_env.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_env", raising=False)
    for name in ("my/Push-v0", "my/CartPole-v0"):
        monkeypatch.delitem(gymnasium.registry, name, raising=False)
    return __import__("my_env")


COMMAND = ("--data.env=my_env:my/CartPole-v0", "--seed_everything=1")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


class TestThePage:
    """What `docs/envs/gymnasium.md` shows works."""

    def test_snippets_run(self, my_env: types.ModuleType) -> None:
        for snippet in blocks("py"):
            exec(snippet, {})

    def test_the_first_snippet_needs_nothing_else(self) -> None:
        """Here all ids are registered already, in a process of its own they are not."""
        process = subprocess.run([sys.executable, "-c", blocks("py")[0]], capture_output=True, text=True)
        assert process.returncode == 0, process.stderr

    def test_the_example_is_known_by_its_id(self, my_env: types.ModuleType) -> None:
        env = make_env("my_env:my/CartPole-v0", 2, publish=["task"])
        assert (env.episodes_per_task, env.num_actions, env.obs_dim) == (3, 2, 5)
        td = play(env, 5)
        assert [inner.force_mag for inner in stepped_by(env)] == td[keys.NEXT, keys.TASK][:, -1, 0].tolist()
        assert landmarks("my_env:my/CartPole-v0") == {}

    @tiny.QUIET
    def test_the_command_line_trains_on_it_and_resumes_exactly(
        self, my_env: types.ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def parameters(directory: str, frames: int, *args: str) -> list[torch.Tensor]:
            Path(directory).mkdir(exist_ok=True)
            with contextlib.chdir(directory):
                result = cli.run(["fit", *args, f"--data.frames={frames}"], test=False)
            assert result.model.frames == frames
            return list(result.model.state_dict().values())

        monkeypatch.setattr(sys, "path", list(sys.path))
        start = parameters("halves", 56, *COMMAND, *SMALL)
        resumed = parameters("halves", 140, "--ckpt_path=checkpoints/last.ckpt")
        whole = parameters("whole", 140, *COMMAND, *SMALL)
        assert all(map(torch.equal, resumed, whole))
        assert not all(map(torch.equal, start, whole))
