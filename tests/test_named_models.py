"""Named models are what was published: their arguments, one by one, and their numbers of parameters; and they train.

`tests/data/named_models.json` holds the published arguments on the grid: `common`, and per model of ours its published
names, the arguments that differ, and its sizes. Models of ours alone are not in it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import tiny
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from torch import Tensor

from hyperrl import cli, configuration, keys
from hyperrl.errors import ConfigError
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.policy_config import SOURCES

pytestmark = tiny.QUIET
PUBLISHED = json.loads((Path(__file__).parent / "data" / "named_models.json").read_text())
MODELS = {name.removeprefix("model/"): path for name, path in configuration.shipped_configs("model").items()}
OURS_ALONE = {"causal_transformer", "min_gru", "no_memory", "task_oracle", "belief_oracle"}
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
    # No trajectory is kept: frames without learning would only be lost (quirk Q31).
    "rl": {"kl_weight", "precollect_len", "lr_vae", "decode_reward"},
    # Without decoders the encoder learns at the policy's rate (Q45), and nothing is decoded (Q44).
    "rl_and_kl": {"lr_vae", "decode_reward"},
    # There is no encoder: the published one is trained, but nothing reads it (Q39).
    "no latent": {
        "norm_latent_for_policy", "rlloss_through_encoder", "disable_decoder", "disable_stochasticity_in_latent",
    },
}  # fmt: skip


def arguments(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The published names and values of what a resolved configuration says about the model."""
    if config["policy"]["use_latent"]:
        yield from _encoder(config["encoder"])
        yield from _inference(config["inference"])
    yield from _policy(config["policy"])


