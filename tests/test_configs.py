"""Every shipped configuration is parsed, commented and trained; named models are the published ones."""

from __future__ import annotations

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

pytestmark = tiny.QUIET
CONFIGS = configuration.shipped_configs()
ALIASES = configuration.config_root() / "aliases.yaml"
# Few environments and steps, and two updates, at once; the models keep their full size.
SMALL = (
    "--seed_everything=1", "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.num_envs=4",
    "--data.steps_per_rollout=6", "--data.frames=48", "--data.rollouts_per_epoch=2", "--data.val_tasks=2",
    "--data.test_tasks=2", "--model.inference.precollect_frames=0",
)  # fmt: skip
# Files that say nothing about the model are trained with a small one.
SMALL_MODEL = ("--model.encoder.hidden_dim=16", "--model.policy.layers=[16]", "--model.policy.state_embedding_dim=16")
# What the grid decides of task inference.
DECODERS = {
    "reward": "bernoulli", "reward_per_state": True, "reward_uses_action": False, "reward_uses_prev_state": False,
    "reward_layers": [32, 32], "task_layers": [32, 32], "buffer_capacity": 100_000, "batch_trajectories": 25,
    "updates": 3,
}  # fmt: skip
# Nothing but the RL loss.
ALONE = {"encoder_loss": "rl", "precollect_frames": 0, "task": "none"}
# Experiments and their models.
EXPERIMENTS = {
    "experiment/gridnavi_rnn_hn": "rnn_hn",
    "experiment/quickstart": "rnn_hn",
    "experiment/ladder_1_one_task": "no_memory",
    "experiment/ladder_2_many_tasks": "no_memory",
    "experiment/ladder_3_task_oracle": "task_oracle",
    "experiment/ladder_4_belief_oracle": "belief_oracle",
    "experiment/ladder_5_memory": "rnn_hn",
}
PARAMETERS = {
    "model/rnn": 311_731,
    "model/rnn_s": 443_827,
    "model/rnn_hn": 5_384_777,
    "experiment/quickstart": 5_384_777,
    "experiment/gridnavi_rnn_hn": 5_384_777,
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
    settings = yaml.safe_load(CONFIGS[name].read_text())
    small = () if "policy" in settings.get("model", {}) else SMALL_MODEL
    result = cli.run(["fit", "--config", name, *SMALL, *small])
    assert result.model.frames == 48
    assert len([metrics for metrics in updates if "loss/total" in metrics]) == 2
    assert "test/return" in result.trainer.callback_metrics
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in result.model.parameters()) == PARAMETERS[name]


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


@pytest.mark.parametrize("name", CONFIGS)
def test_is_parsed_as_it_is_written(name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contains(resolved(capsys, monkeypatch, "--config", name), yaml.safe_load(CONFIGS[name].read_text()))


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
    configured = {yaml.safe_load(path.read_text())["data"]["env"] for name, path in CONFIGS.items() if "env/" in name}
    # One id is the same environment under another name (quirk G7).
    assert set(env_ids()) - configured == {"Grid-20-newr-rands-v0"}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("env/")])
def test_configuration_of_an_environment_is_named_and_described_by_it(name: str) -> None:
    data = yaml.safe_load(CONFIGS[name].read_text())["data"]
    assert configuration.description(CONFIGS[name]).startswith(f"{data['env']}: ")
    assert description(data["env"])
    # Four episodes per task, as published: tasks are cut by rollouts wherever episodes are longer than 15 steps.
    assert make_env(data["env"], 1).episodes_per_task == data["episodes_per_task"] == 4


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("env/")])
def test_the_grids_have_the_published_decoders(name: str) -> None:
    """Spec/training.md section 14.3, column grid; the rest is the default, or what a model decides."""
    assert yaml.safe_load(CONFIGS[name].read_text())["model"] == {"inference": DECODERS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_complete(name: str) -> None:
    """Whatever an environment or the model's file sets, an experiment sets, too."""
    config = yaml.safe_load(CONFIGS[name].read_text())
    env = yaml.safe_load(CONFIGS["env/gridnavi"].read_text())
    model = EXPERIMENTS[name]
    assert set(env["data"]) <= set(config["data"])
    assert configuration.model_name(config) == model
    assert contains(config, yaml.safe_load(CONFIGS[f"model/{model}"].read_text()))
    assert {"seed_everything", "trainer", "data", "model"} <= set(config)
    assert "ppo" in config["model"]
    if model == "rnn_hn":
        own = {} if config["data"]["num_envs"] == 16 else {"updates": 12}  # rollouts are four times the published ones
        assert config["model"]["inference"] == {**ALONE, **DECODERS, **own}


def test_every_experiment_is_known() -> None:
    assert set(EXPERIMENTS) == {name for name in CONFIGS if name.startswith("experiment/")}


def test_rungs_of_the_ladder_differ_in_model_and_task_alone() -> None:
    rungs = [yaml.safe_load(CONFIGS[name].read_text()) for name in EXPERIMENTS if "ladder" in name]
    quick = yaml.safe_load(CONFIGS["experiment/quickstart"].read_text())
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


def test_the_published_experiment_has_the_published_settings(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec/results.md section 4, column Grid."""
    config = resolved(capsys, monkeypatch, "--config", "experiment/gridnavi_rnn_hn")
    data = {"frames": 4_000_000, "num_envs": 16, "steps_per_rollout": 60, "episodes_per_task": 4}
    ppo = {
        "epochs": 2, "num_minibatches": 4, "clip": 0.05, "gamma": 0.95, "gae_lambda": 0.95, "entropy_coeff": 0.1,
        "value_coeff": 0.5, "max_grad_norm": 0.5, "eps": 1e-5, "huber": True, "clip_value": True,
        "normalize_rewards": True,
    }  # fmt: skip
    assert contains(config, {"data": data, "model": {"ppo": ppo}})
