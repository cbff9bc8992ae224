"""Every shipped configuration is parsed, commented and trained; named models are the published ones."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from hyperrl import cli, configuration
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.envs import description, env_ids, make_env
from hyperrl.errors import ConfigError
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.ppo import PPOConfig

pytestmark = tiny.QUIET
CONFIGS = configuration.shipped_configs()
ENVS = [name for name in CONFIGS if name.startswith("env/")]
ALIASES = configuration.config_root() / "aliases.yaml"
# Few environments and steps, and two updates, at once; the models keep their full size.
SMALL = (
    "--seed_everything=1", "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.num_envs=4",
    "--data.steps_per_rollout=6", "--data.frames=48", "--data.rollouts_per_epoch=2", "--data.val_tasks=2",
    "--data.test_tasks=2", "--model.inference.precollect_frames=0",
)  # fmt: skip
# Files that do not choose the model are trained with a small one.
SMALL_MODEL = ("--model.encoder.hidden_dim=16", "--model.policy.layers=[16]", "--model.policy.state_embedding_dim=16")
# What environments decide of encoder and task inference (spec/training.md section 14.3), and only they.
ENCODER = {"action_embedding_dim": 0, "reward_embedding_dim": 8, "latent_dim": 5, "full_transitions": False}
DECODERS = {
    "reward": "bernoulli", "reward_per_state": True, "reward_uses_action": False, "reward_uses_prev_state": False,
    "reward_layers": [32, 32], "task_layers": [32, 32], "buffer_capacity": 100_000, "batch_trajectories": 25,
    "updates": 3, "subsample_elbos": None, "subsample_decodes": None, "resample_decodes": False,
}  # fmt: skip
REGRESSION = {
    **DECODERS, "reward": "deterministic", "reward_per_state": False, "reward_uses_action": True,
    "reward_uses_prev_state": True,
}  # fmt: skip
SUBSAMPLED = {"subsample_elbos": 50, "resample_decodes": True}
POINT_DECODERS = {**REGRESSION, "reward_layers": [64, 32], "task_layers": [64, 32], "buffer_capacity": 10_000}
SPARSE_DECODERS = {**POINT_DECODERS, "batch_trajectories": 15, "subsample_elbos": 50, "subsample_decodes": 100}
POINT_PPO = {
    "optimizer": "rmsprop", "lr": 3e-4, "eps": 1e-8, "gamma": 0.97, "gae_lambda": 0.9, "clip": 0.1,
    "entropy_coeff": 0.01,
}  # fmt: skip
GRID = {"encoder": ENCODER, "inference": DECODERS}
MAZE = {"encoder": {**ENCODER, "action_embedding_dim": 8}, "inference": REGRESSION}
ROBOT = {
    "encoder": {**ENCODER, "action_embedding_dim": 16, "reward_embedding_dim": 16}, "policy": {"bound_actions": True}
}  # fmt: skip
SPARSE_POINT = {**ROBOT, "inference": SPARSE_DECODERS, "ppo": {**POINT_PPO, "epochs": 1}}
# How names begin: episodes per task, steps per rollout, and the model's settings; the longest beginning counts.
FAMILIES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "grid": (4, 60, GRID),
    "hall": (4, 60, GRID),
    "hall_l60h200_obs_rshape5x": (4, 60, {**GRID, "inference": {**DECODERS, "reward_target": 5.0}}),
    "t_l": (4, 700, MAZE),
    "mc_ls": (2, 800, {**MAZE, "inference": {**REGRESSION, **SUBSAMPLED, "buffer_capacity": 10_000}}),
    "planning": (1, 700, MAZE),
    "point": (1, 200, SPARSE_POINT),
    "sparse_point": (5, 200, SPARSE_POINT),
    "semicircle": (1, 60, {**ROBOT, "inference": POINT_DECODERS, "ppo": {**POINT_PPO, "epochs": 2}}),
}
# Nothing but the RL loss.
ALONE = {"encoder_loss": "rl", "precollect_frames": 0, "task": "none"}
# Experiments of ours and their models.
EXPERIMENTS = {
    "experiment/quickstart": "rnn_hn",
    "experiment/ladder_1_one_task": "no_memory",
    "experiment/ladder_2_many_tasks": "no_memory",
    "experiment/ladder_3_task_oracle": "task_oracle",
    "experiment/ladder_4_belief_oracle": "belief_oracle",
    "experiment/ladder_5_memory": "rnn_hn",
}
# What experiments of the papers have in common: all settings of PPO, and data but for the environment.
PPO = {
    "optimizer": "adam", "lr": 7e-4, "lr_schedule": "constant", "eps": 1e-5, "encoder_eps": 1e-8, "gamma": 0.95,
    "gae_lambda": 0.95, "clip": 0.05, "clip_value": True, "huber": True, "value_coeff": 0.5, "entropy_coeff": 0.1,
    "max_grad_norm": 0.5, "epochs": 2, "num_minibatches": 4, "minibatch": "env", "normalize_rewards": True,
    "reward_clip": 10,
}  # fmt: skip
# Rollouts of a grid are too small for a GPU.
ACCELERATORS = {"gridnavi": "cpu", "gridnavi_dense": "cpu", "gridnavi_show_start": "cpu"}
DATA = {"num_envs": 16, "val_tasks": 128, "test_tasks": 1024}
# Sets of experiments, named after their environment: models, frames, and what the set decides of the model.
ON_MAZES = {"encoder": {"latent_dim": 12, "full_transitions": True}, "inference": SUBSAMPLED}
ON_PLANNING = {**ON_MAZES, "ppo": {"entropy_coeff": 0.0}}
MODELS_2023, MODELS_2024 = ("vi_hn", "rnn_hn"), ("rnn_hn", "splagger")
SETS: dict[str, tuple[tuple[str, ...], int, dict[str, Any]]] = {
    "gridnavi": (MODELS_2023, 4_000_000, {}),
    "gridnavi_dense": (MODELS_2023, 4_000_000, {}),
    "gridnavi_show_start": (MODELS_2023, 4_000_000, {}),
    "mc_ls": (MODELS_2023, 60_000_000, {"ppo": {"lr_schedule": "linear"}}),
    "planning_3x3": (MODELS_2024, 50_000_000, ON_PLANNING),
    "planning_3x3_justgoal": (MODELS_2024, 10_000_000, ON_PLANNING),
    "t_ln_p1": (MODELS_2024, 1_500_000, ON_MAZES),
    "t_ln_p1_a50": (MODELS_2024, 10_000_000, ON_MAZES),
    "t_ln_p1_ldp7p5": (MODELS_2024, 1_500_000, ON_MAZES),
}
PUBLISHED = {f"experiment/{env}_{model}": (env, model) for env, (models, _, _) in SETS.items() for model in models}
PARAMETERS = {
    "model/rnn": 311_731,
    "model/rnn_s": 443_827,
    "model/rnn_hn": 5_384_777,
    "experiment/quickstart": 5_384_777,
    "experiment/gridnavi_rnn_hn": 5_384_777,
    "experiment/t_ln_p1_rnn_hn": 5_416_683,
    # The published one has one more: a temperature that a maximum does not read.
    "experiment/t_ln_p1_splagger": 5_416_683,
    "experiment/planning_3x3_rnn_hn": 5_423_781,
    "experiment/planning_3x3_splagger": 5_423_781,
}


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_group_is_there() -> None:
    assert {name.partition("/")[0] for name in CONFIGS} == {"env", "experiment", "model", "trainer"}
    assert set(PARAMETERS) <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[dict[str, float]] = []
    monkeypatch.setattr(MetaPPO, "log_metrics", lambda self, metrics: updates.append(metrics))
    settings = load(name)
    small = SMALL_MODEL if name.startswith(("env/", "trainer/")) else ()
    # Tasks of several episodes take longest to be evaluated.
    short = () if settings.get("data", {}).get("episodes_per_task") == 1 else ("--data.eval_episodes_per_task=2",)
    result = cli.run(["fit", "--config", name, *SMALL, *small, *short])
    assert result.model.frames == 48
    assert len([metrics for metrics in updates if "loss/total" in metrics]) == 2
    assert "test/return" in result.trainer.callback_metrics
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in result.model.parameters()) == PARAMETERS[name]


def load(name: str) -> dict[str, Any]:
    """What a shipped configuration sets, by itself."""
    settings: dict[str, Any] = yaml.safe_load(CONFIGS[name].read_text())
    return settings


def resolved(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["hyperrl", "fit", *args, "--print_config"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def contains(config: Any, part: Any) -> bool:
    """Whether a configuration has every value of a part, in which PyYAML takes numbers such as 1e-05 for text."""
    if isinstance(part, dict):
        return all(key in config and contains(config[key], value) for key, value in part.items())
    number = isinstance(config, float) and isinstance(part, str)
    return bool(config == (float(part) if number else part))


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parser of the command line, which takes longer to build than to use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parser"))
        patch.setattr(cli.HyperRLCLI, "_run_subcommand", lambda self, subcommand: None)
        return cli.run(["fit", *SMALL, *SMALL_MODEL]).parser


@pytest.mark.parametrize("name", CONFIGS)
def test_is_parsed_as_it_is_written(name: str, parser: Any) -> None:
    parsed = parser.parse_args(["fit", "--config", str(CONFIGS[name])])["fit"].as_dict()
    assert contains(parsed, load(name))


@pytest.mark.parametrize("path", [*CONFIGS.values(), ALIASES], ids=[*CONFIGS, "aliases"])
def test_every_value_has_a_comment_above_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    values = [index for index, line in enumerate(lines) if re.match(r"\s*[\w./]+:\s*\S", line)]
    assert values
    for index in values:
        comment = re.fullmatch(r"\s*# \S.*", lines[index - 1])
        assert comment, f"no comment above line {index + 1}: {lines[index]}"
        assert index != 1, f"line 1 describes the file, not {lines[index]}"
        indent = len(lines[index]) - len(lines[index].lstrip())
        assert lines[index - 1].index("#") == indent


def test_every_environment_has_a_configuration() -> None:
    configured = {load(name)["data"]["env"] for name in ENVS}
    # One id is the same environment under another name (quirk G7).
    assert set(env_ids()) - configured == {"Grid-20-newr-rands-v0"}


@pytest.mark.parametrize("name", ENVS)
def test_configuration_of_an_environment_is_named_and_described_by_it(name: str) -> None:
    env = load(name)["data"]["env"]
    assert configuration.description(CONFIGS[name]).startswith(f"{env}: ")
    assert description(env)
    short = re.sub("Env|Game|[-_]", "", env.removesuffix("-v0")).lower()
    assert name.removeprefix("env/").replace("_", "") == {"planning": "planning4x4"}.get(short, short)


@pytest.mark.parametrize("name", ENVS)
def test_environments_have_the_published_settings(name: str) -> None:
    """The whole file; the rest is the default, or what a model decides. Tasks may end inside of rollouts."""
    beginning = max((family for family in FAMILIES if name.startswith(f"env/{family}")), key=len)
    episodes, steps, model = FAMILIES[beginning]
    config = load(name)
    env = config["data"].pop("env")
    assert config["data"] == {"episodes_per_task": episodes, "steps_per_rollout": steps}
    assert set(config) == {"data", "model"}
    assert set(config["model"]) == set(model)
    assert all(contains(values, config["model"][part]) for part, values in model.items())
    assert all(set(config["model"][part]) == set(values) for part, values in model.items())
    assert make_env(env, 1).episodes_per_task == episodes


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_our_experiments_are_complete(name: str) -> None:
    """Whatever an environment or the model's file sets, an experiment sets, too."""
    config, env = load(name), load("env/gridnavi")
    model = EXPERIMENTS[name]
    assert set(env["data"]) <= set(config["data"])
    assert configuration.model_name(config) == model
    assert contains(config, load(f"model/{model}"))
    assert {"seed_everything", "trainer", "data", "model"} <= set(config)
    assert "ppo" in config["model"]
    if model == "rnn_hn":
        # Rollouts are four times the published ones.
        assert config["model"]["inference"] == {**ALONE, **DECODERS, "updates": 12}
        assert contains(config["model"]["encoder"], ENCODER)


