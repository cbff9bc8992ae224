"""Golden vectors of policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from support import (
    Golden,
    check_gradients,
    load_norm,
    load_parameters,
    norms,
    policy_slots,
    widths,
)
from torch import Tensor

from hyperrl.env_info import ActionSpace
from hyperrl.modules.distributions import UncheckedCategorical, action_distribution
from hyperrl.modules.hypernet import Condition, Input
from hyperrl.modules.initializers import HypernetInit
from hyperrl.modules.policy import Policy, PolicyConfig
from hyperrl.modules.policy_config import SOURCES


def hypernet_init(args: Mapping[str, Any]) -> HypernetInit:
    """The scheme by which the reference initialised the hypernetwork's heads."""
    if args["policy_initialisation"] == "hfi":
        return "hfi"
    if not args["init_hyper_for_policy"]:
        return "none"
    adjusted = args["init_adjust_weights"], args["init_adjust_bias"]
    schemes: dict[tuple[bool, bool], HypernetInit] = {
        (True, False): "weight_hyperinit", (False, True): "bias_hyperinit", (True, True): "both_hyperinit"
    }  # fmt: skip
    return schemes[adjusted]


def policy_config(args: Mapping[str, Any], scheme: HypernetInit = "none") -> PolicyConfig:
    """The configuration that the reference's arguments describe.

    Args:
        args: the reference's arguments.
        scheme: initialisation of the hypernetwork; any does where parameters are loaded.
    """
    initializer = args.get("policy_initialisation", "normc")
    multinet, replacement = args.get("multinet", False), _replacement(args)
    replaces = bool(replacement)
    return PolicyConfig(
        use_state=args["pass_state_to_policy"],
        use_latent=args.get("pass_latent_to_policy", True),
        use_belief=args.get("pass_belief_to_policy", False),
        # The reference counts a task that only stands in for something as passed, and as passed one-hot.
        use_task=args.get("pass_task_to_policy", False) and not replaces,
        task_as_one_hot=args.get("pass_task_as_onehot_id", False) and not multinet and not replaces,
        state_embedding_dim=args["policy_state_embedding_dim"],
        latent_embedding_dim=args["policy_latent_embedding_dim"],
        belief_embedding_dim=args.get("policy_belief_embedding_dim"),
        task_embedding_dim=args.get("policy_task_embedding_dim"),
        normalize_state=args["norm_state_for_policy"],
        normalize_latent=args["norm_latent_for_policy"],
        normalize_belief=args.get("norm_belief_for_policy", True),
        normalize_task=args.get("norm_task_for_policy", True),
        layers=widths(args["policy_layers"]),
        activation=args["policy_activation_function"].replace("-", "_"),
        # Everything beside the generated layers is drawn by Kaiming then.
        initializer="kaiming" if initializer == "hfi" else initializer,
        init_std=args["policy_init_std"],
        bound_actions=args["norm_actions_of_policy"],
        **_conditioning(args, multinet, scheme),
        **replacement,
    )


