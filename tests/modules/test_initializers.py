"""Initialisations: exact norms, and generated weights that start as they should."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperrl.modules.hypernet import GeneratedLinear
from hyperrl.modules.initializers import GAINS, encoder_gru_, init_generated_, init_plain_, kaiming_, normc_

INS, OUTS, CONDITION = 6, 4, 5
TANH = 5 / 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def generated(role: str, scheme: str, initializer: str = "normc", discrete: bool = True, **shape: int) -> Any:
    layer = GeneratedLinear(shape.get("ins", INS), shape.get("outs", OUTS), CONDITION)
    init_generated_(layer.components(), layer.bias_head, role, scheme, initializer, TANH, discrete)
    return layer


def plain(role: str, initializer: str = "normc", discrete: bool = True) -> nn.Linear:
    layer = nn.Linear(INS, OUTS)
    init_plain_(layer, role, initializer, TANH, discrete)
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
    weight, bias = weights_for_random_latents(generated(role, "bias_hyperinit", initializer, **shape))
    assert torch.equal(weight, weight[:1].expand_as(weight))
    assert torch.equal(bias, bias[:1].expand_as(bias))
    assert weight[0].any()
    assert (role == "critic_head") == bool(bias.any())


def test_bias_hyperinit_is_the_base_initialisation() -> None:
    assert_rows(weights_for_random_latents(generated("hidden", "bias_hyperinit"))[0], TANH)
    assert_orthogonal(weights_for_random_latents(generated("hidden", "bias_hyperinit", "orthogonal"))[0][0], TANH)
    assert_orthogonal(weights_for_random_latents(generated("actor_head", "bias_hyperinit"))[0][0], 0.01)
    assert_rows(weights_for_random_latents(generated("actor_head", "bias_hyperinit", discrete=False))[0], 1.0)


@pytest.mark.parametrize(
    ("role", "initializer"), [("critic_head", "normc"), ("critic_head", "orthogonal"), ("hidden", "kaiming"),
                              ("actor_head", "kaiming")]
)  # fmt: skip
def test_bias_hyperinit_where_the_gain_is_ignored(role: str, initializer: str) -> None:
    """Quirks Q17, Q18: the bound is sqrt(6 / in) whatever the role."""
    weight = generated(role, "bias_hyperinit", initializer, ins=6, outs=300).components()[0]
    assert 0.99 < weight.abs().max() <= 1.0


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
    components = generated(role, "none", "kaiming").components()
    bound = math.sqrt(3 / CONDITION) * TANH
    assert 0.9 * bound < components[1:].abs().max() <= bound
    assert not components[0].any()


def test_plain_layers() -> None:
    hidden, actor, gaussian = plain("hidden"), plain("actor_head"), plain("actor_head", discrete=False)
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
    encoder_gru_(gru)
    for weight in (gru.weight_ih_l0, gru.weight_hh_l0):
        assert_orthogonal(weight.detach(), 1.0)
    assert not gru.bias_ih_l0.any()
    assert not gru.bias_hh_l0.any()
