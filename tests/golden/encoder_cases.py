"""Golden vectors of trajectory encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from aggregator_cases import to_reference
from support import FORMULA, Golden, Slot, Slots, affine_slots, assert_close, check_gradients, load_parameters, widths
from torch import Tensor, nn

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
from hyperrl.modules.sequence import GRU, LSTM, Memoryless, SequenceModel, Transformer
from hyperrl.modules.sequence import Transition as PreviousToo

# Every aggregator of the reference has a temperature, used or not; ours are constants unless asked for, and their
# gradients are compared with those of the aggregators' own files.
TEMPERATURES = ("agg.agg.softmax_temp", "agg.agg.wavg_temp")


# The configuration that the reference's arguments describe


def _sequence(args: Mapping[str, Any]) -> Callable[[int, int, int], SequenceModel]:
    kind = args.get("encoder_enc_type", "gru")
    if kind == "lstm":
        full = "full" if args["invariant_init_adjusts_weights"] else "bias"
        return partial(LSTM, invariant=full if args["invariant_init"] else "none")
    if kind == "transition":
        return partial(PreviousToo, previous_dim=args["state_embedding_size"])
    if kind == "transformer":
        token_dim = args["transformer_token_sz"]
        return partial(
            Transformer,
            token_dim=token_dim,
            memory_dim=args["transformer_mem_sz"] if token_dim is None else None,
            num_layers=args["transformer_num_layers"],
            num_heads=args["transformer_num_heads"],
        )
    return {"gru": GRU, None: Memoryless}[kind]


def _aggregator(args: Mapping[str, Any]) -> Callable[[int], Aggregator] | None:
    kind = args.get("encoder_agg_type")
    if kind is None:
        return None
    through = {"straight_through": args["encoder_st_estimator"]}
    low = {"low_initial": args["encoder_max_init_low"]}
    kinds: dict[str, Callable[[int], Aggregator]] = {
        "sum": Sum,
        "max": partial(Max, **low, **through),
        "max_norm": partial(MaxNorm, **low, **through),
        "avg": partial(Mean, **through),
        "am": partial(MeanMax, **through),
        "weighted_avg": partial(WeightedAverage, temperature=args["wavg_temp"], **through),
        "softmax": partial(Softmax, temperature=args["softmax_temp"], **through),
        "gauss": partial(Gaussian, **through),
    }
    return kinds[kind]


def _count_learned(make: Callable[[int], Aggregator], width: int) -> Aggregator:
    """An aggregator all of whose initial state is learned: in the reference also a mean's count (quirk Q32)."""
    aggregator = make(width)
    aggregator.learnable.fill_(True)
    return aggregator


def encoder_config(args: Mapping[str, Any]) -> EncoderConfig:
    """The configuration that the reference's arguments describe."""
    aggregator, learned = _aggregator(args), args.get("learn_init_state", False)
    if aggregator is not None and learned:
        aggregator = partial(_count_learned, aggregator)
    before, after, output = (
        widths(args.get(f"encoder_layers_{place}") or []) for place in ("before_gru", "after_gru", "after_agg")
    )
    if args.get("encoder_enc_type", "gru") not in ("gru", "lstm"):
        # The reference moves them behind the other sequence models; ours stay where the configuration puts them.
        before, after = [], before + after
    return EncoderConfig(
        state_embedding_dim=args["state_embedding_size"],
        action_embedding_dim=args["action_embedding_size"],
        reward_embedding_dim=args["reward_embedding_size"],
        hidden_dim=args["encoder_gru_hidden_size"],
        latent_dim=args["latent_dim"],
        full_transitions=args["full_transitions"],
        sequence=_sequence(args),
        aggregator=aggregator,
        split=args.get("encoder_skip_type") == "enc",
        layers_before=before,
        layers_after=after,
        output_layers=output,
        learn_initial_state=learned,
    )


def make_encoder(args: Mapping[str, Any]) -> TrajectoryEncoder:
    """An untrained encoder of the recorded sizes."""
    config = encoder_config(args)
    return TrajectoryEncoder(args["state_dim"], args["action_dim"], config, args.get("max_trajectory_len"))


# Parameters and memories in the reference's terms


def encoder_slots(encoder: TrajectoryEncoder) -> Slots:
    """The reference's names of a trajectory encoder's parameters."""
    features = encoder.features
    slots: Slots = {}
    for name, layer in {"state": features.state, "action": features.action, "reward": features.reward}.items():
        if layer is not None:
            slots |= affine_slots(f"{name}_encoder.fc", layer)
    for name, layers in {"before_enc": encoder.before, "after_enc": encoder.after, "after_agg": encoder.output}.items():
        affine = [layer for layer in layers or () if isinstance(layer, nn.Linear)]
        for index, layer in enumerate(affine):
            slots |= affine_slots(f"agg.fc_{name}.{index}", layer)
    for name, parameter in encoder.sequence.named_parameters():
        slots[f"agg.encoder.{_reference_name(name)}"] = Slot(parameter)
    return slots | _initial_slots(encoder)


def _reference_name(name: str) -> str:
    """The reference's name of a sequence model's parameter."""
    first, _, rest = name.partition(".")
    if first == "cell":
        return rest
    if first == "blocks":
        return "transformer_layers." + rest.replace("attention.", "attention.mha.")
    return {"input": "input_layer", "output": "output_layer", "layer": "layer"}[first] + f".{rest}"


