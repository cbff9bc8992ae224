"""Named models are what was published: their arguments, one by one, and their numbers of parameters.

`tests/data/named_models.json` holds the published arguments on the grid: `common`, and per model of ours its published
names, the arguments that differ, and its sizes. Models of ours alone are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from hyperrl import cli, configuration

pytestmark = tiny.QUIET
PUBLISHED = json.loads((Path(__file__).parent / "data" / "named_models.json").read_text())
OURS_ALONE = {"causal_transformer", "min_gru"}
AGGREGATORS = {
    "Sum": "sum", "Max": "max", "MaxNorm": "max_norm", "Mean": "avg", "MeanMax": "am",
    "WeightedAverage": "weighted_avg", "Softmax": "softmax", "Gaussian": "gauss",
}  # fmt: skip
SEQUENCES = {"GRU": "gru", "LSTM": "lstm", "Memoryless": None, "Transition": "transition", "Transformer": "transformer"}
# Which of the three arguments that stand for one choice are on.
SCHEMES = {
    "bias_hyperinit": ("init_hyper_for_policy", "init_adjust_bias"),
    "weight_hyperinit": ("init_hyper_for_policy", "init_adjust_weights"),
    "both_hyperinit": ("init_hyper_for_policy", "init_adjust_bias", "init_adjust_weights"),
    "none": (),
}
# What has no meaning there, whatever its value.
MEANINGLESS = {
    "none": {"init_adjust_bias", "init_adjust_weights"},
    "hfi": {"init_adjust_bias", "init_adjust_weights", "init_hyper_for_policy"},
    "concat": {"init_adjust_bias", "init_adjust_weights", "init_hyper_for_policy"},
    "no state": {"policy_state_embedding_dim", "norm_state_for_policy"},
}


def arguments(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The published names and values of what a resolved configuration says about the model."""
    yield from (("rlloss_through_encoder", True), ("disable_decoder", True))  # no model has a decoder yet
    yield from _encoder(config["encoder"])
    yield from _policy(config["policy"])


def _encoder(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = {
        "action_embedding_size": "action_embedding_dim", "state_embedding_size": "state_embedding_dim",
        "reward_embedding_size": "reward_embedding_dim", "encoder_gru_hidden_size": "hidden_dim",
        "latent_dim": "latent_dim", "full_transitions": "full_transitions", "learn_init_state": "learn_initial_state",
    }  # fmt: skip
    yield from ((published, config[ours]) for published, ours in names.items())
    sequence, options = _class(config["sequence"])
    yield "encoder_enc_type", SEQUENCES[sequence]
    yield "invariant_init", options.get("invariant", "none") != "none"
    yield "invariant_init_adjusts_weights", options.get("invariant") == "full"
    if sequence == "Transformer":
        yield "transformer_token_sz", options["token_dim"]
        yield "transformer_mem_sz", options["memory_dim"]
        yield "transformer_num_layers", options["num_layers"]
        yield "transformer_num_heads", options["num_heads"]
    aggregator, options = _class(config["aggregator"])
    yield "encoder_agg_type", AGGREGATORS[aggregator] if aggregator else None
    yield "encoder_skip_type", "enc" if config["split"] else None
    yield "encoder_st_estimator", options.get("straight_through", False)
    yield "encoder_max_init_low", options.get("low_initial", False)
    if aggregator == "Softmax":
        yield "softmax_temp", options["temperature"]
    if aggregator == "WeightedAverage":
        yield "wavg_temp", options["temperature"]


def _policy(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = {
        "pass_state_to_policy": "use_state", "norm_state_for_policy": "normalize_state",
        "norm_latent_for_policy": "normalize_latent", "policy_layers": "layers",
        "policy_latent_embedding_dim": "latent_embedding_dim", "policy_activation_function": "activation",
    }  # fmt: skip
    yield from ((published, config[ours]) for published, ours in names.items())
    if config["use_state"]:
        yield "policy_state_embedding_dim", config["state_embedding_dim"]
    generated = config["conditioning"] in ("hypernetwork", "film")
    yield "use_hypernet", generated
    yield "use_film", config["conditioning"] == "film"
    scheme = config["hypernet_init"]
    yield "policy_initialisation", "hfi" if generated and scheme == "hfi" else config["initializer"]
    if not generated:
        return
    yield "hypernet_head_bias", config["hypernet_head_bias"]
    yield "hypernet_layers", config["hypernet_layers"]
    flags = config["generated_layers"] or [True] * (len(config["layers"]) + 1)
    yield "policy_layers_hyper", [int(flag) for flag in flags]
    if scheme != "hfi":
        yield from ((name, name in SCHEMES[scheme]) for name in SCHEMES["both_hyperinit"])


def _class(value: dict[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Name and options of a configured class."""
    return (value["class_path"].rpartition(".")[2], value.get("init_args") or {}) if value else (None, {})


# Published with an encoder that an ELBO trains, and normalised latents; here RL gradients train every model.
TRAINED_OTHERWISE = {"norm_latent_for_policy", "rlloss_through_encoder", "disable_decoder"}


def trained_otherwise(name: str) -> set[str]:
    """Published arguments from which ours differ on purpose."""
    return TRAINED_OTHERWISE if name.startswith(("film_", "hypernet_init_")) else set()


def meaningless(config: dict[str, Any]) -> set[str]:
    """Published arguments that this model does not read."""
    policy = config["policy"]
    reasons = {policy["conditioning"], *([] if policy["use_state"] else ["no state"])}
    if policy["conditioning"] != "concat":
        reasons.add(policy["hypernet_init"])
    return set().union(*(MEANINGLESS.get(reason, set()) for reason in reasons))


def _numbers(values: dict[str, Any]) -> set[str]:
    """The names of what has a value."""
    return {name for name, value in values.items() if value is not None}


def test_all_named_models_are_shipped() -> None:
    shipped = {name.removeprefix("model/") for name in configuration.shipped_configs("model")}
    assert shipped == set(PUBLISHED["models"]) | OURS_ALONE


@pytest.mark.parametrize("name", PUBLISHED["models"])
def test_is_the_published_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = PUBLISHED["models"][name]
    monkeypatch.setattr(cli.HyperRLCLI, "_run_subcommand", lambda self, subcommand: None)
    parsed = cli.run(["fit", "--config", f"model/{name}", "--config", "env/gridnavi", "--trainer.logger=false"])
    config = yaml.safe_load(parsed.parser.dump(parsed.config, skip_none=False))["fit"]["model"]
    found, published = dict(arguments(config)), {**PUBLISHED["common"], **expected["arguments"]}
    ignored = meaningless(config) | trained_otherwise(name)
    assert all(found[key] != published[key] for key in trained_otherwise(name))
    assert {key: found[key] for key in found if key not in ignored} == {
        key: published[key] for key in found if key not in ignored
    }
    assert set(expected["arguments"]) <= set(found) | ignored, "an argument that differs is not compared"
    agent = parsed.model.agent
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (agent.encoder, agent.policy)]
    removed = 5 if published["use_film"] else 0  # the bias of an actor head that never uses it (quirk Q21)
    assert sizes == [expected["encoder_parameters"], expected["policy_parameters"] - removed]
    # Sums of exponentials carry their unit along (quirk Q5).
    unit = agent.encoder.aggregator.state_dim // 3 if {"softmax_temp", "wavg_temp"} & _numbers(found) else 0
    assert agent.encoder.state_dim == expected["state_size"] + unit
