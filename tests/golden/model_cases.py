"""Golden vectors of the models: policies, encoders, initialisations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from support import (
    FORMULA,
    GRADIENT,
    Golden,
    assert_close,
    check_gradients,
    encoder_slots,
    load_norm,
    load_parameters,
    norms,
    policy_slots,
    widths,
)
from torch import Tensor

from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition
from hyperrl.modules.initializers import GAINS
from hyperrl.modules.policy import ActionSpace, Policy, PolicyConfig

# Policies


def policy_config(args: dict[str, Any]) -> PolicyConfig:
    """The configuration that the reference's arguments describe; what it cannot express is in `pending.yaml`."""
    scheme = "bias_hyperinit" if args.get("init_hyper_for_policy", False) and args["init_adjust_bias"] else "none"
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
        hypernet_init=scheme,
        init_std=args["policy_init_std"],
        bound_actions=args["norm_actions_of_policy"],
    )


def action_space(meta: dict[str, Any], dim: int, num_actions: int) -> ActionSpace:
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
        golden.check("grad/in/latent", latent.grad, GRADIENT)
        if policy.state is not None:
            golden.check("grad/in/state", state.grad, GRADIENT)
        check_gradients(golden, "grad/param/", slots)
    golden.check_all_read({})


def _check_policy_outputs(golden: Golden, policy: Policy, parameters: dict[str, Tensor], value: Tensor) -> Tensor:
    """Compares everything that comes out; returns the recorded functional."""
    distribution = action_distribution(parameters)
    action = golden["in/action"]
    log_prob = distribution.log_prob(action.squeeze(-1) if policy.actions.discrete else action).unsqueeze(-1)
    entropy, mode = distribution.entropy(), distribution.mode
    if policy.actions.discrete:
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


def make_encoder(args: dict[str, Any]) -> TrajectoryEncoder:
    """An untrained encoder of the recorded sizes."""
    config = EncoderConfig(
        state_embedding_dim=args["state_embedding_size"],
        action_embedding_dim=args["action_embedding_size"],
        reward_embedding_dim=args["reward_embedding_size"],
        hidden_dim=args["encoder_gru_hidden_size"],
        latent_dim=args["latent_dim"],
        full_transitions=args["full_transitions"],
    )
    return TrajectoryEncoder(args["state_dim"], args["action_dim"], config)


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
            golden.check(f"grad/in/{name}", value.grad, GRADIENT)
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


# Initialisations: our own draws must have the distribution of the recorded ones

OWN_SEEDS = 100
# Every comparison of two means is a two-sided test at 5 standard errors (level 6e-7); the many statistics of a file are
# strongly dependent, and a wrong gain is off by dozens.
STANDARD_ERRORS = 5.0
# A single recorded draw must be a plausible one among ours.
PLAUSIBLE = 8.0
STATISTICS = ["mean", "std", "absmax", "rownorm_mean", "rownorm_std", "gram_offdiag_max", "gram_diag_mean"]
INPUT_ROWS = (0, 1, 3)  # the rows of `in/hyper_input` of which statistics are recorded; row 4 is zero


def statistics(matrix: Tensor) -> Tensor:
    """The statistics of `matrix [out, in]` (a vector is one row) in the order of STATISTICS, in double precision."""
    matrix = (matrix if matrix.ndim == 2 else matrix.reshape(1, -1)).double()
    outs, ins = matrix.shape
    gram = matrix @ matrix.T if outs <= ins else matrix.T @ matrix
    rows = matrix.norm(dim=1)
    off_diagonal = gram - gram.diag().diag()
    values = [matrix.mean(), matrix.std(correction=0), matrix.abs().max(), rows.mean(), rows.std(correction=0)]
    return torch.stack([*values, off_diagonal.abs().max(), gram.diagonal().mean()])


def run_init(golden: Golden) -> None:
    """Raw and generated parameters of freshly built policies against the recorded statistics."""
    assert golden.meta["stat_names"] == STATISTICS
    inputs = golden["in/hyper_input"] if "in/hyper_input" in golden else None
    raw: dict[str, list[Tensor]] = {}
    base: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(OWN_SEEDS):
            policy = make_policy(golden)
            for name, slot in policy_slots(policy).items():
                raw.setdefault(name, []).append(_matrix(slot.value))
            if inputs is not None:
                for name, values in generated(policy, inputs):
                    base.setdefault(name, []).append(values.detach())
    _check_raw(golden, raw)
    if inputs is not None:
        _check_base(golden, base)
    golden.check_all_read({})