def _replacement(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the task stands in for, and when; the reference has two families of arguments for it."""
    if args.get("task_chance") is not None:
        warmup = args["task_num_warmup"] or 0
        reset = bool(args.get("ti_coeff") and args.get("ti_hard_reset"))
        settings = {"task_replaces": "latent", "task_warmup": warmup, "task_chance": args["task_chance"]}
        return settings | {"hard_reset": reset}
    if args.get("hyper_onehot_chance") is not None:
        warmup, without_bias = args["hyper_onehot_num_warmup"] or 0, args["hyper_onehot_no_bias"]
        settings = {"task_replaces": "condition", "task_warmup": warmup, "task_chance": args["hyper_onehot_chance"]}
        return settings | {"one_hot_without_bias": without_bias}
    return {}


def _conditioning(args: Mapping[str, Any], multinet: bool, scheme: HypernetInit) -> dict[str, Any]:
    """What makes the policy depend on the task."""
    if multinet or not args["use_hypernet"]:
        return {"conditioning": "per_task" if multinet else "concat"}
    hidden = widths(args.get("hypernet_layers", ()))
    film, hyperinit = args.get("use_film", False), scheme not in ("none", "hfi")
    return {
        "conditioning": "film" if film else "hypernetwork",
        "hypernet_input": args["hypernet_input"].removesuffix("_embed"),
        "generated_layers": [flag == 1 for flag in widths(args["policy_layers_hyper"])],
        "hypernet_layers": hidden,
        "hypernet_head_bias": args.get("hypernet_head_bias", True),
        "hypernet_softmax_temperature": args.get("hyper_softmax_temp") if hidden else None,
        "hypernet_init": scheme,
        "hypernet_hidden_initializer": args.get("HN_init") if hidden and args["init_hyper_for_policy"] else None,
        "adjust_init_gain": args.get("adjust_init_b_gain", False) and hyperinit and not film,
    }


def action_space(meta: Mapping[str, Any], dim: int, num_actions: int) -> ActionSpace:
    """The action space of a policy or initialisation file."""
    if meta["action_space"] == "discrete":
        return ActionSpace(1, num_actions)
    low, high = meta.get("action_low"), meta.get("action_high")
    return ActionSpace(dim, None, tuple(low) if low else None, tuple(high) if high else None)


def make_policy(golden: Golden, scheme: HypernetInit = "none") -> Policy:
    """An untrained policy of the recorded sizes."""
    args, dims = golden.args, golden.meta["dims"]
    return Policy(
        args["state_dim"],
        2 * args["latent_dim"],
        action_space(golden.meta, dims["adim"], dims["nact"]),
        policy_config(args, scheme),
        belief_dim=args["belief_dim"],
        task_dim=args["task_dim"],
        num_tasks=golden.meta.get("num_tasks") or 0,
    )


def film_actor_bias(golden: Golden) -> list[str]:
    """The parameter that the reference drops at the first forward pass, and that ours never has (quirk Q21)."""
    args = golden.args
    if not (args["use_hypernet"] and args["use_film"] and int(args["policy_layers_hyper"][-1])):
        return []
    return [f"dist.{'linear' if golden.meta['action_space'] == 'discrete' else 'fc_mean'}.bias"]


def task_is_shown(golden: Golden, config: PolicyConfig) -> bool:
    """Whether the task stands in for something in all samples: by force, or at the first update."""
    flags = golden.meta["forward_flags"]
    if flags:
        return flags.get("force_task_input", False)
    return golden.meta["training"] and (config.task_warmup > 0 or config.task_chance == 1)


def run_policy(golden: Golden) -> None:
    """Value, distribution, log-probability, entropy, encoded inputs, generated parameters, gradients."""
    policy = make_policy(golden)
    slots, dropped = policy_slots(policy), film_actor_bias(golden)
    assert golden.meta["unused_after_first_forward"] == dropped
    load_parameters(golden, "param/", slots, policy, dropped)
    for name, norm in norms(policy):
        load_norm(norm, golden[f"rms/{name}_mean"], golden[f"rms/{name}_var"])
    given = {name: golden[f"in/{name}"].requires_grad_() for name in SOURCES if f"in/{name}" in golden}
    sources = dict(given)
    if policy.config.uses_task_id:
        sources["task"] = given["task"][:, 0].detach().long()

    number = len(golden.arrays["in/action"])
    shown = torch.full([number], task_is_shown(golden, policy.config))
    inputs = policy.inputs(*(sources.get(name, torch.zeros(0)) for name in SOURCES), task_shown=shown)
    parameters, value = policy.distribution(inputs), policy.value(inputs)
    functional = _check_policy_outputs(golden, policy, parameters, value)
    _check_embeddings(golden, policy, sources, inputs)
    for name, ours in _recorded(policy, inputs).items():
        golden.check(f"base/{name}", ours.flatten(1))
    if golden.under("grad/"):
        functional.backward()
        for name in golden.under("grad/in/"):
            golden.check_gradient(f"grad/in/{name}", given[name])
        check_gradients(golden, "grad/param/", slots)
    golden.check_all_read({f"param/{name}": "vanishes at the reference's first forward pass" for name in dropped})


def _recorded(policy: Policy, inputs: Input) -> dict[str, Tensor]:
    """What is generated, as the reference shows it: biases that are set to zero are still shown in the heads."""
    weights, condition = policy.materialise(inputs), inputs.condition
    if condition is None or condition.unbiased is None:
        return weights
    shown = policy.materialise(Input(inputs.x, Condition(condition.embedding, condition.head_bias)))
    assert condition.unbiased.all()
    assert not any(value.any() for name, value in weights.items() if name.endswith("/bias"))
    return weights | {name: shown[name] for name in ("critic/head/bias", "actor/head/bias")}


def _check_embeddings(golden: Golden, policy: Policy, sources: Mapping[str, Tensor], inputs: Input) -> None:
    """Compares the inputs as they are after normalisation and embedding; what selects layers is not embedded.

    And what the task would generate, in whose place the latent may be.
    """
    one_hot = torch.eye(policy.num_tasks)[sources["task"]] if policy.config.task_replaces == "condition" else None
    for name in golden.under("out/encoded_"):
        embedding = getattr(policy, name, None)
        if embedding is not None:
            ids = inputs.task_id if name == "state" else None
            golden.check(f"out/encoded_{name}", embedding(sources[name], ids))
        else:
            task = name in ("task", "onehot_task") and one_hot is not None
            golden.check(f"out/encoded_{name}", one_hot if task else golden[f"in/{name}"])
    if "out/task_bn_params" in golden:
        assert policy.hypernet is not None
        generated = policy.generated_parameters(policy.hypernet(policy.embed_task(sources["task"])))
        golden.check("out/task_bn_params", generated)


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
