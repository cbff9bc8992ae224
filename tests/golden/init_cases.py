"""Golden initialisations: our own draws must have the distribution of the recorded ones (spec/models.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from model_cases import generated, make_policy
from support import FORMULA, Golden, policy_slots, widths
from torch import Tensor

from hyperrl.modules.initializers import GAINS

OWN_SEEDS = 100
# Every comparison of two means is a two-sided test at 5 standard errors (level 6e-7); the many statistics of a file
# depend on each other strongly, and a wrong gain is off by dozens of standard errors.
STANDARD_ERRORS = 5.0
# A single recorded draw has to lie within so many standard deviations of ours.
PLAUSIBLE = 8.0
STATISTICS = ["mean", "std", "absmax", "rownorm_mean", "rownorm_std", "gram_offdiag_max", "gram_diag_mean"]
# The rows of `in/hyper_input` of which statistics are recorded. Row 3 is one-hot, row 4 zero.
INPUT_ROWS = (0, 1, 3)
ZERO_ROW = 4

Draws = dict[str, Tensor]


def statistics(matrix: Tensor) -> Tensor:
    """The statistics of `matrix [out, in]` (a vector is one row) in the order of STATISTICS."""
    matrix = matrix.double()
    outs, ins = matrix.shape
    gram = matrix @ matrix.T if outs <= ins else matrix.T @ matrix
    rows = matrix.norm(dim=1)
    off_diagonal = gram - gram.diag().diag()
    values = [matrix.mean(), matrix.std(correction=0), matrix.abs().max(), rows.mean(), rows.std(correction=0)]
    return torch.stack([*values, off_diagonal.abs().max(), gram.diagonal().mean()])


def run_init(golden: Golden) -> None:
    """Raw and generated parameters of freshly built policies against the recorded statistics."""
    assert golden.meta["stat_names"] == STATISTICS
    inputs = golden.find("in/hyper_input")
    raw, base = _draw(golden, inputs)
    _check_raw(golden, raw)
    if inputs is not None:
        _check_base(golden, base)
    golden.check_all_read({})


def _draw(golden: Golden, inputs: Tensor | None) -> tuple[Draws, Draws]:
    """Raw parameters as matrices `[seeds, out, in]`, and generated ones `[seeds, inputs, size]`."""
    raw: dict[str, list[Tensor]] = {}
    base: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(OWN_SEEDS):
            policy = make_policy(golden)
            for name, slot in policy_slots(policy).items():
                # A weight head [out, in, K] is [out * in, K] there; its bias, a matrix in ours, is a vector there.
                vector = name.endswith("bias") or name == "dist.logstd"
                raw.setdefault(name, []).append(slot.value.reshape(1 if vector else -1, _columns(slot.value, vector)))
            if inputs is not None:
                for name, values in generated(policy, inputs):
                    base.setdefault(name, []).append(values)
    return _stack(raw), _stack(base)


def _columns(value: Tensor, vector: bool) -> int:
    return value.numel() if vector else value.shape[-1]


def _stack(draws: Mapping[str, list[Tensor]]) -> Draws:
    return {name: torch.stack(values) for name, values in draws.items()}


def _check_raw(golden: Golden, raw: Draws) -> None:
    """Statistics and bounds of the parameters themselves."""
    assert set(golden.under("stat/param/")) == set(raw)
    for name, draws in raw.items():
        recorded = golden[f"stat/param/{name}"]
        ours = torch.stack([statistics(draw) for draw in draws])
        _check_statistics(f"stat/param/{name}", ours, recorded, golden.meta["nseeds"])
        _check_bound(name, _raw_bound(golden, name, draws.shape[-1]), draws)


def _check_base(golden: Golden, base: Draws) -> None:
    """Statistics of the generated parameters, and the rules that every single draw obeys."""
    assert set(golden.under("base/")) == set(golden.under("stat/base/")) == set(base)
    same_for_all = golden.args["init_hyper_for_policy"]
    for name, draws in base.items():
        recorded, expected = golden[f"base/{name}"], golden[f"stat/base/{name}"]
        shape = golden.meta["base_shapes"].get(name, (1, recorded.shape[1]))
        for draw in (recorded, *draws):
            if same_for_all:
                assert (draw == draw[:1]).all(), f"base/{name} depends on the hypernetwork's input"
            else:
                assert not draw[ZERO_ROW].any(), f"base/{name} does not vanish with the hypernetwork's input"
        for row, index in enumerate(INPUT_ROWS):
            ours = torch.stack([statistics(draw[index].view(*shape)) for draw in draws])
            _check_statistics(f"stat/base/{name} row {index}", ours, expected[:, row], golden.meta["nseeds"])
            distance = (statistics(recorded[index].view(*shape)) - ours.mean(0)).abs()
            assert (distance <= PLAUSIBLE * ours.std(0) + FORMULA).all(), f"base/{name}: implausible among our draws"
        _check_bound(name, _base_bound(golden, name, shape[-1]), draws)


def _check_statistics(name: str, ours: Tensor, recorded: Tensor, seeds: int) -> None:
    """Our draws' statistics `[N, 7]` against recorded means and deviations over seeds `[2, 7]`."""
    mean, deviation = recorded.double()
    error = (deviation.square() / seeds + ours.var(0) / len(ours)).sqrt()
    difference = (ours.mean(0) - mean).abs()
    wrong = (difference > STANDARD_ERRORS * error + FORMULA * (1 + mean.abs())).nonzero()[:, 0].tolist()
    found = {STATISTICS[i]: (ours.mean(0)[i].item(), mean[i].item(), error[i].item()) for i in wrong}
    assert not found, f"{name}: (ours, recorded, standard error) {found}"


def _check_bound(name: str, bound: float, draws: Tensor) -> None:
    """All draws lie within the bound, and the largest is near it (of 100 uniform ones, but for a chance of 3e-5)."""
    largest = draws.abs().max().item()
    assert largest <= bound * (1 + 1e-6), f"{name}: {largest} exceeds its bound {bound}"
    assert math.isinf(bound) or largest >= 0.9 * bound, f"{name}: {largest} is far from its bound {bound}"


def _raw_bound(golden: Golden, name: str, columns: int) -> float:
    """The largest value that a raw parameter can have, as far as it is drawn uniformly."""
    args = golden.args
    kaiming = math.sqrt(3 / columns) * GAINS[args["policy_activation_function"]]
    if name.endswith("encoder.fc.weight"):
        return 1 / math.sqrt(columns)
    if name.startswith("critic_linear"):
        return 1 / math.sqrt(widths(args["policy_layers"])[-1])
    if args["policy_initialisation"] == "kaiming" and name.endswith(".weight") and not name.startswith("dist"):
        return 0.0 if golden.kind == "init" and args["init_hyper_for_policy"] else kaiming
    return math.inf


def _base_bound(golden: Golden, name: str, ins: int) -> float:
    """The same for a generated parameter."""
    if not golden.args["init_hyper_for_policy"]:
        return math.inf
    if name.endswith("bias"):
        return 1.0 if name == "critic/head/bias" else 0.0
    uniform = name == "critic/head/weight" or golden.args["policy_initialisation"] == "kaiming"
    return math.sqrt(6 / ins) if uniform else math.inf