def test_every_experiment_is_known() -> None:
    assert {*EXPERIMENTS, *PUBLISHED} == {name for name in CONFIGS if name.startswith("experiment/")}


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Settings with later ones on top."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(total.get(key), dict)
            total[key] = merged(total[key], value) if both else value
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiments_of_the_papers_are_environment_model_and_set(name: str) -> None:
    """Every value: model over set over environment, as the published precedence has it; and it says what it is."""
    env, model = PUBLISHED[name]
    _, frames, decided = SETS[env]
    config, parts = load(name), [load(f"env/{env}"), load(f"model/{model}")]
    rollout = 16 * parts[0]["data"]["steps_per_rollout"]
    assert 80_000 <= config["data"].pop("rollouts_per_epoch") * rollout <= 120_000
    ppo = config["model"].pop("ppo")
    expected = merged(parts[0], parts[1], {"data": {**DATA, "frames": frames}}, {"model": decided})
    overrides = expected["model"].pop("ppo", {})
    assert {"data": config["data"], "model": config["model"]} == expected
    assert set(ppo) == set(PPO) == {field.name for field in dataclasses.fields(PPOConfig)}
    assert contains({**PPO, **overrides}, ppo)
    assert config["seed_everything"] == 73
    assert config["trainer"] == {"accelerator": ACCELERATORS.get(env, "auto"), "devices": 1, "precision": "32-true"}
    assert configuration.model_name(config) == model
    size = f"{config['data']['num_envs']} environments x {config['data']['steps_per_rollout']} steps"
    assert f"{size}, {frames / 1e6:g} million frames [" in configuration.description(CONFIGS[name])


