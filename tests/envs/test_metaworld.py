"""Meta-World: the benchmarks' tasks, the order in which they are played, what the simulator does, and rewards."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import metaworld
import mujoco
import numpy as np
import pytest
import tiny
import torch
from metaworld import policies
from numpy.linalg import norm
from sampling import LEVEL, assert_uniform
from scipy import stats
from tensordict import TensorDict

from hyperrl import keys
from hyperrl.envs import MetaEnv, make_env
from hyperrl.envs.metaworld import _CLASSES, ENVS, MetaWorld
from hyperrl.workers import metaworld as simulation
from hyperrl.workers.metaworld import MetaWorldBatch, load_tasks

POLICIES = {
    "reach": policies.SawyerReachV3Policy,
    "push": policies.SawyerPushV3Policy,
    "pick-place": policies.SawyerPickPlaceV3Policy,
}
ML10 = [
    "reach", "push", "pick-place", "door-open", "drawer-close", "button-press-topdown", "peg-insert-side",
    "window-open", "sweep", "basketball", "drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull",
]  # fmt: skip

# Lowest and highest random vectors (spec section 8.3).
RANGES = {
    "door-open": ((0, 0.85, 0.15), (0.1, 0.95, 0.15)),
    "drawer-close": ((-0.1, 0.9, 0), (0.1, 0.9, 0)),
    "button-press-topdown": ((-0.1, 0.8, 0.115), (0.1, 0.9, 0.115)),
    "peg-insert-side": ((0, 0.5, 0.02, -0.35, 0.4, -0.001), (0.2, 0.7, 0.02, -0.25, 0.7, 0.001)),
    "window-open": ((-0.1, 0.7, 0.16), (0.1, 0.9, 0.16)),
    "sweep": ((-0.1, 0.6, 0.02), (0.1, 0.7, 0.02)),
    "basketball": ((-0.1, 0.6, 0.0299, -0.1, 0.85, 0), (0.1, 0.7, 0.0301, 0.1, 0.9, 0)),
    "drawer-open": ((-0.1, 0.9, 0), (0.1, 0.9, 0)),
    "door-close": ((0, 0.85, 0.15), (0.1, 0.95, 0.15)),
    "shelf-place": ((-0.1, 0.5, 0.019, -0.1, 0.8, 0.299), (0.1, 0.6, 0.021, 0.1, 0.9, 0.301)),
    "sweep-into": ((-0.1, 0.6, 0.02, -0.001, 0.8399, 0.0199), (0.1, 0.7, 0.02, 0.001, 0.8401, 0.0201)),
    "lever-pull": ((-0.1, 0.7, 0), (0.1, 0.8, 0)),
    "reach": ((-0.1, 0.6, 0.02, -0.1, 0.8, 0.05), (0.1, 0.7, 0.02, 0.1, 0.9, 0.3)),
    "push": ((-0.1, 0.6, 0.02, -0.1, 0.8, 0.01), (0.1, 0.7, 0.02, 0.1, 0.9, 0.02)),
    "pick-place": ((-0.1, 0.6, 0.02, -0.1, 0.8, 0.05), (0.1, 0.7, 0.02, 0.1, 0.9, 0.3)),
}


def vectors(name: str, seed: int = 0) -> np.ndarray:
    """Random vectors of a benchmark's tasks."""
    return np.stack([pickle.loads(task.data)["rand_vec"] for task in load_tasks(name, seed)])


def make(num_envs: int = 1, episodes_per_task: int = 2, **options: Any) -> MetaWorld:
    """Reach in this process, unless options say otherwise."""
    benchmark = {} if "benchmark" in options else {"task_name": "reach"}
    return MetaWorld(num_envs, episodes_per_task, **{"num_workers": 0, **benchmark, **options})


def batch_of(name: str, num_envs: int, **options: Any) -> MetaWorldBatch:
    return MetaWorldBatch(num_envs, tasks=load_tasks(name, 0), **options)


def simulator(env: MetaEnv, row: int = 0) -> Any:
    """The library's environment."""
    assert isinstance(env, MetaWorld)
    return env._pool.here._env(row)


def act(env: MetaEnv, *action: float) -> TensorDict:
    """Take one action in all environments; return what comes after."""
    actions = torch.tensor(action, dtype=torch.float32).expand(env.num_envs, 4)
    return env.step(TensorDict({keys.ACTION: actions}, [env.num_envs]))[keys.NEXT]


