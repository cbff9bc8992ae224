"""Runs all benchmarks, each in a process of its own, and compares with an earlier report.

    python benchmarks/run.py                                  # about five minutes on two cores
    python benchmarks/run.py --only gru train --against OLD.json
    python benchmarks/run.py --budget full --output full.json

Writes one JSON (the machine, and the last line of every benchmark) and beside it one Markdown table, which is printed,
too. With `--against` the table has old and new numbers. Machines differ, and one machine from hour to hour: speeds and
times are therefore also compared after division by the yardstick, the rate of a large matrix product that each
benchmark measures in its own process. What then moved by more than `--noise` is marked. An interrupt keeps what is
finished. OMP_NUM_THREADS sets the threads, as always.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyperrl.errors import ConfigError

FOLDER = Path(__file__).resolve().parent
NOISE = 0.25

Budget = Literal["small", "full"]
# A report is {"machine": {...}, "benchmarks": {name: line}, "failed": {name: reason}}; lines as in `common.Report`.
Line = dict[str, Any]
LINE_KEYS = {"threads", "gemm_gflops", "settings", "results"}
Numbers = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Benchmark:
    """A file of this folder and its arguments; a full run without any takes the file's own defaults."""

    file: str
    small: str
    full: str = ""


TRAIN = "--config experiment/gridnavi_rnn_hn"
THROUGHPUT = f"{TRAIN} --config trainer/throughput"
BENCHMARKS = {
    "envs": Benchmark(
        "envs.py",
        "--ids GridNavi-v0 T-LN-P1-v0 PlanningGame-3x3-v0 PointEnv-v0 HalfCheetahDir-v0"
        " --num_envs 16 512 --steps 100 --repeats 5",
        "--num_envs 16 1024 --repeats 5",
    ),
    "gru": Benchmark("gru.py", "--batch 4 16"),
    "hypernet": Benchmark("hypernet.py", "--distinct 50", "--batch 960 --distinct 50"),
    "hypernet-bf16": Benchmark("hypernet.py", "--distinct 50 --bf16", "--batch 960 --distinct 50 --bf16"),
    "compiled": Benchmark("compiled.py", "--acting 16 --learning 240"),
    "memory": Benchmark("memory.py", "--steps 400 --only Max Mean Softmax Gaussian GRU LSTM MinGRU CausalTransformer"),
    "train": Benchmark("train.py", f"{TRAIN} --frames 40000", f"{TRAIN} --frames 200000"),
    "train-bf16": Benchmark(
        "train.py",
        f"{TRAIN} --frames 60000 --trainer.precision bf16-mixed",
        f"{TRAIN} --frames 200000 --trainer.precision bf16-mixed",
    ),
    "train-512-bf16": Benchmark(
        "train.py",
        f"{THROUGHPUT} --frames 77000 --warmup 3",
        f"{THROUGHPUT} --frames 400000 --warmup 3",
    ),
}


def machine() -> dict[str, Any]:
    """Where and when the numbers arise; `load` is what else ran when they were begun."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    git = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 1),
    }


def measure(name: str, budget: Budget) -> Line:
    """Runs one benchmark; its progress shows on stderr.

    Raises:
        RuntimeError: If the benchmark fails, with its exit status.
    """
    benchmark = BENCHMARKS[name]
    arguments = (benchmark.small if budget == "small" else benchmark.full).split()
    command = [sys.executable, str(FOLDER / benchmark.file), *arguments]
    # Configurations are named relative to the repository.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}")
    line: Line = json.loads(done.stdout.splitlines()[-1])
    return line


def run(names: Iterable[str], budget: Budget, output: Path) -> dict[str, Any]:
    """Runs benchmarks one after another and writes the report anew after each of them."""
    report: dict[str, Any] = {"machine": machine(), "budget": budget, "benchmarks": {}, "failed": {}}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            report["benchmarks"][name] = measure(name, budget)
        except RuntimeError as error:
            report["failed"][name] = str(error)
        except KeyboardInterrupt:
            report["failed"][name] = "interrupted"
            break
        finally:
            add_environment(report)
            output.write_text(json.dumps(report, indent=1) + "\n")
    return report


def add_environment(report: dict[str, Any]) -> None:
    """What only processes with torch know; the yardstick is the best that any of them had."""
    lines = list(report["benchmarks"].values())
    if lines:
        rates = [line["gemm_gflops"] for line in lines]
        best = {precision: max(rate[precision] for rate in rates) for precision in rates[0]}
        report["machine"] |= {"torch": lines[0]["torch"], "threads": lines[0]["threads"], "gemm_gflops": best}


def read_report(path: Path) -> dict[str, Any]:
    """An earlier report.

    Raises:
        ConfigError: If there is none in that file.
    """
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--against {path}: expected a JSON of benchmarks/run.py ({error})") from error
    lines = list(report["benchmarks"].values()) if isinstance(report, dict) and "benchmarks" in report else [{}]
    if not all(line.keys() >= LINE_KEYS for line in lines):
        raise ConfigError(f"--against {path}: expected a JSON of benchmarks/run.py, with lines for benchmarks")
    return report


def numbers(line: Line) -> Numbers:
    """All numbers of a benchmark by case and name."""
    return {(case, name): value for case, row in line["results"].items() for name, value in row.items()}


def yardstick(new: Line, old: Line) -> float:
    """How much faster large products in the benchmark's precision are than they were."""
    precision = "bf16" if str(new["settings"].get("precision")).startswith("bf16") else "fp32"
    ratio: float = new["gemm_gflops"][precision] / old["gemm_gflops"][precision]
    return ratio


