"""The command line: ``hyperrl fit | validate | test`` through LightningCLI, and typed functions as further commands."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, NoReturn, Union, get_args, get_origin

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Column, Table

from hyperrl import configuration
from hyperrl.behaviour_figure import BehaviourFigure
from hyperrl.callbacks import AdaptationTable, DivergenceReport, FrameBudget, FrameProgressBar
from hyperrl.commands import COMMANDS, call_command
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.envs import description, env_ids
from hyperrl.errors import ConfigError, DivergedError, TrackingError
from hyperrl.inference_figure import InferenceFigure
from hyperrl.modules.aggregators import Aggregator
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.sequence import SequenceModel
from hyperrl.tracking import MLflowLogger, SystemMetrics, TrackingState

_log = logging.getLogger(__name__)
FAILURE, USAGE_ERROR, TRACKING_ERROR = 1, 2, 3
LINKS = ("env_info", "num_envs", "frames")
# Keys whose value is a class, and what it has to be.
CLASSES: dict[str, type] = {"model.encoder.sequence": SequenceModel, "model.encoder.aggregator": Aggregator}
TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {"class_path": "hyperrl.tracking.MLflowLogger"},
    "precision": "32-true",
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class Parser(LightningArgumentParser):
    """A parser that ends in one line on wrong input, naming the nearest valid key."""

    arguments: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A shortened name would be read by the parser, but not where this module looks for --ckpt_path and --config.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with status 2 and one line."""
        text = self._no_class(message) or self._with_key(configuration.one_line(message))
        unknown = re.search(
            r"(?:Unrecognized arguments?:|does not accept (?:option|nested key)) ['\"]?-*([\w.]+)", text, re.I
        )
        if unknown:
            text += configuration.nearest(unknown[1], self._known_keys())
        sys.stderr.write(f"hyperrl: error: {text}\n")
        sys.exit(USAGE_ERROR)

    def _no_class(self, message: str) -> str | None:
        """What is wrong with the name of a class, where that is what is wrong."""
        found = re.match(r'Parser key "([\w.]+)":\s+- Expected a path but (\S+) either not', message)
        if not found or found[1] not in CLASSES:
            return None
        names = sorted(kind.__name__ for kind in configuration.subclasses(CLASSES[found[1]]))
        expected = f"{found[1]} is {found[2]}; expected a class path, or one of {', '.join(names)}"
        return expected + configuration.nearest(found[2], names)

    def _with_key(self, text: str) -> str:
        """Puts the whole key before a message that names only its last part."""
        part = re.match(r"Option '(\w+)' is not|(\w+): ", text)
        names = {arg.partition("=")[0].removeprefix("--") for arg in self.arguments if arg.startswith("--")}
        keys = [name for name in names if part and name.endswith(f".{part[1] or part[2]}")]
        return f"{keys[0]}: {text.removeprefix(f'{part[2]}: ')}" if part and len(keys) == 1 else text

    def _known_keys(self) -> set[str]:
        parsers = [self, *getattr(self._subcommands_action, "_name_parser_map", {}).values()]
        keys = {str(action.dest) for parser in parsers for action in parser._actions}
        return keys | {key.rpartition(".")[2] for key in keys}