class TestTasks:
    """What the benchmarks draw."""

    def test_sizes(self) -> None:
        for entry, (task_dim, num_tasks) in zip(ENVS, [(3, None)] * 4 + [(13, 10), (48, 45)], strict=True):
            env = make_env(entry.id, 2, num_workers=0)
            assert (env.obs_dim, env.action_dim, env.num_actions, env.horizon) == (40, 4, None, 1000)
            assert (env.task_dim, env.num_tasks, env.episodes_per_task) == (task_dim, num_tasks, 2)
            assert not env.shows_next_episode
            assert env.env_info.action_low == (-1,) * 4

    def test_classes_are_those_of_the_library_in_the_order_of_the_specification(self) -> None:
        for name, sizes in _CLASSES.items():
            if name != "ML1":
                splits = getattr(metaworld._env_dict, f"{name}_V3")
                assert tuple(len(splits[split]) for split in ("train", "test")) == sizes
        assert [task.env_name for task in load_tasks("ML10", 0)] == [f"{each}-v3" for each in ML10 for _ in range(50)]
        assert len(load_tasks("push", 0)) == 100

    @pytest.mark.parametrize("name", ML10)
    def test_random_vectors_are_in_their_ranges_and_fill_them(self, name: str) -> None:
        drawn = vectors(name)
        low, high = np.array(RANGES[name])
        assert (drawn >= low).all()
        assert (drawn <= high).all()
        assert (np.ptp(drawn, axis=0) >= 0.7 * (high - low)).all()

    def test_objects_and_goals_are_uniform_given_their_distance(self) -> None:
        """Two-sample Kolmogorov-Smirnov tests, at level 1e-4 each, against own draws."""
        drawn = np.concatenate([vectors("reach", seed) for seed in range(4)])
        generator = np.random.default_rng(5)
        low, high = np.array(RANGES["reach"])
        own = generator.uniform(low, high, size=(40_000, 6))
        own = own[norm(own[:, :2] - own[:, 3:5], axis=1) >= 0.15]
        assert (norm(drawn[:, :2] - drawn[:, 3:5], axis=1) >= 0.15).all()
        for column in (0, 1, 3, 4, 5):
            assert stats.ks_2samp(drawn[:, column], own[:, column]).pvalue > LEVEL

    def test_coordinates_are_independent(self) -> None:
        """The first Meta-World used one number for all (quirk W3); a test of Pearson's correlation at level 1e-4."""
        drawn = np.concatenate([vectors("pick-place", seed) for seed in range(4)])
        for column in (0, 1, 3, 4):
            assert stats.pearsonr(drawn[:, column], drawn[:, 5]).pvalue > LEVEL

    def test_draws_do_not_need_physics(self) -> None:
        """As the library draws them itself; the rotation of lever-pull's object is read while it does."""
        slow = metaworld.ML10(seed=3)
        for ours, theirs in zip(load_tasks("ML10", 3), slow.train_tasks + slow.test_tasks, strict=True):
            assert ours.env_name == theirs.env_name
            one, other = (pickle.loads(task.data) for task in (ours, theirs))
            assert one.keys() == other.keys()
            assert one["partially_observable"]
            np.testing.assert_array_equal(one["rand_vec"], other["rand_vec"])

    def test_a_benchmark_is_one_for_all(self) -> None:
        """Whatever the seed of environments, which decides about the order only (quirk W4)."""
        goals = [
            {tuple(goal) for goal in make(6, seed=seed, publish=["task"]).reset()[keys.TASK].tolist()}
            for seed in (1, 2)
        ]
        known = {tuple(goal) for goal in simulation.load_goals("reach", 0).tolist()}
        assert len(known) == 100
        assert goals[0] != goals[1]
        assert goals[0] | goals[1] <= known
        assert not known & {tuple(goal) for goal in simulation.load_goals("reach", 7).tolist()}

    def test_drawing_leaves_numpys_generator_alone(self) -> None:
        np.random.seed(3)
        expected = np.random.random(3)
        np.random.seed(3)
        load_tasks("reach", 99)
        np.testing.assert_array_equal(np.random.random(3), expected)


