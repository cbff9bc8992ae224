"""Videos of whole meta-episodes, of any environment with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperrl import keys
from hyperrl.envs import MetaEnv
from hyperrl.errors import ConfigError
from hyperrl.experiments.behaviour.playing import Actor, random_actor, steps
from hyperrl.experiments.behaviour.recording import Recording

_STRIP, _MARGIN, _FONT_SIZE = 24, 6, 13  # pixels
Picture = NDArray[np.uint8]


class Moment(NamedTuple):
    """The state of one environment after a step.

    Attributes:
        picture: of the state `[H, W, 3]`; where an inner episode has just ended, the start of the next one.
        episode: number of the inner episode to which the step belongs, from 1.
        num_episodes: K, the number of inner episodes.
        step: number of the step in its episode, from 1; 0 at the start of the first one.
        reward: of the step, in raw units.
        total: sum of rewards since the start of the meta-episode.
    """

    picture: Picture
    episode: int
    num_episodes: int
    step: int
    reward: float
    total: float

    @property
    def caption(self) -> str:
        """Episode, step, reward and return in one line."""
        played = f"episode {self.episode} of {self.num_episodes}  step {self.step}"
        return f"{played}  reward {self.reward:.2f}  return {self.total:.2f}"


def play(
    env: MetaEnv, actor: Actor | None = None, *, index: int = 0, sampled: bool = False, seed: int = 0
) -> Iterator[Moment]:
    """Play one meta-episode from a reset on, and yield its start and what follows each step.

    Args:
        env: the environments; with `record_path`, pictures of places in a plane show the path.
        actor: the acting policy, as for `hyperrl.data.rollouts.evaluate`; None takes random actions.
        index: which of the B environments is shown.
        sampled: whether actions are drawn from the policy, in the place of its mode.
        seed: seed of random actions.

    Raises:
        ValueError: if there is no such environment.
        NotImplementedError: if the family has no picture.
    """
    actor = actor or random_actor(env, seed)
    start = env.reset()
    episode, number, total = 1, 0, 0.0
    yield Moment(env.render_frame(index), episode, env.episodes_per_task, number, 0.0, total)
    for step in steps(env, start, actor, sampled):
        after = step[keys.NEXT]
        reward, episode_done, done = (after[name][index].item() for name in (keys.REWARD, keys.EPISODE_DONE, keys.DONE))
        number, total = number + 1, total + reward
        yield Moment(env.render_frame(index), episode, env.episodes_per_task, number, reward, total)
        if done:
            return
        if episode_done:
            episode, number = episode + 1, 0


def moments(recording: Recording) -> Iterator[Moment]:
    """The moments of a recording of which pictures were kept, as `play` yields them.

    Args:
        recording: a meta-episode.

    Raises:
        ConfigError: it has no pictures.
    """
    if "pictures" not in recording:
        raise ConfigError("the recording has no pictures; expected one that was made with --pictures")
    index, episodes = recording.info["pictures_of"], recording.info["episodes_per_task"]
    yield Moment(recording["pictures"][0], 1, episodes, 0, 0.0, 0.0)
    rewards = recording["reward"][index].astype(float)
    for episode, each in enumerate(recording.episodes(index), 1):
        for number, step in enumerate(range(each.start, each.stop), 1):
            total = rewards[: step + 1].sum()
            yield Moment(recording["pictures"][step + 1], episode, episodes, number, rewards[step], total)


def with_caption(moment: Moment) -> Picture:
    """Return the picture of a moment above a strip with its caption, `[H + 24, W, 3]`."""
    from PIL import Image, ImageDraw

    height, width, _ = moment.picture.shape
    image = Image.new("RGB", (width, height + _STRIP), "white")
    image.paste(Image.fromarray(moment.picture))
    ImageDraw.Draw(image).text((_MARGIN, height + _STRIP // 2), moment.caption, "black", _font(), anchor="lm")
    return np.asarray(image)


def write_video(path: str | Path, pictures: Iterable[Picture], frames_per_second: int = 20) -> None:
    """Write pictures `[H, W, 3]` of one size as a video; those of a .gif are all held in memory, of an .mp4 one by one.

    Args:
        path: a name that ends in .gif, or in .mp4, which needs the extra `video`; its folder is made if it is missing.
        pictures: at least one.
        frames_per_second: how fast they are shown; positive.

    Raises:
        ConfigError: if the name ends otherwise, what it needs is not installed, or another argument is out of range.
    """
    path = Path(path)
    check_video(path, frames_per_second)
    iterator = iter(pictures)
    first = next(iterator, None)
    if first is None:
        raise ConfigError("`pictures` is empty: expected at least one")
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_gif if path.suffix == ".gif" else _write_mp4
    write(path, chain([first], iterator), frames_per_second)


def check_video(path: Path, frames_per_second: int) -> None:
    """Refuse what `write_video` could not write, before anything is played.

    Args:
        path: as there.
        frames_per_second: as there.

    Raises:
        ConfigError: the name ends otherwise, what it needs is not installed, or the speed is out of range.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"`path` is '{path}': expected a name that ends in .gif or .mp4")
    if not frames_per_second > 0:
        raise ConfigError(f"`frames_per_second` is {frames_per_second!r}: expected a positive number")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ModuleNotFoundError as error:
            needed = "which needs ffmpeg: pip install 'hyperrl[video]', or .gif"
            raise ConfigError(f"`path` is '{path}', {needed}") from error


def _write_gif(path: Path, pictures: Iterator[Picture], frames_per_second: int) -> None:
    from PIL import Image

    images = (Image.fromarray(picture).quantize() for picture in pictures)
    duration = round(1000 / frames_per_second)  # milliseconds
    next(images).save(path, save_all=True, append_images=images, duration=duration, loop=0)


def _write_mp4(path: Path, pictures: Iterator[Picture], frames_per_second: int) -> None:
    import imageio_ffmpeg

    first = _even(next(pictures))
    size = first.shape[1], first.shape[0]
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=frames_per_second, macro_block_size=2)
    try:
        writer.send(None)  # starts it
        writer.send(first)
        for picture in pictures:
            writer.send(_even(picture))
    finally:
        writer.close()


def _even(picture: Picture) -> Picture:
    """The picture with even sides, which the format needs, at the price of a line."""
    height, width = (length - length % 2 for length in picture.shape[:2])
    return np.ascontiguousarray(picture[:height, :width])


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_FONT_SIZE)
