"""Measures training over environments, horizon, latent width and hypernetwork size, one factor at a time.

    python benchmarks/scaling.py                                # all points, each in a process of its own
    python benchmarks/scaling.py --only environments horizon    # some groups
    python benchmarks/scaling.py --report                       # only writes table, figure and page anew

Every point is a run of `train.py`. The JSON is written after each of them, and a second call goes on with those that it
lacks; the size and launches of each model are kept beside what was measured, so that `scaling_report.py` compares with
the cost model (`cost_model.py`) without building anything. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from common import alternate
from model_sizes import as_on_a_device, count_distinct, count_kernels, measure_sizes
from run import machine as describe_machine
from scaling_report import write_report

from hyperrl import configuration
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import build

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
# The first rollout shares no products, as observations are counted at its end; in the second, operations are counted.
WARMUP = 2
ENOUGH_FRAMES = 40_000
TIMEOUT = 1200
MODELS = {"RNN+HN": "rnn_hn", "SplAgger": "splagger"}
COPIED_BYTES = 2**28
# What the projection is about: experiment, environments of each process, and the benchmark of physics on the host.
PROJECTED: dict[str, tuple[Any, ...]] = {
    "GridNavi, RNN+HN": ("gridnavi_rnn_hn", 4096),
    "HalfCheetahDir, RNN+HN": ("half_cheetah_dir_rnn_hn", 1024, "HalfCheetahDir-v0 x 512"),
    "T-LN-P1, SplAgger": ("t_ln_p1_splagger", 1024),
}


@dataclass(frozen=True)
class Point:
    """A training on GridNavi in bf16-mixed, whose tasks are as long as a rollout."""

    num_envs: int = 64
    steps: int = 60
    latent_dim: int = 5
    condition: int = 25
    layers: tuple[int, ...] = (256, 128)
    model: str = "RNN+HN"

    @property
    def name(self) -> str:
        """What the point is called in the JSON; equal points of different groups are one."""
        layers = "-".join(map(str, self.layers))
        sizes = f"latent {self.latent_dim}, condition {self.condition}, layers {layers}"
        return f"{self.model}, {self.num_envs} x {self.steps}, {sizes}"

    @property
    def frames(self) -> int:
        """Frames of a rollout."""
        return self.num_envs * self.steps

    @property
    def rollouts(self) -> int:
        """Rollouts to measure: enough for a steady speed, and no more."""
        return min(max(ENOUGH_FRAMES // self.frames, 1 if self.frames >= ENOUGH_FRAMES else 2), 20)

    @property
    def configs(self) -> list[str]:
        """Configurations as for `hyperrl fit`."""
        return ["experiment/gridnavi_rnn_hn", f"model/{MODELS[self.model]}"]

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from them. One task is enough for the validation at the end, which is not measured."""
        return {
            "data.num_envs": self.num_envs,
            "data.steps_per_rollout": self.steps,
            "data.env_options": {"num_steps": self.steps // 4},
            "data.rollouts_per_epoch": WARMUP + self.rollouts,
            "data.val_tasks": 1,
            "model.encoder.latent_dim": self.latent_dim,
            "model.policy.latent_embedding_dim": self.condition,
            "model.policy.layers": list(self.layers),
            "trainer.precision": "bf16-mixed",
        }


GROUPS: dict[str, list[Point]] = {
    "environments": [Point(num_envs=n) for n in (16, 64, 256, 1024, 4096)],
    "horizon": [
        *(Point(num_envs=n, steps=t) for n, t in ((64, 60), (16, 240), (4, 1000), (4, 4000), (4, 10_000))),
        *(Point(num_envs=n, steps=t, model="SplAgger") for n, t in ((64, 60), (4, 1000), (4, 10_000))),
    ],
    "latent": [Point(latent_dim=n) for n in (5, 25, 100)],
    "hypernetwork": [
        *(Point(condition=n) for n in (10, 25, 50, 100)),
        *(Point(layers=layers) for layers in ((64, 64), (128, 128), (256, 256), (512, 256))),
    ],
}


def read(path: Path) -> dict[str, Any]:
    """An earlier JSON of this benchmark, or the beginning of one.

    Raises:
        ConfigError: the file holds something else.
    """
    if not path.exists():
        return {"machine": {}, "projected": {}, "points": {}, "failed": {}}
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"--output {path}: expected a JSON of benchmarks/scaling.py ({error})") from error
    if not isinstance(report, dict) or not {"machine", "projected", "points", "failed"} <= report.keys():
        raise ConfigError(f"--output {path}: expected a JSON of benchmarks/scaling.py, with points")
    return report


def run(groups: list[str], output: Path) -> dict[str, Any]:
    """Measures what the JSON lacks of these groups, and writes it anew after each point."""
    report = read(output)
    output.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        output.write_text(json.dumps(report, indent=1) + "\n")

    if not report["machine"]:
        report["machine"] = {**describe_machine(), **measure_machine()}
    if not report["projected"]:
        report["projected"] = {name: describe_experiment(*which) for name, which in PROJECTED.items()}
    save()
    points = {point.name: point for group in groups for point in GROUPS[group]}
    for name, point in points.items():
        if name in report["points"]:
            continue
        report["failed"].pop(name, None)
        try:
            report["points"][name] = measure(point)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            report["failed"][name] = str(error)
        save()
    return report


