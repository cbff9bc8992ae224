"""Half-cheetahs: numeric anchors, rewards and observations of plain `mj_step` loops, task laws, belief and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sampling import assert_share, assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import MetaEnv, make_env
from hyperrl.envs.mujoco.half_cheetah import (
    ENVS,
    HalfCheetahDir,
    HalfCheetahDirSparse,
    HalfCheetahVel,
    Hop,
    HopWalk,
)
from hyperrl.envs.mujoco.models import load_model

Array = NDArray[np.float64]
IDS = [entry.id for entry in ENVS]
REST = [0.0] * 9


class Place(NamedTuple):
    """What a reward is computed from: the root's x before and after a step, and the torso as the engine left it."""

    before: float
    after: float
    torso: Array


class PlainLoop:
    """One half-cheetah, stepped by `mj_step`: five steps of 0.01 seconds under constant control (spec 3.1)."""

    def __init__(self, qpos: Array, qvel: Array) -> None:
        self.model = load_model("half_cheetah")
        self.data = mujoco.MjData(self.model)
        self.data.qpos, self.data.qvel = qpos, qvel
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: Array) -> Place:
        before = self.data.qpos[0]
        self.data.ctrl = action
        for _ in range(5):
            mujoco.mj_step(self.model, self.data)
        return Place(before, self.data.qpos[0], self.data.xpos[1].copy())

    def observation(self) -> Tensor:
        parts = self.data.qpos[1:], self.data.qvel, self.data.xpos[1]
        return torch.tensor(np.concatenate(parts), dtype=torch.float32)


# Rewards word by word (spec 4 and 5), of a task, places and a raw action.
Reward = Callable[[Array, Place, Array], float]


def speed(place: Place) -> float:
    return (place.after - place.before) / 0.05


def cost(action: Array) -> float:
    return 0.05 * math.fsum(value**2 for value in action)


def direction(task: Array, place: Place, action: Array) -> float:
    return task[0] * speed(place) - cost(action)


def sparse_direction(task: Array, place: Place, action: Array) -> float:
    return direction(task, place, action) if abs(place.torso[0]) >= 10 else -cost(action)


def velocity(task: Array, place: Place, action: Array) -> float:
    return -abs(speed(place) - task[0]) - cost(action)


def hop(task: Array, place: Place, action: Array) -> float:
    return 10 * (-abs(place.torso[2] - task[0]) - cost(action))


def hop_walk(task: Array, place: Place, action: Array) -> float:
    return {0.0: direction, 1.0: hop}[task[0]](task[1:], place, action)


REWARDS: dict[str, Reward] = {
    "HalfCheetahDir-v0": direction,
    "HalfCheetahVel-v0": velocity,
    "HalfCheetahDirSparseTen-v0": sparse_direction,
    "Hop-v0": hop,
    "HopWalk-v0": hop_walk,
    "HopWalkNonpara-v0": hop_walk,
}


def step(env: MetaEnv, action: object) -> TensorDict:
    rows = torch.as_tensor(action).expand(env.num_envs, 6)
    return env.step(TensorDict({keys.ACTION: rows}, [env.num_envs]))[keys.NEXT]


def inject_starts(env: MetaEnv, seed: int, *, x: tuple[float, ...] = (0.0,)) -> list[tuple[Tensor, Tensor]]:
    """Force two noisy starts per environment, the root near one of `x`; return their positions and velocities."""
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for _ in range(2):
        qpos, qvel = (torch.randn(env.num_envs, 9, generator=generator, dtype=torch.float64) * 0.1 for _ in range(2))
        qpos[:, 0] += torch.tensor(x).repeat(env.num_envs)[: env.num_envs]
        env.inject("qpos", qpos)
        env.inject("qvel", qvel)
        starts.append((qpos, qvel))
    return starts


def wave(t: int) -> Tensor:
    """The actions of the anchors `[6]`, which exceed the limits."""
    return torch.tensor([1.2 * math.sin(0.3 * t + i) for i in range(6)], dtype=torch.float64)


