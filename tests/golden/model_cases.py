"""Golden vectors of policies and encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from support import (
    Golden,
    check_gradients,
    encoder_slots,
    load_norm,
    load_parameters,
    norms,
    policy_slots,
    widths,
)
from torch import Tensor

from hyperrl.modules.distributions import UncheckedCategorical, action_distribution
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition
from hyperrl.modules.policy import ActionSpace, Policy, PolicyConfig

# Policies


def policy_config(args: Mapping[str, Any]) -> PolicyConfig:
    """The configuration that the reference's arguments describe; what it cannot express is in `pending.yaml`."""
    bias_hyperinit = args.get("init_hyper_for_policy", False) and args["init_adjust_bias"]
    # How parameters were drawn does not matter where they are loaded, so an unknown initialiser is as good as any.
    initializer = args.get("policy_initialisation", "normc")
    return PolicyConfig(
        use_state=args["pass_state_to_policy"],
        state_embedding_dim=args["policy_state_embedding_dim"],
        latent_embedding_dim=args["policy_latent_embedding_dim"],
        normalize_state=args["norm_state_for_policy"],
        normalize_latent=args["norm_latent_for_policy"],
        layers=widths(args["policy_layers"]),
        activation=args["policy_activation_function"],
        initializer="normc" if initializer == "hfi" else initializer,
        hypernetwork=args["use_hypernet"],
        hypernet_init="bias_hyperinit" if bias_hyperinit else "none",
        init_std=args["policy_init_std"],
        bound_actions=args["norm_actions_of_policy"],
    )


def action_space(meta: Mapping[str, Any], dim: int, num_actions: int) -> ActionSpace:
    """The action space of a policy or initialisation file."""
    if meta["action_space"] == "discrete":
        return ActionSpace(1, num_actions)
    low, high = meta.get("action_low"), meta.get("action_high")
    return ActionSpace(dim, None, tuple(low) if low else None, tuple(high) if high else None)


def make_policy(golden: Golden) -> Policy:
    """An untrained policy of the recorded sizes."""
    args, dims = golden.args, golden.meta["dims"]
    assert args["pass_latent_to_policy"]
    assert not golden.meta.get("forward_flags")
    actions = action_space(golden.meta, dims["adim"], dims["nact"])
    return Policy(args["state_dim"], 2 * args["latent_dim"], actions, policy_config(args))


def run_policy(golden: Golden) -> None:
    """Value, distribution, log-probability, entropy, encoded inputs, generated parameters, gradients."""
    policy = make_policy(golden)
    slots = policy_slots(policy)
    load_parameters(golden, "param/", slots, policy)
    for name, norm in norms(policy):
        load_norm(norm, golden[f"rms/{name}_mean"], golden[f"rms/{name}_var"])
    latent = golden["in/latent"].requires_grad_()
    state = golden["in/state"].requires_grad_() if policy.state is not None else torch.zeros(len(latent), 1)

    inputs = policy.inputs(state, latent)
    parameters, value = policy.distribution(inputs), policy.value(inputs)
    functional = _check_policy_outputs(golden, policy, parameters, value)
    golden.check("out/encoded_latent", policy.latent(latent))
    if policy.state is not None:
        golden.check("out/encoded_state", policy.state(state))
    if policy.hypernetwork:
        for name, ours in generated(policy, policy.latent(latent)):
            golden.check(f"base/{name}", ours)
    if golden.under("grad/"):
        functional.backward()
        golden.check_gradient("grad/in/latent", latent)
        if policy.state is not None:
            golden.check_gradient("grad/in/state", state)
        check_gradients(golden, "grad/param/", slots)
    golden.check_all_read({})


def _check_policy_outputs(golden: Golden, policy: Policy, parameters: dict[str, Tensor], value: Tensor) -> Tensor:
    """Compares everything that comes out; returns the recorded functional."""
    distribution = action_distribution(parameters)
    action = golden["in/action"]
    log_prob = distribution.log_prob(action.squeeze(-1) if policy.actions.discrete else action).unsqueeze(-1)
    entropy, mode = distribution.entropy(), distribution.mode
    if isinstance(distribution, UncheckedCategorical):
        mode = mode.unsqueeze(-1)
        golden.check("out/logits", distribution.logits)
        golden.check("out/probs", distribution.probs)
    else:
        golden.check("out/mean", parameters["loc"])
        golden.check("out/std", parameters["scale"])
    golden.check("out/mode", mode)
    golden.check("out/log_prob", log_prob)
    golden.check("out/entropy", entropy)
    golden.check("out/entropy_mean", entropy.mean())
    golden.check("out/value", value)
    weighted = (golden["in/cot_value"] * value).sum() + (golden["in/cot_log_prob"] * log_prob).sum()
    return weighted + 0.7 * entropy.mean()


def generated(policy: Policy, embedding: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The generated parameters `[N, size]` for `embedding [N, K]` by their recorded names."""
    for net in ("critic", "actor"):
        layers = getattr(policy, net).layers
        for index, layer in enumerate(layers):
            name = f"{net}/{'head' if index == len(layers) - 1 else index}"
            weight, bias = layer.materialise(embedding)
            yield f"{name}/weight", weight.flatten(1)
            yield f"{name}/bias", bias


# Encoders


def encoder_config(args: Mapping[str, Any]) -> EncoderConfig:
    """The configuration that the reference's arguments describe."""
    return EncoderConfig(
        state_embedding_dim=args["state_embedding_size"],
        action_embedding_dim=args["action_embedding_size"],
        reward_embedding_dim=args["reward_embedding_size"],
        hidden_dim=args["encoder_gru_hidden_size"],
        latent_dim=args["latent_dim"],
        full_transitions=args["full_transitions"],
    )


def make_encoder(args: Mapping[str, Any]) -> TrajectoryEncoder:
    """An untrained encoder of the recorded sizes."""
    return TrajectoryEncoder(args["state_dim"], args["action_dim"], encoder_config(args))


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
    load_parameters(golden, "param/", slots, encoder)
    names = ("prev_states", "actions", "rewards", "states")
    inputs = {name: golden[f"in/{name}"].requires_grad_() for name in names}
    steps = Transition(*(value.transpose(0, 1) for value in inputs.values()))
    reset = golden["in/reset"].bool().T
    batch = len(reset)
    initial = encoder.initial_state(batch)
    golden.check("out/init_hidden", initial)
    _check_latent(golden, "out/prior", encoder.prior(batch))

    stepwise, states = walk(encoder, steps, reset, initial)
    golden.check("out/step_hidden", states.transpose(0, 1))
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
    golden.check_all_read({})


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
    golden.check("out/seq_hidden", states.transpose(0, 1))
    at = torch.arange(len(none)), golden["in/lens"]
    _check_latent(golden, "out/ragged", latents[at])
    golden.check("out/ragged_hidden", states[at])
