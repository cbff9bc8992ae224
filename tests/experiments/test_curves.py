"""Curves: what is drawn of them, what sums them up, and which setting is the best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.curves import align, common_scores, join, paper_curve, paper_scores, smooth
from hyperrl.experiments.comparison.runs import Run, Series
from hyperrl.experiments.comparison.selection import Choice, choose, varying


def series(frames: list[int], values: list[float]) -> Series:
    return Series(np.array(frames), np.array(values, float))


def a_run(
    seed: int, values: list[float], lr: str = "0.1", status: str = "FINISHED", step: int = 10, **config: str
) -> Run:
    frames = [step * (index + 1) for index in range(len(values))]
    tags = {"model": "m", "seed": str(seed), "status": status}
    settings = {
        "model.ppo.lr": lr,
        "seed_everything": str(seed),
        "trainer.default_root_dir": f"/there/{seed}",
        **config,
    }
    return Run(f"{lr}-{seed}", tags, settings, {"val/return": series(frames, values)})


def by_mean(runs: list[Run], **options: object) -> Choice:
    return choose(runs, common_scores("mean"), **options)


class TestSmoothing:
    """The papers' trailing mean; the stored golden file has more of it."""

    def test_formula(self) -> None:
        values = np.random.default_rng(0).normal(size=25)
        width = 5
        expected = [np.mean([values[max(i - j, 0)] for j in range(width)]) for i in range(25)]
        assert smooth(values, 0.2) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("fraction", [0, None])
    def test_none(self, fraction: float | None) -> None:
        assert smooth(np.array([1.0, 5.0]), fraction).tolist() == [1, 5]

    def test_at_least_two_points(self) -> None:
        assert smooth(np.array([1.0, 3.0, 7.0]), 0.01).tolist() == [1, 2, 5]

    def test_thinning_of_the_papers_leaves_the_end_out(self) -> None:
        curve = paper_curve(series(list(range(10)), list(range(10))), None, 4)
        assert curve.frames.tolist() == [0, 2, 5, 8]  # round(2.5) is 2


class TestCommonGrid:
    """Quirks P3 to P6: other frames, other lengths, and no end that goes missing."""

    def test_equal_frames_stay(self) -> None:
        frames, values = align([series([1, 2, 4], [0, 1, 2]), series([1, 2, 4], [3, 4, 5])])
        assert frames.tolist() == [1, 2, 4]
        assert values.tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_other_frames_are_interpolated_within_the_common_range(self) -> None:
        frames, values = align([series([0, 10, 20], [0, 10, 20]), series([5, 15, 40], [0, 1, 1])])
        assert frames.tolist() == [5, 10, 15, 20]
        assert values[0].tolist() == [5, 10, 15, 20]
        assert values[1] == pytest.approx([0, 0.5, 1, 1])

    def test_both_ends_are_kept(self) -> None:
        frames, _ = align([series(list(range(1001)), list(range(1001)))], points=50)
        assert (len(frames), frames[0], frames[-1]) == (50, 0, 1000)

    def test_nothing_in_common(self) -> None:
        with pytest.raises(ConfigError, match="a run begins at 50 and another one ends at 20; expected a common range"):
            align([series([0, 20], [0, 0]), series([50, 60], [0, 0])])

    def test_papers_join_at_equal_frames(self) -> None:
        frames, values = join([series([1, 2], [1, 2]), series([2, 3], [5, 6])])
        assert frames.tolist() == [1, 2, 3]
        assert np.array_equal(values, [[1, 2, np.nan], [np.nan, 5, 6]], equal_nan=True)


