"""``hyperrl video``: one call plays, records and draws, and recordings are drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from PIL import Image

from hyperrl.data.rollouts import evaluate
from hyperrl.envs import MetaEnv, make_env
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import load_agent
from hyperrl.experiments.behaviour import command
from hyperrl.experiments.behaviour.command import video
from hyperrl.experiments.behaviour.recording import Recording
from hyperrl.experiments.video import moments, play
from hyperrl.seeding import derive_seed

SHORT: dict[str, Any] = {"num_steps": 3, "episodes_per_task": 2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that take no time, and tell the position."""

    def render(env: MetaEnv, index: int = 0) -> np.ndarray:
        picture = np.zeros((20, 300, 3), np.uint8)
        x, y = env.coordinates()[index].int().tolist()
        picture[2 * y, 3 * x : 3 * x + 2] = 255
        return picture

    monkeypatch.setattr(MetaEnv, "render_frame", render)


def test_several_outputs_at_once_and_again(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "agent.ckpt")
    names = [str(tmp_path / "out" / name) for name in ("film.gif", "still.png", "file.npz")]
    played = video(str(checkpoint), ",".join(names), tasks=3, index=1, seed=4, pictures=True)
    table = capsys.readouterr().out
    assert "custom on GridNavi-v0, 3 tasks" in table
    for episode, value in enumerate(played.returns.mean(0), 1):
        assert f"episode {episode} " in table
        assert f"{value:.2f}" in table
    with Image.open(names[0]) as film:
        assert film.n_frames == 13
    assert played.info["frames"] == 1234
    assert len(Path(names[1]).read_bytes()) > 50_000  # not a blank page

    again = [str(tmp_path / "again" / name) for name in ("film.gif", "still.png")]
    video(names[2], again, index=1)
    for first, second in zip(names, again, strict=False):
        assert Path(first).read_bytes() == Path(second).read_bytes()


def test_returns_are_those_of_evaluation(tmp_path: Path) -> None:
    """Of the tasks that the seed decides."""
    checkpoint = write_checkpoint(tmp_path / "agent.ckpt", "rnn_hn continuous")
    first, again, other = (video(str(checkpoint), str(tmp_path / "file.npz"), tasks=5, seed=seed) for seed in (4, 4, 5))
    agent = load_agent(checkpoint)
    env = agent.make_env(5, seed=derive_seed(4, "video tasks"))
    expected = evaluate(env, agent.learner.actor(torch.Generator()))["returns"]
    np.testing.assert_allclose(first.returns, expected, atol=1e-5)
    assert np.array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)
    assert "pictures" not in first


def test_moments_are_those_of_playing(small: None) -> None:
    env = make_env("GridNavi-v0", 2, seed=3, **SHORT, record_path=True)
    expected = list(play(env, index=1, seed=8))
    from hyperrl.experiments.behaviour.recorder import record

    env = make_env("GridNavi-v0", 2, seed=3, **SHORT, record_path=True)
    found = list(moments(record(env, seed=8, pictures_of=1)))
    assert len(found) == len(expected) == 7
    for mine, other in zip(found, expected, strict=True):
        assert np.array_equal(mine.picture, other.picture)
        assert mine.caption == other.caption


def test_random_actions_of_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played = video("hyperrl/GridNavi-v0", str(tmp_path / "file.npz"), tasks=20, env_options=SHORT)
    assert "random actions on hyperrl/GridNavi-v0, 20 tasks" in capsys.readouterr().out
    assert played["reward"].shape == (20, 6)
    assert len(np.unique(played["action"])) == 5
    video("GridNavi-v0", str(tmp_path / "file.npz"))
    assert "task known" in capsys.readouterr().out  # landmarks, as nothing was changed


def test_successes_are_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "agent.ckpt", "rnn_hn continuous")
    played = video(str(checkpoint), str(tmp_path / "file.npz"), tasks=8)
    assert played.successes is not None
    shown = capsys.readouterr().out
    for share in (played.successes > 0).mean(0):
        assert f"{share:.1%}" in shown


def test_bundles_are_played(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "agent.ckpt")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["state_dict"], bundle / "weights.pt")
    (bundle / "config.yaml").write_text(content["config"])
    first, second = (command.play(str(source), tasks=4, seed=2) for source in (checkpoint, bundle))
    assert np.array_equal(first.returns, second.returns)
    assert np.array_equal(first["latent"], second["latent"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "GridNavi-v1"}, "source is GridNavi-v1; expected .* did you mean GridNavi-v0"),
        ({"source": "none.npz"}, r"none\.npz: no such file"),
        ({"source": "none.ckpt"}, r"none\.ckpt: no such file"),
        ({"output": "film.avi"}, r"output is film\.avi; expected a name that ends in \.mp4, \.gif"),
        ({"tasks": 0}, "tasks is 0; expected at least 1"),
        ({"index": -1}, "index is -1; expected 0 or more"),
        ({"index": 1}, "index is 1; expected a number from 0 to 0"),
        ({"output": "film.gif", "frames_per_second": 0}, "`frames_per_second` is 0"),
        ({"env_options": {"num_step": 3}}, "unknown option 'num_step'"),
        ({"source": "tiny:Toy-v0", "output": "film.gif"}, "Toy has no picture"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        video(**{"source": "GridNavi-v0", "output": "still.png", **arguments})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_recordings_are_not_played_anew(small: None, tmp_path: Path) -> None:
    path = str(tmp_path / "file.npz")
    video("GridNavi-v0", path, tasks=2, env_options=SHORT)
    with pytest.raises(ConfigError, match="--seed is given and .* is a recording"):
        video(path, str(tmp_path / "still.png"), seed=3)
    with pytest.raises(ConfigError, match="has no pictures; expected .* --pictures"):
        video(path, str(tmp_path / "film.gif"))
    video("GridNavi-v0", path, tasks=2, env_options=SHORT, pictures=True)
    with pytest.raises(ConfigError, match="index is 1 and .* pictures of task 0; expected index 0"):
        video(path, str(tmp_path / "film.gif"), index=1)
    assert "pictures" in Recording.read(path)


def test_index_is_checked_before_playing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`play` would be expensive."""
    monkeypatch.setattr(command, "play", None)
    with pytest.raises(ConfigError, match="index is 2; expected a number from 0 to 1"):
        video("GridNavi-v0", "still.png", tasks=2, index=2)