def measure(point: Point) -> dict[str, Any]:
    """Trains in a process of its own.

    Raises:
        RuntimeError: if that fails, with its exit status.
        TimeoutExpired: if it takes too long.
    """
    frames = (WARMUP + point.rollouts) * point.frames
    line = train(point.configs, point.overrides, frames, WARMUP)
    numbers = {**line["results"][" + ".join(point.configs)], **line["results"]["process"]}
    model = describe(_resolve(point.configs, point.overrides), bf16=True)
    return {**dataclasses.asdict(point), "numbers": numbers, "gemm_gflops": line["gemm_gflops"], **model}


def train(configs: list[str], overrides: dict[str, Any], frames: int, warmup: int) -> dict[str, Any]:
    """The line of `train.py`."""
    given = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]
    named = [part for config in configs for part in ("--config", config)]
    script = [sys.executable, str(FOLDER / "train.py"), "--frames", str(frames), "--warmup", str(warmup)]
    done = subprocess.run([*script, *named, *given], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}")
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def describe(config: dict[str, Any], bf16: bool) -> dict[str, Any]:
    """Sizes and launches of a configuration's model, and how few observations it sees."""
    learner, data = build(config)
    kernels, frame_bytes = count_kernels(learner, data, bf16)
    sizes = dataclasses.replace(measure_sizes(learner), frame_bytes=frame_bytes)
    distinct = count_distinct(data, learner.config.num_minibatches)
    return {"sizes": dataclasses.asdict(sizes), "kernels": dataclasses.asdict(kernels), "distinct": distinct}


def describe_experiment(name: str, num_envs: int, physics: str | None = None) -> dict[str, Any]:
    """Sizes and launches of a shipped experiment in bf16 on a device; more environments than a few change neither."""
    config = _resolve([f"experiment/{name}"], {"data.num_envs": min(num_envs, 128)})
    with as_on_a_device():
        model = describe(config, bf16=True)
    steps = config["data"]["steps_per_rollout"]
    return {"num_envs": num_envs, "steps": steps, "core_steps": physics and steps_per_core(physics), **model}


def steps_per_core(case: str, folder: Path = ROOT / "results" / "benchmarks") -> float:
    """Steps per second and core of an environment whose physics run on the host, resets included.

    Args:
        case: what it is called in the benchmark of environments.
        folder: holds the JSON of `run.py`, of which the newest is read.

    Raises:
        ConfigError: `run.py` has not measured it.
    """
    path = max(folder.glob("2*.json"), default=folder / "DATE.json")
    report = json.loads(path.read_text()) if path.exists() else {"benchmarks": {"envs": {"results": {}}}}
    numbers = report["benchmarks"]["envs"]["results"].get(case)
    if numbers is None:
        raise ConfigError(f"{path}: expected {case}, as measured by benchmarks/run.py")
    return float(numbers["step_and_maybe_reset_per_second"] / report["machine"]["cores"])


def _resolve(configs: list[str], overrides: dict[str, Any]) -> dict[str, Any]:
    """Shipped configurations one over the other, and values over them."""
    parts = [yaml.safe_load(Path(configuration.resolve_config(name)).read_text()) for name in configs]
    for key, value in overrides.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        parts.append(value)
    config: dict[str, Any] = {}
    for part in parts:
        _merge(config, part)
    return config


def _merge(config: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value


def measure_machine() -> dict[str, float]:
    """Bandwidth, the time of a small operation, and the memory of a process that trains next to nothing."""
    command = [sys.executable, str(FOLDER / "scaling.py"), "--peaks"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    tiny = {
        "data.num_envs": 4, "data.val_tasks": 1, "model.encoder.hidden_dim": 8, "model.policy.layers": [8],
        "model.policy.state_embedding_dim": 8, "model.policy.latent_embedding_dim": 2,
    }  # fmt: skip
    line = train(["experiment/gridnavi_rnn_hn"], tiny, frames=960, warmup=2)
    return {**json.loads(done.stdout), "process_mib": line["results"]["process"]["peak_mib"]}


def measure_peaks() -> dict[str, float]:
    """Bytes per second of a large copy, read and written, and seconds of an operation on one number."""
    source, target, small = torch.ones(COPIED_BYTES // 4), torch.ones(COPIED_BYTES // 4), torch.ones(1)

    def add() -> None:
        for _ in range(1000):
            small.add_(1.0)

    times = alternate({"copy": lambda: target.copy_(source), "add": add}, repeats=7)
    copy, thousand = (statistics.median(times[name]) for name in ("copy", "add"))
    return {"bandwidth": 2 * COPIED_BYTES / copy, "latency": thousand / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / f"results/benchmarks/scaling-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--output", type=Path, default=default, help="the JSON, with which another call goes on")
    parser.add_argument("--report", action="store_true", help="measure nothing; write table, figure and page anew")
    parser.add_argument("--peaks", action="store_true", help="measure only bandwidth and latency, and print them")
    args = parser.parse_args()
    if args.peaks:
        print(json.dumps(measure_peaks()))
        return
    try:
        report = read(args.output) if args.report else run(args.only, args.output)
        names = {group: [point.name for point in points] for group, points in GROUPS.items()}
        written = write_report(report, names, ROOT)
    except ConfigError as error:
        parser.error(str(error))
    for path in written:
        print(path)
    for name, reason in report["failed"].items():
        print(f"{name}: did not finish: {reason}", file=sys.stderr)
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