class TestScores:
    """What sums a curve up."""

    CURVES = (series([0, 10, 20, 40], [0, 4, 2, 1]), series([0, 10, 20], [1, 1, 4]))

    def test_on_the_common_range(self) -> None:
        expected = {"mean": [2, 2], "final": [2, 4], "best": [4, 4], "auc": [2.5, 1.75]}
        for measure, values in expected.items():
            assert common_scores(measure)(self.CURVES) == pytest.approx(values), measure

    def test_final_averages_the_last_part(self) -> None:
        assert common_scores("final", 0.5)(self.CURVES) == pytest.approx([3, 2.5])
        assert common_scores("final", 0.5)([series([100, 140, 160, 200], [0, 1, 2, 4])]) == pytest.approx([3])
        assert common_scores("final", 0)(self.CURVES) == pytest.approx([2, 4])

    def test_all_points_count_however_many(self) -> None:
        """Of a thousand points, one is outstanding, and the last tenth rises: thinned curves would miss both."""
        values = np.zeros(1000)
        values[777], values[901:] = 100, np.arange(99) % 2
        curve = series(list(range(1000)), list(values))
        assert common_scores("best")([curve]) == 100
        assert common_scores("mean")([curve]) == pytest.approx(values.mean(), abs=1e-12)
        assert common_scores("final")([curve]) == pytest.approx(values[900:].mean(), abs=1e-12)
        assert common_scores("auc")([curve]) == pytest.approx((values.sum() - values[-1] / 2) / 999, abs=1e-12)

    def test_best_is_a_value_of_the_run_itself(self) -> None:
        """Where the others end, the line between two points is no validation."""
        rising, short = series([0, 10, 20], [0, 1, 9]), series([0, 15], [2, 2])
        assert common_scores("best")([rising, short]) == pytest.approx([1, 2])
        assert common_scores("best", lowest=True)([series([0, 20], [4, 2]), series([5, 15], [0, 0])])[0] == 2.5

    def test_best_may_be_the_lowest(self) -> None:
        assert common_scores("best", lowest=True)(self.CURVES) == pytest.approx([0, 1])

    def test_papers_take_each_run_as_it_is(self) -> None:
        expected = {"mean": [7 / 4, 2], "final": [1, 4], "best": [4, 4], "auc": [80, 35]}
        for measure, values in expected.items():
            assert paper_scores(measure, None)(self.CURVES) == pytest.approx(values), measure


