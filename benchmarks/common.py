"""What the benchmarks share: taking times in turn, counting what autograd keeps, the yardstick, and how they report."""

from __future__ import annotations

import functools
import json
import resource
import statistics
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

GEMM_SIZE = 2048
GPU_GEMM_SIZE = 8192  # a smaller one takes a GPU less time than to start it
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_parser(doc: str | None) -> ArgumentParser:
    """A command line whose help is the docstring as it stands."""
    return ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)


def alternate(forms: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each form, run in turn so that noise hits all alike; the first rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(warmup + repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[warmup:] for name, seconds in times.items()}


def medians_ms(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each form in milliseconds."""
    return {f"{name}_ms": 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def saved_bytes(run: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, those of known tensors aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = run()  # must live until the sum is taken, lest its storages be reused
    total = sum(storages.values())
    del keep
    return total


def finish_work(device: torch.device | str) -> None:
    """Waits until a GPU has done what it was given; without it, a clock shows how fast work is handed over."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def gemm_gflops(precision: str, device: torch.device | str = "cpu") -> float:
    """Rate of one large matrix product, the median of several: what this device gives at the moment."""
    size = GEMM_SIZE if torch.device(device).type == "cpu" else GPU_GEMM_SIZE
    a, b = (torch.randn(size, size, dtype=PRECISIONS[precision], device=device) for _ in range(2))

    def product() -> None:
        torch.matmul(a, b)
        finish_work(device)

    seconds = statistics.median(alternate({"gemm": product}, repeats=7)["gemm"])
    return 2e-9 * size**3 / seconds


def peak_mib() -> float:
    """The most memory that this process has had; `ru_maxrss` alone would begin with what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Report:
    """Collects the numbers of a benchmark, shows them on stderr as they come, and prints one JSON line at the end.

    `run.py` reads a number's meaning from its name: `*_per_second` and `*gflops` are rates, `*ms` times, `share_*`
    parts of the time; all others do not depend on the machine's speed.
    """

    def __init__(self, benchmark: str, **settings: object) -> None:
        self.benchmark = benchmark
        self.settings = settings
        self.device = str(settings.get("device", "cpu"))
        self.results: dict[str, dict[str, float]] = {}

    def add(self, case: str, numbers: Mapping[str, float]) -> None:
        """Four digits are more than any of these measurements carries; counts stay exact."""
        self.results[case] = {k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in numbers.items()}
        cells = ", ".join(f"{name} {value:g}" for name, value in self.results[case].items())
        print(f"{self.benchmark} {case}: {cells}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """The peak is taken first: the yardstick must not count."""
        self.add("process", {"peak_mib": peak_mib()})
        line = {
            "benchmark": self.benchmark,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "gemm_gflops": {name: round(gemm_gflops(name, self.device), 1) for name in PRECISIONS},
            "settings": self.settings,
            "results": self.results,
        }
        print(json.dumps(line))
