"""Generated layers at XL size: the factorised product against materialising the weights.

    python benchmarks/hypernet.py [--batch 240] [--repeats 15] [--bf16] [--distinct 43]

Times forward and backward and adds up the bytes that autograd keeps in between, for the three layers of an actor on
GridNavi (256 -> 256 -> 128 -> 5, condition of 25). Ends with one JSON line; ratios are materialised over factorised
for time, factorised over materialised for bytes. With `--distinct`, `repeated` is the library's form for inputs that
have only so many distinct rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hyperrl.modules.hypernet import Condition, GeneratedLinear, Input, RepeatedInput

LAYERS = ((256, 256), (256, 128), (128, 5))
CONDITION_DIM = 25


def factorised(layer: GeneratedLinear, x: Tensor, e: Tensor) -> Tensor:
    """The library's layer."""
    return layer(Input(x, Condition(e)))


def repeated(layer: GeneratedLinear, x: Tensor, e: Tensor, distinct: int) -> Tensor:
    """The library's layer where the first rows are all that there are."""
    return layer(RepeatedInput(x[:distinct], torch.arange(len(x)) % distinct, Condition(e)))


def materialised(layer: GeneratedLinear, x: Tensor, e: Tensor) -> Tensor:
    """Per-sample weights, then a batched product."""
    weight, bias = layer.materialise(e)
    return torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1) + bias


def saved_bytes(run: Callable[[], Tensor], parameters: set[int]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters aside."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = run()  # must live until the sum is taken, lest its storages be reused
    total = sum(storages.values())
    del keep
    return total


def measure(shape: tuple[int, int], batch: int, repeats: int, bf16: bool, distinct: int) -> dict[str, float]:
    """Median milliseconds and saved bytes of the forms of one layer."""
    layer = GeneratedLinear(*shape, CONDITION_DIM)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(batch, shape[0], requires_grad=True)
    e = torch.randn(batch, CONDITION_DIM, requires_grad=True)
    owned = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    result: dict[str, float] = {}
    forms = {"factorised": factorised, "materialised": materialised}
    if distinct:
        forms["repeated"] = functools.partial(repeated, distinct=distinct)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):  # interleaved, so that noise hits both alike
        for name, form in forms.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y = form(layer, x, e)
            y.sum().backward()
            times[name].append(time.perf_counter() - start)
    for name, form in forms.items():
        result[f"{name}_ms"] = 1e3 * statistics.median(times[name][2:])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result[f"{name}_bytes"] = saved_bytes(lambda form=form: form(layer, x, e), owned)
    result["speedup"] = result["materialised_ms"] / result["factorised_ms"]
    result["bytes_ratio"] = result["factorised_bytes"] / result["materialised_bytes"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=240, help="samples: 4 environments x 60 steps")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--distinct", type=int, default=0, help="distinct rows of the inputs; 0 for all of them")
    args = parser.parse_args()
    report = {f"{i}->{o}": measure((i, o), args.batch, args.repeats, args.bf16, args.distinct) for i, o in LAYERS}
    totals = {
        key: sum(row[key] for row in report.values()) for key in report["256->256"] if key.endswith(("ms", "bytes"))
    }
    report["all"] = totals | {
        "speedup": totals["materialised_ms"] / totals["factorised_ms"],
        "bytes_ratio": totals["factorised_bytes"] / totals["materialised_bytes"],
    }
    rounded = {name: {key: round(value, 3) for key, value in row.items()} for name, row in report.items()}
    sys.stdout.write(json.dumps({"batch": args.batch, "bf16": args.bf16, **rounded}) + "\n")


if __name__ == "__main__":
    main()
