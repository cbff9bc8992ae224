"""Settings of task inference that make no sense end in one line that names every key involved."""

from __future__ import annotations

from typing import Any

import pytest

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError
from hyperrl.modules.agent import Agent
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.task_inference import TaskInference

NAN, INFINITE = float("nan"), float("inf")
OUT_OF_RANGE = [
    *((name, 0, "at least 1") for name in ("updates", "batch_trajectories", "buffer_capacity")),
    *((name, -1, "0 or more") for name in ("precollect_frames", "pretrain_updates")),
    *((name, 0, "at least 1, or null") for name in ("subsample_elbos", "subsample_decodes", "bptt_steps")),
    *(
        (name, value, "a number of at least 0")
        for name in ("coeff", "kl_coeff", "reward_coeff", "state_coeff", "task_coeff")
        for value in (-0.1, NAN, INFINITE)
    ),
    *(("lr", value, "a positive number") for value in (0.0, NAN, INFINITE)),
    *(("store_probability", value, "a number above 0, at most 1") for value in (0.0, 1.1, NAN)),
    *((name, [8, 0], "positive widths") for name in ("reward_layers", "state_layers", "task_layers")),
]
# Settings that exclude each other: what they are set to, and what is named with its value, key by key.
EXCLUSIVE: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"only_past": True, "subsample_elbos": 5}, {"only_past": "true", "subsample_elbos": "5"}),
    ({"only_past": True, "subsample_decodes": 5}, {"only_past": "true", "subsample_decodes": "5"}),
    ({"only_past": True, "resample_decodes": True}, {"only_past": "true", "resample_decodes": "true"}),
    ({"only_past": True, "average_elbos": True}, {"only_past": "true", "average_elbos": "true"}),
    ({"only_past": True, "average_decodes": True}, {"only_past": "true", "average_decodes": "true"}),
    ({"resample_decodes": True, "subsample_decodes": 5}, {"resample_decodes": "true", "subsample_decodes": "5"}),
    *(
        ({"task": "id", "encoder_loss": loss}, {"task": "id", "encoder_loss": loss})
        for loss in ("rl", "both", "rl_and_kl")
    ),
    *(
        ({"pretrain_updates": 5, "encoder_loss": loss}, {"pretrain_updates": "5", "encoder_loss": loss})
        for loss in ("rl", "both", "rl_and_kl")
    ),
    *(
        ({"stochastic": False, "encoder_loss": loss, **nothing}, {"stochastic": "false", "encoder_loss": loss})
        for loss, nothing in (("rl_and_kl", {}),)
    ),
    *(
        ({"encoder_loss": loss, "reward": "none", **more}, {"encoder_loss": loss, "reward": "none"})
        for loss, more in (
            ("both", {}),
            ("both", {"task": "embedding"}),  # compares embeddings, decodes nothing
            ("inference", {}),
            ("inference", {"stochastic": False}),
        )
    ),
    ({"precollect_frames": 9}, {"precollect_frames": "9", "encoder_loss": "rl"}),
    ({"bptt_steps": 9}, {"bptt_steps": "9", "encoder_loss": "rl"}),
    ({"reward": "categorical"}, {"reward": "categorical", "reward_per_state": "false"}),
]
# Beside inference, settings of the policy, and of the environment.
ELBO = {"encoder_loss": "inference"}
REPLACED = {"task_replaces": "latent", "latent_embedding_dim": 8, "task_embedding_dim": 8}
TASK_IS_INPUT = {"conditioning": "concat", "use_latent": False, "use_task": True}
BARE = EnvInfo(obs_dim=2, action_dim=1, num_actions=3, horizon=10)
RICH = EnvInfo(obs_dim=2, action_dim=1, num_actions=3, horizon=10, task_dim=2, num_tasks=4, num_states=4)
CLASHES: list[tuple[dict[str, Any], dict[str, Any], EnvInfo, list[str]]] = [
    *(
        (
            {"encoder_loss": loss},
            TASK_IS_INPUT,
            RICH,
            ["model.policy.use_latent is false", f"model.inference.encoder_loss is {loss}"],
        )
        for loss in ("inference", "both", "rl_and_kl")
    ),
    *(
        (
            {"encoder_loss": loss, "reward_per_state": True},
            {},
            BARE,
            ["model.inference.reward_per_state is true", "data.env has no ids of states"],
        )
        for loss in ("inference", "both")
    ),
    (
        {**ELBO, "freeze_during_warmup": True},
        {},
        RICH,
        ["model.inference.freeze_during_warmup is true", "model.policy.task_warmup is 0"],
    ),
    ({**ELBO, "task": "id"}, {}, BARE, ["model.inference.task is id", "data.env has no ids of tasks"]),
    (
        {**ELBO, "task": "description"},
        {},
        BARE,
        ["model.inference.task is description", "data.env has no description"],
    ),
    *(
        (
            {**ELBO, "task": target},
            {},
            RICH,
            [f"model.inference.task is {target}", "model.policy.task_replaces is none"],
        )
        for target in ("embedding", "base_network")
    ),
    (
        {**ELBO, "task": "base_network"},
        {**REPLACED, "conditioning": "concat"},
        RICH,
        ["model.inference.task is base_network", "model.policy.conditioning is concat"],
    ),
    *(
        (
            {"encoder_loss": loss, "task": "description"},
            {"latent_embedding_dim": 3},
            RICH,
            [
                "model.inference.task is description",
                "model.policy.latent_embedding_dim makes latents 3 wide",
                "expected 2",
            ],
        )
        for loss in ("rl", "both", "rl_and_kl")
    ),
]
# Next to what is refused, and fine.
FINE: list[tuple[dict[str, Any], dict[str, Any], EnvInfo]] = [
    ({}, TASK_IS_INPUT, RICH),
    ({"reward_per_state": True}, {}, BARE),  # nothing is decoded
    ({**ELBO, "reward_per_state": True, "reward": "none", "state": "gaussian"}, {}, BARE),
    ({**ELBO, "reward_per_state": True}, {}, RICH),
    ({**ELBO, "freeze_during_warmup": True}, {**REPLACED, "task_warmup": 1}, RICH),
    ({**ELBO, "task": "id"}, {}, RICH),
    ({**ELBO, "task": "description"}, {"latent_embedding_dim": 3}, RICH),
    ({"task": "description"}, {"latent_embedding_dim": 2}, RICH),
    ({**ELBO, "task": "embedding"}, {**REPLACED, "conditioning": "concat"}, RICH),
    ({**ELBO, "task": "base_network"}, REPLACED, RICH),
    ({**ELBO, "task": "base_network"}, {**REPLACED, "conditioning": "film"}, RICH),
    ({"task": "embedding"}, REPLACED, RICH),
    ({"only_past": True, **ELBO}, {}, RICH),
    ({"stochastic": False}, {}, RICH),
    ({"stochastic": False, **ELBO}, {}, RICH),
    ({"stochastic": False, **ELBO, "reward": "none", "task": "id"}, {}, RICH),
    ({"store_probability": 1.0, "kl_coeff": 0.0, "precollect_frames": 0, "reward_layers": []}, {}, RICH),
]