class TestChoice:
    """The best hyper-parameters."""

    def test_finds_what_differs(self) -> None:
        runs = [a_run(seed, [seed], lr) for lr in ("1e-3", "1e-4") for seed in (1, 2)]
        assert varying(runs) == ("model.ppo.lr",)

    def test_settings_unknown_to_old_versions_are_no_difference(self) -> None:
        old, new = a_run(1, [1]), a_run(2, [1], **{"model.new": "5"})
        assert varying([old, new]) == ()
        none, given = a_run(1, [1], **{"data.options": "None"}), a_run(2, [1], **{"data.options.size": "5"})
        assert varying([none, given]) == ("data.options.size",)

    def test_rule_decides(self) -> None:
        """A slow starter that ends higher: the mean over training and the final value disagree."""
        early = [a_run(seed, [5, 5, 5, 5], "early") for seed in (1, 2)]
        late = [a_run(seed, [0, 0, 4, 8], "late") for seed in (1, 2)]
        for rule, expected in (("mean", "early"), ("auc", "early"), ("final", "late"), ("best", "late")):
            assert choose(early + late, common_scores(rule)).setting == (expected,), rule

    def test_direction_and_ties(self) -> None:
        runs = [a_run(1, [2, 2], "a"), a_run(1, [3, 3], "b"), a_run(1, [3, 3], "c")]
        assert by_mean(runs).setting == ("b",)
        assert by_mean(runs, lowest=True).setting == ("a",)

    def test_averages_over_seeds(self) -> None:
        runs = [a_run(1, [9, 9], "a"), a_run(2, [0, 0], "a"), a_run(1, [5, 5], "b"), a_run(2, [5, 5], "b")]
        choice = by_mean(runs)
        assert choice.scores == {("a",): 4.5, ("b",): 5}
        assert [run.id for run in choice.runs] == ["b-1", "b-2"]
        assert choice.notes("mean") == ["m: lr b chosen by mean from a: 4.50, b: 5.00"]

    def test_choice_on_other_seeds_than_are_reported(self) -> None:
        runs = [
            a_run(seed, [value, value], lr)
            for lr, values in (("a", (9, 0)), ("b", (5, 5)))
            for seed, value in enumerate(values)
        ]
        choice = by_mean(runs, seeds=["0"])
        assert choice.setting == ("a",)
        assert [run.id for run in choice.runs] == ["a-1"]
        with pytest.raises(ConfigError, match="choose_on: 7: no complete run of m has such a seed"):
            by_mean(runs, seeds=["7"])
        with pytest.raises(ConfigError, match="choose_on: 0 1: no other seed of m is left to report"):
            by_mean(runs, seeds=["0", "1"])

    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            (a_run(2, [9, 9, 9], "b", status="KILLED"), "killed, 30 frames"),
            (a_run(2, [9], "b"), "10 of 30 frames"),
            (a_run(2, [9, np.nan, 9], "b"), "val/return is not finite"),
        ],
    )
    def test_incomplete_runs_are_left_out_with_a_line(self, broken: Run, reason: str) -> None:
        choice = by_mean([a_run(1, [5, 5, 5], "a"), a_run(1, [4, 4, 4], "b"), broken])
        assert choice.setting == ("a",)
        assert choice.is_complete
        assert choice.notes("mean")[-1] == f"m: run b-2 (seed 2) is incomplete ({reason}): left out"

    def test_incomplete_runs_are_better_than_none(self) -> None:
        choice = by_mean([a_run(1, [5, 5], status="KILLED")])
        assert not choice.is_complete
        assert choice.notes("mean") == [
            "m: run 0.1-1 (seed 1) is incomplete (killed, 20 frames): shown, since there is no complete one"
        ]

    def test_papers_count_all(self) -> None:
        runs = [a_run(1, [5, 5], "a"), a_run(2, [5, 5], "a"), a_run(1, [9], "b", status="KILLED")]
        choice = choose(runs, paper_scores("mean"), all_count=True)
        assert choice.setting == ("b",)
        assert choice.incomplete == ()
        assert choice.remarks == ()

    @pytest.mark.parametrize("rule", ["mean", "best"])
    def test_survivors_win_nothing(self, rule: str) -> None:
        """Of the higher rate two seeds diverged; what is left looks better than three seeds of the lower one."""
        high = [a_run(1, [12, 12], "high"), *(a_run(seed, [12, np.nan], "high") for seed in (2, 3))]
        choice = choose([*high, *(a_run(seed, [11.9, 11.9], "low") for seed in (1, 2, 3))], common_scores(rule))
        assert choice.setting == ("low",)
        assert choice.name == "lr low"
        assert [run.seed for run in choice.runs] == ["1", "2", "3"]
        assert choice.notes(rule)[-1] == "m: lr high is no candidate: 1 of 3 seeds count"

    def test_coverage_is_that_of_the_seeds_chosen_on(self) -> None:
        """A seed that is only reported does not decide who may be chosen."""
        runs = [a_run(seed, [value], lr) for lr, value in (("a", 5), ("b", 4)) for seed in (1, 2)]
        choice = by_mean([*runs, a_run(3, [4], "b")], seeds=["1"])
        assert (choice.setting, choice.remarks) == (("a",), ())

    def test_a_seed_counts_once(self) -> None:
        """Of runs with the same setting and seed the longest counts, and of equally long ones the newest."""
        first, again, other = a_run(1, [1, 2, 3]), a_run(1, [1, 2, 9]), a_run(2, [1, 2, 4])
        shorter = a_run(2, [7, 7, 7], step=9)
        runs = [replace(run, id=name) for name, run in zip("abcd", (first, again, other, shorter), strict=True)]
        choice = by_mean(runs)
        assert [run.id for run in choice.runs] == ["b", "c"]
        assert choice.notes("mean") == [
            "m: run a (seed 1) is another one of the same setting and seed: left out",
            "m: run d (seed 2) is another one of the same setting and seed: left out",
        ]

    def test_runs_of_unknown_seeds_all_count(self) -> None:
        runs = [replace(a_run(1, [value]), id=str(value), tags={"status": "FINISHED"}) for value in (1, 2)]
        assert len(by_mean(runs).runs) == 2

    def test_other_steps_between_validations_are_complete(self) -> None:
        assert len(by_mean([a_run(1, [5, 5, 5]), a_run(2, [5, 5], step=14)]).runs) == 2

    def test_named_keys(self) -> None:
        runs = [a_run(1, [5], "a", other="x"), a_run(1, [7], "b", other="x"), a_run(2, [6], "b", other="y")]
        choice = by_mean(runs, over=["model.ppo.lr"])
        assert choice.setting == ("b",)
        assert "m: runs that differ in other are counted together" in choice.notes("mean")
        with pytest.raises(
            ConfigError, match=r"over: model.ppo.rl: no run has such a setting; did you mean model.ppo.lr\?"
        ):
            by_mean(runs, over=["model.ppo.rl"])
