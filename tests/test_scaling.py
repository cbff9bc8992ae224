"""`benchmarks/scaling.py`: what it runs, what it keeps, what it writes. Nothing here depends on times."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import build
from hyperrl.experiments.comparison.report import fill

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scaling  # noqa: E402
import scaling_report  # noqa: E402
from scaling import Point  # noqa: E402

SMALL: dict[str, Any] = {"num_envs": 4, "steps": 8, "condition": 3, "layers": (8,)}
POINTS = {
    "environments": [Point(**SMALL), Point(**{**SMALL, "num_envs": 8})],
    "horizon": [Point(**SMALL), Point(**SMALL, model="SplAgger")],
    "latent": [Point(**SMALL), Point(**SMALL, latent_dim=7)],
    "hypernetwork": [Point(**SMALL), Point(**{**SMALL, "layers": (256, 128)})],
}
MACHINE = {"cpu": "one", "cores": 2, "date": "today", "commit": "this"}
PEAKS = {"bandwidth": 1e10, "latency": 1e-6, "process_mib": 500.0}
NUMBERS = {"frames_per_second": 1000.0, "gflops": 20.0, "share_environment": 0.1, "share_acting": 0.2,
           "share_update": 0.7}  # fmt: skip


def groups() -> dict[str, list[str]]:
    return {name: [point.name for point in points] for name, points in scaling.GROUPS.items()}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces trainings by numbers; what was trained, in order."""
    calls: list[dict[str, Any]] = []

    def train(configs: list[str], overrides: dict[str, Any], frames: int, warmup: int) -> dict[str, Any]:
        calls.append({**overrides, "configs": configs, "frames": frames, "warmup": warmup})
        results = {" + ".join(configs): NUMBERS, "process": {"peak_mib": 700.0}}
        return {"gemm_gflops": {"fp32": 100.0, "bf16": 400.0}, "results": results}

    monkeypatch.setattr(scaling, "train", train)
    monkeypatch.setattr(scaling, "describe_machine", lambda: MACHINE)
    monkeypatch.setattr(scaling, "measure_machine", lambda: PEAKS)
    monkeypatch.setattr(scaling, "PROJECTED", {"GridNavi, RNN+HN": ("gridnavi_rnn_hn", 4096)})
    monkeypatch.setattr(scaling, "GROUPS", POINTS)
    return calls


