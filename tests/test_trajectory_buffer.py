"""The trajectory buffer: equal to a loop over single steps, whole tasks only, fair draws, and it can be continued."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.data.rollouts import RolloutStream
from hyperrl.data.trajectory_buffer import TRANSITION, TrajectoryBuffer
from hyperrl.envs import make_env
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.policy import PolicyConfig

ENVS, LONGEST, HORIZON = 4, 7, 9
CONSTANTS, STEPS = (keys.TASK, keys.TASK_ID), (*TRANSITION, keys.STATE_ID)
EXTRA = (*CONSTANTS, keys.STATE_ID)
# Upper 0.1 % quantiles: of chi-square with 19 degrees of freedom, and of |z| of a normal variable.
CHI_SQUARE_19, NORMAL = 43.82, 3.29


def stream(steps: int, shortest: int = 1, longest: int = LONGEST, seed: int = 0) -> TensorDict:
    """Rollout `[B, T]` of tasks of random lengths, in which no two numbers are equal; tasks count from 1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (ENVS, steps), generator=generator)
    last = (lengths.cumsum(1) - 1).clamp_max(steps)
    done = torch.zeros(ENVS, steps + 1, dtype=torch.bool).scatter_(1, last, True)[:, :steps]
    begins = torch.cat([torch.ones(ENVS, 1, dtype=torch.bool), done[:, :-1]], 1)
    task_id = begins.flatten().cumsum(0).view(ENVS, steps)
    widths = {keys.PREV_OBSERVATION: 2, keys.PREV_ACTION: 1, keys.PREV_REWARD: 1, keys.OBSERVATION: 2}
    parts = (torch.arange(ENVS * steps * 6.0).view(ENVS, steps, 6) + 1).split([*widths.values()], -1)
    after = dict(zip(widths, parts, strict=True))
    after[keys.STATE_ID] = torch.arange(ENVS * steps).view(ENVS, steps) + 1
    wrong = {name: torch.full_like(value, -1) for name, value in after.items()}
    after |= {keys.DONE: done.unsqueeze(-1), keys.TASK_ID: torch.full_like(task_id, -1)}
    root = {keys.IS_INIT: begins.unsqueeze(-1), keys.TASK_ID: task_id, keys.TASK: task_id.unsqueeze(-1) * 0.5}
    return TensorDict({**wrong, **root, keys.NEXT: after}, [ENVS, steps])


