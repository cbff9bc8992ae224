"""Every encoder keeps its contract wherever tasks start, in batches and sequences of any size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperrl.modules.aggregators import (
    Aggregator,
    Gaussian,
    Max,
    MaxNorm,
    Mean,
    MeanMax,
    Softmax,
    Sum,
    WeightedAverage,
)
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition
from hyperrl.modules.sequence import GRU, LSTM, CausalTransformer, Memoryless, MinGRU, SequenceModel, Transformer
from hyperrl.modules.sequence import Transition as TransitionModel
from hyperrl.testing import check_encoder

OBS, HIDDEN, HORIZON = 3, 4, 44
BATCHES, LENGTHS = st.integers(1, 5), st.integers(1, 40)
LOW = partial(Max, low_initial=True)
AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "sum": Sum,
    "max": Max,
    "low max": LOW,
    "max norm": MaxNorm,
    "mean": Mean,
    "mean and max": MeanMax,
    "weighted average": WeightedAverage,
    "learned weighted average": partial(WeightedAverage, temperature=0.5, learn_temperature=True),
    "softmax": Softmax,
    "learned softmax": partial(Softmax, temperature=0.2, learn_temperature=True),
    "gaussian": Gaussian,
}
POOLED = [
    case for case in product(AGGREGATORS, (GRU, Memoryless), (False, True)) if case[0] != "gaussian" or not case[2]
]
MODELS: dict[str, Callable[[int, int, int], SequenceModel]] = {
    "gru": GRU,
    "lstm": LSTM,
    "invariant lstm": partial(LSTM, invariant="full"),
    "mingru": MinGRU,
    "mingru, two layers": partial(MinGRU, num_layers=2),
    "transition": partial(TransitionModel, previous_dim=5),
    "transformer": partial(Transformer, token_dim=4, num_layers=1),
    "causal transformer": partial(CausalTransformer, token_dim=4, num_heads=2),
}
FIXED = ("transformer", "causal transformer")  # where the start cannot be learned
few = settings(derandomize=True, deadline=None, max_examples=12, database=None)


@st.composite
def resets(draw: st.DrawFn) -> Tensor:
    """Where tasks start `[B, T]`: in some rows, in all rows at once, at the ends, or always."""
    batch, steps = draw(BATCHES), draw(LENGTHS)
    places = st.sets(st.integers(0, steps - 1), max_size=4)
    reset = torch.zeros(batch, steps, dtype=torch.bool)
    for row in reset:
        row[list(draw(places))] = True
    reset[:, list(draw(places))] |= draw(st.booleans())
    reset[:, draw(st.sampled_from([[], [0], [-1], [0, -1], list(range(steps))]))] = True
    return reset


def build(aggregator: Callable[[int], Aggregator] | None, **options: Any) -> TrajectoryEncoder:
    torch.manual_seed(0)
    sizes = {"state_embedding_dim": 5, "action_embedding_dim": 2, "reward_embedding_dim": 3, "hidden_dim": HIDDEN}
    return TrajectoryEncoder(OBS, 1, EncoderConfig(**sizes, aggregator=aggregator, **options), HORIZON)


NOWHERE, ALWAYS = torch.zeros(3, 40, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)


@pytest.mark.parametrize(("name", "sequence", "split"), POOLED)
@few
@given(reset=resets(), straight=st.booleans(), learned=st.booleans())
@example(reset=NOWHERE, straight=False, learned=False)
@example(reset=ALWAYS, straight=False, learned=True)
def test_aggregating_encoders(
    name: str, sequence: type[SequenceModel], split: bool, reset: Tensor, straight: bool, learned: bool
) -> None:
    make = AGGREGATORS[name]
    aggregator = partial(make, straight_through=True) if straight and make is not Sum else make
    # A start far below everything that is seen has no gradient.
    learned = learned and not (make is LOW and sequence is Memoryless)
    check_encoder(
        lambda: build(aggregator, sequence=sequence, split=split, learn_initial_state=learned), OBS, reset=reset
    )


@pytest.mark.parametrize("name", MODELS)
@few
@given(reset=resets(), learned=st.booleans())
@example(reset=NOWHERE, learned=False)
@example(reset=ALWAYS, learned=True)
def test_sequence_models_alone(name: str, reset: Tensor, learned: bool) -> None:
    learned = learned and name not in FIXED
    check_encoder(lambda: build(None, sequence=MODELS[name], learn_initial_state=learned), OBS, reset=reset)


# The order of what was seen


def history(batch: int, steps: int, seed: int) -> tuple[Transition, Transition]:
    """Transitions `[B, T, ...]`, and the same of each row in another order."""
    generator = torch.Generator().manual_seed(seed)
    x = Transition(
        *(torch.randn(batch, steps, width, generator=generator, dtype=torch.float64) for width in (OBS, 1, 1, OBS))
    )
    order = torch.rand(batch, steps, generator=generator).argsort(1).unsqueeze(-1)
    return x, Transition(*(part.gather(1, order.expand_as(part)) for part in x))


def last(encoder: TrajectoryEncoder, x: Transition) -> Tensor:
    """The latent after a task `[B, 2L]`."""
    reset = torch.zeros(x.reward.shape[:2], dtype=torch.bool)
    return encoder(x, reset, encoder.initial_state(len(reset)))[:, -1]


@pytest.mark.parametrize("name", AGGREGATORS)
@few
@given(batch=BATCHES, steps=LENGTHS, seed=st.integers(0, 2**32))
def test_order_is_irrelevant_where_that_is_promised(name: str, batch: int, steps: int, seed: int) -> None:
    encoder = build(AGGREGATORS[name], sequence=Memoryless).double()
    assert encoder.aggregator is not None
    assert encoder.aggregator.permutation_invariant
    x, other = history(batch, steps, seed)
    torch.testing.assert_close(last(encoder, other), last(encoder, x))


def test_order_matters_to_recurrent_memories() -> None:
    x, other = history(3, 9, 0)
    for name in ("gru", "transition"):
        encoder = build(Max, sequence=MODELS[name]).double()
        assert not torch.isclose(last(encoder, other), last(encoder, x)).all(-1).any()
