"""Videos of meta-episodes: what is shown, what is said about it, and the files."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tensordict import TensorDictBase
from tiny import data, learner
from torchrl.envs.utils import ExplorationType, exploration_type

from hyperrl import keys
from hyperrl.data.rollouts import evaluate
from hyperrl.envs import MetaEnv, make_env
from hyperrl.errors import ConfigError
from hyperrl.experiments.video import Moment, play, with_caption, write_video

# One id per family that needs nothing besides this package.
IDS = ["GridNavi-v0", "Grid16-Hall1-H20-rshape-v0", "T-LN-P1-v0", "MC-LS-v0", "PlanningGame-3x3-v0", "Semicircle-v0"]
IDS += ["HalfCheetahDir-v0", "Walker2DRandParams-v0"]
RIGHT = 2


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without content, where they are not what is asked about: true ones take their time."""
    monkeypatch.setattr(MetaEnv, "render_frame", lambda self, index: np.zeros((4, 4, 3), np.uint8))


def always(action: int) -> object:
    def act(td: TensorDictBase) -> TensorDictBase:
        return td.set(keys.ACTION, torch.full(td.shape, action))

    return act


def squares(count: int, size: tuple[int, int] = (20, 32)) -> list[np.ndarray]:
    """Black pictures with a white column that moves."""
    pictures = np.zeros((count, *size, 3), np.uint8)
    for index, picture in enumerate(pictures):
        picture[:, 3 * index : 3 * index + 3] = 255
    return list(pictures)


