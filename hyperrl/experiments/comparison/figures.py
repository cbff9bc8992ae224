"""Pictures of comparisons: learning curves, adaptation curves and bars, each with its numbers as CSV beside it."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.comparison import Comparison, Curve
from hyperrl.experiments.comparison.runs import Floats
from hyperrl.experiments.comparison.tables import make_rows

# Okabe and Ito's palette for all kinds of colour vision, without its yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), "-", "--")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FORMATS = (".png", ".pdf", ".svg")
_CROWD = 4  # from so many models on, bands are drawn lighter
_DPI = 130
_TEXT_HEIGHT = 0.05  # of a name, as a share of the panel


class Look(NamedTuple):
    """How a model is drawn in all panels."""

    color: str
    linestyle: str | tuple[int, tuple[int, ...]]
    marker: str


def check_picture(option: str, path: Path) -> None:
    """Refuses files that are no pictures; the numbers beside a picture end in .csv.

    Raises:
        ConfigError: the name ends in something else than a picture's.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{option} is {path}; expected a file that ends in {', '.join(FORMATS)}")


def looks(count: int) -> list[Look]:
    """A look for each of several models, told apart by line and marker, too; after eight, line styles move on."""
    return [
        Look(COLOURS[index % 8], LINES[(index + index // 8) % 8], MARKERS[(index + index // 8) % 8])
        for index in range(count)
    ]


def draw_comparison(
    comparison: Comparison, path: Path, title: str = "", players: Mapping[str, float] | None = None
) -> None:
    """Draws learning curves and, where a task has several episodes, adaptation curves at their right.

    Args:
        comparison: what is drawn.
        path: the picture; the numbers go to a file of the same name that ends in .csv.
        title: above the picture; the environment by default.
        players: further returns to draw as lines, by name.
    """
    curves = {choice.label: comparison.curve(choice) for choice in comparison.choices}
    adaptations = {choice.label: comparison.adaptation(choice) for choice in comparison.choices}
    adapting = {label: curve for label, curve in adaptations.items() if curve is not None and len(curve.x) > 1}
    landmarks = {**comparison.landmarks, **(players or {})}
    ratios = (2, 1) if adapting else (1,)
    figure = Figure(figsize=(12 if adapting else 8, 4.6), layout="constrained")
    panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    styles = dict(zip(curves, looks(len(curves)), strict=True))
    for label, curve in curves.items():
        _draw_curve(panels[0], curve, styles[label], len(curves), _legend(comparison, label))
    draw_landmarks(panels[0], landmarks)
    panels[0].xaxis.set_major_formatter(lambda frames, _: f"{frames / 1e6:g}")
    panels[0].set(xlabel="environment frames (millions)", ylabel=_unit(comparison.settings.metric))
    panels[0].set_title(title or comparison.env)
    for (label, curve), shift in zip(adapting.items(), sideways(adapting.values()), strict=True):
        _draw_curve(panels[-1], curve, styles[label], len(curves), marker=styles[label].marker, shift=shift)
    if adapting:
        panels[1].set(xlabel="episode of a task", ylabel="return of the episode", title=_adaptation_title(comparison))
        panels[1].update_datalim([(1, 0)])  # small differences shall look small
        panels[1].autoscale_view()
        panels[1].set_xticks(range(1, max(len(curve.x) for curve in adapting.values()) + 1))
    _finish(figure, panels, caption(comparison), path)
    rows = [*_rows_of("learning", comparison, curves), *_rows_of("adaptation", comparison, adapting)]
    rows += [("landmark", name, "", "", repr(value), "", "") for name, value in landmarks.items()]
    write_numbers(path.with_suffix(".csv"), rows)


def sideways(curves: Collection[Curve]) -> Floats:
    """How far each of several models moves to a side, in episodes, so that error bars do not hide one another."""
    reach = min(0.15, 0.04 * (len(curves) - 1)) if any(np.isfinite(curve.low).any() for curve in curves) else 0
    return np.linspace(-reach, reach, len(curves))


def _legend(comparison: Comparison, label: str) -> str:
    choice = next(choice for choice in comparison.choices if choice.label == label)
    chosen = f", {choice.name}" if choice.name else ""
    return f"{label}{'' if choice.is_complete else '*'}{chosen} (n = {len(choice.runs)})"


def _unit(metric: str) -> str:
    return "return of a task (sum over its episodes)" if metric.endswith("/return") else metric


def _adaptation_title(comparison: Comparison) -> str:
    return "adaptation (test)" if comparison.adapts_in == "test" else "adaptation at the best validation"


def caption(comparison: Comparison) -> str:
    """What the lines and bands mean."""
    settings, counts = comparison.settings, {len(choice.runs) for choice in comparison.choices}
    parts = []
    if max(counts) > 1:
        parts.append(f"line: mean over n runs; band: {settings.percent:g} % bootstrap interval of it")
        # How likely a sample of the lowest run alone is; where that is more than the tail, it is the interval's end.
        ranges = [n for n in counts if n > 1 and n**-n >= 0.5 - settings.percent / 200]
        if ranges:
            parts[-1] += f", which is their range for n up to {max(ranges)}"
    if 1 in counts and not settings.paper:
        parts.append("one run: band of one standard error over its tasks")
    if settings.smoothing:
        parts.append(f"smoothed: trailing mean over {settings.smoothing:.0%} of the points".replace("%", " %"))
    if not all(choice.is_complete for choice in comparison.choices):
        parts.append("*: stopped early")
    return "; ".join(parts)


def _draw_curve(
    axes: Axes, curve: Curve, look: Look, count: int, label: str = "", marker: str = "", shift: float = 0
) -> None:
    """Draws a line with its band, or with bars where it has markers."""
    x = curve.x + shift
    axes.plot(x, curve.values, label=label, color=look.color, linestyle=look.linestyle, marker=marker, markersize=5)
    if marker and count > 1:
        errors = curve.values - curve.low, curve.high - curve.values
        axes.errorbar(x, curve.values, errors, fmt="none", color=look.color)
    elif not np.isnan(curve.low).all():
        alpha = 0.22 if count < _CROWD else 0.12
        axes.fill_between(x, curve.low, curve.high, color=look.color, alpha=alpha, linewidth=0)


def draw_landmarks(axes: Axes, landmarks: Mapping[str, float], side: Literal["left", "right"] = "right") -> None:
    """Known returns as thin lines with their names at one side; lines that are too near for two texts share one.

    Args:
        axes: where; what else is drawn there is drawn already.
        landmarks: returns by name; an underscore is shown as a blank.
        side: where the names stand.
    """
    axes.margins(y=0.09)  # for the name of the lowest line
    players: dict[float, list[str]] = {}
    for name, value in sorted(landmarks.items(), key=lambda landmark: landmark[1]):
        players.setdefault(value, []).append(name.replace("_", " "))
        axes.axhline(value, color="0.6", linestyle=":", linewidth=1, zorder=0)
    low, high = axes.get_ylim()
    groups: list[list[float]] = []
    for value in players:
        if groups and value - groups[-1][-1] < _TEXT_HEIGHT * (high - low):
            groups[-1].append(value)
        else:
            groups.append([value])
    place, sign = {"left": (0.0, 1), "right": (1.0, -1)}[side]
    for group in groups:
        below = group is groups[0] and len(groups) > 1
        axes.annotate(
            ", ".join(f"{', '.join(players[value])} {value:.1f}" for value in group),
            (place, group[0] if below else group[-1]), xycoords=("axes fraction", "data"),
            xytext=(4 * sign, -10 if below else 3), textcoords="offset points", ha=side,
            fontsize=8, color="0.25", zorder=1.9,  # behind the curves
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip


def _finish(figure: Figure, panels: Iterable[Axes], caption: str, path: Path) -> None:
    """Adds legend and caption, and writes the file."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside lower center", ncols=4, frameon=False, handlelength=3.2, title=caption or None)
    legend.get_title().set(fontsize=8, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def draw_bars(comparison: Comparison, path: Path, title: str = "", players: Mapping[str, float] | None = None) -> None:
    """Draws a panel of bars per quantity, mean and interval, lowest first.

    Args:
        comparison: what is drawn.
        path: the picture; the numbers go to a file of the same name that ends in .csv.
        title: above the picture; the environment by default.
        players: further returns to draw as lines, by name.
    """
    rows = make_rows([comparison])
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    styles = dict(zip([choice.label for choice in comparison.choices], looks(len(comparison.choices)), strict=True))
    figure = Figure(figsize=(4.2 * len(quantities), 4.6), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    landmarks = {**comparison.landmarks, **(players or {})}
    numbers: list[Sequence[str]] = []
    for axes, quantity in zip(panels, quantities, strict=True):
        drawn = sorted((row for row in rows if row.quantity == quantity), key=lambda row: row.mean.value)
        for place, row in enumerate(drawn):
            mean = row.mean
            axes.bar(place, mean.value, color=styles[row.model].color, width=0.7)
            errors = [[mean.value - mean.low], [mean.high - mean.value]]
            axes.errorbar(place, mean.value, errors, fmt="none", color="0.2", capsize=4)
            numbers.append((quantity, row.model, str(row.n), str(place), *map(_text, mean)))
        names = [f"{row.model}{'' if row.complete else '*'} (n = {row.n})" for row in drawn]
        axes.set_xticks(range(len(drawn)), names, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
        axes.axhline(0, color="0.2", linewidth=0.8)
        axes.set_title(quantity)
        if not (comparison.settings.paper and quantity == "auc"):
            draw_landmarks(axes, landmarks, "left")  # where the lowest bars are
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(_unit(comparison.settings.metric))
    figure.suptitle(title or comparison.env)
    figure.supxlabel(
        f"error bars: {comparison.settings.percent:g} % bootstrap interval of the mean", fontsize=8, color="0.35"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    write_numbers(path.with_suffix(".csv"), numbers)


def _rows_of(panel: str, comparison: Comparison, curves: Mapping[str, Curve]) -> list[Sequence[str]]:
    counts = {choice.label: len(choice.runs) for choice in comparison.choices}
    return [
        (panel, label, str(counts[label]), str(x), *map(_text, point))
        for label, curve in curves.items()
        for x, *point in zip(*curve, strict=True)
    ]


def _text(value: float) -> str:
    """Six digits: all that a picture can show, and the same on every machine."""
    return "" if np.isnan(value) else f"{value:.6g}"


def write_numbers(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes what a picture shows: panel, model, number of runs, place on the x axis, value and its interval."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(itertools.chain([("panel", "model", "n", "x", "value", "low", "high")], rows))
