"""Statistics agree with the published package, and their intervals mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperrl.experiments.comparison.statistics import (
    Floats,
    estimate,
    estimate_improvement,
    interquartile_mean,
    mean,
    mean_band,
    percentile_interval,
    probability_of_improvement,
    resample,
)

FIXTURE = Path(__file__).parent / "data" / "rliable.npz"
STATISTICS = {"mean": mean, "iqm": interquartile_mean}


@pytest.fixture(scope="module")
def published() -> dict[str, Floats]:
    """What rliable 1.2.0 made of scores `[runs, tasks]`; see tests/experiments/data/generate_rliable.py."""
    with np.load(FIXTURE) as archive:
        return {name: archive[name] for name in archive.files}


def strata(scores: Floats) -> list[Floats]:
    return list(scores.T)


class TestPublished:
    """The stored fixture of rliable."""

    @pytest.mark.parametrize("name", STATISTICS)
    def test_points(self, name: str, published: dict[str, Floats]) -> None:
        ours = estimate(strata(published["x"]), STATISTICS[name], repetitions=10)
        assert ours.value == pytest.approx(published[name].item(), abs=1e-12)

    @pytest.mark.parametrize("name", STATISTICS)
    def test_intervals_of_the_same_resamples(self, name: str, published: dict[str, Floats]) -> None:
        drawn = np.take_along_axis(published["x"][None], published["indices"].astype(int), 1)  # [R, runs, tasks]
        interval = percentile_interval(STATISTICS[name](drawn.reshape(len(drawn), -1)), 95)
        assert interval == pytest.approx(published[f"exact_{name}"], abs=1e-12)

    @pytest.mark.parametrize("level", [68, 95])
    @pytest.mark.parametrize("name", STATISTICS)
    def test_intervals_of_own_resamples(self, name: str, level: int, published: dict[str, Floats]) -> None:
        """Monte Carlo: an end of 50,000 resamples has a standard error of below 0.002 here."""
        ours = estimate(strata(published["x"]), STATISTICS[name], level, repetitions=50_000, seed=1)
        assert ours[1:] == pytest.approx(published[f"{name}_{level}"], abs=0.008)

    def test_improvement(self, published: dict[str, Floats]) -> None:
        """Ties included; ends of 2,000 resamples have a standard error of about 0.006."""
        pair = strata(published["x"]), strata(published["y"])
        assert probability_of_improvement(*pair) == pytest.approx(published["improvement"].item(), abs=1e-12)
        ours = estimate_improvement(*pair, repetitions=10_000, seed=2)
        assert ours.value == pytest.approx(published["improvement"].item(), abs=1e-12)
        assert ours[1:] == pytest.approx(published["improvement_95"], abs=0.025)


class TestBootstrap:
    """Properties of intervals."""

    def test_resamples_stay_in_their_stratum(self) -> None:
        drawn = resample([np.arange(3.0), np.arange(10.0, 15.0)], 500, seed=0)
        assert drawn.shape == (500, 8)
        assert set(drawn[:, :3].ravel()) == {0, 1, 2}
        assert set(drawn[:, 3:].ravel()) == {10, 11, 12, 13, 14}

    def test_seed_decides(self) -> None:
        scores = [np.random.default_rng(0).normal(size=9)]
        assert estimate(scores, seed=4) == estimate(scores, seed=4)
        assert estimate(scores, seed=4) != estimate(scores, seed=5)

    def test_one_run_has_no_interval(self) -> None:
        of = estimate([np.array([3.0])])
        assert of.value == 3
        assert np.isnan([of.low, of.high]).all()
        assert np.isnan(estimate_improvement([np.array([3.0])], [np.array([2.0])]).low)

    def test_interquartile_mean_drops_a_quarter_at_each_end(self) -> None:
        assert interquartile_mean(np.array([-1e9, 1, 2, 3, 4, 5, 6, 1e9])) == 3.5
        assert interquartile_mean(np.array([1.0, 2.0, 9.0])) == 4  # of three, a quarter is none

    def test_coverage_of_the_mean(self) -> None:
        """Of 30 runs, a 95 % interval holds the truth in about 94 of 100 experiments (300 here: 3 sigma are 4 %)."""
        generator = np.random.default_rng(0)
        intervals = [estimate([generator.normal(2, 3, 30)], repetitions=400, seed=seed) for seed in range(300)]
        assert np.mean([of.low <= 2 <= of.high for of in intervals]) == pytest.approx(0.94, abs=0.04)

    def test_band_is_the_interval_at_each_point(self) -> None:
        values = np.random.default_rng(1).normal(size=(6, 4))
        low, high = mean_band(values, 68, 40_000, seed=3)
        for column in range(4):
            of = estimate([values[:, column]], level=68, repetitions=40_000, seed=9)
            assert (low[column], high[column]) == pytest.approx((of.low, of.high), abs=0.02)

    def test_band_draws_from_the_runs_that_are_there(self) -> None:
        """Where one of six runs has ended, five of the five others are drawn, not whatever is left of six."""
        values = np.random.default_rng(1).normal(size=(6, 2))
        low, high = mean_band(np.vstack([values[0] * [1, np.nan], values[1:]]), 68, 40_000, seed=3)
        five = estimate([values[1:, 1]], level=68, repetitions=40_000, seed=3)
        assert (low[1], high[1]) == pytest.approx((five.low, five.high), abs=1e-12)

    def test_band_of_runs_that_end_early(self) -> None:
        """Where a single run is left, the band has no width."""
        values = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, np.nan], [4.0, 5.0, np.nan]])
        low, high = mean_band(values)
        assert (low[2], high[2]) == (5, 5)
        assert low[0] < 2 < high[0]
