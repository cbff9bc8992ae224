"""`benchmarks/run.py`: what it runs, what it keeps, and how it compares two reports. Nothing here depends on times."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyperrl.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SPEC = importlib.util.spec_from_file_location("benchmarks_run", FOLDER / "run.py")
assert SPEC is not None
assert SPEC.loader is not None
run = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = run  # dataclasses look there
SPEC.loader.exec_module(run)


def line(numbers: dict[str, float], fp32: float = 100.0, bf16: float = 300.0, **settings: object) -> dict[str, Any]:
    """What a benchmark prints."""
    gemm = {"fp32": fp32, "bf16": bf16}
    return {"torch": "2", "threads": 1, "gemm_gflops": gemm, "settings": settings, "results": {"case": numbers}}


def report(**lines: dict[str, Any]) -> dict[str, Any]:
    return {"machine": {"cpu": "one"}, "benchmarks": lines, "failed": {}}


def cells(new: dict[str, Any], old: dict[str, Any], noise: float = 0.25) -> dict[str, list[str]]:
    """Old, new, ratio, yardstick, adjusted and verdict by number."""
    return {name: rest for _, name, *rest in run.comparison(new, old, noise)}


def test_every_benchmark_is_run() -> None:
    # Scaling takes a quarter of an hour and has a command and a page of its own.
    others = {"run.py", "common.py", "scaling.py", "scaling_report.py", "cost_model.py", "model_sizes.py"}
    files = {path.name for path in FOLDER.glob("*.py")} - others
    assert files == {benchmark.file for benchmark in run.BENCHMARKS.values()}


def test_a_slower_machine_is_not_a_slower_library() -> None:
    """All that depends on speed halved with the yardstick; what does not, stayed."""
    old = line({"step_per_second": 800.0, "update_gflops": 50.0, "ms": 2.0, "whole_ms": 4.0, "kept_mib": 7.0})
    numbers = {"step_per_second": 400.0, "update_gflops": 25.0, "ms": 4.0, "whole_ms": 8.0, "kept_mib": 7.0}
    new = line(numbers, fp32=50.0)
    rows = cells(new, old)
    assert rows["step_per_second"] == ["800", "400", "0.50", "0.50", "1.00", ""]
    assert rows["update_gflops"] == ["50", "25", "0.50", "0.50", "1.00", ""]
    assert rows["whole_ms"] == ["4", "8", "2.00", "0.50", "1.00", ""]
    assert rows["ms"] == ["2", "4", "2.00", "0.50", "1.00", ""]
    assert rows["kept_mib"] == ["7", "7", "1.00", "0.50", "1.00", ""]


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("frames_per_second", 100.0, 126.0, "**faster**"),
        ("frames_per_second", 100.0, 124.0, ""),
        ("frames_per_second", 126.0, 100.0, "**slower**"),
        ("frames_per_second", 124.0, 100.0, ""),
        ("gflops", 100.0, 60.0, "**slower**"),
        ("ms", 100.0, 126.0, "**slower**"),
        ("torch_ms", 126.0, 100.0, "**faster**"),
        ("peak_mib", 100.0, 130.0, "**more**"),
        ("speedup", 3.0, 1.5, "**less**"),
        ("share_update", 0.2, 0.4, ""),
    ],
)
def test_what_moved_beyond_the_noise_is_marked(name: str, old: float, new: float, expected: str) -> None:
    assert cells(line({name: new}), line({name: old}))[name][-1] == expected


def test_the_noise_limit_can_be_set() -> None:
    new, old = line({"ms": 110.0}), line({"ms": 100.0})
    assert cells(new, old, noise=0.05)["ms"][-1] == "**slower**"
    assert cells(new, old, noise=0.15)["ms"][-1] == ""


def test_the_yardstick_has_the_precision_of_the_benchmark() -> None:
    old = {"fp32": 100.0, "bf16": 300.0}
    new = {"fp32": 50.0, "bf16": 600.0}
    for precision, expected in (("bf16-mixed", 2.0), ("32-true", 0.5)):
        assert run.yardstick(line({}, **new, precision=precision), line({}, **old, precision=precision)) == expected
    assert run.yardstick(line({}, **new), line({}, **old)) == 0.5


def test_numbers_without_a_counterpart_are_shown() -> None:
    rows = cells(line({"new_ms": 1.0, "share_inference": 0.5}), line({"old_ms": 2.0, "share_inference": 0.0}))
    assert rows == {
        "new_ms": ["-", "1", "-", "-", "-", ""],
        "old_ms": ["2", "-", "-", "-", "-", ""],
        "share_inference": ["0", "0.5", "-", "-", "-", ""],  # nothing to divide by
    }


def test_only_like_is_compared_with_like() -> None:
    new = report(same=line({"ms": 1.0}, batch=4), other=line({"ms": 1.0}, batch=8), added=line({"ms": 1.0}))
    old = report(same=line({"ms": 1.0}, batch=4), other=line({"ms": 1.0}, batch=4), gone=line({"ms": 1.0}))
    table, *remarks = run.compared(new, old, 0.25).split("\n\n")
    assert table.splitlines()[2:] == ["| same | case | ms | 1 | 1 | 1.00 | 1.00 | 1.00 |  |"]
    assert "more than 25%" in remarks[0]
    assert remarks[1:4] == [
        "`other` ran with other settings or threads than in the old report: not compared.",
        "`added` is not in the old report.",
        "`gone` was not run this time.",
    ]


def test_an_interrupt_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(name: str, budget: str) -> dict[str, Any]:
        if name == "memory":
            raise KeyboardInterrupt
        if name == "gru":
            raise RuntimeError("exit status 1")
        return line({"ms": 1.0})

    monkeypatch.setattr(run, "measure", measure)
    output = tmp_path / "new" / "report.json"
    kept = run.run(["gru", "envs", "memory", "train"], "small", output)
    assert json.loads(output.read_text()) == kept
    assert kept["benchmarks"] == {"envs": line({"ms": 1.0})}
    assert kept["failed"] == {"gru": "exit status 1", "memory": "interrupted"}
    assert kept["machine"]["gemm_gflops"] == {"fp32": 100.0, "bf16": 300.0}
    assert run.table(kept).endswith("`gru` did not finish: exit status 1.\n\n`memory` did not finish: interrupted.")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmarks": {"gru": {"4": {"torch": 1}}}}'])
def test_reports_of_other_kinds_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--against .*old\.json: expected a JSON of benchmarks/run\.py"):
        run.read_report(path)


def test_the_cheapest_benchmark_for_real(tmp_path: Path) -> None:
    """In processes of their own; then against itself."""
    output, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text(json.dumps(report(gru=line({"ms": 1.0}))))
    command = [sys.executable, FOLDER / "run.py", "--only", "gru", "--output", output, "--against", old]
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["failed"] == {}
    assert {"cpu", "cores", "threads", "torch", "commit", "date", "gemm_gflops"} <= result["machine"].keys()
    row = result["benchmarks"]["gru"]["results"]["4 rows"]
    assert row["speedup"] == pytest.approx(row["torch_ms"] / row["hyperrl_ms"], rel=1e-2)
    assert done.stdout == output.with_suffix(".md").read_text()
    assert "`gru` ran with other settings" in done.stdout
    again = run.compared(result, result, 0.25)
    assert f"| gru | 4 rows | torch_ms | {run.show(row['torch_ms'])} " in again
    assert "**" not in again