class TestPlay:
    """One meta-episode, moment by moment."""

    @pytest.mark.parametrize("env_id", IDS)
    def test_every_family_plays_a_whole_meta_episode(self, env_id: str, blank: None) -> None:
        env = make_env(env_id, 3, seed=1)
        moments = list(play(env, index=1))
        assert 1 < len(moments) <= env.horizon + 1
        assert moments[-1].episode == env.episodes_per_task
        starts = [moment.episode for moment in moments if moment.step <= 1]
        assert starts == [1, *range(1, env.episodes_per_task + 1)]

    def test_numbers_are_those_of_the_environment(self, blank: None) -> None:
        env = make_env("GridNavi-v0", 2, episodes_per_task=2, num_steps=3)
        env.inject("task", [(4, 4), (2, 0)])
        moments = list(play(env, always(RIGHT), index=1))
        rewards = [0.0, -0.1, 1.0, -0.1] + [-0.1, 1.0, -0.1]
        assert [moment.episode for moment in moments] == [1, 1, 1, 1, 2, 2, 2]
        assert [moment.step for moment in moments] == [0, 1, 2, 3, 1, 2, 3]
        assert [moment.reward for moment in moments] == pytest.approx(rewards)
        assert [moment.total for moment in moments] == pytest.approx(np.cumsum(rewards))
        assert {moment.num_episodes for moment in moments} == {2}

    def test_picture_is_the_state_of_the_moment(self) -> None:
        env = make_env("GridNavi-v0", 2, episodes_per_task=2, num_steps=4, record_path=True)
        for moment in play(env, index=1):
            assert np.array_equal(moment.picture, env.render_frame(1))

    def test_random_actions_have_a_seed_of_their_own(self, blank: None) -> None:
        def rewards(seed: int, global_seed: int) -> list[float]:
            torch.manual_seed(global_seed)
            env = make_env("PointEnv-v0", 2, seed=5, max_episode_steps=6)
            return [moment.reward for moment in play(env, seed=seed)]

        assert rewards(0, 0) == rewards(0, 1) != rewards(1, 0)

    def test_random_actions_are_uniform_over_the_bounds(self, blank: None) -> None:
        env = make_env("Semicircle-v0", 50, max_episode_steps=20)
        seen, step = [], env._step
        env._step = lambda td: (seen.append(td[keys.ACTION].clone()), step(td))[1]
        list(play(env))
        for coordinate in (torch.stack(seen) / env.action_spec.space.high).view(-1, 2).unbind(-1):  # 1,000 each
            assert stats.kstest(coordinate.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4

    @pytest.mark.parametrize("sampled", [False, True])
    def test_policy_acts_as_in_evaluation(self, sampled: bool, blank: None) -> None:
        """It sees a memory's marks, and draws actions only if that is asked for; the caller's mode stays his own."""
        marks, modes = [], []

        def act(td: TensorDictBase) -> TensorDictBase:
            marks.append(td[keys.IS_INIT][:, 0].tolist())
            modes.append(exploration_type())
            assert not torch.is_grad_enabled()
            return td.set(keys.ACTION, torch.zeros(2, dtype=torch.int64))

        env = make_env("GridNavi-v0", 2, episodes_per_task=1, num_steps=3)
        outside = exploration_type()
        for _ in play(env, act, sampled=sampled):
            assert exploration_type() == outside
            assert torch.is_grad_enabled()
        assert marks == [[True, True], [False, False], [False, False]]
        assert set(modes) == {ExplorationType.RANDOM if sampled else ExplorationType.DETERMINISTIC}

    def test_returns_are_those_of_evaluation(self, blank: None) -> None:
        """A policy with a memory, which starts with the meta-episode, and whose mode acts."""
        source = data(env="GridNavi-v0", num_envs=4)
        model = learner(source)
        options = {"seed": 3, "episodes_per_task": 2, "publish": source.publish}
        for index in (0, 3):
            env, other = (make_env("GridNavi-v0", 4, **options) for _ in range(2))
            moments = list(play(env, model.actor(torch.Generator()), index=index))
            expected = evaluate(other, model.actor(torch.Generator()))["returns"][index]
            by_episode = [sum(each.reward for each in moments if each.episode == k) for k in (1, 2)]
            assert by_episode == pytest.approx(expected.tolist(), abs=1e-5)
            assert moments[-1].total == pytest.approx(expected.sum().item(), abs=1e-5)

    def test_others_that_end_earlier_get_new_tasks(self, blank: None) -> None:
        env = make_env("Walker2DRandParams-v0", 8, episodes_per_task=1, seed=3)
        starts, tasks = [], []

        def fall(td: TensorDictBase) -> TensorDictBase:
            starts.append(td[keys.IS_INIT][:, 0])
            tasks.append(env.state[keys.TASK].clone())
            return td.set(keys.ACTION, torch.ones(8, env.action_dim))

        lengths = [len(list(play(env, fall, index=index))) - 1 for index in range(8)]
        assert len(set(lengths)) > 1
        marks, changed = torch.stack(starts[-lengths[-1] :]), torch.stack(tasks[-lengths[-1] :]).diff(dim=0).any(-1)
        assert marks[:, 7].tolist() == [True] + [False] * (lengths[-1] - 1)
        assert marks[1:].any()
        assert torch.equal(marks[1:], changed)

    def test_unknown_index_is_refused(self) -> None:
        with pytest.raises(ValueError, match="`index` is 2"):
            next(play(make_env("GridNavi-v0", 2), index=2))


class TestCaption:
    """The strip below a picture."""

    MOMENT = Moment(np.full((400, 400, 3), 7, np.uint8), 2, 4, 13, -0.125, 12.5)

    def test_words(self) -> None:
        assert self.MOMENT.caption == "episode 2 of 4  step 13  reward -0.12  return 12.50"

    def test_is_below_the_picture(self) -> None:
        image = with_caption(self.MOMENT)
        assert image.shape == (424, 400, 3)
        assert (image[:400] == 7).all()
        strip = image[400:]
        assert (strip == 255).mean() > 0.5
        assert (strip.max(-1) < 100).sum() > 200  # letters

    def test_long_captions_fit(self) -> None:
        strip = with_caption(Moment(self.MOMENT.picture, 10, 10, 500, -4321.25, -432100.25))[400:]
        assert (strip[:, -3:] == 255).all()

    def test_different_moments_have_different_captions(self) -> None:
        other = self.MOMENT._replace(total=12.6)
        assert not np.array_equal(with_caption(self.MOMENT), with_caption(other))


class TestFiles:
    """What is written can be read again."""

    def test_gif(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "film.gif"
        write_video(path, iter(squares(9)), frames_per_second=25)
        with Image.open(path) as film:
            assert film.n_frames == 9
            assert film.info["duration"] == 40
            assert film.info["loop"] == 0
            for index, expected in enumerate(squares(9)):
                film.seek(index)
                assert np.array_equal(np.asarray(film.convert("RGB")), expected)

    def test_mp4(self, tmp_path: Path) -> None:
        """Where ffmpeg is missing, the message says what to install."""
        path = tmp_path / "film.mp4"
        if find_spec("imageio_ffmpeg") is None:
            with pytest.raises(ConfigError, match=r"film\.mp4', which needs ffmpeg: pip install 'hyperrl\[video\]'"):
                write_video(path, squares(9))
            assert not path.exists()
            return
        import imageio_ffmpeg

        write_video(path, squares(9, (61, 91)), frames_per_second=10)  # odd sides lose a line
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
        assert frames == 9
        assert seconds == pytest.approx(0.9, abs=0.11)
        reader = imageio_ffmpeg.read_frames(str(path))
        assert next(reader)["size"] == (90, 60)
        for index, pixels in enumerate(reader):
            picture = np.frombuffer(pixels, np.uint8).reshape(60, 90, 3)
            assert abs(int(picture.mean(axis=(0, 2)).argmax()) - (3 * index + 1)) <= 1

    def test_missing_ffmpeg_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(ConfigError, match=r"pip install 'hyperrl\[video\]'") as error:
            write_video(tmp_path / "film.mp4", squares(2))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["film.avi", "film", "gif"])
    def test_other_formats_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=rf"`path` is '.*{name}': expected a name that ends in \.gif or \.mp4"):
            write_video(tmp_path / "new" / name, squares(2))
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
    @pytest.mark.parametrize(
        ("count", "rate", "message"),
        [
            (2, 0, "`frames_per_second` is 0: expected a positive number"),
            (2, -5, "`frames_per_second` is -5: expected a positive number"),
            (0, 20, "`pictures` is empty: expected at least one"),
        ],
    )
    def test_nothing_to_show_is_refused(self, count: int, rate: int, message: str, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as error:
            write_video(tmp_path / "new" / name, squares(count), frames_per_second=rate)
        assert str(error.value) == message
        assert not (tmp_path / "new").exists()

    def test_whole_meta_episode_becomes_a_film(self, tmp_path: Path) -> None:
        env: MetaEnv = make_env("GridNavi-v0", 2, episodes_per_task=2, num_steps=4, record_path=True)
        path = tmp_path / "film.gif"
        write_video(path, (with_caption(moment) for moment in play(env)))
        with Image.open(path) as film:
            assert film.n_frames == 9
            assert film.size == (400, 424)