def _renamed(config: dict[str, Any], names: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The values of some settings under their published names."""
    yield from ((published, config[ours]) for published, ours in names.items())


def _encoder(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = {
        "action_embedding_size": "action_embedding_dim", "state_embedding_size": "state_embedding_dim",
        "reward_embedding_size": "reward_embedding_dim", "encoder_gru_hidden_size": "hidden_dim",
        "latent_dim": "latent_dim", "full_transitions": "full_transitions", "learn_init_state": "learn_initial_state",
        "encoder_layers_before_gru": "layers_before", "encoder_layers_after_gru": "layers_after",
        "encoder_layers_after_agg": "output_layers", "sample_embeddings": "sample_latent",
        "add_nonlinearity_to_latent": "relu_latent",
    }  # fmt: skip
    yield from _renamed(config, names)
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


def _inference(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    loss = config["encoder_loss"]
    yield "rlloss_through_encoder", loss != "inference"
    yield "disable_decoder", loss in ("rl", "rl_and_kl")
    yield "disable_stochasticity_in_latent", loss == "rl" or not config["stochastic"]
    yield from _task(config)
    if loss == "rl":
        return
    names = {
        "kl_weight": "kl_coeff", "precollect_len": "precollect_frames", "pretrain_len": "pretrain_updates",
        "size_vae_buffer": "buffer_capacity", "vae_batch_num_trajs": "batch_trajectories", "vae_loss_coeff": "coeff",
        "vae_buffer_add_thresh": "store_probability", "vae_subsample_elbos": "subsample_elbos",
        "vae_subsample_decodes": "subsample_decodes", "vae_resample_decodes": "resample_decodes",
        "vae_avg_elbo_terms": "average_elbos", "vae_avg_reconstruction_terms": "average_decodes",
        "decode_only_past": "only_past", "tbptt_stepsize": "bptt_steps",
        "freeze_vae_during_warmup": "freeze_during_warmup",
    }  # fmt: skip
    yield from _renamed(config, names)
    yield "kl_to_gauss_prior", config["kl_prior"] == "standard"
    if loss == "rl_and_kl":
        return
    names = {
        "lr_vae": "lr", "num_vae_updates": "updates", "rew_pred_type": "reward",
        "multihead_for_reward": "reward_per_state", "input_action": "reward_uses_action",
        "input_prev_state": "reward_uses_prev_state", "reward_decoder_layers": "reward_layers",
        "rew_loss_coeff": "reward_coeff", "task_decoder_layers": "task_layers",
    }  # fmt: skip
    yield from _renamed(config, names)
    yield "decode_reward", config["reward"] != "none"
    yield "decode_state", config["state"] != "none"


def _task(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    target = config["task"]
    yield "decode_task", target != "none"
    learned = target in ("embedding", "base_network")
    yield "ti_coeff", config["task_coeff"] if learned else None
    if target != "none":
        yield "task_pred_type", "task_id" if target == "id" else "task_description"
    if learned:
        yield "ti_target", "task" if target == "embedding" else "base_net"
        yield "ti_target_stop_grad", config["task_stop_gradient"]
    else:
        yield "task_loss_coeff", config["task_coeff"]


def _policy(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = {
        "pass_state_to_policy": "use_state", "pass_latent_to_policy": "use_latent",
        "pass_belief_to_policy": "use_belief", "pass_task_as_onehot_id": "task_as_one_hot",
        "norm_state_for_policy": "normalize_state", "policy_layers": "layers",
        "policy_activation_function": "activation", "policy_init_std": "init_std",
        "norm_actions_of_policy": "bound_actions", "adjust_init_b_gain": "adjust_init_gain",
        "ti_hard_reset": "hard_reset", "hyper_onehot_no_bias": "one_hot_without_bias",
    }  # fmt: skip
    yield from _renamed(config, names)
    if config["use_state"]:
        yield "policy_state_embedding_dim", config["state_embedding_dim"]
    if config["use_latent"]:
        yield "norm_latent_for_policy", config["normalize_latent"]
        yield "policy_latent_embedding_dim", config["latent_embedding_dim"]
    given_task = config["use_task"] or config["task_replaces"] == "latent"
    yield "pass_task_to_policy", given_task
    yield "task_num_warmup", config["task_warmup"] if config["task_replaces"] == "latent" else None
    yield "task_chance", config["task_chance"] if config["task_replaces"] == "latent" else None
    if given_task:
        yield "norm_task_for_policy", config["normalize_task"]
        yield "policy_task_embedding_dim", config["task_embedding_dim"]
    yield from _generation(config)


def _generation(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    generated = config["conditioning"] in ("hypernetwork", "film")
    yield "use_hypernet", generated
    yield "use_film", config["conditioning"] == "film"
    scheme = config["hypernet_init"]
    yield "policy_initialisation", "hfi" if generated and scheme == "hfi" else config["initializer"]
    if not generated:
        return
    yield "hypernet_input", "latent" if config["hypernet_input"] == "latent" else "task_embed"
    yield "hypernet_head_bias", config["hypernet_head_bias"]
    yield "hypernet_layers", config["hypernet_layers"]
    yield "hyper_softmax_temp", config["hypernet_softmax_temperature"]
    yield "HN_init", config["hypernet_hidden_initializer"]
    flags = config["generated_layers"] or [True] * (len(config["layers"]) + 1)
    yield "policy_layers_hyper", [int(flag) for flag in flags]
    if scheme != "hfi":
        yield from ((name, name in SCHEMES[scheme]) for name in SCHEMES["both_hyperinit"])


def _read(policy: dict[str, Any]) -> dict[str, Any]:
    """What a policy reads of its configuration: nothing about inputs that it is not given, or layers not generated."""
    given = {name for name in SOURCES if policy[f"use_{name}"]} | (
        {"task"} if policy["task_replaces"] != "none" else set()
    )
    about = {f"normalize_{name}" for name in SOURCES} | {f"{name}_embedding_dim" for name in SOURCES}
    read = {f"normalize_{name}" for name in given} | {f"{name}_embedding_dim" for name in given}
    idle = {"hypernet_init"} if policy["conditioning"] == "concat" else set()
    return {key: value for key, value in policy.items() if key not in (about - read) | idle}


def _class(value: dict[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Name and options of a configured class."""
    return (value["class_path"].rpartition(".")[2], value.get("init_args") or {}) if value else (None, {})


def meaningless(config: dict[str, Any]) -> set[str]:
    """Published arguments that this model does not read."""
    policy = config["policy"]
    reasons = {policy["conditioning"], config["inference"]["encoder_loss"]}
    reasons |= {f"no {name}" for name in ("state", "latent") if not policy[f"use_{name}"]}
    if policy["conditioning"] != "concat":
        reasons.add(policy["hypernet_init"])
    return set().union(*(MEANINGLESS.get(reason, set()) for reason in reasons))


def removed_parameters(config: dict[str, Any], published: dict[str, Any]) -> int:
    """Parameters of the published policy that ours has not."""
    # The bias of an actor head that FiLM never uses (quirk Q21).
    bias = 5 if published["use_film"] else 0
    # A sample is half as wide as mean and log variance, for which the published policy is built all the same (Q26).
    sample = config["encoder"]["latent_dim"] * config["policy"]["latent_embedding_dim"]
    return bias + (sample if published["sample_embeddings"] else 0)


def _numbers(values: dict[str, Any]) -> set[str]:
    """The names of what has a value."""
    return {name for name, value in values.items() if value is not None}


class CommandLine:
    """The command line for many arguments; its parser, which takes longest to build, is built once.

    Args:
        built: a command line that has not been run.
    """

    def __init__(self, built: cli.HyperRLCLI) -> None:
        self.cli = built

    @functools.cache  # noqa: B019 - there is one instance
    def settings(self, *names: str) -> dict[str, Any]:
        """Those of model and data under some configurations, the last one on top."""
        config = self._parse(f"--config={name}" for name in names)["fit"].as_dict()
        return {name: config[name] for name in ("model", "data")}

    def build(self, *args: str) -> cli.HyperRLCLI:
        """Builds everything from arguments of `fit`."""
        self.cli.config = self._parse(args)
        self.cli._set_seed()
        self.cli.before_instantiate_classes()
        self.cli.instantiate_classes()
        return self.cli

    def _parse(self, args: Iterable[str]) -> Namespace:
        common = ["fit", "--trainer.logger=false", "--seed_everything=3"]
        return self.cli.parser.parse_args(cli._resolve_configs([*common, *args]))


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("named"))
        patch.setattr(cli.HyperRLCLI, "_run_subcommand", lambda self, subcommand: None)
        yield CommandLine(cli.run(["fit", "--trainer.logger=false", *tiny.MODEL_ARGS]))


