"""The recurrence of the memory: this library's GRU kernel against torch's, forward and backward over a rollout.

    python benchmarks/gru.py [--batch 4 16 64] [--steps 60]

Ends with one JSON line: median milliseconds of both, measured alternately, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from torch import Tensor

from hyperrl.modules.sequence.gru_kernel import gru_sequence

FEATURES, HIDDEN, REPEATS = 40, 256, 21


def measure(batch: int, steps: int) -> dict[str, float]:
    """Median milliseconds of forward and backward."""
    gru = torch.nn.GRU(FEATURES, HIDDEN, batch_first=True)
    x = torch.randn(batch, steps, FEATURES, requires_grad=True)
    state = torch.zeros(batch, HIDDEN)
    upstream = torch.randn(batch, steps, HIDDEN)

    def library() -> Tensor:
        return gru(x, state.unsqueeze(0))[0]

    def own() -> Tensor:
        return gru_sequence(x, state, *gru.parameters())

    times: dict[str, list[float]] = {"torch": [], "hyperrl": []}
    for _ in range(REPEATS):
        for name, run in (("torch", library), ("hyperrl", own)):
            start = time.perf_counter()
            run().backward(upstream)
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    return medians | {"speedup": medians["torch"] / medians["hyperrl"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    rows = {batch: measure(batch, args.steps) for batch in args.batch}
    report = {batch: {name: round(value, 2) for name, value in row.items()} for batch, row in rows.items()}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
