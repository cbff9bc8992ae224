"""Every shipped configuration is parsed, commented and trained; named models are the published ones."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import yaml
from test_named_models import CommandLine

from hyperrl import cli, configuration
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.envs import description, env_ids, make_env
from hyperrl.envs.metaworld import MetaWorld
from hyperrl.envs.mujoco.base import MujocoMetaEnv
from hyperrl.errors import ConfigError
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.ppo import PPOConfig

pytestmark = tiny.QUIET
CONFIGS = {name: path for name, path in configuration.shipped_configs().items() if not name.startswith("sweep/")}
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
WIDTHS = {"latent_embedding_dim": 25, "task_embedding_dim": 25}
GRID = {"encoder": ENCODER, "policy": WIDTHS, "inference": DECODERS}
MAZE = {"encoder": {**ENCODER, "action_embedding_dim": 8}, "policy": WIDTHS, "inference": REGRESSION}
POINT = {
    "encoder": {**ENCODER, "action_embedding_dim": 16, "reward_embedding_dim": 16},
    "policy": {**WIDTHS, "bound_actions": True},
}  # fmt: skip
SPARSE_POINT = {**POINT, "inference": SPARSE_DECODERS, "ppo": {**POINT_PPO, "epochs": 1}}
ROBOT_DECODERS = {
    **POINT_DECODERS, "state": "none", "state_layers": [64, 32], "batch_trajectories": 10, "updates": 1,
    "subsample_elbos": 50, "subsample_decodes": 50,
}  # fmt: skip
ROBOT_PPO = {
    "eps": 1e-8, "gamma": 0.97, "gae_lambda": 0.9, "clip": 0.1, "entropy_coeff": 0.01, "epochs": 2,
    "num_minibatches": 4,
}  # fmt: skip


def robot(
    *, latent: int = 5, embedding: int = 16, width: int = 25, inference: dict[str, Any] | None = None, **ppo: Any
) -> dict[str, Any]:
    """Settings of a robot's family: what differs from most of them."""
    return {
        "encoder": {
            "action_embedding_dim": embedding, "reward_embedding_dim": embedding, "latent_dim": latent,
            "full_transitions": False,
        },
        "policy": {"latent_embedding_dim": width, "task_embedding_dim": width, "bound_actions": False},
        "inference": {**ROBOT_DECODERS, **(inference or {})},
        "ppo": {**ROBOT_PPO, **ppo},
    }  # fmt: skip


