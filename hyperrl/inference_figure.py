"""A picture per checkpoint that shows whether inference works: what is known of a task at each of its steps."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hyperrl.callbacks import episode_returns
from hyperrl.tracking import find_logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn in one panel: its axis, and the lines by name.
PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("KL from the belief one step earlier", {"kl": "posterior"}),
    (
        "error of the next reward",
        {"reward_error": "as the belief predicts", "reward_error_of_prior": "as the prior does"},
    ),
    ("error of the next state", {"state_error": "as the belief predicts"}),
    ("error of the task", {"task_error": "as the belief predicts"}),
)


class Learner(Protocol):
    """What the figure needs of the LightningModule."""

    frames: int
    inference_profile: dict[str, list[float]]
    """Means over fresh tasks at each step, by the names in `PANELS`; empty where nothing is inferred."""


class InferenceFigure(Callback):
    """Draw the profile of each validation, and write its numbers beside it.

    While training the files are in the run's directory, and artifacts of its run; after ``hyperrl validate`` they are
    beside the checkpoint.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, where something is inferred."""
        learner = cast(Learner, pl_module)
        logger = find_logger(trainer)
        if not learner.inference_profile or not trainer.is_global_zero:
            return
        if logger is None and trainer.state.fn != "validate":
            return
        directory = logger.run_dir if logger is not None else Path(str(trainer.ckpt_path)).parent
        path = directory / f"inference_{learner.frames:010d}.png"
        episodes = len(episode_returns(trainer.callback_metrics, "val"))
        draw_profile(learner.inference_profile, path, episodes, f"Inference after {learner.frames:,} frames")
        if logger is not None:
            for file in (path, path.with_suffix(".csv")):
                logger.log_artifact(file)
        else:
            trainer.print(f"inference   {path}")


def draw_profile(profile: Mapping[str, Sequence[float]], path: Path, episodes: int, title: str) -> None:
    """Draw one panel per quantity against the step of the task, and write the numbers to a CSV file beside it.

    Args:
        profile: Means over tasks at each step, by the names in `PANELS`. What has one entry more than there are
            transitions starts before the first of them, at step 0; the errors of transitions start at step 1.
        path: The picture, in a format that its suffix names.
        episodes: Episodes per task, whose borders are drawn.
        title: Above the picture.
    """
    from matplotlib.figure import Figure  # a run that infers nothing does not wait for it

    horizon = max(map(len, profile.values())) - 1
    drawn = [(label, lines) for label, lines in PANELS if lines.keys() & profile.keys()]
    figure = Figure(figsize=(4.6 * len(drawn), 3.4), layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (label, lines) in zip(panels, drawn, strict=True):
        for name, line in lines.items():
            if values := profile.get(name):
                axes.plot(range(horizon + 1 - len(values), horizon + 1), values, label=line)
        axes.set(xlabel="step of the task", ylabel=label, xlim=(0, horizon))
        if axes.dataLim.ymin >= 0:  # a Gaussian likelihood may be above 1, and its error below 0
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(fontsize=8)
        _draw_episodes(axes, horizon, episodes)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    _write_numbers(profile, path.with_suffix(".csv"), horizon)


def _draw_episodes(axes: Axes, horizon: int, episodes: int) -> None:
    """Dashed lines where episodes of equal length begin."""
    for episode in range(1, episodes):
        axes.axvline(horizon * episode / episodes, color="0.7", linestyle="--", linewidth=1)


def _write_numbers(profile: Mapping[str, Sequence[float]], path: Path, horizon: int) -> None:
    """One row per step, and a column per quantity."""
    columns = [[None] * (horizon + 1 - len(values)) + list(values) for values in profile.values()]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *profile])
        writer.writerows(zip(itertools.count(), *columns, strict=False))