def test_equal_points_are_measured_once_and_kept(trained: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "new" / "scaling.json"
    first = scaling.run(["environments"], output)
    assert [call["data.num_envs"] for call in trained] == [4, 8]
    assert trained[0]["warmup"] == 2
    assert trained[0]["frames"] == 22 * 4 * 8
    assert json.loads(output.read_text()) == json.loads(json.dumps(first))
    trained.clear()
    again = scaling.run(["environments", "horizon"], output)
    assert [call["configs"][1] for call in trained] == ["model/splagger"]
    assert len(again["points"]) == 3
    assert again["machine"] == {**MACHINE, **PEAKS}


def test_what_failed_is_named_and_tried_again(
    trained: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = scaling.train

    def fails(configs: list[str], overrides: dict[str, Any], frames: int, warmup: int) -> dict[str, Any]:
        if overrides["data.num_envs"] == 8:
            raise RuntimeError("exit status 1")
        return works(configs, overrides, frames, warmup)

    monkeypatch.setattr(scaling, "train", fails)
    large = POINTS["environments"][1].name
    report = scaling.run(["environments"], tmp_path / "scaling.json")
    assert report["failed"] == {large: "exit status 1"}
    assert list(report["points"]) == [POINTS["environments"][0].name]
    monkeypatch.setattr(scaling, "train", works)
    report = scaling.run(["environments"], tmp_path / "scaling.json")
    assert report["failed"] == {}
    assert large in report["points"]


def test_table_figure_and_page(trained: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = Path(shutil.copy(ROOT / "docs" / "scaling.md", tmp_path / "docs"))
    report = scaling.run(list(POINTS), tmp_path / "scaling.json")
    numbers, picture, beside, written = scaling_report.write_report(report, groups(), tmp_path)
    assert written == page
    assert imread(picture).std() > 0.05  # something is drawn
    assert numbers.read_text() == beside.read_text()
    rows = list(csv.DictReader(numbers.open()))
    assert [row["group"] for row in rows] == [group for group, points in POINTS.items() for _ in points]
    assert {row["series"] for row in rows} == {"RNN+HN", "SplAgger", "RNN+HN, layers", "RNN+HN, condition"}
    row = rows[0]
    assert (row["environments"], row["steps"], row["frames_per_second"]) == ("4", "8", "1000")
    assert float(row["share"]) == pytest.approx(1000 / float(row["at_most"]), rel=1e-3)
    assert float(row["mflop_per_frame"]) == 20
    assert float(row["modelled_mib"]) > PEAKS["process_mib"]
    text = page.read_text()
    assert re.search(r"^\| 8 \| 1,000 \|.*\| 30% \| 70% \| 20\.0 \|.*\| 700 \|", text, re.M)
    assert re.search(r"^\| GridNavi, RNN\+HN \| 64 H100 \| [\d,]+ \| [\d,]+ \| \w+: \w+ \|", text, re.M)
    # A page is written anew, not twice.
    scaling_report.write_report(report, groups(), tmp_path)
    assert page.read_text() == text


def test_what_was_not_measured_is_left_open(trained: list[dict[str, Any]], tmp_path: Path) -> None:
    report = scaling.run(["environments"], tmp_path / "scaling.json")
    report["points"][POINTS["environments"][0].name]["numbers"] = {**NUMBERS, "peak_mib": None}
    rows = scaling_report.make_rows(report, groups())
    assert re.search(
        r"^\| 4 \|.*\| - \| [\d,]+ \|$", scaling_report.make_tables(report, rows)["scaling_environments"], re.M
    )
    scaling_report.write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open() as file:
        assert [row["peak_mib"] for row in csv.DictReader(file)][:2] == ["", "700"]


def test_physics_are_those_of_the_newest_benchmark(tmp_path: Path) -> None:
    def write(date: str, rate: float) -> None:
        results = {"Robot x 512": {"step_and_maybe_reset_per_second": rate}}
        report = {"machine": {"cores": 2}, "benchmarks": {"envs": {"results": results}}}
        (tmp_path / f"{date}.json").write_text(json.dumps(report))

    with pytest.raises(ConfigError, match="expected Robot x 512, as measured by benchmarks/run.py"):
        scaling.steps_per_core("Robot x 512", tmp_path)
    write("2026-02-01", 600.0)
    write("2026-01-01", 100.0)
    (tmp_path / "scaling-2026-03-01.json").write_text("{}")
    assert scaling.steps_per_core("Robot x 512", tmp_path) == 300
    with pytest.raises(ConfigError, match="expected Robot x 16"):
        scaling.steps_per_core("Robot x 16", tmp_path)


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    empty = scaling.read(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="expected measured points"):
        scaling_report.write_report(empty, groups(), tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": {}}'])
def test_files_of_other_kinds_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--output .*other\.json: expected a JSON of benchmarks/scaling\.py"):
        scaling.read(path)


def test_points_change_one_factor_at_a_time() -> None:
    """The horizon's have fewer environments, so that a rollout stays as long, until each minibatch has but one."""
    base = vars(Point())
    allowed = {
        "environments": {"num_envs"}, "horizon": {"num_envs", "steps", "model"}, "latent": {"latent_dim"},
        "hypernetwork": {"condition", "layers"},
    }  # fmt: skip
    for group, points in scaling.GROUPS.items():
        for point in points:
            changed = {name for name, value in vars(point).items() if value != base[name]}
            assert changed <= allowed[group]
            assert group == "horizon" or len(changed) <= 1
            assert point.num_envs % 4 == point.steps % 4 == 0
            assert point.rollouts >= (1 if point.frames >= scaling.ENOUGH_FRAMES else 2)


def test_a_point_is_what_it_says() -> None:
    """Configuration and overrides, as `hyperrl fit` takes them, give that model and that task."""
    point = Point(num_envs=8, steps=240, latent_dim=7, condition=3, layers=(16, 8), model="SplAgger")
    learner, data = build(scaling._resolve(point.configs, point.overrides))
    assert (data.num_envs, data.steps_per_rollout, data.env_info.horizon) == (8, 240, 240)
    assert learner.agent.encoder.latent_dim == 14
    assert type(learner.agent.encoder.aggregator).__name__ == "Max"
    layers = learner.agent.policy.actor.layers
    assert [layer.out_features for layer in layers] == [16, 8, 5]
    assert layers[0].terms == 4


def test_products_are_shared_where_the_policy_shares_them() -> None:
    point: dict[str, Any] = {"num_envs": 16, "steps": 60, "distinct": (20.0, 30.0, 40.0), "sizes": {"state_dim": 256}}
    setting = scaling_report.point_setting(point)
    assert (setting.acting_distinct, setting.distinct, setting.values_distinct) == (20.0, 30.0, 40.0)
    assert scaling_report.point_setting({**point, "distinct": (20.0, 30.0, 65.0)}).distinct is None
    assert scaling_report.point_setting({**point, "sizes": {"state_dim": 64}}).distinct is None


def test_the_page_shows_what_was_measured() -> None:
    """docs/scaling.md, the CSV and the JSON that they came from cannot drift apart."""
    reports = sorted((ROOT / "results" / "benchmarks").glob("scaling-*.json"))
    assert reports, "python benchmarks/scaling.py has not measured yet"
    report = scaling.read(reports[-1])
    rows = scaling_report.make_rows(report, groups())
    assert {row.group for row in rows} == set(scaling.GROUPS)
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert fill(text, scaling_report.make_tables(report, rows)) == text
    measured = [row["frames_per_second"] for row in csv.DictReader((ROOT / "results" / "speed_scaling.csv").open())]
    assert measured == [f"{row.frames_per_second:.4g}" for row in rows]
