"""The recurrence of the memory: this library's GRU kernel against torch's, forward and backward over a rollout.

    python benchmarks/gru.py [--batch 4 16 64] [--steps 60]

Ends with one JSON line: median milliseconds of both, measured alternately, and their ratio.
"""

from __future__ import annotations

import torch
from common import Report, alternate, make_parser, medians_ms

from hyperrl.modules.sequence.gru_kernel import gru_sequence

FEATURES, HIDDEN, REPEATS = 40, 256, 19


def measure(batch: int, steps: int) -> dict[str, float]:
    """Median milliseconds of forward and backward."""
    gru = torch.nn.GRU(FEATURES, HIDDEN, batch_first=True)
    x = torch.randn(batch, steps, FEATURES, requires_grad=True)
    state = torch.zeros(batch, HIDDEN)
    upstream = torch.randn(batch, steps, HIDDEN)

    def library() -> None:
        gru(x, state.unsqueeze(0))[0].backward(upstream)

    def own() -> None:
        gru_sequence(x, state, *gru.parameters()).backward(upstream)

    medians = medians_ms(alternate({"torch": library, "hyperrl": own}, REPEATS))
    return medians | {"speedup": medians["torch_ms"] / medians["hyperrl_ms"]}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    report = Report("gru", steps=args.steps)
    for batch in args.batch:
        report.add(f"{batch} rows", measure(batch, args.steps))
    report.finish()


if __name__ == "__main__":
    main()