# Rewards at t = 0 and t = 9, and the sum over 40 steps, to as many decimals as are given (spec 11).
ANCHORS: list[tuple[str, list[float], str, str, str]] = [
    ("HalfCheetahDir-v0", [1], "-0.1733419896", "-0.4488342811", "-22.0181326"),
    ("HalfCheetahDir-v0", [-1], "-0.2654398152", "0.0302463111", "4.7143882"),
    ("HalfCheetahVel-v0", [1.5], "-1.6733419896", "-1.9488342811", "-82.0181326"),
    ("Hop-v0", [1], "-5.4597420435", "-7.5179524621", "-301.157018"),
]
QPOS = (
    "-0.66831302 -0.57709626 -2.98093999 -0.46817484 0.11332642 0.52813096 0.6561479 -0.0687582 -0.52034515"
)  # fmt: skip
TORSO = "-0.66811378 0 0.12289118"


def assert_given(values: Any, given: str, *, decimals: int | None = None) -> None:
    """Values are the given ones, rounded to as many decimals as these have, or to so many."""
    for value, text in zip(np.atleast_1d(values), given.split(), strict=True):
        places = len(text.partition(".")[2]) if decimals is None else decimals
        assert abs(value - float(text)) <= 0.5001 * 10.0**-places, (value, text)


