"""The command line: wrong input ends in one line and creates nothing; configurations compose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

import hyperrl
from hyperrl import cli, configuration
from hyperrl.envs import env_ids

pytestmark = tiny.QUIET
SMALL = (
    "--seed_everything=1", "--trainer.accelerator=cpu", "--data.num_envs=4", "--data.steps_per_rollout=10",
    "--data.frames=40", "--data.val_tasks=4", "--data.test_tasks=4", *tiny.MODEL_ARGS,
)  # fmt: skip

FILES = {
    "typo.yaml": "model:\n  ppo:\n    learning_rate: 0.1\n",
    "type.yaml": "data:\n  num_envs: many\n",
    "broken.yaml": "model: [\n",
    "list.yaml": "- 1\n- 2\n",
    "group.yaml": "model:\n  ppo: 3\n",
    "data.yaml": "data: [1, 2]\n",
    "resume.yaml": "ckpt_path: last.ckpt\n",
}
# Arguments of `fit` and what the one line must hold.
UNKNOWN_KEYS = [
    (["--model.ppo.lrr=1"], ["model.ppo.lrr", "did you mean model.ppo.lr?"]),
    (["--modle.ppo.lr=1"], ["modle.ppo.lr", "did you mean model.ppo.lr?"]),
    (["--data.num_env", "8"], ["data.num_env", "did you mean data.num_envs?"]),
    (["--config", "typo.yaml"], ["model.ppo.learning_rate", "did you mean"]),
    (["--trainer.logger.init_args.experiment=a"], ["experiment"]),
    (["stray"], ["stray"]),
    (["--ckpt_pat=last.ckpt"], ["ckpt_pat", "did you mean ckpt_path?"]),  # no abbreviations
    (["--model.num_envs=3"], ["model.num_envs", "data.num_envs"]),
]
WRONG_TYPES = [
    (["--model.ppo.lr=fast"], ["model.ppo.lr", "float", "fast"]),
    (["--data.num_envs=3.5"], ["data.num_envs", "int", "3.5"]),
    (["--model.policy.layers=8"], ["model.policy.layers", "list", "8"]),
    (["--model.policy.activation=gelu"], ["model.policy.activation", "tanh", "relu", "gelu"]),
    (["--model.ppo.huber=perhaps"], ["model.ppo.huber", "bool", "perhaps"]),
    (["--trainer.precision=17"], ["trainer.precision", "17", "bf16-mixed"]),
    (["--trainer.max_epochs=x"], ["trainer.max_epochs", "x", "int"]),
    (["--seed_everything=x"], ["seed_everything", "x", "int"]),
    (["--config", "type.yaml"], ["data.num_envs", "int", "many"]),
    (["--model.encoder.sequence=Gru"], ["model.encoder.sequence is Gru", "class path", "LSTM", "did you mean GRU?"]),
    (["--model.encoder.aggregator=Mox"], ["model.encoder.aggregator is Mox", "Mean, MeanMax", "did you mean Max?"]),
    (["--model.encoder.aggregator=no.such.Thing"], ["model.encoder.aggregator is no.such.Thing", "class path"]),
    (
        ["--model.encoder.aggregator=Max", "--model.encoder.aggregator.straight=true"],
        ["model.encoder.aggregator.straight", "not accepted"],
    ),
    (
        ["--model.encoder.aggregator=Max", "--model.encoder.aggregator.low_initial=perhaps"],
        ["model.encoder.aggregator.low_initial", "bool", "perhaps"],
    ),
]
OUT_OF_RANGE = [
    (["--data.num_envs=6"], ["data.num_envs (6)", "model.ppo.num_minibatches (4)"]),
    (["--data.num_envs=0"], ["data.num_envs is 0", "at least 1"]),
    (["--data.frames=-5"], ["data.frames is -5", "at least 1"]),
    (["--data.held_out=2"], ["data.held_out is 2", "0 to 1"]),
    (["--data.episodes_per_task=0"], ["`episodes_per_task` is 0", "at least 1"]),
    (["--data.env_options.num_cells=-1"], ["`num_cells` is -1", "at least 1"]),
    (["--data.env_options={device: cuda}"], ["data.env_options.device", "left to the run"]),
    (["--model.ppo.gamma=1.5"], ["model.ppo.gamma is 1.5", "between 0 and 1"]),
    (["--model.ppo.lr=0"], ["model.ppo.lr is 0", "positive"]),
    (["--model.policy.layers=[]"], ["model.policy.layers is []", "at least one"]),
    (["--model.policy.state_embedding_dim=-3"], ["model.policy.state_embedding_dim is -3", "at least 1"]),
    (["--model.policy.use_state=false"], ["model.policy.conditioning", "model.policy.use_state"]),
    (["--model.encoder.hidden_dim=0"], ["model.encoder.hidden_dim is 0", "at least 1"]),
    (["--trainer.accelerator=quantum"], ["trainer", "quantum", "cpu"]),
    (["--trainer.devices=-7"], ["trainer", "devices"]),
    (["--seed_everything=-3"], ["seed_everything", "-3"]),
    (["--checkpoint.mode=maximum"], ["maximum", "min, max"]),
    (["--checkpoint.monitor=val/retrun"], ["checkpoint.monitor is val/retrun", "val/return"]),
    (["--trainer.precision=bf16-true"], ["trainer.precision is bf16-true", "32-true or bf16-mixed"]),
    (["--trainer.check_val_every_n_epoch=2"], ["trainer.check_val_every_n_epoch is 2", "data.rollouts_per_epoch"]),
    (["--trainer.limit_val_batches=0"], ["trainer.limit_val_batches is 0", "expected None"]),
    (["--model.ppo.entropy_coeff=.nan"], ["model.ppo.entropy_coeff is nan", "0 or more"]),
    (["--config", "group.yaml"], ["model.ppo is 3", "keys and values"]),
    (["--config", "data.yaml"], ["data", "keys and values"]),
    (["--model.encoder.sequence=Memoryless"], ["model.encoder.sequence", "model.encoder.aggregator"]),
    (["--model.policy.conditioning=per_task"], ["model.policy.conditioning", "model.policy.use_task"]),
    (["--model.policy.use_belief=true", "--data.env=tiny:Toy-v0"], ["belief"]),
    (["--model.encoder.sequence=SequenceModel"], ["model.encoder.sequence is SequenceModel", "GRU, LSTM"]),
    (["--model.policy.bound_actions=true"], ["model.policy.bound_actions", "discrete"]),
    (["--config", "resume.yaml"], ["ckpt_path is last.ckpt", "expected it as --ckpt_path"]),
    (
        ["--trainer.strategy=ddp", "--model.policy.task_replaces=latent"],
        ["trainer.strategy is ddp", "model.policy.task_replaces is latent", "ddp_find_unused_parameters_true"],
    ),
]
MISSING = [
    (["--config", "experiment/gridnavi_rnn_h"], ["_rnn_h:", "did you mean experiment/gridnavi_rnn_hn?"]),
    (["--config=none.yaml"], ["--config none.yaml", "no such file"]),
    (["--config"], ["--config", "expected one argument"]),
    (["--config", "broken.yaml"], ["config"]),
    (["--config", "list.yaml"], ["config"]),
    (["--ckpt_path=none.ckpt"], ["--ckpt_path none.ckpt", "no such file"]),
    (["--ckpt_path", "broken.yaml"], ["--ckpt_path broken.yaml", "not a readable checkpoint"]),
    (["--data.env=GridNav-v0"], ["data.env", "GridNav-v0", "'GridNavi-v0'"]),
    (["--data.env=nowhere:Grid-v0"], ["data.env", "'nowhere'"]),
    (["--data.env_options.num_cell=6"], ["data.env", "num_cell", "'num_cells'"]),
]  # fmt: skip
COMMANDS = [
    ([], ["fit", "validate", "test"]),
    (["train"], ["train", "fit"]),
    (["list"], ["envs", "models", "experiments"]),
    (["list", "env"], ["list env", "envs"]),
    (["list", "envs", "models"], ["list envs models"]),
    (["validate"], ["validate has no --ckpt_path"]),
    (["validate", "--ckpt_path=none.ckpt"], ["none.ckpt", "no such file"]),
    (["test", "--ckpt_path=none.ckpt"], ["none.ckpt", "no such file"]),
]

Call = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Calls the console script's function in an empty directory; returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*args: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["hyperrl", *args])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return run


def assert_refused(result: tuple[Any, str, str], words: list[str]) -> None:
    status, output, errors = result
    assert status == 2
    assert output == ""
    assert errors.startswith("hyperrl: error: ")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    assert [word for word in words if word not in errors] == []


@pytest.mark.parametrize(("args", "words"), UNKNOWN_KEYS + WRONG_TYPES + OUT_OF_RANGE + MISSING)
def test_wrong_input_ends_in_one_line_and_nothing_is_created(
    call: Call, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    assert_refused(call("fit", *SMALL, *args), words)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


@pytest.mark.parametrize(("args", "words"), COMMANDS)
def test_wrong_commands_end_in_one_line(call: Call, tmp_path: Path, args: list[str], words: list[str]) -> None:
    assert_refused(call(*args), words)
    assert not list(tmp_path.iterdir())


def in_a_process(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(hyperrl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "hyperrl.cli", *args]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def test_what_is_found_only_when_all_is_built_is_still_one_line_of_a_real_process(tmp_path: Path) -> None:
    process = in_a_process(tmp_path, "fit", *SMALL, "--data.num_envs=6")
    assert_refused((process.returncode, process.stdout, process.stderr), ["data.num_envs (6)"])
    assert not list(tmp_path.iterdir())


def test_divergence_ends_in_one_line_and_status_one(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cli.MetaPPO.loss

    def loss(self: Any, *args: Any) -> Any:
        total, logged = original(self, *args)
        return total * float("nan"), {**logged, "loss/total": torch.tensor(float("nan"))}

    monkeypatch.setattr(cli.MetaPPO, "loss", loss)
    status, output, errors = call("fit", *SMALL, "--trainer.logger=false")
    assert (status, output) == (1, "")
    assert errors == "hyperrl: error: loss/total is nan at frame 40\n"


class TestList:
    @pytest.mark.parametrize("group", ["envs", "models", "experiments"])
    def test_names_come_with_a_description(self, call: Call, group: str, tmp_path: Path) -> None:
        status, output, errors = call("list", group)
        assert (status, errors) == (0, "")
        directory = {"envs": None, "models": "model", "experiments": "experiment"}[group]
        names = env_ids() if directory is None else list(configuration.shipped_configs(directory))
        assert len(names) > 1
        rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line and line[0] != " "}
        assert set(rows) == {"name", *names}
        assert all(len(words) > 2 for name, words in rows.items() if name != "name")
        assert not list(tmp_path.iterdir())

    def test_shipped_names_are_those_that_config_takes(self, call: Call) -> None:
        _, output, _ = call("list", "experiments")
        assert "experiment/quickstart" in output
        assert Path(configuration.resolve_config("experiment/quickstart")).is_file()


def printed(call: Call, *args: str) -> dict[str, Any]:
    status, output, errors = call("fit", *args, "--print_config")
    assert (status, errors) == (0, "")
    config: dict[str, Any] = yaml.safe_load(output)
    return config


class TestConfigurations:
    def test_print_config_shows_everything_and_creates_nothing(self, call: Call, tmp_path: Path) -> None:
        config = printed(call)
        assert config["model"]["ppo"]["gamma"] == 0.95
        assert config["data"]["env"] == "GridNavi-v0"
        assert config["checkpoint"]["monitor"] == "val/return"
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("null", None)])
    def test_a_number_is_an_integer_where_it_may_be_either(self, text: str, value: float | None) -> None:
        parser = cli.Parser()
        parser.add_argument("--count", type=float | int | None)  # in the order that turns 1 into 1.0
        cli._integers_first(parser)
        count = parser.parse_args([f"--count={text}"]).count
        assert count == value
        assert type(count) is type(value)

    def test_what_is_printed_can_be_used(self, call: Call, tmp_path: Path) -> None:
        config = printed(call, "--config", "experiment/quickstart", "--model.ppo.lr=0.25")
        (tmp_path / "printed.yaml").write_text(yaml.safe_dump(config))
        assert printed(call, "--config", "printed.yaml") == config

    def test_files_and_overrides_compose_and_the_last_one_wins(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text("data:\n  num_envs: 12\nmodel:\n  ppo:\n    lr: 0.5\n    epochs: 3\n")
        files = ["--config", "env/grid7_21", "--config", "model/rnn_s", "--config", "own.yaml"]
        config = printed(call, *files, "--model.ppo.lr=3e-4", "--seed_everything", "7")
        assert config["data"]["env"] == "Grid7-21-v0"
        assert config["data"]["num_envs"] == 12
        assert config["model"]["policy"]["conditioning"] == "concat"
        assert config["model"]["ppo"] == {**config["model"]["ppo"], "lr": 3e-4, "epochs": 3, "gamma": 0.95}
        assert config["seed_everything"] == 7
        reverse = printed(call, "--config", "own.yaml", "--config", "experiment/quickstart")
        assert reverse["data"]["num_envs"] == 64

    @pytest.mark.parametrize(
        "name", ["experiment/quickstart", "experiment/quickstart.yaml", "configs/experiment/quickstart.yaml"]
    )
    def test_a_shipped_name_resolves_from_any_directory(self, call: Call, name: str) -> None:
        assert printed(call, f"--config={name}")["data"]["num_envs"] == 64

    def test_a_file_wins_over_the_shipped_name(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "quickstart").write_text("data:\n  num_envs: 28\n")
        assert printed(call, "--config", "experiment/quickstart")["data"]["num_envs"] == 28

    def test_help_names_the_settings_with_what_they_do(self, call: Call) -> None:
        status, output, _ = call("fit", "--help")
        assert status == 0
        text = " ".join(output.split())
        assert "--model.ppo.lr" in text
        assert "learning rate of policy and encoder" in text
        assert "parallel environments (tasks seen at once)" in text

    def test_an_environment_of_the_users_own(self, call: Call, tmp_path: Path, monkeypatch: Any) -> None:
        (tmp_path / "own_environment.py").write_text(
            "import gymnasium\nfrom hyperrl.envs.gridworld import GridNavi\n\n\nclass Own(GridNavi):\n    pass\n\n\n"
            "gymnasium.register('OwnGrid-v0', entry_point='own_environment:Own', kwargs={'num_cells': 6})\n"
        )
        monkeypatch.delitem(sys.modules, "own_environment", raising=False)
        status, output, _ = call("fit", *SMALL, "--trainer.logger=false", "--data.env=own_environment:OwnGrid-v0")
        assert status == 0
        assert "Adaptation (test)" in output


def test_bf16_gives_way_to_fp32_where_the_processor_would_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "_has_bf16_units", lambda: False)
    assert configuration.usable_precision("bf16-mixed", "cpu") == "32-true"
    monkeypatch.setattr(configuration, "_has_bf16_units", lambda: True)
    assert configuration.usable_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert configuration.usable_precision("32-true", "cpu") == "32-true"
