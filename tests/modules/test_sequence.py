"""Sequence models: stepping equals one call with resets inside, in values and gradients; and what each one promises."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hyperrl.errors import ConfigError
from hyperrl.modules.sequence import (
    GRU,
    LSTM,
    CausalTransformer,
    Memoryless,
    MinGRU,
    SequenceModel,
    Transformer,
    Transition,
)
from hyperrl.modules.sequence.causal_transformer import _rotated

BATCH, STEPS, INPUTS, HIDDEN, HORIZON, EARLIER = 5, 9, 4, 6, 12, 3
MODELS: dict[str, Callable[[int, int, int], SequenceModel]] = {
    "gru": GRU,
    "lstm": LSTM,
    "invariant lstm": partial(LSTM, invariant="full"),
    "memoryless": Memoryless,
    "transition": Transition,
    "transition, last features": partial(Transition, previous_dim=2),
    "transformer": partial(Transformer, token_dim=4),
    "transformer, given memory": partial(Transformer, token_dim=None, memory_dim=75, num_layers=1, num_heads=3),
    "causal transformer": partial(CausalTransformer, token_dim=8, num_heads=2),
    "mingru": MinGRU,
    "mingru, two layers": partial(MinGRU, num_layers=2),
}
PATTERNS = ["none", "rows", "all", "rows and all", "all first", "always"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reset_mask(pattern: str) -> Tensor:
    """Where rows are reset `[B, T]`."""
    reset = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    if pattern in ("rows", "rows and all"):
        for row, step in ((0, 3), (1, 1), (1, 2), (1, 8), (3, 0), (3, 5)):
            reset[row, step] = True
    if pattern in ("all", "rows and all"):
        reset[:, [4, 7]] = True
    if pattern == "all first":
        reset[:, 0] = True
    if pattern == "always":
        reset[:] = True
    return reset


def stepped(model: SequenceModel, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
    """What the sequence form must equal: one entry at a time."""
    outputs, initial = [], model.initial_state(1) if initial is None else initial
    for t in range(x.shape[1]):
        state = torch.where(reset[:, t : t + 1], initial, state)
        output, state = model.step(x[:, t], state)
        outputs.append(output)
    return torch.stack(outputs, 1)


def earlier_state(model: SequenceModel) -> Tensor:
    """A state `[B, S]` after up to 3 steps, not the same number in all rows."""
    state = model.initial_state(BATCH)
    for t in range(EARLIER):
        started = torch.tensor([t >= row for row in range(BATCH)]).unsqueeze(1)
        state = torch.where(started, model.step(draw(BATCH, INPUTS, seed=10 + t), state)[1], state)
    return state.detach()


def make(name: str) -> SequenceModel:
    torch.manual_seed(1)
    model = MODELS[name](INPUTS, HIDDEN, HORIZON).double()
    for parameter in model.parameters():
        if parameter.dim() == 1 and name != "invariant lstm":  # many start at 0, where mistakes would not show
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    return make(request.param)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a fixed functional; zeros where there is none."""
    return list(torch.autograd.grad(output, inputs, draw(*output.shape, seed=2), materialize_grads=True))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sequence_equals_stepping_in_values_and_gradients(model: SequenceModel, pattern: str) -> None:
    reset, x = reset_mask(pattern), draw(BATCH, STEPS, INPUTS).requires_grad_()
    state = earlier_state(model).requires_grad_()
    inputs = [x, state, *model.parameters()]
    expected, ours = stepped(model, x, reset, state), model(x, reset, state)
    assert ours.shape == (BATCH, STEPS, model.output_dim)
    torch.testing.assert_close(ours, expected)
    for found, wanted in zip(gradients(ours, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", [name for name in MODELS if "transformer" not in name])
@pytest.mark.parametrize("pattern", ["rows", "all", "rows and all"])
def test_a_given_initial_state_is_used_and_differentiated(name: str, pattern: str) -> None:
    model = make(name)
    assert model.initial_learnable
    reset, x, state = reset_mask(pattern), draw(BATCH, STEPS, INPUTS), earlier_state(model)
    initial = draw(model.state_dim, seed=4).requires_grad_()
    expected = stepped(model, x, reset, state, initial)
    ours = model(x, reset, state, initial)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, [initial]), gradients(expected, [initial]))
    if model.state_dim:
        assert not torch.allclose(ours, model(x, reset, state))


