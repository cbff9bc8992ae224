"""Recordings: what is in them is what happened, and files give back what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from tiny import TOY

from hyperrl import keys
from hyperrl.data.rollouts import evaluate
from hyperrl.envs import MetaEnv
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import TrainedAgent, load_agent, telling_env
from hyperrl.experiments.behaviour.playing import steps
from hyperrl.experiments.behaviour.recorder import record
from hyperrl.experiments.behaviour.recording import Recording
from hyperrl.modules.encoder import Transition

TASKS, SEED = 6, 3


def an_agent(folder: Path, name: str) -> TrainedAgent:
    return load_agent(write_checkpoint(folder / "agent.ckpt", name))


class TestNumbers:
    """Against the environment, evaluation and the acting agent."""

    @pytest.mark.parametrize("name", ["rnn_hn", "rnn_hn continuous", "pearl"])
    def test_returns_are_those_of_evaluation(self, name: str, tmp_path: Path) -> None:
        """Also where episodes and tasks differ in length (quirks V2, V3)."""
        agent = an_agent(tmp_path, name)
        recording = record(agent.make_env(TASKS, seed=SEED), agent.learner, seed=5)
        actor = agent.learner.actor(torch.Generator().manual_seed(5))
        expected = evaluate(agent.make_env(TASKS, seed=SEED), actor)
        np.testing.assert_allclose(recording.returns, expected["returns"].numpy(), atol=1e-5)
        if "success" in expected:
            assert recording.successes is not None
            np.testing.assert_array_equal(recording.successes, expected["success"].numpy())
            assert recording.successes.any()
        else:
            assert recording.successes is None

    def test_borders_are_the_true_ones(self, tmp_path: Path) -> None:
        agent = an_agent(tmp_path, "rnn_hn continuous")
        recording = record(agent.make_env(TASKS, seed=SEED), agent.learner)
        assert len(set(recording["length"].tolist())) > 1
        for index, length in enumerate(recording["length"]):
            episodes = recording.episodes(index)
            left = recording["observation"][index, :, 0]
            assert [episodes[0].start, episodes[1].start, episodes[1].stop] == [0, episodes[0].stop, length]
            assert left[0] == episodes[0].stop
            assert left[episodes[0].stop] == 0  # the terminal observation
            assert recording["done"][index].nonzero()[0].tolist() == [length - 1]
            assert not left[length:].any()

    @pytest.mark.parametrize("name", ["rnn_hn continuous", "vi_hn"])
    def test_agent_knew_and_expected_this(self, name: str, tmp_path: Path) -> None:
        """Step by step, the state after the last one included."""
        agent = an_agent(tmp_path, name)
        recording = record(agent.make_env(TASKS, seed=SEED), agent.learner)
        stochastic = name == "vi_hn"
        assert ("latent" in recording) != stochastic
        parts = ("latent_mean", "latent_log_variance") if stochastic else ("latent",)
        latents = np.concatenate([recording[part] for part in parts], -1)
        env, model, memory = agent.make_env(TASKS, seed=SEED), agent.learner.agent, None
        actor = agent.learner.actor(torch.Generator())
        playing = torch.ones(TASKS, dtype=torch.bool)
        for number, step in enumerate(steps(env, env.reset(), actor)):
            with torch.no_grad():
                latent, memory = model.encoder.act(step, memory)
                value = model.values(step, latent)[:, 0]
            rows = playing.numpy()
            np.testing.assert_allclose(latents[rows, number], latent[playing], atol=1e-5)
            np.testing.assert_allclose(recording["value"][rows, number], value[playing], atol=1e-5)
            np.testing.assert_array_equal(recording["action"][rows, number], step[keys.ACTION][playing])
            np.testing.assert_array_equal(recording["observation"][rows, number], step[keys.OBSERVATION][playing])
            ended = playing & step[keys.NEXT, keys.DONE][:, 0]
            if ended.any():
                with torch.no_grad():
                    last, _ = model.encoder.act(step[keys.NEXT], memory)
                np.testing.assert_allclose(latents[ended.numpy(), number + 1], last[ended], atol=1e-5)
            playing &= ~ended
            if not playing.any():
                break
        assert recording["value"].shape == (TASKS, number + 1)

    def test_predictions_of_states_are_probabilities(self, tmp_path: Path) -> None:
        """Means over samples of the latent; where it hardly varies, the decoder's output for its mean."""
        agent = an_agent(tmp_path, "vi_hn")
        layers = agent.learner.agent.encoder.output[-1]
        layers.weight[5:], layers.bias[5:] = 0.0, -30.0
        recording = record(agent.make_env(2, seed=SEED), agent.learner)
        expected = agent.learner.inference.elbo.reward(torch.tensor(recording["latent_mean"])).sigmoid()
        np.testing.assert_allclose(recording["state_prediction"], expected, atol=1e-5)
        assert recording.info["prediction"] == "bernoulli"

    def test_samples_of_the_latent_count(self, tmp_path: Path) -> None:
        agent = an_agent(tmp_path, "vi_hn")
        layers = agent.learner.agent.encoder.output[-1]
        layers.weight[5:], layers.bias[5:] = 0.0, 2.0
        recording, again, other = (
            record(agent.make_env(2, seed=SEED), agent.learner, seed=seed)["state_prediction"] for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(recording, again)
        assert 1e-4 < np.abs(recording - other).max() < 0.3  # a hundred samples

    def test_predicted_rewards(self, tmp_path: Path) -> None:
        agent = an_agent(tmp_path, "vi_hn continuous")
        recording = record(agent.make_env(2, seed=SEED), agent.learner)
        decoder = agent.learner.inference.elbo.reward
        first = {name: torch.tensor(recording[name][:, :1]) for name in ("observation", "action", "latent_mean")}
        after = torch.tensor(recording["observation"][:, 1:2])
        transition = Transition(first["observation"], first["action"], torch.zeros(2, 1, 1), after)
        expected = decoder(first["latent_mean"], transition)[:, 0, 0, 0]
        np.testing.assert_allclose(recording["predicted_reward"][:, 0], expected, atol=1e-5)

    def test_places_go_from_start_to_end(self) -> None:
        """The last place of an episode is kept, although the next one has begun in the same step."""
        env = telling_env("GridNavi-v0", 2, episodes_per_task=2, num_steps=3, starting_state=[1.0, 1.0])
        moves = {1: (0, 1), 2: (1, 0), 3: (0, -1), 4: (-1, 0), 0: (0, 0)}
        recording = record(env, seed=4)
        assert recording["action"].any(1).all()
        for index in range(2):
            for episode in recording.episodes(index):
                place = np.array([1, 1])
                for step in range(episode.start, episode.stop):
                    np.testing.assert_array_equal(recording["start"][index, step], place)
                    place = (place + moves[recording["action"][index, step]]).clip(0, 4)
                    np.testing.assert_array_equal(recording["position"][index, step], place)
        np.testing.assert_allclose(recording["belief"].sum(-1), 1.0, atol=1e-6)

    def test_pictures_are_of_one_task(self) -> None:
        env = telling_env("GridNavi-v0", 2, seed=1, episodes_per_task=1, num_steps=3)
        recording = record(env, seed=4, pictures_of=1)
        assert recording["pictures"].shape == (4, 400, 400, 3)
        assert np.array_equal(recording["pictures"][-1], env.render_frame(1))

    @pytest.mark.parametrize("sampled", [False, True])
    def test_seeds_decide_everything(self, sampled: bool, tmp_path: Path) -> None:
        agent = an_agent(tmp_path, "rnn_hn")

        def actions(seed: int, global_seed: int) -> list[int]:
            torch.manual_seed(global_seed)
            before = torch.get_rng_state()
            recording = record(agent.make_env(TASKS, seed=SEED), agent.learner, seed=seed, sampled=sampled)
            assert torch.equal(torch.get_rng_state(), before)
            return recording["action"].ravel().tolist()

        assert actions(0, 0) == actions(0, 1)
        assert (actions(0, 0) != actions(1, 0)) == sampled


class TestFile:
    """Nothing is lost, and other files are refused."""

    def test_gives_back_what_was_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MetaEnv, "render_frame", lambda self, index: np.full((4, 6, 3), index + 7, np.uint8))
        agent = an_agent(tmp_path, "vi_hn")
        about = {"env": "GridNavi-v0", "options": {"starting_state": (0.0, 1.0)}}
        written = record(agent.make_env(2), agent.learner, pictures_of=1, about=about)
        written.write(tmp_path / "new" / "file.npz")
        read = Recording.read(tmp_path / "new" / "file.npz")
        assert read.info == written.info
        assert read.arrays.keys() == written.arrays.keys()
        for name, array in written.arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)

    def test_needs_no_pickles(self, tmp_path: Path) -> None:
        """Every array is plain, for whoever reads it with numpy alone."""
        record(telling_env(TOY, 2)).write(tmp_path / "file.npz")
        with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "biufU" for name in file.files)

    def test_others_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text.npz").write_text("text")
        np.savez(tmp_path / "other.npz", x=np.zeros(3))
        np.savez(tmp_path / "later.npz", info=np.array('{"format": 99}'))
        for name, message in (("nothing", "no such file"), ("text", "not a recording"), ("other", "not a recording")):
            with pytest.raises(ConfigError, match=rf"{name}\.npz.*{message}"):
                Recording.read(tmp_path / f"{name}.npz")
        with pytest.raises(ConfigError, match="has format 99; expected 1"):
            Recording.read(tmp_path / "later.npz")