class TestOrder:
    """Which task comes next."""

    @pytest.mark.parametrize(("split", "numbers"), [("all", (0, 100)), ("train", (0, 50)), ("test", (50, 100))])
    def test_tasks_of_ml1_are_uniform_in_the_split(self, split: Any, numbers: tuple[int, int]) -> None:
        assert_uniform(make(task_split=split, seed=3).sample_tasks(20_000), range(*numbers))

    @pytest.mark.parametrize(("split", "first", "classes"), [("train", 0, 10), ("test", 10, 5), ("all", 0, 15)])
    def test_decks_play_all_classes_and_all_variants_before_any_again(
        self, split: Any, first: int, classes: int
    ) -> None:
        env = make(400, benchmark="ML10", task_split=split, seed=2)
        decks = env._decks()
        assert decks.shape == (400, 50 * classes)
        blocks = (decks // 50).view(400, 50, classes)
        assert (blocks.sort(-1).values == torch.arange(first, first + classes)).all()
        assert (decks.sort(-1).values == torch.arange(50 * first, 50 * (first + classes))).all()
        # Any class comes first, whichever was first in the block before; any variant is the first one of its class.
        pairs = blocks[:, ::2, 0] * 100 + blocks[:, 1::2, 0]
        assert_uniform(
            pairs, [100 * a + b for a in range(first, first + classes) for b in range(first, first + classes)]
        )
        variants = decks.view(400, 50, classes).gather(-1, blocks.argsort(-1)) % 50
        assert_uniform(variants[:, 0], range(50))
        assert_uniform(variants[:, 49], range(50))

    def test_environments_have_different_decks(self) -> None:
        decks = make(50, benchmark="ML10")._decks()
        assert len(decks.unique(dim=0)) == 50
        assert len((decks % 50).unique(dim=0)) == 50

    def test_environments_play_their_decks_to_the_end_and_then_others(self) -> None:
        env = make(2, 1, benchmark="ML10", task_split="test", episode_length=1, seed=4)
        td = env.reset()
        deck = env.state["deck"].clone()
        played = [env.state[keys.TASK].clone()]
        td = env.reset(td.set("_reset", torch.tensor([[False], [True]])))
        for _ in range(3):
            td = act(env, 0, 0, 0, 0)
            td = env.reset(td.exclude(keys.REWARD).set("_reset", td[keys.DONE]))
            played.append(env.state[keys.TASK].clone())
        one, other = torch.stack(played, 1)
        assert torch.equal(one, deck[0, :4])
        assert torch.equal(other[1:], deck[1, 2:5])
        env.state["played"][0] = 250  # all of it
        td = act(env, 0, 0, 0, 0)
        env.reset(td.exclude(keys.REWARD).set("_reset", td[keys.DONE]))
        assert env.state["played"].tolist() == [1, 6]
        assert torch.equal(env.state["deck"][1], deck[1])
        assert not torch.equal(env.state["deck"][0], deck[0])
        assert env.state[keys.TASK].tolist() == [env.state["deck"][0, 0], deck[1, 5]]

    def test_a_state_holds_the_deck(self) -> None:
        options = {"benchmark": "ML10", "episode_length": 1, "publish": ["task"]}
        one, other = make(2, 1, seed=1, **options), make(2, 1, seed=2, **options)
        td = one.reset()
        for _ in range(3):
            _, td = one.step_and_maybe_reset(td.set(keys.ACTION, torch.zeros(2, 4)))
        other.load_state_dict(one.state_dict())
        start = td
        goals = []
        for env in (one, other):
            td = start.clone()
            for _ in range(4):
                _, td = env.step_and_maybe_reset(td.set(keys.ACTION, torch.zeros(2, 4)))
            goals.append(td[keys.TASK])
        assert torch.equal(*goals)

    def test_train_and_test_tasks_are_disjoint(self) -> None:
        assert len(np.unique(vectors("reach"), axis=0)) == 100
        env = make(24, benchmark="ML10", task_split="test", publish=["task", "task_id"])
        td = env.reset()
        assert not td[keys.TASK][:, :10].any()
        assert set(td[keys.TASK_ID].tolist()) == set(range(5))

    def test_a_task_vector_is_a_one_hot_class_and_the_goal(self) -> None:
        env = make(24, benchmark="ML10", task_split="train", publish=["task", "task_id"])
        td = env.reset()
        assert torch.equal(td[keys.TASK][:, :10].argmax(-1), td[keys.TASK_ID])
        assert torch.equal(td[keys.TASK][:, :10].sum(-1), torch.ones(24))
        for row in range(24):
            inner = simulator(env, row)
            assert inner.__class__ is metaworld.ALL_V3_ENVIRONMENTS[f"{ML10[td[keys.TASK_ID][row]]}-v3"]
            np.testing.assert_array_equal(td[keys.TASK][row, 10:], inner._get_pos_goal().astype(np.float32))

    def test_a_single_class_has_no_numbers(self) -> None:
        with pytest.raises(ValueError, match="`publish` holds 'task_id', .* names out of task, success$"):
            make(publish=["task_id"])

    def test_classes_of_both_splits_together_have_no_numbers(self) -> None:
        """Class 10 would have that of class 0."""
        words = (
            "`publish` holds 'task_id', .* out of task, success, and with `task_split` 'train' or 'test' also task_id$"
        )
        with pytest.raises(ValueError, match=words):
            make(benchmark="ML10", publish=["task_id"])

    def test_evaluation_reports_success_by_itself(self) -> None:
        source = tiny.data(env="ML1-reach-v0", env_options={"num_workers": 0})
        assert source.eval_options["publish"] == ("success",)
        assert "publish" not in source.options


class TestFixedTasks:
    """Tasks that are given, not drawn."""

    def test_by_number(self) -> None:
        env = make(3, publish=["task"])
        env.inject("task", [[4], [99], [0]], [17])
        goals = torch.tensor(simulation.load_goals("reach", 0))
        assert torch.equal(env.reset()[keys.TASK], goals[[4, 99, 0]])
        assert torch.equal(env.reset()[keys.TASK], goals[[17] * 3])

    def test_by_vector(self) -> None:
        goals = simulation.load_goals("pick-place", 2)
        env = make(2, task_name="pick-place", benchmark_seed=2, fixed_task=goals[60].tolist())
        env.reset()
        assert env.state[keys.TASK].tolist() == [60, 60]

    def test_goals_that_do_not_tell_the_task(self) -> None:
        env = make(task_name="sweep-into")
        with pytest.raises(
            ValueError, match=r"injected task is .*: expected the number \[i\] of a task, since several"
        ):
            env.inject("task", [0.0, 0.84, 0.02])

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ([100], "task is 100.*: expected the number of a task, from 0 to 99"),
            ([-1], "task is -1.*: expected the number of a task"),
            ([0.5], "task is 0.5: expected the number of a task"),
            ([0.1, 0.2, 0.3], "task is .*: expected a task of the benchmark"),
            ([0.1, 0.2], r"task has shape \(2,\): expected \(3,\) or \(1, 3\)"),
        ],
    )
    def test_impossible_tasks(self, value: list[float], words: str) -> None:
        with pytest.raises(ValueError, match=f"^injected {words}"):
            make().inject("task", value)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"benchmark": "ML25"}, "`benchmark` is 'ML25': expected one of ML1, ML10, ML45"),
            ({"task_name": "door-opn"}, "`task_name` is 'door-opn': the nearest valid name is 'door-open'"),
            ({"task_name": None}, "`task_name` is None: expected a class of Meta-World's"),
            (
                {"benchmark": "ML10", "task_name": "reach"},
                "`task_name` is 'reach': expected None, since ML10 has",
            ),
            ({"benchmark_seed": -1}, "`benchmark_seed` is -1: expected an integer from 0"),
            ({"benchmark_seed": 1.5}, "`benchmark_seed` is 1.5: expected an integer from 0"),
            ({"reward_version": "v3"}, "`reward_version` is 'v3': expected 'v1' or 'v2'"),
            ({"episode_length": 0}, "`episode_length` is 0: expected an integer of at least 1"),
            ({"sparse_rewards": 1}, "`sparse_rewards` is 1: expected true or false"),
            ({"terminate_on_success": None}, "`terminate_on_success` is None: expected true or false"),
            ({"num_workers": -1}, "`num_workers` is -1: expected an integer of at least 0"),
            ({"num_workers": True}, "`num_workers` is True: expected an integer of at least 0"),
            ({"task_split": "val"}, "`task_split` is 'val': expected 'all', 'train' or 'test'"),
        ],
    )
    def test_bad_arguments_are_named_in_one_line(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            make(**options)
        assert "\n" not in str(error.value)


class TestSimulator:
    """What actions do, and what is seen."""

    def test_the_hand_follows_clipped_velocities_within_its_limits(self) -> None:
        env = make(fixed_task=[0])
        env.reset()
        inner = simulator(env)
        np.testing.assert_allclose(inner.data.mocap_pos[0], [0, 0.6, 0.2], atol=1e-9)
        for action, step in (((1, 0, 0, 0), 0.01), ((0.5, 0, 0, 0), 0.005), ((-7, 0, 0, 0), -0.01)):
            before = inner.data.mocap_pos[0].copy()
            act(env, *action)
            np.testing.assert_allclose(inner.data.mocap_pos[0] - before, [step, 0, 0], atol=1e-8)
        for action, limit in (((1, 1, 1, 0), (0.5, 1.0, 0.5)), ((-1, -1, -1, 0), (-0.5, 0.4, 0.05))):
            for _ in range(105):
                act(env, *action)
            np.testing.assert_allclose(inner.data.mocap_pos[0], limit)
        np.testing.assert_array_equal(inner.data.mocap_quat[0], [1, 0, 1, 0])

    def test_lever_pull_reaches_lower(self) -> None:
        env = make(task_name="lever-pull", fixed_task=[0])
        env.reset()
        np.testing.assert_allclose(simulator(env).mocap_low, [-0.5, 0.4, -0.15])

    def test_the_gripper_gets_its_action_unclipped(self) -> None:
        env = make(fixed_task=[0])
        env.reset()
        act(env, 0, 0, 0, 2.5)
        np.testing.assert_array_equal(simulator(env).data.ctrl, [2.5, -2.5])
        assert simulator(env).frame_skip == 5

    def test_observations(self) -> None:
        env = make(task_name="pick-place", fixed_task=[3], episodes_per_task=1)
        first = env.reset()[keys.OBSERVATION][0].double().numpy()
        inner = simulator(env)
        np.testing.assert_array_equal(first[18:36], first[:18])  # not the last frame of the episode before (quirk W6)
        later = act(env, 1, -1, 0.5, 1)[keys.OBSERVATION][0].double().numpy()
        np.testing.assert_array_equal(later[18:36], first[:18])
        assert not later[36:].any()
        np.testing.assert_allclose(later[:3], inner.data.body("hand").xpos, atol=1e-6)
        claws = norm(inner.data.body("rightclaw").xpos - inner.data.body("leftclaw").xpos)
        assert later[3] == pytest.approx(min(claws / 0.1, 1), abs=1e-6)
        np.testing.assert_allclose(later[4:7], inner.data.body("obj").xpos, atol=1e-6)
        w, *xyz = inner.data.xquat[inner.model.body("obj").id]
        assert abs(np.dot(later[7:11], [*xyz, w])) == pytest.approx(1, abs=1e-5)
        assert not later[11:18].any()

    @pytest.mark.parametrize("name", ML10)
    def test_an_episode_depends_on_its_task_only(self, name: str) -> None:
        """Not on what the simulator did before, which therefore may serve any environment."""
        number = ML10.index(name) * 50
        used, fresh = (batch_of("ML10", 1) for _ in range(2))
        generator = np.random.default_rng(1)
        used.begin(0, number + 7)
        for action in generator.uniform(-1, 1, (40, 4)).astype(np.float32):
            used.advance(0, action)
        for one, other in zip(used.begin(0, number), fresh.begin(0, number), strict=True):
            np.testing.assert_array_equal(one, other)
        for action in generator.uniform(-1, 1, (40, 4)).astype(np.float32):
            one, other = used.advance(0, action), fresh.advance(0, action)
            np.testing.assert_array_equal(one.observation, other.observation)
            assert one[1:] == other[1:]

    def test_simulators_are_built_once_and_handed_on(self) -> None:
        batch = batch_of("ML10", 2)
        batch.begin(0, 0)
        batch.begin(1, 1)
        one, other = batch._env(0), batch._env(1)
        assert one is not other
        batch.begin(0, 3)
        assert batch._env(0) is one
        batch.begin(0, 60)
        batch.begin(1, 70)
        batch.begin(0, 4)
        assert batch._env(0) in (one, other)

    def test_the_last_step_is_truncated(self) -> None:
        env = make(2, 2, episode_length=4, fixed_task=[0])
        assert env.horizon == 8
        env.reset()
        steps = [act(env, 0, 0, 0, 0) for _ in range(8)]
        assert [step[keys.EPISODE_DONE].all().item() for step in steps] == [False, False, False, True] * 2
        assert [step[keys.TRUNCATED].all().item() for step in steps] == [False] * 7 + [True]
        assert not torch.stack([step[keys.TERMINATED] for step in steps]).any()

    def test_longer_episodes_than_the_librarys(self) -> None:
        env = make(1, 1, episode_length=503, fixed_task=[0])
        env.reset()
        done = [act(env, 0, 0, 0, 0)[keys.DONE].item() for _ in range(503)]
        assert done == [False] * 502 + [True]

    def test_the_step_that_ends_an_episode_shows_its_end(self) -> None:
        env = make(1, 2, episode_length=3, fixed_task=[0])
        first = env.reset()[keys.OBSERVATION]
        for _ in range(3):
            after = act(env, 1, 1, 1, 0)
        assert after[keys.OBSERVATION][0, -1] == 1
        assert (after[keys.OBSERVATION][0, :3] - first[0, :3]).norm() > 0.01
        again = act(env, 0, 0, 0, 0)[keys.OBSERVATION]
        assert torch.equal(again[:, 18:36], first[:, :18])


class TestVersions:
    """What works around the versions of others, and would no longer be needed, or no longer be enough."""

    def test_metaworld_cannot_reset_welds_by_itself(self) -> None:
        env = metaworld.ALL_V3_ENVIRONMENTS["reach-v3"]()
        assert env.model.eq_data.shape[1] == 12
        with pytest.raises(ValueError, match="broadcast"):
            unpatched().reset_mocap_welds(env)

    def test_welds_are_reset(self) -> None:
        env = metaworld.ALL_V3_ENVIRONMENTS["reach-v3"]()
        compiled = mujoco.MjModel.from_xml_path(env.fullpath)
        (weld,) = np.flatnonzero(env.model.eq_type == mujoco.mjtEq.mjEQ_WELD)
        np.testing.assert_array_equal(env.model.eq_data[weld, :11], [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5])
        assert env.model.eq_data[weld, 11] == compiled.eq_data[weld, 11] == 1


def unpatched() -> Any:
    """A copy of the library's class as it is in its file."""
    spec = importlib.util.find_spec("metaworld.sawyer_xyz_env")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SawyerMocapBase


# Rewards ------------------------------------------------------------------------------------------------------------


def tolerance(x: float, high: float, margin: float, low: float = 0.0) -> float:
    """T of the specification."""
    distance = max(low - x, x - high, 0.0)
    if distance == 0:
        return 1.0
    return 0.0 if margin == 0 else 1 / (1 + 9 * (distance / margin) ** 2)


def hamacher(a: float, b: float) -> float:
    """H of the specification."""
    total = a + b - a * b
    return a * b / total if total > 0 else 0.0


class Moment(NamedTuple):
    """What a reward is made of."""

    tcp: np.ndarray
    thing: np.ndarray
    goal: np.ndarray
    pads: tuple[np.ndarray, np.ndarray]
    opening: float
    force: float
    start: np.ndarray  # of the object
    first_tcp: np.ndarray


def caging(now: Moment, name: str) -> float:
    """The term c of the specification; the first position of a pad is a view in the library: it is its current one."""
    left, right = (pad[1] for pad in now.pads)
    y, first = now.thing[1], now.start[1]
    if name == "push":
        distances = [(abs(pad - y), abs(abs(pad - first) - 0.05)) for pad in (left, right)]
    else:
        distances = [(left - y, abs(abs(y - left) - 0.05)), (y - right, abs(abs(y - right) - 0.05))]
    along = hamacher(*(tolerance(x, 0.05, margin, low=0.015) for x, margin in distances))
    plane = [0, 2]
    margin = norm((now.start - now.first_tcp)[plane]) - 0.005
    caged = hamacher(along, tolerance(norm((now.tcp - now.thing)[plane]), 0.005, margin))
    grip = min(max(now.force, 0), 1) if caged > 0.97 else 0.0
    return (caged + hamacher(caged, grip)) / 2


def reward_v2(now: Moment, name: str) -> tuple[float, bool]:
    """Reward and success."""
    reach, held = norm(now.tcp - now.goal), norm(now.tcp - now.thing) < 0.02 and now.opening > 0
    if name == "reach":
        return 10 * tolerance(reach, 0.05, norm(np.array([0, 0.6, 0.2]) - now.goal)), reach <= 0.05
    left = norm(now.thing - now.goal)
    placed = tolerance(left, 0.05, norm(now.start - now.goal))
    if name == "push":
        reward = 2 * caging(now, name)
        reward = 2 * reward + 1 + 5 * placed if held else reward
    else:
        reward = hamacher(caging(now, name), placed)
        reward += 1 + 5 * placed if held and now.thing[2] > now.start[2] + 0.01 else 0
    return 10.0 if left < 0.05 else reward, left <= (0.05 if name == "push" else 0.07)


def bonus(x: float) -> float:
    """E of the specification."""
    return 1000 * (np.exp(-(x**2) / 0.01) + np.exp(-(x**2) / 0.001))


def reward_v1(now: Moment, name: str) -> tuple[float, bool]:
    """Reward and success; as the library has it, an object that is put down is no longer picked (pick-place), and
    success is within 0.05, not 0.07 (push).
    """
    if name == "reach":
        left = norm(now.tcp - now.goal)
        return max(0, 1000 * (norm(now.first_tcp - now.goal) - left) + bonus(left)), left <= 0.05
    reach, height = norm(now.tcp - now.thing), now.start[2]
    if name == "push":
        left, whole = (norm((place - now.goal)[:2]) for place in (now.thing, now.start))
        return -reach + (reach < 0.05) * max(0, 1000 * (whole - left) + bonus(left)), left <= 0.05
    left, target = norm(now.thing - now.goal), height + 0.04
    flat = norm((now.tcp - now.thing)[:2])
    reward = -reach if flat < 0.05 else -flat - 2 * abs(now.tcp[2] - now.first_tcp[2])
    reward = -reach + max(now.force, 0) / 50 if reach < 0.05 else reward
    picked = now.thing[2] >= target - 0.01
    dropped = now.thing[2] < height + 0.005 and left > 0.02 and reach > 0.02
    if picked and not dropped:
        reward += 100 * target
    elif reach < 0.1 and now.thing[2] > height + 0.005:
        reward += 100 * min(target, now.thing[2])
    if picked and reach < 0.1 and not dropped:
        whole = norm(np.array([*now.start[:2], target]) - now.goal) + target
        reward += max(0, 1000 * (whole - left) + bonus(left))
    return reward, left <= 0.07


def play(name: str, number: int, scripted: bool, version: str, steps: int) -> Iterator[tuple[Moment, float, bool]]:
    """Play a task; yield what is read from the simulator, and the library's reward and success."""
    batch = batch_of(name, 1, reward_version=version)
    observation, goal = batch.begin(0, number)
    inner, policy, generator = batch._env(0), POLICIES[name](), np.random.default_rng(number)
    start, first_tcp = inner.obj_init_pos.copy(), inner.init_tcp.copy()
    np.testing.assert_allclose(start, observation[4:7], atol=1e-4)
    np.testing.assert_allclose(first_tcp, tcp_of(inner), atol=1e-3)
    for _ in range(steps):
        wanted = policy.get_action(np.concatenate((observation[:36], goal)))
        action = np.clip(wanted, -1, 1) if scripted else generator.uniform(-1.5, 1.5, 4)
        step = batch.advance(0, action.astype(np.float32))
        observation = step.observation
        pads = inner.data.body("leftpad").xpos.copy(), inner.data.body("rightpad").xpos.copy()
        force = float(np.float32(action[3]))
        yield (
            Moment(tcp_of(inner), observation[4:7], goal, pads, observation[3], force, start, first_tcp),
            step.reward,
            step.success,
        )


def tcp_of(inner: Any) -> np.ndarray:
    """Midpoint of the fingers."""
    return (inner.data.site("rightEndEffector").xpos + inner.data.site("leftEndEffector").xpos) / 2


@pytest.mark.filterwarnings("ignore:Constant.s. may be too high")
class TestRewards:
    """Recomputed from positions by the formulas of the specification."""

    @pytest.mark.parametrize("scripted", [True, False])
    @pytest.mark.parametrize("version", ["v1", "v2"])
    @pytest.mark.parametrize("name", POLICIES)
    def test_rewards_are_those_of_the_specification(self, name: str, version: str, scripted: bool) -> None:
        formula = reward_v1 if version == "v1" else reward_v2
        successes = []
        for number in (2, 60):
            for now, reward, success in play(name, number, scripted, version, 120 if scripted else 60):
                expected, expected_success = formula(now, name)
                assert reward == pytest.approx(expected, rel=1e-6, abs=1e-6)  # the force is of single precision
                assert success == expected_success
                successes.append(success)
        assert any(successes) == scripted
        assert not all(successes)

    def test_the_librarys_own_players_succeed(self) -> None:
        """Within 100 steps, and stay there."""
        for name in POLICIES:
            _, rewards, successes = zip(*play(name, 51, True, "v2", 110), strict=True)
            assert all(successes[100:])
            assert min(rewards[100:]) == 10

    def test_rewards_arrive(self) -> None:
        env = make(episodes_per_task=1, fixed_task=[5], publish=["success"])
        env.reset()
        batch = batch_of("reach", 1)
        batch.begin(0, 5)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32):
            assert act(env, *action.tolist())[keys.REWARD].item() == np.float32(batch.advance(0, action).reward)

    @pytest.mark.parametrize("ends", [False, True])
    @pytest.mark.parametrize("sparse", [False, True])
    def test_sparse_rewards_and_ends_at_success(self, sparse: bool, ends: bool) -> None:
        options = {"sparse_rewards": sparse, "terminate_on_success": ends, "publish": ["success", "task"]}
        env = make(1, 2, fixed_task=[5], episode_length=70, **options)
        policy, td = POLICIES["reach"](), env.reset()
        assert not td[keys.SUCCESS].any()
        steps = []
        while not td[keys.DONE].any():
            seen = np.concatenate((td[keys.OBSERVATION][0, :36].double(), td[keys.TASK][0].double()))
            wanted = policy.get_action(seen).clip(-1, 1)
            td = env.step(td.set(keys.ACTION, torch.tensor(wanted[None], dtype=torch.float32)))[keys.NEXT]
            steps.append(td.clone())
        after = torch.stack(steps)
        success, done, reward = (after[name].flatten() for name in (keys.SUCCESS, keys.EPISODE_DONE, keys.REWARD))
        assert success.any()
        assert not success[0]
        if sparse:
            assert torch.equal(reward, success.float())
        else:
            assert (reward[~success] > 0).all()
            assert (reward[success] == 10).all()
        if ends:
            assert torch.equal(done, success)
            assert after[keys.TERMINATED].flatten().tolist() == [False] * (len(done) - 1) + [True]
            assert not after[keys.TRUNCATED].any()
        else:
            assert done.nonzero().flatten().tolist() == [69, 139]
            assert after[keys.TRUNCATED][-1].all()
            assert success.sum() > 40


