"""Curves and bars of analyses, and the numbers beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hyperrl.experiments.comparison.statistics import mean_band

Curves = Mapping[str, NDArray[np.float64]]
"""Values ``[agents, steps]`` by the name of the model."""

# Okabe and Ito's colours, which colour-blind people can tell apart; line styles are for print in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#F0E442")
STYLES = ("-", "--", "-.", ":")


def draw_curves(
    curves: Curves,
    path: Path,
    *,
    title: str,
    label: str,
    step: str = "step",
    log: bool = False,
    ci: float = 68.0,
    limits: tuple[float | None, float | None] = (None, None),
) -> None:
    """Draws a line per model, the mean over agents, and a band, the bootstrap interval of that mean.

    The numbers go to a CSV file of the same name: one row per model, seed and step.

    Args:
        curves: what is drawn.
        path: the picture, in a format that its suffix names.
        title: above the picture.
        label: of the vertical axis.
        step: of the horizontal axis.
        log: whether the vertical axis is logarithmic; what is 0 has no place there.
        ci: percent of bootstrap means that lie in the band.
        limits: lower and upper end of the vertical axis; none for where the data end.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log" if log else "linear")
    for index, (name, values) in enumerate(curves.items()):
        color, style = COLORS[index % len(COLORS)], STYLES[(index + index // len(COLORS)) % len(STYLES)]
        _draw_curve(axes, values, ci, label=name, color=color, linestyle=style)
    axes.set(xlabel=step, ylabel=label, ylim=limits)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    agents = max(len(values) for values in curves.values())
    caption = f"{agents} agents, {ci:g} % interval" if agents > 1 else "1 agent"
    figure.legend(title=caption, loc="outside lower center", ncols=min(4, len(curves)), fontsize=8, title_fontsize=8)
    _save(figure, path)
    rows = (
        (name, seed, t, _number(value))
        for name, values in curves.items()
        for seed, curve in enumerate(values)
        for t, value in enumerate(curve)
    )
    write_rows(path.with_suffix(".csv"), ("model", "seed", "t", "value"), rows)


def _draw_curve(axes: Axes, values: NDArray[np.float64], ci: float, **looks: Any) -> None:
    """One model's line and, of several agents, their band."""
    steps, mean = np.arange(values.shape[1]), values.mean(0)
    smallest = 0 if axes.get_yscale() == "log" else -np.inf
    drawn = mean > smallest
    # From a point between two gaps no line leads anywhere.
    marker = None if drawn[1:].all() else "."
    axes.plot(steps, np.where(drawn, mean, np.nan), marker=marker, markersize=3, linewidth=1.6, **looks)
    if len(values) > 1 and drawn.any():
        low, high = np.full((2, len(steps)), -np.inf)
        low[drawn], high[drawn] = mean_band(values[:, drawn], ci)
        axes.fill_between(steps, low, high, where=low > smallest, color=looks["color"], alpha=0.2, linewidth=0)


def draw_final(curves: Curves, path: Path, *, title: str, label: str, log: bool = False, ci: float = 68.0) -> None:
    """Draws the last value of every curve as bars, the largest mean first; each agent is a dot.

    The numbers go to a CSV file of the same name: one row per model and seed, in that order.

    Args:
        curves: what is drawn.
        path: the picture, in a format that its suffix names.
        title: above the picture.
        label: of the vertical axis.
        log: whether the vertical axis is logarithmic.
        ci: percent of bootstrap means that lie between the ends of an error bar.
    """
    last = {name: values[:, -1] for name, values in curves.items()}
    last = dict(sorted(last.items(), key=lambda item: -np.nan_to_num(item[1].mean())))
    figure = Figure(figsize=(1.5 + 1.3 * len(last), 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(last.items()):
        color = COLORS[list(curves).index(name) % len(COLORS)]
        axes.bar(place, values.mean(), color=color, alpha=0.75, width=0.6)
        axes.plot(place + np.linspace(-0.12, 0.12, len(values)), values, "o", color="black", markersize=3)
        if len(values) > 1 and np.isfinite(values).all():
            low, high = (float(end[0]) for end in mean_band(values[:, None], ci))
            axes.plot([place, place], [low, high], color="black", linewidth=1.5)
    if log:
        axes.set_yscale("log")
    axes.set_xticks(range(len(last)), list(last))
    axes.set(ylabel=f"{label}, last step")
    axes.set_title(title, fontsize=11)
    _save(figure, path)
    rows = ((name, seed, _number(value)) for name, values in last.items() for seed, value in enumerate(values))
    write_rows(path.with_suffix(".csv"), ("model", "seed", "value"), rows)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _number(value: float) -> str:
    """A number with enough digits to be read back in fp32; empty where there is none."""
    return f"{value:.9g}" if np.isfinite(value) else ""


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