def _matrix(value: Tensor) -> Tensor:
    """A copy of a parameter as the reference's matrix: the weight head `[out, in, K]` is `[out * in, K]` there."""
    return (
        value.detach().reshape(-1, value.shape[-1]).clone()
        if value.ndim == 3
        else value.detach().flatten(1 if value.ndim > 1 else 0).clone()
    )


def _check_raw(golden: Golden, raw: dict[str, list[Tensor]]) -> None:
    """Statistics of the parameters themselves."""
    assert set(golden.under("stat/param/")) == set(raw)
    for name, draws in raw.items():
        # The head's bias of a generated layer is a vector there and a matrix in ours.
        vector = name.endswith("bias") or name == "dist.logstd"
        ours = torch.stack([statistics(draw.flatten() if vector else draw) for draw in draws])
        _check_statistics(f"stat/param/{name}", ours, golden[f"stat/param/{name}"], golden.meta["nseeds"])
        _check_bound(name, _plain_bound(golden, name), torch.stack([draw.abs().max() for draw in draws]))


def _check_base(golden: Golden, base: dict[str, list[Tensor]]) -> None:
    """Statistics of the generated parameters, and the rules that single draws obey."""
    assert set(golden.under("base/")) == set(base) == set(golden.under("stat/base/"))
    constant = bool(golden.args["init_hyper_for_policy"])
    for name, draws in base.items():
        recorded = golden[f"base/{name}"]
        shape = golden.meta["base_shapes"].get(name, [recorded.shape[1]])
        assert draws[0].shape == recorded.shape
        for values in (recorded, *draws):
            # Bias-HyperInit: the same for every input. None: no input, no weights.
            assert_close(
                f"{name} per input",
                values if constant else values[4],
                values[:1].expand_as(values) if constant else 0 * values[4],
                1e-6,
            )
        expected = golden[f"stat/base/{name}"]
        for row, index in enumerate(INPUT_ROWS):
            ours = torch.stack([statistics(draw[index].view(*shape)) for draw in draws])
            _check_statistics(f"stat/base/{name}", ours, expected[:, row], golden.meta["nseeds"])
            distance = (statistics(recorded[index].view(*shape)) - ours.mean(0)).abs()
            assert (distance <= PLAUSIBLE * ours.std(0) + FORMULA).all(), f"base/{name}: implausible among our draws"
        _check_bound(name, _generated_bound(golden, name, shape[-1]), torch.stack([draw.abs().max() for draw in draws]))


def _check_statistics(name: str, ours: Tensor, expected: Tensor, seeds: int) -> None:
    """Means over our draws `[N, 7]` against recorded means and deviations over seeds `[2, 7]`."""
    mean, deviation = expected.double()
    error = (deviation.square() / seeds + ours.var(0) / len(ours)).sqrt()
    excess = (ours.mean(0) - mean).abs() - STANDARD_ERRORS * error - FORMULA * (1 + mean.abs())
    wrong = {STATISTICS[i]: (ours.mean(0)[i].item(), mean[i].item()) for i in (excess > 0).nonzero()[:, 0].tolist()}
    assert not wrong, f"{name}: ours and recorded {wrong}"


def _check_bound(name: str, bound: float | None, largest: Tensor) -> None:
    if bound is not None:
        assert largest.max() <= bound * (1 + 1e-6), f"{name} exceeds its bound {bound}"


def _plain_bound(golden: Golden, name: str) -> float | None:
    """The largest value that a uniformly drawn raw parameter can have (spec/models.md section 6), if it is one."""
    args = golden.args
    hidden = widths(args["policy_layers"])[-1]
    if name.startswith(("state_encoder", "latent_encoder")):
        return 1 / math.sqrt(args["state_dim"] if name.startswith("state") else 2 * args["latent_dim"])
    if name.startswith("critic_linear"):
        return 1 / math.sqrt(hidden)
    if args["policy_initialisation"] == "kaiming" and name.startswith("hyper_final") and name.endswith(".weight"):
        return None if args["init_hyper_for_policy"] else _kaiming(args, golden.meta["dims"]["le"])
    return None


def _generated_bound(golden: Golden, name: str, ins: int) -> float | None:
    """The same for a generated parameter under Bias-HyperInit."""
    if not golden.args["init_hyper_for_policy"]:
        return None
    if name == "critic/head/bias":
        return 1.0
    if name.endswith("bias"):
        return 0.0
    return (
        math.sqrt(6 / ins)
        if name == "critic/head/weight" or golden.args["policy_initialisation"] == "kaiming"
        else None
    )


def _kaiming(args: dict[str, Any], ins: int) -> float:
    return math.sqrt(3 / ins) * GAINS[args["policy_activation_function"]]