def adjusted(name: str, ratio: float, yardstick: float) -> float:
    """The ratio that remains when the machine's own is taken out; `common.Report` says what names mean."""
    if name.endswith(("_per_second", "gflops")):
        return ratio / yardstick
    return ratio * yardstick if name.endswith("ms") else ratio


def verdict(name: str, ratio: float, noise: float) -> str:
    """What moved beyond the noise; parts of the time move against each other, and are not judged."""
    if name.startswith("share_") or 1 / (1 + noise) <= ratio <= 1 + noise:
        return ""
    if name.endswith(("_per_second", "gflops")):
        return "**faster**" if ratio > 1 else "**slower**"
    if name.endswith("ms"):
        return "**faster**" if ratio < 1 else "**slower**"
    return "**more**" if ratio > 1 else "**less**"


def comparison(new: Line, old: Line, noise: float) -> Iterator[tuple[str, ...]]:
    """Rows of the table for one benchmark: case, name, old, new, ratio, yardstick, adjusted, verdict."""
    factor, before, now = yardstick(new, old), numbers(old), numbers(new)
    for case, name in dict.fromkeys([*now, *before]):
        known, value = before.get((case, name)), now.get((case, name))
        if value is None or not known:
            yield case, name, show(known), show(value), "-", "-", "-", ""
            continue
        ratio = value / known
        rest = adjusted(name, ratio, factor)
        mark = verdict(name, rest, noise)
        yield case, name, show(known), show(value), f"{ratio:.2f}", f"{factor:.2f}", f"{rest:.2f}", mark


def show(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


def table(report: dict[str, Any]) -> str:
    """The numbers of one report: a row for each case."""
    rows = (
        (benchmark, case, ", ".join(f"{name} {show(value)}" for name, value in row.items()))
        for benchmark, line in report["benchmarks"].items()
        for case, row in line["results"].items()
    )
    return "\n\n".join([markdown(("benchmark", "case", "numbers"), rows), *notes(report)])


def compared(report: dict[str, Any], old: dict[str, Any], noise: float) -> str:
    """The numbers of two reports: a row for each of them, and notes on what cannot be compared."""
    rows: list[tuple[str, ...]] = []
    remarks = []
    for name, line in report["benchmarks"].items():
        earlier = old["benchmarks"].get(name)
        if earlier is None:
            remarks.append(f"`{name}` is not in the old report.")
        elif earlier["settings"] != line["settings"] or earlier["threads"] != line["threads"]:
            remarks.append(f"`{name}` ran with other settings or threads than in the old report: not compared.")
        else:
            rows += [(name, *row) for row in comparison(line, earlier, noise)]
    remarks += [f"`{name}` was not run this time." for name in old["benchmarks"] if name not in report["benchmarks"]]
    header = ("benchmark", "case", "number", "old", "new", "new / old", "yardstick", "adjusted", "")
    marks = f"Marked: changed by more than {noise:.0%} after adjustment for the yardstick."
    return "\n\n".join([markdown(header, rows), marks, *remarks, *notes(report)])


def notes(report: dict[str, Any]) -> list[str]:
    """The machine, and what went wrong."""
    where = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if name != "gemm_gflops")
    rates = report["machine"].get("gemm_gflops", {})
    gemm = "; large matrix product " + ", ".join(f"{k} {v:g} GFLOP/s" for k, v in rates.items()) if rates else ""
    failed = [f"`{name}` did not finish: {reason}." for name, reason in report["failed"].items()]
    return [f"Machine: {where}{gemm}.", *failed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--budget", choices=("small", "full"), default="small", help="full takes an hour or more")
    parser.add_argument("--against", type=Path, help="an earlier JSON to compare with")
    parser.add_argument("--noise", type=float, default=NOISE, help="what changed by more than this share is marked")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.json"), help="the table goes beside it")
    args = parser.parse_args()
    if args.noise <= 0:
        parser.error(f"--noise {args.noise}: expected a share above 0, such as {NOISE}")
    try:
        old = read_report(args.against) if args.against else None
    except ConfigError as error:
        parser.error(str(error))
    report = run(args.only, args.budget, args.output)
    text = compared(report, old, args.noise) if old else table(report)
    args.output.with_suffix(".md").write_text(text + "\n")
    print(text)
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
