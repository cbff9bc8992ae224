"""Data: returns are summed exactly, evaluation counts one task per environment, a stream can be continued."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import tiny
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from hyperrl import keys
from hyperrl.data import datamodule
from hyperrl.data.rollouts import RolloutStream, evaluate
from hyperrl.envs import MetaEnv, make_env
from hyperrl.errors import ConfigError
from hyperrl.metrics import EpisodeReturns, adaptation_metrics
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.policy import PolicyConfig

pytestmark = tiny.QUIET
ENVS, EPISODES = 5, 3


def random_ends(steps: int, cut_short: bool) -> tuple[Tensor, Tensor]:
    """Ends of episodes and of tasks `[B, T]`: a task has three episodes, or is cut short now and then."""
    generator = torch.Generator().manual_seed(steps)
    ends, done = torch.rand(2, ENVS, steps, generator=generator) < 0.3
    done &= ends & torch.tensor(cut_short)
    count = torch.zeros(ENVS)
    for t in range(steps):
        count += ends[:, t]
        done[:, t] |= count == EPISODES
        count[done[:, t]] = 0
    return ends, done


class NaiveReturns:
    """One step of one environment at a time."""

    def __init__(self) -> None:
        self.sums = [[0.0] * EPISODES for _ in range(ENVS)]
        self.episode = [0] * ENVS

    def update(self, reward: Tensor, ends: Tensor, done: Tensor) -> Tensor:
        finished = []
        for row in range(ENVS):
            for t in range(reward.shape[1]):
                self.sums[row][self.episode[row]] += reward[row, t].item()
                self.episode[row] += int(ends[row, t])
                if done[row, t]:
                    finished.append(self.sums[row])
                    self.sums[row], self.episode[row] = [0.0] * EPISODES, 0
        return torch.tensor(finished).view(-1, EPISODES)


class TestEpisodeReturns:
    @pytest.mark.parametrize("cut_short", [False, True])
    @pytest.mark.parametrize("steps", [1, 2, 7, 40, 200])
    def test_equal_the_naive_loop_across_rollouts(self, steps: int, cut_short: bool) -> None:
        ends, done = random_ends(200, cut_short)
        reward = torch.randn(ENVS, 200, generator=torch.Generator().manual_seed(0))
        ours, naive, tasks = EpisodeReturns(ENVS, EPISODES), NaiveReturns(), 0
        for part in zip(reward.split(steps, 1), ends.split(steps, 1), done.split(steps, 1), strict=True):
            result = ours.update(*part)
            torch.testing.assert_close(result, naive.update(*part), rtol=1e-5, atol=1e-5)
            tasks += len(result)
        assert tasks == done.sum()

    def test_a_loaded_state_continues(self) -> None:
        ends, done = random_ends(60, cut_short=False)
        reward = torch.randn(ENVS, 60)
        ours, fresh = EpisodeReturns(ENVS, EPISODES), EpisodeReturns(ENVS, EPISODES)
        ours.update(reward[:, :25], ends[:, :25], done[:, :25])
        fresh.load_state_dict(copy.deepcopy(ours.state_dict()))
        rest = reward[:, 25:], ends[:, 25:], done[:, 25:]
        assert torch.equal(ours.update(*rest), fresh.update(*rest))

    def test_adaptation_metrics(self) -> None:
        returns = torch.tensor([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]])
        metrics = adaptation_metrics(returns, torch.tensor([[0, 1], [0, 0], [2, 3]]))
        expected = {
            "return_episode_1": 2.0, "return_episode_2": 4.0, "return_std_episode_1": 1.0, "return_std_episode_2": 2.0,
            "return": 6.0, "return_sem": 3 / 3**0.5, "success_mean": 1.0, "success_fraction": 0.5,
            "success_episode_1": 1 / 3, "success_episode_2": 2 / 3,
        }  # fmt: skip
        assert metrics == pytest.approx(expected)


def actor_factory(env: MetaEnv) -> Any:
    torch.manual_seed(2)
    policy = PolicyConfig(**tiny.POLICY, hypernet_init="none")
    agent = Agent(env.env_info, EncoderConfig(**tiny.ENCODER), policy)
    return lambda generator: Actor(agent, generator)


def toy(number: int = ENVS, seed: int = 0, **options: Any) -> MetaEnv:
    return make_env(tiny.TOY, number, seed=seed, episodes_per_task=EPISODES, **options)


def assert_same(a: TensorDictBase, b: TensorDictBase) -> None:
    assert set(a.keys(True, True)) == set(b.keys(True, True))
    for key in a.keys(True, True):
        assert torch.equal(a[key], b[key]), key


class TestRolloutStream:
    def stream(self, steps: int = 17, seed: int = 0) -> RolloutStream:
        env = toy(seed=seed)
        return RolloutStream(env, actor_factory(env), steps, seed)

    def test_a_memory_of_another_kind_is_refused(self) -> None:
        """Otherwise maxima would go on as sums."""
        state, other = self.stream().state_dict(), self.stream()
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=r"the memory is GRU \| Sum, \d+; expected GRU, \d+"):
            other.load_state_dict({**state, "memory_layout": state["memory_layout"].replace("GRU", "GRU | Sum")})

    def test_rollouts_are_batch_first_and_go_on_where_the_last_ended(self) -> None:
        stream = self.stream()
        first, second = stream.collect(), stream.collect()
        assert first.batch_size == (ENVS, 17)
        done = first[keys.NEXT, keys.DONE][:, -1]
        assert torch.equal(second[keys.IS_INIT][:, 0], done)
        goes_on = ~done[:, 0]
        last = first[keys.NEXT, keys.OBSERVATION][goes_on, -1]
        assert torch.equal(second[keys.OBSERVATION][goes_on, 0], last)

    def test_a_rollout_is_not_changed_by_the_next(self) -> None:
        stream = self.stream()
        first = stream.collect()
        kept = first.clone()
        stream.collect()
        assert_same(first, kept)

    @pytest.mark.parametrize("steps", [17, 3, 1])
    def test_a_loaded_state_gives_the_identical_next_rollouts(self, steps: int) -> None:
        stream, fresh = self.stream(steps), self.stream(steps, seed=5)
        for _ in range(2):
            stream.collect()
        file = io.BytesIO()
        torch.save(stream.state_dict(), file)
        expected = [(stream.collect(), stream.metrics) for _ in range(8)]
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert any("train/return" in metrics for _, metrics in expected)
        for rollout, metrics in expected:
            assert_same(fresh.collect(), rollout)
            ours = {name: value for name, value in fresh.metrics.items() if name != "time/collect"}
            assert ours == {name: value for name, value in metrics.items() if name != "time/collect"}

    def test_state_is_a_snapshot(self) -> None:
        stream, fresh = self.stream(), self.stream(seed=5)
        stream.collect()
        state = stream.state_dict()
        expected = stream.collect()
        stream.collect()
        fresh.load_state_dict(state)
        assert_same(fresh.collect(), expected)

    def test_seeds_decide_tasks_and_actions(self) -> None:
        assert_same(self.stream().collect(), self.stream().collect())
        assert not torch.equal(self.stream().collect()[keys.ACTION], self.stream(seed=1).collect()[keys.ACTION])

    def test_returns_per_episode_are_those_of_the_tasks_that_ended(self) -> None:
        stream, naive = self.stream(), NaiveReturns()
        for _ in range(4):
            after = stream.collect()[keys.NEXT]
            ended = naive.update(*(after[key][..., 0] for key in (keys.REWARD, keys.EPISODE_DONE, keys.DONE)))
            assert len(ended)
            for episode, mean in enumerate(ended.mean(0).tolist(), 1):
                assert stream.metrics[f"train/return_episode_{episode}"] == pytest.approx(mean, abs=1e-5)
            assert stream.metrics["train/return"] == pytest.approx(ended.sum(1).mean().item(), abs=1e-5)

    def test_without_an_ended_task_there_is_no_return(self) -> None:
        stream = self.stream(steps=2)
        stream.collect()
        assert set(stream.metrics) == {"time/collect"}


class Alternating:
    """Acts without memory, and notes how it was asked to act."""

    def __init__(self) -> None:
        self.modes: set[ExplorationType | None] = set()

    def __call__(self, td: TensorDictBase) -> TensorDictBase:
        self.modes.add(exploration_type())
        td[keys.ACTION] = td[keys.OBSERVATION][:, 0].long() % 3
        return td


def first_tasks(env: MetaEnv) -> tuple[list[list[float]], list[list[float]], int]:
    """Returns and successes of the first task of each environment, and how many tasks ended, one step at a time."""
    actor, td, tasks, last = Alternating(), env.reset(), 0, env.episodes_per_task - 1
    returns, successes = ([[0.0] * env.episodes_per_task for _ in range(env.num_envs)] for _ in range(2))
    episode, over = [0] * env.num_envs, [False] * env.num_envs
    for _ in range(env.horizon):
        step, td = env.step_and_maybe_reset(actor(td))
        after = step[keys.NEXT]
        for row in range(env.num_envs):
            if not over[row]:
                returns[row][episode[row]] += after[keys.REWARD][row].item()
                successes[row][episode[row]] += after[keys.SUCCESS][row].item()
            episode[row] = min(episode[row] + int(after[keys.EPISODE_DONE][row]), last)
            over[row] |= bool(after[keys.DONE][row])
        tasks += int(after[keys.DONE].sum())
    assert all(over)
    return returns, successes, tasks


class TestEvaluate:
    @pytest.mark.parametrize("episodes", [1, 2])
    def test_counts_the_first_task_of_each_environment_and_nothing_else(self, episodes: int) -> None:
        one, other = (
            make_env(tiny.TOY, 100, episodes_per_task=episodes, publish=["success"], seed=1) for _ in range(2)
        )
        result, (returns, successes, tasks) = evaluate(one, Alternating()), first_tasks(other)
        assert tasks > 100  # others have ended after the first ones
        torch.testing.assert_close(result["returns"], torch.tensor(returns), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result["success"], torch.tensor(successes))
        assert result["success"].any()

    @pytest.mark.parametrize(
        ("options", "mode"), [({}, ExplorationType.DETERMINISTIC), ({"sampled": True}, ExplorationType.RANDOM)]
    )
    def test_actions_are_deterministic_or_sampled(self, options: dict[str, bool], mode: ExplorationType) -> None:
        actor = Alternating()
        with set_exploration_type(ExplorationType.MEAN):
            evaluate(toy(), actor, **options)
            assert exploration_type() is ExplorationType.MEAN
        assert actor.modes == {mode}

    def test_a_task_that_outlives_the_horizon_is_refused(self) -> None:
        env = toy()
        env.horizon = 5
        with pytest.raises(ValueError, match=r"a task goes on after env.horizon \(5 steps\); expected its end"):
            evaluate(env, Alternating())

    def test_success_is_left_out_where_it_is_not_published(self) -> None:
        assert set(evaluate(toy(), Alternating()).keys()) == {"returns"}


def validation(source: datamodule.MetaDataModule, frames: int = 0, stage: str = "validate") -> dict[str, float]:
    """The metrics of one evaluation of a fixed model."""
    torch.manual_seed(4)
    model, trainer = tiny.learner(source, policy={"hypernet_init": "none"}), tiny.trainer()
    model.frames = frames
    getattr(trainer, stage)(model, source, verbose=False)
    return {name.partition("/")[2]: value.item() for name, value in trainer.callback_metrics.items()}


class TestDataModule:
    def test_validation_draws_the_same_tasks_at_the_same_frame_only(self) -> None:
        metrics = validation(tiny.data(val_tasks=64))
        assert validation(tiny.data(val_tasks=64)) == metrics
        assert validation(tiny.data(val_tasks=64), frames=100) != metrics

    def test_test_draws_other_tasks_than_validation(self) -> None:
        source = tiny.data(val_tasks=64, test_tasks=64)
        assert validation(source, stage="test") != validation(source)

    def test_evaluation_may_use_another_number_of_episodes(self) -> None:
        metrics = validation(tiny.data(episodes_per_task=2, eval_episodes_per_task=3))
        assert "return_episode_3" in metrics
        assert "return_episode_4" not in metrics
        assert tiny.data(episodes_per_task=2).options["episodes_per_task"] == 2

    def test_evaluation_may_sample_actions(self) -> None:
        sampled = validation(tiny.data(val_tasks=64, eval_actions="sampled"))
        assert sampled == validation(tiny.data(val_tasks=64, eval_actions="sampled"))
        assert sampled != validation(tiny.data(val_tasks=64))

    def test_test_sees_only_held_out_tasks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: dict[str, set[int]] = {}

        def note(env: MetaEnv, actor: Any, *_: Any) -> TensorDict:
            tasks = make_env("GridNavi-v0", 4000, publish=["task_id"], task_split=env.task_split, test_fraction=0.25)
            drawn[env.task_split] = set(tasks.reset()[keys.TASK_ID].tolist())
            assert env.test_fraction == 0.25
            return evaluate(env, actor)

        monkeypatch.setattr(datamodule, "evaluate", note)
        source = tiny.data(held_out=0.25)
        validation(source)
        validation(source, stage="test")
        assert set(drawn) == {"train", "test"}
        assert not drawn["train"] & drawn["test"]
        assert source.options["task_split"] == "train"

    def test_test_sees_the_test_tasks_of_a_benchmark(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []

        def note(env: MetaEnv, actor: Any, *_: Any) -> TensorDict:
            seen.append(env.task_split)
            return evaluate(env, actor)

        monkeypatch.setattr(datamodule, "evaluate", note)
        monkeypatch.setattr(tiny.Toy, "benchmark_split", True)
        for options in ({}, {"task_split": "all"}):
            source = tiny.data(env=tiny.TOY, env_options=options)
            seen.append(source.options["task_split"])
            for stage in ("validate", "test"):
                validation(source, stage=stage)
        assert seen == ["train", "train", "test", "all", "all", "all"]
        with pytest.raises(ConfigError, match="^data.held_out is 0.5; expected 0, as tiny:Toy-v0 has its own"):
            tiny.data(env=tiny.TOY, held_out=0.5)

    def test_environments_are_closed_after_their_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        closed: list[bool] = []
        monkeypatch.setattr(tiny.Toy, "close", lambda env, **_: closed.append(True))
        source = tiny.data(env=tiny.TOY)
        validation(source)
        assert closed == [True]
        monkeypatch.setattr(datamodule, "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            validation(source)
        assert closed == [True] * 2
        monkeypatch.setattr(datamodule, "evaluate", evaluate)
        source = tiny.data(env=tiny.TOY, frames=80, rollouts_per_epoch=1)
        tiny.trainer().fit(tiny.learner(source), source)
        assert closed == [True] * 4  # of the only validation, and of the training
        assert source.stream is None

    def test_loader_has_the_length_of_an_epoch(self) -> None:
        loader = datamodule.RolloutLoader(tiny.data(rollouts_per_epoch=7))
        assert len(loader) == 7
        assert len(datamodule.EvaluationLoader(tiny.data(), "val")) == 1

    def test_sizes_come_from_the_environment(self) -> None:
        source = tiny.data(env=tiny.TOY, env_options={"continuous": True}, episodes_per_task=1)
        info = source.env_info
        assert (info.obs_dim, info.action_dim, info.num_actions) == (2, 2, None)
        assert info.horizon == tiny.Toy(1).horizon // 2
        assert tiny.data(eval_episodes_per_task=9).env_info.horizon == 9 * 15
        assert tiny.data().landmarks["task_known"] == 44.2857

    @pytest.mark.parametrize(
        "changes",
        [
            {"env_options": {"num_cells": 6}},
            {"episodes_per_task": 2},
            {"eval_episodes_per_task": 2},
            {"held_out": 0.5},
        ],
    )
    def test_landmarks_hold_only_for_all_tasks_of_the_environment_itself(self, changes: dict[str, Any]) -> None:
        assert tiny.data(**changes).landmarks == {}
        assert tiny.data(episodes_per_task=4).landmarks == tiny.data().landmarks

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"num_envs": 0}, "data.num_envs is 0; expected at least 1"),
            ({"frames": -1}, "data.frames is -1; expected at least 1"),
            ({"val_tasks": 0}, "data.val_tasks is 0; expected at least 1"),
            ({"env": "GridNav-v0"}, "data.env: unknown environment id 'GridNav-v0': the nearest valid name is"),
            ({"env_options": {"num_cell": 6}}, "unknown option 'num_cell'.* nearest valid name is 'num_cells'"),
            ({"env_options": {"num_cells": 0}}, "`num_cells` is 0: expected an integer of at least 1"),
            ({"env_options": {"seed": 3}}, "data.env_options.seed is 3; expected to be left to the run"),
            ({"env_options": {"device": "cuda"}}, "data.env_options.device is cuda; expected to be left to the run"),
            ({"env_options": {"publish": ["tusk"]}}, r"data.env_options.publish is \['tusk'\]; expected to be left"),
            ({"episodes_per_task": 0}, "`episodes_per_task` is 0"),
            ({"eval_episodes_per_task": 0}, "`episodes_per_task` is 0"),
            ({"eval_actions": "mean"}, "data.eval_actions is mean; expected deterministic or sampled"),
            (
                {"episodes_per_task": 4, "eval_episodes_per_task": 1},
                "data.episodes_per_task is 4 and data.eval_episodes_per_task is 1; expected both or neither to be 1",
            ),
            ({"held_out": 1.5}, "data.held_out is 1.5; expected a number from 0 to 1"),
            ({"held_out": -0.5}, "data.held_out is -0.5; expected a number from 0 to 1"),
        ],
    )
    def test_illegal_settings_are_named_in_one_line(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words) as error:
            tiny.data(**changes)
        assert "\n" not in str(error.value)