@pytest.mark.parametrize("steps", [1, 2])
def test_short_sequences(model: SequenceModel, steps: int) -> None:
    reset, x, state = reset_mask("rows")[:, :steps], draw(BATCH, steps, INPUTS), earlier_state(model)
    torch.testing.assert_close(model(x, reset, state), stepped(model, x, reset, state))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_leak_across_rows(model: SequenceModel, pattern: str) -> None:
    reset, x, state = reset_mask(pattern), draw(BATCH, STEPS, INPUTS).requires_grad_(), earlier_state(model)
    output = model(x, reset, state)
    (by_x,) = torch.autograd.grad(output[1].sum(), x)
    others = [0, 2, 3, 4]
    assert by_x[1].any()
    assert not by_x[others].any()
    disturbed_x, disturbed_state = x.detach().clone(), state.clone()
    disturbed_x[1] += 1
    disturbed_state[1] = model.initial_state(1)[0]
    disturbed = model(disturbed_x, reset, disturbed_state)
    assert not torch.allclose(disturbed[1], output[1])
    torch.testing.assert_close(disturbed[others], output[others], rtol=0, atol=1e-13)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_order_of_rows_does_not_matter(model: SequenceModel, pattern: str) -> None:
    reset, order = reset_mask(pattern), torch.tensor([3, 0, 4, 1, 2])
    x, state = draw(BATCH, STEPS, INPUTS), earlier_state(model)
    torch.testing.assert_close(model(x[order], reset[order], state[order]), model(x, reset, state)[order])
    torch.testing.assert_close(model.step(x[order, 0], state[order])[1], model.step(x[:, 0], state)[1][order])


@pytest.mark.parametrize("pattern", ["rows", "all", "rows and all"])
def test_nothing_passes_a_reset_or_comes_from_the_future(model: SequenceModel, pattern: str) -> None:
    reset, x = reset_mask(pattern), draw(BATCH, STEPS, INPUTS).requires_grad_()
    state = model.initial_state(BATCH)
    for row, step in reset.nonzero().tolist():
        (gradient,) = torch.autograd.grad(model(x, reset, state)[row, step:].sum(), x)
        assert not gradient[row, :step].any()
        assert gradient[row, step].any()
    for step in (0, 4):
        (gradient,) = torch.autograd.grad(model(x, reset, state)[:, step].sum(), x)
        assert not gradient[:, step + 1 :].any()


def test_step_leaves_the_state_as_it_is(model: SequenceModel) -> None:
    state = earlier_state(model)
    before = state.clone()
    _, after = model.step(draw(BATCH, INPUTS), state)
    assert torch.equal(state, before)
    assert after.shape == state.shape == (BATCH, model.state_dim)


def test_evaluation_mode_changes_nothing(model: SequenceModel) -> None:
    """Without gradients, libraries may take other kernels."""
    reset, x, state = reset_mask("rows"), draw(BATCH, STEPS, INPUTS), earlier_state(model)
    expected, expected_step = model(x, reset, state), model.step(x[:, 0], state)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x, reset, state), expected)
        torch.testing.assert_close(model.step(x[:, 0], state), expected_step)


def test_fp32_equals_fp64(model: SequenceModel) -> None:
    reset, x, state = reset_mask("rows and all"), draw(BATCH, STEPS, INPUTS), earlier_state(model)
    expected = model(x, reset, state)
    ours = model.float()(x.float(), reset, state.float())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


# LSTM


def test_lstm_equals_torch() -> None:
    model, x = make("lstm"), draw(BATCH, STEPS, INPUTS)
    assert isinstance(model, LSTM)
    state = earlier_state(model)
    hidden, cell = (part.contiguous() for part in state.unsqueeze(0).chunk(2, -1))
    expected, _ = model.cell(x, (hidden, cell))
    torch.testing.assert_close(model(x, reset_mask("none"), state), expected)


def test_fully_invariant_lstm_is_a_sum() -> None:
    """At initialisation c is the sum of tanh(W x), and so the order of the steps does not matter."""
    model, x = make("invariant lstm"), draw(BATCH, 3, INPUTS)
    assert isinstance(model, LSTM)
    w_ih = model.weights[0]
    _, _, w_cell, w_out = w_ih.chunk(4)
    total = (x @ w_cell.T).tanh().sum(1)
    expected = (x[:, -1] @ w_out.T).sigmoid() * total.tanh()
    torch.testing.assert_close(model(x, reset_mask("none")[:, :3], model.initial_state(BATCH))[:, -1], expected)


