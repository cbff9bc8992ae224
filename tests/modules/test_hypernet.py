"""Generated layers: what they compute equals the weights they never build; model sizes are the published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.hypernet import Condition, GeneratedLinear, Input, PlainLinear
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig

BATCH, CONDITION = 7, 3
WIDENS, NARROWS, SQUARE = (4, 6), (6, 4), (5, 5)


def layer_of(ins: int, outs: int) -> GeneratedLinear:
    torch.manual_seed(0)
    layer = GeneratedLinear(ins, outs, CONDITION).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def inputs_of(ins: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(BATCH, width, generator=generator, dtype=torch.float64).requires_grad_()
        for width in (ins, CONDITION)
    )


def materialised(layer: GeneratedLinear, x: Tensor, embedding: Tensor) -> Tensor:
    weight, bias = layer.materialise(embedding)
    assert weight.shape == (BATCH, layer.out_features, layer.in_features)
    return torch.einsum("noi,ni->no", weight, x) + bias


@pytest.mark.parametrize("shape", [WIDENS, NARROWS, SQUARE])
def test_factorised_equals_materialised_in_values_and_gradients(shape: tuple[int, int]) -> None:
    layer, (x, embedding) = layer_of(*shape), inputs_of(shape[0])
    assert layer.expands_input == (shape[0] <= shape[1])
    inputs = [x, embedding, *layer.parameters()]
    upstream = torch.randn(BATCH, shape[1], dtype=torch.float64)
    ours, expected = layer(Input(x, Condition(embedding))), materialised(layer, x, embedding)
    torch.testing.assert_close(ours, expected)
    gradients, wanted = (torch.autograd.grad(output, inputs, upstream) for output in (ours, expected))
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("shape", [WIDENS, NARROWS])
def test_weights_are_affine_in_the_condition(shape: tuple[int, int]) -> None:
    layer = layer_of(*shape)
    components = layer.components()
    assert components.shape == (CONDITION + 1, shape[1], shape[0])
    weight, bias = layer.materialise(torch.eye(CONDITION, dtype=torch.float64))
    torch.testing.assert_close(weight, components[0] + components[1:])
    torch.testing.assert_close(bias, layer.bias_head.bias + layer.bias_head.weight.T)
    torch.testing.assert_close(layer.materialise(torch.zeros(1, CONDITION).double())[0][0], components[0])


@pytest.mark.parametrize("shape", [WIDENS, NARROWS])
def test_components_are_a_view_of_the_parameter(shape: tuple[int, int]) -> None:
    layer = layer_of(*shape)
    with torch.no_grad():
        layer.components().zero_()
    assert not layer.weight.any()


@pytest.mark.parametrize("shape", [WIDENS, NARROWS])
def test_no_leak_across_the_batch(shape: tuple[int, int]) -> None:
    layer, (x, embedding) = layer_of(*shape), inputs_of(shape[0])
    output = layer(Input(x, Condition(embedding)))
    for gradient in torch.autograd.grad(output[2].sum(), [x, embedding]):
        assert gradient[2].any()
        gradient[2] = 0
        assert not gradient.any()


def test_two_layers_on_one_input_share_its_expansion_and_both_give_gradient() -> None:
    (x, embedding), layers = inputs_of(4), [layer_of(*WIDENS), layer_of(4, 5)]
    shared = Input(x, Condition(embedding))
    ours = torch.cat([layer(shared) for layer in layers], 1)
    assert shared.expanded is shared.expanded
    expected = torch.cat([materialised(layer, x, embedding) for layer in layers], 1)
    torch.testing.assert_close(ours, expected)
    found, wanted = (torch.autograd.grad(output.square().sum(), [x, embedding]) for output in (ours, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [WIDENS, NARROWS])
def test_no_weights_per_sample_are_saved_for_the_backward_pass(shape: tuple[int, int]) -> None:
    layer = GeneratedLinear(*(16 * width for width in shape), CONDITION)
    saved: list[int] = []
    x, embedding = torch.ones(BATCH, 16 * shape[0]), torch.ones(BATCH, CONDITION, requires_grad=True)

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != layer.weight.data_ptr():
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(Input(x, Condition(embedding)))
    assert saved
    assert max(saved) <= BATCH * (CONDITION + 1) * 16 * min(shape)


def test_autocast_costs_only_the_precision_of_bf16() -> None:
    for shape in (WIDENS, NARROWS):
        layer, (x, embedding) = layer_of(*shape).float(), (tensor.detach().float() for tensor in inputs_of(shape[0]))
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(Input(x, Condition(embedding)))
        torch.testing.assert_close(output.float(), materialised(layer, x, embedding), rtol=0.05, atol=0.1)


def test_plain_layer_is_an_ordinary_one() -> None:
    torch.manual_seed(0)
    layer, x = PlainLinear(4, 3), torch.randn(5, 4)
    assert torch.equal(layer(Input(x, None)), nn.functional.linear(x, layer.weight, layer.bias))


# Spec/results.md section 4, with the embedding widths of those environments (spec/models.md section 11).
GRID: dict[str, Any] = {}
MAZE = {"action_embedding_dim": 8, "latent_dim": 12, "full_transitions": True}
MUJOCO = {"action_embedding_dim": 16, "reward_embedding_dim": 16}
WALKER = {"action_embedding_dim": 32, "reward_embedding_dim": 32, "latent_dim": 10}
SIZES = {
    "GridNavi": ((3, 1, 5), GRID, 25, (311_731, 443_827, 5_384_777)),
    "T-LN-P1": ((5, 1, 4), MAZE, 25, (346_350, 478_958, 5_416_683)),
    "Planning 3x3": ((18, 1, 5), MAZE, 25, (346_895, 482_831, 5_423_781)),
    "Cheetah": ((20, 6, None), MUJOCO, 25, (330_970, 467_418, 5_411_593)),
    "Ant-Dir": ((27, 8, None), MUJOCO, 10, (323_641, 461_881, 2_442_131)),
    "Walker": ((18, 6, None), WALKER, 25, (358_446, 494_382, 5_438_557)),
}
MODELS: tuple[dict[str, Any], ...] = (
    {"hypernetwork": False, "use_state": False, "state_embedding_dim": None, "normalize_state": False},
    {"hypernetwork": False},
    {"hypernetwork": True},
)


@pytest.mark.parametrize("env", SIZES)
def test_parameter_counts_are_the_published_ones(env: str) -> None:
    (obs_dim, action_dim, num_actions), encoder, embedding, expected = SIZES[env]
    counts = []
    for model in MODELS:
        policy = PolicyConfig(**model, latent_embedding_dim=embedding)
        learner = MetaPPO(obs_dim, action_dim, num_actions, 4, 1, EncoderConfig(**encoder), policy)
        counts.append(sum(parameter.numel() for parameter in learner.parameters()))
    assert tuple(counts) == expected