class TestNames:
    def test_all_named_models_are_shipped(self) -> None:
        assert set(MODELS) == set(PUBLISHED["models"]) | OURS_ALONE
        assert len({name for model in PUBLISHED["models"].values() for name in model["published"]}) == 60

    def test_a_model_that_was_published_twice_has_another_name_each_time(self) -> None:
        twice = {name: len(model["published"]) - 1 for name, model in PUBLISHED["models"].items()}
        named = [of.removeprefix("model/") for of in configuration.aliases().values()]
        assert {name: number for name, number in twice.items() if number} == {name: named.count(name) for name in named}

    def test_aliases_are_published_names_and_no_files(self) -> None:
        for alias, of in configuration.aliases().items():
            own, ours = (name.removeprefix("model/") for name in (alias, of))
            published = [name.lower().replace("_", "") for name in PUBLISHED["models"][ours]["published"]]
            assert own.replace("_", "") in published
            assert own not in MODELS
            assert configuration.resolve_config(alias) == configuration.resolve_config(of)

    @pytest.mark.parametrize("name", MODELS)
    def test_a_model_is_known_by_its_settings(self, command_line: CommandLine, name: str) -> None:
        assert configuration.model_name(command_line.settings("experiment/quickstart", f"model/{name}")) == name

    def test_all_are_documented(self) -> None:
        text = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
        names = [*(f"model/{name}" for name in MODELS), *configuration.aliases()]
        assert [name for name in names if f"`{name}` |" not in text] == []


ENVS = configuration.shipped_configs("env")
# What experiments decide of the encoder; environments have the value that goes without saying.
SET_DECIDES = ("latent_dim", "full_transitions")


