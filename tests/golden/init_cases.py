"""Golden initialisations: our own draws must have the distribution of the recorded ones (spec/models.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

import torch
from model_cases import film_actor_bias, hypernet_init, make_policy
from support import FORMULA, Golden, policy_slots, widths
from torch import Tensor

from hyperrl.modules.hypernet import Input
from hyperrl.modules.initializers import GAINS, HypernetInit

OWN_SEEDS = 400
# Chance that a file with the right distribution fails, over all its comparisons of means.
LEVEL = 1e-3
# A single recorded draw has to lie within so many standard deviations of ours.
PLAUSIBLE = 8.0
STATISTICS = ["mean", "std", "absmax", "rownorm_mean", "rownorm_std", "gram_offdiag_max", "gram_diag_mean"]
# The rows of `in/hyper_input` of which statistics are recorded. Row 3 is one-hot, row 4 zero.
INPUT_ROWS = (0, 1, 3)
ONE_HOT_ROW, ZERO_ROW = 3, 4
# What every generated bias of the critic's head starts from under a HyperInit, quirk Q16.
CRITIC_BIAS = "critic/head/bias"

Draws = dict[str, Tensor]


def statistics(matrices: Tensor) -> Tensor:
    """The statistics `[N, 7]` of `matrices [N, out, in]` (a vector is one row) in the order of STATISTICS."""
    matrices = matrices.double()
    outs, ins = matrices.shape[1:]
    gram = matrices @ matrices.mT if outs <= ins else matrices.mT @ matrices
    diagonal = gram.diagonal(dim1=1, dim2=2)
    off_diagonal = gram - diagonal.diag_embed()
    rows, flat = matrices.norm(dim=2), matrices.flatten(1)
    columns = [flat.mean(1), flat.std(1, correction=0), flat.abs().amax(1), rows.mean(1), rows.std(1, correction=0)]
    return torch.stack([*columns, off_diagonal.flatten(1).abs().amax(1), diagonal.mean(1)], 1)


def critical_value(checks: int, degrees: int) -> float:
    """Two-sided quantile of Student's t for LEVEL shared by `checks` (Cornish-Fisher expansion)."""
    z = NormalDist().inv_cdf(1 - LEVEL / (2 * checks))
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def run_init(golden: Golden) -> None:
    """Raw and generated parameters of freshly built policies against the recorded statistics."""
    assert golden.meta["stat_names"] == STATISTICS
    scheme = hypernet_init(golden.args) if golden.args["use_hypernet"] else "none"
    inputs = golden.find("in/hyper_input")
    raw, base = _draw(golden, scheme, inputs)
    seeds = golden.meta["nseeds"]
    limit = critical_value(len(STATISTICS) * (len(raw) + len(INPUT_ROWS) * len(base)), seeds - 1)
    _check_raw(golden, scheme, raw, limit)
    if inputs is not None:
        _check_base(golden, scheme, base, limit)
    dropped = film_actor_bias(golden)
    golden.check_all_read({f"*param/{name}": "vanishes at the reference's first forward pass" for name in dropped})


def _draw(golden: Golden, scheme: HypernetInit, inputs: Tensor | None) -> tuple[Draws, Draws]:
    """Raw parameters as matrices `[seeds, out, in]`, and generated ones `[seeds, inputs, size]`."""
    raw: dict[str, list[Tensor]] = {}
    base: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(OWN_SEEDS):
            policy = make_policy(golden, scheme)
            for name, slot in policy_slots(policy).items():
                # A weight head [out, in, K] is [out * in, K] there; its bias, a matrix in ours, is a vector there.
                vector = name.endswith("bias") or name == "dist.logstd"
                raw.setdefault(name, []).append(slot.value.reshape(1 if vector else -1, _columns(slot.value, vector)))
            if policy.hypernet is not None:
                for name, values in policy.materialise(Input(inputs, policy.hypernet(inputs))).items():
                    base.setdefault(name, []).append(values.flatten(1))
    return _stack(raw), _stack(base)


def _columns(value: Tensor, vector: bool) -> int:
    return value.numel() if vector else value.shape[-1]


def _stack(draws: Mapping[str, list[Tensor]]) -> Draws:
    return {name: torch.stack(values) for name, values in draws.items()}


def _check_raw(golden: Golden, scheme: HypernetInit, raw: Draws, limit: float) -> None:
    """Statistics and bounds of the parameters themselves."""
    assert set(golden.under("stat/param/")) == {*raw, *film_actor_bias(golden)}
    for name, draws in raw.items():
        recorded = golden[f"stat/param/{name}"]
        ours = statistics(draws)
        _check_statistics(f"stat/param/{name}", ours, recorded, golden.meta["nseeds"], limit)
        single = golden.find(f"param/{name}")
        if single is not None:
            _check_plausible(f"param/{name}", ours, single.view(1, *draws.shape[1:]))
        _check_bound(name, _raw_bound(golden, scheme, name, draws.shape[-1]), draws)


