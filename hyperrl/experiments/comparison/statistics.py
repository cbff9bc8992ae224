"""Means, interquartile means and bootstrap intervals over runs (Agarwal et al. 2021, *rliable*)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

RESAMPLES = 2000

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Takes scores `[..., n]` to `[...]`."""


class Estimate(NamedTuple):
    """A statistic with its interval; of a single score, whose interval is unknown, `low` and `high` are NaN."""

    value: float
    low: float
    high: float


def mean(scores: Floats) -> Floats:
    """The mean over the last axis."""
    return np.mean(scores, -1)


def interquartile_mean(scores: Floats) -> Floats:
    """The mean over the last axis of what is left after a quarter of the scores at each end, rounded down, is cut."""
    return trim_mean(scores, 0.25, axis=-1)


def resample(strata: Sequence[Floats], repetitions: int, seed: int | np.random.Generator) -> Floats:
    """Draws scores with replacement, from each stratum as many as it has.

    Args:
        strata: scores of each stratum (a task, a setting), `[n_i]`.
        repetitions: R.
        seed: of the generator, or the generator itself.

    Returns:
        `[R, sum of n_i]`.
    """
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.choice(scores, (repetitions, len(scores))) for scores in strata], -1)


def percentile_interval(estimates: Floats, level: float) -> tuple[Floats, Floats]:
    """The central part of bootstrap estimates.

    Args:
        estimates: the statistic of each resample `[R, ...]`.
        level: percent of them that are inside.

    Returns:
        Lower and upper end, `[...]` each.
    """
    low, high = np.percentile(estimates, [50 - level / 2, 50 + level / 2], axis=0)
    return low, high


def estimate(
    strata: Sequence[Floats],
    statistic: Statistic = mean,
    level: float = 95,
    repetitions: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of all scores together, with its stratified percentile bootstrap interval.

    Args:
        strata: scores of each stratum, `[n_i]`.
        statistic: of the scores of all strata.
        level: of the interval, in percent.
        repetitions: number of resamples.
        seed: of the bootstrap.
    """
    scores = np.concatenate(strata)
    if max(map(len, strata)) < 2:
        return Estimate(float(statistic(scores)), np.nan, np.nan)
    low, high = percentile_interval(statistic(resample(strata, repetitions, seed)), level)
    return Estimate(float(statistic(scores)), float(low), float(high))


def mean_band(values: Floats, level: float = 95, repetitions: int = RESAMPLES, seed: int = 0) -> tuple[Floats, Floats]:
    """The percentile bootstrap interval of the mean over runs at each point, over the runs that have a value there.

    Args:
        values: `[runs, N]`; NaN where a run has no value.
        level: in percent.
        repetitions: number of resamples; at each of them a run is drawn with its whole curve.
        seed: of the bootstrap.

    Returns:
        Lower and upper end `[N]`.
    """
    known = np.isfinite(values)
    low, high = np.full((2, values.shape[1]), np.nan)
    for there in np.unique(known, axis=1).T:  # [runs], once per set of runs that end at the same point
        n, points = there.sum(), (known == there[:, None]).all(0)
        if n:
            drawn = resample([np.arange(n, dtype=np.float64)], repetitions, seed)
            shares = np.stack([(drawn == run).mean(-1) for run in range(n)], -1)  # [R, n]
            low[points], high[points] = percentile_interval(shares @ values[there][:, points], level)
    return low, high


def probability_of_improvement(ours: Sequence[Floats], theirs: Sequence[Floats]) -> Floats:
    """How probable it is that a run of ours beats one of theirs on the same stratum; a tie counts half.

    Args:
        ours: scores of each stratum, `[..., n_i]`.
        theirs: the same of the others, `[..., m_i]`.

    Returns:
        The mean over strata `[...]`.
    """
    return np.mean([_superiority(*pair) for pair in zip(ours, theirs, strict=True)], 0)


def _superiority(ours: Floats, theirs: Floats) -> Floats:
    return np.heaviside(ours[..., :, None] - theirs[..., None, :], 0.5).mean((-2, -1))


def estimate_improvement(
    ours: Sequence[Floats], theirs: Sequence[Floats], level: float = 95, repetitions: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """`probability_of_improvement` with its interval; both sides are resampled on their own.

    Args:
        ours: scores of each stratum, `[n_i]`.
        theirs: the same of the others, `[m_i]`.
        level: of the interval, in percent.
        repetitions: number of resamples.
        seed: of the bootstrap.
    """
    value = float(probability_of_improvement(ours, theirs))
    if min(max(map(len, side)) for side in (ours, theirs)) < 2:
        return Estimate(value, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    drawn = [[resample([scores], repetitions, generator) for scores in side] for side in (ours, theirs)]
    low, high = percentile_interval(probability_of_improvement(*drawn), level)
    return Estimate(value, float(low), float(high))
