"""The identity of a job: its configuration as ``hyperrl fit`` would resolve it, checked by the same parser."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from jsonargparse import Namespace

from hyperrl import cli
from hyperrl.errors import ConfigError
from hyperrl.experiments.sweep.sweep_file import SEED, Job, as_text
from hyperrl.run_tags import flat_identity, flatten

_LOGGER = "trainer.logger"


class _Parser(cli.HyperRLCLI):
    """`hyperrl fit` up to the point at which it would build anything."""

    def _set_seed(self) -> None:
        """A seed is checked by the parser; nothing is drawn here."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""

    def resolve(self, arguments: list[str]) -> dict[str, Any]:
        """The whole configuration for the arguments of ``hyperrl fit``."""
        parser = self._parser("fit")  # that of all commands takes twice as long
        self.config = Namespace(subcommand="fit", fit=parser.parse_args(arguments))
        self.before_instantiate_classes()
        config: dict[str, Any] = yaml.safe_load(parser.dump(self.config.fit, skip_unset=False, skip_validation=True))
        return config


@dataclass(frozen=True)
class ResolvedJob:
    """A job with what the parser makes of it.

    Attributes:
        job: as in the file.
        identity: the tag ``identity`` of its MLflow run.
        flat: the whole configuration, one value of text per dotted key.
        changes: of these, what differs between the jobs of the sweep.
    """

    job: Job
    identity: str
    flat: dict[str, str]
    changes: dict[str, str]

    @property
    def frames(self) -> int:
        """Environment steps to train for."""
        return int(self.flat["data.frames"])


def resolve(jobs: Sequence[Job]) -> list[ResolvedJob]:
    """Checks every job and finds its identity.

    Raises:
        ConfigError: the parser refuses a job, or two jobs are one and the same run.
    """
    resolver = Resolver()
    flats = [resolver.flat(job) for job in jobs]
    keys = {key for flat in flats for key in flat}
    varying = {key for key in keys if len({flat.get(key) for flat in flats}) > 1}
    result: dict[str, ResolvedJob] = {}
    for job, flat in zip(jobs, flats, strict=True):
        identity = flat_identity(flat)
        if identity in result:
            raise ConfigError(f"{job.name} is the same run as {result[identity].job.name}; expected one of them")
        result[identity] = ResolvedJob(job, identity, flat, {key: flat[key] for key in sorted(varying & flat.keys())})
    return list(result.values())


class Resolver:
    """Parses what is new: a model once, and each of its searched values once.

    A parse takes a tenth of a second. Where a value changes nothing but its own key, it does so in all jobs that differ
    from each other in searched values only. What a seed becomes depends on nothing else.
    """

    def __init__(self) -> None:
        self._bases: dict[str, tuple[Job, dict[str, str]]] = {}
        self._local: dict[tuple[str, str, str], str | None] = {}

    def flat(self, job: Job) -> dict[str, str]:
        """The resolved configuration of a job, flat."""
        same = repr((job.configs, {key: value for key, value in job.settings.items() if key not in job.searched}))
        if same not in self._bases:
            self._bases[same] = job, self.parse(job)
        first, base = self._bases[same]
        result = dict(base)
        for key in job.searched:
            value = self._value(key, job, first, base, "" if key == SEED else same)
            if value is None or key not in base:
                return self.parse(job)
            result[key] = value
        return result

    def _value(self, key: str, job: Job, first: Job, base: dict[str, str], where: str) -> str | None:
        """What a searched value becomes; None where it changes more than its own key.

        Args:
            key: the searched key.
            job: the job that has the value.
            first: a job of the same model, with other values.
            base: the resolved configuration of `first`.
            where: names all jobs in which it becomes the same.
        """
        if as_text(job.settings[key]) == as_text(first.settings[key]):
            return base.get(key)
        known = where, key, as_text(job.settings[key])
        if known not in self._local:
            flat = self.parse(replace(job, settings={**first.settings, key: job.settings[key]}))
            others = {name for name in flat.keys() | base.keys() if flat.get(name) != base.get(name)} - {key}
            self._local[known] = None if others else flat.get(key)
        return self._local[known]

    def parse(self, job: Job) -> dict[str, str]:
        """What the parser says, without a short cut."""
        for key in job.settings:
            if key.startswith(_LOGGER):
                raise ConfigError(f"{job.name}: {key} is the sweep's own; expected --save_dir or --experiment_name")
        arguments = job.arguments
        with _one_line(job.name):
            cli.Parser.arguments = arguments
            config = _parser().resolve(arguments)
        _check(job.name, config)
        return flatten(config)


@functools.cache
def _parser() -> _Parser:
    cli.quiet_libraries()
    return _Parser(
        None,
        False,
        args=["fit"],
        parser_class=cli.Parser,
        trainer_defaults={**cli.TRAINER_DEFAULTS, "callbacks": cli._callbacks()},
        auto_configure_optimizers=False,
    )


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turns what the parser says, and its exit, into an error that names the job."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as error:
        raise ConfigError(f"{name}: {said.getvalue().strip().removeprefix('hyperrl: error: ')}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _check(name: str, config: dict[str, Any]) -> None:
    """Refuses what a sweep cannot keep track of."""
    seed = config["seed_everything"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"{name}: seed_everything is {seed}; expected a number, for instance in seeds of the sweep")
    logger = config["trainer"]["logger"]
    if not isinstance(logger, dict) or not logger.get("class_path", "").endswith(".MLflowLogger"):
        raise ConfigError(f"{name}: trainer.logger is {logger}; expected hyperrl.tracking.MLflowLogger")
    uri = logger["init_args"].get("tracking_uri")
    if uri:
        raise ConfigError(f"{name}: tracking_uri is {uri}; expected none, but the variable MLFLOW_TRACKING_URI")
