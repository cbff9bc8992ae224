"""The encoder's contract: stepping through real rollouts equals one sequence call, with resets inside."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tiny import TOY
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env
from hyperrl.errors import ConfigError
from hyperrl.modules import sequence
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.aggregators import Gaussian, Max, Mean, MeanMax, Softmax, Sum, WeightedAverage
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition
from hyperrl.modules.policy import PolicyConfig
from hyperrl.testing import check_encoder

ENVS = 5
# Name: environment, its episodes per task, steps per rollout, number of rollouts, encoder.
CASES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "one task ends inside": ("GridNavi-v0", 4, 70, 2, {}),
    "two tasks end inside": ("GridNavi-v0", 2, 70, 2, {}),
    "tasks span rollouts": ("GridNavi-v0", 2, 7, 10, {}),
    "tasks end with the rollout": ("GridNavi-v0", 4, 60, 2, {}),
    "every environment by itself": (TOY, 2, 23, 3, {}),
    "every environment by itself, one step": (TOY, 2, 1, 25, {}),
    "single episodes": (TOY, 1, 23, 2, {}),
    "full transitions": (TOY, 2, 23, 2, {"full_transitions": True, "action_embedding_dim": 4}),
    "no rewards": (TOY, 2, 23, 2, {"reward_embedding_dim": 0}),
}
TRANSFORMER = partial(sequence.Transformer, token_dim=4)
CAUSAL = partial(sequence.CausalTransformer, token_dim=8, num_heads=2)
VARIANTS: dict[str, dict[str, Any]] = {
    "lstm": {"sequence": sequence.LSTM},
    "mingru": {"sequence": partial(sequence.MinGRU, num_layers=2)},
    "transformer": {"sequence": TRANSFORMER},
    "causal transformer": {"sequence": CAUSAL},
    "transition": {"sequence": partial(sequence.Transition, previous_dim=32), "action_embedding_dim": 4},
    "max": {"sequence": sequence.Memoryless, "aggregator": Max},
    "splagger": {"aggregator": Max, "split": True},
    "amrl": {"aggregator": partial(Max, straight_through=True), "split": True},
    "mean and max": {"sequence": sequence.LSTM, "aggregator": MeanMax, "split": True},
    "weighted average": {"aggregator": WeightedAverage, "split": True},
    "softmax, causal transformer": {"sequence": CAUSAL, "aggregator": partial(Softmax, temperature=0.5)},
    "gauss": {"aggregator": Gaussian, "output_layers": [7]},
    "sum, layers": {"aggregator": Sum, "layers_before": [9, 7], "layers_after": [8, 10], "output_layers": [6]},
    "learned start": {"learn_initial_state": True},
    "learned start, mean": {"aggregator": Mean, "split": True, "learn_initial_state": True},
}
CASES |= {name: (TOY, 2, 23, 3, options) for name, options in VARIANTS.items()}


class Collected:
    """Rollouts of a real environment, acted by an agent of random parameters."""

    def __init__(self, env: str, episodes: int, steps: int, number: int, encoder: dict[str, Any]) -> None:
        torch.manual_seed(0)
        source = make_env(env, ENVS, seed=3, episodes_per_task=episodes)
        policy = PolicyConfig(layers=[8], state_embedding_dim=8)
        agent = Agent(source.env_info, EncoderConfig(hidden_dim=12, **encoder), policy)
        for name, parameter in agent.encoder.named_parameters():
            if "bias" in name or name == "learned":
                nn.init.normal_(parameter, std=0.3)
        self.encoder = agent.encoder
        stream = RolloutStream(source, lambda generator: Actor(agent, generator), steps, seed=1)
        self.rollouts = [stream.collect() for _ in range(number)]

    def __iter__(self) -> Iterator[TensorDictBase]:
        return iter(self.rollouts)


@pytest.fixture(scope="module", params=CASES)
def collected(request: pytest.FixtureRequest) -> Collected:
    return Collected(*CASES[request.param])


@pytest.fixture(scope="module")
def irregular() -> Collected:
    """Tasks that end at different times in different environments."""
    return Collected(TOY, 2, 23, 3, {})


@torch.no_grad()
def stepped(encoder: TrajectoryEncoder, rollouts: list[TensorDictBase]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents at decision time, latents after each step and memories, one step at a time over all rollouts."""
    memory, before, after, memories = encoder.initial_state(ENVS), [], [], []
    for td in torch.cat([rollout.exclude(keys.START_MEMORY) for rollout in rollouts], 1).unbind(1):
        latent, memory = encoder.step(Transition.last(td), memory)
        first = td[keys.IS_INIT]
        before.append(torch.where(first, encoder.prior(ENVS), latent))
        memory = torch.where(first, encoder.initial_state(ENVS), memory)
        memories.append(memory)
        after.append(encoder.step(Transition.last(td[keys.NEXT]), memory)[0])
    return torch.stack(before, 1), torch.stack(after, 1), torch.stack(memories, 1)