class SaveConfig(SaveConfigCallback):
    """Keeps the resolved configuration in every checkpoint and with the run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def _text(self) -> str:
        return self.parser.dump(self.config, skip_none=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs the configuration at the start of training."""
        for logger in trainer.loggers:
            if stage == "fit" and isinstance(logger, MLflowLogger):
                config = yaml.safe_load(self._text())
                # The configuration has the precision that was asked for, which not every processor computes in.
                tags = {"model": configuration.model_name(config), "precision": trainer.precision}
                logger.log_config(config, self._text(), tags)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, so that a checkpoint alone is enough."""
        checkpoint[configuration.CHECKPOINT_CONFIG] = self._text()


class HyperRLCLI(LightningCLI):
    """LightningCLI for meta-RL: data sizes are linked to the model, and the command line wins over checkpoints."""

    def __init__(self, checkpoint: dict[str, Any] | None, test: bool, **kwargs: Any) -> None:
        self.checkpoint, self.ends_with_test = checkpoint, test  # `test` is the name of a subcommand
        super().__init__(MetaPPO, MetaDataModule, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Training, and evaluation of a checkpoint."""
        subcommands = LightningCLI.subcommands()
        return {name: subcommands[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the environment decides to the model; adds the checkpoint's settings."""
        _integers_first(parser)
        for name in LINKS:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/return",
                "checkpoint.mode": "max",
                "checkpoint.save_top_k": 2,
                "checkpoint.filename": "epoch{epoch}-return{val/return:.2f}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_on_train_epoch_end": True,
                "checkpoint.enable_version_counter": False,
            }
        )

    def _parse_ckpt_path(self) -> None:
        """Lightning would put the checkpoint's hyper-parameters over the command line; ours lie under it."""

    def before_instantiate_classes(self) -> None:
        """Refuses what would fail later, or silently mean something else; evaluation opens no run of its own."""
        config = self.config[self.subcommand]
        configuration.check_groups(config)
        for key, base in CLASSES.items():
            chosen = config.get(key)
            if chosen and chosen.class_path.rpartition(".")[2] == base.__name__:
                names = ", ".join(sorted(kind.__name__ for kind in configuration.subclasses(base)))
                raise ConfigError(f"{key} is {base.__name__}, which all of them derive from; expected one of {names}")
        # Not a link: the parser would put the list into whatever stands where the group of data belongs.
        parts = PolicyConfig(**config.model.policy.as_dict()), InferenceConfig(**config.model.inference.as_dict())
        needed = [name for part in parts for name in part.publish]
        config.data.publish = list(dict.fromkeys((*(config.data.publish or ()), *needed)))
        if config.ckpt_path and self.checkpoint is None:
            raise ConfigError(f"ckpt_path is {config.ckpt_path} in a configuration; expected it as --ckpt_path")
        if self.subcommand == "fit":
            configuration.check_training(config)
        elif self.checkpoint is None:
            raise ConfigError(f"{self.subcommand} has no --ckpt_path; expected the checkpoint to evaluate")
        else:
            config.trainer.logger = False
        self._precision()

    def _set_seed(self) -> None:
        with _refused("seed_everything"):
            super()._set_seed()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer; what it refuses is a wrong setting."""
        wanted, usable = self._precision()
        if usable != wanted:
            sys.stderr.write(f"hyperrl: this processor has no bf16 units: computing in {usable}\n")
            # Not in the configuration: a run has the same one, and so the same identity, on every computer.
            kwargs["precision"] = usable
        with _refused("trainer"):
            return super().instantiate_trainer(**kwargs)

    def _precision(self) -> tuple[str, str]:
        """The configured precision, and the one to compute in on this processor."""
        trainer = self._get(self.config, "trainer")
        wanted = str(trainer.precision or 32)
        return wanted, configuration.usable_precision(wanted, trainer.accelerator)

    def after_instantiate_classes(self) -> None:
        """Checks the checkpoint against the model before anything is created, and continues its run."""
        if self.checkpoint is None:
            return
        path = self._get(self.config, "ckpt_path")
        configuration.check_fits(path, self.checkpoint["state_dict"], self.model.state_dict())
        if self.subcommand == "fit":
            configuration.check_continues(path, self.checkpoint, self.config.fit)
            for logger in self.trainer.loggers:
                if isinstance(logger, MLflowLogger) and "tracking" in self.checkpoint:
                    logger.resume(self.checkpoint["tracking"])

    def after_fit(self) -> None:
        """Tests the best checkpoint once, on fresh tasks, and says what to do next."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if not self.ends_with_test or self.trainer.interrupted:
            return
        # A run that was resumed elsewhere with its budget spent knows its best checkpoint by a relative path only.
        if self._is_everywhere(best):
            self.trainer.test(self.model, self.datamodule, ckpt_path=best, weights_only=True, verbose=False)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AdaptationTable):
                callback.summary(self.trainer)

    def _is_everywhere(self, path: str) -> bool:
        """Whether all processes see a file; none of them may go on alone.

        Raises:
            ConfigError: only some of them see it.
        """
        own, strategy = Path(path).is_file(), self.trainer.strategy
        if not strategy.reduce_boolean_decision(own, all=False):
            return False
        if not strategy.reduce_boolean_decision(own, all=True):
            raise ConfigError(
                f"{path} is not on all machines: training is complete, its test is not; expected a working directory "
                "that they share (`hyperrl test --ckpt_path` makes up for the test)"
            )
        return True


def _integers_first(parser: LightningArgumentParser) -> None:
    """Lets the parser read 1 as an integer where a number may be either: it takes the first type that fits.

    `typing` hands out one object for equal unions, so Lightning's may have the order of another library that was
    imported earlier; ``limit_test_batches=1`` would then mean all batches instead of one.
    """
    for action in parser._actions:
        hint: Any = getattr(action, "_typehint", None)
        kinds = get_args(hint)
        if get_origin(hint) in (Union, UnionType) and {int, float} <= set(kinds):
            vars(action)["_typehint"] = reduce(or_, sorted(kinds, key=lambda kind: kind is float))