SPARSE_CHEETAH = {"subsample_elbos": None, "subsample_decodes": None, "average_elbos": True}
# Bodies differ: they show in the next state, not in the reward.
BODIES = robot(
    latent=10, embedding=32, clip=0.05, num_minibatches=2,
    inference={"reward": "none", "reward_layers": [256, 64], "state": "deterministic", "state_layers": [256, 128]},
)  # fmt: skip
ARM_STATES = {"state_layers": [128, 64, 32]}
ARM_PPO = {"entropy_coeff": 0.001, "num_minibatches": 8, "reward_clip": 100_000}
ARM = robot(inference=ARM_STATES, **ARM_PPO)
LARGE_DECODERS = {**ARM_STATES, "reward_layers": [128, 64, 32], "updates": 3}
ARMS = robot(inference={**LARGE_DECODERS, "state": "deterministic"}, **ARM_PPO)
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
    "semicircle": (1, 60, {**POINT, "inference": POINT_DECODERS, "ppo": {**POINT_PPO, "epochs": 2}}),
    "half_cheetah_dir": (1, 800, robot(epochs=16)),
    "half_cheetah_vel": (1, 400, robot()),
    "half_cheetah_dir_sparse": (1, 200, robot(inference=SPARSE_CHEETAH, entropy_coeff=1e-4)),
    "hop": (1, 800, robot(epochs=16)),
    "ant_dir": (1, 200, robot(width=10, num_minibatches=1)),
    "ant_goal": (2, 200, robot(latent=10, clip=0.05, num_minibatches=1, lr=0.001, lr_schedule="linear")),
    "ant_goal_sparse": (2, 200, robot(latent=10, clip=0.05, num_minibatches=1)),
    "walker": (2, 200, BODIES),
    "hopper": (2, 200, BODIES),
    "ml1_reach": (2, 600, ARM),
    "ml1_push": (2, 600, ARM),
    "ml1_pick_place": (2, 600, robot(width=10, inference=LARGE_DECODERS, **ARM_PPO)),
    "ml10": (2, 600, ARMS),
    "ml45": (2, 600, ARMS),
}
FIRST_VERSION = {"reward_version": "v1", "episode_length": 150}
# What else environments decide of the data.
MORE_DATA: dict[str, dict[str, Any]] = {
    "env/ml1_reach": {"num_envs": 8, "env_options": FIRST_VERSION},
    "env/ml1_push": {"num_envs": 8, "env_options": FIRST_VERSION},
    "env/ml1_pick_place": {"num_envs": 8},
    "env/ml10": {"num_envs": 8},
    "env/ml45": {"num_envs": 8},
}
# Ids that have another one's configuration: the same environment under another name (quirk G7), and those whose level
# or class of tasks is free.
WITHOUT = {"Grid-20-newr-rands-v0", "AntGoalSparse-v0", "ML1-v0"}
# Files with shorter names than their environments.
SHORT = {
    "planning": "planning4x4",
    "halfcheetahdirsparseten": "halfcheetahdirsparse",
    "antgoalsparsefour": "antgoalsparse",
    "walker2drandparams": "walker",
    "hopperrandparams": "hopper",
}
# Nothing but the RL loss.
ALONE = {"encoder_loss": "rl", "precollect_frames": 0, "task": "none"}
# Experiments of ours: environment, model, and how many updates of the encoder.
EXPERIMENTS = {
    # Rollouts are four times the published ones.
    "experiment/quickstart": ("gridnavi", "rnn_hn", 12),
    "experiment/ladder_1_one_task": ("gridnavi", "no_memory", None),
    "experiment/ladder_2_many_tasks": ("gridnavi", "no_memory", None),
    "experiment/ladder_3_task_oracle": ("gridnavi", "task_oracle", None),
    "experiment/ladder_4_belief_oracle": ("gridnavi", "belief_oracle", None),
    "experiment/ladder_5_memory": ("gridnavi", "rnn_hn", 12),
    "experiment/ml1_reach_rnn_hn": ("ml1_reach", "rnn_hn", 1),
    "experiment/gridnavi_fast": ("gridnavi", "rnn_hn", 24),
    # Like the papers' experiments with this model, it has full transitions and wide latents.
    "experiment/t_ln_p1_fast": ("t_ln_p1", "splagger", None),
    "experiment/mc_ls_fast": ("mc_ls", "splagger", None),
}
# All that the networks of fast presets do not have of their models.
SIZES = {
    "encoder": {"hidden_dim": 256},
    "policy": {"state_embedding_dim": 256, "latent_embedding_dim": 25, "layers": [256, 128]},
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
# What sets decide of the model.
ON_MAZES = {"encoder": {"latent_dim": 12, "full_transitions": True}, "inference": SUBSAMPLED}
ON_PLANNING = {**ON_MAZES, "ppo": {"entropy_coeff": 0.0}}
LITTLE_KL = {"inference": {"kl_coeff": 0.1}}
ON_CHEETAH_DIR = {**LITTLE_KL, "ppo": {"epochs": 2, "num_minibatches": 4}}


class ExperimentSet(NamedTuple):
    """Experiments of a paper that differ in their model alone.

    Attributes:
        env: configuration of their environment.
        models: configurations of their models.
        frames: environment steps.
        decided: what the set decides of the model.
        data: what it decides of the data, and validations that suit the environment's speed.
    """

    env: str
    models: tuple[str, ...]
    frames: int
    decided: dict[str, Any] = {}  # noqa: RUF012 - never changed
    data: dict[str, Any] = {}  # noqa: RUF012 - never changed


def validated(every: int, val_tasks: int, test_tasks: int, **more: Any) -> dict[str, Any]:
    """So many rollouts between validations, and tasks of validations and of the test."""
    return {"rollouts_per_epoch": every, "val_tasks": val_tasks, "test_tasks": test_tasks, **more}


MODELS_2023, MODELS_2024 = ("vi_hn", "rnn_hn"), ("rnn_hn", "splagger")
ON_ARMS = {"num_envs": 8, "eval_episodes_per_task": 10}
CHEETAHS, ON_LEGS = validated(25, 64, 512), validated(25, 32, 512)
SETS = (
    ExperimentSet("gridnavi", MODELS_2023, 4_000_000),
    ExperimentSet("gridnavi_dense", MODELS_2023, 4_000_000),
    ExperimentSet("gridnavi_show_start", MODELS_2023, 4_000_000),
    ExperimentSet("mc_ls", MODELS_2023, 60_000_000, {"ppo": {"lr_schedule": "linear"}}),
    ExperimentSet("planning_3x3", MODELS_2024, 50_000_000, ON_PLANNING),
    ExperimentSet("planning_3x3_justgoal", MODELS_2024, 10_000_000, ON_PLANNING),
    ExperimentSet("t_ln_p1", MODELS_2024, 1_500_000, ON_MAZES),
    ExperimentSet("t_ln_p1_a50", MODELS_2024, 10_000_000, ON_MAZES),
    ExperimentSet("t_ln_p1_ldp7p5", MODELS_2024, 1_500_000, ON_MAZES),
    ExperimentSet(
        "half_cheetah_dir",
        ("vi_hn", "rnn_hn", "rnn", "splagger"),
        75_000_000,
        ON_CHEETAH_DIR,
        {**CHEETAHS, "steps_per_rollout": 400},
    ),
    ExperimentSet("half_cheetah_vel", MODELS_2023, 75_000_000, LITTLE_KL, CHEETAHS),
    ExperimentSet("ant_dir", MODELS_2023, 75_000_000, LITTLE_KL, ON_LEGS),
    ExperimentSet("walker", MODELS_2023, 75_000_000, {}, ON_LEGS),
    # RNN+HN of this set is the one above, which goes on.
    ExperimentSet("walker", ("rnn_s", "rnn", "rnn_hn_kaiming"), 30_000_000, {}, ON_LEGS),
    ExperimentSet(
        "ml10",
        MODELS_2023,
        100_000_000,
        {},
        validated(50, 20, 100, **ON_ARMS, env_options={"terminate_on_success": True}),
    ),
    ExperimentSet(
        "ml1_pick_place",
        ("film_normc", "film_bias_hyperinit", "vi_hn_no_init", "vi_hn", "vi"),
        50_000_000,
        {},
        validated(50, 16, 50, **ON_ARMS),
    ),
)
PUBLISHED = {f"experiment/{one.env}_{model}": (one, model) for one in SETS for model in one.models}
# Models whose encoder the ELBO trains.
DECODING = {"vi_hn", "vi", "vi_hn_no_init", "film_normc", "film_bias_hyperinit"}
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
    "experiment/half_cheetah_dir_rnn_hn": 5_411_593,
    "experiment/half_cheetah_dir_rnn": 330_970,
    "experiment/half_cheetah_dir_splagger": 5_411_593,
    "experiment/half_cheetah_vel_rnn_hn": 5_411_593,
    "experiment/ant_dir_rnn_hn": 2_442_131,
    "experiment/walker_rnn_hn": 5_438_557,
    "experiment/walker_rnn": 358_446,
    "experiment/walker_rnn_s": 494_382,
    "experiment/walker_rnn_hn_kaiming": 5_438_557,
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
    result = cli.run(["fit", "--config", name, *SMALL, *small, *shortened(settings)])
    assert result.model.frames == 48
    assert len([metrics for metrics in updates if "loss/total" in metrics]) == 2
    assert "test/return" in result.trainer.callback_metrics
    if name in PUBLISHED and PUBLISHED[name][0].env in LOSSES:  # tasks that are over before the second update
        decodes = any("inference/total" in metrics for metrics in updates)
        assert decodes == (PUBLISHED[name][1] in DECODING)
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in result.model.parameters()) == PARAMETERS[name]