def build(
    inference: dict[str, Any], policy: dict[str, Any], env_info: EnvInfo, action_embedding_dim: int = 3
) -> TaskInference:
    """Task inference of a small agent."""
    encoder = EncoderConfig(hidden_dim=4, action_embedding_dim=action_embedding_dim)
    agent = Agent(env_info, encoder, PolicyConfig(**{"layers": [4], "state_embedding_dim": 4, **policy}))
    return TaskInference(env_info, encoder, InferenceConfig(**inference), agent)


@pytest.mark.parametrize(("name", "value", "expected"), OUT_OF_RANGE)
def test_a_wrong_value_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        InferenceConfig(**{name: value})
    assert str(error.value) == f"model.inference.{name} is {value}; expected {expected}"


@pytest.mark.parametrize(("settings", "named"), EXCLUSIVE)
def test_settings_that_exclude_each_other_are_both_named(settings: dict[str, Any], named: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        InferenceConfig(**settings)
    both = " and ".join(f"model.inference.{name} is {value}" for name, value in named.items())
    assert str(error.value).startswith(f"{both}; expected ")


@pytest.mark.parametrize(("inference", "policy", "env_info", "words"), CLASHES)
def test_what_does_not_go_with_policy_or_environment_is_named(
    inference: dict[str, Any], policy: dict[str, Any], env_info: EnvInfo, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        build(inference, policy, env_info)
    message = str(error.value)
    assert [word for word in words if word not in message] == []
    assert "; expected" in message
    assert "\n" not in message


@pytest.mark.parametrize(("inference", "policy", "env_info"), FINE)
def test_what_goes_together_is_not_refused(
    inference: dict[str, Any], policy: dict[str, Any], env_info: EnvInfo
) -> None:
    build(inference, policy, env_info)


def test_a_decoder_of_states_needs_actions() -> None:
    for loss in ("inference", "both"):
        settings = {"encoder_loss": loss, "state": "gaussian"}
        with pytest.raises(ConfigError, match=r"state is gaussian and model\.encoder\.action_embedding_dim is 0"):
            build(settings, {}, RICH, action_embedding_dim=0)
        build({**settings, "state": "none"}, {}, RICH, action_embedding_dim=0)


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({}, ()),
        ({"reward_per_state": True}, ()),
        ({**ELBO, "reward_per_state": True}, (keys.STATE_ID,)),
        ({"encoder_loss": "rl_and_kl", "reward_per_state": True}, ()),
        ({**ELBO, "reward_per_state": True, "reward": "none", "state": "gaussian"}, ()),
        ({**ELBO, "task": "id"}, (keys.TASK_ID,)),
        ({"task": "description"}, (keys.TASK,)),
        ({**ELBO, "task": "base_network", "reward_per_state": True}, (keys.STATE_ID, keys.TASK)),
    ],
)
def test_environments_publish_what_is_predicted(settings: dict[str, Any], published: tuple[str, ...]) -> None:
    assert InferenceConfig(**settings).publish == published


@pytest.mark.parametrize(
    ("loss", "rl_trains_encoder", "decodes", "uses_trajectories", "decodes_task"),
    [
        ("rl", True, False, False, False),
        ("inference", False, True, True, True),
        ("both", True, True, True, False),
        ("rl_and_kl", True, False, True, False),
    ],
)
def test_what_trains_the_encoder(
    loss: Any, rl_trains_encoder: bool, decodes: bool, uses_trajectories: bool, decodes_task: bool
) -> None:
    config = InferenceConfig(encoder_loss=loss, task="description")
    assert config.rl_trains_encoder is rl_trains_encoder
    assert config.decodes is decodes
    assert config.uses_trajectories is uses_trajectories
    assert config.decodes_task is decodes_task
    assert config.compares_task is not decodes_task
    assert not InferenceConfig(encoder_loss=loss).compares_task