# The extra ----------------------------------------------------------------------------------------------------------


class TestExtra:
    """Meta-World is optional."""

    def test_it_is_imported_where_it_is_used_and_without_it_ids_say_what_to_install(self) -> None:
        code = (
            "import sys, hyperrl.envs\n"
            "assert 'metaworld' not in sys.modules\n"
            "sys.modules['metaworld'] = None\n"
            "assert 'ML1-reach-v0' in hyperrl.envs.env_ids()\n"
            "try:\n    hyperrl.envs.make_env('ML1-reach-v0', 1)\n"
            "except ValueError as error:\n    print(error)\n"
        )
        (line,) = run(code).splitlines()
        assert line.endswith("pip install 'hyperrl[metaworld]'")

    def test_its_simulators_do_not_import_torch(self) -> None:
        assert run("import sys, hyperrl.workers.metaworld; print('torch' in sys.modules)") == "False\n"


def run(code: str) -> str:
    """What a process of its own prints."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.filterwarnings("ignore:Constant.s. may be too high")
class TestThePage:
    """What `docs/envs/metaworld.md` shows works."""

    def test_snippets_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        page = (Path(__file__).resolve().parents[2] / "docs" / "envs" / "metaworld.md").read_text()
        (tmp_path / "docs" / "figures").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        snippets = [part.partition("```")[0] for part in page.split("```py\n")[1:]]
        assert snippets
        for snippet in snippets:
            exec(snippet, {})
        (picture,) = (tmp_path / "docs" / "figures").iterdir()
        assert picture.name == "env_metaworld.png"
