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
from hyperrl.envs import description, env_ids, make_env
from hyperrl.modules.meta_ppo import MetaPPO

pytestmark = tiny.QUIET
CONFIGS = configuration.shipped_configs()
# Few environments and steps, and two updates; the models keep their full size.
SMALL = (
    "--seed_everything=1", "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.num_envs=4",
    "--data.steps_per_rollout=6", "--data.frames=48", "--data.rollouts_per_epoch=2", "--data.val_tasks=2",
    "--data.test_tasks=2",
)  # fmt: skip
# Files that say nothing about the model are trained with a small one.
SMALL_MODEL = ("--model.encoder.hidden_dim=16", "--model.policy.layers=[16]", "--model.policy.state_embedding_dim=16")
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
    small = () if "model" in settings else SMALL_MODEL
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


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_has_a_comment_above_it(name: str) -> None:
    lines = CONFIGS[name].read_text().splitlines()
    assert lines[0].startswith("# ")
    values = [index for index, line in enumerate(lines) if re.match(r"\s*[\w.]+:\s*\S", line)]
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


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("experiment/")])
def test_experiments_are_complete(name: str) -> None:
    """Whatever an environment or a model file sets, an experiment sets, too."""
    config = yaml.safe_load(CONFIGS[name].read_text())
    env = yaml.safe_load(CONFIGS["env/gridnavi"].read_text())
    model = yaml.safe_load(CONFIGS["model/rnn_hn"].read_text())
    assert set(env["data"]) <= set(config["data"])
    assert configuration.model_name(config) == "rnn_hn"
    assert contains(config, model)
    assert {"seed_everything", "trainer", "data", "model"} <= set(config)
    assert "ppo" in config["model"]


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
