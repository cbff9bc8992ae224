"""Initialisations: exact norms, and generated weights that start as they should."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperrl.modules.hypernet import Condition, GeneratedLinear, Input
from hyperrl.modules.initializers import (
    GAINS,
    LayerInit,
    encoder_rnn_,
    init_generated_,
    init_plain_,
    init_scale_head_,
    kaiming_,
    normc_,
)

INS, OUTS, CONDITION = 6, 4, 5
TANH = 5 / 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def base(initializer: str = "normc", discrete: bool = True, adjust: bool = False) -> LayerInit:
    return LayerInit(initializer, TANH, discrete, adjust)


def generated(role: str, scheme: str, init: LayerInit | None = None, head_bias: bool = True, **shape: int) -> Any:
    layer = GeneratedLinear(shape.get("ins", INS), shape.get("outs", OUTS), CONDITION, head_bias)
    init_generated_(layer.components(), layer.bias_head, role, scheme, init or base())
    return layer


def plain(role: str, init: LayerInit | None = None) -> nn.Linear:
    layer = nn.Linear(INS, OUTS)
    init_plain_(layer.weight, layer.bias, role, init or base())
    return layer


def weights_for_random_latents(layer: GeneratedLinear) -> tuple[Tensor, Tensor]:
    weight, bias = layer.materialise(torch.randn(20, CONDITION) * 10)
    return weight, bias


def assert_rows(weight: Tensor, norm: float) -> None:
    torch.testing.assert_close(weight.norm(dim=-1), torch.full_like(weight[..., 0], norm), rtol=1e-5, atol=0)


def assert_orthogonal(weight: Tensor, gain: float) -> None:
    small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(small, gain**2 * torch.eye(len(small)), rtol=1e-4, atol=1e-5 * gain**2)


def test_gains() -> None:
    assert GAINS["tanh"] == TANH
    assert GAINS["relu"] == math.sqrt(2)
    assert GAINS["leaky_relu"] == nn.init.calculate_gain("leaky_relu", 0.01)


def test_normc_rows_have_the_norm_of_the_gain() -> None:
    assert_rows(normc_(torch.empty(50, 7), 2.5), 2.5)


def test_kaiming_is_uniform_within_its_bound() -> None:
    weight = kaiming_(torch.empty(200, 12), 1.5)
    bound = math.sqrt(3 / 12) * 1.5
    assert 0.99 * bound < weight.abs().max() <= bound
    # 2400 draws of variance bound^2 / 3: the estimate is within 5 of its standard deviations (sqrt(0.8 / 2400)).
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.092)


@pytest.mark.parametrize("shape", [{"ins": 4, "outs": 6}, {"ins": 6, "outs": 4}])
@pytest.mark.parametrize("role", ["hidden", "actor_head", "critic_head"])
@pytest.mark.parametrize("initializer", ["normc", "orthogonal", "kaiming"])
def test_bias_hyperinit_generates_one_and_the_same_layer(initializer: str, role: str, shape: dict[str, int]) -> None:
    weight, bias = weights_for_random_latents(generated(role, "bias_hyperinit", base(initializer), **shape))
    assert torch.equal(weight, weight[:1].expand_as(weight))
    assert torch.equal(bias, bias[:1].expand_as(bias))
    assert weight[0].any()
    assert (role == "critic_head") == bool(bias.any())


def test_bias_hyperinit_is_the_base_initialisation() -> None:
    assert_rows(weights_for_random_latents(generated("hidden", "bias_hyperinit"))[0], TANH)
    assert_orthogonal(weights_for_random_latents(generated("hidden", "bias_hyperinit", base("orthogonal")))[0][0], TANH)
    assert_orthogonal(weights_for_random_latents(generated("actor_head", "bias_hyperinit"))[0][0], 0.01)
    assert_rows(weights_for_random_latents(generated("actor_head", "bias_hyperinit", base(discrete=False)))[0], 1.0)


IGNORED_GAIN = [
    ("critic_head", "normc"), ("critic_head", "orthogonal"), ("hidden", "kaiming"), ("actor_head", "kaiming")
]  # fmt: skip


@pytest.mark.parametrize(("role", "initializer"), IGNORED_GAIN)
def test_hyperinit_where_the_gain_is_ignored(role: str, initializer: str) -> None:
    """Quirks Q17, Q18: the bound is sqrt(6 / in) whatever the role."""
    weight = generated(role, "bias_hyperinit", base(initializer), ins=6, outs=300).components()[0]
    assert 0.99 < weight.abs().max() <= 1.0


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("role", "initializer"), IGNORED_GAIN)
def test_hyperinit_with_the_gain_of_the_layer(role: str, initializer: str, discrete: bool) -> None:
    init = base(initializer, discrete, adjust=True)
    weight = generated(role, "bias_hyperinit", init, ins=6, outs=300).components()[0]
    gain = {"critic_head": 1.0, "hidden": TANH, "actor_head": 0.01 if discrete else 1.0}[role]
    assert 0.99 < weight.abs().max() / (gain * math.sqrt(3 / 6)) <= 1.0 + 1e-6


@pytest.mark.parametrize("head_bias", [True, False])
def test_weight_hyperinit_starts_from_the_base_initialisation_for_one_hot_conditions(head_bias: bool) -> None:
    layer = generated("hidden", "weight_hyperinit", base("orthogonal"), head_bias)
    weight, bias = layer.materialise(torch.eye(CONDITION))
    for sample in weight:
        assert_orthogonal(sample, TANH)
    assert len({sample.sum().item() for sample in weight}) == CONDITION, "the samples are independent"
    assert not bias.any()
    assert not any(part.any() for part in layer.materialise(torch.zeros(1, CONDITION)))


def test_both_hyperinit_is_half_the_sum_of_both() -> None:
    components = generated("hidden", "both_hyperinit").components()
    assert_rows(components, TANH / 2)
    assert len({sample.sum().item() for sample in components}) == CONDITION + 1, "the samples are independent"


@pytest.mark.parametrize("scheme", ["bias_hyperinit", "weight_hyperinit", "both_hyperinit"])
def test_bias_of_the_critic_starts_from_the_same_range_under_every_hyperinit(scheme: str) -> None:
    layer = generated("critic_head", scheme, outs=400)
    assert 0.97 < layer.bias_head.bias.abs().max() <= 1
    assert not layer.bias_head.weight.any()


def test_critic_without_head_bias_starts_without_offset() -> None:
    layer = generated("critic_head", "weight_hyperinit", head_bias=False)
    assert not layer.materialise(torch.randn(5, CONDITION))[1].any()


def test_bias_of_the_critic_starts_uniform_in_minus_one_to_one() -> None:
    """Quirk Q16. Chi-square over ten bins, 2000 draws, level 1e-4."""
    bias = generated("critic_head", "bias_hyperinit", outs=2000).bias_head.bias.detach()
    counts = torch.histc(bias, 10, -1, 1)
    assert counts.sum() == 2000
    assert ((counts - 200) ** 2 / 200).sum() < 33.72


def test_none_initialises_the_head_matrices_themselves() -> None:
    layer = generated("hidden", "none")
    components = layer.components()
    assert not components[0].any()
    assert not layer.bias_head.bias.any()
    head = components[1:].permute(1, 2, 0).reshape(OUTS * INS, CONDITION)
    assert_rows(head, TANH)
    assert_rows(layer.bias_head.weight, TANH)
    weight, bias = layer.materialise(torch.zeros(1, CONDITION))
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize("role", ["hidden", "actor_head", "critic_head"])
def test_none_makes_no_difference_between_roles(role: str) -> None:
    components = generated(role, "none", base("kaiming")).components()
    bound = math.sqrt(3 / CONDITION) * TANH
    assert 0.9 * bound < components[1:].abs().max() <= bound
    assert not components[0].any()


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("role", ["hidden", "actor_head", "critic_head"])
def test_hfi_has_the_variances_of_its_derivation(role: str, discrete: bool) -> None:
    """Uniform, variance gain^2 / (2 K in) of weights and gain^2 / (2 K) of biases (Chang et al. 2020)."""
    layer = generated(role, "hfi", base(discrete=discrete), ins=6, outs=2000)
    gain = {"hidden": TANH, "critic_head": 1.0, "actor_head": 0.01 if discrete else 1.0}[role]
    assert not layer.components()[0].any()
    assert not layer.bias_head.bias.any()
    weights, biases = layer.components()[1:], layer.bias_head.weight
    for values, variance in ((weights, gain**2 / (2 * CONDITION * 6)), (biases, gain**2 / (2 * CONDITION))):
        assert_uniform(values.flatten() / math.sqrt(3 * variance))


def test_hfi_keeps_the_variance_of_outputs() -> None:
    """Unit inputs and conditions: the variance of an output is gain^2, over 3,000 layers, within 5 deviations of it."""
    gain, draws = TANH, []
    for _ in range(3000):
        layer = generated("hidden", "hfi")
        x, embedding = torch.randn(1, INS), torch.randn(1, CONDITION)
        draws.append(layer(Input(x, Condition(embedding))).detach())
    square = torch.cat(draws).square().mean(1)
    assert abs(square.mean() - gain**2) < 5 * square.std() / math.sqrt(len(square))


def assert_uniform(values: Tensor) -> None:
    """Chi-square over ten bins of [-1, 1] at level 1e-5, which leaves 1e-3 for a hundred such checks."""
    counts = torch.histc(values.detach(), 10, -1, 1)
    expected = len(values) / 10
    assert expected >= 40
    assert counts.sum() == len(values), "beyond the bound"
    assert ((counts - expected) ** 2 / expected).sum() < 39.34


@pytest.mark.parametrize("scheme", ["bias_hyperinit", "weight_hyperinit", "both_hyperinit"])
@pytest.mark.parametrize(("role", "initializer"), [("critic_head", "normc"), ("hidden", "kaiming")])
def test_hyperinits_draw_from_their_distribution(role: str, initializer: str, scheme: str) -> None:
    """What a one-hot condition generates, over 400 policies: uniform, or the mean of two uniforms."""
    eye = torch.eye(CONDITION)[:1]
    draws = torch.cat([generated(role, scheme, base(initializer)).materialise(eye)[0] for _ in range(400)]).detach()
    values = draws.flatten() / math.sqrt(6 / INS)
    if scheme == "both_hyperinit":  # the distribution function of the mean of two uniforms makes it uniform again
        values = values.sign() * (1 - (1 - values.abs()).square())
    assert_uniform(values)


@pytest.mark.parametrize(
    ("scheme", "weight", "bias"),
    [("bias_hyperinit", 0.0, 1.0), ("weight_hyperinit", 1.0, 0.0), ("both_hyperinit", 0.5, 0.5)],
)
def test_scales_of_film_start_from_constants(scheme: str, weight: float, bias: float) -> None:
    head = nn.Linear(CONDITION, OUTS)
    init_scale_head_(head, scheme, base())
    assert (head.weight == weight).all()
    assert (head.bias == bias).all()


def test_scales_of_film_start_around_zero_without_hyperinit() -> None:
    head = nn.Linear(CONDITION, OUTS)
    init_scale_head_(head, "none", base())
    assert_rows(head.weight, TANH)
    assert not head.bias.any()


def test_plain_layers() -> None:
    hidden, actor, gaussian = plain("hidden"), plain("actor_head"), plain("actor_head", base(discrete=False))
    assert_rows(hidden.weight, TANH)
    assert_orthogonal(actor.weight, 0.01)
    assert_rows(gaussian.weight, 1.0)
    assert not any(layer.bias.any() for layer in (hidden, actor, gaussian))


def test_plain_critic_head_keeps_the_framework_default() -> None:
    ours = plain("critic_head")
    torch.manual_seed(0)
    default = nn.Linear(INS, OUTS)
    assert torch.equal(ours.weight, default.weight)
    assert torch.equal(ours.bias, default.bias)


def test_gru_of_the_encoder_is_orthogonal_over_all_gates() -> None:
    gru = nn.GRU(7, 8)
    encoder_rnn_(gru)
    for weight in (gru.weight_ih_l0, gru.weight_hh_l0):
        assert_orthogonal(weight.detach(), 1.0)
    assert not gru.bias_ih_l0.any()
    assert not gru.bias_hh_l0.any()