def test_stepping_equals_one_sequence_call(collected: Collected) -> None:
    before, after, _ = stepped(collected.encoder, collected.rollouts)
    encoded = [collected.encoder.encode(rollout) for rollout in collected]
    torch.testing.assert_close(torch.cat([pair[0] for pair in encoded], 1), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([pair[1] for pair in encoded], 1), after, rtol=1e-4, atol=1e-5)


def test_memory_is_carried_across_rollouts(collected: Collected) -> None:
    *_, memories = stepped(collected.encoder, collected.rollouts)
    end = 0
    for rollout in collected:
        expected = memories[:, end - 1] if end else collected.encoder.initial_state(ENVS)
        torch.testing.assert_close(collected.encoder.start_memory(rollout), expected, rtol=1e-4, atol=1e-5)
        end += rollout.shape[1]


def test_a_task_starts_from_the_prior(collected: Collected) -> None:
    first = torch.cat([rollout[keys.IS_INIT][..., 0] for rollout in collected], 1)
    assert first[:, 1:].any()
    latent = torch.cat([collected.encoder.encode(each)[0] for each in collected], 1)
    expected = collected.encoder.prior(int(first.sum()))
    torch.testing.assert_close(latent[first], expected)
    assert not torch.isclose(latent[~first], expected[:1]).all(-1).any()


def disturbed(rollout: TensorDictBase, row: int) -> TensorDictBase:
    """The rollout with other observations in one row."""
    rollout = rollout.clone()
    rollout[keys.NEXT, keys.OBSERVATION][row] += 1.0
    rollout[keys.OBSERVATION][row, 0] += 1.0
    return rollout


def test_no_leak_across_environments(collected: Collected) -> None:
    rollout, others = collected.rollouts[1], [0, 1, 3, 4]
    expected = collected.encoder.encode(rollout)
    found = collected.encoder.encode(disturbed(rollout, 2))
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[others], wanted[others], rtol=0, atol=1e-5)
    assert ((found[1][2] - expected[1][2]).abs().amax(-1) > 1e-4).all()


def test_order_of_environments_does_not_matter(collected: Collected) -> None:
    rollout, order = collected.rollouts[1], torch.tensor([4, 2, 0, 1, 3])
    for found, wanted in zip(collected.encoder.encode(rollout[order]), collected.encoder.encode(rollout), strict=True):
        torch.testing.assert_close(found, wanted[order], rtol=1e-4, atol=1e-5)


def test_gradients_of_a_sequence_are_those_of_stepping(collected: Collected) -> None:
    """Those of an update: the memory at the rollout's start is given."""
    encoder, rollout = collected.encoder, collected.rollouts[1]
    is_init = rollout[keys.IS_INIT]
    memory, latents = encoder.start_memory(rollout), []
    for t, td in enumerate(rollout.exclude(keys.START_MEMORY).unbind(1)):
        latent, memory = encoder.step(Transition.last(td), memory)
        latents.append(torch.where(is_init[:, t], encoder.prior(1), latent))
        memory = torch.where(is_init[:, t], encoder.initial_state(ENVS), memory)
    weight = torch.sin(torch.arange(float(len(latents)))).view(1, -1, 1)
    functionals = (encoder.encode(rollout)[0] * weight).sum(), (torch.stack(latents, 1) * weight).sum()
    parameters = dict(encoder.named_parameters())
    found, expected = (torch.autograd.grad(x, list(parameters.values()), allow_unused=True) for x in functionals)
    for name, ours, wanted in zip(parameters, found, expected, strict=True):
        if ours is None or wanted is None:  # nothing of the task before is left, say, or only zeros
            assert not any(gradient.any() for gradient in (ours, wanted) if gradient is not None), name
            continue
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_prior_is_the_output_after_one_empty_feature_vector(irregular: Collected) -> None:
    encoder = irregular.encoder
    features = torch.zeros(1, encoder.features.output_dim)
    output, _ = encoder.sequence.cell(features.unsqueeze(1))
    torch.testing.assert_close(encoder.prior(3), encoder.output(output[:, 0]).expand(3, -1))