def test_rungs_of_the_ladder_differ_in_model_and_task_alone() -> None:
    rungs = [load(name) for name in EXPERIMENTS if "ladder" in name]
    quick = load("experiment/quickstart")
    assert len(rungs) == 5
    for rung in rungs:
        assert rung["trainer"] == quick["trainer"]
        assert {**rung["data"], "env_options": None} == {**quick["data"], "env_options": None}
        assert rung["model"]["ppo"].items() <= quick["model"]["ppo"].items()
    assert [rung["data"].get("env_options") for rung in rungs] == [{"fixed_task": [3, 4]}, *[None] * 4]
    assert rungs[-1] == quick


def test_the_first_rung_plays_one_task(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved(capsys, monkeypatch, "--config", "experiment/ladder_1_one_task")
    data = MetaDataModule(**{**config["data"], "publish": ["task"]})
    env = make_env(data.env_id, 8, **data.options)
    assert env.reset()["task"].tolist() == [[3, 4]] * 8


def test_a_fixed_task_is_an_option_on_the_command_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved(capsys, monkeypatch, "--data.env_options.fixed_task=[3,4]")
    assert config["data"]["env_options"] == {"fixed_task": [3, 4]}
    with pytest.raises(ConfigError, match=r"data\.env: `fixed_task` is \[0, 0\]: .*goal cells"):
        cli.run(["fit", *SMALL, "--data.env_options.fixed_task=[0,0]"])
    with pytest.raises(ConfigError, match=r"`fixed_task` is \[3, 4\] and `task_split` is 'train'"):
        cli.run(["fit", *SMALL, "--data.env_options.fixed_task=[3,4]", "--data.held_out=0.2"])


class TestAliases:
    def test_an_alias_is_the_configuration(self, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for alias, name in configuration.aliases().items():
            assert configuration.resolve_config(alias) == configuration.resolve_config(f"configs/{alias}.yaml")
            assert configuration.resolve_config(alias) == str(CONFIGS[name])
        alias, name = next(iter(configuration.aliases().items()))
        assert resolved(capsys, monkeypatch, "--config", alias) == resolved(capsys, monkeypatch, "--config", name)

    def test_a_wrong_name_is_answered_with_an_alias(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean model/amrl_no_rnn\?$"):
            configuration.resolve_config("model/amrl_norn")

    def test_list_shows_them_beside_the_configuration(self, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setattr(sys, "argv", ["hyperrl", "list", "models"])
        cli.main()
        lines = capsys.readouterr().out.splitlines()
        shown = {line.split()[0]: line.rpartition("; also: ")[2].strip() for line in lines if "; also: " in line}
        assert shown == {name: alias for alias, name in configuration.aliases().items()}


# Spec/results.md section 4: what all columns have in common, and the columns.
COMMON = {
    "encoder": {"hidden_dim": 256, "sequence": {"class_path": "hyperrl.modules.sequence.GRU"}},
    "policy": {
        "layers": [256, 128], "state_embedding_dim": 256, "latent_embedding_dim": 25, "activation": "tanh",
        "normalize_state": True,
    },
    "inference": {"lr": 0.001, "bptt_steps": None},
    "ppo": {
        "optimizer": "adam", "huber": True, "clip_value": True, "value_coeff": 0.5, "max_grad_norm": 0.5,
        "normalize_rewards": True, "epochs": 2, "num_minibatches": 4, "clip": 0.05, "gamma": 0.95, "gae_lambda": 0.95,
        "eps": 1e-5,
    },
}  # fmt: skip
# Frames, episodes per task, steps, entropy, latent, full transitions, schedule; all have 16 processes.
COLUMNS = {
    "gridnavi": (4e6, 4, 60, 0.1, 5, False, "constant"),
    "gridnavi_dense": (4e6, 4, 60, 0.1, 5, False, "constant"),
    "gridnavi_show_start": (4e6, 4, 60, 0.1, 5, False, "constant"),
    "t_ln_p1": (1.5e6, 4, 700, 0.1, 12, True, "constant"),
    "t_ln_p1_a50": (1e7, 4, 700, 0.1, 12, True, "constant"),
    "t_ln_p1_ldp7p5": (1.5e6, 4, 700, 0.1, 12, True, "constant"),
    "planning_3x3": (5e7, 1, 700, 0.0, 12, True, "constant"),
    "planning_3x3_justgoal": (1e7, 1, 700, 0.0, 12, True, "constant"),
    "mc_ls": (6e7, 2, 800, 0.1, 5, False, "linear"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiments_of_the_papers_have_the_published_settings(
    name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved(capsys, monkeypatch, "--config", name)
    env, model = PUBLISHED[name]
    frames, episodes, steps, entropy, latent, full, schedule = COLUMNS[env]
    data = {"frames": frames, "episodes_per_task": episodes, "num_envs": 16, "steps_per_rollout": steps}
    column = {
        "encoder": {"latent_dim": latent, "full_transitions": full},
        "ppo": {"entropy_coeff": entropy, "lr_schedule": schedule},
    }
    assert contains(config, {"data": data, "model": merged(COMMON, column)})
    # Latents are normalised, but not where RL gradients train the encoder.
    assert config["model"]["policy"]["normalize_latent"] == (model == "vi_hn")
    assert config["model"]["inference"]["encoder_loss"] == ("inference" if model == "vi_hn" else "rl")
