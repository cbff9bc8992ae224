"""`hyperrl compare` from files of runs to tables and pictures."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.command import compare
from hyperrl.experiments.comparison.comparison import Comparison, Settings
from hyperrl.experiments.comparison.figures import COLOURS, caption, draw_landmarks, looks, sideways
from hyperrl.experiments.comparison.runs import Run, make_series, read_runs, write_runs
from hyperrl.experiments.comparison.tables import ALL, cells, make_rows, markdown

ENV = "GridNavi-v0"


def a_run(
    model: str,
    seed: int,
    returns: list[float],
    lr: str = "0.1",
    env: str = ENV,
    status: str = "FINISHED",
    **metrics: float,
) -> Run:
    """A run with four episodes per task, of which each earns a quarter of the return; its test earns one more."""
    series = {100 * (index + 1): value for index, value in enumerate(returns)}
    found = {"val/return": make_series(series), "val/return_sem": make_series(dict.fromkeys(series, 0.5))}
    for episode in range(1, 5):
        found[f"val/return_episode_{episode}"] = make_series({frames: value / 4 for frames, value in series.items()})
    found |= {name: make_series({300: value}) for name, value in metrics.items()}
    found["test/return"] = make_series({300: returns[-1] + 1})
    tags = {"model": model, "env": env, "seed": str(seed), "status": status}
    return Run(f"{env}-{model}-{lr}-{seed}", tags, {"model.ppo.lr": lr, "seed_everything": str(seed)}, found)


def some_runs(env: str = ENV) -> list[Run]:
    """Two models, two learning rates of the first, three seeds."""
    fast = [a_run("fast", seed, [5 + seed, 20 + seed, 30 + seed], env=env) for seed in (1, 2, 3)]
    slow = [a_run("fast", seed, [1, 2, 3 + seed], lr="0.01", env=env) for seed in (1, 2, 3)]
    return [*fast, *slow, *(a_run("other", seed, [0, 5, 9 + seed], env=env) for seed in (1, 2, 3))]


def compared(runs: list[Run], **settings: object) -> Comparison:
    (found,) = Comparison.of(runs, Settings(**settings))
    return found


@pytest.fixture
def stored(tmp_path: Path) -> str:
    write_runs(tmp_path / "runs.csv", some_runs())
    return str(tmp_path / "runs.csv")


class TestTable:
    """The numbers."""

    def test_best_setting_of_each_model(self) -> None:
        rows = {(row.model, row.quantity): row for row in make_rows([compared(some_runs())])}
        assert list(rows) == [(model, q) for model in ("fast", "other") for q in ("final", "best", "auc", "test")]
        assert {(row.setting, row.n, row.complete) for row in rows.values()} == {("lr 0.1", 3, True), ("", 3, True)}
        assert rows["fast", "final"].mean.value == 32
        assert rows["fast", "test"].mean.value == 33
        assert rows["fast", "auc"].mean.value == pytest.approx((7 / 2 + 22 + 32 / 2) / 2)
        assert 31 <= rows["fast", "final"].mean.low < 32 < rows["fast", "final"].mean.high <= 33

    def test_frames_that_all_have(self) -> None:
        """A complete model that was trained longer has no advantage; it is said where the comparison ends."""
        runs = [a_run("short", 1, [1, 2]), a_run("long", 1, [0, 1, 50])]
        comparison = compared(runs)
        assert comparison.scores("best") == {"short": [2], "long": [1]}
        assert comparison.notes == ["GridNavi-v0: compared up to 200 frames, where the shortest run ends"]

    def test_incomplete_models_are_marked_and_do_not_shorten_the_others(self) -> None:
        runs = [a_run("stopped", 1, [1, 2], status="KILLED"), a_run("whole", 1, [0, 1, 50])]
        comparison = compared(runs)
        assert comparison.scores("best") == {"stopped": [2], "whole": [50]}
        _, lines = cells(make_rows([comparison]), comparison.settings)
        assert [line[0] for line in lines if "best" in line] == ["stopped*", "whole"]

    def test_improvement_over_a_baseline(self) -> None:
        rows = make_rows([compared(some_runs(), baseline="other")])
        assert {row.improvement for row in rows if row.model == "other"} == {None}
        assert {row.improvement for row in rows if row.model == "fast"} == {(1, 1, 1)}
        lower = make_rows([compared(some_runs(), baseline="other", direction="min", quantities=["final"])])
        assert [(row.setting, row.improvement) for row in lower] == [("lr 0.01", (1, 1, 1)), ("", None)]

    def test_choice_on_some_seeds(self) -> None:
        rows = make_rows([compared(some_runs(), choose_on=[1, 3], quantities=["final"])])
        assert [(row.setting, row.n, row.mean.value) for row in rows] == [("lr 0.1", 1, 32), ("", 1, 11)]

    def test_over_environments_scores_are_normalised(self) -> None:
        """Between the random player and the Bayes-optimal one, with the runs of each environment as a stratum."""
        both = [*some_runs(), *some_runs("GridNavi-dense-v0")]
        rows = make_rows(Comparison.of(both, Settings(quantities=["final"])))
        assert [(row.env, row.n) for row in rows if row.model == "fast"] == [
            (ENV, 3),
            ("GridNavi-dense-v0", 3),
            (ALL, 6),
        ]
        expected = ((32 + 4.662) / (37.2143 + 4.662) + (32 + 42.328) / (35.4762 + 42.328)) / 2
        assert rows[-2].mean.value == pytest.approx(expected, abs=1e-9)

    def test_paper_mode(self) -> None:
        """Narrower intervals, `final` of the smoothed curve, the undivided area, and every run counts."""
        runs = [*some_runs(), a_run("other", 4, [100], status="KILLED")]
        rows = {(row.model, row.quantity): row for row in make_rows([compared(runs, paper=True)])}
        assert rows["fast", "final"].mean.value == (32 + 22) / 2
        assert rows["fast", "auc"].mean.value == pytest.approx(100 * (7 / 2 + 22 + 32 / 2))
        assert rows["other", "best"].n == 4
        ours = {(row.model, row.quantity): row for row in make_rows([compared(runs)])}["fast", "best"].mean
        papers = rows["fast", "best"].mean
        assert (papers.high - papers.low) < (ours.high - ours.low)

    def test_markdown(self) -> None:
        assert markdown(["a", "b"], [["1", ""]]) == "| a | b |\n|---|---|\n| 1 |  |\n"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"level": 100}, "level is 100; expected a number from 0 to below 100"),
            ({"smoothing": -0.1}, "smoothing is -0.1; expected a number from 0 to below 1"),
            ({"last": 1}, "last is 1; expected a number from 0 to below 1"),
            ({"level": "abc"}, "level is abc; expected a number from 0 to below 100"),
            ({"rule": "bset"}, r"rule is bset; expected one of mean, final, auc, best; did you mean best\?"),
            ({"direction": "up"}, "direction is up; expected one of max, min"),
            ({"quantities": ["finall"]}, r"quantities is finall; expected one of .*; did you mean final\?"),
            ({"quantities": "final"}, "quantities is 'final'; expected a list of names"),
            ({"quantities": ["test"], "metric": "val/return_episode_1"}, "quantities: test: no model has them"),
            ({"over": "model.ppo.lr"}, "over is 'model.ppo.lr'; expected a list of names"),
            ({"choose_on": 1}, "choose_on is 1; expected a list of whole numbers"),
            ({"paper": "no"}, "paper is 'no'; expected true or false"),
            ({"metric": 3}, "metric is 3; expected a name"),
            ({"seed": -1}, "seed is -1; expected a whole number that is not negative"),
            ({"until": "all"}, "until is all; expected a whole number that is not negative"),
            ({"until": 100}, "until is 100; expected more than 100, where run .* begins"),
            ({"baseline": "othr"}, r"baseline is othr; expected one of fast, other; did you mean other\?"),
            ({"metric": "val/retrun"}, r"metric val/retrun: run .* of fast has none; did you mean val/return\?"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make_rows([compared(some_runs(), **settings)])

    def test_test_is_of_validated_metrics(self) -> None:
        """A metric of training has no test; its own last value is none."""
        runs = [replace(run, metrics={**run.metrics, "train/x": run.metrics["val/return"]}) for run in some_runs()]
        assert {row.quantity for row in make_rows([compared(runs, metric="train/x")])} == {"final", "best", "auc"}
        scores = compared(runs, metric="test/return").scores("test")
        assert {label: values.tolist() for label, values in scores.items()} == {
            "fast": [32, 33, 34],
            "other": [11, 12, 13],
        }


class TestCurves:
    """What is drawn."""

    def test_band_over_runs(self) -> None:
        comparison = compared(some_runs(), smoothing=0)
        curve = comparison.curve(comparison.choices[0])
        assert curve.x.tolist() == [100, 200, 300]
        assert curve.values.tolist() == [7, 22, 32]
        assert (curve.low < curve.values).all()
        assert (curve.values < curve.high).all()

    def test_band_over_the_tasks_of_a_single_run(self) -> None:
        comparison = compared([a_run("m", 1, [1, 5, 3])], smoothing=0)
        curve = comparison.curve(comparison.choices[0])
        assert curve.low.tolist() == [0.5, 4.5, 2.5]
        assert curve.high.tolist() == [1.5, 5.5, 3.5]

    def test_adaptation_at_the_best_validation(self) -> None:
        comparison = compared([a_run("m", 1, [1, 8, 3]), a_run("m", 2, [1, 4, 6])])
        curve = comparison.adaptation(comparison.choices[0])
        assert comparison.adapts_in == "val"
        assert curve.x.tolist() == [1, 2, 3, 4]
        assert curve.values.tolist() == [(2 + 1.5) / 2] * 4

    def test_adaptation_in_the_test(self) -> None:
        episodes = {f"test/return_episode_{k}": float(k * k) for k in range(1, 5)}
        comparison = compared([a_run("m", 1, [1, 8, 3], **episodes)])
        assert comparison.adapts_in == "test"
        assert comparison.adaptation(comparison.choices[0]).values.tolist() == [1, 4, 9, 16]

    def test_adaptation_over_the_episodes_that_all_have(self) -> None:
        """Runs with tasks of four and of two episodes, counted together."""
        long, short = a_run("m", 1, [1, 8, 3]), a_run("m", 2, [1, 4, 6])
        names = [name for name in short.metrics if name[-1] not in "34"]
        short = replace(short, metrics={name: short.metrics[name] for name in names})
        comparison = compared([long, short])
        curve = comparison.adaptation(comparison.choices[0])
        assert curve.x.tolist() == [1, 2]
        assert curve.values.tolist() == [(2 + 1.5) / 2] * 2

    def test_error_bars_stand_side_by_side(self) -> None:
        """Where there are any; a single model stays where it is."""
        comparison = compared(some_runs())
        curves = [comparison.adaptation(choice) for choice in comparison.choices]
        assert sideways(curves) == pytest.approx([-0.04, 0.04])
        assert sideways(curves * 8) == pytest.approx(np.linspace(-0.15, 0.15, 16))
        assert sideways(curves[:1]) == [0]
        single = compared([a_run(name, 1, [1, 2]) for name in "ab"])
        assert sideways([single.adaptation(choice) for choice in single.choices]) == pytest.approx([0, 0])

    def test_landmarks_only_where_they_hold(self) -> None:
        run = a_run("m", 1, [1, 2])
        assert compared([run]).landmarks["bayes_optimal"] == 37.2143
        assert compared([run], metric="val/return_episode_1").landmarks == {}
        fewer = Run(run.id, run.tags, run.config, {k: v for k, v in run.metrics.items() if not k.endswith("episode_4")})
        one_task = Run(run.id, run.tags, {"data.env_options.fixed_task": "[3, 4]"}, run.metrics)
        more = a_run("m", 1, [1, 2], **{"val/return_episode_5": 1.0})
        held_out = Run(run.id, run.tags, {"data.held_out": "0.2"}, run.metrics)
        for other in (fewer, more, one_task, held_out, a_run("m", 1, [1, 2], env="Elsewhere-v0")):
            assert compared([other]).landmarks == {}

    def test_models_look_different(self) -> None:
        found = looks(16)
        assert len(set(found)) == 16
        assert len({(look.linestyle, look.marker) for look in found[:8]}) == 8  # in grey, too
        assert len(set(COLOURS)) == 8


class TestCommand:
    """The function behind the command."""

    def test_all_outputs(self, stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = {name: tmp_path / "out" / name for name in ("t.md", "t.csv", "curves.png", "bars.png", "runs.csv")}
        compare(
            [stored],
            markdown=files["t.md"],
            csv=files["t.csv"],
            plot=files["curves.png"],
            bars=files["bars.png"],
            export=files["runs.csv"],
            players=["clever player=25.5"],
            quantities=["final", "test"],
        )
        shown = capsys.readouterr().out
        assert "fast: lr 0.1 chosen by mean from 0.1: 20.33, 0.01: 2.67" in shown
        lines = files["t.md"].read_text().splitlines()
        assert lines[0] == "| model | chosen | n | quantity | mean [95 %] | IQM [95 %] |"
        assert lines[2].startswith("| fast | lr 0.1 | 3 | final | 32.00 [31.00, 33.00] | 32.00 [31.00, 33.00] |")
        assert lines[3].startswith("| fast |  | 3 | test | 33.00 [32.00, 34.00] |")
        assert len(lines) == 2 + 4
        with files["t.csv"].open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["model"], row["quantity"], float(row["mean"])) for row in rows] == [
            ("fast", "final", 32), ("fast", "test", 33), ("other", "final", 11), ("other", "test", 12),
        ]  # fmt: skip
        assert [run.label for run in read_runs(files["runs.csv"])] == [run.label for run in some_runs()]
        for name, shape in (("curves", (598, 1560)), ("bars", (598, 1092))):
            picture = imread(files[f"{name}.png"])
            assert picture.shape[:2] == shape
            assert 0.01 < (picture[..., :3].min(-1) < 0.9).mean() < 0.6  # neither empty nor covered
        with files["curves.png"].with_suffix(".csv").open() as file:
            drawn = list(csv.DictReader(file))
        values = {(row["panel"], row["model"], row["x"]): row["value"] for row in drawn}
        assert float(values["learning", "fast", "100"]) == 7
        assert float(values["landmark", "bayes_optimal", ""]) == 37.2143
        assert float(values["landmark", "clever player", ""]) == 25.5
        assert float(values["adaptation", "other", "4"]) == pytest.approx(11 / 4)

    @pytest.mark.parametrize(
        ("seeds", "percent", "is_range"), [(2, 95, 1), (3, 95, 1), (4, 95, 0), (2, 68, 1), (3, 68, 0)]
    )
    def test_an_interval_of_few_runs_is_said_to_be_their_range(self, seeds: int, percent: float, is_range: int) -> None:
        comparison = compared([a_run("m", seed, [seed, seed]) for seed in range(seeds)], level=percent)
        row = next(row for row in make_rows([comparison]) if row.quantity == "best")
        assert ("their range for n up to" in caption(comparison)) == bool(is_range)
        assert ((row.mean.low, row.mean.high) == (0, seeds - 1)) == bool(is_range)

    @pytest.mark.parametrize("returns", [(2, 15.46, 15.86, 16), (-4.7, 16, 37.2, 44.3), (1, 1, 1), (0, 1)])
    def test_names_of_landmarks_do_not_overlap(self, returns: tuple[float, ...]) -> None:
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [min(returns), max(returns)])
        draw_landmarks(axes, {f"some_player_{number}": value for number, value in enumerate(returns)})
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        shown = " ".join(text.get_text() for text in axes.texts)
        assert all(f"some player {number}" in shown for number in range(len(returns)))

    def test_bars_are_sorted(self, stored: str, tmp_path: Path) -> None:
        compare([stored], bars=tmp_path / "bars.png", quantities=["best"])
        with (tmp_path / "bars.csv").open() as file:
            assert [(row["model"], row["x"]) for row in csv.DictReader(file)] == [("other", "0"), ("fast", "1")]

    def test_one_environment_per_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.csv"
        write_runs(path, [*some_runs(), *some_runs("GridNavi-dense-v0")])
        with pytest.raises(ConfigError, match="plot: the runs are of GridNavi-v0, GridNavi-dense-v0; expected one"):
            compare([str(path)], plot=tmp_path / "x.png")
        compare([str(path)], where=[f"env={ENV}"], plot=tmp_path / "x.png")
        assert (tmp_path / "x.png").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"players": ["x=abc"]}, "players: x is abc; expected a number"),
            ({"players": ["x=nan"]}, "players: x is nan; expected a number"),
            ({"plot": "a.xyz"}, r"plot is .*a\.xyz; expected a file that ends in \.png, \.pdf, \.svg"),
            ({"bars": "a.csv"}, r"bars is .*a\.csv; expected a file that ends in"),
            (
                {"csv": "a.csv", "bars": "a.png"},
                r"bars is .*a\.png; expected another name, since csv writes .*a\.csv, too",
            ),
            ({"plot": "a.png", "bars": "a.png"}, "bars is .*; expected another name, since plot writes"),
            ({"plot": "a.png", "bars": "a.svg"}, r"since plot writes .*a\.csv, too"),
            ({"export": "a.csv", "last": 2}, "last is 2"),
            ({"export": "a.csv", "baseline": "nobody"}, "baseline is nobody"),
            ({"export": "a.csv", "quantities": ["finall"]}, "quantities is finall"),
        ],
    )
    def test_mistakes_write_nothing(self, options: dict, message: str, stored: str, tmp_path: Path) -> None:
        files = {name: tmp_path / value for name, value in options.items() if isinstance(value, str) and "." in value}
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match=message):
            compare([stored], **{**options, **files})
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_report_takes_nothing_else(self, tmp_path: Path) -> None:
        manifest = tmp_path / "report.yaml"
        manifest.write_text("document: doc.md")
        (tmp_path / "doc.md").write_text("no table\n")
        for options, name in (({"rule": "best"}, "rule is best"), ({"csv": tmp_path / "x.csv"}, "csv is")):
            with pytest.raises(ConfigError, match=f"{name}.*; expected nothing beside report"):
                compare([], report=manifest, **options)
        with pytest.raises(ConfigError, match=r"sources is \['a.csv'\]; expected nothing beside report"):
            compare(["a.csv"], report=manifest)
        compare([], report=manifest)

    def test_numbers_are_the_same_each_time(self, stored: str, tmp_path: Path) -> None:
        for name in ("one", "two"):
            compare([stored], csv=tmp_path / f"{name}.csv")
        assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
        compare([stored], csv=tmp_path / "other.csv", seed=1)
        one, other = (np.genfromtxt(tmp_path / f"{name}.csv", delimiter=",", names=True) for name in ("one", "other"))
        assert np.array_equal(one["mean"], other["mean"])