@pytest.mark.parametrize("invariant", ["bias", "full"])
def test_invariant_lstm_keeps_what_it_has(invariant: str) -> None:
    torch.manual_seed(0)
    model = LSTM(INPUTS, HIDDEN, 0, invariant=invariant)  # type: ignore[arg-type]
    w_ih, w_hh, b_ih, b_hh = model.weights
    for bias in (b_ih, b_hh):
        torch.testing.assert_close(bias[: 2 * HIDDEN], torch.full((2 * HIDDEN,), 9.21024))
        assert not bias[2 * HIDDEN :].any()
    assert w_hh.any() == (invariant == "bias")
    assert w_ih[: 2 * HIDDEN].any() == (invariant == "bias")
    rows = w_ih[2 * HIDDEN :] if invariant == "full" else w_ih
    assert rows.any(1).all()
    if invariant == "bias":
        for weight in (w_ih, w_hh):  # orthogonal as one matrix over all gates
            torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]))


# Per-step embeddings


def test_memoryless_and_transition_embed_what_they_say() -> None:
    x, reset = draw(BATCH, STEPS, INPUTS), reset_mask("rows")
    memoryless, transition = make("memoryless"), make("transition, last features")
    assert isinstance(memoryless, Memoryless)
    assert isinstance(transition, Transition)
    torch.testing.assert_close(
        memoryless(x, reset, x.new_zeros(BATCH, 0)), (x @ memoryless.layer.weight.T + memoryless.layer.bias).tanh()
    )
    expected = transition.layer(torch.cat([x[0, 3, -2:], x[0, 4]])).tanh()
    torch.testing.assert_close(transition(x, reset, transition.initial_state(BATCH))[0, 4], expected)
    expected = transition.layer(torch.cat([torch.zeros(2).double(), x[0, 3]])).tanh()
    torch.testing.assert_close(transition(x, reset, transition.initial_state(BATCH))[0, 3], expected)


# Memories of steps


STEP_MEMORIES = ["transformer", "causal transformer"]


@pytest.mark.parametrize("name", STEP_MEMORIES)
def test_a_task_fills_the_memory_and_not_more(name: str) -> None:
    model, x = make(name), draw(BATCH, HORIZON + 1, INPUTS)
    reset, state = torch.zeros(BATCH, HORIZON + 1, dtype=torch.bool), model.initial_state(BATCH)
    expected = stepped(model, x[:, :HORIZON], reset, state)
    torch.testing.assert_close(model(x[:, :HORIZON], reset[:, :HORIZON], state), expected)
    reset[:3, 5] = reset[3:, 12] = True
    torch.testing.assert_close(model(x, reset, state), stepped(model, x, reset, state))
    reset[0] = False
    with pytest.raises(ConfigError, match="horizon is 12, and a task has more steps"):
        model(x, reset, state)
    with pytest.raises(ConfigError, match="horizon is 12, and a task has more steps"):
        stepped(model, x, reset, state)


@pytest.mark.parametrize("name", STEP_MEMORIES)
def test_steps_in_memory_count(name: str) -> None:
    model = make(name)
    state = earlier_state(model)
    assert state[:, -1].tolist() == [3, 2, 1, 0, 0]
    reset, x = torch.zeros(BATCH, 10, dtype=torch.bool), draw(BATCH, 10, INPUTS)
    with pytest.raises(ConfigError, match="horizon is 12"):
        model(x, reset, state)
    reset[0, 9] = True  # the row with three steps in memory has room for nine more
    assert model(x, reset, state).isfinite().all()


@pytest.mark.parametrize("name", STEP_MEMORIES)
def test_memory_that_is_not_used_is_zero(name: str) -> None:
    model = make(name)
    state = earlier_state(model)
    layers = 2 * 2 if name == "causal transformer" else 1
    slots = state[:, :-1].view(BATCH, layers, HORIZON, -1)
    for row, count in enumerate([3, 2, 1, 0, 0]):
        assert slots[row, :, :count].any(-1).all()
        assert not slots[row, :, count:].any()


