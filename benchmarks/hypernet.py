"""Generated layers at XL size: the factorised product against materialising the weights.

    python benchmarks/hypernet.py [--batch 240] [--repeats 15] [--bf16] [--distinct 43]

Times forward and backward and adds up the bytes that autograd keeps in between, for the three layers of an actor on
GridNavi (256 -> 256 -> 128 -> 5, condition of 25). Ends with one JSON line; ratios are materialised over factorised
for time, factorised over materialised for bytes. With `--distinct`, `repeated` is the library's form for inputs that
have only so many distinct rows.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import torch
from common import Report, alternate, make_parser, medians_ms, saved_bytes
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


def measure(shape: tuple[int, int], batch: int, repeats: int, bf16: bool, distinct: int) -> dict[str, float]:
    """Median milliseconds and saved bytes of the forms of one layer."""
    layer = GeneratedLinear(*shape, CONDITION_DIM)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(batch, shape[0], requires_grad=True)
    e = torch.randn(batch, CONDITION_DIM, requires_grad=True)
    forms: dict[str, Callable[..., Tensor]] = {"factorised": factorised, "materialised": materialised}
    if distinct:
        forms["repeated"] = functools.partial(repeated, distinct=distinct)

    def forward(form: Callable[..., Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return form(layer, x, e)

    steps = {name: lambda form=form: forward(form).sum().backward() for name, form in forms.items()}
    result = medians_ms(alternate(steps, repeats))
    for name, form in forms.items():
        result[f"{name}_bytes"] = saved_bytes(functools.partial(forward, form), layer.parameters())
    return result


def with_ratios(row: dict[str, float]) -> dict[str, float]:
    return row | {
        "speedup": row["materialised_ms"] / row["factorised_ms"],
        "bytes_ratio": row["factorised_bytes"] / row["materialised_bytes"],
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=240, help="samples: 4 environments x 60 steps")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--distinct", type=int, default=0, help="distinct rows of the inputs; 0 for all of them")
    args = parser.parse_args()
    precision = "bf16-mixed" if args.bf16 else "32-true"
    report = Report("hypernet", batch=args.batch, precision=precision, distinct=args.distinct)
    totals: Counter[str] = Counter()
    for i, o in LAYERS:
        row = measure((i, o), args.batch, args.repeats, args.bf16, args.distinct)
        totals.update(row)
        report.add(f"{i}->{o}", with_ratios(row))
    report.add("all", with_ratios(dict(totals)))
    report.finish()


if __name__ == "__main__":
    main()
