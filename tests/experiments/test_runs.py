"""Runs come from files, directories and MLflow, and lose nothing on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from hyperrl.errors import ConfigError, TrackingError
from hyperrl.experiments.comparison.runs import HEADER, Run, for_export, make_series, read_runs, write_runs
from hyperrl.experiments.comparison.sources import find_runs, read_directory, read_experiment, split_source
from hyperrl.tracking import MLflowLogger

CONFIG = {
    "seed_everything": 3,
    "trainer": {"default_root_dir": "/home/someone"},
    "model": {"ppo": {"lr": 0.001}, "name": "tiny", "layers": [256, 128]},
    "data": {"env": "GridNavi-v0", "frames": 300, "env_options": None},
}


def same(one: Run, other: Run) -> bool:
    """Equal in everything; NaN equals NaN."""
    return (
        (one.id, one.tags, one.config) == (other.id, other.tags, other.config)
        and one.metrics.keys() == other.metrics.keys()
        and all(
            np.array_equal(part, again, equal_nan=True) and part.dtype == again.dtype
            for name in one.metrics
            for part, again in zip(one.metrics[name], other.metrics[name], strict=True)
        )
    )


def a_run(id: str = "abc", **tags: str) -> Run:
    numbers = {100: 0.1 + 0.2, 200: -1e-300, 300: np.nan, 400: np.inf, 500: 5e300, 600: 1 / 3}
    metrics = {"val/return": make_series(numbers), "test/return": make_series({500: 2.0})}
    text = {"model": "m", "env": "GridNavi-v0", "seed": "1", "note": 'a "quoted", text\nof two lines ± é', **tags}
    return Run(id, text, {"model.ppo.lr": "0.001", "empty": ""}, metrics)


class TestFile:
    """Small CSV files."""

    def test_round_trip_is_exact(self, tmp_path: Path) -> None:
        runs = [a_run("one"), a_run("two", seed="2")]
        write_runs(tmp_path / "new" / "runs.csv", runs)
        again = read_runs(tmp_path / "new" / "runs.csv")
        assert len(again) == 2
        assert all(map(same, runs, again))

    def test_export_keeps_what_matters(self) -> None:
        frames = {10 * index: float(index) for index in range(1000)}
        run = Run(
            "0123456789abcdef",
            {"model": "m"},
            {"trainer.default_root_dir": "/home/someone", "ckpt_path": "x", "seed_everything": "3", "model.a": "1"},
            {
                name: make_series(frames)
                for name in ("val/return", "val/x", "train/return", "loss/total", "test/return")
            },
        )
        (kept,) = for_export([run])
        assert kept.id == "01234567"
        assert kept.tags == {"model": "m", "run_id": run.id}
        assert kept.config == {"seed_everything": "3", "model.a": "1"}
        lengths = {name: len(series.frames) for name, series in kept.metrics.items()}
        assert lengths == {"val/return": 1000, "val/x": 1000, "test/return": 1000, "train/return": 50}
        assert kept.metrics["train/return"].frames[[0, -1]].tolist() == [0, 9990]
        assert same(for_export([kept])[0], kept)

    def test_short_ids_stay_different(self) -> None:
        runs = [Run("0123456789", {}), Run("012345678a", {}), Run("3", {})]
        kept = for_export(runs)
        assert [run.id for run in kept] == ["0123456789", "012345678a", "3"]
        assert [run.full_id for run in kept] == [run.id for run in runs]
        assert [run.id for run in for_export(runs[1:])] == ["01234567", "3"]
        with pytest.raises(ConfigError, match="export: 1 runs are there under two labels; expected each run once"):
            for_export([a_run().labelled("a"), a_run().labelled("b")])

    def test_wrong_files_are_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.csv: no such file; expected runs that"):
            read_runs(tmp_path / "absent.csv")
        path = tmp_path / "x.csv"
        path.write_text("frames,return\n1,2\n")
        with pytest.raises(ConfigError, match="expected a CSV file with the columns run,kind,name,frames,value"):
            read_runs(path)
        for line in ("a,metric,val/return,ten,1", "a,metric,val/return", "a,colour,val/return,1,1"):
            path.write_text(f"{','.join(HEADER)}\n{line}\n")
            with pytest.raises(ConfigError, match=r"x\.csv, line 2: 'a,\w+,val/return.*' is no part of a run"):
                read_runs(path)


class TestRun:
    """One run."""

    def test_label(self) -> None:
        assert a_run().label == "m"
        assert a_run().labelled("").label == "m"
        assert a_run().labelled("other").label == "other"

    def test_missing_metric_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"metric val/retrun: run abc of m has none; did you mean val/return\?"):
            a_run().series("val/retrun")

    def test_cut(self) -> None:
        cut = a_run().cut(500)
        assert cut.metrics["val/return"].frames.tolist() == [100, 200, 300, 400]
        assert "test/return" not in cut.metrics
        assert same(a_run().cut(None), a_run())


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an MLflow store and one run that was logged to it as training does."""
    root = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    logger = MLflowLogger("trial", run_name="first", tracking_uri=uri, save_dir=str(root), tags={"sweep": "s1"})
    logger.log_config(CONFIG, yaml.safe_dump(CONFIG), {"model": "tiny"})
    for step, value in ((100, 1.5), (200, float("nan")), (300, 4.25)):
        logger.log_metrics({"val/return": value, "loss/total": value}, step)
        logger.log_metrics({"train/return": value}, step)
    logger.log_metrics({"test/return": 7.0}, 300)
    logger.finalize()
    return root