@pytest.mark.parametrize("name", STEP_MEMORIES)
def test_looking_at_the_whole_memory_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On accelerators, steps look at all slots instead of asking how many are in use."""
    model = make(name)
    x, state = draw(BATCH, INPUTS), earlier_state(model)
    expected = model.step(x, state)
    monkeypatch.setattr(sys.modules[type(model).__module__], "steps_in_use", lambda count, horizon: horizon)
    for ours, wanted in zip(model.step(x, state), expected, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", STEP_MEMORIES)
def test_the_order_of_earlier_steps_matters(name: str) -> None:
    """To the causal transformer by positions, to the other one by how often a token has passed the blocks."""
    model, x = make(name), draw(1, 3, INPUTS)
    reset, state = torch.zeros(1, 3, dtype=torch.bool), model.initial_state(1)
    assert not torch.allclose(model(x, reset, state)[0, -1], model(x[:, [1, 0, 2]], reset, state)[0, -1])


def test_rotation_depends_on_distances_only() -> None:
    frequency = torch.tensor([1.0, 0.1], dtype=torch.float64)

    def score(query_at: int, key_at: int) -> Tensor:
        turned = []
        for at, seed in ((query_at, 0), (key_at, 1)):
            angle = (at * frequency).view(1, 1, 1, 2)
            turned.append(_rotated(draw(1, 1, 1, 4, seed=seed), (angle.cos(), angle.sin())))
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(5, 3), score(9, 7))
    assert not torch.isclose(score(5, 3), score(5, 4))


def test_causal_transformer_equals_plain_attention() -> None:
    """One block, head by head and entry by entry, as the formulas say."""
    torch.manual_seed(0)
    model = CausalTransformer(INPUTS, HIDDEN, HORIZON, token_dim=8, num_layers=1, num_heads=2).double()
    block, x = model.blocks[0], draw(4, INPUTS)
    tokens = model.input(x)
    query, key, value = block.qkv(block.norm1(tokens)).chunk(3, -1)
    attended = torch.zeros_like(tokens)
    turn = torch.polar(torch.ones(4, 2).double(), torch.arange(4).unsqueeze(1) * model.frequency)
    for head in (slice(0, 4), slice(4, 8)):
        q, k = (torch.complex(*part[:, head].chunk(2, -1)) * turn for part in (query, key))
        for t in range(4):
            scores = (q[t] * k[: t + 1].conj()).real.sum(-1) / 2  # the root of a head's width
            attended[t, head] = scores.softmax(0) @ value[: t + 1, head]
    tokens = tokens + block.projection(attended)
    expected = model.output(tokens + block.network(block.norm2(tokens)))
    ours = model(x.unsqueeze(0), torch.zeros(1, 4, dtype=torch.bool), model.initial_state(1))
    torch.testing.assert_close(ours[0], expected)


def test_parameters_do_not_depend_on_the_horizon() -> None:
    model = make("causal transformer")
    longer = CausalTransformer(INPUTS, HIDDEN, 2 * HORIZON, token_dim=8, num_heads=2).double()
    longer.load_state_dict(model.state_dict())
    x, reset = draw(BATCH, STEPS, INPUTS), reset_mask("rows")
    torch.testing.assert_close(
        longer(x, reset, longer.initial_state(BATCH)), model(x, reset, model.initial_state(BATCH))
    )


def test_causal_transformer_starts_empty() -> None:
    model = make("causal transformer")
    with pytest.raises(ValueError, match="no initial state"):
        model(draw(BATCH, STEPS, INPUTS), reset_mask("rows"), earlier_state(model), model.initial_state(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (partial(Transformer, token_dim=4, memory_dim=24), "token_dim is 4 and .*memory_dim is 24"),
        (partial(Transformer, token_dim=None), "token_dim is None and .*memory_dim is None"),
        (partial(Transformer, token_dim=5), "num_heads is 2 and a token has width 5"),
        (partial(Transformer, num_layers=0), "num_layers is 0"),
        (partial(CausalTransformer, num_heads=5), "num_heads is 5 and a token has width 64"),
        (partial(CausalTransformer, token_dim=6, num_heads=2), "token_dim is 6 and .*num_heads is 2"),
        (partial(MinGRU, num_layers=0), "num_layers is 0"),
        (partial(LSTM, invariant="weights"), "invariant is 'weights'"),
        (partial(Transition, previous_dim=5), "previous_dim is 5; expected 1 to the number of features, 4"),
    ],
)
def test_wrong_options_are_refused(options: Callable[[int, int, int], SequenceModel], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        options(INPUTS, HIDDEN, HORIZON)


@pytest.mark.parametrize("memory", [Transformer, CausalTransformer])
def test_a_memory_of_steps_needs_a_horizon(memory: type[SequenceModel]) -> None:
    with pytest.raises(ConfigError, match=f"horizon is 0 and model.encoder.sequence is {memory.__name__}"):
        memory(INPUTS, HIDDEN, 0)


def test_mingru_equals_its_formula() -> None:
    model, x = make("mingru"), draw(1, 2, INPUTS)
    assert isinstance(model, MinGRU)
    update, candidate = model.layers[0](x[0]).chunk(2, -1)
    z = update.sigmoid()
    first = z[0] * candidate[0]
    expected = torch.stack([first, (1 - z[1]) * first + z[1] * candidate[1]])
    ours = model(x, torch.zeros(1, 2, dtype=torch.bool), model.initial_state(1))
    torch.testing.assert_close(ours[0], expected)
