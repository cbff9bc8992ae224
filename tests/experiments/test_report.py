"""docs/results.md and the data in results/ cannot drift apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread

from hyperrl.envs import landmarks
from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.report import fill, lines_of_runs, write_report
from hyperrl.experiments.comparison.runs import Run, make_series, write_runs
from hyperrl.experiments.comparison.sources import find_runs

ROOT = Path(__file__).parents[2]


def test_document_is_what_the_data_say(tmp_path: Path) -> None:
    """The documented command changes nothing: neither the document nor the numbers beside the pictures."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "results.md", tmp_path / "docs")
    written = write_report(tmp_path / "results" / "report.yaml")
    assert written.pop() == tmp_path / "docs" / "results.md"
    assert (tmp_path / "docs" / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()
    text = (ROOT / "docs" / "results.md").read_text()
    numbers = {path.stem for path in (ROOT / "docs" / "figures").glob("*.csv") if path.read_text().startswith("panel,")}
    assert {picture.stem for picture in written} == numbers
    for picture in written:
        committed = ROOT / picture.relative_to(tmp_path)
        assert f"(figures/{picture.name})" in text
        assert picture.with_suffix(".csv").read_text() == committed.with_suffix(".csv").read_text()
        height, width = imread(picture).shape[:2]
        assert (height, width) == imread(committed).shape[:2]
        assert picture.stat().st_size > 30_000


RESULTS = sorted(path for path in (ROOT / "results").glob("*.csv") if path.read_text().startswith("run,kind,"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_runs_name_a_commit_and_none_beats_who_knows_the_task(path: Path) -> None:
    """An excess over the best possible return would be an error of accounting (spec/results.md section 5.5)."""
    for run in find_runs([str(path)]):
        assert run.tags["git_commit"], run.id
        best = landmarks(run.env).get("task_known")
        mean, error = run.last("test/return"), run.last("test/return_sem")
        if best is not None and mean is not None and error is not None:
            assert mean <= best + 3 * error + 1e-4, run.id  # returns are sums in fp32


class TestFill:
    """Tables between marks."""

    TEXT = "a\n<!-- table one -->\n| old |\n<!-- /table -->\nb\n<!-- table two -->\n<!-- /table -->\n"

    def test_only_what_is_between_changes(self) -> None:
        filled = fill(self.TEXT, {"one": "| 1 |\n", "two": "| 2 |\n"})
        expected = (
            "a\n<!-- table one -->\n\n| 1 |\n\n<!-- /table -->\nb\n<!-- table two -->\n\n| 2 |\n\n<!-- /table -->\n"
        )
        assert filled == expected
        assert fill(filled, {"one": "| 1 |\n", "two": "| 2 |\n"}) == filled

    def test_each_table_has_one_mark(self) -> None:
        with pytest.raises(ConfigError, match="tables: two has 1 marks in the document, no table in the manifest"):
            fill(self.TEXT, {"one": ""})
        with pytest.raises(ConfigError, match=r"tables: tow has 0 marks in the document, one .*did you mean two\?"):
            fill(self.TEXT, {"one": "", "two": "", "tow": ""})
        with pytest.raises(ConfigError, match="tables: one has 2 marks in the document"):
            fill(2 * self.TEXT, {"one": "", "two": ""})


class TestLines:
    """One line per run."""

    RUNS = (
        Run(
            "1",
            {"model": "m", "seed": "3"},
            {},
            {"val/return": make_series({10: 4, 20: 2}), "test/x": make_series({5: 1})},
        ),
        Run("2", {"model": "n", "seed": "4", "note": "hm"}, {}, {"val/return": make_series({10: 7})}),
    )

    def test_cells(self) -> None:
        templates = ["`{label}`", "{val/return:.1f} of {best/val/return:.1f}", "{frames:,}", "{test/x:.2f}", "{note}"]
        assert lines_of_runs(self.RUNS, templates) == [
            ["`m`", "2.0 of 4.0", "20", "1.00", ""],
            ["`n`", "7.0 of 7.0", "10", "", "hm"],
        ]

    def test_seeds_of_a_setting_stand_together(self) -> None:
        names = ["n10", "m2", "n9", "m1"]
        runs = [Run(name, {"model": name[0], "seed": name[1:]}, {"data.env_options.x": "7"}) for name in names]
        assert lines_of_runs(runs, ["{label}{seed}"]) == [["n9"], ["n10"], ["m1"], ["m2"]]
        assert lines_of_runs(runs[:1], ["{data.env_options.x}"]) == [["7"]]
        other = Run("n8", {"model": "n", "seed": "8", "group": "other learning rate"})
        assert lines_of_runs([*runs, other], ["{seed}"]) == [["9"], ["10"], ["1"], ["2"], ["8"]]

    def test_frames_until_a_level_is_reached(self) -> None:
        cells = lines_of_runs(self.RUNS, ["{reached/4/val/return}", "{reached/6.5/val/return}", "{reached/1/test/x:,}"])
        assert cells == [["10", "", "5"], ["10", "10", ""]]
        with pytest.raises(ConfigError, match=r"\{reached/4/val/retrun\}: no run has it"):
            lines_of_runs(self.RUNS, ["{reached/4/val/retrun}"])
        with pytest.raises(ConfigError, match=r"\{reached/val/return\}: expected reached/LEVEL/METRIC"):
            lines_of_runs(self.RUNS, ["{reached/val/return}"])

    def test_unknown_name(self) -> None:
        with pytest.raises(ConfigError, match=r"columns: \{tset/x\}: no run has it; did you mean test/x\?"):
            lines_of_runs(self.RUNS, ["{tset/x}"])


class TestManifest:
    """What is wrong in a manifest is one line, and nothing is written."""

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Path:
        write_runs(tmp_path / "runs.csv", list(TestLines.RUNS))
        (tmp_path / "doc.md").write_text(TestFill.TEXT)
        return tmp_path / "report.yaml"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("document: doc.md\ntabels: {}", r"manifest: tabels: expected one of .*; did you mean tables\?"),
            ("[1]", "manifest is '\\[1\\]'; expected keys out of document, pictures, tables"),
            ("document: doc.md\ntables: {one: absent.csv}", "tables: one: .*absent.csv: no such file"),
            (
                "document: doc.md\ntables: {one: {sources: [runs.csv], colums: {}}}",
                "tables: one: colums: expected one of",
            ),
            (
                "document: doc.md\ntables: {one: {sources: [runs.csv], labels: [x], columns: {a: '{label}'}}}",
                "labels: x: expected one of m, n",
            ),
            (
                "document: doc.md\ntables: {one: {sources: [runs.csv], settings: {smothing: 0}}}",
                r"settings: smothing: expected one of .*; did you mean smoothing\?",
            ),
            (
                "document: doc.md\ntables: {one: {sources: [runs.csv], settings: {rule: bogus}}}",
                "rule is bogus; expected one of mean",
            ),
            (
                "document: doc.md\ntables: {one: {sources: [runs.csv], settings: {level: abc}}}",
                "level is abc; expected a number",
            ),
            ("document: doc.md\ntables: {one: {labels: [m]}}", "tables: one: sources is missing"),
            ("document: doc.md\ntables: {one: {sources: runs.csv}}", "sources is 'runs.csv'; expected a list"),
            ("document: doc.md\ntables: {one: {sources: []}}", "sources: none; expected files of runs"),
            ("document: doc.md\ntables: [1]", "tables is '\\[1\\]'; expected names with values"),
            ("tables: {}", "manifest: document is missing"),
            ("document: absent.md", r"document: .*absent\.md: no such file"),
            ("document: 3", "document is '3'; expected text"),
            ("document: [", r"report\.yaml: no YAML file"),
        ],
    )
    def test_mistakes(self, text: str, message: str, manifest: Path) -> None:
        manifest.write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            write_report(manifest)
        assert "\n" not in str(error.value)
        assert (manifest.parent / "doc.md").read_text() == TestFill.TEXT

    def test_wrong_pictures_leave_the_others_undrawn(self, manifest: Path) -> None:
        manifest.parent.joinpath("doc.md").write_text("no table\n")
        good = "{file: a.png, sources: [runs.csv]}"
        for entry, message in (
            ("{sources: [runs.csv]}", "pictures: file is missing"),
            ("{file: b.xyz, sources: [runs.csv]}", r"file is .*b\.xyz; expected a file that ends in \.png"),
            ("{file: b.png, sources: [runs.csv], players: {x: abc}}", "players: x is abc; expected a number"),
        ):
            manifest.write_text(f"document: doc.md\npictures: [{good}, {entry}]")
            with pytest.raises(ConfigError, match=message):
                write_report(manifest)
            assert not (manifest.parent / "a.png").exists()

    def test_kinds_of_pictures(self, manifest: Path) -> None:
        manifest.parent.joinpath("doc.md").write_text("no table\n")
        entry = "document: doc.md\npictures: [{file: p.png, kind: KIND, sources: [runs.csv]}]"
        manifest.write_text(entry.replace("KIND", "bras"))
        with pytest.raises(ConfigError, match=r"kind is bras; expected one of curves, bars; did you mean bars\?"):
            write_report(manifest)
        manifest.write_text(entry.replace("KIND", "bars"))
        assert [path.name for path in write_report(manifest)] == ["p.png", "doc.md"]
        assert (manifest.parent / "p.csv").read_text().startswith("panel,model,n,x,value,low,high\n")

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such file; expected a manifest such as results/report.yaml"):
            write_report(tmp_path / "report.yaml")
