"""Runs as data: what they were, their configuration and their metrics; and the small files in which they are kept."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperrl.configuration import nearest
from hyperrl.errors import ConfigError
from hyperrl.run_tags import NOT_IN_GROUP

HEADER = ("run", "kind", "name", "frames", "value")
SEED = "seed_everything"
FINISHED = "FINISHED"
KEPT = ("val/", "test/")  # what is exported whole
THINNED = {"train/return": 50, "time/frames_per_second": 50}  # and of how much at most how many points
_SHORT_ID = 8

Floats = NDArray[np.float64]


class Series(NamedTuple):
    """One metric of a run.

    Attributes:
        frames: environment frames `[N]`, rising.
        values: `[N]`.
    """

    frames: NDArray[np.int64]
    values: Floats

    def at(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Series:
        """Some of its points."""
        return Series(self.frames[index], self.values[index])


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        id: MLflow's id of the run, or its first digits.
        tags: who the run is (`name`, `model`, `env`, `seed`, `group`, `status`), the versions and the commit behind it,
            its `label` in tables and pictures, and whatever else was noted.
        config: the configuration as one level of text.
        metrics: series by name.
    """

    id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Series] = field(default_factory=dict)

    @property
    def full_id(self) -> str:
        """MLflow's id, in full."""
        return self.tags.get("run_id", self.id)

    @property
    def label(self) -> str:
        """The name in tables and pictures: the tag `label`, or else the model."""
        return self.tags.get("label") or self.tags.get("model", "unknown")

    @property
    def env(self) -> str:
        """The environment's id."""
        return self.tags.get("env", "unknown")

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return self.tags.get("seed", "")

    @property
    def status(self) -> str:
        """FINISHED, or what became of the run instead."""
        return self.tags.get("status", "unknown")

    def series(self, metric: str) -> Series:
        """A metric by name.

        Raises:
            ConfigError: the run has no such metric.
        """
        if metric not in self.metrics:
            raise ConfigError(f"metric {metric}: run {self.id} of {self.label} has none{nearest(metric, self.metrics)}")
        return self.metrics[metric]

    def last(self, metric: str) -> float | None:
        """The newest value of a metric; None where there is none."""
        return float(self.metrics[metric].values[-1]) if metric in self.metrics else None

    def labelled(self, label: str) -> Run:
        """The same run under another label; an empty one changes nothing."""
        return replace(self, tags={**self.tags, "label": label}) if label else self

    def cut(self, frames: int | None) -> Run:
        """The same run as if it had ended before `frames`; None changes nothing."""
        if frames is None:
            return self
        kept = {name: series.at(series.frames < frames) for name, series in self.metrics.items()}
        return replace(self, metrics={name: series for name, series in kept.items() if len(series.frames)})


def make_series(points: Mapping[int, float]) -> Series:
    """A series of values by frames, in any order."""
    frames = sorted(points)
    return Series(np.array(frames, np.int64), np.array([points[frame] for frame in frames], np.float64))


def for_export(runs: Sequence[Run]) -> list[Run]:
    """What is worth keeping of runs: validations and tests whole, training thinned; nothing of the machine's paths.

    Ids are shortened, as far as they stay different; the tag `run_id` has them in full.

    Raises:
        ConfigError: a run is there twice.
    """
    ids = {run.id for run in runs}
    if len(ids) < len(runs):
        raise ConfigError(f"export: {len(runs) - len(ids)} runs are there under two labels; expected each run once")
    longest = max(map(len, ids), default=_SHORT_ID)
    length = next(n for n in range(_SHORT_ID, longest + 1) if n == longest or len({id[:n] for id in ids}) == len(ids))
    return [_kept(run, length) for run in runs]


def _kept(run: Run, id_length: int) -> Run:
    metrics = {name: series for name, series in run.metrics.items() if name.startswith(KEPT)}
    for name, count in THINNED.items():
        if name in run.metrics:
            series = run.metrics[name]
            metrics[name] = series.at(spread(len(series.frames), count))
    config = {name: value for name, value in run.config.items() if name == SEED or matters(name)}
    return replace(run, id=run.id[:id_length], tags={**run.tags, "run_id": run.full_id}, config=config, metrics=metrics)


def matters(setting: str) -> bool:
    """Whether a setting can change a result and is not the seed."""
    return not NOT_IN_GROUP.match(setting)


def spread(length: int, count: int) -> NDArray[np.int64]:
    """Indices of at most `count` of `length` points, evenly spread, the first and the last one included."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(np.int64))


def write_runs(path: Path, runs: Iterable[Run]) -> None:
    """Writes runs as they are, one line per tag, setting and point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for run in runs:
            writer.writerows((run.id, *row) for row in _rows(run))


def _rows(run: Run) -> Iterator[tuple[str, str, int | str, str]]:
    for kind, texts in (("tag", run.tags), ("config", run.config)):
        yield from ((kind, name, "", texts[name]) for name in sorted(texts))
    for name in sorted(run.metrics):
        for frames, value in zip(*run.metrics[name], strict=True):
            yield "metric", name, int(frames), repr(float(value))


def read_runs(path: Path) -> list[Run]:
    """Reads what `write_runs` wrote; runs in the order of the file.

    Raises:
        ConfigError: the file is missing, or another kind of file.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected runs that `hyperrl compare --export` wrote")
    found: dict[str, dict[str, dict]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != HEADER:
            raise ConfigError(f"{path}: expected a CSV file with the columns {','.join(HEADER)}")
        for line in reader:
            try:
                _take(found, *line)
            except (KeyError, TypeError, ValueError) as error:
                text = ",".join(line)[:80]
                raise ConfigError(f"{path}, line {reader.line_num}: {text!r} is no part of a run") from error
    return [_run(id, parts) for id, parts in found.items()]


def _take(found: dict[str, dict[str, dict]], id: str, kind: str, name: str, frames: str, value: str) -> None:
    """Adds one line to what was found of its run."""
    parts = found.setdefault(id, {"tag": {}, "config": {}, "metric": {}})
    if kind == "metric":
        parts[kind].setdefault(name, {})[int(frames)] = float(value)
    else:
        parts[kind][name] = value


def _run(id: str, parts: Mapping[str, dict]) -> Run:
    metrics = {name: make_series(points) for name, points in parts["metric"].items()}
    return Run(id, parts["tag"], parts["config"], metrics)


def tag_filter(where: Iterable[str]) -> Callable[[Mapping[str, str]], bool]:
    """Whether tags have all the values that are asked for.

    Args:
        where: each `TAG=VALUE`.

    Raises:
        ConfigError: there is no `=` in one of them.
    """
    wanted = dict(map(partial(split, "where"), where))
    return lambda tags: all(tags.get(name) == value for name, value in wanted.items())


def split(option: str, text: str) -> tuple[str, str]:
    """`NAME=VALUE` as a pair, at the last `=`.

    Raises:
        ConfigError: there is no `=`, or no name.
    """
    name, _, value = text.rpartition("=")
    if not name:
        raise ConfigError(f"{option}: {text!r}; expected NAME=VALUE")
    return name, value


def number(option: str, value: Any) -> float:
    """A value as a finite number.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{option} is {value}; expected a number")
    return found
