"""Comparing models on one environment: the chosen setting of each, its curve, and its numbers with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hyperrl import envs
from hyperrl.configuration import nearest
from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.curves import (
    POINTS,
    Measure,
    Scores,
    align,
    common_scores,
    join,
    paper_curve,
    paper_scores,
    smooth,
)
from hyperrl.experiments.comparison.runs import Floats, Run
from hyperrl.experiments.comparison.selection import Choice, choose
from hyperrl.experiments.comparison.statistics import mean_band

Quantity = Literal["mean", "final", "auc", "best", "test"]
Direction = Literal["max", "min"]
PAPER_LEVEL, LEVEL = 68.0, 95.0


@dataclass(frozen=True)
class Settings:
    """How runs are compared; the arguments of `hyperrl.experiments.comparison.command.compare` of the same names."""

    metric: str = "val/return"
    rule: Measure = "mean"
    direction: Direction = "max"
    over: Sequence[str] | None = None
    choose_on: Sequence[int] = ()
    quantities: Sequence[Quantity] = ("final", "best", "auc", "test")
    baseline: str | None = None
    last: float = 0.1
    smoothing: float = 0.1
    level: float | None = None
    until: int | None = None
    paper: bool = False
    seed: int = 0

    @property
    def percent(self) -> float:
        """The level of all intervals."""
        return self.level if self.level is not None else PAPER_LEVEL if self.paper else LEVEL

    @property
    def lowest(self) -> bool:
        """Whether lower values are better."""
        return self.direction == "min"

    def scores(self, measure: Measure) -> Scores:
        """What sums curves up."""
        if self.paper:
            return paper_scores(measure, self.smoothing, self.lowest)
        return common_scores(measure, self.last, self.lowest)

    def choose(self, runs: Sequence[Run]) -> Choice:
        """Chooses among the settings of a model."""
        seeds = [str(seed) for seed in self.choose_on]
        return choose(runs, self.scores(self.rule), self.metric, self.over, self.lowest, seeds, all_count=self.paper)

    def check(self) -> None:
        """Refuses what makes no sense.

        Raises:
            ConfigError: a value is of another type, unknown or out of range.
        """
        for name, kind in (("metric", str), ("baseline", str | None), ("paper", bool)):
            if not isinstance(getattr(self, name), kind):
                expected = "true or false" if kind is bool else "a name"
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        _check_list("quantities", self.quantities, str)
        _check_list("over", self.over or (), str)
        _check_list("choose_on", self.choose_on, Integral)
        _check_known("rule", [self.rule], get_args(Measure))
        _check_known("direction", [self.direction], get_args(Direction))
        _check_known("quantities", self.quantities, get_args(Quantity))
        for name, value, high in (
            ("last", self.last, 1),
            ("smoothing", self.smoothing, 1),
            ("level", self.percent, 100),
        ):
            if not isinstance(value, Real) or not 0 <= value < high:
                raise ConfigError(f"{name} is {value}; expected a number from 0 to below {high}")
        for name, value in (("seed", self.seed), ("until", self.until or 0)):
            if not isinstance(value, Integral) or value < 0:
                raise ConfigError(f"{name} is {value}; expected a whole number that is not negative")


def _check_list(name: str, values: Any, kind: type) -> None:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, kind) for value in values):
        raise ConfigError(f"{name} is {values!r}; expected a list of {'names' if kind is str else 'whole numbers'}")


def _check_known(name: str, values: Iterable[Any], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(f"{name} is {value}; expected one of {', '.join(known)}{nearest(str(value), known)}")


class Curve(NamedTuple):
    """A line with its band.

    Attributes:
        x: `[N]`.
        values: `[N]`.
        low: lower end of the band `[N]`; NaN where it is unknown.
        high: upper end `[N]`.
    """

    x: NDArray[np.int64]
    values: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Comparison:
    """The models on one environment.

    Attributes:
        env: its id.
        choices: one of each model, in the order of the runs.
        settings: how they are compared.
    """

    env: str
    choices: tuple[Choice, ...]
    settings: Settings

    @classmethod
    def of(cls, runs: Iterable[Run], settings: Settings) -> list[Comparison]:
        """One comparison per environment.

        Raises:
            ConfigError: a setting is wrong, or the runs are not comparable.
        """
        settings.check()
        by_env: dict[str, dict[str, list[Run]]] = {}
        for run in runs:
            cut = run.cut(settings.until)
            if settings.metric in run.metrics and settings.metric not in cut.metrics:
                first = f"{run.series(settings.metric).frames[0]:,}"
                raise ConfigError(f"until is {settings.until}; expected more than {first}, where run {run.id} begins")
            by_env.setdefault(run.env, {}).setdefault(run.label, []).append(cut)
        labels = {label for models in by_env.values() for label in models}
        if settings.baseline is not None and settings.baseline not in labels:
            hint = nearest(settings.baseline, labels)
            raise ConfigError(f"baseline is {settings.baseline}; expected one of {', '.join(sorted(labels))}{hint}")
        return [cls(env, tuple(map(settings.choose, models.values())), settings) for env, models in by_env.items()]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know about the choices and the range of frames."""
        notes = [note for choice in self.choices for note in choice.notes(self.settings.rule)]
        complete = [run for choice in self.choices if choice.is_complete for run in choice.runs]
        ends = {run.series(self.settings.metric).frames[-1] for run in complete}
        if not self.settings.paper and len(ends) > 1:
            notes.append(f"{self.env}: compared up to {min(ends):,} frames, where the shortest run ends")
        return notes

    def scores(self, quantity: Quantity) -> dict[str, Floats]:
        """One number per run of each model; models without it are left out, and so is `test` of a metric of training.

        Complete runs are compared on the frames that all of them have; those of an incomplete model have their own.
        """
        metric = self.settings.metric
        if quantity == "test":
            if not metric.startswith(("val/", "test/")):
                return {}
            name = re.sub("^val/", "test/", metric)
            found = {choice.label: [run.last(name) for run in choice.runs] for choice in self.choices}
            return {label: np.array(values) for label, values in found.items() if None not in values}
        score = self.settings.scores(quantity)
        complete = [choice for choice in self.choices if choice.is_complete]
        groups = [complete, *([choice] for choice in self.choices if not choice.is_complete)]
        result: dict[str, Floats] = {}
        for group in filter(None, groups):
            values = score([run.series(metric) for choice in group for run in choice.runs])
            ends = np.cumsum([len(choice.runs) for choice in group])[:-1]
            result |= zip([choice.label for choice in group], np.split(values, ends), strict=True)
        return result

    def curve(self, choice: Choice) -> Curve:
        """The learning curve of a model: the mean over its runs, on the frames that they have in common."""
        metric, smoothing = self.settings.metric, self.settings.smoothing
        series = [run.series(metric) for run in choice.runs]
        if self.settings.paper:
            frames, values = join([paper_curve(each, smoothing) for each in series])
        else:
            frames, values = align([each._replace(values=smooth(each.values, smoothing)) for each in series], POINTS)
        error = f"{metric}_sem"
        if len(series) == 1 and error in choice.runs[0].metrics and not self.settings.paper:
            frames_of_error, errors = choice.runs[0].metrics[error]
            # No smaller for the smoothing, although more tasks stand behind a smoothed value: an upper bound.
            sem = np.interp(frames, frames_of_error, smooth(errors, smoothing))
            return Curve(frames, values[0], values[0] - sem, values[0] + sem)
        return Curve(frames, np.nanmean(values, 0), *self._band(values))

    def adaptation(self, choice: Choice) -> Curve | None:
        """The return of each episode of a task, k from 1: of the test, or else of each run's best validation.

        Runs may have been counted together whose tasks differ in the number of episodes: all of them have the first.
        """
        values = np.array(list(zip(*(self._episodes(run) for run in choice.runs), strict=False))).T
        if values.size == 0:
            return None
        return Curve(np.arange(1, values.shape[1] + 1), values.mean(0), *self._band(values))

    @cached_property
    def adapts_in(self) -> str:
        """Where the returns of episodes come from: `test` if all runs were tested, or else `val`."""
        runs = [run for choice in self.choices for run in choice.runs]
        tested = all(any(name.startswith("test/return_episode_") for name in run.metrics) for run in runs)
        return "test" if tested else "val"

    def _episodes(self, run: Run) -> list[float]:
        names = sorted(
            (name for name in run.metrics if re.fullmatch(rf"{self.adapts_in}/return_episode_\d+", name)),
            key=lambda name: int(name.rpartition("_")[2]),
        )
        if self.adapts_in == "test" or "val/return" not in run.metrics:
            return [float(run.metrics[name].values[-1]) for name in names]
        best = int(np.nanargmax(run.metrics["val/return"].values))
        return [float(run.metrics[name].values[best]) for name in names]

    def _band(self, values: Floats) -> tuple[Floats, Floats]:
        """The interval over runs `[R, N]`; unknown for a single one."""
        if len(values) < 2:
            unknown = np.full(values.shape[1], np.nan)
            return unknown, unknown
        return mean_band(values, self.settings.percent, seed=self.settings.seed)

    @cached_property
    def landmarks(self) -> dict[str, float]:
        """Known returns of the environment, where they hold: with its own arguments, tasks and number of episodes."""
        if not self.settings.metric.endswith("/return") or self.env not in envs.env_ids():
            return {}
        known = envs.landmarks(self.env)
        runs = [run for choice in self.choices for run in choice.runs]
        own = all(
            run.config.get("data.env_options", "None") in ("None", "{}")
            and not any(key.startswith("data.env_options.") for key in run.config)
            and float(run.config.get("data.held_out", 0)) == 0
            for run in runs
        )
        if not known or not own:
            return {}
        count = envs.make_env(self.env, 1).episodes_per_task
        last, none = (f"{self.settings.metric}_episode_{number}" for number in (count, count + 1))
        return known if all(last in run.metrics and none not in run.metrics for run in runs) else {}