def _check_base(golden: Golden, scheme: HypernetInit, base: Draws, limit: float) -> None:
    """Statistics of the generated parameters, and the rules that every single draw obeys."""
    assert set(golden.under("base/")) == set(golden.under("stat/base/")) == set(base)
    for name, draws in base.items():
        recorded, expected = golden[f"base/{name}"], golden[f"stat/base/{name}"]
        shape = golden.meta["base_shapes"].get(name, (1, recorded.shape[1]))
        _check_dependence(scheme, name, torch.cat([recorded.unsqueeze(0), draws]))
        for row, index in enumerate(INPUT_ROWS):
            ours = statistics(draws[:, index].unflatten(1, shape))
            _check_statistics(f"stat/base/{name} row {index}", ours, expected[:, row], golden.meta["nseeds"], limit)
            _check_plausible(f"base/{name} row {index}", ours, recorded[index].view(1, *shape))
        _check_bound(name, _base_bound(golden, scheme, name, shape[-1]), draws[:, ONE_HOT_ROW])


def _check_dependence(scheme: HypernetInit, name: str, draws: Tensor) -> None:
    """How generated parameters `[seeds, inputs, size]` depend on the hypernetwork's input, in every single draw."""
    hyperinit = scheme not in ("none", "hfi")
    if scheme == "bias_hyperinit" or (hyperinit and name.endswith("bias")):
        assert (draws == draws[:, :1]).all(), f"base/{name} depends on the hypernetwork's input"
    elif scheme != "both_hyperinit":
        assert not draws[:, ZERO_ROW].any(), f"base/{name} does not vanish with the hypernetwork's input"
    if hyperinit and name.endswith("bias"):
        assert draws.any() == (name == CRITIC_BIAS), f"base/{name} starts from the wrong constant"


def _check_statistics(name: str, ours: Tensor, recorded: Tensor, seeds: int, limit: float) -> None:
    """Our draws' statistics `[N, 7]` against recorded means and deviations over seeds `[2, 7]`."""
    mean, deviation = recorded.double()
    error = (deviation.square() / seeds + ours.var(0) / len(ours)).sqrt()
    difference = (ours.mean(0) - mean).abs()
    wrong = (difference > limit * error + FORMULA * (1 + mean.abs())).nonzero()[:, 0].tolist()
    found = {STATISTICS[i]: (ours.mean(0)[i].item(), mean[i].item(), error[i].item()) for i in wrong}
    assert not found, f"{name}: (ours, recorded, standard error) {found}"


def _check_plausible(name: str, ours: Tensor, single: Tensor) -> None:
    """A single recorded draw `[1, out, in]` could be one of ours, whose statistics are `[N, 7]`."""
    distance = (statistics(single)[0] - ours.mean(0)).abs()
    assert (distance <= PLAUSIBLE * ours.std(0) + FORMULA).all(), f"{name}: implausible among our draws"


def _check_bound(name: str, bound: float, draws: Tensor) -> None:
    """All draws lie within the bound, and the largest is near it (of 400 uniform ones, but for a chance of 1e-18)."""
    largest = draws.abs().max().item()
    assert largest <= bound * (1 + 1e-6), f"{name}: {largest} exceeds its bound {bound}"
    assert math.isinf(bound) or largest >= 0.9 * bound, f"{name}: {largest} is far from its bound {bound}"


def _hidden_gain(golden: Golden) -> float:
    return GAINS[golden.args["policy_activation_function"]]


def _hfi_gain(golden: Golden, name: str) -> float:
    """The gain that HFI takes for the layer whose name this is, raw or generated."""
    if "linear" not in name:
        return _hidden_gain(golden)
    return 1.0 if "critic" in name or golden.meta["action_space"] != "discrete" else 0.01


def _raw_bound(golden: Golden, scheme: HypernetInit, name: str, columns: int) -> float:
    """The largest value that a raw parameter can have, as far as it is drawn uniformly."""
    if name.endswith("encoder.fc.weight"):
        return 1 / math.sqrt(columns)
    if name.startswith("critic_linear"):
        return 1 / math.sqrt(widths(golden.args["policy_layers"])[-1])
    kaiming = math.sqrt(3 / columns) * _hidden_gain(golden)
    head = name.startswith("hyper_final")
    if not name.endswith(".weight") or name.startswith("dist") or (head and scheme not in ("none", "hfi")):
        return math.inf
    if head and scheme == "hfi":
        generated = columns * _generated_ins(golden, name) if "_weight." in name else columns
        return _hfi_gain(golden, name) * math.sqrt(3 / (2 * generated))
    return kaiming if golden.args["policy_initialisation"] in ("kaiming", "hfi") else math.inf


def _generated_ins(golden: Golden, name: str) -> int:
    """The input width of the layer that a weight head generates."""
    net = "critic" if "critic" in name else "actor"
    layer = "head" if "linear" in name else name.split(".")[1]
    return golden.meta["base_shapes"][f"{net}/{layer}/weight"][1]


def _base_bound(golden: Golden, scheme: HypernetInit, name: str, ins: int) -> float:
    """The same for a parameter generated by a one-hot input under a HyperInit."""
    if scheme in ("none", "hfi") or name.endswith("scale"):
        return math.inf
    if name.endswith("bias"):
        return 1.0 if name == CRITIC_BIAS else 0.0
    head = name.split("/")[1] == "head"
    if name != "critic/head/weight" and golden.args["policy_initialisation"] != "kaiming":
        return math.inf
    if not golden.args["adjust_init_b_gain"]:
        return math.sqrt(6 / ins)
    gain = _hidden_gain(golden)
    if head:
        gain = 1.0 if "critic" in name or golden.meta["action_space"] != "discrete" else 0.01
    return math.sqrt(3 / ins) * gain
