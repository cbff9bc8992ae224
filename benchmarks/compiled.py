"""What torch.compile would gain: acting and learning of the policy of RNN+HN, compiled against as it is.

    python benchmarks/compiled.py [--acting 16 512] [--learning 240 960 7680] [--bf16] [--observations few|many]

`acting`: distribution parameters of that many rows without gradients; `learning`: distribution parameters and values
of that many samples, forward and backward. `few` observations are those of GridNavi, whose large products are shared
(`hyperrl.modules.hypernet.RepeatedInput`), `many` are all different, as those of a robot. Ends with one JSON line:
milliseconds of both forms, measured alternately, their ratio, the seconds of compilation, and the largest difference of
outputs (acting) or gradients (learning), relative to the norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from common import Report, alternate, make_parser, medians_ms
from torch import Tensor

from hyperrl.env_info import ActionSpace
from hyperrl.modules.policy import Policy, PolicyConfig

OBSERVATION, LATENT, CELLS = 3, 10, 50
REPEATS = 15


def forward(policy: Policy, observation: Tensor, latent: Tensor, bf16: bool, critic: bool) -> Tensor:
    """A scalar that depends on all outputs."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        inputs = policy.inputs(observation, latent)
        total = policy.distribution(inputs)["logits"].square().mean()
        return total + policy.value(inputs).square().mean() if critic else total


def gradients(policy: Policy, form: Callable[[], Tensor]) -> Tensor:
    """All gradients of the policy as one vector."""
    policy.zero_grad()
    form().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def difference(ours: Tensor, other: Tensor) -> float:
    return float((ours - other).norm() / ours.norm())


def measure(rows: int, learning: bool, bf16: bool, few: bool) -> dict[str, float]:
    """Median milliseconds of both forms, and what compiling takes and changes."""
    torch.manual_seed(0)
    torch.compiler.reset()
    policy = Policy(OBSERVATION, LATENT, ActionSpace(1, 5), PolicyConfig())
    policy.few_observations.fill_(few)
    cells = torch.randn(CELLS, OBSERVATION)
    observation = cells[torch.arange(rows) % CELLS] if few else torch.randn(rows, OBSERVATION)
    latent = torch.randn(rows, LATENT)
    compiled = torch.compile(forward)

    def make(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            if learning:
                return gradients(policy, lambda: function(policy, observation, latent, bf16, True))
            with torch.no_grad():
                return function(policy, observation, latent, bf16, False)

        return run

    forms = {"eager": make(forward), "compiled": make(compiled)}
    start = time.perf_counter()
    changed = difference(forms["eager"](), forms["compiled"]())
    seconds = time.perf_counter() - start
    medians = medians_ms(alternate(forms, REPEATS, warmup=3))
    ratio = medians["eager_ms"] / medians["compiled_ms"]
    return {**medians, "speedup": ratio, "compilation_ms": 1e3 * seconds, "difference": changed}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--acting", type=int, nargs="*", default=[16, 512], help="rows that act")
    parser.add_argument("--learning", type=int, nargs="*", default=[240, 960, 7680], help="samples of a minibatch")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--observations", choices=("few", "many"), default="many")
    args = parser.parse_args()
    few = args.observations == "few"
    report = Report("compiled", precision="bf16" if args.bf16 else "fp32", observations=args.observations)
    for rows in args.acting:
        report.add(f"acting, {rows} rows", measure(rows, False, args.bf16, few))
    for rows in args.learning:
        report.add(f"learning, {rows} samples", measure(rows, True, args.bf16, few))
    report.finish()


if __name__ == "__main__":
    main()