class Naive:
    """One step of one environment at a time."""

    def __init__(self, envs: int = ENVS, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.open: list[list[TensorDictBase]] = [[] for _ in range(envs)]
        self.finished: list[TensorDict] = []

    def add(self, rollout: TensorDictBase) -> None:
        for t in range(rollout.shape[1]):
            for env, steps in enumerate(self.open):
                steps.append(rollout[env, t])
                if rollout[env, t][keys.NEXT, keys.DONE]:
                    self.finished.append(self.trajectory(steps, CONSTANTS))
                    self.open[env] = []

    def trajectory(self, steps: list[TensorDictBase], constants: Sequence[str] = ()) -> TensorDict:
        names = [name for name in STEPS if steps[0].get((keys.NEXT, name), None) is not None]
        values = {name: torch.stack([step[keys.NEXT, name] for step in steps]) for name in names}
        padding = self.horizon - len(steps)
        padded = {name: torch.cat([v, torch.zeros(padding, *v.shape[1:])]).to(v) for name, v in values.items()}
        constant = {name: steps[0][name] for name in constants if steps[0].get(name, None) is not None}
        return TensorDict({**padded, **constant, keys.LENGTH: torch.tensor(len(steps))}, [])

    def running(self) -> list[TensorDict | None]:
        return [self.trajectory(steps) if steps else None for steps in self.open]


def make_buffer(capacity: int = 1000, seed: int = 0, **changes: Any) -> TrajectoryBuffer:
    return TrajectoryBuffer(capacity, changes.pop("horizon", HORIZON), seed, **{"extra": EXTRA, **changes})


def assert_same(ours: TensorDictBase, expected: TensorDictBase) -> None:
    assert set(ours.keys()) == set(expected.keys())
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def assert_equals_naive(buffer: TrajectoryBuffer, naive: Naive) -> None:
    assert len(buffer) == len(naive.finished)
    if naive.finished:
        assert_same(buffer.trajectories, torch.stack(naive.finished))
    assert buffer.running is not None
    for ours, expected in zip(buffer.running, naive.running(), strict=True):
        if expected is None:
            assert not any(value.any() for value in ours.values())
        else:
            assert_same(ours, expected)


class TestContents:
    @pytest.mark.parametrize("parts", [[1] * 60, [3] * 20, [7] * 9, [20] * 3, [60], [5, 1, 30, 2, 2, 19, 1]])
    def test_random_tasks_equal_the_naive_loop_after_every_rollout(self, parts: list[int]) -> None:
        buffer, naive = make_buffer(), Naive()
        for rollout in stream(sum(parts)).split(parts, 1):
            buffer.add(rollout)
            naive.add(rollout)
            assert_equals_naive(buffer, naive)
        several = max(int(part[keys.NEXT, keys.DONE].sum(1).max()) for part in stream(sum(parts)).split(parts, 1))
        assert (several > 1) == (max(parts) > 1)
        assert {int(length) for length in buffer.trajectories[keys.LENGTH]} == set(range(1, LONGEST + 1))

    @pytest.mark.parametrize("length", [1, 2, 4, 8])
    @pytest.mark.parametrize("steps", [4, 8])
    def test_tasks_that_end_with_a_rollout(self, length: int, steps: int) -> None:
        buffer, naive = make_buffer(horizon=8), Naive(horizon=8)
        for rollout in stream(4 * steps, length, length).split(steps, 1):
            buffer.add(rollout)
            naive.add(rollout)
            assert_equals_naive(buffer, naive)
        assert len(buffer) == ENVS * 4 * steps // length

    @pytest.mark.parametrize("extra", [(), (keys.TASK,), (keys.STATE_ID, keys.TASK_ID)])
    def test_only_the_wanted_entries_are_kept(self, extra: tuple[str, ...]) -> None:
        buffer = make_buffer(extra=extra)
        buffer.add(stream(30))
        assert set(buffer.sample(3).keys()) == {*TRANSITION, keys.LENGTH, *extra}

    def test_a_changed_rollout_changes_nothing(self) -> None:
        buffer, naive, rollout = make_buffer(), Naive(), stream(20)
        naive.add(rollout.clone())
        buffer.add(rollout)
        rollout.apply_(lambda value: value.zero_())
        assert_equals_naive(buffer, naive)

    def test_environments_that_start_anew_drop_the_task_they_were_in(self) -> None:
        """A run may be resumed without the state of its environments."""
        buffer, naive = make_buffer(), Naive()
        before, after = stream(20, 7, 7), stream(20)
        buffer.add(before)
        naive.add(before)
        assert all(naive.open)
        naive.open = [[] for _ in range(ENVS)]
        buffer.add(after)
        naive.add(after)
        assert_equals_naive(buffer, naive)

    @pytest.mark.parametrize(("parts", "found"), [([12], 7), ([4], 4), ([2, 1, 1], 4)])
    def test_a_task_beyond_the_horizon_is_refused(self, parts: list[int], found: int) -> None:
        buffer = make_buffer(horizon=3)
        *before, last = stream(sum(parts), 7, 7).split(parts, 1)
        for rollout in before:
            buffer.add(rollout)
        with pytest.raises(ValueError, match=f"a task has {found} steps or more; expected at most the horizon, 3"):
            buffer.add(last)

    def test_other_environments_are_refused(self) -> None:
        buffer = make_buffer()
        buffer.add(stream(3))
        with pytest.raises(ValueError, match="the rollout has 3 environments; expected 4 as before"):
            buffer.add(stream(3)[:3])


class TestRing:
    @pytest.mark.parametrize("capacity", [1, 5, 12])
    @pytest.mark.parametrize("steps", [1, 5, 40])
    def test_the_newest_are_kept_oldest_first_from_the_position_on(self, capacity: int, steps: int) -> None:
        buffer, naive = make_buffer(capacity), Naive()
        for rollout in stream(120).split(steps, 1):
            buffer.add(rollout)
            naive.add(rollout)
            newest = naive.finished[-capacity:]
            assert len(buffer) == len(newest)
            if newest:
                start = buffer.position if len(newest) == capacity else 0
                stored = buffer.trajectories
                assert_same(torch.cat([stored[start:], stored[:start]]), torch.stack(newest))

    def test_room_is_made_and_saved_only_where_it_is_needed(self) -> None:
        buffer = make_buffer(capacity=10**12)
        for rollout in stream(400).split(10, 1):
            buffer.add(rollout)
        file = io.BytesIO()
        torch.save(buffer.state_dict(), file)
        assert buffer.running is not None
        content = sum(value.nbytes for part in (buffer.trajectories, buffer.running) for value in part.values())
        assert content < len(file.getvalue()) < content + 16_000  # names, and 5 kB of the generator

    def test_blocks_of_finished_trajectories_are_stored_as_they_are(self) -> None:
        buffer, source = make_buffer(capacity=6), make_buffer()
        finished = source.finish(stream(40))
        assert len(source) == 0
        for block in finished[:15].split(3):
            buffer.store(block)
        assert_same(buffer.trajectories, torch.cat([finished[12:15], finished[9:12]]))
        assert buffer.position == 3

    @pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
    def test_each_trajectory_is_kept_with_the_given_probability(self, probability: float) -> None:
        buffer, number = make_buffer(5000, seed=3, store_probability=probability), 3000
        blocks: set[int] = set()
        for _ in range(number // ENVS // 5):
            before = len(buffer)
            buffer.add(stream(10, 2, 2))
            blocks.add(len(buffer) - before)
        deviation = (number * probability * (1 - probability)) ** 0.5
        assert abs(len(buffer) - number * probability) <= NORMAL * deviation
        # There is not one draw for all that end together.
        assert any(block % ENVS for block in blocks) == (probability == 0.3)

    def test_what_is_not_kept_is_gone(self) -> None:
        """Not a transition of it is left in the running part, or in another trajectory."""
        buffer, naive = make_buffer(store_probability=0.5), Naive()
        for rollout in stream(100).split(9, 1):
            buffer.add(rollout)
            naive.add(rollout)
        kept = buffer.trajectories[keys.TASK_ID].tolist()
        assert 0 < len(kept) < len(naive.finished)
        assert_same(buffer.trajectories, torch.stack([t for t in naive.finished if int(t[keys.TASK_ID]) in kept]))


class TestSample:
    def filled(self, number: int, seed: int = 0) -> TrajectoryBuffer:
        buffer = make_buffer(seed=seed)
        buffer.store(make_buffer().finish(stream(200))[:number])
        return buffer

    def test_an_empty_buffer_has_nothing_to_draw(self) -> None:
        buffer = make_buffer()
        buffer.add(stream(3, 5, 5))
        for number in (0, 4):
            with pytest.raises(ValueError, match="the buffer is empty"):
                buffer.sample(number)

    def test_what_was_stored_can_be_drawn_at_once(self) -> None:
        buffer, naive, rollout = make_buffer(), Naive(), stream(10)
        buffer.add(rollout)
        naive.add(rollout)
        drawn = sorted(buffer.sample(1000)[keys.TASK_ID].tolist())
        assert drawn == sorted(int(trajectory[keys.TASK_ID]) for trajectory in naive.finished)

    def test_samples_are_rows_cut_to_their_longest(self) -> None:
        buffer = self.filled(40)
        stored, lengths = {int(row[keys.TASK_ID]): row for row in buffer.trajectories}, set()
        for _ in range(20):
            batch = buffer.sample(2)
            longest = int(batch[keys.LENGTH].max())
            lengths.add(longest)
            for row in batch:
                expected = stored[int(row[keys.TASK_ID])].clone()
                for name in STEPS:
                    expected[name] = expected[name][:longest]
                assert_same(row, expected)
        assert len(lengths) > 2

    @pytest.mark.parametrize(("number", "expected"), [(1, 1), (6, 6), (40, 40), (41, 40)])
    def test_draws_are_different_ones(self, number: int, expected: int) -> None:
        buffer = self.filled(40)
        for _ in range(10):
            drawn = buffer.sample(number)[keys.TASK_ID]
            assert len(drawn) == len(drawn.unique()) == expected

    def test_all_ordered_pairs_are_equally_likely(self) -> None:
        """Level 0.1 %."""
        buffer, number = self.filled(5, seed=1), 4000
        counts = Counter(tuple(buffer.sample(2)[keys.TASK_ID].tolist()) for _ in range(number))
        assert len(counts) == 20
        assert sum((count - number / 20) ** 2 / (number / 20) for count in counts.values()) < CHI_SQUARE_19

    def test_the_seed_decides(self) -> None:
        first, same, other = (self.filled(40, seed).sample(5)[keys.TASK_ID] for seed in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)


class TestState:
    @pytest.mark.parametrize("capacity", [8, 1000])
    @pytest.mark.parametrize("saved_after", [0, 1, 4])
    def test_a_loaded_state_continues_exactly(self, capacity: int, saved_after: int) -> None:
        buffer = make_buffer(capacity, seed=1, store_probability=0.7)
        fresh = make_buffer(capacity, seed=2, store_probability=0.7)
        rollouts = stream(60).split(6, 1)
        for rollout in rollouts[:saved_after]:
            buffer.add(rollout)
        if len(buffer):
            buffer.sample(2)
        file = io.BytesIO()
        torch.save(buffer.state_dict(), file)
        expected = [self.go_on(buffer, rollout) for rollout in rollouts[saved_after:]]
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        for rollout, (stored, running, batch) in zip(rollouts[saved_after:], expected, strict=True):
            ours = self.go_on(fresh, rollout)
            assert_same(ours[0], stored)
            assert_same(ours[1], running)
            assert_same(ours[2], batch)

    def go_on(self, buffer: TrajectoryBuffer, rollout: TensorDictBase) -> tuple[TensorDict, TensorDict, TensorDict]:
        buffer.add(rollout)
        assert buffer.running is not None
        return buffer.trajectories.clone(), buffer.running.clone(), buffer.sample(3)

    def test_a_state_is_a_snapshot(self) -> None:
        buffer, fresh = make_buffer(capacity=8), make_buffer(capacity=8)
        rollouts = stream(60).split(20, 1)
        buffer.add(rollouts[0])
        state = buffer.state_dict()
        kept = buffer.trajectories.clone()
        buffer.add(rollouts[1])
        fresh.load_state_dict(state)
        assert_same(fresh.trajectories, kept)
        fresh.add(rollouts[2])
        again = make_buffer(capacity=8)
        again.load_state_dict(state)
        assert_same(again.trajectories, kept)

    def test_a_buffer_of_another_size_is_refused(self) -> None:
        state = make_buffer(capacity=8).state_dict()
        with pytest.raises(ValueError, match=r"capacity 8 and horizon 9 of .*; expected capacity 8 and horizon 10"):
            make_buffer(capacity=8, horizon=10).load_state_dict(state)
        with pytest.raises(ValueError, match=r"task_id; expected .*, observation$"):
            make_buffer(capacity=8, extra=()).load_state_dict(state)


ENVIRONMENTS = [
    ("GridNavi-v0", {"episodes_per_task": 2, "publish": list(EXTRA)}, 30),
    (tiny.TOY, {"episodes_per_task": 3}, 15),
    (tiny.TOY, {"episodes_per_task": 2, "continuous": True}, 10),
]


class TestEnvironments:
    """Collected rollouts against the same environments stepped by hand."""

    @pytest.mark.parametrize(("env_id", "options", "horizon"), ENVIRONMENTS)
    @pytest.mark.parametrize("steps", [7, 45])
    def test_trajectories_are_what_was_played(
        self, env_id: str, options: dict[str, Any], horizon: int, steps: int
    ) -> None:
        env, by_hand = (make_env(env_id, ENVS, seed=4, **options) for _ in range(2))
        assert env.horizon == horizon
        agent = Agent(env.env_info, EncoderConfig(**tiny.ENCODER), PolicyConfig(**tiny.POLICY))
        collected = RolloutStream(env, lambda generator: Actor(agent, generator), steps, 0)
        buffer = make_buffer(horizon=horizon, extra=options.get("publish", ()))
        naive = Naive(horizon=horizon)
        td = by_hand.reset()
        for _ in range(1 + 90 // steps):
            rollout = collected.collect()
            buffer.add(rollout)
            for action in rollout[keys.ACTION].unbind(1):
                td, step = self.step_by_hand(by_hand, td, action)
                naive.add(step)
        assert len(naive.finished) > 2 * ENVS
        assert_equals_naive(buffer, naive)
        lengths = buffer.trajectories[keys.LENGTH]
        assert (len(lengths.unique()) > 1) == (env_id == tiny.TOY)

    def step_by_hand(self, env: Any, before: TensorDict, action: Tensor) -> tuple[TensorDict, TensorDict]:
        """The next root, and one step `[B, 1]` out of what was seen and done, not of what is published for memories."""
        after = env.step(TensorDict({keys.ACTION: action}, [ENVS]))[keys.NEXT]
        transition = {
            keys.PREV_OBSERVATION: before[keys.OBSERVATION],
            keys.PREV_ACTION: action.float().view(ENVS, -1),
            keys.PREV_REWARD: after[keys.REWARD],
            keys.OBSERVATION: after[keys.OBSERVATION],
            keys.DONE: after[keys.DONE],
        }
        if keys.STATE_ID in env.publish:
            transition[keys.STATE_ID] = after[keys.STATE_ID]
        tasks = {name: before[name] for name in CONSTANTS if name in env.publish}
        step = TensorDict({**tasks, keys.NEXT: transition}, [ENVS])
        if after[keys.DONE].any():
            fresh = env.reset(TensorDict({"_reset": after[keys.DONE]}, [ENVS]))
            after = torch.where(after[keys.DONE][:, 0], fresh, after.select(*fresh.keys()))
        return after, step.unsqueeze(1)