def load(path: Path) -> dict[str, Any]:
    """What a file sets."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    return settings


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def distinct(configs: dict[str, Path]) -> list[str]:
    """One of all that set the same keys, and classes: what a file on top leaves of them depends on nothing else."""
    found: dict[frozenset[tuple[str, Any]], str] = {}
    for name, path in configs.items():
        settings = flat(load(path)["model"])
        kind = frozenset((key, value if key.endswith(".class_path") else None) for key, value in settings.items())
        found.setdefault(kind, name)
    return list(found.values())


def pairs(experiments: dict[str, Path]) -> list[tuple[str, str]]:
    """The experiments of the papers that differ in their model alone, in both orders."""
    sets: dict[str, list[str]] = {}
    for name in experiments:
        ending = next((ending for ending in ("_rnn_hn", "_vi_hn", "_splagger") if name.endswith(ending)), "")
        if ending:
            sets.setdefault(name.removesuffix(ending), []).append(name)
    return [pair for names in sets.values() for pair in itertools.permutations(names, 2)]


class TestComposition:
    @pytest.mark.parametrize("name", MODELS)
    def test_environment_and_model_come_in_either_order(self, command_line: CommandLine, name: str) -> None:
        settings = command_line.settings
        assert settings("env/gridnavi", f"model/{name}") == settings(f"model/{name}", "env/gridnavi")

    @pytest.mark.parametrize("env", ENVS)
    def test_environments_and_models_share_no_setting(self, env: str) -> None:
        decided = set(flat(load(ENVS[env])))
        for path in MODELS.values():
            assert not decided & set(flat(load(path))), path

    @pytest.mark.parametrize("experiment", distinct(configuration.shipped_configs("experiment")))
    def test_experiments_take_any_model(self, command_line: CommandLine, experiment: str) -> None:
        """Nothing of the experiment's own model is left over."""
        own = load(configuration.shipped_configs("experiment")[experiment])
        env = next(name for name, path in ENVS.items() if load(path)["data"]["env"] == own["data"]["env"])
        sizes = {key: value for key, value in own["model"].get("encoder", {}).items() if key in SET_DECIDES}
        # Environments decide it, and no model does; fast presets have a narrower one.
        width = {key: value for key, value in own["model"].get("policy", {}).items() if key == "latent_embedding_dim"}
        for name in distinct(MODELS):
            model, alone = (command_line.settings(x, f"model/{name}")["model"] for x in (experiment, env))
            PolicyConfig(**model["policy"])
            InferenceConfig(**model["inference"])
            assert _read(model["policy"]) == _read({**alone["policy"], **width}), name
            if alone["policy"]["use_latent"]:
                assert model["encoder"] == {**alone["encoder"], **sizes}, name
            set_by_model = load(MODELS[name])["model"]["inference"]
            assert {key: model["inference"][key] for key in set_by_model} == {
                key: alone["inference"][key] for key in set_by_model
            }, name

    @pytest.mark.parametrize(("one", "other"), pairs(configuration.shipped_configs("experiment")))
    def test_the_other_model_on_top_makes_the_other_experiment(
        self, command_line: CommandLine, one: str, other: str
    ) -> None:
        model = configuration.model_name(load(configuration.shipped_configs("experiment")[other]))
        composed, written = command_line.settings(one, f"model/{model}"), command_line.settings(other)
        assert composed == written


@pytest.mark.parametrize("name", PUBLISHED["models"])
def test_is_the_published_model(name: str, command_line: CommandLine) -> None:
    expected = PUBLISHED["models"][name]
    parsed = command_line.build(f"--config=model/{name}", "--config=env/gridnavi")
    config = parsed.config["fit"]["model"].as_dict()
    found, published = dict(arguments(config)), {**PUBLISHED["common"], **expected["arguments"]}
    ignored = meaningless(config)
    assert {key: found[key] for key in found if key not in ignored} == {
        key: published[key] for key in found if key not in ignored
    }
    assert set(expected["arguments"]) <= set(found) | ignored, "an argument that differs is not compared"
    agent = parsed.model.agent
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (agent.encoder, agent.policy)]
    policy_size = expected["policy_parameters"] - removed_parameters(config, published)
    if config["policy"]["use_latent"]:
        assert sizes == [expected["encoder_parameters"], policy_size]
        # Sums of exponentials carry their unit along (quirk Q5).
        unit = agent.encoder.aggregator.state_dim // 3 if {"softmax_temp", "wavg_temp"} & _numbers(found) else 0
        assert agent.encoder.state_dim == expected["state_size"] + unit
    else:
        assert sizes == [0, policy_size]


class ToyWithTask(tiny.Toy):
    """A toy that also says which task it plays."""

    def publish_task(self) -> Tensor:
        return self.state[keys.TASK].unsqueeze(-1)


if "toys/Task-v0" not in gymnasium.registry:
    gymnasium.register("toys/Task-v0", entry_point=ToyWithTask)

# Both have tasks of ten steps at most. The toy has neither ids nor a belief, and its actions are continuous.
ENVIRONMENTS = {
    "gridnavi": ("--config=env/gridnavi", "--data.env_options={num_steps: 5}", "--data.episodes_per_task=2"),
    "toy": ("--data.env=toys/Task-v0", "--data.env_options={continuous: true}"),
}
ROLLOUT = 40
TRAINING = (
    "--trainer.accelerator=cpu", "--data.num_envs=4", "--data.steps_per_rollout=10", "--data.val_tasks=2",
    "--model.ppo.lr=0.01", "--model.ppo.epochs=1", "--model.ppo.num_minibatches=2",
)  # fmt: skip
TINY = (*tiny.MODEL_ARGS, "--model.policy.task_embedding_dim=4", "--model.policy.belief_embedding_dim=4")