def shortened(settings: dict[str, Any]) -> list[str]:
    """Arguments that make tasks short: several episodes take longest to be evaluated, and robots have physics."""
    data = settings.get("data", {})
    args = [] if data.get("episodes_per_task") == 1 else ["--data.eval_episodes_per_task=2"]
    kind = type(make_env(data.get("env", "GridNavi-v0"), 1))
    if issubclass(kind, MujocoMetaEnv):
        args += ["--data.env_options.episode_length=5", "--data.env_options.num_threads=1"]
    if issubclass(kind, MetaWorld):
        args += ["--data.env_options.episode_length=2", "--data.env_options.num_workers=0"]
    if settings.get("model", {}).get("ppo", {}).get("num_minibatches") == 8:
        args += ["--data.num_envs=8", "--data.steps_per_rollout=3"]
    return args


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
    assert set(env_ids()) - configured == WITHOUT


@pytest.mark.parametrize("name", ENVS)
def test_configuration_of_an_environment_is_named_and_described_by_it(name: str) -> None:
    env = load(name)["data"]["env"]
    assert configuration.description(CONFIGS[name]).startswith(f"{env}: ")
    assert description(env)
    short = re.sub("Env|Game|[-_]", "", env.removesuffix("-v0")).lower()
    assert name.removeprefix("env/").replace("_", "") == SHORT.get(short, short)