def test_the_last_transition_of_a_task_is_encoded_before_the_reset(irregular: Collected) -> None:
    encoder, end = irregular.encoder, 0
    *_, memories = stepped(encoder, irregular.rollouts)
    for rollout in irregular:
        latent, after = encoder.encode(rollout)
        for row, step in rollout[keys.NEXT, keys.DONE][..., 0].nonzero().tolist():
            final = Transition.last(rollout[keys.NEXT][row : row + 1, step])
            expected, _ = encoder.step(final, memories[row : row + 1, end + step])
            torch.testing.assert_close(after[row, step], expected[0], rtol=1e-4, atol=1e-5)
            if step + 1 < rollout.shape[1]:
                assert torch.equal(latent[row, step + 1], encoder.prior(1)[0])
        end += rollout.shape[1]


def test_within_a_task_the_latent_after_a_step_is_the_next_ones(irregular: Collected) -> None:
    for rollout in irregular:
        latent, after = irregular.encoder.encode(rollout)
        goes_on = ~rollout[keys.NEXT, keys.DONE][:, :-1, 0]
        torch.testing.assert_close(after[:, :-1][goes_on], latent[:, 1:][goes_on])


def test_no_gradient_passes_the_end_of_a_task(irregular: Collected) -> None:
    """Observations of one task change no latent of the next."""
    rollout = irregular.rollouts[1].clone()
    row, step = rollout[keys.IS_INIT][:, 3:, 0].nonzero()[0].tolist()
    start = step + 3
    for name in (keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_REWARD):
        rollout[keys.NEXT, name][row, :start] += 5.0
    before, after = irregular.encoder.encode(irregular.rollouts[1])
    changed_before, changed_after = irregular.encoder.encode(rollout)
    torch.testing.assert_close(changed_before[row, start:], before[row, start:])
    torch.testing.assert_close(changed_after[row, start:], after[row, start:])
    assert not torch.allclose(changed_after[row, :start], after[row, :start])


def test_memory_stays_in_fp32_under_autocast(irregular: Collected) -> None:
    rollout = irregular.rollouts[1]
    with torch.autocast("cpu", torch.bfloat16):
        latent, _ = irregular.encoder.encode(rollout)
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, irregular.encoder.encode(rollout)[0])


# Whole trajectories, and what the policy is given


def trajectories_of(number: int = 3, steps: int = 11) -> TensorDict:
    """Trajectories of random transitions."""
    generator = torch.Generator().manual_seed(0)
    widths = {keys.OBSERVATION: 3, keys.PREV_OBSERVATION: 3, keys.PREV_ACTION: 1, keys.PREV_REWARD: 1}
    entries = {name: torch.randn(number, steps, width, generator=generator) for name, width in widths.items()}
    return TensorDict(entries, [number])


def stepped_with_detach(encoder: TrajectoryEncoder, trajectories: TensorDictBase, k: int | None) -> Tensor:
    """Latents of trajectories one step at a time, the memory detached after the transitions k, 2k, ..."""
    transitions = Transition.last(trajectories)
    number, steps = transitions.reward.shape[:2]
    memory, latents = encoder.initial_state(number), [encoder.prior(number)]
    for t in range(steps):
        latent, memory = encoder.step(Transition(*(part[:, t] for part in transitions)), memory)
        latents.append(latent)
        if k and t and t % k == 0:
            memory = memory.detach()
    return torch.stack(latents, 1)


@pytest.mark.parametrize("k", [None, 1, 3, 5, 10, 11])
@pytest.mark.parametrize("variant", ["gru", *VARIANTS])
def test_trajectories_are_encoded_as_by_stepping(variant: str, k: int | None) -> None:
    torch.manual_seed(0)
    encoder = make(hidden_dim=12, **VARIANTS.get(variant, {})).double()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    trajectories = trajectories_of().double()
    ours, expected = encoder.encode_trajectories(trajectories, k), stepped_with_detach(encoder, trajectories, k)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = dict(encoder.named_parameters())
    found, wanted = (
        torch.autograd.grad((x * weight).sum(), [*parameters.values()], materialize_grads=True, allow_unused=True)
        for x in (ours, expected)
    )
    for name, gradient, target in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(gradient, target, rtol=1e-7, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("k", [1, 3, 9])
def test_truncation_changes_gradients_alone(k: int) -> None:
    torch.manual_seed(0)
    encoder, trajectories = make(hidden_dim=12, aggregator=Max, split=True), trajectories_of()
    whole, truncated = encoder.encode_trajectories(trajectories), encoder.encode_trajectories(trajectories, k)
    torch.testing.assert_close(truncated, whole, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x.square().sum(), encoder.sequence.parameters()) for x in (whole, truncated)]
    assert not torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-2)