@contextlib.contextmanager
def _refused(key: str) -> Iterator[None]:
    """Turns what a library says about a setting's value into our own error."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _checkpoint_arguments(args: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """Puts the configuration in ``--ckpt_path``'s checkpoint below all other arguments; it is enough by itself."""
    path = _option(args, "--ckpt_path")
    command = next((index for index, arg in enumerate(args) if arg in HyperRLCLI.subcommands()), None)
    if path is None or command is None:
        return None, args
    checkpoint = configuration.load_checkpoint(path)
    config = yaml.safe_load(checkpoint[configuration.CHECKPOINT_CONFIG])
    for key in ("ckpt_path", "config", "weights_only"):
        config.pop(key, None)
    # The parser takes a configuration as text, too.
    return checkpoint, [*args[: command + 1], "--config", json.dumps(config), *args[command + 1 :]]


def _option(args: list[str], name: str) -> str | None:
    """The value of ``name`` in ``args``, written as ``--name value`` or ``--name=value``."""
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None


def _resolve_configs(args: list[str]) -> list[str]:
    """Replaces the names of shipped configurations by their paths."""
    result = list(args)
    for index, arg in enumerate(args):
        if arg in ("--config", "-c") and index + 1 < len(args):
            result[index + 1] = configuration.resolve_config(args[index + 1])
        elif arg.startswith("--config="):
            result[index] = "--config=" + configuration.resolve_config(arg.partition("=")[2])
    return result


def _list(args: list[str]) -> None:
    """``hyperrl list envs | models | experiments | sweeps``: names and one line on each."""
    groups = {"models": "model", "experiments": "experiment", "sweeps": "sweep"}
    if len(args) != 1 or args[0] not in ("envs", *groups):
        raise ConfigError(f"list {' '.join(args)}: expected one of envs, {', '.join(groups)}")
    if args[0] == "envs":
        rows = [(name, description(name)) for name in env_ids()]
    else:
        configs = configuration.shipped_configs(groups[args[0]])
        rows = [(name, configuration.description(path) + _also(name)) for name, path in configs.items()]
    table = Table(Column("name", no_wrap=True), "what it is", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # One line per name where another program reads them.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _also(name: str) -> str:
    """The other names of a shipped configuration."""
    others = [alias for alias, of in configuration.aliases().items() if of == name]
    return f"; also: {', '.join(others)}" if others else ""


def _callbacks() -> list[Callback]:
    """What every run has besides the callbacks of its configuration."""
    # Lightning's `save_last` writes only when a best-k checkpoint is written, too; resuming needs the newest state.
    last = ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    return [
        FrameProgressBar(),
        FrameBudget(),
        AdaptationTable(),
        DivergenceReport(),
        InferenceFigure(),
        BehaviourFigure(),
        SystemMetrics(),
        TrackingState(),
        last,
    ]


def quiet_libraries() -> None:
    """Silences warnings that tell a user of HyperRL nothing."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning|jsonargparse)\b.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("RL_WARNINGS", "0")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def run(args: list[str], test: bool = True) -> HyperRLCLI:
    """Runs one LightningCLI subcommand.

    Args:
        args: command-line arguments, beginning with the subcommand.
        test: whether training ends with a test of the best checkpoint.

    Returns:
        The CLI with its objects.

    Raises:
        ConfigError: the arguments are wrong in a way that the parser does not see.
        DivergedError: a loss or parameter became non-finite.
        TrackingError: the MLflow server or store cannot be used.
    """
    checkpoint, args = _checkpoint_arguments(_resolve_configs(args))
    Parser.arguments = args
    return HyperRLCLI(
        checkpoint,
        test,
        args=args,
        parser_class=Parser,
        trainer_defaults={**TRAINER_DEFAULTS, "callbacks": _callbacks()},
        save_config_callback=SaveConfig,
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": "hyperrl",
            "description": "Meta-RL with hypernetworks. Besides: "
            f"hyperrl list envs|models|experiments|sweeps, {', '.join(COMMANDS)}.",
        },
    )


def main() -> None:
    """Entry point of the console script: errors end in one line.

    The exit status is 2 for wrong input, 3 where MLflow cannot be used, which another try may find otherwise, and 1
    where a loss or parameter is not finite.
    """
    quiet_libraries()
    # A console script has no working directory on its path; user classes are named by class path.
    sys.path.insert(0, str(Path.cwd()))
    args = sys.argv[1:]
    try:
        if args[:1] == ["list"]:
            _list(args[1:])
        elif args and args[0] in COMMANDS:
            call_command(args[0], args[1:], Parser)
        else:
            run(args)
    except (ConfigError, TrackingError, DivergedError, MisconfigurationException) as error:
        sys.stderr.write(f"hyperrl: error: {configuration.one_line(str(error))}\n")
        statuses: dict[type, int] = {DivergedError: FAILURE, TrackingError: TRACKING_ERROR}
        sys.exit(statuses.get(type(error), USAGE_ERROR))


if __name__ == "__main__":
    main()
