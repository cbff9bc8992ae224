"""Where an agent was in each episode, and what was believed of the goal: panels of the picture of a meta-episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperrl.experiments.behaviour.recording import Array, Recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# Okabe and Ito's colours, which all eyes tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
MOST_EPISODES = 6
_MOMENTS = 3  # of each episode whose belief is shown
_WIDE = 4  # width over height from which episodes lie above each other
Size = tuple[float, float]


def draw_paths(figure: FigureBase, recording: Recording, index: int) -> None:
    """Draw the paths of a task, episode by episode.

    Args:
        figure: where; of the size that `size_of_paths` gives.
        recording: what happened.
        index: which task.
    """
    draw: dict[str, Callable[[FigureBase, Recording, int], None]] = {
        "cells": _draw_cells, "torus": _draw_torus, "plane": _draw_planes, "hand": _draw_planes
    }  # fmt: skip
    draw[recording.info["plan"]["kind"]](figure, recording, index)


def size_of_paths(recording: Recording, index: int) -> Size | None:
    """Width and height in inches that paths need; none where nothing is drawn.

    Args:
        recording: what happened.
        index: which task.
    """
    plan, episodes = recording.info["plan"], len(shown_episodes(recording, index))
    if plan["kind"] == "cells":
        return (9.0, 1.0 * episodes + 0.7) if _is_wide(plan) else (2.0 * episodes + 1.0, 1.9 * _MOMENTS + 0.5)
    if plan["kind"] == "torus":
        return 9.0, 2.8
    if plan["kind"] in ("plane", "hand"):
        return 2.4 * episodes, 3.4
    return None


def shown_episodes(recording: Recording, index: int) -> list[tuple[int, slice]]:
    """Numbers, from 1, and steps of the episodes that are drawn: all, or some from the first to the last.

    Args:
        recording: what happened.
        index: which task.
    """
    episodes = list(enumerate(recording.episodes(index), 1))
    chosen = np.linspace(0, len(episodes) - 1, min(len(episodes), MOST_EPISODES)).round().astype(int)
    return [episodes[number] for number in chosen]


def _is_wide(plan: dict[str, Any]) -> bool:
    return plan["size"][0] > _WIDE * plan["size"][1]


def beliefs(recording: Recording) -> tuple[str, Array, Array] | None:
    """What is believed of cells: in words, values ``[N, T+1, G]``, and the cells ``[G, 2]``; none if nothing is.

    The agent's own prediction, if it has one, comes before the exact belief.

    Args:
        recording: what happened.
    """
    plan = recording.info["plan"]
    if "state_prediction" in recording:
        words = "predicted probability of the reward" if predicts_probabilities(recording) else "predicted reward"
        return words, recording["state_prediction"], np.array(plan["state_cells"])
    if "belief" in recording:
        return "exact belief", recording["belief"], np.array(plan["belief_cells"])
    return None


def predicts_probabilities(recording: Recording) -> bool:
    """Whether the agent's decoder gives each state a probability of being the goal.

    Args:
        recording: what happened.
    """
    return "state_prediction" in recording and recording.info["prediction"] in ("bernoulli", "categorical")


def _draw_cells(figure: FigureBase, recording: Recording, index: int) -> None:
    """Path so far, and belief, at some moments of each episode: episodes are columns, or rows where cells are wide."""
    episodes, plan = shown_episodes(recording, index), recording.info["plan"]
    wide = _is_wide(plan)
    moments = 1 if wide else _MOMENTS
    shape = (len(episodes), 1) if wide else (moments, len(episodes))
    grid = figure.subplots(*shape, squeeze=False)
    believed, image = beliefs(recording), None
    top = 1.0 if believed is None else float(believed[1][index].max())
    for column, (number, steps) in enumerate(episodes):
        for row in range(moments):
            axes = grid[column, 0] if wide else grid[row, column]
            end = steps.start + round((steps.stop - steps.start) * (row + 1) / moments)
            if believed is not None:
                image = _draw_belief(axes, plan["size"], believed[1][index, end], believed[2], top)
            if believed is not None and believed[0] != "exact belief" and "belief" in recording:
                _draw_possible(axes, np.array(plan["belief_cells"])[recording["belief"][index, end] > 0])
            _draw_cell_path(axes, recording, index, slice(steps.start, end))
            _draw_grid(axes, plan["size"])
            axes.set_aspect("auto" if wide else "equal")
            axes.set_title(f"episode {number}, step {end - steps.start}", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    if image is not None and believed is not None:
        figure.colorbar(image, ax=grid, label=believed[0], fraction=0.05, pad=0.01)


def _draw_grid(axes: Axes, size: list[int]) -> None:
    """Lines between cells."""
    for set_ticks, set_limits, cells in (
        (axes.set_xticks, axes.set_xlim, size[0]),
        (axes.set_yticks, axes.set_ylim, size[1]),
    ):
        set_ticks(())
        set_ticks([edge - 0.5 for edge in range(1, cells)], minor=True)
        set_limits(-0.5, cells - 0.5)
    axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="both", length=0)


def _draw_belief(axes: Axes, size: list[int], values: Array, cells: Array, top: float) -> Any:
    """Colours of the cells; what has no value stays white."""
    from matplotlib.colors import PowerNorm

    image = np.full((size[1], size[0]), np.nan)
    inside = (cells < size).all(1)  # numbers of cells that a hall does not have
    image[cells[inside, 1], cells[inside, 0]] = values[inside]
    # The root, as a belief that is spread over all cells is small everywhere.
    return axes.imshow(image.clip(0), origin="lower", cmap="Purples", norm=PowerNorm(0.5, 0, top or 1.0), aspect="auto")


def _draw_possible(axes: Axes, cells: Array) -> None:
    axes.plot(*cells.T, ".", color=BLACK, markersize=2.5, label="possible goal")


def _draw_cell_path(axes: Axes, recording: Recording, index: int, steps: slice) -> None:
    from matplotlib import patheffects

    goal, path = recording["task"][index, steps.start, :2], _path(recording, index, steps)
    outline = [patheffects.withStroke(linewidth=3, foreground="white")]
    axes.plot(*path.T, color=BLUE, linewidth=1.4, path_effects=outline, label="path")
    axes.plot(*goal, "*", color=GREEN, markeredgecolor=BLACK, markersize=13, label="goal", linestyle="none")
    axes.plot(*path[-1], "o", color=ORANGE, markeredgecolor=BLACK, markersize=6, label="agent", linestyle="none")


def _path(recording: Recording, index: int, steps: slice) -> Array:
    """Places from the start of an episode on, ``[n+1, 2]``."""
    return np.concatenate([recording["start"][index, steps][:1], recording["position"][index, steps]])


def _draw_torus(figure: FigureBase, recording: Recording, index: int) -> None:
    """How often cells were visited in each quarter of the steps, and where goals were collected."""
    from matplotlib import patheffects

    (width, height), length = recording.info["plan"]["size"], int(recording["length"][index])
    bounds = np.linspace(0, length, 5).round().astype(int)
    place, reward = recording["position"][index], recording["reward"][index]
    collected = reward > np.median(reward[:length])
    counts = [np.zeros((height, width)) for _ in bounds[1:]]
    for count, start, end in zip(counts, bounds, bounds[1:], strict=False):
        np.add.at(count, (place[start:end, 1].astype(int), place[start:end, 0].astype(int)), 1)
    grid = figure.subplots(1, len(counts))
    for axes, count, start, end in zip(grid, counts, bounds, bounds[1:], strict=False):
        image = axes.imshow(count, origin="lower", cmap="Purples", vmin=0, vmax=np.max(counts))
        cells, times = np.unique(place[start:end][collected[start:end]], axis=0, return_counts=True)
        for (x, y), number in zip(cells, times, strict=True):
            axes.plot(x, y, "*", color=GREEN, markeredgecolor=BLACK, markersize=13)
            outline = [patheffects.withStroke(linewidth=2.5, foreground="white")]
            axes.annotate(f"{number}", (x, y), (8, 5), textcoords="offset points", fontsize=9, path_effects=outline)
        axes.set(xticks=range(width), yticks=range(height))
        axes.set_title(f"steps {start + 1} to {end}: {times.sum()} goals", fontsize=9)
    figure.colorbar(image, ax=grid, label="visits (at stars: goals collected)", fraction=0.05, pad=0.01)


def _draw_planes(figure: FigureBase, recording: Recording, index: int) -> None:
    """The path of each episode, seen from above."""
    episodes, plan = shown_episodes(recording, index), recording.info["plan"]
    paths = _paths_seen(recording, index, [steps for _, steps in episodes])
    grid = figure.subplots(1, len(episodes), squeeze=False, sharex=True, sharey=True)[0]
    unit = f" ({plan['unit']})" if "unit" in plan else ""
    for number, (axes, (episode, _)) in enumerate(zip(grid, episodes, strict=True)):
        styles: tuple[tuple[str, str], ...] = ((BLUE, "-"), (VERMILLION, "--"))
        for (label, parts), (color, line) in zip(paths.items(), styles, strict=False):
            path = parts[number]
            axes.plot(*path.T, linewidth=1.2, color=color, linestyle=line, label=label)
            axes.plot(
                *path[0], "s", color=color, markersize=5, fillstyle="none", label="start" if line == "-" else None
            )
            end: dict[str, Any] = {"markeredgecolor": BLACK, "markersize": 6, "label": "end" if line == "-" else None}
            axes.plot(*path[-1], "o", color=color, **end)
        if plan["goal"]:
            axes.plot(
                *_goal(recording, index),
                marker="*",
                color=GREEN,
                markeredgecolor=BLACK,
                markersize=13,
                label="goal",
                linestyle="none",
            )
        axes.set_xlabel(f"x{unit}")
        axes.set_title(f"episode {episode}", fontsize=9)
        axes.locator_params(nbins=4, integer=plan.get("unit") == "cells")
    grid[0].set_ylabel(f"y{unit}")
    goals = [_goal(recording, index)[None]] if plan["goal"] else []
    places = np.concatenate([*(path for parts in paths.values() for path in parts), *goals])
    extent = np.ptp(places, axis=0)
    if extent.max() <= _WIDE * extent.min():  # a square; a long maze would be a line in it
        centre, half = (places.min(0) + places.max(0)) / 2, 0.55 * extent.max()
        x, y = (np.array([-half, half]) + middle for middle in centre)
        grid[0].set(xlim=x, ylim=y)
        for axes in grid:
            axes.set_aspect("equal")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def _paths_seen(recording: Recording, index: int, episodes: list[slice]) -> dict[str, list[Array]]:
    """Paths of the agent in each episode; for an arm, those of hand and object."""
    if recording.info["plan"]["kind"] != "hand":
        return {"path": [_path(recording, index, steps) for steps in episodes]}
    seen = recording["observation"][index]
    # An observation shows places of the hand, the fingers' opening, and the place of the object.
    after = [seen[steps.start + 1 : steps.stop + 1] for steps in episodes]
    return {"hand": [part[:, :2] for part in after], "object": [part[:, 4:6] for part in after]}


def _goal(recording: Recording, index: int) -> Array:
    """Coordinates of the goal ``[2]``."""
    task = recording["task"][index, 0]
    return task[-3:-1] if recording.info["plan"]["kind"] == "hand" else task[:2]
