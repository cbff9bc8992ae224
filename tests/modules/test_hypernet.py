"""Generated layers: what they compute equals the weights they never build; model sizes are the published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperrl.env_info import ActionSpace, EnvInfo
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.film import FilmLinear
from hyperrl.modules.hypernet import Condition, GeneratedLinear, Input, PlainLinear, RepeatedInput, distinct_rows
from hyperrl.modules.initializers import LayerInit
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.networks import ConditionNetwork
from hyperrl.modules.per_task import PerTaskLinear
from hyperrl.modules.policy import Policy, PolicyConfig

BATCH, CONDITION = 7, 3
WIDENS, NARROWS, SQUARE = (4, 6), (6, 4), (5, 5)


def layer_of(ins: int, outs: int, head_bias: bool = True) -> GeneratedLinear:
    torch.manual_seed(0)
    return randomised(GeneratedLinear(ins, outs, CONDITION, head_bias))


def randomised(layer: Any) -> Any:
    """All parameters normal, so that no term vanishes."""
    for parameter in layer.double().parameters():
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


def assert_same_values_and_gradients(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected)
    upstream = torch.randn(ours.shape, dtype=torch.float64)
    gradients, wanted = (torch.autograd.grad(output, inputs, upstream) for output in (ours, expected))
    torch.testing.assert_close(gradients, wanted)


def assert_no_leak(output: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """The third sample's output depends on the third sample's inputs, and on no others."""
    for gradient in torch.autograd.grad(output[2].sum(), inputs):
        assert gradient[2].any()
        gradient[2] = 0
        assert not gradient.any()


@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("shape", [WIDENS, NARROWS, SQUARE])
def test_factorised_equals_materialised_in_values_and_gradients(shape: tuple[int, int], head_bias: bool) -> None:
    layer, (x, embedding) = layer_of(*shape, head_bias), inputs_of(shape[0])
    assert layer.expands_input == (shape[0] <= shape[1])
    ours = layer(Input(x, Condition(embedding, head_bias)))
    inputs = [x, embedding, *layer.parameters()]
    assert_same_values_and_gradients(ours, materialised(layer, x, embedding), inputs)


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
def test_weights_are_linear_in_the_condition_without_head_bias(shape: tuple[int, int]) -> None:
    layer = layer_of(*shape, head_bias=False)
    assert layer.components().shape == (CONDITION, shape[1], shape[0])
    weight, bias = layer.materialise(torch.eye(CONDITION, dtype=torch.float64))
    torch.testing.assert_close(weight, layer.components())
    torch.testing.assert_close(bias, layer.bias_head.weight.T)
    assert not any(part.any() for part in layer.materialise(torch.zeros(1, CONDITION).double()))


@pytest.mark.parametrize("shape", [WIDENS, NARROWS])
def test_components_are_a_view_of_the_parameter(shape: tuple[int, int]) -> None:
    layer = layer_of(*shape)
    with torch.no_grad():
        layer.components().zero_()
    assert not layer.weight.any()


@pytest.mark.parametrize("shape", [WIDENS, NARROWS])
def test_no_leak_across_the_batch(shape: tuple[int, int]) -> None:
    layer, inputs = layer_of(*shape), inputs_of(shape[0])
    assert_no_leak(layer(Input(inputs[0], Condition(inputs[1]))), inputs)


def test_two_layers_on_one_input_share_its_expansion_and_both_give_gradient() -> None:
    (x, embedding), layers = inputs_of(4), [layer_of(*WIDENS), layer_of(4, 5)]
    shared = Input(x, Condition(embedding))
    ours = torch.cat([layer(shared) for layer in layers], 1)
    assert shared.expanded is shared.expanded
    expected = torch.cat([materialised(layer, x, embedding) for layer in layers], 1)
    torch.testing.assert_close(ours, expected)
    found, wanted = (torch.autograd.grad(output.square().sum(), [x, embedding]) for output in (ours, expected))
    torch.testing.assert_close(found, wanted)


ROW = torch.tensor([2, 0, 2, 1, 1, 2, 0])


@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("shape", [WIDENS, NARROWS, SQUARE])
def test_a_repeated_input_equals_the_plain_one_in_values_and_gradients(shape: tuple[int, int], head_bias: bool) -> None:
    (x, embedding), layers = inputs_of(shape[0]), [layer_of(*shape, head_bias), layer_of(*shape, head_bias)]
    distinct = x.detach()[:3].requires_grad_()
    shared = RepeatedInput(distinct, ROW, Condition(embedding, head_bias))
    ours = torch.cat([layer(shared) for layer in layers], 1)
    expected = torch.cat([materialised(layer, distinct[ROW], embedding) for layer in layers], 1)
    inputs = [distinct, embedding, *(parameter for layer in layers for parameter in layer.parameters())]
    assert_same_values_and_gradients(ours, expected, inputs)
    again = RepeatedInput(distinct, ROW, Condition(embedding, head_bias))
    assert_no_leak(layers[0](again), (embedding,))


def test_what_follows_a_repeated_input_is_an_ordinary_one() -> None:
    (x, embedding), narrows = inputs_of(WIDENS[0]), randomised(PlainLinear(*NARROWS))
    shared = RepeatedInput(x[:3], ROW, Condition(embedding))
    assert torch.equal(shared.x, x[:3][ROW])
    hidden = layer_of(*WIDENS)(shared)
    assert torch.equal(narrows(shared.next(hidden)), narrows(Input(hidden)))
    assert torch.equal(shared.float().x, shared.x.float())


def test_a_repeated_input_takes_the_multiplications_that_are_left() -> None:
    layer, samples, distinct, ins = GeneratedLinear(32, 32, CONDITION), 64, 4, 32
    shared = RepeatedInput(torch.ones(distinct, ins), torch.arange(samples) % distinct, Condition(torch.ones(64, 3)))
    counts = []
    for inputs in (Input(shared.x, shared.condition), shared):
        with FlopCounterMode(display=False) as counter:
            inputs.product(layer.weight)
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == distinct / ins + distinct / samples


def test_rows_are_distinct_and_tell_which_each_sample_has() -> None:
    x = torch.tensor([[2.0, 0.0], [1.0, 3.0], [2.0, 0.0], [3.0, 1.0], [1.0, 3.0], [-0.0, 0.0]])
    found = distinct_rows(x, 4)
    assert found is not None
    distinct, row = found
    assert torch.equal(distinct[row], x)
    assert torch.equal(distinct.unique(dim=0), x.unique(dim=0))
    assert len(distinct) == 4
    assert distinct_rows(x, 3) is None
    assert distinct_rows(x[:0], 4) is None


def test_grid_cells_are_never_taken_for_one_another() -> None:
    cells = torch.cartesian_prod(*[torch.arange(-7.0, 8.0)] * 3)
    found = distinct_rows(cells.repeat(2, 1), len(cells))
    assert found is not None
    assert len(found[0]) == len(cells)


@pytest.mark.parametrize("rows", [[[1e30, 0.0], [1e30, 1.0]], [[float("nan"), 0.0], [1.0, 0.0]]])
def test_rows_that_cannot_be_told_apart_are_not_merged(rows: list[list[float]]) -> None:
    assert distinct_rows(torch.tensor(rows * 4), 8) is None


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
            repeated = layer(RepeatedInput(x[:3], ROW, Condition(embedding)))
        torch.testing.assert_close(output.float(), materialised(layer, x, embedding), rtol=0.05, atol=0.1)
        expected = materialised(layer, x[:3][ROW], embedding)
        torch.testing.assert_close(repeated.float(), expected, rtol=0.05, atol=0.1)


def test_plain_layer_is_an_ordinary_one() -> None:
    torch.manual_seed(0)
    layer, x = PlainLinear(4, 3), torch.randn(5, 4)
    assert torch.equal(layer(Input(x, None)), nn.functional.linear(x, layer.weight, layer.bias))


def test_film_scales_and_shifts_an_ordinary_layer() -> None:
    layer, (x, embedding) = randomised(FilmLinear(*WIDENS, CONDITION)), inputs_of(WIDENS[0])
    scale, bias = layer.materialise(embedding)
    assert scale.shape == bias.shape == (BATCH, WIDENS[1])
    torch.testing.assert_close(scale, embedding @ layer.scale_head.weight.T + layer.scale_head.bias)
    torch.testing.assert_close(bias, embedding @ layer.bias_head.weight.T + layer.bias_head.bias)
    ours = layer(Input(x, Condition(embedding)))
    torch.testing.assert_close(ours, (x @ layer.weight.T) * scale + bias)
    assert_no_leak(ours, (x, embedding))


def test_every_task_has_its_own_layer() -> None:
    tasks, (x, _) = torch.tensor([3, 0, 3, 1, 1, 3, 0]), inputs_of(WIDENS[0])
    layer = randomised(PerTaskLinear(*WIDENS, num_tasks=4))
    ours = layer(Input(x, task_id=tasks))
    expected = torch.stack([layer.weight[task] @ row + layer.bias[task] for row, task in zip(x, tasks, strict=True)])
    assert_same_values_and_gradients(ours, expected, [x, *layer.parameters()])
    for gradient in torch.autograd.grad(layer(Input(x, task_id=tasks)).sum(), list(layer.parameters())):
        assert [bool(of_task.any()) for of_task in gradient] == [True, True, False, True]


def condition_network(**config: Any) -> ConditionNetwork:
    torch.manual_seed(0)
    return ConditionNetwork(CONDITION, PolicyConfig(**config), LayerInit("normc", 1.0, discrete=True))


def test_without_hidden_layers_the_embedding_is_the_condition() -> None:
    embedding = torch.randn(BATCH, CONDITION)
    network = condition_network()
    assert not list(network.parameters())
    assert network(embedding).embedding is embedding


def test_hidden_layers_of_the_hypernetwork() -> None:
    embedding = torch.randn(BATCH, CONDITION)
    network = condition_network(hypernet_layers=[8, 6], hypernet_head_bias=False, hypernet_init="none")
    expected = torch.tanh(network.layers[1](torch.tanh(network.layers[0](embedding))))
    condition = network(embedding)
    assert network.output_dim == condition.coefficients.shape[1] == 6
    torch.testing.assert_close(condition.embedding, expected)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_softmax_takes_the_place_of_the_last_activation(temperature: float) -> None:
    embedding = torch.randn(BATCH, CONDITION)
    network = condition_network(hypernet_layers=[8, 6], hypernet_softmax_temperature=temperature)
    hidden = torch.tanh(network.layers[0](embedding))
    logits = network.layers[1](hidden) / temperature
    torch.testing.assert_close(network(embedding).embedding, logits.exp() / logits.exp().sum(1, keepdim=True))


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
    {"conditioning": "concat", "use_state": False, "state_embedding_dim": None, "normalize_state": False},
    {"conditioning": "concat"},
    {"conditioning": "hypernetwork"},
)


@pytest.mark.parametrize("env", SIZES)
def test_parameter_counts_are_the_published_ones(env: str) -> None:
    (obs_dim, action_dim, num_actions), encoder, embedding, expected = SIZES[env]
    counts = []
    for model in MODELS:
        policy = PolicyConfig(**model, latent_embedding_dim=embedding)
        info = EnvInfo(obs_dim, action_dim, num_actions, horizon=1)
        learner = MetaPPO(info, 4, 1, EncoderConfig(**encoder), policy)
        counts.append(sum(parameter.numel() for parameter in learner.parameters()))
    assert tuple(counts) == expected


SMALL: dict[str, Any] = {"state_embedding_dim": 16, "layers": [32, 32]}
# Spec/named_models.json, derived sizes on GridNavi; FiLM without the bias of the actor's head (5), which vanishes in
# the reference's first forward pass.
GRID_SIZES: list[tuple[dict[str, Any], int]] = [
    ({**SMALL, "conditioning": "concat"}, 5_337),
    ({**SMALL, "conditioning": "film", "hypernet_init": "none"}, 10_576 - 5),
    ({**SMALL, "conditioning": "film"}, 10_576 - 5),
    (SMALL, 88_687),
    *[({**SMALL, "hypernet_init": scheme}, 88_687) for scheme in ("weight_hyperinit", "both_hyperinit", "hfi", "none")],
    ({"conditioning": "concat"}, 212_249),
    ({"conditioning": "concat", "use_state": False}, 80_153),
    ({}, 5_153_199),
    ({"conditioning": "film"}, 238_928 - 5),
    ({"use_latent": False, "use_task": True, "hypernet_input": "task"}, 5_152_999),
]


@pytest.mark.parametrize(("config", "expected"), GRID_SIZES)
def test_policy_sizes_on_the_grid_are_the_published_ones(config: dict[str, Any], expected: int) -> None:
    policy = Policy(3, 10, ActionSpace(1, 5), PolicyConfig(**config), task_dim=2)
    assert sum(parameter.numel() for parameter in policy.parameters()) == expected
