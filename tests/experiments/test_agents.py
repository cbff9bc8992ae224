"""Agents from files act as they did in training, and what is no such file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import AGENTS, GRID, write_checkpoint

from hyperrl import keys
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import TrainedAgent, load_agent, telling_env
from hyperrl.experiments.behaviour.playing import steps

TASKS, STEPS = 5, 25
# What agents have to be given besides observation and reward, and how wide it is.
NEEDS = {"pearl": {"latent_noise": 5}, "task oracle": {"task": 2}, "task id": {"task_id": None}}
NEEDS |= {"belief oracle": {"belief": 25}}


def follow(agent: TrainedAgent, other: TrainedAgent) -> None:
    """Lets the actor of one agent play tasks one after the other, and compares with the other's `act` at each step."""
    env = agent.make_env(TASKS, seed=3)
    actor = agent.learner.actor(torch.Generator().manual_seed(1))
    memory = other.initial_memory(TASKS)
    for _, step in zip(range(STEPS), steps(env, env.reset(), actor), strict=False):
        memory[step[keys.IS_INIT][:, 0]] = other.initial_memory(1)
        given = {name: step[name] for name in other.step.needs}
        reward = step[keys.PREV_REWARD][:, 0]
        action, memory = other.act(step[keys.OBSERVATION], reward, memory, **given)
        torch.testing.assert_close(action, step[keys.ACTION], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.step.split(memory).encoder, actor.memory, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", AGENTS)
def test_acts_as_the_actor_of_training(name: str, tmp_path: Path) -> None:
    """Through the ends of episodes and tasks."""
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", name))
    assert not agent.learner.training
    assert agent.frames == 1234
    assert agent.step.needs == NEEDS.get(name, {})
    follow(agent, agent)


def test_actions_differ_over_steps(tmp_path: Path) -> None:
    """So that the test above compares something."""
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", "rnn_hn"))
    env = agent.make_env(TASKS, seed=3)
    actor = agent.learner.actor(torch.Generator())
    played = [step[keys.ACTION] for _, step in zip(range(STEPS), steps(env, env.reset(), actor), strict=False)]
    assert len(torch.stack(played).unique()) > 1


def test_loading_leaves_the_random_stream(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "agent.ckpt")
    before = torch.get_rng_state()
    load_agent(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_environment_is_that_of_the_stage(tmp_path: Path) -> None:
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", held_out=0.5, eval_episodes_per_task=3))
    env, val = agent.make_env(200, seed=1), agent.make_env(200, seed=1, stage="val")
    assert env.episodes_per_task == 3
    assert env.episode_length == 6
    assert set(env.publish) == {"task", "task_id", "state_id", "belief"}
    goals, others = ({tuple(goal) for goal in each.reset()["task"].tolist()} for each in (env, val))
    assert len(goals | others) == 21
    assert not goals & others


def test_options_of_the_environment(tmp_path: Path) -> None:
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt"))
    assert agent.make_env(2, num_steps=9).episode_length == 9
    with pytest.raises(ConfigError, match="unknown option 'num_step'.*'num_steps'"):
        agent.make_env(2, num_step=9)
    assert set(telling_env("HalfCheetahVel-v0", 1).publish) == {"task"}


class TestRefused:
    """One line says what was expected."""

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nothing\.ckpt: no such file"):
            load_agent(tmp_path / "nothing.ckpt")

    def test_pickles(self, tmp_path: Path) -> None:
        """Quirk V8."""
        torch.save({"config": "", "state_dict": {}, "evil": Path}, tmp_path / "evil.ckpt")
        with pytest.raises(ConfigError, match="not a readable checkpoint"):
            load_agent(tmp_path / "evil.ckpt")

    @pytest.mark.parametrize("missing", ["weights.pt", "config.yaml"])
    def test_incomplete_bundle(self, missing: str, tmp_path: Path) -> None:
        for name in {"weights.pt", "config.yaml"} - {missing}:
            (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=f"has no {missing}; expected a directory that `hyperrl export` wrote"):
            load_agent(tmp_path)

    def test_another_model(self, tmp_path: Path) -> None:
        path = write_checkpoint(tmp_path / "agent.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["state_dict"]["agent.policy.state.norm.mean"]
        torch.save(checkpoint, path)
        with pytest.raises(ConfigError, match=r"another model: agent\.policy\.state\.norm\.mean has shape none there"):
            load_agent(path)

    def test_configuration_of_another_version(self, tmp_path: Path) -> None:
        path = write_checkpoint(tmp_path / "agent.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"] = checkpoint["config"].replace("hidden_dim", "hiden_dim")
        torch.save(checkpoint, path)
        with pytest.raises(ConfigError, match="hiden_dim") as error:
            load_agent(path)
        assert "\n" not in str(error.value)


def test_seeds_decide_the_tasks(tmp_path: Path) -> None:
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", **GRID))
    first, again, other = (agent.make_env(20, seed=seed).reset()["task"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