def test_no_gradient_passes_a_cut() -> None:
    """The first window has k + 1 transitions, the others have k."""
    encoder, trajectories = make(hidden_dim=12), trajectories_of(1)
    for name in trajectories.keys():  # noqa: SIM118 - of a TensorDict
        trajectories[name].requires_grad_()
    latents = encoder.encode_trajectories(trajectories, 4)
    reward, reach = trajectories[keys.PREV_REWARD], []
    for t in range(1, 12):
        (gradient,) = torch.autograd.grad(latents[:, t].sum(), reward, retain_graph=True)
        reach.append(int(gradient[0, :, 0].nonzero()[0]))
    assert reach == [0] * 5 + [5] * 4 + [9] * 2


class Forgetful(sequence.MinGRU):
    """Says that nothing is left of a window."""

    def final_state(self, x: Tensor, output: Tensor, state: Tensor) -> Tensor:
        return torch.zeros_like(state)


def test_the_contract_names_a_wrong_state_after_a_window() -> None:
    check_encoder(lambda: make(hidden_dim=6, sequence=sequence.MinGRU))
    with pytest.raises(AssertionError, match="truncated gradients change the latents of trajectories"):
        check_encoder(lambda: make(hidden_dim=6, sequence=Forgetful))


@pytest.mark.parametrize("relu", [False, True])
def test_the_policy_is_given_mean_and_log_variance_or_a_sample(relu: bool) -> None:
    encoders = [make(hidden_dim=4, latent_dim=3, sample_latent=sample, relu_latent=relu) for sample in (False, True)]
    assert [(encoder.policy_dim, encoder.noise_dim, encoder.latent_dim) for encoder in encoders] == [
        (6, 0, 6),
        (3, 3, 6),
    ]
    mean, log_var, noise = torch.randn(3, 7, 5, 3, generator=torch.Generator().manual_seed(0))
    latent = torch.cat([mean, log_var], -1)
    parameters, sample = latent, mean + torch.exp(0.5 * log_var) * noise
    if relu:
        parameters, sample = parameters.clamp(min=0), sample.clamp(min=0)
    torch.testing.assert_close(encoders[0].for_policy(latent), parameters)
    torch.testing.assert_close(encoders[1].for_policy(latent, noise), sample)
    assert bool((sample == 0).any()) == relu


def test_a_sample_needs_noise() -> None:
    with pytest.raises(ValueError, match="latent_noise"):
        make(hidden_dim=4, sample_latent=True).for_policy(torch.zeros(2, 10))


def test_gradients_reach_mean_and_variance_through_a_sample() -> None:
    latent = torch.randn(50, 10, requires_grad=True)
    make(hidden_dim=4, sample_latent=True).for_policy(latent, torch.randn(50, 5)).sum().backward()
    assert latent.grad.all()


# What is built


def make(**config: Any) -> TrajectoryEncoder:
    return TrajectoryEncoder(3, 1, EncoderConfig(**config), horizon=60)


