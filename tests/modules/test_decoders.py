"""Decoders against their plain form, and squared errors of wide outputs against the direct ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hyperrl.modules import decoders
from hyperrl.modules.decoders import (
    LatentDecoder,
    RewardDecoder,
    StateDecoder,
    StepDecoder,
    TaskDecoder,
    affine_squared_error,
    pick,
)
from hyperrl.modules.encoder import Transition
from hyperrl.modules.encoder_config import EncoderConfig

N, E, T, D, Z, OBS, A = 3, 4, 5, 6, 2, 7, 3
EMBEDDING = EncoderConfig(state_embedding_dim=4, action_embedding_dim=2)
NO_ACTION = EncoderConfig(state_embedding_dim=4, action_embedding_dim=0)


def _reward(embedding: EncoderConfig = EMBEDDING, layers: tuple[int, ...] = (8, 6), **options: Any) -> RewardDecoder:
    return RewardDecoder(Z, OBS, A, embedding, layers, **options)


def _state(**options: Any) -> StateDecoder:
    return StateDecoder(Z, OBS, A, EMBEDDING, (8,), **options)


# Name: decoder, the parts that it is given in order, width of its output.
CASES: dict[str, tuple[StepDecoder, list[str], int]] = {
    "reward": (_reward(), ["observation", "action", "prev_observation"], 1),
    "reward, no action": (_reward(uses_action=False), ["observation", "prev_observation"], 1),
    "reward, no previous state": (_reward(uses_prev_state=False), ["observation", "action"], 1),
    "reward, neither": (_reward(uses_action=False, uses_prev_state=False), ["observation"], 1),
    "reward, actions are not embedded": (_reward(NO_ACTION), ["observation", "prev_observation"], 1),
    "reward, two outputs": (_reward(output_dim=2), ["observation", "action", "prev_observation"], 2),
    "reward, no hidden layer": (_reward(layers=()), ["observation", "action", "prev_observation"], 1),
    "state": (_state(), ["prev_observation", "action"], OBS),
    "state, gaussian": (_state(gaussian=True), ["prev_observation", "action"], 2 * OBS),
}


def _inputs(*shape: int) -> tuple[Tensor, Transition]:
    torch.manual_seed(0)
    latent = torch.randn(N, E, Z, requires_grad=True)
    widths = Transition(OBS, A, 1, OBS)
    return latent, Transition(*(torch.randn(*(shape or (N, T)), width, requires_grad=True) for width in widths))


def _plain(decoder: StepDecoder, parts: list[str], latent: Tensor, steps: Transition) -> Tensor:
    """Every latent beside every embedded step, through ordinary layers."""
    embedded = [(decoder.action if part == "action" else decoder.state)(getattr(steps, part)).relu() for part in parts]
    pairs = [latent.unsqueeze(2).expand(-1, -1, T, -1)]
    pairs += [part.unsqueeze(1).expand(-1, E, -1, -1) for part in embedded]
    return decoder.rest(decoder.first(torch.cat(pairs, -1)))


def _gradients(output: Tensor, decoder: nn.Module, *inputs: Tensor) -> list[Tensor | None]:
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    wanted = [*decoder.parameters(), *inputs]
    return list(torch.autograd.grad((output * weight).sum(), wanted, allow_unused=True))


@pytest.mark.parametrize("name", CASES)
def test_split_first_layer_equals_expanded_form(name: str) -> None:
    decoder, parts, width = CASES[name]
    latent, steps = _inputs()
    ours, plain = decoder(latent, steps), _plain(decoder, parts, latent, steps)
    assert ours.shape == (N, E, T, width)
    assert_close(ours, plain)
    inputs = latent, *(getattr(steps, part) for part in parts)
    for own, expected in zip(_gradients(ours, decoder, *inputs), _gradients(plain, decoder, *inputs), strict=True):
        assert own is not None, "a parameter or input without influence"
        assert_close(own, expected)


@pytest.mark.parametrize("name", CASES)
def test_drawn_steps_are_those_of_all_steps(name: str) -> None:
    decoder, parts, width = CASES[name]
    latent, steps = _inputs()
    index = torch.randint(T, (N, E, D))
    drawn = decoder(latent, steps, index)
    picked = decoder(latent, steps).gather(2, index.unsqueeze(-1).expand(-1, -1, -1, width))
    assert_close(drawn, picked)
    inputs = latent, *(getattr(steps, part) for part in parts)
    for own, expected in zip(_gradients(drawn, decoder, *inputs), _gradients(picked, decoder, *inputs), strict=True):
        assert_close(own, expected)


def test_only_what_is_given_has_influence() -> None:
    decoder = _reward(uses_action=False, uses_prev_state=False)
    latent, steps = _inputs()
    unused = steps.prev_observation, steps.action, steps.reward
    assert _gradients(decoder(latent, steps), decoder, *unused)[-3:] == [None] * 3


def test_state_embedding_is_shared_and_its_own() -> None:
    """Parameters: embeddings of s (once) and a, then layers with one bias each."""
    decoder = _reward()
    embeddings = (OBS * 4 + 4) + (A * 2 + 2)
    layers = ((Z + 4 + 2 + 4) * 8 + 8) + (8 * 6 + 6) + (6 + 1)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == embeddings + layers
    without = _reward(NO_ACTION)
    layers -= 2 * 8
    assert sum(parameter.numel() for parameter in without.parameters()) == (OBS * 4 + 4) + layers


def test_first_layer_is_initialised_as_one() -> None:
    """Uniform in +-1/sqrt(width of latent and features together), as an ordinary layer of that width."""
    decoder = RewardDecoder(Z, OBS, A, EMBEDDING, [4000])
    bound = (Z + 4 + 2 + 4) ** -0.5
    for part in (decoder.first.weight[:, :Z], decoder.first.weight[:, Z:], decoder.first.bias):
        assert 0.99 * bound < part.abs().max() <= bound


@pytest.mark.parametrize("layers", [(), (8,), (8, 6)])
def test_latent_decoder(layers: tuple[int, ...]) -> None:
    decoder = LatentDecoder(Z, layers, 25)
    widths = [Z, *layers, 25]
    expected = sum((ins + 1) * outs for ins, outs in zip(widths[:-1], widths[1:], strict=True))
    assert sum(parameter.numel() for parameter in decoder.parameters()) == expected
    latent, _ = _inputs()
    value = latent
    for layer in decoder.hidden:
        value = layer(value).relu() if isinstance(layer, nn.Linear) else value
    assert_close(decoder(latent), decoder.output(value))


def test_pick() -> None:
    values, index = torch.randn(N, T, 2), torch.randint(T, (N, E, D))
    picked = pick(values, index)
    rows = torch.stack([values[row][index[row]] for row in range(N)])
    assert torch.equal(picked, rows)
    assert torch.equal(pick(values[..., 0], index[:, 0]), rows[:, 0, :, 0])


# Squared errors of wide outputs


def _direct(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return ((hidden @ weight.T + bias) - target.unsqueeze(1)).square().mean(-1)


def _affine(outputs: int, dtype: torch.dtype, deviation: float | None = None) -> list[Tensor]:
    """Hidden vectors, weight, bias and target, which predictions miss by `deviation`, if given."""
    torch.manual_seed(1)
    width = 6
    hidden = torch.randn(N, E, width, dtype=dtype)
    weight, bias = torch.randn(outputs, width, dtype=dtype), torch.randn(outputs, dtype=dtype)
    target = torch.randn(N, outputs, dtype=dtype)
    if deviation is not None:
        hidden = hidden[:, :1].repeat(1, E, 1)
        target = hidden[:, 0] @ weight.T + bias + deviation * target
    return [tensor.requires_grad_() for tensor in (hidden, weight, bias, target.detach())]


def test_affine_squared_error_equals_direct_form() -> None:
    inputs = _affine(500, torch.float64)
    weight = torch.rand(N, E, dtype=torch.float64)
    found = [form(*inputs) for form in (affine_squared_error, _direct)]
    assert_close(*found, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad((value * weight).sum(), inputs) for value in found)
    for own, expected in zip(*gradients, strict=True):
        assert_close(own, expected, rtol=1e-11, atol=1e-13)


def test_affine_squared_error_gradcheck() -> None:
    assert torch.autograd.gradcheck(affine_squared_error, _affine(9, torch.float64))


@pytest.mark.parametrize("deviation", [1.0, 1e-3, 1e-5])
def test_affine_squared_error_of_almost_exact_predictions(deviation: float) -> None:
    """The terms of the sum are up to 1e11 times the error; yet it is more exact than the direct form in fp32."""
    inputs = _affine(5000, torch.float32, deviation)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found = [affine_squared_error(*inputs), _direct(*inputs), _direct(*exact)]
    assert found[0].dtype == torch.float32
    gradients = [torch.autograd.grad(v.sum(), of) for v, of in zip(found, (inputs, inputs, exact), strict=True)]
    for ours, direct, right in [found, *zip(*gradients, strict=True)]:
        off, plainly_off = (float(((value - right).norm() / right.norm()).detach()) for value in (ours, direct))
        assert off < max(plainly_off, 1e-6)


class _Largest(TorchDispatchMode):
    """Notes the largest array that any operation gives, of the backward pass, too."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("outputs", [100, 5000])
def test_task_decoder_builds_wide_predictions_never(outputs: int) -> None:
    """Both forms of the error are the same; the one for wide outputs has no array of latents x outputs."""
    decoder = TaskDecoder(Z, [8], outputs)
    latents, target = torch.randn(N, 20, Z, requires_grad=True), torch.randn(N, outputs)
    expected = (decoder(latents) - target.unsqueeze(1)).square().mean(-1)
    right = _gradients(expected, decoder, latents)
    with _Largest() as largest:
        error = decoder.squared_error(latents, target)
        own = _gradients(error, decoder, latents)
    wide = outputs > decoders.WIDE
    assert wide == (outputs == 5000)
    assert (largest.numel < N * 20 * outputs) == wide
    assert_close(error, expected)
    for ours, theirs in zip(own, right, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