def _initial_slots(encoder: TrajectoryEncoder) -> Slots:
    """The learned initial memory, which the reference keeps in two parameters."""
    if encoder.learned is None:
        return {}
    width = encoder.sequence.state_dim
    return {
        "agg.learned_init_enc_state": Slot(encoder.learned, lambda tensor: tensor[:width]),
        "agg.learned_init_agg_state": Slot(encoder.learned, lambda tensor: tensor[width:]),
    }


def _check_memory(golden: Golden, name: str, encoder: TrajectoryEncoder, state: Tensor) -> None:
    """Compares memories `[..., S]`; a transformer's slots that hold no token are zero in ours, and junk there."""
    recorded, aggregator = golden[name], encoder.aggregator
    if aggregator is not None:
        memory, summary = state.split((encoder.sequence.state_dim, aggregator.state_dim), -1)
        state = torch.cat([memory, to_reference(aggregator, summary)], -1)
    if isinstance(encoder.sequence, Transformer):
        width = encoder.sequence.state_dim - 1
        slots = torch.arange(width) // encoder.sequence.token_dim
        recorded[..., :width] *= slots < recorded[..., width : width + 1]
    assert_close(name, state, recorded, FORMULA)


# Replay


def walk(encoder: TrajectoryEncoder, steps: Transition, reset: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Steps through `[B, T]`, with resets **before** a transition; latents `[B, T, 2L]` and memories `[B, T, S]`."""
    latents, states = [], []
    for t in range(reset.shape[1]):
        state = torch.where(reset[:, t, None], encoder.initial_state(len(state)), state)
        latent, state = encoder.step(Transition(*(part[:, t] for part in steps)), state)
        latents.append(latent)
        states.append(state)
    return torch.stack(latents, 1), torch.stack(states, 1)


def with_prior(encoder: TrajectoryEncoder, latents: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Puts what holds before the first transition in front: `[B, T+1, .]`."""
    batch = len(latents)
    return (
        torch.cat([encoder.prior(batch).unsqueeze(1), latents], 1),
        torch.cat([encoder.initial_state(batch).unsqueeze(1), states], 1),
    )


def run_encoder(golden: Golden) -> None:
    """Prior, stepping and whole sequences with resets, ragged lengths, gradients."""
    encoder = make_encoder(golden.args)
    slots = encoder_slots(encoder)
    load_parameters(golden, "param/", slots, encoder, dropped=TEMPERATURES)
    names = ("prev_states", "actions", "rewards", "states")
    inputs = {name: golden[f"in/{name}"].requires_grad_() for name in names}
    steps = Transition(*(value.transpose(0, 1) for value in inputs.values()))
    reset = golden["in/reset"].bool().T
    batch = len(reset)
    initial = encoder.initial_state(batch).detach()
    _check_memory(golden, "out/init_hidden", encoder, initial)
    _check_latent(golden, "out/prior", encoder.prior(batch))

    stepwise, states = walk(encoder, steps, reset, initial)
    _check_memory(golden, "out/step_hidden", encoder, states.transpose(0, 1))
    for latents in (stepwise, encoder(steps, reset, initial)):
        _check_latent(golden, "out/step", latents.transpose(0, 1))
        encoder.zero_grad()
        for value in inputs.values():
            value.grad = None
        _latent_functional(golden, latents.transpose(0, 1)).backward()
        if golden.under("grad/"):
            check_gradients(golden, "grad/param/", slots)
            _check_input_gradients(golden, inputs)
    _check_whole_sequences(golden, encoder, steps)
    golden.check_all_read({f"*param/{name}": "temperatures are constants" for name in TEMPERATURES})


def _check_latent(golden: Golden, name: str, latent: Tensor) -> None:
    mean, logvar = latent.chunk(2, -1)
    golden.check(f"{name}_mean", mean)
    golden.check(f"{name}_logvar", logvar)


def _latent_functional(golden: Golden, latents: Tensor) -> Tensor:
    mean, logvar = latents.chunk(2, -1)
    return (golden["in/cotangent_mean"] * mean).sum() + (golden["in/cotangent_logvar"] * logvar).sum()


def _check_input_gradients(golden: Golden, inputs: dict[str, Tensor]) -> None:
    for name, value in inputs.items():
        if f"grad/in/{name}" in golden:
            golden.check_gradient(f"grad/in/{name}", value)
        else:
            assert value.grad is None or not value.grad.any(), f"{name} has a gradient, in the reference it is unused"


def _check_whole_sequences(golden: Golden, encoder: TrajectoryEncoder, steps: Transition) -> None:
    """Without resets: all latents from the prior on, and those after each row's own length."""
    none = torch.zeros(steps.reward.shape[:2], dtype=torch.bool)
    _, states = walk(encoder, steps, none, encoder.initial_state(len(none)))
    latents, states = with_prior(encoder, encoder(steps, none, encoder.initial_state(len(none))), states)
    _check_latent(golden, "out/seq", latents.transpose(0, 1))
    _check_memory(golden, "out/seq_hidden", encoder, states.transpose(0, 1))
    at = torch.arange(len(none)), golden["in/lens"]
    _check_latent(golden, "out/ragged", latents[at])
    _check_memory(golden, "out/ragged_hidden", encoder, states[at])