# Of the published models on the grid: parameters, width of the memory, and of what the output layer reads. Averages
# weighted by exponentials keep the largest exponent, too, so that their memory is wider than the published one.
SIZES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "RNN+HN": ({}, 231_578, 256, 256),
    "SplAgger": ({"aggregator": Max, "split": True}, 231_578, 384, 256),
    "SplAgger-noSplit": ({"aggregator": Max}, 231_578, 512, 256),
    "SplAgger-avg": ({"aggregator": Mean, "split": True}, 231_578, 385, 256),
    "SplAgger-avgmax": ({"aggregator": MeanMax, "split": True}, 231_578, 385, 256),
    "SplAgger-softmax": ({"aggregator": Softmax, "split": True}, 231_578, 512 + 128, 256),
    "SplAgger-wavg": ({"aggregator": WeightedAverage, "split": True}, 854_938, 768, 384),
    "Max": ({"sequence": sequence.Memoryless, "aggregator": Max}, 13_210, 256, 256),
    "CNP+HN": ({"sequence": sequence.Memoryless, "aggregator": Mean}, 13_210, 257, 256),
    "wsoftmax-t1": (
        {"sequence": sequence.Memoryless, "aggregator": partial(WeightedAverage, temperature=1.0)},
        23_706,
        512 + 256,
        256,
    ),
    "InvInit": ({"sequence": partial(sequence.LSTM, invariant="full")}, 307_866, 512, 256),
    "Transformer": ({"sequence": sequence.Transformer}, 10_570, 961, 256),
    "PEARL": ({"aggregator": Gaussian}, 231_578, 266, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    config, parameters, state, width = SIZES[name]
    encoder = make(**config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert encoder.state_dim == state
    assert encoder.initial_state(2).shape == (2, state)
    assert (10 if encoder.output is None else encoder.output[0].in_features) == width
    assert encoder.prior(3).shape == (3, 10)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no memory at all": ({"sequence": sequence.Memoryless}, ["sequence is Memoryless", "aggregator is null"]),
    "nothing to split for": ({"split": True}, ["split is true", "aggregator is null"]),
    "split latent": ({"aggregator": Gaussian, "split": True}, ["split is true", "aggregator is Gaussian"]),
    "odd width": ({"hidden_dim": 7, "aggregator": Max, "split": True}, ["split is true", "hidden_dim gives width 7"]),
    "odd layer": (
        {"layers_after": [8, 9], "aggregator": Max, "split": True}, ["split is true", "layers_after gives width 9"]
    ),
    "s twice": (
        {"sequence": partial(sequence.Transition, previous_dim=32), "full_transitions": True},
        ["full_transitions is true", "sequence is Transition"],
    ),
    "not s": ({"sequence": sequence.Transition}, ["previous_dim is 40", "state_embedding_dim is 32"]),
    "features are gone": (
        {"sequence": partial(sequence.Transition, previous_dim=32), "layers_before": [50]},
        ["layers_before is \\[50\\]", "sequence is Transition"],
    ),
    "learned tokens": (
        {"sequence": sequence.Transformer, "learn_initial_state": True},
        ["learn_initial_state is true", "sequence is Transformer"],
    ),
    "learned keys": (
        {"sequence": sequence.CausalTransformer, "learn_initial_state": True},
        ["learn_initial_state is true", "sequence is CausalTransformer"],
    ),
    "no layer": ({"layers_after": [8, 0]}, ["layers_after is \\[8, 0\\]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused(name: str) -> None:
    config, words = REFUSED[name]
    with pytest.raises(ConfigError, match=".*".join(words)) as refused:
        make(**config)
    assert "expected" in str(refused.value)


def test_only_memories_of_steps_need_a_horizon() -> None:
    TrajectoryEncoder(3, 1, EncoderConfig(aggregator=Max))
    for memory in (sequence.Transformer, sequence.CausalTransformer):
        with pytest.raises(ConfigError, match="horizon"):
            TrajectoryEncoder(3, 1, EncoderConfig(sequence=memory))


def test_transformer_may_be_averaged_behind_a_layer() -> None:
    encoder = make(sequence=sequence.Transformer, aggregator=WeightedAverage, layers_after=[6])
    assert encoder.output[0].in_features == 6  # type: ignore[index]


def test_learned_start_begins_at_the_constants_and_leaves_the_count() -> None:
    constants = make(aggregator=Mean, split=True)
    learned = make(aggregator=Mean, split=True, learn_initial_state=True)
    assert learned.learned is not None
    assert learned.learned.numel() == learned.state_dim - 1
    assert torch.equal(learned.initial_state(2), constants.initial_state(2))
    nn.init.ones_(learned.learned)
    assert learned.initial_state(2).sum(-1).tolist() == 2 * [learned.state_dim - 1]
    assert not learned.initial_state(2)[:, -1].any()


def test_learned_start_of_low_maxima_is_low() -> None:
    encoder = make(hidden_dim=4, aggregator=partial(Max, low_initial=True), learn_initial_state=True)
    assert encoder.initial_state(1)[0].tolist() == 4 * [0.0] + 4 * [-999_999.0]


def test_gradients_reach_the_learned_start_through_resets_and_the_prior() -> None:
    encoder = make(hidden_dim=4, aggregator=Max, split=True, learn_initial_state=True)
    assert encoder.learned is not None
    steps = Transition(*(torch.randn(2, 5, width) for width in (3, 1, 1, 3)))
    reset = torch.zeros(2, 5, dtype=torch.bool)
    state = encoder.initial_state(2).detach()
    assert torch.autograd.grad(encoder(steps, reset, state).sum(), encoder.learned, allow_unused=True) == (None,)
    reset[1, 3] = True
    (gradient,) = torch.autograd.grad(encoder(steps, reset, state).sum(), encoder.learned)
    assert gradient[:4].all()
    assert torch.autograd.grad(encoder.prior(1).sum(), encoder.learned)[0][:4].all()