class TestSources:
    """The same run from everywhere."""

    def test_mlflow(self, tracked: Path) -> None:
        (run,) = read_experiment("trial", tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")
        expected = {"name": "first", "model": "tiny", "env": "GridNavi-v0", "seed": "3", "status": "FINISHED"}
        assert {name: run.tags[name] for name in expected} == expected
        assert run.tags["version.torch"]
        assert not any(name.startswith("mlflow.") for name in run.tags)
        assert run.config["model.ppo.lr"] == "0.001"
        assert "env" not in run.config
        assert set(run.metrics) == {"val/return", "train/return", "test/return"}
        assert run.metrics["val/return"].frames.tolist() == [100, 200, 300]
        assert np.array_equal(run.metrics["val/return"].values, [1.5, np.nan, 4.25], equal_nan=True)

    def test_directory_is_the_same_run(self, tracked: Path) -> None:
        (there,) = read_experiment("trial", tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")
        here = read_directory(tracked / "trial" / there.id)
        assert here.config == there.config
        assert here.status == "FINISHED"  # 300 of 300 frames
        for name, series in there.metrics.items():
            assert np.array_equal(here.metrics[name].values, series.values, equal_nan=True)
            assert np.array_equal(here.metrics[name].frames, series.frames)

    def test_filters_and_labels(self, tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracked / 'mlflow.db'}")
        (run,) = find_runs(["ours=trial"], ["sweep=s1", "env=GridNavi-v0"])
        assert run.label == "ours"
        monkeypatch.chdir(tracked.parent)
        (tracked.parent / "trial").mkdir(exist_ok=True)  # of the same name, but without runs
        assert len(find_runs(["trial"])) == 1
        with pytest.raises(ConfigError, match="trial: no run with sweep=s2 there"):
            find_runs(["trial"], ["sweep=s2"])
        with pytest.raises(ConfigError, match="where: 'sweep'; expected NAME=VALUE"):
            find_runs(["trial"], ["sweep"])

    def test_one_run_counts_once(self, tracked: Path) -> None:
        directory = str(tracked / "trial")
        assert len(find_runs([directory, directory])) == 1
        exported = tracked / "exported.csv"
        write_runs(exported, for_export(find_runs([directory])))
        assert len(find_runs([directory, str(exported)])) == 1
        assert [run.label for run in find_runs([f"a={directory}", f"b={directory}"])] == ["a", "b"]

    def test_unfinished_directory(self, tracked: Path, tmp_path: Path) -> None:
        (source,) = (tracked / "trial").iterdir()
        for name in ("config.yaml", "metrics.jsonl"):
            lines = (source / name).read_text().splitlines(keepends=True)
            (tmp_path / name).write_text("".join(lines[:-2] if name == "metrics.jsonl" else lines))
        (tmp_path / "metrics.jsonl").write_text(
            (tmp_path / "metrics.jsonl").read_text().replace('"step": 300', '"step": 299')
        )
        assert read_directory(tmp_path).status == "UNFINISHED"
        (tmp_path / "config.yaml").unlink()
        with pytest.raises(ConfigError, match=r"no config\.yaml there; expected the directory of a run"):
            read_directory(tmp_path)

    def test_last_line_cut_off(self, tracked: Path, tmp_path: Path) -> None:
        """A run that still trains, or was killed in the middle of a line."""
        (source,) = (tracked / "trial").iterdir()
        whole = (source / "metrics.jsonl").read_bytes()
        for name, content in (("config.yaml", (source / "config.yaml").read_bytes()), ("metrics.jsonl", whole[:-9])):
            (tmp_path / name).write_bytes(content)
        assert whole.endswith(b"\n")
        assert "test/return" not in read_directory(tmp_path).metrics  # the last line
        assert same(read_directory(tmp_path).cut(300), replace(read_directory(source), id=tmp_path.name).cut(300))
        (tmp_path / "metrics.jsonl").write_bytes(whole[:-9] + b"\n")
        with pytest.raises(ConfigError, match=rf"metrics\.jsonl, line {whole.count(10)}: .* is no line of metrics"):
            read_directory(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("a: [", r"config\.yaml: no YAML file: .*line 1"), ("- 1", r"holds '\[1\]'; expected the")],
    )
    def test_broken_configuration(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").touch()
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            read_directory(tmp_path)
        assert "\n" not in str(error.value)

    def test_junk_for_a_store_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "mlflow.db").write_text("junk" * 1000)
        with pytest.raises(TrackingError, match="MLflow cannot be used at .*not a database") as error:
            read_experiment("trial", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
        assert "\n" not in str(error.value)

    def test_equals_in_labels_and_paths(self, tmp_path: Path) -> None:
        path = tmp_path / "a=b" / "c=d.csv"
        write_runs(path, [a_run()])
        for source, label in ((f"{path}", "m"), (f"x={path}", "x"), (f"lr=0.1={path}", "lr=0.1")):
            assert [run.label for run in find_runs([source])] == [label]
        assert split_source("a=b/c=d.csv", tmp_path) == ("", "a=b/c=d.csv")
        assert split_source("lr=0.1=experiment") == ("lr=0.1", "experiment")
        assert split_source("x=") == ("x", "")

    def test_unknown_experiment(self, tracked: Path, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"trail: no file or directory with runs, and no experiment at .*; did you mean trial\?"
        ):
            find_runs(["trail"], tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")
        absent = tmp_path / "absent" / "mlflow.db"
        with pytest.raises(ConfigError, match="trail: no file or directory with runs, and no MLflow store at"):
            find_runs(["trail"], tracking_uri=f"sqlite:///{absent}")
        assert not absent.parent.exists()
