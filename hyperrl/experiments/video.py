"""Videos of whole meta-episodes, of any environment with pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp

from hyperrl import keys
from hyperrl.envs import MetaEnv
from hyperrl.errors import ConfigError

_STRIP, _MARGIN, _FONT_SIZE = 24, 6, 13  # pixels
Actor = Callable[[TensorDictBase], TensorDictBase]
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
    actor = actor or _random_actor(env, seed)
    exploration = ExplorationType.RANDOM if sampled else ExplorationType.DETERMINISTIC
    td = env.reset()
    episode, step, total = 1, 0, 0.0
    yield Moment(env.render_frame(index), episode, env.episodes_per_task, step, 0.0, total)
    done = False
    while not done:
        with torch.no_grad(), set_exploration_type(exploration):  # not while the caller has the moment
            stepped = env.step(actor(td))
        after = stepped[keys.NEXT]
        reward, episode_done, done = (after[name][index].item() for name in (keys.REWARD, keys.EPISODE_DONE, keys.DONE))
        step, total = step + 1, total + reward
        yield Moment(env.render_frame(index), episode, env.episodes_per_task, step, reward, total)
        if episode_done:
            episode, step = episode + 1, 0
        if not done:  # others may be
            td = env.maybe_reset(step_mdp(stepped))


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
    writers = {".gif": _write_gif, ".mp4": _write_mp4}
    if path.suffix not in writers:
        raise ConfigError(f"`path` is '{path}': expected a name that ends in {' or '.join(writers)}")
    if not frames_per_second > 0:
        raise ConfigError(f"`frames_per_second` is {frames_per_second!r}: expected a positive number")
    iterator = iter(pictures)
    first = next(iterator, None)
    if first is None:
        raise ConfigError("`pictures` is empty: expected at least one")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix](path, chain([first], iterator), frames_per_second)


def _write_gif(path: Path, pictures: Iterator[Picture], frames_per_second: int) -> None:
    from PIL import Image

    images = (Image.fromarray(picture).quantize() for picture in pictures)
    duration = round(1000 / frames_per_second)  # milliseconds
    next(images).save(path, save_all=True, append_images=images, duration=duration, loop=0)


def _write_mp4(path: Path, pictures: Iterator[Picture], frames_per_second: int) -> None:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ConfigError(f"`path` is '{path}', which needs ffmpeg: pip install 'hyperrl[video]', or .gif") from error
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


def _random_actor(env: MetaEnv, seed: int) -> Actor:
    """Uniform actions from a generator of its own."""
    generator = torch.Generator(env.device).manual_seed(seed)

    def act(td: TensorDictBase) -> TensorDictBase:
        if env.num_actions is not None:
            action = torch.randint(env.num_actions, (env.num_envs,), generator=generator, device=env.device)
        else:
            low, high = env.action_spec.space.low, env.action_spec.space.high
            action = low + (high - low) * torch.rand(low.shape, generator=generator, device=env.device)
        return td.set(keys.ACTION, action)

    return act


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_FONT_SIZE)