class TestAnchors:
    """Numbers of an independent implementation (spec 11)."""

    @pytest.mark.parametrize(("env_id", "task", "first", "ninth", "total"), ANCHORS)
    def test_rewards(
        self, env_id: str, task: list[float], first: str, ninth: str, total: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = make_env(env_id, 1)
        exact = record_rewards(env, monkeypatch)
        shown = play_wave(env, task)
        torch.testing.assert_close(shown, torch.tensor(exact, dtype=torch.float32), rtol=0, atol=0)
        assert_given(exact[0], first)
        assert_given(exact[9], ninth)
        assert_given(math.fsum(exact), total)

    @pytest.mark.parametrize(("task", "anchor"), [([0, -1], 1), ([0, 1], 0), ([1, 1], 3)])
    def test_rewards_of_both_modes(self, task: list[float], anchor: int, monkeypatch: pytest.MonkeyPatch) -> None:
        env = make_env("HopWalk-v0", 1)
        exact = record_rewards(env, monkeypatch)
        play_wave(env, task)
        _, _, first, ninth, total = ANCHORS[anchor]
        assert_given(exact[0], first)
        assert_given(exact[9], ninth)
        assert_given(math.fsum(exact), total)

    def test_trajectory(self) -> None:
        env = HalfCheetahDir(1)
        play_wave(env, [1])
        simulation = env.get_extra_state()["simulator"]["physics"][0]
        found = [start for start in range(len(simulation) - 8) if abs(simulation[start] + 0.66831302) < 1e-8]
        assert len(found) == 1
        assert_given(simulation[found[0] : found[0] + 9].numpy(), QPOS, decimals=8)
        assert_given(env.observe()[0, -3:].numpy(), TORSO, decimals=7)

    def test_height_of_a_resting_torso(self) -> None:
        env = HalfCheetahDir(1, episode_length=1000)
        env.inject("qpos", REST)
        env.inject("qvel", REST)
        env.reset()
        assert env.observe()[0, -3:].tolist() == pytest.approx([0, 0, 0.7])
        heights = [step(env, torch.zeros(6))[keys.OBSERVATION][0, -1].item() for _ in range(200)]
        assert_given(heights[59], "0.5677")  # after 3 seconds; it sinks on by less than 0.2 mm
        assert_given(heights[-1], "0.567555")


def record_rewards(env: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Rewards of the first environment in double precision, as they are computed from now on."""
    rewards: list[float] = []
    compute = env.reward

    def recorded(*args: Any) -> Any:
        result = compute(*args)
        rewards.append(float(result[0]))
        return result

    monkeypatch.setattr(env, "reward", recorded)
    return rewards


def play_wave(env: MetaEnv, task: list[float]) -> Tensor:
    """The published rewards `[40]` of the anchors' actions, from the initial position without noise."""
    for name, value in ((keys.TASK, task), ("qpos", REST), ("qvel", REST)):
        env.inject(name, value)
    env.reset()
    return torch.stack([step(env, wave(t))[keys.REWARD][0, 0] for t in range(40)])


class TestPhysics:
    """Observations and rewards are those of plain loops, also in the second episode (spec 2 and 4)."""

    @pytest.mark.parametrize("env_id", IDS)
    def test_observations_and_rewards(self, env_id: str) -> None:
        length = 12
        env = make_env(env_id, 8, episodes_per_task=2, episode_length=length, seed=5, publish=["task"])
        starts = inject_starts(env, 5, x=(-9.9, 0.0, 9.9) if "Sparse" in env_id else (0.0,))
        td = env.reset()
        tasks = td[keys.TASK].double().numpy()
        actions = torch.randn(2, length, 8, 6, generator=torch.Generator().manual_seed(6)) * 1.5
        assert (actions.abs() > 1).any(-1).any(-1).all(), "some exceed the limits in every step"
        total, paid = 0, 0
        for episode, (qpos, qvel) in enumerate(starts):
            loops = [PlainLoop(*start) for start in zip(qpos.numpy(), qvel.numpy(), strict=True)]
            # What is shown at an episode's start is the end of the one before it.
            assert torch.equal(env.observe(), torch.stack([loop.observation() for loop in loops]))
            for t in range(length):
                action = actions[episode, t]
                td = step(env, action)
                moves = zip(loops, action.double().numpy(), tasks, strict=True)
                expected = [REWARDS[env_id](task, loop.step(row), row) for loop, row, task in moves]
                torch.testing.assert_close(td[keys.REWARD][:, 0], torch.tensor(expected, dtype=torch.float32))
                shown = td[keys.OBSERVATION]
                assert torch.equal(shown[:, :20], torch.stack([loop.observation() for loop in loops]))
                assert (shown[:, 20] == (t == length - 1)).all()
                total += len(expected)
                paid += sum(reward > -cost(row) for reward, row in zip(expected, action.double().numpy(), strict=True))
        assert total == 192
        if "Sparse" in env_id:
            assert 0 < paid < 64

    def test_observed_positions_are_late_after_a_step_and_not_after_a_reset(self) -> None:
        env = HalfCheetahDir(64, seed=1)
        observation = env.reset()[keys.OBSERVATION]
        assert (observation[:, 18] == 0).all()
        torch.testing.assert_close(observation[:, 19], 0.7 + observation[:, 0])
        for _ in range(5):
            observation = step(env, env.action_spec.rand())[keys.OBSERVATION]
        late = (observation[:, 19] - 0.7 - observation[:, 0]).abs()
        assert 1e-3 < late.mean() < 0.024
        assert (observation[:, 18] == 0).all()

    def test_x_is_seen(self) -> None:
        """Quirk M7."""
        env = HalfCheetahDir(2)
        env.inject("qpos", [[3.25, *REST[1:]], [-7.5, *REST[1:]]])
        assert env.reset()[keys.OBSERVATION][:, 17].tolist() == [3.25, -7.5]

    @pytest.mark.parametrize("env_id", IDS)
    def test_episodes_are_truncated_at_the_time_limit(self, env_id: str) -> None:
        """Also those of HopWalk (quirk M10)."""
        env = make_env(env_id, 2)
        limit = 400 if "Sparse" in env_id else 200
        after = env.rollout(2 * limit, break_when_any_done=False)[keys.NEXT]
        ends = [limit - 1, 2 * limit - 1]
        for name in (keys.EPISODE_DONE, keys.DONE, keys.TRUNCATED):
            assert after[name][..., 0].nonzero().tolist() == [[row, end] for row in (0, 1) for end in ends]
        assert not after[keys.TERMINATED].any()


class TestSizes:
    """Registered ids (spec 1)."""

    @pytest.mark.parametrize(
        ("env_id", "family", "length", "task_dim", "num_tasks", "belief_dim"),
        [
            ("HalfCheetahDir-v0", HalfCheetahDir, 200, 1, 2, None),
            ("HalfCheetahVel-v0", HalfCheetahVel, 200, 1, None, None),
            ("HalfCheetahDirSparseTen-v0", HalfCheetahDirSparse, 400, 1, 2, 2),
            ("Hop-v0", Hop, 200, 1, None, None),
            ("HopWalk-v0", HopWalk, 200, 2, None, None),
            ("HopWalkNonpara-v0", HopWalk, 200, 2, 2, None),
        ],
    )
    def test_sizes(
        self, env_id: str, family: type, length: int, task_dim: int, num_tasks: int | None, belief_dim: int | None
    ) -> None:
        env = make_env(env_id, 3)
        assert type(env) is family
        assert (env.episode_length, env.episodes_per_task, env.task_dim) == (length, 1, task_dim)
        assert (env.num_tasks, env.belief_dim, env.num_actions, env.action_dim) == (num_tasks, belief_dim, None, 6)
        assert env.env_info.action_low == (-1.0,) * 6
        assert env.env_info.action_high == (1.0,) * 6
        assert env.dt == pytest.approx(0.05)
        assert env.reset()[keys.OBSERVATION].shape == (3, 20)
        assert make_env(env_id, 3, episodes_per_task=2).reset()[keys.OBSERVATION].shape == (3, 21)

    def test_every_id_is_here(self) -> None:
        assert list(REWARDS) == IDS


def assert_uniform_between(values: Tensor, low: float, high: float) -> None:
    """All of 20 parts are equally likely, and there is nothing else."""
    assert_uniform(((values - low) / (high - low) * 20).floor().long(), range(20))


class TestTasks:
    """Laws, ids, splits and forced tasks (spec 4 and 5)."""

    @pytest.mark.parametrize("family", [HalfCheetahDir, HalfCheetahDirSparse])
    def test_directions_are_equally_likely(self, family: type[HalfCheetahDir] | type[HalfCheetahDirSparse]) -> None:
        tasks = family(1, seed=1).sample_tasks(4000)
        assert tasks.shape == (4000, 1)
        assert set(tasks.flatten().tolist()) == {-1.0, 1.0}
        assert_share(tasks > 0, 0.5)

    @pytest.mark.parametrize(("family", "low", "high"), [(HalfCheetahVel, 0.0, 3.0), (Hop, 0.3, 2.0)])
    def test_speeds_and_heights_are_uniform(
        self, family: type[HalfCheetahVel] | type[Hop], low: float, high: float
    ) -> None:
        tasks = family(1, seed=1).sample_tasks(20_000)
        assert tasks.shape == (20_000, 1)
        assert_uniform_between(tasks, low, high)

    def test_either_mode_of_hop_walk_has_its_own_goals(self) -> None:
        mode, goal = HopWalk(1, seed=1).sample_tasks(40_000).unbind(-1)
        assert set(mode.tolist()) == {0.0, 1.0}
        assert_share(mode == 1, 0.5)
        assert set(goal[mode == 0].tolist()) == {-1.0, 1.0}
        assert_share(goal[mode == 0] > 0, 0.5)
        assert_uniform_between(goal[mode == 1], 0.3, 2.0)

    def test_hop_walk_without_parameters_has_two_tasks(self) -> None:
        tasks = HopWalk(1, parametric=False, seed=1).sample_tasks(4000)
        assert {tuple(task) for task in tasks.tolist()} == {(0.0, 1.0), (1.0, 2.0)}
        assert_share(tasks[:, 0] == 1, 0.5)

    @pytest.mark.parametrize("env_id", IDS)
    def test_environments_play_what_is_drawn(self, env_id: str) -> None:
        """A reset draws one task for each, and so does the end of a task."""
        env, law = (make_env(env_id, 64, episode_length=2, seed=3, publish=["task"]) for _ in range(2))
        assert torch.equal(env.reset()[keys.TASK], law.sample_tasks(64).float())
        seen = env.rollout(6, break_when_any_done=False)[keys.NEXT, keys.TASK]
        assert (seen[:, 0] == seen[:, 1]).all()
        assert (seen[:, 1] != seen[:, 2]).any()

    @pytest.mark.parametrize(
        ("env_id", "tasks"),
        [
            ("HalfCheetahDir-v0", [[-1.0], [1.0]]),
            ("HalfCheetahDirSparseTen-v0", [[-1.0], [1.0]]),
            ("HopWalkNonpara-v0", [[0.0, 1.0], [1.0, 2.0]]),
        ],
    )
    def test_task_ids(self, env_id: str, tasks: list[list[float]]) -> None:
        env = make_env(env_id, 2, publish=["task", "task_id"])
        env.inject("task", tasks, tasks[::-1])
        for expected in ([0, 1], [1, 0]):
            td = env.reset()
            assert td[keys.TASK].tolist() == [tasks[index] for index in expected]
            assert td[keys.TASK_ID].flatten().tolist() == expected
        assert step(env, torch.zeros(6))[keys.TASK_ID].flatten().tolist() == [1, 0]
        for split, other in (("train", "test"), ("test", "train")):
            one, rest = (make_env(env_id, 64, task_split=part, publish=["task"]) for part in (split, other))
            drawn = [set(map(tuple, side.reset()[keys.TASK].tolist())) for side in (one, rest)]
            assert [len(side) for side in drawn] == [1, 1]
            assert drawn[0] | drawn[1] == set(map(tuple, tasks))

    @pytest.mark.parametrize("env_id", ["HalfCheetahVel-v0", "Hop-v0", "HopWalk-v0"])
    def test_infinitely_many_tasks_have_no_ids_and_no_split(self, env_id: str) -> None:
        with pytest.raises(ValueError, match="`publish` holds 'task_id'"):
            make_env(env_id, 2, publish=["task_id"])
        with pytest.raises(ValueError, match="`task_split` is 'train'"):
            make_env(env_id, 2, task_split="train")

    @pytest.mark.parametrize("env_id", IDS)
    def test_published_tasks_can_be_forced(self, env_id: str) -> None:
        published = make_env(env_id, 256, seed=4, publish=["task"]).reset()[keys.TASK]
        env = make_env(env_id, 256, publish=["task"])
        env.inject("task", published)
        assert torch.equal(env.reset()[keys.TASK], published)
        fixed = make_env(env_id, 3, publish=["task"], fixed_task=published[0].tolist())
        assert torch.equal(fixed.reset()[keys.TASK], published[:1].expand(3, -1))

    @pytest.mark.parametrize(
        ("env_id", "bounds"),
        [
            ("HalfCheetahVel-v0", [[0.0], [3.0]]),
            ("Hop-v0", [[0.3], [2.0]]),
            ("HopWalk-v0", [[1.0, 0.3], [1.0, 2.0]]),
        ],
    )
    def test_bounds_can_be_forced(self, env_id: str, bounds: list[list[float]]) -> None:
        env = make_env(env_id, 2, publish=["task"])
        env.inject("task", torch.tensor(bounds, dtype=torch.float64), torch.tensor(bounds))
        for _ in range(2):
            assert torch.equal(env.reset()[keys.TASK], torch.tensor(bounds))

    @pytest.mark.parametrize(
        ("env_id", "task", "words"),
        [
            ("HalfCheetahDir-v0", [0], "one out of"),
            ("HalfCheetahDir-v0", [0.5], "one out of"),
            ("HalfCheetahDirSparseTen-v0", [2], "one out of"),
            ("HalfCheetahVel-v0", [-0.01], r"a speed in \[0.0, 3.0\]"),
            ("HalfCheetahVel-v0", [3.01], r"a speed in \[0.0, 3.0\]"),
            ("Hop-v0", [0.29], r"a height in \[0.3, 2.0\]"),
            ("Hop-v0", [2.01], r"a height in \[0.3, 2.0\]"),
            ("Hop-v0", [math.nan], "expected .*numbers"),
            ("HopWalk-v0", [0, 0.5], "direction -1 or 1"),
            ("HopWalk-v0", [1, -1], "direction -1 or 1"),
            ("HopWalk-v0", [2, 1], "direction -1 or 1"),
            ("HopWalkNonpara-v0", [0, -1], "one out of"),
            ("HopWalkNonpara-v0", [1, 1], "one out of"),
            ("HopWalk-v0", [1], r"expected \(2,\)"),
            ("Hop-v0", [1, 1], r"expected \(1,\)"),
        ],
    )
    def test_other_tasks_are_refused(self, env_id: str, task: list[float], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            make_env(env_id, 2).inject("task", task)
        with pytest.raises(ValueError, match=f"`fixed_task` is .*{words}"):
            make_env(env_id, 2, fixed_task=task)

    @pytest.mark.parametrize(
        ("family", "options", "words"),
        [
            (HalfCheetahDirSparse, {"sparse_dist": 0}, "`sparse_dist` is 0: expected a positive number"),
            (HalfCheetahDirSparse, {"sparse_dist": -1.0}, "`sparse_dist` is -1.0"),
            (HalfCheetahDirSparse, {"sparse_dist": "far"}, "`sparse_dist` is 'far'"),
            (HalfCheetahDirSparse, {"sparse_dist": math.nan}, "`sparse_dist` is nan"),
            (HopWalk, {"parametric": 1}, "`parametric` is 1"),
        ],
    )
    def test_bad_arguments_are_named(self, family: type, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            family(2, **options)


class TestSparse:
    """Speed is paid, and the direction known, from a distance on (spec 4)."""

    def test_the_distance_itself_is_far(self) -> None:
        """And the distance is that of the torso where the engine saw it last, not that of the root (quirk M4)."""
        start, speeds, action = np.array([2.0, *REST[1:]]), np.array([4.0, *REST[1:]]), np.full(6, 0.5)
        place = PlainLoop(start, speeds).step(action)
        edge = place.torso[0]
        assert place.before < edge < place.after
        rewards = {}
        for distance in (np.nextafter(edge, 0), edge, np.nextafter(edge, 3), (edge + place.after) / 2):
            env = HalfCheetahDirSparse(1, sparse_dist=float(distance), publish=["belief"])
            for name, value in ((keys.TASK, [1]), ("qpos", start), ("qvel", speeds)):
                env.inject(name, value)
            assert env.reset()[keys.BELIEF].tolist() == [[0.5, 0.5]]
            td = step(env, action)
            rewards[distance] = td[keys.REWARD].item()
            assert td[keys.BELIEF].tolist() == ([[0, 1]] if distance <= edge else [[0.5, 0.5]])
        below, at, above, between = rewards.values()
        assert below == at == pytest.approx(direction(np.ones(1), place, action))
        assert above == between == pytest.approx(-cost(action))

    @pytest.mark.parametrize("task", [-1, 1])
    @pytest.mark.parametrize("side", [-10.5, 10.5])
    def test_the_belief_is_certain_on_either_side(self, task: int, side: float) -> None:
        """Speed in the wrong direction counts against it, and tells as much (quirk M9)."""
        env = make_env("HalfCheetahDirSparseTen-v0", 1, publish=["belief"])
        for name, value in ((keys.TASK, [task]), ("qpos", [side, *REST[1:]]), ("qvel", [side / 5, *REST[1:]])):
            env.inject(name, value)
        env.reset()
        td = step(env, torch.zeros(6))
        assert math.copysign(1, td[keys.REWARD].item()) == math.copysign(1, task * side)
        assert td[keys.BELIEF].tolist() == [[float(task < 0), float(task > 0)]]

    def test_the_belief_lasts_for_the_task(self) -> None:
        env = HalfCheetahDirSparse(2, 2, episode_length=3, publish=["belief"])
        far, near = [6.0, *REST[1:]], REST
        env.inject("task", [[-1], [1]], [[1], [-1]])
        env.inject("qpos", [far, near], near, near)
        env.inject("qvel", *[REST] * 3)
        assert env.reset()[keys.BELIEF].tolist() == [[0.5, 0.5]] * 2
        beliefs = []
        for _ in range(6):
            td, following = env.step_and_maybe_reset(TensorDict({keys.ACTION: torch.zeros(2, 6)}, [2]))
            beliefs.append(td[keys.NEXT, keys.BELIEF].tolist())
        assert td[keys.NEXT, keys.DONE].all()
        assert beliefs == [[[1, 0], [0.5, 0.5]]] * 6
        assert following[keys.BELIEF].tolist() == [[0.5, 0.5]] * 2
        assert step(env, torch.zeros(6))[keys.BELIEF].tolist() == [[0.5, 0.5]] * 2

    def test_only_the_sparse_one_has_a_belief(self) -> None:
        for env_id in IDS:
            if "Sparse" in env_id:
                continue
            with pytest.raises(ValueError, match="`publish` holds 'belief'"):
                make_env(env_id, 1, publish=["belief"])


class TestHopWalk:
    """A task of one of two environments (spec 5)."""

    def test_rewards_are_those_of_either_environment(self) -> None:
        """Under the same starts and actions."""
        both = HopWalk(6, 2, episode_length=7, publish=["task"])
        modes, goals = torch.tensor([0, 1, 0, 1, 1, 0]), torch.tensor([-1.0, 0.7, 1.0, 2.0, 0.3, -1.0])
        walks, hops = modes == 0, modes == 1
        walk, hopping = HalfCheetahDir(3, 2, episode_length=7), Hop(3, 2, episode_length=7)
        both.inject("task", torch.stack((modes, goals), -1))
        walk.inject("task", goals[walks].unsqueeze(-1))
        hopping.inject("task", goals[hops].unsqueeze(-1))
        for qpos, qvel in inject_starts(both, 8):
            for env, rows in ((walk, walks), (hopping, hops)):
                env.inject("qpos", qpos[rows])
                env.inject("qvel", qvel[rows])
        for env in (both, walk, hopping):
            env.reset()
        for _ in range(14):
            action = both.action_spec.rand() * 2
            td = step(both, action)
            for env, rows in ((walk, walks), (hopping, hops)):
                own = step(env, action[rows])
                for name in (keys.REWARD, keys.OBSERVATION, keys.EPISODE_DONE, keys.DONE):
                    assert torch.equal(td[name][rows], own[name])
        assert td[keys.DONE].all()
