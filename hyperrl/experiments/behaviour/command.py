"""``hyperrl video``: play and record a meta-episode, or read a recording, and draw it as a film or a still."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from hyperrl import configuration
from hyperrl.callbacks import adaptation_table
from hyperrl.envs import env_ids, landmarks
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import TrainedAgent, load_agent, telling_env
from hyperrl.experiments.behaviour.recorder import record
from hyperrl.experiments.behaviour.recording import Recording
from hyperrl.experiments.behaviour.still import draw_still
from hyperrl.experiments.video import check_video, moments, with_caption, write_video
from hyperrl.seeding import derive_seed

FILMS, STILLS, RECORDINGS = (".mp4", ".gif"), (".png", ".pdf", ".svg"), (".npz",)


def video(
    source: str,
    output: list[str] | str = "meta_episode.png",
    tasks: int = 1,
    index: int = 0,
    seed: int = 0,
    stage: Literal["test", "val"] = "test",
    sampled: bool = False,
    frames_per_second: int = 10,
    pictures: bool = False,
    env_options: dict[str, Any] | None = None,
) -> Recording:
    """Plays a meta-episode and draws it: as a film, as a still of all that happened, as a recording to redraw.

    Prints the return of each episode, and the successes where the environment reports them.

    Args:
        source: a checkpoint; the directory of a bundle; a recording (.npz), which is drawn again; or an environment
            id, in which actions are random.
        output: what is written, by its ending: a film (.mp4, .gif), a still (.png, .pdf, .svg) with its numbers as
            CSV, or a recording (.npz). Several are separated by blanks or commas.
        tasks: number of tasks, over which returns are averaged.
        index: which of them is drawn, counted from 0.
        seed: seed of the tasks, and of whatever is drawn to act on.
        stage: tasks of the test or of the validation, which differ where tasks were held out.
        sampled: draw actions from the policy, instead of its mode.
        frames_per_second: speed of films.
        pictures: keep pictures in the recording, so that films can be made of it; they take room.
        env_options: options of the environment that differ from the agent's, or from the id's.

    Returns:
        What was played.

    Raises:
        ConfigError: an argument is wrong.
    """
    names = [output] if isinstance(output, str) else output
    outputs = [Path(name) for part in names for name in part.split(",")]
    _check(outputs, tasks, index, frames_per_second)
    films = [path for path in outputs if path.suffix in FILMS]
    if source.endswith(RECORDINGS):
        changed = {"--tasks": tasks != 1, "--seed": seed != 0, "--stage": stage != "test", "--sampled": sampled}
        changed |= {"--env_options": bool(env_options)}
        for name in (name for name, given in changed.items() if given):
            raise ConfigError(f"{name} is given and {source} is a recording; expected a checkpoint, to play anew")
        recording = Recording.read(source)
        recording.check_index(index)
    else:
        if index >= tasks:
            raise ConfigError(f"index is {index}; expected a number from 0 to {tasks - 1}, the number of a task")
        pictures_of = index if films or pictures else None
        recording = play(source, tasks, seed, stage, sampled, pictures_of, env_options)
    if films and "pictures" in recording and recording.info["pictures_of"] != index:
        shown = recording.info["pictures_of"]
        raise ConfigError(f"index is {index} and {source} has pictures of task {shown}; expected index {shown}")
    for path in outputs:
        if path in films:
            write_video(path, (with_caption(moment) for moment in moments(recording)), frames_per_second)
        elif path.suffix in STILLS:
            draw_still(recording, path, index)
        else:
            (recording if pictures else recording.without("pictures")).write(path)
    _report(recording, outputs)
    return recording


def play(
    source: str,
    tasks: int = 1,
    seed: int = 0,
    stage: str = "test",
    sampled: bool = False,
    pictures_of: int | None = None,
    env_options: dict[str, Any] | None = None,
) -> Recording:
    """Records a meta-episode of a trained agent, or of random actions.

    Args:
        source: a checkpoint, a bundle or an environment id.
        tasks: number of tasks.
        seed: seed of the tasks, and of whatever is drawn to act on.
        stage: ``test`` or ``val``, which differ where tasks were held out.
        sampled: whether actions are drawn from the policy, in the place of its mode.
        pictures_of: of which task pictures are kept.
        env_options: options of the environment that differ from the agent's, or from the id's.

    Raises:
        ConfigError: there is no such source, or the environment has no pictures.
    """
    options, agent = env_options or {}, _agent(source)
    seeds = {purpose: derive_seed(seed, f"video {purpose}") for purpose in ("tasks", "actions")}
    if agent is None:
        env = telling_env(source, tasks, seed=seeds["tasks"], **options)
        about: dict[str, Any] = {"env": source, "player": "random actions", "options": options}
        about["landmarks"] = {} if options else landmarks(source)
    else:
        env = agent.make_env(tasks, seed=seeds["tasks"], stage=stage, **options)
        about = {"env": agent.data.env_id, "player": agent.name, "options": {**agent.data.eval_options, **options}}
        about |= {"frames": agent.frames, "source": source, "stage": stage}
        about["landmarks"] = {} if options else agent.data.landmarks
    learner = None if agent is None else agent.learner
    try:
        about["seed"] = seed
        return record(env, learner, seed=seeds["actions"], sampled=sampled, pictures_of=pictures_of, about=about)
    except RuntimeError as error:
        if "picture" not in str(error):  # neither a family without pictures, nor OpenGL that does not work
            raise
        raise ConfigError(f"{source}: {error}") from error
    finally:
        env.close(raise_if_closed=False)


def _agent(source: str) -> TrainedAgent | None:
    """The agent; none for an environment id."""
    if Path(source).exists() or source.endswith(".ckpt"):
        return load_agent(source)
    name = source.removeprefix("hyperrl/")
    if name not in env_ids() and ":" not in name:
        hint = configuration.nearest(name, env_ids())
        raise ConfigError(
            f"source is {source}; expected a checkpoint, a bundle, a recording or an environment id{hint}"
        )
    return None


def _check(outputs: list[Path], tasks: int, index: int, frames_per_second: int) -> None:
    """Refuse what would fail after the meta-episode was played."""
    known = (*FILMS, *STILLS, *RECORDINGS)
    for path in outputs:
        if path.suffix not in known:
            raise ConfigError(f"output is {path}; expected a name that ends in {', '.join(known)}")
        if path.suffix in FILMS:
            check_video(path, frames_per_second)
    if tasks < 1:
        raise ConfigError(f"tasks is {tasks}; expected at least 1")
    if index < 0:
        raise ConfigError(f"index is {index}; expected 0 or more")


def _report(recording: Recording, outputs: list[Path]) -> None:
    """Print returns, successes and what was written."""
    console, number = Console(), f"{len(recording)} tasks" if len(recording) > 1 else "1 task"
    played = f"{recording.info.get('player')} on {recording.info.get('env')}, {number}"
    console.print(played, returns_table(recording), sep="\n", highlight=False, markup=False)
    for path in outputs:
        console.print(f"written     {path}", markup=False, highlight=False, soft_wrap=True)


def returns_table(recording: Recording) -> Table | None:
    """The adaptation as a table: means over the tasks, with their standard error if there are several.

    Args:
        recording: what happened.
    """
    returns, successes = recording.returns, recording.successes
    metrics = {f"test/return_episode_{k}": value for k, value in enumerate(returns.mean(0), 1)}
    if successes is not None:
        metrics |= {f"test/success_episode_{k}": value for k, value in enumerate((successes > 0).mean(0), 1)}
    if len(recording) > 1:
        metrics["test/return_sem"] = returns.sum(1).std(ddof=1) / len(recording) ** 0.5
    table = adaptation_table(metrics, "test", recording.info.get("landmarks", {}))
    if table is not None:
        table.title = None  # stages belong to training
    return table