def scaled_down(path: Path) -> tuple[list[str], int]:
    """Waiting and warm-up of a model cut to one rollout each; and the number of rollouts until two updates are done."""
    model = yaml.safe_load(path.read_text())["model"]
    args = ["--model.policy.task_warmup=1"] if model["policy"].get("task_warmup") else []
    if not model.get("inference", {}).get("precollect_frames"):
        return args, 2
    return [*args, f"--model.inference.precollect_frames={2 * ROLLOUT}"], 3


class Observer(tiny.History):
    """Saves the state after the first epoch, and notes after each update which parameters are as in a fresh policy.

    Args:
        path: where to.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.fresh: list[set[str]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        policy, fresh = pl_module.agent.policy, pl_module.agent.fresh_policy
        if fresh is not None and "loss/total" in self.updates[-1]:
            pairs = zip(policy.named_parameters(), fresh.parameters(), strict=True)
            self.fresh.append({name for (name, one), other in pairs if torch.equal(one, other)})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: MetaPPO) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def state(model: MetaPPO) -> dict[str, Tensor]:
    """Parameters and buffers, moments of the optimisers included."""
    moments = {
        f"optimizer {number}.{index}.{name}": value
        for number, optimizer in enumerate(model.trainer.optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return {name: value.clone() for name, value in {**model.state_dict(), **moments}.items()}


def altered(model: MetaPPO) -> MetaPPO:
    """The same model with other parameters, of which nothing is left after it has been resumed."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


class TestTraining:
    @pytest.mark.parametrize("env", ENVIRONMENTS)
    @pytest.mark.parametrize("name", MODELS)
    def test_trains_and_resumes(self, name: str, env: str, command_line: CommandLine, tmp_path: Path) -> None:
        """Two updates, and a third one that is the same whether or not the run was resumed before it."""
        scaled, rollouts = scaled_down(MODELS[name])
        frames = f"--data.frames={(rollouts + 1) * ROLLOUT}", f"--data.rollouts_per_epoch={rollouts}"
        args = (*ENVIRONMENTS[env], f"--config=model/{name}", *TRAINING, *TINY, *scaled, *frames)
        if (name, env) == ("belief_oracle", "toy"):
            with pytest.raises(ConfigError, match="belief"):
                command_line.build(*args)
            return
        parsed = command_line.build(*args)
        whole, observer = parsed.model, Observer(tmp_path / "two.ckpt")
        resumed, data = altered(copy.deepcopy(whole)), copy.deepcopy(parsed.datamodule)
        begun = {key: value.clone() for key, value in whole.state_dict().items()}
        tiny.trainer([observer]).fit(whole, parsed.datamodule)
        assert_learnt(whole, observer, begun)
        tiny.trainer().fit(resumed, data, ckpt_path=observer.path, weights_only=True)
        assert resumed.frames == whole.frames == (rollouts + 1) * ROLLOUT
        torch.testing.assert_close(state(resumed), state(whole), rtol=0, atol=0)


def assert_learnt(model: MetaPPO, observer: Observer, begun: dict[str, Tensor]) -> None:
    """Three updates of the policy, and of encoder and decoders if they have their own, have changed all parameters."""
    updates = [metrics for metrics in observer.updates if "loss/total" in metrics]
    assert len(updates) == 3
    assert all(torch.tensor(list(metrics.values())).isfinite().all() for metrics in updates)
    policy, learns = model.agent.policy, model.inference.config.uses_trajectories
    # A policy that is to start anew keeps the encoder waiting for that, which is after the first update.
    anew = policy.config.hard_reset
    assert ["inference/total" in metrics for metrics in updates] == [learns and not anew, learns, learns]
    if anew:
        names = {name for name, _ in policy.named_parameters()}
        assert {name for name in names - observer.fresh[0] if "task" not in name} == set()
        assert not any(observer.fresh[1:])
    assert not model.agent.warming_up
    unchanged = {name for name, parameter in model.named_parameters() if torch.equal(parameter, begun[name])}
    assert {name for name in unchanged if "fresh_policy" not in name} == set()
