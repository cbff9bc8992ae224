"""Learning curves: smoothing, thinning, a common grid of frames, and what sums a curve up in a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.runs import Floats, Series, spread

POINTS = 200
Measure = Literal["mean", "final", "auc", "best"]
Scores = Callable[[Sequence[Series]], Floats]
"""Takes the curves of R runs to one number each, `[R]`."""


def smooth(values: Floats, fraction: float | None) -> Floats:
    """The trailing moving average over a fraction of all points, at least two (spec/tooling.md section 2).

    Before the start, the first value counts again; so early values are smoothed less and later ones come late.

    Args:
        values: `[..., N]`, rising in time.
        fraction: width of the window as a part of N; None or 0 leaves the values as they are.
    """
    if not fraction:
        return values
    width = max(2, int(fraction * values.shape[-1]))
    padded = np.concatenate([np.repeat(values[..., :1], width - 1, -1), values], -1)
    return np.lib.stride_tricks.sliding_window_view(padded, width, -1).mean(-1)


def paper_curve(series: Series, smoothing: float | None = 0.1, points: int = POINTS) -> Series:
    """A curve as the papers draw it: smoothed, then thinned to every N/points-th event, without the last one."""
    frames, values = series.frames, smooth(series.values, smoothing)
    if len(frames) > points:
        kept = [round(index * len(frames) / points) for index in range(points)]  # half to even, as recorded
        frames, values = frames[kept], values[kept]
    return Series(frames, values)


def align(curves: Sequence[Series], points: int | None = None) -> tuple[NDArray[np.int64], Floats]:
    """Puts curves on the frames that they have in common; between two of its points, a curve is a straight line.

    Args:
        curves: of R runs.
        points: how many are kept at most, evenly spread, the ends included; None keeps all.

    Returns:
        Frames `[N]` of any of the curves within the range common to all, and values `[R, N]`.

    Raises:
        ConfigError: they have no frames in common.
    """
    start, end = max(curve.frames[0] for curve in curves), min(curve.frames[-1] for curve in curves)
    if start > end:
        raise ConfigError(f"frames: a run begins at {start:,} and another one ends at {end:,}; expected a common range")
    frames = reduce(np.union1d, [curve.frames for curve in curves])
    frames = frames[(frames >= start) & (frames <= end)]
    if points is not None:
        frames = frames[spread(len(frames), points)]
    return frames, np.stack([np.interp(frames, curve.frames, curve.values) for curve in curves])


def join(curves: Sequence[Series]) -> tuple[NDArray[np.int64], Floats]:
    """Puts curves side by side at exactly equal frames, as the papers do.

    Args:
        curves: of R runs.

    Returns:
        All frames of any curve `[N]`, and values `[R, N]`, NaN where a curve has no point.
    """
    frames = reduce(np.union1d, [curve.frames for curve in curves])
    values = np.full((len(curves), len(frames)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[np.searchsorted(frames, curve.frames)] = curve.values
    return frames, values


def common_scores(measure: Measure, last: float = 0.1, lowest: bool = False) -> Scores:
    """Sums curves up on the range of frames that they have in common.

    Args:
        measure: `mean` over all points; `final`, the mean over the last part; `auc`, the area under the curve divided
            by the range of frames; `best`, the highest of its own values, whenever the others were validated.
        last: what `final` averages, as a part of the range; 0 takes the last point alone.
        lowest: whether `best` is the lowest value.
    """

    def scores(curves: Sequence[Series]) -> Floats:
        frames, values = align(curves)
        if measure == "final":
            return values[:, frames >= frames[-1] - last * (frames[-1] - frames[0])].mean(-1)
        if measure == "auc" and len(frames) > 1:
            return trapezoid(values, frames, axis=-1) / (frames[-1] - frames[0])
        if measure == "best":
            own = [curve.values[(curve.frames >= frames[0]) & (curve.frames <= frames[-1])] for curve in curves]
            # A run without any in the common range has a straight line there, whose ends are its extremes.
            extreme = np.min if lowest else np.max
            return np.array([extreme(each if each.size else line) for each, line in zip(own, values, strict=True)])
        return values.mean(-1)

    return scores


def paper_scores(measure: Measure, smoothing: float | None = 0.1, lowest: bool = False) -> Scores:
    """Sums curves up as the papers do: each over all of its own points, however long it is.

    Args:
        measure: `mean` over all points; `final`, the last one after smoothing; `auc`, the area over frames, undivided;
            `best`, the highest value.
        smoothing: as in `smooth`.
        lowest: whether `best` is the lowest value.
    """

    def score(curve: Series) -> float:
        if measure == "final":
            return float(smooth(curve.values, smoothing)[-1])
        if measure == "auc":
            return float(trapezoid(curve.values, curve.frames))
        if measure == "best":
            return float(curve.values.min() if lowest else curve.values.max())
        return float(curve.values.mean())

    return lambda curves: np.array([score(curve) for curve in curves])