@pytest.mark.parametrize("name", ENVS)
def test_environments_have_the_published_settings(name: str) -> None:
    """The whole file; the rest is the default, or what a model decides. Tasks may end inside of rollouts."""
    beginning = max((family for family in FAMILIES if name.startswith(f"env/{family}")), key=len)
    episodes, steps, model = FAMILIES[beginning]
    config = load(name)
    env = config["data"].pop("env")
    expected = {"episodes_per_task": episodes, "steps_per_rollout": steps, **MORE_DATA.get(name, {})}
    assert config["data"] == expected
    assert set(config) == {"data", "model"}
    assert set(config["model"]) == set(model)
    assert all(contains(values, config["model"][part]) for part, values in model.items())
    assert all(set(config["model"][part]) == set(values) for part, values in model.items())
    assert make_env(env, 1).episodes_per_task == episodes


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_our_experiments_are_complete(name: str) -> None:
    """Whatever an environment or the model's file sets, an experiment sets, too."""
    place, model, updates = EXPERIMENTS[name]
    config, env = load(name), load(f"env/{place}")
    if name.endswith("_fast"):
        config = merged(config, {"model": SIZES})
    assert set(env["data"]) <= set(config["data"])
    assert config["data"]["env"] == env["data"]["env"]
    assert configuration.model_name(config) == model
    assert contains(config, load(f"model/{model}"))
    assert {"seed_everything", "trainer", "data", "model"} <= set(config)
    assert "ppo" in config["model"]
    if updates:
        decided = env["model"]
        assert config["model"]["inference"] == {**ALONE, **decided["inference"], "updates": updates}
        for part in ("encoder", "policy"):
            assert contains(config["model"][part], decided[part])
        assert set(decided.get("ppo", {})) <= set(config["model"]["ppo"])


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
    (env, _, frames, decided, data), model = PUBLISHED[name]
    config, parts = load(name), [load(f"env/{env}"), load(f"model/{model}")]
    if "rollouts_per_epoch" not in data:
        rollout = 16 * parts[0]["data"]["steps_per_rollout"]
        assert 80_000 <= config["data"].pop("rollouts_per_epoch") * rollout <= 120_000
    ppo = config["model"].pop("ppo")
    expected = merged(parts[0], parts[1], {"data": {**DATA, "frames": frames, **data}, "model": decided})
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
        "bound_actions": False,
    },
    "inference": {"lr": 0.001, "bptt_steps": None},
    "ppo": {
        "optimizer": "adam", "huber": True, "clip_value": True, "value_coeff": 0.5, "max_grad_norm": 0.5,
        "normalize_rewards": True, "lr": 7e-4, "epochs": 2,
    },
}  # fmt: skip
IN_GRIDS = {"num_minibatches": 4, "clip": 0.05, "gamma": 0.95, "gae_lambda": 0.95, "eps": 1e-5, "entropy_coeff": 0.1}
ROBOTS = {"gamma": 0.97, "gae_lambda": 0.9, "eps": 1e-8, "entropy_coeff": 0.01, "lr_schedule": "constant"}
CHEETAH = {**ROBOTS, "num_minibatches": 4, "clip": 0.1}
ARM_COLUMN = {**ROBOTS, "num_minibatches": 8, "clip": 0.1, "entropy_coeff": 0.001, "reward_clip": 100_000}
# Episodes per task, environments, steps, latent, full transitions, and what differs in PPO.
COLUMNS: dict[str, tuple[int, int, int, int, bool, dict[str, Any]]] = {
    "gridnavi": (4, 16, 60, 5, False, IN_GRIDS),
    "gridnavi_dense": (4, 16, 60, 5, False, IN_GRIDS),
    "gridnavi_show_start": (4, 16, 60, 5, False, IN_GRIDS),
    "t_ln_p1": (4, 16, 700, 12, True, IN_GRIDS),
    "t_ln_p1_a50": (4, 16, 700, 12, True, IN_GRIDS),
    "t_ln_p1_ldp7p5": (4, 16, 700, 12, True, IN_GRIDS),
    "planning_3x3": (1, 16, 700, 12, True, {**IN_GRIDS, "entropy_coeff": 0.0}),
    "planning_3x3_justgoal": (1, 16, 700, 12, True, {**IN_GRIDS, "entropy_coeff": 0.0}),
    "mc_ls": (2, 16, 800, 5, False, {**IN_GRIDS, "lr_schedule": "linear"}),
    "half_cheetah_dir": (1, 16, 400, 5, False, CHEETAH),
    "half_cheetah_vel": (1, 16, 400, 5, False, CHEETAH),
    "ant_dir": (1, 16, 200, 5, False, {**ROBOTS, "num_minibatches": 1, "clip": 0.1}),
    "walker": (2, 16, 200, 10, False, {**ROBOTS, "num_minibatches": 2, "clip": 0.05}),
    "ml1_pick_place": (2, 8, 600, 5, False, ARM_COLUMN),
    "ml10": (2, 8, 600, 5, False, ARM_COLUMN),
}
FRAMES = {
    "gridnavi": 4e6, "gridnavi_dense": 4e6, "gridnavi_show_start": 4e6, "t_ln_p1": 1.5e6, "t_ln_p1_a50": 1e7,
    "t_ln_p1_ldp7p5": 1.5e6, "planning_3x3": 5e7, "planning_3x3_justgoal": 1e7, "mc_ls": 6e7, "half_cheetah_dir": 7.5e7,
    "half_cheetah_vel": 7.5e7, "ant_dir": 7.5e7, "walker": 7.5e7, "ml1_pick_place": 5e7, "ml10": 1e8,
    # The set that logs gradients.
    "walker_rnn": 3e7, "walker_rnn_s": 3e7, "walker_rnn_hn_kaiming": 3e7,
}  # fmt: skip
# What is not there for models of RL alone counts for those that decode: KL and decoders.
LOSSES = {
    "half_cheetah_dir": {"reward": "deterministic", "state": "none", "kl_coeff": 0.1, "updates": 1},
    "half_cheetah_vel": {"reward": "deterministic", "state": "none", "kl_coeff": 0.1, "updates": 1},
    "ant_dir": {"reward": "deterministic", "state": "none", "kl_coeff": 0.1, "updates": 1},
    "walker": {"reward": "none", "state": "deterministic", "kl_coeff": 1.0, "updates": 1},
    "ml1_pick_place": {"reward": "deterministic", "state": "none", "kl_coeff": 1.0, "updates": 3},
    "ml10": {"reward": "deterministic", "state": "deterministic", "kl_coeff": 1.0, "updates": 3},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiments_of_the_papers_have_the_published_settings(name: str, parser: Any) -> None:
    config = parser.parse_args(["fit", "--config", str(CONFIGS[name])])["fit"].as_dict()
    (env, *_), model = PUBLISHED[name]
    episodes, num_envs, steps, latent, full, ppo = COLUMNS[env]
    frames = FRAMES.get(f"{env}_{model}", FRAMES[env])
    data = {"frames": frames, "episodes_per_task": episodes, "num_envs": num_envs, "steps_per_rollout": steps}
    width = 10 if env in ("ant_dir", "ml1_pick_place") else 25
    column = {
        "encoder": {"latent_dim": latent, "full_transitions": full},
        "policy": {"latent_embedding_dim": width, **({"state_embedding_dim": None} if model == "rnn" else {})},
        "inference": LOSSES.get(env, {}),
        "ppo": {"lr_schedule": "constant", **ppo},
    }
    assert contains(config, {"data": data, "model": merged(COMMON, column)})
    # Latents are normalised, but not where RL gradients train the encoder.
    assert config["model"]["policy"]["normalize_latent"] == (model in DECODING)
    assert config["model"]["inference"]["encoder_loss"] == ("inference" if model in DECODING else "rl")


# Spec/results.md section 4: parameters of encoder and policy, by model and by environment.
COUNTED = ("rnn", "rnn_s", "film_normc", "rnn_hn", "cnp_hn", "transformer")
COUNTS: dict[str, tuple[int, ...]] = {
    "env/gridnavi": (311_731, 443_827, 470_506, 5_384_777, 5_166_410, 5_163_769),
    "experiment/t_ln_p1_rnn_hn": (346_350, 478_958, 505_585, 5_416_683, 5_177_836, 5_165_595),
    "experiment/planning_3x3_rnn_hn": (346_895, 482_831, 509_510, 5_423_781, 5_184_934, 5_172_693),
    "env/half_cheetah_dir": (330_970, 467_418, 494_149, 5_411_593, 5_180_938, 5_172_537),
    "env/ant_dir": (323_641, 461_881, 473_086, 2_442_131, 2_211_476, 2_203_075),
    "env/walker": (358_446, 494_382, 521_113, 5_438_557, 5_191_518, 5_175_437),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Builds everything from some configurations, by a parser that is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("built"))
        patch.setattr(cli.HyperRLCLI, "_run_subcommand", lambda self, subcommand: None)
        yield CommandLine(cli.run(["fit", *SMALL, *SMALL_MODEL])).build


@pytest.mark.parametrize("model", [*COUNTED, "vi_hn"])
@pytest.mark.parametrize("place", COUNTS)
def test_encoder_and_policy_have_the_published_numbers_of_parameters(place: str, model: str, build: Any) -> None:
    built = build(f"--config={place}", f"--config=model/{model}")
    agent, sizes = built.model.agent, built.datamodule.env_info
    published = dict(zip(COUNTED, COUNTS[place], strict=True))
    published["vi_hn"] = published["rnn_hn"]
    # What would never be used is not there: a bias of FiLM's actor head (quirk Q21 of the models), and a temperature.
    outputs = sizes.num_actions or sizes.action_dim
    removed = {"film_normc": outputs, "cnp_hn": 1}.get(model, 0)
    found = sum(parameter.numel() for part in (agent.encoder, agent.policy) for parameter in part.parameters())
    assert found == published[model] - removed
