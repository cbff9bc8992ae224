"""Every memory over whole sequences: time of forward and backward, against stepping through it, and bytes kept between.

    python benchmarks/memory.py [--steps 100 1000 10000] [--only Max GRU ...] [--batch 16] [--width 256]

Both forms are the same module on the same input, without resets, run alternately; medians. A form that would take
minutes is left out. `kept_mib` is what autograd holds from forward to backward, parameters and input aside. Two
comparisons follow: a GRU with a maximum behind it against torch's fused GRU alone, and MinGRU against GRU.
The process restarts itself with an allocator that keeps freed memory, as it does of itself for tensors below 32 MiB;
else page faults would make up most of what is measured at 10,000 steps, for either form. Ends with one JSON line.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from common import Report, alternate, make_parser, saved_bytes
from torch import Tensor, nn

from hyperrl.modules import aggregators, sequence

KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 35)}
# Rounds until the heap, which the forms cut up differently, has grown to all that they need.
WARMUP = 3
# The longest sequences that are measured: step by step, and whole ones of memories that take the square or more.
LONGEST_STEPWISE, LONGEST_STEPWISE_QUADRATIC, LONGEST_COMPARISON = 1000, 100, 1000
LONGEST_QUADRATIC = {"Transformer": 400, "CausalTransformer": 1000}

Run = Callable[[Tensor], Tensor]
Make = Callable[[int, int], nn.Module]


def of_width(kind: Callable[[int], nn.Module]) -> Make:
    return lambda width, steps: kind(width)


def of_horizon(kind: Callable[[int, int, int], nn.Module]) -> Make:
    return lambda width, steps: kind(width, width, steps)


AGGREGATORS: dict[str, Make] = {
    "Sum": of_width(aggregators.Sum),
    "Max": of_width(aggregators.Max),
    "Max straight-through": of_width(partial(aggregators.Max, straight_through=True)),
    "MaxNorm": of_width(aggregators.MaxNorm),
    "Mean": of_width(aggregators.Mean),
    "MeanMax": of_width(aggregators.MeanMax),
    "WeightedAverage": of_width(aggregators.WeightedAverage),
    "WeightedAverage 0.1": of_width(partial(aggregators.WeightedAverage, temperature=0.1)),
    "Softmax": of_width(aggregators.Softmax),
    "Gaussian": of_width(aggregators.Gaussian),
}
SEQUENCES: dict[str, Make] = {
    "GRU": of_horizon(sequence.GRU),
    "LSTM": of_horizon(sequence.LSTM),
    "MinGRU": of_horizon(sequence.MinGRU),
    "Memoryless": of_horizon(sequence.Memoryless),
    "Transition": lambda width, steps: sequence.Transition(width, width, steps, previous_dim=width // 4),
    "Transformer": of_horizon(partial(sequence.Transformer, token_dim=16)),
    "CausalTransformer": of_horizon(sequence.CausalTransformer),
}
MEMORIES = AGGREGATORS | SEQUENCES


def whole(memory: nn.Module, x: Tensor) -> Tensor:
    """One call for the sequence."""
    return memory(x, torch.zeros(x.shape[:2], dtype=torch.bool), memory.initial_state(len(x)))


def stepwise(memory: nn.Module, x: Tensor) -> Tensor:
    """One call per step."""
    state, outputs = memory.initial_state(len(x)), []
    for x_t in x.unbind(1):
        output, state = memory.step(x_t, state)
        outputs.append(output)
    return torch.stack(outputs, 1)


def fused_gru(gru: nn.GRU, x: Tensor) -> Tensor:
    """The library's recurrence by itself."""
    return gru(x)[0]


def seconds(forms: Mapping[str, Run], x: Tensor, repeats: int) -> dict[str, float]:
    """Median time of forward and backward of each form, run alternately."""
    with torch.no_grad():
        upstream = torch.randn_like(next(iter(forms.values()))(x))

    def both_ways(form: Run) -> None:
        x.grad = None
        form(x).backward(upstream)

    times = alternate({name: partial(both_ways, form) for name, form in forms.items()}, repeats, WARMUP)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, batch: int, steps: int, width: int) -> dict[str, float]:
    """Milliseconds, ratio and bytes of one memory at one length; empty where that would take minutes."""
    memory = MEMORIES[name](width, steps)
    x = torch.randn(batch, steps, width).requires_grad_()
    if steps > LONGEST_QUADRATIC.get(name, steps):
        return {}
    longest = LONGEST_STEPWISE_QUADRATIC if name in LONGEST_QUADRATIC else LONGEST_STEPWISE
    forms: dict[str, Run] = {"whole": partial(whole, memory)}
    if name in AGGREGATORS or steps <= longest:
        forms["stepwise"] = partial(stepwise, memory)
    times = seconds(forms, x, 3 if name in LONGEST_QUADRATIC else repeats_for(steps))
    row = {"ms": 1e3 * times["whole"]}
    if "stepwise" in times:
        row |= {"stepwise_ms": 1e3 * times["stepwise"], "ratio": times["stepwise"] / times["whole"]}
    return row | {"kept_mib": saved_bytes(partial(whole, memory, x), (x, *memory.parameters())) / 2**20}


def repeats_for(steps: int) -> int:
    """More of the short ones."""
    return max(5, min(15, 6000 // steps))


def compare(first: Run, second: Run, batch: int, steps: int, width: int) -> float:
    """Time of the first over that of the second."""
    x = torch.randn(batch, steps, width).requires_grad_()
    times = seconds({"first": first, "second": second}, x, repeats_for(steps))
    return times["first"] / times["second"]


def comparisons(batch: int, steps: int, width: int) -> dict[str, float]:
    """The two questions of the docstring, as ratios of time."""
    gru, top, fused = sequence.GRU(width, width, steps), aggregators.Max(width), nn.GRU(width, width, batch_first=True)
    minimal = sequence.MinGRU(width, width, steps)
    return {
        "GRU + Max over torch's GRU": compare(
            lambda x: whole(top, whole(gru, x)), partial(fused_gru, fused), batch, steps, width
        ),
        "GRU over MinGRU": compare(partial(whole, gru), partial(whole, minimal), batch, steps, width),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--only", nargs="+", choices=MEMORIES, default=list(MEMORIES), metavar="NAME")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    if not KEEP_FREED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED)

    report = Report("memory", batch=args.batch, width=args.width)
    for name in args.only:
        for steps in args.steps:
            if row := measure(name, args.batch, steps, args.width):
                report.add(f"{name}, {steps} steps", row)
    for steps in (steps for steps in args.steps if steps <= LONGEST_COMPARISON):
        for name, ratio in comparisons(args.batch, steps, args.width).items():
            report.add(f"{name}, {steps} steps", {"ratio": ratio})
    report.finish()


if __name__ == "__main__":
    main()
