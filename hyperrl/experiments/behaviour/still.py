"""The picture of a recorded meta-episode: paths and beliefs, and everything over time; and its numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperrl.experiments.behaviour.paths import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    draw_paths,
    predicts_probabilities,
    size_of_paths,
)
from hyperrl.experiments.behaviour.recording import Array, Recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

_WIDTH, _PANEL, _TITLE = 9.0, 1.6, 0.6  # inches
_DPI = 120
_UP = 2  # the direction in tasks of T-mazes
Panel = Callable[["Axes", Recording, int], None]


def draw_still(recording: Recording, path: str | Path, index: int = 0) -> None:
    """Draw one task of a recording, and write its numbers to ``<name>.csv`` and ``<name>_returns.csv`` beside it.

    Args:
        recording: what happened.
        path: the picture, in a format that its suffix names; its folder is made if it is missing.
        index: which task.

    Raises:
        ConfigError: there is no such task.
    """
    from matplotlib.figure import Figure

    recording.check_index(index)
    path = Path(path)
    panels, paths = _panels(recording), size_of_paths(recording, index)
    width, height = max(_WIDTH, paths[0] if paths else 0.0), _PANEL * len(panels) + 0.4
    figure = Figure(figsize=(width, height + _TITLE + (paths[1] if paths else 0.0)), layout="constrained")
    figure.suptitle(title(recording, index), fontsize=10)
    over_time: FigureBase = figure
    if paths:
        upper, over_time = _divided(figure, 2, 1, height_ratios=[paths[1], height])
        draw_paths(upper, recording, index)
    if recording.info["episodes_per_task"] > 1:
        over_time, bars = _divided(over_time, 1, 2, width_ratios=[4, 1])
        _draw_returns(bars.subplots(), recording, index)
    for axes, draw in zip(over_time.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True):
        draw(axes, recording, index)
        _draw_borders(axes, recording, index)
    axes.set(xlabel="step of the meta-episode", xlim=(0, int(recording["length"][index])))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    write_numbers(recording, path.with_suffix(".csv"), index)


def _divided(figure: FigureBase, rows: int, columns: int, **ratios: Any) -> list[FigureBase]:
    """Parts of a figure."""
    return list(figure.subfigures(rows, columns, **ratios))


def title(recording: Recording, index: int) -> str:
    """Who played what.

    Args:
        recording: what happened.
        index: which task.
    """
    info = recording.info
    frames = f" after {info['frames']:,} frames" if info.get("frames") else ""
    task = ", ".join(f"{value:.3g}" for value in recording["task"][index, 0][:4]) if "task" in recording else ""
    played = f"{info.get('player', 'agent')} on {info.get('env', 'an environment')}{frames}"
    words = f"task ({task})" if task and info["plan"]["kind"] != "torus" else f"task {index}"
    return f"{played}\n{words}, return {recording.returns[index].sum():.2f}"


def _panels(recording: Recording) -> list[Panel]:
    """What is drawn over time, as far as it is known."""
    kind = recording.info["plan"]["kind"]
    drawn: dict[Panel, bool] = {
        _draw_corridor: kind == "corridor",
        _draw_x: kind == "side",
        _draw_height: kind == "side",
        _draw_rewards: True,
        _draw_entropy: "belief" in recording or predicts_probabilities(recording),
        _draw_latent: "latent" in recording,
        _draw_mean: "latent_mean" in recording,
        _draw_variance: "latent_mean" in recording,
    }
    return [panel for panel, known in drawn.items() if known]


def _draw_borders(axes: Axes, recording: Recording, index: int) -> None:
    """Dashed lines where an episode has ended and another follows."""
    for steps in recording.episodes(index)[:-1]:
        axes.axvline(steps.stop, color="0.6", linestyle="--", linewidth=0.8, zorder=0)


def _steps(recording: Recording, index: int) -> Array:
    """Numbers of the steps, from 1."""
    return np.arange(1, int(recording["length"][index]) + 1)


def _draw_rewards(axes: Axes, recording: Recording, index: int) -> None:
    steps = _steps(recording, index)
    axes.plot(steps, recording["reward"][index, : len(steps)], color=BLUE, drawstyle="steps-mid", label="reward")
    if "predicted_reward" in recording:
        predicted = recording["predicted_reward"][index, : len(steps)]
        axes.plot(steps, predicted, color=ORANGE, linestyle=":", label="as predicted")
    axes.set_ylabel("reward")
    handles, labels = axes.get_legend_handles_labels()
    if "value" in recording:
        right = axes.twinx()
        value = recording["value"][index, : len(steps)] * recording.info["value_unit"]
        handles += right.plot(steps - 1, value, color=VERMILLION, linestyle="--", linewidth=1.2)
        labels.append("value, before the step")
        right.set_ylabel("value\n(discounted return)")
    axes.legend(handles, labels, **_OUTSIDE)


# Above the panel, where nothing can be hidden.
_OUTSIDE: dict[str, Any] = {
    "loc": "lower right", "bbox_to_anchor": (1.0, 0.97), "ncols": 4, "frameon": False, "fontsize": 8
}  # fmt: skip


def _draw_entropy(axes: Axes, recording: Recording, index: int) -> None:
    """How much is not known of the task: the entropy of beliefs, normalised where they are predictions."""
    length = int(recording["length"][index]) + 1
    if "belief" in recording:
        axes.plot(_entropy(recording["belief"][index, :length]), color=BLACK, linestyle="--", label="exact belief")
    if predicts_probabilities(recording):
        axes.plot(_entropy(recording["state_prediction"][index, :length]), color=PURPLE, label="as predicted")
    axes.set(ylabel="entropy of\nthe belief (nats)")
    axes.set_ylim(bottom=0)
    axes.legend(**_OUTSIDE)


def _entropy(values: Array) -> Array:
    """Entropies ``[T+1]`` of values ``[T+1, G]`` of at least 0, which are normalised."""
    share = values / values.sum(-1, keepdims=True).clip(1e-12)
    return -(share * np.log(share.clip(1e-12))).sum(-1)


def _draw_lines(axes: Axes, values: Array, label: str) -> None:
    """Every component ``[T+1, L]``, and in black the mean of all."""
    styles = zip(
        cycle((BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)), cycle(("-", "-", "--", "-.", ":")), strict=False
    )
    for component, (color, line) in zip(values.T, styles, strict=False):
        axes.plot(component, color=color, linestyle=line, linewidth=0.9)
    axes.plot(values.mean(-1), color=BLACK, linewidth=1.8, label="mean of the components")
    axes.set_ylabel(label)
    axes.legend(**_OUTSIDE)


def _draw_latent(axes: Axes, recording: Recording, index: int) -> None:
    _draw_lines(axes, recording["latent"][index, : int(recording["length"][index]) + 1], "latent")


def _draw_mean(axes: Axes, recording: Recording, index: int) -> None:
    _draw_lines(axes, recording["latent_mean"][index, : int(recording["length"][index]) + 1], "mean of\nthe latent")


def _draw_variance(axes: Axes, recording: Recording, index: int) -> None:
    log_variance = recording["latent_log_variance"][index, : int(recording["length"][index]) + 1]
    _draw_lines(axes, np.exp(log_variance), "variance of\nthe latent")
    axes.set_yscale("log")


def _draw_x(axes: Axes, recording: Recording, index: int) -> None:
    _draw_coordinate(axes, recording, index, 0, "x (m)")


def _draw_height(axes: Axes, recording: Recording, index: int) -> None:
    _draw_coordinate(axes, recording, index, 1, "height (m)")


def _draw_coordinate(axes: Axes, recording: Recording, index: int, which: int, label: str) -> None:
    """A coordinate over time; where an episode begins, the line is interrupted."""
    for steps in recording.episodes(index):
        place = np.append(recording["start"][index, steps.start, which], recording["position"][index, steps, which])
        axes.plot(range(steps.start, steps.stop + 1), place, color=BLUE)
    axes.set_ylabel(label)


def _draw_corridor(axes: Axes, recording: Recording, index: int) -> None:
    """The place in the corridor, where the indicator was shown, and what was decided at the end."""
    _draw_coordinate(axes, recording, index, 0, "cell")
    seen = recording["observation"][index, : int(recording["length"][index]), 1]
    marked: set[str] = set()
    for step in seen.nonzero()[0]:
        up = seen[step] > 0
        label = f"indicator: {'up' if up else 'down'}"
        style: dict[str, Any] = {
            "marker": "^" if up else "v",
            "color": SKY,
            "label": None if label in marked else label,
        }
        axes.plot(
            step, recording["start"][index, step, 0], linestyle="none", markeredgecolor=BLACK, markersize=9, **style
        )
        marked.add(label)
    for steps in recording.episodes(index):
        last = steps.stop - 1
        right = recording["reward"][index, last] > 0
        label = f"decision: {'right' if right else 'wrong'}"
        style = {"marker": "o" if right else "X", "color": GREEN if right else VERMILLION}
        place = recording["position"][index, last, 0]
        shown = None if label in marked else label
        axes.plot(
            steps.stop,
            place,
            linestyle="none",
            markeredgecolor=BLACK,
            markersize=8,
            clip_on=False,
            label=shown,
            **style,
        )
        marked.add(label)
    axes.legend(**_OUTSIDE)


def _draw_returns(axes: Axes, recording: Recording, index: int) -> None:
    """A bar per episode: of this task, or the mean over all with its standard error, and this task's as a mark."""
    returns = recording.returns
    number, episodes = returns.shape
    x = np.arange(1, episodes + 1)
    if number == 1:
        axes.bar(x, returns[0], color=BLUE)
    else:
        error = returns.std(0, ddof=1) / np.sqrt(number)
        axes.bar(x, returns.mean(0), yerr=error, capsize=3, color=SKY, label=f"mean ± s.e., n = {number}")
        axes.plot(x, returns[index], "D", color=BLACK, markersize=5, label="this task")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set(xlabel="episode", ylabel="return", xticks=x if episodes <= 10 else x[:: episodes // 5])


def write_numbers(recording: Recording, path: Path, index: int) -> None:
    """Write the numbers of the picture: a row per step of one task, and in a second file a row per task and episode.

    Args:
        recording: what happened.
        path: of the first file, which ends in .csv; the other one is ``<name>_returns.csv``.
        index: which task.
    """
    length = int(recording["length"][index])
    columns: dict[str, Array] = {"step": _steps(recording, index), "episode": recording.episode[index, :length] + 1}
    for name in (name for name in _TOLD if name in recording):
        # States are those before the step.
        rows = recording[name][index, :length].reshape(length, -1)
        columns |= {name if rows.shape[1] == 1 else f"{name}_{k}": row for k, row in enumerate(rows.T)}
    if recording.info["plan"]["kind"] in ("corridor", "hand"):
        shown = recording["observation"][index, :length]
        columns |= {f"observation_{k}": row for k, row in enumerate(shown.T)}
    _write_csv(path, columns)
    returns, successes = recording.returns, recording.successes
    task, episode = np.indices(returns.shape)
    table = {"task": task.ravel(), "episode": episode.ravel() + 1, "return": returns.ravel()}
    if successes is not None:
        table["successful_steps"] = successes.ravel()
    _write_csv(path.with_name(f"{path.stem}_returns.csv"), table)


# What is drawn; observations only where places are taken from them.
_TOLD = (
    "action", "reward", "predicted_reward", "value", "success", "task", "start", "position", "belief",
    "state_prediction", "latent", "latent_mean", "latent_log_variance",
)  # fmt: skip


def _write_csv(path: Path, columns: dict[str, Array]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([f"{value:.6g}" if isinstance(value, np.floating) else int(value) for value in row])
